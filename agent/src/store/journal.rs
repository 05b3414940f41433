//! The journals of fjall, read before fjall does.
//!
//! fjall takes the first batch that it cannot parse for a torn tail and cuts the journal there, whatever
//! stands behind it; and the sum of a batch does not cover its head, with the number that orders it among
//! the others. Both would lose acknowledged writes without a word, or bring old values back. So every
//! batch of ours carries a [`Commit`], and a journal is used only if
//!
//! - every batch is whole, except what was torn at the very end, which no whole batch may follow:
//!   a batch is begun when the one before is synced;
//! - commits are numbered without gaps, over all journals;
//! - the order of each batch is the one that its commit says.
//!
//! ```text
//! batch   1, items (u32), order (u64); the items; 3, xxh3 of the items (u64), "FJL" 3
//! item    2, kind (u8), compression (u8), keyspace (u64), lengths of key (u16), value (u32), value as
//!         stored (u32); the key; the value
//! ```
//!
//! Numbers are little-endian. What cannot be told from a torn tail is damage of the last batch alone:
//! that is what the [`super::mark`] is for.

use std::io;
use std::path::{Path, PathBuf};

use sky_chord::StoreError;
use xxhash_rust::xxh3::xxh3_64;

/// The key of the item that says which commit a batch is.
pub(super) const COMMIT: &str = "agent.commit";

/// fjall counts its own housekeeping in the order of batches, too; never so much between two of them.
const LARGEST_STEP: u64 = 1 << 32;

/// Which commit of the store a batch is, and where it stands in the order of fjall.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Commit {
    /// Counts the commits of the store, from 1.
    pub(super) number: u64,
    /// The order that fjall would have given to a batch at a moment after the commit before.
    pub(super) order: u64,
}

impl Commit {
    pub(super) fn to_bytes(self) -> [u8; 16] {
        (u128::from(self.number) << 64 | u128::from(self.order)).to_be_bytes()
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let both = u128::from_be_bytes(bytes.try_into().ok()?);
        Some(Self { number: (both >> 64) as u64, order: both as u64 })
    }
}

/// A torn tail that is still to be cut off.
#[derive(Debug)]
pub(super) struct Torn {
    journal: PathBuf,
    length: u64,
}

impl Torn {
    /// Cuts it off, as fjall would.
    pub(super) fn cut(self) -> io::Result<()> {
        let file = std::fs::OpenOptions::new().write(true).open(self.journal)?;
        file.set_len(self.length)?;
        file.sync_all()
    }
}

/// What the journals hold.
#[derive(Debug, Default)]
pub(super) struct Journals {
    /// The last commit in them; none if there is no commit in them.
    pub(super) last: Option<Commit>,
    pub(super) torn: Option<Torn>,
}

/// Reads all journals in this folder.
///
/// # Errors
/// If one of them is damaged, or cannot be read.
pub(super) fn check(folder: &Path) -> Result<Journals, StoreError> {
    let failed = |error: io::Error| StoreError(format!("{}: {error}", folder.display()));
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let number = path.file_stem().and_then(|stem| stem.to_str()?.parse::<u64>().ok());
        if let Some(number) = number.filter(|_| path.extension().is_some_and(|end| end == "jnl")) {
            paths.push((number, path));
        }
    }
    paths.sort();
    let mut reading = Reading::default();
    let mut journals = Journals::default();
    while !paths.is_empty() {
        let (_, path) = paths.remove(0);
        let bytes = std::fs::read(&path).map_err(failed)?;
        let damaged = |at: usize, what: &str| {
            StoreError(format!("{} is damaged at byte {at}: {what}", path.display()))
        };
        let mut at = 0;
        while let Some(batch) = Batch::read(&bytes, at) {
            reading.take(&batch).map_err(|what| damaged(at, &what))?;
            at = batch.end;
        }
        let rest = bytes.get(at..).unwrap_or_default();
        let is_last = paths.is_empty();
        if !is_last && rest.iter().any(|byte| *byte != 0) {
            return Err(damaged(at, "what stands there is no batch, and a later journal exists"));
        }
        if let Some(follower) = reading.later_batch(&bytes, at + 1) {
            let what = format!("a batch cannot be read, and a whole one follows at {follower}");
            return Err(damaged(at, &what));
        }
        if is_last && !rest.is_empty() {
            journals.torn = Some(Torn { journal: path, length: at as u64 });
        }
    }
    journals.last = reading.last.and_then(|(_, commit)| commit);
    Ok(journals)
}

