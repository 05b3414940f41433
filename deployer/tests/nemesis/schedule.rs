//! The schedule of faults: one seed decides which, where, in which order and how long.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::agents::BASE;
use crate::random::Random;
use crate::rig::SLOTS;

/// What is done to the ring. Places are numbers of nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// `kill -9`; started again at the end.
    Crash(BTreeSet<usize>),
    /// SIGSTOP, or the engine's pause.
    Pause(BTreeSet<usize>),
    /// SIGTERM, and started again at once.
    Restart(usize),
    /// These cannot talk to the others.
    Partition(BTreeSet<usize>),
    /// The others hear nothing of this one, but it hears them.
    Mute(usize),
    /// This one hears nothing of the others, but they hear it.
    Deaf(usize),
    /// Each talks to the one before and the one after it only.
    Neighbours,
    /// This percentage of what nodes say to each other is lost.
    Loss(u8),
    /// What this node says goes through a thin pipe.
    Slow(usize),
    /// The disks have less room left than agents want to keep free.
    DiskLow(BTreeSet<usize>),
    /// The disk has no room at all. The agent is started again when it has.
    DiskFull(usize),
    /// One more node.
    Join(usize),
    /// A node hands over its data and is taken away.
    Leave(usize),
}

impl Fault {
    /// For the table at the end.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Crash(nodes) if nodes.len() == 1 => "kill -9 of one",
            Self::Crash(nodes) if nodes.len() < BASE => "kill -9 of several",
            Self::Crash(_) => "kill -9 of all",
            Self::Pause(nodes) if nodes.len() == 1 => "pause of one",
            Self::Pause(_) => "pause of several",
            Self::Restart(_) => "restart (SIGTERM)",
            Self::Partition(nodes) if nodes.len() == 1 => "partition: one alone",
            Self::Partition(_) => "partition: halves",
            Self::Mute(_) => "partition: one way, unheard",
            Self::Deaf(_) => "partition: one way, unhearing",
            Self::Neighbours => "partition: neighbours only",
            Self::Loss(_) => "packet loss",
            Self::Slow(_) => "slow network",
            Self::DiskLow(_) => "disk nearly full",
            Self::DiskFull(_) => "disk full to the last byte",
            Self::Join(_) => "node added",
            Self::Leave(_) => "node drained and removed",
        }
    }
}

/// Faults that hold at the same time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Step {
    /// The ring is to be right before, and the silence of its keys is measured.
    pub(crate) is_measured: bool,
    pub(crate) faults: Vec<Fault>,
    pub(crate) hold: Duration,
    /// How long nothing is done afterwards.
    pub(crate) rest: Duration,
}

/// Kinds of steps. Every round has each of them once, in another order.
#[derive(Debug, Clone, Copy)]
enum Plan {
    MeasuredCrash,
    MeasuredPause,
    CrashSome,
    CrashAll,
    PauseSome,
    Restart,
    Halves,
    Alone,
    OneWay,
    Neighbours,
    Network,
    Disk,
    Join,
    Leave,
    /// Two at once.
    Both,
}

impl Plan {
    const fn is_measured(self) -> bool {
        matches!(self, Self::MeasuredCrash | Self::MeasuredPause)
    }
}

const ROUND: [Plan; 16] = [
    Plan::MeasuredCrash,
    Plan::MeasuredPause,
    Plan::CrashSome,
    Plan::CrashAll,
    Plan::PauseSome,
    Plan::Restart,
    Plan::Halves,
    Plan::Alone,
    Plan::OneWay,
    Plan::Neighbours,
    Plan::Network,
    Plan::Disk,
    Plan::Join,
    Plan::Leave,
    Plan::Both,
    Plan::Both,
];

/// The steps of a seed, without end.
pub(crate) struct Schedule {
    random: Random,
    /// The members, had everything gone at once that was ordered.
    members: BTreeSet<usize>,
    round: Vec<Plan>,
    /// The first round is quick, so that a short run has seen most kinds.
    is_first: bool,
}

impl Schedule {
    pub(crate) fn new(seed: u64) -> Self {
        let members = (0..BASE).collect();
        Self { random: Random::new(seed), members, round: Vec::new(), is_first: true }
    }

    fn member(&mut self) -> usize {
        let members: Vec<usize> = self.members.iter().copied().collect();
        self.random.pick(&members).unwrap_or_default()
    }

    /// So many different members.
    fn some(&mut self, count: usize) -> BTreeSet<usize> {
        let mut chosen = BTreeSet::new();
        while chosen.len() < count.min(self.members.len()) {
            chosen.insert(self.member());
        }
        chosen
    }

    fn plan(&mut self) -> Plan {
        if self.round.is_empty() {
            self.round = ROUND.to_vec();
            for at in (1..self.round.len()).rev() {
                let other = self.random.below(at + 1);
                self.round.swap(at, other);
            }
            if self.is_first {
                // Also a short run shall measure something.
                self.round.sort_by_key(|plan| plan.is_measured());
            }
        }
        self.round.pop().unwrap_or(Plan::Restart)
    }

