//! A network of the ring parts of nodes, without data: one event at a time, no lost messages but to
//! nodes that are down or cut off.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;

use super::{Neighbours, Ring};
use crate::call::{LookupPurpose, Purpose};
use crate::check::zave_invariant;
use crate::config::{NodeId, Peer};
use crate::context::{Call, Context};
use crate::event::{Notice, Output, Ticket, Write};
use crate::fingers::Fingers;
use crate::id::{Id, Space};
use crate::lookup::{LookupDone, Lookups, Routes};
use crate::membership::{MemberChange, Membership};
use crate::message::{Body, Message};
use crate::settings::Settings;
use crate::time::Time;
use crate::timer::Timer;

const LATENCY: Duration = Duration::from_millis(2);

pub(crate) fn peer(position: u64) -> Peer {
    let node = NodeId { position: Id::small(position), incarnation: 1 };
    Peer { node, address: format!("10.0.0.{position}:1").into() }
}

pub(crate) fn settings() -> Settings {
    Settings { space: Space::new(10).unwrap(), successors: 3, ..Settings::default() }
}

/// The parts of one node that make the ring.
pub(crate) struct Part {
    pub(crate) ctx: Context,
    pub(crate) members: Membership,
    pub(crate) ring: Ring,
    pub(crate) fingers: Fingers,
    pub(crate) lookups: Lookups,
    pub(crate) done: Vec<LookupDone>,
    pub(crate) changes: Vec<MemberChange>,
    pub(crate) notices: Vec<Notice>,
    store: BTreeMap<String, Bytes>,
    boot: u32,
}

impl Part {
    fn start(now: Time, me: Peer, settings: Settings, boot: u32, store: Store) -> Self {
        let seed = u64::from(boot) ^ me.node.position.as_bytes()[19] as u64;
        let mut ctx = Context::new(now, me.clone(), boot, settings.clone(), seed);
        let members = Membership::new(&ctx, read(&store, "members"));
        let ring = Ring::new(&mut ctx, read(&store, "ring"));
        for timer in [Timer::Ping, Timer::Gossip, Timer::FixFingers] {
            ctx.timers.set(timer, now);
        }
        let fingers = Fingers::new(settings.space, me.node.position);
        Self {
            ctx,
            members,
            ring,
            fingers,
            lookups: Lookups::default(),
            done: Vec::new(),
            changes: Vec::new(),
            notices: Vec::new(),
            store,
            boot,
        }
    }

    /// Looks up `target`; the end is found in `done`.
    pub(crate) fn look_up(&mut self, target: Id) {
        let Self { ctx, lookups, ring, fingers, members, .. } = self;
        let routes = Routes { ring, fingers, members };
        lookups.start(ctx, LookupPurpose::Request(Ticket(0), target), target, &routes);
    }

    fn receive(&mut self, from: &Peer, Message { call, body }: Message) {
        self.members.heard(&mut self.ctx, from);
        if body.is_answer() {
            // Unless it came after its time-out.
            if let Some(asked) = self.ctx.take_call(&from.node, call) {
                self.answered(from, asked, body);
            }
            return;
        }
        let Self { ctx, members, ring, fingers, .. } = self;
        match body {
            Body::Ping { .. } => members.on_ping(ctx, from, call),
            Body::Gossip { entries, reply } => members.on_gossip(ctx, from, entries, reply),
            Body::GetNeighbours => ring.on_get_neighbours(ctx, members, from, call),
            Body::Notify => ring.on_notify(ctx, members, from),
            Body::FindStep { target } => {
                Routes { ring, fingers, members }.on_find_step(ctx, from, call, target);
            }
            body => panic!("{body:?} is not asked here"),
        }
    }

    fn answered(&mut self, from: &Peer, asked: Call, body: Body) {
        let Self { ctx, members, ring, lookups, .. } = self;
        members.on_answer(&from.node, ctx.now.since(asked.sent));
        match (asked.purpose, body) {
            (Purpose::Ping, Body::Pong { digest }) => members.on_pong(ctx, from, digest),
            (Purpose::LookupHop(id), body) => lookups.on_answer(ctx, id, body, members),
            (purpose, Body::Neighbours { predecessor, successors, joined }) => {
                let theirs = Neighbours { predecessor, successors, joined };
                match purpose {
                    Purpose::StabilizeFirst => ring.on_first_answer(ctx, members, from, theirs),
                    Purpose::Join => ring.on_join_answer(ctx, members, from, theirs),
                    _ => ring.on_candidate_answer(ctx, members, from, theirs),
                }
            }
            (purpose, body) => panic!("{body:?} answers no {purpose:?}"),
        }
    }

