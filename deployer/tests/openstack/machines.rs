//! Servers that really boot: cloud-init, Docker, ssh, and the agent in a container on each. It takes a
//! quarter of an hour under software emulation, so it runs only when it is asked for:
//! `deployer/tests/openstack/lab/README.md` says how.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};

use crate::counting::Call;
use crate::lab::Lab;
use crate::listing::{difference, listing};
use crate::ring::{Node, Ring};
use crate::{run, tell, timed, turn};

/// How long a ring may take to repair itself, or a server to do what it was told.
const WITHIN: Duration = Duration::from_secs(300);
const KEYS: usize = 50;

/// One of the servers from inside, through the floating IP of the ring.
struct Inside {
    options: Vec<String>,
    token: String,
}

impl Inside {
    fn of(ring: &Ring, nodes: &[Node]) -> (Self, String) {
        let servers = run(ring.cloud.servers());
        let floating = servers.iter().find_map(|server| {
            let networks = server["addresses"].as_object()?.values();
            let mut addresses = networks.flat_map(|list| list.as_array().unwrap());
            let floating = addresses.find(|address| address["OS-EXT-IPS:type"] == "floating")?;
            let id = server["id"].as_str()?.to_owned();
            Some((id, floating["addr"].as_str()?.to_owned()))
        });
        let (server, address) = floating.expect("a server with a floating IP");
        let keys = ring.state().join("ssh");
        let mut options: Vec<String> = [
            "BatchMode=yes".to_owned(),
            "StrictHostKeyChecking=yes".to_owned(),
            format!("UserKnownHostsFile={}", keys.join("known_hosts").display()),
            format!("HostKeyAlias={server}"),
            format!("IdentityFile={}", keys.join("id_ed25519").display()),
        ]
        .into_iter()
        .flat_map(|option| ["-o".to_owned(), option])
        .collect();
        options.push(format!("debian@{address}"));
        let gateway = nodes.iter().find(|node| node.server == server).unwrap().name.clone();
        (Self { options, token: ring.token() }, gateway)
    }

    /// What a command says; it must end well.
    fn runs(&self, command: &str, input: &str) -> String {
        let mut ssh = Command::new("ssh");
        ssh.args(&self.options).arg(command);
        let piped = ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = piped.spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Talks to an agent about every key: curl reads what to do from its standard input.
    fn ask(&self, node: &Node, put: bool) -> String {
        let mut text = String::new();
        for i in 0..KEYS {
            let data =
                if put { format!("request = PUT\ndata = value{i}\n") } else { String::new() };
            if i > 0 {
                text.push_str("next\n");
            }
            text.push_str(&format!(
                "url = {}/kv/key{i}\nfail\nmax-time = 15\nwrite-out = \"\\n\"\n{data}\
                 header = \"Authorization: Bearer {}\"\n",
                node.url, self.token
            ));
        }
        self.runs("curl -sS -K -", &text)
    }

    fn write(&self, node: &Node) {
        self.ask(node, true);
    }

    fn read(&self, nodes: &[&Node]) {
        let expected: String = (0..KEYS).map(|i| format!("value{i}\n")).collect();
        for node in nodes {
            assert_eq!(self.ask(node, false), expected, "through {}", node.name);
        }
    }
}

/// Waits until `status` fits; it comes back.
fn until(ring: &Ring, what: &str, fits: impl Fn(&Value) -> bool) {
    let begun = Instant::now();
    timed(what, || {
        loop {
            let (output, _) = ring.run(&["status", "--json"]);
            let status: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            if fits(&status) {
                return;
            }
            assert!(begun.elapsed() < WITHIN, "{what}: {status:#}");
            std::thread::sleep(Duration::from_secs(2));
        }
    });
}

fn act(ring: &Ring, node: &Node, action: &str) {
    let path = format!("servers/{}/action", node.server);
    run(ring.cloud.call(Method::POST, "compute", &path, Some(json!({action: null}))));
}

/// This program with other bytes: a version that the servers do not have.
fn another_version(ring: &Ring) -> PathBuf {
    let path = ring.folder().join("sky-deploy-next");
    let mut bytes = std::fs::read(env!("CARGO_BIN_EXE_sky-deploy")).unwrap();
    bytes.extend(b"next");
    std::fs::write(&path, bytes).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&path, mode).unwrap();
    path
}

