//! What goes wrong, chosen by the seed: each fault has its end, and each seed its own mix.

use std::collections::BTreeMap;
use std::time::Duration;

use sky_chord::Config;

use super::cluster::Cluster;
use super::random::Random;

/// The alarm for the next fault; higher ones end a fault.
pub(crate) const FAULT: u64 = 1;

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
    /// Messages are lost, doubled and late.
    BadLinks,
    /// A disk takes long to sync.
    SlowDisk,
    /// A machine is added.
    Join,
    /// A node hands over its data and leaves.
    Leave,
    /// A process dies and its disk with it. An empty node may come in its place.
    LostDisk,
}

const KINDS: [Kind; 9] = [
    Kind::Crash,
    Kind::PowerCut,
    Kind::Pause,
    Kind::Partition,
    Kind::BadLinks,
    Kind::SlowDisk,
    Kind::Join,
    Kind::Leave,
    Kind::LostDisk,
];

#[derive(Debug, Clone, Copy)]
enum End {
    Restart(usize),
    Resume(usize),
    Heal,
    GoodLinks,
    FastDisk(usize),
}

/// The faults of one run.
pub(crate) struct Faults {
    random: Random,
    kinds: Vec<Kind>,
    ends: BTreeMap<u64, End>,
    last_alarm: u64,
    /// How many machines there may be.
    machines_max: usize,
    open: bool,
}

impl Faults {
    /// Some of the kinds, or those named in `SKY_FAULTS` (as in `Crash,Pause`).
    pub(crate) fn new(mut random: Random, machines_max: usize) -> Self {
        let named = std::env::var("SKY_FAULTS").ok();
        let wanted = |kind: &Kind, random: &mut Random| match &named {
            Some(names) => names.split(',').any(|name| name == format!("{kind:?}")),
            None => random.chance(0.5),
        };
        let kinds = KINDS.into_iter().filter(|kind| wanted(kind, &mut random)).collect();
        Self { random, kinds, ends: BTreeMap::new(), last_alarm: FAULT, machines_max, open: true }
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
                self.inject(cluster, kind);
            }
            let after = self.random.between(Duration::from_millis(100), Duration::from_secs(4));
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
            self.end(cluster, End::Restart(machine));
            self.end(cluster, End::FastDisk(machine));
        }
    }

    fn end(&mut self, cluster: &mut Cluster, end: End) {
        match end {
            End::Restart(m) if !cluster.is_running(m) && !cluster.machines[m].gone => {
                cluster.start(m);
            }
            End::Resume(m) if cluster.machines[m].paused => cluster.resume(m),
            End::Heal => cluster.network.heal(),
            End::GoodLinks => {
                let network = &mut cluster.network;
                (network.loss, network.duplication, network.straggling) = (0.0, 0.0, 0.0);
            }
            End::FastDisk(m) => {
                cluster.machines[m].sync = (Duration::from_micros(100), Duration::from_millis(2));
            }
            End::Restart(_) | End::Resume(_) => {}
        }
    }

    fn end_after(&mut self, cluster: &mut Cluster, most: Duration, end: End) {
        self.last_alarm += 1;
        self.ends.insert(self.last_alarm, end);
        let after = self.random.between(Duration::from_millis(20), most);
        cluster.alarm(after, self.last_alarm);
    }

    fn inject(&mut self, cluster: &mut Cluster, kind: Kind) {
        let running: Vec<_> =
            (0..cluster.machines.len()).filter(|m| cluster.is_running(*m)).collect();
        let awake = cluster.awake();
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
                if let Some(machine) = self.random.pick(&awake) {
                    cluster.pause(machine);
                    self.end_after(cluster, Duration::from_secs(10), End::Resume(machine));
                }
            }
            Kind::Partition => {
                let (mut some, mut others) = (Vec::new(), Vec::new());
                for machine in 0..cluster.machines.len() {
                    if self.random.chance(0.4) { &mut some } else { &mut others }.push(machine);
                }
                let both_ways = self.random.chance(0.7);
                cluster.network.partition(&some, &others, both_ways);
                self.end_after(cluster, Duration::from_secs(10), End::Heal);
            }
            Kind::BadLinks => {
                let network = &mut cluster.network;
                network.loss = 0.02 * self.random.below(10) as f64;
                network.duplication = 0.05 * self.random.below(5) as f64;
                network.straggling = 0.05 * self.random.below(5) as f64;
                network.refusal = 0.25 * self.random.below(5) as f64;
                self.end_after(cluster, Duration::from_secs(6), End::GoodLinks);
            }
            Kind::SlowDisk => {
                cluster.machines[victim].sync =
                    (Duration::from_millis(20), Duration::from_millis(600));
                self.end_after(cluster, Duration::from_secs(8), End::FastDisk(victim));
            }
            Kind::Join => {
                if cluster.machines.len() < self.machines_max {
                    let position = self.random.id();
                    cluster.add(position);
                }
            }
            Kind::Leave => {
                let staying = cluster.expected();
                let staying = staying.iter().filter(|m| !cluster.machines[**m].leaving).count();
                let disks: Vec<_> = cluster.machines.iter().map(|m| m.peer.node).collect();
                let has_disk =
                    |config: &Config| config.members.iter().all(|peer| disks.contains(&peer.node));
                // Whoever sends a node away while the disk of another is lost asks for too much.
                if let Some(machine) = self.random.pick(&awake)
                    && staying > 2
                    && !cluster.machines[machine].leaving
                    && cluster.configs().iter().all(has_disk)
                {
                    cluster.leave(machine);
                }
            }
            Kind::LostDisk => self.lose_disk(cluster, victim),
        }
    }

    /// Takes a disk if nothing can be lost by it: all ranges have three running members with all their
    /// data. That is not so again before the lost disk has been replaced everywhere.
    fn lose_disk(&mut self, cluster: &mut Cluster, victim: usize) {
        let is_running = |cluster: &Cluster, node| {
            let mut machines = 0..cluster.machines.len();
            machines.any(|m| cluster.machines[m].peer.node == node && cluster.is_running(m))
        };
        let is_full = |config: &Config| {
            config.members.len() == 3
                && config.members.iter().all(|peer| is_running(cluster, peer.node))
        };
        let configs = cluster.configs();
        let full = !configs.is_empty() && configs.iter().all(is_full);
        let safe = full && cluster.verdict().replicated;
        if !safe || cluster.machines[victim].leaving {
            return;
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
