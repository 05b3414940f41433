//! What clients ask for, and what they are answered.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::Id;
use crate::config::{Ballot, Config, NodeId, Peer, RangeTag};
use crate::record::Key;
use crate::value::{Ttl, Value};
use crate::view::{Transfer, View};

/// A client's operation on the keys of the ring.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// Read a key.
    Get {
        /// The key.
        key: Key,
        /// How sure the answer has to be.
        consistency: Consistency,
    },
    /// Store a value, if the condition holds.
    Put {
        /// The key.
        key: Key,
        /// The value.
        value: Value,
        /// What must be true of the key before.
        condition: Condition,
    },
    /// Delete a key, if the condition holds.
    Delete {
        /// The key.
        key: Key,
        /// What must be true of the key before.
        condition: Condition,
    },
    /// List keys in the order of their points.
    List {
        /// Only keys after this one; from the start of the circle if none.
        after: Option<Cursor>,
        /// Only keys whose name begins so.
        prefix: Arc<str>,
        /// The most keys wanted.
        limit: u32,
    },
}

/// A place in the list of all keys, which is ordered by point and then by name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Cursor {
    /// After this key.
    AfterKey(Key),
    /// After every key of this point.
    AfterPoint(Id),
}

impl Cursor {
    /// Whether a key comes after this place.
    pub(crate) fn is_before(&self, key: &Key) -> bool {
        match self {
            Self::AfterKey(last) => key > last,
            Self::AfterPoint(point) => key.hash() > *point,
        }
    }
}

/// The range (lo, hi] as one or two stretches of the list of all keys.
pub fn segments(lo: Id, hi: Id) -> Vec<(Option<Cursor>, Id)> {
    if lo < hi {
        vec![(Some(Cursor::AfterPoint(lo)), hi)]
    } else if lo == Id::MAX {
        vec![(None, hi)]
    } else {
        vec![(Some(Cursor::AfterPoint(lo)), Id::MAX), (None, hi)]
    }
}

impl Operation {
    /// The point of the circle that the operation is about.
    pub fn point(&self) -> Id {
        match self {
            Self::Get { key, .. } | Self::Put { key, .. } | Self::Delete { key, .. } => key.hash(),
            Self::List { after: None, .. } => Id::MIN,
            Self::List { after: Some(Cursor::AfterKey(key)), .. } => key.hash(),
            Self::List { after: Some(Cursor::AfterPoint(point)), .. } => point.plus(Id::small(1)),
        }
    }

    /// The value to be stored, if there is one.
    pub const fn value(&self) -> Option<&Value> {
        match self {
            Self::Put { value, .. } => Some(value),
            Self::Get { .. } | Self::Delete { .. } | Self::List { .. } => None,
        }
    }

    /// The bytes of the value to be stored; 0 if there is none.
    pub fn value_bytes(&self) -> usize {
        self.value().map_or(0, |value| value.bytes.len())
    }

    /// Whether the operation may change something.
    pub const fn is_change(&self) -> bool {
        matches!(self, Self::Put { .. } | Self::Delete { .. })
    }
}

/// How sure an answer has to be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Consistency {
    /// Every write answered before is seen (linearizable).
    #[default]
    Quorum,
    /// One copy is asked; it may be old.
    Any,
}

/// What must be true of a key for a change to be carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Condition {
    /// Nothing.
    Always,
    /// The key does not exist (create).
    Absent,
    /// The key exists (update).
    Exists,
    /// The key's version is one of these.
    Version(Vec<Ballot>),
}

/// What came of a client's operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The key has this value.
    Found {
        /// The value.
        value: Value,
        /// Its version.
        version: Ballot,
    },
    /// The key does not exist.
    Absent,
    /// The value was stored.
    Stored {
        /// The version it got.
        version: Ballot,
        /// Whether the key is new.
        created: bool,
    },
    /// The key was deleted.
    Deleted,
    /// The condition did not hold; this is the version found, or none if the key does not exist.
    ConditionFailed {
        /// The version found.
        version: Option<Ballot>,
    },
    /// A page of keys.
    Listed {
        /// The keys, in order.
        keys: Vec<ListedKey>,
        /// Where the next page begins; none at the end of the circle.
        next: Option<Cursor>,
    },
}

impl Answer {
    /// Whether it says of a change that it was not made.
    pub(crate) const fn is_refusal(&self) -> bool {
        matches!(self, Self::ConditionFailed { .. } | Self::Absent)
    }
}

/// A key in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedKey {
    /// The key.
    pub key: Key,
    /// The size of its value in bytes.
    pub size: u32,
    /// Its version.
    pub version: Ballot,
}

/// Why a client's operation was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Failure {
    /// Nothing was changed; a retry is safe and may succeed.
    #[error("unavailable: {0}")]
    Unavailable(String),
    /// The time ran out after the change was proposed: it may or may not be applied, now or later.
    #[error("the request timed out and may have been applied")]
    MaybeApplied,
    /// A majority of the key's members have no disk space left.
    #[error("the disks of the key's members are full")]
    DiskFull,
    /// The key does not remember requests as old as this one: the node that says so cannot tell whether
    /// another one has carried it out, and changed nothing.
    #[error("the key has forgotten requests as old as this one")]
    TooOld,
    /// This node is not one of the key's members; this is the configuration it knows, if any.
    #[error("not a member of the key's range")]
    NotMember(Option<Box<Config>>),
}

