//! The data of the ring: ranges of the circle, who keeps them, and the registers of their keys.
//!
//! Safety does not rest on the ring pointers. The members of a range in one epoch are decided in a
//! write-once slot by the members of the epoch before ("sealed predecessor"), every data message names
//! its range and epoch, and a node that has adopted an epoch answers nothing older. Within an epoch each
//! key is a register of its own (CASPaxos, Rystsov 2018).
//!
//! - [`acceptor`]: what a member answers, and what it writes before it does
//! - [`register`], [`round`]: rounds for one key: read, prepare, accept
//! - [`fetch`]: the bytes of a large value, for a round that needs them
//! - [`change`]: what an operation makes of a key's state
//! - [`operate`]: the way of a client's operation to a member that carries it out
//! - [`listing`]: pages of keys, agreed by a quorum
//! - [`slots`]: deciding the next configuration, or that of two ranges that merge
//! - [`force`]: survivors of a range whose majority is gone for good go on, by order of an operator
//! - [`adoption`]: taking up what was decided
//! - [`leaving`]: when a node has no part in any range any more
//! - [`plan`]: the configuration that a range should have
//! - [`repair`]: what the leader of a range does: split, replace, sweep, compare, release
//! - [`transfer`]: the sweep that brings a range to new members
//! - [`compare`], [`digest`]: finding and levelling what members do not hold alike
//! - [`progress`]: how far data has got, for people
//! - [`scrub`]: finding damage on disk
//! - [`tombstones`]: what remains of deleted keys, and when it goes
//! - [`expiry`]: deleting values whose time is over
//! - [`stored`]: the records of this node, with what is not yet on disk

mod acceptor;
mod adoption;
mod change;
mod compare;
mod digest;
mod expiry;
mod fetch;
mod force;
mod leaving;
mod listing;
mod operate;
mod plan;
mod progress;
mod register;
mod repair;
mod round;
mod scrub;
mod slots;
mod stored;
mod tombstones;
mod transfer;

pub(crate) use operate::{Client, Errand};

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::Id;
use crate::call::{ChangeId, ListingId, OperationId, RangeCall, RoundId};
use crate::config::{Ballot, Config, NodeId, Peer, RangeTag, Slot};
use crate::context::Context;
use crate::event::{Notice, Records, StoreError, Ticket};
use crate::membership::{MemberChange, Membership};
use crate::message::{Body, Refusal};
use crate::record::Key;
use crate::request::{Cursor, LocalKey};
use crate::time::{Time, patience};
use crate::timer::Timer;
use crate::view::{KeyCount, RangeView};

/// What a part of the node works with, beside its own state.
pub(crate) struct World<'a, R> {
    pub(crate) ctx: &'a mut Context,
    pub(crate) records: &'a R,
    pub(crate) members: &'a Membership,
}

impl<R> World<'_, R> {
    /// Asks a node something that it answers from memory.
    fn ask(&mut self, peer: &Peer, question: Body, call: RangeCall) {
        self.ask_for(peer, question, call, 0);
    }

    /// Asks a node something that it answers with a value of about so many bytes.
    fn ask_for(&mut self, peer: &Peer, question: Body, call: RangeCall, bytes: usize) {
        let timeout = self.members.rto(&peer.node) + patience(question.value_bytes() + bytes);
        self.ctx.call(&self.members.current(peer), question, call.into(), timeout);
    }

    /// Asks a node something for which it has to read many records, or is not in a hurry.
    fn ask_slowly(&mut self, peer: &Peer, question: Body, call: RangeCall) {
        self.ask_slowly_for(peer, question, call, 0);
    }

    /// The same, where the answer has a value of about so many bytes.
    fn ask_slowly_for(&mut self, peer: &Peer, question: Body, call: RangeCall, bytes: usize) {
        let timeout = self.members.rto(&peer.node) * 2 + patience(question.value_bytes() + bytes);
        self.ctx.call(&self.members.current(peer), question, call.into(), timeout);
    }
}

