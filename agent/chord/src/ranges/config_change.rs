//! Configurations: the write-once slot that decides the next one, and its adoption.
//!
//! The configuration of epoch e+1 is decided by a majority of the members of epoch e, in a slot of its
//! own (single-decree Paxos, both phases). Adopting it is the fence: from then on a node answers nothing
//! older. A node keeps its slots for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::{Known, Ranges, World};
use crate::Id;
use crate::call::{ChangeId, RangeCall};
use crate::config::{Config, NodeId, Peer, Proposal, RangeTag, SlotBallot, is_majority};
use crate::event::{Notice, Records};
use crate::message::{Body, CallId, Refusal};
use crate::time::Time;
use crate::timer::Timer;

/// An attempt to decide a slot.
struct Change {
    id: ChangeId,
    config: Arc<Config>,
    ballot: SlotBallot,
    proposal: Proposal,
    accepting: bool,
    promises: BTreeMap<NodeId, Option<(SlotBallot, Proposal)>>,
    accepts: BTreeSet<NodeId>,
    deadline: Time,
}

/// The attempts of this process, at most one a range.
#[derive(Default)]
pub(super) struct Changes {
    under_way: BTreeMap<Id, Change>,
    last: u64,
    last_round: u64,
    /// Not to be tried again before: another proposer is at work.
    paused: BTreeMap<Id, Time>,
}

/// How long an attempt may take before it is given up and tried again.
const ATTEMPT: Duration = Duration::from_secs(3);

impl Ranges {
    /// Whether an attempt for this range is under way, or has to wait.
    pub(super) fn is_changing(&self, hi: Id, now: Time) -> bool {
        self.changes.under_way.get(&hi).is_some_and(|change| change.deadline > now)
            || self.changes.paused.get(&hi).is_some_and(|until| *until > now)
    }

    /// Tries to decide the slot of this configuration.
    pub(super) fn start_change<R: Records>(
        &mut self,
        w: &mut World<'_, R>,
        config: &Arc<Config>,
        proposal: Proposal,
    ) {
        self.changes.last += 1;
        self.changes.last_round += 1;
        let change = Change {
            id: ChangeId(self.changes.last),
            config: Arc::clone(config),
            ballot: SlotBallot {
                round: self.changes.last_round,
                node: w.ctx.me.node,
                boot: w.ctx.boot,
            },
            proposal,
            accepting: false,
            promises: BTreeMap::new(),
            accepts: BTreeSet::new(),
            deadline: w.ctx.now + ATTEMPT,
        };
        self.changes.under_way.insert(config.hi, change);
        for peer in &config.members {
            self.ask_slot(w, config.hi, peer);
        }
    }

    fn ask_slot<R: Records>(&mut self, w: &mut World<'_, R>, hi: Id, peer: &Peer) {
        let Some(change) = self.changes.under_way.get(&hi) else { return };
        let (at, ballot) = (change.config.tag(), change.ballot);
        let question = if change.accepting {
            Body::SlotAccept { at, ballot, proposal: change.proposal.clone() }
        } else {
            Body::SlotPrepare { at, ballot }
        };
        let timeout = w.members.rto(&peer.node);
        w.ctx.call(
            &w.members.current(peer),
            question,
            RangeCall::Change(change.id).into(),
            timeout,
        );
    }

    /// A member's answer about a slot, or none in time.
    pub(super) fn on_change_answer<R: Records>(
        &mut self,
        w: &mut World<'_, R>,
        id: ChangeId,
        from: NodeId,
        answer: Option<Body>,
    ) {
        let found = self.changes.under_way.values_mut().find(|change| change.id == id);
        let Some(change) = found else { return };
        let hi = change.config.hi;
        let members = change.config.members.clone();
        let peer = members.iter().find(|peer| peer.node == from);
        match answer {
            Some(Body::SlotPromised { accepted }) if !change.accepting => {
                change.promises.insert(from, accepted);
                if !is_majority(change.promises.len(), members.len()) {
                    return;
                }
                // What may have been decided already has to be decided again.
                if let Some((_, earlier)) =
                    change.promises.values().flatten().max_by_key(|(ballot, _)| *ballot)
                {
                    change.proposal.clone_from(earlier);
                }
                change.accepting = true;
                for peer in &members {
                    self.ask_slot(w, hi, peer);
                }
            }
            Some(Body::SlotAccepted) if change.accepting => {
                change.accepts.insert(from);
                if is_majority(change.accepts.len(), members.len())
                    && let Some(change) = self.changes.under_way.remove(&hi)
                {
                    self.on_decision(w, &change.config, &change.proposal);
                }
            }
            Some(Body::Refused(Refusal::Newer(config))) => {
                self.changes.under_way.remove(&hi);
                self.on_newer(w, *config);
            }
            Some(Body::Refused(Refusal::SlotPromised(ballot))) => {
                self.changes.last_round = self.changes.last_round.max(ballot.round);
                self.changes.under_way.remove(&hi);
                let pause = Duration::from_millis(20).mul_f64(1.0 + 9.0 * w.ctx.rng.unit());
                self.changes.paused.insert(hi, w.ctx.now + pause);
                w.ctx.timers.set_earlier(Timer::Reconcile, w.ctx.now + pause);
            }
            Some(Body::Refused(Refusal::Behind)) => {
                let at = change.config.tag();
                let configs = self.configs_over(&at);
                self.tell_decided(w, from, configs);
                if let Some(peer) = peer {
                    self.ask_slot(w, hi, peer);
                }
            }
            Some(_) => {}
            None => {
                let is_answered = if change.accepting {
                    change.accepts.contains(&from)
                } else {
                    change.promises.contains_key(&from)
                };
                if change.deadline > w.ctx.now
                    && !is_answered
                    && let Some(peer) = peer
                {
                    self.ask_slot(w, hi, peer);
                }
            }
        }
    }

