//! The ring pointers: join, stabilise and rectify as corrected by Pamela Zave ("Reasoning about
//! identifier spaces: how to make Chord correct", IEEE TSE 2017).
//!
//! Three things differ from her model, which has perfect failure detection and at least r + 1 nodes:
//! the successor list holds as many others as there are, up to r, and is empty when the node is alone;
//! "dead" means suspected, and a list without a live entry is kept, so that after a power cut of all
//! nodes everybody goes on with the old pointers, though newcomers are told of nobody in it; and a
//! live member that this node heard itself is as good a candidate for first successor as the
//! successor's predecessor, so that the halves of a partition become one ring again.

#[cfg(test)]
pub(crate) mod testnet;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use crate::call::{LookupPurpose, Purpose};
use crate::config::{NodeId, Peer};
use crate::context::Context;
use crate::event::Notice;
use crate::lookup::{Found, Lookups};
use crate::membership::Membership;
use crate::message::{Body, CallId, MemberStatus};
use crate::request::Failure;
use crate::timer::Timer;

/// The meta record that holds the pointers.
pub(crate) const RING_META: &str = "ring";

/// The pointers of a node, as they are stored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RingState {
    /// Whether the node is a member of the ring.
    joined: bool,
    /// The nearest node before it.
    predecessor: Option<Peer>,
    /// The nodes after it, nearest first: distinct, in order, never itself. Empty when it is alone.
    successors: Vec<Peer>,
}

/// What the other nodes said of their neighbours.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Neighbours {
    pub(crate) predecessor: Option<Peer>,
    pub(crate) successors: Vec<Peer>,
    pub(crate) joined: bool,
}

/// The steps of a node that wait for an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// The first successor was asked for its neighbours.
    First,
    /// A candidate was asked, when the first successor was this.
    Candidate { head: Option<NodeId> },
    /// The join lookup or the copy of the list is under way.
    Join,
}

/// A node's place on the ring.
#[derive(Debug)]
pub(crate) struct Ring {
    state: RingState,
    step: Option<Step>,
    /// Who was asked to let this node in.
    contact: Option<Peer>,
}

impl Ring {
    /// The pointers as the store left them.
    pub(crate) fn new(ctx: &mut Context, restored: Option<RingState>) -> Self {
        ctx.timers.set(Timer::Stabilize, ctx.now);
        Self { state: restored.unwrap_or_default(), step: None, contact: None }
    }

    /// The nearest node before this one, as far as known.
    pub(crate) const fn predecessor(&self) -> Option<&Peer> {
        self.state.predecessor.as_ref()
    }

    /// The nodes after this one, nearest first; none if it is alone.
    pub(crate) fn successors(&self) -> &[Peer] {
        &self.state.successors
    }

    /// Whether this node is a member of the ring.
    pub(crate) const fn is_joined(&self) -> bool {
        self.state.joined
    }

    /// Becomes the first member of a new ring.
    pub(crate) fn found(&mut self, ctx: &mut Context) {
        self.step = None;
        self.change(ctx, RingState { joined: true, ..RingState::default() });
        ctx.timers.set(Timer::Stabilize, ctx.now);
    }

    /// Asks `contact` the way to this node's place. Tried again at each stabilise until it succeeds.
    pub(crate) fn start_join(
        &mut self,
        ctx: &mut Context,
        contact: &Peer,
        lookups: &mut Lookups,
        members: &mut Membership,
    ) {
        if self.state.joined {
            return;
        }
        self.contact = Some(contact.clone());
        if self.step.is_none() {
            self.step = Some(Step::Join);
            members.learn(contact);
            members.introduce(ctx, contact);
            let here = ctx.me.node.position;
            lookups.start_at(ctx, LookupPurpose::Join, here, contact, members);
        }
    }

    /// The join lookup ended. The node before this one's place is asked for its list: Zave's join
    /// copies the list of a member m with m < j < successor(m) in one query.
    pub(crate) fn on_lookup_done(
        &mut self,
        ctx: &mut Context,
        members: &Membership,
        result: Result<Found, Failure>,
    ) {
        if self.step != Some(Step::Join) {
            return;
        }
        match result {
            Ok(found) => ask(ctx, members, &found.predecessor, Purpose::Join),
            Err(_) => self.step = None,
        }
    }

