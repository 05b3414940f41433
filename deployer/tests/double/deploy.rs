//! The program under test, and what it needs: an inventory, a folder for its state, and a cloud.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::cloud::Cloud;
use super::keystone::PASSWORD;

/// Longer than anything here takes on a busy machine.
const ENDED_WITHIN: Duration = Duration::from_secs(150);

/// A machine with an inventory, and a cloud.
pub(crate) struct Site {
    pub(crate) cloud: Cloud,
    folder: tempfile::TempDir,
    /// The `openstack` section.
    pub(crate) openstack: Value,
    pub(crate) provider: &'static str,
    pub(crate) ring: String,
    pub(crate) nodes: Value,
}

/// What a call said, and how it ended.
#[derive(Debug)]
pub(crate) struct Ran {
    /// None if it was killed.
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Site {
    /// A ring of so many nodes that needs nothing but the cloud's services.
    pub(crate) fn new(nodes: usize) -> Self {
        let cloud = Cloud::new();
        let openstack = json!({
            "image": "debian-12", "flavor": "m1.small", "cidr": cloud.cidr(), "floating_ips": "none",
            "agent_image": "registry.example/sky-agent:1",
        });
        let folder = tempfile::tempdir().unwrap();
        Self {
            cloud,
            folder,
            openstack,
            provider: "openstack",
            ring: "sky".to_owned(),
            nodes: json!(nodes),
        }
    }

    /// With other settings of the cloud.
    pub(crate) fn with(mut self, settings: Value) -> Self {
        let Value::Object(settings) = settings else { panic!("{settings} is no map") };
        self.openstack.as_object_mut().unwrap().extend(settings);
        self
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The folder of the ring's state.
    pub(crate) fn home(&self) -> PathBuf {
        self.path("state/sky").join(&self.ring)
    }

    /// The program, with variables that name the cloud.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        // JSON is YAML.
        let inventory = json!({
            "ring": {"name": self.ring}, "provider": self.provider, "nodes": self.nodes,
            "openstack": self.openstack,
        });
        std::fs::write(self.path("inventory.yaml"), format!("{inventory:#}\n")).unwrap();
        let mut path = std::env::var("PATH").unwrap_or_default();
        if !has_keygen() {
            self.stand_in_for_keygen();
            path = format!("{}:{path}", self.path("bin").display());
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_sky-deploy"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("OS_")) {
            command.env_remove(name);
        }
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env("XDG_STATE_HOME", self.path("state"))
            .env("HOME", self.folder.path())
            .env("NO_COLOR", "1")
            .env("OS_AUTH_URL", format!("http://{}/identity", self.cloud.address))
            .env("OS_USERNAME", "me")
            .env("OS_PASSWORD", PASSWORD)
            .env("OS_PROJECT_NAME", "mine")
            .env("OS_REGION_NAME", "RegionOne")
            .env("PATH", path)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// The double does not look into keys, so these will do where there is no OpenSSH.
    fn stand_in_for_keygen(&self) {
        const SCRIPT: &str = "#!/bin/sh
while [ $# -gt 0 ]; do
  case $1 in -f) file=$2;; -C) comment=$2;; esac
  shift
done
echo 'no key' > \"$file\"
echo \"ssh-ed25519 AAAA$$ $comment\" > \"$file.pub\"
";
        let program = self.path("bin/ssh-keygen");
        std::fs::create_dir_all(self.path("bin")).unwrap();
        std::fs::write(&program, SCRIPT).unwrap();
        std::fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        self.watch(self.command(arguments).spawn().unwrap())
    }

    /// Waits for a program that the cloud may kill. One that never ends fails the test.
    pub(crate) fn watch(&self, child: Child) -> Ran {
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        self.cloud.state().client = Some(pid);
        let (ended, watched) = mpsc::channel::<()>();
        let dog = std::thread::spawn(move || {
            let late = watched.recv_timeout(ENDED_WITHIN) == Err(RecvTimeoutError::Timeout);
            if late {
                kill_process(pid, Signal::KILL).unwrap();
            }
            late
        });
        let ran = Ran::new(child.wait_with_output().unwrap());
        self.cloud.state().client = None;
        drop(ended);
        assert!(!dog.join().unwrap(), "does not end: {ran:?}");
        ran
    }

    /// Runs what must succeed. What it prints for programs comes back.
    pub(crate) fn must(&self, arguments: &[&str]) -> String {
        let ran = self.run(arguments);
        assert_eq!(ran.code, Some(0), "{arguments:?}: {}{}", ran.out, ran.err);
        ran.out
    }

    pub(crate) fn apply(&self) -> Ran {
        self.run(&["apply", "--detach", "--yes"])
    }

    /// Runs what must fail with all these words, and without anything secret.
    pub(crate) fn fails(&self, arguments: &[&str], words: &[&str]) -> Ran {
        let ran = self.run(arguments);
        assert_eq!(ran.code, Some(1), "{arguments:?}: {}{}", ran.out, ran.err);
        ran.says(words);
        ran
    }

    /// Data of a command.
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let ran = self.run(&[arguments, &["--json"]].concat());
        serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{error}: {ran:?}"))
    }
}

/// Whether this machine can make keys.
pub(crate) fn has_keygen() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| {
        let mut probe = Command::new("ssh-keygen");
        probe.arg("-?").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        probe.status().is_ok()
    })
}

impl Ran {
    fn new(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }

    /// Everything that was said has these words and nothing secret.
    pub(crate) fn says(&self, words: &[&str]) {
        let said = format!("{}{}", self.out, self.err);
        for word in words {
            assert!(said.contains(word), "`{word}` is not in:\n{said}");
        }
        for secret in
            [PASSWORD, super::keystone::CREDENTIAL.1, "gAAAAAB", "SKY_TOKEN", "PRIVATE KEY"]
        {
            assert!(!said.contains(secret), "`{secret}` is said:\n{said}");
        }
    }
}
