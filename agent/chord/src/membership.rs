//! Members: who belongs to the ring, where they are, and who does not answer.
//!
//! Every node keeps an entry of every other it has heard of. A node alone sets the version of its own
//! entry; entries merge by (version, status), so tables become equal in whatever order news arrive.
//! News travel at once to a few random members for a few rounds; pings carry a digest of the table,
//! and where digests differ the tables are exchanged.
//!
//! A node judges only those it asks itself: silence with an unanswered question is suspicion. The
//! verdict is gossiped as a rumour, which is believed by those without fresh news of their own, and
//! which the suspected node refutes by a higher version.

mod goodbye;
mod known;
mod rtt;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Duration;

use crate::call::Purpose;
use crate::config::{NodeId, Peer};
use crate::context::Context;
use crate::event::Notice;
use crate::id::Id;
use crate::message::{Body, CallId, MemberEntry, MemberStatus};
use crate::time::Time;
use crate::timer::Timer;
use crate::view::MemberView;
use known::{Known, hash};

/// The meta record that holds the table.
pub(crate) const MEMBERS_META: &str = "members";

/// To how many random members news are told in each round.
const FANOUT: usize = 3;

/// Shortest time between two writes of the table.
const SAVE_EVERY: Duration = Duration::from_secs(1);

/// Something that changed in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MemberChange {
    /// It is suspected from now on.
    Suspected(NodeId),
    /// It is not suspected any more.
    Recovered(NodeId),
    /// It was started again.
    Restarted(NodeId),
    /// It became known, or says something else about itself.
    Status(NodeId),
}

/// The table of members.
#[derive(Debug)]
pub(crate) struct Membership {
    me: NodeId,
    rto: (Duration, Duration),
    table: BTreeMap<NodeId, Known>,
    /// The wrapping sum of the hashes of all entries.
    digest: u64,
    monitored: BTreeSet<NodeId>,
    /// Entries to tell, and for how many more rounds.
    news: BTreeMap<NodeId, u32>,
    changes: Vec<MemberChange>,
    unsaved: bool,
    saved: Option<Time>,
    /// When tables were exchanged last because digests differed.
    exchanged: Option<Time>,
    /// When the ping timer fired last.
    ticked: Option<Time>,
    /// Whether another node has heard that this one leaves.
    is_leave_heard: bool,
}

impl Membership {
    /// The table as the store left it, with this node in it as `Joining`.
    pub(crate) fn new(ctx: &Context, restored: Option<Vec<MemberEntry>>) -> Self {
        let me = ctx.me.node;
        let mine = MemberEntry {
            peer: ctx.me.clone(),
            version: u64::from(ctx.boot) << 32,
            status: MemberStatus::Joining,
        };
        let mut members = Self {
            me,
            rto: ctx.settings.rto,
            table: BTreeMap::new(),
            digest: 0,
            monitored: BTreeSet::new(),
            news: BTreeMap::new(),
            changes: Vec::new(),
            unsaved: true,
            saved: None,
            exchanged: None,
            ticked: None,
            is_leave_heard: false,
        };
        for entry in restored.into_iter().flatten().filter(|entry| entry.peer.node != me) {
            members.insert(entry);
        }
        members.insert(mine);
        members
    }

    /// A message came from `from` itself: it lives, and is to be found at that address.
    pub(crate) fn heard(&mut self, ctx: &mut Context, from: &Peer) {
        if from.node == self.me {
            return;
        }
        self.learn(from);
        let Some(known) = self.table.get_mut(&from.node) else { return };
        known.heard = Some(ctx.now);
        known.asked = None;
        known.failed = None;
        let was_suspected = known.suspected_since().is_some();
        known.rumour = None;
        if known.verdict.take().is_some() {
            ctx.notify(Notice::Recovered { node: from.clone() });
        }
        if was_suspected {
            self.changes.push(MemberChange::Recovered(from.node));
        }
        if self.table.get(&from.node).is_some_and(|known| known.entry.peer.address != from.address)
        {
            self.edit(&from.node, |known| known.entry.peer = from.clone());
            self.unsaved = true;
        }
    }

    /// Somebody named this node: from now on it can be asked.
    pub(crate) fn learn(&mut self, peer: &Peer) {
        if !self.table.contains_key(&peer.node) {
            let entry =
                MemberEntry { peer: peer.clone(), version: 0, status: MemberStatus::Joining };
            self.insert(entry);
            self.changes.push(MemberChange::Status(peer.node));
        }
    }

