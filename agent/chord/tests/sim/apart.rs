//! Values whose bytes are kept apart from their records.

use std::time::Duration;

use sky_chord::{Answer, Condition, Key, Notice, Operation, Settings, Value};

use crate::sim::cluster::Cluster;
use crate::sim::workload::get;
use crate::targeted::{hears, key, settings};

/// Longer values are kept apart.
const LIMIT: usize = 100;
const KEYS: usize = 30;

fn apart() -> Settings {
    Settings { apart_above: LIMIT, ..settings() }
}

fn text(number: usize, length: usize) -> String {
    format!("{number:0length$}")
}

fn put(key: &Key, number: usize, length: usize, condition: Condition) -> Operation {
    let value = Value { content_type: "t".into(), bytes: text(number, length).into(), ttl: None };
    Operation::Put { key: key.clone(), value, condition }
}

fn write(cluster: &mut Cluster, round: usize, length: usize) {
    let machines = cluster.awake();
    for index in 0..KEYS {
        let operation = put(&key(index), round + index, length, Condition::Always);
        let answer = cluster.operate(machines[index % machines.len()], operation);
        assert!(matches!(answer, Ok(Answer::Stored { .. })), "{index}: {answer:?}");
    }
}

fn read(cluster: &mut Cluster, machine: usize, round: usize, length: usize) {
    for index in 0..KEYS {
        match cluster.operate(machine, get(&key(index))) {
            Ok(Answer::Found { value, .. }) => assert_eq!(value.bytes, text(round + index, length)),
            other => panic!("key {index} through n{machine}: {other:?}"),
        }
    }
}

fn assert_nothing_is_left_over(cluster: &Cluster) {
    cluster.machines.iter().for_each(|machine| machine.disk.assert_nothing_is_left_over());
}

#[test]
fn bytes_travel_only_to_who_lacks_them() {
    let mut cluster = Cluster::ring(1, apart(), 3);
    write(&mut cluster, 0, 10_000);
    cluster.data_bytes = Some(0);
    let newcomer = cluster.add(sky_chord::Id::hash(b"newcomer"));
    cluster.settle();
    let moved = cluster.data_bytes.take().unwrap_or_default();
    let wanted = cluster.machines[newcomer].disk.bytes();
    assert!(wanted > KEYS / 2 * 10_000, "it has {wanted} bytes");
    assert!(moved < wanted * 5 / 4, "{moved} bytes moved, {wanted} were wanted");
    assert_nothing_is_left_over(&cluster);
    for machine in cluster.awake() {
        read(&mut cluster, machine, 0, 10_000);
    }
}

#[test]
fn who_lacks_a_value_gets_it_from_the_others_to_answer_with_it() {
    let mut cluster = Cluster::ring(2, apart(), 3);
    write(&mut cluster, 0, 1000);
    for victim in 0..3 {
        let round = 100 * (victim + 1);
        cluster.crash(victim);
        write(&mut cluster, round, 1000);
        cluster.start(victim);
        read(&mut cluster, victim, round, 1000);
    }
    // A condition is judged, and a value replaced, without its bytes.
    for index in 0..KEYS {
        let create = put(&key(index), index, 1000, Condition::Absent);
        let answer = cluster.operate(index % 3, create);
        assert!(matches!(answer, Ok(Answer::ConditionFailed { version: Some(_) })), "{answer:?}");
    }
    write(&mut cluster, 700, 1000);
    cluster.settle();
    read(&mut cluster, 0, 700, 1000);
    assert_nothing_is_left_over(&cluster);
}

#[test]
fn nothing_is_left_over_of_values_that_are_replaced_or_deleted() {
    let collecting = Settings { tombstones_kept: Duration::from_secs(6), ..apart() };
    let mut cluster = Cluster::ring(3, collecting, 3);
    for (round, length) in [1000, 10, 2000, 3000, LIMIT, LIMIT + 1].into_iter().enumerate() {
        write(&mut cluster, round, length);
        cluster.settle();
        assert_nothing_is_left_over(&cluster);
        cluster.crash(round % 3);
        cluster.start(round % 3);
        read(&mut cluster, round % 3, round, length);
    }
    for index in 0..KEYS {
        let delete = Operation::Delete { key: key(index), condition: Condition::Always };
        assert_eq!(cluster.operate(index % 3, delete), Ok(Answer::Deleted));
    }
    cluster.run_for(Duration::from_secs(60));
    assert_nothing_is_left_over(&cluster);
    assert!(cluster.machines.iter().all(|machine| machine.disk.bytes() == 0), "all is forgotten");
}

/// As those of agents that kept all values in their records.
#[test]
fn values_in_records_are_set_apart_when_the_record_changes() {
    let mut cluster = Cluster::ring(4, Settings { apart_above: usize::MAX, ..settings() }, 3);
    write(&mut cluster, 0, 1000);
    cluster.settings = apart();
    for machine in 0..3 {
        cluster.crash(machine);
        cluster.start(machine);
        read(&mut cluster, machine, 0, 1000);
    }
    cluster.add(sky_chord::Id::hash(b"newcomer"));
    cluster.settle();
    for machine in cluster.awake() {
        read(&mut cluster, machine, 0, 1000);
    }
    assert_nothing_is_left_over(&cluster);
}

#[test]
fn a_scrub_finds_damaged_bytes() {
    let scrubbing = Settings { scrub_in: Duration::from_secs(60), ..apart() };
    let mut cluster = Cluster::ring(5, scrubbing, 3);
    write(&mut cluster, 0, 1000);
    let is_found = |machine: usize, notice: &Notice| {
        machine == 1 && matches!(notice, Notice::StoreBroken { .. })
    };
    assert!(!hears(&mut cluster, 70, is_found), "nothing is damaged yet");
    cluster.machines[1].disk.tamper_bytes(&key(7), "x".into());
    assert!(hears(&mut cluster, 70, is_found), "the damage was not found");
    read(&mut cluster, 0, 0, 1000);
}