/// The batches read so far.
#[derive(Default)]
struct Reading {
    last: Option<(u64, Option<Commit>)>,
}

impl Reading {
    /// Takes the next batch, if it may follow.
    fn take(&mut self, batch: &Batch) -> Result<(), String> {
        let Batch { order, commit, .. } = *batch;
        if let Some(commit) = commit
            && !(commit.order..commit.order.saturating_add(LARGEST_STEP)).contains(&order)
        {
            return Err(format!("commit {} has the order {order}", commit.number));
        }
        if let Some((before, previous)) = self.last {
            if order <= before || commit.is_some_and(|commit| commit.order <= before) {
                return Err(format!("the order {order} follows {before}"));
            }
            match (previous, commit) {
                (Some(previous), None) => {
                    return Err(format!("no commit follows commit {}", previous.number));
                }
                (Some(previous), Some(commit)) if commit.number != previous.number + 1 => {
                    return Err(format!("commit {} follows {}", commit.number, previous.number));
                }
                _ => {}
            }
        }
        self.last = Some((order, commit));
        Ok(())
    }

    /// Where the first whole batch at or after this place begins that is later than all read so far: a
    /// value that looks like a batch is not meant.
    fn later_batch(&self, bytes: &[u8], from: usize) -> Option<usize> {
        let zeros = bytes.iter().rev().take_while(|byte| **byte == 0).count();
        let is_later = |batch: Batch| match self.last {
            Some((_, Some(last))) => batch.commit.is_some_and(|commit| commit.number > last.number),
            _ => true,
        };
        (from..bytes.len() - zeros)
            .find(|at| bytes[*at] == 1 && Batch::read(bytes, *at).is_some_and(is_later))
    }
}

/// A whole batch.
struct Batch {
    order: u64,
    commit: Option<Commit>,
    /// Where the next one begins.
    end: usize,
}

impl Batch {
    fn read(bytes: &[u8], at: usize) -> Option<Self> {
        let mut rest = Rest { bytes, at };
        if rest.number::<1>()? != 1 {
            return None;
        }
        let items = rest.number::<4>()?;
        let order = rest.number::<8>()?;
        let body = rest.at;
        let mut commit = None;
        for _ in 0..items {
            let head = rest.take(3)?;
            rest.number::<8>()?;
            let key = usize::try_from(rest.number::<2>()?).ok()?;
            let (length, stored) = (rest.number::<4>()?, rest.number::<4>()?);
            // None of ours is compressed, and none of them clears a keyspace.
            if head.first() != Some(&2) || head.last() != Some(&0) || length != stored {
                return None;
            }
            let key = rest.take(key)?;
            let value = rest.take(usize::try_from(length).ok()?)?;
            if key == COMMIT.as_bytes() {
                commit = Some(Commit::from_bytes(value)?);
            }
        }
        let body = bytes.get(body..rest.at)?;
        let is_end = rest.number::<1>()? == 3;
        let sum = rest.number::<8>()?;
        let is_whole = is_end && rest.take(4)? == b"FJL\x03" && sum == xxh3_64(body);
        is_whole.then_some(Self { order, commit, end: rest.at })
    }
}

/// What is still to be read of some bytes.
pub(super) struct Rest<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) at: usize,
}

impl<'a> Rest<'a> {
    pub(super) fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(length)?)?;
        self.at += length;
        Some(taken)
    }

    pub(super) fn number<const N: usize>(&mut self) -> Option<u64> {
        let bytes = self.take(N)?;
        Some(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }
}
