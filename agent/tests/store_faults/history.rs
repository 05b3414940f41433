//! Stores with a known history, and the comparison of what a damaged copy shows with it.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use bytes::Bytes;
use sky_agent::store::{Directory, DirectoryError, Disk, Store};
use sky_chord::{Content, Id, Key, Record, Records, Register, StoreError, Value, Write};

use crate::image::{Image, memory};

/// What a store holds.
type State = (BTreeMap<Key, Record>, BTreeMap<String, Bytes>, BTreeMap<Key, Bytes>);

/// What was committed, and the state after each commit (the first is before all of them).
pub(crate) struct History {
    states: Vec<State>,
}

/// What a copy turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// It is not opened, for this reason.
    Refused(String),
    /// It is opened, but something in it cannot be read: this is said.
    Unreadable(String),
    /// It holds exactly the first so many commits.
    Commits(usize),
    /// It holds what was never there.
    Wrong(String),
    Panicked(String),
}

impl Seen {
    /// Whether damage was told.
    pub(crate) const fn is_told(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::Unreadable(_))
    }
}

pub(crate) fn record(bytes: impl Into<Bytes>) -> Record {
    let value = Value { content_type: "x".into(), bytes: bytes.into(), ttl: None };
    Record {
        register: Register { value: Some(Content::Whole(value)), ..Register::ABSENT },
        ..Record::EMPTY
    }
}

/// A record whose value is kept apart from it, and the bytes of that.
fn outlined(number: usize) -> (Record, Bytes) {
    let bytes = Bytes::from(format!("apart {number} ").repeat(40));
    let mut record = record(bytes.clone());
    record.register = record.register.outlined(0);
    (record, bytes)
}

/// The writes of one commit: a new key, one that every commit replaces, and at times a larger value, one that
/// is kept apart, a removed key or a meta record.
pub(crate) fn commit(number: usize) -> Vec<Write> {
    let key = |i: usize| Key::new(&format!("key {i}"));
    let mut writes = vec![
        Write::Record(key(number), record(format!("value {number}").repeat(number % 7))),
        Write::Record(Key::new("every"), record(format!("commit {number}"))),
    ];
    if number.is_multiple_of(11) {
        let noise = (0..700_u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_be_bytes());
        writes.push(Write::Record(key(1000 + number), record(noise.collect::<Vec<_>>())));
    }
    if number.is_multiple_of(4) {
        let outline = outlined(number);
        writes.push(Write::Record(key(2000 + number), outline.0));
        writes.push(Write::Bytes(key(2000 + number), outline.1));
    }
    if number % 12 == 11 {
        writes.push(Write::Record(key(2000 + number - 3), record("short again")));
        writes.push(Write::ForgetBytes(key(2000 + number - 3)));
    }
    if number % 5 == 4 {
        writes.push(Write::Forget(key(number - 2)));
    }
    if number.is_multiple_of(6) {
        let bytes = Some(format!("meta {number}").into());
        writes.push(Write::Meta { name: format!("name {}", number % 4), bytes });
    }
    writes
}

impl History {
    /// A history of so many commits.
    pub(crate) fn of(commits: usize) -> Self {
        Self::from((1..=commits).map(commit))
    }

    /// A history of these commits.
    pub(crate) fn from(commits: impl Iterator<Item = Vec<Write>>) -> Self {
        let mut states = vec![State::default()];
        for commit in commits {
            let mut state = states.last().unwrap().clone();
            for write in commit {
                match write {
                    Write::Record(key, record) => drop(state.0.insert(key, record)),
                    Write::Forget(key) => drop(state.0.remove(&key)),
                    Write::Bytes(key, bytes) => drop(state.2.insert(key, bytes)),
                    Write::ForgetBytes(key) => drop(state.2.remove(&key)),
                    Write::Meta { name, bytes: Some(bytes) } => drop(state.1.insert(name, bytes)),
                    Write::Meta { name, bytes: None } => drop(state.1.remove(&name)),
                }
            }
            states.push(state);
        }
        Self { states }
    }

