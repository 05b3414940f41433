//! Everything that agents say to each other.

use serde::{Deserialize, Serialize};

use crate::Id;
use crate::config::{Accepted, Ballot, Config, NodeId, Peer, Proposal, RangeTag, SlotBallot};
use crate::record::{Key, Register, RequestId};
use crate::request::{Answer, Cursor, Failure, Operation, Subject};
use crate::value::Value;
use crate::view::View;

/// Matches an answer to its question; chosen by the asking node, never reused by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CallId(pub u64);

/// A message between two agents of one ring. The sender is known from the connection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// The question this is, or answers.
    pub call: CallId,
    /// What is said.
    pub body: Body,
}

/// What is said. Questions first, each followed by its answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Body {
    /// Are you there? Carries a digest of the sender's member table.
    Ping {
        /// See [`crate::membership`].
        digest: u64,
    },
    /// I am. Sent at once.
    Pong {
        /// The answering node's digest; where they differ, the tables are exchanged.
        digest: u64,
    },
    /// The sender's member table.
    Gossip {
        /// One entry a known node.
        entries: Vec<MemberEntry>,
        /// Whether the sender wants the receiver's table in return.
        reply: bool,
    },
    /// Who are your neighbours? (Zave's query of a member's successor list and predecessor.)
    GetNeighbours,
    /// The answer to [`Body::GetNeighbours`].
    Neighbours {
        /// The closest known node before the sender.
        predecessor: Option<Peer>,
        /// The nodes after the sender, nearest first.
        successors: Vec<Peer>,
        /// Whether the sender is a member of the ring yet.
        joined: bool,
    },
    /// I may be your predecessor. No answer.
    Notify,
    /// Which node is next on the way to `target`?
    FindStep {
        /// The point looked for.
        target: Id,
    },
    /// The answer to [`Body::FindStep`].
    Step {
        /// How far the sender can tell.
        next: NextHop,
    },
    /// What do you see of the ring?
    GetView,
    /// The answer to [`Body::GetView`].
    View(Box<View>),
    /// Carry out a client's operation on a key whose members you belong to.
    Forward {
        /// The client's request, over all retries.
        request: RequestId,
        /// When the request came to the sender, on its clock in microseconds.
        stamp: u64,
        /// Whether another node may already be at work on the same request.
        retry: bool,
        /// Whether no other node is asked, before and as long as this one is at work.
        sole: bool,
        /// How long the client still waits, in milliseconds.
        budget_ms: u32,
        /// The operation.
        operation: Box<Operation>,
    },
    /// The answer to [`Body::Forward`].
    Forwarded {
        /// What came of it.
        outcome: Result<Answer, Failure>,
    },
    /// Which configuration covers this point, as far as you know?
    GetConfig {
        /// The point.
        point: Id,
    },
    /// The answer to [`Body::GetConfig`].
    ConfigIs {
        /// The configuration with the highest epoch that the sender adopted.
        config: Option<Config>,
        /// Whether its sweep is known to be done.
        swept: bool,
    },
    /// Phase 1 of a round for one key.
    Prepare {
        /// The range and epoch.
        at: RangeTag,
        /// The key.
        key: Key,
        /// The ballot to promise.
        ballot: Ballot,
    },
    /// The answer to [`Body::Prepare`]: promised, and this is what I hold.
    Promised {
        /// The ballot under which `register` was accepted.
        accepted: Ballot,
        /// What was accepted, of a large value the outline.
        register: Register,
    },
    /// Phase 2 of a round for one key.
    Accept {
        /// The range and epoch.
        at: RangeTag,
        /// The key.
        key: Key,
        /// The ballot of the round.
        ballot: Ballot,
        /// The state to accept: with the outline of a value that the receiver seems to hold already.
        register: Register,
        /// A ballot to promise at the same time, for the next round of this proposer.
        next: Option<Ballot>,
    },
    /// The answer to [`Body::Accept`]: accepted and on disk.
    Accepted,
    /// What do you hold for this key? No promise is made.
    Read {
        /// The range and epoch.
        at: RangeTag,
        /// The key.
        key: Key,
        /// Whether the value is wanted too, or only the ballots.
        with_value: bool,
    },
    /// The answer to [`Body::Read`].
    Held {
        /// The ballot under which the register was accepted.
        accepted: Ballot,
        /// What was accepted, if it was asked for.
        register: Option<Register>,
    },
    /// Which keys of the range do you hold between these places? In the order of points.
    Scan {
        /// The range and epoch.
        at: RangeTag,
        /// Only keys after this place; from the start of the circle if none.
        after: Option<Cursor>,
        /// Only keys up to this point.
        through: Id,
        /// The most keys wanted.
        limit: u32,
        /// Whether fingerprints are wanted too: all values have to be read through for them.
        with_digest: bool,
        /// Whether versions are wanted too.
        with_version: bool,
    },
    /// The answer to [`Body::Scan`].
    Scanned {
        /// Keys in order.
        entries: Vec<ScanEntry>,
        /// Whether there are no further keys up to the point asked for.
        end: bool,
    },
    /// What do you hold of the range in the arcs one byte longer than this prefix?
    Digest {
        /// The range and epoch.
        at: RangeTag,
        /// The first bytes of all points of the arc asked about.
        prefix: Vec<u8>,
    },
    /// The answer to [`Body::Digest`].
    Digested {
        /// The next byte, and the digest of what is held there; arcs with nothing are left out.
        sums: Vec<(u8, u64)>,
    },
    /// Which of these tombstones do you hold?
    Tombstones {
        /// The range and epoch.
        at: RangeTag,
        /// Keys, and the ballots under which they were deleted.
        keys: Vec<(Key, Ballot)>,
    },
    /// The answer to [`Body::Tombstones`].
    TombstonesHeld {
        /// For each key in turn.
        held: Vec<bool>,
    },
    /// All members held these tombstones in the epoch before: drop them.
    Collect {
        /// The range and epoch.
        at: RangeTag,
        /// Keys, and the ballots under which they were deleted.
        keys: Vec<(Key, Ballot)>,
    },
    /// The answer to [`Body::Collect`]: those not needed any more are gone.
    Collected,
    /// Of which of these values is the time over, by your own clock?
    Overdue {
        /// The range and epoch.
        at: RangeTag,
        /// Keys, and the versions of their values.
        keys: Vec<(Key, Ballot)>,
    },
    /// The answer to [`Body::Overdue`].
    OverdueAre {
        /// For each key in turn; false also if another version is held.
        over: Vec<bool>,
    },
    /// You are about to become a member of this range again or for the first time: take up this epoch, in
    /// which you have no part, and forget whatever you hold of an earlier one.
    Clear {
        /// The configuration in force, swept.
        config: Config,
    },
    /// The answer to [`Body::Clear`]: nothing of the range is held here.
    Cleared,
    /// Phase 1 for the configuration slots of these ranges and epochs.
    SlotPrepare {
        /// One, or for a merge two, whose successor is to be decided.
        at: Vec<RangeTag>,
        /// The ballot to promise.
        ballot: SlotBallot,
    },
    /// The answer to [`Body::SlotPrepare`].
    SlotPromised {
        /// What was accepted before in each slot, if anything: it must be proposed again.
        accepted: Vec<Option<Accepted>>,
    },
    /// Phase 2 for configuration slots.
    SlotAccept {
        /// As in phase 1.
        at: Vec<RangeTag>,
        /// The ballot of the round.
        ballot: SlotBallot,
        /// The configurations of the next epoch.
        proposal: Proposal,
    },
    /// The answer to [`Body::SlotAccept`]: accepted and on disk.
    SlotAccepted,
    /// These configurations are decided: adopt them.
    Decided {
        /// Each with its own range.
        configs: Vec<Config>,
    },
    /// The answer to [`Body::Decided`]: adopted and on disk. From here on nothing older is answered.
    Adopted,
    /// The sweep of this epoch is done: `prev` need not be asked any more. No answer.
    Swept {
        /// The range and epoch.
        at: RangeTag,
    },
    /// A round ended without this member: it has to be compared with the others. No answer.
    Lagging {
        /// The range and epoch.
        at: RangeTag,
        /// Who did not answer.
        member: NodeId,
    },
    /// Tell me when keys of these change, for a while.
    Watch {
        /// Names what is watched; grows with each change of it.
        revision: u64,
        /// All that the sender watches; left out if the receiver has said that it knows this revision.
        subjects: Option<Vec<Subject>>,
        /// How long to go on without hearing of it again, in milliseconds.
        lease_ms: u32,
    },
    /// The answer to [`Body::Watch`].
    Watched {
        /// Another number each time the receiver is told of changes again after it was not; 0: it is not.
        session: u64,
        /// What it is told of; 0: nothing.
        revision: u64,
        /// How many [`Body::Changed`] it was sent in this session.
        hints: u64,
    },
    /// Keys that you watch changed here: read them, the change may have been given up. No answer.
    Changed {
        /// See [`Body::Watched`].
        session: u64,
        /// Which message of this session, from 1.
        number: u64,
        /// Keys, and the versions that were accepted.
        keys: Vec<(Key, Ballot)>,
        /// Whether there were more than are named.
        more: bool,
    },
    /// The question is not answered, and why.
    Refused(Refusal),
}

