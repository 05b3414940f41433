//! Changes of a ring that are refused before anything is changed, where nodes are only records of processes;
//! and one that must not lose what a stopped node has.

#[allow(dead_code, reason = "each test program uses its own part")]
#[path = "ring.rs"]
mod ring;

use std::process::{Command, Stdio};

use sky_deploy::inventory::ProviderKind;
use sky_deploy::state::{RingFolder, RingRecord};

use super::{Folder, expect};

/// An inventory that has room for three nodes: there are no more ports.
const FULL: &str = "{provider: process, nodes: 3, agent: {port: 65533}} # ours\n";

/// Leaves nodes behind that are stopped, with their data; with a process, one that is none of ours.
fn stopped(folder: &Folder, count: u64, pid: Option<u32>) {
    for i in 1..=count {
        let node = folder.path().join(format!("state/sky/sky/nodes/sky-{i}"));
        std::fs::create_dir_all(node.join("data")).unwrap();
        let spec = serde_json::json!({
            "name": format!("sky-{i}"), "id": format!("{i:040x}"), "host": "127.0.0.1",
            "port": 65532 + i, "zone": null,
        });
        let process = pid.map(|pid| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            let ticks = stat.rsplit_once(") ").unwrap().1.split(' ').nth(19).unwrap();
            let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
            let ticks = ticks.parse::<u64>().unwrap();
            serde_json::json!({"pid": pid, "start_ticks": ticks, "boot": boot.trim()})
        });
        let record = serde_json::json!({"node": spec, "program": "/bin/false", "process": process});
        std::fs::write(node.join("record.json"), record.to_string()).unwrap();
    }
}

#[test]
fn an_add_that_cannot_be_done_leaves_the_inventory_as_it_was() {
    let folder = Folder::new();
    let add = |text: &str| {
        folder.write("inventory.yaml", text);
        let said = folder.run(&["add"]);
        let left = std::fs::read_to_string(folder.path().join("inventory.yaml")).unwrap();
        assert_eq!(left, text, "{said}");
        said
    };
    // What an interrupted add has left is for apply.
    expect(
        &add(FULL),
        "exit code: 1
--- stdout
--- stderr
error: inventory.yaml wants sky-1, which is not made yet
  hint: `sky-deploy apply` makes the ring what the inventory says; then add
",
    );
    stopped(&folder, 3, None);
    let text = add(FULL);
    assert!(text.contains("error: there are not enough ports from 65533 on\n"), "{text}");
    let text = add("{provider: process, nodes: 2}\n");
    assert!(
        text.contains("error: the ring has nodes that inventory.yaml does not want\n"),
        "{text}"
    );
}

#[test]
fn no_node_is_told_what_the_ring_was_not_made_with() {
    let folder = Folder::new();
    let ring = RingFolder::at(&folder.path().join("state/sky"), "sky");
    ring.create().unwrap();
    let record = RingRecord {
        provider: ProviderKind::Process,
        ring_id: "0".repeat(32),
        founded: true,
        replicas: 3,
        tie_breaker: None,
    };
    ring.write_record(&record).unwrap();
    ring.make_secrets(None).unwrap();
    let mut process = Command::new("sleep")
        .arg("60")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    stopped(&folder, 3, Some(process.id()));
    folder.write("inventory.yaml", "{ring: {replicas: 1}, provider: process, nodes: 3}\n");
    let refused = |arguments: &[&str]| {
        let text = folder.run(arguments);
        assert!(text.starts_with("exit code: 1\n"), "{text}");
        let error = "error: sky was made with `ring.replicas`: 3, which cannot become 1\n";
        assert!(text.contains(error), "{arguments:?}: {text}");
    };
    refused(&["restart", "sky-2"]);
    refused(&["upgrade", "--yes"]);
    assert!(process.try_wait().unwrap().is_none(), "it was ended first");
    process.kill().unwrap();
    process.wait().unwrap();
    refused(&["start", "sky-2"]);
}

/// It is all of the ring when its name is taken from the inventory, as it must be to get another port.
#[test]
fn a_stopped_node_hands_over_its_data_before_it_is_removed() {
    let ring = ring::Ring::new("process", 1, 15_760);
    ring.must(&["apply", "--detach"]);
    ring.must(&["kv", "put", "key", "value"]);
    ring.must(&["stop", "e2e-15760-1"]);
    let path = ring.folder.path().join("inventory.yaml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(path, text.replace("nodes: 1", "nodes: [{name: green}]")).unwrap();
    ring.must(&["apply", "--detach", "--yes"]);
    assert_eq!(ring.nodes().iter().map(|node| &node.name).collect::<Vec<_>>(), ["green"]);
    assert_eq!(ring.must(&["kv", "get", "key"]), "value");
}
