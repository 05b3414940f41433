//! What runs in the servers of the double: real agents, as their user-data says. All addresses are of
//! this machine (127.0.0.0/8), so an agent can have that of its port.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::Mutex;

use base64::Engine;
use rustix::process::{Pid, Signal, kill_process};
use serde_yaml::Value;

/// The port of all agents here.
const AGENT_PORT: u16 = 4321;
/// Where a floating IP leads when its cloud is gone.
const ENDED: &str = "ended";

/// A server that starts.
pub(crate) struct Boot {
    pub(crate) server: String,
    /// Where the agent's data is: the server's own disk, or a volume.
    pub(crate) disk: String,
    pub(crate) user_data: String,
}

/// Where a floating IP leads; none while it leads nowhere.
type Target = Arc<Mutex<Option<String>>>;

/// The agents that run, by server, and the ways to them.
pub(crate) struct Guests {
    folder: tempfile::TempDir,
    agents: BTreeMap<String, Child>,
    logs: BTreeMap<String, PathBuf>,
    floating: BTreeMap<String, Target>,
}

impl Guests {
    pub(crate) fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            agents: BTreeMap::new(),
            logs: BTreeMap::new(),
            floating: BTreeMap::new(),
        }
    }

    pub(crate) fn boot(&mut self, boot: Boot) {
        let Some((arguments, environment)) = orders(&boot.user_data) else { return };
        let disk = self.folder.path().join(&boot.disk);
        std::fs::create_dir_all(&disk).unwrap();
        let log = disk.join("console");
        let console = std::fs::File::options().create(true).append(true).open(&log).unwrap();
        let data = disk.join("data").display().to_string();
        let arguments =
            arguments.into_iter().map(|text| if text == "/data" { data.clone() } else { text });
        let child = Command::new(env!("CARGO_BIN_EXE_sky-deploy"))
            .arg("agent")
            .args(arguments)
            .envs(environment)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(console.try_clone().unwrap())
            .stderr(console)
            .spawn()
            .unwrap();
        self.agents.insert(boot.server.clone(), child);
        self.logs.insert(boot.server, log);
    }

    /// Pulls the plug.
    pub(crate) fn end(&mut self, server: &str) {
        if let Some(mut agent) = self.agents.remove(server) {
            // It may have ended by itself.
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }

    pub(crate) fn end_all(&mut self) {
        let servers: Vec<String> = self.agents.keys().cloned().collect();
        servers.iter().for_each(|server| self.end(server));
        for (address, target) in std::mem::take(&mut self.floating) {
            *target.lock().unwrap() = Some(ENDED.to_owned());
            let at = address.parse::<Ipv4Addr>().unwrap();
            // Wakes the thread that listens there, if there is one.
            let _ = TcpStream::connect((at, AGENT_PORT));
        }
    }

    pub(crate) fn freeze(&self, server: &str, freeze: bool) {
        let pid = self.agents.get(server).map(|agent| i32::try_from(agent.id()).unwrap());
        if let Some(pid) = pid.and_then(Pid::from_raw) {
            let signal = if freeze { Signal::STOP } else { Signal::CONT };
            kill_process(pid, signal).unwrap();
        }
    }

    /// The last that was said on a server's console.
    pub(crate) fn console(&self, server: &str) -> String {
        let Some(log) = self.logs.get(server) else {
            return "[    0.000000] Linux version 6.1\n[    1.000000] Kernel panic".to_owned();
        };
        std::fs::read_to_string(log).unwrap_or_default()
    }

    /// Lets a floating IP lead to the agent at a fixed one, or nowhere.
    pub(crate) fn forward(&mut self, floating: &str, fixed: Option<&str>) {
        let target = self.floating.entry(floating.to_owned()).or_default();
        let fresh = Arc::strong_count(target) == 1;
        *target.lock().unwrap() = fixed.map(str::to_owned);
        if fresh && fixed.is_some() {
            let at: Ipv4Addr = floating.parse().unwrap();
            let target = Arc::clone(target);
            let listener = TcpListener::bind((at, AGENT_PORT)).unwrap();
            std::thread::spawn(move || pass_on(&listener, &target));
        }
    }
}

/// Connects whoever comes to where the floating IP leads now.
fn pass_on(listener: &TcpListener, target: &Target) {
    for near in listener.incoming().map_while(Result::ok) {
        let Some(fixed) = target.lock().unwrap().clone() else { continue };
        if fixed == ENDED {
            return;
        }
        let Ok(fixed) = fixed.parse::<Ipv4Addr>() else { continue };
        let Ok(far) = TcpStream::connect(SocketAddr::from((fixed, AGENT_PORT))) else { continue };
        for (from, to) in [(&near, &far), (&far, &near)] {
            let (Ok(mut from), Ok(mut to)) = (from.try_clone(), to.try_clone()) else { continue };
            std::thread::spawn(move || {
                // Either side may end it, which is no error.
                let _ = std::io::copy(&mut from, &mut to);
                let _ = to.shutdown(std::net::Shutdown::Write);
            });
        }
    }
}

/// The cloud-config of a server: decoded, unpacked, parsed.
pub(crate) fn cloud_config(user_data: &str) -> Option<Value> {
    let packed = base64::engine::general_purpose::STANDARD.decode(user_data).ok()?;
    let mut text = String::new();
    flate2::read::GzDecoder::new(&*packed).read_to_string(&mut text).ok()?;
    serde_yaml::from_str(&text).ok()
}

/// The arguments and the environment of an agent.
type Orders = (Vec<String>, Vec<(String, String)>);

/// What the agent is started with; none if the user-data starts none.
fn orders(user_data: &str) -> Option<Orders> {
    let config = cloud_config(user_data)?;
    let file = |path: &str| {
        let files = config["write_files"].as_sequence()?;
        let file = files.iter().find(|file| file["path"].as_str() == Some(path))?;
        Some(file["content"].as_str()?.to_owned())
    };
    let arguments = file("/opt/sky/agent.args")?.lines().map(str::to_owned).collect();
    let environment = file("/opt/sky/agent.env")?;
    let environment = environment.lines().filter_map(|line| line.split_once('='));
    Some((arguments, environment.map(|(k, v)| (k.to_owned(), v.to_owned())).collect()))
}