#[test]
fn machines_that_boot() {
    let _turn = turn();
    if std::env::var_os("SKY_OPENSTACK_REAL").is_none() {
        tell("skipped: servers that boot take long; SKY_OPENSTACK_REAL=1 asks for them");
        return;
    }
    let Some(lab) = Lab::find() else { return };
    let mut ring = Ring::booting(&lab);
    let zones = run(ring.cloud.list("compute", "os-availability-zone", "availabilityZoneInfo"));
    if zones.iter().any(|zone| zone["zoneName"] == "real") {
        ring.settings.push_str("\n  availability_zones: [real]");
    }
    ring.settings.push_str("\nagent: {repair_after: 20s}");
    let before = run(listing(&ring.cloud, &ring.name));

    ring.wants(3);
    ring.must(&["apply", "--detach", "--yes"]);
    let nodes = ring.right();
    let (_, changes) = ring.must(&["apply", "--detach", "--yes"]);
    assert!(changes.is_empty(), "{changes:#?}");
    let (inside, gateway) = Inside::of(&ring, &nodes);
    timed("keys written through one server", || inside.write(&nodes[0]));
    timed("read through the others", || inside.read(&[&nodes[1], &nodes[2]]));
    // Who has no token gets nothing; who has the first host key of user-data cannot pose as the server.
    let code = "curl -s -o /dev/null -w '%{http_code}' ";
    assert_eq!(inside.runs(&format!("{code}{}/kv/key1", nodes[1].url), ""), "401");
    let containers = inside.runs("docker ps --format '{{.Names}} {{.Networks}}'", "");
    assert_eq!(containers.trim(), format!("{gateway} host"));
    inside.runs("sudo test -e /var/lib/sky/host-key-is-own", "");

    let others: Vec<&Node> = nodes.iter().filter(|node| node.name != gateway).collect();
    let (stopped, left) = (others[0], others[1]);
    let way_in = nodes.iter().find(|node| node.name == gateway).unwrap();
    act(&ring, stopped, "os-stop");
    until(&ring, "a server is stopped through Nova, and missed", |status| {
        status["nodes"].as_array().is_some_and(|nodes| {
            nodes.iter().any(|node| node["name"] == *stopped.name && node["state"] == "down")
        })
    });
    timed("read through those that are left", || inside.read(&[way_in, left]));
    until(&ring, "the ring repairs itself", |status| status["replicated"] == true);
    ring.must(&["apply", "--detach", "--yes"]);
    let nodes = ring.right();
    inside.read(&nodes.iter().collect::<Vec<_>>());

    let dead = nodes.iter().find(|node| node.name == left.name).unwrap();
    run(ring.cloud.remove("compute", &format!("servers/{}", dead.server)));
    until(&ring, "a server is deleted through Nova, and missed", |status| {
        status["nodes"].as_array().is_some_and(|nodes| {
            nodes.iter().any(|node| node["name"] == *left.name && node["state"] == "missing")
        })
    });
    ring.must(&["apply", "--detach", "--yes"]);
    let nodes = ring.right();
    let anew = nodes.iter().find(|node| node.name == left.name).unwrap();
    assert_ne!(anew.server, dead.server);
    assert_eq!(anew.url, dead.url, "a server that is made anew has the address of the old one");
    inside.read(&nodes.iter().collect::<Vec<_>>());

    let next = another_version(&ring);
    for renewed in [3, 0] {
        let (output, mut calls) = ring.run_program(&next, &["upgrade", "--yes"]);
        calls.retain(Call::changes);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains(&format!("{renewed} of 3 nodes renewed")), "{said}");
        assert!(calls.is_empty(), "an upgrade replaces no server: {calls:#?}");
    }
    assert_eq!(inside.runs("docker images -q | wc -l", "").trim(), "1", "old images are removed");
    inside.read(&nodes.iter().collect::<Vec<_>>());

    // What cloud-init could not do is told with its own words.
    inside.runs(
        "cd /var/lib/sky; sudo mv ready kept; echo 'installing Docker (exit code 100)' | sudo tee failed",
        "",
    );
    let said = ring.refused(&["start", &gateway], 1);
    assert!(said.contains("could not be prepared"), "{said}");
    assert!(said.contains("installing Docker (exit code 100)"), "{said}");
    assert!(said.contains("Cloud-init v."), "the end of its log is missing: {said}");
    inside.runs("cd /var/lib/sky; sudo rm failed; sudo mv kept ready", "");

    ring.wants(4);
    ring.must(&["apply", "--detach", "--yes"]);
    inside.read(&ring.right().iter().collect::<Vec<_>>());
    ring.wants(3);
    ring.must(&["apply", "--detach", "--yes"]);
    inside.read(&ring.right().iter().collect::<Vec<_>>());
    ring.must(&["audit"]);

    // Another machine has nothing but the inventory and the key.
    let key = ring.folder().join("key");
    std::fs::copy(ring.state().join("ssh/id_ed25519"), &key).unwrap();
    std::fs::remove_dir_all(ring.state()).unwrap();
    ring.settings = ring
        .settings
        .replace("floating_ips", &format!("ssh_key: {}\n  floating_ips", key.display()));
    ring.wants(3);
    ring.must(&["adopt"]);
    ring.right();
    let (_, changes) = ring.must(&["apply", "--detach", "--yes"]);
    assert!(changes.is_empty(), "{changes:#?}");

    ring.must(&["destroy", "--yes"]);
    assert_eq!(difference(&before, &run(listing(&ring.cloud, &ring.name))), [""; 0]);
    assert!(!ring.state().exists());
}
