//! `backup` and `restore`.

use std::cell::Cell;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde_json::Value;
use warp::Filter;
use warp::http::StatusCode;

use crate::ring::{Ring, urls};
use crate::sky_file::{self, Content};
use crate::writer::{Writers, block_on};
use crate::{fails, said};

/// Keys of every kind, `large` of them with values that fill several blocks.
fn content(small: usize, large: usize) -> Content {
    let types = ["text/plain; charset=utf-8", "application/octet-stream", "", "a/b; c=\"d e\""];
    let mut content = Content::new();
    for i in 0..small {
        let key = match i % 3 {
            0 => format!("plain/{i}"),
            1 => format!("schön & gut?{i}#%2F"),
            _ => format!("\u{1}line\n{i}"),
        };
        let value = vec![(i % 251) as u8; i % 200];
        content.insert(key, (types[i % types.len()].to_owned(), value));
    }
    for i in 0..large {
        content.insert(format!("large/{i}"), (types[1].to_owned(), vec![i as u8; 128 << 10]));
    }
    content
}

fn save(ring: &Ring, name: &str, bytes: &[u8]) {
    std::fs::write(ring.folder.path().join(name), bytes).unwrap();
}

fn load(ring: &Ring, name: &str) -> Vec<u8> {
    std::fs::read(ring.folder.path().join(name)).unwrap()
}

/// What the ring holds, by a backup of it.
fn held(ring: &Ring, name: &str) -> (Content, String) {
    let report: Value = serde_json::from_str(&ring.must(&["backup", name, "--json"])).unwrap();
    let (content, digest) = sky_file::read(&load(ring, name));
    assert_eq!(report["content"], digest);
    assert_eq!(report["keys"], content.len());
    (content, digest)
}

/// Starts a command and sends it a signal when `ripe`. What it said; none if it had succeeded before.
fn stopped_when(
    ring: &Ring,
    arguments: &[&str],
    signal: Signal,
    ripe: impl Fn() -> bool,
) -> Option<String> {
    let mut child = ring.command(arguments).stderr(Stdio::piped()).spawn().unwrap();
    while !ripe() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    if child.try_wait().unwrap().is_none() {
        rustix::process::kill_process(Pid::from_child(&child), signal).unwrap();
    }
    let output = child.wait_with_output().unwrap();
    (!output.status.success()).then(|| said(&output))
}

fn length(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |file| file.len())
}

#[test]
fn a_backup_of_a_busy_ring_is_consistent_per_key() {
    let ring = Ring::new("process", 3, 15_600);
    ring.must(&["apply", "--detach"]);
    let quiet = content(300, 200);
    save(&ring, "quiet", &sky_file::write(&quiet, "1"));
    ring.must(&["restore", "quiet", "--yes"]);

    let nodes = ring.nodes();
    let writers = Writers::start(&urls(&nodes[..2]), 8);
    // Every client has written before the backup begins.
    while writers.answered() < 100 {
        std::thread::sleep(Duration::from_millis(10));
    }
    let partial = ring.folder.path().join("b.partial");
    let begun = Instant::now();
    // Killed with some blocks in the file, and gone on with.
    let backup = ["backup", "b"];
    let killed = stopped_when(&ring, &backup, Signal::KILL, || length(&partial) > 3 << 20);
    assert!(killed.is_some(), "the backup was faster than the look at its file");
    // Interrupted after it went on without one of the agents.
    let dead = Cell::new(false);
    let text = stopped_when(&ring, &backup, Signal::INT, || {
        if length(&partial) > 6 << 20 && !dead.replace(true) {
            nodes[2].kill();
        }
        length(&partial) > 12 << 20
    });
    let text = text.expect("the backup was faster than the look at its file");
    assert!(text.contains("interrupted") && text.contains("goes on from there"), "{text}");
    assert!(!ring.folder.path().join("b").exists());
    let output = ring.run(&["backup", "b"]);
    let ended = Instant::now();
    let text = said(&output);
    let went_on = output.status.success() && text.contains("going on with b.partial, begun ");
    assert!(went_on, "{text}\n{}", ring.must(&["logs", "all", "-n", "40"]));
    assert!(!partial.exists());
    let written = writers.end();

    let (mut found, _) = sky_file::read(&load(&ring, "b"));
    for (key, writes) in &written {
        let (_, value) = found.remove(key).unwrap_or_else(|| panic!("{key} is missing"));
        let number: usize = String::from_utf8(value).unwrap().parse().unwrap();
        assert!(writes[number].sent < ended, "{key} had {number} only after the backup");
        let replaced = writes.get(number + 1).is_some_and(|next| next.answered < begun);
        assert!(!replaced, "{key} had {number} only before the backup");
    }
    assert!(written.values().all(|writes| writes.len() > 3), "the clients hardly wrote");
    assert_eq!(found, quiet);
}

