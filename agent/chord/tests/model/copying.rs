//! Copies between nodes: anti-entropy, and what a leader sends to a member that missed something.
//!
//! A copy is an accept request that comes late: it carries what the sender has accepted, under the ballot
//! it was accepted with, in an earlier epoch perhaps, and names the epoch that the sender is in now.

use crate::scenario::Scenario;
use crate::state::{LateCopy, POINTS, State};

impl Scenario {
    /// A copy that arrives as soon as it is sent. The sender may be a node that only was a member: its
    /// record is as good.
    pub(crate) fn copy(&self, state: &mut State, from: usize, to: usize) -> bool {
        let source = state.nodes[from];
        let mut changed = false;
        for point in 0..POINTS {
            if let Some(config) = source.config[point] {
                let accepted = source.keys[point].accepted;
                changed |= self.store(state, to, point, LateCopy { config, accepted });
            }
        }
        changed
    }

    /// What `from` can send of its key at point 0.
    pub(crate) fn copy_of(&self, state: &State, from: usize) -> Option<LateCopy> {
        let accepted = state.nodes[from].keys[0].accepted;
        let config = state.nodes[from].config[0]?;
        (accepted.ballot > 0).then_some(LateCopy { config, accepted })
    }

    /// The copy that was sent arrives.
    pub(crate) fn late_copy(&self, state: &mut State, to: usize) -> bool {
        state.late_copy.is_some_and(|copy| self.store(state, to, 0, copy))
    }

    /// A member takes a copy of its own epoch, if it is newer than what it has and no promise forbids it.
    fn store(&self, state: &mut State, to: usize, point: usize, copy: LateCopy) -> bool {
        let LateCopy { config, accepted } = copy;
        let node = &mut state.nodes[to];
        let is_member = self.config(config).members.contains(to);
        let record = &mut node.keys[point];
        let held_back = record.promised > accepted.ballot && self.rules.copy_heeds_promise;
        let is_older = accepted.ballot <= record.accepted.ballot;
        if node.config[point] != Some(config) || !is_member || held_back || is_older {
            return false;
        }
        record.accepted = accepted;
        record.promised = record.promised.max(accepted.ballot);
        true
    }
}