    /// Leaves the ring. In Zave's model, and for all others, this is a failure.
    pub(crate) fn leave(&mut self, ctx: &mut Context) {
        self.step = None;
        self.contact = None;
        self.change(ctx, RingState::default());
    }

    /// Looks at the pointers again, or tries again to join.
    pub(crate) fn on_timer_stabilize(
        &mut self,
        ctx: &mut Context,
        lookups: &mut Lookups,
        members: &mut Membership,
    ) {
        ctx.set_timer(Timer::Stabilize, ctx.settings.stabilize_every);
        if self.state.joined {
            self.announce(ctx, members);
            self.stabilize(ctx, members);
        } else if let Some(contact) = &self.contact {
            let other = members.next_live(false).filter(|_| members.is_suspect(&contact.node));
            let contact = other.cloned().unwrap_or_else(|| members.current(contact));
            self.start_join(ctx, &contact, lookups, members);
        }
    }

    /// A node became suspected or left: if it is the first successor, there is no time to lose.
    pub(crate) fn on_suspected(
        &mut self,
        ctx: &mut Context,
        members: &mut Membership,
        node: &NodeId,
    ) {
        if self.state.joined && self.head() == Some(*node) {
            self.step = None;
            self.stabilize(ctx, members);
        }
    }

    /// Tells another node who the neighbours are.
    pub(crate) fn on_get_neighbours(
        &self,
        ctx: &mut Context,
        members: &Membership,
        from: &Peer,
        call: CallId,
    ) {
        let RingState { joined, predecessor, mut successors } = self.state.clone();
        if self.is_last(members, &from.node) {
            successors.clear();
        }
        ctx.answer(from, call, Body::Neighbours { predecessor, successors, joined });
    }

    /// Whether this node lets `newcomer` in as one that is alone would: it is the only member that can be
    /// relied on. Those in its list may come back, or never; a newcomer does not wait for them.
    pub(crate) fn is_last(&self, members: &Membership, newcomer: &NodeId) -> bool {
        self.state.joined
            && members.status_of(newcomer) == Some(MemberStatus::Joining)
            && self.state.successors.iter().all(|peer| members.is_suspect(&peer.node))
            && members.next_live(false).is_none()
    }

    /// Somebody says that it may be the predecessor (Zave's rectify).
    pub(crate) fn on_notify(&mut self, ctx: &mut Context, members: &mut Membership, from: &Peer) {
        let (me, new) = (ctx.me.node.position, from.node.position);
        if !self.state.joined || new == me || members.has_left(&from.node) {
            return;
        }
        let better = self.state.predecessor.as_ref().is_none_or(|old| {
            new.is_between(old.node.position, me) || members.is_suspect(&old.node)
        });
        if better {
            self.change(ctx, RingState { predecessor: Some(from.clone()), ..self.state.clone() });
            if self.state.successors.is_empty() {
                self.stabilize(ctx, members);
            }
        }
    }

    /// The first successor answered (stabilise, step 1).
    pub(crate) fn on_first_answer(
        &mut self,
        ctx: &mut Context,
        members: &mut Membership,
        from: &Peer,
        theirs: Neighbours,
    ) {
        if self.step != Some(Step::First) {
            return;
        }
        self.step = None;
        if self.head() != Some(from.node) || !self.state.joined {
            return;
        }
        if !theirs.joined {
            return self.pass_over(ctx, members);
        }
        self.adopt(ctx, members, from, &theirs.successors);
        let me = ctx.me.node.position;
        let nearer = |peer: &&Peer| {
            peer.node.position.is_between(me, from.node.position) && !members.is_suspect(&peer.node)
        };
        let known = members.next_live(true).filter(nearer);
        let candidate = theirs.predecessor.as_ref().filter(nearer).into_iter().chain(known);
        match candidate.min_by_key(|peer| me.distance_to(peer.node.position)).cloned() {
            Some(candidate) => self.consider(ctx, members, &candidate),
            None => ctx.tell(from, Body::Notify),
        }
    }

