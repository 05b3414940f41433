//! The one task that owns the [`Node`], and the handle by which everyone else speaks to it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use sky_chord::{
    Answer, Event, Load, Node, Notice, Output, Peer, Phase, Reply, Request, RingId, Start,
    StartError, Ticket, Time, View,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior};

use crate::config::VERSION;
use crate::fair::{Client, Share, Shares, Taker, Turns};
use crate::logging;
use crate::metrics::{Counters, Window};
use crate::notices::Notices;
use crate::rpc::Rpc;
use crate::store::{Committer, Progress, Store};
use crate::watches::Watches;

/// Requests that may wait or be worked on; one client alone gets half of them.
const PLACES: usize = 8192;

/// Requests the node works on at once. The others wait, so that clients can be served in turn.
const UNDER_WAY: usize = 512;

/// Bytes that may wait for the disk before anything more is taken in.
const UNWRITTEN: usize = 256 << 20;

/// A value of more bytes is a large one.
const LARGE: usize = 1 << 20;

/// Events handled in a row before connections get their turn.
const BURST: usize = 256;

/// Why the node did not answer: try again, there or elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Busy {
    /// Nothing was done.
    #[error("too many requests of this client are waiting, or the agent is stopping")]
    Refused,
    /// The agent stopped with the request under way: a change may or may not be applied.
    #[error("the agent stopped before it had an answer")]
    Stopped,
}

/// Speaks to the node of this agent. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    me: Peer,
    /// On whose behalf.
    client: Client,
    /// What the node works on, so many at once.
    requests: Arc<Turns<Asked>>,
    /// What it answers at once.
    questions: Arc<Turns<Asked>>,
    places: Arc<Shares>,
    notices: Arc<Notices>,
    watches: Arc<Watches>,
    counters: Arc<Counters>,
    trouble: watch::Receiver<Option<String>>,
}

impl Handle {
    /// Who this agent is.
    pub const fn me(&self) -> &Peer {
        &self.me
    }

    /// The same, on behalf of this client.
    pub fn of(&self, client: Client) -> Self {
        Self { client, ..self.clone() }
    }

    /// On whose behalf requests are made.
    pub const fn client(&self) -> Client {
        self.client
    }

    /// Asks the node for something.
    ///
    /// # Errors
    /// [`Busy`] if the client has its share of places already or the agent is stopping.
    pub async fn request(&self, request: Request) -> Result<Reply, Busy> {
        let queue = if is_answered_at_once(&request) { &self.questions } else { &self.requests };
        let (answer, reply) = oneshot::channel();
        let place = self.places.take(self.client, 1);
        let asked = place.map(|place| Asked { request, asker: Asking { answer, _place: place } });
        if !asked.is_some_and(|asked| queue.push(self.client, asked)) {
            self.counters.overloaded.fetch_add(1, Relaxed);
            return Err(Busy::Refused);
        }
        reply.await.map_err(|_| Busy::Stopped)
    }

    /// The latest notices of the node.
    pub fn notices(&self) -> Arc<Notices> {
        Arc::clone(&self.notices)
    }

    /// The watches of clients.
    pub fn watches(&self) -> &Watches {
        &self.watches
    }

    /// One operation of a client is finished, successfully or not.
    pub fn record(&self, latency: Duration) {
        self.counters.record(latency);
    }

    /// Running totals, for `/metrics`.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// What keeps the agent from getting into a ring, as a sentence; none if nothing is known.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.borrow().clone()
    }
}

/// What a driver is made from.
pub struct Parts<S> {
    /// Who the node is and how it starts.
    pub start: Start,
    /// Where it reads.
    pub store: S,
    /// Where its writes go.
    pub committer: Committer,
    /// Where its messages go.
    pub rpc: Rpc,
    /// What peers say.
    pub network: mpsc::Receiver<Event>,
    /// What is counted.
    pub counters: Arc<Counters>,
    /// A ring to found if the store knows none; none: never found one.
    pub found: Option<RingId>,
    /// What keeps the agent from getting into a ring.
    pub trouble: watch::Receiver<Option<String>>,
}

/// Owns the node: hands it one event after the other, and does what it says.
pub struct Driver<S: Store> {
    node: Node<S>,
    clock: Instant,
    deadline: Option<Time>,
    committer: Committer,
    rpc: Rpc,
    network: mpsc::Receiver<Event>,
    requests: Taker<Asked>,
    questions: Taker<Asked>,
    askers: BTreeMap<Ticket, Asker>,
    last_ticket: u64,
    notices: Arc<Notices>,
    watches: Arc<Watches>,
    counters: Arc<Counters>,
    window: Window,
    found: Option<RingId>,
    joined: watch::Sender<bool>,
    load: Load,
    /// Why the store cannot be used any more.
    broken: Option<String>,
    /// Whether a client was answered with a large value.
    answered_with_large: bool,
    /// Events that the driver itself made while it carried out the outputs of another.
    next: VecDeque<Event>,
}

