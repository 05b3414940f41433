//! A disk that knows what is synced and what is not, and what it has ever held.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::rc::Rc;

use bytes::Bytes;
use sky_chord::{Ballot, Cursor, Effect, Id, Key, Record, Records, RequestId, StoreError, Write};

use super::random::Random;

/// The disk of one machine.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    synced: Rc<RefCell<Synced>>,
    /// Commits handed out by the node and not yet synced.
    pending: VecDeque<(u64, Vec<Write>)>,
    /// The last commit that the sync under way will cover.
    syncing: Option<u64>,
    last_seq: u64,
}

/// What survives a power cut.
#[derive(Debug, Default)]
struct Synced {
    records: BTreeMap<Key, Record>,
    meta: BTreeMap<String, Bytes>,
    /// The highest promised and accepted ballot ever synced for each key.
    marks: BTreeMap<Key, (Ballot, Ballot)>,
    /// Every version of each key ever synced, also those only remembered with a request id.
    versions: BTreeSet<(Key, Ballot)>,
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
        if self.syncing.is_some() {
            return false;
        }
        self.syncing = self.pending.back().map(|(seq, _)| *seq);
        self.syncing.is_some()
    }

    /// The sync under way ends: up to which commit everything is durable now.
    pub(crate) fn finish_sync(&mut self) -> Option<u64> {
        let through = self.syncing.take()?;
        while self.pending.front().is_some_and(|(seq, _)| *seq <= through) {
            self.apply_first();
        }
        Some(through)
    }

    fn apply_first(&mut self) {
        if let Some((_, writes)) = self.pending.pop_front() {
            let mut synced = self.synced.borrow_mut();
            writes.into_iter().for_each(|write| synced.apply(write));
        }
    }

    /// The power goes: what was not synced is lost, except for commits that happened to reach the
    /// platter, which are a beginning of the pending ones.
    pub(crate) fn cut(&mut self, random: &mut Random) {
        for _ in 0..random.below(self.pending.len() + 1) {
            self.apply_first();
        }
        self.pending.clear();
        self.syncing = None;
        self.last_seq = 0;
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

    /// The size of all records.
    pub(crate) fn bytes(&self) -> usize {
        let synced = self.synced.borrow();
        synced.records.iter().map(|(key, r)| key.to_bytes().len() + r.to_bytes().len()).sum()
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

    /// How often a request is remembered by the key's record.
    pub(crate) fn times_done(&self, key: &Key, request: RequestId) -> usize {
        let synced = self.synced.borrow();
        let done = synced.records.get(key).map(|record| &record.register.done);
        done.map_or(0, |done| done.iter().filter(|done| done.request == request).count())
    }
}

impl Synced {
    fn apply(&mut self, write: Write) {
        match write {
            Write::Record(key, record) => self.apply_record(key, record),
            Write::Forget(key) => {
                self.records.remove(&key);
            }
            Write::Meta { name, bytes: Some(bytes) } => {
                self.meta.insert(name, bytes);
            }
            Write::Meta { name, bytes: None } => {
                self.meta.remove(&name);
            }
        }
    }

    fn apply_record(&mut self, key: Key, record: Record) {
        assert_eq!(Record::from_bytes(&record.to_bytes()).as_ref(), Some(&record));
        if let Some(old) = self.records.get(&key) {
            assert!(old.promised <= record.promised, "{key:?}: a promise went back");
            assert!(old.accepted <= record.accepted, "{key:?}: accepted went back");
        }
        let mark = self.marks.entry(key.clone()).or_insert((Ballot::ZERO, Ballot::ZERO));
        *mark = (mark.0.max(record.promised), mark.1.max(record.accepted));
        let changes = record.register.done.iter().filter(|done| done.effect != Effect::Refused);
        for version in changes.map(|done| done.version).chain([record.register.version]) {
            self.versions.insert((key.clone(), version));
        }
        self.records.insert(key, record);
    }
}

/// The records on a disk, for the node that runs on it.
#[derive(Debug, Clone)]
pub(crate) struct Reader(Rc<RefCell<Synced>>);

impl Records for Reader {
    fn get(&self, key: &Key) -> Result<Option<Record>, StoreError> {
        Ok(self.0.borrow().records.get(key).cloned())
    }

    fn scan(
        &self,
        after: Option<&Cursor>,
        through: Id,
        limit: usize,
    ) -> Result<Vec<(Key, Record)>, StoreError> {
        let start = match after {
            None => Bound::Unbounded,
            Some(Cursor::AfterKey(key)) => Bound::Excluded(key.clone()),
            Some(Cursor::AfterPoint(point)) if *point == Id::MAX => return Ok(Vec::new()),
            Some(Cursor::AfterPoint(point)) => {
                let next = point.plus(Id::small(1));
                Bound::Included(Key::from_bytes(next.as_bytes()).expect("20 bytes are a key"))
            }
        };
        let synced = self.0.borrow();
        let entries = synced.records.range((start, Bound::Unbounded));
        let wanted = entries.take_while(|(key, _)| key.hash() <= through).take(limit);
        Ok(wanted.map(|(key, record)| (key.clone(), record.clone())).collect())
    }
}
