//! A sweep: everything that the former members of a range hold is accepted again as it is, so that the
//! present members have it in this epoch. The code is that of a read with write-back, nothing else.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::listing::merge_pages;
use super::progress::{Left, Progress, ends_of_sweep};
use super::round::{Job, Origin, Task};
use super::{Ranges, World};
use crate::Id;
use crate::call::{PassId, RangeCall};
use crate::config::{Ballot, Config, NodeId, Peer};
use crate::event::{Notice, Records};
use crate::message::{Body, Refusal, ScanEntry};
use crate::record::Key;
use crate::request::{Cursor, segments};
use crate::time::{Time, patience};
use crate::timer::Timer;
use crate::view::{Transfer, TransferKind};

struct Pass {
    id: PassId,
    config: Arc<Config>,
    /// Stretches of keys still to be seen; the first one from `after` on.
    stretches: VecDeque<(Option<Cursor>, Id)>,
    /// Counts the pages: a late answer about an earlier one says nothing about this one.
    page: u32,
    pages: BTreeMap<NodeId, (Vec<ScanEntry>, bool)>,
    /// Sources that did not want to answer, as while their store is broken.
    refused: BTreeSet<NodeId>,
    /// For which page a source was told of the configuration, because it was behind: once, and not for ever.
    told: BTreeSet<(u32, NodeId)>,
    waiting: VecDeque<Key>,
    in_flight: usize,
    /// The bytes of the values of the keys under way.
    bytes_in_flight: usize,
    /// Everything up to this point is done.
    through: Id,
    /// The sizes of the values of the page's keys.
    sizes: BTreeMap<Key, u32>,
    progress: Progress,
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

    /// How far they have got.
    pub(super) fn reports(&self, now: Time) -> impl Iterator<Item = Transfer> {
        self.under_way.values().map(move |pass| pass.report(now, None))
    }
}

impl Pass {
    fn size_of(&self, key: &Key) -> usize {
        self.sizes.get(key).map_or(0, |size| *size as usize)
    }

    fn report(&self, now: Time, ended: Option<Time>) -> Transfer {
        let what = (TransferKind::Sweep, &*self.config);
        let keys = (self.waiting.len() + self.in_flight) as u64;
        let left = Left { through: Some(self.through), keys };
        self.progress.report(what, ends_of_sweep(&self.config), left, (now, ended))
    }
}

const PAGE: u32 = 512;
/// How long one key may take before it is tried again, if its value is short.
pub(super) const KEY_DEADLINE: Duration = Duration::from_secs(5);
/// No further key is begun while the values of those under way have as many bytes.
pub(super) const BYTES_UNDER_WAY: usize = 8 << 20;

impl Ranges {
    /// Brings everything the former members hold to the present ones.
    pub(super) fn start_sweep<R: Records>(&mut self, w: &mut World<'_, R>, config: &Arc<Config>) {
        if self.passes.under_way.contains_key(&config.hi) {
            return self.go_on(w, config.hi);
        }
        w.ctx.notify(Notice::SweepStarted { hi: config.hi, epoch: config.epoch });
        self.passes.last += 1;
        let pass = Pass {
            id: PassId(self.passes.last),
            config: Arc::clone(config),
            stretches: segments(config.lo, config.hi).into(),
            page: 0,
            pages: BTreeMap::new(),
            refused: BTreeSet::new(),
            told: BTreeSet::new(),
            waiting: VecDeque::new(),
            in_flight: 0,
            bytes_in_flight: 0,
            through: config.lo,
            sizes: BTreeMap::new(),
            progress: Progress::new(w.ctx.now),
        };
        self.passes.under_way.insert(config.hi, pass);
        self.ask_pages(w, config.hi);
    }

    /// Asks all sources for their next page.
    fn ask_pages<R: Records>(&mut self, w: &mut World<'_, R>, hi: Id) {
        let Some(pass) = self.passes.under_way.get_mut(&hi) else { return };
        pass.page += 1;
        pass.through = match pass.stretches.front() {
            Some((Some(Cursor::AfterPoint(point)), _)) => *point,
            Some((Some(Cursor::AfterKey(key)), _)) => key.hash(),
            Some((None, _)) | None => Id::MAX,
        };
        pass.pages.clear();
        pass.refused.clear();
        for peer in pass.config.prev.clone() {
            self.ask_pass_page(w, hi, &peer);
        }
    }

