//! Tests of `ring`.

use std::time::Duration;

use super::testnet::{Net, Part, peer, settings};
use crate::config::{NodeId, Peer};
use crate::context::Context;
use crate::message::MemberStatus;
use crate::time::Time;

const NINE: [u64; 9] = [500, 10, 120, 230, 340, 640, 730, 820, 1000];

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

#[test]
fn rings_of_every_small_size_form_when_all_join_at_once() {
    for count in 1..=NINE.len() {
        let mut net = Net::ring(settings(), &NINE[..count]);
        net.is_checked = true;
        net.run(secs(3));
        assert!(net.is_ideal(), "{count} nodes: it stays so");
        assert!(
            net.parts.values().all(|part| {
                part.members.status_of(&part.ctx.me.node) == Some(MemberStatus::Up)
            })
        );
    }
}

#[test]
fn a_crash_is_noticed_within_two_seconds_and_healed() {
    let mut net = Net::ring(settings(), &NINE);
    net.is_checked = true;
    // Without a connection that breaks: a machine that vanished.
    net.paused.insert(peer(340).node);
    net.run(secs(2));
    let suspecting = |net: &mut Net| net.part(230).members.is_suspect(&peer(340).node);
    assert!(suspecting(&mut net));
    net.paused.clear();
    net.kill(340);
    net.until("the ring is ideal again", secs(5), Net::is_ideal);
    // Two neighbours at once, found by refused connections.
    net.kill(640);
    net.kill(730);
    let took = net.until("the ring is ideal again", secs(5), Net::is_ideal);
    assert!(took < secs(4), "{took:?}");
}

#[test]
fn the_invariant_holds_under_joins_and_crashes() {
    for seed in 0..6 {
        let mut rng = Context::new(Time::default(), peer(0), 1, settings(), seed).rng;
        let mut net = Net::ring(settings(), &NINE);
        net.is_checked = true;
        for _ in 0..12 {
            let grow = net.parts.len() < 7 || (net.parts.len() < 14 && rng.below(2) == 0);
            let at = rng.below(net.parts.len());
            let somebody = net.parts.values().nth(at).map(|part| part.ctx.me.clone()).unwrap();
            if grow {
                let new = peer(rng.below(1024) as u64);
                if !net.parts.contains_key(&new.node) {
                    let incarnation = rng.next();
                    let node = NodeId { incarnation, ..new.node };
                    net.add(Peer { node, ..new }, Some(somebody));
                }
            } else {
                net.parts.remove(&somebody.node);
            }
            net.run(Duration::from_millis(rng.below(4000) as u64 + 2500));
        }
        net.until("the ring is ideal", secs(10), Net::is_ideal);
    }
}

#[test]
fn all_nodes_resume_after_a_power_cut() {
    let mut net = Net::ring(settings(), &NINE);
    net.run(secs(2));
    let before = net.states();
    let mut parts: Vec<_> = NINE.iter().map(|position| net.kill(*position)).collect();
    net.run(secs(60));
    // One after the other, so that the first ones find nobody for a while.
    while let Some(part) = parts.pop() {
        net.restart(part);
        net.run(secs(4));
    }
    net.until("the ring is ideal", secs(10), Net::is_ideal);
    assert_eq!(net.states(), before);
    let part = net.part(10);
    assert!(part.members.known().count() == NINE.len());
}

#[test]
fn the_halves_of_a_partition_become_one_ring_again() {
    let mut net = Net::ring(settings(), &NINE);
    net.cut_off.extend([500, 120, 640, 820].map(|position| peer(position).node));
    net.run(secs(30));
    let half: Vec<_> = net.part(500).ring.successors().iter().map(|peer| peer.node).collect();
    assert_eq!(half, [640, 820, 120].map(|position| peer(position).node));
    net.cut_off.clear();
    net.until("one ring", secs(20), Net::is_ideal);
}

#[test]
fn a_node_that_was_cut_off_alone_comes_back() {
    let mut net = Net::ring(settings(), &NINE);
    net.cut_off.insert(peer(230).node);
    net.run(secs(30));
    assert!(net.part(230).ring.is_joined());
    assert!(!net.part(230).ring.successors().is_empty(), "it does not take itself to be alone");
    net.cut_off.clear();
    net.until("one ring", secs(20), Net::is_ideal);
}

#[test]
fn a_node_that_was_away_long_finds_the_others_at_their_places() {
    let mut net = Net::ring(settings(), &[10, 120, 230, 340]);
    net.run(secs(2));
    let away = net.kill(120);
    net.until("the ring is ideal", secs(6), Net::is_ideal);
    for position in [130, 140, 150, 160, 170] {
        net.add(peer(position), Some(peer(10)));
    }
    net.until("the ring is ideal", secs(10), Net::is_ideal);
    net.restart(away);
    net.until("the ring is ideal", secs(10), Net::is_ideal);
}

#[test]
fn a_newcomer_takes_the_place_of_a_lost_disk() {
    let mut net = Net::ring(settings(), &[10, 120, 230, 340]);
    net.kill(120);
    let lost = peer(120);
    let new = Peer { node: NodeId { incarnation: 2, ..lost.node }, ..lost.clone() };
    net.add(new.clone(), Some(peer(10)));
    net.until("the ring is ideal", secs(10), Net::is_ideal);
    net.until("the old one counts as gone", secs(5), |net| {
        net.parts.values().all(|part| {
            part.members.status_of(&lost.node) == Some(MemberStatus::Left)
                && part.members.status_of(&new.node) == Some(MemberStatus::Up)
        })
    });
}

