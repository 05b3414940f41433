//! The way of a client's operation to a member of its range that carries it out.
//!
//! The owner is preferred; if it is slow the next member is asked as well, with the same request id, so
//! that the change is made once. Once a second member has been asked, a refused condition counts only
//! from the member asked last: it notes the refusal, which stops the earlier ones.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::change::found;
use super::expiry::told;
use super::round::{Job, Origin, Task};
use super::{Ranges, Wake, World, owner_first};
use crate::call::{Look, Looked, LookupPurpose, OperationId, RangeCall};
use crate::config::{NodeId, Peer};
use crate::context::Context;
use crate::event::{Records, Ticket};
use crate::message::{Body, CallId};
use crate::record::RequestId;
use crate::request::{Answer, Consistency, Failure, ListedKey, Operation, Reply, WatchId};
use crate::time::{Time, patience};

/// An operation as it is handed from node to node.
#[derive(Debug, Clone)]
pub(crate) struct Errand {
    /// The client's request, over all retries.
    pub(crate) request: RequestId,
    /// When it came to the first agent, on that agent's clock in microseconds.
    pub(crate) stamp: u64,
    /// Whether another node may already be at work on it.
    pub(crate) retry: bool,
    /// Whether the first agent asks no other node, before and as long as this one is at work.
    pub(crate) sole: bool,
    /// What is to be done.
    pub(crate) operation: Operation,
    /// How long the client still waits.
    pub(crate) budget: Duration,
}

/// Whose operation it is.
#[derive(Debug, Clone)]
pub(crate) enum Client {
    /// One of the shell's.
    Shell(Ticket),
    /// A watch of this node, and what it asks for.
    Watch(WatchId, Look),
}

/// An operation of a client of this node.
struct Pending {
    client: Client,
    request: RequestId,
    stamp: u64,
    retry: bool,
    /// Whether the member at work was promised that this node asks no other meanwhile.
    sole: bool,
    operation: Operation,
    deadline: Time,
    /// Who was asked in this turn, and who of them has not answered.
    asked: BTreeSet<NodeId>,
    open: BTreeSet<NodeId>,
    /// Who was asked last.
    last: Option<NodeId>,
    asked_ever: u32,
    /// When the next member is asked if nothing comes before: earlier settings do not count.
    wake: Time,
    /// Whether somebody may have proposed the change.
    maybe: bool,
    /// Why it does not get on.
    reason: Option<String>,
    /// Where a lookup says the range is.
    found: Vec<Peer>,
    /// The keys listed so far; none before the first range was gone through.
    listed: Option<Vec<ListedKey>>,
}

/// The operations of this node's clients.
#[derive(Default)]
pub(super) struct Operations {
    pending: BTreeMap<OperationId, Pending>,
    last: u64,
    /// What came of operations of watches.
    looked: VecDeque<Looked>,
    /// The latest time in the id of a request, and when it came: for requests that have none in their id.
    wall_clock: (u64, Time),
    /// The last operations handed over by each other node.
    taken: BTreeMap<NodeId, BTreeSet<CallId>>,
}

impl Operations {
    /// The stamp of a request that comes now.
    fn stamp(&mut self, now: Time, request: RequestId) -> u64 {
        if let Some(micros) = request.micros() {
            self.wall_clock = (micros, now);
            return micros;
        }
        let (micros, when) = self.wall_clock;
        micros.saturating_add(u64::try_from(now.since(when).as_micros()).unwrap_or(u64::MAX))
    }

    /// Whether this operation was handed over before: a message may come twice, and what was refused
    /// the first time must not be carried out the second time.
    fn is_taken(&mut self, from: NodeId, call: CallId) -> bool {
        let calls = self.taken.entry(from).or_default();
        let is_new = calls.insert(call);
        // Calls are numbered upwards: one before all those remembered may be any of the forgotten ones.
        let is_old = calls.len() > TAKEN_KEPT && calls.pop_first() == Some(call);
        !is_new || is_old
    }
}

