//! `repair`: nodes are gone for good, with their disks.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use reqwest::StatusCode;
use serde_json::Value;
use tokio::task::JoinSet;

use crate::ring::{Node, Ring};
use crate::sky_file;
use crate::writer::block_on;
use crate::{fails, said};

const KEYS: usize = 200;

/// A ring of processes with keys that all copies have.
fn filled(nodes: usize, first_port: u16) -> Ring {
    let ring = Ring::new("process", nodes, first_port);
    ring.must(&["apply", "--detach"]);
    for i in 0..KEYS {
        ring.must(&["kv", "put", &format!("key/{i}"), &format!("value {i}")]);
    }
    ring.must(&["check"]);
    ring
}

/// Removes what a node that does not run holds.
fn lose_data(ring: &Ring, node: &Node) {
    let data = format!("sky/e2e-{}/nodes/{}/data", ring.first_port, node.name);
    std::fs::remove_dir_all(ring.home().join(data)).unwrap();
}

/// What an agent answers for each key.
fn read(url: &str) -> BTreeMap<String, (StatusCode, String)> {
    block_on(async {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let mut reads = JoinSet::new();
        for i in 0..KEYS {
            let request = http.get(format!("{url}/kv/key%2F{i}"));
            reads.spawn(async move {
                let answer = request.send().await.unwrap();
                let status = answer.status();
                (format!("key/{i}"), (status, answer.text().await.unwrap()))
            });
        }
        reads.join_all().await.into_iter().collect()
    })
}

/// The members of each range, as names of nodes.
fn ranges(nodes: &[Node]) -> Vec<Vec<String>> {
    let (_, report) = nodes.iter().find_map(|node| Some((node, views(&node.url)?))).unwrap();
    let mut ranges = BTreeMap::new();
    let name = |peer: &Value| {
        let address = peer["address"].as_str().unwrap();
        let node = nodes.iter().find(|node| node.url.ends_with(address));
        node.map_or_else(|| address.to_owned(), |node| node.name.clone())
    };
    for node in report["nodes"].as_array().unwrap() {
        for range in node["view"]["ranges"].as_array().into_iter().flatten() {
            let members = range["members"].as_array().unwrap().iter().map(name).collect();
            ranges.insert(range["hi"].as_str().unwrap().to_owned(), members);
        }
    }
    ranges.into_values().collect()
}

fn views(url: &str) -> Option<Value> {
    block_on(async {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let answer = http.get(format!("{url}/ring?scope=all")).send().await.ok()?;
        answer.json().await.ok()
    })
}

#[test]
fn survivors_go_on_when_a_majority_is_gone_for_good() {
    let ring = filled(5, 15_680);
    let text = said(&ring.run(&["repair"]));
    assert!(text.contains("every range of e2e-15680 has a majority that answers"), "{text}");

    // Two that keep a range together are killed at once.
    let nodes = ring.nodes();
    let pair = ranges(&nodes).into_iter().find(|members| members.len() == 3).unwrap();
    let gone: Vec<&Node> = nodes.iter().filter(|node| pair[..2].contains(&node.name)).collect();
    let left: Vec<&Node> = nodes.iter().filter(|node| !pair[..2].contains(&node.name)).collect();
    assert_eq!((gone.len(), left.len()), (2, 3));
    gone.iter().for_each(|node| node.kill());
    let refused = |(_, (status, _)): &(String, (StatusCode, String))| {
        *status == StatusCode::SERVICE_UNAVAILABLE
    };
    let before: Vec<_> = read(&left[0].url).into_iter().collect();
    assert!(before.iter().any(refused), "no range lost its majority");

    // Their data is there: they are not gone for good, and nothing may be done.
    let text = fails(&ring, &["repair", "--accept-loss", "--yes"]);
    for node in &gone {
        assert!(text.contains(&format!("{} is not gone for good", node.name)), "{text}");
        assert!(
            text.contains(&format!("`sky-deploy start {}` may bring it back", node.name)),
            "{text}"
        );
    }
    let text = fails(&ring, &["remove", &pair[2], "--yes"]);
    assert!(text.contains(&format!("{} cannot leave the ring", pair[2])), "{text}");
    assert!(text.contains(&format!("first `sky-deploy start {}`", gone[0].name)), "{text}");
    gone.iter().for_each(|node| lose_data(&ring, node));
    let text = fails(&ring, &["repair"]);
    assert!(text.contains("--accept-loss lets the survivors go on"), "{text}");
    assert!(text.contains("neither it nor its data is there"), "{text}");
    let text = fails(&ring, &["repair", "--accept-loss"]);
    assert!(text.contains("there is nobody to ask"), "{text}");

    let report: Value =
        serde_json::from_str(&ring.must(&["repair", "--accept-loss", "--yes", "--json"])).unwrap();
    let repaired = report["repaired"].as_array().unwrap();
    assert!(
        !repaired.is_empty() && repaired.iter().all(|it| it["outcome"]["Ok"].is_object()),
        "{report:#}"
    );
    let noted = ring.home().join("sky/e2e-15680/repairs.jsonl");
    let noted = std::fs::read_to_string(noted).unwrap();
    assert_eq!(noted.lines().count(), repaired.len(), "{noted}");
    let logs = ring.must(&["logs", "all"]);
    assert!(logs.contains("survivors go on without a majority"), "{logs}");

    // Every key is one that a survivor had: with three copies on five nodes, none is lost here.
    let begun = Instant::now();
    loop {
        let now = read(&left[0].url);
        if now.values().all(|(status, _)| *status != StatusCode::SERVICE_UNAVAILABLE) {
            for i in 0..KEYS {
                assert_eq!(now[&format!("key/{i}")], (StatusCode::OK, format!("value {i}")));
            }
            break;
        }
        assert!(begun.elapsed() < crate::ring::HEALED_WITHIN, "{}", ring.must(&["logs", "all"]));
        std::thread::sleep(Duration::from_millis(200));
    }
    ring.must(&["apply", "--detach"]);
    ring.wait_until("right", |status| status["right"] == true);
    ring.must(&["check"]);
    for node in ring.nodes() {
        assert!(
            read(&node.url).values().all(|(status, _)| *status == StatusCode::OK),
            "{}",
            node.name
        );
    }
}

