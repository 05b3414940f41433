//! Connections that peers opened: a hello, then their messages.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use sky_chord::Event;
use tokio::net::TcpStream;
use tokio::sync::SemaphorePermit;
use tokio::time::timeout;

use super::frame::{self, Frame, FrameError, Frames};
use super::hello::{self, HelloError, Refusal};
use super::{Lane, PATIENCE, Shared, prepare};

pub(super) async fn serve(shared: &Arc<Shared>, stream: TcpStream) {
    let address = stream.peer_addr().map_or_else(|_| "?".to_owned(), |address| address.to_string());
    let meeting = async {
        prepare(&stream, Lane::Ordinary)?;
        let mut frames = Frames::new(stream);
        let theirs =
            hello::accept(&mut frames, shared.hello(None)?, shared.secret.as_ref()).await?;
        Ok((frames, theirs))
    };
    let (mut frames, theirs) =
        match timeout(PATIENCE, meeting).await.unwrap_or(Err(HelloError::Slow)) {
            Ok(met) => met,
            Err(error) => {
                shared.counters.peers_refused.fetch_add(1, Relaxed);
                refuse(shared, &address, &error);
                return;
            }
        };
    let from = theirs.peer;
    tracing::debug!(peer = ?from, address = %from.address, "A peer connected.");
    for lane in [Lane::Ordinary, Lane::Large] {
        if let Some(outbox) = shared.links().get(&(from.node, lane)) {
            outbox.wake();
        }
    }
    let mut their_ring = theirs.ring;
    let mut ring = shared.ring.subscribe();
    ring.mark_changed();
    loop {
        let frame = tokio::select! {
            biased;
            Ok(()) = ring.changed() => None,
            read = read(shared, &mut frames) => Some(read),
        };
        match frame {
            None => {}
            Some(Ok((Frame::Ring(ring), _))) => their_ring = Some(ring),
            Some(Ok((Frame::Message(message), _room))) => {
                shared.counters.messages_received.fetch_add(1, Relaxed);
                let event = Event::Receive { from: from.clone(), message };
                if shared.events.send(event).await.is_err() {
                    return;
                }
                continue;
            }
            Some(Err(FrameError::Io(error))) => {
                tracing::debug!(peer = ?from, address = %from.address, %error, "A peer left.");
                return;
            }
            Some(Err(error)) => return shared.complain(&from.address, &error.to_string()),
        }
        if let Err(refusal) = shared.check_ring(their_ring) {
            return shared.complain(&from.address, &refusal.to_string());
        }
    }
}

/// A frame of more bytes than this waits for room. Those of the ordinary way are shorter, with a page of keys
/// at the most: a sign of life behind one must not wait for large values of other peers.
const ROOMY: usize = 2 << 20;

/// The next frame; if it is a large one, when there is room for it in memory.
async fn read<'a>(
    shared: &'a Shared,
    frames: &mut Frames<TcpStream>,
) -> Result<(Frame, Option<SemaphorePermit<'a>>), FrameError> {
    let length = frames.length(frame::LONGEST).await?;
    if length <= ROOMY {
        return Ok((frames.next(frame::LONGEST).await?, None));
    }
    let room = shared.large.acquire_many((length >> 10) as u32).await.ok();
    // Who stops amid a frame must not keep the room for ever.
    let patience = PATIENCE + sky_chord::patience(length) * 2;
    let late = || FrameError::Io(std::io::ErrorKind::TimedOut.into());
    let frame = timeout(patience, frames.next(frame::LONGEST)).await;
    Ok((frame.unwrap_or_else(|_| Err(late()))?, room))
}

/// What came to nothing before the peer was known is named by the machine it came from: its port is
/// another one each time.
fn refuse(shared: &Shared, address: &str, error: &HelloError) {
    match error {
        HelloError::Refused(Refusal::NotMeant(_)) | HelloError::Io(_) => {
            tracing::debug!(address, %error, "A hello came to nothing.");
        }
        HelloError::NotAnAgent | HelloError::Slow => {
            tracing::debug!(address, %error, "A connection is closed: {error}.");
        }
        error => {
            let machine = address.rsplit_once(':').map_or(address, |(machine, _)| machine);
            shared.complain(machine, &error.to_string());
        }
    }
}