/// What an agent's shell asks of its node on behalf of a client or an operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// An operation on keys, for a client that waits at most so long.
    Operate {
        /// The id of the request over all its retries.
        id: crate::record::RequestId,
        /// Whether the client says that it sent the same request before.
        retry: bool,
        /// The operation.
        operation: Operation,
        /// How long the client waits.
        budget: std::time::Duration,
    },
    /// Find the owner of a point, hop by hop.
    Lookup {
        /// The point.
        target: Id,
    },
    /// This node's view.
    View,
    /// The views of all known members.
    Views,
    /// The data that this node is bringing to members of ranges.
    Transfers,
    /// A page of the keys held by this node itself, with their marks.
    LocalKeys {
        /// Only keys after this place.
        after: Option<Cursor>,
        /// The most keys wanted.
        limit: u32,
    },
    /// Found a ring of this id, as its first member.
    Init {
        /// The ring's id.
        ring: RingId,
    },
    /// Hand over all data and leave the ring.
    Leave,
    /// Tell of a key, or of all keys of a prefix, whenever one changes: [`crate::Output::Told`].
    Watch {
        /// What is watched.
        subject: Subject,
        /// How many values and deletions may be told before there is [`Request::WatchRoom`].
        room: u32,
    },
    /// A watch may tell so many more.
    WatchRoom {
        /// Which.
        watch: WatchId,
        /// How many.
        room: u32,
    },
    /// End a watch.
    Unwatch {
        /// Which.
        watch: WatchId,
    },
    /// A majority of a range's members, or of those before, is gone for good: let the survivors go on with
    /// what they hold. May lose what was acknowledged.
    Force {
        /// The range, in its latest epoch.
        at: RangeTag,
        /// Everyone who still holds data of it; this node is one of them.
        survivors: Vec<NodeId>,
    },
}

/// The most watches of one node.
pub const WATCHES_MAX: usize = 128;
/// The most keys that one watch can tell of.
pub const WATCHED_KEYS_MAX: usize = 10_000;

/// What a watch is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Subject {
    /// One key.
    Key(Key),
    /// All keys whose names begin so.
    Prefix(Arc<str>),
}

impl Subject {
    /// Whether the watch is about this key.
    pub fn covers(&self, key: &Key) -> bool {
        match self {
            Self::Key(wanted) => wanted == key,
            Self::Prefix(prefix) => key.name().starts_with(&**prefix),
        }
    }
}

/// Names a watch of this start of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WatchId(pub u64);

/// The random id of a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RingId(pub u128);

impl std::fmt::Display for RingId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// The answer to a [`Request`].
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// To [`Request::Operate`].
    Operated(Result<Answer, Failure>),
    /// To [`Request::Lookup`].
    LookedUp(Result<Trace, Failure>),
    /// To [`Request::View`].
    View(Box<View>),
    /// To [`Request::Views`]: every known member, and its view if it answered in time.
    Views(Vec<(Peer, Option<View>)>),
    /// To [`Request::Transfers`].
    Transfers(Vec<Transfer>),
    /// To [`Request::LocalKeys`].
    LocalKeys {
        /// The keys, in order of their points.
        keys: Vec<LocalKey>,
        /// Whether there are no further keys.
        end: bool,
    },
    /// To [`Request::Init`]: done, or already done with the same ring id.
    Initialized,
    /// To [`Request::Init`]: this node belongs to another ring.
    OtherRing(RingId),
    /// To [`Request::Leave`]: begun; the view tells when it is done.
    Leaving,
    /// To [`Request::Watch`]: what it tells comes as [`crate::Output::Told`].
    Watching(Result<WatchId, Failure>),
    /// To [`Request::WatchRoom`] and [`Request::Unwatch`], also if there is no such watch any more.
    Noted,
    /// To [`Request::Force`]: the configuration that is in force, or why there is none, as a clause.
    Forced(Result<Box<Config>, String>),
    /// The store could not be read.
    StoreFailed(String),
}

/// How a lookup went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// The point looked for.
    pub target: Id,
    /// The nodes asked, in order.
    pub hops: Vec<Hop>,
    /// The first node at or after the point.
    pub owner: Peer,
    /// The configuration of the range that covers the point, if one of the nodes asked knows it.
    pub config: Option<Config>,
}

/// One node asked during a lookup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hop {
    /// Who was asked.
    pub peer: Peer,
    /// How long the answer took, or the time-out.
    pub elapsed: std::time::Duration,
    /// Whether it answered.
    pub answered: bool,
}

/// A key held by the asked node itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalKey {
    /// The key.
    pub key: Key,
    /// The size of its value in bytes.
    pub size: u32,
    /// The digest of its value.
    pub digest: u64,
    /// What is left of its value's time, as this node counts; none if it is kept for ever.
    pub ttl: Option<Ttl>,
    /// Its version.
    pub version: Ballot,
    /// Whether this node owns the key, or holds a replica.
    pub owned: bool,
}
