//! Backups: the keys of a ring with their values and media types, in one file that any ring can be filled
//! from. The file (numbers little-endian):
//!
//! ```text
//! file     "SKYBACK1"  frame(header)  frame(block)...  frame(trailer)
//! frame    kind u8  number u32  length u32  check [4]  body [length]  digest [32]
//!          check   the first bytes of the SHA-256 of kind, number and length
//!          digest  the SHA-256 of the digest of the frame before (none: zeros), kind, number, length, body
//! header   'H'  JSON: format, ring, ring_id, id (random), begun (seconds since 1970)
//! block    'B'  arc u8  place u16+text  count u32  record...  end...
//!          record  key u16+text  media type u16+text  value u32+bytes
//!          end     number of the record u32  seconds since 1970 u64; from format 2 on, for keys with a TTL
//! trailer  'T'  JSON: keys, bytes, blocks, content
//! ```
//!
//! The circle is read as sixteen arcs of equal length at once, an arc for each first digit of a key's
//! point, so that a backup and a restore keep all nodes of a ring busy. A block holds consecutive keys of
//! one arc. Its *place* is the cursor where the arc goes on, empty when the arc is done: an interrupted
//! backup is resumed from the last whole block of each arc. Since each frame's digest covers the one
//! before, a file that is cut, damaged or put together from others is told, and where.
//!
//! `content` is the SHA-256 over the sixteen digests of the arcs' records, in the order of arcs. It depends
//! on keys, media types and values only: two backups have the same exactly if they hold the same,
//! whichever ring they were made of. A file without a trailer is incomplete.

mod draft;
mod format;
#[cfg(test)]
#[path = "../../tests/fuzz/backup.rs"]
mod fuzz;
mod place;
mod read;
mod threads;
mod write;

pub(crate) use draft::{Arc, Draft};
pub(crate) use format::{ARCS, Block, Entry, FORMAT, Header, Trailer, arc_of};
pub(crate) use place::{Place, upload};
pub(crate) use read::{Damage, Frame, Reader};
pub(crate) use threads::{Feed, Part, Sink};
pub(crate) use write::Writer;
