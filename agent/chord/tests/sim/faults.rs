//! What goes wrong, chosen by the seed: each fault has its end, and each seed its own mix.

use std::collections::BTreeMap;
use std::time::Duration;

use super::cluster::Cluster;
use super::machine::GOOD_SYNC;
use super::network::Quality;
use super::random::Random;
use super::watch::Range;

/// The alarm for the next fault; higher ones end a fault.
const FAULT: u64 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// One process dies and is started again.
    Crash,
    /// All processes die at once and are started again.
    PowerCut,
    /// A process is stopped and goes on later, unaware.
    Pause,
    /// Two groups cannot reach each other, or one cannot be heard.
    Partition,
    /// What one machine sends vanishes, or what is sent to it.
    HalfDeaf,
    /// Some directions between machines are cut, so that not everybody can reach everybody.
    HoleyMesh,
    /// On some links messages are lost, doubled and late.
    BadLinks,
    /// Some directions deliver nothing for a while, and then everything at once.
    Clog,
    /// A disk takes long to sync.
    SlowDisk,
    /// A disk has no room, later it has again.
    FullDisk,
    /// A write fails. The process refuses everything until somebody starts it again.
    BrokenDisk,
    /// The clock of a process leaps ahead.
    Leap,
    /// Wall clocks are set to something else, also back.
    WallClock,
    /// A machine is added.
    Join,
    /// A node hands over its data and leaves.
    Leave,
    /// A process dies and its disk with it. An empty node may come in its place.
    LostDisk,
}

impl Kind {
    pub(crate) const ALL: [Self; 16] = [
        Self::Crash,
        Self::PowerCut,
        Self::Pause,
        Self::Partition,
        Self::HalfDeaf,
        Self::HoleyMesh,
        Self::BadLinks,
        Self::Clog,
        Self::SlowDisk,
        Self::FullDisk,
        Self::BrokenDisk,
        Self::Leap,
        Self::WallClock,
        Self::Join,
        Self::Leave,
        Self::LostDisk,
    ];

    /// Some of the kinds, or those named in `SKY_FAULTS` (as in `Crash,Pause`).
    pub(crate) fn draw(random: &mut Random) -> Vec<Self> {
        let named = std::env::var("SKY_FAULTS").ok();
        let share = random.pick(&[0.2, 0.4, 0.7]).expect("a share");
        let wanted = |kind: &Self| match &named {
            Some(names) => names.split(',').any(|name| name == format!("{kind:?}")),
            None => random.chance(share),
        };
        Self::ALL.into_iter().filter(wanted).collect()
    }

    /// Whether nobody gets so slow by this that others do his work.
    pub(crate) const fn delays_nobody(self) -> bool {
        matches!(self, Self::FullDisk | Self::WallClock | Self::Leap)
    }

    /// Whether Zave's invariant is promised all the same: no live node is taken for dead by this, and
    /// none dies.
    const fn keeps_the_ring(self) -> bool {
        matches!(self, Self::Join | Self::SlowDisk | Self::FullDisk | Self::WallClock)
    }
}

#[derive(Debug, Clone, Copy)]
enum End {
    Restart(usize),
    Resume(usize),
    Heal,
    GoodLinks,
    FastDisk(usize),
    Room(usize),
    Repair(usize),
}

/// The faults of one run.
pub(crate) struct Faults {
    random: Random,
    kinds: Vec<Kind>,
    ends: BTreeMap<u64, End>,
    last_alarm: u64,
    /// How many machines there may be.
    machines_max: usize,
    /// The longest pause between two faults.
    calm: Duration,
    open: bool,
    /// Whether no fault so far was one that Zave's model leaves out.
    spare_the_ring: bool,
}

impl Faults {
    pub(crate) fn new(mut random: Random, kinds: Vec<Kind>, machines_max: usize) -> Self {
        let calm = random.pick(&[1, 4, 4, 10]).map(Duration::from_secs).expect("a pause");
        Self {
            random,
            kinds,
            ends: BTreeMap::new(),
            last_alarm: FAULT,
            machines_max,
            calm,
            open: true,
            spare_the_ring: true,
        }
    }

    /// Whether no fault so far was one that Zave's model leaves out.
    pub(crate) const fn spare_the_ring(&self) -> bool {
        self.spare_the_ring
    }

    pub(crate) fn kinds(&self) -> &[Kind] {
        &self.kinds
    }

    pub(crate) fn begin(&mut self, cluster: &mut Cluster) {
        let after = self.random.between(Duration::ZERO, Duration::from_secs(8));
        cluster.alarm(after, FAULT);
    }

