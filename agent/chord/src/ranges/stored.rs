//! The records of this node as its answers have to see them: what is on disk, and over it what has been
//! handed out to be written and is not known to be there yet.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;

use bytes::Bytes;

use super::digest::{Digests, before};
use crate::Id;
use crate::config::{Ballot, Config};
use crate::context::Context;
use crate::event::{Records, Scan, StoreError, Write};
use crate::record::{Key, Record};
use crate::request::{Cursor, segments};
use crate::value::Content;

/// Keys are counted in this many arcs of equal length.
const BUCKETS: usize = 4096;
/// Records read at once, if they are short.
const PAGE: usize = 1024;

/// The records of this node.
#[derive(Default)]
pub(super) struct Stored {
    /// Written but not known to be on disk, with the number of the commit.
    pending: BTreeMap<Key, (u64, Record)>,
    order: VecDeque<(u64, Key)>,
    /// The same for the bytes of values that are kept apart from their records.
    bytes: BTreeMap<Key, (u64, Bytes)>,
    arcs: Arcs,
    pub(super) digests: Digests,
    /// Keys that were deleted and whose records are still kept, and the epochs in which that was accepted.
    pub(super) tombstones: BTreeMap<Key, u64>,
    /// Whether anybody wants to know what changes.
    pub(super) notes_changes: bool,
    /// Keys that got another version since somebody wants to know, and which.
    pub(super) changed: Vec<(Key, Ballot)>,
    /// When the times of values are over, by this node's own clock.
    pub(super) expiring: BTreeSet<(u64, Key)>,
}

/// How many records there are in each arc of the circle, and how many of them are of live keys. The first number
/// has to be right: arcs without records are passed over.
struct Arcs(Vec<(u32, u32)>);

impl Default for Arcs {
    fn default() -> Self {
        Self(vec![(0, 0); BUCKETS])
    }
}

impl Arcs {
    /// The first and the last arc with records among these.
    fn held(&self, from: usize, to: usize) -> Option<(usize, usize)> {
        let is_held = |arc: &usize| self.0[*arc].0 > 0;
        let first = (from..=to).find(is_held)?;
        Some((first, (first..=to).rev().find(is_held)?))
    }
}

/// A record and the commit that has to be on disk before it may be told to anyone (0: it is).
pub(super) struct Seen {
    pub(super) record: Record,
    pub(super) seq: u64,
}

impl Stored {
    /// The record of a key; an empty one if there is none. The bytes of a large value are not read.
    pub(super) fn get(&self, records: &impl Records, key: &Key) -> Result<Seen, StoreError> {
        if let Some((seq, record)) = self.pending.get(key) {
            return Ok(Seen { record: record.clone(), seq: *seq });
        }
        Ok(Seen { record: records.get(key)?.unwrap_or(Record::EMPTY), seq: 0 })
    }

    /// The record of a key, with all of its value.
    pub(super) fn whole(&self, records: &impl Records, key: &Key) -> Result<Seen, StoreError> {
        let mut seen = self.get(records, key)?;
        if let Some(outline) = seen.record.register.apart() {
            let bytes = match self.bytes.get(key) {
                Some((_, bytes)) => Some(bytes.clone()),
                None => records.bytes(key)?,
            };
            let damaged = || {
                let found = bytes.as_ref().map_or("gone", |_| "not those that were written");
                StoreError(format!("the bytes of the value of {key:?} are {found}"))
            };
            let value = bytes.clone().and_then(|bytes| outline.with(bytes)).ok_or_else(damaged)?;
            seen.record.register.value = Some(Content::Whole(value));
        }
        Ok(seen)
    }

