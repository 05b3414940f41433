//! Tombstones: a deleted key leaves a record that says so, until no older value can come back.
//!
//! A member drops a tombstone when (1) every member said in some epoch that it holds it, so that none
//! holds anything older, (2) the member has left that epoch, so that no late message of it counts, and
//! (3) nobody prepared a round for the key since. The leader asks for (1), makes (2) by deciding an epoch
//! with the same members, and names the keys; one such epoch serves all tombstones of a range.
//!
//! Time has a part only in how long a tombstone is kept at least, with the request ids that it remembers:
//! those of an epoch are collected when a later one has been in force for so long.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::{Ranges, World};
use crate::Id;
use crate::call::{CollectStep, RangeCall};
use crate::config::{Ballot, Config, NodeId, Peer, Proposal, RangeTag};
use crate::event::Records;
use crate::message::{Body, Refusal};
use crate::record::Key;

/// Tombstones and the ballots they were accepted under.
type Named = Vec<(Key, Ballot)>;

/// The collection of one range's tombstones.
struct Collection {
    config: Arc<Config>,
    /// Old are those of epochs before this one.
    before: u64,
    /// Still to be asked about, in parts.
    todo: Vec<Vec<Key>>,
    /// The question that is open, and what it names.
    question: u64,
    asked: Named,
    answers: BTreeMap<NodeId, Vec<bool>>,
    /// Held by all members.
    agreed: Named,
}

/// The collections of this process, at most one a range.
#[derive(Default)]
pub(super) struct Collections {
    asking: BTreeMap<Id, Collection>,
    dropping: BTreeMap<Id, Dropping>,
    /// The number of the last question of this process.
    last: u64,
}

/// What may be dropped once the epoch in which it was asked about is over.
struct Dropping {
    asked_in: u64,
    parts: Vec<Named>,
    /// Who has not yet confirmed which part.
    open: BTreeSet<(NodeId, usize)>,
}

impl Collections {
    /// Ends what is under way. Tombstones that stay are collected another time.
    pub(super) fn abort(&mut self, hi: Id) {
        self.asking.remove(&hi);
    }

    /// Forgets everything about a range that another node leads.
    pub(super) fn forget(&mut self, hi: Id) {
        self.asking.remove(&hi);
        self.dropping.remove(&hi);
    }
}

/// How many tombstones are named in one message.
const AT_ONCE: usize = 500;
/// How long to wait for a member that did not answer.
const COLLECT_AGAIN: Duration = Duration::from_secs(10);

impl Ranges {
    /// Drops what may be dropped, or sees what could be, in a range at rest that this node leads.
    pub(super) fn collect<R: Records>(&mut self, w: &mut World<'_, R>, config: &Arc<Config>) {
        let hi = config.hi;
        if self.collections.dropping.contains_key(&hi) {
            return self.tell_to_drop(w, config);
        }
        let all_up = config.members.iter().all(|peer| !w.members.is_suspect(&peer.node));
        let Some(leading) = self.leading.get_mut(&hi) else { return };
        let is_early = w.ctx.now < leading.collects_from;
        if !all_up || is_early || self.collections.asking.contains_key(&hi) {
            return;
        }
        let is_due = w.ctx.now.since(leading.epoch_since) >= w.ctx.settings.tombstones_kept;
        if is_due {
            leading.old_before = config.epoch;
        }
        let before = leading.old_before;
        if before == 0 {
            return;
        }
        let mut kept = self.stored.tombstones_in(config).peekable();
        let is_any = kept.peek().is_some();
        let old = kept.filter(|(_, epoch)| *epoch < before).map(|(key, _)| key.clone());
        let old: Vec<Key> = old.take(w.ctx.settings.tombstones_at_once).collect();
        if old.is_empty() {
            leading.old_before = 0;
            // Those of this epoch are old when a later one, which is begun here, has been in force for so long.
            if !is_due || !is_any {
                return;
            }
        }
        let collection = Collection {
            config: Arc::clone(config),
            before,
            todo: old.chunks(AT_ONCE).map(<[_]>::to_vec).collect(),
            question: 0,
            asked: Vec::new(),
            answers: BTreeMap::new(),
            agreed: Vec::new(),
        };
        self.collections.asking.insert(hi, collection);
        self.ask_next_tombstones(w, hi);
    }

    /// Asks all members about the next tombstones, or ends the epoch when all are asked about.
    fn ask_next_tombstones<R: Records>(&mut self, w: &mut World<'_, R>, hi: Id) {
        let Some(collection) = self.collections.asking.get_mut(&hi) else { return };
        if let Some(next) = collection.todo.pop() {
            let ballot = |key: &Key| Some(self.stored.get(w.records, key).ok()?.record.accepted);
            let named = next.into_iter().filter_map(|key| Some((key.clone(), ballot(&key)?)));
            // Of a key that was written and deleted again meanwhile the tombstone is not old.
            let before = collection.before;
            collection.asked = named.filter(|(_, ballot)| ballot.epoch < before).collect();
            self.collections.last += 1;
            collection.question = self.collections.last;
            collection.answers.clear();
            let members = collection.config.members.clone();
            return members.iter().for_each(|peer| self.ask_tombstones(w, hi, peer));
        }
        let Some(collection) = self.collections.asking.remove(&hi) else { return };
        if collection.agreed.len() * 2 < w.ctx.settings.tombstones_at_once
            && let Some(leading) = self.leading.get_mut(&hi)
        {
            // The members do not hold them alike: those that are left are collected when this was mended.
            leading.old_before = 0;
        }
        let config = collection.config;
        let parts: Vec<_> = collection.agreed.chunks(AT_ONCE).map(<[_]>::to_vec).collect();
        let nodes = config.members.iter().map(|peer| peer.node);
        let open = nodes.flat_map(|node| (0..parts.len()).map(move |part| (node, part))).collect();
        let dropping = Dropping { asked_in: config.epoch, parts, open };
        self.collections.dropping.insert(hi, dropping);
        self.start_change(w, &config, Proposal::Next(vec![config.next()]));
    }

