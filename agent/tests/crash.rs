//! Agents and stores that are killed in the middle of their work: what was acknowledged is there again.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/need.rs"]
mod need;

use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use sky_agent::store::{Committer, Directory, Disk, Room};
use sky_chord::{Content, Id, Key, Record, Records, Register, Value, Write};

/// Longer than anything here may take, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Writes of one batch: all are there, or none.
const BATCH: u64 = 4;

fn open(path: &Path) -> (Directory, Disk) {
    Directory::open(path, None, Id::small(7)).unwrap()
}

fn key(seq: u64, part: u64) -> Key {
    Key::new(&format!("{seq}/{part}"))
}

fn record(seq: u64) -> Record {
    // Long enough for tables to be written and merged while batches come in.
    let bytes = seq.to_be_bytes().repeat(256).into();
    let value = Value { content_type: "x".into(), bytes, ttl: None };
    Record {
        register: Register { value: Some(Content::Whole(value)), ..Register::ABSENT },
        ..Record::EMPTY
    }
}

/// What the test below runs in a process of its own, until it is killed: writes batches as fast as it
/// can, and prints the number of each that is durable.
#[tokio::main(flavor = "current_thread")]
async fn write_until_killed(folder: &Path, first: u64) {
    let (directory, disk) = open(folder);
    let room = Room::new(directory.path(), Some(0));
    let committer = Committer::start(disk, room, Arc::default()).unwrap();
    let mut progress = committer.progress();
    let mut report = std::io::stdout();
    for seq in first.. {
        let batch = (0..BATCH).map(|part| Write::Record(key(seq, part), record(seq))).collect();
        committer.submit(seq, batch);
        // A few batches are always under way.
        let reached = progress.wait_for(|p| seq < first + 8 || p.durable >= Some(seq - 8)).await;
        if let Some(durable) = reached.unwrap().durable {
            writeln!(report, "durable {durable}").unwrap();
        }
    }
}

#[test]
fn what_was_reported_durable_survives_kill() {
    if let (Some(folder), Ok(first)) = (std::env::var_os("STORE"), std::env::var("FIRST")) {
        return write_until_killed(Path::new(&folder), first.parse().unwrap());
    }
    let folder = tempfile::tempdir().unwrap();
    let mut first = 1;
    let mut checked = 0;
    for round in 0..6 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "what_was_reported_durable_survives_kill", "--nocapture"])
            .env("STORE", folder.path())
            .env("FIRST", first.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut durable = 0;
        // Another moment of its life each time.
        let enough = first + 50 + 170 * round;
        for line in &mut lines {
            let line = line.unwrap();
            if let Some((_, seq)) = line.split_once("durable ") {
                durable = seq.parse().unwrap();
            }
            if durable >= enough {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(durable >= enough, "the child worked until it was killed");

        let (directory, disk) = open(folder.path());
        assert_eq!(u64::from(directory.boot()), 2 * (round + 1));
        for seq in 1..=durable {
            for part in 0..BATCH {
                assert_eq!(disk.get(&key(seq, part)).unwrap(), Some(record(seq)), "{seq}/{part}");
                checked += 1;
            }
        }
        // Later batches were not promised; but none may be there in part.
        first = durable + 1;
        loop {
            let there = (0..BATCH).filter(|part| disk.get(&key(first, *part)).unwrap().is_some());
            match there.count() as u64 {
                0 => break,
                BATCH => first += 1,
                count => panic!("{count} writes of batch {first} are there"),
            }
        }
    }
    assert!(checked > 1000, "{checked}");
}

struct Agent {
    process: Child,
    url: String,
}

impl Agent {
    fn start(port: u16, data: &Path, arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sky-agent"));
        command.args(["--port", &port.to_string(), "--data"]).arg(data).args(arguments);
        Self { process: command.spawn().unwrap(), url: format!("http://127.0.0.1:{port}") }
    }

    /// Waits until it serves clients. That can only be found by asking.
    async fn ready(&self, http: &reqwest::Client) {
        let asking = async {
            let url = format!("{}/readyz", self.url);
            while !http.get(&url).send().await.is_ok_and(|answer| answer.status().is_success()) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, asking).await.expect("the agent gets ready");
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap()
}

#[tokio::test]
async fn what_a_client_was_told_is_stored_survives_kill() {
    let folder = tempfile::tempdir().unwrap();
    let (port, http) = (free_port(), client());
    let mut agent = Agent::start(port, folder.path(), &[]);
    agent.ready(&http).await;
    let (acknowledged, mut all) = tokio::sync::mpsc::unbounded_channel();
    for writer in 0..8 {
        let (http, url, acknowledged) = (http.clone(), agent.url.clone(), acknowledged.clone());
        tokio::spawn(async move {
            for i in 0.. {
                let name = format!("{writer}-{i}");
                let put = http.put(format!("{url}/kv/{name}")).body(name.clone()).send().await;
                if !put.is_ok_and(|answer| answer.status() == 201)
                    || acknowledged.send(name).is_err()
                {
                    return;
                }
            }
        });
    }
    drop(acknowledged);
    let mut names = Vec::new();
    while let Some(name) = all.recv().await {
        names.push(name);
        if names.len() == 300 {
            agent.process.kill().unwrap();
        }
    }
    assert!(names.len() >= 300, "{}", names.len());
    agent.process.wait().unwrap();

    let again = Agent::start(port, folder.path(), &[]);
    again.ready(&http).await;
    for name in names {
        let answer = http.get(format!("{}/kv/{name}", again.url)).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{name}");
        assert_eq!(answer.text().await.unwrap(), name);
    }
}

/// A small file system of its own, unmounted when this is dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=200m", "tmpfs"]).arg(folder.path());
        mount
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
            .then_some(Self(folder))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        Command::new("umount").arg("--lazy").arg(self.0.path()).status().ok();
    }
}

