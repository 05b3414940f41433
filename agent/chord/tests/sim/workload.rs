//! Clients that work on few keys at once through any machine, retry, give up, and note what they are told.
//!
//! Most keys come and go; steady ones are written and never deleted, so that lists and the end of a run
//! have something to hold on to. A change carries a new id each time it is sent, made of the wall clock of
//! the machine it is sent to, as agents do it, and is not sent again when its fate is unknown; or an id of
//! the client's own, and then it is sent again through other machines.
//!
//! A key remembers the last requests only, and a deleted one only for a time. What a client sends again
//! later counts as new, so clients do not. While nodes can be slow, also what was sent before could be
//! carried out so late that the key has forgotten it: unless a key may be hot, clients leave it alone before
//! that can be.

use std::collections::BTreeMap;
use std::time::Duration;

use sky_chord::{
    Answer, Ballot, Condition, Consistency, Cursor, Failure, Key, Operation, REQUEST_IDS_KEPT,
    Reply, Request, RequestId, Ticket, Time, Ttl, Value,
};

use super::cluster::{Cluster, Step};
use super::oracle::{EntryId, Oracle, number};
use super::random::Random;
use super::watchers::Watchers;

/// How long after the end of its budget a request must have been answered.
const GRACE: Duration = Duration::from_secs(1);

/// The longest time that a value is kept.
const TTL_MAX: Duration = Duration::from_secs(8);

/// How late a twin of a request can be carried out: the budget, and what a path holds back.
pub(crate) const TWINS_COME_WITHIN: Duration = Duration::from_secs(20);

/// How many changes of a key clients begin in that time unless it may be hot, and after how many they do
/// not send one again: both together are fewer than a key remembers.
const CHANGES_MAX: usize = REQUEST_IDS_KEPT / 2;

/// A number of clients, each with one operation at a time.
pub(crate) struct Workload {
    pub(crate) oracle: Oracle,
    /// Whether every operation has to succeed.
    pub(crate) strict: bool,
    /// Whether clients still begin new operations.
    pub(crate) open: bool,
    /// How many operations were answered, and how many failed or stayed unknown.
    pub(crate) answered: u64,
    pub(crate) failed: u64,
    /// How many keys were found in lists because they had to be there.
    pub(crate) listed: usize,
    /// How long a client thinks between two operations, at most.
    pub(crate) think: Duration,
    /// Whether a key may be changed as often as clients like.
    pub(crate) hot: bool,
    /// Whether the wall clocks of the machines may differ.
    pub(crate) clocks_apart: bool,
    /// Whether a value that is kept for a time only must be gone when it is read back.
    pub(crate) time_is_over: bool,
    /// When each key was changed, lately.
    changed: BTreeMap<Key, Vec<Time>>,
    random: Random,
    prefix: String,
    /// Keys that come and go.
    keys: Vec<Key>,
    /// Keys that are never deleted.
    steady: Vec<Key>,
    /// How many of them were written by somebody.
    begun: usize,
    clients: Vec<Client>,
    pub(crate) watchers: Watchers,
    last_value: u64,
    /// When clients act next.
    next: Time,
}

#[derive(Default)]
struct Client {
    work: Option<Work>,
    ready: Time,
    /// The versions this client has seen.
    known: BTreeMap<Key, Ballot>,
    /// What it wants to do next, because of what it was told last.
    intent: Option<(Key, Condition)>,
}

struct Work {
    operation: Operation,
    kind: Kind,
    /// The id that the client gave its request.
    given: Option<RequestId>,
    begun: Time,
    /// Whether an attempt was made whose fate is unknown.
    unknown: bool,
    attempt: Option<Attempt>,
}

enum Kind {
    /// One key, seeing all that was written.
    Sure(EntryId),
    /// One copy of a key.
    OneCopy(Key),
    /// A list, begun at this moment, with the keys named so far.
    List { begun: u64, found: Vec<Key> },
}

struct Attempt {
    ticket: Ticket,
    machine: usize,
    sent: Time,
    budget: Duration,
}

