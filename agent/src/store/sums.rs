//! Sums in the files of fjall that fjall itself does not check when it opens them.
//!
//! Blocks of tables are checked whenever they are read. Not checked are the list of tables, where a
//! flipped bit makes a table vanish, and the length of the directory that ends each table, for which
//! memory is taken before its sum is looked at.
//!
//! ```text
//! keyspaces/*/current   number of the list of tables (u64), xxh3 of it (u128), 0
//! keyspaces/*/v<NUMBER> the list: sections and directory
//! keyspaces/*/tables/*  tables: sections and directory
//! directory             "TOC!", sections (u32): each its place (u64), length (u64), length of its name (u16)
//!                       and name; then "SFA!" 1 0, xxh3 of all that (u128), its place and length (u64)
//! section "tables"      levels (u8), in each runs (u8), in each tables (u32): each its number (u64) and
//!                       25 bytes more
//! ```

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use sky_chord::StoreError;
use xxhash_rust::xxh3::xxh3_128;

use super::journal::Rest;

/// Bytes behind the directory of a file.
const TRAILER: u64 = 38;

/// A directory longer than this is none: it names some ten sections.
const LONGEST_DIRECTORY: u64 = 64 << 10;

/// Checks the sums of all keyspaces of the store in this folder.
///
/// # Errors
/// If one is wrong or a file cannot be read.
pub(super) fn check(store: &Path) -> Result<(), StoreError> {
    for keyspace in entries(&store.join("keyspaces"))? {
        // Without its `current` file fjall would take it for one that was never finished, and remove it.
        if keyspace.is_dir() {
            check_keyspace(&keyspace)?;
        }
    }
    Ok(())
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let entries = std::fs::read_dir(folder).map_err(|error| unreadable(folder, &error))?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    paths.collect::<Result<_, _>>().map_err(|error| unreadable(folder, &error))
}

fn unreadable(path: &Path, error: &io::Error) -> StoreError {
    StoreError(format!("{} cannot be read: {error}", path.display()))
}

fn damaged(path: &Path) -> StoreError {
    StoreError(format!("{} is damaged: its sum is wrong", path.display()))
}

fn check_keyspace(keyspace: &Path) -> Result<(), StoreError> {
    let read = |path: &Path| std::fs::read(path).map_err(|error| unreadable(path, &error));
    let current = keyspace.join("current");
    let bytes = read(&current)?;
    let Some((number, sum)) = bytes.split_first_chunk().and_then(|(number, rest)| {
        let sum = rest.first_chunk().map(|sum| u128::from_le_bytes(*sum))?;
        (rest.len() == 17 && rest.ends_with(&[0])).then_some((u64::from_le_bytes(*number), sum))
    }) else {
        return Err(damaged(&current));
    };
    let list = keyspace.join(format!("v{number}"));
    let bytes = read(&list)?;
    if xxh3_128(&bytes) != sum {
        return Err(damaged(&list));
    }
    let directory = directory(&list).map_err(|error| unreadable(&list, &error))?;
    let tables = directory.and_then(|directory| tables(&bytes, &directory));
    // Tables that are not in the list were not finished, or are not needed any more.
    for table in tables.ok_or_else(|| damaged(&list))? {
        let table = keyspace.join("tables").join(table.to_string());
        match self::directory(&table) {
            Ok(Some(_)) => {}
            Ok(None) => return Err(damaged(&table)),
            Err(error) => return Err(unreadable(&table, &error)),
        }
    }
    Ok(())
}

/// The directory of a file. None if its sum is wrong.
fn directory(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let mut file = File::open(path)?;
    let Some(end) = file.metadata()?.len().checked_sub(TRAILER) else { return Ok(None) };
    let mut trailer = [0; TRAILER as usize];
    file.seek(SeekFrom::Start(end))?;
    file.read_exact(&mut trailer)?;
    let mut rest = Rest { bytes: &trailer, at: 0 };
    let mut parts = || {
        let head = rest.take(6)?;
        let sum = u128::from_le_bytes(rest.take(16)?.try_into().ok()?);
        (head == b"SFA!\x01\0").then_some((sum, rest.number::<8>()?, rest.number::<8>()?))
    };
    let Some((sum, place, length)) = parts() else { return Ok(None) };
    if length > LONGEST_DIRECTORY || place.checked_add(length) != Some(end) {
        return Ok(None);
    }
    let mut directory = Vec::new();
    file.seek(SeekFrom::Start(place))?;
    file.take(length).read_to_end(&mut directory)?;
    Ok((xxh3_128(&directory) == sum).then_some(directory))
}

/// The numbers of the tables in a list.
fn tables(list: &[u8], directory: &[u8]) -> Option<BTreeSet<u64>> {
    let mut rest = Rest { bytes: directory, at: 4 };
    let mut section = None;
    for _ in 0..rest.number::<4>()? {
        let place = rest.number::<8>()?;
        rest.number::<8>()?;
        let length = rest.number::<2>()?;
        if rest.take(usize::try_from(length).ok()?)? == b"tables" {
            section = Some(place);
        }
    }
    let mut rest = Rest { bytes: list, at: usize::try_from(section?).ok()? };
    let mut tables = BTreeSet::new();
    for _ in 0..rest.number::<1>()? {
        for _ in 0..rest.number::<1>()? {
            for _ in 0..rest.number::<4>()? {
                tables.insert(rest.number::<8>()?);
                rest.take(25)?;
            }
        }
    }
    Some(tables)
}
