//! What is damaged on a disk is found, and told.

use std::time::Duration;

use sky_chord::{Content, Notice, Settings, Value};

use crate::sim::cluster::Cluster;
use crate::targeted::{hears, key, read_keys, settings, write_keys};

#[test]
fn a_scrub_finds_a_damaged_record() {
    let scrubbing = Settings { scrub_in: Duration::from_secs(60), ..settings() };
    let mut cluster = Cluster::ring(10, scrubbing, 3);
    write_keys(&mut cluster, 50);
    let is_found = |machine: usize, notice: &Notice| {
        machine == 1 && matches!(notice, Notice::StoreBroken { .. })
    };
    assert!(!hears(&mut cluster, 70, is_found), "nothing is damaged yet");
    cluster.machines[1].disk.tamper(&key(7), |record| record.register.value = None);
    assert!(hears(&mut cluster, 70, is_found), "the damage was not found");
    read_keys(&mut cluster, 50);
}

#[test]
fn copies_of_one_version_that_differ_are_told() {
    let comparing = Settings { compare_every: Duration::from_secs(20), ..settings() };
    let mut cluster = Cluster::ring(11, comparing, 3);
    write_keys(&mut cluster, 50);
    cluster.crash(1);
    cluster.machines[1].disk.tamper(&key(7), |record| {
        let value = Value { content_type: "t".into(), bytes: "x".into(), ttl: None };
        record.register.value = Some(Content::Whole(value));
    });
    cluster.start(1);
    let is_told = |_: usize, notice: &Notice| matches!(notice, Notice::Diverged { count: 1, keys, .. } if keys == &["key 7"]);
    assert!(hears(&mut cluster, 40, is_told), "nobody told of the difference");
}
