//! Those that are left of a range: of two members, and by an operator's order.

use std::time::Duration;

use sky_chord::{
    Answer, Condition, Config, Failure, NodeId, Operation, Peer, RangeTag, Reply, Request, Settings,
};

use crate::sim::cluster::{Cluster, even_position};
use crate::sim::watch::Range;
use crate::sim::workload::get;
use crate::targeted::{key, put, read_keys, settings, write_keys};

/// Machines that never come back.
fn destroy(cluster: &mut Cluster, machines: &[usize]) {
    for &machine in machines {
        cluster.crash(machine);
        cluster.machines[machine].gone = true;
    }
}

fn node(cluster: &Cluster, machine: usize) -> NodeId {
    cluster.machines[machine].peer.node
}

/// The ranges that lack a majority, each with the machines that still hold data of it.
fn stuck(cluster: &Cluster) -> Vec<(RangeTag, Vec<usize>)> {
    let all = cluster.configs().into_iter().map(|range| (range_members(cluster, &range), range));
    all.filter(|(survivors, range)| survivors.len() * 2 <= range.members.len())
        .map(|(survivors, range)| (tag(&range), survivors))
        .collect()
}

/// The members that are up.
fn range_members(cluster: &Cluster, range: &Range) -> Vec<usize> {
    let keeps = |machine: &usize| {
        let node = node(cluster, *machine);
        range.members.iter().any(|peer: &Peer| peer.node == node)
    };
    cluster.awake().into_iter().filter(keeps).collect()
}

fn tag(range: &Range) -> RangeTag {
    RangeTag { hi: range.hi, epoch: range.epoch }
}

fn order(cluster: &Cluster, at: RangeTag, survivors: &[usize]) -> Request {
    let survivors = survivors.iter().map(|machine| node(cluster, *machine)).collect();
    Request::Force { at, survivors }
}

fn force(
    cluster: &mut Cluster,
    by: usize,
    at: RangeTag,
    survivors: &[usize],
) -> Result<Config, String> {
    let request = order(cluster, at, survivors);
    match cluster.ask(by, request) {
        Reply::Forced(outcome) => outcome.map(|config| *config),
        other => panic!("not the answer to an order: {other:?}"),
    }
}

#[test]
fn survivors_go_on_when_a_majority_is_gone_for_good() {
    let mut cluster = Cluster::ring(1, settings(), 5);
    write_keys(&mut cluster, 100);
    cluster.run_for(Duration::from_secs(2));
    destroy(&mut cluster, &[1, 2]);
    cluster.run_for(Duration::from_secs(15));
    let stuck_ranges = stuck(&cluster);
    assert!(!stuck_ranges.is_empty());
    let answers: Vec<_> = (0..100).map(|index| cluster.operate(0, get(&key(index)))).collect();
    assert!(answers.iter().any(|answer| matches!(answer, Err(Failure::Unavailable(_)))));
    // A list comes as far as the first of them.
    let list = |after| Operation::List { after, prefix: "".into(), limit: 1000 };
    let Ok(Answer::Listed { next: Some(next), .. }) = cluster.operate(0, list(None)) else {
        panic!("the range at the beginning can be listed")
    };
    let rest = cluster.operate(0, list(Some(next)));
    assert!(matches!(rest, Err(Failure::Unavailable(_))), "{rest:?}");
    for (at, survivors) in stuck_ranges {
        let forced = force(&mut cluster, survivors[0], at, &survivors).unwrap();
        assert!(forced.forced && forced.epoch > at.epoch, "{forced:?}");
        let again = force(&mut cluster, survivors[0], at, &survivors);
        assert!(again.unwrap_err().starts_with("the range is in epoch"));
    }
    cluster.settle();
    read_keys(&mut cluster, 100);
    write_keys_again(&mut cluster, 100);
    // The nodes that the survivors took in hold everything: one of those may go as well.
    destroy(&mut cluster, &[3]);
    cluster.settle();
    read_keys(&mut cluster, 100);
}

/// All others lost their disks and were started again before anybody did something about it.
#[test]
fn those_who_come_back_empty_are_let_in_by_the_survivor() {
    let tie_breaker = Some(even_position(0, 2));
    for (size, settings) in [
        (2, settings()),
        (2, Settings { tie_breaker, ..settings() }),
        (3, settings()),
        (4, Settings { replicas: 5, ..settings() }),
    ] {
        let mut cluster = Cluster::ring(5, settings, size);
        write_keys(&mut cluster, 50);
        cluster.run_for(Duration::from_secs(2));
        for machine in 1..size {
            cluster.crash(machine);
            cluster.lose_disk(machine);
        }
        for machine in 1..size {
            cluster.start(machine);
        }
        cluster.run_for(Duration::from_secs(15));
        assert_eq!(cluster.joined().len(), size, "all are in the ring, data or not");
        for (at, survivors) in stuck(&cluster) {
            assert_eq!(survivors, [0]);
            force(&mut cluster, 0, at, &survivors).unwrap();
        }
        cluster.settle();
        read_keys(&mut cluster, 50);
        write_keys_again(&mut cluster, 50);
    }
}

