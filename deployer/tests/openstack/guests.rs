//! What runs in the servers. The lab's hypervisors keep servers in a table and start nothing, so this
//! does what a server would do: it asks the metadata service for its user-data and starts the agent
//! that this describes, behind the address that Neutron gave it. It knows of servers only what Nova
//! tells the project's user.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use flate2::read::GzDecoder;
use hmac::{Hmac, Mac};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::lab::{Cloud, Lab};
use crate::network::{Namespace, Network};

/// How often Nova is asked for the servers.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long an agent may take to end in order.
const END_WITHIN: Duration = Duration::from_secs(10);

/// The servers of one ring, from inside. All of it is gone when this is dropped.
pub(crate) struct Guests {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    /// The folder with what every server has on its disk, by its id.
    disks: PathBuf,
}

/// A server that was seen.
struct Guest {
    namespace: Namespace,
    disk: PathBuf,
    launch: AgentLaunch,
    agent: Option<Child>,
    frozen: bool,
}

/// What user-data says of the agent.
struct AgentLaunch {
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
}

impl Guests {
    /// Begins to be the servers whose mark is that of `ring`.
    pub(crate) fn of(ring: &str, lab: Arc<Lab>, network: Network, disks: &Path) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (ring, stopped, folder) = (ring.to_owned(), Arc::clone(&stop), disks.to_owned());
        let thread = std::thread::spawn(move || {
            crate::run(async {
                let cloud = lab.login("lab").await;
                let mut guests = BTreeMap::new();
                while !stopped.load(Ordering::Relaxed) {
                    look(&lab, &cloud, &network, &ring, &folder, &mut guests).await;
                    tokio::time::sleep(LOOK_EVERY).await;
                }
            });
        });
        Self { stop, thread: Some(thread), disks: disks.to_owned() }
    }

    /// The last words of every agent.
    pub(crate) fn logs(&self) -> String {
        let mut text = String::new();
        for disk in std::fs::read_dir(&self.disks).unwrap().flatten() {
            let log = std::fs::read_to_string(disk.path().join("log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let from = lines.len().saturating_sub(3);
            text.push_str(&format!("{}:\n{}\n", disk.path().display(), lines[from..].join("\n")));
        }
        text
    }
}

impl Drop for Guests {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("what runs in the servers has failed");
        }
    }
}

/// Does once what the servers would do.
async fn look(
    lab: &Lab,
    cloud: &Cloud,
    network: &Network,
    ring: &str,
    folder: &Path,
    guests: &mut BTreeMap<String, Guest>,
) {
    let mut servers = cloud.servers().await;
    servers.retain(|server| server["metadata"]["sky.ring"] == ring);
    let id = |server: &Value| server["id"].as_str().unwrap().to_owned();
    let there: Vec<String> = servers.iter().map(id).collect();
    guests.retain(|id, _| there.contains(id));
    for server in servers {
        let id = id(&server);
        match server["status"].as_str().unwrap() {
            "ACTIVE" if !guests.contains_key(&id) => {
                let Some(launch) = user_data(lab, cloud, &id).await else { continue };
                let namespace = network.namespace(address(&server));
                let disk = folder.join(&id);
                std::fs::create_dir_all(disk.join("data")).unwrap();
                let mut guest = Guest { namespace, disk, launch, agent: None, frozen: false };
                guest.run();
                guests.insert(id, guest);
            }
            status => {
                if let Some(guest) = guests.get_mut(&id) {
                    match status {
                        "ACTIVE" => guest.run(),
                        "PAUSED" => guest.freeze(),
                        "SHUTOFF" | "ERROR" => guest.end(),
                        _ => {}
                    }
                }
            }
        }
    }
}

/// The address that Neutron gave a server.
fn address(server: &Value) -> Ipv4Addr {
    let networks = server["addresses"].as_object().unwrap();
    let first = networks.values().next().unwrap();
    first[0]["addr"].as_str().unwrap().parse().unwrap()
}

