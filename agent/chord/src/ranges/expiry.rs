//! Values that are kept for a time only ([`Ttl`]).
//!
//! When a member accepts such a value it notes, on its own clock, when the time is over. A value is deleted
//! when a majority of the members say that it is: by an ordinary change of the key, which does nothing if
//! the key has another version by then. Until that is chosen the value is there, for everybody; so no answer
//! depends on a clock, and a value goes early only if most of its members' clocks run ahead. A clock that
//! stands still, or a member that has counted from later on, delays nothing as long as most others do not.
//!
//! Where a value goes from member to member, what is left of its time is told as a span.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use super::round::{Job, Origin, Task};
use super::{Ranges, World};
use crate::Id;
use crate::call::{PassId, RangeCall};
use crate::config::{Ballot, Config, NodeId, Peer, RangeTag, is_majority};
use crate::context::Context;
use crate::event::Records;
use crate::message::{Body, Refusal};
use crate::record::{Key, Record, Register};
use crate::time::Time;
use crate::timer::Timer;
use crate::value::Content;

/// How many values are asked about at once, and how many of all ranges are looked at to find them.
const AT_ONCE: usize = 256;
const LOOKED_AT: usize = 4096;
/// How long after its own time for a value the leader of a range asks, so that the others have come so far,
/// and how long the others wait for the leader, whose clock may stand still.
const GRACE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// How long nothing is asked after the members did not agree, doubled each time, between these.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// How long the deletion of one key may take before it is tried again.
const KEY_DEADLINE: Duration = Duration::from_secs(5);

/// Values of one range that the members are asked about, and those of them that are being deleted.
struct Batch {
    id: PassId,
    config: Arc<Config>,
    keys: Vec<(Key, Ballot)>,
    /// How many members say of each that its time is over, and who has not said anything yet.
    votes: Vec<usize>,
    open: BTreeSet<NodeId>,
    deleting: usize,
}

/// How a range is gone through, again and again.
#[derive(Default)]
struct Lap {
    /// After this one of the values that are over by this node's clock.
    after: Option<(u64, Key)>,
    /// Whether the members did not agree about one.
    disputed: bool,
    /// When the next lap begins, and how long the pause before it was.
    begins: Time,
    pause: Duration,
}

/// What this process does about values whose time is over.
#[derive(Default)]
pub(super) struct Expiries {
    batches: BTreeMap<Id, Batch>,
    laps: BTreeMap<Id, Lap>,
    last: u64,
}

impl Expiries {
    fn get_mut(&mut self, id: PassId) -> Option<&mut Batch> {
        self.batches.values_mut().find(|batch| batch.id == id)
    }
}

/// When the time of the value is over that is about to be stored over `old`. Who holds this version already
/// goes on counting.
pub(super) fn expires(ctx: &Context, old: &Record, register: &Register) -> Option<u64> {
    let ttl = register.value.as_ref()?.ttl()?;
    let counts = old.expires.filter(|_| old.register.version == register.version);
    Some(counts.unwrap_or_else(|| ctx.wall().saturating_add(ttl.left_ms.saturating_mul(1000))))
}

/// The register as it is stored, without what somebody said was left: that is in [`Record::expires`].
pub(super) fn counted_anew(mut register: Register) -> Register {
    if let Some(ttl) = register.value.as_mut().and_then(Content::ttl_mut) {
        *ttl = ttl.anew();
    }
    register
}

/// The register as this node tells it to others, with what it thinks is left of the value's time.
pub(super) fn told(ctx: &Context, record: &Record) -> Register {
    let mut register = record.register.clone();
    if let (Some(value), Some(expires)) = (&mut register.value, record.expires)
        && let Some(ttl) = value.ttl_mut()
    {
        ttl.left_ms = (expires.saturating_sub(ctx.wall()) / 1000).min(ttl.whole_ms);
    }
    register
}

impl Ranges {
    /// Asks the members of a range about values whose time is over by this node's clock.
    pub(super) fn expire<R: Records>(&mut self, w: &mut World<'_, R>, config: &Arc<Config>) {
        let (hi, me) = (config.hi, w.ctx.me.node);
        let is_settled = self.known.get(&hi).is_some_and(|known| !known.must_ask_prev());
        if self.expiries.batches.get(&hi).is_some_and(|batch| batch.config.tag() != config.tag()) {
            self.expiries.batches.remove(&hi);
        }
        let is_busy = self.expiries.batches.contains_key(&hi);
        if !is_settled || is_busy || !config.has_member(&me) {
            return;
        }
        let reached = |peer: &&Peer| !w.members.is_suspect(&peer.node);
        let asked: Vec<_> = config.members.iter().filter(reached).cloned().collect();
        if !is_majority(asked.len(), config.members.len()) {
            return;
        }
        let keys = self.overdue_here(w, config);
        if keys.is_empty() {
            return;
        }
        self.expiries.last += 1;
        let (id, at) = (PassId(self.expiries.last), config.tag());
        let batch = Batch {
            id,
            config: Arc::clone(config),
            keys: keys.clone(),
            votes: vec![0; keys.len()],
            open: asked.iter().map(|peer| peer.node).collect(),
            deleting: 0,
        };
        self.expiries.batches.insert(hi, batch);
        for peer in asked {
            w.ask_slowly(&peer, Body::Overdue { at, keys: keys.clone() }, RangeCall::Expiry(id));
        }
    }

