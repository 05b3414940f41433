//! Does to the agents what the schedule says, and undoes it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::agents::{Agents, Astray, State};
use crate::history::History;
use crate::rig::SLOTS;
use crate::schedule::{Fault, Step};
use crate::{is_interrupted, say};

/// How long a ring without faults may take to become right.
const RIGHT_WITHIN: Duration = Duration::from_secs(180);
/// How long is waited for a right ring before a silence is measured; after that it is not measured.
const CALM_WITHIN: Duration = Duration::from_secs(45);
/// How often the agents are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// What is left free on a disk that is nearly full: less than the agents keep free.
const ROOM_LEFT: u64 = 32 << 20;
/// A late network.
const LATE: &[&str] = &["netem", "delay", "100ms", "50ms"];
/// A thin one, where the kernel cannot delay packets: a hundred kilobytes a second, and up to half a
/// second in the queue.
const THIN: &[&str] = &["tbf", "rate", "800kbit", "burst", "16k", "latency", "500ms"];

/// Why the faults end before their time.
#[derive(Debug)]
pub(crate) enum Halt {
    /// Ctrl-C.
    Interrupted,
    /// The test itself cannot go on.
    Broken(String),
}

impl From<String> for Halt {
    fn from(why: String) -> Self {
        Self::Broken(why)
    }
}

/// A single crash or pause of a ring that was right: the silence of its keys is measured.
#[derive(Debug)]
pub(crate) struct Measured {
    /// The kind.
    pub(crate) what: &'static str,
    /// Who suffered it.
    pub(crate) whom: String,
    /// In nanoseconds of the history.
    pub(crate) from: u64,
    pub(crate) until: u64,
}

/// Who hears whom, and how well.
#[derive(Debug, Default)]
struct Network {
    /// (who hears nothing, of whom)
    cut: BTreeSet<(usize, usize)>,
    /// Percent of all packets between nodes.
    loss: u8,
    slow: BTreeSet<usize>,
}

/// Carries out faults.
pub(crate) struct Nemesis<'a> {
    pub(crate) agents: Agents,
    /// Faults by kind.
    pub(crate) counts: BTreeMap<&'static str, usize>,
    pub(crate) measured: Vec<Measured>,
    /// What agents did that no fault explains.
    pub(crate) anomalies: Vec<String>,
    network: Network,
    /// Nodes whose disks have little room or none: their agents may end, since their stores fail.
    full: BTreeSet<usize>,
    /// What the firewall and the queue of each node were set to last.
    applied: BTreeMap<usize, (String, bool)>,
    history: &'a History,
    /// When the agents were looked at last.
    looked: Instant,
    /// How a slow network is made: with netem if the kernel has it.
    queue: &'static [&'static str],
}

impl<'a> Nemesis<'a> {
    pub(crate) fn new(agents: Agents, history: &'a History) -> Self {
        let add = [&["tc", "qdisc", "add", "dev", "lo", "root"], LATE].concat();
        let has_netem = agents.inside(0, &add, "").is_ok();
        if has_netem {
            agents.inside(0, &["tc", "qdisc", "del", "dev", "lo", "root"], "").ok();
        } else {
            say("this kernel has no netem: slow networks are thin ones (tbf), not late ones");
        }
        Self {
            agents,
            counts: BTreeMap::new(),
            measured: Vec::new(),
            anomalies: Vec::new(),
            network: Network::default(),
            full: BTreeSet::new(),
            applied: BTreeMap::new(),
            history,
            looked: Instant::now(),
            queue: if has_netem { LATE } else { THIN },
        }
    }

    /// One step of the schedule, from its faults to their end.
    pub(crate) fn step(&mut self, step: &Step, deadline: Instant) -> Result<(), Halt> {
        let mut is_measured = step.is_measured;
        if is_measured && self.wait_until_right(CALM_WITHIN.min(left(deadline)))?.is_some() {
            is_measured = false;
        }
        if left(deadline).is_zero() {
            return Ok(());
        }
        // The keys that suffer shall have been well just before.
        let from = self.history.now();
        for fault in &step.faults {
            say(&format!("{fault:?} for {:.1} s", step.hold.as_secs_f64()));
            *self.counts.entry(fault.kind()).or_default() += 1;
            self.begin(fault)?;
        }
        let until = Instant::now() + step.hold;
        while Instant::now() < until {
            self.sleep(Duration::from_millis(100))?;
            self.look()?;
        }
        if let (true, [fault]) = (is_measured, &step.faults[..]) {
            let (what, whom) = (fault.kind(), format!("{fault:?}"));
            self.measured.push(Measured { what, whom, from, until: self.history.now() });
        }
        for fault in &step.faults {
            self.end(fault)?;
        }
        self.sleep(step.rest.min(left(deadline)))?;
        self.look()
    }

    fn running(&self, nodes: &BTreeSet<usize>) -> Vec<usize> {
        let is_running = |slot: &usize| self.agents.board.get(*slot) == State::Running;
        nodes.iter().copied().filter(is_running).collect()
    }

