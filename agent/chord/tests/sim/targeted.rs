//! Situations that have to go well every time, each with its own ring.

use std::time::Duration;

use sky_chord::{
    Answer, Ballot, Condition, Failure, Key, Notice, Operation, Reply, Request, RequestId,
    Settings, Ticket, Value,
};

use crate::sim::cluster::{Cluster, Step, even_position};
use crate::sim::random::Random;
use crate::sim::replicas::assert_alike;
use crate::sim::watch::Range;
use crate::sim::workload::{Workload, get, list};

pub(super) fn settings() -> Settings {
    Settings { repair_after: Duration::from_secs(4), ..Settings::default() }
}

pub(super) fn key(index: usize) -> Key {
    Key::new(&format!("key {index}"))
}

pub(super) fn put(key: &Key, number: usize, condition: Condition) -> Operation {
    let value = Value { content_type: "t".into(), bytes: number.to_string().into(), ttl: None };
    Operation::Put { key: key.clone(), value, condition }
}

/// Writes keys through all machines in turn.
pub(super) fn write_keys(cluster: &mut Cluster, count: usize) {
    let machines = cluster.awake();
    for index in 0..count {
        let machine = machines[index % machines.len()];
        let answer = cluster.operate(machine, put(&key(index), index, Condition::Absent));
        assert!(matches!(answer, Ok(Answer::Stored { created: true, .. })), "{index}: {answer:?}");
    }
}

/// Reads them through all machines in turn.
pub(super) fn read_keys(cluster: &mut Cluster, count: usize) {
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

/// A node whose disk is full cannot sweep, not even together with another; it must not try so hard that
/// it does nothing else, and notices nothing any more.
#[test]
fn a_full_disk_holds_up_a_repair_until_it_has_room() {
    let mut cluster = Cluster::ring(3, settings(), 3);
    write_keys(&mut cluster, 20);
    for machine in [0, 1] {
        cluster.fill(machine, true);
    }
    cluster.crash(2);
    cluster.machines[2].gone = true;
    cluster.run_for(Duration::from_secs(15));
    let has_two = |range: &Range| {
        range.members.len() == 2 && range.prev.as_ref().is_some_and(|prev| prev.len() == 3)
    };
    assert!(cluster.configs().iter().any(has_two), "nothing had to be swept");
    read_keys(&mut cluster, 20);
    let refused = cluster.operate(0, put(&key(0), 1, Condition::Always));
    assert_eq!(refused, Err(Failure::DiskFull));
    for machine in [0, 1] {
        cluster.fill(machine, false);
    }
    cluster.settle();
    read_keys(&mut cluster, 20);
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
        Request::Operate { id: RequestId::given(id), retry: id > 1 << 64, operation, budget },
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
        assert!(machine.disk.times_done(&key(0), RequestId::given(id)) <= 1);
    }
}

