//! Values that are kept for a time only.

use std::time::Duration;

use sky_chord::{Answer, Condition, Key, Operation, Settings, Ttl};

use crate::sim::cluster::{Cluster, even_position};
use crate::sim::replicas::assert_alike;
use crate::sim::workload::get;
use crate::targeted::{key, put, settings};

/// How long after its time a value may still be there when nothing is wrong.
const SOON: Duration = Duration::from_secs(3);

fn put_for(key: &Key, number: usize, time: Duration) -> Operation {
    let mut operation = put(key, number, Condition::Always);
    if let Operation::Put { value, .. } = &mut operation {
        value.ttl = Some(Ttl::new(time));
    }
    operation
}

/// What is left of the value's time, as an answer says; none if there is no value.
fn left(cluster: &mut Cluster, key: &Key) -> Option<Duration> {
    let machine = cluster.awake()[0];
    match cluster.operate(machine, get(key)) {
        Ok(Answer::Found { value, .. }) => {
            Some(value.ttl.map_or(Duration::MAX, |ttl| Duration::from_millis(ttl.left_ms)))
        }
        Ok(Answer::Absent) => None,
        other => panic!("{other:?}"),
    }
}

fn write(cluster: &mut Cluster, operation: Operation) {
    let machine = cluster.awake()[0];
    let answer = cluster.operate(machine, operation);
    assert!(matches!(answer, Ok(Answer::Stored { .. })), "{answer:?}");
}

#[test]
fn a_value_goes_when_its_time_is_over_and_not_before() {
    let mut cluster = Cluster::ring(1, settings(), 5);
    let [short, long, ever, anew] = [0, 1, 2, 3].map(key);
    let seconds = Duration::from_secs;
    write(&mut cluster, put_for(&short, 0, seconds(4)));
    write(&mut cluster, put_for(&long, 1, seconds(40)));
    write(&mut cluster, put(&ever, 2, Condition::Always));
    write(&mut cluster, put_for(&anew, 3, seconds(4)));
    write(&mut cluster, put(&anew, 4, Condition::Always));
    cluster.run_for(seconds(3));
    let rest = left(&mut cluster, &short).expect("it is still there");
    assert!(rest <= seconds(1), "{rest:?}");
    cluster.run_for(seconds(1) + SOON);
    assert_eq!(left(&mut cluster, &short), None);
    assert!(left(&mut cluster, &long).is_some_and(|rest| rest < seconds(34)));
    assert_eq!(left(&mut cluster, &ever), Some(Duration::MAX));
    assert_eq!(left(&mut cluster, &anew), Some(Duration::MAX), "it was written anew, for ever");
    // It can be created again, as any key that is not there.
    let machine = cluster.awake()[0];
    let created = cluster.operate(machine, put(&short, 5, Condition::Absent));
    assert!(matches!(created, Ok(Answer::Stored { created: true, .. })), "{created:?}");
    cluster.run_for(seconds(60));
    assert_eq!(left(&mut cluster, &short), Some(Duration::MAX));
    assert_eq!(left(&mut cluster, &long), None);
    assert_alike(&cluster);
}

#[test]
fn time_goes_on_while_nodes_are_down() {
    let mut cluster = Cluster::ring(2, settings(), 3);
    write(&mut cluster, put_for(&key(0), 0, Duration::from_secs(60)));
    cluster.settle();
    for machine in 0..3 {
        cluster.crash(machine);
    }
    cluster.run_for(Duration::from_secs(50));
    for machine in 0..3 {
        cluster.start(machine);
    }
    cluster.run_for(Duration::from_secs(5));
    assert!(left(&mut cluster, &key(0)).is_some());
    cluster.run_for(Duration::from_secs(5) + SOON);
    assert_eq!(left(&mut cluster, &key(0)), None);
}

