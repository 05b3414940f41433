//! Machines with real nodes on them, one virtual clock and one queue of what happens next.

use std::collections::BTreeMap;
use std::time::Duration;

use sky_chord::{
    Answer, Ballot, Body, Config, Event, Failure, Id, Key, Load, Node, NodeId, Notice, Operation,
    Output, Peer, Phase, Reply, Request, RequestId, RingId, Settings, Start, Ticket, Time, Verdict,
    View, zave_invariant,
};

use super::disk::Disk;
use super::machine::{Machine, Process};
use super::network::Network;
use super::random::Random;
use super::watch::Watch;

/// The ring of every simulation.
pub(crate) const RING: RingId = RingId(0x5c1);
const SAMPLE_EVERY: Duration = Duration::from_millis(100);
const CONTACT_EVERY: Duration = Duration::from_millis(500);
/// More steps than this within one virtual second mean that nodes talk in circles.
const STEPS_PER_SECOND_MAX: u64 = 400_000;

/// A whole simulated ring.
pub(crate) struct Cluster {
    pub(crate) now: Time,
    pub(crate) random: Random,
    pub(crate) network: Network,
    pub(crate) machines: Vec<Machine>,
    pub(crate) watch: Watch,
    /// What the nodes told, with the machine that told it; taken by whoever wants it.
    pub(crate) notices: Vec<(usize, Notice)>,
    /// The size of all messages about data, if somebody counts.
    pub(crate) data_bytes: Option<usize>,
    /// Whether the ring pointers have to satisfy Zave's invariant at every sample.
    pub(crate) asserts_ring: bool,
    settings: Settings,
    queue: BTreeMap<(Time, u64), What>,
    last_number: u64,
    asked: BTreeMap<Ticket, (usize, Option<Key>)>,
    finished: Vec<(Ticket, Option<Reply>)>,
    /// Disks that were lost, for the record of what was once on them.
    lost: Vec<(NodeId, Disk)>,
    /// What clients were just told to be stored, and by whom.
    stored: Vec<(usize, Key, Ballot)>,
    second: (u64, u64),
    trace: bool,
}

enum What {
    Deliver { machine: usize, to: NodeId, sender: usize, from: Peer, message: sky_chord::Message },
    ToProcess { machine: usize, process: u64, event: Event },
    Tick { machine: usize, process: u64 },
    Synced { machine: usize, process: u64 },
    Contact { machine: usize, process: u64 },
    Sample,
    Alarm(u64),
}

/// What a step of the cluster was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// The moment of an alarm has come.
    Alarm(u64),
    /// All views were looked at.
    Sample,
    /// Something else.
    Other,
}

impl Cluster {
    pub(crate) fn new(seed: u64, settings: Settings) -> Self {
        let mut random = Random::new(seed);
        let network = Network::new(random.fork());
        let mut cluster = Self {
            now: Time::from_micros(0),
            random,
            network,
            machines: Vec::new(),
            watch: Watch::default(),
            notices: Vec::new(),
            data_bytes: None,
            asserts_ring: false,
            settings,
            queue: BTreeMap::new(),
            last_number: 0,
            asked: BTreeMap::new(),
            finished: Vec::new(),
            lost: Vec::new(),
            stored: Vec::new(),
            second: (0, 0),
            trace: std::env::var_os("SKY_TRACE").is_some(),
        };
        cluster.schedule(SAMPLE_EVERY, What::Sample);
        cluster
    }

    /// A cluster whose first machine founded the ring and where all others have joined.
    pub(crate) fn ring(seed: u64, settings: Settings, size: usize) -> Self {
        let mut cluster = Self::new(seed, settings);
        for index in 0..size {
            cluster.add(even_position(index, size));
        }
        cluster.init(0);
        cluster.settle();
        cluster
    }

    /// Adds a machine with an empty disk and starts a node on it.
    pub(crate) fn add(&mut self, position: Id) -> usize {
        let machine = self.machines.len();
        let node = NodeId { position, incarnation: self.random.next() };
        let address = format!("n{machine}:4321").into();
        self.machines.push(Machine::new(Peer { node, address }, self.now));
        self.start(machine);
        machine
    }

    /// Lets a machine found the ring.
    pub(crate) fn init(&mut self, machine: usize) {
        let reply = self.ask(machine, Request::Init { ring: RING });
        assert_eq!(reply, Reply::Initialized);
    }

