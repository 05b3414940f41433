//! The whole thing: a ring of real processes, made, killed, healed, changed in size and removed by the
//! real program, while keys stay where they are.

#![expect(clippy::unwrap_used, reason = "tests panic")]

#[path = "../../agent/tests/support/need.rs"]
mod need;
#[path = "parts/ring.rs"]
mod ring;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use reqwest::StatusCode;
use ring::{HEALED_WITHIN, Handle, Node, Ring, urls};

/// How long requests may fail after a node was killed.
const AVAILABLE_WITHIN: Duration = Duration::from_secs(3);
const KEYS: usize = 300;

/// Whether its process or container is still there.
fn is_there(node: &Node) -> bool {
    match &node.handle {
        Handle::Pid(pid) => {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
        }
        Handle::Container(id) => {
            Command::new("docker").args(["inspect", id]).output().unwrap().status.success()
        }
    }
}

/// A new connection for each request: those to a killed process are of no use.
fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().unwrap()
}

/// What was answered to be stored.
type Stored = BTreeMap<String, String>;

async fn store(http: &reqwest::Client, urls: &[String], range: std::ops::Range<usize>) -> Stored {
    let mut stored = Stored::new();
    for i in range {
        // Some agent, another one each time.
        let url = &urls[(i * 7 + i / 3) % urls.len()];
        let (key, value) = (format!("key/{i}"), format!("value {i}"));
        let path = format!("{url}/kv/key%2F{i}");
        let answer = http.put(path).body(value.clone()).send().await.unwrap();
        assert!(answer.status().is_success(), "{key}: {}", answer.text().await.unwrap());
        stored.insert(key, value);
    }
    stored
}

/// Reads every key from every agent. Returns the longest time a request had to be repeated for.
async fn read_all(http: &reqwest::Client, urls: &[String], stored: &Stored) -> Duration {
    let mut longest = Duration::ZERO;
    for url in urls {
        for (key, value) in stored {
            let path = format!("{url}/kv/{}", key.replace('/', "%2F"));
            let begun = Instant::now();
            loop {
                let answer = http.get(&path).send().await.unwrap();
                match answer.status() {
                    StatusCode::OK => {
                        assert_eq!(answer.text().await.unwrap(), *value, "{key} from {url}");
                        break;
                    }
                    // The documented answers while a key's members cannot agree.
                    StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
                        assert!(begun.elapsed() < HEALED_WITHIN, "{key} stays unavailable");
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    other => panic!("{key} from {url}: {other}"),
                }
            }
            longest = longest.max(begun.elapsed());
        }
    }
    longest
}

#[tokio::test]
async fn a_ring_of_processes_survives_its_nodes() {
    survives_its_nodes(&Ring::new("process", 5, 15_200)).await;
}

#[tokio::test]
async fn a_ring_of_containers_survives_its_nodes() {
    let found = sky_deploy::provider::docker::Engine::find().await;
    if need::is_met(found.is_ok(), "a Docker engine") {
        survives_its_nodes(&Ring::new("docker", 5, 15_400)).await;
    }
}

async fn survives_its_nodes(ring: &Ring) {
    let http = client();
    ring.must(&["apply", "--detach"]);
    let nodes = ring.nodes();
    assert_eq!(nodes.len(), 5);
    assert_eq!(ring.run(&["plan"]).status.code(), Some(0), "the second plan has changes");
    ring.must(&["apply", "--detach"]);
    assert_eq!(ring.nodes(), nodes, "the second apply changed something");

    let mut stored = store(&http, &urls(&nodes), 0..KEYS).await;

    // One is killed: no key is lost for a moment, requests go on, copies are made again.
    let (victim, others) = nodes.split_first().unwrap();
    victim.kill();
    let silence = read_all(&http, &urls(others), &stored).await;
    assert!(silence < AVAILABLE_WITHIN, "requests waited for {silence:?}");
    stored.extend(store(&http, &urls(others), KEYS..KEYS + 50).await);
    ring.wait_until("replicated", |status| status["replicated"] == true);
    let status = ring.status();
    assert_eq!(status["right"], false);
    assert_eq!(status["nodes"][0]["state"], "down");
    read_all(&http, &urls(others), &stored).await;

    // It comes back on its data.
    assert_eq!(ring.run(&["plan"]).status.code(), Some(2));
    ring.must(&["apply", "--detach"]);
    assert_eq!(ring.status()["right"], true);
    read_all(&http, &urls(&nodes), &stored).await;

    // All are killed at once, as in a power cut.
    for node in ring.nodes() {
        node.kill();
    }
    ring.must(&["apply", "--detach"]);
    read_all(&http, &urls(&nodes), &stored).await;

    let nodes = ring.nodes();
    ring.must(&["destroy", "--yes"]);
    assert!(!nodes.iter().any(is_there), "some of {nodes:?} are left");
    assert!(is_empty(&ring.home()), "something is left in {}", ring.home().display());
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).unwrap().next().is_none()
}

