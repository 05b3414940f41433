//! What every part of a node works with: the time, the way out, calls under way, and the gate that
//! holds messages back until what they promise is on disk.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use serde::Serialize;

use crate::call::{LookupPurpose, Purpose, RangeCall};
use crate::config::{NodeId, Peer};
use crate::event::{Notice, Output, Ticket, Told, Write};
use crate::message::{Body, CallId, Message};
use crate::request::{Reply, WatchId};
use crate::settings::Settings;
use crate::time::Time;
use crate::timer::{Timer, Timers};

/// A question under way.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) to: NodeId,
    pub(crate) purpose: Purpose,
    pub(crate) sent: Time,
    pub(crate) deadline: Time,
}

/// The part of a node that all others share.
pub(crate) struct Context {
    pub(crate) now: Time,
    pub(crate) me: Peer,
    pub(crate) boot: u32,
    pub(crate) settings: Settings,
    pub(crate) rng: Rng,
    pub(crate) timers: Timers,
    calls: BTreeMap<CallId, Call>,
    deadlines: BTreeSet<(Time, CallId)>,
    last_call: u64,
    outputs: VecDeque<Output>,
    local: VecDeque<Message>,
    gated: VecDeque<(u64, Output)>,
    writes: Vec<Write>,
    lookups: Vec<(crate::Id, LookupPurpose)>,
    /// What the wall clock showed when the node was started, and when that was.
    pub(crate) wall_at_start: (u64, Time),
    /// The number of the last commit handed out.
    issued: u64,
    /// The number of the last commit known to be on disk.
    persisted: u64,
    broken: bool,
}

impl Context {
    pub(crate) fn new(now: Time, me: Peer, boot: u32, settings: Settings, seed: u64) -> Self {
        Self {
            now,
            me,
            boot,
            settings,
            rng: Rng(seed),
            timers: Timers::default(),
            calls: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            last_call: u64::from(boot) << 40,
            outputs: VecDeque::new(),
            local: VecDeque::new(),
            gated: VecDeque::new(),
            writes: Vec::new(),
            lookups: Vec::new(),
            wall_at_start: (0, now),
            issued: 0,
            persisted: 0,
            broken: false,
        }
    }

    /// This node's own clock, which goes on while it is not running: microseconds of the wall clock at its
    /// start, and those that went by since.
    pub(crate) fn wall(&self) -> u64 {
        let (wall, start) = self.wall_at_start;
        wall.saturating_add(self.now.as_micros().saturating_sub(start.as_micros()))
    }

    /// Asks a question. Its answer or its time-out comes back with `purpose`.
    pub(crate) fn call(
        &mut self,
        to: &Peer,
        body: Body,
        purpose: Purpose,
        timeout: Duration,
    ) -> CallId {
        self.last_call += 1;
        let call = CallId(self.last_call);
        let deadline = self.now + timeout;
        self.calls.insert(call, Call { to: to.node, purpose, sent: self.now, deadline });
        self.deadlines.insert((deadline, call));
        self.send(to, Message { call, body });
        call
    }

    /// Says something that wants no answer.
    pub(crate) fn tell(&mut self, to: &Peer, body: Body) {
        self.tell_after(0, to, body);
    }

    /// Says something that wants no answer when commit `seq` is on disk.
    pub(crate) fn tell_after(&mut self, seq: u64, to: &Peer, body: Body) {
        self.last_call += 1;
        let call = CallId(self.last_call);
        self.answer_after(seq, to, call, body);
    }

    /// Answers a question at once.
    pub(crate) fn answer(&mut self, to: &Peer, call: CallId, body: Body) {
        self.send(to, Message { call, body });
    }

    /// Answers a question when commit `seq` is on disk.
    pub(crate) fn answer_after(&mut self, seq: u64, to: &Peer, call: CallId, body: Body) {
        self.release_after(seq, Output::Send { to: to.clone(), message: Message { call, body } });
    }

    fn send(&mut self, to: &Peer, message: Message) {
        self.put(Output::Send { to: to.clone(), message });
    }

    /// Answers a request of the shell.
    pub(crate) fn reply(&mut self, ticket: Ticket, reply: Reply) {
        self.put(Output::Reply { ticket, reply });
    }

    /// Answers a request of the shell when commit `seq` is on disk.
    pub(crate) fn reply_after(&mut self, seq: u64, ticket: Ticket, reply: Reply) {
        self.release_after(seq, Output::Reply { ticket, reply });
    }

    pub(crate) fn notify(&mut self, notice: Notice) {
        self.put(Output::Notify(notice));
    }

    pub(crate) fn told(&mut self, watch: WatchId, told: Told) {
        self.put(Output::Told { watch, told });
    }

    /// Adds a write to the commit of this event, and returns the number of that commit.
    pub(crate) fn persist(&mut self, write: Write) -> u64 {
        self.writes.push(write);
        self.issued + 1
    }

    /// Adds a small named record to the commit of this event.
    pub(crate) fn persist_meta<T: Serialize>(&mut self, name: impl Into<String>, value: &T) -> u64 {
        let bytes = postcard::to_stdvec(value).unwrap_or_default().into();
        self.persist(Write::Meta { name: name.into(), bytes: Some(bytes) })
    }