/// A request that waits.
#[derive(Debug)]
struct Asked {
    request: Request,
    asker: Asking,
}

/// Whether the node has the answer ready, so that it need not wait until others are answered: how it is going
/// is asked when much is stuck.
const fn is_answered_at_once(request: &Request) -> bool {
    match request {
        Request::View
        | Request::Transfers
        | Request::Init { .. }
        | Request::Leave
        | Request::WatchRoom { .. }
        | Request::Unwatch { .. }
        | Request::Force { .. } => true,
        Request::Operate { .. }
        | Request::Lookup { .. }
        | Request::Views
        | Request::LocalKeys { .. }
        | Request::Watch { .. } => false,
    }
}

/// Who waits for the reply to a request, with the place that it takes.
#[derive(Debug)]
struct Asking {
    answer: oneshot::Sender<Reply>,
    _place: Share,
}

/// Who waits for a reply.
enum Asker {
    Client(Asking),
    /// The driver itself, to learn of ring and phase.
    Driver,
}

impl<S: Store + Clone> Driver<S> {
    /// Starts the node. [`Self::run`] brings it to life.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn new(parts: Parts<S>) -> Result<(Handle, Self), StartError> {
        let Parts { start, store, committer, rpc, network, counters, found, trouble } = parts;
        let (requests, waiting) = Turns::new();
        let (questions, at_once) = Turns::new();
        let notices = Arc::new(Notices::new(start.me.node.incarnation, start.boot));
        let watches = Arc::new(Watches::new(start.me.node.incarnation, start.boot));
        let handle = Handle {
            me: start.me.clone(),
            client: Client::default(),
            requests,
            questions,
            places: Shares::new(PLACES),
            notices: Arc::clone(&notices),
            watches: Arc::clone(&watches),
            counters: Arc::clone(&counters),
            trouble,
        };
        let clock = Instant::now();
        let driver = Self {
            node: Node::start(Time::default(), start, store)?,
            clock,
            deadline: None,
            committer,
            rpc,
            network,
            requests: waiting,
            questions: at_once,
            askers: BTreeMap::new(),
            last_ticket: 0,
            notices,
            watches,
            counters,
            window: Window::default(),
            found,
            joined: watch::Sender::new(false),
            load: Load { version: VERSION.to_owned(), ..Load::default() },
            broken: None,
            answered_with_large: false,
            next: VecDeque::new(),
        };
        Ok((handle, driver))
    }

    /// Becomes true when the node is a member of its ring.
    pub fn joined(&self) -> watch::Receiver<bool> {
        self.joined.subscribe()
    }

    /// Runs the node until `stopping` holds true; then what it wrote is made durable.
    ///
    /// # Errors
    /// Why the store failed. A node that cannot read or write its data must not seem to be alive: the
    /// others would wait for it.
    pub async fn run(mut self, mut stopping: watch::Receiver<bool>) -> Result<(), String> {
        let mut progress = self.committer.progress();
        let mut full = self.committer.disk_full();
        let mut each_second = tokio::time::interval(Duration::from_secs(1));
        each_second.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.carry_out();
        self.look_at_myself();
        // It may be full from the start.
        full.mark_changed();
        loop {
            let deadline = self.deadline;
            let tick = async {
                match deadline {
                    Some(due) => {
                        let due = Duration::from_micros(due.as_micros());
                        tokio::time::sleep_until(self.clock + due).await;
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = crate::until(&mut stopping) => return Ok(()),
                Some(event) = self.network.recv(), if self.keeps_up() => self.handle(event),
                asked = self.questions.next() => self.take(asked),
                asked = self.requests.next(), if self.has_room() => self.take(asked),
                Ok(()) = progress.changed() => {
                    let progress = progress.borrow_and_update().clone();
                    self.persisted(progress);
                }
                Ok(()) = full.changed() => {
                    self.load.disk_full = *full.borrow_and_update();
                    self.handle(Event::Measured(self.load.clone()));
                }
                _ = each_second.tick() => {
                    if !*self.joined.borrow() {
                        self.look_at_myself();
                    }
                    self.measure();
                    for watch in self.watches.expire(std::time::Instant::now()) {
                        self.ask(Request::Unwatch { watch }, Asker::Driver);
                    }
                }
                () = tick => self.handle(Event::Tick),
            }
            if let Some(reason) = self.broken.take() {
                return Err(reason);
            }
            if !self.handle_what_is_ready() {
                // What was queued for peers and disk goes out before more is taken in.
                tokio::task::yield_now().await;
            }
        }
    }

    /// Handles what waits already. False if there was more than a burst, or a large value for a client: who
    /// gets it decides whether there is memory for it, before the next one is read.
    fn handle_what_is_ready(&mut self) -> bool {
        for _ in 0..BURST {
            if self.keeps_up()
                && let Ok(event) = self.network.try_recv()
            {
                self.handle(event);
            } else if let Some(asked) = self.questions.try_next() {
                self.take(asked);
            } else if self.has_room()
                && let Some(asked) = self.requests.try_next()
            {
                self.take(asked);
            } else {
                return true;
            }
            if std::mem::take(&mut self.answered_with_large) {
                return false;
            }
        }
        false
    }

    fn has_room(&self) -> bool {
        self.askers.len() < UNDER_WAY && self.keeps_up()
    }

    /// Whether the disk keeps up with what is written. Peers that have a majority without this node would fill
    /// its memory; until there is room, what they send waits, and to them it is as slow as its disk.
    fn keeps_up(&self) -> bool {
        self.committer.waiting() < UNWRITTEN
    }

    fn take(&mut self, Asked { request, asker }: Asked) {
        // Who went away while it waited does not want it any more. What is said of watches holds all the same.
        if !asker.answer.is_closed() || !matches!(request, Request::Operate { .. }) {
            self.ask(request, Asker::Client(asker));
        }
    }

    fn ask(&mut self, request: Request, asker: Asker) {
        let event = self.question(request, asker);
        self.handle(event);
    }

    fn question(&mut self, request: Request, asker: Asker) -> Event {
        self.last_ticket += 1;
        let ticket = Ticket(self.last_ticket);
        self.askers.insert(ticket, asker);
        Event::Request { ticket, request }
    }

    fn handle(&mut self, event: Event) {
        self.next.push_back(event);
        while let Some(event) = self.next.pop_front() {
            self.node.handle(Time::default() + self.clock.elapsed(), event);
            self.carry_out();
        }
    }

    /// Does what the node says, until it has nothing more to say.
    fn carry_out(&mut self) {
        loop {
            match self.node.poll() {
                Output::Send { to, message } => {
                    if !self.rpc.send(&to, &message) {
                        self.next.push_back(Event::Unreachable { node: to.node });
                    }
                }
                Output::Persist { seq, writes } => self.committer.submit(seq, writes),
                Output::Reply { ticket, reply } => self.answer(ticket, reply),
                Output::Told { watch, told } => self.watches.tell(watch, told),
                Output::Notify(notice) => self.tell(notice),
                Output::Wait { until } => {
                    self.deadline = until;
                    return;
                }
            }
        }
    }

    fn answer(&mut self, ticket: Ticket, reply: Reply) {
        if let Reply::Watching(Ok(watch)) = reply {
            // What it tells may come before anybody has read its name.
            self.watches.begin(watch);
        }
        if let Reply::Operated(Ok(Answer::Found { value, .. })) = &reply {
            self.answered_with_large |= value.bytes.len() > LARGE;
        }
        match self.askers.remove(&ticket) {
            // A client that went away needs no answer.
            Some(Asker::Client(asker)) => drop(asker.answer.send(reply)),
            Some(Asker::Driver) => self.learn(reply),
            None => {}
        }
    }

    fn tell(&mut self, notice: Notice) {
        logging::tell(&notice);
        if let Notice::StoreBroken { reason } = &notice {
            self.broken = Some(reason.clone());
        }
        let is_in_a_ring = matches!(notice, Notice::Joined { .. });
        self.notices.push(notice);
        if is_in_a_ring {
            self.look_at_myself();
        }
    }

    /// Asks the node how far it has got: the answer is [`Self::learn`]ed.
    fn look_at_myself(&mut self) {
        let question = self.question(Request::View, Asker::Driver);
        self.next.push_back(question);
    }

    /// Takes in the answer to a question of the driver itself.
    fn learn(&mut self, reply: Reply) {
        let Reply::View(view) = reply else { return };
        let View { ring, phase, .. } = *view;
        let ring = ring.and_then(|ring| u128::from_str_radix(&ring, 16).ok()).map(RingId);
        match (ring, self.found.take()) {
            (Some(ring), _) => self.rpc.set_ring(ring),
            (None, Some(ring)) => {
                let question = self.question(Request::Init { ring }, Asker::Driver);
                self.next.push_back(question);
            }
            (None, None) => {}
        }
        if phase == Phase::Up {
            self.joined.send_replace(true);
        }
    }

    fn persisted(&mut self, progress: Progress) {
        if let Some(seq) = progress.durable {
            self.handle(Event::Persisted { seq });
        }
        if let Some((seq, reason)) = progress.failed {
            self.handle(Event::PersistFailed { seq, reason });
        }
    }

    fn measure(&mut self) {
        let (operations_per_second, p99_ms) = self.window.measure(&self.counters);
        self.load.operations_per_second = operations_per_second;
        self.load.p99_ms = p99_ms;
        self.load.uptime_s = self.clock.elapsed().as_secs();
        self.load.disk_bytes = self.node.records().disk_bytes();
        self.handle(Event::Measured(self.load.clone()));
    }
}
