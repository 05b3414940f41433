//! A disk that knows what is synced and what is not, and what it has ever held.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::rc::Rc;

use bytes::Bytes;
use sky_chord::{
    Ballot, Cursor, Effect, Id, Key, Record, Records, Register, RequestId, Scan, StoreError, Write,
};

use super::random::Random;

/// A page of records ends when their values have as many bytes: as early as pages of large values do.
const SCAN_BYTES: usize = 64;

/// The disk of one machine.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    synced: Rc<RefCell<Synced>>,
    /// Commits handed out by the node and not yet synced.
    pending: VecDeque<(u64, Vec<Write>)>,
    /// The last commit that the sync under way will cover.
    syncing: Option<u64>,
    last_seq: u64,
    health: Health,
    /// Whether what every sync replaces is kept, so that it can be taken back.
    pub(crate) keeps_undo: bool,
}

/// Whether a disk takes writes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Health {
    #[default]
    Good,
    /// The next sync fails.
    Failing,
    /// A sync failed: no other one is tried before the process has been started again.
    Failed,
}

/// How a sync ended.
pub(crate) enum Ended {
    /// Everything up to this commit is durable; these are the writes.
    Synced(u64, Vec<Write>),
    /// This commit and all later ones are not, as far as anybody can tell.
    Failed(u64),
}

/// What survives a power cut.
#[derive(Debug, Default)]
struct Synced {
    records: BTreeMap<Key, Record>,
    /// The bytes of values that are kept apart.
    bytes: BTreeMap<Key, Bytes>,
    meta: BTreeMap<String, Bytes>,
    /// The highest promised and accepted ballot ever synced for each key.
    marks: BTreeMap<Key, (Ballot, Ballot)>,
    /// Every version of each key ever synced, also those only remembered with a request id.
    versions: BTreeSet<(Key, Ballot)>,
    /// What the last writes replaced, oldest first.
    undo: Vec<Undo>,
}

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "records are most of it")]
enum Undo {
    Record(Key, Option<Record>),
    Bytes(Key, Option<Bytes>),
    Meta(String, Option<Bytes>),
}

impl Disk {
    /// Takes a commit of the node. Returns whether a sync has to be started.
    pub(crate) fn write(&mut self, seq: u64, writes: Vec<Write>) -> bool {
        assert_eq!(seq, self.last_seq + 1, "commits are numbered without gaps");
        self.last_seq = seq;
        self.pending.push_back((seq, writes));
        self.start_sync()
    }

    /// Begins to sync all that is pending, as one commit of a group; false if there is nothing to do.
    pub(crate) fn start_sync(&mut self) -> bool {
        if self.syncing.is_some() || self.health == Health::Failed {
            return false;
        }
        self.syncing = self.pending.back().map(|(seq, _)| *seq);
        self.syncing.is_some()
    }

    /// The sync under way ends.
    pub(crate) fn finish_sync(&mut self) -> Option<Ended> {
        let through = self.syncing.take()?;
        let first = self.pending.front().map_or(through, |(seq, _)| *seq);
        if self.health == Health::Failing {
            self.health = Health::Failed;
            return Some(Ended::Failed(first));
        }
        let count = self.pending.iter().take_while(|(seq, _)| *seq <= through).count();
        Some(Ended::Synced(through, self.apply(count)))
    }

    /// Puts the first pending commits on the platter.
    fn apply(&mut self, commits: usize) -> Vec<Write> {
        let commits = self.pending.drain(..commits);
        let writes: Vec<_> = commits.flat_map(|(_, writes)| writes).collect();
        let mut synced = self.synced.borrow_mut();
        writes.iter().for_each(|write| synced.apply(write, self.keeps_undo));
        writes
    }

    /// The power goes: what was not synced is lost, except for commits that happened to reach the
    /// platter, which are a beginning of the pending ones and are returned. No commit is there in part:
    /// the store's checksums see to that.
    pub(crate) fn cut(&mut self, random: &mut Random) -> Vec<Write> {
        let survived = self.apply(random.below(self.pending.len() + 1));
        self.pending.clear();
        self.syncing = None;
        self.last_seq = 0;
        self.health = Health::Good;
        survived
    }

    /// Lets the next sync fail.
    pub(crate) fn break_down(&mut self) {
        self.health = Health::Failing;
    }

    /// Whether writes fail, or the next one will.
    pub(crate) fn is_broken(&self) -> bool {
        self.health != Health::Good
    }

