//! The mean path length of lookups, held against the paper: Stoica, Morris, Karger, Kaashoek,
//! Balakrishnan, "Chord", SIGCOMM'01, figure 10(a).
//!
//! As there, a path is the number of forwardings from the asking node to the key's predecessor, and a
//! node routes by its fingers and its first successor. Identifiers are random, the state is ideal.

use std::sync::Arc;

use sky_chord::{Fingers, Id, NextHop, NodeId, Peer, Router, Space};

/// Wide enough that random identifiers never meet; the paper's 160 bits give the same paths.
const BITS: u8 = 48;
const RINGS: u64 = 12;
const LOOKUPS: usize = 1500;

/// Random numbers from one seed (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn point(&mut self, space: Space) -> Id {
        space.wrap(Id::small(self.next()))
    }
}

struct Member {
    me: Peer,
    successors: Vec<Peer>,
    fingers: Fingers,
}

/// A ring of nodes at random points, with right pointers.
fn ideal_ring(space: Space, count: usize, random: &mut Random) -> Vec<Member> {
    let address: Arc<str> = "simulated:1".into();
    let mut peers: Vec<Peer> = (0..count)
        .map(|_| Peer {
            node: NodeId { position: random.point(space), incarnation: 1 },
            address: address.clone(),
        })
        .collect();
    peers.sort();
    peers.dedup();
    assert_eq!(peers.len(), count, "two random identifiers met");
    (0..count)
        .map(|i| Member {
            me: peers[i].clone(),
            successors: vec![peers[(i + 1) % count].clone()],
            fingers: Fingers::ideal(space, peers[i].node.position, &peers),
        })
        .collect()
}

/// The path length of one lookup; checks that it ends at the key's successor.
fn path(ring: &[Member], from: usize, key: Id) -> usize {
    let mut at = from;
    for hops in 0.. {
        let Member { me, successors, fingers } = &ring[at];
        match Router::new(me, successors, fingers).next_hop(key) {
            NextHop::Found { successors } => {
                let owner = ring.partition_point(|member| member.me.node.position < key);
                assert_eq!(successors[0], ring[owner % ring.len()].me);
                return hops;
            }
            NextHop::Closer { candidates } => {
                let next = &candidates[0];
                let found = ring.binary_search_by(|member| member.me.cmp(next));
                at = found.expect("fingers point to members of the ring");
            }
            NextHop::NotJoined => panic!("a router is always a member"),
        }
    }
    unreachable!()
}

#[test]
fn mean_path_length_is_that_of_the_paper() {
    let space = Space::new(BITS).unwrap();
    for (count, paper) in [(64, 2.96), (256, 3.88), (1024, 4.89), (4096, 5.85)] {
        let mut total = 0;
        for seed in 0..RINGS {
            let mut random = Random(seed ^ count as u64);
            let ring = ideal_ring(space, count, &mut random);
            for _ in 0..LOOKUPS {
                let from = random.next() as usize % count;
                total += path(&ring, from, random.point(space));
            }
        }
        let mean = total as f64 / (RINGS as usize * LOOKUPS) as f64;
        let off = (mean - paper).abs() / paper;
        assert!(off <= 0.05, "{count} nodes: mean path {mean:.3}, the paper has {paper}");
    }
}
