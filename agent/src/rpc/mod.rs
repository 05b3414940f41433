//! Messages between agents.
//!
//! Each agent opens one connection to each node it has something to say to ([`link`]), another one for
//! messages with large values ([`Lane`]), and reads what comes in on those that others opened
//! ([`inbound`]). What was queued while a write was under way goes out with the next one. Messages may be
//! lost, and that is said ([`Event::Unreachable`]); they never reach another node than the one that is meant.

mod contact;
mod frame;
#[cfg(test)]
#[path = "../../tests/fuzz/peers.rs"]
mod fuzz;
mod hello;
mod inbound;
mod link;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::net::sockopt;
use sky_chord::{Event, Message, NodeId, Peer, RingId};
use tokio::net::{TcpStream, lookup_host};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::timeout;

use crate::config::Secret;
use crate::metrics::Counters;
use frame::{FrameRef, Frames};
use hello::{Hello, HelloError, Refusal};
use link::Outbox;

/// How long the other side's system may take to answer a connection. What was lost is asked for again by
/// a new attempt: the system's own repetitions come after 1, 3 and 7 s, too far apart to find out that a
/// way is open again.
const CONNECT: Duration = Duration::from_secs(1);

/// How long the hellos on a connection may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// A value of more bytes than this goes the way of large ones.
const LARGE: usize = 64 << 10;

/// How many KiB of frames with large values are read at once, of all peers together.
const LARGE_KIB: usize = 192 << 10;

/// Different complaints that are remembered, so that each is logged once.
const COMPLAINTS: usize = 1000;

/// Whether this is the first byte of a peer connection, and not of HTTP.
pub fn is_peer(first: u8) -> bool {
    first == hello::MAGIC[0]
}

/// The connection that a message takes. What everyone waits for, such as a sign of life, must not wait until
/// a large value has gone through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Lane {
    Ordinary,
    Large,
}

impl Lane {
    fn of(message: &Message) -> Self {
        if message.body.value_bytes() > LARGE { Self::Large } else { Self::Ordinary }
    }

    /// Bytes that may wait for one node. A node that slow is as good as unreachable, unless it takes its time for
    /// large values.
    const fn longest_queue(self) -> usize {
        match self {
            Self::Ordinary => 64 << 20,
            Self::Large => 4 * sky_api::MAX_VALUE_BYTES,
        }
    }

    /// How long the other side's system may be silent about what was sent to it. On an ordinary connection a
    /// new one is made sooner than the repetitions of an old one, which come ever further apart, find a way
    /// that is open again. Large values may have to wait until there is memory for them.
    const fn unanswered(self) -> Duration {
        match self {
            Self::Ordinary => Duration::from_secs(2),
            Self::Large => Duration::from_secs(30),
        }
    }
}

/// The peers of one agent. Clones share them.
#[derive(Debug, Clone)]
pub struct Rpc(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    me: Peer,
    secret: Option<Secret>,
    ring: watch::Sender<Option<RingId>>,
    events: mpsc::Sender<Event>,
    counters: Arc<Counters>,
    links: Mutex<BTreeMap<(NodeId, Lane), Arc<Outbox>>>,
    /// What is left of [`LARGE_KIB`].
    large: Semaphore,
    complaints: Mutex<BTreeSet<(String, String)>>,
}

impl Rpc {
    /// No connections yet. What peers say comes out of `events`; so does what becomes of connections.
    pub fn new(
        me: Peer,
        secret: Option<Secret>,
        events: mpsc::Sender<Event>,
        counters: Arc<Counters>,
    ) -> Self {
        Self(Arc::new(Shared {
            me,
            secret,
            ring: watch::channel(None).0,
            events,
            counters,
            links: Mutex::default(),
            large: Semaphore::new(LARGE_KIB),
            complaints: Mutex::default(),
        }))
    }

    /// The ring this agent belongs to from now on; agents of other rings are refused.
    pub fn set_ring(&self, ring: RingId) {
        self.0.ring.send_if_modified(|known| known.replace(ring) != Some(ring));
    }

