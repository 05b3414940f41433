//! Lookups: who is the first node at or after a point? Asked hop by hop by the node that wants to know
//! (the iterative style of SIGCOMM'01, section 4), which therefore sees every hop and its time.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::call::{LookupId, LookupPurpose, Purpose};
use crate::config::{NodeId, Peer};
use crate::context::Context;
use crate::fingers::{Fingers, Router};
use crate::id::Id;
use crate::membership::Membership;
use crate::message::{Body, CallId, NextHop};
use crate::request::{Failure, Hop};
use crate::ring::Ring;
use crate::time::Time;

/// How long a lookup may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a lookup found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    /// The last node asked: the point lies between it and its first successor.
    pub(crate) predecessor: Peer,
    /// The first node at or after the point.
    pub(crate) owner: Peer,
    /// The nodes from the owner on, nearest first, as its predecessor knows them.
    pub(crate) successors: Vec<Peer>,
    /// The nodes asked, in order.
    pub(crate) hops: Vec<Hop>,
}

/// A lookup that ended.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LookupDone {
    pub(crate) purpose: LookupPurpose,
    pub(crate) result: Result<Found, Failure>,
}

/// What a node routes by.
#[derive(Clone, Copy)]
pub(crate) struct Routes<'a> {
    pub(crate) ring: &'a Ring,
    pub(crate) fingers: &'a Fingers,
    pub(crate) members: &'a Membership,
}

impl Routes<'_> {
    /// This node's word on the way to `target`.
    pub(crate) fn next_hop(&self, ctx: &Context, target: Id) -> NextHop {
        if !self.ring.is_joined() {
            return NextHop::NotJoined;
        }
        Router::new(&ctx.me, self.ring.successors(), self.fingers)
            .with_members(self.members, ctx.settings.use_member_cache)
            .next_hop(target)
    }

    /// Answers another node's question for the next hop.
    pub(crate) fn on_find_step(&self, ctx: &mut Context, from: &Peer, call: CallId, target: Id) {
        let next = if self.ring.is_last(self.members, &from.node) {
            NextHop::Found { successors: vec![ctx.me.clone()] }
        } else {
            self.next_hop(ctx, target)
        };
        ctx.answer(from, call, Body::Step { next });
    }
}

/// The course of one lookup: whom to ask next, after what was answered so far. It works on answers
/// from anywhere, also from a simulation that sends no messages.
#[derive(Debug, Clone)]
pub struct Path {
    target: Id,
    /// Whom to ask next, the best last.
    candidates: Vec<Peer>,
    /// Who was asked already.
    asked: BTreeSet<NodeId>,
}

impl Path {
    /// A lookup of `target` by the node `me`, which asks itself first: tell [`Self::follow`] its answer.
    pub fn new(me: NodeId, target: Id) -> Self {
        Self { target, candidates: Vec::new(), asked: BTreeSet::from([me]) }
    }

    /// Goes on with what `from` answered. Returns the nodes from the owner of the target on, nearest
    /// first, if they are found.
    pub fn follow(&mut self, from: &Peer, next: NextHop) -> Option<Vec<Peer>> {
        match next {
            NextHop::Found { successors } if !successors.is_empty() => return Some(successors),
            NextHop::Closer { candidates } => {
                // Each hop must come nearer, or a lookup among nodes that disagree might never end.
                let here = from.node.position;
                let nearer = candidates.into_iter().filter(|candidate| {
                    candidate.node.position.is_between(here, self.target)
                        && !self.asked.contains(&candidate.node)
                });
                let nearer: Vec<_> = nearer.collect();
                self.candidates.extend(nearer.into_iter().rev());
            }
            NextHop::Found { .. } | NextHop::NotJoined => {}
        }
        None
    }

    /// Whom to ask next: the best candidate that was not asked yet, suspected ones only when there is
    /// no other. None if nobody is left.
    pub fn next(&mut self, is_suspect: impl Fn(&NodeId) -> bool) -> Option<Peer> {
        let asked = &self.asked;
        self.candidates.retain(|peer| !asked.contains(&peer.node));
        let trusted = self.candidates.iter().rposition(|peer| !is_suspect(&peer.node));
        let next = match trusted {
            Some(at) => self.candidates.remove(at),
            None => self.candidates.pop()?,
        };
        self.asked.insert(next.node);
        Some(next)
    }
}

/// A lookup under way.
#[derive(Debug)]
struct Lookup {
    purpose: LookupPurpose,
    path: Path,
    started: Time,
    /// Who is being asked now, and since when.
    asking: Option<(Peer, Time)>,
    hops: Vec<Hop>,
}

