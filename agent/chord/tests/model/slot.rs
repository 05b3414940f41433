//! The configuration slots, one for each epoch: single-decree Paxos among the epoch's members.

use std::fmt;

use crate::scenario::{Config, Scenario};
use crate::state::{Accepted, NODES, Nodes, Phase, Rival, SlotRecord, State, name};
use crate::system;

/// A step of one of the slots' proposers, or of a node that it asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// The proposer begins.
    Start { rival: usize },
    /// `node` gets its prepare, and the promise comes back.
    Prepare { rival: usize, node: usize },
    /// `node` gets its accept request.
    Accept { rival: usize, node: usize },
}

impl Scenario {
    /// Adds the steps of the slots that can happen now.
    pub(crate) fn slot_steps(&self, state: &State, steps: &mut Vec<system::Step>) {
        for (rival, proposer) in state.rivals.iter().enumerate().take(self.wanted.len()) {
            let acceptors = (0..NODES).filter(|node| {
                self.slot_electorate(rival).members.contains(*node) && state.is_up(*node)
            });
            let mut can = |step| steps.push(system::Step::Slot(step));
            match proposer.phase {
                Phase::Idle if self.slot_is_open(state, rival) => can(Step::Start { rival }),
                Phase::Prepare => acceptors.for_each(|node| can(Step::Prepare { rival, node })),
                Phase::Accept | Phase::Accepted => {
                    acceptors.for_each(|node| can(Step::Accept { rival, node }));
                }
                Phase::Idle | Phase::Scan | Phase::Read | Phase::Over => {}
            }
        }
    }

    /// Does a step of a slot; false if it changes nothing.
    pub(crate) fn slot_step(&self, state: &mut State, step: Step) -> bool {
        match step {
            Step::Start { rival } => {
                state.rivals[rival].phase = Phase::Prepare;
                if !self.rules.slot_has_phase_one {
                    self.slot_propose(state, rival, self.wanted[rival]);
                }
                true
            }
            Step::Prepare { rival, node } => self.slot_prepare(state, rival, node),
            Step::Accept { rival, node } => self.slot_accept(state, rival, node),
        }
    }

    fn slot_prepare(&self, state: &mut State, rival: usize, node: usize) -> bool {
        let ballot = slot_ballot(rival);
        let acceptor = &mut state.nodes[node].slots[self.slot_of(rival)];
        if acceptor.promised >= ballot {
            return false;
        }
        acceptor.promised = ballot;
        let accepted = acceptor.accepted;
        let proposer = &mut state.rivals[rival];
        proposer.answered |= Nodes::one(node);
        if accepted.ballot > proposer.best.ballot {
            proposer.best = accepted;
        }
        if proposer.answered.is_majority_of(self.slot_electorate(rival).members) {
            let found = proposer.best.ballot > 0;
            let value = if found { proposer.best.value } else { self.wanted[rival] };
            self.slot_propose(state, rival, value);
        }
        true
    }

    fn slot_propose(&self, state: &mut State, rival: usize, value: u8) {
        state.rivals[rival] = Rival { phase: Phase::Accept, value, ..Rival::default() };
        if !self.rules.config_is_decided {
            self.tell(state, value);
        }
    }

    fn slot_accept(&self, state: &mut State, rival: usize, node: usize) -> bool {
        let before = *state;
        let ballot = slot_ballot(rival);
        let acceptor = &mut state.nodes[node].slots[self.slot_of(rival)];
        if acceptor.promised > ballot {
            return false;
        }
        let proposer = &mut state.rivals[rival];
        acceptor.promised = ballot;
        acceptor.accepted = Accepted { ballot, value: proposer.value };
        if proposer.phase == Phase::Accept {
            proposer.answered |= Nodes::one(node);
            if proposer.answered.is_majority_of(self.slot_electorate(rival).members) {
                proposer.phase = Phase::Accepted;
                proposer.answered = Nodes::NONE;
                let value = proposer.value;
                state.decided |= 1 << value;
                self.tell(state, value);
                self.close_slot_if_idle(state, self.slot_of(rival));
            }
        }
        *state != before
    }

    /// Lets everybody learn of a configuration. Who belongs to no older epoch adopts it at once: until
    /// then it would only refuse, which to a proposer is a request that is late.
    fn tell(&self, state: &mut State, place: u8) {
        state.told |= 1 << place;
        let everyone = self.config(place).everyone();
        for node in (0..NODES).filter(|node| everyone.contains(*node)) {
            state.nodes[node].config.get_or_insert(place);
        }
    }

    /// Whether this proposer may begin: it was told of the configuration that it wants to end, and that
    /// one's own change is complete.
    fn slot_is_open(&self, state: &State, rival: usize) -> bool {
        let place = self.config(self.wanted[rival]).parent;
        let parent = self.config(place);
        let complete = parent.prev.is_empty() || state.is_swept(parent.epoch);
        state.is_told(place) && (complete || !self.rules.slot_waits_for_sweep)
    }

    /// Whose majority decides what this proposer proposes.
    fn slot_electorate(&self, rival: usize) -> Config {
        let wanted = self.wanted[rival];
        let old = self.config(wanted).parent;
        self.config(if self.rules.slot_asks_old_members { old } else { wanted })
    }

    /// The slot of this proposer, from 0: the slot of epoch 1.
    fn slot_of(&self, rival: usize) -> usize {
        usize::from(self.config(self.wanted[rival]).epoch) - 2
    }

    /// Forgets a slot when all its proposers have finished: there is nobody left to read it.
    fn close_slot_if_idle(&self, state: &mut State, slot: usize) {
        let of_slot = |rival: &usize| self.slot_of(*rival) == slot;
        let rivals = || (0..self.wanted.len()).filter(of_slot);
        if rivals().all(|rival| state.rivals[rival].phase == Phase::Accepted) {
            rivals().for_each(|rival| state.rivals[rival].phase = Phase::Over);
            state.nodes.iter_mut().for_each(|node| node.slots[slot] = SlotRecord::default());
        }
    }

    /// Forgets what only the slots' own steps read, once none of them will be explored any more.
    pub(crate) fn close_slots(&self, state: &mut State) {
        state.rivals = Default::default();
        state.nodes.iter_mut().for_each(|node| node.slots = Default::default());
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Start { rival } => write!(f, "slot proposer {rival} starts"),
            Self::Prepare { rival, node } => {
                write!(f, "{} promises the slot to proposer {rival}", name(node))
            }
            Self::Accept { rival, node } => {
                write!(f, "{} accepts for the slot from proposer {rival}", name(node))
            }
        }
    }
}

/// The ballot of a proposer of the slot: each has one.
const fn slot_ballot(rival: usize) -> u8 {
    rival as u8 + 1
}
