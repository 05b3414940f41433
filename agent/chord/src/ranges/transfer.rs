//! A pass over the keys of a range: each key that needs it is accepted again as it is, so that all
//! members have it in this epoch. The code is that of a read with write-back, nothing else.
//!
//! A sweep handles every key that a majority of the former members holds; a comparison only those that
//! the members do not hold under the same ballot.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::listing::merge_pages;
use super::repair::segments;
use super::round::{Job, Origin, Task};
use super::{Ranges, World};
use crate::Id;
use crate::call::{PassId, RangeCall};
use crate::config::{Ballot, Config, NodeId, Peer, is_majority};
use crate::event::{Notice, Records};
use crate::message::{Body, Refusal, ScanEntry};
use crate::record::Key;
use crate::request::Cursor;
use crate::timer::Timer;

#[derive(Debug, Clone, PartialEq)]
enum Kind {
    /// Of everything the former members hold.
    Sweep,
    /// Of what these members do not hold alike; with the marks at the start.
    Compare(BTreeMap<NodeId, u64>),
}

struct Pass {
    id: PassId,
    kind: Kind,
    config: Arc<Config>,
    /// Whom pages are asked from.
    sources: Vec<Peer>,
    /// Stretches of keys still to be seen; the first one from `after` on.
    stretches: VecDeque<(Option<Cursor>, Id)>,
    /// Counts the pages: a late answer about an earlier one says nothing about this one.
    page: u32,
    pages: BTreeMap<NodeId, (Vec<ScanEntry>, bool)>,
    waiting: VecDeque<Key>,
    in_flight: usize,
    handled: u64,
}

/// The passes of this process, at most one a range.
#[derive(Default)]
pub(super) struct Passes {
    under_way: BTreeMap<Id, Pass>,
    last: u64,
}

impl Passes {
    /// Ends a pass; jobs under way end by themselves.
    pub(super) fn abort(&mut self, hi: Id) {
        self.under_way.remove(&hi);
    }
}

const PAGE: u32 = 512;
/// How long one key may take before it is tried again.
const KEY_DEADLINE: Duration = Duration::from_secs(5);

impl Ranges {
    /// Brings everything the former members hold to the present ones.
    pub(super) fn start_sweep<R: Records>(&mut self, w: &mut World<'_, R>, config: &Arc<Config>) {
        if self.passes.under_way.contains_key(&config.hi) {
            return self.try_again(w, config.hi);
        }
        w.ctx.notify(Notice::SweepStarted { hi: config.hi, epoch: config.epoch });
        self.start_pass(w, config, Kind::Sweep, config.prev.clone());
    }

    /// Compares the members that can be reached, and levels what differs.
    pub(super) fn start_compare<R: Records>(&mut self, w: &mut World<'_, R>, config: &Arc<Config>) {
        if self.passes.under_way.contains_key(&config.hi) {
            return self.try_again(w, config.hi);
        }
        let Some(leading) = self.leading.get(&config.hi) else { return };
        let mut marks = leading.marks();
        marks.retain(|node, _| !w.members.is_suspect(node));
        let sources = config
            .members
            .iter()
            .filter(|peer| !w.members.is_suspect(&peer.node))
            .cloned()
            .collect();
        self.start_pass(w, config, Kind::Compare(marks), sources);
    }

    fn start_pass<R: Records>(
        &mut self,
        w: &mut World<'_, R>,
        config: &Arc<Config>,
        kind: Kind,
        sources: Vec<Peer>,
    ) {
        self.passes.last += 1;
        let pass = Pass {
            id: PassId(self.passes.last),
            kind,
            config: Arc::clone(config),
            sources,
            stretches: segments(config.lo, config.hi).into(),
            page: 0,
            pages: BTreeMap::new(),
            waiting: VecDeque::new(),
            in_flight: 0,
            handled: 0,
        };
        self.passes.under_way.insert(config.hi, pass);
        self.ask_pages(w, config.hi);
    }

    /// Asks all sources for their next page.
    fn ask_pages<R: Records>(&mut self, w: &mut World<'_, R>, hi: Id) {
        let Some(pass) = self.passes.under_way.get_mut(&hi) else { return };
        pass.page += 1;
        pass.pages.clear();
        for peer in pass.sources.clone() {
            self.ask_pass_page(w, hi, &peer);
        }
    }

    fn ask_pass_page<R: Records>(&mut self, w: &mut World<'_, R>, hi: Id, peer: &Peer) {
        let Some(pass) = self.passes.under_way.get(&hi) else { return };
        let Some((after, through)) = pass.stretches.front().cloned() else { return };
        let question = Body::Scan { at: pass.config.tag(), after, through, limit: PAGE };
        let timeout = w.members.rto(&peer.node) * 2;
        w.ctx.call(
            &w.members.current(peer),
            question,
            RangeCall::Pass(pass.id, pass.page).into(),
            timeout,
        );
    }

    /// A source's page, or none in time.
    pub(super) fn on_pass_answer<R: Records>(
        &mut self,
        w: &mut World<'_, R>,
        id: PassId,
        page: u32,
        from: NodeId,
        answer: Option<Body>,
    ) {
        let mut passes = self.passes.under_way.values_mut();
        let found = passes.find(|pass| pass.id == id && pass.page == page);
        let Some(pass) = found else { return };
        let hi = pass.config.hi;
        match answer {
            Some(Body::Scanned { entries, end }) => {
                pass.pages.insert(from, (entries, end));
                self.on_pages(w, hi);
            }
            Some(Body::Refused(Refusal::Newer(config))) => {
                self.passes.abort(hi);
                self.on_newer(w, *config);
            }
            Some(Body::Refused(Refusal::Behind)) => {
                let at = pass.config.tag();
                let configs = self.configs_over(&at);
                self.tell_decided(w, from, configs);
                self.ask_again(w, hi, from);
            }
            // A comparison needs them all: it is started again when the member can be reached.
            None if matches!(pass.kind, Kind::Compare(_)) && w.members.is_suspect(&from) => {
                self.passes.abort(hi);
            }
            None => self.ask_again(w, hi, from),
            Some(_) if matches!(pass.kind, Kind::Compare(_)) => self.passes.abort(hi),
            Some(_) => {}
        }
    }

