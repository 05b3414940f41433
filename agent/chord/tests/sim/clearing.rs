//! Nodes that become members again of a range whose keys they still hold.

use std::time::Duration;

use sky_chord::{Answer, Condition, Operation, Settings};

use crate::sim::cluster::Cluster;
use crate::sim::workload::get;
use crate::targeted::{key, settings, write_keys};

/// More keys a range than a node forgets at once.
const KEYS: usize = 2000;

/// It forgets them all before it becomes a member, however long its disk takes: the members may have
/// forgotten that they were deleted.
#[test]
fn a_member_with_a_slow_disk_brings_no_deleted_key_back() {
    let collecting = Settings { tombstones_kept: Duration::from_secs(6), ..settings() };
    let mut cluster = Cluster::ring(1, collecting, 4);
    write_keys(&mut cluster, KEYS);
    cluster.settle();
    cluster.crash(0);
    // Until others keep what it kept.
    cluster.run_for(Duration::from_secs(20));
    for index in 0..KEYS {
        let delete = Operation::Delete { key: key(index), condition: Condition::Always };
        assert_eq!(cluster.operate(1 + index % 3, delete), Ok(Answer::Deleted));
    }
    cluster.run_for(Duration::from_secs(60));
    let held = |cluster: &Cluster, machine: usize| cluster.machines[machine].disk.accepted().len();
    assert!((1..4).all(|machine| held(&cluster, machine) == 0), "no tombstone is left");
    assert!(held(&cluster, 0) > KEYS / 2, "all that it has of earlier times");
    cluster.machines[0].sync = (Duration::from_secs(2), Duration::from_secs(2));
    cluster.start(0);
    cluster.settle();
    assert_eq!(held(&cluster, 0), 0);
    for index in 0..KEYS {
        let answer = cluster.operate(index % 4, get(&key(index)));
        assert_eq!(answer, Ok(Answer::Absent), "key {index}");
    }
}