/// A configuration that this node adopted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    config: Arc<Config>,
    /// Whether the members have everything that `prev` had. Never becomes false again.
    swept: bool,
    /// Whether this node has no more duties here, and its keys may go.
    released: bool,
    /// The commit that puts this on disk: nothing is answered in this epoch before it is.
    #[serde(skip)]
    seq: u64,
}

impl Known {
    /// The rest of a range of which this node knows that it was split, but not what became of this part.
    /// It answers for nothing here, not even in an epoch before.
    fn sealed(old: &Config, hi: Id) -> Self {
        let Config { lo, epoch, .. } = *old;
        let nobody = Vec::new;
        let (members, prev) = (nobody(), nobody());
        let config = Config { lo, hi, epoch, members, prev, forced: false, tie_breaker: None };
        Self { config: Arc::new(config), swept: true, released: false, seq: 0 }
    }

    fn is_sealed(&self) -> bool {
        self.config.members.is_empty()
    }

    fn must_ask_prev(&self) -> bool {
        !self.swept && !self.config.prev.is_empty()
    }

    /// Who may hold data of the range that nobody else has.
    fn holders(&self) -> Vec<&Peer> {
        if self.must_ask_prev() {
            self.config.everyone().collect()
        } else {
            self.config.members.iter().collect()
        }
    }
}

/// When something is to be tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Wake {
    /// A round starts over.
    Round(RoundId),
    /// An operation asks one more member.
    Operation(OperationId),
    /// A list asks a member again that refused.
    Page(ListingId, NodeId),
    /// An attempt to decide a slot asks a member again that was behind.
    Slot(ChangeId, NodeId),
}

/// The data part of a node.
#[derive(Default)]
pub(crate) struct Ranges {
    /// The latest adopted configuration of each range, by its last point.
    known: BTreeMap<Id, Known>,
    slots: BTreeMap<RangeTag, Slot>,
    /// Configurations heard of that need not be this node's: where to send operations.
    hints: BTreeMap<Id, Arc<Config>>,
    stored: stored::Stored,
    registers: register::Registers,
    operations: operate::Operations,
    listings: listing::Listings,
    changes: slots::Changes,
    /// What operators ordered and is not done yet.
    orders: BTreeMap<Ticket, force::Order>,
    invitations: leaving::Invitations,
    leading: BTreeMap<Id, repair::Leading>,
    passes: transfer::Passes,
    comparisons: compare::Comparisons,
    collections: tombstones::Collections,
    expiries: expiry::Expiries,
    ended: progress::Ended,
    wakes: BTreeSet<(Time, Wake)>,
    /// Members that missed something, to be told to the leaders of their ranges.
    missed: BTreeSet<(RangeTag, NodeId)>,
    /// The next leaf of the digests to be scrubbed.
    next_scrubbed: u16,
    disk_full: bool,
    drained: bool,
    /// Until when operations that come in are taken for old ones.
    backlog_until: Option<Time>,
    /// From when what it says of other nodes can be trusted again.
    knows_members_from: Option<Time>,
}

impl Ranges {
    /// The data part as the store left it.
    ///
    /// # Errors
    /// The name of a meta record that cannot be read.
    pub(crate) fn restore(meta: &[(String, Bytes)]) -> Result<Self, String> {
        let mut ranges = Self::default();
        for (name, bytes) in meta {
            if name.starts_with("range/") {
                let known: Known = postcard::from_bytes(bytes).map_err(|_| name.clone())?;
                ranges.known.insert(known.config.hi, known);
            } else if name.starts_with("slot/") {
                let (tag, slot) = postcard::from_bytes(bytes).map_err(|_| name.clone())?;
                ranges.slots.insert(tag, slot);
            } else if name.starts_with(leaving::INVITED_META) {
                let at = postcard::from_bytes(bytes).map_err(|_| name.clone())?;
                ranges.invitations.restore(at);
            }
        }
        Ok(ranges)
    }

