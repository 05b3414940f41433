//! The node: takes events, hands each to the part it concerns, and gives out what is to be done.

mod watching;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use serde::de::DeserializeOwned;

use crate::call::{LookupPurpose, Purpose};
use crate::config::{NodeId, Peer};
use crate::context::{Call, Context};
use crate::event::{Event, Notice, Output, Records, Ticket};
use crate::fingers::Fingers;
use crate::lookup::{LookupDone, Lookups, Routes};
use crate::membership::{MEMBERS_META, MemberChange, Membership};
use crate::message::{Body, CallId, MemberStatus, Message};
use crate::ranges::{Client, Errand, Ranges, World};
use crate::request::{Failure, Reply, Request, RingId, Trace};
use crate::ring::{Neighbours, RING_META, Ring};
use crate::settings::Settings;
use crate::time::Time;
use crate::timer::Timer;
use crate::view::{Load, Phase, View};
use crate::watch::{Audience, Watches};

/// What a node starts from.
#[derive(Debug)]
pub struct Start {
    /// Who and where it is.
    pub me: Peer,
    /// How often it has been started with this data directory, from 1.
    pub boot: u32,
    /// The settings of the ring.
    pub settings: Settings,
    /// All meta records of the store, as [`crate::Write::Meta`] left them.
    pub meta: Vec<(String, Bytes)>,
    /// The seed of all its random choices.
    pub seed: u64,
    /// What the machine's wall clock shows, in microseconds. From here on the node counts for itself: it
    /// does not follow a clock that is set.
    pub wall: u64,
}

/// Why a node cannot start from its store.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// A record of the node's own state is damaged.
    #[error("the record `{0}` of the store is damaged or of a newer format")]
    Damaged(String),
    /// The keys cannot be read.
    #[error("{0}")]
    Store(String),
}

/// A member of a ring, or on its way to become one.
pub struct Node<R> {
    ctx: Context,
    records: R,
    ring_id: Option<RingId>,
    ring: Ring,
    fingers: Fingers,
    lookups: Lookups,
    members: Membership,
    ranges: Ranges,
    watches: Watches,
    audience: Audience,
    load: Load,
    /// Views being collected, with the members still to answer.
    surveys: BTreeMap<Ticket, Survey>,
    /// The time of the last event: a long pause means that this node was stopped.
    last_event: Time,
}

struct Survey {
    views: Vec<(Peer, Option<View>)>,
    open: BTreeSet<NodeId>,
}

const RING_ID_META: &str = "ring_id";
const SURVEY_PATIENCE: Duration = Duration::from_millis(1000);

impl<R: Records> Node<R> {
    /// A node as its store left it.
    ///
    /// # Errors
    /// If its own state or its keys cannot be read.
    pub fn start(now: Time, start: Start, records: R) -> Result<Self, StartError> {
        let Start { me, boot, settings, meta, seed, wall } = start;
        let mut ctx = Context::new(now, me, boot, settings, seed);
        ctx.wall_at_start = (wall, now);
        let ring_id = read_meta(&meta, RING_ID_META)?;
        let members = Membership::new(&ctx, read_meta(&meta, MEMBERS_META)?);
        let ring = Ring::new(&mut ctx, read_meta(&meta, RING_META)?);
        let fingers = Fingers::new(ctx.settings.space, ctx.me.node.position);
        let ranges = Ranges::restore(&meta).map_err(StartError::Damaged)?;
        for timer in [Timer::Ping, Timer::Gossip, Timer::FixFingers] {
            ctx.timers.set(timer, now);
        }
        let mut node = Self {
            ctx,
            records,
            ring_id,
            ring,
            fingers,
            lookups: Lookups::default(),
            members,
            ranges,
            watches: Watches::default(),
            audience: Audience::default(),
            load: Load::default(),
            surveys: BTreeMap::new(),
            last_event: now,
        };
        let (ranges, mut world) = node.data();
        ranges.start(&mut world).map_err(StartError::Store)?;
        Ok(node)
    }

    /// Who this node is.
    pub const fn id(&self) -> NodeId {
        self.ctx.me.node
    }

    /// The ring it belongs to, once it has joined or founded one.
    pub const fn ring(&self) -> Option<RingId> {
        self.ring_id
    }

    /// How far it has got.
    pub fn phase(&self) -> Phase {
        match self.members.status_of(&self.ctx.me.node) {
            _ if self.ring_id.is_none() => Phase::Waiting,
            Some(MemberStatus::Leaving) => Phase::Leaving,
            Some(MemberStatus::Left) => Phase::Drained,
            _ if self.ring.is_joined() => Phase::Up,
            _ => Phase::Joining,
        }
    }