    pub(crate) fn begin(&mut self, fault: &Fault) -> Result<(), Halt> {
        match fault {
            Fault::Crash(nodes) => {
                for slot in self.running(nodes) {
                    self.agents.kill(slot)?;
                }
            }
            Fault::Pause(nodes) => {
                for slot in self.running(nodes) {
                    self.agents.freeze(slot)?;
                }
            }
            Fault::Restart(slot) => {
                if self.agents.board.get(*slot) == State::Running {
                    self.agents.stop(*slot)?;
                    self.start(*slot)?;
                }
            }
            Fault::Partition(nodes) => {
                let (one, other): (Vec<_>, Vec<_>) = (0..SLOTS).partition(|s| nodes.contains(s));
                for (a, b) in one.iter().flat_map(|a| other.iter().map(move |b| (*a, *b))) {
                    self.network.cut.extend([(a, b), (b, a)]);
                }
            }
            Fault::Mute(slot) => self.network.cut.extend((0..SLOTS).map(|other| (other, *slot))),
            Fault::Deaf(slot) => self.network.cut.extend((0..SLOTS).map(|other| (*slot, other))),
            Fault::Neighbours => {
                let there: Vec<usize> = self.agents.in_order();
                for (i, a) in there.iter().enumerate() {
                    for (j, b) in there.iter().enumerate() {
                        let apart = (i + there.len() - j) % there.len();
                        if apart > 1 && apart < there.len() - 1 {
                            self.network.cut.insert((*a, *b));
                        }
                    }
                }
            }
            Fault::Loss(percent) => self.network.loss = *percent,
            Fault::Slow(slot) => drop(self.network.slow.insert(*slot)),
            Fault::DiskLow(nodes) => {
                self.full.extend(nodes);
                for slot in nodes {
                    self.fill(*slot, ROOM_LEFT)?;
                }
            }
            Fault::DiskFull(slot) => {
                self.full.insert(*slot);
                self.fill(*slot, 0)?;
            }
            Fault::Join(slot) => self.join(*slot)?,
            Fault::Leave(slot) => {
                // It may be down, or not yet a member. The schedule has taken it off its list: it goes
                // later.
                if let Err(error) = self.agents.leave(*slot) {
                    say(&format!("n{slot} is asked to leave later: {error}"));
                }
            }
        }
        self.set_network()
    }

    fn end(&mut self, fault: &Fault) -> Result<(), Halt> {
        match fault {
            Fault::Crash(nodes) => {
                for slot in nodes {
                    if self.agents.board.get(*slot) == State::Dead {
                        self.start(*slot)?;
                    }
                }
            }
            Fault::Pause(nodes) => {
                for slot in nodes {
                    if self.agents.board.get(*slot) == State::Frozen {
                        self.agents.thaw(*slot)?;
                    }
                }
            }
            Fault::DiskLow(nodes) => {
                for slot in nodes {
                    self.make_room(*slot)?;
                }
            }
            Fault::DiskFull(slot) => {
                if self.agents.board.get(*slot) == State::Running {
                    self.agents.kill(*slot)?;
                }
                self.make_room(*slot)?;
            }
            Fault::Partition(_) | Fault::Mute(_) | Fault::Deaf(_) | Fault::Neighbours => {
                self.network.cut.clear();
            }
            Fault::Loss(_) => self.network.loss = 0,
            Fault::Slow(slot) => drop(self.network.slow.remove(slot)),
            Fault::Restart(_) | Fault::Join(_) | Fault::Leave(_) => {}
        }
        self.set_network()
    }

    /// A node is added in this place, which another may just be about to leave.
    fn join(&mut self, slot: usize) -> Result<(), Halt> {
        let begun = Instant::now();
        while self.agents.board.get(slot) != State::Absent {
            if begun.elapsed() > RIGHT_WITHIN {
                let view = self.agents.view(slot).map(|view| view.phase);
                self.anomalies.push(format!("n{slot} does not finish leaving: {view:?}"));
                return Err(Halt::Broken("a node does not leave".to_owned()));
            }
            self.sleep(Duration::from_millis(200))?;
            self.look()?;
        }
        self.start(slot)
    }

    /// Starts an agent. A container has its network anew then.
    fn start(&mut self, slot: usize) -> Result<(), Halt> {
        self.agents.launch(slot)?;
        if self.agents.network_is_new_with_agent() {
            self.applied.remove(&slot);
            self.set_network()?;
        }
        Ok(())
    }

    /// Firewalls and queues as they should be now.
    fn set_network(&mut self) -> Result<(), Halt> {
        for slot in 0..SLOTS {
            if self.agents.network_is_new_with_agent()
                && !matches!(self.agents.board.get(slot), State::Running | State::Frozen)
            {
                continue;
            }
            let (rules, slow) = (self.rules(slot), self.network.slow.contains(&slot));
            let (before, was_slow) = self.applied.get(&slot).cloned().unwrap_or_default();
            if before != rules {
                self.agents.inside(slot, &["nft", "-f", "-"], &rules)?;
            }
            if was_slow != slow {
                let (verb, queue) = if slow { ("add", self.queue) } else { ("del", &[][..]) };
                let command = [&["tc", "qdisc", verb, "dev", "eth0", "root"], queue].concat();
                self.agents.inside(slot, &command, "")?;
            }
            self.applied.insert(slot, (rules, slow));
        }
        Ok(())
    }