    pub(crate) fn on_alarm(&mut self, cluster: &mut Cluster, alarm: u64) {
        if let Some(end) = self.ends.remove(&alarm) {
            self.end(cluster, end);
        } else if alarm == FAULT && self.open {
            if let Some(kind) = self.random.pick(&self.kinds) {
                cluster.note(|| format!("fault: {kind:?}"));
                self.spare_the_ring &= kind.keeps_the_ring();
                cluster.asserts_ring &= self.spare_the_ring;
                self.inject(cluster, kind);
            }
            let after = self.random.between(Duration::from_millis(100), self.calm);
            cluster.alarm(after, FAULT);
        }
    }

    /// Ends all faults: who can run, runs. A lost machine may stay away.
    pub(crate) fn stop(&mut self, cluster: &mut Cluster) {
        self.open = false;
        self.ends.clear();
        cluster.network.calm();
        for machine in 0..cluster.machines.len() {
            self.end(cluster, End::Resume(machine));
            self.end(cluster, End::Repair(machine));
            self.end(cluster, End::Restart(machine));
            self.end(cluster, End::FastDisk(machine));
            self.end(cluster, End::Room(machine));
        }
    }

    fn end(&mut self, cluster: &mut Cluster, end: End) {
        match end {
            End::Restart(m) if !cluster.is_running(m) && !cluster.machines[m].gone => {
                cluster.start(m);
                if self.open && self.random.chance(0.2) {
                    // It reads its disk for long before it answers anybody.
                    cluster.pause(m);
                    self.end_after(cluster, Duration::from_secs(4), End::Resume(m));
                }
            }
            End::Resume(m) if cluster.machines[m].paused => cluster.resume(m),
            End::Heal => cluster.network.heal(),
            End::GoodLinks => cluster.network.restore_quality(),
            End::FastDisk(m) => cluster.machines[m].sync = GOOD_SYNC,
            End::Room(m) if cluster.machines[m].disk_full => cluster.fill(m, false),
            End::Repair(m) if cluster.machines[m].disk.is_broken() => {
                if cluster.is_running(m) {
                    cluster.crash(m);
                }
                self.end(cluster, End::Restart(m));
            }
            End::Restart(_) | End::Resume(_) | End::Room(_) | End::Repair(_) => {}
        }
    }

    fn end_after(&mut self, cluster: &mut Cluster, most: Duration, end: End) {
        self.last_alarm += 1;
        self.ends.insert(self.last_alarm, end);
        let after = self.random.between(Duration::from_millis(20), most);
        cluster.alarm(after, self.last_alarm);
    }

    fn inject(&mut self, cluster: &mut Cluster, kind: Kind) {
        let running = cluster.running();
        let Some(victim) = self.random.pick(&running) else { return };
        match kind {
            Kind::Crash => {
                cluster.crash(victim);
                self.end_after(cluster, Duration::from_secs(12), End::Restart(victim));
            }
            Kind::PowerCut => {
                for machine in running {
                    cluster.crash(machine);
                    self.end_after(cluster, Duration::from_secs(3), End::Restart(machine));
                }
            }
            Kind::Pause => {
                if let Some(machine) = self.random.pick(&cluster.awake()) {
                    cluster.pause(machine);
                    self.end_after(cluster, Duration::from_secs(10), End::Resume(machine));
                }
            }
            Kind::Partition | Kind::HalfDeaf | Kind::HoleyMesh | Kind::BadLinks | Kind::Clog => {
                self.harm_network(cluster, kind, victim);
            }
            Kind::SlowDisk => {
                cluster.machines[victim].sync =
                    (Duration::from_millis(20), Duration::from_millis(600));
                self.end_after(cluster, Duration::from_secs(8), End::FastDisk(victim));
            }
            Kind::FullDisk => {
                cluster.fill(victim, true);
                self.end_after(cluster, Duration::from_secs(8), End::Room(victim));
            }
            Kind::BrokenDisk => {
                cluster.machines[victim].disk.break_down();
                self.end_after(cluster, Duration::from_secs(8), End::Repair(victim));
            }
            Kind::Leap => {
                if let Some(machine) = self.random.pick(&cluster.awake()) {
                    let by = Duration::from_millis(100) * (1 << self.random.below(10)) as u32;
                    cluster.leap(machine, self.random.between(by / 2, by));
                }
            }
            Kind::WallClock => cluster.set_wall(victim),
            Kind::Join => {
                if cluster.machines.len() < self.machines_max {
                    let position = self.random.id();
                    cluster.add(position);
                }
            }
            Kind::Leave => self.leave(cluster),
            Kind::LostDisk => self.lose_disk(cluster, victim),
        }
    }