    /// Counts the keys on disk and starts the work that is due.
    pub(crate) fn start<R: Records>(&mut self, w: &mut World<'_, R>) -> Result<(), String> {
        self.stored.count(w.records).map_err(|e| e.to_string())?;
        w.ctx.timers.set(Timer::Reconcile, w.ctx.now);
        // Nodes that are started together, or again and again, do not all begin at the same place.
        self.next_scrubbed = w.ctx.rng.below(digest::LEAVES) as u16;
        w.ctx.timers.set(Timer::Scrub, w.ctx.now);
        Ok(())
    }

    /// The first range of a new ring: the whole circle, kept by this node alone.
    pub(crate) fn found<R: Records>(&mut self, w: &mut World<'_, R>) -> u64 {
        let me = w.ctx.me.clone();
        let position = me.node.position;
        let config = Config {
            lo: position,
            hi: position,
            epoch: 1,
            members: vec![me],
            prev: Vec::new(),
            forced: false,
            tie_breaker: None,
        };
        self.adopt(w, &[config])
    }

    /// The adopted configuration that counts for this point: the one with the highest epoch.
    fn current(&self, point: Id) -> Option<&Known> {
        self.known
            .values()
            .filter(|known| known.config.covers(point))
            .max_by_key(|known| known.config.epoch)
    }

    /// Whether no later configuration that this node adopted covers the end of this range.
    fn is_current(&self, known: &Known) -> bool {
        self.current(known.config.hi).is_some_and(|top| top.config.epoch == known.config.epoch)
    }

    /// The best configuration to send an operation on this point to, adopted or only heard of.
    pub(crate) fn best_known(&self, point: Id) -> Option<Arc<Config>> {
        let hint = self.hints.values().filter(|c| c.covers(point)).max_by_key(|c| c.epoch);
        let own = self.current(point).filter(|known| !known.is_sealed());
        let own = own.map(|known| &known.config);
        [hint, own].into_iter().flatten().max_by_key(|c| c.epoch).cloned()
    }

    /// Remembers a configuration that another node told.
    fn learn(&mut self, config: &Config) {
        if self.hints.get(&config.hi).is_none_or(|hint| hint.epoch < config.epoch) {
            self.hints.insert(config.hi, Arc::new(config.clone()));
        }
        if self.hints.len() > HINTS_KEPT {
            self.hints.clear();
        }
    }

    /// The rule every question about data begins with: it is answered only in the epoch this node has
    /// adopted, and only if the node has a duty there.
    fn duty(&self, me: &NodeId, at: RangeTag, point: Id) -> Result<&Known, Refusal> {
        // It may know only a part of what became of the range: then the asker is the one who is behind, and would
        // tell for ever what counts no more.
        let behind = || match self.known.get(&at.hi) {
            Some(later) if later.config.epoch > at.epoch && !later.is_sealed() => {
                Refusal::Newer(Box::new((*later.config).clone()))
            }
            _ => Refusal::Behind,
        };
        let Some(known) = self.current(point) else { return Err(behind()) };
        if known.config.tag() != at {
            return Err(if known.is_sealed() && known.config.epoch >= at.epoch {
                Refusal::NotMember
            } else if known.config.epoch > at.epoch {
                Refusal::Newer(Box::new((*known.config).clone()))
            } else {
                behind()
            });
        }
        let has_duty = known.config.has_member(me) || known.config.has_prev(me);
        if has_duty && !known.released { Ok(known) } else { Err(Refusal::NotMember) }
    }

    /// Ends what this node does for the members of a range. What was done stays.
    fn abort_work(&mut self, hi: Id) {
        self.passes.abort(hi);
        self.comparisons.abort(hi);
        self.collections.abort(hi);
    }

    /// Leads a range no longer, and forgets what only its leader knows.
    fn stop_leading(&mut self, hi: Id) {
        self.leading.remove(&hi);
        self.abort_work(hi);
        self.collections.forget(hi);
    }

