//! Slots: how the next configuration of a range is decided, once and for all.
//!
//! The configuration of epoch e+1 is decided by a majority of the members of epoch e, in a slot of its
//! own (single-decree Paxos, both phases). A node keeps its slots for ever.
//!
//! Two neighbouring ranges with the same members merge by one proposal for the slots of both. Acceptors
//! take a question about two slots as one, so the merge is decided in both or in neither, and nobody has
//! to wait for a second step. A proposer that finds a merge in the slot it wants to decide asks about both
//! slots: either it can finish the merge in both, or another value above it in one of them says that the
//! merge was not and never will be decided.
//!
//! When a majority of the members is gone for good, an operator may order that the survivors decide: then
//! every one of them has to agree ([`super::force`]).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::{ASK_AGAIN, Ranges, Wake, World};
use crate::Id;
use crate::call::{ChangeId, RangeCall};
use crate::config::{Accepted, Config, NodeId, Peer, Proposal, RangeTag, SlotBallot};
use crate::event::Records;
use crate::message::{Body, CallId, Refusal};
use crate::time::Time;
use crate::timer::Timer;

/// Who decides a slot.
#[derive(Clone)]
pub(super) enum Voters {
    /// The members of the range, of which a quorum is enough.
    Members(Arc<Config>),
    /// Those that survived, all of them.
    Survivors(Vec<Peer>),
}

impl Voters {
    fn peers(&self) -> &[Peer] {
        match self {
            Self::Members(config) => &config.members,
            Self::Survivors(peers) => peers,
        }
    }

    fn is_quorum(&self, has: impl Fn(&NodeId) -> bool) -> bool {
        match self {
            Self::Members(config) => config.is_slot_quorum(has),
            Self::Survivors(peers) => peers.iter().all(|peer| has(&peer.node)),
        }
    }
}

/// An attempt to decide a slot, or two for a merge.
struct Change {
    slots: Vec<RangeTag>,
    voters: Voters,
    ballot: SlotBallot,
    /// What is to be decided: what this node wants, and after the first phase what has to be.
    proposal: Proposal,
    accepting: bool,
    promises: BTreeMap<NodeId, Vec<Option<Accepted>>>,
    accepts: BTreeSet<NodeId>,
    deadline: Time,
}

/// The attempts of this process, at most one a range.
#[derive(Default)]
pub(super) struct Changes {
    under_way: BTreeMap<ChangeId, Change>,
    last: u64,
    last_round: u64,
    /// Not to be tried again before: another proposer is at work.
    paused: BTreeMap<Id, Time>,
}

impl Changes {
    /// Ends the attempts for a range: it has moved on.
    pub(super) fn abort(&mut self, hi: Id) {
        self.under_way.retain(|_, change| change.slots.iter().all(|slot| slot.hi != hi));
    }
}

/// What the first phase allows.
enum Choice {
    /// Ask to accept this, in these slots.
    Accept(Vec<RangeTag>, Proposal),
    /// A merge was found: both its slots have to be asked.
    Ask([RangeTag; 2], Proposal),
    /// Nothing can be done in these slots any more.
    Nothing,
}

/// How long an attempt may take before it is given up and tried again.
const ATTEMPT: Duration = Duration::from_secs(3);

impl Ranges {
    /// Whether an attempt for this range is under way, or has to wait.
    pub(super) fn is_changing(&self, hi: Id, now: Time) -> bool {
        let concerns = |change: &Change| change.slots.iter().any(|slot| slot.hi == hi);
        self.changes.under_way.values().any(|change| change.deadline > now && concerns(change))
            || self.changes.paused.get(&hi).is_some_and(|until| *until > now)
    }

    /// Tries to decide the slot of this configuration, or together with it that of its left neighbour.
    pub(super) fn start_change<R: Records>(
        &mut self,
        w: &mut World<'_, R>,
        config: &Arc<Config>,
        proposal: Proposal,
    ) {
        let slots = match &proposal {
            Proposal::Next(_) => vec![config.tag()],
            Proposal::Merge { slots, .. } => slots.to_vec(),
        };
        self.start_attempt(w, slots, Voters::Members(Arc::clone(config)), proposal);
    }

    /// Whether survivors of this range are being asked, or another proposer is let go first.
    pub(super) fn is_forcing(&self, at: RangeTag, now: Time) -> bool {
        let concerns = |change: &Change| {
            matches!(change.voters, Voters::Survivors(_)) && change.slots.contains(&at)
        };
        self.changes.under_way.values().any(|change| change.deadline > now && concerns(change))
            || self.changes.paused.get(&at.hi).is_some_and(|until| *until > now)
    }

    pub(super) fn start_attempt<R: Records>(
        &mut self,
        w: &mut World<'_, R>,
        slots: Vec<RangeTag>,
        voters: Voters,
        proposal: Proposal,
    ) {
        slots.iter().for_each(|slot| self.changes.abort(slot.hi));
        self.changes.last += 1;
        self.changes.last_round += 1;
        let id = ChangeId(self.changes.last);
        let ballot =
            SlotBallot { round: self.changes.last_round, node: w.ctx.me.node, boot: w.ctx.boot };
        let change = Change {
            slots,
            voters,
            ballot,
            proposal,
            accepting: false,
            promises: BTreeMap::new(),
            accepts: BTreeSet::new(),
            deadline: w.ctx.now + ATTEMPT,
        };
        self.changes.under_way.insert(id, change);
        self.ask_all(w, id);
    }

