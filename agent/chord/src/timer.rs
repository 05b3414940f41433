//! The timers of a node: each kind is set at most once.

use std::collections::{BTreeMap, BTreeSet};

use crate::time::Time;

/// What is to be done at some moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// Ask the first successor for its neighbours (Zave's stabilise).
    Stabilize,
    /// Look up the next finger again.
    FixFingers,
    /// Ask neighbours and co-members whether they are there.
    Ping,
    /// Compare member tables with a random member.
    Gossip,
    /// Look at every range this node leads: members, sweep, comparison.
    Reconcile,
    /// Read the next part of what is on disk, whether it is still what was written.
    Scrub,
    /// Wake the rounds of operations that wait before a new attempt.
    Retry,
    /// Look after the watches of this node.
    Watch,
    /// Tell those who watch of what changed here.
    Hint,
}

/// When each timer is due.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    due: BTreeSet<(Time, Timer)>,
    set: BTreeMap<Timer, Time>,
}

impl Timers {
    /// Sets a timer, in place of an earlier setting.
    pub(crate) fn set(&mut self, timer: Timer, at: Time) {
        self.cancel(timer);
        self.set.insert(timer, at);
        self.due.insert((at, timer));
    }

    /// Sets a timer unless it is already due earlier.
    pub(crate) fn set_earlier(&mut self, timer: Timer, at: Time) {
        if self.set.get(&timer).is_none_or(|set| *set > at) {
            self.set(timer, at);
        }
    }

    /// Forgets a timer.
    pub(crate) fn cancel(&mut self, timer: Timer) {
        if let Some(at) = self.set.remove(&timer) {
            self.due.remove(&(at, timer));
        }
    }

    /// Takes a timer that is due.
    pub(crate) fn pop(&mut self, now: Time) -> Option<Timer> {
        let (at, timer) = *self.due.first()?;
        if at > now {
            return None;
        }
        self.cancel(timer);
        Some(timer)
    }

    /// When the next timer is due.
    pub(crate) fn next(&self) -> Option<Time> {
        self.due.first().map(|(at, _)| *at)
    }
}
