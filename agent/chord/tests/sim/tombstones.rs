//! Tombstones are forgotten when their time has come, and none before.

use std::time::Duration;

use sky_chord::{Answer, Condition, Key, Operation, Settings};

use crate::sim::cluster::{Cluster, even_position};
use crate::sim::workload::get;
use crate::targeted::{key, put, settings, write_keys};

fn delete(key: &Key) -> Operation {
    Operation::Delete { key: key.clone(), condition: Condition::Always }
}

/// How many tombstones are kept, on the disks of all machines.
fn kept(cluster: &Cluster) -> usize {
    let records = cluster.machines.iter().flat_map(|machine| machine.disk.accepted());
    records.filter(|(_, record)| record.is_tombstone()).count()
}

/// Also if they are too many for one epoch: those that are old enough need not wait once more.
#[test]
fn tombstones_go_when_nobody_needs_them() {
    let tombstones_kept = Duration::from_secs(10);
    let collecting = Settings { tombstones_kept, tombstones_at_once: 2, ..settings() };
    let mut cluster = Cluster::ring(12, collecting, 5);
    write_keys(&mut cluster, 100);
    for index in 0..50 {
        assert_eq!(cluster.operate(index % 5, delete(&key(index))), Ok(Answer::Deleted));
    }
    // The last one was answered when two of three members had it.
    cluster.run_for(Duration::from_secs(1));
    assert_eq!(kept(&cluster), 150);
    cluster.run_for(Duration::from_secs(40));
    assert_eq!(kept(&cluster), 0);
    for index in 0..100 {
        let answer = cluster.operate(index % 5, get(&key(index)));
        assert_eq!(matches!(answer, Ok(Answer::Absent)), index < 50, "{index}: {answer:?}");
    }
    let create = cluster.operate(1, put(&key(7), 7, Condition::Absent));
    assert!(matches!(create, Ok(Answer::Stored { created: true, .. })), "{create:?}");
}

#[test]
fn a_member_that_was_away_brings_no_deleted_key_back() {
    for seed in 0..10 {
        let collecting = Settings { tombstones_kept: Duration::from_secs(6), ..settings() };
        let mut cluster = Cluster::ring(seed, collecting, 4);
        write_keys(&mut cluster, 40);
        for away in 0..4 {
            cluster.crash(away);
            let others = cluster.awake();
            for index in 10 * away..10 * away + 10 {
                let answer = cluster.operate(others[index % 3], delete(&key(index)));
                assert_eq!(answer, Ok(Answer::Deleted));
            }
            cluster.run_for(Duration::from_secs(60));
            cluster.start(away);
            cluster.settle();
            cluster.run_for(Duration::from_secs(2));
            for index in 0..40 {
                let answer = cluster.operate(index % 4, get(&key(index)));
                let deleted = index < 10 * away + 10;
                assert_eq!(matches!(answer, Ok(Answer::Absent)), deleted, "{index}: {answer:?}");
            }
        }
    }
}

/// A key is written and deleted again while the members are asked about its old tombstone.
#[test]
fn a_tombstone_is_as_old_as_the_last_delete() {
    let tombstones_kept = Duration::from_secs(20);
    let mut cluster = Cluster::ring(3, Settings { tombstones_kept, ..settings() }, 3);
    // All in one range, and more than are asked about at once.
    let (owner, hi) = (1, even_position(1, 3));
    let mut keys: Vec<Key> = (0..).map(key).filter(|key| key.hash() <= hi).take(1_000).collect();
    keys.sort();
    for key in &keys {
        cluster.operate(owner, put(key, 1, Condition::Absent)).expect("a key");
        assert_eq!(cluster.operate(owner, delete(key)), Ok(Answer::Deleted));
    }
    let epoch = |cluster: &Cluster| {
        let ranges = cluster.configs();
        ranges.iter().find(|range| range.hi == hi).expect("the range").epoch
    };
    // They are old when the epoch after theirs has been in force for so long.
    let first = epoch(&cluster);
    let is_next = |cluster: &mut Cluster| epoch(cluster) > first;
    assert!(cluster.run_until(tombstones_kept, is_next), "no epoch after that of the tombstones");
    cluster.run_for(tombstones_kept - Duration::from_millis(300));
    assert_eq!((epoch(&cluster), kept(&cluster)), (first + 1, 3_000));
    // The answers of one member take their time; the others suffice for clients.
    let again = &keys[..400];
    for key in again {
        cluster.network.clog(owner, 2, cluster.now + Duration::from_millis(50));
        cluster.operate(owner, put(key, 2, Condition::Absent)).expect("a key");
        assert_eq!(cluster.operate(owner, delete(key)), Ok(Answer::Deleted));
    }
    cluster.run_for(Duration::from_secs(5));
    assert_eq!((epoch(&cluster), kept(&cluster)), (first + 2, 3 * again.len()));
}