    /// The candidate for first successor answered (stabilise, step 2).
    pub(crate) fn on_candidate_answer(
        &mut self,
        ctx: &mut Context,
        members: &mut Membership,
        from: &Peer,
        theirs: Neighbours,
    ) {
        let Some(Step::Candidate { head }) = self.step.take_if(|step| step.is_candidate()) else {
            return;
        };
        if !self.state.joined || head != self.head() {
            return;
        }
        let fits = self.state.successors.first().is_none_or(|head| {
            from.node.position.is_between(ctx.me.node.position, head.node.position)
                || members.is_suspect(&head.node)
        });
        if theirs.joined && fits {
            self.adopt(ctx, members, from, &theirs.successors);
            ctx.tell(from, Body::Notify);
            // There may be somebody nearer still. Each round comes nearer, so this ends.
            self.stabilize(ctx, members);
        } else {
            self.notify_head(ctx, members);
        }
    }

    /// The node before this one's place answered: copy its list and be a member.
    pub(crate) fn on_join_answer(
        &mut self,
        ctx: &mut Context,
        members: &mut Membership,
        from: &Peer,
        theirs: Neighbours,
    ) {
        if self.step != Some(Step::Join) {
            return;
        }
        self.step = None;
        let me = ctx.me.node.position;
        // A node that left and comes back may still be where it belongs in the other's list.
        let between = theirs.successors.first().is_none_or(|next| {
            next.node == ctx.me.node || me.is_between(from.node.position, next.node.position)
        });
        if !theirs.joined || !between || from.node.position == me {
            return;
        }
        let mut list = theirs.successors;
        list.retain(|peer| peer.node != ctx.me.node);
        list.push(from.clone());
        let successors = in_order(ctx, members, &list);
        self.change(ctx, RingState { joined: true, predecessor: Some(from.clone()), successors });
        self.announce(ctx, members);
        self.stabilize(ctx, members);
    }

    /// A question of this part was not answered in time. The node that was asked is not dead before
    /// it is suspected.
    pub(crate) fn on_timed_out(
        &mut self,
        ctx: &mut Context,
        members: &Membership,
        purpose: &Purpose,
    ) {
        match (purpose, &self.step) {
            (Purpose::StabilizeFirst, Some(Step::First)) | (Purpose::Join, Some(Step::Join)) => {
                self.step = None;
            }
            (Purpose::StabilizeCandidate, Some(Step::Candidate { .. })) => {
                self.step = None;
                self.notify_head(ctx, members);
            }
            _ => {}
        }
    }

    fn head(&self) -> Option<NodeId> {
        self.state.successors.first().map(|peer| peer.node)
    }

    /// Stabilise, up to its first question.
    fn stabilize(&mut self, ctx: &mut Context, members: &mut Membership) {
        if self.step.is_some() || !self.state.joined {
            return;
        }
        self.drop_dead(ctx, members);
        let head = self.state.successors.first().cloned();
        let nearest = |heard| members.next_live(heard).cloned();
        match head {
            // Alone, a node is its own successor, and asks its own predecessor next.
            None => {
                let before = self.state.predecessor.clone();
                let live = before.filter(|peer| !members.is_suspect(&peer.node));
                if let Some(candidate) = live.or_else(|| nearest(true)) {
                    self.consider(ctx, members, &candidate);
                }
            }
            Some(head) if members.is_suspect(&head.node) => match nearest(false) {
                Some(candidate) => self.consider(ctx, members, &candidate),
                None => self.ask_first(ctx, members, &head),
            },
            Some(head) => self.ask_first(ctx, members, &head),
        }
    }

    fn ask_first(&mut self, ctx: &mut Context, members: &Membership, head: &Peer) {
        self.step = Some(Step::First);
        ask(ctx, members, head, Purpose::StabilizeFirst);
    }

