//! Machines with real nodes on them, one virtual clock and one queue of what happens next.

mod ask;
mod drive;

use std::collections::BTreeMap;
use std::time::Duration;

use sky_chord::{
    Ballot, Event, Id, Key, Node, NodeId, Notice, Operation, Peer, Phase, Reply, Request, RingId,
    Settings, Start, Ticket, Time, Told, View, WatchId, principals, zave_invariant,
};

use super::clock::{Clock, TRUE_RATE};
use super::disk::Disk;
use super::machine::{Machine, Process};
use super::network::Network;
use super::random::Random;
use super::tamper::Tamper;
use super::watch::{Range, Watch};

/// The ring of every simulation.
pub(crate) const RING: RingId = RingId(0x5c1);
const SAMPLE_EVERY: Duration = Duration::from_millis(100);
const CONTACT_EVERY: Duration = Duration::from_millis(500);
/// How soon a process learns whether its disk is full.
const MEASURED_AFTER: Duration = Duration::from_millis(200);
/// More steps than this within one virtual second mean that nodes talk in circles.
const STEPS_PER_SECOND_MAX: u64 = 400_000;
/// What wall clocks show at the start of virtual time.
const WALL_START: i64 = 1_700_000_000_000_000;

/// A whole simulated ring.
pub(crate) struct Cluster {
    pub(crate) now: Time,
    pub(crate) random: Random,
    pub(crate) network: Network,
    pub(crate) machines: Vec<Machine>,
    pub(crate) watch: Watch,
    pub(crate) settings: Settings,
    /// What the nodes told, with the machine that told it; taken by whoever wants it.
    pub(crate) notices: Vec<(usize, Notice)>,
    /// What watches told, with machine and process; taken by whoever wants it.
    told: Vec<(usize, u64, WatchId, Told)>,
    /// The size of all messages about data, if somebody counts.
    pub(crate) data_bytes: Option<usize>,
    /// Whether the ring pointers have to satisfy Zave's invariant at every sample.
    pub(crate) asserts_ring: bool,
    /// Whether the ring has had more principals than successor lists have entries.
    had_principals: bool,
    /// By how much a clock may be too slow or too fast, in millionths.
    pub(crate) drift: u64,
    /// Whether it began with so few machines that one may have kept a key alone.
    pub(crate) began_small: bool,
    /// By how much wall clocks differ from the truth.
    pub(crate) wall_spread: Duration,
    /// What is done wrong on purpose.
    pub(crate) tamper: Tamper,
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
    Measured { machine: usize, process: u64 },
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
            settings,
            notices: Vec::new(),
            told: Vec::new(),
            data_bytes: None,
            asserts_ring: false,
            had_principals: false,
            drift: 0,
            began_small: false,
            wall_spread: Duration::ZERO,
            tamper: Tamper::default(),
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
        let mut place = Machine::new(Peer { node, address }, self.now);
        place.disk.keeps_undo = self.tamper.wants_undo();
        self.machines.push(place);
        self.set_wall(machine);
        self.start(machine);
        machine
    }

    /// Sets a machine's wall clock anew, ahead or back.
    pub(crate) fn set_wall(&mut self, machine: usize) {
        let spread = self.wall_spread.as_micros() as i64;
        if spread > 0 {
            let off = self.random.below(2 * spread as usize + 1) as i64 - spread;
            self.machines[machine].wall = off;
            self.note(|| format!("n{machine} has its wall clock set to {off} us off"));
        }
    }

    /// What a machine's wall clock shows, in microseconds.
    pub(crate) fn wall(&self, machine: usize) -> u64 {
        let now = self.now.as_micros() as i64;
        (WALL_START + now + self.machines[machine].wall).max(0) as u64
    }

    /// By how much the clock of each machine has gone ahead of virtual time so far, leap by leap.
    pub(crate) fn ahead(&self) -> Vec<u64> {
        self.machines.iter().map(|place| place.ahead).collect()
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
        let rate = match self.drift {
            0 => TRUE_RATE,
            drift => TRUE_RATE - drift + self.random.below(2 * drift as usize + 1) as u64,
        };
        let clock = Clock::new(self.now, self.now.as_micros() + skew, rate);
        let settings = self.settings.clone();
        let wall = self.wall(machine);
        let place = &mut self.machines[machine];
        let set_by = place.anchor.replace(place.wall).map_or(0, |before| place.wall - before);
        place.ahead += set_by.max(0) as u64 + std::mem::take(&mut place.behind);
        assert!(place.process.is_none() && !place.gone);
        self.tamper.on_start(place);
        place.boot += 1;
        place.disturbed = self.now;
        self.watch.on_start(&place.peer.node);
        let (me, boot, meta) = (place.peer.clone(), place.boot, place.disk.meta());
        let start = Start { me, boot, settings, meta, seed, wall };
        let node = Node::start(clock.read(self.now), start, place.disk.reader())
            .expect("its meta records are its own");
        place.process = Some(Process { node, number, clock, wake: None });
        self.note(|| format!("n{machine} starts, boot {boot}"));
        self.drain(machine);
        self.schedule(Duration::from_millis(1), What::Contact { machine, process: number });
        if self.machines[machine].disk_full {
            self.measure(machine);
        }
    }

    /// Kills the process; of what was not yet synced a beginning may survive, or nothing.
    pub(crate) fn crash(&mut self, machine: usize) {
        let now = self.now;
        let random = &mut self.random;
        let place = &mut self.machines[machine];
        place.behind = place.process.take().map_or(0, |process| process.clock.behind(now));
        place.paused = false;
        place.told_failed = false;
        place.backlog.clear();
        place.disturbed = now;
        self.tamper.on_power_cut(place);
        let survived = place.disk.cut(random);
        self.tamper.after_power_cut(place);
        self.watch.on_durable(&place.peer, &survived);
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

    /// Lets the clock of a process leap ahead.
    pub(crate) fn leap(&mut self, machine: usize, by: Duration) {
        let now = self.now;
        let Some(process) = &mut self.machines[machine].process else { return };
        process.clock.leap(now, by);
        self.machines[machine].ahead += by.as_micros() as u64;
        self.note(|| format!("the clock of n{machine} leaps ahead by {by:?}"));
        self.handle(machine, Event::Tick);
    }

    /// Fills the disk of a machine, or makes room on it.
    pub(crate) fn fill(&mut self, machine: usize, full: bool) {
        self.machines[machine].disk_full = full;
        self.note(|| format!("the disk of n{machine} is {}", if full { "full" } else { "roomy" }));
        self.measure(machine);
    }

    /// Lets a process learn soon how its disk is.
    fn measure(&mut self, machine: usize) {
        let after = self.random.between(Duration::ZERO, MEASURED_AFTER);
        if let Some(process) = self.machines[machine].process.as_ref().map(|p| p.number) {
            self.schedule(after, What::Measured { machine, process });
        }
    }

    /// Asks a machine to leave; when it is drained, it is stopped for good.
    pub(crate) fn leave(&mut self, machine: usize) {
        self.machines[machine].leaving = true;
        self.request(machine, Request::Leave);
    }

    pub(crate) fn is_running(&self, machine: usize) -> bool {
        self.machines[machine].process.is_some()
    }

    /// Which process runs on a machine.
    pub(crate) fn process(&self, machine: usize) -> Option<u64> {
        self.machines[machine].process.as_ref().map(|process| process.number)
    }

    /// The machines whose processes run.
    pub(crate) fn running(&self) -> Vec<usize> {
        (0..self.machines.len()).filter(|m| self.is_running(*m)).collect()
    }

    /// The machines whose processes run and are not paused.
    pub(crate) fn awake(&self) -> Vec<usize> {
        let all = 0..self.machines.len();
        all.filter(|m| self.is_running(*m) && !self.machines[*m].paused).collect()
    }

    /// The machines whose nodes are members of the ring.
    pub(crate) fn joined(&self) -> Vec<usize> {
        let phase = |m: &usize| self.machines[*m].process.as_ref().map(|p| p.node.phase());
        let is_up = |m: &usize| matches!(phase(m), Some(Phase::Up | Phase::Leaving));
        self.awake().into_iter().filter(is_up).collect()
    }

    /// The machines that belong to the ring, or will when all is well.
    pub(crate) fn expected(&self) -> Vec<usize> {
        (0..self.machines.len()).filter(|m| !self.machines[*m].gone).collect()
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
                self.deliver(machine, to, sender, from, message);
            }
            What::ToProcess { machine, process, event } => {
                if self.machines[machine].is_process(process) {
                    self.handle(machine, event);
                }
            }
            What::Tick { machine, process } => self.tick(machine, process),
            What::Synced { machine, process } => self.synced(machine, process),
            What::Contact { machine, process } => self.contact(machine, process),
            What::Measured { machine, process } => self.measured(machine, process),
        }
        Step::Other
    }

    fn count_step(&mut self) {
        let second = self.now.as_micros() / 1_000_000;
        let count = if self.second.0 == second { self.second.1 + 1 } else { 0 };
        self.second = (second, count);
        assert!(count < STEPS_PER_SECOND_MAX, "nodes talk in circles at {:?}", self.now);
    }

    /// A node that is not in the ring asks one of the others, like an agent its join addresses.
    fn contact(&mut self, machine: usize, process: u64) {
        if !self.machines[machine].is_process(process) {
            return;
        }
        self.schedule(CONTACT_EVERY, What::Contact { machine, process });
        let place = &self.machines[machine];
        let phase = place.process.as_ref().map(|running| running.node.phase());
        if place.paused || !matches!(phase, Some(Phase::Waiting | Phase::Joining)) {
            return;
        }
        let mut others = self.awake();
        others.retain(|o| *o != machine && self.network.passes(machine, *o));
        others.retain(|o| self.network.passes(*o, machine));
        let Some(other) = self.random.pick(&others) else { return };
        let place = &self.machines[other];
        let ring = place.process.as_ref().and_then(|running| running.node.ring());
        let peer = place.peer.clone();
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
            let members =
                reports.into_iter().filter(|view| matches!(view.phase, Phase::Up | Phase::Leaving));
            let states = members.map(|v: View| (v.me.node, v.predecessor, v.successors));
            let (states, r) = (states.collect::<Vec<_>>(), self.settings.successors);
            let has_principals = principals(&states) > r;
            self.had_principals = has_principals || self.had_principals && states.len() > r + 1;
            let checked = zave_invariant(&states, r, self.had_principals);
            checked.unwrap_or_else(|problem| panic!("at {:?}: {problem}", self.now));
        }
    }

    fn schedule(&mut self, after: Duration, what: What) {
        let number = self.number();
        self.queue.insert((self.now + after, number), what);
    }

    fn number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// The configurations that are decided: the latest of each point of the circle.
    pub(crate) fn configs(&self) -> Vec<Range> {
        self.watch.latest()
    }

    #[expect(clippy::print_stderr, reason = "asked for by SKY_TRACE")]
    pub(crate) fn note(&self, line: impl FnOnce() -> String) {
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

/// Position `index` of `count` that divide the circle evenly.
pub(crate) fn even_position(index: usize, count: usize) -> Id {
    let mut bytes = [0; 20];
    let step = u64::MAX / count as u64;
    bytes[..8].copy_from_slice(&(step * index as u64).to_be_bytes());
    Id::from_bytes(bytes)
}
