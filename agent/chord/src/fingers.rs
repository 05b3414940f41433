//! Fingers, and the routing decision that is made of them: where to ask next for a point.

use crate::call::{FingerIndex, LookupPurpose};
use crate::config::Peer;
use crate::context::Context;
use crate::id::{Id, Space};
use crate::lookup::{Lookups, Routes};
use crate::membership::Membership;
use crate::message::NextHop;
use crate::timer::Timer;
use crate::view::Finger;

/// How many candidates a hop names: if the first does not answer, the next is asked. With half of the nodes
/// dead and nobody aware of it, one lookup in 200 comes to its end with eight, one in nine with four.
const CANDIDATES: usize = 8;

/// The finger table of one node: finger i is the first node at or after its position + 2^i
/// (SIGCOMM'01, table 1).
#[derive(Debug, Clone)]
pub struct Fingers {
    space: Space,
    me: Id,
    table: Vec<Option<Peer>>,
    /// The finger that is looked up next.
    next: usize,
}

impl Fingers {
    /// A table that knows no finger yet.
    pub fn new(space: Space, me: Id) -> Self {
        Self { space, me, table: vec![None; usize::from(space.bits())], next: 0 }
    }

    /// The right table of a node at `me` in a ring of these nodes, which are sorted by position.
    pub fn ideal(space: Space, me: Id, ring: &[Peer]) -> Self {
        let mut fingers = Self::new(space, me);
        for index in 0..space.bits() {
            let start = space.finger_start(me, index);
            let at = ring.partition_point(|peer| peer.node.position < start);
            fingers.table[usize::from(index)] = ring.get(at).or(ring.first()).cloned();
        }
        fingers
    }

    /// The fingers that are known, in order.
    pub fn list(&self) -> Vec<Finger> {
        (0..self.space.bits())
            .zip(&self.table)
            .filter_map(|(index, peer)| {
                let start = self.space.finger_start(self.me, index);
                peer.clone().map(|peer| Finger { index, start, peer })
            })
            .collect()
    }

    /// Looks one finger up again, the next that is not simply the first successor.
    pub(crate) fn on_timer_fix(
        &mut self,
        ctx: &mut Context,
        lookups: &mut Lookups,
        ring: &crate::ring::Ring,
        members: &Membership,
    ) {
        ctx.set_timer(Timer::FixFingers, ctx.settings.fix_fingers_every);
        let Some(successor) = ring.successors().first().filter(|_| ring.is_joined()) else {
            self.table.fill(None);
            return;
        };
        let covered = self.starts_until(0, successor.node.position);
        self.table[..covered].fill(Some(successor.clone()));
        if self.next < covered || self.next >= self.table.len() {
            self.next = covered;
        }
        if let Some(index) = u8::try_from(self.next).ok().filter(|i| *i < self.space.bits()) {
            self.next += 1;
            let target = self.space.finger_start(self.me, index);
            let routes = Routes { ring, fingers: self, members };
            lookups.start(ctx, LookupPurpose::Finger(index), target, &routes);
        }
    }

    /// A finger was found. The fingers after it that start no later than the node found are the same.
    pub(crate) fn on_found(&mut self, index: FingerIndex, owner: &Peer) {
        let first = usize::from(index);
        let end = self.starts_until(first, owner.node.position).max(first + 1);
        if end <= self.table.len() {
            self.table[first..end].fill(Some(owner.clone()));
            self.next = end;
        }
    }

    /// The first finger from `from` on that does not start in (me, point].
    fn starts_until(&self, from: usize, point: Id) -> usize {
        (from..self.table.len())
            .find(|index| {
                let start = self.space.finger_start(self.me, *index as u8);
                !start.is_in_arc(self.me, point)
            })
            .unwrap_or(self.table.len())
    }
}

/// Decides for one node where a lookup goes next. It works on any state of a node, also one that was
/// not built by messages.
#[derive(Clone, Copy)]
pub struct Router<'a> {
    me: &'a Peer,
    successors: &'a [Peer],
    fingers: &'a Fingers,
    members: Option<&'a Membership>,
    use_members: bool,
}

impl<'a> Router<'a> {
    /// A router on the pointers of a node: its successors, nearest first (none if it is alone), and
    /// its fingers.
    pub const fn new(me: &'a Peer, successors: &'a [Peer], fingers: &'a Fingers) -> Self {
        Self { me, successors, fingers, members: None, use_members: false }
    }

    /// Leaves out suspected nodes and, with `route`, makes every live member a candidate.
    pub(crate) const fn with_members(mut self, members: &'a Membership, route: bool) -> Self {
        self.members = Some(members);
        self.use_members = route;
        self
    }

    /// The next hop on the way to `target`: found, if it lies between this node and its first live
    /// successor; otherwise the nearest known nodes before it.
    pub fn next_hop(&self, target: Id) -> NextHop {
        let me = self.me.node.position;
        let live: Vec<_> = self.successors.iter().filter(|peer| self.is_live(peer)).collect();
        let Some(first) = live.first().copied().or(self.successors.first()) else {
            return NextHop::Found { successors: vec![self.me.clone()] };
        };
        if target.is_in_arc(me, first.node.position) {
            let successors = if live.is_empty() { vec![first] } else { live };
            return NextHop::Found { successors: successors.into_iter().cloned().collect() };
        }
        let is_on_the_way =
            |peer: &&Peer| peer.node.position.is_between(me, target) && self.is_live(peer);
        let mut candidates: Vec<&Peer> = Vec::with_capacity(3 * CANDIDATES);
        // Each of the three lists is ordered, nearest to the target first.
        let fingers = self.fingers.table.iter().rev().flatten().filter(is_on_the_way);
        take_distinct(&mut candidates, fingers);
        take_distinct(&mut candidates, live.into_iter().rev().filter(is_on_the_way));
        if let Some(members) = self.members.filter(|_| self.use_members) {
            let before = members.live_before(target);
            take_distinct(&mut candidates, before.take_while(is_on_the_way));
        }
        candidates.sort_by_key(|peer| peer.node.position.distance_to(target));
        candidates.dedup_by_key(|peer| peer.node);
        candidates.truncate(CANDIDATES);
        NextHop::Closer { candidates: candidates.into_iter().cloned().collect() }
    }

    fn is_live(&self, peer: &Peer) -> bool {
        self.members.is_none_or(|members| !members.is_suspect(&peer.node))
    }
}

/// Takes the first few of `peers`, which names the same node several times in a row.
fn take_distinct<'a>(into: &mut Vec<&'a Peer>, peers: impl Iterator<Item = &'a Peer>) {
    let end = into.len() + CANDIDATES;
    let mut last = None;
    for peer in peers {
        if last != Some(peer.node) {
            last = Some(peer.node);
            into.push(peer);
            if into.len() == end {
                break;
            }
        }
    }
}