    /// A question to `node` was answered after `rtt`.
    pub(crate) fn on_answer(&mut self, node: &NodeId, rtt: Duration) {
        if let Some(known) = self.table.get_mut(node) {
            known.rtt.measured(rtt);
        }
    }

    /// A question to `node` was not answered in time.
    pub(crate) fn on_call_timed_out(&mut self, ctx: &mut Context, node: &NodeId) {
        if let Some(known) = self.table.get_mut(node) {
            known.rtt.timed_out();
            known.asked.get_or_insert(ctx.now);
        }
    }

    /// `node` could not be reached. Twice in a row without hearing of it is suspicion; what happens
    /// within half a ping period is one failure.
    pub(crate) fn on_unreachable(&mut self, ctx: &mut Context, node: &NodeId) {
        let Some(known) = self.table.get_mut(node) else { return };
        known.asked.get_or_insert(ctx.now);
        let (count, last) = known.failed.unwrap_or((0, ctx.now));
        if count > 0 && ctx.now.since(last) < ctx.settings.ping_every / 2 {
            return;
        }
        known.failed = Some((count + 1, ctx.now));
        if count > 0 {
            self.suspect(ctx, *node);
        }
    }

    /// Answers a ping. The asking node compares the digests.
    pub(crate) fn on_ping(&mut self, ctx: &mut Context, from: &Peer, call: CallId) {
        ctx.answer(from, call, Body::Pong { digest: self.digest });
    }

    /// A ping was answered: where the digests differ, the tables are exchanged, though not too often,
    /// since in a large ring they differ all the time.
    pub(crate) fn on_pong(&mut self, ctx: &mut Context, from: &Peer, digest: u64) {
        let pause = ctx.settings.gossip_every / 4;
        let rested = self.exchanged.is_none_or(|last| ctx.now.since(last) >= pause);
        if digest != self.digest && rested {
            self.exchanged = Some(ctx.now);
            self.introduce(ctx, from);
        }
    }

    /// Sends the whole table and asks for the other's.
    pub(crate) fn introduce(&self, ctx: &mut Context, to: &Peer) {
        ctx.tell(to, Body::Gossip { entries: self.entries(), reply: true });
    }

    /// Entries of another node's table. The reply, if wanted, is what this node knows better.
    pub(crate) fn on_gossip(
        &mut self,
        ctx: &mut Context,
        from: &Peer,
        entries: Vec<MemberEntry>,
        reply: bool,
    ) {
        let ranks = entries.iter().map(|entry| (entry.peer.node, (entry.version, entry.status)));
        let theirs: BTreeMap<_, _> = if reply { ranks.collect() } else { BTreeMap::new() };
        let mine = self.table.get(&self.me).map(|known| &known.entry);
        let is_mine = |e: &MemberEntry| {
            mine.is_some_and(|m| {
                m.peer.node == e.peer.node && (m.version, m.status) == (e.version, e.status)
            })
        };
        // Whoever wants a reply has not written down yet what it says.
        if !reply && entries.iter().any(is_mine) {
            self.on_echo(ctx);
        }
        for entry in entries {
            self.merge(ctx, entry);
        }
        self.save(ctx);
        if reply {
            let better = |known: &&Known| {
                let node = &known.entry.peer.node;
                let is_echo = *node == from.node && known.word == MemberStatus::Leaving;
                is_echo || theirs.get(node).is_none_or(|rank| *rank < known.rank())
            };
            let entries: Vec<_> =
                self.table.values().filter(better).map(|known| known.entry.clone()).collect();
            if !entries.is_empty() {
                ctx.tell_after(ctx.last_commit(), from, Body::Gossip { entries, reply: false });
            }
        }
    }

    /// Judges who was asked and stays silent, asks again, and tells news.
    pub(crate) fn on_timer_ping(&mut self, ctx: &mut Context) {
        ctx.set_timer(Timer::Ping, ctx.settings.ping_every);
        self.judge(ctx);
        let mut targets: BTreeSet<NodeId> = self.monitored.clone();
        targets.extend(self.table.values().filter_map(|known| {
            (known.asked.is_some() && known.verdict.is_none()).then_some(known.entry.peer.node)
        }));
        if ctx.rng.below(2) == 0 {
            targets.extend(self.random_other(ctx));
        }
        for node in targets {
            self.ping(ctx, node);
        }
        self.tell_news(ctx);
        self.save(ctx);
    }

    /// Compares the table with that of a random member, also a suspected one: that is how the halves
    /// of a healed partition find each other.
    pub(crate) fn on_timer_gossip(&mut self, ctx: &mut Context) {
        ctx.set_timer(Timer::Gossip, ctx.settings.gossip_every);
        if let Some(node) = self.random_other(ctx) {
            self.ping(ctx, node);
        }
    }