    /// Whether the process has been told that a write failed.
    pub(crate) fn has_failed(&self) -> bool {
        self.health == Health::Failed
    }

    /// A wrong of which no disk may be guilty: it takes back what it said was durable.
    pub(crate) fn take_back(&mut self, writes: usize) {
        let mut synced = self.synced.borrow_mut();
        for _ in 0..writes {
            match synced.undo.pop() {
                Some(Undo::Record(key, Some(record))) => drop(synced.records.insert(key, record)),
                Some(Undo::Record(key, None)) => drop(synced.records.remove(&key)),
                Some(Undo::Bytes(key, Some(bytes))) => drop(synced.bytes.insert(key, bytes)),
                Some(Undo::Bytes(key, None)) => drop(synced.bytes.remove(&key)),
                Some(Undo::Meta(name, Some(bytes))) => drop(synced.meta.insert(name, bytes)),
                Some(Undo::Meta(name, None)) => drop(synced.meta.remove(&name)),
                None => return,
            }
        }
    }

    /// Another wrong: the first pending commit is there in part. Of a record the ballots are new, and
    /// what they belong to is old.
    pub(crate) fn tear(&mut self) {
        let Some((_, writes)) = self.pending.pop_front() else { return };
        let mut synced = self.synced.borrow_mut();
        self.pending.clear();
        for write in writes {
            if let Write::Record(key, mut record) = write {
                let old = synced.records.get(&key).map(|old| old.register.clone());
                record.register = old.unwrap_or(Register::ABSENT);
                synced.records.insert(key, record);
            }
        }
    }

    /// Another wrong: deleted keys are forgotten at once.
    pub(crate) fn drop_tombstones(&mut self) {
        self.synced.borrow_mut().records.retain(|_, record| record.is_live());
    }

    /// Another wrong: the meta records of this kind are forgotten.
    pub(crate) fn drop_meta(&mut self, prefix: &str) {
        self.synced.borrow_mut().meta.retain(|name, _| !name.starts_with(prefix));
    }

    /// The records, for a comparison of replicas.
    pub(crate) fn records(&self) -> BTreeMap<Key, Record> {
        self.synced.borrow().records.clone()
    }

    /// What a process sees that starts on this disk.
    pub(crate) fn meta(&self) -> Vec<(String, Bytes)> {
        let synced = self.synced.borrow();
        synced.meta.iter().map(|(name, bytes)| (name.clone(), bytes.clone())).collect()
    }

    /// The records as the node reads them: only what is synced.
    pub(crate) fn reader(&self) -> Reader {
        Reader(Rc::clone(&self.synced))
    }

    /// The highest (promised, accepted) ballots ever synced for a key.
    pub(crate) fn marks(&self, key: &Key) -> (Ballot, Ballot) {
        self.synced.borrow().marks.get(key).copied().unwrap_or((Ballot::ZERO, Ballot::ZERO))
    }

    /// Whether this version of the key was ever synced here, as value or as part of its history.
    pub(crate) fn has_held(&self, key: &Key, version: Ballot) -> bool {
        self.synced.borrow().versions.contains(&(key.clone(), version))
    }

    /// The size of everything stored for keys.
    pub(crate) fn bytes(&self) -> usize {
        let synced = self.synced.borrow();
        let records =
            synced.records.iter().map(|(key, r)| key.to_bytes().len() + r.to_bytes().len());
        records.sum::<usize>() + synced.bytes.values().map(Bytes::len).sum::<usize>()
    }

    /// The bytes that are kept apart are those of the values of which there is an outline.
    pub(crate) fn assert_nothing_is_left_over(&self) {
        let synced = self.synced.borrow();
        let records = synced.records.iter();
        let apart = records.filter_map(|(key, record)| Some((key, record.register.apart()?)));
        let apart: BTreeMap<_, _> = apart.collect();
        assert!(apart.keys().copied().eq(synced.bytes.keys()), "bytes and outlines");
        for (key, outline) in apart {
            assert!(outline.with(synced.bytes[key].clone()).is_some(), "the bytes of {key:?}");
        }
    }

    /// What is accepted here, without what is only promised.
    pub(crate) fn accepted(&self) -> BTreeMap<Key, Record> {
        let mut records = self.synced.borrow().records.clone();
        records.retain(|_, record| record.accepted != Ballot::ZERO);
        records.values_mut().for_each(|record| record.promised = Ballot::ZERO);
        records
    }