    fn ask_tombstones<R: Records>(&self, w: &mut World<'_, R>, hi: Id, peer: &Peer) {
        let Some(collection) = self.collections.asking.get(&hi) else { return };
        let at = collection.config.tag();
        let question = Body::Tombstones { at, keys: collection.asked.clone() };
        let step = CollectStep::Ask(collection.question);
        w.ask_slowly(peer, question, RangeCall::Collect(at, step));
    }

    /// Tells the members that have not confirmed it yet what to drop: only in the epoch made for it, and with
    /// the same members, since who comes later has not been asked.
    fn tell_to_drop<R: Records>(&mut self, w: &mut World<'_, R>, config: &Arc<Config>) {
        let (hi, at) = (config.hi, config.tag());
        let Some(dropping) = self.collections.dropping.get(&hi) else { return };
        let is_over = config.epoch > dropping.asked_in + 1 || !config.prev.is_empty();
        if dropping.open.is_empty() || is_over {
            let kept = self.collections.dropping.remove(&hi).map(|dropping| dropping.open);
            // Who may have kept what others dropped is compared with them.
            for (node, _) in kept.into_iter().flatten() {
                self.report_lagging(w, at, node);
            }
            return;
        }
        if config.epoch == dropping.asked_in {
            // The decision was not made: it is tried again.
            return self.start_change(w, config, Proposal::Next(vec![config.next()]));
        }
        for (node, part) in &dropping.open {
            let peer = config.members.iter().find(|peer| peer.node == *node);
            if let Some(peer) = peer.filter(|peer| !w.members.is_suspect(&peer.node)) {
                let question = Body::Collect { at, keys: dropping.parts[*part].clone() };
                w.ask_slowly(peer, question, RangeCall::Collect(at, CollectStep::Drop(*part)));
            }
        }
    }

    /// A member's answer about tombstones, or none in time.
    pub(super) fn on_collect_answer<R: Records>(
        &mut self,
        w: &mut World<'_, R>,
        at: RangeTag,
        step: CollectStep,
        from: NodeId,
        answer: Option<Body>,
    ) {
        let question = match step {
            CollectStep::Ask(question) => question,
            CollectStep::Drop(part) if answer == Some(Body::Collected) => {
                // A late answer of an epoch before is about other tombstones.
                let dropping = self.collections.dropping.get_mut(&at.hi);
                if let Some(dropping) = dropping.filter(|it| it.asked_in + 1 == at.epoch) {
                    dropping.open.remove(&(from, part));
                }
                return;
            }
            CollectStep::Drop(_) => {
                if answer == Some(Body::Refused(Refusal::Behind)) {
                    let configs = self.configs_over(&at);
                    self.tell_decided(w, from, configs);
                }
                return;
            }
        };
        let found = self.collections.asking.get_mut(&at.hi);
        let Some(collection) = found.filter(|it| it.question == question) else { return };
        let Some(Body::TombstonesHeld { held }) = answer else {
            // It takes all of them.
            self.collections.abort(at.hi);
            if let Some(leading) = self.leading.get_mut(&at.hi) {
                leading.collects_from = w.ctx.now + COLLECT_AGAIN;
            }
            return;
        };
        collection.answers.insert(from, held);
        if collection.answers.len() < collection.config.members.len() {
            return;
        }
        let asked = std::mem::take(&mut collection.asked);
        let is_agreed =
            |at: usize| collection.answers.values().all(|held| held.get(at) == Some(&true));
        let agreed: Named =
            (0..asked.len()).filter(|at| is_agreed(*at)).map(|at| asked[at].clone()).collect();
        collection.agreed.extend(agreed);
        self.ask_next_tombstones(w, at.hi);
    }

    /// Which of these tombstones are held here?
    pub(super) fn tombstones_held<R: Records>(
        &self,
        w: &World<'_, R>,
        at: RangeTag,
        keys: &Named,
    ) -> super::acceptor::Answered {
        let mut seq = self.duty(&w.ctx.me.node, at, at.hi)?.seq;
        let mut held = Vec::new();
        for (key, ballot) in keys {
            let seen = self.stored.get(w.records, key).map_err(|_| Refusal::Broken)?;
            held.push(seen.record.is_tombstone() && seen.record.accepted == *ballot);
            seq = seq.max(seen.seq);
        }
        Ok((Body::TombstonesHeld { held }, seq))
    }

    /// Drops tombstones that all members held in an epoch before this one.
    pub(super) fn drop_tombstones<R: Records>(
        &mut self,
        w: &mut World<'_, R>,
        at: RangeTag,
        keys: &Named,
    ) -> super::acceptor::Answered {
        let mut seq = self.duty(&w.ctx.me.node, at, at.hi)?.seq;
        for (key, ballot) in keys {
            let is_here = self.duty(&w.ctx.me.node, at, key.hash()).is_ok();
            let record = self.stored.get(w.records, key).map_err(|_| Refusal::Broken)?.record;
            let is_same = record.is_tombstone() && record.accepted == *ballot;
            if is_here && is_same && record.promised.epoch < at.epoch {
                seq = self.stored.forget(w.ctx, key, &record);
            }
        }
        Ok((Body::Collected, seq))
    }
}