    /// Writes a record over `old`, which is as [`Self::get`] gave it, and returns the number of the commit.
    pub(super) fn put(&mut self, ctx: &mut Context, key: &Key, old: &Record, new: Record) -> u64 {
        let bytes = new.register.whole().map(|value| value.bytes.clone());
        let new = Record { register: new.register.outlined(ctx.settings.apart_above), ..new };
        let (was_apart, is_apart) =
            (old.register.apart().is_some(), new.register.apart().is_some());
        let is_there = was_apart && new.register.has_value_of(&old.register);
        if let Some(bytes) = bytes.filter(|_| is_apart && !is_there) {
            let seq = ctx.persist(Write::Bytes(key.clone(), bytes.clone()));
            self.bytes.insert(key.clone(), (seq, bytes));
        } else if was_apart && !is_apart {
            self.forget_bytes(ctx, key);
        }
        self.recount(key, old, &new);
        if self.notes_changes && new.register.version != old.register.version {
            self.changed.push((key.clone(), new.register.version));
        }
        let seq = ctx.persist(Write::Record(key.clone(), new.clone()));
        self.note(seq, key, new);
        seq
    }

    /// Removes the record of a key and returns the number of the commit.
    pub(super) fn forget(&mut self, ctx: &mut Context, key: &Key, old: &Record) -> u64 {
        self.recount(key, old, &Record::EMPTY);
        if old.register.apart().is_some() {
            self.forget_bytes(ctx, key);
        }
        let seq = ctx.persist(Write::Forget(key.clone()));
        self.note(seq, key, Record::EMPTY);
        seq
    }

    fn forget_bytes(&mut self, ctx: &mut Context, key: &Key) {
        self.bytes.remove(key);
        ctx.persist(Write::ForgetBytes(key.clone()));
    }

    fn note(&mut self, seq: u64, key: &Key, record: Record) {
        self.pending.insert(key.clone(), (seq, record));
        self.order.push_back((seq, key.clone()));
    }

    /// Everything up to this commit can be read from the store again.
    pub(super) fn on_persisted(&mut self, seq: u64) {
        while self.order.front().is_some_and(|(other, _)| *other <= seq) {
            let Some((written, key)) = self.order.pop_front() else { return };
            if self.pending.get(&key).is_some_and(|(latest, _)| *latest == written) {
                self.pending.remove(&key);
            }
            if self.bytes.get(&key).is_some_and(|(latest, _)| *latest == written) {
                self.bytes.remove(&key);
            }
        }
    }

    /// The deleted keys of a range, in the order of points, and the epochs in which that was accepted.
    pub(super) fn tombstones_in(&self, config: &Config) -> impl Iterator<Item = (&Key, u64)> {
        segments(config.lo, config.hi).into_iter().flat_map(|(after, through)| {
            let start = first_after(after.as_ref());
            let from_there = self.tombstones.range((start, Bound::Unbounded));
            let in_range = from_there.take_while(move |(key, _)| key.hash() <= through);
            in_range.map(|(key, epoch)| (key, *epoch))
        })
    }

    /// At most `limit` records after a place and up to a point, fewer if they are long. A store may pass over what
    /// was forgotten one by one, for a long time: arcs at both ends that hold nothing are not read.
    pub(super) fn scan(
        &self,
        records: &impl Records,
        after: Option<&Cursor>,
        through: Id,
        limit: usize,
    ) -> Result<Scan<Seen>, StoreError> {
        let limit = limit.max(1);
        let from = match after {
            None => 0,
            Some(Cursor::AfterKey(key)) => bucket_of(key.hash()),
            Some(Cursor::AfterPoint(Id::MAX)) => return Ok(Scan::EMPTY),
            Some(Cursor::AfterPoint(point)) => bucket_of(*point),
        };
        let Some((first, last)) = self.arcs.held(from, bucket_of(through)) else {
            return Ok(Scan::EMPTY);
        };
        let start = before(start_of(first)).filter(|_| first > from);
        let after = start.as_ref().or(after);
        let through = if last + 1 < BUCKETS {
            through.min(start_of(last + 1).plus(Id::MAX))
        } else {
            through
        };
        let on_disk = records.scan(after, through, limit)?;
        let horizon = on_disk.next();
        let mut merged: BTreeMap<Key, Seen> = on_disk
            .entries
            .into_iter()
            .map(|(key, record)| (key, Seen { record, seq: 0 }))
            .collect();
        let in_page = |key: &Key| {
            key.hash() <= through && horizon.as_ref().is_none_or(|last| !last.is_before(key))
        };
        let pending = self.pending.range((first_after(after), Bound::Unbounded));
        for (key, (seq, record)) in pending.take_while(|(key, _)| in_page(key)) {
            merged.insert(key.clone(), Seen { record: record.clone(), seq: *seq });
        }
        let end = on_disk.end && merged.len() <= limit;
        Ok(Scan { entries: merged.into_iter().take(limit).collect(), end })
    }