    fn consider(&mut self, ctx: &mut Context, members: &mut Membership, candidate: &Peer) {
        members.learn(candidate);
        self.step = Some(Step::Candidate { head: self.head() });
        ask(ctx, members, candidate, Purpose::StabilizeCandidate);
    }

    fn notify_head(&self, ctx: &mut Context, members: &Membership) {
        if let Some(head) = self.state.successors.first() {
            ctx.tell(&members.current(head), Body::Notify);
        }
    }

    /// Drops the entries before the first live one. If none lives, only those that are gone for good
    /// go: the others may come back.
    fn drop_dead(&mut self, ctx: &mut Context, members: &Membership) {
        let mut state = self.state.clone();
        let addressed = |peer: &mut Peer| *peer = members.current(peer);
        state.successors.iter_mut().chain(&mut state.predecessor).for_each(addressed);
        match state.successors.iter().position(|peer| !members.is_suspect(&peer.node)) {
            Some(dead) => drop(state.successors.drain(..dead)),
            None => state.successors.retain(|peer| !members.has_left(&peer.node)),
        }
        if state.successors.is_empty() {
            state.predecessor = state.predecessor.filter(|peer| !members.has_left(&peer.node));
        }
        self.change(ctx, state);
    }

    /// The first successor lives but is not a member: goes on to the next, if there is one.
    fn pass_over(&mut self, ctx: &mut Context, members: &mut Membership) {
        if self.state.successors.len() > 1 {
            let mut state = self.state.clone();
            state.successors.remove(0);
            self.change(ctx, state);
            self.stabilize(ctx, members);
        } else if let Some(candidate) = members.next_live(true).cloned()
            && self.head() != Some(candidate.node)
        {
            self.consider(ctx, members, &candidate);
        }
    }

    /// Takes `head` as first successor and its list as the rest of the own list.
    fn adopt(&mut self, ctx: &mut Context, members: &mut Membership, head: &Peer, rest: &[Peer]) {
        let mut list = vec![head.clone()];
        list.extend_from_slice(rest);
        let successors = in_order(ctx, members, &list);
        self.change(ctx, RingState { successors, ..self.state.clone() });
    }

    /// Says that this node is a member, once it is.
    fn announce(&self, ctx: &mut Context, members: &mut Membership) {
        if members.status_of(&ctx.me.node) == Some(MemberStatus::Joining) {
            members.set_status(MemberStatus::Up);
        }
    }

    /// Replaces the pointers, stores them and tells about them, where they differ.
    fn change(&mut self, ctx: &mut Context, state: RingState) {
        if state == self.state {
            return;
        }
        let node = |peer: Option<&Peer>| peer.map(|peer| peer.node);
        if node(state.successors.first()) != self.head() {
            let to = state.successors.first().cloned();
            ctx.notify(Notice::SuccessorChanged { to });
        }
        if node(state.predecessor.as_ref()) != node(self.state.predecessor.as_ref()) {
            ctx.notify(Notice::PredecessorChanged { to: state.predecessor.clone() });
        }
        ctx.persist_meta(RING_META, &state);
        self.state = state;
    }
}

impl Step {
    const fn is_candidate(&self) -> bool {
        matches!(self, Self::Candidate { .. })
    }
}

fn ask(ctx: &mut Context, members: &Membership, to: &Peer, purpose: Purpose) {
    let to = members.current(to);
    let timeout = members.rto(&to.node);
    ctx.call(&to, Body::GetNeighbours, purpose, timeout);
}

/// The longest ordered beginning of `list`, cut where it comes round to this node, and at r entries.
fn in_order(ctx: &Context, members: &mut Membership, list: &[Peer]) -> Vec<Peer> {
    let me = ctx.me.node.position;
    let mut last = me;
    let mut result = Vec::new();
    for peer in list.iter().take(ctx.settings.successors) {
        let here = peer.node.position;
        if !here.is_between(last, me) {
            break;
        }
        last = here;
        members.learn(peer);
        result.push(members.current(peer));
    }
    result
}
