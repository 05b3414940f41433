//! The store on disk: two keyspaces of fjall, one journal.
//!
//! Keys are [`Key::to_bytes`], so that the order of bytes is the order of the circle. fjall checks the
//! sums of its blocks and journal batches; what still does not decode is reported, never passed over.

use std::ops::Bound;
use std::path::Path;

use bytes::Bytes;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use sky_chord::{Cursor, Id, Key, Record, Records, StoreError, Write};

use super::Store;

/// Memory for writes not yet in a table. Small: a flush then stalls writers only shortly, and a
/// restart has little of the journal to read.
const MEMTABLE_BYTES: u64 = 16 << 20;

/// Memory for blocks read.
const CACHE_BYTES: u64 = 32 << 20;

/// Journals above this size make the store flush what holds them back.
const JOURNAL_BYTES: u64 = 128 << 20;

/// The meta record that says whose store this is; not shown to the node.
const OWNER: &str = "agent.owner";

/// The log-structured store of one agent. Clones share it.
#[derive(Clone)]
pub struct Disk {
    database: Database,
    records: Keyspace,
    meta: Keyspace,
}

fn failed(error: impl std::fmt::Display) -> StoreError {
    StoreError(error.to_string())
}

impl Disk {
    /// Opens the store in this folder, or makes a new one.
    ///
    /// # Errors
    /// If it is damaged, of a format that is not understood, or in use.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        let database = Database::builder(folder)
            .cache_size(CACHE_BYTES)
            .max_journaling_size(JOURNAL_BYTES)
            .worker_threads(1)
            .open()
            .map_err(failed)?;
        let options = || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES);
        let records = database.keyspace("records", options).map_err(failed)?;
        let meta = database.keyspace("meta", options).map_err(failed)?;
        Ok(Self { database, records, meta })
    }

    /// Whose store this is, as [`Self::set_owner`] wrote it.
    pub(super) fn owner(&self) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.meta.get(OWNER).map_err(failed)?.map(|bytes| bytes.to_vec()))
    }

    /// Writes down, durably, whose store this is.
    pub(super) fn set_owner(&self, owner: &[u8]) -> Result<(), StoreError> {
        self.meta.insert(OWNER, owner).map_err(failed)?;
        self.database.persist(PersistMode::SyncAll).map_err(failed)
    }
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

    fn scan(
        &self,
        after: Option<&Cursor>,
        through: Id,
        limit: usize,
    ) -> Result<Vec<(Key, Record)>, StoreError> {
        let next = |point: Id| point.plus(Id::small(1)).as_bytes().to_vec();
        let from = match after {
            None => Bound::Unbounded,
            Some(Cursor::AfterKey(key)) => Bound::Excluded(key.to_bytes()),
            Some(Cursor::AfterPoint(Id::MAX)) => return Ok(Vec::new()),
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
            return Ok(Vec::new());
        }
        let page = self.records.range((from, to)).take(limit);
        page.map(|entry| {
            let (key, record) = entry.into_inner().map_err(failed)?;
            let key = Key::from_bytes(&key)
                .ok_or_else(|| StoreError(format!("{key:?} is not the stored form of a key")))?;
            let record = decode(&key, &record)?;
            Ok((key, record))
        })
        .collect()
    }
}

impl Store for Disk {
    fn write_durably(&self, writes: &[Write]) -> Result<(), StoreError> {
        let mut batch = self.database.batch().durability(Some(PersistMode::SyncData));
        for write in writes {
            match write {
                Write::Record(key, record) => {
                    batch.insert(&self.records, key.to_bytes(), record.to_bytes());
                }
                Write::Forget(key) => batch.remove(&self.records, key.to_bytes()),
                Write::Meta { name, bytes: Some(bytes) } => {
                    batch.insert(&self.meta, name.as_str(), bytes.as_ref());
                }
                Write::Meta { name, bytes: None } => batch.remove(&self.meta, name.as_str()),
            }
        }
        batch.commit().map_err(failed)
    }

    fn meta(&self) -> Result<Vec<(String, Bytes)>, StoreError> {
        let entries = self.meta.iter().map(|entry| {
            let (name, bytes) = entry.into_inner().map_err(failed)?;
            let name = str::from_utf8(&name).map_err(failed)?.to_owned();
            Ok((name, Bytes::copy_from_slice(&bytes)))
        });
        entries.filter(|entry| !matches!(entry, Ok((name, _)) if name == OWNER)).collect()
    }

    fn disk_bytes(&self) -> u64 {
        self.records.disk_space() + self.meta.disk_space() + self.database.write_buffer_size()
    }
}