    /// Starts a node on what the machine's disk holds.
    pub(crate) fn start(&mut self, machine: usize) {
        let number = self.number();
        let skew = self.random.below(1 << 40) as u64;
        let seed = self.random.next();
        let settings = self.settings.clone();
        let now = Time::from_micros(self.now.as_micros() + skew);
        let place = &mut self.machines[machine];
        assert!(place.process.is_none() && !place.gone);
        place.boot += 1;
        place.disturbed = self.now;
        let (me, boot, meta) = (place.peer.clone(), place.boot, place.disk.meta());
        let start = Start { me, boot, settings, meta, seed };
        let node =
            Node::start(now, start, place.disk.reader()).expect("its meta records are its own");
        place.process = Some(Process { node, number, skew, wake: None });
        self.note(|| format!("n{machine} starts, boot {boot}"));
        self.drain(machine);
        self.schedule(Duration::from_millis(1), What::Contact { machine, process: number });
    }

    /// Kills the process; of what was not yet synced a beginning may survive, or nothing.
    pub(crate) fn crash(&mut self, machine: usize) {
        let now = self.now;
        let random = &mut self.random;
        let place = &mut self.machines[machine];
        place.process = None;
        place.paused = false;
        place.backlog.clear();
        place.disturbed = now;
        place.disk.cut(random);
        self.watch.on_crash(&place.peer.node);
        let broken: Vec<_> =
            self.asked.iter().filter(|(_, at)| at.0 == machine).map(|(t, _)| *t).collect();
        for ticket in broken {
            self.asked.remove(&ticket);
            self.finished.push((ticket, None));
        }
        self.note(|| format!("n{machine} crashes"));
    }

    /// Takes the disk of a crashed machine: what starts there again is another node.
    pub(crate) fn lose_disk(&mut self, machine: usize) {
        let incarnation = self.random.next();
        let place = &mut self.machines[machine];
        assert!(place.process.is_none());
        self.lost.push((place.peer.node, std::mem::take(&mut place.disk)));
        place.peer.node.incarnation = incarnation;
        place.boot = 0;
        self.note(|| format!("n{machine} lost its disk"));
    }

    /// Stops the process without ending it; what reaches it waits.
    pub(crate) fn pause(&mut self, machine: usize) {
        self.machines[machine].paused = true;
        self.machines[machine].disturbed = self.now;
        self.note(|| format!("n{machine} paused"));
    }

    /// Lets a paused process go on.
    pub(crate) fn resume(&mut self, machine: usize) {
        self.note(|| format!("n{machine} resumed"));
        let now = self.now;
        let place = &mut self.machines[machine];
        place.paused = false;
        place.disturbed = now;
        let backlog = std::mem::take(&mut place.backlog);
        for event in backlog {
            self.handle(machine, event);
        }
        self.handle(machine, Event::Tick);
    }

    /// The machine's disk becomes too full to store anything, or has room again.
    pub(crate) fn fill_disk(&mut self, machine: usize, disk_full: bool) {
        self.handle(machine, Event::Measured(Load { disk_full, ..Load::default() }));
    }

    /// Asks a machine to leave; when it is drained, it is stopped for good.
    pub(crate) fn leave(&mut self, machine: usize) {
        self.machines[machine].leaving = true;
        self.request(machine, Request::Leave);
    }

    pub(crate) fn is_running(&self, machine: usize) -> bool {
        self.machines[machine].process.is_some()
    }

    /// The machines whose processes run and are not paused.
    pub(crate) fn awake(&self) -> Vec<usize> {
        let all = 0..self.machines.len();
        all.filter(|m| self.is_running(*m) && !self.machines[*m].paused).collect()
    }

    /// The machines that belong to the ring, or will when all is well.
    pub(crate) fn expected(&self) -> Vec<usize> {
        (0..self.machines.len()).filter(|m| !self.machines[*m].gone).collect()
    }

    /// Hands a request to a node. The answer comes out of [`Self::take_finished`].
    pub(crate) fn request(&mut self, machine: usize, request: Request) -> Ticket {
        let ticket = Ticket(self.number());
        let key = match &request {
            Request::Operate { operation, .. } => key_of(operation).cloned(),
            _ => None,
        };
        self.asked.insert(ticket, (machine, key));
        self.handle(machine, Event::Request { ticket, request });
        ticket
    }