/// Asks for the user-data of a server as Neutron's proxy does for it, and reads the agent's part.
async fn user_data(lab: &Lab, cloud: &Cloud, server: &str) -> Option<AgentLaunch> {
    let mut signature = Hmac::<sha2::Sha256>::new_from_slice(lab.secret.as_bytes()).unwrap();
    signature.update(server.as_bytes());
    let signature = signature.finalize().into_bytes();
    let signature: String = signature.iter().map(|byte| format!("{byte:02x}")).collect();
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let request = http
        .get(format!("{}/openstack/latest/user_data", lab.metadata))
        .header("X-Instance-ID", server)
        .header("X-Tenant-ID", &cloud.project)
        .header("X-Instance-ID-Signature", signature)
        .header("X-Forwarded-For", "10.0.0.1");
    let answer = request.send().await.unwrap();
    if answer.status() == reqwest::StatusCode::NOT_FOUND {
        return None; // It was deleted meanwhile.
    }
    assert!(answer.status().is_success(), "user-data of {server}: {}", answer.status());
    let mut text = String::new();
    GzDecoder::new(&*answer.bytes().await.unwrap()).read_to_string(&mut text).unwrap();
    assert!(text.starts_with("#cloud-config\n"), "{text}");
    let config: serde_yaml::Value = serde_yaml::from_str(&text).unwrap();
    let files = config["write_files"].as_sequence().unwrap();
    let file = |path: &str| {
        let mut found = files.iter().filter(|file| file["path"] == path);
        found.next().unwrap()["content"].as_str().unwrap().to_owned()
    };
    let pair = |line: &str| {
        let (name, value) = line.split_once('=').unwrap();
        (name.to_owned(), value.to_owned())
    };
    assert!(file("/opt/sky/run.args").ends_with("registry.example/sky-agent:1\n"));
    Some(AgentLaunch {
        arguments: file("/opt/sky/agent.args").lines().map(str::to_owned).collect(),
        environment: file("/opt/sky/agent.env").lines().map(pair).collect(),
    })
}

impl Guest {
    /// Lets the agent run: starts it, lets it go on, or does nothing, like its container.
    fn run(&mut self) {
        if self.frozen {
            self.signal(Signal::CONT);
            self.frozen = false;
        }
        if let Some(agent) = &mut self.agent
            && agent.try_wait().unwrap().is_none()
        {
            return;
        }
        let data = self.disk.join("data").display().to_string();
        let arguments = self.launch.arguments.iter();
        let arguments = arguments.map(|word| if word == "/data" { &data } else { word });
        let log = File::options().create(true).append(true).open(self.disk.join("log")).unwrap();
        let mut command = self.namespace.command(env!("CARGO_BIN_EXE_sky-deploy"));
        command
            .arg("agent")
            .args(arguments)
            .envs(self.launch.environment.iter().cloned())
            .current_dir(&self.disk)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.agent = Some(command.spawn().unwrap());
    }

    fn freeze(&mut self) {
        if !self.frozen {
            self.signal(Signal::STOP);
            self.frozen = true;
        }
    }

    /// Ends the agent in order, or else at once.
    fn end(&mut self) {
        self.signal(Signal::TERM);
        if self.frozen {
            self.signal(Signal::CONT);
            self.frozen = false;
        }
        let Some(mut agent) = self.agent.take() else { return };
        let begun = Instant::now();
        while agent.try_wait().unwrap().is_none() {
            if begun.elapsed() > END_WITHIN {
                agent.kill().unwrap();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(agent) = &self.agent {
            let pid = Pid::from_raw(i32::try_from(agent.id()).unwrap()).unwrap();
            // It may have ended by itself.
            kill_process(pid, signal).ok();
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // A server that is deleted is not asked.
        if let Some(agent) = &mut self.agent {
            agent.kill().ok();
            agent.wait().ok();
        }
    }
}
