//! Rings on a real OpenStack. Its hypervisors start nothing in their servers, so this test does that
//! for them; every API, and what becomes of a call, is the real thing.
//!
//! ```text
//! main -> ring -> guests -> network     the agents, each behind the address of its server
//!              -> counting              every call of sky-deploy to the services
//!      -> listing, foreign -> lab       what there is, and what is not ours
//!      -> machines                      servers that boot, for once
//! ```

#![expect(clippy::unwrap_used, reason = "tests panic")]

mod counting;
mod foreign;
mod guests;
mod lab;
mod listing;
mod machines;
#[path = "../../../agent/tests/support/need.rs"]
mod need;
mod network;
mod ring;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde_json::Value;

use foreign::Foreign;
use lab::Lab;
use listing::{difference, listing};
use ring::{Node, Ring};

/// Rings of one project share its quotas and its listing, so there is one at a time.
static TURN: Mutex<()> = Mutex::new(());
/// How many keys are written.
const KEYS: usize = 200;

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// Says something although the test may pass.
fn tell(text: &str) {
    writeln!(std::io::stderr(), "{text}").ok();
}

/// Does something, and says how long it took.
fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let result = work();
    tell(&format!("{:>6.1} s: {what}", begun.elapsed().as_secs_f64()));
    result
}

#[test]
fn twenty_servers_and_back_to_nothing() {
    let _turn = turn();
    let Some(lab) = Lab::find().map(Arc::new) else { return };
    let ring = Ring::new(&lab, 1, "lab");
    let foreign = timed("things of somebody else", || {
        run(async {
            let other = lab.login("lab-admin").await;
            Foreign::make(ring.cloud.clone(), other, &ring.name).await
        })
    });
    let before = run(listing(&ring.cloud, &ring.name));
    let theirs = run(foreign.look());

    ring.wants(20);
    let plan = ring.refused(&["plan"], 2);
    for wanted in ["quota instances", "quota ports", "+ network", "+ server group"] {
        assert!(plan.contains(wanted), "{wanted}: {plan}");
    }
    assert_eq!(difference(&before, &run(listing(&ring.cloud, &ring.name))), [""; 0]);

    ring.must(&["apply", "--detach", "--yes"]);
    let nodes = ring.right();
    assert_eq!(nodes.len(), 20);
    run(spread(&lab, &nodes));
    let (_, changes) = ring.must(&["apply", "--detach", "--yes"]);
    assert!(changes.is_empty(), "a second apply changes something: {changes:#?}");
    let (_, changes) = ring.must(&["plan"]);
    assert!(changes.is_empty());

    timed("keys written through one node", || run(write(&ring, &nodes[0])));
    timed("read through the others", || run(read(&ring, &nodes[1..])));

    ring.wants(25);
    ring.must(&["apply", "--detach", "--yes"]);
    let nodes = ring.right();
    assert_eq!(nodes.len(), 25);
    timed("read through all", || run(read(&ring, &nodes)));

    ring.wants(15);
    ring.must(&["apply", "--detach", "--yes"]);
    let nodes = ring.right();
    assert_eq!(nodes.len(), 15);
    timed("read through all", || run(read(&ring, &nodes)));
    ring.must(&["audit"]);
    assert_eq!(run(foreign.look()), theirs);

    ring.must(&["destroy", "--yes"]);
    assert_eq!(difference(&before, &run(listing(&ring.cloud, &ring.name))), [""; 0]);
    assert_eq!(run(foreign.look()), theirs);
    assert!(!ring.state().exists());
}

