//! One round for one key: what it has been told, and whether that is enough.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::Errand;
use crate::call::{ListingId, OperationId, PassId};
use crate::config::{Ballot, Config, NodeId, Peer, is_majority};
use crate::message::{CallId, Refusal};
use crate::record::{Key, Register};
use crate::request::{Answer, Failure};
use crate::time::Time;
use crate::value::Content;

/// Who wants a job done.
#[derive(Debug, Clone)]
pub(super) enum Origin {
    /// A client of this node.
    Here(OperationId),
    /// Another node, for its client.
    There(Peer, CallId),
    /// A sweep of a range: the state is to be accepted again as it is.
    Pass(PassId, Key),
    /// A comparison of members, for the same.
    Comparison(PassId, Key),
    /// A page of a list, which is not sure of the key.
    Listing(ListingId, Key),
    /// A majority of the members said that the time of the value is over.
    Expiry(PassId),
}

/// Something to be done with one key.
#[derive(Debug, Clone)]
pub(super) struct Job {
    pub(super) origin: Origin,
    pub(super) task: Task,
    pub(super) deadline: Time,
}

/// What is to be done with a key.
#[derive(Debug, Clone)]
pub(super) enum Task {
    /// Read it.
    Get,
    /// Accept its state again, so that all members have it in this epoch.
    Identity,
    /// Change it.
    Change(Box<Errand>),
    /// Delete it if it still has this version: the time of its value is over.
    Expire(Ballot),
}

/// How far a round has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Read,
    Prepare,
    /// Getting the bytes of the value from somebody who holds them.
    Fetch,
    Accept,
    /// Answered; late members are still listened to.
    Done,
    /// Waiting before it starts over.
    Waiting,
}

/// A state of which the bytes of the value are wanted.
#[derive(Debug)]
pub(super) struct Fetching {
    pub(super) found: Register,
    /// Whether it is known to be chosen.
    pub(super) settled: bool,
    /// Who holds the bytes and was not asked for them yet.
    pub(super) sources: VecDeque<Peer>,
}

/// One round.
#[derive(Debug)]
pub(super) struct Round {
    pub(super) key: Key,
    pub(super) jobs: Vec<Job>,
    pub(super) config: Arc<Config>,
    /// Whether a majority of `prev` has to answer the first phase too.
    pub(super) ask_prev: bool,
    pub(super) stage: Stage,
    /// Counts the questions put to all: an answer to an earlier one is not taken for this one's.
    pub(super) phase: u32,
    pub(super) ballot: Ballot,
    pub(super) next: Ballot,
    /// The state proposed in the second phase, and what to answer when it is chosen.
    pub(super) proposal: Register,
    pub(super) outcome: Option<Result<Answer, Failure>>,
    pub(super) answers: BTreeMap<NodeId, (Ballot, Option<Register>)>,
    pub(super) refused: BTreeMap<NodeId, Refusal>,
    pub(super) asked: BTreeSet<NodeId>,
    /// Who was told of the configuration, because it was behind: once, and not for ever.
    pub(super) told: BTreeSet<NodeId>,
    /// Who holds the value that the first phase found, or is thought to, and need not be sent its bytes.
    pub(super) holders: BTreeSet<NodeId>,
    pub(super) fetching: Option<Fetching>,
    pub(super) attempts: u32,
    /// Whether what the client wants was ever sent out to be accepted.
    pub(super) proposed: bool,
}

impl Round {
    pub(super) fn enter(&mut self, stage: Stage) {
        self.stage = stage;
        self.phase += 1;
        self.answers.clear();
        self.refused.clear();
        self.asked.clear();
        self.told.clear();
    }

    fn registers(&self) -> impl Iterator<Item = &Register> {
        let told = self.answers.values().filter_map(|(_, register)| register.as_ref());
        told.chain([&self.proposal]).chain(self.fetching.as_ref().map(|fetching| &fetching.found))
    }

    /// The bytes of values that it holds.
    pub(super) fn bytes_here(&self) -> usize {
        self.registers().map(Register::bytes_here).sum()
    }

    /// The size of the largest value that it knows of.
    pub(super) fn size(&self) -> usize {
        self.registers().map(Register::value_bytes).max().unwrap_or(0)
    }

    /// How many bytes of a value an answer brings.
    pub(super) fn expected_bytes(&self) -> usize {
        self.fetching.as_ref().map_or(0, |fetching| fetching.found.value_bytes())
    }

