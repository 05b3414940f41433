//! Watches: this node tells its shell of the latest value of a key, or of each key of a prefix, again
//! whenever one changes.
//!
//! What is told was read from a quorum, one read after the other for each key. So versions of a key are told
//! in their order, none that was not chosen, and not each of them, but always the last. All else says only
//! what to read:
//!
//! - hints of the nodes that accept changes ([`audience`]). Every member is asked for them, and asked
//!   again every second. They are numbered: who misses one, or was not told of anything for a while, looks at
//!   everything again;
//! - looks at everything: the list of keys is compared with what was told. At the beginning, when hints may
//!   have been missed, and now and then.
//!
//! The shell says how much it has room for. A watch without room tells nothing, and remembers the keys only.

mod audience;
#[cfg(test)]
mod tests;

pub(crate) use audience::Audience;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::call::{Look, Purpose};
use crate::config::{Ballot, NodeId, Peer};
use crate::context::Context;
use crate::event::{Told, WatchEnd};
use crate::membership::Membership;
use crate::message::Body;
use crate::record::Key;
use crate::request::{
    Answer, Consistency, Cursor, Failure, ListedKey, Operation, Subject, WATCHED_KEYS_MAX,
    WATCHES_MAX, WatchId,
};
use crate::time::Time;
use crate::timer::Timer;

/// How long one read or one page of a list may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// How often members are asked to go on telling, and for how long each time.
const RENEW_EVERY: Duration = Duration::from_secs(1);
const LEASE: Duration = Duration::from_secs(5);
/// How long the first look waits for members to say that they tell of changes.
const FIRST_LOOK: Duration = Duration::from_millis(300);
/// How long to wait after something failed.
const PAUSE: Duration = Duration::from_millis(500);
/// The shortest time between two looks; and how many times longer than a look the times after it are, if
/// another one is needed and if not.
const REST: Duration = Duration::from_secs(1);
const RESTS: (u32, u32) = (4, 20);
/// How many keys are read at once.
const WINDOW: u32 = 16;
const PAGE: u32 = 1000;

/// The watches of this node.
#[derive(Debug, Default)]
pub(crate) struct Watches {
    watches: BTreeMap<WatchId, Watch>,
    last: u64,
    /// Operations for the data part.
    wanted: VecDeque<(WatchId, Look, Operation)>,
    /// Names what all watches together are about.
    revision: u64,
    /// What is known of those who tell of changes.
    tellers: BTreeMap<NodeId, Teller>,
    /// Who was asked for the present revision.
    asked: BTreeSet<NodeId>,
    /// When members are asked again.
    renew: Time,
}

#[derive(Debug)]
struct Watch {
    subject: Subject,
    /// The first revision that has it.
    born: u64,
    /// How much may still be told.
    room: u32,
    /// The versions told last.
    told: BTreeMap<Key, Ballot>,
    /// Keys that are read, or are to be.
    reads: BTreeMap<Key, Read>,
    /// Those that are not being read, in their turn.
    queue: VecDeque<Key>,
    in_flight: u32,
    tour: Tour,
    /// When the next look may begin.
    rested: Time,
    /// Nothing is asked before.
    paused: Time,
    beginning: Beginning,
    has_too_many_keys: bool,
}

#[derive(Debug)]
struct Read {
    is_asked: bool,
    again: Again,
}

/// Whether a key is to be read again after the read under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Again {
    No,
    /// Unless the read finds this version.
    Unless(Ballot),
    Yes,
}

/// Where a look at everything is.
#[derive(Debug)]
enum Tour {
    /// The next one begins at this time.
    Due(Time),
    UnderWay {
        begun: Time,
        after: Option<Cursor>,
        is_asked: bool,
        /// How many keys it has found.
        found: usize,
        /// Whether something may have been missed since it began.
        again: bool,
    },
}

/// How far a watch is in telling what there is.
#[derive(Debug)]
enum Beginning {
    /// It has not begun to look.
    Waiting,
    /// The first look is under way.
    Looking,
    /// These keys are still to be told.
    Telling(BTreeSet<Key>),
    Over,
}

/// A node that tells of changes.
#[derive(Debug, Default, Clone, Copy)]
struct Teller {
    session: u64,
    revision: u64,
    /// The number of the last message of this session.
    hints: u64,
}

impl Watches {
    /// A new watch.
    ///
    /// # Errors
    /// If there are too many.
    pub(crate) fn begin(
        &mut self,
        ctx: &mut Context,
        subject: Subject,
        room: u32,
    ) -> Result<WatchId, Failure> {
        if self.watches.len() >= WATCHES_MAX {
            let reason = format!("this agent has {WATCHES_MAX} watches, the most that it can have");
            return Err(Failure::Unavailable(reason));
        }
        self.last += 1;
        let id = WatchId(self.last);
        self.revise(ctx);
        let watch = Watch {
            subject,
            born: self.revision,
            room,
            told: BTreeMap::new(),
            reads: BTreeMap::new(),
            queue: VecDeque::new(),
            in_flight: 0,
            tour: Tour::Due(ctx.now + FIRST_LOOK),
            rested: ctx.now,
            paused: ctx.now,
            beginning: Beginning::Waiting,
            has_too_many_keys: false,
        };
        self.watches.insert(id, watch);
        Ok(id)
    }

