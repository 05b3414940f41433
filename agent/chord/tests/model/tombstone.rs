//! The collection of tombstones: when a node may forget that a key was deleted.
//!
//! A tombstone is the value "absent" under the ballot of the deletion. A node that forgets it, promise
//! and all, is as if it had never seen the key.

use std::fmt;

use crate::scenario::Scenario;
use crate::state::{Collection, KeyRecord, NODES, Nodes, State, name};
use crate::system;

/// A step of the collection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// `node` says in its epoch which tombstone it holds.
    Report { node: usize },
    /// `node` forgets the tombstone.
    Drop { node: usize },
}

impl Scenario {
    /// Adds the steps of the collection that can happen now.
    pub(crate) fn tombstone_steps(&self, state: &State, steps: &mut Vec<system::Step>) {
        let mut can = |step| steps.push(system::Step::Tombstone(step));
        for node in (0..NODES).filter(|node| self.may_collect && state.is_up(*node)) {
            if self.can_report(state, node) {
                can(Step::Report { node });
            }
            if self.can_drop(state, node) {
                can(Step::Drop { node });
            }
        }
    }

    /// Does a step of the collection; false if it changes nothing.
    pub(crate) fn tombstone_step(&self, state: &mut State, step: Step) -> bool {
        match step {
            Step::Report { node } => self.report(state, node),
            Step::Drop { node } => {
                state.nodes[node].keys[0] = KeyRecord::default();
                true
            }
        }
    }

    /// Reports count in an epoch that needs no previous members.
    fn can_report(&self, state: &State, place: usize) -> bool {
        let node = &state.nodes[place];
        let accepted = node.keys[0].accepted;
        let holds = accepted.ballot > 0 && accepted.register.value == 0;
        let complete = node.config[0].is_some_and(|config| {
            self.is_swept(state, config) && self.config(config).members.contains(place)
        });
        holds && complete
    }

    /// Reports of one tombstone in one epoch add up; another one begins again.
    fn report(&self, state: &mut State, place: usize) -> bool {
        let before = state.collection;
        let node = &state.nodes[place];
        let ballot = node.keys[0].accepted.ballot;
        let config = node.config[0].unwrap_or_default();
        if (before.ballot, before.config) != (ballot, config) {
            state.collection = Collection { ballot, config, holders: Nodes::NONE };
        }
        state.collection.holders |= Nodes::one(place);
        state.collection != before
    }

    fn can_drop(&self, state: &State, place: usize) -> bool {
        let node = &state.nodes[place];
        let Collection { ballot, config, holders } = state.collection;
        let config = self.config(config);
        let all_hold = if self.rules.all_hold_tombstone {
            config.members.is_within(holders)
        } else {
            holders.is_majority_of(config.members)
        };
        let outlived =
            if self.rules.drop_awaits_epoch_after_report { config.epoch } else { ballot >> 4 };
        let later_epoch = self.epoch_of(node, 0) > outlived || !self.rules.drop_awaits_epoch;
        // A promise of an epoch that this node has left binds nobody any more.
        let KeyRecord { promised, accepted } = node.keys[0];
        let unpromised = promised >> 4 <= config.epoch || !self.rules.drop_heeds_promise;
        let holds = ballot > 0 && accepted.ballot == ballot;
        holds && all_hold && later_epoch && unpromised
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Report { node } => write!(f, "{} reports the tombstone", name(node)),
            Self::Drop { node } => write!(f, "{} forgets the tombstone", name(node)),
        }
    }
}