    /// Answers, and tickets whose process died before it answered.
    pub(crate) fn take_finished(&mut self) -> Vec<(Ticket, Option<Reply>)> {
        std::mem::take(&mut self.finished)
    }

    /// Asks, and lets time pass until the answer comes.
    pub(crate) fn ask(&mut self, machine: usize, request: Request) -> Reply {
        let ticket = self.request(machine, request);
        let end = self.now + Duration::from_secs(10);
        while self.now < end {
            match self.take_reply(ticket) {
                Some(reply) => return reply.expect("no crash in between"),
                None => self.step(),
            };
        }
        panic!("n{machine} does not answer");
    }

    fn take_reply(&mut self, ticket: Ticket) -> Option<Option<Reply>> {
        let at = self.finished.iter().position(|(other, _)| *other == ticket)?;
        Some(self.finished.remove(at).1)
    }

    /// Carries out an operation through a machine, letting time pass.
    pub(crate) fn operate(
        &mut self,
        machine: usize,
        operation: Operation,
    ) -> Result<Answer, Failure> {
        let id = RequestId::at(self.now.as_micros(), self.random.next());
        let budget = Duration::from_secs(5);
        match self.ask(machine, Request::Operate { id, retry: false, operation, budget }) {
            Reply::Operated(outcome) => outcome,
            other => panic!("not the answer to an operation: {other:?}"),
        }
    }

    /// What a node reports; none if it cannot answer.
    pub(crate) fn view(&mut self, machine: usize) -> Option<View> {
        if !self.is_running(machine) || self.machines[machine].paused {
            return None;
        }
        let ticket = self.request(machine, Request::View);
        match self.take_reply(ticket) {
            Some(Some(Reply::View(view))) => Some(*view),
            other => panic!("a view is answered at once, not {other:?}"),
        }
    }

    /// Whether the ring is right, by the reports of all that should form it.
    pub(crate) fn verdict(&mut self) -> Verdict {
        let mut reports = Vec::new();
        for machine in self.expected() {
            reports.push((self.machines[machine].peer.clone(), self.view(machine)));
        }
        sky_chord::check(&reports, self.settings.replicas, self.settings.successors)
    }

    /// Lets the ring come to rest; fails if it is not right within a virtual minute.
    pub(crate) fn settle(&mut self) {
        if !self.run_until(Duration::from_secs(60), |cluster| cluster.verdict().right) {
            let verdict = self.verdict();
            panic!("at {:?} the ring is not right: {:#?}", self.now, verdict.problems);
        }
    }

    pub(crate) fn run_for(&mut self, duration: Duration) {
        self.run_until(duration, |_| false);
    }

    /// Lets time pass until the condition holds, looked at with every sample; false if it never did.
    pub(crate) fn run_until(
        &mut self,
        limit: Duration,
        mut condition: impl FnMut(&mut Self) -> bool,
    ) -> bool {
        let end = self.now + limit;
        while self.now < end {
            if self.step() == Step::Sample && condition(self) {
                return true;
            }
        }
        false
    }

    /// Makes a later step return [`Step::Alarm`].
    pub(crate) fn alarm(&mut self, after: Duration, alarm: u64) {
        self.schedule(after, What::Alarm(alarm));
    }

    /// Does the next thing that happens.
    pub(crate) fn step(&mut self) -> Step {
        let ((at, _), what) = self.queue.pop_first().expect("there is always a next sample");
        self.now = at;
        self.count_step();
        match what {
            What::Alarm(alarm) => return Step::Alarm(alarm),
            What::Sample => {
                self.sample();
                self.schedule(SAMPLE_EVERY, What::Sample);
                return Step::Sample;
            }
            What::Deliver { machine, to, sender, from, message } => {
                if self.is_running(machine) && self.machines[machine].peer.node == to {
                    self.note(|| format!("n{machine} < n{sender} {message:?}"));
                    self.handle(machine, Event::Receive { from, message });
                } else if self.network.refuses(sender, machine) {
                    self.handle(sender, Event::Unreachable { node: to });
                }
            }
            What::ToProcess { machine, process, event } => {
                if self.machines[machine].is_process(process) {
                    self.handle(machine, event);
                }
            }
            What::Tick { machine, process } => self.tick(machine, process),
            What::Synced { machine, process } => self.synced(machine, process),
            What::Contact { machine, process } => self.contact(machine, process),
        }
        Step::Other
    }