impl Body {
    /// The value that this carries, if it carries one.
    pub fn value(&self) -> Option<&Value> {
        match self {
            Self::Forward { operation, .. } => operation.value(),
            Self::Forwarded { outcome: Ok(Answer::Found { value, .. }) } => Some(value),
            Self::Promised { register, .. }
            | Self::Accept { register, .. }
            | Self::Held { register: Some(register), .. } => register.whole(),
            _ => None,
        }
    }

    /// How many bytes of a value this carries.
    pub fn value_bytes(&self) -> usize {
        self.value().map_or(0, |value| value.bytes.len())
    }

    /// Whether this answers a question. Call ids are chosen by the asking node, so that a question of
    /// another node may have the id of an open one of this node.
    pub const fn is_answer(&self) -> bool {
        matches!(
            self,
            Self::Pong { .. }
                | Self::Neighbours { .. }
                | Self::Step { .. }
                | Self::View(_)
                | Self::Forwarded { .. }
                | Self::ConfigIs { .. }
                | Self::Promised { .. }
                | Self::Accepted
                | Self::Held { .. }
                | Self::Scanned { .. }
                | Self::Digested { .. }
                | Self::TombstonesHeld { .. }
                | Self::Collected
                | Self::OverdueAre { .. }
                | Self::Cleared
                | Self::SlotPromised { .. }
                | Self::SlotAccepted
                | Self::Adopted
                | Self::Watched { .. }
                | Self::Refused(_)
        )
    }
}

