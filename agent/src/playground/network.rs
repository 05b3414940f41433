//! Whole nodes in one process: a clock that goes from event to event, and messages that take a while
//! and reach whoever is there.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use sky_chord::{
    Cursor, Event, Fingers, Id, Key, Message, Node, NodeId, Notice, Output, Peer, Phase, Record,
    Records, Reply, Request, RingId, Scan, Settings, Space, Start, StoreError, Ticket, Time,
    Verdict, View, check,
};

use crate::http::dot;

/// How long a message takes, also to where nobody is.
const LATENCY: Duration = Duration::from_millis(2);
const RING: RingId = RingId(1);
/// Where all nodes are.
const ADDRESS: &str = "playground";

/// The store of a node that keeps no keys; its own pointers die with it, as nodes are not started again.
struct NoKeys;

impl Records for NoKeys {
    fn bytes(&self, _: &Key) -> Result<Option<Bytes>, StoreError> {
        Ok(None)
    }

    fn get(&self, _: &Key) -> Result<Option<Record>, StoreError> {
        Ok(None)
    }

    fn scan(&self, _: Option<&Cursor>, _: Id, _: usize) -> Result<Scan<Record>, StoreError> {
        Ok(Scan::EMPTY)
    }
}

struct Place {
    peer: Peer,
    node: Node<NoKeys>,
    /// When it wants to be woken.
    due: Option<Time>,
}

/// Something that a node told.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) at: Time,
    pub(crate) node: NodeId,
    pub(crate) notice: Notice,
}

/// Nodes, and what is under way between them.
pub(crate) struct Network {
    now: Time,
    settings: Settings,
    seed: u64,
    places: BTreeMap<NodeId, Place>,
    under_way: BTreeMap<(Time, u64), (Peer, Peer, Message)>,
    /// How many messages were sent, nodes started and requests made.
    count: u64,
    replies: BTreeMap<Ticket, Reply>,
    told: Vec<Told>,
}

impl Network {
    /// Nobody yet. The seed decides at what times nodes act.
    pub(crate) fn new(settings: Settings, seed: u64) -> Self {
        Self {
            now: Time::default(),
            settings,
            seed,
            places: BTreeMap::new(),
            under_way: BTreeMap::new(),
            count: 0,
            replies: BTreeMap::new(),
            told: Vec::new(),
        }
    }

    pub(crate) const fn now(&self) -> Time {
        self.now
    }

    pub(crate) const fn space(&self) -> Space {
        self.settings.space
    }

    /// The nodes that are there, in the order of the circle.
    pub(crate) fn peers(&self) -> Vec<Peer> {
        self.places.values().map(|place| place.peer.clone()).collect()
    }

    /// The node at a position.
    pub(crate) fn at(&self, position: Id) -> Option<NodeId> {
        self.places.keys().find(|node| node.position == position).copied()
    }

    /// What all nodes report, in the order of the circle.
    pub(crate) fn views(&mut self) -> Vec<View> {
        self.places.values_mut().map(|place| place.node.view()).collect()
    }

    /// What nodes told since the last time.
    pub(crate) fn take_told(&mut self) -> Vec<Told> {
        std::mem::take(&mut self.told)
    }

    /// Starts a node. The first one founds the ring; others ask `contact`, or somebody.
    ///
    /// # Errors
    /// What the node says if it cannot start.
    pub(crate) fn add(&mut self, position: Id) -> Result<Option<Peer>, String> {
        self.count += 1;
        let node = NodeId { position, incarnation: self.count };
        let peer = Peer { node, address: ADDRESS.into() };
        let start = Start {
            me: peer.clone(),
            boot: 1,
            settings: self.settings.clone(),
            meta: Vec::new(),
            seed: self.seed ^ self.count,
            wall: self.now.as_micros(),
        };
        let started = Node::start(self.now, start, NoKeys).map_err(|error| error.to_string())?;
        let mut members = self.places.values();
        let contact = members.find(|place| place.node.phase() == Phase::Up);
        let contact = contact.map(|place| place.peer.clone());
        self.places.insert(node, Place { peer, node: started, due: None });
        let event = match &contact {
            Some(peer) => Event::Contact { peer: peer.clone(), ring: Some(RING) },
            None => Event::Request { ticket: Ticket(0), request: Request::Init { ring: RING } },
        };
        self.handle(node, event);
        Ok(contact)
    }

    /// A node falls silent for good.
    pub(crate) fn fail(&mut self, node: NodeId) {
        self.places.remove(&node);
    }

    /// A node is told to hand over and leave. It is gone once it has.
    pub(crate) fn leave(&mut self, node: NodeId) {
        self.handle(node, Event::Request { ticket: Ticket(0), request: Request::Leave });
    }