    /// Something else is watched from now on: members are told at once.
    fn revise(&mut self, ctx: &mut Context) {
        self.revision = self.revision.max(u64::from(ctx.boot) << 32) + 1;
        self.asked.clear();
        self.renew = ctx.now;
        ctx.timers.set_earlier(Timer::Watch, ctx.now);
    }

    /// A watch may tell so many more.
    pub(crate) fn make_room(&mut self, ctx: &mut Context, id: WatchId, room: u32) {
        if let Some(watch) = self.watches.get_mut(&id) {
            watch.room = watch.room.saturating_add(room);
            self.go_on(ctx, id);
        }
    }

    /// Ends a watch, if there is one of this name.
    pub(crate) fn end(&mut self, ctx: &mut Context, id: WatchId) {
        if self.watches.remove(&id).is_some() {
            self.wanted.retain(|(other, ..)| *other != id);
            self.revise(ctx);
        }
    }

    fn stop(&mut self, ctx: &mut Context, id: WatchId, why: WatchEnd) {
        ctx.told(id, Told::Ended(why));
        self.end(ctx, id);
    }

    /// Ends all watches: the node has left.
    pub(crate) fn end_all(&mut self, ctx: &mut Context) {
        for id in self.watches.keys().copied().collect::<Vec<_>>() {
            self.stop(ctx, id, WatchEnd::Left);
        }
    }

    /// Something may have been missed: all watches look again.
    pub(crate) fn look_again(&mut self, ctx: &mut Context) {
        for watch in self.watches.values_mut() {
            watch.look_soon();
            watch.wake(ctx);
        }
    }

    /// Asks members to go on telling, and does what is due.
    pub(crate) fn on_timer(&mut self, ctx: &mut Context, members: &Membership) {
        if self.renew <= ctx.now {
            self.ask_members(ctx, members);
            self.renew = ctx.now + RENEW_EVERY;
        }
        for id in self.watches.keys().copied().collect::<Vec<_>>() {
            self.go_on(ctx, id);
        }
        if !self.watches.is_empty() {
            ctx.timers.set_earlier(Timer::Watch, self.renew);
        }
    }

    /// Without watches they are told once to stop; those who do not hear of it stop by themselves.
    fn ask_members(&mut self, ctx: &mut Context, members: &Membership) {
        let everyone = members.known().filter(|peer| !members.is_suspect(&peer.node));
        let everyone: Vec<Peer> = everyone.cloned().collect();
        let is_there = |node: &NodeId| everyone.iter().any(|peer| peer.node == *node);
        self.tellers.retain(|node, _| is_there(node));
        self.asked = everyone.iter().map(|peer| peer.node).collect();
        for peer in everyone {
            self.ask_member(ctx, &peer, members);
        }
        if self.watches.is_empty() {
            self.tellers.clear();
        }
    }

    fn ask_member(&self, ctx: &mut Context, peer: &Peer, members: &Membership) {
        let told = self.tellers.get(&peer.node).map_or(0, |teller| teller.revision);
        let subjects = (told != self.revision).then(|| {
            let subjects: BTreeSet<_> = self.watches.values().map(|watch| &watch.subject).collect();
            subjects.into_iter().cloned().collect()
        });
        let question = Body::Watch {
            revision: self.revision,
            subjects,
            lease_ms: u32::try_from(LEASE.as_millis()).unwrap_or(u32::MAX),
        };
        ctx.call(peer, question, Purpose::Watch, members.rto(&peer.node));
    }

    /// A member says what it tells of.
    pub(crate) fn on_watched(
        &mut self,
        ctx: &mut Context,
        from: &Peer,
        (session, revision, hints): (u64, u64, u64),
        members: &Membership,
    ) {
        if self.watches.is_empty() {
            return;
        }
        let before = self.tellers.insert(from.node, Teller { session, revision, hints });
        let before = before.unwrap_or_default();
        if session == 0 {
            // It has been started again, or took this node for gone.
            if before.session != 0 {
                self.ask_member(ctx, from, members);
            }
            return;
        }
        let is_missed = before.session != session || before.hints < hints;
        let current = self.revision;
        let tells = |node: &NodeId| self.tellers.get(node).is_some_and(|t| t.revision == current);
        let is_complete = self.asked.iter().all(tells);
        for watch in self.watches.values_mut() {
            let is_missed = match watch.beginning {
                Beginning::Waiting => is_complete,
                _ => is_missed || (before.revision < watch.born && watch.born <= revision),
            };
            if is_missed {
                watch.look_soon();
                watch.wake(ctx);
            }
        }
    }