    /// Sets a wake-up.
    fn wake_at(&mut self, ctx: &mut Context, at: Time, wake: Wake) {
        self.wakes.insert((at, wake));
        ctx.timers.set_earlier(Timer::Retry, at);
    }

    /// What waited has waited long enough.
    pub(crate) fn on_retry<R: Records>(&mut self, w: &mut World<'_, R>) {
        while let Some((at, wake)) = self.wakes.first().copied() {
            if at > w.ctx.now {
                w.ctx.timers.set_earlier(Timer::Retry, at);
                return;
            }
            self.wakes.pop_first();
            match wake {
                Wake::Round(round) => self.restart_round(w, round),
                Wake::Operation(operation) => self.on_operation_wake(w, operation, at),
                Wake::Page(listing, node) => self.ask_page_again(w, listing, node),
                Wake::Slot(change, node) => self.ask_slot_again(w, change, node),
            }
        }
    }

    /// An answer to a question of the data part, or `None` if it did not come in time.
    pub(crate) fn on_answer<R: Records>(
        &mut self,
        w: &mut World<'_, R>,
        from: NodeId,
        purpose: RangeCall,
        answer: Option<Body>,
    ) {
        match purpose {
            RangeCall::Round(round, phase) => self.on_round_answer(w, round, phase, from, answer),
            RangeCall::Listing(listing) => self.on_listing_answer(w, listing, from, answer),
            RangeCall::Pass(pass, page) => self.on_pass_answer(w, pass, page, from, answer),
            RangeCall::Compare(id, step) => self.on_compare_answer(w, id, step, from, answer),
            RangeCall::Collect(at, step) => self.on_collect_answer(w, at, step, from, answer),
            RangeCall::Expiry(id) => self.on_overdue_answer(w, id, from, answer),
            RangeCall::Clear(at) => self.on_clear_answer(w, at, from, answer),
            RangeCall::Change(change) => self.on_change_answer(w, change, from, answer),
            RangeCall::Adopt => {}
            RangeCall::Config(point) => self.on_config_answer(w, from, point, answer),
            RangeCall::Forward(operation) => self.on_forwarded(w, operation, from, answer),
        }
    }

    /// Keys whose versions changed here since the last time, and what they are now; from now on only if
    /// somebody watches.
    pub(crate) fn take_changed(&mut self, is_watched: bool) -> Vec<(Key, Ballot)> {
        self.stored.notes_changes = is_watched;
        std::mem::take(&mut self.stored.changed)
    }

    /// Everything up to this commit is on disk.
    pub(crate) fn on_persisted(&mut self, seq: u64) {
        self.stored.on_persisted(seq);
    }

    /// Whether the disk has room.
    pub(crate) fn set_disk_full(&mut self, ctx: &mut Context, full: bool) {
        if self.disk_full != full {
            self.disk_full = full;
            ctx.notify(Notice::DiskFull { full });
        }
    }

    /// Members came, went, or were away: leaders look at their ranges.
    pub(crate) fn on_member_changes(&mut self, ctx: &mut Context, changes: &[MemberChange]) {
        for change in changes {
            if let MemberChange::Recovered(node) | MemberChange::Restarted(node) = change {
                for leading in self.leading.values_mut() {
                    leading.mark_lagging(*node);
                }
            }
        }
        ctx.timers.set_earlier(Timer::Reconcile, ctx.now + Duration::from_millis(10));
    }

    /// This node was stopped for a while: who leads a range looks at its members again. What comes in now
    /// may have waited for it so long that its client was served elsewhere.
    pub(crate) fn on_pause(&mut self, ctx: &Context) {
        self.leading.clear();
        let end = ctx.now + BACKLOG;
        self.backlog_until = Some(end);
        self.knows_members_from = Some(end + ctx.settings.suspect_after);
    }

