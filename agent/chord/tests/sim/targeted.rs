//! Situations that have to go well every time, each with its own ring.

use std::time::Duration;

use sky_chord::{
    Answer, Condition, Failure, Key, Operation, Reply, Request, RequestId, Settings, Ticket, Value,
};

use crate::sim::cluster::{Cluster, Step};
use crate::sim::random::Random;
use crate::sim::workload::{Workload, get, list};

fn settings() -> Settings {
    Settings { repair_after: Duration::from_secs(4), ..Settings::default() }
}

fn key(index: usize) -> Key {
    Key::new(&format!("key {index}"))
}

fn put(key: &Key, number: usize, condition: Condition) -> Operation {
    let value = Value { content_type: "text/plain".into(), bytes: number.to_string().into() };
    Operation::Put { key: key.clone(), value, condition }
}

/// Writes keys through all machines in turn.
fn write_keys(cluster: &mut Cluster, count: usize) {
    let machines = cluster.awake();
    for index in 0..count {
        let machine = machines[index % machines.len()];
        let answer = cluster.operate(machine, put(&key(index), index, Condition::Absent));
        assert!(matches!(answer, Ok(Answer::Stored { created: true, .. })), "{index}: {answer:?}");
    }
}

/// Reads them through all machines in turn.
fn read_keys(cluster: &mut Cluster, count: usize) {
    let machines = cluster.awake();
    for index in 0..count {
        let machine = machines[(index + 1) % machines.len()];
        match cluster.operate(machine, get(&key(index))) {
            Ok(Answer::Found { value, .. }) => assert_eq!(value.bytes, index.to_string()),
            other => panic!("key {index} through n{machine}: {other:?}"),
        }
    }
}

#[test]
fn a_ring_of_one_and_of_two() {
    for size in [1, 2] {
        let mut cluster = Cluster::ring(size as u64, settings(), size);
        write_keys(&mut cluster, 20);
        read_keys(&mut cluster, 20);
        let mut expected: Vec<_> = (0..20).map(key).collect();
        expected.sort();
        assert_eq!(list(&mut cluster, 3), expected);
        for machine in cluster.awake() {
            let delete = Operation::Delete { key: key(machine), condition: Condition::Always };
            assert_eq!(cluster.operate(machine, delete.clone()), Ok(Answer::Deleted));
            assert_eq!(cluster.operate(machine, get(&key(machine))), Ok(Answer::Absent));
            assert_eq!(cluster.operate(machine, delete), Ok(Answer::Absent));
        }
    }
}

#[test]
fn a_lone_survivor_of_two_refuses() {
    let mut cluster = Cluster::ring(7, settings(), 2);
    write_keys(&mut cluster, 5);
    cluster.crash(1);
    let answer = cluster.operate(0, get(&key(0)));
    assert!(matches!(answer, Err(Failure::Unavailable(_))), "{answer:?}");
    cluster.start(1);
    cluster.settle();
    read_keys(&mut cluster, 5);
}

#[test]
fn one_crash_of_three_stops_nobody_and_its_disk_catches_up() {
    let mut cluster = Cluster::ring(1, settings(), 3);
    write_keys(&mut cluster, 200);
    cluster.crash(2);
    read_keys(&mut cluster, 200);
    for index in 200..250 {
        let answer = cluster.operate(index % 2, put(&key(index), index, Condition::Absent));
        assert!(matches!(answer, Ok(Answer::Stored { created: true, .. })), "{index}: {answer:?}");
    }
    cluster.start(2);
    cluster.settle();
    read_keys(&mut cluster, 250);
    cluster.crash(0);
    read_keys(&mut cluster, 250);
}

#[test]
fn two_machines_lost_one_after_the_other_lose_nothing() {
    let mut cluster = Cluster::ring(2, settings(), 5);
    write_keys(&mut cluster, 200);
    for victim in [3, 1] {
        cluster.crash(victim);
        cluster.machines[victim].gone = true;
        read_keys(&mut cluster, 200);
        cluster.settle();
    }
    read_keys(&mut cluster, 200);
}

#[test]
fn a_power_cut_of_all_loses_no_acknowledged_write() {
    for seed in 0..5 {
        let mut cluster = Cluster::ring(seed, settings(), 5);
        let mut workload = Workload::new(Random::new(seed), 8, 50);
        workload.think = Duration::ZERO;
        workload.run_for(&mut cluster, Duration::from_secs(2));
        (0..5).for_each(|machine| cluster.crash(machine));
        workload.open = false;
        workload.run_for(&mut cluster, Duration::from_secs(1));
        (0..5).for_each(|machine| cluster.start(machine));
        cluster.settle();
        workload.finish(&mut cluster);
        workload.read_back(&mut cluster);
        workload.oracle.judge();
        assert!(workload.answered > 500, "only {} answers", workload.answered);
    }
}

#[test]
fn a_ring_grows_and_shrinks_under_load() {
    let mut cluster = Cluster::ring(3, settings(), 3);
    write_keys(&mut cluster, 100);
    let mut workload = Workload::new(Random::new(3), 4, 20);
    let mut random = Random::new(33);
    for _ in 3..8 {
        let position = random.id();
        cluster.add(position);
        settle_under_load(&mut cluster, &mut workload);
    }
    for leaver in [0, 5, 2, 7, 4] {
        cluster.leave(leaver);
        settle_under_load(&mut cluster, &mut workload);
    }
    workload.finish(&mut cluster);
    assert_eq!(cluster.expected(), [1, 3, 6]);
    workload.oracle.judge();
    read_keys(&mut cluster, 100);
}