    /// A member tells of changes.
    pub(crate) fn on_changed(
        &mut self,
        ctx: &mut Context,
        from: &NodeId,
        (session, number): (u64, u64),
        keys: Vec<(Key, Ballot)>,
        more: bool,
    ) {
        let mut is_missed = more;
        if let Some(teller) = self.tellers.get_mut(from).filter(|it| it.session == session) {
            is_missed |= number > teller.hints.saturating_add(1);
            teller.hints = teller.hints.max(number);
        }
        for id in self.watches.keys().copied().collect::<Vec<_>>() {
            let Some(watch) = self.watches.get_mut(&id) else { continue };
            for (key, version) in &keys {
                if watch.subject.covers(key) {
                    watch.want(key, Again::Unless(*version));
                }
            }
            self.go_on(ctx, id);
        }
        if is_missed {
            self.look_again(ctx);
        }
    }

    /// What the data part is to do next.
    pub(crate) fn take_wanted(&mut self) -> Option<(WatchId, Look, Operation)> {
        self.wanted.pop_front()
    }

    /// What came of it.
    pub(crate) fn on_looked(
        &mut self,
        ctx: &mut Context,
        id: WatchId,
        look: Look,
        outcome: Result<Answer, Failure>,
    ) {
        let Some(watch) = self.watches.get_mut(&id) else { return };
        match (look, outcome) {
            (Look::Key(key), Ok(answer)) => watch.on_read(ctx, id, key, answer),
            (Look::Key(key), Err(_)) => {
                watch.paused = ctx.now + PAUSE;
                watch.in_flight = watch.in_flight.saturating_sub(1);
                if let Some(read) = watch.reads.get_mut(&key) {
                    read.is_asked = false;
                    watch.queue.push_back(key);
                }
            }
            (Look::Page(after), Ok(Answer::Listed { keys, next })) => {
                watch.on_page(ctx.now, ctx.settings.look_every, after, &keys, next);
            }
            (Look::Page(_), _) => {
                watch.paused = ctx.now + PAUSE;
                if let Tour::UnderWay { is_asked, .. } = &mut watch.tour {
                    *is_asked = false;
                }
            }
        }
        if watch.has_too_many_keys {
            return self.stop(ctx, id, WatchEnd::TooManyKeys);
        }
        self.go_on(ctx, id);
    }

    /// Does what a watch can do now, and sees to it that it comes back for the rest.
    fn go_on(&mut self, ctx: &mut Context, id: WatchId) {
        let Some(watch) = self.watches.get_mut(&id) else { return };
        if watch.paused > ctx.now {
            return ctx.timers.set_earlier(Timer::Watch, watch.paused);
        }
        watch.begin_tour(ctx.now, ctx.settings.look_every);
        watch.ask(id, &mut self.wanted);
        watch.see_whether_all_is_told(ctx, id);
        watch.wake(ctx);
    }
}

impl Watch {
    /// The key is to be read: it is not what was told, or may not be.
    fn want(&mut self, key: &Key, again: Again) {
        let is_told = |version| self.told.get(key) == Some(&version);
        match self.reads.get_mut(key) {
            Some(read) if read.is_asked => read.again = read.again.or(again),
            Some(_) => {}
            None if matches!(again, Again::Unless(version) if is_told(version)) => {}
            None => {
                if self.reads.len() >= 2 * WATCHED_KEYS_MAX {
                    // Keys come and go faster than there is room: the next look says what is left.
                    self.reads.retain(|_, read| read.is_asked);
                    self.queue.clear();
                    if let Beginning::Telling(_) = self.beginning {
                        self.beginning = Beginning::Looking;
                    }
                    self.look_soon();
                }
                self.reads.insert(key.clone(), Read { is_asked: false, again: Again::No });
                self.queue.push_back(key.clone());
            }
        }
    }

    /// A key was read: what is new is told.
    fn on_read(&mut self, ctx: &mut Context, id: WatchId, key: Key, answer: Answer) {
        self.in_flight = self.in_flight.saturating_sub(1);
        let again = self.reads.get(&key).map_or(Again::No, |read| read.again);
        let found = match answer {
            Answer::Found { value, version } => {
                if self.told.insert(key.clone(), version) != Some(version) {
                    self.room = self.room.saturating_sub(1);
                    ctx.told(id, Told::Value { key: key.clone(), value, version });
                }
                self.has_too_many_keys |= self.told.len() > WATCHED_KEYS_MAX;
                Some(version)
            }
            _ => {
                if let Some(version) = self.told.remove(&key) {
                    self.room = self.room.saturating_sub(1);
                    ctx.told(id, Told::Deleted { key: key.clone(), version });
                }
                None
            }
        };
        if let Beginning::Telling(open) = &mut self.beginning {
            open.remove(&key);
        }
        let is_current = match again {
            Again::No => true,
            Again::Unless(version) => found == Some(version),
            Again::Yes => false,
        };
        self.reads.remove(&key);
        if !is_current {
            self.want(&key, Again::Yes);
        }
    }

