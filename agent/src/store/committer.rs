//! The thread that makes writes durable: whatever came in while one fsync was under way shares the next.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sky_chord::{StoreError, Write};
use tokio::sync::watch;

use super::Store;
use crate::metrics::Counters;

/// How often it is noted how much is on disk, while anything is written.
const MARK_EVERY: Duration = Duration::from_secs(1);

/// Writes joined in one commit at most, and bytes of their values, so that the first does not wait for too
/// much else.
const BATCH: usize = 1024;
const BATCH_BYTES: usize = 8 << 20;

/// What a write takes of memory beside its value, about.
const WRITE_BYTES: usize = 256;

/// What the store may take of the disk for a while to write tables anew, beside those that they replace:
/// a level of 256 MiB and what has gathered above it.
const COMPACTION_BYTES: u64 = 512 << 20;

/// How far the committer has got.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Every write up to this one is on disk; none at the start.
    pub durable: Option<u64>,
    /// The first write that failed and why; nothing is written after it.
    pub failed: Option<(u64, String)>,
}

/// Whether the disk has room, judged by the bytes that an ordinary user may still take.
#[derive(Debug)]
pub struct Room {
    folder: PathBuf,
    reserve: u64,
    full: AtomicBool,
}

impl Room {
    /// Watches the disk of this folder; it counts as full with fewer bytes left than `reserve`, by default
    /// [`COMPACTION_BYTES`] or a quarter of the disk.
    pub fn new(folder: &Path, reserve: Option<u64>) -> Self {
        let quarter =
            || rustix::fs::statvfs(folder).map_or(u64::MAX, |disk| bytes(disk.f_blocks, &disk) / 4);
        let reserve = reserve.unwrap_or_else(|| COMPACTION_BYTES.min(quarter()));
        Self { folder: folder.to_owned(), reserve, full: AtomicBool::new(false) }
    }

    /// Whether the disk is full now. A full one has room again when a quarter of the reserve more is
    /// free, so that the answer does not flicker.
    pub fn is_full(&self) -> bool {
        let Ok(disk) = rustix::fs::statvfs(&self.folder) else {
            return self.full.load(Relaxed);
        };
        let free = bytes(disk.f_bavail, &disk);
        let margin = if self.full.load(Relaxed) { self.reserve / 4 } else { 0 };
        let full = free < self.reserve.saturating_add(margin);
        self.full.store(full, Relaxed);
        full
    }
}

fn bytes(blocks: u64, disk: &rustix::fs::StatVfs) -> u64 {
    blocks.saturating_mul(disk.f_frsize)
}

/// Hands writes to the thread. Dropping it writes what is left and waits for the thread to end.
#[derive(Debug)]
pub struct Committer {
    writes: Option<mpsc::Sender<(u64, Vec<Write>)>>,
    progress: watch::Receiver<Progress>,
    full: watch::Receiver<bool>,
    /// Bytes of memory that waiting writes take, about.
    waiting: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Committer {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the system has no thread to give.
    pub fn start<S: Store>(store: S, room: Room, counters: Arc<Counters>) -> std::io::Result<Self> {
        let (writes, queue) = mpsc::channel::<(u64, Vec<Write>)>();
        let (report, progress) = watch::channel(Progress::default());
        let (report_full, full) = watch::channel(room.is_full());
        let waiting = Arc::new(AtomicUsize::new(0));
        let written = Arc::clone(&waiting);
        let work = move || {
            let watch_room = || {
                report_full
                    .send_if_modified(|full| std::mem::replace(full, room.is_full()) != *full)
            };
            let mut marked = Instant::now();
            loop {
                if marked.elapsed() >= MARK_EVERY {
                    mark(&store);
                    marked = Instant::now();
                }
                // A full disk is looked at while nothing is written, too: that is how it gets room again.
                let first = match queue.recv_timeout(MARK_EVERY) {
                    Ok(first) => Some(first),
                    Err(mpsc::RecvTimeoutError::Timeout) => None,
                    Err(mpsc::RecvTimeoutError::Disconnected) => return mark(&store),
                };
                watch_room();
                let Some((first, mut batch)) = first else { continue };
                let (mut last, mut bytes) = (first, value_bytes(&batch));
                while batch.len() < BATCH
                    && bytes < BATCH_BYTES
                    && let Ok((seq, writes)) = queue.try_recv()
                {
                    last = seq;
                    bytes += value_bytes(&writes);
                    batch.extend(writes);
                }
                if let Err(error) = store.write_durably(&batch) {
                    report.send_modify(|progress| progress.failed = Some((first, error.0)));
                    return;
                }
                written.fetch_sub(weight(&batch), Relaxed);
                counters.commits.fetch_add(1, Relaxed);
                counters.writes.fetch_add(batch.len() as u64, Relaxed);
                report.send_modify(|progress| progress.durable = Some(last));
            }
        };
        let thread = std::thread::Builder::new().name("sky:committer".into()).spawn(work)?;
        Ok(Self { writes: Some(writes), progress, full, waiting, thread: Some(thread) })
    }

    /// Queues writes; [`Progress::durable`] will reach `seq`.
    pub fn submit(&self, seq: u64, writes: Vec<Write>) {
        self.waiting.fetch_add(weight(&writes), Relaxed);
        if let Some(queue) = &self.writes {
            // It fails only after a failed write, which was reported.
            queue.send((seq, writes)).ok();
        }
    }

    /// How far the thread has got, as it changes.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// Bytes of memory that writes take which are not on disk yet, about.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Relaxed)
    }

    /// Whether the disk is full, as it changes.
    pub fn disk_full(&self) -> watch::Receiver<bool> {
        self.full.clone()
    }
}

fn weight(writes: &[Write]) -> usize {
    value_bytes(writes) + WRITE_BYTES * writes.len()
}

fn value_bytes(writes: &[Write]) -> usize {
    let of = |write: &Write| match write {
        Write::Record(_, record) => record.register.bytes_here(),
        Write::Bytes(_, bytes) => bytes.len(),
        Write::Forget(_) | Write::ForgetBytes(_) | Write::Meta { .. } => 0,
    };
    writes.iter().map(of).sum()
}

fn mark(store: &impl Store) {
    if let Err(StoreError(error)) = store.mark() {
        tracing::warn!(error, "It cannot be noted how much is on disk: {error}.");
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        self.writes = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was printed where it happened.
            thread.join().ok();
        }
    }
}