/// The lookups of a node.
#[derive(Debug, Default)]
pub(crate) struct Lookups {
    last: u64,
    running: BTreeMap<LookupId, Lookup>,
    done: VecDeque<LookupDone>,
}

impl Lookups {
    /// Starts a lookup at this node, which must be a member.
    pub(crate) fn start(
        &mut self,
        ctx: &mut Context,
        purpose: LookupPurpose,
        target: Id,
        routes: &Routes<'_>,
    ) {
        let lookup = Lookup::new(ctx, purpose, target);
        let me = ctx.me.clone();
        match routes.next_hop(ctx, target) {
            NextHop::NotJoined => {
                self.fail(lookup, "this node is not a member of the ring yet; try again soon");
            }
            next => self.follow(ctx, lookup, me, next, routes.members),
        }
    }

    /// Starts a lookup at another node.
    pub(crate) fn start_at(
        &mut self,
        ctx: &mut Context,
        purpose: LookupPurpose,
        target: Id,
        first: &Peer,
        members: &Membership,
    ) {
        let mut lookup = Lookup::new(ctx, purpose, target);
        lookup.path.candidates.push(first.clone());
        self.ask_next(ctx, lookup, members);
    }

    /// The node asked answered; anything but a step counts as no answer.
    pub(crate) fn on_answer(
        &mut self,
        ctx: &mut Context,
        id: LookupId,
        body: Body,
        members: &Membership,
    ) {
        let Some(mut lookup) = self.running.remove(&id) else { return };
        let Some(peer) = lookup.end_hop(ctx.now, true) else { return };
        match body {
            Body::Step { next } => self.follow(ctx, lookup, peer, next, members),
            _ => self.ask_next(ctx, lookup, members),
        }
    }

    /// The node asked did not answer in time: the next candidate is asked.
    pub(crate) fn on_timed_out(&mut self, ctx: &mut Context, id: LookupId, members: &Membership) {
        let Some(mut lookup) = self.running.remove(&id) else { return };
        lookup.end_hop(ctx.now, false);
        self.ask_next(ctx, lookup, members);
    }

    /// Takes a lookup that ended.
    pub(crate) fn take_done(&mut self) -> Option<LookupDone> {
        self.done.pop_front()
    }

    /// Goes on with what `peer` said.
    fn follow(
        &mut self,
        ctx: &mut Context,
        mut lookup: Lookup,
        peer: Peer,
        next: NextHop,
        members: &Membership,
    ) {
        if let Some(successors) = lookup.path.follow(&peer, next)
            && let Some(owner) = successors.first().cloned()
        {
            let Lookup { purpose, hops, .. } = lookup;
            let found = Found { predecessor: peer, owner, successors, hops };
            self.done.push_back(LookupDone { purpose, result: Ok(found) });
            return;
        }
        self.ask_next(ctx, lookup, members);
    }

    fn ask_next(&mut self, ctx: &mut Context, mut lookup: Lookup, members: &Membership) {
        let left = PATIENCE.saturating_sub(ctx.now.since(lookup.started));
        if left.is_zero() {
            return self.fail(lookup, "the lookup took too long; try again");
        }
        let Some(peer) = lookup.path.next(|node| members.is_suspect(node)) else {
            return self.fail(lookup, "no node on the way to the key answered; try again");
        };
        self.last += 1;
        let id = LookupId(self.last);
        let peer = members.current(&peer);
        let body = Body::FindStep { target: lookup.path.target };
        let timeout = members.rto(&peer.node).min(left);
        ctx.call(&peer, body, Purpose::LookupHop(id), timeout);
        lookup.asking = Some((peer, ctx.now));
        self.running.insert(id, lookup);
    }

    fn fail(&mut self, lookup: Lookup, reason: &str) {
        let result = Err(Failure::Unavailable(reason.to_owned()));
        self.done.push_back(LookupDone { purpose: lookup.purpose, result });
    }
}

impl Lookup {
    fn new(ctx: &Context, purpose: LookupPurpose, target: Id) -> Self {
        Self {
            purpose,
            path: Path::new(ctx.me.node, target),
            started: ctx.now,
            asking: None,
            hops: Vec::new(),
        }
    }

    /// Notes how the hop under way ended.
    fn end_hop(&mut self, now: Time, answered: bool) -> Option<Peer> {
        let (peer, since) = self.asking.take()?;
        let elapsed = now.since(since);
        self.hops.push(Hop { peer: peer.clone(), elapsed, answered });
        Some(peer)
    }
}
