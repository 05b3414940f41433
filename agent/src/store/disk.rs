//! The store on disk: three keyspaces of fjall, one journal.
//!
//! Records are in one of them and the bytes of large values in another, so that a record can be read, and
//! written anew, without the bytes. Keys are [`Key::to_bytes`], so that the order of bytes is the order of
//! the circle. fjall checks the sums of its blocks whenever it reads them, [`journal`] and [`sums`] what it
//! does not; what still does not decode is reported, never passed over. Commits are numbered, so that a store that comes back with
//! fewer than were on disk for sure is refused.

use std::fs::File;
use std::ops::Bound;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode};
use sky_chord::{Cursor, Id, Key, Record, Records, Scan, StoreError, Write};

use super::Store;
use super::journal::{self, COMMIT, Commit};
use super::mark::Mark;
use super::sums;

/// Memory for writes not yet in a table. Small: a flush then stalls writers only shortly, and a
/// restart has little of the journal to read.
const MEMTABLE_BYTES: u64 = 16 << 20;

/// Memory for blocks read.
const CACHE_BYTES: u64 = 32 << 20;

/// Journals above this size make the store flush what holds them back.
const JOURNAL_BYTES: u64 = 128 << 20;

/// A page of records ends when it has as many bytes.
const SCAN_BYTES: usize = 4 << 20;

/// The keyspaces: of records, of the bytes of large values, and of meta records.
const KEYSPACES: [&str; 3] = ["records", VALUES, "meta"];
const VALUES: &str = "values";

/// The meta record that says whose store this is; not shown to the node.
const OWNER: &str = "agent.owner";

/// The log-structured store of one agent. Clones share it.
#[derive(Clone)]
pub struct Disk {
    database: Database,
    records: Keyspace,
    values: Keyspace,
    meta: Keyspace,
    commits: Arc<Mutex<Commits>>,
}

/// How far the store has got.
struct Commits {
    last: u64,
    mark: Mark,
}

fn failed(error: impl std::fmt::Display) -> StoreError {
    StoreError(error.to_string())
}

impl Disk {
    /// Makes a new store in this folder, with its mark, and writes down whose it is.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn create(folder: &Path, mark: Mark, owner: &str) -> Result<Self, StoreError> {
        let disk = Self::start(Self::database(folder)?, mark)?;
        sync_keyspaces(folder)?;
        disk.commit(|batch| batch.insert(&disk.meta, OWNER, owner))?;
        Ok(disk)
    }

    /// Opens the store in this folder. One of an agent that kept all values in their records has nothing else
    /// where their bytes could be.
    ///
    /// # Errors
    /// If it is damaged, of a format that is not understood, in use, or lost commits.
    pub(super) fn open(folder: &Path, mark: Mark, has_values: bool) -> Result<Self, StoreError> {
        sums::check(folder)?;
        let journals = journal::check(folder)?;
        if let Some(last) = journals.last {
            check_mark(last.number, &mark)?;
        }
        // Only now: what is refused stays as it was found.
        if let Some(torn) = journals.torn {
            torn.cut().map_err(failed)?;
        }
        let database = Self::database(folder)?;
        let mut needed = KEYSPACES.iter().filter(|name| has_values || **name != VALUES);
        if let Some(lost) = needed.find(|name| !database.keyspace_exists(name)) {
            return Err(StoreError(format!("its keyspace `{lost}` is gone")));
        }
        let disk = Self::start(database, mark)?;
        if !has_values {
            sync_keyspaces(folder)?;
        }
        let last = disk.meta.get(COMMIT).map_err(failed)?;
        let last = last.map_or(Some(0), |bytes| Some(Commit::from_bytes(&bytes)?.number));
        let last = last.ok_or_else(|| StoreError("the number of commits is damaged".to_owned()))?;
        if let Some(Commit { number, .. }) = journals.last.filter(|commit| commit.number != last) {
            let text = format!("its journal ends with commit {number}, its tables with {last}");
            return Err(StoreError(text));
        }
        let mut commits = disk.commits();
        check_mark(last, &commits.mark)?;
        commits.last = last;
        drop(commits);
        Ok(disk)
    }

    fn database(folder: &Path) -> Result<Database, StoreError> {
        let builder = Database::builder(folder).cache_size(CACHE_BYTES).worker_threads(1);
        builder.max_journaling_size(JOURNAL_BYTES).open().map_err(failed)
    }

    fn start(database: Database, mark: Mark) -> Result<Self, StoreError> {
        let options = || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES);
        let keyspaces = KEYSPACES.map(|name| database.keyspace(name, options));
        let [records, values, meta] = keyspaces.map(|keyspace| keyspace.map_err(failed));
        let (records, values, meta) = (records?, values?, meta?);
        let commits = Arc::new(Mutex::new(Commits { last: 0, mark }));
        Ok(Self { database, records, values, meta, commits })
    }

    /// Whose store this is.
    pub(super) fn owner(&self) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.meta.get(OWNER).map_err(failed)?.map(|bytes| bytes.to_vec()))
    }

    fn commits(&self) -> MutexGuard<'_, Commits> {
        self.commits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes one numbered batch durable.
    fn commit(&self, fill: impl FnOnce(&mut OwnedWriteBatch)) -> Result<(), StoreError> {
        let mut commits = self.commits();
        let mut batch = self.database.batch().durability(Some(PersistMode::SyncData));
        // Nobody else writes batches: the order of this one will not be below that.
        let commit = Commit { number: commits.last + 1, order: self.database.seqno() };
        batch.insert(&self.meta, COMMIT, commit.to_bytes());
        fill(&mut batch);
        batch.commit().map_err(failed)?;
        commits.last = commit.number;
        Ok(())
    }
}

