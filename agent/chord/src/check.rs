//! Whether the ring is right: one definition for the simulator, `apply`, `status` and the dashboard.

#[cfg(test)]
mod tests;
mod zave;

use std::collections::{BTreeMap, BTreeSet};

use crate::config::{NodeId, Peer};
use crate::id::Id;
use crate::view::{Phase, RangeView, View};
pub use zave::{principals, zave_invariant};

/// The verdict over the reports of all agents.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Verdict {
    /// The pointers form one ordered ring, every point has one range with its full members, all of
    /// them caught up.
    pub right: bool,
    /// Every range has its full, caught-up members.
    pub replicated: bool,
    /// What is not right, a sentence each, naming the nodes.
    pub problems: Vec<String>,
}

/// Judges the reports of the nodes that should form the ring: each with its view, or `None` if it did
/// not answer.
///
/// `replicas` is how many members a range has and `successors` how long a successor list is, when the
/// ring has as many nodes.
pub fn check(reports: &[(Peer, Option<View>)], replicas: usize, successors: usize) -> Verdict {
    let (nodes, mut problems) = ring_members(reports);
    problems.extend(pointers(&nodes, successors));
    let mut ranges = Ranges { nodes: &nodes, replicas, problems: Vec::new() };
    let misplaced = ranges.judge();
    let replicated = ranges.problems.is_empty() && !nodes.is_empty();
    problems.append(&mut ranges.problems);
    problems.extend(misplaced);
    Verdict { right: problems.is_empty() && replicated, replicated, problems }
}

/// The nodes that report to be members of the ring, in order; and what keeps the others out.
fn ring_members(reports: &[(Peer, Option<View>)]) -> (Vec<&View>, Vec<String>) {
    let mut problems = Vec::new();
    let mut joined: BTreeMap<&str, Vec<&View>> = BTreeMap::new();
    for (peer, view) in reports {
        let Some(view) = view else {
            problems.push(format!("{} does not answer.", name(peer)));
            continue;
        };
        let me = name(&view.me);
        match (&view.ring, view.phase) {
            (None, _) | (_, Phase::Waiting) => {
                problems.push(format!("{me} does not belong to a ring yet."));
            }
            (_, Phase::Joining) => problems.push(format!("{me} is still joining the ring.")),
            (_, Phase::Drained) => {
                problems.push(format!("{me} has left the ring and can be stopped."));
            }
            (Some(ring), Phase::Up | Phase::Leaving) => joined.entry(ring).or_default().push(view),
        }
    }
    let Some(ring) = joined.iter().max_by_key(|(_, views)| views.len()).map(|(ring, _)| *ring)
    else {
        problems.push("No node is a member of a ring.".to_owned());
        return (Vec::new(), problems);
    };
    let mut nodes = joined.remove(ring).unwrap_or_default();
    for (other, view) in
        joined.iter().flat_map(|(ring, views)| views.iter().map(move |v| (ring, v)))
    {
        let me = name(&view.me);
        problems.push(format!("{me} belongs to another ring: {other} instead of {ring}."));
    }
    nodes.sort_by_key(|view| view.me.node);
    nodes.dedup_by_key(|view| view.me.node);
    for pair in nodes.windows(2) {
        if pair[0].me.node.position == pair[1].me.node.position {
            let (one, two) = (name(&pair[0].me), name(&pair[1].me));
            problems.push(format!("{one} and {two} have the same position."));
        }
    }
    (nodes, problems)
}

