//! A ring in the lab: its inventory, its servers from inside, and sky-deploy as its operator runs it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Instant;

use serde_json::Value;

use crate::counting::{Call, Doors};
use crate::guests::Guests;
use crate::lab::{Cloud, Lab};
use crate::network::Network;
use crate::tell;

/// A ring in a folder of its own; removed at the end, however that comes.
pub(crate) struct Ring {
    pub(crate) name: String,
    /// The project's user.
    pub(crate) cloud: Cloud,
    folder: tempfile::TempDir,
    doors: Doors,
    login: &'static str,
    /// What the inventory says of servers.
    pub(crate) settings: String,
    // Dropped last: destroying the ring needs agents that answer as little as possible, but the
    // namespaces must outlive it.
    guests: Option<Guests>,
}

impl Ring {
    /// A ring that is not applied yet, of a user of clouds.yaml. `number` tells the rings of this
    /// process apart.
    pub(crate) fn new(lab: &Arc<Lab>, number: usize, login: &'static str) -> Self {
        let (a, b) =
            (200 + u8::try_from(number).unwrap(), u8::try_from(std::process::id() % 200).unwrap());
        let settings = format!(
            "image: lab-blank\n  flavor: lab.tiny\n  cidr: 10.{a}.{b}.0/24\n  \
             external_network: public\n  floating_ips: none\n  availability_zones: [nova]\n  \
             agent_image: registry.example/sky-agent:1"
        );
        let mut ring =
            Self::bare(lab, format!("fk{number}-{}", std::process::id()), login, settings);
        let disks = ring.folder().join("servers");
        std::fs::create_dir(&disks).unwrap();
        let network = Network::new(number, (a, b));
        ring.guests = Some(Guests::of(&ring.name, Arc::clone(lab), network, &disks));
        ring
    }

    /// A ring whose servers boot, and need nobody to start their agents.
    pub(crate) fn booting(lab: &Lab) -> Self {
        let settings = "image: debian-12\n  flavor: lab.small\n  cidr: 10.199.0.0/24\n  \
                        external_network: public\n  floating_ips: one";
        Self::bare(lab, format!("vm-{}", std::process::id()), "lab", settings.to_owned())
    }

    /// A ring with nothing in its servers, whose calls to the services are counted.
    fn bare(lab: &Lab, name: String, login: &'static str, settings: String) -> Self {
        let cloud = crate::run(lab.login("lab"));
        let doors = Doors::open(&cloud);
        let folder = tempfile::tempdir().unwrap();
        let mut clouds = lab.clouds();
        for (service, url) in &doors.urls {
            clouds["clouds"][login][format!("{service}_endpoint_override")] = url.as_str().into();
        }
        std::fs::write(folder.path().join("clouds.yaml"), clouds.to_string()).unwrap();
        Self { name, cloud, folder, doors, login, settings, guests: None }
    }

    /// Where its inventory is.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Writes the inventory.
    pub(crate) fn wants(&self, nodes: usize) {
        let Self { name, login, settings, .. } = self;
        let text = format!(
            "ring: {{name: {name}}}\nprovider: openstack\nnodes: {nodes}\nopenstack:\n  \
             cloud: {login}\n  {settings}\n"
        );
        std::fs::write(self.folder.path().join("inventory.yaml"), text).unwrap();
    }

    /// The folder of what this machine knows of the ring.
    pub(crate) fn state(&self) -> PathBuf {
        self.folder.path().join("state/sky").join(&self.name)
    }

    /// What clients must bring.
    pub(crate) fn token(&self) -> String {
        std::fs::read_to_string(self.state().join("token")).unwrap()
    }

    /// Runs sky-deploy, and says how long it took and how often it called the services.
    pub(crate) fn run(&self, arguments: &[&str]) -> (Output, Vec<Call>) {
        self.run_program(Path::new(env!("CARGO_BIN_EXE_sky-deploy")), arguments)
    }

    /// The same with another version of it.
    pub(crate) fn run_program(&self, program: &Path, arguments: &[&str]) -> (Output, Vec<Call>) {
        self.doors.take();
        let begun = Instant::now();
        let output = Command::new(program)
            .args(arguments)
            .current_dir(self.folder.path())
            .env("XDG_STATE_HOME", self.folder.path().join("state"))
            .env("OS_CLIENT_CONFIG_FILE", self.folder.path().join("clouds.yaml"))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let calls = self.doors.take();
        assert!(arguments[0] == "list" || !calls.is_empty(), "{arguments:?} was not counted");
        tell(&format!(
            "{:>6.1} s, {:>4} calls, {:>3} of them changes: {}",
            begun.elapsed().as_secs_f64(),
            calls.len(),
            calls.iter().filter(|call| call.changes()).count(),
            arguments.join(" ")
        ));
        (output, calls)
    }

    /// Runs what must succeed; stdout and the calls that may have changed something come back.
    pub(crate) fn must(&self, arguments: &[&str]) -> (String, Vec<Call>) {
        let (output, mut calls) = self.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        let logs = || self.guests.as_ref().map(Guests::logs).unwrap_or_default();
        assert!(output.status.success(), "{arguments:?}: {errors}\n{}", logs());
        calls.retain(Call::changes);
        (String::from_utf8(output.stdout).unwrap(), calls)
    }

    /// Runs what must fail with this code; everything it said comes back.
    pub(crate) fn refused(&self, arguments: &[&str], code: i32) -> String {
        let (output, _) = self.run(arguments);
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        said
    }

    /// `status`, which must say that all is right.
    pub(crate) fn right(&self) -> Vec<Node> {
        let (text, _) = self.must(&["status", "--json"]);
        let status: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(status["right"], true, "{status:#}");
        assert_eq!(status["replicated"], true, "{status:#}");
        nodes(&status)
    }

    /// The state of a node, whatever that of the ring is.
    pub(crate) fn state_of(&self, name: &str) -> String {
        let (output, _) = self.run(&["status", "--json"]);
        let status: Value = serde_json::from_slice(&output.stdout).unwrap();
        nodes(&status).into_iter().find(|node| node.name == name).unwrap().state
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let (output, _) = self.run(&["destroy", "--yes"]);
        if !output.status.success() {
            tell(&String::from_utf8_lossy(&output.stderr));
        }
        drop(self.guests.take());
    }
}

/// A node as `status` shows it.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) url: String,
    pub(crate) state: String,
    pub(crate) server: String,
}

fn nodes(status: &Value) -> Vec<Node> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let node = |node: &Value| Node {
        name: text(&node["name"]),
        id: text(&node["id"]),
        url: text(&node["url"]),
        state: text(&node["state"]),
        server: text(&node["server"]),
    };
    status["nodes"].as_array().unwrap().iter().map(node).collect()
}
