//! A ring of the real program in a folder of its own, for tests.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long a ring may take to heal or to become right, on a busy machine.
pub(crate) const HEALED_WITHIN: Duration = Duration::from_secs(90);

/// A ring in a folder of its own; removed at the end, however that comes.
pub(crate) struct Ring {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) provider: &'static str,
    pub(crate) first_port: u16,
    pub(crate) replicas: usize,
    pub(crate) repair_after: &'static str,
}

/// A node that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) url: String,
    /// Its process or its container.
    pub(crate) handle: Handle,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Handle {
    Pid(u32),
    Container(String),
}

/// The ports that rings have, in tens: tests run at the same time.
static TAKEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

impl Ring {
    /// A ring that has ten ports from this one on for itself.
    pub(crate) fn new(provider: &'static str, nodes: usize, first_port: u16) -> Self {
        let is_free = TAKEN.lock().unwrap().insert(first_port / 10);
        assert!(is_free, "another ring has the ports from {first_port} on");
        let folder = tempfile::tempdir().unwrap();
        let ring = Self { folder, provider, first_port, replicas: 3, repair_after: "auto" };
        ring.resize(nodes);
        ring
    }

    pub(crate) fn resize(&self, nodes: usize) {
        let Self { provider, first_port: port, replicas, repair_after, .. } = self;
        let text = format!(
            "ring: {{name: e2e-{port}, replicas: {replicas}}}\nprovider: {provider}\nnodes: {nodes}\n\
             agent: {{port: {port}, repair_after: {repair_after}}}\n"
        );
        std::fs::write(self.folder.path().join("inventory.yaml"), text).unwrap();
    }

    /// Adds settings of the agents to the inventory, such as `log: json`.
    pub(crate) fn tell_agents(&self, settings: &str) {
        let path = self.folder.path().join("inventory.yaml");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(path, text.replace("agent: {", &format!("agent: {{{settings}, "))).unwrap();
    }

    pub(crate) fn home(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sky-deploy"));
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env("XDG_STATE_HOME", self.home())
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs a command that must succeed; returns stdout.
    pub(crate) fn must(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {errors}\n{}", self.logs());
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn logs(&self) -> String {
        let output = self.run(&["logs", "all", "-n", "5"]);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub(crate) fn status(&self) -> Value {
        serde_json::from_slice(&self.run(&["status", "--json"]).stdout).unwrap()
    }

    /// The nodes that run.
    pub(crate) fn nodes(&self) -> Vec<Node> {
        let status = self.status();
        let nodes = status["nodes"].as_array().unwrap().iter();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        nodes
            .filter_map(|node| {
                let handle = match (&node["pid"], &node["container"]) {
                    (Value::Number(pid), _) => {
                        Handle::Pid(pid.as_u64().unwrap().try_into().unwrap())
                    }
                    (_, Value::String(id)) => Handle::Container(id.clone()),
                    _ => return None,
                };
                Some(Node { name: text(&node["name"]), url: text(&node["url"]), handle })
            })
            .collect()
    }

    pub(crate) fn wait_until(&self, what: &str, holds: impl Fn(&Value) -> bool) {
        let begun = Instant::now();
        loop {
            let status = self.status();
            if holds(&status) {
                return;
            }
            assert!(begun.elapsed() < HEALED_WITHIN, "not {what}: {status:#}\n{}", self.logs());
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.run(&["destroy", "--yes"]);
        TAKEN.lock().unwrap().remove(&(self.first_port / 10));
    }
}

impl Node {
    pub(crate) fn kill(&self) {
        match &self.handle {
            Handle::Pid(pid) => {
                let pid = rustix::process::Pid::from_raw(i32::try_from(*pid).unwrap()).unwrap();
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            }
            Handle::Container(id) => {
                let killed = Command::new("docker").args(["kill", id]).output().unwrap();
                assert!(killed.status.success(), "{killed:?}");
            }
        }
    }
}

/// The addresses of these nodes.
pub(crate) fn urls(nodes: &[Node]) -> Vec<String> {
    nodes.iter().map(|node| node.url.clone()).collect()
}
