//! The records of an agent on disk.
//!
//! [`Directory`] guards the data directory and knows whose it is, [`Disk`] is the log-structured store in
//! it, the [`Committer`] thread makes writes durable, many with one fsync.

mod committer;
mod directory;
mod disk;
mod journal;
mod mark;
mod sums;

pub use committer::{Committer, Progress, Room};
pub use directory::{Directory, DirectoryError};
pub use disk::Disk;

use bytes::Bytes;
use sky_chord::{Records, StoreError, Write};

/// What the agent needs of a store, beside reading records.
pub trait Store: Records + Send + 'static {
    /// Makes all writes durable, in order and all or none. They can be read when this returns.
    ///
    /// # Errors
    /// If that cannot be promised. Nothing may be written afterwards.
    fn write_durably(&self, writes: &[Write]) -> Result<(), StoreError>;

    /// Notes, beside the store, how much of it is on disk, so that a later loss is noticed. Costs a sync
    /// if anything was written since the last time.
    ///
    /// # Errors
    /// If that cannot be written. What is stored is as safe as before.
    fn mark(&self) -> Result<(), StoreError>;

    /// All meta records, as [`Write::Meta`] left them.
    ///
    /// # Errors
    /// If the store cannot be read.
    fn meta(&self) -> Result<Vec<(String, Bytes)>, StoreError>;

    /// The approximate number of bytes taken up.
    fn disk_bytes(&self) -> u64;
}
