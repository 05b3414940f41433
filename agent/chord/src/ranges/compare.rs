//! A comparison: the members of a range find what they do not hold alike, and who lacks something gets it.
//!
//! Digests are compared from the whole range downwards, so that only what differs is looked at. A record
//! goes from a member that holds it to those that lack it as an ordinary request to accept, with the ballot
//! it was accepted under: a delayed message of that round, which a member refuses if it has promised more.
//! Then the key is accepted anew, by a round like a read with write-back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::digest::{DEEPEST, arc, before};
use super::listing::merge_pages;
use super::progress::{Left, Progress, listed};
use super::round::{Job, Origin, Task};
use super::transfer::{BYTES_UNDER_WAY, KEY_DEADLINE};
use super::{Ranges, World};
use crate::Id;
use crate::call::{CompareStep, PassId, RangeCall};
use crate::config::{Ballot, Config, NodeId, Peer};
use crate::event::{Notice, Records};
use crate::message::{Body, Refusal, ScanEntry};
use crate::record::{Key, Register};
use crate::request::Cursor;
use crate::time::{Time, patience};
use crate::timer::Timer;
use crate::view::{Transfer, TransferKind};

/// Where to look.
#[derive(Debug, Clone)]
enum Place {
    /// At the digests of the arcs below this prefix.
    Digests(Vec<u8>),
    /// At the keys of the arc of this prefix, after some key.
    Keys(Vec<u8>, Option<Key>),
}

/// What the members hold in a place.
struct Look {
    place: Place,
    digests: BTreeMap<NodeId, BTreeMap<u8, u64>>,
    pages: BTreeMap<NodeId, (Vec<ScanEntry>, bool)>,
    /// Who was told of the configuration, because it was behind: once, and not for ever.
    told: BTreeSet<NodeId>,
}

/// A record on its way to the members that lack it.
struct Copying {
    holders: Vec<Peer>,
    lacking: Vec<Peer>,
    /// Members that were asked to accept it and have not answered.
    open: usize,
    /// Bytes of its value.
    size: u32,
    /// Whether a round of its own settles it.
    anew: bool,
}

/// The comparison of a range's members.
struct Comparison {
    id: PassId,
    config: Arc<Config>,
    /// The marks of lagging members at the start.
    marks: BTreeMap<NodeId, u64>,
    /// Whom it is about: the members that can be reached.
    members: Vec<Peer>,
    todo: Vec<Place>,
    looking: BTreeMap<u64, Look>,
    waiting: Vec<(Key, Copying)>,
    copying: BTreeMap<Key, Copying>,
    last: u64,
    progress: Progress,
    /// Who was found to hold what others lack, and who lacks it.
    ends: (BTreeSet<Peer>, BTreeSet<Peer>),
    /// Keys that members hold under one ballot with different content: nobody can tell who is right.
    diverged: Vec<Key>,
}

/// The comparisons of this process, at most one a range.
#[derive(Default)]
pub(super) struct Comparisons {
    under_way: BTreeMap<Id, Comparison>,
    last: u64,
}

impl Comparisons {
    /// Ends a comparison. What was copied stays.
    pub(super) fn abort(&mut self, hi: Id) {
        self.under_way.remove(&hi);
    }

    /// Whether the members of this range are being compared.
    pub(super) fn is_under_way(&self, hi: Id) -> bool {
        self.under_way.contains_key(&hi)
    }

    /// How far those have got that found something to bring.
    pub(super) fn reports(&self, now: Time) -> impl Iterator<Item = Transfer> {
        let found = self.under_way.values().filter(|comparison| !comparison.ends.1.is_empty());
        found.map(move |comparison| comparison.report(now, None))
    }

    fn get_mut(&mut self, id: PassId) -> Option<&mut Comparison> {
        self.under_way.values_mut().find(|comparison| comparison.id == id)
    }
}

const PAGE: u32 = 512;
/// Diverged keys that are named; more are not worth a longer message.
const NAMED: usize = 10;

impl Ranges {
    /// Compares the members that can be reached, and levels what differs.
    pub(super) fn start_compare<R: Records>(&mut self, w: &mut World<'_, R>, config: &Arc<Config>) {
        if self.comparisons.is_under_way(config.hi) {
            return;
        }
        let Some(leading) = self.leading.get(&config.hi) else { return };
        let mut marks = leading.marks();
        marks.retain(|node, _| !w.members.is_suspect(node));
        let reached = |peer: &&Peer| !w.members.is_suspect(&peer.node);
        self.comparisons.last += 1;
        let comparison = Comparison {
            id: PassId(self.comparisons.last),
            config: Arc::clone(config),
            marks,
            members: config.members.iter().filter(reached).cloned().collect(),
            todo: vec![Place::Digests(Vec::new())],
            looking: BTreeMap::new(),
            waiting: Vec::new(),
            copying: BTreeMap::new(),
            last: 0,
            progress: Progress::new(w.ctx.now),
            ends: (BTreeSet::new(), BTreeSet::new()),
            diverged: Vec::new(),
        };
        self.comparisons.under_way.insert(config.hi, comparison);
        self.go_on_comparing(w, config.hi);
    }