/// An apply that is killed at any point is finished by the next one.
#[test]
fn an_apply_may_be_killed_at_any_point() {
    for after in [20, 100, 300, 600, 1000, 1500, 3000].map(Duration::from_millis) {
        let ring = Ring::new("process", 3, 15_350);
        let mut apply = ring.command(&["apply", "--detach"]).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(after);
        apply.kill().unwrap();
        apply.wait().unwrap();
        ring.must(&["apply", "--detach"]);
        let nodes = ring.nodes();
        assert_eq!(nodes.len(), 3);
        ring.must(&["destroy", "--yes"]);
        assert!(!nodes.iter().any(is_there) && is_empty(&ring.home()), "after {after:?}");
    }
}

#[tokio::test]
async fn a_ring_grows_and_shrinks() {
    let http = client();
    let ring = Ring::new("process", 3, 15_300);
    ring.must(&["apply", "--detach"]);
    let three = ring.nodes();
    let mut stored = store(&http, &urls(&three), 0..KEYS / 2).await;

    ring.resize(5);
    ring.must(&["apply", "--detach"]);
    let five = ring.nodes();
    assert_eq!((&five[..3], five.len()), (&three[..], 5), "growing moved somebody");
    stored.extend(store(&http, &urls(&five), KEYS / 2..KEYS).await);
    read_all(&http, &urls(&five), &stored).await;

    ring.resize(3);
    let refused = ring.run(&["apply", "--detach"]);
    assert_eq!(refused.status.code(), Some(1), "removed data without being told to");
    assert_eq!(ring.nodes().len(), 5);
    ring.must(&["apply", "--detach", "--yes"]);
    assert_eq!(ring.nodes(), three);
    read_all(&http, &urls(&three), &stored).await;

    // One more and one less by name.
    ring.must(&["add"]);
    assert_eq!(ring.nodes().len(), 4);
    ring.must(&["remove", "e2e-15300-2", "--yes"]);
    assert_eq!(ring.run(&["plan"]).status.code(), Some(0), "the inventory was not corrected");
    let left = ring.nodes();
    assert!(left.len() == 3 && left.iter().all(|node| node.name != "e2e-15300-2"), "{left:?}");
    read_all(&http, &urls(&left), &stored).await;

    // Drained, and back in the ring.
    ring.must(&["drain", "e2e-15300-1"]);
    assert_eq!(ring.status()["nodes"][0]["state"], "down");
    ring.must(&["apply", "--detach"]);
    read_all(&http, &urls(&ring.nodes()), &stored).await;

    // Frozen, stopped and started again.
    ring.must(&["pause", "e2e-15300-1"]);
    ring.wait_until("paused", |status| status["nodes"][0]["state"] == "paused");
    ring.must(&["unpause", "e2e-15300-1"]);
    ring.must(&["stop", "e2e-15300-1"]);
    assert_eq!(ring.status()["nodes"][0]["state"], "down");
    ring.must(&["restart", "e2e-15300-1"]);
    ring.wait_until("right", |status| status["right"] == true);
    assert_eq!(ring.must(&["kv", "get", "key/1"]), "value 1");
}