    /// A page of the list: what it says otherwise than what was told is read.
    fn on_page(
        &mut self,
        now: Time,
        look_every: Duration,
        from: Option<Cursor>,
        keys: &[ListedKey],
        next: Option<Cursor>,
    ) {
        let is_in = |key: &Key| {
            let is_after = from.as_ref().is_none_or(|place| place.is_before(key));
            is_after && next.as_ref().is_none_or(|place| !place.is_before(key))
        };
        let listed: BTreeSet<_> = keys.iter().map(|listed| &listed.key).collect();
        let gone: Vec<_> =
            self.told.keys().filter(|key| is_in(key) && !listed.contains(key)).cloned().collect();
        gone.iter().for_each(|key| self.want(key, Again::Yes));
        for listed in keys {
            self.want(&listed.key, Again::Unless(listed.version));
        }
        let Tour::UnderWay { begun, after, is_asked, found, again } = &mut self.tour else {
            return;
        };
        *is_asked = false;
        *found += keys.len();
        self.has_too_many_keys |= *found > WATCHED_KEYS_MAX;
        let is_over = next.is_none();
        *after = next;
        if is_over {
            let (begun, again) = (*begun, *again);
            self.end_tour(now, now.since(begun), again, look_every);
        }
    }

    fn end_tour(&mut self, now: Time, took: Duration, again: bool, look_every: Duration) {
        self.rested = now + REST.max(took * RESTS.0);
        let due = if again { self.rested } else { now + look_every.max(took * RESTS.1) };
        self.tour = Tour::Due(due);
        if matches!(self.beginning, Beginning::Looking) {
            self.beginning = Beginning::Telling(self.reads.keys().cloned().collect());
        }
    }

    /// Everything is to be looked at again, though not at once if that was just done.
    fn look_soon(&mut self) {
        match &mut self.tour {
            Tour::Due(due) => *due = self.rested.min(*due),
            Tour::UnderWay { again, .. } => *again = true,
        }
    }

    /// Sees to it that the next look begins in time.
    fn wake(&self, ctx: &mut Context) {
        if let Tour::Due(due) = self.tour {
            ctx.timers.set_earlier(Timer::Watch, due.max(self.paused));
        }
    }

    fn begin_tour(&mut self, now: Time, look_every: Duration) {
        if !matches!(self.tour, Tour::Due(due) if due <= now) {
            return;
        }
        if matches!(self.beginning, Beginning::Waiting) {
            self.beginning = Beginning::Looking;
        }
        if let Subject::Key(key) = &self.subject {
            let key = key.clone();
            self.want(&key, Again::Yes);
            self.end_tour(now, Duration::ZERO, false, look_every);
        } else {
            self.tour =
                Tour::UnderWay { begun: now, after: None, is_asked: false, found: 0, again: false };
        }
    }

    /// Asks for the next page, and for as many keys as there is room for.
    fn ask(&mut self, id: WatchId, wanted: &mut VecDeque<(WatchId, Look, Operation)>) {
        if let (Tour::UnderWay { after, is_asked, .. }, Subject::Prefix(prefix)) =
            (&mut self.tour, &self.subject)
            && !*is_asked
        {
            *is_asked = true;
            let (after, prefix) = (after.clone(), Arc::clone(prefix));
            let operation = Operation::List { after: after.clone(), prefix, limit: PAGE };
            wanted.push_back((id, Look::Page(after), operation));
        }
        // The number of keys is known before the first of them is told.
        if matches!(self.beginning, Beginning::Waiting | Beginning::Looking) {
            return;
        }
        while self.in_flight < WINDOW.min(self.room)
            && let Some(key) = self.queue.pop_front()
        {
            let Some(read) = self.reads.get_mut(&key) else { continue };
            read.is_asked = true;
            self.in_flight += 1;
            let operation = Operation::Get { key: key.clone(), consistency: Consistency::Quorum };
            wanted.push_back((id, Look::Key(key), operation));
        }
    }

    fn see_whether_all_is_told(&mut self, ctx: &mut Context, id: WatchId) {
        if matches!(&self.beginning, Beginning::Telling(open) if open.is_empty()) {
            self.beginning = Beginning::Over;
            ctx.told(id, Told::Synced);
        }
    }
}

impl Again {
    fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::No, other) => other,
            (same, other) if same == other => same,
            _ => Self::Yes,
        }
    }
}