    /// The store the node reads from.
    pub const fn records(&self) -> &R {
        &self.records
    }

    /// Takes in one event. Call [`Self::poll`] afterwards until it says [`Output::Wait`].
    pub fn handle(&mut self, now: Time, event: Event) {
        self.ctx.now = self.ctx.now.max(now);
        self.notice_pause();
        match event {
            Event::Receive { from, message } => self.receive(&from, message),
            Event::Unreachable { node } => {
                self.members.on_unreachable(&mut self.ctx, &node);
                self.ctx.expire_calls_to(&node);
            }
            Event::Request { ticket, request } => self.request(ticket, request),
            Event::Contact { peer, ring } => self.contact(&peer, ring),
            Event::Persisted { seq } => {
                self.ctx.on_persisted(seq);
                self.ranges.on_persisted(seq);
            }
            Event::PersistFailed { reason, .. } => self.ctx.break_store(reason),
            Event::Measured(load) => {
                self.ranges.set_disk_full(&mut self.ctx, load.disk_full);
                self.load = load;
            }
            Event::Tick => {}
        }
        self.settle();
        self.ctx.seal_commit();
    }

    /// The next thing to do.
    pub fn poll(&mut self) -> Output {
        self.ctx.take_output().unwrap_or_else(|| Output::Wait { until: self.ctx.next_due() })
    }

    /// Does everything that follows from an event without waiting for anything else.
    fn settle(&mut self) {
        loop {
            if let Some(message) = self.ctx.take_local() {
                let me = self.ctx.me.clone();
                self.dispatch(&me, message);
            } else if let Some(timer) = self.ctx.timers.pop(self.ctx.now) {
                self.fire(timer);
            } else if let Some((_, call)) = self.ctx.take_timed_out() {
                self.time_out(call);
            } else if let Some((target, purpose)) = self.ctx.take_wanted_lookup() {
                self.start_lookup(purpose, target);
            } else if let Some(done) = self.lookups.take_done() {
                self.lookup_done(done);
            } else if !self.serve_watches() && !self.take_member_changes() {
                return;
            }
        }
    }

    /// A node that was stopped for a while cannot know what its members missed meanwhile.
    fn notice_pause(&mut self) {
        let silence = self.ctx.now.since(self.last_event);
        self.last_event = self.ctx.now;
        if silence > self.ctx.settings.suspect_after {
            self.ranges.on_pause(&self.ctx);
            self.watches.look_again(&mut self.ctx);
        }
    }

    fn data(&mut self) -> (&mut Ranges, World<'_, R>) {
        let world = World { ctx: &mut self.ctx, records: &self.records, members: &self.members };
        (&mut self.ranges, world)
    }

    fn fire(&mut self, timer: Timer) {
        let Self { ctx, ring, fingers, lookups, members, .. } = self;
        match timer {
            Timer::Stabilize => ring.on_timer_stabilize(ctx, lookups, members),
            Timer::FixFingers => fingers.on_timer_fix(ctx, lookups, ring, members),
            Timer::Ping => {
                let mut watched = BTreeSet::new();
                for peer in self.ranges.co_members() {
                    // A configuration may name a node that nobody has told of yet.
                    members.learn(peer);
                    watched.insert(peer.node);
                }
                watched.extend(ring.predecessor().map(|peer| peer.node));
                watched.extend(ring.successors().iter().map(|peer| peer.node));
                members.set_monitored(watched);
                members.on_timer_ping(ctx);
            }
            Timer::Gossip => members.on_timer_gossip(ctx),
            Timer::Reconcile => {
                let (ranges, mut world) = self.data();
                ranges.on_reconcile(&mut world);
                self.leave_when_drained();
            }
            Timer::Scrub => {
                let (ranges, mut world) = self.data();
                ranges.on_scrub(&mut world);
            }
            Timer::Retry => {
                let (ranges, mut world) = self.data();
                ranges.on_retry(&mut world);
            }
            Timer::Watch => self.watches.on_timer(ctx, members),
            Timer::Hint => self.audience.on_timer(ctx, members),
        }
    }

    /// A node that has handed everything over says so, and is not waited for any more.
    fn leave_when_drained(&mut self) {
        let status = self.members.status_of(&self.ctx.me.node);
        if self.ranges.is_drained()
            && status == Some(MemberStatus::Leaving)
            && self.members.may_go(&mut self.ctx)
        {
            self.members.set_status(MemberStatus::Left);
            self.members.declare(&mut self.ctx);
            self.ring.leave(&mut self.ctx);
            self.watches.end_all(&mut self.ctx);
            self.ctx.notify(Notice::Drained);
        }
    }