fn write_keys_again(cluster: &mut Cluster, count: usize) {
    let machines = cluster.awake();
    for index in 0..count {
        let machine = machines[index % machines.len()];
        let answer = cluster.operate(machine, put(&key(index), index, Condition::Exists));
        assert!(matches!(answer, Ok(Answer::Stored { created: false, .. })), "{index}: {answer:?}");
    }
}

#[test]
fn a_range_that_can_go_on_by_itself_is_not_forced() {
    let mut cluster = Cluster::ring(2, settings(), 5);
    write_keys(&mut cluster, 10);
    let range = cluster.configs().remove(0);
    let (at, all) = (tag(&range), cluster.awake());
    let members = range_members(&cluster, &range);
    let stranger = all.iter().copied().find(|machine| !members.contains(machine)).unwrap();
    let (first, second) = (members[0], members[1]);

    let refused = |cluster: &mut Cluster, at, survivors: &[usize], why: &str| {
        let reason = force(cluster, first, at, survivors).unwrap_err();
        assert!(reason.contains(why), "{reason}");
    };
    refused(&mut cluster, at, &[first], "is not gone");
    let before = RangeTag { epoch: at.epoch - 1, ..at };
    refused(&mut cluster, before, &[first], "the range is in epoch");
    refused(&mut cluster, at, &[second], "not one of the survivors");
    refused(&mut cluster, at, &[first, stranger], "has no data of the range");
    destroy(&mut cluster, &members[2..]);
    cluster.run_for(Duration::from_secs(3));
    refused(&mut cluster, at, &[first, second], "go on by themselves");
    cluster.settle();
    read_keys(&mut cluster, 10);
}

/// Two operators who do not know of each other: both ask at once, each another survivor.
#[test]
fn of_two_orders_one_is_carried_out() {
    for seed in 1..20 {
        let settings = Settings { replicas: 5, ..settings() };
        let mut cluster = Cluster::ring(seed, settings, 5);
        write_keys(&mut cluster, 20);
        cluster.run_for(Duration::from_secs(2));
        destroy(&mut cluster, &[0, 2, 4]);
        cluster.run_for(Duration::from_secs(5));
        let (at, survivors) = stuck(&cluster).remove(0);
        assert_eq!(survivors, [1, 3]);
        let request = order(&cluster, at, &survivors);
        let tickets: Vec<_> =
            survivors.iter().map(|machine| cluster.request(*machine, request.clone())).collect();
        cluster.run_for(Duration::from_secs(9));
        let mut epochs = Vec::new();
        for (ticket, reply) in cluster.take_finished() {
            if let (true, Some(Reply::Forced(outcome))) = (tickets.contains(&ticket), reply) {
                epochs.push(outcome.unwrap().epoch);
            }
        }
        assert_eq!(epochs.len(), 2, "seed {seed}");
        assert_eq!(epochs[0], epochs[1], "seed {seed}");
        for (at, survivors) in stuck(&cluster) {
            force(&mut cluster, survivors[0], at, &survivors).unwrap();
        }
        read_keys(&mut cluster, 20);
    }
}

fn ring_of_two(seed: u64) -> Cluster {
    let settings = Settings { tie_breaker: Some(even_position(0, 2)), ..settings() };
    Cluster::ring(seed, settings, 2)
}

#[test]
fn the_tie_breaker_of_two_goes_on_alone() {
    let mut cluster = ring_of_two(3);
    write_keys(&mut cluster, 50);
    cluster.crash(1);
    let waits = cluster.operate(0, get(&key(0)));
    cluster.run_for(Duration::from_secs(10));
    assert!(matches!(waits, Err(Failure::Unavailable(_))), "{waits:?}");
    read_keys(&mut cluster, 50);
    write_keys_again(&mut cluster, 50);
    cluster.start(1);
    cluster.settle();
    read_keys(&mut cluster, 50);
    // What was written meanwhile is on both again.
    cluster.crash(0);
    let alone = cluster.operate(1, get(&key(0)));
    assert!(matches!(alone, Err(Failure::Unavailable(_))), "{alone:?}");
    cluster.run_for(Duration::from_secs(20));
    let alone = cluster.operate(1, get(&key(0)));
    assert!(matches!(alone, Err(Failure::Unavailable(_))), "{alone:?}");
    cluster.start(0);
    cluster.settle();
    read_keys(&mut cluster, 50);
}

/// Both are there and cannot hear each other: only one of them answers, and the other learns what it missed.
#[test]
fn of_two_that_are_cut_apart_one_goes_on() {
    let mut cluster = ring_of_two(4);
    write_keys(&mut cluster, 20);
    cluster.network.partition(&[0], &[1], true);
    cluster.run_for(Duration::from_secs(15));
    for index in 0..20 {
        let other = cluster.operate(1, get(&key(index)));
        assert!(matches!(other, Err(Failure::Unavailable(_))), "{other:?}");
        let answer = cluster.operate(0, put(&key(index), index + 100, Condition::Exists));
        assert!(matches!(answer, Ok(Answer::Stored { created: false, .. })), "{answer:?}");
    }
    cluster.network.heal();
    cluster.settle();
    for index in 0..20 {
        match cluster.operate(1, get(&key(index))) {
            Ok(Answer::Found { value, .. }) => assert_eq!(value.bytes, (index + 100).to_string()),
            other => panic!("{other:?}"),
        }
    }
}