    /// Sets whom this node watches: pinged each time, and judged by its own questions only.
    pub(crate) fn set_monitored(&mut self, nodes: BTreeSet<NodeId>) {
        self.monitored = nodes;
    }

    /// Sets what this node says of itself.
    pub(crate) fn set_status(&mut self, status: MemberStatus) {
        if self.status_of(&self.me) != Some(status) {
            self.assert_myself(status, 0);
            self.changes.push(MemberChange::Status(self.me));
        }
    }

    /// Tells everybody at once what this node says of itself.
    pub(crate) fn declare(&self, ctx: &mut Context) {
        let mine = self.table.get(&self.me).map(|known| known.entry.clone());
        for peer in self.live().filter(|peer| peer.node != self.me) {
            let entries = mine.iter().cloned().collect();
            ctx.tell(peer, Body::Gossip { entries, reply: false });
        }
    }

    /// What a node says of itself, or `Suspect` while it is suspected.
    pub(crate) fn status_of(&self, node: &NodeId) -> Option<MemberStatus> {
        let known = self.table.get(node)?;
        let suspect = known.word != MemberStatus::Left && known.is_suspect();
        Some(if suspect { MemberStatus::Suspect } else { known.word })
    }

    /// Whether a node is not to be relied on: suspected by this node or by rumour, or gone.
    pub(crate) fn is_suspect(&self, node: &NodeId) -> bool {
        self.table.get(node).is_some_and(Known::is_suspect)
    }

    /// Whether the node itself was heard of so lately that it is not suspected for good reason: a table
    /// from before a power cut, or a pause of this node, says nothing about who is there.
    pub(crate) fn is_proven(&self, ctx: &Context, node: &NodeId) -> bool {
        let lately = |known: &Known| {
            let heard =
                known.heard.is_some_and(|at| ctx.now.since(at) < ctx.settings.suspect_after);
            heard && !known.is_suspect()
        };
        *node == self.me || self.table.get(node).is_some_and(lately)
    }

    /// How many nodes said that they are members of the ring and did not leave it, also if silent now. One
    /// that lost its disk and began anew counts once.
    pub(crate) fn count(&self) -> usize {
        let up = self.table.iter().filter(|(_, known)| known.word == MemberStatus::Up);
        up.map(|(node, _)| node.position).collect::<BTreeSet<_>>().len()
    }

    /// Whether a node is gone for good.
    pub(crate) fn has_left(&self, node: &NodeId) -> bool {
        self.table.get(node).is_some_and(|known| known.word == MemberStatus::Left)
    }

    /// For how long a node has been suspected.
    pub(crate) fn suspected_for(&self, now: Time, node: &NodeId) -> Option<Duration> {
        Some(now.since(self.table.get(node)?.suspected_since()?))
    }

    /// A node with its current address.
    pub(crate) fn peer(&self, node: &NodeId) -> Option<&Peer> {
        self.table.get(node).map(|known| &known.entry.peer)
    }

    /// The same node with its current address.
    pub(crate) fn current(&self, peer: &Peer) -> Peer {
        self.peer(&peer.node).unwrap_or(peer).clone()
    }

    /// How long to wait for an answer of a node.
    pub(crate) fn rto(&self, node: &NodeId) -> Duration {
        self.table.get(node).map_or(self.rto.1, |known| known.rtt.timeout(self.rto))
    }

    /// The members that can be relied on, in the order of the circle from its smallest point.
    pub(crate) fn live(&self) -> impl DoubleEndedIterator<Item = &Peer> {
        self.table.values().filter(|known| known.is_live()).map(|known| &known.entry.peer)
    }

    /// The live members other than this node, backwards from `point` (exclusive) around the circle.
    pub(crate) fn live_before(&self, point: Id) -> impl Iterator<Item = &Peer> {
        let here = NodeId { position: point, incarnation: 0 };
        let (before, after) = (self.table.range(..here).rev(), self.table.range(here..).rev());
        before
            .chain(after)
            .filter(move |(node, known)| {
                **node != self.me && node.position != point && known.is_live()
            })
            .map(|(_, known)| &known.entry.peer)
    }

    /// The live member that follows this node most closely. With `heard` only one that this node has
    /// a message from.
    pub(crate) fn next_live(&self, heard: bool) -> Option<&Peer> {
        let after = self.table.range((Bound::Excluded(self.me), Bound::Unbounded));
        after
            .chain(self.table.range(..self.me))
            .map(|(_, known)| known)
            .find(|known| {
                let elsewhere = known.entry.peer.node.position != self.me.position;
                elsewhere && known.is_live() && (!heard || known.heard.is_some())
            })
            .map(|known| &known.entry.peer)
    }