    fn take_member_changes(&mut self) -> bool {
        let changes = self.members.take_changes();
        for change in &changes {
            if let MemberChange::Suspected(node) | MemberChange::Status(node) = change
                && self.members.is_suspect(node)
            {
                self.ring.on_suspected(&mut self.ctx, &mut self.members, node);
            }
        }
        if !changes.is_empty() {
            self.ranges.on_member_changes(&mut self.ctx, &changes);
        }
        !changes.is_empty()
    }

    fn receive(&mut self, from: &Peer, message: Message) {
        if from.node != self.ctx.me.node {
            self.members.heard(&mut self.ctx, from);
            self.dispatch(from, message);
        }
    }

    /// An answer goes to whoever asked; anything else is a question.
    fn dispatch(&mut self, from: &Peer, message: Message) {
        let Message { call, body } = message;
        if !body.is_answer() {
            self.asked(from, call, body);
        } else if let Some(Call { purpose, sent, .. }) = self.ctx.take_call(&from.node, call) {
            let rtt = self.ctx.now.since(sent);
            self.members.on_answer(&from.node, rtt);
            self.answered(from, purpose, body);
        }
    }

    fn answered(&mut self, from: &Peer, purpose: Purpose, body: Body) {
        let Self { ctx, ring, lookups, members, .. } = self;
        match (purpose, body) {
            (Purpose::Ping, Body::Pong { digest }) => members.on_pong(ctx, from, digest),
            (Purpose::LookupHop(id), body) => lookups.on_answer(ctx, id, body, members),
            (
                purpose @ (Purpose::StabilizeFirst | Purpose::StabilizeCandidate | Purpose::Join),
                Body::Neighbours { predecessor, successors, joined },
            ) => {
                let theirs = Neighbours { predecessor, successors, joined };
                match purpose {
                    Purpose::StabilizeFirst => ring.on_first_answer(ctx, members, from, theirs),
                    Purpose::StabilizeCandidate => {
                        ring.on_candidate_answer(ctx, members, from, theirs);
                    }
                    _ => ring.on_join_answer(ctx, members, from, theirs),
                }
            }
            (Purpose::View(ticket), Body::View(view)) => {
                self.survey_answer(ticket, &from.node, Some(*view));
            }
            (Purpose::Watch, Body::Watched { session, revision, hints }) => {
                self.watches.on_watched(ctx, from, (session, revision, hints), members);
            }
            (Purpose::Range(purpose), body) => {
                let (ranges, mut world) = self.data();
                ranges.on_answer(&mut world, from.node, purpose, Some(body));
            }
            // An answer that does not fit its question counts as none.
            (purpose, _) => self.unanswered(&from.node, purpose),
        }
    }

    fn time_out(&mut self, call: Call) {
        if call.to != self.ctx.me.node
            && !matches!(call.purpose, Purpose::Range(ref c) if c.is_long())
        {
            self.members.on_call_timed_out(&mut self.ctx, &call.to);
        }
        self.unanswered(&call.to, call.purpose);
    }

    fn unanswered(&mut self, node: &NodeId, purpose: Purpose) {
        let Self { ctx, ring, lookups, members, .. } = self;
        match purpose {
            Purpose::Ping | Purpose::Watch => {}
            Purpose::StabilizeFirst | Purpose::StabilizeCandidate | Purpose::Join => {
                ring.on_timed_out(ctx, members, &purpose);
            }
            Purpose::LookupHop(id) => lookups.on_timed_out(ctx, id, members),
            Purpose::View(ticket) => self.survey_answer(ticket, node, None),
            Purpose::Range(purpose) => {
                let (ranges, mut world) = self.data();
                ranges.on_answer(&mut world, *node, purpose, None);
            }
        }
    }

    fn asked(&mut self, from: &Peer, call: CallId, body: Body) {
        let Self { ctx, ring, fingers, members, .. } = self;
        match body {
            Body::Ping { .. } => members.on_ping(ctx, from, call),
            Body::Gossip { entries, reply } => members.on_gossip(ctx, from, entries, reply),
            Body::GetNeighbours => ring.on_get_neighbours(ctx, members, from, call),
            Body::Notify => ring.on_notify(ctx, members, from),
            Body::FindStep { target } => {
                Routes { ring, fingers, members }.on_find_step(ctx, from, call, target);
            }
            Body::GetView => {
                let view = Box::new(self.view());
                self.ctx.answer(from, call, Body::View(view));
            }
            Body::Watch { revision, subjects, lease_ms } => {
                self.audience.on_watch(ctx, from, call, revision, subjects, lease_ms);
            }
            Body::Changed { session, number, keys, more } => {
                self.watches.on_changed(ctx, &from.node, (session, number), keys, more);
            }
            other => self.asked_about_data(from, call, other),
        }
    }