/// Whoever loses disks first of all applies again: then empty nodes are where the lost ones were.
#[test]
fn a_lone_survivor_and_nodes_made_anew_become_a_ring_again() {
    let ring = filled(3, 15_690);
    for node in &ring.nodes()[1..] {
        node.kill();
        lose_data(&ring, node);
    }
    let text = fails(&ring, &["apply", "--detach"]);
    assert!(text.contains("a majority of the members of 3 ranges is gone for good"), "{text}");
    assert!(text.contains("`sky-deploy repair` tells what may be lost"), "{text}");
    ring.wait_until("all are in the ring", |status| {
        status["nodes"].as_array().unwrap().iter().all(|node| node["state"] == "up")
    });
    let status = ring.status();
    assert_eq!((&status["needs_repair"], &status["right"]), (&true.into(), &false.into()));
    let text = fails(&ring, &["drain", "e2e-15690-1"]);
    assert!(text.contains("e2e-15690-1 cannot leave the ring: of 3 ranges"), "{text}");
    assert!(text.contains("`sky-deploy repair` tells what may be lost"), "{text}");
    let text = fails(&ring, &["doctor"]);
    assert!(text.contains("and with it its majority"), "{text}");

    ring.must(&["repair", "--accept-loss", "--yes"]);
    ring.wait_until("right", |status| status["right"] == true);
    ring.must(&["check"]);
    for node in ring.nodes() {
        let now = read(&node.url);
        for i in 0..KEYS {
            assert_eq!(now[&format!("key/{i}")], (StatusCode::OK, format!("value {i}")));
        }
    }
}

/// The only one that kept a range is stopped: it is not lost.
#[test]
fn what_only_a_stopped_node_keeps_is_not_given_up() {
    let mut ring = Ring::new("process", 2, 15_750);
    ring.replicas = 1;
    ring.resize(2);
    ring.must(&["apply", "--detach"]);
    ring.must(&["stop", "e2e-15750-2"]);
    let text = fails(&ring, &["repair", "--accept-loss", "--yes"]);
    assert!(text.contains("nobody who answers has kept it"), "{text}");
    assert!(text.contains("e2e-15750-2 is not gone for good: it does not run"), "{text}");
    assert!(text.contains("`sky-deploy start e2e-15750-2` may bring it back"), "{text}");
    assert!(!text.contains("nothing left to repair"), "{text}");
    let data = ring.home().join("sky/e2e-15750/nodes/e2e-15750-2/data");
    std::fs::remove_dir_all(data).unwrap();
    let text = fails(&ring, &["repair", "--accept-loss", "--yes"]);
    assert!(text.contains("there is nothing left to repair 1 range from"), "{text}");
}

/// All that kept a range are gone: what is left is saved for a new ring.
#[test]
fn what_nobody_keeps_is_left_out_of_a_backup() {
    let ring = filled(5, 15_710);
    let nodes = ring.nodes();
    let trio = ranges(&nodes).into_iter().find(|members| members.len() == 3).unwrap();
    for node in nodes.iter().filter(|node| trio.contains(&node.name)) {
        node.kill();
        lose_data(&ring, node);
    }
    let text = fails(&ring, &["apply", "--detach"]);
    assert!(text.contains("is gone for good"), "{text}");
    let text = fails(&ring, &["backup", "rest"]);
    assert!(text.contains("`sky-deploy repair` tells what may be lost"), "{text}");
    let text = fails(&ring, &["repair", "--accept-loss", "--yes"]);
    assert!(text.contains("there is nothing left to repair 1 range from"), "{text}");
    let text = fails(&ring, &["backup", "rest"]);
    assert!(text.contains("nobody keeps 1 part of the circle of e2e-15710 any more"), "{text}");

    ring.must(&["backup", "rest", "--without-lost"]);
    let rest = std::fs::read(ring.folder.path().join("rest")).unwrap();
    let (rest, _) = sky_file::read(&rest);
    let survivor = nodes.iter().find(|node| !trio.contains(&node.name)).unwrap();
    let now = read(&survivor.url);
    let answered = now.iter().filter(|(_, (status, _))| *status == StatusCode::OK);
    let answered: BTreeMap<_, _> =
        answered.map(|(key, (_, value))| (key.clone(), value.clone().into_bytes())).collect();
    let saved: BTreeMap<_, _> =
        rest.iter().map(|(key, (_, value))| (key.clone(), value.clone())).collect();
    assert_eq!(saved, answered);
    assert!((KEYS / 2..KEYS).contains(&saved.len()), "{} of {KEYS}", saved.len());

    let new = Ring::new("process", 3, 15_720);
    new.must(&["apply", "--detach"]);
    let file = ring.folder.path().join("rest");
    let output = new.run(&["restore", file.to_str().unwrap(), "--yes", "--verify"]);
    let text = said(&output);
    assert!(
        output.status.success() && text.contains("has nothing of 1 part of the circle"),
        "{text}"
    );
    let now = read(&new.nodes()[0].url);
    let found = now.values().filter(|(status, _)| *status == StatusCode::OK).count();
    assert_eq!(found, saved.len());
}