    /// All nodes ever heard of, this one included.
    pub(crate) fn known(&self) -> impl Iterator<Item = &Peer> {
        self.table.values().map(|known| &known.entry.peer)
    }

    /// The other nodes, for the view.
    pub(crate) fn views(&self, now: Time) -> Vec<MemberView> {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let others = self.table.values().filter(|known| known.entry.peer.node != self.me);
        others
            .map(|known| MemberView {
                peer: known.entry.peer.clone(),
                status: self.status_of(&known.entry.peer.node).unwrap_or(known.entry.status),
                suspected_ms: known.verdict.map(|since| millis(now.since(since))),
                rtt_us: known.rtt.mean().and_then(|rtt| u64::try_from(rtt.as_micros()).ok()),
                heard_ms: known.heard.map(|heard| millis(now.since(heard))),
            })
            .collect()
    }

    /// What changed since the last time.
    pub(crate) fn take_changes(&mut self) -> Vec<MemberChange> {
        std::mem::take(&mut self.changes)
    }

    fn insert(&mut self, entry: MemberEntry) {
        self.digest = self.digest.wrapping_add(hash(&entry));
        self.tell_later(entry.peer.node);
        self.table.insert(entry.peer.node, Known::new(entry));
        self.unsaved = true;
    }

    fn edit(&mut self, node: &NodeId, change: impl FnOnce(&mut Known)) {
        if let Some(known) = self.table.get_mut(node) {
            self.digest = self.digest.wrapping_sub(hash(&known.entry));
            change(known);
            self.digest = self.digest.wrapping_add(hash(&known.entry));
        }
    }

    fn tell_later(&mut self, node: NodeId) {
        let rounds = 3 + (self.table.len() + 1).ilog2();
        self.news.insert(node, rounds);
    }

    /// Raises the version of the own entry above `seen` and its own.
    fn assert_myself(&mut self, status: MemberStatus, seen: u64) {
        self.edit(&self.me.clone(), |known| {
            known.entry.version = known.entry.version.max(seen).saturating_add(1);
            known.entry.status = status;
            known.word = status;
        });
        self.tell_later(self.me);
        self.unsaved = true;
    }

    fn merge(&mut self, ctx: &mut Context, entry: MemberEntry) {
        let node = entry.peer.node;
        let rank = (entry.version, entry.status);
        let Some(known) = self.table.get_mut(&node) else {
            let suspect = entry.status == MemberStatus::Suspect;
            self.insert(entry);
            self.edit(&node, |known| known.rumour = suspect.then_some(ctx.now));
            self.changes.push(MemberChange::Status(node));
            self.supersede(node.position);
            return;
        };
        if rank <= known.rank() {
            return;
        }
        if node == self.me {
            let word = known.word;
            self.assert_myself(word, entry.version);
            return;
        }
        let (old_boot, boot) = (known.entry.version >> 32, entry.version >> 32);
        let old_word = known.word;
        let was_suspected = known.suspected_since().is_some();
        if entry.status == MemberStatus::Suspect {
            let fresh =
                known.heard.is_some_and(|heard| ctx.now.since(heard) < ctx.settings.suspect_after);
            if !fresh && !self.monitored.contains(&node) {
                known.rumour.get_or_insert(ctx.now);
            }
        } else {
            known.rumour = None;
            known.word = entry.status;
        }
        let suspected = known.suspected_since().is_some();
        let word = known.word;
        self.edit(&node, |known| {
            let same = entry.version == known.entry.version;
            let peer = if same { known.entry.peer.clone() } else { entry.peer };
            known.entry = MemberEntry { peer, ..entry };
        });
        if boot > old_boot && old_boot > 0 {
            self.changes.push(MemberChange::Restarted(node));
        }
        if word != old_word {
            self.changes.push(MemberChange::Status(node));
        }
        match (was_suspected, suspected) {
            (false, true) => self.changes.push(MemberChange::Suspected(node)),
            (true, false) => self.changes.push(MemberChange::Recovered(node)),
            _ => {}
        }
        self.tell_later(node);
        self.unsaved |= entry.status != MemberStatus::Suspect;
        if word == MemberStatus::Leaving && old_word != word {
            // It goes when this node repeats it: then it is on disk, with all that it told of others.
            self.saved = None;
        }
        self.supersede(node.position);
    }

