//! The way to one node: a queue of frames, and the task that connects and writes them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use sky_chord::{Event, Peer};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::frame::{Buffer, FrameRef, Frames};
use super::hello::HelloError;
use super::{Lane, Shared};

/// A connection that nothing was said on for so long is closed.
const IDLE: Duration = Duration::from_secs(120);

/// How long to wait after a failed connection, doubled each time, between these.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Push {
    Queued,
    /// The node cannot be reached at the moment; that was said already.
    Down,
    /// The node is too slow.
    Full,
}

/// The queue to one node.
#[derive(Debug)]
pub(super) struct Outbox {
    peer: Peer,
    lane: Lane,
    queue: Mutex<Queue>,
    /// Something is in the queue.
    ready: Notify,
    /// The peer was heard of: it is worth trying again.
    wake: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    frames: Buffer,
    /// Between two attempts: old messages must not pile up.
    is_down: bool,
    /// The task has ended, or the node moved: use another outbox.
    is_closed: bool,
}

impl Outbox {
    /// The outbox of this peer for such messages; with a new task if there is none.
    pub(super) fn of(shared: &Arc<Shared>, peer: &Peer, lane: Lane) -> Arc<Self> {
        let mut links = shared.links();
        if let Some(outbox) = links.get(&(peer.node, lane)) {
            if outbox.peer.address == peer.address && !outbox.queue().is_closed {
                return Arc::clone(outbox);
            }
            outbox.close();
        }
        let outbox = Arc::new(Self {
            peer: peer.clone(),
            lane,
            queue: Mutex::default(),
            ready: Notify::new(),
            wake: Notify::new(),
        });
        links.insert((peer.node, lane), Arc::clone(&outbox));
        tokio::spawn(run(Arc::downgrade(shared), Arc::clone(&outbox)));
        outbox
    }

    pub(super) fn push(&self, frame: &FrameRef<'_>) -> Push {
        let mut queue = self.queue();
        if queue.is_down {
            return Push::Down;
        }
        if queue.frames.len() > self.lane.longest_queue() {
            return Push::Full;
        }
        if let Err(error) = queue.frames.append_frame(frame) {
            tracing::error!(peer = ?self.peer, %error, "A message cannot be sent.");
            return Push::Full;
        }
        self.ready.notify_one();
        Push::Queued
    }

    /// The peer was heard of: do not wait any longer before the next attempt.
    pub(super) fn wake(&self) {
        self.wake.notify_waiters();
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        self.queue().is_closed = true;
        self.ready.notify_one();
        self.wake();
    }

    /// Closes the outbox if nothing is queued.
    fn close_if_empty(&self) -> bool {
        let mut queue = self.queue();
        queue.is_closed |= queue.frames.is_empty();
        queue.is_closed
    }
}

/// How a connection ended.
enum End {
    /// Nothing was said for long, or the outbox was closed.
    Done,
    Broken(HelloError),
}

async fn run(shared: Weak<Shared>, outbox: Arc<Outbox>) {
    let mut backoff = BACKOFF.0;
    loop {
        if timeout(IDLE, outbox.ready.notified()).await.is_err() && outbox.close_if_empty() {
            return;
        }
        let Some(shared) = shared.upgrade() else { return };
        if outbox.queue().is_closed {
            return;
        }
        let peer = &outbox.peer;
        let error = match shared.connect(&peer.address, Some(peer.node), outbox.lane).await {
            Ok((frames, theirs)) => {
                shared.all_is_well(&peer.address);
                backoff = BACKOFF.0;
                match write(&shared, &outbox, frames, theirs.ring).await {
                    End::Done => return,
                    End::Broken(error) => error,
                }
            }
            Err(error) => error,
        };
        {
            let mut queue = outbox.queue();
            queue.frames = Buffer::default();
            queue.is_down = true;
        }
        // Nodes come and go: only what will not pass by itself is worth a warning.
        match error {
            HelloError::Io(_) | HelloError::Slow => {
                tracing::debug!(?peer, address = %peer.address, %error, "A peer is unreachable.");
            }
            error => shared.complain(&peer.address, &error.to_string()),
        }
        // Whether the node can be reached shows on the ordinary connection.
        if outbox.lane == Lane::Ordinary
            && shared.events.send(Event::Unreachable { node: peer.node }).await.is_err()
        {
            return;
        }
        drop(shared);
        // A timeout is the ordinary end; being woken is the shorter one.
        timeout(backoff, outbox.wake.notified()).await.ok();
        backoff = (backoff * 2).min(BACKOFF.1);
        outbox.queue().is_down = false;
    }
}

async fn write(
    shared: &Shared,
    outbox: &Outbox,
    mut frames: Frames<TcpStream>,
    their_ring: Option<sky_chord::RingId>,
) -> End {
    let mut ring = shared.ring.subscribe();
    let (mut reader, mut writer) = frames.stream().split();
    let mut buffer = Buffer::default();
    let mut incoming = [0];
    // Messages, and perhaps the ring, came while the hellos were exchanged.
    ring.mark_changed();
    outbox.ready.notify_one();
    loop {
        if !buffer.is_empty()
            && let Err(error) = buffer.write_to(&mut writer).await
        {
            return End::Broken(error.into());
        }
        tokio::select! {
            biased;
            Ok(()) = ring.changed() => {
                if let Err(refusal) = shared.check_ring(their_ring) {
                    return End::Broken(refusal.into());
                }
                if let Some(ring) = *ring.borrow_and_update()
                    && let Err(error) = buffer.append_frame(&FrameRef::Ring(ring))
                {
                    return End::Broken(error.into());
                }
            }
            closed = reader.read(&mut incoming) => {
                // The peer says nothing on this connection: it can only have ended.
                let ended = || std::io::Error::from(std::io::ErrorKind::ConnectionReset);
                return End::Broken(closed.err().unwrap_or_else(ended).into());
            }
            ready = timeout(IDLE, outbox.ready.notified()) => {
                if ready.is_err() && outbox.close_if_empty() {
                    return End::Done;
                }
                let mut queue = outbox.queue();
                if queue.is_closed {
                    return End::Done;
                }
                // The emptied buffer becomes the queue: no allocation for a steady stream.
                std::mem::swap(&mut queue.frames, &mut buffer);
                drop(queue);
            }
        }
    }
}