impl Workload {
    pub(crate) fn new(random: Random, clients: usize, keys: usize) -> Self {
        Self::with_steady(random, clients, keys, 0)
    }

    /// A workload that also has keys that are never deleted.
    pub(crate) fn with_steady(
        mut random: Random,
        clients: usize,
        keys: usize,
        steady: usize,
    ) -> Self {
        let prefix = format!("{:x}", random.next());
        let named = |kind: &str, count| {
            (0..count).map(|i| Key::new(&format!("{prefix}-{kind}{i}"))).collect::<Vec<_>>()
        };
        Self {
            oracle: Oracle::default(),
            strict: false,
            open: true,
            answered: 0,
            failed: 0,
            listed: 0,
            think: Duration::from_millis(200),
            hot: true,
            clocks_apart: false,
            time_is_over: false,
            changed: BTreeMap::new(),
            random,
            keys: named("", keys),
            steady: named("steady", steady),
            begun: 0,
            prefix,
            clients: (0..clients).map(|_| Client::default()).collect(),
            watchers: Watchers::default(),
            last_value: 0,
            next: Time::from_micros(0),
        }
    }

    /// Lets so many clients watch keys.
    pub(crate) fn watch(&mut self, count: usize) {
        let random = self.random.fork();
        self.watchers = Watchers::new(random, count, &self.prefix, &self.keys);
    }

    /// Everything that is there has to be told to those who watch.
    pub(crate) fn assert_watched(&mut self, cluster: &mut Cluster) {
        let keys: Vec<_> = self.keys.iter().chain(&self.steady).cloned().collect();
        self.watchers.assert_complete(cluster, &mut self.oracle, &keys);
    }

    /// Whether some client waits for an answer or for its next attempt.
    pub(crate) fn is_busy(&self) -> bool {
        self.clients.iter().any(|client| client.work.is_some())
    }

    /// Does one step of the cluster and what the clients do upon it.
    pub(crate) fn step(&mut self, cluster: &mut Cluster) -> Step {
        let step = cluster.step();
        self.oracle.expire(cluster);
        for (ticket, reply) in cluster.take_finished() {
            self.on_reply(cluster, ticket, reply);
        }
        self.watchers.act(cluster, &mut self.oracle);
        if cluster.now >= self.next {
            self.act(cluster);
            self.next = cluster.now + Duration::from_millis(1 + self.random.below(5) as u64);
        }
        step
    }

    /// Lets clients work for a while.
    pub(crate) fn run_for(&mut self, cluster: &mut Cluster, duration: Duration) {
        let end = cluster.now + duration;
        while cluster.now < end {
            self.step(cluster);
        }
    }

    /// Lets clients finish what they began, and begin nothing new.
    pub(crate) fn finish(&mut self, cluster: &mut Cluster) {
        self.open = false;
        let end = cluster.now + Duration::from_secs(60);
        while self.is_busy() {
            assert!(cluster.now < end, "clients wait for ever");
            self.step(cluster);
        }
    }

    fn act(&mut self, cluster: &mut Cluster) {
        for index in 0..self.clients.len() {
            let client = &self.clients[index];
            match &client.work {
                Some(Work { attempt: Some(attempt), operation, .. }) => {
                    let end = attempt.sent + attempt.budget + GRACE;
                    let machine = &cluster.machines[attempt.machine];
                    let is_excused = machine.paused || machine.disturbed >= attempt.sent;
                    assert!(
                        cluster.now <= end || is_excused,
                        "n{} left {operation:?} unanswered",
                        attempt.machine
                    );
                    if cluster.now > end {
                        self.on_unknown(cluster.now, index);
                    }
                }
                Some(_) if cluster.now >= client.ready => self.attempt(cluster, index),
                None if self.open && cluster.now >= client.ready => self.begin(cluster, index),
                _ => {}
            }
        }
    }

