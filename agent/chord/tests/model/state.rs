//! What the nodes have on disk and what the proposers have in mind: one state of the whole system.
//!
//! Everything is one byte wide and every field that no later step can depend on goes back to zero,
//! because two states are the same to the checker only if all their bytes are.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::{BitOr, BitOrAssign};

use sky_chord::is_majority;

/// Nodes of the model: a, b, c, d.
pub(crate) const NODES: usize = 4;
/// Points of the ring, one key at each. A range covers one of them or more.
pub(crate) const POINTS: usize = 3;
/// Client operations, at most.
pub(crate) const OPERATIONS: usize = 5;
/// Configuration slots, at most. The configurations that somebody may want to end come first.
pub(crate) const SLOTS: usize = 3;
/// Proposers of all slots together, at most.
pub(crate) const RIVALS: usize = 4;

/// A set of nodes, one bit each.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Nodes(u8);

impl Nodes {
    /// The empty set.
    pub(crate) const NONE: Self = Self(0);

    /// The nodes named in `names`, such as `"abc"`.
    pub(crate) const fn named(names: &str) -> Self {
        let (mut set, mut rest) = (0, names.as_bytes());
        while let [name, others @ ..] = rest {
            set |= 1 << (*name - b'a');
            rest = others;
        }
        Self(set)
    }

    /// The set of one node.
    pub(crate) const fn one(node: usize) -> Self {
        Self(1 << node)
    }

    /// All but one.
    pub(crate) const fn without(self, node: usize) -> Self {
        Self(self.0 & !(1 << node))
    }

    pub(crate) const fn contains(self, node: usize) -> bool {
        self.0 >> node & 1 == 1
    }

    pub(crate) const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether all of `self` are in `other`.
    pub(crate) const fn is_within(self, other: Self) -> bool {
        self.0 & !other.0 == 0
    }

    /// Whether `self` holds more than half of `electorate`.
    pub(crate) const fn is_majority_of(self, electorate: Self) -> bool {
        let votes = (self.0 & electorate.0).count_ones();
        is_majority(votes as usize, electorate.0.count_ones() as usize)
    }
}

impl BitOr for Nodes {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for Nodes {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl fmt::Debug for Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut inside = (0..NODES).filter(|node| self.contains(*node));
        inside.try_for_each(|node| write!(f, "{}", name(node)))
    }
}

/// The letter of a node.
pub(crate) fn name(node: usize) -> char {
    char::from(b"abcd"[node])
}

/// The state of a key that its members agree on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Register {
    /// The value, 0: absent.
    pub(crate) value: u8,
    /// The last request that was carried out, 0: none is remembered. Kept where clients ask again.
    pub(crate) done: Done,
    /// The latest of the requests that were carried out and are not remembered any more.
    pub(crate) forgotten: u8,
}

/// A request that was carried out, and its result.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Done {
    pub(crate) request: u8,
    pub(crate) result: u8,
}

/// A register under the ballot it was accepted with. Ballot 0 is "never accepted"; a ballot with value 0
/// is a tombstone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Accepted {
    pub(crate) ballot: u8,
    pub(crate) register: Register,
}

/// What a node has on disk: for the points of the ring and for the slots.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Node {
    /// The configuration it is in at each point, by its place in the scenario; none: it never heard of
    /// a range there.
    pub(crate) config: [Option<u8>; POINTS],
    /// It left the range and has deleted its keys.
    pub(crate) released: bool,
    /// The keys.
    pub(crate) keys: [KeyRecord; POINTS],
    /// The slots of all epochs, by the place of the configuration that each one ends.
    pub(crate) slots: [SlotRecord; SLOTS],
}

/// What a node has on disk for one key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct KeyRecord {
    /// The highest ballot promised.
    pub(crate) promised: u8,
    /// The register.
    pub(crate) accepted: Accepted,
}

/// What a node has on disk for one configuration slot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SlotRecord {
    /// The highest ballot promised.
    pub(crate) promised: u8,
    /// What was accepted last.
    pub(crate) accepted: Vote,
}

/// A change of configurations under the ballot it was accepted with, ballot 0: nothing was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Vote {
    pub(crate) ballot: u8,
    /// Its place among the changes of the scenario.
    pub(crate) change: u8,
}

/// The places in a set of places that is kept as one bit each.
pub(crate) const fn places_in(set: u8) -> Places {
    Places(set)
}

/// See [`places_in`].
#[derive(Clone)]
pub(crate) struct Places(u8);

impl Iterator for Places {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let place = self.0.trailing_zeros() as usize;
        self.0 &= self.0.wrapping_sub(1);
        (place < 8).then_some(place)
    }
}

/// How far a proposer is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Phase {
    #[default]
    Idle,
    /// Collecting answers of the previous members for the sweep.
    Scan,
    /// Collecting answers for a read in one round trip.
    Read,
    /// Collecting promises.
    Prepare,
    /// Has its promises and several ways to go on.
    Choose,
    /// Collecting acceptances.
    Accept,
    /// Finished; its accept requests can still arrive anywhere, at any time, any number of times.
    Accepted,
    /// Finished without leaving requests behind.
    Over,
}