#[test]
fn one_clock_that_runs_ahead_ends_nothing() {
    for ahead in 0..3 {
        let mut cluster = Cluster::ring(3, settings(), 3);
        for index in 0..20 {
            write(&mut cluster, put_for(&key(index), index, Duration::from_secs(60)));
        }
        cluster.leap(ahead, Duration::from_secs(3600));
        // Whoever asks first, and whoever brings the values to the one that has lost them.
        let other = (ahead + 1) % 3;
        cluster.crash(other);
        cluster.lose_disk(other);
        cluster.start(other);
        let position = even_position(other * 2 + 1, 6);
        cluster.add(position);
        cluster.run_for(Duration::from_secs(40));
        for index in 0..20 {
            assert!(left(&mut cluster, &key(index)).is_some(), "{index}, n{ahead} is ahead");
        }
    }
}

/// Who was away for so short that nobody takes its place is brought what it missed.
#[test]
fn a_clock_that_runs_ahead_is_not_believed_by_who_was_away() {
    for ahead in 0..3 {
        let mut cluster = Cluster::ring(6, settings(), 3);
        let other = (ahead + 1) % 3;
        cluster.crash(other);
        for index in 0..20 {
            write(&mut cluster, put_for(&key(index), index, Duration::from_secs(60)));
        }
        cluster.leap(ahead, Duration::from_secs(3600));
        cluster.start(other);
        cluster.run_for(Duration::from_secs(40));
        for index in 0..20 {
            assert!(left(&mut cluster, &key(index)).is_some(), "{index}, n{ahead} is ahead");
        }
        cluster.run_for(Duration::from_secs(60));
        for index in 0..20 {
            assert_eq!(left(&mut cluster, &key(index)), None, "{index}, n{ahead} is ahead");
        }
        assert_alike(&cluster);
    }
}

#[test]
fn a_clock_that_stands_still_keeps_nothing() {
    let mut cluster = Cluster::ring(4, settings(), 3);
    for index in 0..20 {
        write(&mut cluster, put_for(&key(index), index, Duration::from_secs(10)));
    }
    // Started again, it shows an hour ago: as good as standing still.
    cluster.crash(0);
    cluster.machines[0].wall = -3_600_000_000;
    cluster.start(0);
    cluster.run_for(Duration::from_secs(10) + SOON + Duration::from_secs(5));
    for index in 0..20 {
        assert_eq!(left(&mut cluster, &key(index)), None, "{index}");
    }
}

#[test]
fn time_is_not_counted_anew_by_members_that_come() {
    let settings = Settings { repair_after: Duration::from_secs(2), ..settings() };
    let mut cluster = Cluster::ring(5, settings, 3);
    for index in 0..20 {
        write(&mut cluster, put_for(&key(index), index, Duration::from_secs(60)));
    }
    cluster.run_for(Duration::from_secs(20));
    for index in 0..3 {
        cluster.add(even_position(index * 2 + 1, 6));
        cluster.settle();
    }
    for machine in 0..3 {
        cluster.leave(machine);
        cluster.settle();
    }
    let passed = Duration::from_micros(cluster.now.as_micros());
    assert!(passed < Duration::from_secs(50), "all has moved in time: {passed:?}");
    assert!(left(&mut cluster, &key(0)).is_some());
    cluster.run_for(Duration::from_secs(64).saturating_sub(passed) + SOON);
    for index in 0..20 {
        assert_eq!(left(&mut cluster, &key(index)), None, "{index}");
    }
}

#[test]
fn many_values_go_together() {
    let mut cluster = Cluster::ring(6, settings(), 4);
    let count = 3000;
    for index in 0..count {
        write(&mut cluster, put_for(&key(index), index, Duration::from_secs(60)));
    }
    cluster.crash(1);
    let written = Duration::from_micros(cluster.now.as_micros());
    cluster.run_for(Duration::from_secs(60) + written);
    cluster.start(1);
    cluster.settle();
    for index in (0..count).step_by(7) {
        assert_eq!(left(&mut cluster, &key(index)), None, "{index}");
    }
    cluster.run_for(Duration::from_secs(10));
    assert_alike(&cluster);
}