    /// Changes what is stored for a key behind everybody's back.
    pub(crate) fn tamper(&mut self, key: &Key, change: impl FnOnce(&mut Record)) {
        change(self.synced.borrow_mut().records.get_mut(key).expect("a stored key"));
    }

    /// Changes the bytes of a value behind everybody's back.
    pub(crate) fn tamper_bytes(&mut self, key: &Key, bytes: Bytes) {
        self.synced.borrow_mut().bytes.insert(key.clone(), bytes).expect("bytes of this key");
    }

    /// How often a request is remembered by the key's record.
    pub(crate) fn times_done(&self, key: &Key, request: RequestId) -> usize {
        let synced = self.synced.borrow();
        let done = synced.records.get(key).map(|record| &record.register.done);
        done.map_or(0, |done| done.iter().filter(|done| done.request == request).count())
    }
}

impl Synced {
    fn apply(&mut self, write: &Write, keep_undo: bool) {
        let undo = match write {
            Write::Record(key, record) => {
                Undo::Record(key.clone(), self.apply_record(key, record.clone()))
            }
            Write::Forget(key) => Undo::Record(key.clone(), self.records.remove(key)),
            Write::Bytes(key, bytes) => {
                Undo::Bytes(key.clone(), self.bytes.insert(key.clone(), bytes.clone()))
            }
            Write::ForgetBytes(key) => Undo::Bytes(key.clone(), self.bytes.remove(key)),
            Write::Meta { name, bytes: Some(bytes) } => {
                Undo::Meta(name.clone(), self.meta.insert(name.clone(), bytes.clone()))
            }
            Write::Meta { name, bytes: None } => Undo::Meta(name.clone(), self.meta.remove(name)),
        };
        if keep_undo {
            self.undo.push(undo);
        }
    }

    /// Stores a record and returns the one before. A promise can be taken back only by forgetting the
    /// whole record, as of a tombstone or of a range that was left.
    fn apply_record(&mut self, key: &Key, record: Record) -> Option<Record> {
        assert_eq!(Record::from_bytes(&record.to_bytes()).as_ref(), Some(&record));
        if let Some(old) = self.records.get(key) {
            assert!(old.promised <= record.promised, "{key:?}: a promise went back");
            assert!(old.accepted <= record.accepted, "{key:?}: accepted went back");
        }
        let mark = self.marks.entry(key.clone()).or_insert((Ballot::ZERO, Ballot::ZERO));
        *mark = (mark.0.max(record.promised), mark.1.max(record.accepted));
        let changes = record.register.done.iter().filter(|done| done.effect != Effect::Refused);
        for version in changes.map(|done| done.version).chain([record.register.version]) {
            self.versions.insert((key.clone(), version));
        }
        self.records.insert(key.clone(), record)
    }
}

/// The records on a disk, for the node that runs on it.
#[derive(Debug, Clone)]
pub(crate) struct Reader(Rc<RefCell<Synced>>);

impl Records for Reader {
    fn get(&self, key: &Key) -> Result<Option<Record>, StoreError> {
        Ok(self.0.borrow().records.get(key).cloned())
    }

    fn bytes(&self, key: &Key) -> Result<Option<Bytes>, StoreError> {
        Ok(self.0.borrow().bytes.get(key).cloned())
    }

    fn scan(
        &self,
        after: Option<&Cursor>,
        through: Id,
        limit: usize,
    ) -> Result<Scan<Record>, StoreError> {
        let start = match after {
            None => Bound::Unbounded,
            Some(Cursor::AfterKey(key)) => Bound::Excluded(key.clone()),
            Some(Cursor::AfterPoint(point)) if *point == Id::MAX => return Ok(Scan::EMPTY),
            Some(Cursor::AfterPoint(point)) => {
                let next = point.plus(Id::small(1));
                Bound::Included(Key::from_bytes(next.as_bytes()).expect("20 bytes are a key"))
            }
        };
        let synced = self.0.borrow();
        let rest = synced.records.range((start, Bound::Unbounded));
        let (mut entries, mut bytes) = (Vec::new(), 0);
        for (key, record) in rest.take_while(|(key, _)| key.hash() <= through) {
            if entries.len() >= limit || bytes >= SCAN_BYTES {
                return Ok(Scan { entries, end: false });
            }
            bytes += record.register.bytes_here();
            entries.push((key.clone(), record.clone()));
        }
        Ok(Scan { entries, end: true })
    }
}