    fn ask_all<R: Records>(&mut self, w: &mut World<'_, R>, id: ChangeId) {
        let Some(change) = self.changes.under_way.get(&id) else { return };
        for peer in change.voters.peers().to_vec() {
            self.ask_slot(w, id, &peer);
        }
    }

    fn ask_slot<R: Records>(&mut self, w: &mut World<'_, R>, id: ChangeId, peer: &Peer) {
        let Some(change) = self.changes.under_way.get(&id) else { return };
        let (at, ballot) = (change.slots.clone(), change.ballot);
        let question = if change.accepting {
            Body::SlotAccept { at, ballot, proposal: change.proposal.clone() }
        } else {
            Body::SlotPrepare { at, ballot }
        };
        w.ask(peer, question, RangeCall::Change(id));
    }

    /// A member's answer about a slot, or none in time.
    pub(super) fn on_change_answer<R: Records>(
        &mut self,
        w: &mut World<'_, R>,
        id: ChangeId,
        from: NodeId,
        answer: Option<Body>,
    ) {
        let Some(change) = self.changes.under_way.get_mut(&id) else { return };
        match answer {
            Some(Body::SlotPromised { accepted })
                if !change.accepting && accepted.len() == change.slots.len() =>
            {
                change.promises.insert(from, accepted);
                if change.voters.is_quorum(|node| change.promises.contains_key(node)) {
                    self.on_promised(w, id);
                }
            }
            Some(Body::SlotAccepted) if change.accepting => {
                change.accepts.insert(from);
                if change.voters.is_quorum(|node| change.accepts.contains(node))
                    && let Some(change) = self.changes.under_way.remove(&id)
                {
                    self.on_decision(w, change.voters.peers(), change.proposal.configs());
                }
            }
            Some(Body::Refused(Refusal::Newer(config))) => {
                self.changes.under_way.remove(&id);
                self.on_newer(w, *config);
            }
            Some(Body::Refused(Refusal::SlotPromised(ballot))) => {
                self.changes.last_round = self.changes.last_round.max(ballot.round);
                let pause = Duration::from_millis(20).mul_f64(1.0 + 9.0 * w.ctx.rng.unit());
                if let Some(change) = self.changes.under_way.remove(&id) {
                    let until = w.ctx.now + pause;
                    self.changes.paused.extend(change.slots.iter().map(|slot| (slot.hi, until)));
                }
                w.ctx.timers.set_earlier(Timer::Reconcile, w.ctx.now + pause);
            }
            Some(Body::Refused(Refusal::Behind)) if change.deadline > w.ctx.now => {
                let slots = change.slots.clone();
                let configs: Vec<_> =
                    slots.iter().flat_map(|slot| self.configs_over(slot)).collect();
                if !configs.is_empty() && from != w.ctx.me.node {
                    self.tell_decided(w, from, configs);
                    self.wake_at(w.ctx, w.ctx.now + ASK_AGAIN, Wake::Slot(id, from));
                }
            }
            Some(_) => {}
            None => {
                let is_answered = if change.accepting {
                    change.accepts.contains(&from)
                } else {
                    change.promises.contains_key(&from)
                };
                if change.deadline > w.ctx.now && !is_answered {
                    self.ask_slot_again(w, id, from);
                }
            }
        }
    }

    /// Asks a member again that did not answer in time, or was behind.
    pub(super) fn ask_slot_again<R: Records>(
        &mut self,
        w: &mut World<'_, R>,
        id: ChangeId,
        node: NodeId,
    ) {
        let Some(change) = self.changes.under_way.get(&id) else { return };
        if let Some(peer) = change.voters.peers().iter().find(|peer| peer.node == node).cloned() {
            self.ask_slot(w, id, &peer);
        }
    }

    /// The first phase is done: what may have been decided already has to be decided again.
    fn on_promised<R: Records>(&mut self, w: &mut World<'_, R>, id: ChangeId) {
        let Some(change) = self.changes.under_way.get(&id) else { return };
        match self.choose(change) {
            Choice::Accept(slots, proposal) => {
                let Some(change) = self.changes.under_way.get_mut(&id) else { return };
                (change.slots, change.proposal, change.accepting) = (slots, proposal, true);
                self.ask_all(w, id);
            }
            Choice::Ask(slots, proposal) => {
                let voters = change.voters.clone();
                self.start_attempt(w, slots.to_vec(), voters, proposal);
            }
            Choice::Nothing => {
                self.changes.under_way.remove(&id);
            }
        }
    }