    /// Keeps as much under way as the window allows; copies first, so that little has to be remembered.
    fn go_on_comparing<R: Records>(&mut self, w: &mut World<'_, R>, hi: Id) {
        let window = w.ctx.settings.sweep_window;
        while let Some(comparison) = self.comparisons.under_way.get_mut(&hi)
            && comparison.looking.len() + comparison.copying.len() < window
        {
            if comparison.bytes_in_flight() >= BYTES_UNDER_WAY {
                break;
            } else if let Some((key, copying)) = comparison.waiting.pop() {
                self.start_copy(w, hi, key, copying);
            } else if let Some(place) = comparison.todo.pop() {
                self.look(w, hi, place);
            } else {
                break;
            }
        }
        let is_done = |c: &Comparison| {
            c.looking.is_empty()
                && c.copying.is_empty()
                && c.waiting.is_empty()
                && c.todo.is_empty()
        };
        if self.comparisons.under_way.get(&hi).is_some_and(is_done)
            && let Some(comparison) = self.comparisons.under_way.remove(&hi)
        {
            self.finish_compare(w, comparison);
        }
    }

    fn look<R: Records>(&mut self, w: &mut World<'_, R>, hi: Id, place: Place) {
        let Some(comparison) = self.comparisons.under_way.get_mut(&hi) else { return };
        comparison.last += 1;
        let number = comparison.last;
        let (digests, pages, told) = Default::default();
        let look = Look { place, digests, pages, told };
        comparison.looking.insert(number, look);
        for peer in comparison.members.clone() {
            self.ask_look(w, hi, number, &peer);
        }
    }

    fn ask_look<R: Records>(&mut self, w: &mut World<'_, R>, hi: Id, number: u64, peer: &Peer) {
        let Some(comparison) = self.comparisons.under_way.get(&hi) else { return };
        let Some(look) = comparison.looking.get(&number) else { return };
        let at = comparison.config.tag();
        let question = match &look.place {
            Place::Digests(prefix) => Body::Digest { at, prefix: prefix.clone() },
            Place::Keys(prefix, after) => {
                let (first, through) = arc(prefix);
                let after = after.clone().map(Cursor::AfterKey).or_else(|| before(first));
                Body::Scan {
                    at,
                    after,
                    through,
                    limit: PAGE,
                    with_digest: true,
                    with_version: false,
                }
            }
        };
        w.ask_slowly(peer, question, RangeCall::Compare(comparison.id, CompareStep::Look(number)));
    }

    /// An answer to a comparison, or none in time.
    pub(super) fn on_compare_answer<R: Records>(
        &mut self,
        w: &mut World<'_, R>,
        id: PassId,
        step: CompareStep,
        from: NodeId,
        answer: Option<Body>,
    ) {
        let Some(comparison) = self.comparisons.get_mut(id) else { return };
        let hi = comparison.config.hi;
        let at = comparison.config.tag();
        match (step, answer) {
            (_, Some(Body::Refused(Refusal::Newer(config)))) => {
                self.comparisons.abort(hi);
                return self.on_newer(w, *config);
            }
            (CompareStep::Look(number), Some(Body::Refused(Refusal::Behind)))
                if from != w.ctx.me.node =>
            {
                let Some(look) = comparison.looking.get_mut(&number) else { return };
                if !look.told.insert(from) {
                    return self.comparisons.abort(hi);
                }
                let configs = self.configs_over(&at);
                self.tell_decided(w, from, configs);
                self.look_again(w, hi, number, from);
            }
            // It needs them all: it is started again when the member can be reached.
            (_, None) if w.members.is_suspect(&from) => self.comparisons.abort(hi),
            (CompareStep::Look(number), None) => self.look_again(w, hi, number, from),
            (CompareStep::Look(number), Some(Body::Digested { sums })) => {
                if let Some(look) = comparison.looking.get_mut(&number) {
                    look.digests.insert(from, sums.into_iter().collect());
                    self.on_looked(hi, number);
                }
            }
            (CompareStep::Look(number), Some(Body::Scanned { entries, end })) => {
                if let Some(look) = comparison.looking.get_mut(&number) {
                    look.pages.insert(from, (entries, end));
                    self.on_looked(hi, number);
                }
            }
            (CompareStep::Look(_), Some(_)) => self.comparisons.abort(hi),
            (CompareStep::Fetch(key), Some(Body::Held { accepted, register: Some(register) })) => {
                self.copy(w, hi, &key, accepted, register);
            }
            (CompareStep::Copy(key), Some(Body::Accepted)) => {
                if let Some(copying) = comparison.copying.get_mut(&key).filter(|c| !c.anew) {
                    copying.open = copying.open.saturating_sub(1);
                    if copying.open == 0 {
                        comparison.copied(w.ctx.now, &key);
                    }
                }
            }
            // Whatever came between, a round of its own settles the key.
            (CompareStep::Fetch(key) | CompareStep::Copy(key), _) => {
                if comparison.copying.get(&key).is_some_and(|copying| !copying.anew) {
                    self.accept_anew(w, hi, key);
                }
            }
        }
        self.go_on_comparing(w, hi);
    }