#[test]
fn a_promise_that_a_crash_left_behind_keeps_no_copy_old() {
    let mut cluster = Cluster::ring(14, settings(), 3);
    write_keys(&mut cluster, 20);
    for owner in 0..3 {
        cluster.crash(owner);
        let node = cluster.machines[owner].peer.node;
        let configs = cluster.configs();
        let owned = configs.iter().find(|range| range.hi == node.position).expect("its range");
        for key in (0..20).map(key).filter(|key| owned.covers(key.hash())) {
            cluster.machines[(owner + 1) % 3].disk.tamper(&key, |record| {
                record.promised = Ballot { round: 1 << 20, node, ..record.promised };
            });
        }
        cluster.start(owner);
        cluster.settle();
        for index in 0..20 {
            cluster.operate(owner, put(&key(index), owner, Condition::Always)).expect("stored");
        }
        cluster.run_for(Duration::from_secs(5));
        assert_alike(&cluster);
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

#[test]
fn joins_and_leaves_leave_one_range_a_node() {
    for seed in 0..3 {
        let mut cluster = Cluster::ring(seed, settings(), 3);
        write_keys(&mut cluster, 100);
        let mut random = Random::new(seed);
        let mut workload = Workload::new(Random::new(seed + 1), 3, 10);
        for _ in 0..12 {
            let position = random.id();
            cluster.add(position);
            settle_under_load(&mut cluster, &mut workload);
            let leaver = random.pick(&cluster.expected()).expect("a node");
            cluster.leave(leaver);
            settle_under_load(&mut cluster, &mut workload);
        }
        workload.finish(&mut cluster);
        workload.oracle.judge();
        read_keys(&mut cluster, 100);
        let (ranges, nodes) = (cluster.configs().len(), cluster.expected().len());
        assert_eq!((ranges, nodes), (3, 3), "{:#?}", cluster.configs());
    }
}

/// The bytes that all nodes sent to each other about data until the ring was right again.
fn bytes_to_settle(cluster: &mut Cluster) -> usize {
    cluster.data_bytes = Some(0);
    cluster.settle();
    cluster.data_bytes.take().unwrap_or_default()
}

#[test]
fn only_what_differs_travels() {
    let mut cluster = Cluster::ring(9, settings(), 3);
    let put = |index: usize, number: usize| {
        let bytes = format!("{number:0400}").into();
        let value = Value { content_type: "".into(), bytes, ttl: None };
        Operation::Put { key: key(index), value, condition: Condition::Always }
    };
    for index in 0..2000 {
        cluster.operate(index % 3, put(index, index)).expect("it is stored");
    }
    let all: usize = cluster.machines[1].disk.bytes();
    for victim in 0..3 {
        cluster.crash(victim);
        let others = cluster.awake();
        for index in 0..20 {
            let change = put(100 * index, 5000 + index);
            cluster.operate(others[index % 2], change).expect("it is stored");
        }
        cluster.start(victim);
        let moved = bytes_to_settle(&mut cluster);
        assert!(moved * 20 < all, "{moved} bytes moved, of {all}");
        let disks = cluster.machines.iter().map(|machine| machine.disk.accepted());
        let disks: Vec<_> = disks.collect();
        assert!(disks.windows(2).all(|two| two[0] == two[1]), "the disks differ");
    }
}

/// Who kept a range before forgets it when told that the sweep is done: the new member must know by then.
#[test]
fn a_sweep_is_done_when_its_end_is_on_disk() {
    for seed in 0..8 {
        let single = Settings { replicas: 1, ..settings() };
        let mut cluster = Cluster::ring(seed, single, 1);
        write_keys(&mut cluster, 20);
        let newcomer = cluster.add(even_position(1, 2));
        let is_swept = |machine: usize, notice: &Notice| {
            machine == newcomer && matches!(notice, Notice::SweepDone { .. })
        };
        assert!(hears(&mut cluster, 20, is_swept), "there was no sweep");
        cluster.crash(newcomer);
        cluster.run_for(Duration::from_secs(1));
        cluster.start(newcomer);
        cluster.settle();
        read_keys(&mut cluster, 20);
    }
}

/// A source of a sweep that refuses is asked again: it may come back with its disk.
#[test]
fn a_sweep_goes_on_when_its_source_has_been_repaired() {
    for seed in 0..8 {
        let single = Settings { replicas: 1, ..settings() };
        let mut cluster = Cluster::ring(seed, single, 1);
        write_keys(&mut cluster, 20);
        let newcomer = cluster.add(even_position(1, 2));
        let begins = |machine: usize, notice: &Notice| {
            machine == newcomer && matches!(notice, Notice::SweepStarted { .. })
        };
        assert!(hears(&mut cluster, 20, begins), "there is no sweep");
        cluster.crash(newcomer);
        cluster.machines[0].disk.break_down();
        for index in 20..40 {
            operate(&mut cluster, 0, index as u128, put(&key(index), index, Condition::Always));
        }
        let is_broken = |machine: usize, notice: &Notice| {
            machine == 0 && matches!(notice, Notice::StoreBroken { .. })
        };
        assert!(hears(&mut cluster, 5, is_broken), "its store does not fail");
        cluster.start(newcomer);
        cluster.run_for(Duration::from_secs(2));
        cluster.crash(0);
        cluster.start(0);
        cluster.settle();
        read_keys(&mut cluster, 20);
    }
}

/// A node that leaves may have been made a member without having heard of it, and the other member would
/// wait for it for ever.
#[test]
fn a_node_does_not_leave_a_range_that_it_has_not_heard_of() {
    let mut cluster = Cluster::ring(13, settings(), 1);
    write_keys(&mut cluster, 20);
    let newcomer = cluster.add(even_position(1, 2));
    let is_ready = |machine: usize, notice: &Notice| {
        machine == newcomer && matches!(notice, Notice::Adopted { epoch: 1, .. })
    };
    assert!(hears(&mut cluster, 20, is_ready), "it is not asked whether it is ready");
    cluster.network.partition(&[0], &[newcomer], false);
    let names_it = |cluster: &mut Cluster| cluster.configs().iter().any(|c| c.members.len() == 2);
    assert!(cluster.run_until(Duration::from_secs(5), names_it), "it is not made a member");
    cluster.leave(newcomer);
    cluster.run_for(Duration::from_secs(5));
    cluster.network.heal();
    let is_gone = |cluster: &mut Cluster| cluster.machines[newcomer].gone;
    assert!(cluster.run_until(Duration::from_secs(30), is_gone), "it does not leave");
    cluster.settle();
    read_keys(&mut cluster, 20);
}

/// The clocks of agents differ, and a key remembers the last requests only: a request that its client
/// names is carried out all the same, through whichever agent.
#[test]
fn a_named_request_needs_no_clock() {
    for seed in 0..4 {
        let mut cluster = Cluster::ring(seed, settings(), 3);
        for ahead in 0..3 {
            cluster.machines[ahead].wall = 1_000_000 * (3 - ahead as i64);
        }
        for index in 0..20 {
            let answer = cluster.operate(0, put(&key(0), index, Condition::Always));
            assert!(matches!(answer, Ok(Answer::Stored { .. })), "{answer:?}");
        }
        for machine in 0..3 {
            let named = 1 << 65 | machine as u128;
            let write = put(&key(0), 100 + machine, Condition::Exists);
            let ticket = operate(&mut cluster, machine, named, write);
            let answers = replies(&mut cluster, vec![ticket]);
            assert!(
                matches!(answers[..], [Reply::Operated(Ok(Answer::Stored { created: false, .. }))]),
                "{machine}: {answers:?}"
            );
        }
    }
}

/// Whether a notice like this one comes within so many seconds.
pub(super) fn hears(
    cluster: &mut Cluster,
    seconds: u64,
    wanted: impl Fn(usize, &Notice) -> bool,
) -> bool {
    let end = cluster.now + Duration::from_secs(seconds);
    while cluster.now < end {
        cluster.step();
        if std::mem::take(&mut cluster.notices).iter().any(|(m, notice)| wanted(*m, notice)) {
            return true;
        }
    }
    false
}

/// Deletes reached one member and were never answered: a key that the list leaves out is not there later.
#[test]
fn a_list_leaves_out_no_key_whose_delete_was_given_up() {
    for seed in 0..20 {
        let mut cluster = Cluster::ring(seed, settings(), 3);
        write_keys(&mut cluster, 12);
        for machine in 0..3 {
            // Each owner knows from its last change that it may propose the next one at once, and keeps what
            // it accepts to itself.
            let others: Vec<usize> = (0..3).filter(|other| *other != machine).collect();
            cluster.network.partition(&[machine], &others, true);
            for index in 0..12 {
                let operation = Operation::Delete { key: key(index), condition: Condition::Always };
                let id = RequestId::at(cluster.now.as_micros(), index as u64);
                let budget = Duration::from_millis(300);
                cluster.request(machine, Request::Operate { id, retry: false, operation, budget });
            }
            cluster.run_for(Duration::from_millis(400));
            cluster.network.heal();
            let listed = list(&mut cluster, 5);
            for index in 0..12 {
                let answer = cluster.operate(others[0], get(&key(index)));
                let is_left_out = !listed.contains(&key(index));
                let is_found = matches!(answer, Ok(Answer::Found { .. }));
                assert!(!(is_left_out && is_found), "seed {seed}, n{machine}, key {index}");
            }
        }
    }
}