    fn asked_about_data(&mut self, from: &Peer, call: CallId, body: Body) {
        let (ranges, mut world) = self.data();
        let w = &mut world;
        match body {
            Body::Forward { request, stamp, retry, sole, budget_ms, operation } => {
                let budget = Duration::from_millis(u64::from(budget_ms));
                let errand = Errand { request, stamp, retry, sole, operation: *operation, budget };
                ranges.on_forward(w, from, call, errand);
            }
            Body::GetConfig { point } => ranges.on_get_config(w, from, call, point),
            Body::SlotPrepare { at, ballot } => ranges.on_slot(w, from, call, &at, ballot, None),
            Body::SlotAccept { at, ballot, proposal } => {
                ranges.on_slot(w, from, call, &at, ballot, Some(proposal));
            }
            Body::Decided { configs } => ranges.on_decided(w, from, call, &configs),
            Body::Clear { config } => ranges.on_clear(w, from, call, config),
            Body::Swept { at } => ranges.on_swept(w, at),
            Body::Lagging { at, member } => ranges.on_lagging(w.ctx, at, member),
            question @ (Body::Prepare { .. }
            | Body::Accept { .. }
            | Body::Read { .. }
            | Body::Scan { .. }
            | Body::Digest { .. }
            | Body::Tombstones { .. }
            | Body::Collect { .. }
            | Body::Overdue { .. }) => ranges.on_question(w, from, call, question),
            // Answers do not come here.
            _ => {}
        }
    }

    fn contact(&mut self, peer: &Peer, ring: Option<RingId>) {
        if peer.node == self.ctx.me.node {
            return;
        }
        self.members.heard(&mut self.ctx, peer);
        if matches!(self.phase(), Phase::Leaving | Phase::Drained) {
            return;
        }
        let Some(theirs) = ring else { return };
        if self.ring_id.is_none() {
            self.enter(theirs);
        }
        if self.ring_id == Some(theirs) {
            self.ring.start_join(&mut self.ctx, peer, &mut self.lookups, &mut self.members);
        }
    }

    fn enter(&mut self, ring: RingId) -> u64 {
        self.ring_id = Some(ring);
        self.ctx.notify(Notice::Joined { ring: ring.to_string() });
        self.ctx.persist_meta(RING_ID_META, &ring)
    }

    fn request(&mut self, ticket: Ticket, request: Request) {
        match request {
            Request::Operate { .. } if !self.ring.is_joined() => {
                let failure = Failure::Unavailable("this agent has not joined a ring yet".into());
                self.ctx.reply(ticket, Reply::Operated(Err(failure)));
            }
            Request::Operate { id, retry, operation, budget } => {
                let (ranges, mut world) = self.data();
                let client = Client::Shell(ticket);
                ranges.operate(&mut world, client, id, retry, operation, budget);
            }
            Request::Watch { .. } | Request::WatchRoom { .. } | Request::Unwatch { .. } => {
                self.request_about_watches(ticket, request);
            }
            Request::Lookup { target } => {
                self.start_lookup(LookupPurpose::Request(ticket, target), target);
            }
            Request::View => {
                let view = Box::new(self.view());
                self.ctx.reply(ticket, Reply::View(view));
            }
            Request::Views => self.start_survey(ticket),
            Request::Transfers => {
                let transfers = self.ranges.transfers(self.ctx.now);
                self.ctx.reply(ticket, Reply::Transfers(transfers));
            }
            Request::LocalKeys { after, limit } => self.local_keys(ticket, after, limit),
            Request::Init { ring } => self.init(ticket, ring),
            Request::Force { at, survivors } => {
                let (ranges, mut world) = self.data();
                ranges.order(&mut world, ticket, at, &survivors);
            }
            Request::Leave => {
                self.members.set_status(MemberStatus::Leaving);
                self.members.declare(&mut self.ctx);
                // Who leads a range next should know by then, or it would take this node back.
                self.ctx.timers.set(Timer::Reconcile, self.ctx.now + Duration::from_millis(50));
                self.ctx.reply(ticket, Reply::Leaving);
            }
        }
    }