    fn count_step(&mut self) {
        let second = self.now.as_micros() / 1_000_000;
        let count = if self.second.0 == second { self.second.1 + 1 } else { 0 };
        self.second = (second, count);
        assert!(count < STEPS_PER_SECOND_MAX, "nodes talk in circles at {:?}", self.now);
    }

    fn tick(&mut self, machine: usize, process: u64) {
        if !self.machines[machine].is_process(process) {
            return;
        }
        let now = self.now;
        let running = self.machines[machine].process.as_mut().expect("it runs");
        if running.wake == Some(now) {
            running.wake = None;
            self.handle(machine, Event::Tick);
        }
    }

    fn synced(&mut self, machine: usize, process: u64) {
        if !self.machines[machine].is_process(process) {
            return;
        }
        if let Some(seq) = self.machines[machine].disk.finish_sync() {
            let after = self.random.between(Duration::ZERO, Duration::from_micros(200));
            let event = Event::Persisted { seq };
            self.schedule(after, What::ToProcess { machine, process, event });
        }
        if self.machines[machine].disk.start_sync() {
            self.schedule_sync(machine, process);
        }
    }

    fn schedule_sync(&mut self, machine: usize, process: u64) {
        let (least, most) = self.machines[machine].sync;
        let after = self.random.between(least, most);
        self.schedule(after, What::Synced { machine, process });
    }

    /// A node that is not in the ring asks one of the others, like an agent its join addresses.
    fn contact(&mut self, machine: usize, process: u64) {
        if !self.machines[machine].is_process(process) {
            return;
        }
        self.schedule(CONTACT_EVERY, What::Contact { machine, process });
        let is_out = |phase| matches!(phase, Phase::Waiting | Phase::Joining);
        if !self.view(machine).is_some_and(|view| is_out(view.phase)) {
            return;
        }
        let mut others = self.awake();
        others.retain(|o| *o != machine && self.network.passes(machine, *o));
        others.retain(|o| self.network.passes(*o, machine));
        let Some(other) = self.random.pick(&others) else { return };
        let ring = self.view(other).and_then(|view| view.ring).map(|_| RING);
        let peer = self.machines[other].peer.clone();
        self.handle(machine, Event::Contact { peer, ring });
    }

    /// Looks at all views: nothing they say may contradict what was seen before.
    fn sample(&mut self) {
        let mut reports = Vec::new();
        for machine in 0..self.machines.len() {
            let Some(view) = self.view(machine) else { continue };
            self.watch.on_view(&view);
            let phase = view.phase;
            reports.push(view);
            if phase == Phase::Drained {
                self.crash(machine);
                self.machines[machine].gone = true;
            } else if phase == Phase::Up && self.machines[machine].leaving {
                self.leave(machine);
            }
        }
        if self.asserts_ring {
            let states =
                reports.into_iter().map(|v: View| (v.me.node, v.predecessor, v.successors));
            let checked = zave_invariant(&states.collect::<Vec<_>>(), self.settings.successors);
            checked.unwrap_or_else(|problem| panic!("at {:?}: {problem}", self.now));
        }
    }

    fn handle(&mut self, machine: usize, event: Event) {
        let now = self.now.as_micros();
        let place = &mut self.machines[machine];
        let Some(process) = &mut place.process else { return };
        if place.paused {
            place.backlog.push_back(event);
            return;
        }
        process.node.handle(Time::from_micros(now + process.skew), event);
        self.drain(machine);
        for (machine, key, version) in std::mem::take(&mut self.stored) {
            let asked =
                if self.watch.knows(&key, version.epoch) { vec![machine] } else { self.awake() };
            for view in
                asked.into_iter().filter_map(|machine| self.view(machine)).collect::<Vec<_>>()
            {
                self.watch.on_view(&view);
            }
            let now = self.machines.iter().map(|place| (place.peer.node, &place.disk));
            let disks: Vec<_> = now.chain(self.lost.iter().map(|(n, disk)| (*n, disk))).collect();
            self.watch.on_stored(&key, version, &disks);
        }
    }