#[tokio::test]
async fn a_full_disk_refuses_writes_and_serves_reads() {
    let disk = SmallDisk::mount();
    if !need::is_met(disk.is_some(), "root, to mount a small tmpfs") {
        return;
    }
    let disk = disk.unwrap();
    let (port, http) = (free_port(), client());
    let data = disk.0.path().join("data");
    let reserve = ["--disk-reserve", "67108864"];
    let agent = Agent::start(port, &data, &reserve);
    let url = agent.url.clone();
    agent.ready(&http).await;
    let put = async |name: &str| {
        let put = http.put(format!("{url}/kv/{name}")).body("value").send();
        put.await.map_or(0, |answer| answer.status().as_u16())
    };
    assert_eq!(put("before").await, 201);
    let ballast = disk.0.path().join("ballast");
    std::fs::write(&ballast, vec![1; 140 << 20]).unwrap();
    let until = async |expected: &[u16]| {
        let trying = async {
            let mut last = put("again").await;
            while !expected.contains(&last) {
                tokio::time::sleep(Duration::from_millis(50)).await;
                last = put("again").await;
            }
        };
        tokio::time::timeout(PATIENCE, trying).await.expect("the answer changes with the disk");
    };
    until(&[507]).await;
    assert_eq!(http.get(format!("{url}/kv/before")).send().await.unwrap().status(), 200);

    // One that is started when it is full already takes nothing at all.
    drop(agent);
    let _agent = Agent::start(port, &data, &reserve);
    let first_answer = async {
        loop {
            match put("none").await {
                0 | 503 => tokio::time::sleep(Duration::from_millis(20)).await,
                status => return status,
            }
        }
    };
    assert_eq!(tokio::time::timeout(PATIENCE, first_answer).await, Ok(507));
    std::fs::remove_file(ballast).unwrap();
    until(&[200, 201]).await;
    assert_eq!(http.get(format!("{url}/kv/again")).send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_disk_that_runs_out_of_space_loses_nothing_that_was_acknowledged() {
    let disk = SmallDisk::mount();
    if !need::is_met(disk.is_some(), "root, to mount a small tmpfs") {
        return;
    }
    let disk = disk.unwrap();
    let (port, http) = (free_port(), client());
    let data = disk.0.path().join("data");
    // Without a reserve the store itself meets the end of the disk.
    let mut agent = Agent::start(port, &data, &["--disk-reserve", "0"]);
    agent.ready(&http).await;
    let value = |i: usize| i.to_string().repeat(200_000 / i.to_string().len());
    let ballast = disk.0.path().join("ballast");
    std::fs::write(&ballast, vec![1; 150 << 20]).unwrap();
    let mut stored = Vec::new();
    let failed = loop {
        let i = stored.len();
        assert!(i < 2000, "the disk gets full");
        let put = http.put(format!("{}/kv/{i}", agent.url)).body(value(i)).send().await;
        // It may stop before the answer is on its way.
        match put.map(|put| put.status().as_u16()) {
            Ok(201) => stored.push(i),
            put => break put.ok(),
        }
    };
    assert!(stored.len() > 20, "{}", stored.len());
    assert!(failed.is_none_or(|status| [503, 504, 507].contains(&status)), "{failed:?}");
    assert!(!agent.process.wait().unwrap().success(), "it cannot promise anything any more");

    // The operator makes room, and starts it again.
    std::fs::remove_file(ballast).unwrap();
    let again = Agent::start(port, &data, &[]);
    again.ready(&http).await;
    for i in stored {
        let answer = http.get(format!("{}/kv/{i}", again.url)).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{i}");
        assert_eq!(answer.text().await.unwrap(), value(i));
    }
    let put = http.put(format!("{}/kv/more", again.url)).body("x").send().await.unwrap();
    assert_eq!(put.status(), 201);
}