    /// A slot is decided: adopt the result and tell everyone whom it concerns.
    fn on_decision<R: Records>(
        &mut self,
        w: &mut World<'_, R>,
        old: &Arc<Config>,
        configs: &[Config],
    ) {
        self.adopt(w, configs);
        let everyone: BTreeMap<NodeId, Peer> = std::iter::once(&**old)
            .chain(configs)
            .flat_map(Config::everyone)
            .map(|peer| (peer.node, peer.clone()))
            .collect();
        let me = w.ctx.me.node;
        for peer in everyone.into_values().filter(|peer| peer.node != me) {
            let to = w.members.current(&peer);
            let timeout = w.members.rto(&peer.node);
            let decided = Body::Decided { configs: configs.to_vec() };
            w.ctx.call(&to, decided, RangeCall::Adopt.into(), timeout);
        }
    }

    /// Tells a node what it has not heard of.
    pub(super) fn tell_decided<R: Records>(
        &mut self,
        w: &mut World<'_, R>,
        node: NodeId,
        configs: Vec<Config>,
    ) {
        let known = configs.iter().flat_map(Config::everyone).find(|peer| peer.node == node);
        if let Some(to) = known.map(|peer| w.members.current(peer)) {
            let timeout = w.members.rto(&node);
            w.ctx.call(&to, Body::Decided { configs }, RangeCall::Adopt.into(), timeout);
        }
    }

    /// The adopted configuration of this range, if it is this epoch's or a later one.
    pub(super) fn configs_over(&self, at: &RangeTag) -> Vec<Config> {
        self.known
            .get(&at.hi)
            .filter(|known| known.config.epoch >= at.epoch)
            .map(|known| (*known.config).clone())
            .into_iter()
            .collect()
    }

    /// Adopts what is newer than what this node knows, and returns the commit that makes it durable.
    pub(super) fn adopt<R: Records>(&mut self, w: &mut World<'_, R>, configs: &[Config]) -> u64 {
        let me = w.ctx.me.node;
        let mut seq = 0;
        for config in configs {
            self.learn(config);
            let has_duty = config.has_member(&me) || config.has_prev(&me);
            let concerns =
                has_duty || self.known.values().any(|known| known.config.overlaps(config));
            let known = self.known.get(&config.hi);
            if let Some(known) = known.filter(|known| known.config.epoch >= config.epoch) {
                seq = seq.max(known.seq);
                continue;
            }
            if !concerns {
                continue;
            }
            let keeps_members = config.prev.is_empty();
            let mut known = Known {
                config: Arc::new(config.clone()),
                swept: keeps_members,
                released: !has_duty,
                seq: 0,
            };
            known.seq = w.ctx.persist_meta(format!("range/{}", config.hi), &known);
            seq = seq.max(known.seq);
            let replaced = self.known.insert(config.hi, known);
            if let Some(old) = replaced.filter(|old| old.config.lo != config.lo) {
                self.seal_rest(w, &old.config, config.lo);
            }
            self.changes.under_way.remove(&config.hi);
            self.passes.abort(config.hi);
            if !keeps_members {
                self.leading.remove(&config.hi);
            }
            w.ctx.notify(Notice::Adopted {
                hi: config.hi,
                epoch: config.epoch,
                members: config.members.clone(),
            });
            w.ctx.timers.set_earlier(Timer::Reconcile, w.ctx.now);
        }
        seq
    }

    /// One part of a split range is adopted: what was known of the rest is not answered any more either.
    fn seal_rest<R: Records>(&mut self, w: &mut World<'_, R>, old: &Config, hi: Id) {
        if self.known.get(&hi).is_none_or(|known| known.config.epoch < old.epoch) {
            let mut rest = Known::sealed(old, hi);
            rest.seq = w.ctx.persist_meta(format!("range/{hi}"), &rest);
            self.known.insert(hi, rest);
        }
    }

