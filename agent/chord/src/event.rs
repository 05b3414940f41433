//! What goes into a node and what comes out of it.

use bytes::Bytes;

use crate::Id;
use crate::config::{Ballot, NodeId, Peer};
use crate::message::Message;
use crate::record::{Key, Record};
use crate::request::{Reply, Request, WatchId};
use crate::time::Time;
use crate::value::Value;
use crate::view::Load;

/// Names a request of the shell, for its reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// Something that happened.
#[derive(Debug, Clone)]
#[expect(
    clippy::large_enum_variant,
    reason = "messages are most of the events, and are moved once"
)]
pub enum Event {
    /// A message arrived. The connection vouches for the sender.
    Receive {
        /// Who sent it, as its hello said.
        from: Peer,
        /// The message.
        message: Message,
    },
    /// A node could not be reached (connection refused or broken): messages to it may be lost.
    Unreachable {
        /// The node that was meant.
        node: NodeId,
    },
    /// The shell asks for something.
    Request {
        /// For the reply.
        ticket: Ticket,
        /// What it asks for.
        request: Request,
    },
    /// A peer answered at a join address: it can be asked about the ring.
    Contact {
        /// Who answered.
        peer: Peer,
        /// The ring it belongs to, if any.
        ring: Option<crate::request::RingId>,
    },
    /// Every write up to this one is on disk.
    Persisted {
        /// See [`Output::Persist`].
        seq: u64,
    },
    /// The write and all later ones failed. Nothing is stored from now on.
    PersistFailed {
        /// See [`Output::Persist`].
        seq: u64,
        /// What the store said.
        reason: String,
    },
    /// What the shell measured since the last time, and whether the disk is full.
    Measured(Load),
    /// The moment asked for by [`Output::Wait`] has come.
    Tick,
}

/// Something to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Send a message; it may be lost, doubled or overtaken.
    Send {
        /// The receiver. Another node at that address must not get it.
        to: Peer,
        /// The message.
        message: Message,
    },
    /// Make these writes durable, all or none and in the order of `seq`, then say
    /// [`Event::Persisted`]. Several may be joined in one commit.
    Persist {
        /// Grows by one.
        seq: u64,
        /// The writes.
        writes: Vec<Write>,
    },
    /// The answer to [`Event::Request`].
    Reply {
        /// The request.
        ticket: Ticket,
        /// The answer.
        reply: Reply,
    },
    /// Something worth telling people.
    Notify(Notice),
    /// Something of a watch that the shell asked for.
    Told {
        /// Which.
        watch: WatchId,
        /// What.
        told: Told,
    },
    /// Nothing more to do before this moment, unless something happens. Ends the outputs of an event.
    Wait {
        /// When to say [`Event::Tick`].
        until: Option<Time>,
    },
}

/// One change of the store.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "records are most of the writes")]
pub enum Write {
    /// Store the record of a key. If it has only the outline of a value, the bytes stay as they are.
    Record(Key, Record),
    /// Store the bytes of the value of a key, which are kept apart from its record.
    Bytes(Key, Bytes),
    /// Remove the record of a key. Bytes that are kept apart stay.
    Forget(Key),
    /// Remove the bytes of the value of a key.
    ForgetBytes(Key),
    /// Store, or with `None` remove, a small named record that is read back whole at the start.
    Meta {
        /// Its name.
        name: String,
        /// Its bytes.
        bytes: Option<Bytes>,
    },
}

