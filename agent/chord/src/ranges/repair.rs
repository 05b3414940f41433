//! What the leader of a range does: it splits the range for a newcomer, replaces members that are gone,
//! has their data swept to the new ones, and compares members that may have missed something.
//!
//! The leader is the first member clockwise from the end of the range that is not suspected. Two may
//! believe to lead at once: every step they take is safe all the same.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::plan::{can_go_on, is_kept_apart, merged, wanted};
use super::{RangeCall, Ranges, World, owner_first};
use crate::config::{Config, NodeId, Peer, Proposal, RangeTag};
use crate::event::Records;
use crate::message::{Body, Refusal};
use crate::record::Record;
use crate::request::{Cursor, segments};
use crate::time::Time;
use crate::timer::Timer;

/// What a leader knows of its range.
pub(super) struct Leading {
    /// Members that may lack writes, and how often one was seen to miss something.
    lagging: BTreeMap<NodeId, u64>,
    /// When the members were compared last.
    pub(super) compared: Time,
    /// The epoch that this node leads, and since when.
    epoch: u64,
    pub(super) epoch_since: Time,
    /// Tombstones accepted in epochs before this one are old enough to go; 0: it is not known of any.
    pub(super) old_before: u64,
    /// They are not collected before: a member did not answer.
    pub(super) collects_from: Time,
    /// Nodes that hold nothing of the range and can become members in the next epoch.
    cleared: BTreeSet<NodeId>,
}

impl Leading {
    /// A member may lack writes.
    pub(super) fn mark_lagging(&mut self, node: NodeId) {
        *self.lagging.entry(node).or_default() += 1;
    }

    /// The members that may lack writes.
    pub(super) fn lagging(&self) -> Vec<NodeId> {
        self.lagging.keys().copied().collect()
    }

    pub(super) fn marks(&self) -> BTreeMap<NodeId, u64> {
        self.lagging.clone()
    }

    /// Who is not a member any more need not catch up.
    fn keep_members(&mut self, config: &Config) {
        self.lagging.retain(|node, _| config.has_member(node));
    }

    /// Members that missed nothing since `before` was taken are up to date.
    pub(super) fn clear_lagging(&mut self, before: &BTreeMap<NodeId, u64>) {
        self.lagging.retain(|node, marks| before.get(node) != Some(marks));
    }
}

/// What was done about the keys of a range that this node has left.
pub(super) struct Forgotten {
    /// How many records were removed.
    now: usize,
    /// Whether there are some in a part of it where the node has a duty.
    keeps_some: bool,
}

impl Forgotten {
    /// Whether there was nothing.
    pub(super) const fn is_nothing(&self) -> bool {
        self.now == 0 && !self.keeps_some
    }
}

const RECONCILE_EVERY: Duration = Duration::from_millis(500);
/// Keys removed at once from a range this node has left.
const RELEASE_AT_ONCE: usize = 256;

impl Ranges {
    /// Whether this node leads the range.
    pub(super) fn leads<R: Records>(&self, w: &World<'_, R>, config: &Config) -> bool {
        owner_first(&config.members, config.hi)
            .iter()
            .find(|peer| !w.members.is_suspect(&peer.node))
            .is_some_and(|peer| peer.node == w.ctx.me.node)
    }

    /// Looks at every range this node has a part in.
    pub(crate) fn on_reconcile<R: Records>(&mut self, w: &mut World<'_, R>) {
        w.ctx.set_timer(Timer::Reconcile, RECONCILE_EVERY);
        if w.ctx.is_broken() {
            return;
        }
        self.report_missed(w);
        self.carry_out_orders(w);
        let me = w.ctx.me.node;
        let mut busy = false;
        for hi in self.known.keys().copied().collect::<Vec<_>>() {
            let Some(known) = self.known.get(&hi) else { continue };
            let config = Arc::clone(&known.config);
            if known.released {
                let forgotten = self.forget_keys(w, &config);
                busy |= forgotten.is_some_and(|forgotten| forgotten.now >= RELEASE_AT_ONCE);
                continue;
            }
            if !self.is_current(known) {
                continue;
            }
            if config.has_member(&me) && self.leads(w, &config) {
                self.lead(w, &config);
            } else {
                self.stop_leading(hi);
            }
            self.expire(w, &config);
            self.inquire(w, &config);
        }
        if busy {
            w.ctx.timers.set_earlier(Timer::Reconcile, w.ctx.now + Duration::from_millis(5));
        }
        self.see_whether_drained(w);
    }