    /// Begins a new operation.
    fn begin(&mut self, cluster: &mut Cluster, index: usize) {
        let operation = match self.clients[index].intent.take() {
            Some((key, condition)) => Operation::Put { key, value: self.value(), condition },
            None => self.invent(index),
        };
        let mut operation = self.cooled(cluster.now, operation);
        if let Operation::Put { key, value, .. } = &mut operation
            && !self.steady.contains(key)
            && self.random.chance(0.15)
        {
            let whole = self.random.between(Duration::from_secs(1), TTL_MAX);
            value.ttl = Some(Ttl::new(whole));
            self.oracle.expires(cluster, key, value);
        }
        let kind = match &operation {
            Operation::Get { key, consistency: Consistency::Any } => Kind::OneCopy(key.clone()),
            Operation::Get { key, .. }
            | Operation::Put { key, .. }
            | Operation::Delete { key, .. } => Kind::Sure(self.oracle.begin(key, &operation)),
            Operation::List { .. } => {
                Kind::List { begun: self.oracle.begin_list(), found: Vec::new() }
            }
        };
        let is_given = operation.is_change() && self.random.chance(0.4);
        let given = is_given.then(|| {
            let (high, low) = (self.random.next(), self.random.next());
            RequestId::given(u128::from(high) << 64 | u128::from(low))
        });
        let begun = cluster.now;
        let work = Work { operation, kind, given, begun, unknown: false, attempt: None };
        self.clients[index].work = Some(work);
        self.attempt(cluster, index);
    }

    /// A change, or a read in its place if the key has changed too often lately.
    fn cooled(&mut self, now: Time, operation: Operation) -> Operation {
        let (Operation::Put { key, .. } | Operation::Delete { key, .. }) = &operation else {
            return operation;
        };
        let changed = self.changed.entry(key.clone()).or_default();
        changed.retain(|at| now.since(*at) < TWINS_COME_WITHIN);
        if !self.hot && changed.len() >= CHANGES_MAX {
            return get(key);
        }
        changed.push(now);
        operation
    }

    fn invent(&mut self, index: usize) -> Operation {
        if let Some(key) = self.steady.get(self.begun).cloned()
            && self.random.chance(0.6)
        {
            self.begun += 1;
            return Operation::Put { key, value: self.value(), condition: Condition::Always };
        }
        let is_steady = !self.steady.is_empty() && self.random.chance(0.25);
        let keys = if is_steady { &self.steady } else { &self.keys };
        let key = keys[self.random.below(keys.len())].clone();
        let known = self.clients[index].known.get(&key).copied();
        let condition = match (self.random.below(6), known) {
            (0 | 1, _) => Condition::Absent,
            (2, _) => Condition::Exists,
            (3 | 4, Some(version)) => Condition::Version(vec![version]),
            _ => Condition::Always,
        };
        match self.random.below(100) {
            0..35 => Operation::Get { key, consistency: Consistency::Quorum },
            35..40 => Operation::Get { key, consistency: Consistency::Any },
            40..45 => {
                let narrow = format!("{}-steady", self.prefix);
                let prefix = if self.random.chance(0.3) { narrow } else { self.prefix.clone() };
                let limit = 1 + self.random.below(8) as u32;
                Operation::List { after: None, prefix: prefix.into(), limit }
            }
            45..85 => Operation::Put { key, value: self.value(), condition },
            _ if is_steady => Operation::Get { key, consistency: Consistency::Quorum },
            _ if condition == Condition::Absent => {
                Operation::Delete { key, condition: Condition::Always }
            }
            _ => Operation::Delete { key, condition },
        }
    }

    /// A value that was never there before: mostly short, sometimes longer.
    fn value(&mut self) -> Value {
        self.last_value += 1;
        let padding = match self.random.below(20) {
            0 => 8000,
            1..4 => self.random.below(600),
            _ => 0,
        };
        let bytes = format!("{}.{:x<padding$}", self.last_value, "").into();
        Value { content_type: "text/plain".into(), bytes, ttl: None }
    }