    fn ask_pass_page<R: Records>(&mut self, w: &mut World<'_, R>, hi: Id, peer: &Peer) {
        let Some(pass) = self.passes.under_way.get(&hi) else { return };
        let Some((after, through)) = pass.stretches.front().cloned() else { return };
        let at = pass.config.tag();
        let question =
            Body::Scan { at, after, through, limit: PAGE, with_digest: false, with_version: false };
        w.ask_slowly(peer, question, RangeCall::Pass(pass.id, pass.page));
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
                pass.progress.step_done(w.ctx.now);
                self.on_pages(w, hi);
            }
            Some(Body::Refused(Refusal::Newer(config))) => {
                self.passes.abort(hi);
                self.on_newer(w, *config);
            }
            // What a node has decided it need not tell itself: it would refuse itself for ever.
            Some(Body::Refused(Refusal::Behind)) if from == w.ctx.me.node => self.passes.abort(hi),
            Some(Body::Refused(Refusal::Behind)) if pass.told.insert((page, from)) => {
                let at = pass.config.tag();
                let configs = self.configs_over(&at);
                self.tell_decided(w, from, configs);
                self.ask_again(w, hi, from);
            }
            None => self.ask_again(w, hi, from),
            Some(_) => {
                pass.refused.insert(from);
            }
        }
    }

    fn ask_again<R: Records>(&mut self, w: &mut World<'_, R>, hi: Id, node: NodeId) {
        let Some(pass) = self.passes.under_way.get(&hi) else { return };
        let peer = pass.config.prev.iter().find(|peer| peer.node == node).cloned();
        if let Some(peer) = peer.filter(|_| !pass.pages.contains_key(&node)) {
            self.ask_pass_page(w, hi, &peer);
        }
    }

    /// When enough sources have answered, the keys of the page are handled.
    fn on_pages<R: Records>(&mut self, w: &mut World<'_, R>, hi: Id) {
        let Some(pass) = self.passes.under_way.get_mut(&hi) else { return };
        let is_enough = pass.config.is_prev_quorum(|node| pass.pages.contains_key(node));
        if !is_enough || !pass.waiting.is_empty() || pass.in_flight > 0 {
            return;
        }
        let (merged, horizon) = merge_pages(pass.pages.values());
        let held = merged.into_iter().filter(|(_, entry)| entry.accepted != Ballot::ZERO);
        pass.sizes = held.map(|(key, entry)| (key, entry.size)).collect();
        pass.waiting = pass.sizes.keys().cloned().collect();
        pass.pages.clear();
        match (horizon, pass.stretches.front_mut()) {
            (Some(last), Some((after, _))) => *after = Some(Cursor::AfterKey(last)),
            _ => {
                pass.stretches.pop_front();
            }
        }
        self.feed(w, hi);
    }

    /// Keeps as many keys under way as the window allows; asks for the next page when all are done.
    fn feed<R: Records>(&mut self, w: &mut World<'_, R>, hi: Id) {
        let window = w.ctx.settings.sweep_window;
        while let Some(pass) = self.passes.under_way.get_mut(&hi)
            && pass.in_flight < window
            && pass.bytes_in_flight < BYTES_UNDER_WAY
            && let Some(key) = pass.waiting.pop_front()
        {
            pass.in_flight += 1;
            let bytes = pass.size_of(&key);
            pass.bytes_in_flight += bytes;
            let deadline = w.ctx.now + KEY_DEADLINE + patience(bytes) * 2;
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

    /// Tries the keys again that failed, and asks the sources again that refused.
    fn go_on<R: Records>(&mut self, w: &mut World<'_, R>, hi: Id) {
        let Some(pass) = self.passes.under_way.get_mut(&hi) else { return };
        for node in std::mem::take(&mut pass.refused) {
            self.ask_again(w, hi, node);
        }
        let pass = self.passes.under_way.get(&hi);
        if pass.is_some_and(|pass| pass.in_flight == 0 && !pass.waiting.is_empty()) {
            self.feed(w, hi);
        }
    }

    /// A key of a pass is done, or has to be tried again: later, for what refused it, such as a full
    /// disk of this node itself, would refuse it again at once, for ever.
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
        pass.bytes_in_flight -= pass.size_of(&key);
        if is_done {
            let size = pass.sizes.remove(&key).unwrap_or_default();
            pass.progress.key_done(w.ctx.now, size);
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
        w.ctx.notify(Notice::SweepDone { hi, epoch: at.epoch, keys: pass.progress.keys });
        let (now, done) = (w.ctx.now, Pass { through: hi, ..pass });
        self.ended.push(now, done.report(now, Some(now)));
        self.on_swept(w, at);
        // Who is told forgets what it held: from then on nobody may need to sweep again.
        let known_here = w.ctx.last_commit();
        let me = w.ctx.me.node;
        for peer in done.config.everyone().filter(|peer| peer.node != me) {
            w.ctx.tell_after(known_here, &w.members.current(peer), Body::Swept { at });
        }
        w.ctx.timers.set_earlier(Timer::Reconcile, w.ctx.now);
    }
}
