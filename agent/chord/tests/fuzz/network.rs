//! A small ring of real nodes, to record what one of them is told.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use sky_chord::{
    Condition, Consistency, Cursor, Event, Id, Key, Node, NodeId, Operation, Output, Peer, Record,
    Records, Request, RequestId, RingId, Scan, Settings, Start, StoreError, Subject, Ticket, Time,
    Value, Write,
};

use crate::steps::{Step, kind};

/// How long everything takes: messages, and syncs.
const LATENCY: Duration = Duration::from_millis(2);

/// All nodes there are; the first is the one that is looked at.
pub(crate) fn peers() -> Vec<Peer> {
    let node = |i: u8| NodeId { position: Id::hash(&[i]), incarnation: u64::from(i) + 1 };
    (0..5).map(|i| Peer { node: node(i), address: format!("10.0.0.{i}:1").into() }).collect()
}

/// Records in memory, shared with the node.
#[derive(Debug, Clone, Default)]
pub(crate) struct Store(Rc<RefCell<Content>>);

#[derive(Debug, Clone, Default)]
struct Content {
    records: BTreeMap<Key, Record>,
    bytes: BTreeMap<Key, Bytes>,
    meta: BTreeMap<String, Bytes>,
}

impl Store {
    pub(crate) fn write(&self, writes: Vec<Write>) {
        let mut content = self.0.borrow_mut();
        for write in writes {
            match write {
                Write::Record(key, record) => drop(content.records.insert(key, record)),
                Write::Forget(key) => drop(content.records.remove(&key)),
                Write::Bytes(key, bytes) => drop(content.bytes.insert(key, bytes)),
                Write::ForgetBytes(key) => drop(content.bytes.remove(&key)),
                Write::Meta { name, bytes: Some(bytes) } => drop(content.meta.insert(name, bytes)),
                Write::Meta { name, bytes: None } => drop(content.meta.remove(&name)),
            }
        }
    }

    /// Another store with the same content.
    fn copy(&self) -> Self {
        Self(Rc::new(RefCell::new(self.0.borrow().clone())))
    }
}

impl Records for Store {
    fn get(&self, key: &Key) -> Result<Option<Record>, StoreError> {
        Ok(self.0.borrow().records.get(key).cloned())
    }

    fn bytes(&self, key: &Key) -> Result<Option<Bytes>, StoreError> {
        Ok(self.0.borrow().bytes.get(key).cloned())
    }

    fn scan(
        &self,
        after: Option<&Cursor>,
        through: Id,
        limit: usize,
    ) -> Result<Scan<Record>, StoreError> {
        let content = self.0.borrow();
        let is_after = |key: &Key| match after {
            None => true,
            Some(Cursor::AfterKey(after)) => key > after,
            Some(Cursor::AfterPoint(point)) => key.hash() > *point,
        };
        let entries = content.records.iter();
        let mut rest = entries.filter(|(key, _)| is_after(key) && key.hash() <= through);
        let page = rest.by_ref().take(limit).map(|(key, record)| (key.clone(), record.clone()));
        Ok(Scan { entries: page.collect(), end: rest.next().is_none() })
    }
}

/// Starts the node of this number.
pub(crate) fn start(store: &Store, now: Time, number: usize, boot: u32) -> Node<Store> {
    let meta = store.0.borrow().meta.clone().into_iter().collect();
    let settings =
        Settings { repair_after: Duration::from_secs(3), apart_above: 30, ..Settings::default() };
    let me = peers()[number].clone();
    let wall = 1 << 50;
    let start = Start { me, boot, settings, meta, seed: number as u64, wall };
    Node::start(now, start, store.clone()).unwrap()
}

/// Something the first node was told, and when.
#[derive(Debug, Clone)]
pub(crate) enum Told {
    Wait(Duration),
    Event(Box<Event>),
}

impl Told {
    pub(crate) fn step(&self) -> Step {
        let number =
            |node: &NodeId| peers().iter().position(|peer| peer.node == *node).unwrap() as u8;
        match self {
            Self::Wait(time) => Step::Wait(time.as_millis() as u16),
            Self::Event(event) => match &**event {
                Event::Receive { from, message } => {
                    Step::Receive(number(&from.node), message.clone())
                }
                Event::Unreachable { node } => Step::Unreachable(number(node)),
                Event::Contact { peer, .. } => Step::Contact(number(&peer.node), true),
                Event::Persisted { .. } => Step::Persisted,
                Event::Request { request: Request::Init { .. }, .. } => Step::Init(true),
                Event::Request { request: Request::Leave, .. } => Step::Leave,
                Event::Request { request: Request::Views, .. } => Step::Views,
                Event::Request { request: Request::Watch { .. }, .. } => Step::Watch(248),
                Event::Request { .. } => Step::Get(1),
                event => panic!("not recorded: {event:?}"),
            },
        }
    }
}