    /// The nodes this one shares a range with: their silence matters.
    pub(crate) fn co_members(&self) -> impl Iterator<Item = &Peer> {
        let held = self.known.values().filter(|known| !known.released);
        held.flat_map(|known| known.config.everyone())
    }

    /// Whether this node has handed over every range.
    pub(crate) const fn is_drained(&self) -> bool {
        self.drained
    }

    /// What this node reports of its ranges.
    pub(crate) fn views<R: Records>(&self, w: &World<'_, R>) -> Vec<RangeView> {
        let me = w.ctx.me.node;
        self.known
            .values()
            .filter(|known| !known.released && self.is_current(known))
            .filter(|known| known.config.has_member(&me) || known.must_ask_prev())
            .map(|known| {
                let config = &known.config;
                let leads = self.leads(w, config);
                let lagging = self.leading.get(&config.hi).filter(|_| leads);
                RangeView {
                    lo: config.lo,
                    hi: config.hi,
                    epoch: config.epoch,
                    members: config.members.clone(),
                    prev: if known.swept { Vec::new() } else { config.prev.clone() },
                    leads,
                    unswept: known.must_ask_prev(),
                    lagging: lagging.map(repair::Leading::lagging).unwrap_or_default(),
                    keys: self.stored.live_in(w.records, config.lo, config.hi),
                }
            })
            .collect()
    }

    /// At most `limit` live keys held here, after a place, and whether there are no more. Values are read
    /// through for it: fewer keys, though at least one, if they are large.
    pub(crate) fn local_keys<R: Records>(
        &self,
        w: &World<'_, R>,
        mut after: Option<Cursor>,
        limit: usize,
    ) -> Result<(Vec<LocalKey>, bool), StoreError> {
        let (mut keys, mut bytes) = (Vec::new(), 0);
        loop {
            let page = self.stored.scan(w.records, after.as_ref(), Id::MAX, limit)?;
            after = page.next();
            for (key, seen) in page.entries {
                let register = expiry::told(w.ctx, &seen.record);
                let Some(value) = &register.value else { continue };
                let Some(known) = self.current(key.hash()).filter(|known| !known.released) else {
                    continue;
                };
                let members = owner_first(&known.config.members, known.config.hi);
                let owned = members.first().is_some_and(|peer| peer.node == w.ctx.me.node);
                let version = register.version;
                let (size, digest, ttl) = (value.size() as u32, value.digest(), value.ttl());
                bytes += register.bytes_here();
                keys.push(LocalKey { key, size, digest, ttl, version, owned });
                if keys.len() >= limit {
                    return Ok((keys, false));
                }
            }
            if after.is_none() || bytes >= acceptor::SCAN_BYTES {
                return Ok((keys, after.is_none()));
            }
        }
    }

    /// How many keys this node owns, and holds for others.
    pub(crate) fn key_count(me: &NodeId, views: &[RangeView]) -> KeyCount {
        let mut count = KeyCount::default();
        for view in views {
            if owner_first(&view.members, view.hi).first().is_some_and(|p| p.node == *me) {
                count.owned += view.keys;
            } else if view.members.iter().any(|peer| peer.node == *me) {
                count.replica += view.keys;
            }
        }
        count
    }
}

/// Members in the order of preference for proposing: the first at or after the end of the range (its
/// owner), then clockwise, so that the predecessor comes last.
pub(crate) fn owner_first(members: &[Peer], hi: Id) -> Vec<Peer> {
    let mut ordered = members.to_vec();
    ordered.sort_by_key(|peer| hi.distance_to(peer.node.position));
    ordered
}

/// How long who refused is left alone before it is asked again: asked at once it would refuse at once, for ever.
const ASK_AGAIN: Duration = Duration::from_millis(4);
/// How long it takes to work off what arrived while this node was stopped.
const BACKLOG: Duration = Duration::from_millis(100);
/// How many configurations of other nodes' ranges are remembered.
const HINTS_KEPT: usize = 4096;

#[cfg(test)]
mod tests;
