//! How many commits are known to be on disk, written beside the store now and then.
//!
//! The last batch of a journal that cannot be read may have been torn by a crash before it was
//! acknowledged, or be damaged; the journal alone does not tell. A store that comes back with fewer
//! commits than the mark has lost acknowledged ones. The mark follows by a second or two while commits
//! come in, so that it costs one more sync a second; what was acknowledged after the last mark and is
//! damaged cannot be told from a torn tail.
//!
//! Two places in one file are written in turn, so that a torn write leaves the other.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use sha2::{Digest, Sha256};

/// Room for one of the two places: no disk tears less than a sector.
const PLACE: usize = 512;

/// The number with its sum.
const LENGTH: usize = 8 + 32;

/// The file with the mark.
#[derive(Debug)]
pub(super) struct Mark {
    file: File,
    owner: String,
    number: u64,
    /// Which place is written next.
    next: usize,
}

impl Mark {
    /// Makes the mark of a new store of this owner, in place of any other.
    pub(super) fn create(path: &Path, owner: &str) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(true).open(path)?;
        file.set_len(2 * PLACE as u64)?;
        let mut mark = Self { file, owner: owner.to_owned(), number: 0, next: 0 };
        mark.write(0)?;
        mark.write(0)?;
        mark.file.sync_all()?;
        Ok(mark)
    }

    /// Reads the mark of this owner's store. None if it is damaged or of another store.
    pub(super) fn open(path: &Path, owner: &str) -> io::Result<Option<Self>> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let mut bytes = [0; 2 * PLACE];
        match file.read_exact_at(&mut bytes, 0) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read?,
        }
        let numbers = bytes.chunks(PLACE).map(|place| {
            let number = u64::from_be_bytes(*place.first_chunk()?);
            (place.get(..LENGTH)? == with_sum(owner, number)).then_some(number)
        });
        let numbers: Vec<_> = numbers.collect();
        let Some(number) = numbers.iter().copied().flatten().max() else { return Ok(None) };
        let next = numbers.iter().position(|other| *other != Some(number)).unwrap_or_default();
        Ok(Some(Self { file, owner: owner.to_owned(), number, next }))
    }

    /// How many commits were on disk at least.
    pub(super) const fn number(&self) -> u64 {
        self.number
    }

    /// Notes durably that so many commits are on disk.
    pub(super) fn write(&mut self, number: u64) -> io::Result<()> {
        let place = (self.next * PLACE) as u64;
        self.file.write_all_at(&with_sum(&self.owner, number), place)?;
        self.file.sync_data()?;
        self.number = number;
        self.next = 1 - self.next;
        Ok(())
    }
}

fn with_sum(owner: &str, number: u64) -> [u8; LENGTH] {
    let number = number.to_be_bytes();
    let sum = Sha256::new().chain_update(owner).chain_update(number).finalize();
    let mut bytes = [0; LENGTH];
    bytes[..8].copy_from_slice(&number);
    bytes[8..].copy_from_slice(&sum);
    bytes
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn one_torn_place_leaves_the_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mark");
        let mut mark = Mark::create(&path, "me").unwrap();
        (1..=3).for_each(|number| mark.write(number).unwrap());
        let read = || Mark::open(&path, "me").unwrap().map(|mark| (mark.number, mark.next));
        let (number, next) = read().unwrap();
        assert_eq!(number, 3);
        assert!(Mark::open(&path, "another").unwrap().is_none());
        let bytes = std::fs::read(&path).unwrap();
        for at in 0..bytes.len() {
            let mut torn = bytes.clone();
            torn[at] ^= 1;
            std::fs::write(&path, &torn).unwrap();
            let (number, next_then) = read().unwrap();
            assert!(number >= 2, "{number} with byte {at} damaged");
            assert!(number == 2 || next == next_then, "the damaged place is written next");
        }
        std::fs::write(&path, vec![0; 2 * PLACE]).unwrap();
        assert!(read().is_none());
    }
}