    fn ask_again<R: Records>(&mut self, w: &mut World<'_, R>, hi: Id, node: NodeId) {
        let Some(pass) = self.passes.under_way.get(&hi) else { return };
        let peer = pass.sources.iter().find(|peer| peer.node == node).cloned();
        if let Some(peer) = peer.filter(|_| !pass.pages.contains_key(&node)) {
            self.ask_pass_page(w, hi, &peer);
        }
    }

    /// When enough sources have answered, the keys of the page are handled.
    fn on_pages<R: Records>(&mut self, w: &mut World<'_, R>, hi: Id) {
        let Some(pass) = self.passes.under_way.get_mut(&hi) else { return };
        let answered = pass.pages.len();
        let is_enough = match pass.kind {
            Kind::Sweep => is_majority(answered, pass.sources.len()),
            Kind::Compare(_) => answered == pass.sources.len(),
        };
        if !is_enough || !pass.waiting.is_empty() || pass.in_flight > 0 {
            return;
        }
        let (merged, horizon) = merge_pages(pass.pages.values());
        let held: Vec<BTreeMap<&Key, Ballot>> = pass
            .pages
            .values()
            .map(|(entries, _)| entries.iter().map(|e| (&e.key, e.accepted)).collect())
            .collect();
        let differs = |key: &Key, accepted: Ballot| {
            held.iter().any(|page| page.get(key).copied().unwrap_or(Ballot::ZERO) != accepted)
        };
        let sweeps = pass.kind == Kind::Sweep;
        let keys: Vec<_> = merged
            .iter()
            .filter(|(_, entry)| entry.accepted != Ballot::ZERO)
            .filter(|(key, entry)| sweeps || differs(key, entry.accepted))
            .map(|(key, _)| key.clone())
            .collect();
        pass.waiting = keys.into();
        pass.pages.clear();
        match (horizon, pass.stretches.front_mut()) {
            (Some(last), Some((after, _))) => *after = Some(Cursor::AfterKey(last)),
            _ => {
                pass.stretches.pop_front();
            }
        }
        self.feed(w, hi);
    }

    /// Goes on with keys that failed. They wait for that: a member whose disk is full refuses at once, again
    /// and again.
    fn try_again<R: Records>(&mut self, w: &mut World<'_, R>, hi: Id) {
        if self.passes.under_way.get(&hi).is_some_and(|pass| !pass.waiting.is_empty()) {
            self.feed(w, hi);
        }
    }

    /// Keeps as many keys under way as the window allows; asks for the next page when all are done.
    fn feed<R: Records>(&mut self, w: &mut World<'_, R>, hi: Id) {
        let window = w.ctx.settings.sweep_window;
        while let Some(pass) = self.passes.under_way.get_mut(&hi)
            && pass.in_flight < window
            && let Some(key) = pass.waiting.pop_front()
        {
            pass.in_flight += 1;
            let deadline = w.ctx.now + KEY_DEADLINE;
            let job =
                Job { origin: Origin::Pass(pass.id, key.clone()), task: Task::Identity, deadline };
            self.submit(w, &key, job);
        }
        let Some(pass) = self.passes.under_way.get(&hi) else { return };
        if pass.in_flight > 0 || !pass.waiting.is_empty() {
            return;
        }
        if pass.stretches.is_empty() {
            self.finish_pass(w, hi);
        } else {
            self.ask_pages(w, hi);
        }
    }

    /// A key of a pass is done, or has to be tried again.
    pub(super) fn on_pass_key_done<R: Records>(
        &mut self,
        w: &mut World<'_, R>,
        id: PassId,
        key: Key,
        is_done: bool,
    ) {
        let found = self.passes.under_way.values_mut().find(|pass| pass.id == id);
        let Some(pass) = found else { return };
        let hi = pass.config.hi;
        pass.in_flight -= 1;
        if is_done {
            pass.handled += 1;
        } else {
            let at = pass.config.tag();
            if self.duty(&w.ctx.me.node, at, key.hash()).is_err() {
                return self.passes.abort(hi);
            }
            if let Some(pass) = self.passes.under_way.get_mut(&hi) {
                pass.waiting.push_back(key);
            }
            return;
        }
        self.feed(w, hi);
    }

    fn finish_pass<R: Records>(&mut self, w: &mut World<'_, R>, hi: Id) {
        let Some(pass) = self.passes.under_way.remove(&hi) else { return };
        let at = pass.config.tag();
        match pass.kind {
            Kind::Sweep => {
                w.ctx.notify(Notice::SweepDone { hi, epoch: at.epoch, keys: pass.handled });
                let me = w.ctx.me.node;
                for peer in pass.config.everyone().filter(|peer| peer.node != me) {
                    w.ctx.tell(&w.members.current(peer), Body::Swept { at });
                }
                self.on_swept(w, at);
            }
            Kind::Compare(marks) => {
                if let Some(leading) = self.leading.get_mut(&hi) {
                    leading.clear_lagging(&marks);
                    leading.compared = w.ctx.now;
                }
                if pass.handled > 0 {
                    w.ctx.notify(Notice::Aligned { hi, keys: pass.handled });
                }
            }
        }
        w.ctx.timers.set_earlier(Timer::Reconcile, w.ctx.now);
    }
}
