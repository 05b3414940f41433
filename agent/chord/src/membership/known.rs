//! What is known of one node, and its hash for comparing tables.

use super::rtt::Rtt;
use crate::message::{MemberEntry, MemberStatus};
use crate::time::Time;

/// What is known of one node.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) entry: MemberEntry,
    /// What the node last said of itself: suspicion hides it in the entry, unless it leaves.
    pub(super) word: MemberStatus,
    /// The last message that came from the node itself.
    pub(super) heard: Option<Time>,
    /// The first question it has not answered, if nothing was heard since.
    pub(super) asked: Option<Time>,
    /// Failed attempts to reach it in a row, and the last of them.
    pub(super) failed: Option<(u32, Time)>,
    /// Since when this node itself suspects it.
    pub(super) verdict: Option<Time>,
    /// Since when others are believed to suspect it.
    pub(super) rumour: Option<Time>,
    pub(super) rtt: Rtt,
}

impl Known {
    pub(super) fn new(entry: MemberEntry) -> Self {
        let word = match entry.status {
            MemberStatus::Suspect => MemberStatus::Up,
            status => status,
        };
        Self {
            entry,
            word,
            heard: None,
            asked: None,
            failed: None,
            verdict: None,
            rumour: None,
            rtt: Rtt::default(),
        }
    }

    pub(super) fn suspected_since(&self) -> Option<Time> {
        self.verdict.or(self.rumour)
    }

    pub(super) fn is_suspect(&self) -> bool {
        self.word == MemberStatus::Left || self.suspected_since().is_some()
    }

    pub(super) fn is_live(&self) -> bool {
        matches!(self.word, MemberStatus::Up | MemberStatus::Leaving) && !self.is_suspect()
    }

    pub(super) const fn rank(&self) -> (u64, MemberStatus) {
        (self.entry.version, self.entry.status)
    }
}

/// A hash of an entry that is the same on every machine (FNV-1a, then mixed so that sums of hashes
/// tell tables apart).
pub(super) fn hash(entry: &MemberEntry) -> u64 {
    let bytes = postcard::to_stdvec(entry).unwrap_or_default();
    let fold = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325, fold);
    let mixed = (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 29)
}