    /// Another node has adopted something: so does this one.
    pub(super) fn on_newer<R: Records>(&mut self, w: &mut World<'_, R>, config: Config) {
        self.adopt(w, &[config]);
    }

    /// A decision is told: it is adopted, and that is confirmed when it is on disk.
    pub(crate) fn on_decided<R: Records>(
        &mut self,
        w: &mut World<'_, R>,
        from: &Peer,
        call: CallId,
        configs: &[Config],
    ) {
        let seq = self.adopt(w, configs);
        w.ctx.answer_after(seq, from, call, Body::Adopted);
    }

    /// Somebody's attempt to decide a slot: phase 1 without a proposal, phase 2 with one.
    pub(crate) fn on_slot<R: Records>(
        &mut self,
        w: &mut World<'_, R>,
        from: &Peer,
        call: CallId,
        at: RangeTag,
        ballot: SlotBallot,
        proposal: Option<Proposal>,
    ) {
        let (answer, seq) = match self.vote(w, at, ballot, proposal) {
            Ok(vote) => vote,
            Err(refusal) => (Body::Refused(refusal), 0),
        };
        w.ctx.answer_after(seq, from, call, answer);
    }

    /// The vote of this node, and the commit that has to be on disk before it is given.
    fn vote<R: Records>(
        &mut self,
        w: &mut World<'_, R>,
        at: RangeTag,
        ballot: SlotBallot,
        proposal: Option<Proposal>,
    ) -> Result<(Body, u64), Refusal> {
        let adopted = self.may_vote(w, at)?;
        let slot = self.slots.entry(at).or_default();
        if let Some(promised) = slot.promised.filter(|promised| *promised > ballot) {
            return Err(Refusal::SlotPromised(promised));
        }
        slot.promised = Some(ballot);
        let answer = match proposal {
            None => Body::SlotPromised { accepted: slot.accepted.clone() },
            Some(proposal) => {
                slot.accepted = Some((ballot, proposal));
                Body::SlotAccepted
            }
        };
        let seq = w.ctx.persist_meta(format!("slot/{}/{}", at.hi, at.epoch), &(at, &*slot));
        Ok((answer, seq.max(adopted)))
    }

    /// Only members of an epoch vote about the next one.
    fn may_vote<R: Records>(&self, w: &World<'_, R>, at: RangeTag) -> Result<u64, Refusal> {
        let known = self.duty(&w.ctx.me.node, at, at.hi)?;
        if !known.config.has_member(&w.ctx.me.node) {
            return Err(Refusal::NotMember);
        }
        if w.ctx.is_broken() {
            return Err(Refusal::Broken);
        }
        Ok(known.seq)
    }

    /// Which configuration covers a point?
    pub(crate) fn on_get_config<R: Records>(
        &self,
        w: &mut World<'_, R>,
        from: &Peer,
        call: CallId,
        point: Id,
    ) {
        let known = self.current(point).filter(|known| !known.is_sealed());
        let config = known.map(|known| (*known.config).clone());
        let swept = known.is_some_and(|known| known.swept);
        // A configuration that only this node's memory holds must not be adopted by others yet.
        let seq = known.map_or(0, |known| known.seq);
        w.ctx.answer_after(seq, from, call, Body::ConfigIs { config, swept });
    }

    /// The answer about a range this node has a part in. A member that has not heard of this node's
    /// configuration is told: it may be the one to lead it.
    pub(super) fn on_config_answer<R: Records>(
        &mut self,
        w: &mut World<'_, R>,
        from: NodeId,
        point: Id,
        answer: Option<Body>,
    ) {
        let Some(Body::ConfigIs { config: theirs, swept }) = answer else { return };
        let epoch = theirs.as_ref().map_or(0, |config| config.epoch);
        let mine = self.current(point).filter(|known| !known.is_sealed());
        let mine = mine.map(|known| &*known.config);
        if let Some(mine) = mine.filter(|config| config.epoch > epoch).cloned() {
            return self.tell_decided(w, from, vec![mine]);
        }
        if let Some(config) = theirs {
            let at = config.tag();
            self.adopt(w, &[config]);
            if swept {
                self.on_swept(w, at);
            }
        }
    }

    /// The sweep of an epoch is done.
    pub(crate) fn on_swept<R: Records>(&mut self, w: &mut World<'_, R>, at: RangeTag) {
        let me = w.ctx.me.node;
        let Some(known) = self.known.get_mut(&at.hi) else { return };
        if known.config.tag() != at || known.swept {
            return;
        }
        known.swept = true;
        known.released = !known.config.has_member(&me);
        w.ctx.persist_meta(format!("range/{}", at.hi), &*known);
        w.ctx.timers.set_earlier(Timer::Reconcile, w.ctx.now);
    }
}