    /// Does all that a node wants done.
    fn drain(&mut self, machine: usize) {
        loop {
            let Some(process) = &mut self.machines[machine].process else { return };
            let number = process.number;
            match process.node.poll() {
                Output::Send { to, message } => self.send(machine, to, message),
                Output::Persist { seq, writes } => {
                    if self.machines[machine].disk.write(seq, writes) {
                        self.schedule_sync(machine, number);
                    }
                }
                Output::Reply { ticket, reply } => self.reply(ticket, reply),
                Output::Notify(notice) => {
                    self.note(|| format!("n{machine} ! {notice:?}"));
                    self.notices.push((machine, notice));
                }
                Output::Wait { until } => {
                    self.wait(machine, until);
                    return;
                }
            }
        }
    }

    fn wait(&mut self, machine: usize, until: Option<Time>) {
        let now = self.now;
        let Some(process) = &mut self.machines[machine].process else { return };
        let soonest = now + Duration::from_micros(1);
        let wake = until.map(|until| {
            Time::from_micros(until.as_micros().saturating_sub(process.skew)).max(soonest)
        });
        if wake != process.wake {
            process.wake = wake;
            let number = process.number;
            if let Some(at) = wake {
                self.schedule(at - now, What::Tick { machine, process: number });
            }
        }
    }

    fn send(&mut self, sender: usize, to: Peer, message: sky_chord::Message) {
        if let Some(bytes) = self.data_bytes.as_mut().filter(|_| is_about_data(&message.body)) {
            *bytes += postcard::to_stdvec(&message).expect("it can be encoded").len();
        }
        let from = self.machines[sender].peer.clone();
        assert_ne!(from.node, to.node, "what a node says to itself stays inside: {message:?}");
        self.watch.on_send(&from, &to, &message, &self.machines[sender].disk);
        self.note(|| format!("n{sender} > {} {message:?}", to.address));
        let known = self.machines.iter().position(|place| place.peer.address == to.address);
        let machine = known.expect("an address of the cluster");
        for after in self.network.deliveries(sender, machine) {
            let (from, message) = (from.clone(), message.clone());
            self.schedule(after, What::Deliver { machine, to: to.node, sender, from, message });
        }
    }

    fn reply(&mut self, ticket: Ticket, reply: Reply) {
        let (machine, key) = self.asked.remove(&ticket).expect("one answer to each request");
        if !matches!(reply, Reply::View(_)) {
            self.note(|| format!("n{machine} answers {reply:?}"));
        }
        if let (Some(key), Reply::Operated(Ok(Answer::Stored { version, .. }))) = (key, &reply) {
            self.stored.push((machine, key, *version));
        }
        self.finished.push((ticket, Some(reply)));
    }

    fn schedule(&mut self, after: Duration, what: What) {
        let number = self.number();
        self.queue.insert((self.now + after, number), what);
    }

    fn number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// The configurations in force, as far as anybody said: the latest of each point of the circle.
    pub(crate) fn configs(&self) -> Vec<Config> {
        self.watch.latest_configs()
    }

    #[expect(clippy::print_stderr, reason = "asked for by SKY_TRACE")]
    fn note(&self, line: impl FnOnce() -> String) {
        if self.trace {
            eprintln!("{:>12} {}", self.now.as_micros(), line());
        }
    }
}

/// The key that an operation is about.
pub(crate) fn key_of(operation: &Operation) -> Option<&Key> {
    match operation {
        Operation::Get { key, .. } | Operation::Put { key, .. } | Operation::Delete { key, .. } => {
            Some(key)
        }
        Operation::List { .. } => None,
    }
}

fn is_about_data(body: &Body) -> bool {
    use Body::*;
    matches!(
        body,
        Prepare { .. }
            | Promised { .. }
            | Accept { .. }
            | Accepted
            | Read { .. }
            | Held { .. }
            | Scan { .. }
            | Scanned { .. }
            | Digest { .. }
            | Digested { .. }
    )
}

/// Position `index` of `count` that divide the circle evenly.
pub(crate) fn even_position(index: usize, count: usize) -> Id {
    let mut bytes = [0; 20];
    let step = u64::MAX / count as u64;
    bytes[..8].copy_from_slice(&(step * index as u64).to_be_bytes());
    Id::from_bytes(bytes)
}