    /// Looks at all records after a place and up to a point.
    pub(super) fn each(
        &self,
        records: &impl Records,
        mut after: Option<Cursor>,
        through: Id,
        mut see: impl FnMut(&Key, &Record),
    ) -> Result<(), StoreError> {
        loop {
            let page = self.scan(records, after.as_ref(), through, PAGE)?;
            page.entries.iter().for_each(|(key, seen)| see(key, &seen.record));
            after = page.next();
            if after.is_none() {
                return Ok(());
            }
        }
    }

    /// Counts the keys on disk, once at the start.
    pub(super) fn count(&mut self, records: &impl Records) -> Result<(), StoreError> {
        self.arcs = Arcs::default();
        let mut after = None;
        loop {
            let page = records.scan(after.as_ref(), Id::MAX, PAGE)?;
            for (key, record) in &page.entries {
                self.recount(key, &Record::EMPTY, record);
            }
            after = page.next();
            if after.is_none() {
                return Ok(());
            }
        }
    }

    fn recount(&mut self, key: &Key, old: &Record, new: &Record) {
        self.digests.replace(key, old, new);
        if new.is_tombstone() {
            self.tombstones.insert(key.clone(), new.accepted.epoch);
        } else if old.is_tombstone() {
            self.tombstones.remove(key);
        }
        if old.expires != new.expires {
            if let Some(at) = old.expires {
                self.expiring.remove(&(at, key.clone()));
            }
            self.expiring.extend(new.expires.map(|at| (at, key.clone())));
        }
        let (all, live) = &mut self.arcs.0[bucket_of(key.hash())];
        for (count, was, is) in [
            (all, *old != Record::EMPTY, *new != Record::EMPTY),
            (live, old.is_live(), new.is_live()),
        ] {
            *count = count.wrapping_add(u32::from(is)).wrapping_sub(u32::from(was));
        }
    }

    /// How many live keys lie in (lo, hi].
    pub(super) fn live_in(&self, records: &impl Records, lo: Id, hi: Id) -> u64 {
        let up_to = |point| self.live_up_to(records, point);
        if lo < hi {
            up_to(hi).saturating_sub(up_to(lo))
        } else {
            let all = self.arcs.0.iter().map(|(_, live)| u64::from(*live)).sum::<u64>();
            all.saturating_sub(up_to(lo)) + up_to(hi)
        }
    }

    /// Live keys from the start of the circle up to a point: whole arcs by their count, the last one by
    /// looking.
    fn live_up_to(&self, records: &impl Records, point: Id) -> u64 {
        let bucket = bucket_of(point);
        let whole = self.arcs.0.iter().take(bucket).map(|(_, live)| u64::from(*live)).sum();
        if self.arcs.0[bucket].1 == 0 {
            return whole;
        }
        let after = before(start_of(bucket));
        let mut part = 0;
        // A store that cannot be read is told by others: this is a count for people.
        let seen =
            self.each(records, after, point, |_, record| part += u64::from(record.is_live()));
        seen.map_or(whole, |()| whole + part)
    }
}

fn bucket_of(point: Id) -> usize {
    let bytes = point.as_bytes();
    usize::from(bytes[0]) << 4 | usize::from(bytes[1]) >> 4
}

/// The first point of an arc.
fn start_of(bucket: usize) -> Id {
    let mut start = [0; 20];
    (start[0], start[1]) = ((bucket >> 4) as u8, ((bucket & 0xf) << 4) as u8);
    Id::from_bytes(start)
}

/// Where the keys after a place begin.
fn first_after(place: Option<&Cursor>) -> Bound<Key> {
    match place {
        None => Bound::Unbounded,
        Some(Cursor::AfterKey(key)) => Bound::Excluded(key.clone()),
        Some(Cursor::AfterPoint(point)) => Bound::Included(Key::first_after(*point)),
    }
}