#[test]
fn rings_of_all_sizes_hold_the_same_after_a_restore() {
    let all = content(400, 60);
    let file = sky_file::write(&all, "2");
    for (nodes, port) in [(1, 15_610), (3, 15_620), (5, 15_630)] {
        let ring = Ring::new("process", nodes, port);
        ring.must(&["apply", "--detach"]);
        save(&ring, "all", &file);
        // Killed when some is stored, and gone on with.
        let kept = ring.home().join(format!("sky/e2e-{port}/restore.json"));
        let has_stored =
            || std::fs::read_to_string(&kept).is_ok_and(|kept| !kept.contains("\"blocks\": 0"));
        let restore = ["restore", "all", "--yes"];
        if stopped_when(&ring, &restore, Signal::KILL, has_stored).is_some() {
            let output = ring.run(&["restore", "all", "--yes", "--verify"]);
            let text = said(&output);
            assert!(output.status.success() && text.contains("going on after block "), "{text}");
            assert!(text.contains("460 keys read back"), "{text}");
        }
        assert!(!kept.exists());
        let (found, digest) = held(&ring, "again");
        assert_eq!((&found, digest), (&all, sky_file::read(&file).1), "{nodes} nodes");
        ring.must(&["check"]);
    }
}

#[test]
fn large_values_are_restored_when_the_agents_take_them() {
    let ring = Ring::new("process", 3, 15_670);
    ring.must(&["apply", "--detach"]);
    let mut all = content(50, 0);
    for i in 0..8 {
        let value: Vec<u8> = (0..7 << 20).map(|at: u32| (at >> 12) as u8 ^ i).collect();
        all.insert(format!("huge/{i}"), ("video/mp4".to_owned(), value));
    }
    save(&ring, "all", &sky_file::write(&all, "5"));
    let text = fails(&ring, &["restore", "all", "--yes"]);
    assert!(text.contains("The value is larger than 1048576 bytes"), "{text}");

    ring.tell_agents("max_value_bytes: 8388608");
    let text = said(&ring.run(&["plan"]));
    let told =
        "run with other settings than stand under `agent`: `sky-deploy upgrade` changes that";
    assert!(text.contains("no changes") && text.contains(told), "{text}");
    let text = said(&ring.run(&["upgrade", "--yes"]));
    assert!(text.contains("3 of 3 nodes renewed"), "{text}");
    let text = said(&ring.run(&["plan"]));
    assert!(text.contains("no changes") && !text.contains("settings"), "{text}");

    ring.must(&["restore", "all", "--yes", "--skip-existing", "--verify"]);
    assert_eq!(held(&ring, "again").0, all);
    ring.must(&["check"]);
}