    /// The next step for a range this node leads.
    fn lead<R: Records>(&mut self, w: &mut World<'_, R>, config: &Arc<Config>) {
        let hi = config.hi;
        let Some(unswept) = self.known.get(&hi).map(super::Known::must_ask_prev) else { return };
        let now = w.ctx.now;
        let me = w.ctx.me.node;
        let leading = self.leading.entry(hi).or_insert_with(|| {
            // A new leader does not know who missed what, unless a sweep is about to bring everything.
            let others = config.members.iter().map(|peer| peer.node).filter(|node| *node != me);
            let lagging = others.filter(|_| !unswept).map(|node| (node, 1)).collect();
            Leading {
                lagging,
                compared: now,
                epoch: config.epoch,
                epoch_since: now,
                old_before: 0,
                collects_from: now,
                cleared: BTreeSet::new(),
            }
        });
        if leading.epoch != config.epoch {
            (leading.epoch, leading.epoch_since) = (config.epoch, now);
            leading.cleared.clear();
        }
        if now.since(leading.compared) > w.ctx.settings.compare_every {
            leading.compared = now;
            for peer in config.members.iter().filter(|peer| peer.node != me) {
                leading.mark_lagging(peer.node);
            }
        }
        leading.keep_members(config);
        let can_compare = leading.lagging.keys().any(|node| !w.members.is_suspect(node));
        if self.is_changing(hi, now) {
            return;
        }
        if unswept {
            self.start_sweep(w, config);
        } else if self.knows_members_from.is_some_and(|from| now < from) {
            w.ctx.timers.set_earlier(Timer::Reconcile, now + RECONCILE_EVERY);
        } else if let Some(proposal) = wanted(w, config).filter(|next| can_go_on(w, next)) {
            self.abort_work(hi);
            self.change_members(w, config, proposal);
        } else if can_compare {
            self.start_compare(w, config);
        } else if let Some(proposal) = self.wanted_merge(w, config) {
            self.start_change(w, config, proposal);
        } else {
            self.collect(w, config);
        }
    }

    /// Decides new members, once those that come in hold nothing from before.
    fn change_members<R: Records>(
        &mut self,
        w: &mut World<'_, R>,
        config: &Arc<Config>,
        proposal: Proposal,
    ) {
        let Some(leading) = self.leading.get(&config.hi) else { return };
        let wanted = proposal.configs().iter().flat_map(|next| &next.members);
        let unready: BTreeSet<&Peer> = wanted
            .filter(|peer| !config.has_member(&peer.node) && !leading.cleared.contains(&peer.node))
            .collect();
        if unready.is_empty() {
            return self.start_change(w, config, proposal);
        }
        for peer in unready {
            let question = Body::Clear { config: (**config).clone() };
            w.ask(peer, question, RangeCall::Clear(config.tag()));
        }
    }

    /// A node that is to become a member is ready, or is not yet.
    pub(super) fn on_clear_answer<R: Records>(
        &mut self,
        w: &mut World<'_, R>,
        at: RangeTag,
        from: NodeId,
        answer: Option<Body>,
    ) {
        match answer {
            Some(Body::Cleared) => {
                let leading = self.leading.get_mut(&at.hi);
                if let Some(leading) = leading.filter(|leading| leading.epoch == at.epoch) {
                    leading.cleared.insert(from);
                    w.ctx.timers.set_earlier(Timer::Reconcile, w.ctx.now);
                }
            }
            Some(Body::Refused(Refusal::Newer(config))) => self.on_newer(w, *config),
            Some(_) => {
                let soon = w.ctx.now + Duration::from_millis(50);
                w.ctx.timers.set_earlier(Timer::Reconcile, soon);
            }
            None => {}
        }
    }

    /// The merge of this range with the one before it, if nothing keeps them apart any more: they have the
    /// same members, and no node between them.
    fn wanted_merge<R: Records>(&self, w: &World<'_, R>, right: &Config) -> Option<Proposal> {
        let known = self.known.get(&right.lo).filter(|known| self.is_current(known))?;
        let left = &known.config;
        let is_other = left.hi != right.hi && !known.is_sealed();
        let is_settled = !known.must_ask_prev()
            && !self.is_changing(left.hi, w.ctx.now)
            && !self.comparisons.is_under_way(left.hi)
            && wanted(w, left).is_none();
        let merge = merged(left, right);
        let are_alike = left.same_members(&right.members) && left.tie_breaker == right.tie_breaker;
        let fits = is_other && is_settled && are_alike;
        (fits && !is_kept_apart(w, left) && can_go_on(w, &merge)).then_some(merge)
    }