    fn look_again<R: Records>(&mut self, w: &mut World<'_, R>, hi: Id, number: u64, node: NodeId) {
        let Some(comparison) = self.comparisons.under_way.get(&hi) else { return };
        let peer = comparison.members.iter().find(|peer| peer.node == node).cloned();
        if let Some(peer) = peer {
            self.ask_look(w, hi, number, &peer);
        }
    }

    /// When all members have told what they hold in a place, what differs is looked at more closely.
    fn on_looked(&mut self, hi: Id, number: u64) {
        let Some(comparison) = self.comparisons.under_way.get_mut(&hi) else { return };
        let all = comparison.members.len();
        let is_complete = |look: &Look| look.digests.len().max(look.pages.len()) == all;
        if !comparison.looking.get(&number).is_some_and(is_complete) {
            return;
        }
        let Some(look) = comparison.looking.remove(&number) else { return };
        match look.place {
            Place::Digests(prefix) => {
                let sums: Vec<_> = look.digests.into_values().collect();
                let differs =
                    |byte: &u8| sums.windows(2).any(|two| two[0].get(byte) != two[1].get(byte));
                let below = (0..=u8::MAX).filter(differs).map(|byte| {
                    let longer = [&prefix[..], &[byte]].concat();
                    if longer.len() > DEEPEST {
                        Place::Keys(longer, None)
                    } else {
                        Place::Digests(longer)
                    }
                });
                comparison.todo.extend(below.collect::<Vec<_>>());
            }
            Place::Keys(prefix, _) => comparison.on_keys(prefix, &look.pages),
        }
    }

    fn start_copy<R: Records>(&mut self, w: &mut World<'_, R>, hi: Id, key: Key, copying: Copying) {
        let Some(comparison) = self.comparisons.under_way.get_mut(&hi) else { return };
        let me = w.ctx.me.node;
        let holder =
            copying.holders.iter().min_by_key(|peer| (peer.node != me, peer.node)).cloned();
        comparison.copying.insert(key.clone(), copying);
        let Some(holder) = holder else { return self.accept_anew(w, hi, key) };
        let question =
            Body::Read { at: comparison.config.tag(), key: key.clone(), with_value: true };
        let size = comparison.copying.get(&key).map_or(0, |copying| copying.size as usize);
        let step = CompareStep::Fetch(key);
        w.ask_slowly_for(&holder, question, RangeCall::Compare(comparison.id, step), size);
    }

    /// A holder gave its record: the members that lack it are asked to accept it.
    fn copy<R: Records>(
        &mut self,
        w: &mut World<'_, R>,
        hi: Id,
        key: &Key,
        ballot: Ballot,
        register: Register,
    ) {
        let Some(comparison) = self.comparisons.under_way.get_mut(&hi) else { return };
        let Some(copying) = comparison.copying.get_mut(key) else { return };
        if ballot == Ballot::ZERO {
            // Forgotten meanwhile.
            comparison.copying.remove(key);
            return;
        }
        if register.value.as_ref().is_some_and(|value| value.ttl().is_some()) {
            // How much of its time is left is not for one clock to say.
            return self.accept_anew(w, hi, key.clone());
        }
        copying.open = copying.lacking.len();
        let (id, at) = (comparison.id, comparison.config.tag());
        for peer in copying.lacking.clone() {
            let (key, register) = (key.clone(), register.clone());
            let question = Body::Accept { at, key: key.clone(), ballot, register, next: None };
            w.ask_slowly(&peer, question, RangeCall::Compare(id, CompareStep::Copy(key)));
        }
    }

