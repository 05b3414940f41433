//! Clients that work on few keys at once through any machine, retry, give up, and note what they are told.

use std::collections::BTreeMap;
use std::time::Duration;

use sky_chord::{
    Answer, Ballot, Condition, Consistency, Cursor, Failure, Key, Operation, Reply, Request,
    RequestId, Ticket, Time, Value,
};

use super::cluster::{Cluster, Step};
use super::oracle::{EntryId, Oracle, number};
use super::random::Random;

/// How long after the end of its budget a request must have been answered.
const GRACE: Duration = Duration::from_secs(1);

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
    /// How long a client thinks between two operations, at most.
    pub(crate) think: Duration,
    random: Random,
    keys: Vec<Key>,
    clients: Vec<Client>,
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
}

struct Work {
    key: Key,
    operation: Operation,
    entry: EntryId,
    id: RequestId,
    /// Whether an attempt was made whose fate is unknown.
    unknown: bool,
    attempts: usize,
    attempt: Option<Attempt>,
}

struct Attempt {
    ticket: Ticket,
    machine: usize,
    sent: Time,
    budget: Duration,
}

impl Workload {
    pub(crate) fn new(mut random: Random, clients: usize, keys: usize) -> Self {
        let prefix = random.next();
        Self {
            oracle: Oracle::default(),
            strict: false,
            open: true,
            answered: 0,
            failed: 0,
            think: Duration::from_millis(200),
            random,
            keys: (0..keys).map(|i| Key::new(&format!("{prefix:x}-{i}"))).collect(),
            clients: (0..clients).map(|_| Client::default()).collect(),
            last_value: 0,
            next: Time::from_micros(0),
        }
    }

    /// Whether some client waits for an answer or for its next attempt.
    pub(crate) fn is_busy(&self) -> bool {
        self.clients.iter().any(|client| client.work.is_some())
    }

    /// Does one step of the cluster and what the clients do upon it.
    pub(crate) fn step(&mut self, cluster: &mut Cluster) -> Step {
        let step = cluster.step();
        for (ticket, reply) in cluster.take_finished() {
            self.on_reply(cluster, ticket, reply);
        }
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
                None if self.open && cluster.now >= client.ready => self.invent(cluster, index),
                _ => {}
            }
        }
    }

    /// Begins a new operation.
    fn invent(&mut self, cluster: &mut Cluster, index: usize) {
        let key = self.keys[self.random.below(self.keys.len())].clone();
        let known = self.clients[index].known.get(&key).copied();
        let condition = match (self.random.below(6), known) {
            (0 | 1, _) => Condition::Absent,
            (2, _) => Condition::Exists,
            (3 | 4, Some(version)) => Condition::Version(vec![version]),
            _ => Condition::Always,
        };
        let unless_absent = |condition| match condition {
            Condition::Absent => Condition::Always,
            other => other,
        };
        let operation = match self.random.below(10) {
            0..4 => Operation::Get { key: key.clone(), consistency: Consistency::Quorum },
            4..9 => Operation::Put { key: key.clone(), value: self.value(), condition },
            _ => Operation::Delete { key: key.clone(), condition: unless_absent(condition) },
        };
        let entry = self.oracle.begin(&key, &operation);
        let id = RequestId::at(cluster.now.as_micros(), self.random.next());
        self.clients[index].work =
            Some(Work { key, operation, entry, id, unknown: false, attempts: 0, attempt: None });
        self.attempt(cluster, index);
    }

    fn value(&mut self) -> Value {
        self.last_value += 1;
        Value { content_type: "text/plain".into(), bytes: self.last_value.to_string().into() }
    }

    /// Sends the operation of a client to some machine that can be reached.
    fn attempt(&mut self, cluster: &mut Cluster, index: usize) {
        let running: Vec<_> =
            (0..cluster.machines.len()).filter(|m| cluster.is_running(*m)).collect();
        let Some(machine) = self.random.pick(&running) else {
            self.clients[index].ready = cluster.now + Duration::from_millis(50);
            return;
        };
        let budget = self.random.between(Duration::from_millis(500), Duration::from_secs(5));
        let budget = if self.strict { Duration::from_secs(5) } else { budget };
        let Some(work) = &mut self.clients[index].work else { return };
        work.attempts += 1;
        let (id, retry, operation) = (work.id, work.attempts > 1, work.operation.clone());
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
                assert!(!self.strict, "{failure} for {:?}", work.map(|work| &work.operation));
                match failure {
                    Failure::Unavailable(_) => self.on_nothing_done(cluster.now, index),
                    Failure::MaybeApplied => self.on_unknown(cluster.now, index),
                    other => panic!("a client is told {other:?}"),
                }
            }
            other => panic!("not the answer to an operation: {other:?}"),
        }
    }

    fn on_answer(&mut self, now: Time, index: usize, answer: Answer) {
        let client = &mut self.clients[index];
        let Some(work) = client.work.take() else { return };
        match &answer {
            Answer::Found { version, .. } | Answer::Stored { version, .. } => {
                client.known.insert(work.key.clone(), *version);
            }
            _ => {}
        }
        self.oracle.end(&work.entry, answer);
        self.answered += 1;
        self.rest(now, index);
    }

    /// The client was told that this attempt changed nothing; an earlier one may have.
    fn on_nothing_done(&mut self, now: Time, index: usize) {
        let gives_up = self.random.chance(0.2);
        let client = &mut self.clients[index];
        let Some(work) = &mut client.work else { return };
        work.attempt = None;
        client.ready = now + Duration::from_millis(50 + self.random.below(300) as u64);
        if gives_up && !work.unknown {
            self.oracle.cancel(&work.entry);
        }
        if gives_up {
            self.give_up(now, index);
        }
    }

    /// Nobody knows what became of this attempt.
    fn on_unknown(&mut self, now: Time, index: usize) {
        assert!(!self.strict, "the fate of an operation is unknown");
        let gives_up = self.random.chance(0.3);
        let client = &mut self.clients[index];
        let Some(work) = &mut client.work else { return };
        work.attempt = None;
        work.unknown = true;
        client.ready = now + Duration::from_millis(50 + self.random.below(300) as u64);
        if gives_up {
            self.give_up(now, index);
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

    /// Reads every key through every machine, and the list of keys through one.
    pub(crate) fn read_back(&mut self, cluster: &mut Cluster) {
        let mut live = Vec::new();
        for machine in cluster.awake() {
            live.clear();
            for key in self.keys.clone() {
                let operation = get(&key);
                let entry = self.oracle.begin(&key, &operation);
                let answer = cluster.operate(machine, operation).expect("the ring is right");
                if let Answer::Found { value, .. } = &answer {
                    number(&value.bytes);
                    live.push(key.clone());
                }
                self.oracle.end(&entry, answer);
            }
        }
        live.sort();
        assert_eq!(list(cluster, 2), live, "the list of keys");
    }
}

/// Reads a key, seeing all that was written.
pub(crate) fn get(key: &Key) -> Operation {
    Operation::Get { key: key.clone(), consistency: Consistency::Quorum }
}

/// All keys of the ring, read page by page through some machine.
pub(crate) fn list(cluster: &mut Cluster, page: u32) -> Vec<Key> {
    let machine = cluster.awake()[0];
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