/// How long the owner has before the next member is asked as well.
const HEDGE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(1));
/// How many operations handed over by one node are remembered.
const TAKEN_KEPT: usize = 1024;
/// How long to wait when nobody is left to be asked.
const PAUSE: Duration = Duration::from_millis(60);
/// A page of a list is asked from as many ranges as it takes, but one answer names at most so many keys.
const LIST_LIMIT: u32 = 1000;
/// A list that has less time left ends with what it has: what follows is another operation's.
const LIST_IN_TIME: Duration = Duration::from_secs(2);

impl Ranges {
    /// An operation of a client of this node.
    pub(crate) fn operate<R: Records>(
        &mut self,
        w: &mut World<'_, R>,
        client: Client,
        request: RequestId,
        retry: bool,
        operation: Operation,
        budget: Duration,
    ) {
        if self.may_be_old(w.ctx.now, &operation) {
            return self.answer_client(w.ctx, client, Err(was_stopped()));
        }
        self.operations.last += 1;
        let id = OperationId(self.operations.last);
        let pending = Pending {
            client,
            request,
            stamp: self.operations.stamp(w.ctx.now, request),
            retry,
            sole: false,
            operation,
            deadline: w.ctx.now + budget,
            asked: BTreeSet::new(),
            open: BTreeSet::new(),
            last: None,
            asked_ever: 0,
            wake: w.ctx.now,
            maybe: false,
            reason: None,
            found: Vec::new(),
            listed: None,
        };
        self.operations.pending.insert(id, pending);
        self.ask_next(w, id);
    }

    /// Whether a change may have waited here while this node was stopped.
    fn may_be_old(&self, now: Time, operation: &Operation) -> bool {
        operation.is_change() && self.backlog_until.is_some_and(|until| now < until)
    }

    /// Sets when the next member is asked.
    fn wake_operation<R: Records>(&mut self, w: &mut World<'_, R>, id: OperationId, at: Time) {
        if let Some(pending) = self.operations.pending.get_mut(&id) {
            pending.wake = at;
            self.wake_at(w.ctx, at, Wake::Operation(id));
        }
    }

    /// A moment has come that an operation waited for, if it still does.
    pub(super) fn on_operation_wake<R: Records>(
        &mut self,
        w: &mut World<'_, R>,
        id: OperationId,
        at: Time,
    ) {
        if self.operations.pending.get(&id).is_some_and(|pending| pending.wake == at) {
            self.ask_next(w, id);
        }
    }

    /// Hands the operation to the next member in the order of preference.
    fn ask_next<R: Records>(&mut self, w: &mut World<'_, R>, id: OperationId) {
        let now = w.ctx.now;
        let Some(pending) = self.operations.pending.get(&id) else { return };
        if pending.deadline <= now {
            return self.give_up(w, id);
        }
        let deadline = pending.deadline;
        if pending.sole && !pending.open.is_empty() {
            return self.wake_operation(w, id, deadline);
        }
        let next = self
            .candidates(w, pending)
            .into_iter()
            .find(|peer| !pending.asked.contains(&peer.node));
        let longer = self.patience_for(w, &pending.operation);
        let Some(peer) = next else {
            // Everybody was asked. Those still at work may answer; if nobody is, a new turn begins.
            let Some(pending) = self.operations.pending.get_mut(&id) else { return };
            let is_stuck = pending.open.is_empty();
            if is_stuck {
                pending.asked.clear();
            }
            if is_stuck && pending.found.is_empty() {
                w.ctx.wants_lookup(pending.operation.point(), LookupPurpose::Operation(id));
            }
            self.wake_operation(w, id, (now + PAUSE).min(deadline));
            return;
        };
        let Some(pending) = self.operations.pending.get_mut(&id) else { return };
        // Whoever said that it did nothing is no longer at work on it.
        let retry = pending.retry || pending.maybe || !pending.open.is_empty();
        pending.asked_ever += 1;
        pending.asked.insert(peer.node);
        pending.open.insert(peer.node);
        pending.last = Some(peer.node);
        let hedge = (w.members.rto(&peer.node) * 2).clamp(HEDGE.0, HEDGE.1) + longer;
        self.wake_operation(w, id, (now + hedge).min(deadline));
        let Some(pending) = self.operations.pending.get(&id) else { return };
        let &Pending { request, stamp, sole, .. } = pending;
        let operation = pending.operation.clone();
        let budget = deadline.since(now);
        if peer.node == w.ctx.me.node {
            let errand = Errand { request, stamp, retry, sole, operation, budget };
            self.carry_out(w, Origin::Here(id), errand);
        } else {
            let question = Body::Forward {
                request,
                stamp,
                retry,
                sole,
                budget_ms: u32::try_from(budget.as_millis()).unwrap_or(u32::MAX),
                operation: Box::new(operation),
            };
            w.ctx.call(&peer, question, RangeCall::Forward(id).into(), budget);
        }
    }

