//! How far data has got on its way to members, for people only: nothing is decided by it.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use super::Ranges;
use crate::Id;
use crate::config::{Config, Peer};
use crate::time::Time;
use crate::view::{Transfer, TransferKind};

/// How long a transfer that ended is told of: one of few keys is over before anybody looks.
const TOLD_FOR: Duration = Duration::from_secs(30);
/// How many transfers that ended are kept.
const KEPT: usize = 16;

/// What was done of a transfer.
#[derive(Debug, Clone)]
pub(super) struct Progress {
    began: Time,
    /// When something was done last.
    last: Time,
    pub(super) keys: u64,
    bytes: u64,
}

impl Progress {
    pub(super) const fn new(now: Time) -> Self {
        Self { began: now, last: now, keys: 0, bytes: 0 }
    }

    /// A key is done, with a value of this size.
    pub(super) fn key_done(&mut self, now: Time, size: u32) {
        self.last = now;
        self.keys += 1;
        self.bytes += u64::from(size);
    }

    /// Something else was done, such as a page read.
    pub(super) const fn step_done(&mut self, now: Time) {
        self.last = now;
    }

    /// The report of it; `ended` is when it was done with, if it was.
    pub(super) fn report(
        &self,
        (kind, config): (TransferKind, &Config),
        (from, to): (Vec<Peer>, Vec<Peer>),
        left: Left,
        (now, ended): (Time, Option<Time>),
    ) -> Transfer {
        let end = ended.unwrap_or(now);
        Transfer {
            kind,
            lo: config.lo,
            hi: config.hi,
            epoch: config.epoch,
            from,
            to,
            keys: self.keys,
            bytes: self.bytes,
            through: left.through,
            known_left: left.keys,
            took_ms: millis(end.since(self.began)),
            still_ms: millis(end.since(self.last)),
            ended_ms: ended.map(|at| millis(now.since(at))),
        }
    }
}

/// What a transfer has before it, as far as it is known.
pub(super) struct Left {
    /// Everything up to this point is done, where keys are taken in the order of their points.
    pub(super) through: Option<Id>,
    /// Keys found and not yet done.
    pub(super) keys: u64,
}

/// The last transfers that ended.
#[derive(Debug, Default)]
pub(super) struct Ended(VecDeque<(Time, Transfer)>);

impl Ended {
    pub(super) fn push(&mut self, now: Time, transfer: Transfer) {
        self.0.push_back((now, transfer));
        if self.0.len() > KEPT {
            self.0.pop_front();
        }
    }
}

impl Ranges {
    /// The transfers that this node carries out, and those that ended a moment ago.
    pub(crate) fn transfers(&self, now: Time) -> Vec<Transfer> {
        let ended = self.ended.0.iter().filter(|(at, _)| now.since(*at) < TOLD_FOR);
        let ended = ended.map(|(at, transfer)| Transfer {
            ended_ms: Some(millis(now.since(*at))),
            ..transfer.clone()
        });
        self.passes.reports(now).chain(self.comparisons.reports(now)).chain(ended).collect()
    }
}

/// Who has the data that a sweep brings, and whom it is brought to: the members that are new.
pub(super) fn ends_of_sweep(config: &Config) -> (Vec<Peer>, Vec<Peer>) {
    let is_new = |peer: &&Peer| !config.has_prev(&peer.node);
    (config.prev.clone(), config.members.iter().filter(is_new).cloned().collect())
}

/// The ends of a comparison, as lists.
pub(super) fn listed((from, to): &(BTreeSet<Peer>, BTreeSet<Peer>)) -> (Vec<Peer>, Vec<Peer>) {
    (from.iter().cloned().collect(), to.iter().cloned().collect())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