    /// Sends the operation of a client to some machine that can be reached.
    fn attempt(&mut self, cluster: &mut Cluster, index: usize) {
        let machines = if self.strict { cluster.joined() } else { cluster.running() };
        let Some(machine) = self.random.pick(&machines) else {
            self.clients[index].ready = cluster.now + Duration::from_millis(50);
            return;
        };
        let budget = self.random.between(Duration::from_millis(500), Duration::from_secs(5));
        let budget = if self.strict { Duration::from_secs(5) } else { budget };
        let fresh = RequestId::at(cluster.wall(machine), self.random.next());
        let Some(work) = &mut self.clients[index].work else { return };
        let (id, retry) = (work.given.unwrap_or(fresh), work.given.is_some());
        let operation = work.operation.clone();
        let sent = cluster.now;
        let ticket = cluster.request(machine, Request::Operate { id, retry, operation, budget });
        work.attempt = Some(Attempt { ticket, machine, sent, budget });
    }

    fn on_reply(&mut self, cluster: &mut Cluster, ticket: Ticket, reply: Option<Reply>) {
        let is_asked = |client: &Client| {
            let attempt = client.work.as_ref().and_then(|work| work.attempt.as_ref());
            attempt.is_some_and(|attempt| attempt.ticket == ticket)
        };
        let Some(index) = self.clients.iter().position(is_asked) else { return };
        match reply {
            None => self.on_unknown(cluster.now, index),
            Some(Reply::Operated(Ok(answer))) => self.on_answer(cluster.now, index, answer),
            Some(Reply::Operated(Err(failure))) => {
                let work = self.clients[index].work.as_ref();
                let asked = work.map(|work| &work.operation);
                let is_excused = failure == Failure::MaybeApplied && self.is_crowded(index);
                assert!(!self.strict || is_excused, "{failure} for {asked:?} at {:?}", cluster.now);
                match failure {
                    Failure::Unavailable(_) | Failure::DiskFull => {
                        self.on_nothing_done(cluster.now, index);
                    }
                    Failure::MaybeApplied => self.on_unknown(cluster.now, index),
                    other => panic!("a client is told {other:?}"),
                }
            }
            other => panic!("not the answer to an operation: {other:?}"),
        }
    }

    fn on_answer(&mut self, now: Time, index: usize, answer: Answer) {
        let client = &mut self.clients[index];
        let Some(mut work) = client.work.take() else { return };
        match &mut work.kind {
            Kind::Sure(entry) => {
                self.oracle.end(entry, answer.clone());
                self.learn(index, &work.operation, &answer);
            }
            Kind::OneCopy(key) => self.oracle.read_one_copy(key, &answer),
            Kind::List { begun, found } => {
                let Operation::List { after, prefix, limit } = &mut work.operation else { return };
                let Answer::Listed { keys, next } = answer else {
                    panic!("not a list: {answer:?}");
                };
                assert!(keys.len() <= *limit as usize, "{} keys instead of {limit}", keys.len());
                found.extend(keys.into_iter().map(|listed| listed.key));
                if next.is_some() {
                    *after = next;
                    work.attempt = None;
                    client.work = Some(work);
                    return;
                }
                self.listed += self.oracle.end_list(*begun, prefix, found);
            }
        }
        self.answered += 1;
        self.rest(now, index);
    }

    /// What a client makes of an answer: often it goes on with the same key.
    fn learn(&mut self, index: usize, operation: &Operation, answer: &Answer) {
        let client = &mut self.clients[index];
        let Some(key) = super::cluster::key_of(operation) else { return };
        match answer {
            Answer::Found { version, .. } | Answer::Stored { version, .. } => {
                client.known.insert(key.clone(), *version);
                if self.random.chance(0.25) {
                    client.intent = Some((key.clone(), Condition::Version(vec![*version])));
                }
            }
            Answer::Deleted if self.random.chance(0.4) => {
                client.intent = Some((key.clone(), Condition::Absent));
            }
            _ => {}
        }
    }

    /// The client was told that this attempt changed nothing; an earlier one may have.
    fn on_nothing_done(&mut self, now: Time, index: usize) {
        let gives_up = self.random.chance(0.2) || self.is_forgotten(now, index);
        let client = &mut self.clients[index];
        let Some(work) = &mut client.work else { return };
        work.attempt = None;
        client.ready = now + Duration::from_millis(50 + self.random.below(300) as u64);
        if gives_up {
            if let (Kind::Sure(entry), false) = (&work.kind, work.unknown) {
                self.oracle.cancel(entry);
            }
            self.give_up(now, index);
        }
    }

