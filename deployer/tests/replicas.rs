//! Rings of real processes that keep another number of copies than three. With five: it loses two nodes at
//! once, then all of them, grows and shrinks, while clients check every answer. With one: a node goes.

#![expect(clippy::unwrap_used, reason = "tests panic")]
#![expect(clippy::print_stderr, reason = "times are a report, and no condition")]

#[allow(dead_code, reason = "each test program uses its own part")]
#[path = "parts/ring.rs"]
mod ring;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use reqwest::{Method, StatusCode};
use ring::{HEALED_WITHIN, Handle, Node, Ring, urls};
use serde_json::{Value, json};

/// How many clients there are. Each has keys of its own, and so knows the only right answers.
const CLIENTS: usize = 4;
/// How many keys each of them has.
const KEYS: usize = 8;
/// How many values each of them has to write and read at every stage.
const ROUNDS: usize = 20;

/// Clients at work in a thread of their own.
struct Clients {
    begun: Instant,
    shared: Arc<Shared>,
    thread: JoinHandle<Vec<Client>>,
}

struct Shared {
    /// The agents to ask.
    urls: Mutex<Vec<String>>,
    ended: AtomicBool,
    /// How many values each client has written and read.
    rounds: [AtomicUsize; CLIENTS],
}

/// A client and what it knows.
struct Client {
    number: usize,
    shared: Arc<Shared>,
    http: reqwest::Client,
    requests: usize,
    /// The last value acknowledged of each of its keys.
    values: BTreeMap<String, String>,
    /// The longest time that passed until a request was answered, with its repetitions.
    longest: Duration,
}