    /// Asks a member whether the range has moved on without this node, or without that member.
    fn inquire<R: Records>(&mut self, w: &mut World<'_, R>, config: &Config) {
        if w.ctx.rng.below(4) != 0 {
            return;
        }
        let me = w.ctx.me.node;
        // Who was a member before may know that the sweep is done, and have released the range.
        let is_unswept = self.known.get(&config.hi).is_some_and(super::Known::must_ask_prev);
        let asked: Vec<&Peer> = match is_unswept {
            true => config.everyone().collect(),
            false => config.members.iter().collect(),
        };
        let can_tell = |peer: &&Peer| peer.node != me && !w.members.is_suspect(&peer.node);
        let mut others: Vec<_> = asked.into_iter().filter(can_tell).collect();
        if others.is_empty() {
            // The members are not known, or have left since: any node may know more.
            others = w.members.live().filter(can_tell).collect();
        }
        if let Some(peer) = others.get(w.ctx.rng.below(others.len())) {
            let peer = (*peer).clone();
            let question = Body::GetConfig { point: config.hi };
            w.ask(&peer, question, RangeCall::Config(config.hi));
        }
    }

    /// Notes that a member missed something in this range.
    pub(super) fn report_lagging<R: Records>(
        &mut self,
        w: &World<'_, R>,
        at: RangeTag,
        node: NodeId,
    ) {
        if node == w.ctx.me.node {
            return;
        }
        match self.leading.get_mut(&at.hi) {
            Some(leading) => leading.mark_lagging(node),
            None => {
                self.missed.insert((at, node));
            }
        }
    }

    /// Tells leaders which of their members missed something.
    fn report_missed<R: Records>(&mut self, w: &mut World<'_, R>) {
        for (at, member) in std::mem::take(&mut self.missed) {
            let Some(known) = self.known.get(&at.hi) else { continue };
            let leader = owner_first(&known.config.members, at.hi)
                .into_iter()
                .find(|peer| !w.members.is_suspect(&peer.node) && peer.node != member);
            if let Some(leader) = leader.filter(|peer| peer.node != w.ctx.me.node) {
                w.ctx.tell(&w.members.current(&leader), Body::Lagging { at, member });
            }
        }
    }

    /// Another proposer saw a member miss something.
    pub(crate) fn on_lagging(
        &mut self,
        ctx: &mut crate::context::Context,
        at: RangeTag,
        node: NodeId,
    ) {
        if let Some(leading) = self.leading.get_mut(&at.hi) {
            leading.mark_lagging(node);
            ctx.timers.set_earlier(Timer::Reconcile, ctx.now + Duration::from_millis(50));
        }
    }

    /// Removes some keys of a range this node has left; none if they cannot be read.
    pub(super) fn forget_keys<R: Records>(
        &mut self,
        w: &mut World<'_, R>,
        config: &Config,
    ) -> Option<Forgotten> {
        let mut forgotten = Forgotten { now: 0, keeps_some: false };
        for (mut after, through) in segments(config.lo, config.hi) {
            loop {
                let page = self.stored.scan(w.records, after.as_ref(), through, RELEASE_AT_ONCE);
                let page = page.ok()?;
                after = page.next();
                let held =
                    page.entries.into_iter().filter(|(_, seen)| seen.record != Record::EMPTY);
                for (key, seen) in held {
                    let here = self.current(key.hash());
                    if here.is_some_and(|known| known.released) {
                        self.stored.forget(w.ctx, &key, &seen.record);
                        forgotten.now += 1;
                        continue;
                    }
                    forgotten.keeps_some = true;
                    // A part that it has a duty in need not be read to its end, however much that is.
                    let end = here.map_or(key.hash(), |known| known.config.hi);
                    let is_last = end < key.hash() || end >= through;
                    after = (!is_last).then_some(Cursor::AfterPoint(end));
                    break;
                }
                // What is forgotten but still on disk may fill whole pages: what is behind them counts.
                if after.is_none() || forgotten.now >= RELEASE_AT_ONCE {
                    break;
                }
            }
        }
        Some(forgotten)
    }
}
