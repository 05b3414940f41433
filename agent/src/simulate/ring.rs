//! A ring at rest, and lookups on it: the fingers, the routing decision and the course of a lookup are
//! those of the agents; what is left out are messages, clocks and the member table.

use std::sync::Arc;

use sky_chord::{Fingers, Id, NodeId, Path, Peer, Router, Space};

/// Draws points from a seed as the product does from names: by SHA-1.
#[derive(Debug, Clone)]
pub(super) struct Draw {
    what: String,
}

impl Draw {
    pub(super) fn new(seed: u64, ring: usize, what: &str) -> Self {
        Self { what: format!("{seed}/{ring}/{what}") }
    }

    /// The point of this number.
    pub(super) fn point(&self, number: usize) -> Id {
        Id::hash(format!("{}/{number}", self.what).as_bytes())
    }
}

struct Member {
    me: Peer,
    successors: Vec<Peer>,
    fingers: Fingers,
    lives: bool,
}

/// Nodes at the hashes of their names, with right pointers; some of them may be dead, which nobody has
/// noticed yet.
pub(super) struct Ring {
    members: Vec<Member>,
    /// The places of those that live.
    live: Vec<usize>,
}

/// How a lookup went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Walk {
    /// How often it was forwarded, from the asking node to the last live node before the key.
    pub(super) hops: u32,
    /// How often a dead node was asked.
    pub(super) timeouts: u32,
    /// Whether it came to the last live node before the key, and that node has the first live one after
    /// it in its list.
    pub(super) found: bool,
}

impl Ring {
    /// A ring of `count` nodes with lists of `successors` entries, or as many as there are others.
    pub(super) fn new(draw: &Draw, count: usize, successors: usize) -> Self {
        let address: Arc<str> = "simulated".into();
        let mut peers: Vec<Peer> = (0..count)
            .map(|number| Peer {
                node: NodeId { position: draw.point(number), incarnation: 1 },
                address: address.clone(),
            })
            .collect();
        peers.sort();
        Self::of(Space::SHA1, &peers, successors)
    }

    /// A ring of these nodes, which are sorted.
    pub(super) fn of(space: Space, peers: &[Peer], successors: usize) -> Self {
        let count = peers.len();
        let member = |at: usize| Member {
            me: peers[at].clone(),
            successors: (1..=successors.min(count - 1))
                .map(|step| peers[(at + step) % count].clone())
                .collect(),
            fingers: Fingers::ideal(space, peers[at].node.position, peers),
            lives: true,
        };
        Self { members: (0..count).map(member).collect(), live: (0..count).collect() }
    }

    /// Lets `dead` nodes fail at once; at least one lives.
    pub(super) fn fail(&mut self, draw: &Draw, dead: usize) {
        let mut order: Vec<_> = (0..self.members.len()).map(|at| (draw.point(at), at)).collect();
        order.sort_unstable();
        for (_, at) in order.into_iter().take(dead.min(self.members.len() - 1)) {
            self.members[at].lives = false;
        }
        self.live.retain(|at| self.members[*at].lives);
    }

    /// The live node that `point` stands for, each as likely as any other.
    pub(super) fn asking(&self, point: Id) -> usize {
        let bytes = point.as_bytes().iter().rev().take(8);
        let number = bytes.fold(0u64, |number, byte| number << 8 | u64::from(*byte));
        self.live[(number % self.live.len() as u64) as usize]
    }

    /// A lookup of `key` by the node `from`.
    pub(super) fn walk(&self, from: usize, key: Id) -> Walk {
        let (last, owner) = self.around(key);
        let mut path = Path::new(self.members[from].me.node, key);
        let mut walk = Walk { hops: 0, timeouts: 0, found: false };
        let mut at = from;
        loop {
            let Member { me, successors, fingers, .. } = &self.members[at];
            if at == last {
                let live = |peer: &&Peer| self.find(peer).is_some_and(|at| self.members[at].lives);
                let next = successors.iter().find(live).map_or(Some(at), |peer| self.find(peer));
                walk.found = next == Some(owner);
                return walk;
            }
            path.follow(me, Router::new(me, successors, fingers).next_hop(key));
            at = loop {
                // Nobody suspects anybody: that is learned only by asking.
                let Some(next) = path.next(|_| false).and_then(|peer| self.find(&peer)) else {
                    return walk;
                };
                if self.members[next].lives {
                    break next;
                }
                walk.timeouts += 1;
            };
            walk.hops += 1;
        }
    }

    /// The last live node before `key`, and the first at or after it.
    fn around(&self, key: Id) -> (usize, usize) {
        let count = self.members.len();
        let first = self.members.partition_point(|member| member.me.node.position < key);
        let lives = |at: &usize| self.members[*at].lives;
        let after = (0..count).map(|step| (first + step) % count).find(lives);
        let before = (1..=count).map(|step| (first + count - step) % count).find(lives);
        (before.unwrap_or_default(), after.unwrap_or_default())
    }

    fn find(&self, peer: &Peer) -> Option<usize> {
        self.members.binary_search_by(|member| member.me.cmp(peer)).ok()
    }
}
