//! What a node reports of itself: the one source for pages, `status`, the dashboard and [`crate::check`].

use serde::{Deserialize, Serialize};

use crate::Id;
use crate::config::{NodeId, Peer};
use crate::message::MemberStatus;

/// What one node sees.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct View {
    /// The reporting node.
    pub me: Peer,
    /// The ring it belongs to, as 32 hexadecimal digits; none before it has joined one.
    pub ring: Option<String>,
    /// How far it has got.
    pub phase: Phase,
    /// The nearest node before it.
    pub predecessor: Option<Peer>,
    /// The nodes after it, nearest first.
    pub successors: Vec<Peer>,
    /// Its fingers, one a bit of the circle, without those not yet known.
    pub fingers: Vec<Finger>,
    /// The ranges it answers for.
    pub ranges: Vec<RangeView>,
    /// The other nodes it knows.
    pub members: Vec<MemberView>,
    /// Keys it owns (first in its ranges) and holds as a replica.
    pub keys: KeyCount,
    /// What its shell measured.
    pub load: Load,
}

/// How far a node has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// It knows no ring yet.
    Waiting,
    /// It is on its way into the ring.
    Joining,
    /// It is a member.
    Up,
    /// It hands its data over.
    Leaving,
    /// It has handed everything over and can be stopped.
    Drained,
}

/// One finger: the first node at or after `start`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Finger {
    /// From 0; `start` is the node's position + 2^index.
    pub index: u8,
    /// Where the finger starts.
    pub start: Id,
    /// The node it points to.
    pub peer: Peer,
}

/// A range as one of its members sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RangeView {
    /// The range begins after this point.
    pub lo: Id,
    /// The range ends with this point.
    pub hi: Id,
    /// The epoch of its configuration.
    pub epoch: u64,
    /// Its members in that epoch.
    pub members: Vec<Peer>,
    /// Members of the epoch before that are still asked; empty once swept.
    pub prev: Vec<Peer>,
    /// Whether the reporting node leads it: repairs it and proposes its changes.
    pub leads: bool,
    /// Whether a sweep is still to be done.
    pub unswept: bool,
    /// Members that may lack writes, as the leader knows; only from the leader.
    pub lagging: Vec<NodeId>,
    /// Live keys held by the reporting node in this range.
    pub keys: u64,
}

/// Data on its way to members of a range, as the node that brings it there tells: how far it has got, or
/// how it ended a moment ago.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Transfer {
    /// Why data is moved.
    pub kind: TransferKind,
    /// The range begins after this point.
    pub lo: Id,
    /// The range ends with this point.
    pub hi: Id,
    /// The epoch of its configuration.
    pub epoch: u64,
    /// Who has the data.
    pub from: Vec<Peer>,
    /// Who gets it. Empty if no member is new: then it is only made sure that all have everything.
    pub to: Vec<Peer>,
    /// Keys done so far, deleted ones among them.
    pub keys: u64,
    /// Bytes of their values, each counted once.
    pub bytes: u64,
    /// All keys up to this point are done; none where they do not come in the order of points.
    pub through: Option<Id>,
    /// Keys that were found and are not yet done. There may be more that were not yet looked at.
    pub known_left: u64,
    /// How long it has taken, in milliseconds.
    pub took_ms: u64,
    /// Milliseconds since something was done last.
    pub still_ms: u64,
    /// Milliseconds since it ended; none while it is under way.
    pub ended_ms: Option<u64>,
}

/// Why data is moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum TransferKind {
    /// The members of the range have changed: everything is brought to the new ones.
    Sweep,
    /// A member has missed writes: it gets what it lacks.
    Catchup,
}

/// Another node, as the reporting node sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct MemberView {
    /// Who.
    pub peer: Peer,
    /// What it says it is up to, or what is said of it.
    pub status: MemberStatus,
    /// Whether the reporting node itself suspects it, and for how many milliseconds.
    pub suspected_ms: Option<u64>,
    /// Round-trip time in microseconds, smoothed; none if never measured.
    pub rtt_us: Option<u64>,
    /// Milliseconds since it was last heard of directly.
    pub heard_ms: Option<u64>,
}

/// Keys held by a node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct KeyCount {
    /// Keys of the ranges that the node owns.
    pub owned: u64,
    /// Keys it holds as a replica.
    pub replica: u64,
}

/// What the shell of an agent measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Load {
    /// Requests of clients in the last seconds, per second.
    pub operations_per_second: f64,
    /// Their 99th percentile latency in milliseconds.
    pub p99_ms: f64,
    /// Seconds since the agent was started.
    pub uptime_s: u64,
    /// Bytes of its data on disk.
    pub disk_bytes: u64,
    /// Whether its disk is too full to store anything.
    pub disk_full: bool,
    /// The agent's version.
    pub version: String,
}
