//! What an input says: how the node starts, and what happens to it then.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sky_chord::{
    Condition, Consistency, Event, Id, Key, Load, Message, Node, Operation, Output, Reply, Request,
    RequestId, RingId, Subject, Ticket, Time, Value, WatchId,
};

use crate::driver;
use crate::network::{Store, peers, restarted, start};

/// Outputs of one event. A sweep asks for some hundred keys at once; nothing does so for ever.
const MOST_OUTPUTS: usize = 20_000;

/// Steps of one input: more would only be slow.
const MOST_STEPS: usize = 1500;

/// One thing that happens. A number of a peer counts round the known ones.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "nearly every step is a message")]
pub(crate) enum Step {
    /// Milliseconds go by.
    Wait(u16),
    /// The peer says something.
    Receive(u8, Message),
    Unreachable(u8),
    /// The peer answers at a join address, and belongs to this ring or to another.
    Contact(u8, bool),
    /// A client wants something of one of a few keys.
    Put(u8, u8),
    Get(u8),
    Delete(u8),
    List(u32),
    /// The operator or the page asks.
    Lookup(Id),
    View,
    Views,
    LocalKeys(u32),
    Init(bool),
    Leave,
    /// Everything written so far is on disk.
    Persisted,
    /// The disk is full, or has room again.
    DiskFull(bool),
    /// The disk breaks.
    Broken,
    /// A watch of a key, or of all keys.
    Watch(u8),
    WatchRoom(u8, u32),
    Unwatch(u8),
}

impl Step {
    /// The next step of an input.
    pub(crate) fn decode(input: &mut &[u8]) -> Option<Self> {
        let (step, rest) = postcard::take_from_bytes(input).ok()?;
        *input = rest;
        Some(step)
    }

    /// The name of the message, if it is one.
    pub(crate) fn kind(&self) -> Option<String> {
        let Self::Receive(_, message) = self else { return None };
        Some(kind(message))
    }
}

/// The name of what a message says.
pub(crate) fn kind(message: &Message) -> String {
    name(&message.body)
}

/// The name of a variant.
fn name(variant: &impl Debug) -> String {
    driver::gist(format_args!("{variant:?}")).chars().take_while(|c| *c != ' ').collect()
}

/// The input of these steps.
pub(crate) fn encode(start: u8, steps: &[Step]) -> Vec<u8> {
    let mut input = vec![start];
    for step in steps {
        input = postcard::to_extend(step, input).unwrap();
    }
    input
}

/// A node, and what is around it.
pub(crate) struct Stage {
    node: Node<Store>,
    store: Store,
    now: Time,
    due: Option<Time>,
    last_seq: Option<u64>,
    tickets: u64,
    steps: usize,
    answered: bool,
    /// What was said, and what it was said upon.
    saw: BTreeSet<String>,
}

impl Stage {
    /// A new node, or one that is started again as a member of a ring.
    pub(crate) fn new(kind: u8) -> Self {
        let store = if kind == 0 { Store::default() } else { restarted() };
        let boot = u32::from(kind != 0) + 1;
        let node = start(&store, Time::default(), 0, boot);
        let (now, tickets) = (Time::default(), 0);
        let (due, last_seq, steps) = (None, None, 0);
        let (answered, saw) = (false, BTreeSet::new());
        let mut stage = Self { node, store, now, due, last_seq, tickets, steps, answered, saw };
        stage.drain("Start");
        stage
    }

    fn handle(&mut self, event: Event) {
        let upon = match &event {
            Event::Receive { message, .. } => kind(message),
            event => name(event),
        };
        self.node.handle(self.now, event);
        self.drain(&upon);
    }

    fn drain(&mut self, upon: &str) {
        for _ in 0..MOST_OUTPUTS {
            match self.node.poll() {
                Output::Persist { seq, writes } => {
                    self.store.write(writes);
                    self.last_seq = Some(seq);
                }
                Output::Reply { ticket, reply: Reply::View(_) } if ticket.0 == self.tickets => {
                    self.answered = true;
                }
                Output::Send { message, .. } => {
                    self.saw.insert(format!("{upon} {}", kind(&message)));
                }
                Output::Reply { reply, .. } => {
                    self.saw.insert(format!("{upon} {}", driver::gist(format_args!("{reply:?}"))));
                }
                Output::Notify(notice) => {
                    self.saw.insert(format!("{upon} {}", name(&notice)));
                }
                Output::Told { told, .. } => {
                    self.saw.insert(format!("{upon} {}", name(&told)));
                }
                Output::Wait { until } => {
                    self.due = until;
                    return;
                }
            }
        }
        panic!("more than {MOST_OUTPUTS} outputs of one event");
    }