/// Servers can be stopped, frozen and started, and what this machine knows of the ring can be lost.
#[test]
fn a_credential_and_a_lost_folder() {
    let _turn = turn();
    let Some(lab) = Lab::find().map(Arc::new) else { return };
    let ring = Ring::new(&lab, 2, "lab-appcred");
    let before = run(listing(&ring.cloud, &ring.name));
    ring.wants(3);
    ring.must(&["apply", "--detach", "--yes"]);
    let nodes = ring.right();
    run(spread(&lab, &nodes));
    run(write(&ring, &nodes[0]));

    let [first, second] = [&*nodes[0].name, &*nodes[1].name];
    ring.must(&["pause", first]);
    assert_eq!(ring.state_of(first), "paused");
    ring.must(&["unpause", first]);
    ring.must(&["stop", second]);
    assert_eq!(ring.state_of(second), "down");
    run(read(&ring, &nodes[2..]));
    // Apply starts what is down.
    ring.must(&["apply", "--detach", "--yes"]);
    run(read(&ring, &ring.right()));

    std::fs::remove_dir_all(ring.state()).unwrap();
    let (list, _) = ring.run(&["list", "--json"]);
    assert!(!String::from_utf8_lossy(&list.stdout).contains(&ring.name));
    // Nobody answers to ssh in these servers, so nobody tells the secrets; the marks tell the rest.
    let said = ring.refused(&["adopt"], 1);
    assert!(said.contains("destroy"), "{said}");
    ring.must(&["destroy", "--yes"]);
    assert_eq!(difference(&before, &run(listing(&ring.cloud, &ring.name))), [""; 0]);
}

/// What does not fit is refused before anything is made.
#[test]
fn a_ring_beyond_the_quota() {
    let _turn = turn();
    let Some(lab) = Lab::find().map(Arc::new) else { return };
    let ring = Ring::new(&lab, 3, "lab");
    let before = run(listing(&ring.cloud, &ring.name));
    ring.wants(150);
    for command in ["plan", "apply"] {
        let said = ring.refused(&[command, "--yes"], 1);
        assert!(said.contains("the quota of instances is too small: 150 needed"), "{said}");
    }
    assert_eq!(difference(&before, &run(listing(&ring.cloud, &ring.name))), [""; 0]);
}

/// Anti-affinity is soft: with more nodes than hosts it can only spread them. Every host must have
/// some, and a ring that fits must be on hosts of its own.
async fn spread(lab: &Lab, nodes: &[Node]) {
    let admin = lab.login("lab-admin").await;
    let servers = admin.list("compute", "servers/detail?all_tenants=1", "servers").await;
    let host = |node: &Node| {
        let server = servers.iter().find(|server| server["id"] == node.server.as_str()).unwrap();
        server["OS-EXT-SRV-ATTR:host"].as_str().unwrap().to_owned()
    };
    let mut ordered: Vec<&Node> = nodes.iter().collect();
    ordered.sort_by(|a, b| a.id.cmp(&b.id));
    let hosts: Vec<String> = ordered.into_iter().map(host).collect();
    let mut load: BTreeMap<&str, usize> = BTreeMap::new();
    for host in &hosts {
        *load.entry(host).or_default() += 1;
    }
    let around = hosts.iter().cycle();
    let apart = (0..hosts.len()).filter(|place| {
        let three: BTreeSet<&String> = around.clone().skip(*place).take(3).collect();
        three.len() == 3
    });
    tell(&format!(
        "hosts along the ring: {}; {load:?}; {} of {} members of a range on three hosts",
        hosts.join(" "),
        apart.count(),
        hosts.len()
    ));
    let services = admin.list("compute", "os-services?binary=nova-compute", "services").await;
    let is_fake = |service: &&Value| service["host"].as_str().unwrap().starts_with("fake");
    let all = services.iter().filter(is_fake).count();
    assert_eq!(load.len(), all.min(nodes.len()), "{load:?}");
}

fn client(token: &str) -> sky_deploy::client::Client {
    sky_deploy::client::Client::new(Some(token.to_owned())).unwrap()
}

fn value(i: usize) -> String {
    format!("value {i}")
}

async fn write(ring: &Ring, node: &Node) {
    let client = client(&ring.token());
    for i in 0..KEYS {
        let body = value(i).into();
        let key = format!("key/{i}");
        let answer =
            client.key(&node.url, reqwest::Method::PUT, &key, Some(body), None).await.unwrap();
        assert!(answer.status.is_success(), "{key}: {:?}", answer.body);
    }
}

/// Reads every key, through one node after the other.
async fn read(ring: &Ring, nodes: &[Node]) {
    let client = client(&ring.token());
    for i in 0..KEYS {
        let node = &nodes[i % nodes.len()];
        let key = format!("key/{i}");
        let answer = client.key(&node.url, reqwest::Method::GET, &key, None, None).await.unwrap();
        assert_eq!(answer.body, value(i), "{key} through {}: {}", node.name, answer.status);
    }
}
