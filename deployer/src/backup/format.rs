//! The parts of a backup, and their bytes.

use std::ops::Range;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use sky_chord::Id;

/// The first bytes of every backup; the last one is the version of the format.
pub(super) const MAGIC: &[u8; 8] = b"SKYBACK1";
/// The version in a header.
pub(crate) const FORMAT: u32 = 2;
/// Into how many arcs the circle is cut.
pub(crate) const ARCS: usize = 16;
/// The bytes of a frame before its body.
pub(super) const HEAD: usize = 13;
/// The bytes of a digest.
pub(super) const DIGEST: usize = 32;

pub(super) const HEADER: u8 = b'H';
pub(super) const BLOCK: u8 = b'B';
pub(super) const TRAILER: u8 = b'T';

/// Which backup it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Header {
    /// The version of the format.
    pub(crate) format: u32,
    /// The name of the ring.
    pub(crate) ring: String,
    /// The id of the ring, 32 hexadecimal digits.
    pub(crate) ring_id: String,
    /// Drawn at random for each backup.
    pub(crate) id: String,
    /// When it was begun, in seconds since 1 January 1970.
    pub(crate) begun: u64,
}

/// Consecutive keys of an arc.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Block {
    /// The arc, from 0.
    pub(crate) arc: usize,
    /// The cursor where the arc goes on; none at its end.
    pub(crate) next: Option<String>,
    /// The keys.
    pub(crate) entries: Vec<Entry>,
}

/// A key with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The key.
    pub(crate) key: String,
    /// The media type of the value.
    pub(crate) content_type: String,
    /// The value.
    pub(crate) value: Bytes,
    /// When the time is over for which it is kept, in seconds since 1 January 1970; none if it is for ever.
    pub(crate) expires: Option<u64>,
}

impl Entry {
    /// Whether both hold the same, however long.
    pub(crate) fn holds_the_same(&self, other: &Self) -> bool {
        let content = |entry: &Self| (entry.content_type.clone(), entry.value.clone());
        content(self) == content(other)
    }

    /// How many seconds are left at this moment, in seconds since 1970; none if it is kept for ever.
    pub(crate) fn left(&self, now: u64) -> Option<u64> {
        self.expires.map(|expires| expires.saturating_sub(now))
    }
}

/// The end of a complete backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Trailer {
    /// How many keys it holds.
    pub(crate) keys: u64,
    /// The bytes of their values.
    pub(crate) bytes: u64,
    /// How many blocks.
    pub(crate) blocks: u64,
    /// The digest of keys, media types and values, 64 hexadecimal digits.
    pub(crate) content: String,
    /// The parts (lo, hi] of the circle of which it has nothing, because nobody kept them any more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) left_out: Vec<(Id, Id)>,
}

/// The arc that a point lies in.
pub(crate) fn arc_of(point: &Id) -> usize {
    usize::from(point.as_bytes()[0] >> 4)
}

/// What a backup holds, counted while it is written or read.
#[derive(Clone)]
pub(super) struct Tally {
    keys: u64,
    bytes: u64,
    blocks: u64,
    arcs: [Sha256; ARCS],
}

impl Default for Tally {
    fn default() -> Self {
        Self { keys: 0, bytes: 0, blocks: 0, arcs: std::array::from_fn(|_| Sha256::new()) }
    }
}

impl Tally {
    /// Counts a block with the bytes of its records.
    pub(super) fn add(&mut self, block: &Block, records: &[u8]) {
        self.blocks += 1;
        self.keys += block.entries.len() as u64;
        self.bytes += block.entries.iter().map(|entry| entry.value.len() as u64).sum::<u64>();
        if let Some(arc) = self.arcs.get_mut(block.arc) {
            arc.update(records);
        }
    }