    /// Lets time go by, with the ticks that the node asked for.
    fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(due) = self.due.filter(|due| *due <= end) {
            let before = self.now;
            self.now = self.now.max(due);
            self.handle(Event::Tick);
            assert!(self.due != Some(due) || self.now > before, "a moment that is not over");
        }
        self.now = end;
    }

    fn ask(&mut self, request: Request) {
        self.tickets += 1;
        self.handle(Event::Request { ticket: Ticket(self.tickets), request });
    }

    fn operate(&mut self, operation: Operation) {
        let id = RequestId::at(self.now.as_micros(), self.tickets);
        let budget = Duration::from_secs(3);
        self.ask(Request::Operate { id, retry: false, operation, budget });
    }

    pub(crate) fn take(&mut self, step: Step) {
        self.steps += 1;
        if self.steps > MOST_STEPS {
            return;
        }
        let key = |key: u8| Key::new(&format!("key {}", key % 8));
        let peer = |number: u8| peers()[usize::from(number) % peers().len()].clone();
        match step {
            Step::Wait(time) => self.wait(Duration::from_millis(u64::from(time % 4000))),
            Step::Receive(from, message) => {
                self.handle(Event::Receive { from: peer(from), message });
            }
            Step::Unreachable(number) => {
                self.handle(Event::Unreachable { node: peer(number).node });
            }
            Step::Contact(number, ours) => {
                let ring = Some(RingId(if ours { 1 } else { 2 }));
                self.handle(Event::Contact { peer: peer(number), ring });
            }
            Step::Put(number, value) => {
                let bytes = Bytes::from(vec![value; usize::from(value)]);
                let value = Value { content_type: "x".into(), bytes, ttl: None };
                let condition = match number / 8 % 3 {
                    0 => Condition::Always,
                    1 => Condition::Absent,
                    _ => Condition::Exists,
                };
                self.operate(Operation::Put { key: key(number), value, condition });
            }
            Step::Get(number) => {
                let any = number / 8 % 2 == 1;
                let consistency = if any { Consistency::Any } else { Consistency::Quorum };
                self.operate(Operation::Get { key: key(number), consistency });
            }
            Step::Delete(number) => {
                let condition = Condition::Always;
                self.operate(Operation::Delete { key: key(number), condition });
            }
            Step::List(limit) => {
                self.operate(Operation::List { after: None, prefix: "".into(), limit });
            }
            Step::Lookup(target) => self.ask(Request::Lookup { target }),
            Step::View => self.ask(Request::View),
            Step::Views => self.ask(Request::Views),
            Step::LocalKeys(limit) => self.ask(Request::LocalKeys { after: None, limit }),
            Step::Init(ours) => self.ask(Request::Init { ring: RingId(if ours { 1 } else { 2 }) }),
            Step::Leave => self.ask(Request::Leave),
            Step::Watch(number) => {
                let subject = match number / 8 % 2 {
                    0 => Subject::Key(key(number)),
                    _ => Subject::Prefix("k".into()),
                };
                self.ask(Request::Watch { subject, room: u32::from(number / 16) });
            }
            Step::WatchRoom(watch, room) => {
                self.ask(Request::WatchRoom { watch: WatchId(u64::from(watch % 4)), room });
            }
            Step::Unwatch(watch) => {
                self.ask(Request::Unwatch { watch: WatchId(u64::from(watch % 4)) });
            }
            Step::Persisted => {
                if let Some(seq) = self.last_seq {
                    self.handle(Event::Persisted { seq });
                }
            }
            Step::DiskFull(disk_full) => {
                self.handle(Event::Measured(Load { disk_full, ..Load::default() }));
            }
            Step::Broken => {
                let seq = self.last_seq.unwrap_or_default();
                self.handle(Event::PersistFailed { seq, reason: "broken".to_owned() });
            }
        }
    }

    /// Time goes on, and the node tells about itself. Returns what was seen.
    pub(crate) fn still_answers(mut self) -> Vec<String> {
        if let Some(seq) = self.last_seq {
            self.handle(Event::Persisted { seq });
        }
        self.wait(Duration::from_millis(2500));
        self.answered = false;
        self.ask(Request::View);
        assert!(self.answered, "the node does not answer");
        self.saw.into_iter().collect()
    }
}