    /// How much longer an operation takes than that on a short value, as far as this node knows.
    fn patience_for<R: Records>(&self, w: &World<'_, R>, operation: &Operation) -> Duration {
        match operation {
            Operation::Get { key, .. } if w.ctx.settings.has_large_values() => {
                let seen = self.stored.get(w.records, key);
                seen.map_or(Duration::ZERO, |seen| patience(seen.record.register.value_bytes()))
            }
            // To the member, and from there to the others.
            operation => patience(operation.value_bytes()) * 2,
        }
    }

    /// Who may carry the operation out, in the order of preference.
    fn candidates<R: Records>(&self, w: &World<'_, R>, pending: &Pending) -> Vec<Peer> {
        let point = pending.operation.point();
        let me = w.ctx.me.node;
        let mut candidates = match self.best_known(point) {
            Some(config) => owner_first(&config.members, config.hi),
            None => Vec::new(),
        };
        if matches!(pending.operation, Operation::Get { consistency: Consistency::Any, .. })
            && let Some(at) = candidates.iter().position(|peer| peer.node == me)
        {
            candidates.swap(0, at);
        }
        let is_vain =
            |peer: &Peer| pending.asked.contains(&peer.node) || w.members.is_suspect(&peer.node);
        if candidates.iter().all(is_vain) {
            // What is known of the range may be old: the nodes around the point know better.
            let live: Vec<_> = w.members.live().collect();
            let next = live.partition_point(|peer| peer.node.position < point);
            let around = (0..live.len().min(3)).map(|i| live[(next + i) % live.len()].clone());
            candidates.extend(around);
            candidates.extend(pending.found.iter().cloned());
        }
        let mut seen = BTreeSet::new();
        candidates.retain(|peer| seen.insert(peer.node));
        // Suspected members are asked last, when nobody else could do it.
        candidates.sort_by_key(|peer| w.members.is_suspect(&peer.node));
        candidates.iter().map(|peer| w.members.current(peer)).collect()
    }

    /// Carries an operation out here, if this node keeps the range.
    fn carry_out<R: Records>(&mut self, w: &mut World<'_, R>, origin: Origin, errand: Errand) {
        let (point, deadline) = (errand.operation.point(), w.ctx.now + errand.budget);
        let me = w.ctx.me.node;
        if self.may_be_old(w.ctx.now, &errand.operation) {
            return self.finish_origin(w, origin, Err(was_stopped()));
        }
        let is_member = self.current(point).is_some_and(|known| known.config.has_member(&me));
        if !is_member {
            let hint = self.best_known(point).map(|config| Box::new((*config).clone()));
            return self.finish_origin(w, origin, Err(Failure::NotMember(hint)));
        }
        match &errand.operation {
            Operation::List { after, prefix, limit } => {
                let (after, prefix) = (after.clone(), Arc::clone(prefix));
                let limit = (*limit).min(LIST_LIMIT);
                self.list(w, origin, after, prefix, limit, deadline);
            }
            Operation::Get { key, consistency: Consistency::Any } => {
                let outcome = match self.stored.whole(w.records, key) {
                    Ok(seen) => found(&told(w.ctx, &seen.record))
                        .ok_or_else(|| Failure::Unavailable("the value is not here".into())),
                    Err(error) => Err(Failure::Unavailable(error.to_string())),
                };
                self.finish_origin(w, origin, outcome);
            }
            Operation::Get { key, .. } => {
                self.submit(w, key, Job { origin, task: Task::Get, deadline });
            }
            Operation::Put { key, .. } | Operation::Delete { key, .. } => {
                let key = key.clone();
                let task = Task::Change(Box::new(errand));
                self.submit(w, &key, Job { origin, task, deadline });
            }
        }
    }