    /// Lets all members accept a key's state again.
    fn accept_anew<R: Records>(&mut self, w: &mut World<'_, R>, hi: Id, key: Key) {
        let Some(comparison) = self.comparisons.under_way.get_mut(&hi) else { return };
        let Some(copying) = comparison.copying.get_mut(&key) else { return };
        copying.anew = true;
        let origin = Origin::Comparison(comparison.id, key.clone());
        let deadline = w.ctx.now + KEY_DEADLINE + patience(copying.size as usize) * 2;
        self.submit(w, &key, Job { origin, task: Task::Identity, deadline });
    }

    /// A key that was accepted anew is done, or has to be tried again.
    pub(super) fn on_compared_key_done<R: Records>(
        &mut self,
        w: &mut World<'_, R>,
        id: PassId,
        key: Key,
        is_done: bool,
    ) {
        let Some(comparison) = self.comparisons.get_mut(id) else { return };
        let hi = comparison.config.hi;
        if !is_done {
            // Its members still count as lagging, and are compared again in a while.
            return self.comparisons.abort(hi);
        }
        comparison.copied(w.ctx.now, &key);
        self.go_on_comparing(w, hi);
    }

    fn finish_compare<R: Records>(&mut self, w: &mut World<'_, R>, done: Comparison) {
        let hi = done.config.hi;
        if let Some(leading) = self.leading.get_mut(&hi) {
            leading.clear_lagging(&done.marks);
            leading.compared = w.ctx.now;
        }
        let now = w.ctx.now;
        if done.progress.keys > 0 {
            w.ctx.notify(Notice::Aligned { hi, keys: done.progress.keys });
            self.ended.push(now, done.report(now, Some(now)));
        }
        if !done.diverged.is_empty() {
            let keys = done.diverged.iter().take(NAMED).map(|key| key.name().to_owned()).collect();
            w.ctx.notify(Notice::Diverged { hi, count: done.diverged.len() as u64, keys });
        }
        w.ctx.timers.set_earlier(Timer::Reconcile, w.ctx.now);
    }
}

impl Comparison {
    /// The bytes of the values that are being copied.
    fn bytes_in_flight(&self) -> usize {
        self.copying.values().map(|copying| copying.size as usize).sum()
    }

    /// All that lacked this key have it.
    fn copied(&mut self, now: Time, key: &Key) {
        let copying = self.copying.remove(key);
        self.progress.key_done(now, copying.map_or(0, |copying| copying.size));
    }

    fn report(&self, now: Time, ended: Option<Time>) -> Transfer {
        let what = (TransferKind::Catchup, &*self.config);
        let keys = (self.waiting.len() + self.copying.len()) as u64;
        self.progress.report(what, listed(&self.ends), Left { through: None, keys }, (now, ended))
    }

    /// Finds the keys that the members do not hold alike.
    fn on_keys(&mut self, prefix: Vec<u8>, pages: &BTreeMap<NodeId, (Vec<ScanEntry>, bool)>) {
        let (merged, horizon) = merge_pages(pages.values());
        let held: BTreeMap<NodeId, BTreeMap<&Key, &ScanEntry>> = pages
            .iter()
            .map(|(node, (entries, _))| (*node, entries.iter().map(|e| (&e.key, e)).collect()))
            .collect();
        for (key, newest) in merged {
            if newest.accepted == Ballot::ZERO || !self.config.covers(key.hash()) {
                continue;
            }
            let entry = |peer: &Peer| held.get(&peer.node).and_then(|page| page.get(&key).copied());
            let holds = |peer: &&Peer| entry(peer).is_some_and(|e| e.accepted == newest.accepted);
            let (holders, lacking): (Vec<&Peer>, Vec<&Peer>) = self.members.iter().partition(holds);
            if holders.iter().any(|peer| entry(peer).is_some_and(|e| e.digest != newest.digest)) {
                self.diverged.push(key);
            } else if !lacking.is_empty() {
                let [holders, lacking]: [Vec<Peer>; 2] =
                    [holders, lacking].map(|peers| peers.into_iter().cloned().collect());
                self.ends.0.extend(holders.iter().cloned());
                self.ends.1.extend(lacking.iter().cloned());
                let size = newest.size;
                self.waiting.push((key, Copying { holders, lacking, open: 0, size, anew: false }));
            }
        }
        if let Some(last) = horizon {
            self.todo.push(Place::Keys(prefix, Some(last)));
        }
    }
}
