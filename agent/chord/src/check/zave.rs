//! The inductive invariant of Zave's Chord, for a simulator that can see all nodes at once.

use std::collections::BTreeMap;

use crate::config::{NodeId, Peer};
use crate::id::Id;

/// One member: who it is, its predecessor and its successor list.
type State = (NodeId, Option<Peer>, Vec<Peer>);

/// Checks that the states of all live members are states of a correct Chord ring (Zave, TSE 2017):
/// successor lists are ordered, without duplicates and without the node itself; every member has a
/// live successor; the members that reach themselves by live successors form one ordered ring, and
/// all others reach it; with more than `r` + 1 members, at least `r` + 1 of them are [`principals`], if the
/// ring once had as many: the paper presupposes that.
///
/// A member whose list is empty is its own successor, which only a small ring may have.
///
/// # Errors
/// A sentence that says what does not hold, and where.
pub fn zave_invariant(states: &[State], r: usize, had_principals: bool) -> Result<(), String> {
    let lists = lists(states);
    for (node, list) in &lists {
        is_ordered(*node, list)?;
    }
    let best = best_successors(&lists)?;
    one_ordered_ring(&best)?;
    if lists.len() <= r + 1 {
        return Ok(());
    }
    if let Some((node, _)) = lists.iter().find(|(_, list)| list.is_empty()) {
        return Err(format!("{node:?} takes itself to be alone among {}", lists.len()));
    }
    let principals = count_principals(&lists);
    if had_principals && principals < r + 1 {
        return Err(format!("of {} members only {principals} are principals", lists.len()));
    }
    Ok(())
}

/// How many members are principals: skipped by nobody's list.
pub fn principals(states: &[State]) -> usize {
    count_principals(&lists(states))
}

fn count_principals(lists: &BTreeMap<NodeId, &[Peer]>) -> usize {
    lists.keys().filter(|node| !is_skipped(node.position, lists)).count()
}

fn lists(states: &[State]) -> BTreeMap<NodeId, &[Peer]> {
    states.iter().map(|(node, _, list)| (*node, list.as_slice())).collect()
}

fn is_ordered(node: NodeId, list: &[Peer]) -> Result<(), String> {
    let mut last = node.position;
    for peer in list {
        if !peer.node.position.is_between(last, node.position) {
            return Err(format!("the list of {node:?} is not ordered: {list:?}"));
        }
        last = peer.node.position;
    }
    Ok(())
}

/// The first live entry of each list.
fn best_successors(lists: &BTreeMap<NodeId, &[Peer]>) -> Result<BTreeMap<NodeId, NodeId>, String> {
    let best = |(node, list): (&NodeId, &&[Peer])| {
        let live = list.iter().map(|peer| peer.node).find(|other| lists.contains_key(other));
        match live.or(list.is_empty().then_some(*node)) {
            Some(next) => Ok((*node, next)),
            None => Err(format!("nobody in the list of {node:?} lives: {list:?}")),
        }
    };
    lists.iter().map(best).collect()
}

fn one_ordered_ring(best: &BTreeMap<NodeId, NodeId>) -> Result<(), String> {
    let Some(first) = best.keys().next() else { return Ok(()) };
    // After as many steps as there are members, whoever is reached is in a ring.
    let end = best.keys().fold(*first, |node, _| best[&node]);
    let mut ring = vec![end];
    let mut next = best[&end];
    while next != end {
        ring.push(next);
        next = best[&next];
    }
    for (node, next) in ring.iter().map(|node| (node, best[node])) {
        let (from, to) = (node.position, next.position);
        if let Some(between) = ring.iter().find(|other| other.position.is_between(from, to)) {
            return Err(format!("{between:?} lies between {node:?} and its successor {next:?}"));
        }
    }
    for node in best.keys() {
        let reached = best.keys().fold(*node, |node, _| best[&node]);
        if !ring.contains(&reached) {
            return Err(format!("{node:?} leads to another ring than {end:?}"));
        }
    }
    Ok(())
}

/// Whether some member's list, with the member before it, passes over this position.
fn is_skipped(position: Id, lists: &BTreeMap<NodeId, &[Peer]>) -> bool {
    lists.iter().any(|(node, list)| {
        let from = std::iter::once(node.position).chain(list.iter().map(|peer| peer.node.position));
        let to = list.iter().map(|peer| peer.node.position);
        from.zip(to).any(|(from, to)| position.is_between(from, to))
    })
}