    /// Another node hands over an operation of its client.
    pub(crate) fn on_forward<R: Records>(
        &mut self,
        w: &mut World<'_, R>,
        from: &Peer,
        call: CallId,
        errand: Errand,
    ) {
        if self.operations.is_taken(from.node, call) {
            return;
        }
        self.carry_out(w, Origin::There(from.clone(), call), errand);
    }

    pub(super) fn finish_origin<R: Records>(
        &mut self,
        w: &mut World<'_, R>,
        origin: Origin,
        outcome: Result<Answer, Failure>,
    ) {
        match origin {
            Origin::Here(id) => self.finish_operation(w, id, outcome),
            Origin::There(peer, call) => {
                w.ctx.answer(&peer, call, Body::Forwarded { outcome });
            }
            Origin::Pass(..) | Origin::Comparison(..) | Origin::Listing(..) | Origin::Expiry(_) => {
            }
        }
    }

    /// A member answered, or the whole time went by.
    pub(super) fn on_forwarded<R: Records>(
        &mut self,
        w: &mut World<'_, R>,
        id: OperationId,
        from: NodeId,
        answer: Option<Body>,
    ) {
        match answer {
            Some(Body::Forwarded { outcome }) => self.on_outcome(w, id, from, outcome),
            _ => {
                if let Some(pending) = self.operations.pending.get_mut(&id) {
                    pending.open.remove(&from);
                    pending.maybe |= pending.operation.is_change();
                    if pending.sole {
                        // It may still be at work.
                        return self.give_up(w, id);
                    }
                }
                self.ask_next(w, id);
            }
        }
    }

    /// This node itself carried the operation out.
    pub(super) fn finish_operation<R: Records>(
        &mut self,
        w: &mut World<'_, R>,
        id: OperationId,
        outcome: Result<Answer, Failure>,
    ) {
        let me = w.ctx.me.node;
        self.on_outcome(w, id, me, outcome);
    }

    fn on_outcome<R: Records>(
        &mut self,
        w: &mut World<'_, R>,
        id: OperationId,
        from: NodeId,
        outcome: Result<Answer, Failure>,
    ) {
        let Some(pending) = self.operations.pending.get_mut(&id) else { return };
        pending.open.remove(&from);
        pending.sole = false;
        match outcome {
            Ok(Answer::Listed { keys, next }) => self.on_listed(w, id, keys, next),
            Ok(answer) => {
                let may_be_overtaken = answer.is_refusal() && pending.operation.is_change();
                if !may_be_overtaken || pending.last == Some(from) {
                    self.conclude(w, id, Ok(answer));
                }
            }
            Err(Failure::NotMember(hint)) => {
                if let Some(config) = hint {
                    self.learn(&config);
                }
                self.ask_next(w, id);
            }
            Err(Failure::DiskFull) if !pending.maybe && pending.open.is_empty() => {
                self.conclude(w, id, Err(Failure::DiskFull));
            }
            Err(Failure::TooOld) => {
                if pending.open.is_empty() && !pending.maybe {
                    // Nobody else is at work on it for this node, and nobody will be until there is an
                    // answer. What a client sent elsewhere before is forgotten: this counts as new.
                    pending.sole = true;
                    pending.asked.remove(&from);
                }
                self.ask_next(w, id);
            }
            Err(failure) => {
                pending.maybe |= failure == Failure::MaybeApplied;
                if let Failure::Unavailable(reason) = failure {
                    pending.reason = Some(reason);
                }
                self.ask_next(w, id);
            }
        }
    }