    fn harm_network(&mut self, cluster: &mut Cluster, kind: Kind, victim: usize) {
        let all: Vec<_> = (0..cluster.machines.len()).collect();
        let others: Vec<_> = all.iter().copied().filter(|other| *other != victim).collect();
        let network = &mut cluster.network;
        match kind {
            Kind::Partition => {
                let (some, others): (Vec<_>, Vec<_>) =
                    all.into_iter().partition(|_| self.random.chance(0.4));
                let both_ways = self.random.chance(0.7);
                network.partition(&some, &others, both_ways);
            }
            Kind::HalfDeaf if self.random.chance(0.5) => {
                network.partition(&[victim], &others, false);
            }
            Kind::HalfDeaf => network.partition(&others, &[victim], false),
            Kind::HoleyMesh => {
                let share = self.random.pick(&[0.1, 0.3]).expect("a share");
                for (from, to) in self.some_links(&all, share) {
                    network.partition(&[from], &[to], false);
                }
            }
            Kind::BadLinks => {
                let share = self.random.pick(&[0.1, 0.5, 1.0]).expect("a share");
                for (from, to) in self.some_links(&all, share) {
                    let quality = Quality {
                        loss: 0.03 * self.random.below(12) as f64,
                        duplication: 0.05 * self.random.below(7) as f64,
                        straggling: 0.05 * self.random.below(7) as f64,
                    };
                    network.set_quality(from, to, quality);
                }
                network.refusal = 0.25 * self.random.below(5) as f64;
            }
            _ => {
                let share = self.random.pick(&[0.1, 0.3]).expect("a share");
                for (from, to) in self.some_links(&all, share) {
                    let least = Duration::from_millis(100);
                    let held = self.random.between(least, Duration::from_secs(12));
                    network.clog(from, to, cluster.now + held);
                }
            }
        }
        let end = if kind == Kind::BadLinks { End::GoodLinks } else { End::Heal };
        if kind != Kind::Clog {
            self.end_after(cluster, Duration::from_secs(10), end);
        }
    }

    /// Each direction between two machines with this probability.
    fn some_links(&mut self, machines: &[usize], share: f64) -> Vec<(usize, usize)> {
        let pairs = machines.iter().flat_map(|a| machines.iter().map(move |b| (*a, *b)));
        pairs.filter(|(a, b)| a != b && self.random.chance(share)).collect()
    }

    fn leave(&mut self, cluster: &mut Cluster) {
        let staying = cluster.expected();
        let staying = staying.iter().filter(|m| !cluster.machines[**m].leaving).count();
        let disks: Vec<_> = cluster.machines.iter().map(|m| m.peer.node).collect();
        let has_disk = |range: &Range| range.members.iter().all(|peer| disks.contains(&peer.node));
        // Whoever sends a node away while the disk of another is lost asks for too much.
        if let Some(machine) = self.random.pick(&cluster.awake())
            && staying > 1
            && !cluster.machines[machine].leaving
            && cluster.configs().iter().all(has_disk)
        {
            cluster.leave(machine);
        }
    }

    /// Takes a disk, or with five or more replicas perhaps two at once, if nothing can be lost by it: a
    /// majority of each range is left, and all its members run and have all its data. That is not so
    /// again before the lost disks have been replaced everywhere. Of ranges with one or two members no
    /// disk can be spared.
    fn lose_disk(&mut self, cluster: &mut Cluster, victim: usize) {
        let is_running = |cluster: &Cluster, node| {
            let mut machines = cluster.running().into_iter();
            machines.any(|m| cluster.machines[m].peer.node == node)
        };
        let configs = cluster.configs();
        let least = configs.iter().map(|range| range.members.len()).min().unwrap_or(0);
        let all_run = configs
            .iter()
            .all(|range| range.members.iter().all(|peer| is_running(cluster, peer.node)));
        if least < 3 || !all_run || !cluster.verdict().replicated {
            return;
        }
        let mut victims = vec![victim];
        if least >= 5 && self.random.chance(0.5) {
            victims.extend(self.random.pick(&cluster.running()).filter(|other| *other != victim));
        }
        for victim in victims {
            if cluster.machines[victim].leaving {
                continue;
            }
            cluster.crash(victim);
            cluster.lose_disk(victim);
            if self.random.chance(0.3) && cluster.expected().len() > 3 {
                cluster.machines[victim].gone = true;
            } else {
                self.end_after(cluster, Duration::from_secs(8), End::Restart(victim));
            }
        }
    }
}