/// The nodes, and what is under way between them.
pub(crate) struct Network {
    now: Time,
    nodes: BTreeMap<usize, Running>,
    under_way: BTreeMap<(Time, u64), (usize, Event)>,
    count: u64,
    /// What the first node was told since it was last asked for, and when the last of it.
    told: Vec<Told>,
    last_told: Time,
    heard: BTreeSet<String>,
}

struct Running {
    node: Node<Store>,
    store: Store,
    due: Option<Time>,
}

impl Network {
    fn new() -> Self {
        let (now, last_told) = (Time::default(), Time::default());
        let (nodes, under_way) = (BTreeMap::new(), BTreeMap::new());
        Self {
            now,
            nodes,
            under_way,
            count: 0,
            told: Vec::new(),
            last_told,
            heard: BTreeSet::new(),
        }
    }

    /// Starts a node on this store. A node that is not the first knows the second one's address.
    fn start(&mut self, number: usize, store: Store, boot: u32) {
        let node = start(&store, self.now, number, boot);
        self.nodes.insert(number, Running { node, store, due: None });
        self.drain(number);
    }

    fn join(&mut self, number: usize, through: usize) {
        let peer = peers()[through].clone();
        self.post(number, Event::Contact { peer, ring: Some(RingId(1)) });
    }

    fn post(&mut self, to: usize, event: Event) {
        self.count += 1;
        self.under_way.insert((self.now + LATENCY, self.count), (to, event));
    }

    fn ask(&mut self, number: usize, request: Request) {
        self.count += 1;
        let ticket = Ticket(self.count);
        self.post(number, Event::Request { ticket, request });
    }

    fn operate(&mut self, number: usize, operation: Operation) {
        let id = RequestId::at(self.now.as_micros(), self.count);
        let budget = Duration::from_secs(3);
        self.ask(number, Request::Operate { id, retry: false, operation, budget });
    }

    /// Clients at work at one node.
    fn work(&mut self, number: usize, rounds: u8) {
        for round in 0..rounds {
            let key = |i: u8| Key::new(&format!("key {}", i % 8));
            let value = Value {
                content_type: "x".into(),
                bytes: vec![round; 20 << (round % 2)].into(),
                ttl: None,
            };
            let condition = Condition::Always;
            self.operate(number, Operation::Put { key: key(round), value, condition });
            self.run(Duration::from_millis(20));
            let consistency = Consistency::Quorum;
            self.operate(number, Operation::Get { key: key(round + 3), consistency });
            let condition = Condition::Exists;
            self.operate(number, Operation::Delete { key: key(round + 5), condition });
            self.operate(number, Operation::List { after: None, prefix: "".into(), limit: 5 });
            self.run(Duration::from_millis(30));
        }
    }

