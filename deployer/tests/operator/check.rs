//! `check`.

use serde_json::Value;
use sky_agent::store::{Directory, Store};
use sky_chord::{Content, Key, Records, Write};

use crate::ring::{Ring, urls};
use crate::writer::Writers;

/// The report of a check, and whether it says that all is well.
fn check(ring: &Ring, patience: &str) -> (Value, Option<i32>) {
    let output = ring.run(&["check", "--json", "--patience", patience]);
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{error}: {}", String::from_utf8_lossy(&output.stderr));
    });
    (report, output.status.code())
}

#[test]
fn copies_are_alike_while_clients_write_and_a_difference_is_found() {
    let mut ring = Ring::new("process", 5, 15_660);
    // Nobody takes the place of the one that sleeps, however busy this machine is.
    ring.repair_after = "10m";
    ring.resize(5);
    ring.must(&["apply", "--detach"]);
    for i in 0..40 {
        ring.must(&["kv", "put", &format!("key/{i}"), &format!("value {i}")]);
    }
    let writers = Writers::start(&urls(&ring.nodes()), 12);
    let mut checks = 0;
    while checks < 3 || writers.answered() < 500 {
        checks += 1;
        let (report, code) = check(&ring, "15");
        assert_eq!((&report["clean"], code), (&Value::Bool(true), Some(0)), "{report:#}");
        assert!(report["keys"].as_u64().unwrap() >= 40, "{report:#}");
    }
    writers.end();
    let (report, code) = check(&ring, "15");
    let counts = (report["keys"].as_u64(), report["copies"].as_u64(), code);
    assert_eq!(counts, (Some(52), Some(156), Some(0)), "{report:#}");

    // Who is asleep cannot be compared.
    ring.must(&["stop", "e2e-15660-2"]);
    let (report, code) = check(&ring, "0");
    let reasons = report["not_compared"].as_array().unwrap();
    assert!(!reasons.is_empty() && code == Some(1), "{report:#}");
    assert!(reasons.iter().all(|it| it["reason"] == "e2e-15660-2 is down"), "{report:#}");
    assert_eq!(report["differences"].as_array().unwrap().len(), 0, "{report:#}");

    // Two records of the sleeper are changed behind its back: bytes that its disk does not call damaged.
    let data = ring.home().join("sky/e2e-15660/nodes/e2e-15660-2/data");
    let changed = {
        let (_directory, disk) = Directory::open(&data, None, sky_chord::Id::MIN).unwrap();
        let held: Vec<(Key, sky_chord::Record)> = (0..40)
            .map(|i| Key::new(&format!("key/{i}")))
            .filter_map(|key| Some((disk.get(&key).unwrap()?, key)))
            .filter(|(record, _)| record.is_live())
            .map(|(record, key)| (key, record))
            .take(2)
            .collect();
        assert_eq!(held.len(), 2, "five nodes hold 40 keys three times");
        for (at, (key, record)) in held.iter().enumerate() {
            let mut record = record.clone();
            let Some(Content::Whole(value)) = &mut record.register.value else {
                panic!("a short value is in its record");
            };
            match at {
                0 => value.bytes = bytes::Bytes::from_static(b"rotten"),
                _ => value.content_type = "text/rotten".into(),
            }
            disk.write_durably(&[Write::Record(key.clone(), record)]).unwrap();
        }
        let mut names: Vec<String> = held.iter().map(|(key, _)| key.name().to_owned()).collect();
        names.sort();
        names
    };
    ring.must(&["start", "e2e-15660-2"]);
    ring.wait_until("right", |status| status["right"] == true);
    let (report, code) = check(&ring, "4");
    assert_eq!((code, &report["not_compared"]), (Some(1), &Value::Array(Vec::new())), "{report:#}");
    let differences = report["differences"].as_array().unwrap();
    let mut found: Vec<&str> = differences.iter().map(|it| it["key"].as_str().unwrap()).collect();
    found.sort_unstable();
    assert_eq!(found, changed, "{report:#}");
    for difference in differences {
        assert_eq!(difference["kind"], "other_value", "{report:#}");
        let copies = difference["copies"].as_array().unwrap();
        let (odd, rest): (Vec<_>, Vec<_>) =
            copies.iter().partition(|it| it["node"] == "e2e-15660-2");
        assert_eq!((odd.len(), rest.len()), (1, 2), "{report:#}");
        assert_eq!(rest[0]["copy"], rest[1]["copy"], "{report:#}");
        assert_ne!(odd[0]["copy"]["digest"], rest[0]["copy"]["digest"], "{report:#}");
        assert_eq!(odd[0]["copy"]["version"], rest[0]["copy"]["version"], "{report:#}");
    }
    let text = super::fails(&ring, &["check", "--patience", "0"]);
    assert!(text.contains(&format!("other value under one version: `{}`", changed[0])), "{text}");
}