    fn choose(&self, change: &Change) -> Choice {
        // The value accepted under the highest ballot, for each slot.
        let found = |at: usize| {
            let of_slot = change.promises.values().filter_map(|accepted| accepted[at].as_ref());
            of_slot.max_by_key(|(ballot, _)| *ballot).map(|(_, proposal)| proposal)
        };
        let &[left, right] = change.slots.as_slice() else {
            let slots = change.slots.clone();
            return match found(0) {
                None => Choice::Accept(slots, change.proposal.clone()),
                Some(next @ Proposal::Next(_)) => Choice::Accept(slots, next.clone()),
                Some(merge @ Proposal::Merge { slots, .. }) => Choice::Ask(*slots, merge.clone()),
            };
        };
        let is_this = |proposal: &Proposal| matches!(proposal, Proposal::Merge { slots, .. } if *slots == [left, right]);
        let other = |at: usize| found(at).filter(|proposal| !is_this(proposal));
        let (others, slots) = ([other(0), other(1)], [left, right]);
        if others == [None, None] {
            let merge = found(0).or(found(1)).unwrap_or(&change.proposal);
            return Choice::Accept(slots.to_vec(), merge.clone());
        }
        // The merge is dead. A range that has not moved on goes on with what was found in its slot, and if
        // that was the merge, with anything.
        let is_current =
            |slot: &RangeTag| self.known.get(&slot.hi).filter(|k| k.config.tag() == *slot);
        for (slot, other) in slots.into_iter().zip(others) {
            match other.filter(|_| is_current(&slot).is_some()) {
                Some(next @ Proposal::Next(_)) => return Choice::Accept(vec![slot], next.clone()),
                Some(merge @ Proposal::Merge { slots, .. }) => {
                    return Choice::Ask(*slots, merge.clone());
                }
                None => {}
            }
        }
        for (at, slot) in slots.into_iter().enumerate() {
            if let Some(known) = is_current(&slot).filter(|_| found(at).is_some_and(is_this)) {
                return Choice::Accept(vec![slot], Proposal::Next(vec![known.config.next()]));
            }
        }
        Choice::Nothing
    }

    /// Somebody's attempt to decide slots: phase 1 without a proposal, phase 2 with one.
    pub(crate) fn on_slot<R: Records>(
        &mut self,
        w: &mut World<'_, R>,
        from: &Peer,
        call: CallId,
        at: &[RangeTag],
        ballot: SlotBallot,
        proposal: Option<Proposal>,
    ) {
        let (answer, seq) = match self.vote(w, at, ballot, proposal) {
            Ok(vote) => vote,
            Err(refusal) => (Body::Refused(refusal), 0),
        };
        w.ctx.answer_after(seq, from, call, answer);
    }

    /// The vote of this node about all these slots or none, and the commit that has to be on disk before it
    /// is given.
    fn vote<R: Records>(
        &mut self,
        w: &mut World<'_, R>,
        at: &[RangeTag],
        ballot: SlotBallot,
        proposal: Option<Proposal>,
    ) -> Result<(Body, u64), Refusal> {
        let mut seq = self.may_vote(w, at)?;
        let promised = at.iter().filter_map(|tag| self.slots.get(tag)?.promised).max();
        if let Some(promised) = promised.filter(|promised| *promised > ballot) {
            return Err(Refusal::SlotPromised(promised));
        }
        let mut accepted = Vec::new();
        for tag in at {
            let slot = self.slots.entry(*tag).or_default();
            slot.promised = Some(ballot);
            accepted.push(slot.accepted.clone());
            if let Some(proposal) = &proposal {
                slot.accepted = Some((ballot, proposal.clone()));
            }
            let name = format!("slot/{}/{}", tag.hi, tag.epoch);
            seq = seq.max(w.ctx.persist_meta(name, &(tag, &*slot)));
        }
        let is_accept = proposal.is_some();
        Ok((if is_accept { Body::SlotAccepted } else { Body::SlotPromised { accepted } }, seq))
    }

    /// Only members of an epoch vote about the next one, and those of the epoch before, whose votes count only
    /// when survivors decide. Of the two slots of a merge one may belong to an
    /// epoch that this node has left: what it accepted there decides whether the merge can still be.
    fn may_vote<R: Records>(&self, w: &World<'_, R>, at: &[RangeTag]) -> Result<u64, Refusal> {
        if w.ctx.is_broken() {
            return Err(Refusal::Broken);
        }
        let me = w.ctx.me.node;
        let mut left = Refusal::NotMember;
        let mut votes = None;
        for tag in at.iter().take(2) {
            match self.duty(&me, *tag, tag.hi) {
                Ok(known) => votes = Some(votes.unwrap_or(0).max(known.seq)),
                Err(refusal) if at.len() == 2 && self.has_left(*tag) => left = refusal,
                Err(refusal) => return Err(refusal),
            }
        }
        votes.filter(|_| at.len() <= 2).ok_or(left)
    }

    /// Whether this node has adopted something newer at the end of this range.
    fn has_left(&self, at: RangeTag) -> bool {
        self.current(at.hi).is_some_and(|known| {
            known.config.epoch > at.epoch || known.is_sealed() && known.config.epoch == at.epoch
        })
    }
}
