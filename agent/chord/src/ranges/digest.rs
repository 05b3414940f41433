//! Digests of what this node holds, in a tree over the circle (Merkle 1987), so that members find what they
//! do not hold alike without naming every key.
//!
//! A prefix of n bytes names the arc of all points that begin so. The digest of an arc is the sum of the
//! fingerprints of its records: it does not depend on their order, and a write changes it by a difference.
//! Sums for all prefixes of two bytes are kept in memory; shorter ones are added up, longer ones counted
//! from the records when they are asked for.

use std::collections::BTreeMap;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::stored::Stored;
use crate::Id;
use crate::config::{Ballot, Config};
use crate::event::{Records, StoreError};
use crate::record::{Key, Record};
use crate::request::Cursor;
use crate::value::Content;

/// Arcs whose sums are in memory: one for each value of the first two bytes of a point.
pub(super) const LEAVES: usize = 1 << 16;
/// The longest prefix that is asked about; what differs below it is compared key by key.
pub(super) const DEEPEST: usize = 2;

/// The sums of all leaves.
pub(super) struct Digests(Vec<u64>);

impl Default for Digests {
    fn default() -> Self {
        Self(vec![0; LEAVES])
    }
}

impl Digests {
    /// A record was replaced.
    pub(super) fn replace(&mut self, key: &Key, old: &Record, new: &Record) {
        if old.accepted == new.accepted {
            // Only the promise is another one.
            return;
        }
        let sum = &mut self.0[leaf_of(key.hash())];
        *sum = sum.wrapping_sub(fingerprint(key, old)).wrapping_add(fingerprint(key, new));
    }
}

/// A number that two records share only if they are the same for every reader: the key, the ballot it was
/// accepted under, and what was accepted. Promises are left out. 0 if nothing was accepted.
pub(super) fn fingerprint(key: &Key, record: &Record) -> u64 {
    if record.accepted == Ballot::ZERO {
        return 0;
    }
    let register = &record.register;
    let value = register.value.as_ref();
    let content = value.map_or(0, Content::digest);
    let rest = (
        key.hash(),
        record.accepted,
        register.version,
        value.is_some(),
        value.and_then(Content::ttl).map(|ttl| ttl.whole_ms),
        &register.done,
        register.forgotten,
    );
    xxh3_64_with_seed(&postcard::to_stdvec(&rest).unwrap_or_default(), content).max(1)
}

fn add_up(sums: impl Iterator<Item = u64>) -> u64 {
    sums.fold(0, u64::wrapping_add)
}

fn leaf_of(point: Id) -> usize {
    let bytes = point.as_bytes();
    usize::from(bytes[0]) << 8 | usize::from(bytes[1])
}

/// The first and the last point of the arc named by a prefix.
pub(super) fn arc(prefix: &[u8]) -> (Id, Id) {
    let (mut first, mut last) = ([0; 20], [0xff; 20]);
    for (at, byte) in prefix.iter().take(20).enumerate() {
        (first[at], last[at]) = (*byte, *byte);
    }
    (Id::from_bytes(first), Id::from_bytes(last))
}

/// The place in the list of all keys before which the arc begins.
pub(super) fn before(first: Id) -> Option<Cursor> {
    (first != Id::MIN).then(|| Cursor::AfterPoint(first.plus(Id::MAX)))
}

/// How much of an arc lies in a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Share {
    None,
    Part,
    Whole,
}

fn share(config: &Config, prefix: &[u8]) -> Share {
    let (first, last) = arc(prefix);
    let is_cut = |point: Id| first <= point && point < last;
    if is_cut(config.lo) || is_cut(config.hi) {
        Share::Part
    } else if config.covers(last) {
        Share::Whole
    } else {
        Share::None
    }
}

impl Stored {
    /// The digests of the arcs one byte longer than this prefix, of what lies in the range; those of empty
    /// arcs are left out.
    pub(super) fn digests(
        &self,
        records: &impl Records,
        config: &Config,
        prefix: &[u8],
    ) -> Result<Vec<(u8, u64)>, StoreError> {
        let mut sums = BTreeMap::new();
        match *prefix {
            [] => {
                for byte in 0..=u8::MAX {
                    let first = usize::from(byte) << 8;
                    let sum = match share(config, &[byte]) {
                        Share::None => 0,
                        Share::Whole => add_up(self.digests.0[first..first + 256].iter().copied()),
                        Share::Part => {
                            let leaves = self.digests(records, config, &[byte])?;
                            add_up(leaves.into_iter().map(|(_, sum)| sum))
                        }
                    };
                    sums.insert(byte, sum);
                }
            }
            [byte] => {
                for leaf in 0..=u8::MAX {
                    sums.insert(leaf, self.leaf(records, config, [byte, leaf])?);
                }
            }
            _ => self.each_in(records, prefix, |key, record| {
                if config.covers(key.hash()) {
                    let byte = key.hash().as_bytes()[prefix.len().min(19)];
                    let sum: &mut u64 = sums.entry(byte).or_default();
                    *sum = sum.wrapping_add(fingerprint(key, record));
                }
            })?,
        }
        Ok(sums.into_iter().filter(|(_, sum)| *sum != 0).collect())
    }

    fn leaf(
        &self,
        records: &impl Records,
        config: &Config,
        prefix: [u8; 2],
    ) -> Result<u64, StoreError> {
        match share(config, &prefix) {
            Share::None => Ok(0),
            Share::Whole => Ok(self.digests.0[usize::from(u16::from_be_bytes(prefix))]),
            Share::Part => {
                let mut sum = 0u64;
                self.each_in(records, &prefix, |key, record| {
                    if config.covers(key.hash()) {
                        sum = sum.wrapping_add(fingerprint(key, record));
                    }
                })?;
                Ok(sum)
            }
        }
    }

    /// Whether the records of a leaf can be read and are those that were written, as far as its digest tells.
    pub(super) fn is_sound(&self, records: &impl Records, leaf: u16) -> Result<bool, StoreError> {
        let (mut sum, mut apart) = (0u64, Vec::new());
        self.each_in(records, &leaf.to_be_bytes(), |key, record| {
            sum = sum.wrapping_add(fingerprint(key, record));
            if record.register.apart().is_some() {
                apart.push(key.clone());
            }
        })?;
        for key in apart {
            self.whole(records, &key)?;
        }
        Ok(sum == self.digests.0[usize::from(leaf)])
    }

    fn each_in(
        &self,
        records: &impl Records,
        prefix: &[u8],
        see: impl FnMut(&Key, &Record),
    ) -> Result<(), StoreError> {
        let (first, last) = arc(prefix);
        self.each(records, before(first), last, see)
    }
}
