//! The whole system as the checker sees it: first state, steps, properties.

use std::fmt;

use stateright::{Model, Property};

use crate::scenario::{Order, Question, Scenario};
use crate::state::{NODES, Phase, State, name};
use crate::{register, scenario, slot, tombstone};

/// Clients' answers are those of one register.
pub(crate) const LINEARIZABLE: &str = "the register is linearizable";
/// Later reads find what was acknowledged.
pub(crate) const FOUND: &str = "an acknowledged write is found by a later read";
/// What was acknowledged is on enough disks.
pub(crate) const DURABLE: &str = "no quorum that can answer lacks an acknowledged write";
/// The configurations form one chain.
pub(crate) const ONE_DECISION: &str = "each slot decides once";
/// A proposer that is left alone gets on.
pub(crate) const NOT_STUCK: &str = "what covers a point can still be changed";
/// The old epoch ends before the new one begins to answer.
pub(crate) const SEALED: &str = "the new epoch serves only after the old one is sealed";

/// One step of the system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Slot(slot::Step),
    Register(register::Step),
    Tombstone(tombstone::Step),
    /// `node` takes no more steps.
    Crash {
        node: usize,
    },
    /// `node` loses its disk.
    LoseDisk {
        node: usize,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Slot(step) => write!(f, "{step}"),
            Self::Register(step) => write!(f, "{step}"),
            Self::Tombstone(step) => write!(f, "{step}"),
            Self::Crash { node } => write!(f, "{} crashes", name(*node)),
            Self::LoseDisk { node } => write!(f, "{} loses its disk", name(*node)),
        }
    }
}

impl Scenario {
    /// Whether only the slots have made steps so far.
    pub(crate) fn is_fresh(&self, state: &State) -> bool {
        let clients = state.operations.iter().skip(usize::from(!self.held_before.is_empty()));
        let idle = clients.into_iter().all(|progress| progress.phase == Phase::Idle);
        idle && self.places().take(self.first).all(|(place, config)| {
            let members = (0..NODES).filter(|node| config.members.contains(*node));
            let stays = |node: usize| state.nodes[node].config[config.last_point()] == Some(place);
            members.into_iter().all(stays)
        })
    }
}

impl Scenario {
    /// A node that lost its disk is another node: this one is not heard of again.
    fn lose_disk(&self, state: &mut State, node: usize) {
        if self.rules.lost_disk_is_new_node {
            state.crashed = Some(node as u8);
        } else {
            state.nodes[node] = self.first_state().nodes[node];
            state.lost_disk = true;
        }
    }
}

impl Model for Scenario {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![self.first_state()]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        let interleaved = self.order != Order::SlotFirst;
        if interleaved || self.is_fresh(state) {
            self.slot_steps(state, steps);
        }
        if interleaved || state.told >> self.first != 0 || self.wanted.is_empty() {
            self.register_steps(state, steps);
            self.tombstone_steps(state, steps);
        }
        if state.crashed.is_none() {
            let nodes = (0..NODES).filter(|node| self.may_crash.contains(*node));
            steps.extend(nodes.map(|node| Step::Crash { node }));
            let nodes = (0..NODES).filter(|node| self.may_lose_disk.contains(*node));
            steps.extend(nodes.filter(|_| !state.lost_disk).map(|node| Step::LoseDisk { node }));
        }
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        let mut state = *last;
        let changed = match step {
            Step::Slot(step) => self.slot_step(&mut state, step),
            Step::Register(step) => {
                if self.order == Order::SlotFirst && self.is_fresh(last) {
                    self.close_slots(&mut state);
                }
                self.register_step(&mut state, step)
            }
            Step::Tombstone(step) => self.tombstone_step(&mut state, step),
            Step::Crash { node } => {
                state.crashed = Some(node as u8);
                true
            }
            Step::LoseDisk { node } => {
                self.lose_disk(&mut state, node);
                true
            }
        };
        changed.then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        match self.question {
            Question::WhatMustHold => {
                let mut properties = vec![
                    Property::always(LINEARIZABLE, Self::is_linearizable),
                    Property::always(FOUND, Self::acknowledged_is_found),
                    Property::always(DURABLE, Self::acknowledged_is_durable),
                    Property::always(ONE_DECISION, Self::slots_are_decided_once),
                    Property::always(SEALED, Self::old_epoch_is_sealed),
                ];
                // It is about the slots alone, and costs more than all others.
                if self.operations.is_empty() {
                    properties.push(Property::always(NOT_STUCK, Self::nobody_is_stuck));
                }
                properties
            }
            Question::WhatMustHappen(occasions) => {
                let sometimes =
                    |(name, condition): &scenario::Occasion| Property::sometimes(name, *condition);
                occasions.iter().map(sometimes).collect()
            }
        }
    }
}
