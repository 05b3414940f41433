//! Those who are told of what changes here: other nodes, and this one, each as long as its lease runs.
//!
//! What they are told are hints, and may be lost. Messages are numbered, so that who misses one learns of
//! it with the next answer to its renewal.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::config::{Ballot, NodeId, Peer};
use crate::context::Context;
use crate::membership::Membership;
use crate::message::{Body, CallId};
use crate::record::Key;
use crate::request::{Subject, WATCHES_MAX};
use crate::time::Time;
use crate::timer::Timer;

/// How long changes are collected before they are told: a change has mostly been chosen by then.
const COLLECT: Duration = Duration::from_millis(10);
/// The most keys of one message.
const KEYS_TOLD: usize = 256;
/// The most nodes that are told.
const LISTENERS_MAX: usize = 4096;
/// The longest lease.
const LEASE_MAX: Duration = Duration::from_secs(60);

/// Those who are told.
#[derive(Debug, Default)]
pub(crate) struct Audience {
    listeners: BTreeMap<NodeId, Listener>,
    last_session: u64,
}

#[derive(Debug)]
struct Listener {
    peer: Peer,
    session: u64,
    revision: u64,
    subjects: Vec<Subject>,
    until: Time,
    /// How many messages it was sent.
    hints: u64,
    /// What it is to be told, and whether there was more.
    changed: BTreeMap<Key, Ballot>,
    more: bool,
}

impl Audience {
    /// A node wants to be told, or goes on wanting it. What it wants by an earlier revision is overtaken.
    pub(crate) fn on_watch(
        &mut self,
        ctx: &mut Context,
        from: &Peer,
        call: CallId,
        revision: u64,
        subjects: Option<Vec<Subject>>,
        lease_ms: u32,
    ) {
        self.listeners.retain(|_, listener| listener.until > ctx.now);
        let until = ctx.now + Duration::from_millis(u64::from(lease_ms)).min(LEASE_MAX);
        let known = self.listeners.get(&from.node).map_or(0, |listener| listener.revision);
        match subjects {
            Some(subjects) if revision > known => {
                self.take_in(ctx, from, revision, subjects, until);
            }
            // It does not know what is watched, or what it knows is another's.
            None if revision > known => drop(self.listeners.remove(&from.node)),
            _ => {}
        }
        let answer = match self.listeners.get_mut(&from.node) {
            Some(listener) => {
                if listener.revision == revision {
                    listener.until = until;
                    listener.peer = from.clone();
                }
                let &mut Listener { session, revision, hints, .. } = listener;
                Body::Watched { session, revision, hints }
            }
            None => Body::Watched { session: 0, revision: 0, hints: 0 },
        };
        // Not before the hints that it counts.
        ctx.answer_after(ctx.last_commit(), from, call, answer);
    }

    fn take_in(
        &mut self,
        ctx: &Context,
        from: &Peer,
        revision: u64,
        mut subjects: Vec<Subject>,
        until: Time,
    ) {
        subjects.truncate(WATCHES_MAX);
        if subjects.is_empty() {
            self.listeners.remove(&from.node);
        } else if let Some(listener) = self.listeners.get_mut(&from.node) {
            listener.revision = revision;
            listener.subjects = subjects;
        } else if self.listeners.len() < LISTENERS_MAX {
            self.last_session += 1;
            let listener = Listener {
                peer: from.clone(),
                session: u64::from(ctx.boot) << 32 | self.last_session,
                revision,
                subjects,
                until,
                hints: 0,
                changed: BTreeMap::new(),
                more: false,
            };
            self.listeners.insert(from.node, listener);
        }
    }

    /// Whether nobody is told of anything.
    pub(crate) fn is_empty(&self) -> bool {
        self.listeners.is_empty()
    }

    /// Keys of this node have another version.
    pub(crate) fn on_changed(&mut self, ctx: &mut Context, changed: Vec<(Key, Ballot)>) {
        let mut is_wanted = false;
        for (key, version) in changed {
            for listener in self.listeners.values_mut() {
                if !listener.subjects.iter().any(|subject| subject.covers(&key)) {
                    continue;
                }
                is_wanted = true;
                if listener.changed.len() < KEYS_TOLD || listener.changed.contains_key(&key) {
                    listener.changed.insert(key.clone(), version);
                } else {
                    listener.more = true;
                }
            }
        }
        if is_wanted {
            ctx.timers.set_earlier(Timer::Hint, ctx.now + COLLECT);
        }
    }

    /// Tells what was collected, when it is on disk.
    pub(crate) fn on_timer(&mut self, ctx: &mut Context, members: &Membership) {
        self.listeners.retain(|_, listener| listener.until > ctx.now);
        let seq = ctx.last_commit();
        for listener in self.listeners.values_mut().filter(|it| !it.changed.is_empty()) {
            listener.hints += 1;
            let hint = Body::Changed {
                session: listener.session,
                number: listener.hints,
                keys: std::mem::take(&mut listener.changed).into_iter().collect(),
                more: std::mem::take(&mut listener.more),
            };
            ctx.tell_after(seq, &members.current(&listener.peer), hint);
        }
    }
}
