//! What a ring is made with: how many nodes hold a key, and who goes on alone in a ring of two.

use std::time::{Duration, Instant};

use crate::ring::{HEALED_WITHIN, Ring};
use crate::{fails, said};

fn inventory(ring: &Ring, settings: &str, nodes: usize) {
    let port = ring.first_port;
    let text = format!(
        "ring: {{name: e2e-{port}, {settings}}}\nprovider: process\nnodes: {nodes}\n\
         agent: {{port: {port}, repair_after: 2s}}\n"
    );
    std::fs::write(ring.folder.path().join("inventory.yaml"), text).unwrap();
}

fn keys(ring: &Ring, value: &str) {
    for i in 0..20 {
        ring.must(&["kv", "put", &format!("key/{i}"), value]);
    }
}

/// All keys are read, from the moment that the nodes that are left can answer for them.
fn all_are(ring: &Ring, value: &str) {
    let begun = Instant::now();
    for i in 0..20 {
        loop {
            let output = ring.run(&["kv", "get", &format!("key/{i}")]);
            if output.status.success() {
                assert_eq!(String::from_utf8(output.stdout).unwrap().trim_end(), value);
                break;
            }
            assert!(begun.elapsed() < HEALED_WITHIN, "{}\n{}", said(&output), ring.logs());
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

#[test]
fn five_copies_outlive_two_nodes_at_once_and_one_copy_none() {
    let ring = Ring::new("process", 5, 15_730);
    inventory(&ring, "replicas: 5", 5);
    ring.must(&["apply", "--detach"]);
    keys(&ring, "five");
    ring.must(&["check"]);
    for node in &ring.nodes()[..2] {
        node.kill();
    }
    all_are(&ring, "five");
    keys(&ring, "three");
    ring.must(&["apply", "--detach"]);
    all_are(&ring, "three");
    ring.must(&["check"]);

    inventory(&ring, "replicas: 3", 5);
    let text = fails(&ring, &["plan"]);
    assert!(text.contains("made with `ring.replicas`: 5, which cannot become 3"), "{text}");
    ring.must(&["destroy", "--yes"]);

    inventory(&ring, "replicas: 1", 3);
    ring.must(&["apply", "--detach"]);
    keys(&ring, "one");
    let status = ring.status();
    assert_eq!(status["right"], true, "{status:#}");
    let killed = ring.nodes().remove(0);
    killed.kill();
    let answers = (0..20).map(|i| ring.run(&["kv", "get", &format!("key/{i}")]));
    assert!(answers.filter(|output| !output.status.success()).count() > 0, "every key had a copy");
    ring.must(&["apply", "--detach"]);
    all_are(&ring, "one");
}

#[test]
fn the_tie_breaker_of_a_ring_of_two_goes_on_alone() {
    let ring = Ring::new("process", 2, 15_740);
    inventory(&ring, "tie_breaker: nobody", 2);
    let text = fails(&ring, &["apply", "--detach"]);
    assert!(text.contains("nobody, which is not a node"), "{text}");
    inventory(&ring, "tie_breaker: e2e-15740-1", 2);
    ring.must(&["apply", "--detach"]);
    keys(&ring, "both");
    let kill = |name: &str| ring.nodes().iter().find(|node| node.name == name).unwrap().kill();
    kill("e2e-15740-2");
    all_are(&ring, "both");
    keys(&ring, "alone");
    ring.must(&["apply", "--detach"]);
    all_are(&ring, "alone");
    ring.must(&["check"]);

    // The other one refuses, however long it is alone.
    kill("e2e-15740-1");
    std::thread::sleep(Duration::from_secs(6));
    let output = ring.run(&["kv", "get", "key/1"]);
    assert!(!output.status.success(), "{}", said(&output));
    ring.must(&["apply", "--detach"]);
    all_are(&ring, "alone");
    inventory(&ring, "replicas: 3", 2);
    let text = fails(&ring, &["plan"]);
    assert!(text.contains("`ring.tie_breaker`: e2e-15740-1, which cannot become none"), "{text}");
    ring.must(&["destroy", "--yes"]);
}
