//! The Chord ring of Sky and the replicated registers on it, as a pure state machine.
//!
//! No I/O, no clock, no threads: time and random numbers come in as arguments, messages and writes go
//! out as values, so that one seed decides a whole simulated cluster.
//!
//! # How to drive a [`Node`]
//!
//! 1. Read the meta records of the store and call [`Node::start`].
//! 2. When something happens, call [`Node::handle`] with the time and one [`Event`].
//! 3. Then call [`Node::poll`] and do what it says until it says [`Output::Wait`]; only then hand over
//!    the next event. When the moment of `Wait` has come, the event is [`Event::Tick`].
//!
//! A write is handed out as [`Output::Persist`]; say [`Event::Persisted`] when it is on disk. Messages
//! and replies that promise what the write says are not handed out before that.
//!
//! # Map
//!
//! ```text
//! node (dispatch) -> ring, fingers, lookup, membership, ranges, watch -> context -> call, timer
//!                 -> message, request, record, config, view, event -> id, time, value
//! check: is the ring right, judged from the views of all nodes
//! ```

mod call;
mod check;
mod config;
mod context;
mod event;
mod fingers;
mod id;
mod lookup;
mod membership;
mod message;
mod node;
mod ranges;
mod record;
mod request;
mod ring;
mod settings;
mod time;
mod timer;
mod value;
mod view;
mod watch;

pub use check::{Verdict, check, principals, zave_invariant};
pub use config::{
    Accepted, Ballot, Config, NodeId, Peer, Proposal, RangeTag, Slot, SlotBallot, is_majority,
};
pub use event::{Event, Notice, Output, Records, Scan, StoreError, Ticket, Told, WatchEnd, Write};
pub use fingers::{Fingers, Router};
pub use id::{Id, InvalidId, Space};
pub use lookup::Path;
pub use message::{Body, CallId, MemberEntry, MemberStatus, Message, NextHop, Refusal, ScanEntry};
pub use node::{Node, Start, StartError};
pub use record::{Done, Effect, Key, REQUEST_IDS_KEPT, Record, Register, RequestId};
pub use request::{
    Answer, Condition, Consistency, Cursor, Failure, Hop, ListedKey, LocalKey, Operation, Reply,
    Request, RingId, Subject, Trace, WATCHED_KEYS_MAX, WATCHES_MAX, WatchId, segments,
};
pub use settings::Settings;
pub use time::{Time, patience};
pub use value::{Content, Outline, Ttl, Value};
pub use view::{
    Finger, KeyCount, Load, MemberView, Phase, RangeView, Transfer, TransferKind, View,
};
