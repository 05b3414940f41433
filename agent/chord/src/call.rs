//! Names of the work that waits for answers: they tell where an answer, or its time-out, goes.

use crate::config::RangeTag;
use crate::event::Ticket;
use crate::id::Id;
use crate::record::Key;
use crate::request::{Answer, Cursor, Failure, WatchId};

/// Why a question was asked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Purpose {
    /// A ping of failure detection.
    Ping,
    /// Stabilise, step 1: the first successor is asked.
    StabilizeFirst,
    /// Stabilise, step 2: the candidate for first successor is asked.
    StabilizeCandidate,
    /// The node before this one's place, found by the join lookup, is asked for its list.
    Join,
    /// One hop of a lookup.
    LookupHop(LookupId),
    /// Collecting the views of all members.
    View(Ticket),
    /// Being told of changes.
    Watch,
    /// Anything of the data part.
    Range(RangeCall),
}

/// Why the data part asked a question.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum RangeCall {
    /// A round for a key, and which of its questions.
    Round(RoundId, u32),
    /// A page of a list of keys.
    Listing(ListingId),
    /// A page of a sweep, and which one.
    Pass(PassId, u32),
    /// Part of a comparison.
    Compare(PassId, CompareStep),
    /// Part of the collection of tombstones.
    Collect(RangeTag, CollectStep),
    /// Whether members think that the time of some values is over.
    Expiry(PassId),
    /// Whether a node is ready to become a member.
    Clear(RangeTag),
    /// A decision in a slot.
    Change(ChangeId),
    /// Telling a node of a decision.
    Adopt,
    /// Asking which configuration covers a point.
    Config(Id),
    /// A client's operation handed to a member.
    Forward(OperationId),
}

/// What a comparison asked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum CompareStep {
    /// What a member holds in some place; the question's number.
    Look(u64),
    /// The record of a key that other members lack.
    Fetch(Key),
    /// Whether a member stored the record it lacked.
    Copy(Key),
}

/// What a collection of tombstones asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CollectStep {
    /// Which tombstones are held; the question's number.
    Ask(u64),
    /// To drop this part of them.
    Drop(usize),
}

impl RangeCall {
    /// Whether the call may take much longer than the way there and back: its time-out says nothing
    /// about the peer.
    pub(crate) const fn is_long(&self) -> bool {
        matches!(self, Self::Forward(_))
    }
}

impl From<RangeCall> for Purpose {
    fn from(call: RangeCall) -> Self {
        Self::Range(call)
    }
}

/// Something that a watch wants to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Look {
    /// The value of a key.
    Key(Key),
    /// A page of the list of keys after this place.
    Page(Option<Cursor>),
}

/// What came of it.
pub(crate) type Looked = (WatchId, Look, Result<Answer, Failure>);

/// Who wanted a lookup.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum LookupPurpose {
    /// This node, to join the ring.
    Join,
    /// This node, to refresh a finger.
    Finger(FingerIndex),
    /// The shell.
    Request(Ticket, Id),
    /// The data part, to find the members of a client's key.
    Operation(OperationId),
}

/// Which finger, from 0.
pub(crate) type FingerIndex = u8;

/// Names a lookup under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LookupId(pub(crate) u64);

/// Names a round for a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RoundId(pub(crate) u64);

/// Names an operation of a client of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct OperationId(pub(crate) u64);

/// Names a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ListingId(pub(crate) u64);

/// Names a pass over a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PassId(pub(crate) u64);

/// Names an attempt to decide a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ChangeId(pub(crate) u64);