    /// Asks a node something, and lets time pass until it answers, or for some seconds.
    pub(crate) fn ask(&mut self, node: NodeId, request: Request) -> Option<Reply> {
        self.count += 1;
        let ticket = Ticket(self.count);
        self.handle(node, Event::Request { ticket, request });
        let end = self.now + Duration::from_secs(10);
        while !self.replies.contains_key(&ticket) && self.step(end) {}
        self.replies.remove(&ticket)
    }

    /// Lets one round pass: in it, each node looks at its pointers and at one finger.
    pub(crate) fn round(&mut self) {
        let end = self.now + self.settings.stabilize_every;
        while self.step(end) {}
        self.now = end;
    }

    /// Whether nodes are on their way out.
    pub(crate) fn is_anybody_leaving(&self) -> bool {
        self.places.values().any(|place| place.node.phase() == Phase::Leaving)
    }

    /// The ring for Graphviz, with the fingers of one node.
    pub(crate) fn dot(&mut self, chosen: NodeId) -> String {
        let views = self.views();
        let me = views.iter().find(|view| view.me.node == chosen).map(|view| view.me.clone());
        let nodes: Vec<_> = views.into_iter().map(|view| (view.me.clone(), Some(view))).collect();
        let graph = me.map(|me| dot::digraph(&me, &nodes)).unwrap_or_default();
        graph.replace(&format!("\\n{ADDRESS}"), "")
    }

    /// Whether the ring is right, and whether all fingers are.
    pub(crate) fn verdict(&mut self) -> Verdict {
        let views = self.views();
        let peers: Vec<Peer> = views.iter().map(|view| view.me.clone()).collect();
        let mut wrong = Vec::new();
        for view in views.iter().filter(|_| peers.len() > 1) {
            let me = view.me.node.position;
            let is = |index| view.fingers.iter().find(|finger| finger.index == index);
            for should in Fingers::ideal(self.settings.space, me, &peers).list() {
                let is = is(should.index).map(|finger| finger.peer.node);
                if is != Some(should.peer.node) {
                    let is = is.map_or_else(|| "nobody".to_owned(), |node| format!("{node:?}"));
                    let (start, should) = (should.start, should.peer.node);
                    wrong.push(format!(
                        "The finger of {me:?} from {start:?} on is {is}, but should be {should:?}."
                    ));
                }
            }
        }
        let reports: Vec<_> = views.into_iter().map(|view| (view.me.clone(), Some(view))).collect();
        let mut verdict = check(&reports, self.settings.replicas, self.settings.successors);
        verdict.right &= wrong.is_empty();
        verdict.problems.extend(wrong);
        let aside = format!(" ({ADDRESS})");
        verdict.problems.iter_mut().for_each(|problem| *problem = problem.replace(&aside, ""));
        verdict
    }

    /// The next event, unless it comes after `end`.
    fn step(&mut self, end: Time) -> bool {
        let due = self.places.iter().filter_map(|(node, place)| Some((place.due?, *node))).min();
        let message = self.under_way.first_key_value().map(|((at, _), _)| *at);
        let next = due.map(|(at, _)| at).into_iter().chain(message).min();
        let Some(at) = next.filter(|at| *at <= end) else { return false };
        self.now = self.now.max(at);
        if message == Some(at) {
            if let Some((_, (from, to, message))) = self.under_way.pop_first() {
                if self.places.contains_key(&to.node) {
                    self.handle(to.node, Event::Receive { from, message });
                } else {
                    self.handle(from.node, Event::Unreachable { node: to.node });
                }
            }
        } else if let Some((_, node)) = due {
            self.handle(node, Event::Tick);
        }
        true
    }

    /// Hands an event to a node, if it is still there, and does what the node wants done.
    fn handle(&mut self, node: NodeId, event: Event) {
        let Some(place) = self.places.get_mut(&node) else { return };
        let mut next = Some(event);
        while let Some(event) = next.take() {
            place.node.handle(self.now, event);
            loop {
                match place.node.poll() {
                    Output::Send { to, message } => {
                        self.count += 1;
                        let at = (self.now + LATENCY, self.count);
                        self.under_way.insert(at, (place.peer.clone(), to, message));
                    }
                    // There is no disk to wait for.
                    Output::Persist { seq, .. } => next = Some(Event::Persisted { seq }),
                    Output::Reply { ticket, reply } => drop(self.replies.insert(ticket, reply)),
                    Output::Notify(notice) => self.told.push(Told { at: self.now, node, notice }),
                    // Nobody watches here.
                    Output::Told { .. } => {}
                    Output::Wait { until } => {
                        place.due = until;
                        break;
                    }
                }
            }
        }
        if place.node.phase() == Phase::Drained {
            self.places.remove(&node);
        }
    }
}
