//! What the nodes have on disk and what the proposers have in mind: one state of the whole system.
//!
//! Everything is one byte wide and every field that no later step can depend on goes back to zero,
//! because two states are the same to the checker only if all their bytes are.

use std::fmt;
use std::ops::{BitOr, BitOrAssign};

use sky_chord::is_majority;

/// Nodes of the model: a, b, c, d.
pub(crate) const NODES: usize = 4;
/// Client operations, at most.
pub(crate) const OPERATIONS: usize = 3;
/// Configuration slots, at most: the slot of epoch 1 and the slot of epoch 2.
pub(crate) const SLOTS: usize = 2;
/// Proposers of all slots together, at most.
pub(crate) const RIVALS: usize = 2;

/// A set of nodes, one bit each.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Nodes(u8);

impl Nodes {
    /// The empty set.
    pub(crate) const NONE: Self = Self(0);

    /// The nodes named in `names`, such as `"abc"`.
    pub(crate) fn named(names: &str) -> Self {
        names.bytes().fold(Self::NONE, |set, name| set | Self::one(usize::from(name - b'a')))
    }

    /// The set of one node.
    pub(crate) const fn one(node: usize) -> Self {
        Self(1 << node)
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

/// A value under the ballot it was accepted with. Ballot 0 is "never accepted", value 0 "absent":
/// both together "never heard of", a ballot with value 0 a tombstone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Accepted {
    pub(crate) ballot: u8,
    pub(crate) value: u8,
}

/// What a node has on disk: for the range, for its slots and for the one key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Node {
    /// The configuration it is in, by its place in the scenario; none: it never heard of the range.
    pub(crate) config: Option<u8>,
    /// It left the range and has deleted its keys.
    pub(crate) released: bool,
    /// The highest ballot promised for the key.
    pub(crate) promised: u8,
    /// The register of the key.
    pub(crate) accepted: Accepted,
    /// The slots of all epochs.
    pub(crate) slots: [SlotRecord; SLOTS],
}

/// What a node has on disk for one configuration slot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SlotRecord {
    /// The highest ballot promised.
    pub(crate) promised: u8,
    /// What was accepted last: the value is the place of a configuration.
    pub(crate) accepted: Accepted,
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
    /// Collecting acceptances.
    Accept,
    /// Finished; its accept requests can still arrive anywhere, at any time, any number of times.
    Accepted,
    /// Finished without leaving requests behind.
    Over,
}

/// A proposer of a configuration slot. Its ballot is its place plus one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Rival {
    pub(crate) phase: Phase,
    /// Who promised (in phase 1) or accepted (in phase 2).
    pub(crate) answered: Nodes,
    /// Phase 1: the highest acceptance heard of.
    pub(crate) best: Accepted,
    /// Phase 2: the configuration that it asks to accept.
    pub(crate) value: u8,
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
    /// Phase 1 needs the previous members too.
    pub(crate) asks_prev: bool,
    /// Who answered (read, prepare) or accepted.
    pub(crate) answered: Nodes,
    /// The highest answer, and who gave it.
    pub(crate) best: Accepted,
    pub(crate) agreeing: Nodes,
    /// What it asks to accept, and what it will return then.
    pub(crate) value: u8,
    pub(crate) result: u8,
    /// Operations that had returned when this one was invoked, one bit each.
    pub(crate) before: u8,
    /// What it returned: the value read, or 1 for "done" and 0 for "it exists".
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

/// One state of the system.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct State {
    pub(crate) nodes: [Node; NODES],
    pub(crate) rivals: [Rival; RIVALS],
    pub(crate) operations: [Progress; OPERATIONS],
    /// Configurations ever decided, one bit each by their place in the scenario.
    pub(crate) decided: u8,
    /// Configurations that nodes and proposers can have been told of: the decided ones.
    pub(crate) told: u8,
    /// Epochs whose sweep is done, one bit each.
    pub(crate) swept: u8,
    pub(crate) collection: Collection,
    /// The node that takes no more steps.
    pub(crate) crashed: Option<u8>,
}

impl State {
    /// Whether anybody can have been told of `config`; everybody knows the first one.
    pub(crate) const fn is_told(&self, config: u8) -> bool {
        config == 0 || self.told >> config & 1 == 1
    }

    /// Whether the sweep of `epoch` is done.
    pub(crate) const fn is_swept(&self, epoch: u8) -> bool {
        self.swept >> epoch & 1 == 1
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