    /// Founds a ring, unless this node already belongs to one.
    fn init(&mut self, ticket: Ticket, ring: RingId) {
        match self.ring_id {
            Some(mine) if mine == ring => self.ctx.reply(ticket, Reply::Initialized),
            Some(other) => self.ctx.reply(ticket, Reply::OtherRing(other)),
            None => {
                self.enter(ring);
                self.ring.found(&mut self.ctx);
                self.members.set_status(MemberStatus::Up);
                let (ranges, mut world) = self.data();
                let seq = ranges.found(&mut world);
                self.ctx.reply_after(seq, ticket, Reply::Initialized);
            }
        }
    }

    fn local_keys(&mut self, ticket: Ticket, after: Option<crate::request::Cursor>, limit: u32) {
        let (ranges, world) = self.data();
        let reply = match ranges.local_keys(&world, after, limit as usize) {
            Ok((keys, end)) => Reply::LocalKeys { keys, end },
            Err(error) => Reply::StoreFailed(error.to_string()),
        };
        self.ctx.reply(ticket, reply);
    }

    fn start_lookup(&mut self, purpose: LookupPurpose, target: crate::Id) {
        let Self { ctx, ring, fingers, lookups, members, .. } = self;
        lookups.start(ctx, purpose, target, &Routes { ring, fingers, members });
    }

    fn lookup_done(&mut self, done: LookupDone) {
        match done.purpose {
            LookupPurpose::Join => {
                self.ring.on_lookup_done(&mut self.ctx, &self.members, done.result);
            }
            LookupPurpose::Finger(index) => {
                if let Ok(found) = done.result {
                    self.fingers.on_found(index, &found.owner);
                }
            }
            LookupPurpose::Operation(operation) => {
                let found = done.result.map(|found| found.successors).unwrap_or_default();
                let (ranges, mut world) = self.data();
                ranges.on_operation_lookup(&mut world, operation, found);
            }
            LookupPurpose::Request(ticket, target) => {
                let trace = done.result.map(|found| Trace {
                    target,
                    config: self.ranges.best_known(target).map(|c| (*c).clone()),
                    hops: found.hops,
                    owner: found.owner,
                });
                self.ctx.reply(ticket, Reply::LookedUp(trace));
            }
        }
    }

    fn start_survey(&mut self, ticket: Ticket) {
        let mine = (self.ctx.me.clone(), Some(self.view()));
        let others: Vec<_> = self
            .members
            .known()
            .filter(|peer| peer.node != self.ctx.me.node && !self.members.has_left(&peer.node))
            .cloned()
            .collect();
        let open: BTreeSet<_> = others.iter().map(|peer| peer.node).collect();
        let views = std::iter::once(mine).chain(others.iter().map(|p| (p.clone(), None))).collect();
        self.surveys.insert(ticket, Survey { views, open });
        for peer in &others {
            self.ctx.call(peer, Body::GetView, Purpose::View(ticket), SURVEY_PATIENCE);
        }
        self.finish_survey(ticket);
    }

    fn survey_answer(&mut self, ticket: Ticket, node: &NodeId, view: Option<View>) {
        let Some(survey) = self.surveys.get_mut(&ticket) else { return };
        survey.open.remove(node);
        if let Some(entry) = survey.views.iter_mut().find(|(peer, _)| peer.node == *node) {
            entry.1 = view;
        }
        self.finish_survey(ticket);
    }

    fn finish_survey(&mut self, ticket: Ticket) {
        if self.surveys.get(&ticket).is_some_and(|survey| survey.open.is_empty())
            && let Some(mut survey) = self.surveys.remove(&ticket)
        {
            survey.views.sort_by_key(|(peer, _)| peer.node);
            self.ctx.reply(ticket, Reply::Views(survey.views));
        }
    }

    /// What this node reports.
    pub fn view(&mut self) -> View {
        let (ranges, world) = self.data();
        let ranges = ranges.views(&world);
        View {
            me: self.ctx.me.clone(),
            ring: self.ring_id.map(|ring| ring.to_string()),
            phase: self.phase(),
            predecessor: self.ring.predecessor().cloned(),
            successors: self.ring.successors().to_vec(),
            fingers: self.fingers.list(),
            keys: Ranges::key_count(&self.ctx.me.node, &ranges),
            ranges,
            members: self.members.views(self.ctx.now),
            load: self.load.clone(),
        }
    }
}

fn read_meta<T: DeserializeOwned>(
    meta: &[(String, Bytes)],
    name: &str,
) -> Result<Option<T>, StartError> {
    match meta.iter().find(|(other, _)| other == name) {
        None => Ok(None),
        Some((_, bytes)) => {
            postcard::from_bytes(bytes).map(Some).map_err(|_| StartError::Damaged(name.to_owned()))
        }
    }
}