    /// Notes who holds the value of the state that the first phase found. Of those who have not answered yet the
    /// ones that should are believed to do at first: if one does not it says so, and gets the bytes then.
    pub(super) fn note_holders(&mut self, found: &Register) {
        if found.apart().is_none() {
            return;
        }
        let should = if self.ask_prev { &self.config.prev } else { &self.config.members };
        let holds = |peer: &&Peer| match self.answers.get(&peer.node) {
            Some((_, told)) => told.as_ref().is_some_and(|it| it.has_value_of(found)),
            None => self.attempts == 0 && should.iter().any(|other| other.node == peer.node),
        };
        self.holders = self.config.everyone().filter(holds).map(|peer| peer.node).collect();
    }

    /// The state to be accepted, as it is sent to this node: without bytes that it holds, if they are more than
    /// `most`.
    pub(super) fn proposal_for(&self, node: &NodeId, most: usize) -> Register {
        let most = if self.holders.contains(node) { most } else { usize::MAX };
        self.proposal.clone().outlined(most)
    }

    /// Whether nobody waits for it any more.
    pub(super) fn is_late(&self, now: Time) -> bool {
        self.jobs.iter().all(|job| job.deadline <= now)
    }

    /// Whether a member that was asked has neither answered nor refused yet.
    pub(super) fn is_waiting(&self) -> bool {
        let is_open = |n: &NodeId| !self.answers.contains_key(n) && !self.refused.contains_key(n);
        self.asked.iter().any(is_open)
    }

    /// P1: a majority of the members, and enough of `prev` while it has to be asked.
    pub(super) fn first_phase_done(&self) -> bool {
        let has = |node: &NodeId| self.answers.contains_key(node);
        self.config.is_read_quorum(self.ask_prev, has)
    }

    /// P2: a majority of the members.
    pub(super) fn second_phase_done(&self) -> bool {
        self.config.is_quorum(|node| self.answers.contains_key(node))
    }

    /// The state accepted under the highest ballot among all answers. What is left of the value's time is
    /// believed if two say so, the more patient one of all; else it is counted anew by whoever has not
    /// begun to: one clock that runs ahead, or was set, must not end it.
    pub(super) fn highest(&self) -> Register {
        let Some(top) = self.answers.values().map(|(accepted, _)| *accepted).max() else {
            return Register::ABSENT;
        };
        let told = self.answers.values().filter(|answer| answer.0 == top);
        let told: Vec<_> = told.filter_map(|answer| answer.1.as_ref()).collect();
        let Some(mut register) = told.first().copied().cloned() else { return Register::ABSENT };
        if let Some(ttl) = register.value.as_mut().and_then(Content::ttl_mut) {
            let left = |register: &&Register| Some(register.value.as_ref()?.ttl()?.left_ms);
            let needed = self.config.members.len().min(2);
            let most = told.iter().filter_map(left).max().filter(|_| told.len() >= needed);
            ttl.left_ms = most.unwrap_or(ttl.whole_ms).min(ttl.whole_ms);
        }
        register
    }

    /// If every node of some majority of the members holds the highest ballot of all answers, that state
    /// is chosen: its ballot, and the state if an answer brought it.
    pub(super) fn settled(&self) -> Option<(Ballot, Option<Register>)> {
        let top = self.answers.values().map(|(accepted, _)| *accepted).max()?;
        let members = &self.config.members;
        let holds = |peer: &&Peer| self.answers.get(&peer.node).is_some_and(|a| a.0 == top);
        if !is_majority(members.iter().filter(holds).count(), members.len()) {
            return None;
        }
        let register = self.answers.values().find(|a| a.0 == top && a.1.is_some());
        Some((top, register.and_then(|a| a.1.clone())))
    }

    /// Whether so many refused that the stage can never be done.
    pub(super) fn is_hopeless(&self) -> bool {
        let may = |node: &NodeId| !self.refused.contains_key(node);
        let asks_prev = self.stage != Stage::Accept && self.ask_prev;
        !self.config.is_read_quorum(asks_prev, may)
    }

    pub(super) fn is_full(&self) -> bool {
        self.refused.values().any(|refusal| *refusal == Refusal::DiskFull)
            && !self
                .refused
                .values()
                .any(|refusal| matches!(refusal, Refusal::Newer(_) | Refusal::Promised(_)))
    }

    /// What to tell the client when the round is given up.
    pub(super) fn failure(&self) -> Failure {
        if self.proposed {
            Failure::MaybeApplied
        } else if self.is_full() {
            Failure::DiskFull
        } else if self.stage == Stage::Fetch {
            Failure::Unavailable("the nodes that hold the value did not send it in time".into())
        } else {
            let answered = self.answers.len();
            let members = self.config.members.len();
            Failure::Unavailable(format!(
                "only {answered} of the {members} nodes that keep this key answered in time; a majority is needed"
            ))
        }
    }
}
