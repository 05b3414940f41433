//! What configuration a range should have, judged from the nodes that are known to live.

use std::collections::{BTreeMap, BTreeSet};

use super::World;
use crate::Id;
use crate::config::{Config, NodeId, Peer, Proposal};
use crate::event::Records;
use crate::message::MemberStatus;

/// The change this range needs, or none.
pub(super) fn wanted<R: Records>(w: &World<'_, R>, config: &Config) -> Option<Proposal> {
    let nodes = nodes_for(w, config);
    let replicas = w.ctx.settings.replicas;
    // Who is silent is not gone: where more are missing than a range can spare, waiting is better than
    // trusting few nodes.
    if nodes.len() + replicas / 2 < replicas.min(w.members.count()) {
        return None;
    }
    let next = |lo: Id, hi: Id, members: Vec<Peer>| {
        let keeps = config.same_members(&members);
        let prev = if keeps { Vec::new() } else { config.members.clone() };
        let tie_breaker = tie_breaker(w.ctx.settings.tie_breaker, &members);
        Config { lo, hi, epoch: config.epoch + 1, members, prev, forced: false, tie_breaker }
    };
    let inside: Vec<_> = nodes
        .iter()
        .map(|peer| peer.node.position)
        .filter(|position| position.is_between(config.lo, config.hi))
        .filter(|position| is_up(w, &nodes, *position))
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect();
    if !inside.is_empty() {
        let mut ordered = inside;
        ordered.sort_by_key(|position| config.lo.distance_to(*position));
        let middle = ordered[ordered.len() / 2];
        let first = next(config.lo, middle, members_around(&nodes, middle, replicas));
        let second = next(middle, config.hi, members_around(&nodes, config.hi, replicas));
        return Some(Proposal::Next(vec![first, second]));
    }
    let members = members_around(&nodes, config.hi, replicas);
    if members.is_empty() {
        return None;
    }
    let next = next(config.lo, config.hi, members);
    let is_needed = !config.same_members(&next.members) || config.tie_breaker != next.tie_breaker;
    is_needed.then(|| Proposal::Next(vec![next]))
}

/// The node at this position, if it is one of two members: they alone need one.
fn tie_breaker(position: Option<Id>, members: &[Peer]) -> Option<NodeId> {
    let is_it = |peer: &&Peer| Some(peer.node.position) == position;
    members.iter().find(is_it).filter(|_| members.len() == 2).map(|peer| peer.node)
}

/// Two neighbouring ranges as one.
pub(super) fn merged(left: &Config, right: &Config) -> Proposal {
    let config = Config {
        lo: left.lo,
        hi: right.hi,
        epoch: left.epoch.max(right.epoch) + 1,
        members: right.members.clone(),
        prev: Vec::new(),
        forced: false,
        tie_breaker: right.tie_breaker,
    };
    Proposal::Merge { slots: [left.tag(), right.tag()], config }
}

/// Whether there is a node at the end of this range, or may be soon, that should own it.
pub(super) fn is_kept_apart<R: Records>(w: &World<'_, R>, config: &Config) -> bool {
    nodes_for(w, config).iter().any(|peer| peer.node.position == config.hi)
}

/// Whether a majority of the new members is known to live. Otherwise a member that is silent, but not
/// for long enough to be replaced, could take the range with it.
pub(super) fn can_go_on<R: Records>(w: &World<'_, R>, proposal: &Proposal) -> bool {
    let is_live = |config: &Config| config.is_quorum(|node| w.members.is_proven(w.ctx, node));
    proposal.configs().iter().all(is_live)
}

/// The nodes to choose members from: those that are up by their own word to this process (a table from
/// before a power cut names nodes that are gone), and present members that may come back soon.
fn nodes_for<R: Records>(w: &World<'_, R>, config: &Config) -> Vec<Peer> {
    let mut nodes: BTreeMap<NodeId, Peer> = w
        .members
        .live()
        .filter(|peer| w.members.status_of(&peer.node) == Some(MemberStatus::Up))
        .filter(|peer| w.members.is_proven(w.ctx, &peer.node))
        .map(|peer| (peer.node, peer.clone()))
        .collect();
    for peer in &config.members {
        let is_gone = matches!(
            w.members.status_of(&peer.node),
            Some(MemberStatus::Left | MemberStatus::Leaving)
        );
        let silence = w.members.suspected_for(w.ctx.now, &peer.node).unwrap_or_default();
        if !is_gone && silence < w.ctx.settings.repair_after {
            nodes.entry(peer.node).or_insert_with(|| w.members.current(peer));
        }
    }
    nodes.into_values().collect()
}

fn is_up<R: Records>(w: &World<'_, R>, nodes: &[Peer], position: Id) -> bool {
    nodes.iter().any(|peer| {
        peer.node.position == position
            && !w.members.is_suspect(&peer.node)
            && w.members.status_of(&peer.node) == Some(MemberStatus::Up)
    })
}

/// The members a range that ends here should have: the first node at or after its end, its predecessor,
/// its successor, and so on outwards. `nodes` are in ring order.
fn members_around(nodes: &[Peer], hi: Id, replicas: usize) -> Vec<Peer> {
    let count = replicas.min(nodes.len());
    let owner = nodes.partition_point(|peer| peer.node.position < hi);
    let at = |step: isize| {
        let len = nodes.len() as isize;
        nodes[(owner as isize + step).rem_euclid(len) as usize].clone()
    };
    let outwards = (0..count as isize).map(|i| if i % 2 == 1 { -(i + 1) / 2 } else { i / 2 });
    outwards.map(at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(positions: &[u64]) -> Vec<Peer> {
        positions
            .iter()
            .map(|p| Peer {
                node: NodeId { position: Id::small(*p), incarnation: 1 },
                address: format!("n{p}").into(),
            })
            .collect()
    }

    fn chosen(positions: &[u64], hi: u64, replicas: usize) -> Vec<Id> {
        members_around(&ring(positions), Id::small(hi), replicas)
            .iter()
            .map(|peer| peer.node.position)
            .collect()
    }

    #[test]
    fn members_are_owner_predecessor_and_successor() {
        let id = Id::small;
        assert_eq!(chosen(&[1, 4, 6], 4, 3), [id(4), id(1), id(6)]);
        assert_eq!(chosen(&[1, 4, 6, 9], 5, 3), [id(6), id(4), id(9)]);
        assert_eq!(chosen(&[1, 4, 6, 9], 10, 3), [id(1), id(9), id(4)]);
        assert_eq!(chosen(&[1, 4, 6, 9, 12], 6, 5), [id(6), id(4), id(9), id(1), id(12)]);
    }

    #[test]
    fn small_rings_have_fewer_members() {
        let id = Id::small;
        assert_eq!(chosen(&[5], 5, 3), [id(5)]);
        assert_eq!(chosen(&[5, 8], 5, 3), [id(5), id(8)]);
        assert!(chosen(&[], 5, 3).is_empty());
    }
}
