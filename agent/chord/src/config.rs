//! Who is who: node identities, ballots, and the configuration of a range of the circle.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::Id;

/// The identity of a node: its position and the random number written when its data directory was
/// made. A node that lost its disk is another node. The address is never part of the identity.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NodeId {
    /// The position on the circle.
    pub position: Id,
    /// Drawn at random for each new data directory.
    pub incarnation: u64,
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:016x}", self.position, self.incarnation)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.position)
    }
}

/// A node and where it can be reached now, as `host:port`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Peer {
    /// Who.
    pub node: NodeId,
    /// Where: `host:port`.
    pub address: Arc<str>,
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.node)
    }
}

/// Orders proposals for one key. Compared left to right, so a later epoch beats every ballot of an
/// earlier one; never used twice, also not after a restart (`boot` counts the starts of a node).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Ballot {
    /// The epoch of the range when the ballot was made.
    pub epoch: u64,
    /// The round within the epoch.
    pub round: u64,
    /// The proposer.
    pub node: NodeId,
    /// How often the proposer had been started.
    pub boot: u32,
}

impl Ballot {
    /// Below every ballot of every proposer.
    pub const ZERO: Self =
        Self { epoch: 0, round: 0, node: NodeId { position: Id::MIN, incarnation: 0 }, boot: 0 };
}

impl fmt::Debug for Ballot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}@{:?}", self.epoch, self.round, self.node)
    }
}

/// The members of a range (lo, hi] in one epoch, as decided in the slot of the epoch before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Config {
    /// The range begins after this point.
    pub lo: Id,
    /// The range ends with this point, which also names it: ranges are disjoint. `lo == hi` is the
    /// whole circle.
    pub hi: Id,
    /// Grows by one with each decision; a split hands it to both halves.
    pub epoch: u64,
    /// Who accepts writes. A majority of them decides.
    pub members: Vec<Peer>,
    /// The members of the epoch before, asked as well until the sweep is done; empty if they are the
    /// same nodes.
    pub prev: Vec<Peer>,
    /// Decided by an operator, because a majority of the members before is gone for good: `prev` are those
    /// that survived, and all of them are asked.
    pub forced: bool,
    /// The one of two members that may decide the next configuration alone. It has every write that was
    /// chosen, since both members are needed for each; the other one alone never goes on.
    pub tie_breaker: Option<NodeId>,
}

impl Config {
    /// The name and epoch of this configuration, as carried by every data message.
    pub const fn tag(&self) -> RangeTag {
        RangeTag { hi: self.hi, epoch: self.epoch }
    }

    /// Whether `point` lies in the range.
    pub fn covers(&self, point: Id) -> bool {
        point.is_in_arc(self.lo, self.hi)
    }

    /// Whether the two ranges share a point.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.covers(other.hi) || other.covers(self.hi)
    }

    /// The same range and members in the next epoch.
    pub fn next(&self) -> Self {
        Self { epoch: self.epoch + 1, prev: Vec::new(), forced: false, ..self.clone() }
    }

    /// Whether all points of the other range lie in this one.
    pub fn contains(&self, other: &Self) -> bool {
        let length = |config: &Self| config.lo.distance_to(config.hi);
        self.lo == self.hi
            || other.lo != other.hi
                && self.covers(other.hi)
                && self.lo.distance_to(other.hi) >= length(other)
    }

    /// Whether the other range, with the same end, begins within this one: the rest was split off.
    pub fn is_cut_by(&self, other: &Self) -> bool {
        other.lo != self.lo && other.lo != self.hi && self.covers(other.lo)
    }

    /// Whether `node` accepts writes in this epoch.
    pub fn has_member(&self, node: &NodeId) -> bool {
        self.members.iter().any(|peer| peer.node == *node)
    }

    /// Whether `node` was a member in the epoch before and is still asked.
    pub fn has_prev(&self, node: &NodeId) -> bool {
        self.prev.iter().any(|peer| peer.node == *node)
    }

    /// Whether these nodes are a majority of the members.
    pub fn is_quorum(&self, has: impl Fn(&NodeId) -> bool) -> bool {
        let count = self.members.iter().filter(|peer| has(&peer.node)).count();
        is_majority(count, self.members.len())
    }

    /// Whether these nodes are enough of `prev` to have seen everything chosen before this epoch: one of
    /// them belongs to any majority of `prev`.
    pub fn is_prev_quorum(&self, has: impl Fn(&NodeId) -> bool) -> bool {
        let missing = self.prev.iter().filter(|peer| !has(&peer.node)).count();
        if self.forced { missing == 0 } else { !is_majority(missing, self.prev.len()) }
    }

    /// Whether these nodes together know what was chosen: a quorum of the members, and one of `prev` as long
    /// as it has to be asked.
    pub fn is_read_quorum(&self, ask_prev: bool, has: impl Fn(&NodeId) -> bool + Copy) -> bool {
        self.is_quorum(has) && (!ask_prev || self.is_prev_quorum(has))
    }

    /// Whether these nodes can decide what follows this configuration.
    pub fn is_slot_quorum(&self, has: impl Fn(&NodeId) -> bool) -> bool {
        self.tie_breaker.as_ref().is_some_and(&has) || self.is_quorum(has)
    }

    /// Everyone who answers for this range: members, then those who are only in `prev`.
    pub fn everyone(&self) -> impl Iterator<Item = &Peer> {
        self.members.iter().chain(self.prev.iter().filter(|peer| !self.has_member(&peer.node)))
    }

    /// Whether both configurations have the same members, in any order.
    pub fn same_members(&self, other: &[Peer]) -> bool {
        self.members.len() == other.len() && other.iter().all(|peer| self.has_member(&peer.node))
    }
}

/// The name (its end point) and epoch of a range's configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RangeTag {
    /// The last point of the range.
    pub hi: Id,
    /// The epoch.
    pub epoch: u64,
}

/// Orders proposals for one configuration slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SlotBallot {
    /// The round.
    pub round: u64,
    /// The proposer.
    pub node: NodeId,
    /// How often the proposer had been started.
    pub boot: u32,
}

/// What a slot decides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Proposal {
    /// The next configuration of the slot's range, or the two that it is split into.
    Next(Vec<Config>),
    /// One configuration for two neighbouring ranges. Acceptors take it for the slots of both at once, so
    /// that it is decided in both or in neither.
    Merge {
        /// The slots of the left and of the right range.
        slots: [RangeTag; 2],
        /// What they become.
        config: Config,
    },
}

impl Proposal {
    /// The configurations that are in force once this is decided.
    pub fn configs(&self) -> &[Config] {
        match self {
            Self::Next(configs) => configs,
            Self::Merge { config, .. } => std::slice::from_ref(config),
        }
    }
}

/// What a node durably knows of one configuration slot. Never deleted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// The highest ballot promised.
    pub promised: Option<SlotBallot>,
    /// The proposal accepted last.
    pub accepted: Option<Accepted>,
}

/// A proposal, and the ballot under which it was accepted.
pub type Accepted = (SlotBallot, Proposal);

/// Whether `count` of `total` is a majority.
pub const fn is_majority(count: usize, total: usize) -> bool {
    count * 2 > total
}