/// fjall syncs what is in the folder of each keyspace, but not that the folder is there.
fn sync_keyspaces(folder: &Path) -> Result<(), StoreError> {
    let keyspaces = File::open(folder.join("keyspaces"));
    keyspaces.and_then(|keyspaces| keyspaces.sync_all()).map_err(failed)
}

fn check_mark(last: u64, mark: &Mark) -> Result<(), StoreError> {
    if last < mark.number() {
        let text = format!("it ends with commit {last}, but {} were synced", mark.number());
        return Err(StoreError(format!("the disk lost what was on it: {text}")));
    }
    Ok(())
}

fn decode(name: &dyn std::fmt::Debug, bytes: &[u8]) -> Result<Record, StoreError> {
    Record::from_bytes(bytes).ok_or_else(|| {
        StoreError(format!("the record of {name:?} is damaged or of a newer format"))
    })
}

impl Records for Disk {
    fn get(&self, key: &Key) -> Result<Option<Record>, StoreError> {
        let bytes = self.records.get(key.to_bytes()).map_err(failed)?;
        bytes.map(|bytes| decode(key, &bytes)).transpose()
    }

    fn bytes(&self, key: &Key) -> Result<Option<Bytes>, StoreError> {
        let bytes = self.values.get(key.to_bytes()).map_err(failed)?;
        Ok(bytes.map(Bytes::from_owner))
    }

    fn scan(
        &self,
        after: Option<&Cursor>,
        through: Id,
        limit: usize,
    ) -> Result<Scan<Record>, StoreError> {
        let next = |point: Id| point.plus(Id::small(1)).as_bytes().to_vec();
        let from = match after {
            None => Bound::Unbounded,
            Some(Cursor::AfterKey(key)) => Bound::Excluded(key.to_bytes()),
            Some(Cursor::AfterPoint(Id::MAX)) => return Ok(Scan::EMPTY),
            Some(Cursor::AfterPoint(point)) => Bound::Included(next(*point)),
        };
        let to = match through {
            Id::MAX => Bound::Unbounded,
            through => Bound::Excluded(next(through)),
        };
        // fjall, like the ordered maps of std, panics on a range that ends before it begins.
        if let (Bound::Excluded(from) | Bound::Included(from), Bound::Excluded(to)) = (&from, &to)
            && from >= to
        {
            return Ok(Scan::EMPTY);
        }
        let (mut entries, mut bytes) = (Vec::new(), 0);
        for entry in self.records.range((from, to)) {
            if entries.len() >= limit || bytes >= SCAN_BYTES {
                return Ok(Scan { entries, end: false });
            }
            let (key, record) = entry.into_inner().map_err(failed)?;
            let key = Key::from_bytes(&key)
                .ok_or_else(|| StoreError(format!("{key:?} is not the stored form of a key")))?;
            bytes += record.len();
            let record = decode(&key, &record)?;
            entries.push((key, record));
        }
        Ok(Scan { entries, end: true })
    }
}

impl Store for Disk {
    fn write_durably(&self, writes: &[Write]) -> Result<(), StoreError> {
        self.commit(|batch| {
            for write in writes {
                match write {
                    Write::Record(key, record) => {
                        batch.insert(&self.records, key.to_bytes(), record.to_bytes());
                    }
                    Write::Bytes(key, bytes) => {
                        batch.insert(&self.values, key.to_bytes(), bytes.as_ref());
                    }
                    Write::Forget(key) => batch.remove(&self.records, key.to_bytes()),
                    Write::ForgetBytes(key) => batch.remove(&self.values, key.to_bytes()),
                    Write::Meta { name, bytes: Some(bytes) } => {
                        batch.insert(&self.meta, name.as_str(), bytes.as_ref());
                    }
                    Write::Meta { name, bytes: None } => batch.remove(&self.meta, name.as_str()),
                }
            }
        })
    }

    fn mark(&self) -> Result<(), StoreError> {
        let mut commits = self.commits();
        let last = commits.last;
        if last > commits.mark.number() {
            commits.mark.write(last).map_err(failed)?;
        }
        Ok(())
    }

    fn meta(&self) -> Result<Vec<(String, Bytes)>, StoreError> {
        let entries = self.meta.iter().map(|entry| {
            let (name, bytes) = entry.into_inner().map_err(failed)?;
            let name = str::from_utf8(&name).map_err(failed)?.to_owned();
            Ok((name, Bytes::copy_from_slice(&bytes)))
        });
        let is_ours = |name: &str| name == OWNER || name == COMMIT;
        entries.filter(|entry| !matches!(entry, Ok((name, _)) if is_ours(name))).collect()
    }

    fn disk_bytes(&self) -> u64 {
        let keyspaces = [&self.records, &self.values, &self.meta];
        let tables = keyspaces.into_iter().map(|keyspace| keyspace.disk_space()).sum::<u64>();
        tables + self.database.write_buffer_size()
    }
}