    /// Suspects everybody who was asked and stays silent too long.
    fn judge(&mut self, ctx: &mut Context) {
        let (now, patience, every) = (ctx.now, ctx.settings.suspect_after, ctx.settings.ping_every);
        // A node that was itself stopped has answers still to read: it judges nobody by that time.
        let was_away = self.ticked.is_some_and(|last| now.since(last) > every * 3);
        self.ticked = Some(now);
        let mut silent = Vec::new();
        for known in self.table.values_mut() {
            let Some(asked) = known.asked else { continue };
            if was_away {
                known.asked = Some(now);
            } else if known.verdict.is_none()
                && now.since(asked) >= patience.saturating_sub(every)
                && now.since(known.heard.unwrap_or(asked)) >= patience
            {
                silent.push(known.entry.peer.node);
            }
        }
        for node in silent {
            self.suspect(ctx, node);
        }
        self.say_goodbye(ctx);
    }

    fn suspect(&mut self, ctx: &mut Context, node: NodeId) {
        let Some(known) = self.table.get_mut(&node) else { return };
        if known.verdict.is_some() || known.word == MemberStatus::Left || node == self.me {
            return;
        }
        known.verdict = Some(ctx.now);
        ctx.notify(Notice::Suspected { node: known.entry.peer.clone() });
        if known.rumour.is_none() {
            self.changes.push(MemberChange::Suspected(node));
        }
        // Suspicion must not hide that it leaves: for those who hear only now of it, too, it has left when
        // it stays silent.
        let hides = known.word != MemberStatus::Leaving;
        if hides && known.entry.status < MemberStatus::Suspect {
            self.edit(&node, |known| known.entry.status = MemberStatus::Suspect);
            self.tell_later(node);
        }
        self.supersede(node.position);
    }

    /// A newcomer at the position of a node that does not answer has taken its place: that node lost
    /// its disk, and its old incarnation will not come back.
    fn supersede(&mut self, position: Id) {
        let at = |incarnation| NodeId { position, incarnation };
        let here = || self.table.range(at(0)..=at(u64::MAX));
        if !here().any(|(_, known)| known.is_live()) {
            return;
        }
        let gone: Vec<_> = here()
            .filter(|(_, known)| known.suspected_since().is_some())
            .filter(|(_, known)| known.word != MemberStatus::Left)
            .map(|(node, _)| *node)
            .collect();
        for node in gone {
            self.set_left(node);
        }
    }

    fn ping(&mut self, ctx: &mut Context, node: NodeId) {
        let Some(known) = self.table.get_mut(&node) else { return };
        if node == self.me || known.word == MemberStatus::Left {
            return;
        }
        known.asked.get_or_insert(ctx.now);
        let (peer, timeout) = (known.entry.peer.clone(), known.rtt.timeout(self.rto));
        ctx.call(&peer, Body::Ping { digest: self.digest }, Purpose::Ping, timeout);
    }

    /// A random other node that has not left.
    fn random_other(&self, ctx: &mut Context) -> Option<NodeId> {
        let others: Vec<_> = self
            .table
            .iter()
            .filter(|(node, known)| **node != self.me && known.word != MemberStatus::Left)
            .map(|(node, _)| *node)
            .collect();
        others.get(ctx.rng.below(others.len())).copied()
    }

    fn tell_news(&mut self, ctx: &mut Context) {
        let mut others: Vec<_> = self
            .table
            .values()
            .filter(|known| known.entry.peer.node != self.me && !known.is_suspect())
            .map(|known| known.entry.peer.clone())
            .collect();
        if self.news.is_empty() || others.is_empty() {
            return;
        }
        let told = |node: &NodeId| self.table.get(node).map(|known| known.entry.clone());
        let entries: Vec<_> = self.news.keys().filter_map(told).collect();
        for _ in 0..FANOUT.min(others.len()) {
            let to = others.swap_remove(ctx.rng.below(others.len()));
            let news = Body::Gossip { entries: entries.clone(), reply: false };
            ctx.tell_after(ctx.last_commit(), &to, news);
        }
        self.news.retain(|_, rounds| {
            *rounds -= 1;
            *rounds > 0
        });
    }

    fn save(&mut self, ctx: &mut Context) {
        if self.unsaved && self.saved.is_none_or(|last| ctx.now.since(last) >= SAVE_EVERY) {
            self.unsaved = false;
            self.saved = Some(ctx.now);
            ctx.persist_meta(MEMBERS_META, &self.entries());
        }
    }

    fn entries(&self) -> Vec<MemberEntry> {
        self.table.values().map(|known| known.entry.clone()).collect()
    }
}