#[test]
fn leaving_ends_with_one_node_that_is_alone() {
    let mut net = Net::ring(settings(), &[10, 120, 230]);
    for position in [120, 230] {
        let node = peer(position).node;
        net.act(node, |part| {
            part.members.set_status(MemberStatus::Left);
            part.ring.leave(&mut part.ctx);
        });
        net.run(secs(2));
        net.kill(position);
        net.until("the ring is ideal", secs(5), Net::is_ideal);
    }
    let alone = net.part(10);
    assert!(alone.ring.is_joined() && alone.ring.predecessor().is_none());
}

#[test]
fn a_lone_survivor_waits_for_the_other() {
    let mut net = Net::ring(settings(), &[10, 120]);
    net.run(secs(2));
    let other = net.kill(120);
    net.run(secs(20));
    assert_eq!(net.part(10).ring.successors(), [peer(120)]);
    net.restart(other);
    net.until("the ring is ideal", secs(5), Net::is_ideal);
}

/// All others lost their disks and came back empty where they were, or never come back and new ones are
/// started elsewhere: nobody in the survivor's list will ever answer again.
#[test]
fn a_lone_survivor_lets_newcomers_in() {
    let again = |position| {
        let lost = peer(position);
        Peer { node: NodeId { incarnation: 2, ..lost.node }, ..lost }
    };
    for newcomers in [
        vec![again(120)],
        vec![again(120), again(230)],
        vec![again(230)],
        vec![peer(300)],
        vec![peer(50), peer(150), peer(300)],
    ] {
        for lost in [&[120][..], &[120, 230]] {
            let ring: Vec<_> = [10].iter().chain(lost).copied().collect();
            let mut net = Net::ring(settings(), &ring);
            for position in lost {
                net.kill(*position);
            }
            for newcomer in &newcomers {
                net.add(newcomer.clone(), Some(peer(10)));
            }
            let what = format!("the ring is ideal without {lost:?} and with {newcomers:?}");
            net.until(&what, secs(15), Net::is_ideal);
            let is_up =
                |part: &Part| part.members.status_of(&part.ctx.me.node) == Some(MemberStatus::Up);
            assert!(net.parts.values().all(is_up), "{what}");
        }
    }
}

/// The others only seemed to be lost when the newcomer was let in.
#[test]
fn who_was_passed_over_for_a_newcomer_comes_back() {
    let mut net = Net::ring(settings(), &[10, 120, 230]);
    let away = [net.kill(120), net.kill(230)];
    net.add(peer(300), Some(peer(10)));
    net.until("the ring is ideal", secs(15), Net::is_ideal);
    away.into_iter().for_each(|part| net.restart(part));
    net.until("the ring is ideal", secs(15), Net::is_ideal);
}

/// Crashes, restarts, pauses, partitions and joins on top of each other, beyond what the model of the
/// papers allows: the ring must come together once it is left in peace.
#[test]
fn whatever_happened_the_ring_comes_together() {
    for seed in 0..3 {
        let mut rng = Context::new(Time::default(), peer(0), 1, settings(), seed).rng;
        let mut net = Net::ring(settings(), &NINE);
        let mut dead = Vec::new();
        for _ in 0..25 {
            let nodes: Vec<_> = net.parts.keys().copied().collect();
            let node = nodes[rng.below(nodes.len())];
            match rng.below(6) {
                0 if nodes.len() > 2 => dead.extend(net.parts.remove(&node)),
                1 if !dead.is_empty() => {
                    let part = dead.swap_remove(rng.below(dead.len()));
                    net.restart(part);
                }
                2 => drop(net.paused.insert(node)),
                3 => drop(net.paused.pop_first()),
                4 => {
                    net.cut_off.clear();
                    net.cut_off.extend(nodes.iter().filter(|_| rng.below(3) == 0));
                }
                _ => {
                    let new = peer(rng.below(1024) as u64);
                    let is_taken = |part: &Part| part.ctx.me.node == new.node;
                    if !net.parts.values().chain(&dead).any(is_taken) && nodes.len() < 14 {
                        let contact = net.parts[&node].ctx.me.clone();
                        net.add(new, Some(contact));
                    }
                }
            }
            net.run(Duration::from_millis(rng.below(5000) as u64));
        }
        net.paused.clear();
        net.cut_off.clear();
        dead.into_iter().for_each(|part| net.restart(part));
        net.until(&format!("seed {seed}: one ring"), secs(40), Net::is_ideal);
        net.run(secs(3));
        assert!(net.is_ideal(), "seed {seed}: it stays so");
    }
}

#[test]
fn a_newcomer_whose_contact_died_asks_another_member() {
    let mut net = Net::ring(settings(), &[10, 120, 230]);
    net.add(peer(340), Some(peer(777)));
    net.act(peer(340).node, |part| part.members.introduce(&mut part.ctx, &peer(10)));
    net.until("the ring is ideal", secs(10), Net::is_ideal);
}