    /// Queues a message. False if the queue to that node is full: the message is dropped then. One with a
    /// large value may be dropped without a word: that says nothing of the node.
    pub fn send(&self, to: &Peer, message: &Message) -> bool {
        let lane = Lane::of(message);
        let outbox = Outbox::of(&self.0, to, lane);
        let sent = outbox.push(&FrameRef::Message(message));
        let counter = match sent {
            link::Push::Queued => &self.0.counters.messages_sent,
            link::Push::Down | link::Push::Full => &self.0.counters.messages_dropped,
        };
        counter.fetch_add(1, Relaxed);
        sent != link::Push::Full || lane == Lane::Large
    }

    /// Serves a connection that a peer opened, until it ends.
    pub async fn serve(self, stream: TcpStream) {
        inbound::serve(&self.0, stream).await;
    }

    /// Asks at these addresses (`host:port`) who is there, again and again, until `joined` is true.
    /// `trouble` says what is in the way.
    pub async fn join(
        self,
        addresses: Vec<String>,
        joined: watch::Receiver<bool>,
        trouble: watch::Sender<Option<String>>,
    ) {
        contact::join(&self.0, addresses, joined, trouble).await;
    }
}

impl Shared {
    fn hello(&self, meant: Option<NodeId>) -> Result<Hello, HelloError> {
        Hello::new(self.me.clone(), *self.ring.borrow(), meant)
    }

    /// Connects and says hello to whoever answers at this address, or to nobody but `meant`.
    async fn connect(
        &self,
        address: &str,
        meant: Option<NodeId>,
        lane: Lane,
    ) -> Result<(Frames<TcpStream>, Hello), HelloError> {
        let meeting = async {
            let stream = reach(address).await?;
            prepare(&stream, lane)?;
            let mut frames = Frames::new(stream);
            let mine = self.hello(meant)?;
            let theirs = hello::connect(&mut frames, mine, self.secret.as_ref()).await?;
            Ok((frames, theirs))
        };
        timeout(PATIENCE, meeting).await.unwrap_or(Err(HelloError::Slow))
    }

    /// Whether an agent that belongs to the ring `theirs` may be spoken to.
    fn check_ring(&self, theirs: Option<RingId>) -> Result<(), Refusal> {
        hello::check_ring(*self.ring.borrow(), theirs)
    }

    fn links(&self) -> MutexGuard<'_, BTreeMap<(NodeId, Lane), Arc<Outbox>>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Logs a problem with a peer, once for each cause until all is well with it again.
    fn complain(&self, peer: &str, problem: &str) {
        let mut complaints = self.complaints.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = complaints.len() < COMPLAINTS
            && complaints.insert((peer.to_owned(), problem.to_owned()));
        if is_new {
            tracing::warn!(peer, "Peer {peer} cannot be spoken to: {problem}.");
        } else {
            tracing::debug!(peer, "Peer {peer} still cannot be spoken to: {problem}.");
        }
    }

    fn all_is_well(&self, peer: &str) {
        let mut complaints = self.complaints.lock().unwrap_or_else(PoisonError::into_inner);
        complaints.retain(|(complained, _)| complained != peer);
    }
}

/// A connection to the first of a name's addresses that answers.
async fn reach(address: &str) -> std::io::Result<TcpStream> {
    let mut last = None;
    for found in lookup_host(address).await? {
        match timeout(CONNECT, TcpStream::connect(found)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = Some(error),
            Err(_) => last = Some(std::io::ErrorKind::TimedOut.into()),
        }
    }
    Err(last.unwrap_or_else(|| std::io::Error::other("the name has no address")))
}

/// Small messages go out at once, and a peer whose machine is gone is noticed within seconds.
fn prepare(stream: &TcpStream, lane: Lane) -> std::io::Result<()> {
    let unanswered = lane.unanswered();
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, unanswered)?;
    sockopt::set_tcp_keepintvl(stream, unanswered)?;
    #[cfg(target_os = "linux")]
    sockopt::set_tcp_user_timeout(stream, u32::try_from(unanswered.as_millis()).unwrap_or(2000))?;
    Ok(())
}