    fn tick(&mut self) {
        while let Some((_, Call { to, purpose, .. })) = self.ctx.take_timed_out() {
            self.members.on_call_timed_out(&mut self.ctx, &to);
            match purpose {
                Purpose::LookupHop(id) => {
                    self.lookups.on_timed_out(&mut self.ctx, id, &self.members);
                }
                purpose => self.ring.on_timed_out(&mut self.ctx, &self.members, &purpose),
            }
        }
        while let Some(timer) = self.ctx.timers.pop(self.ctx.now) {
            let Self { ctx, members, ring, lookups, fingers, .. } = self;
            match timer {
                Timer::Stabilize => ring.on_timer_stabilize(ctx, lookups, members),
                Timer::FixFingers => fingers.on_timer_fix(ctx, lookups, ring, members),
                Timer::Ping => members.on_timer_ping(ctx),
                Timer::Gossip => members.on_timer_gossip(ctx),
                timer => panic!("{timer:?} is not set here"),
            }
        }
    }

    /// Ends the handling of an event. Returns what is to be sent.
    fn settle(&mut self) -> Vec<(Peer, Message)> {
        loop {
            if let Some(message) = self.ctx.take_local() {
                let me = self.ctx.me.clone();
                self.receive(&me, message);
            } else if let Some(done) = self.lookups.take_done() {
                match (&done.purpose, &done.result) {
                    (LookupPurpose::Join, _) => {
                        self.ring.on_lookup_done(&mut self.ctx, &self.members, done.result);
                    }
                    (LookupPurpose::Finger(index), Ok(found)) => {
                        self.fingers.on_found(*index, &found.owner);
                    }
                    _ => self.done.push(done),
                }
            } else {
                let changes = self.members.take_changes();
                if changes.is_empty() {
                    break;
                }
                for change in &changes {
                    if let MemberChange::Suspected(node) | MemberChange::Status(node) = change {
                        self.ring.on_suspected(&mut self.ctx, &mut self.members, node);
                    }
                }
                self.changes.extend(changes);
            }
        }
        let near = self.ring.successors().iter().chain(self.ring.predecessor());
        self.members.set_monitored(near.map(|peer| peer.node).collect());
        self.ctx.seal_commit();
        let mut sent = Vec::new();
        while let Some(output) = self.ctx.take_output() {
            match output {
                Output::Send { to, message } => sent.push((to, message)),
                Output::Notify(notice) => self.notices.push(notice),
                Output::Persist { seq, writes } => {
                    for write in writes {
                        let Write::Meta { name, bytes: Some(bytes) } = write else { continue };
                        self.store.insert(name, bytes);
                    }
                    self.ctx.on_persisted(seq);
                }
                Output::Reply { .. } | Output::Told { .. } | Output::Wait { .. } => {}
            }
        }
        sent
    }
}

type Store = BTreeMap<String, Bytes>;

fn read<T: serde::de::DeserializeOwned>(store: &Store, name: &str) -> Option<T> {
    store.get(name).map(|bytes| postcard::from_bytes(bytes).unwrap())
}

/// The nodes and what is on its way between them.
pub(crate) struct Net {
    pub(crate) now: Time,
    pub(crate) parts: BTreeMap<NodeId, Part>,
    settings: Settings,
    /// Nodes that take in nothing, yet keep their state.
    pub(crate) paused: BTreeSet<NodeId>,
    /// Nodes on one side of a partition; the others are on the other side.
    pub(crate) cut_off: BTreeSet<NodeId>,
    on_the_way: BTreeMap<(Time, u64), (Peer, Peer, Message)>,
    count: u64,
    /// Whether Zave's invariant is asserted after each change of a pointer.
    pub(crate) is_checked: bool,
}

