//! The whole thing: a ring of real processes, made, killed, healed, changed in size and removed by the
//! real program, while keys stay where they are.

#![expect(clippy::unwrap_used, reason = "tests panic")]

#[path = "../../agent/tests/support/need.rs"]
mod need;
#[path = "parts/ring.rs"]
mod ring;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use reqwest::StatusCode;
use ring::{HEALED_WITHIN, Handle, Node, Ring, urls};
use serde_json::Value;

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

#[expect(clippy::print_stderr, reason = "the time is a report, and no condition")]
async fn survives_its_nodes(ring: &Ring) {
    let http = client();
    ring.must(&["apply", "--detach"]);
    let nodes = ring.nodes();
    assert_eq!(nodes.len(), 5);
    assert_eq!(ring.run(&["plan"]).status.code(), Some(0), "the second plan has changes");
    ring.must(&["apply", "--detach"]);
    assert_eq!(ring.nodes(), nodes, "the second apply changed something");

    let mut stored = store(&http, &urls(&nodes), 0..KEYS).await;

    // One is killed: every key is read and written while it is dead, and copies are made again.
    let (victim, others) = nodes.split_first().unwrap();
    victim.kill();
    let silence = read_all(&http, &urls(others), &stored).await;
    eprintln!("the longest request after the kill took {silence:?}");
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

#[tokio::test]
async fn containers_get_new_settings_by_an_upgrade() {
    let found = sky_deploy::provider::docker::Engine::find().await;
    if !need::is_met(found.is_ok(), "a Docker engine") {
        return;
    }
    let ring = Ring::new("docker", 3, 15_450);
    let (http, large) = (client(), vec![7; 2 << 20]);
    ring.must(&["apply", "--detach"]);
    let url = format!("{}/kv/large", ring.nodes()[1].url);
    let store = async || http.put(&url).body(large.clone()).send().await.unwrap().status();
    assert_eq!(store().await, StatusCode::PAYLOAD_TOO_LARGE);
    ring.tell_agents("max_value_bytes: 4000000");
    let output = ring.run(&["apply", "--detach"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("run with other settings"), "{text}");
    assert_eq!(store().await, StatusCode::PAYLOAD_TOO_LARGE);
    ring.must(&["upgrade", "--yes"]);
    assert_eq!(store().await, StatusCode::CREATED);
    let nodes = ring.nodes();
    let output = ring.run(&["upgrade", "--yes"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("0 of 3 nodes renewed"), "{text}");
    assert_eq!(ring.nodes(), nodes);
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).unwrap().next().is_none()
}

/// Every node of a ring that is right sees its neighbours, and the ranges cut the circle without a gap.
#[tokio::test]
async fn the_circle_is_shown() {
    let ring = Ring::new("process", 4, 15_250);
    ring.must(&["apply", "--detach"]);
    let stored = store(&client(), &urls(&ring.nodes()), 0..20).await;
    let names: Vec<String> = (1..=4).map(|i| format!("e2e-15250-{i}")).collect();
    let picture: Value = serde_json::from_str(&ring.must(&["ring", "--json"])).unwrap();
    let (nodes, ranges) = (&picture["nodes"], &picture["ranges"]);
    let mut owned = 0;
    for i in 0..4 {
        let name = |step: usize| &names[(i + step) % 4];
        assert_eq!(nodes[i]["name"], *name(0), "not in the order of the circle: {picture:#}");
        assert_eq!(nodes[i]["state"], "up");
        assert_eq!(nodes[i]["predecessor"], *name(3));
        assert_eq!(nodes[i]["successors"], serde_json::json!([name(1), name(2), name(3)]));
        assert!((nodes[i]["share"].as_f64().unwrap() - 0.25).abs() < 1e-9, "{picture:#}");
        owned += nodes[i]["keys"]["owned"].as_u64().unwrap();
        assert_eq!(ranges[i]["lo"], nodes[(i + 3) % 4]["id"]);
        assert_eq!(ranges[i]["hi"], nodes[i]["id"]);
        // The owner, its successor, its predecessor.
        assert_eq!(ranges[i]["members"], serde_json::json!([name(0), name(1), name(3)]));
    }
    assert_eq!(usize::try_from(owned).unwrap(), stored.len());

    let text = ring.must(&["ring"]);
    assert!(text.ends_with("ring e2e-15250 is right\n") && !text.contains('\x1b'), "{text}");
    ring.must(&["stop", &names[1]]);
    let stopped = ring.run(&["ring"]);
    assert_eq!(stopped.status.code(), Some(1));
    let text = String::from_utf8(stopped.stdout).unwrap();
    let line = text.lines().find(|line| line.starts_with(&names[1])).unwrap();
    assert!(line.contains(" down ") && line.contains(" ? "), "{text}");
    assert!(text.contains(&format!("  {} is down.\n", names[1])), "{text}");
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
    // Of some keys the time is over meanwhile.
    for i in 0..200 {
        let put = http.put(format!("{}/kv/brief%2F{i}", three[0].url)).header("ttl", 1 + i % 3);
        assert!(put.body("soon gone").send().await.unwrap().status().is_success());
    }
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

/// A command that goes on, such as `logs -f --json`, and the lines it has printed: data and talk in the
/// order in which it wrote them.
struct Followed {
    program: Child,
    lines: mpsc::Receiver<Value>,
}

impl Followed {
    fn begin(ring: &Ring, arguments: &[&str]) -> Self {
        // One pipe for both: two have no order between them.
        let (read, write) = std::io::pipe().unwrap();
        let mut command = ring.command(arguments);
        command.stdout(write.try_clone().unwrap()).stderr(write);
        let program = command.spawn().unwrap();
        let (send, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(read).lines().map_while(Result::ok) {
                let is_data = line.starts_with('{');
                let said = || serde_json::json!({"said": line});
                let _ = send.send(if is_data { line.parse().unwrap() } else { said() });
            }
        });
        Self { program, lines }
    }

    /// The lines up to one that is wanted.
    fn until(&self, what: &str, is_it: impl Fn(&Value) -> bool) -> Vec<Value> {
        let mut lines = Vec::new();
        while !lines.last().is_some_and(&is_it) {
            match self.lines.recv_timeout(HEALED_WITHIN) {
                Ok(line) => lines.push(line),
                Err(error) => panic!("{error} instead of {what} after {lines:#?}"),
            }
        }
        lines
    }

    /// Ends it by Ctrl-C.
    fn end(mut self) {
        let pid = rustix::process::Pid::from_child(&self.program);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        assert_eq!(self.program.wait().unwrap().code(), Some(0));
        let rest: Vec<Value> = self.lines.iter().filter(|line| line["said"].is_string()).collect();
        assert!(rest.is_empty(), "{rest:?}");
    }
}

#[test]
fn logs_are_followed_through_everything_that_happens_to_processes() {
    logs_are_followed(&Ring::new("process", 2, 15_370));
}

#[tokio::test]
async fn logs_are_followed_through_everything_that_happens_to_containers() {
    let found = sky_deploy::provider::docker::Engine::find().await;
    if need::is_met(found.is_ok(), "a Docker engine") {
        logs_are_followed(&Ring::new("docker", 2, 15_470));
    }
}

fn logs_are_followed(ring: &Ring) {
    ring.must(&["apply", "--detach"]);
    let name = |n| format!("e2e-{}-{n}", ring.first_port);
    let is_of = |line: &Value, n| line["node"] == name(n);
    let followed = Followed::begin(ring, &["logs", "-f", "--json"]);
    let mut seen = followed.until("the end of what was there", |line| is_of(line, 1));
    seen.extend(followed.until("both nodes", |line| is_of(line, 2)));
    // One is killed and started again, one comes, one goes.
    ring.nodes()[0].kill();
    ring.must(&["apply", "--detach"]);
    let is_start = |line: &Value| line["line"].as_str().unwrap().contains("listens on");
    seen.extend(followed.until("the new start", |line| is_of(line, 1) && is_start(line)));
    let times: Vec<_> = seen.iter().map(|line| line["at"].as_str().unwrap()).collect();
    assert!(times.is_sorted(), "{seen:#?}");
    let is_said = |line: &Value, what: &str, n| line["said"] == format!("• {} {what}", name(n));
    ring.must(&["add"]);
    let before = followed.until("the third node", |line| is_said(line, "has come", 3));
    assert!(!before.iter().any(|line| is_of(line, 3)), "{before:#?}");
    followed.until("its start", |line| is_of(line, 3) && is_start(line));
    ring.must(&["remove", &name(2), "--yes"]);
    followed.until("an end of the second", |line| is_said(line, "is gone", 2));
    followed.end();

    let text = ring.must(&["logs", "all", "--tail", "1"]);
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines.len() == 2 && lines.iter().all(|line| line.contains(" | 20")), "{text}");
    assert_eq!(ring.must(&["logs", &name(1), "--tail", "1"]).lines().count(), 1);
    assert_eq!(ring.must(&["logs", "--since", "2100-01-01"]), "");

    // Nobody reads.
    let mut program = ring.command(&["logs", "-f"]).stdout(Stdio::piped()).spawn().unwrap();
    drop(program.stdout.take());
    assert_eq!(program.wait().unwrap().code(), Some(0));
}

#[test]
fn keys_are_watched_through_agents_that_go_away() {
    let ring = Ring::new("process", 3, 15_390);
    ring.must(&["apply", "--detach"]);
    ring.must(&["kv", "put", "job/1", "one"]);
    ring.must(&["kv", "put", "other", "thing"]);
    let watch = ["kv", "watch", "--prefix", "job/", "--values", "--json"];
    let followed = Followed::begin(&ring, &watch);
    let is_value = |line: &Value, key: &str, text: &str| {
        line["event"] == "value" && line["key"] == key && line["value"]["text"] == text
    };
    let mut seen = followed.until("all that is there", |line| line["event"] == "synced");
    assert!(seen.len() == 2 && is_value(&seen[0], "job/1", "one"), "{seen:#?}");
    ring.must(&["kv", "put", "job/2", "two"]);
    seen.extend(followed.until("a new key", |line| is_value(line, "job/2", "two")));

    // The agent that it goes through is killed, and others are at work meanwhile.
    ring.nodes()[0].kill();
    ring.wait_until("noticed", |status| status["nodes"][0]["state"] == "down");
    ring.must(&["kv", "delete", "job/2"]);
    ring.must(&["kv", "put", "job/3", "three"]);
    let is_deleted = |line: &Value| line["event"] == "deleted" && line["key"] == "job/2";
    seen.extend(followed.until("the end of a key", is_deleted));
    if !seen.iter().any(|line| is_value(line, "job/3", "three")) {
        seen.extend(followed.until("a new key", |line| is_value(line, "job/3", "three")));
    }
    ring.must(&["kv", "put", "job/1", "changed"]);
    seen.extend(followed.until("a change", |line| is_value(line, "job/1", "changed")));
    let told: Vec<_> = seen.iter().filter(|line| line["said"].is_null()).collect();
    assert_eq!(told.len(), 6, "nothing is told twice, and no other key: {told:#?}");
    followed.end();

    let refused = ring.run(&["kv", "watch", "--key", ".."]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
}

#[test]
fn processes_run_as_they_were_rendered_and_are_healthy() {
    let ring = Ring::new("process", 2, 15_380);
    let parts = |ring: &Ring| {
        let text = ring.must(&["render", "--json"]);
        let mut rendered: Value = serde_json::from_str(&text).unwrap();
        rendered["parts"].take()
    };
    let before = parts(&ring);
    let applied: Value =
        serde_json::from_str(&ring.must(&["apply", "--detach", "--json"])).unwrap();
    let steps = applied["took"]["steps"].as_array().unwrap();
    for step in ["plan", "create", "found", "right"] {
        assert!(steps.iter().any(|took| took["step"] == step), "no {step} in {steps:#?}");
    }
    let whole = applied["took"]["seconds"].as_f64().unwrap();
    assert!(steps.iter().all(|took| took["seconds"].as_f64().unwrap() <= whole), "{applied:#}");
    assert_eq!(parts(&ring), before);
    for (node, part) in ring.nodes().iter().zip(before.as_array().unwrap()) {
        let Handle::Pid(pid) = node.handle else { panic!("{node:?} is no process") };
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
        let words: Vec<&str> = line.trim_end_matches('\0').split('\0').skip(1).collect();
        assert_eq!(part["parameters"]["arguments"], serde_json::json!(words));
        let program = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap();
        assert_eq!(part["parameters"]["program"], program.to_str().unwrap());
    }

    let look = |code: i32| {
        let output = ring.run(&["doctor", "--json"]);
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        move |check: &str, result: &str, words: &str| {
            report["findings"].as_array().unwrap().iter().any(|finding| {
                finding["check"] == check
                    && finding["result"] == result
                    && finding["detail"].as_str().unwrap().contains(words)
            })
        }
    };
    let told = look(0);
    assert!(told("nodes", "ok", "2 of 2 are up") && told("program", "ok", "all"));
    assert!(told("clocks", "ok", "all agree"));
    let json =
        |arguments: &[&str]| -> Value { serde_json::from_str(&ring.must(arguments)).unwrap() };
    // What was done to a key is told as in a batch, whatever the value is.
    for value in ["-1", "\u{e9}"] {
        let put = json(&["kv", "put", "key", value, "--json"]);
        let got = json(&["kv", "get", "key", "--json"]);
        assert_eq!((&got["etag"], &got["value"]["text"]), (&put["etag"], &value.into()));
    }
    let mut put = ring.command(&["kv", "put", "key", "-", "--json"]);
    let mut put = put.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    put.stdin.take().unwrap().write_all(b"\xff\n\0").unwrap();
    assert!(put.wait().unwrap().success());
    assert_eq!(json(&["kv", "get", "key", "--json"])["value"]["base64"], "/woA");
    assert_eq!(ring.run(&["kv", "get", "key"]).stdout, b"\xff\n\0");
    assert_eq!(json(&["kv", "delete", "key", "--json"])["status"], 204);
    // Whatever its characters, a key is one line and does nothing to a terminal.
    ring.must(&["kv", "put", "a\x1b[2J\nb", "1"]);
    assert_eq!(ring.must(&["kv", "list"]), "a\\u{1b}[2J\\nb\n");

    let stopped = json(&["stop", "e2e-15380-2", "--json"]);
    assert_eq!(stopped["nodes"], serde_json::json!(["e2e-15380-2"]));
    assert_eq!(stopped["took"]["steps"][0]["step"], "stop");
    let status = ring.run(&["status"]);
    let hint = String::from_utf8(status.stderr).unwrap();
    assert_eq!(hint, "hint: `sky-deploy apply` starts what is down, on its data\n");
    let told = look(1);
    assert!(told("nodes", "problem", "e2e-15380-2 is down"));
    assert!(told("nodes", "ok", "1 of 2 are up"));
}