/// What a node knows of another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberEntry {
    /// Who and where.
    pub peer: Peer,
    /// Set by the node itself, higher at each change and at each start.
    pub version: u64,
    /// What it is up to.
    pub status: MemberStatus,
}

/// What a node is up to, weakest news first: of two entries of one version the later status wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum MemberStatus {
    /// On its way into the ring.
    Joining,
    /// A member of the ring.
    Up,
    /// A member that is handing its data over.
    Leaving,
    /// Suspected by somebody; the node itself refutes it with a higher version.
    Suspect,
    /// Gone for good, by its own word.
    Left,
}

/// The answer of one hop of a lookup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NextHop {
    /// The point lies between the answering node and its first successor: these are the successors.
    Found {
        /// The successors of the answering node, nearest first; it is its own if it is alone.
        successors: Vec<Peer>,
    },
    /// These are nearer to the point, the nearest first.
    Closer {
        /// Where to ask next.
        candidates: Vec<Peer>,
    },
    /// The answering node is not a member of the ring.
    NotJoined,
}

/// One key of a scan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScanEntry {
    /// The key.
    pub key: Key,
    /// The ballot under which it was last accepted.
    pub accepted: Ballot,
    /// Whether it has a value (a tombstone has none).
    pub live: bool,
    /// The size of the value in bytes.
    pub size: u32,
    /// A fingerprint of the key with what was accepted and when, if it was asked for.
    pub digest: Option<u64>,
    /// The version, if it was asked for.
    pub version: Option<Ballot>,
}

/// Why a question is not answered. A refusal is never "I have nothing".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// The sender has adopted this later configuration.
    Newer(Box<Config>),
    /// The sender has not heard of that epoch: tell it the configuration and ask again.
    Behind,
    /// The sender answers nothing for that range.
    NotMember,
    /// A ballot as high as this was promised to somebody else.
    Promised(Ballot),
    /// The sender does not hold the value of which it was given the outline.
    Lacks,
    /// A slot ballot as high as this was promised to somebody else.
    SlotPromised(SlotBallot),
    /// The disk is full: nothing new is stored.
    DiskFull,
    /// The store failed; its operator has to look.
    Broken,
}