impl Net {
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            now: Time::from_micros(0),
            parts: BTreeMap::new(),
            settings,
            paused: BTreeSet::new(),
            cut_off: BTreeSet::new(),
            on_the_way: BTreeMap::new(),
            count: 0,
            is_checked: false,
        }
    }

    /// A ring of these nodes: the first founds it, the others ask it to join, all at once.
    pub(crate) fn ring(settings: Settings, positions: &[u64]) -> Self {
        let mut net = Self::new(settings);
        net.add(peer(positions[0]), None);
        for position in &positions[1..] {
            net.add(peer(*position), Some(peer(positions[0])));
        }
        net.until("the ring is ideal", Duration::from_secs(20), Self::is_ideal);
        net
    }

    /// Starts a node that founds a ring, or asks `contact` to join.
    pub(crate) fn add(&mut self, me: Peer, contact: Option<Peer>) {
        let mut part = Part::start(self.now, me.clone(), self.settings.clone(), 1, Store::new());
        match contact {
            None => part.ring.found(&mut part.ctx),
            Some(contact) => {
                part.ring.start_join(&mut part.ctx, &contact, &mut part.lookups, &mut part.members)
            }
        }
        self.parts.insert(me.node, part);
        self.act(me.node, |_| {});
    }

    /// Kills a node; what it stored is kept and returned.
    pub(crate) fn kill(&mut self, position: u64) -> Part {
        self.parts.remove(&peer(position).node).unwrap()
    }

    /// Starts a killed node again with what it stored. One that was not a member yet is told whom to
    /// ask, as its shell does.
    pub(crate) fn restart(&mut self, part: Part) {
        let Part { ctx, store, boot, .. } = part;
        let mut part =
            Part::start(self.now, ctx.me.clone(), self.settings.clone(), boot + 1, store);
        if let Some(contact) = self.parts.values().map(|part| part.ctx.me.clone()).next() {
            part.ring.start_join(&mut part.ctx, &contact, &mut part.lookups, &mut part.members);
        }
        self.parts.insert(ctx.me.node, part);
        self.act(ctx.me.node, |_| {});
    }

    pub(crate) fn part(&mut self, position: u64) -> &mut Part {
        self.parts.get_mut(&peer(position).node).unwrap()
    }

    /// Does something at one node, then sends what comes of it.
    pub(crate) fn act(&mut self, node: NodeId, action: impl FnOnce(&mut Part)) {
        let now = self.now;
        let Some(part) = self.parts.get_mut(&node) else { return };
        part.ctx.now = now;
        let before = part.ring.state.clone();
        action(part);
        let from = part.ctx.me.clone();
        let sent = part.settle();
        let has_changed = part.ring.state != before;
        for (to, message) in sent {
            self.count += 1;
            self.on_the_way.insert((now + LATENCY, self.count), (from.clone(), to, message));
        }
        if self.is_checked && has_changed {
            let r = self.settings.successors;
            zave_invariant(&self.states(), r, true)
                .unwrap_or_else(|why| panic!("at {now:?}: {why}"));
        }
    }

    /// The pointers of all members.
    pub(crate) fn states(&self) -> Vec<(NodeId, Option<Peer>, Vec<Peer>)> {
        let joined = self.parts.values().filter(|part| part.ring.is_joined());
        joined
            .map(|part| {
                let (before, after) = (part.ring.predecessor(), part.ring.successors());
                (part.ctx.me.node, before.cloned(), after.to_vec())
            })
            .collect()
    }

    /// Whether every node is a member with right pointers and the same member table.
    pub(crate) fn is_ideal(&self) -> bool {
        let nodes: Vec<_> = self.parts.keys().copied().collect();
        let count = nodes.len();
        let lists = self.states();
        lists.len() == count
            && lists.iter().enumerate().all(|(i, (_, before, after))| {
                let length = self.settings.successors.min(count - 1);
                let should = (1..=length).map(|step| nodes[(i + step) % count]);
                let has_list = after.iter().map(|peer| peer.node).eq(should);
                let last = (count > 1).then(|| nodes[(i + count - 1) % count]);
                has_list && before.as_ref().map(|peer| peer.node) == last
            })
            && self
                .parts
                .values()
                .all(|part| part.members.live().map(|peer| peer.node).eq(nodes.iter().copied()))
    }

    /// Lets a duration pass.
    pub(crate) fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.step(end) {}
        self.now = end;
    }

    /// Lets time pass until something is so; returns how long that took.
    #[track_caller]
    pub(crate) fn until(
        &mut self,
        what: &str,
        limit: Duration,
        is_so: impl Fn(&Self) -> bool,
    ) -> Duration {
        let begin = self.now;
        while !is_so(self) {
            assert!(self.step(begin + limit), "not within {limit:?}: {what}\n{:?}", self.states());
        }
        self.now.since(begin)
    }

    /// The next event, unless it comes after `end`.
    fn step(&mut self, end: Time) -> bool {
        let due = |part: &Part| part.ctx.next_due().map(|at| (at, part.ctx.me.node));
        let awake = self.parts.values().filter(|part| !self.paused.contains(&part.ctx.me.node));
        let timer = awake.filter_map(due).min();
        let message = self.on_the_way.first_key_value().map(|((at, _), _)| *at);
        let next = timer.map(|(at, _)| at).into_iter().chain(message).min();
        let Some(at) = next.filter(|at| *at <= end) else { return false };
        self.now = self.now.max(at);
        if message == Some(at) {
            if let Some((_, (from, to, message))) = self.on_the_way.pop_first() {
                self.deliver(&from, &to, message);
            }
        } else if let Some((_, node)) = timer {
            self.act(node, Part::tick);
        }
        true
    }

    fn deliver(&mut self, from: &Peer, to: &Peer, message: Message) {
        if self.cut_off.contains(&from.node) != self.cut_off.contains(&to.node) {
            return;
        }
        if self.paused.contains(&to.node) {
            // It is read when the node goes on.
            self.count += 1;
            let later = (self.now + Duration::from_millis(250), self.count);
            self.on_the_way.insert(later, (from.clone(), to.clone(), message));
        } else if self.parts.contains_key(&to.node) {
            self.act(to.node, |part| part.receive(from, message));
        } else {
            self.act(from.node, |part| {
                part.members.on_unreachable(&mut part.ctx, &to.node);
                part.ctx.expire_calls_to(&to.node);
            });
        }
    }
}