    /// Mostly short, sometimes longer than it takes to replace a member.
    fn hold(&mut self, is_first: bool) -> Duration {
        let seconds =
            |least: f64, most: f64| (Duration::from_secs_f64(least), Duration::from_secs_f64(most));
        let (least, most) = match (is_first, self.random.below(4)) {
            (true, _) => seconds(0.5, 4.0),
            (_, 0) => seconds(4.0, 20.0),
            _ => seconds(0.5, 4.0),
        };
        self.random.between(least, most)
    }

    /// A fault that may be joined with another.
    fn simple(&mut self) -> Fault {
        let several = 1 + self.random.below(3);
        match self.random.below(9) {
            0 => Fault::Crash(self.some(several)),
            1 => Fault::Pause(self.some(several)),
            2 => Fault::Restart(self.member()),
            3 => Fault::Partition(self.some(2)),
            4 => Fault::Mute(self.member()),
            5 => Fault::Deaf(self.member()),
            6 => Fault::Loss(self.percent()),
            7 => Fault::Slow(self.member()),
            _ => Fault::DiskLow(self.some(several)),
        }
    }

    fn percent(&mut self) -> u8 {
        [2, 10, 30][self.random.below(3)]
    }
}

impl Iterator for Schedule {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let plan = self.plan();
        let several = 2 + self.random.below(2);
        let coin = self.random.chance(0.5);
        let is_measured = plan.is_measured();
        let faults = match plan {
            Plan::MeasuredCrash => vec![Fault::Crash(self.some(1))],
            Plan::MeasuredPause => vec![Fault::Pause(self.some(1))],
            Plan::CrashSome => vec![Fault::Crash(self.some(several))],
            Plan::CrashAll => vec![Fault::Crash((0..SLOTS).collect())],
            Plan::PauseSome => vec![Fault::Pause(self.some(several))],
            Plan::Restart => vec![Fault::Restart(self.member())],
            Plan::Halves => vec![Fault::Partition(self.some(self.members.len() / 2))],
            Plan::Alone => vec![Fault::Partition(self.some(1))],
            Plan::OneWay if coin => vec![Fault::Mute(self.member())],
            Plan::OneWay => vec![Fault::Deaf(self.member())],
            Plan::Neighbours => vec![Fault::Neighbours],
            Plan::Network if coin => vec![Fault::Loss(self.percent())],
            Plan::Network => vec![Fault::Slow(self.member())],
            Plan::Disk if coin => vec![Fault::DiskLow(self.some(several))],
            Plan::Disk => vec![Fault::DiskFull(self.member())],
            Plan::Join | Plan::Leave => {
                // Both where there is room for both; else the one that is possible.
                let absent = (0..SLOTS).find(|slot| !self.members.contains(slot));
                match absent {
                    Some(slot) if matches!(plan, Plan::Join) || self.members.len() <= BASE => {
                        self.members.insert(slot);
                        vec![Fault::Join(slot)]
                    }
                    _ => {
                        let slot = self.member();
                        self.members.remove(&slot);
                        vec![Fault::Leave(slot)]
                    }
                }
            }
            Plan::Both => vec![self.simple(), self.simple()],
        };
        let is_first = self.is_first;
        self.is_first &= !self.round.is_empty();
        let mut hold = self.hold(is_first);
        if is_measured {
            // Long enough to see the silence end, and short of replacing the member.
            hold = self.random.between(Duration::from_secs(4), Duration::from_secs(8));
        }
        if faults.iter().any(|fault| matches!(fault, Fault::DiskLow(_) | Fault::DiskFull(_))) {
            // An agent looks at its disk once a second.
            hold = hold.max(Duration::from_millis(2500));
        }
        let rest = self.random.between(Duration::from_millis(200), Duration::from_secs(2));
        Some(Step { is_measured, faults, hold, rest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_decides_everything() {
        let steps = |seed| Schedule::new(seed).take(200).collect::<Vec<_>>();
        assert_eq!(steps(1), steps(1));
        assert_ne!(steps(1), steps(2));
    }

    #[test]
    fn every_kind_comes_soon_and_members_stay() {
        let mut kinds = BTreeSet::new();
        let mut members: BTreeSet<usize> = (0..BASE).collect();
        for step in Schedule::new(3).take(400) {
            for fault in &step.faults {
                kinds.insert(fault.kind());
                match fault {
                    Fault::Join(slot) => assert!(members.insert(*slot)),
                    Fault::Leave(slot) => assert!(members.remove(slot)),
                    _ => {}
                }
            }
            assert!((BASE..=SLOTS).contains(&members.len()));
        }
        assert_eq!(kinds.len(), 17, "{kinds:?}");
    }
}
