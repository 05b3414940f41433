//! What the leader of a range does: it splits the range for a newcomer, replaces members that are gone,
//! has their data swept to the new ones, and compares members that may have missed something.
//!
//! The leader is the first member clockwise from the end of the range that is not suspected. Two may
//! believe to lead at once: every step they take is safe all the same.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::{RangeCall, Ranges, World, owner_first};
use crate::Id;
use crate::config::{Config, NodeId, Peer, Proposal, RangeTag, is_majority};
use crate::event::{Notice, Records};
use crate::message::{Body, MemberStatus};
use crate::request::Cursor;
use crate::time::Time;
use crate::timer::Timer;

/// What a leader knows of its range.
pub(super) struct Leading {
    /// Members that may lack writes, and how often one was seen to miss something.
    lagging: BTreeMap<NodeId, u64>,
    /// When the members were compared last.
    pub(super) compared: Time,
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
        let me = w.ctx.me.node;
        let mut busy = false;
        for hi in self.known.keys().copied().collect::<Vec<_>>() {
            let Some(known) = self.known.get(&hi) else { continue };
            let config = Arc::clone(&known.config);
            if known.released {
                busy |= self.forget_keys(w, &config);
                continue;
            }
            if !self.is_current(known) {
                continue;
            }
            if config.has_member(&me) && self.leads(w, &config) {
                self.lead(w, &config);
            } else {
                self.leading.remove(&hi);
                self.passes.abort(hi);
            }
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
            Leading { lagging, compared: now }
        });
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
            self.passes.abort(hi);
            self.start_change(w, config, proposal);
        } else if can_compare {
            self.start_compare(w, config);
        }
    }

    /// Asks a member whether the range has moved on without this node, or without that member.
    fn inquire<R: Records>(&mut self, w: &mut World<'_, R>, config: &Config) {
        if w.ctx.rng.below(4) != 0 {
            return;
        }
        let me = w.ctx.me.node;
        // Of a part whose members are not known, any node may know more.
        let asked: Vec<_> = if config.members.is_empty() {
            w.members.live().cloned().collect()
        } else {
            config.members.clone()
        };
        let others: Vec<_> = asked
            .iter()
            .filter(|peer| peer.node != me && !w.members.is_suspect(&peer.node))
            .collect();
        if let Some(peer) = others.get(w.ctx.rng.below(others.len())) {
            let to = w.members.current(peer);
            let timeout = w.members.rto(&peer.node);
            w.ctx.call(
                &to,
                Body::GetConfig { point: config.hi },
                RangeCall::Config(config.hi).into(),
                timeout,
            );
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

    /// Removes keys of a range this node has left; whether there may be more.
    fn forget_keys<R: Records>(&mut self, w: &mut World<'_, R>, config: &Config) -> bool {
        let mut forgotten = 0;
        for (after, through) in segments(config.lo, config.hi) {
            let page = self.stored.scan(w.records, after.as_ref(), through, RELEASE_AT_ONCE);
            let Ok((page, _)) = page else { return false };
            for (key, seen) in page {
                let is_released = self.current(key.hash()).is_some_and(|known| known.released);
                if is_released && seen.record != crate::record::Record::EMPTY {
                    self.stored.forget(w.ctx, &key, &seen.record);
                    forgotten += 1;
                }
            }
        }
        forgotten >= RELEASE_AT_ONCE
    }

    /// A leaving node has done its part when it has no duty in any range.
    fn see_whether_drained<R: Records>(&mut self, w: &mut World<'_, R>) {
        let is_leaving = matches!(
            w.members.status_of(&w.ctx.me.node),
            Some(MemberStatus::Leaving | MemberStatus::Left)
        );
        let has_duty = self.known.values().any(|known| !known.released && self.is_current(known));
        if is_leaving && !has_duty && !self.drained {
            w.ctx.notify(Notice::Drained);
        }
        self.drained = is_leaving && !has_duty;
    }
}

/// The change this range needs, or none.
fn wanted<R: Records>(w: &World<'_, R>, config: &Config) -> Option<Proposal> {
    let nodes = nodes_for(w, config);
    let replicas = w.ctx.settings.replicas;
    // Who is silent is not gone: where more are missing than a range can spare, waiting is better than
    // trusting few nodes.
    if nodes.len() + replicas / 2 < replicas.min(w.members.count()) {
        return None;
    }
    let next = |lo: Id, hi: Id, members: Vec<Peer>| {
        let keeps = config.same_members(&members);
        let prev = if keeps { Vec::new() } else { config.members.clone() };
        Config { lo, hi, epoch: config.epoch + 1, members, prev }
    };
    let inside: Vec<_> = nodes
        .iter()
        .map(|peer| peer.node.position)
        .filter(|position| position.is_between(config.lo, config.hi))
        .filter(|position| is_up(w, &nodes, *position))
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect();
    if !inside.is_empty() {
        let mut ordered = inside;
        ordered.sort_by_key(|position| config.lo.distance_to(*position));
        let middle = ordered[ordered.len() / 2];
        let first = next(config.lo, middle, members_around(&nodes, middle, replicas));
        let second = next(middle, config.hi, members_around(&nodes, config.hi, replicas));
        return Some(vec![first, second]);
    }
    let members = members_around(&nodes, config.hi, replicas);
    let is_needed = !members.is_empty() && !config.same_members(&members);
    is_needed.then(|| vec![next(config.lo, config.hi, members)])
}

/// Whether a majority of the new members is known to live. Otherwise a member that is silent, but not
/// for long enough to be replaced, could take the range with it.
fn can_go_on<R: Records>(w: &World<'_, R>, proposal: &Proposal) -> bool {
    proposal.iter().all(|config| {
        let live =
            config.members.iter().filter(|peer| w.members.is_proven(w.ctx, &peer.node)).count();
        is_majority(live, config.members.len())
    })
}

/// The nodes to choose members from: those that are up by their own word to this process (a table from
/// before a power cut names nodes that are gone), and present members that may come back soon.
fn nodes_for<R: Records>(w: &World<'_, R>, config: &Config) -> Vec<Peer> {
    let mut nodes: BTreeMap<NodeId, Peer> = w
        .members
        .live()
        .filter(|peer| w.members.status_of(&peer.node) == Some(MemberStatus::Up))
        .filter(|peer| w.members.is_proven(w.ctx, &peer.node))
        .map(|peer| (peer.node, peer.clone()))
        .collect();
    for peer in &config.members {
        let is_gone = matches!(
            w.members.status_of(&peer.node),
            Some(MemberStatus::Left | MemberStatus::Leaving)
        );
        let silence = w.members.suspected_for(w.ctx.now, &peer.node).unwrap_or_default();
        if !is_gone && silence < w.ctx.settings.repair_after {
            nodes.entry(peer.node).or_insert_with(|| w.members.current(peer));
        }
    }
    nodes.into_values().collect()
}

fn is_up<R: Records>(w: &World<'_, R>, nodes: &[Peer], position: Id) -> bool {
    nodes.iter().any(|peer| {
        peer.node.position == position
            && !w.members.is_suspect(&peer.node)
            && w.members.status_of(&peer.node) == Some(MemberStatus::Up)
    })
}

/// The members a range that ends here should have: the first node at or after its end, its predecessor,
/// its successor, and so on outwards. `nodes` are in ring order.
fn members_around(nodes: &[Peer], hi: Id, replicas: usize) -> Vec<Peer> {
    let count = replicas.min(nodes.len());
    let owner = nodes.partition_point(|peer| peer.node.position < hi);
    let at = |step: isize| {
        let len = nodes.len() as isize;
        nodes[(owner as isize + step).rem_euclid(len) as usize].clone()
    };
    let outwards = (0..count as isize).map(|i| if i % 2 == 1 { -(i + 1) / 2 } else { i / 2 });
    outwards.map(at).collect()
}

/// The range (lo, hi] as one or two stretches of the list of all keys.
pub(super) fn segments(lo: Id, hi: Id) -> Vec<(Option<Cursor>, Id)> {
    if lo < hi {
        vec![(Some(Cursor::AfterPoint(lo)), hi)]
    } else if lo == Id::MAX {
        vec![(None, hi)]
    } else {
        vec![(Some(Cursor::AfterPoint(lo)), Id::MAX), (None, hi)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(positions: &[u64]) -> Vec<Peer> {
        positions
            .iter()
            .map(|p| Peer {
                node: NodeId { position: Id::small(*p), incarnation: 1 },
                address: format!("n{p}").into(),
            })
            .collect()
    }

    fn chosen(positions: &[u64], hi: u64, replicas: usize) -> Vec<Id> {
        members_around(&ring(positions), Id::small(hi), replicas)
            .iter()
            .map(|peer| peer.node.position)
            .collect()
    }

    #[test]
    fn members_are_owner_predecessor_and_successor() {
        let id = Id::small;
        assert_eq!(chosen(&[1, 4, 6], 4, 3), [id(4), id(1), id(6)]);
        assert_eq!(chosen(&[1, 4, 6, 9], 5, 3), [id(6), id(4), id(9)]);
        assert_eq!(chosen(&[1, 4, 6, 9], 10, 3), [id(1), id(9), id(4)]);
        assert_eq!(chosen(&[1, 4, 6, 9, 12], 6, 5), [id(6), id(4), id(9), id(1), id(12)]);
    }

    #[test]
    fn small_rings_have_fewer_members() {
        let id = Id::small;
        assert_eq!(chosen(&[5], 5, 3), [id(5)]);
        assert_eq!(chosen(&[5, 8], 5, 3), [id(5), id(8)]);
        assert!(chosen(&[], 5, 3).is_empty());
    }
}