#[test]
fn damaged_files_are_refused_and_keys_that_exist_are_respected() {
    let ring = Ring::new("process", 3, 15_640);
    ring.must(&["apply", "--detach"]);
    let all = content(200, 0);
    let file = sky_file::write(&all, "3");
    save(&ring, "all", &file);

    let cut = file.len() - file.len() / 3;
    save(&ring, "cut", &file[..cut]);
    let text = fails(&ring, &["restore", "cut", "--yes"]);
    assert!(
        text.contains(&format!("it is incomplete: it ends at byte {cut}, within block ")),
        "{text}"
    );
    assert!(text.contains("hint: --incomplete restores the "), "{text}");
    let mut flipped = file.clone();
    flipped[cut] ^= 4;
    save(&ring, "flipped", &flipped);
    let text = fails(&ring, &["restore", "flipped", "--yes"]);
    let bytes = text.split("it is damaged in bytes ").nth(1).unwrap().split(':').next().unwrap();
    let (from, to) = bytes.split_once(" to ").unwrap();
    let place = from.parse::<usize>().unwrap()..to.parse().unwrap();
    assert!(place.contains(&cut), "{text}");
    save(&ring, "letter", b"Dear Sir");
    let text = fails(&ring, &["restore", "letter", "--yes"]);
    assert!(text.contains("it does not begin like a backup"), "{text}");
    let text = fails(&ring, &["restore", "all"]);
    assert!(text.contains("nothing was done, because nobody is there to ask"), "{text}");
    assert!(held(&ring, "none").0.is_empty(), "a refused restore stored something");

    // What is there of the cut one, and no more.
    ring.must(&["restore", "cut", "--yes", "--incomplete", "--verify"]);
    let (some, _) = held(&ring, "some");
    assert!(!some.is_empty() && some.len() < all.len(), "{} keys", some.len());
    assert!(some.iter().all(|(key, value)| all[key] == *value));

    let text = fails(&ring, &["restore", "all", "--yes"]);
    assert!(text.contains("has keys already"), "{text}");
    let (mine, others) =
        (some.keys().next().unwrap(), all.keys().find(|key| !some.contains_key(*key)));
    ring.must(&["kv", "put", mine, "mine"]);
    ring.must(&["kv", "put", others.unwrap(), "mine too"]);
    ring.must(&["restore", "all", "--yes", "--skip-existing", "--verify"]);
    let mut expected = all.clone();
    for (key, value) in [(mine, "mine"), (others.unwrap(), "mine too")] {
        expected.insert(key.clone(), ("application/octet-stream".to_owned(), value.into()));
    }
    assert_eq!(held(&ring, "skipped").0, expected);
    ring.must(&["restore", "all", "--yes", "--overwrite", "--verify"]);
    assert_eq!(held(&ring, "overwritten").0, all);

    // Once all was stored, what was read back was interrupted. Since then a key was deleted.
    let folder = ring.home().join("sky/e2e-15640");
    let record = std::fs::read(folder.join("ring.json")).unwrap();
    let record: Value = serde_json::from_slice(&record).unwrap();
    let interrupted = |existing: &str| {
        let kept = serde_json::json!({
            "backup": "3", "ring": record["ring_id"], "existing": existing, "blocks": 16
        });
        std::fs::write(folder.join("restore.json"), kept.to_string()).unwrap();
    };
    ring.must(&["kv", "delete", mine]);
    interrupted("refuse");
    let text = fails(&ring, &["restore", "all", "--yes"]);
    assert!(text.contains("has keys already"), "{text}");
    interrupted("overwrite");
    let overwrite = ["restore", "all", "--yes", "--overwrite", "--verify"];
    let text = fails(&ring, &overwrite);
    assert!(text.contains("going on after block 16") && text.contains("0 keys stored"), "{text}");
    assert!(text.contains("1 keys are missing and 0 have another value"), "{text}");
    ring.must(&overwrite);
    assert_eq!(held(&ring, "repaired").0, all);
}

#[test]
fn backups_go_through_pipes_and_to_urls() {
    let ring = Ring::new("process", 1, 15_650);
    ring.must(&["apply", "--detach"]);
    let all = content(100, 20);
    // In through a pipe, from nobody who could be asked.
    save(&ring, "all", &sky_file::write(&all, "4"));
    let mut restore = ring.command(&["restore", "-", "--yes"]);
    let file = std::fs::File::open(ring.folder.path().join("all")).unwrap();
    let output = restore.stdin(file).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    // And out.
    let output = ring.run(&["backup", "-"]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(sky_file::read(&output.stdout).0, all);

    // A store that is busy at first.
    let stored: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
    let (put, get) = (Arc::clone(&stored), Arc::clone(&stored));
    let puts = warp::put()
        .and(warp::path!("bucket" / "object"))
        .and(warp::query::raw())
        .and(warp::header::<usize>("content-length"))
        .and(warp::body::bytes())
        .map(move |query: String, length: usize, body: bytes::Bytes| {
            assert_eq!((query.as_str(), length), ("signature=secret", body.len()));
            let mut stored = put.lock().unwrap();
            stored.push(body.to_vec());
            if stored.len() == 1 { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK }
        });
    let gets = warp::get()
        .and(warp::path!("bucket" / "object"))
        .map(move || get.lock().unwrap().last().unwrap().clone());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let server = std::thread::spawn(move || {
        block_on(async {
            listener.set_nonblocking(true).unwrap();
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            tokio::select! {
                () = warp::serve(puts.or(gets)).incoming(listener).run() => {}
                _ = ended => {}
            }
        });
    });
    let url = format!("http://{address}/bucket/object?signature=secret");
    let run = |arguments: &[&str]| {
        let output = ring.command(arguments).env("OBJECT", &url).output().unwrap();
        let text = said(&output);
        assert!(!text.contains("secret"), "{text}");
        (output.status.code(), text)
    };
    let (code, text) = run(&["backup", "env:OBJECT"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.contains(&format!("backed up to http://{address}/bucket/object: 120 keys")),
        "{text}"
    );
    assert_eq!(stored.lock().unwrap().len(), 2);
    assert!(!ring.home().join("sky/e2e-15650/upload").exists());
    let (code, text) = run(&["restore", "env:OBJECT", "--overwrite", "--verify", "--yes"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("120 keys read back as in the backup"), "{text}");
    end.send(()).unwrap();
    server.join().unwrap();
    let (code, text) = run(&["restore", "env:OBJECT", "--overwrite", "--yes"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains(&format!("cannot get http://{address}/bucket/object")), "{text}");
}
