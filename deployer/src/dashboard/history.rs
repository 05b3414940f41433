//! What the ring was like before: the states that differ from the one before in more than numbers, so that
//! the page can go back to any of them, also one that is opened later.

use std::collections::VecDeque;
use std::sync::Arc;

use sky_chord::Id;

use super::aggregate::{NodeReport, Range, RingState};

/// How many reports of nodes are kept in all: some megabytes as JSON, and hours of an ordinary ring.
const REPORTS: usize = 4000;

/// The states, oldest first.
#[derive(Debug, Default)]
pub(super) struct History {
    states: VecDeque<Arc<RingState>>,
    reports: usize,
}

impl History {
    /// Keeps a state, unless it looks like the last one; the oldest go when there are too many.
    pub(super) fn take(&mut self, state: &Arc<RingState>) {
        if self.states.back().is_some_and(|last| look_alike(last, state)) {
            return;
        }
        self.reports += size(state);
        self.states.push_back(state.clone());
        while self.reports > REPORTS && self.states.len() > 1 {
            self.reports -= self.states.pop_front().map_or(0, |state| size(&state));
        }
    }

    /// All of them.
    pub(super) fn states(&self) -> Vec<Arc<RingState>> {
        self.states.iter().cloned().collect()
    }
}

/// How many reports a state counts as: one without nodes takes room too.
fn size(state: &RingState) -> usize {
    state.nodes.len().max(1)
}

fn look_alike(one: &RingState, other: &RingState) -> bool {
    let verdict = |state: &RingState| (state.verdict.right, state.verdict.replicated);
    // Clouds put another request id into each of their errors.
    let is_blind = |state: &RingState| state.source_error.is_some();
    one.ring == other.ring
        && is_blind(one) == is_blind(other)
        && verdict(one) == verdict(other)
        && one.nodes.iter().map(look_of_node).eq(other.nodes.iter().map(look_of_node))
        && under_way(one).eq(under_way(other))
        && one.ranges.iter().map(look_of_range).eq(other.ranges.iter().map(look_of_range))
}

fn look_of_node(node: &NodeReport) -> impl PartialEq + '_ {
    let suspecting: Vec<_> = node.suspected_by.iter().map(|(id, _)| id).collect();
    (
        (node.id, &node.name, node.state, node.runs, node.expected, node.answering),
        (node.phase, node.predecessor, &node.successors, &node.fingers, suspecting),
    )
}

/// The transfers under way.
fn under_way(state: &RingState) -> impl Iterator<Item = (Id, Id, u64)> + '_ {
    let transfers = state.transfers.iter().filter(|transfer| transfer.ended_ms.is_none());
    transfers.map(|transfer| (transfer.by, transfer.hi, transfer.epoch))
}

fn look_of_range(range: &Range) -> impl PartialEq + '_ {
    (
        (range.lo, range.hi, range.epoch, &range.members, &range.prev),
        (range.unswept, &range.lagging, range.available),
    )
}