/// Something worth telling people: logs and event streams are made of these.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Notice {
    /// This node founded or joined a ring.
    Joined {
        /// The ring's id.
        ring: String,
    },
    /// The first successor changed.
    SuccessorChanged {
        /// The new one; none if this node is alone.
        to: Option<Peer>,
    },
    /// The predecessor changed.
    PredecessorChanged {
        /// The new one.
        to: Option<Peer>,
    },
    /// A node does not answer.
    Suspected {
        /// Which.
        node: Peer,
    },
    /// A suspected node answers again.
    Recovered {
        /// Which.
        node: Peer,
    },
    /// A configuration was adopted.
    Adopted {
        /// The range's last point.
        hi: Id,
        /// Its epoch.
        epoch: u64,
        /// Its members.
        members: Vec<Peer>,
    },
    /// Data of a range is being brought to its new members.
    SweepStarted {
        /// The range's last point.
        hi: Id,
        /// Its epoch.
        epoch: u64,
    },
    /// All members of a range have all its data.
    SweepDone {
        /// The range's last point.
        hi: Id,
        /// Its epoch.
        epoch: u64,
        /// How many keys were handled.
        keys: u64,
    },
    /// Members were compared and brought up to date after one of them missed writes.
    Aligned {
        /// The range's last point.
        hi: Id,
        /// How many keys had to be handled.
        keys: u64,
    },
    /// Members hold a key under one ballot with different content: one of them was damaged or changed from
    /// outside, and nobody can tell which.
    Diverged {
        /// The range's last point.
        hi: Id,
        /// How many keys.
        count: u64,
        /// Some of them.
        keys: Vec<String>,
    },
    /// This node handed over everything and can be stopped.
    Drained,
    /// The disk became full, or has room again.
    DiskFull {
        /// Whether it is full now.
        full: bool,
    },
    /// The store failed; nothing is stored until the agent is started again.
    StoreBroken {
        /// What the store said.
        reason: String,
    },
}

/// What a watch tells.
#[derive(Debug, Clone, PartialEq)]
pub enum Told {
    /// This is the value of the key now.
    Value {
        /// The key.
        key: Key,
        /// The value.
        value: Value,
        /// Its version.
        version: Ballot,
    },
    /// The key that was told of does not exist any more.
    Deleted {
        /// The key.
        key: Key,
        /// The version that was told last.
        version: Ballot,
    },
    /// Everything that was there at the beginning has been told.
    Synced,
    /// Nothing more is told.
    Ended(WatchEnd),
}

/// Why a watch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WatchEnd {
    /// There are more keys than one watch can tell of: [`WATCHED_KEYS_MAX`].
    TooManyKeys,
    /// The node has left its ring.
    Left,
}

/// The records on disk, read while an event is handled. Writes go out as [`Output::Persist`]; what is
/// under way there need not be visible here yet.
pub trait Records {
    /// The record of a key.
    ///
    /// # Errors
    /// If the store fails or the record is damaged.
    fn get(&self, key: &Key) -> Result<Option<Record>, StoreError>;

    /// The bytes of the value of a key, if they are kept apart from its record.
    ///
    /// # Errors
    /// If the store fails or the bytes are damaged.
    fn bytes(&self, key: &Key) -> Result<Option<Bytes>, StoreError>;

    /// The next records in the order of keys, after `after` (exclusive; `None` starts at the first key)
    /// and up to the last key of point `through` (inclusive): `limit` at most, and fewer if their values
    /// are large, so that a page fits in memory.
    ///
    /// # Errors
    /// If the store fails or a record is damaged.
    fn scan(
        &self,
        after: Option<&crate::request::Cursor>,
        through: Id,
        limit: usize,
    ) -> Result<Scan<Record>, StoreError>;
}

/// A page of what is held, in the order of keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scan<T> {
    /// Keys, and what is held for each.
    pub entries: Vec<(Key, T)>,
    /// Whether there is no more up to the point asked for. A page that is not the last one has an entry.
    pub end: bool,
}

impl<T> Scan<T> {
    /// A page without anything, and nothing behind it.
    pub const EMPTY: Self = Self { entries: Vec::new(), end: true };

    /// Where the next page begins; none if this is the last one.
    pub fn next(&self) -> Option<crate::request::Cursor> {
        let last = self.entries.last().filter(|_| !self.end);
        last.map(|(key, _)| crate::request::Cursor::AfterKey(key.clone()))
    }
}

/// The store cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the store cannot be read: {0}")]
pub struct StoreError(pub String);