    /// The next values of the range whose time is over by this node's clock. Whoever does not lead the range
    /// leaves them to the leader for a while.
    fn overdue_here<R: Records>(
        &mut self,
        w: &World<'_, R>,
        config: &Config,
    ) -> Vec<(Key, Ballot)> {
        let grace = if self.leads(w, config) { GRACE.0 } else { GRACE.1 };
        let until = w.ctx.wall().saturating_sub(grace.as_micros() as u64);
        let lap = self.expiries.laps.entry(config.hi).or_default();
        if w.ctx.now < lap.begins {
            return Vec::new();
        }
        let start = lap.after.clone().map_or(Bound::Unbounded, Bound::Excluded);
        let mut keys = Vec::new();
        lap.after = None;
        for due in self.stored.expiring.range((start, Bound::Unbounded)).take(LOOKED_AT) {
            if due.0 > until {
                lap.after = None;
                break;
            }
            lap.after = Some(due.clone());
            if config.covers(due.1.hash())
                && let Ok(seen) = self.stored.get(w.records, &due.1)
            {
                keys.push((due.1.clone(), seen.record.register.version));
                if keys.len() >= AT_ONCE {
                    break;
                }
            }
        }
        let is_end = lap.after.is_none();
        if is_end && std::mem::take(&mut lap.disputed) {
            lap.pause = (lap.pause * 2).clamp(PAUSE.0, PAUSE.1);
            lap.begins = w.ctx.now + lap.pause;
        } else if is_end {
            lap.pause = Duration::ZERO;
        }
        keys
    }

    /// A member's answer about values, or none in time.
    pub(super) fn on_overdue_answer<R: Records>(
        &mut self,
        w: &mut World<'_, R>,
        id: PassId,
        from: NodeId,
        answer: Option<Body>,
    ) {
        let Some(batch) = self.expiries.get_mut(id) else { return };
        let hi = batch.config.hi;
        match answer {
            Some(Body::OverdueAre { over }) => {
                for (votes, over) in batch.votes.iter_mut().zip(over) {
                    *votes += usize::from(over);
                }
            }
            Some(Body::Refused(Refusal::Newer(config))) => {
                self.expiries.batches.remove(&hi);
                return self.on_newer(w, *config);
            }
            _ => {}
        }
        batch.open.remove(&from);
        if !batch.open.is_empty() {
            return;
        }
        let members = batch.config.members.len();
        let votes = std::mem::take(&mut batch.votes).into_iter();
        let asked = std::mem::take(&mut batch.keys).into_iter().zip(votes);
        let (over, disputed): (Vec<_>, Vec<_>) =
            asked.partition(|(_, votes)| is_majority(*votes, members));
        batch.deleting = over.len();
        if !disputed.is_empty()
            && let Some(lap) = self.expiries.laps.get_mut(&hi)
        {
            lap.disputed = true;
        }
        if over.is_empty() {
            self.expiries.batches.remove(&hi);
        }
        let deadline = w.ctx.now + KEY_DEADLINE;
        for ((key, version), _) in over {
            let job = Job { origin: Origin::Expiry(id), task: Task::Expire(version), deadline };
            self.submit(w, &key, job);
        }
    }

    /// A value was deleted, or could not be for now.
    pub(super) fn on_expired<R: Records>(&mut self, w: &mut World<'_, R>, id: PassId) {
        let Some(batch) = self.expiries.get_mut(id) else { return };
        batch.deleting = batch.deleting.saturating_sub(1);
        if batch.deleting == 0 {
            let hi = batch.config.hi;
            self.expiries.batches.remove(&hi);
            // There may be more.
            w.ctx.timers.set_earlier(Timer::Reconcile, w.ctx.now + Duration::from_millis(5));
        }
    }

    /// Of which values is the time over by this node's clock?
    pub(super) fn overdue<R: Records>(
        &self,
        w: &World<'_, R>,
        at: RangeTag,
        keys: &[(Key, Ballot)],
    ) -> super::acceptor::Answered {
        let mut seq = self.duty(&w.ctx.me.node, at, at.hi)?.seq;
        let mut over = Vec::new();
        for (key, version) in keys {
            let seen = self.stored.get(w.records, key).map_err(|_| Refusal::Broken)?;
            let is_over = seen.record.expires.is_some_and(|expires| expires <= w.ctx.wall());
            over.push(is_over && seen.record.register.version == *version);
            seq = seq.max(seen.seq);
        }
        Ok((Body::OverdueAre { over }, seq))
    }
}