/// Compares predecessors and successor lists with the ring that these nodes should form.
fn pointers(nodes: &[&View], successors: usize) -> Vec<String> {
    let mut problems = Vec::new();
    let count = nodes.len();
    let ids = |peers: &[Peer]| peers.iter().map(|peer| peer.node).collect::<Vec<_>>();
    for (i, view) in nodes.iter().enumerate() {
        let me = name(&view.me);
        let others = successors.min(count - 1);
        let list: Vec<Peer> =
            (1..=others).map(|step| nodes[(i + step) % count].me.clone()).collect();
        let first = |peers: &[Peer]| peers.first().map(|peer| peer.node);
        if first(&view.successors) != first(&list) {
            let (is, should) = (named(view.successors.first()), named(list.first()));
            problems.push(format!("The successor of {me} is {is}, but should be {should}."));
        } else if ids(&view.successors) != ids(&list) {
            let (is, should) = (names(&view.successors), names(&list));
            problems.push(format!("The successor list of {me} is {is}, but should be {should}."));
        }
        let before = (count > 1).then(|| &nodes[(i + count - 1) % count].me);
        let alone_with_itself = before.is_none()
            && view.predecessor.as_ref().is_some_and(|peer| peer.node == view.me.node);
        if view.predecessor.as_ref().map(|peer| peer.node) != before.map(|peer| peer.node)
            && !alone_with_itself
        {
            let (is, should) = (named(view.predecessor.as_ref()), named(before));
            problems.push(format!("The predecessor of {me} is {is}, but should be {should}."));
        }
    }
    problems
}

/// The ranges as the members of the ring report them.
struct Ranges<'a> {
    /// In the order of the circle.
    nodes: &'a [&'a View],
    replicas: usize,
    /// What is wrong with the members of ranges or with their data.
    problems: Vec<String>,
}

/// A range as one node reports it.
type Report<'a> = (&'a Peer, &'a RangeView);

impl<'a> Ranges<'a> {
    /// Looks at all ranges. Returns whose members are enough and complete, but not the right nodes.
    fn judge(&mut self) -> Vec<String> {
        if self.nodes.is_empty() {
            return Vec::new();
        }
        let current = self.current();
        let mut misplaced = Vec::new();
        for range in current {
            self.judge_members(range);
            self.judge_data(range);
            misplaced.extend(self.misplaced(range));
            misplaced.extend(self.unmerged(range));
        }
        misplaced
    }

    fn reports(&self) -> impl Iterator<Item = Report<'a>> + use<'a> {
        let nodes = self.nodes;
        nodes.iter().flat_map(|view| view.ranges.iter().map(|range| (&view.me, range)))
    }