    /// A page of the list from one range: the next range goes on where it ended.
    fn on_listed<R: Records>(
        &mut self,
        w: &mut World<'_, R>,
        id: OperationId,
        keys: Vec<ListedKey>,
        next: Option<crate::request::Cursor>,
    ) {
        let Some(pending) = self.operations.pending.get_mut(&id) else { return };
        let Operation::List { after, limit, .. } = &mut pending.operation else { return };
        *limit = limit.saturating_sub(keys.len() as u32);
        let is_full = *limit == 0;
        after.clone_from(&next);
        pending.listed.get_or_insert_default().extend(keys);
        let is_late = pending.deadline.since(w.ctx.now) < LIST_IN_TIME;
        if next.is_none() || is_full || is_late {
            let keys = pending.listed.take().unwrap_or_default();
            return self.conclude(w, id, Ok(Answer::Listed { keys, next }));
        }
        pending.asked.clear();
        pending.open.clear();
        pending.found.clear();
        // Under a new name, so that a late answer to this page is not taken for the next one.
        self.operations.last += 1;
        let next_id = OperationId(self.operations.last);
        if let Some(pending) = self.operations.pending.remove(&id) {
            self.operations.pending.insert(next_id, pending);
        }
        self.ask_next(w, next_id);
    }

    /// A lookup for an operation ended.
    pub(crate) fn on_operation_lookup<R: Records>(
        &mut self,
        w: &mut World<'_, R>,
        id: OperationId,
        found: Vec<Peer>,
    ) {
        // A lookup can fail at once, again and again: the next one waits for the pause to be over.
        if let Some(pending) = self.operations.pending.get_mut(&id)
            && !found.is_empty()
        {
            pending.found = found;
            self.ask_next(w, id);
        }
    }

    fn give_up<R: Records>(&mut self, w: &mut World<'_, R>, id: OperationId) {
        let Some(pending) = self.operations.pending.get_mut(&id) else { return };
        if let (Some(keys), Operation::List { after, .. }) =
            (pending.listed.take(), &pending.operation)
        {
            // What was gone through is good; who asks on from there hears of the trouble.
            let next = after.clone();
            return self.conclude(w, id, Ok(Answer::Listed { keys, next }));
        }
        let unanswered = !pending.open.is_empty() && pending.operation.is_change();
        let failure = if pending.maybe || unanswered {
            Failure::MaybeApplied
        } else if let Some(reason) = &pending.reason {
            Failure::Unavailable(reason.clone())
        } else if pending.asked_ever == 0 {
            Failure::Unavailable("no node of the ring is known that keeps this key".into())
        } else {
            Failure::Unavailable("the nodes that keep this key did not answer in time".into())
        };
        self.conclude(w, id, Err(failure));
    }

    fn conclude<R: Records>(
        &mut self,
        w: &mut World<'_, R>,
        id: OperationId,
        outcome: Result<Answer, Failure>,
    ) {
        if let Some(pending) = self.operations.pending.remove(&id) {
            self.answer_client(w.ctx, pending.client, outcome);
        }
    }

    fn answer_client(
        &mut self,
        ctx: &mut Context,
        client: Client,
        outcome: Result<Answer, Failure>,
    ) {
        match client {
            Client::Shell(ticket) => ctx.reply(ticket, Reply::Operated(outcome)),
            Client::Watch(watch, look) => self.operations.looked.push_back((watch, look, outcome)),
        }
    }

    /// What came of an operation of a watch.
    pub(crate) fn take_looked(&mut self) -> Option<Looked> {
        self.operations.looked.pop_front()
    }
}

fn was_stopped() -> Failure {
    let reason = "this agent was stopped for a while and has just gone on; try again";
    Failure::Unavailable(reason.into())
}