    /// What a node does not hear. Clients are heard always.
    fn rules(&self, slot: usize) -> String {
        let mut rules = "add table inet nemesis\ndelete table inet nemesis\ntable inet nemesis {\n\
                         chain heard {\ntype filter hook input priority 0; policy accept;\n"
            .to_owned();
        let of = |other: usize| self.agents.rig.node_address(other);
        for (_, other) in self.network.cut.iter().filter(|(hears, _)| *hears == slot) {
            // Writing to a String cannot fail.
            let _ = writeln!(rules, "ip saddr {} drop", of(*other));
        }
        if self.network.loss > 0 {
            let (host, loss) = (self.agents.rig.host_address(), self.network.loss);
            let lost = format!("numgen random mod 100 < {loss} drop");
            let _ = writeln!(rules, "iifname \"eth0\" ip saddr != {host} {lost}");
        }
        rules + "}\n}\n"
    }

    fn ballast(&self, slot: usize) -> PathBuf {
        self.agents.rig.disk(slot).join("ballast")
    }

    /// Takes all room of a disk but so much.
    fn fill(&self, slot: usize, left: u64) -> Result<(), Halt> {
        let failed =
            |error: std::io::Error| format!("the disk of n{slot} cannot be filled: {error}");
        let disk = self.agents.rig.disk(slot);
        let file = fs::File::create(self.ballast(slot)).map_err(failed)?;
        let room = rustix::fs::statvfs(&disk).map_err(|error| failed(error.into()))?;
        let take = (room.f_bavail * room.f_frsize).saturating_sub(left);
        let flags = rustix::fs::FallocateFlags::empty();
        match rustix::fs::fallocate(&file, flags, 0, take.max(1)) {
            // The agent was quicker: it is full then.
            Ok(()) | Err(rustix::io::Errno::NOSPC) => Ok(()),
            Err(error) => Err(failed(error.into()).into()),
        }
    }

    /// There is room again. An agent ends when its store fails, and is started again by whoever runs it.
    fn make_room(&mut self, slot: usize) -> Result<(), Halt> {
        self.free(slot)?;
        self.look_at_all()?;
        self.full.remove(&slot);
        if self.agents.board.get(slot) == State::Dead { self.start(slot) } else { Ok(()) }
    }

    fn free(&self, slot: usize) -> Result<(), Halt> {
        match fs::remove_file(self.ballast(slot)) {
            // Two faults at once may fill the same disk.
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(format!("the disk of n{slot} cannot be freed: {error}").into())
            }
            _ => Ok(()),
        }
    }

    /// What has happened by itself: nodes that have left, and agents that ended.
    fn look(&mut self) -> Result<(), Halt> {
        if self.looked.elapsed() < LOOK_EVERY { Ok(()) } else { self.look_at_all() }
    }

    fn look_at_all(&mut self) -> Result<(), Halt> {
        self.looked = Instant::now();
        for Astray { slot, ended, what } in self.agents.gone_astray() {
            if ended && self.full.contains(&slot) {
                say(&format!("{what}; its disk has no room"));
                continue;
            }
            say(&what);
            self.anomalies.push(what);
        }
        Ok(self.agents.take_away_drained()?)
    }

    fn sleep(&self, time: Duration) -> Result<(), Halt> {
        let until = Instant::now() + time;
        loop {
            if is_interrupted() {
                return Err(Halt::Interrupted);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(Duration::from_millis(50)));
        }
    }

    /// Waits until the ring is right; what is not, if it does not become so in time.
    pub(crate) fn wait_until_right(
        &mut self,
        within: Duration,
    ) -> Result<Option<Vec<String>>, Halt> {
        let begun = Instant::now();
        loop {
            self.look()?;
            let problems = self.agents.problems();
            if problems.is_empty() {
                return Ok(None);
            }
            if begun.elapsed() > within {
                return Ok(Some(problems));
            }
            self.sleep(Duration::from_millis(100))?;
        }
    }

    /// After the last fault: everything that was begun is finished, and the ring has to become right.
    pub(crate) fn calm(&mut self) -> Result<Duration, Halt> {
        let begun = Instant::now();
        for slot in self.agents.board.all(State::Dead) {
            self.start(slot)?;
        }
        if let Some(problems) = self.wait_until_right(RIGHT_WITHIN)? {
            let problems = problems.join("\n    ");
            self.anomalies.push(format!(
                "the ring is not right {RIGHT_WITHIN:?} after the last fault:\n    {problems}"
            ));
        }
        Ok(begun.elapsed())
    }
}

fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}