    /// For every point the range with the highest epoch that somebody reports. Notes points without a
    /// range, and different ranges of one epoch that share a point.
    fn current(&mut self) -> Vec<&'a RangeView> {
        // Between two neighbouring ends of ranges nothing changes: the later end stands for the arc.
        let ends: BTreeSet<Id> =
            self.reports().flat_map(|(_, range)| [range.lo, range.hi]).collect();
        if ends.is_empty() {
            self.problems.push("No node answers for any range of the circle.".to_owned());
        }
        let mut current: BTreeMap<(Id, u64), &RangeView> = BTreeMap::new();
        let mut clashes = BTreeSet::new();
        let before = ends.iter().next_back().into_iter().chain(&ends);
        for (start, end) in before.zip(&ends) {
            let over = |range: &RangeView| end.is_in_arc(range.lo, range.hi);
            let covering: Vec<Report<'a>> =
                self.reports().filter(|(_, range)| over(range)).collect();
            let Some((first, range)) =
                covering.iter().max_by_key(|(_, range)| range.epoch).copied()
            else {
                self.problems.push(format!("No node answers for ({start:?}, {end:?}]."));
                continue;
            };
            for (other, differing) in covering {
                if differing.epoch == range.epoch && !is_same(differing, range) {
                    clashes.insert((
                        (range.hi, differing.hi),
                        format!(
                            "{} and {} disagree about epoch {} of {}: the other says {} with {}.",
                            name(first),
                            name(other),
                            range.epoch,
                            arc(range),
                            arc(differing),
                            names(&differing.members),
                        ),
                    ));
                }
            }
            current.insert((range.hi, range.epoch), range);
        }
        self.problems.extend(clashes.into_iter().map(|(_, problem)| problem));
        current.into_values().collect()
    }

    /// Whether the range has enough members and each of them reports it.
    fn judge_members(&mut self, range: &RangeView) {
        let wanted = self.replicas.min(self.nodes.len());
        if range.members.len() != wanted {
            let (is, members) = (range.members.len(), names(&range.members));
            let arc = arc(range);
            self.problems.push(format!("{arc} has {is} members ({members}) instead of {wanted}."));
        }
        for member in &range.members {
            let Some(view) = self.nodes.iter().find(|view| view.me.node == member.node) else {
                let (member, arc) = (name(member), arc(range));
                self.problems.push(format!("{member}, a member of {arc}, is not in the ring."));
                continue;
            };
            if !view
                .ranges
                .iter()
                .any(|theirs| theirs.epoch == range.epoch && is_same(theirs, range))
            {
                let (member, arc, epoch) = (name(member), arc(range), range.epoch);
                self.problems
                    .push(format!("{member} has not taken up epoch {epoch} of {arc} yet."));
            }
        }
    }

    /// Whether one member leads the range, and knows that all of them have all its data.
    fn judge_data(&mut self, range: &RangeView) {
        let leaders: Vec<Report<'a>> = self
            .reports()
            .filter(|(_, theirs)| {
                theirs.leads && theirs.epoch == range.epoch && is_same(theirs, range)
            })
            .collect();
        let arc = arc(range);
        let &[(leader, theirs)] = leaders.as_slice() else {
            self.problems.push(if leaders.is_empty() {
                format!("Nobody leads {arc}.")
            } else {
                let leaders: Vec<Peer> = leaders.iter().map(|(peer, _)| (*peer).clone()).collect();
                format!("More than one node leads {arc}: {}.", names(&leaders))
            });
            return;
        };
        if theirs.unswept || !theirs.prev.is_empty() {
            let leader = name(leader);
            self.problems.push(format!("{leader} is still bringing {arc} to its new members."));
        }
        for node in &theirs.lagging {
            let member = theirs.members.iter().find(|peer| peer.node == *node);
            let member = member.map_or_else(|| format!("{node:?}"), name);
            self.problems.push(format!("{member} may lack writes of {arc}."));
        }
    }

    /// Whether a range ends with no node, because the node there has gone.
    fn unmerged(&self, range: &RangeView) -> Option<String> {
        let is_node = self.nodes.iter().any(|view| view.me.node.position == range.hi);
        let arc = arc(range);
        (!is_node).then(|| format!("{arc} has not been merged with the range after it yet."))
    }

    /// Whether the members are the first node at or after the range's end, and those around it.
    fn misplaced(&self, range: &RangeView) -> Option<String> {
        let count = self.nodes.len();
        let at = self.nodes.partition_point(|view| view.me.node.position < range.hi) % count;
        let wanted = self.replicas.min(count);
        // The owner, then by turns one before and one after it.
        let around = (0..wanted).map(|i| match i % 2 {
            0 => (at + i / 2) % count,
            _ => (at + count - i.div_ceil(2)) % count,
        });
        let mut should: Vec<Peer> = around.map(|i| self.nodes[i].me.clone()).collect();
        let ids = |peers: &[Peer]| peers.iter().map(|peer| peer.node).collect::<BTreeSet<NodeId>>();
        if range.members.len() != wanted || ids(&should) == ids(&range.members) {
            return None;
        }
        should.sort();
        let (arc, is, should) = (arc(range), names(&range.members), names(&should));
        Some(format!("The members of {arc} are {is}, but should be {should}."))
    }
}

/// Whether two reports mean the same arc with the same members.
fn is_same(one: &RangeView, two: &RangeView) -> bool {
    let ids =
        |range: &RangeView| range.members.iter().map(|peer| peer.node).collect::<BTreeSet<_>>();
    (one.lo, one.hi) == (two.lo, two.hi) && ids(one) == ids(two)
}

fn arc(range: &RangeView) -> String {
    format!("the range ({:?}, {:?}]", range.lo, range.hi)
}

fn name(peer: &Peer) -> String {
    format!("{:?} ({})", peer.node, peer.address)
}

fn named(peer: Option<&Peer>) -> String {
    peer.map_or_else(|| "nobody".to_owned(), name)
}

fn names(peers: &[Peer]) -> String {
    match peers {
        [] => "nobody".to_owned(),
        peers => peers.iter().map(name).collect::<Vec<_>>().join(", "),
    }
}
