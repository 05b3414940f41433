//! A machine of the cluster: a disk, and on it a process that comes and goes.

use std::collections::VecDeque;
use std::time::Duration;

use sky_chord::{Event, Node, Peer, Time};

use super::disk::{Disk, Reader};

/// A place for a node: what stays when its process dies.
pub(crate) struct Machine {
    pub(crate) peer: Peer,
    pub(crate) disk: Disk,
    /// How long a sync takes, at least and at most.
    pub(crate) sync: (Duration, Duration),
    pub(crate) paused: bool,
    /// Left the ring, or lost for good: nobody starts it again.
    pub(crate) gone: bool,
    /// Told to leave the ring.
    pub(crate) leaving: bool,
    /// When it last died, was paused or resumed.
    pub(crate) disturbed: Time,
    pub(super) boot: u32,
    pub(super) process: Option<Process>,
    /// What waits for a paused process.
    pub(super) backlog: VecDeque<Event>,
}

/// A running node.
pub(super) struct Process {
    pub(super) node: Node<Reader>,
    /// Distinguishes the processes of one machine.
    pub(super) number: u64,
    /// How far its clock is ahead, in microseconds.
    pub(super) skew: u64,
    pub(super) wake: Option<Time>,
}

impl Machine {
    /// A machine with an empty disk and no process.
    pub(super) fn new(peer: Peer, now: Time) -> Self {
        Self {
            peer,
            disk: Disk::default(),
            sync: (Duration::from_micros(100), Duration::from_millis(2)),
            paused: false,
            gone: false,
            leaving: false,
            disturbed: now,
            boot: 0,
            process: None,
            backlog: VecDeque::new(),
        }
    }

    pub(super) fn is_process(&self, number: u64) -> bool {
        self.process.as_ref().is_some_and(|running| running.number == number)
    }
}