    /// What a trailer says of all this.
    pub(super) fn trailer(&self) -> Trailer {
        let mut all = Sha256::new();
        for arc in &self.arcs {
            all.update(arc.clone().finalize());
        }
        let content = all.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        let left_out = Vec::new();
        Trailer { keys: self.keys, bytes: self.bytes, blocks: self.blocks, content, left_out }
    }
}

/// The first bytes of a frame.
pub(super) fn head(kind: u8, number: u32, length: u32) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    head[0] = kind;
    head[1..5].copy_from_slice(&number.to_le_bytes());
    head[5..9].copy_from_slice(&length.to_le_bytes());
    let check = Sha256::digest(&head[..9]);
    head[9..].copy_from_slice(&check[..4]);
    head
}

/// The digest of a frame.
pub(super) fn digest(before: &[u8; DIGEST], head: &[u8; HEAD], body: &[u8]) -> [u8; DIGEST] {
    let mut sha = Sha256::new();
    sha.update(before);
    sha.update(&head[..9]);
    sha.update(body);
    sha.finalize().into()
}

/// The body of a block's frame, and where its records are. None if a part of it is too long.
pub(super) fn encode(block: &Block) -> Option<(Vec<u8>, Range<usize>)> {
    let mut body = vec![u8::try_from(block.arc).ok()?];
    put_text(&mut body, block.next.as_deref().unwrap_or_default())?;
    body.extend(u32::try_from(block.entries.len()).ok()?.to_le_bytes());
    let records = body.len();
    for entry in &block.entries {
        put_text(&mut body, &entry.key)?;
        put_text(&mut body, &entry.content_type)?;
        body.extend(u32::try_from(entry.value.len()).ok()?.to_le_bytes());
        body.extend_from_slice(&entry.value);
    }
    let records = records..body.len();
    for (number, entry) in (0u32..).zip(&block.entries) {
        if let Some(expires) = entry.expires {
            body.extend(number.to_le_bytes());
            body.extend(expires.to_le_bytes());
        }
    }
    Some((body, records))
}

fn put_text(body: &mut Vec<u8>, text: &str) -> Option<()> {
    body.extend(u16::try_from(text.len()).ok()?.to_le_bytes());
    body.extend_from_slice(text.as_bytes());
    Some(())
}

/// Reads what [`encode`] wrote, and where the records are; none if it is something else.
pub(super) fn decode(body: Bytes) -> Option<(Block, Range<usize>)> {
    let mut rest = Parts { body, at: 0 };
    let arc = usize::from(rest.array::<1>()?[0]);
    let next = Some(rest.text()?).filter(|next| !next.is_empty());
    let count = u32::from_le_bytes(rest.array()?);
    let records = rest.at;
    let mut entries = Vec::new();
    for _ in 0..count {
        let (key, content_type) = (rest.text()?, rest.text()?);
        let length = u32::from_le_bytes(rest.array()?) as usize;
        entries.push(Entry { key, content_type, value: rest.take(length)?, expires: None });
    }
    let records = records..rest.at;
    let mut last = None;
    while rest.at < rest.body.len() {
        let number = u32::from_le_bytes(rest.array()?);
        // Each once, in their order.
        if last.replace(number).is_some_and(|last| last >= number) {
            return None;
        }
        entries.get_mut(number as usize)?.expires = Some(u64::from_le_bytes(rest.array()?));
    }
    (arc < ARCS).then_some((Block { arc, next, entries }, records))
}

struct Parts {
    body: Bytes,
    at: usize,
}

impl Parts {
    fn take(&mut self, length: usize) -> Option<Bytes> {
        let end = self.at.checked_add(length).filter(|end| *end <= self.body.len())?;
        let part = self.body.slice(self.at..end);
        self.at = end;
        Some(part)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.as_ref().try_into().ok()
    }

    fn text(&mut self) -> Option<String> {
        let length = u16::from_le_bytes(self.array()?);
        let part = self.take(usize::from(length))?;
        str::from_utf8(&part).ok().map(str::to_owned)
    }
}