impl Clients {
    fn start(urls: Vec<String>) -> Self {
        let (urls, ended) = (Mutex::new(urls), AtomicBool::default());
        let shared = Arc::new(Shared { urls, ended, rounds: Default::default() });
        let clients: Vec<_> = (0..CLIENTS).map(|number| Client::new(number, &shared)).collect();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(join_all(clients.into_iter().map(Client::work)))
        });
        Self { begun: Instant::now(), shared, thread }
    }

    /// Lets each of them go on for some rounds, through these agents from now on.
    fn go_on(&self, stage: &str, urls: Vec<String>) {
        *self.shared.urls.lock().unwrap() = urls;
        let rounds = || self.shared.rounds.iter().map(|rounds| rounds.load(Ordering::Relaxed));
        let wanted: Vec<usize> = rounds().map(|done| done + ROUNDS).collect();
        let begun = Instant::now();
        while rounds().zip(&wanted).any(|(done, wanted)| done < *wanted) {
            assert!(!self.thread.is_finished(), "a client got a wrong answer");
            assert!(
                begun.elapsed() < HEALED_WITHIN,
                "{:?} of {wanted:?}",
                rounds().collect::<Vec<_>>()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        eprintln!("{stage}: {:.1} s until now", self.begun.elapsed().as_secs_f64());
    }

    fn end(self) -> Vec<Client> {
        self.shared.ended.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

impl Client {
    fn new(number: usize, shared: &Arc<Shared>) -> Self {
        // A new connection for each request: those to a killed process are of no use.
        let http = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().unwrap();
        let (shared, values) = (Arc::clone(shared), BTreeMap::new());
        Self { number, shared, http, requests: 0, values, longest: Duration::ZERO }
    }

    async fn work(mut self) -> Self {
        for round in 0.. {
            if self.shared.ended.load(Ordering::Relaxed) {
                break;
            }
            let key = format!("client-{}-{}", self.number, round % KEYS);
            let value = format!("round {round}");
            self.ask(Method::PUT, &key, Some(&value)).await;
            self.values.insert(key.clone(), value);
            // What was just written, and what was written longest ago.
            let oldest = format!("client-{}-{}", self.number, (round + 1) % KEYS);
            for key in [key, oldest] {
                if let Some(value) = self.values.get(&key).cloned() {
                    assert_eq!(self.ask(Method::GET, &key, None).await, value, "{key}");
                }
            }
            self.shared.rounds[self.number].fetch_add(1, Ordering::Relaxed);
        }
        self
    }

    /// Asks one agent after the other until one answers.
    async fn ask(&mut self, method: Method, key: &str, value: Option<&str>) -> String {
        let begun = Instant::now();
        loop {
            self.requests += 1;
            let url = {
                let urls = self.shared.urls.lock().unwrap();
                urls[(self.number + self.requests) % urls.len()].clone()
            };
            let mut request = self.http.request(method.clone(), format!("{url}/kv/{key}"));
            if let Some(value) = value {
                // Repeated, it is applied once, however late the first one arrives.
                request = request.header("Idempotency-Key", value).body(value.to_owned());
            }
            match request.send().await {
                Ok(answer) if answer.status().is_success() => {
                    let Ok(text) = answer.text().await else { continue };
                    self.longest = self.longest.max(begun.elapsed());
                    return text;
                }
                // The documented answers while a key's members cannot agree.
                Ok(answer) => assert!(
                    [StatusCode::SERVICE_UNAVAILABLE, StatusCode::GATEWAY_TIMEOUT]
                        .contains(&answer.status()),
                    "{method} {key}: {answer:?}"
                ),
                // It is dead.
                Err(_) => {}
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[test]
fn five_copies_outlive_two_nodes_then_all_and_changes_of_size() {
    let mut ring = Ring::new("process", 5, 15_800);
    // Nothing is repaired: all there is are the copies that the dead have left.
    (ring.replicas, ring.repair_after) = (5, "1h");
    ring.resize(5);
    ring.must(&["apply", "--detach"]);
    let five = ring.nodes();
    let clients = Clients::start(urls(&five));
    clients.go_on("five nodes", urls(&five));

    // Two neighbours at once: reads and writes go on with the three others.
    let (dead, living) = five.split_at(2);
    dead.iter().for_each(Node::kill);
    clients.go_on("two killed", urls(living));
    ring.wait_until("two down, and nothing repaired", |status| {
        let nodes = status["nodes"].as_array().unwrap().iter();
        let down = nodes.filter(|node| node["state"] == "down").count();
        down == 2 && status["replicated"] == false
    });
    ring.must(&["apply", "--detach"]);
    clients.go_on("both back", urls(&five));

    // All at once, as in a power cut, amid requests.
    ring.nodes().iter().for_each(Node::kill);
    ring.must(&["apply", "--detach"]);
    clients.go_on("all killed and back", urls(&five));

    ring.resize(8);
    ring.must(&["apply", "--detach"]);
    let eight = ring.nodes();
    assert_eq!(eight.len(), 8);
    clients.go_on("eight nodes", urls(&eight));
    ring.resize(5);
    // Those that leave are asked until they have left.
    ring.must(&["apply", "--detach", "--yes"]);
    assert_eq!(ring.nodes().len(), 5);
    clients.go_on("five again", urls(&ring.nodes()));

    let clients = clients.end();
    ring.must(&["check"]);
    let requests: usize = clients.iter().map(|client| client.requests).sum();
    let longest = clients.iter().map(|client| client.longest).max().unwrap();
    eprintln!("{requests} requests, and the longest took {longest:?}");
}

/// What starts an agent once more as it was started, as an engine or a person may do at any time.
fn once_more(node: &Node) -> Command {
    let Handle::Pid(pid) = node.handle else { panic!("no process: {node:?}") };
    let read = |what| std::fs::read(format!("/proc/{pid}/{what}")).unwrap();
    let (line, environment) = (read("cmdline"), read("environ"));
    let mut words = line.split(|byte| *byte == 0).map(OsStr::from_bytes);
    let mut command = Command::new(words.next().unwrap());
    command.args(words.filter(|word| !word.is_empty())).env_clear().stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    for pair in environment.split(|byte| *byte == 0).filter(|pair| !pair.is_empty()) {
        let at = pair.iter().position(|byte| *byte == b'=').unwrap();
        command.env(OsStr::from_bytes(&pair[..at]), OsStr::from_bytes(&pair[at + 1..]));
    }
    command
}

fn begin(ring: &Ring, arguments: &[&str]) -> Child {
    let mut command = ring.command(arguments);
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Nobody else has what a node has not handed over when it falls silent.
#[tokio::test]
async fn the_only_copies_are_not_removed_before_another_node_has_them() {
    const KEYS: usize = 6_000;
    let mut ring = Ring::new("process", 3, 15_810);
    ring.replicas = 1;
    ring.resize(3);
    ring.must(&["apply", "--detach"]);
    let nodes = ring.nodes();
    let (stays, goes) = (&nodes[0], &nodes[1]);
    let http = reqwest::Client::new();
    for first in (0..KEYS).step_by(250) {
        let value = json!({"text": "v"});
        let puts = (first..first + 250)
            .map(|key| json!({"op": "put", "key": format!("k{key}"), "value": value}));
        let batch = json!({"operations": puts.collect::<Vec<_>>()});
        let answer = http.post(format!("{}/kv:batch", stays.url)).json(&batch).send().await;
        let answer: Value = answer.unwrap().json().await.unwrap();
        let results = answer["results"].as_array().unwrap();
        assert!(results.iter().all(|result| result["status"] == 201), "{answer}");
    }

    let mut again = once_more(goes);
    let mut remove = begin(&ring, &["remove", &goes.name, "--yes"]);
    loop {
        let report = http.get(format!("{}/ring", goes.url)).send().await.unwrap();
        let report: Value = report.json().await.unwrap();
        match report["phase"].as_str() {
            Some("leaving") => break,
            Some("up") => tokio::time::sleep(Duration::from_millis(5)).await,
            _ => panic!("{report}"),
        }
    }
    goes.kill();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(remove.try_wait().unwrap().is_none(), "what it has not handed over is not there");
    let mut back = again.spawn().unwrap();
    let removed = remove.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&removed.stderr);
    assert!(removed.status.success(), "{errors}");
    back.wait().unwrap();
    assert_eq!(ring.must(&["kv", "list"]).lines().count(), KEYS);

    // Neither are those of the last node, which is down.
    ring.must(&["remove", &nodes[2].name, "--yes"]);
    ring.must(&["stop", &stays.name]);
    let refused = ring.run(&["remove", &stays.name, "--yes"]);
    let errors = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && errors.contains("is the last node"), "{errors}");
    ring.must(&["start", &stays.name]);
    assert_eq!(ring.must(&["kv", "list"]).lines().count(), KEYS);
}