    /// Lets time go by.
    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let posted = self.under_way.first_key_value().map(|((at, _), _)| *at);
            let due = self.nodes.iter().filter_map(|(i, running)| Some((running.due?, *i))).min();
            match (posted, due) {
                (Some(at), due) if at <= end && due.is_none_or(|(due, _)| at <= due) => {
                    let Some(((at, _), (to, event))) = self.under_way.pop_first() else { return };
                    self.now = self.now.max(at);
                    self.handle(to, event);
                }
                (_, Some((due, number))) if due <= end => {
                    self.now = self.now.max(due);
                    self.handle(number, Event::Tick);
                }
                _ => break,
            }
        }
        self.now = end;
    }

    fn handle(&mut self, number: usize, event: Event) {
        if let Event::Receive { message, .. } = &event {
            self.heard.insert(kind(message));
        }
        if number == 0 && !matches!(event, Event::Tick) && self.nodes.contains_key(&0) {
            // Steps count whole milliseconds.
            let wait = Duration::from_millis(self.now.since(self.last_told).as_millis() as u64);
            self.last_told = self.last_told + wait;
            self.told.extend((!wait.is_zero()).then_some(Told::Wait(wait)));
            self.told.push(Told::Event(Box::new(event.clone())));
        }
        let now = self.now;
        let Some(running) = self.nodes.get_mut(&number) else { return };
        running.node.handle(now, event);
        self.drain(number);
    }

    fn drain(&mut self, number: usize) {
        loop {
            let Some(running) = self.nodes.get_mut(&number) else { return };
            match running.node.poll() {
                Output::Send { to, message } => {
                    let Some(to) = peers().iter().position(|peer| *peer == to) else { continue };
                    let from = peers()[number].clone();
                    if self.nodes.contains_key(&to) {
                        self.post(to, Event::Receive { from, message });
                    } else {
                        self.post(number, Event::Unreachable { node: peers()[to].node });
                    }
                }
                Output::Persist { seq, writes } => {
                    running.store.write(writes);
                    self.post(number, Event::Persisted { seq });
                }
                Output::Reply { .. } | Output::Notify(_) | Output::Told { .. } => {}
                Output::Wait { until } => {
                    running.due = until;
                    return;
                }
            }
        }
    }

    fn founded() -> Self {
        let mut network = Self::new();
        network.start(1, Store::default(), 1);
        network.ask(1, Request::Init { ring: RingId(1) });
        network.run(Duration::from_secs(1));
        network
    }

    /// A ring of the first three nodes, with some keys.
    fn of_three() -> Self {
        let mut network = Self::founded();
        network.start(0, Store::default(), 1);
        network.join(0, 1);
        network.start(2, Store::default(), 1);
        network.join(2, 1);
        network.run(Duration::from_secs(8));
        network.work(1, 8);
        network.run(Duration::from_secs(2));
        network
    }

    /// A ring of the first three nodes, where the first is just started again.
    fn with_the_first_restarted() -> Self {
        let mut network = Self::of_three();
        let old = network.nodes.remove(&0).unwrap();
        network.run(Duration::from_millis(100));
        network.told.clear();
        network.last_told = network.now;
        network.start(0, old.store.copy(), 2);
        network
    }

    /// The kinds of messages that are said in all stories.
    pub(crate) fn kinds_heard() -> BTreeSet<String> {
        let all: Vec<_> = stories().iter().flat_map(|(_, _, told)| told.clone()).collect();
        all.iter().filter_map(|told| told.step().kind()).collect()
    }
}

thread_local! {
    static RESTARTED: Store = Network::with_the_first_restarted().nodes[&0].store.copy();
}

/// What a node of a ring of three has on disk.
pub(crate) fn restarted() -> Store {
    RESTARTED.with(Store::copy)
}

/// What the first node is told in rings where this and that happens: a name, how it starts, and what.
pub(crate) fn stories() -> Vec<(&'static str, u8, Vec<Told>)> {
    let mut stories = Vec::new();
    let mut tell = |name, kind, mut network: Network, seconds: u64| {
        network.run(Duration::from_secs(seconds));
        network.told.truncate(200);
        stories.push((name, kind, network.told));
    };

    let mut alone = Network::new();
    alone.start(0, Store::default(), 1);
    alone.ask(0, Request::Init { ring: RingId(1) });
    alone.work(0, 3);
    tell("alone", 0, alone, 1);

    let mut joining = Network::founded();
    joining.told.clear();
    joining.last_told = joining.now;
    joining.start(0, Store::default(), 1);
    joining.join(0, 1);
    joining.run(Duration::from_millis(500));
    joining.work(1, 2);
    tell("joining", 0, joining, 2);

    let mut working = Network::with_the_first_restarted();
    working.run(Duration::from_millis(300));
    for number in [0, 2] {
        let subject = Subject::Prefix("k".into());
        working.ask(number, Request::Watch { subject, room: 100 });
    }
    working.work(0, 3);
    working.work(2, 3);
    tell("working", 1, working, 1);

    let mut another = Network::with_the_first_restarted();
    another.start(3, Store::default(), 1);
    another.join(3, 2);
    another.run(Duration::from_secs(1));
    another.work(3, 2);
    tell("another-joins", 1, another, 3);

    let mut crash = Network::with_the_first_restarted();
    crash.start(3, Store::default(), 1);
    crash.join(3, 2);
    crash.run(Duration::from_secs(4));
    crash.nodes.remove(&2);
    crash.told.clear();
    crash.told.push(Told::Wait(Duration::from_millis(10)));
    tell("repair", 1, crash, 6);

    let mut leaving = Network::with_the_first_restarted();
    leaving.run(Duration::from_millis(300));
    leaving.ask(0, Request::Leave);
    leaving.ask(0, Request::Views);
    tell("leaving", 1, leaving, 4);

    let mut lagging = Network::with_the_first_restarted();
    lagging.run(Duration::from_millis(300));
    lagging.nodes.remove(&2).unwrap();
    lagging.work(1, 3);
    tell("lagging", 1, lagging, 2);
    stories
}