    /// Nobody knows what became of this attempt.
    fn on_unknown(&mut self, now: Time, index: usize) {
        assert!(!self.strict || self.is_crowded(index), "the fate of an operation is unknown");
        let gives_up = self.random.chance(0.2) || self.is_forgotten(now, index);
        let client = &mut self.clients[index];
        let Some(work) = &mut client.work else { return };
        work.attempt = None;
        work.unknown |= work.operation.is_change();
        client.ready = now + Duration::from_millis(50 + self.random.below(300) as u64);
        if gives_up || (work.unknown && work.given.is_none()) {
            self.give_up(now, index);
        }
    }

    /// Whether the key changes so often that nobody can tell what became of a request that met a change of
    /// members: it is as old as those that the key has forgotten, or looks so by the clock of its agent.
    fn is_crowded(&self, index: usize) -> bool {
        match &self.clients[index].work {
            Some(Work { kind: Kind::Sure(entry), .. }) => {
                let changes = match self.clocks_apart {
                    true => self.oracle.changes(entry),
                    false => self.oracle.changes_since(entry),
                };
                changes >= REQUEST_IDS_KEPT
            }
            _ => false,
        }
    }

    /// Whether the key may have forgotten the request by now, so that it must not be sent again.
    fn is_forgotten(&self, now: Time, index: usize) -> bool {
        match &self.clients[index].work {
            Some(Work { kind: Kind::Sure(entry), given: Some(_), begun, .. }) => {
                now.since(*begun) >= TWINS_COME_WITHIN
                    || self.oracle.changes_since(entry) >= CHANGES_MAX
            }
            _ => false,
        }
    }

    fn give_up(&mut self, now: Time, index: usize) {
        self.clients[index].work = None;
        self.failed += 1;
        self.rest(now, index);
    }

    fn rest(&mut self, now: Time, index: usize) {
        self.clients[index].ready = now + self.random.between(Duration::ZERO, self.think);
    }

    /// Reads every key through every machine, and the list of keys through each. What a client has given up
    /// may still come and change a key meanwhile.
    pub(crate) fn read_back(&mut self, cluster: &mut Cluster) {
        let all: Vec<Key> = self.keys.iter().chain(&self.steady).cloned().collect();
        for machine in cluster.awake() {
            for key in &all {
                let operation = get(key);
                let entry = self.oracle.begin(key, &operation);
                let answer = cluster.operate(machine, operation).expect("the ring is right");
                self.oracle.expire(cluster);
                if let Answer::Found { value, .. } = &answer {
                    let is_late = self.time_is_over && value.ttl.is_some();
                    assert!(!is_late, "{key:?} still has {}", number(&value.bytes));
                }
                self.oracle.end(&entry, answer);
            }
            let begun = self.oracle.begin_list();
            let listed = list_through(cluster, machine, 7);
            self.oracle.expire(cluster);
            self.listed += self.oracle.end_list(begun, "", &listed);
        }
    }
}

/// Reads a key, seeing all that was written.
pub(crate) fn get(key: &Key) -> Operation {
    Operation::Get { key: key.clone(), consistency: Consistency::Quorum }
}

/// All keys of the ring, read page by page through some machine.
pub(crate) fn list(cluster: &mut Cluster, page: u32) -> Vec<Key> {
    let machine = cluster.awake()[0];
    list_through(cluster, machine, page)
}

fn list_through(cluster: &mut Cluster, machine: usize, page: u32) -> Vec<Key> {
    let mut after: Option<Cursor> = None;
    let mut found = Vec::new();
    loop {
        let operation = Operation::List { after: after.take(), prefix: "".into(), limit: page };
        match cluster.operate(machine, operation) {
            Ok(Answer::Listed { keys, next }) => {
                found.extend(keys.into_iter().map(|listed| listed.key));
                match next {
                    Some(cursor) => after = Some(cursor),
                    None => return found,
                }
            }
            other => panic!("not a list: {other:?}"),
        }
    }
}