    /// Removes a small named record with the commit of this event.
    pub(crate) fn forget_meta(&mut self, name: String) -> u64 {
        self.persist(Write::Meta { name, bytes: None })
    }

    /// The number of the last commit, that of this event if it writes anything.
    pub(crate) fn last_commit(&self) -> u64 {
        self.issued + u64::from(!self.writes.is_empty())
    }

    /// Whether the store has failed: nothing is read or written any more.
    pub(crate) const fn is_broken(&self) -> bool {
        self.broken
    }

    fn release_after(&mut self, seq: u64, output: Output) {
        if seq <= self.persisted {
            self.put(output);
        } else if !self.broken {
            let at = self.gated.partition_point(|(other, _)| *other <= seq);
            self.gated.insert(at, (seq, output));
        }
    }

    fn put(&mut self, output: Output) {
        match output {
            Output::Send { to, message } if to.node == self.me.node => {
                self.local.push_back(message)
            }
            other => self.outputs.push_back(other),
        }
    }

    /// Everything up to commit `seq` is on disk: lets go what waited for it.
    pub(crate) fn on_persisted(&mut self, seq: u64) {
        self.persisted = self.persisted.max(seq);
        while self.gated.front().is_some_and(|(other, _)| *other <= self.persisted) {
            if let Some((_, output)) = self.gated.pop_front() {
                self.put(output);
            }
        }
    }

    /// The store failed: what waits for it is never said, and nothing is read or written any more.
    pub(crate) fn break_store(&mut self, reason: String) {
        self.gated.clear();
        self.writes.clear();
        if !std::mem::replace(&mut self.broken, true) {
            self.notify(Notice::StoreBroken { reason });
        }
    }

    /// Takes the call that this message answers, if it is one and comes from the node that was asked.
    pub(crate) fn take_call(&mut self, from: &NodeId, call: CallId) -> Option<Call> {
        if self.calls.get(&call)?.to != *from {
            return None;
        }
        self.remove_call(call)
    }

    /// Forgets a call: nobody waits for its answer any more.
    pub(crate) fn remove_call(&mut self, call: CallId) -> Option<Call> {
        let found = self.calls.remove(&call)?;
        self.deadlines.remove(&(found.deadline, call));
        Some(found)
    }

    /// Takes a call whose time has run out.
    pub(crate) fn take_timed_out(&mut self) -> Option<(CallId, Call)> {
        let (deadline, call) = *self.deadlines.first()?;
        if deadline > self.now {
            return None;
        }
        self.remove_call(call).map(|found| (call, found))
    }

    /// Lets the calls to this node time out now that have somebody else to turn to: it cannot be
    /// reached. The others are asked again at their own pace.
    pub(crate) fn expire_calls_to(&mut self, node: &NodeId) {
        let now = self.now;
        let turns_elsewhere = |call: &Call| !matches!(&call.purpose, Purpose::Range(call) if !matches!(call, RangeCall::Forward(_)));
        let expired = |call: &Call| call.to == *node && turns_elsewhere(call);
        for (id, call) in self.calls.iter_mut().filter(|(_, call)| expired(call)) {
            self.deadlines.remove(&(call.deadline, *id));
            call.deadline = now;
            self.deadlines.insert((now, *id));
        }
    }

    /// Asks for a lookup; the node starts it when the event at hand is done with.
    pub(crate) fn wants_lookup(&mut self, target: crate::Id, purpose: LookupPurpose) {
        self.lookups.push((target, purpose));
    }

    /// Takes a lookup that is wanted.
    pub(crate) fn take_wanted_lookup(&mut self) -> Option<(crate::Id, LookupPurpose)> {
        self.lookups.pop()
    }

    /// Takes a message this node sent to itself.
    pub(crate) fn take_local(&mut self) -> Option<Message> {
        self.local.pop_front()
    }

    /// Hands out the commit of this event, if it has writes.
    pub(crate) fn seal_commit(&mut self) {
        if !self.writes.is_empty() && !self.broken {
            self.issued += 1;
            let writes = std::mem::take(&mut self.writes);
            self.outputs.push_back(Output::Persist { seq: self.issued, writes });
        }
    }

    /// The next thing to do.
    pub(crate) fn take_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When the next timer or time-out is due.
    pub(crate) fn next_due(&self) -> Option<Time> {
        let call = self.deadlines.first().map(|(at, _)| *at);
        [self.timers.next(), call].into_iter().flatten().min()
    }

    /// Sets a timer a duration from now, moved by up to a quarter so that nodes do not act in step.
    pub(crate) fn set_timer(&mut self, timer: Timer, after: Duration) {
        let jitter = after.mul_f64(self.rng.unit() / 4.0);
        self.timers.set(timer, self.now + after.saturating_sub(jitter));
    }
}

/// Random numbers from one seed (SplitMix64: Steele, Lea, Flood, OOPSLA 2014).
#[derive(Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from 0 to 1, without 1.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A number below `bound`; 0 if that is 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % (bound.max(1) as u64)) as usize
    }
}