/// A proposer of a configuration slot, or of two.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Rival {
    pub(crate) phase: Phase,
    /// How often it has begun phase 1: that says what its ballot is.
    pub(crate) attempts: u8,
    /// The slots that it asks, one bit each.
    pub(crate) asked: u8,
    /// Who promised (in phase 1) or accepted (in phase 2), for each slot.
    pub(crate) answered: [Nodes; SLOTS],
    /// Phase 1: the highest acceptance heard of, for each slot.
    pub(crate) best: [Vote; SLOTS],
    /// Phase 2: the change that it asks to accept.
    pub(crate) change: u8,
}

/// A client operation and the proposer that runs it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Progress {
    pub(crate) phase: Phase,
    /// The configuration it runs in.
    pub(crate) config: u8,
    /// The round of its ballot, and the one it reserves for the next change; 0: none.
    pub(crate) round: u8,
    pub(crate) next_round: u8,
    /// No other node is asked to carry it out.
    pub(crate) is_sole: bool,
    /// Phase 1 needs the previous members too.
    pub(crate) asks_prev: bool,
    /// Who answered (read, prepare) or accepted.
    pub(crate) answered: Nodes,
    /// The highest answer, and who gave it.
    pub(crate) best: Accepted,
    pub(crate) agreeing: Nodes,
    /// What it asks to accept, and what it will return then.
    pub(crate) register: Register,
    pub(crate) result: u8,
    /// Operations that had returned when this one was invoked, one bit each.
    pub(crate) before: u8,
    /// What it returned: the value read, or 1 for "done" and 0 for "the condition does not hold".
    pub(crate) returned: Option<u8>,
}

/// What is known about the tombstone that is being collected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Collection {
    /// The ballot of the deletion, 0: no tombstone was reported.
    pub(crate) ballot: u8,
    /// The configuration in which it was reported.
    pub(crate) config: u8,
    /// Who said there that they hold it.
    pub(crate) holders: Nodes,
}

/// A copy on its way from one node to another.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct LateCopy {
    /// The configuration in which it was sent, and which it names.
    pub(crate) config: u8,
    pub(crate) accepted: Accepted,
}

/// One state of the system.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct State {
    pub(crate) nodes: [Node; NODES],
    pub(crate) rivals: [Rival; RIVALS],
    pub(crate) operations: [Progress; OPERATIONS],
    /// The changes ever chosen in each slot, one bit each by their place in the scenario.
    pub(crate) chosen: [u8; SLOTS],
    /// Configurations that nodes and proposers can have been told of, one bit each by their place in
    /// the scenario: the first ones and the decided ones.
    pub(crate) told: u8,
    /// Configurations in which the sweep has handled the key, one bit each.
    pub(crate) swept: [u8; POINTS],
    pub(crate) collection: Collection,
    /// A copy of the key at point 0 that was sent and can arrive at any time, any number of times.
    pub(crate) late_copy: Option<LateCopy>,
    /// A node came back without its disk.
    pub(crate) lost_disk: bool,
    /// The node that takes no more steps.
    pub(crate) crashed: Option<u8>,
}

impl State {
    /// Whether anybody can have been told of `config`.
    pub(crate) const fn is_told(&self, config: u8) -> bool {
        self.told >> config & 1 == 1
    }

    /// Whether `node` still takes steps.
    pub(crate) fn is_up(&self, node: usize) -> bool {
        self.crashed.is_none_or(|crashed| usize::from(crashed) != node)
    }

    /// The operations that have returned, one bit each.
    pub(crate) fn returned(&self) -> u8 {
        let done = self.operations.iter().enumerate().filter(|(_, op)| op.returned.is_some());
        done.fold(0, |set, (i, _)| set | 1 << i)
    }
}

impl Hash for State {
    /// All fields as bytes at once: the checker does little else than hash states.
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        let Self { nodes, rivals, operations, chosen, told, swept, .. } = self;
        let Self { collection, late_copy, lost_disk, crashed, .. } = self;
        let mut bytes = Bytes { bytes: [0; 512], len: 0 };
        for node in nodes {
            (node.config, node.released).hash(&mut bytes);
            bytes.write_those_used(&node.keys);
            bytes.write_those_used(&node.slots);
        }
        bytes.write_those_used(rivals);
        bytes.write_those_used(operations);
        (chosen, told, swept, collection, late_copy, lost_disk, crashed).hash(&mut bytes);
        hasher.write(&bytes.bytes[..bytes.len]);
    }
}

/// Collects what is hashed. Lengths and the numbers of variants are small.
struct Bytes {
    bytes: [u8; 512],
    len: usize,
}

impl Bytes {
    /// Most scenarios leave much of the state as it was in the beginning.
    fn write_those_used<T: Default + PartialEq + Hash>(&mut self, items: &[T]) {
        for item in items {
            let is_used = *item != T::default();
            self.write_u8(u8::from(is_used));
            if is_used {
                item.hash(self);
            }
        }
    }
}

impl Hasher for Bytes {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u8(*byte));
    }

    fn write_u8(&mut self, byte: u8) {
        self.bytes[self.len] = byte;
        self.len += 1;
    }

    fn write_usize(&mut self, length: usize) {
        self.write_u8(length as u8);
    }

    fn write_isize(&mut self, variant: isize) {
        self.write_u8(variant as u8);
    }

    /// Not asked for: the bytes are hashed by another one.
    fn finish(&self) -> u64 {
        self.len as u64
    }
}