fn settle_under_load(cluster: &mut Cluster, workload: &mut Workload) {
    let end = cluster.now + Duration::from_secs(60);
    let is_leaving =
        |cluster: &Cluster| cluster.machines.iter().any(|machine| machine.leaving && !machine.gone);
    while cluster.now < end {
        let step = workload.step(cluster);
        if step == Step::Sample && !is_leaving(cluster) && cluster.verdict().right {
            return;
        }
    }
    panic!("not right under load: {:#?}", cluster.verdict().problems);
}

#[test]
fn many_creates_of_one_key_have_one_winner() {
    let mut cluster = Cluster::ring(4, settings(), 5);
    for round in 0..10 {
        let tickets: Vec<_> = (0..64)
            .map(|client| {
                let operation = put(&key(round), client, Condition::Absent);
                operate(&mut cluster, client % 5, client as u128 + 1000 * round as u128, operation)
            })
            .collect();
        let answers = replies(&mut cluster, tickets);
        let stored = |answer: &&Reply| {
            matches!(answer, Reply::Operated(Ok(Answer::Stored { created: true, .. })))
        };
        let refused = |answer: &&Reply| {
            matches!(answer, Reply::Operated(Ok(Answer::ConditionFailed { version: Some(_) })))
        };
        assert_eq!(answers.iter().filter(stored).count(), 1, "{answers:?}");
        assert_eq!(answers.iter().filter(refused).count(), 63, "{answers:?}");
    }
}

fn operate(cluster: &mut Cluster, machine: usize, id: u128, operation: Operation) -> Ticket {
    let budget = Duration::from_secs(10);
    cluster.request(
        machine,
        Request::Operate { id: RequestId(id), retry: id > 1 << 64, operation, budget },
    )
}

/// The answers to all of these, in their order.
fn replies(cluster: &mut Cluster, tickets: Vec<Ticket>) -> Vec<Reply> {
    let mut answers = vec![None; tickets.len()];
    let end = cluster.now + Duration::from_secs(15);
    while answers.contains(&None) {
        assert!(cluster.now < end, "not all requests are answered");
        cluster.step();
        for (ticket, reply) in cluster.take_finished() {
            if let Some(at) = tickets.iter().position(|other| *other == ticket) {
                answers[at] = reply;
            }
        }
    }
    answers.into_iter().flatten().collect()
}

#[test]
fn a_request_that_comes_twice_is_applied_once() {
    let mut cluster = Cluster::ring(5, settings(), 5);
    cluster.network.usual.duplication = 0.5;
    let id = 1 << 65;
    let first = put(&key(0), 1, Condition::Always);
    let tickets: Vec<_> = (0..5).map(|m| operate(&mut cluster, m, id, first.clone())).collect();
    let answers = replies(&mut cluster, tickets);
    assert!(answers.windows(2).all(|two| two[0] == two[1]), "{answers:?}");

    let other = cluster.operate(1, put(&key(0), 2, Condition::Always));
    assert!(matches!(other, Ok(Answer::Stored { created: false, .. })), "{other:?}");
    let ticket = operate(&mut cluster, 2, id, first);
    assert_eq!(replies(&mut cluster, vec![ticket])[0], answers[0]);
    match cluster.operate(3, get(&key(0))) {
        Ok(Answer::Found { value, .. }) => assert_eq!(value.bytes, "2"),
        other => panic!("{other:?}"),
    }
    for machine in &cluster.machines {
        assert!(machine.disk.times_done(&key(0), RequestId(id)) <= 1);
    }
}

#[test]
fn a_paused_member_delays_nobody_for_long() {
    let mut cluster = Cluster::ring(6, settings(), 5);
    write_keys(&mut cluster, 50);
    for paused in 0..5 {
        cluster.pause(paused);
        let machines = cluster.awake();
        for index in 0..50 {
            let before = cluster.now;
            let operation = put(&key(index), index, Condition::Exists);
            let answer = cluster.operate(machines[index % machines.len()], operation);
            assert!(matches!(answer, Ok(Answer::Stored { created: false, .. })), "{answer:?}");
            let waited = cluster.now - before;
            assert!(waited < Duration::from_secs(3), "key {index} took {waited:?}");
        }
        cluster.resume(paused);
        cluster.settle();
    }
    read_keys(&mut cluster, 50);
}

#[test]
fn a_minority_refuses_and_a_healed_partition_is_forgotten() {
    let mut cluster = Cluster::ring(8, settings(), 5);
    write_keys(&mut cluster, 30);
    cluster.network.partition(&[0], &[1, 2, 3, 4], true);
    for index in 0..30 {
        let answer = cluster.operate(0, put(&key(index), 99, Condition::Absent));
        let refused = matches!(answer, Err(Failure::Unavailable(_) | Failure::MaybeApplied));
        assert!(refused, "{index}: {answer:?}");
    }
    for index in 0..30 {
        let answer = cluster.operate(1 + index % 4, get(&key(index)));
        assert!(matches!(answer, Ok(Answer::Found { .. })), "{index}: {answer:?}");
    }
    cluster.network.heal();
    cluster.settle();
    read_keys(&mut cluster, 30);
}