    /// The number of commits.
    pub(crate) fn len(&self) -> usize {
        self.states.len() - 1
    }

    /// Opens a copy of a store and looks at everything in it.
    pub(crate) fn look(&self, image: &Image) -> Seen {
        let folder = image.write();
        let looking = AssertUnwindSafe(|| self.look_inside(folder.path()));
        catch_unwind(looking).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Seen::Panicked(text.unwrap_or_default())
        })
    }

    fn look_inside(&self, folder: &Path) -> Seen {
        let disk = match open(folder) {
            Ok((_directory, disk)) => disk,
            Err(error) => {
                assert!(!error.hint().is_empty());
                return Seen::Refused(error.to_string());
            }
        };
        let state = match all(&disk) {
            Ok(state) => state,
            Err(error) => return Seen::Unreadable(error.0),
        };
        let Some(commits) = self.states.iter().position(|known| *known == state) else {
            let every = state.0.get(&Key::new("every"));
            return Seen::Wrong(format!("{} records, {every:?}", state.0.len()));
        };
        // One by one, because that takes another way through the files than a scan.
        for key in self.states.iter().flat_map(|state| state.0.keys()) {
            match disk.get(key) {
                Ok(record) if record.as_ref() == state.0.get(key) => {}
                Ok(_) => return Seen::Wrong(format!("{key:?} is another one in a scan")),
                Err(error) => return Seen::Unreadable(error.0),
            }
        }
        Seen::Commits(commits)
    }
}

/// All that the node of this store would see.
fn all(disk: &Disk) -> Result<State, StoreError> {
    let (mut records, mut after) = (BTreeMap::new(), None);
    loop {
        let page = disk.scan(after.as_ref(), Id::MAX, usize::MAX)?;
        after = page.next();
        records.extend(page.entries);
        if after.is_none() {
            break;
        }
    }
    let mut apart = BTreeMap::new();
    for key in records.keys() {
        if let Some(bytes) = disk.bytes(key)? {
            apart.insert(key.clone(), bytes);
        }
    }
    Ok((records, disk.meta()?.into_iter().collect(), apart))
}

pub(crate) fn open(folder: &Path) -> Result<(Directory, Disk), DirectoryError> {
    Directory::open(folder, None, Id::small(7))
}

/// Whether to take all cases and not a sample (`SKY_STORE_FAULTS=all`): that takes hours.
pub(crate) fn is_thorough() -> bool {
    std::env::var("SKY_STORE_FAULTS").as_deref() == Ok("all")
}

/// Numbers that are the same each time (splitmix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) % limit
    }
}

/// A store of so many commits, all in its journal; copied while it is in use, as a crash would leave it.
pub(crate) fn in_journal(commits: usize) -> Image {
    let folder = memory();
    let (_directory, disk) = open(folder.path()).unwrap();
    (1..=commits).for_each(|number| disk.write_durably(&commit(number)).unwrap());
    Image::of(folder.path())
}

/// The same, with the first commits in tables, and all of them marked as synced or none.
pub(crate) fn in_tables_and_journal(in_tables: usize, commits: usize, marked: bool) -> Image {
    let folder = memory();
    {
        let (_directory, disk) = open(folder.path()).unwrap();
        (1..=in_tables).for_each(|number| disk.write_durably(&commit(number)).unwrap());
    }
    {
        let database = fjall::Database::builder(folder.path().join("store")).open().unwrap();
        for name in ["records", "values", "meta"] {
            let keyspace = database.keyspace(name, Default::default).unwrap();
            keyspace.rotate_memtable_and_wait().unwrap();
        }
    }
    let (_directory, disk) = open(folder.path()).unwrap();
    (in_tables + 1..=commits).for_each(|number| disk.write_durably(&commit(number)).unwrap());
    if marked {
        disk.mark().unwrap();
    }
    Image::of(folder.path())
}
