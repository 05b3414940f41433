//! A machine of the cluster: a disk, and on it a process that comes and goes.

use std::collections::VecDeque;
use std::time::Duration;

use sky_chord::{Event, Node, Peer, Time};

use super::clock::Clock;
use super::disk::{Disk, Reader};

/// How long a sync of a good disk takes, at least and at most.
pub(crate) const GOOD_SYNC: (Duration, Duration) =
    (Duration::from_micros(100), Duration::from_millis(2));

/// A place for a node: what stays when its process dies.
pub(crate) struct Machine {
    pub(crate) peer: Peer,
    pub(crate) disk: Disk,
    /// How long a sync takes, at least and at most.
    pub(crate) sync: (Duration, Duration),
    /// Whether the disk has no room: the process is told, and has to refuse what is new.
    pub(crate) disk_full: bool,
    pub(crate) paused: bool,
    /// Left the ring, or lost for good: nobody starts it again.
    pub(crate) gone: bool,
    /// Told to leave the ring.
    pub(crate) leaving: bool,
    /// When it last died, was paused or resumed.
    pub(crate) disturbed: Time,
    /// How far its wall clock is from virtual time, in microseconds.
    pub(crate) wall: i64,
    /// By how much the clock by which its process counts the times of values has gone ahead of virtual time,
    /// all leaps and settings forward together, in microseconds; how far off its start was; and how far it had
    /// fallen behind when the last process ended, which the next one makes up at its start.
    pub(super) ahead: u64,
    pub(super) anchor: Option<i64>,
    pub(super) behind: u64,
    /// Whether its process knows that a write failed.
    pub(super) told_failed: bool,
    pub(crate) boot: u32,
    pub(super) process: Option<Process>,
    /// What waits for a paused process.
    pub(super) backlog: VecDeque<Event>,
}

/// A running node.
pub(super) struct Process {
    pub(super) node: Node<Reader>,
    /// Distinguishes the processes of one machine.
    pub(super) number: u64,
    pub(super) clock: Clock,
    pub(super) wake: Option<Time>,
}

impl Machine {
    /// A machine with an empty disk and no process.
    pub(super) fn new(peer: Peer, now: Time) -> Self {
        Self {
            peer,
            disk: Disk::default(),
            sync: GOOD_SYNC,
            disk_full: false,
            paused: false,
            gone: false,
            leaving: false,
            disturbed: now,
            wall: 0,
            ahead: 0,
            anchor: None,
            behind: 0,
            told_failed: false,
            boot: 0,
            process: None,
            backlog: VecDeque::new(),
        }
    }

    pub(super) fn is_process(&self, number: u64) -> bool {
        self.process.as_ref().is_some_and(|running| running.number == number)
    }
}
