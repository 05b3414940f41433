//! Tests of `lookup`.

use std::time::Duration;

use super::*;
use crate::ring::testnet::{Net, peer, settings};
use crate::settings::Settings;

/// Twenty nodes, by no rule.
fn positions() -> Vec<u64> {
    (0..20u64).map(|i| (i * i * 37 + i * 11 + 5) % 1024).collect()
}

fn without_cache() -> Settings {
    Settings { use_member_cache: false, successors: 2, ..settings() }
}

/// A ring whose fingers have all been looked up.
fn ring(settings: Settings) -> Net {
    let mut net = Net::ring(settings, &positions());
    net.run(Duration::from_secs(12));
    net
}

fn owner(net: &Net, target: u64) -> NodeId {
    let mut nodes = net.parts.keys();
    let found = nodes.clone().find(|node| node.position >= Id::small(target));
    found.or(nodes.next()).copied().unwrap()
}

/// Looks `target` up at a node, and lets time pass until that ends.
#[track_caller]
fn look_up(net: &mut Net, from: NodeId, target: u64) -> Result<Found, Failure> {
    net.act(from, |part| part.look_up(Id::small(target)));
    net.until("the lookup ends", Duration::from_secs(6), |net| !net.parts[&from].done.is_empty());
    net.parts.get_mut(&from).unwrap().done.remove(0).result
}

#[test]
fn fingers_lead_to_the_right_owner() {
    let mut net = ring(without_cache());
    let nodes: Vec<_> = net.parts.keys().copied().collect();
    for part in net.parts.values() {
        let right: Vec<_> =
            nodes.iter().map(|node| part.members.peer(node).unwrap().clone()).collect();
        let ideal = Fingers::ideal(settings().space, part.ctx.me.node.position, &right);
        assert_eq!(part.fingers.list(), ideal.list(), "fingers of {:?}", part.ctx.me);
    }
    let mut longest = 0;
    for (i, target) in (0..1024).step_by(13).enumerate() {
        let found = look_up(&mut net, nodes[i % nodes.len()], target).unwrap();
        assert_eq!(found.owner.node, owner(&net, target));
        assert_eq!(found.owner, found.successors[0]);
        assert!(found.hops.iter().all(|hop| hop.answered && !hop.elapsed.is_zero()));
        let before = found.predecessor.node.position;
        assert!(Id::small(target).is_in_arc(before, found.owner.node.position));
        longest = longest.max(found.hops.len());
    }
    assert!((2..=6).contains(&longest), "twenty nodes need some hops, but few: {longest}");
}

#[test]
fn the_member_table_makes_it_one_hop() {
    let mut net = ring(settings());
    let nodes: Vec<_> = net.parts.keys().copied().collect();
    for (i, target) in (0..1024).step_by(13).enumerate() {
        let found = look_up(&mut net, nodes[i % nodes.len()], target).unwrap();
        assert_eq!(found.owner.node, owner(&net, target));
        assert!(found.hops.len() <= 1, "{:?}", found.hops);
    }
}

#[test]
fn the_next_candidate_is_asked_when_one_does_not_answer() {
    let mut net = ring(without_cache());
    let asking = net.parts.keys().next().copied().unwrap();
    // The silent node is the first hop of this lookup.
    let target = 900;
    let silent = look_up(&mut net, asking, target).unwrap().hops[0].peer.node;
    net.paused.insert(silent);
    let found = look_up(&mut net, asking, target).unwrap();
    assert_eq!(found.owner.node, owner(&net, target));
    assert_eq!(found.hops[0].peer.node, silent);
    assert!(!found.hops[0].answered && found.hops.last().unwrap().answered);
    let waited = found.hops[0].elapsed;
    assert!(waited >= Duration::from_millis(100) && waited <= Duration::from_secs(1));
}

#[test]
fn a_lookup_ends_in_time_when_nobody_answers() {
    let mut net = ring(settings());
    let asking = net.parts.keys().next().copied().unwrap();
    net.paused.extend(net.parts.keys().filter(|node| **node != asking));
    let begin = net.now;
    let failure = look_up(&mut net, asking, 900).unwrap_err();
    assert!(matches!(failure, Failure::Unavailable(_)), "{failure:?}");
    assert!(net.now.since(begin) <= PATIENCE);
}

#[test]
fn a_lookup_at_a_node_outside_the_ring_fails_at_once() {
    let mut net = Net::new(settings());
    net.add(peer(10), Some(peer(500)));
    net.act(peer(10).node, |part| part.look_up(Id::small(3)));
    assert!(net.part(10).done[0].result.is_err());
}

#[test]
fn candidates_that_do_not_come_nearer_are_not_asked() {
    let mut ctx = Context::new(Time::default(), peer(10), 1, settings(), 1);
    let members = Membership::new(&ctx, None);
    let mut lookups = Lookups::default();
    lookups.start_at(&mut ctx, LookupPurpose::Join, Id::small(500), &peer(100), &members);
    let candidates = vec![peer(100), peer(90), peer(500), peer(600), peer(10)];
    let step = Body::Step { next: NextHop::Closer { candidates } };
    lookups.on_answer(&mut ctx, LookupId(1), step, &members);
    assert!(lookups.take_done().unwrap().result.is_err());
    let empty = Body::Step { next: NextHop::Found { successors: Vec::new() } };
    lookups.start_at(&mut ctx, LookupPurpose::Join, Id::small(500), &peer(100), &members);
    lookups.on_answer(&mut ctx, LookupId(2), empty, &members);
    assert!(lookups.take_done().unwrap().result.is_err(), "an empty answer is no answer");
}
