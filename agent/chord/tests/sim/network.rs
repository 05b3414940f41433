//! How messages fare: delay, loss, duplication, reordering (each copy has its own delay), partitions.

use std::collections::BTreeSet;
use std::time::Duration;

use super::random::Random;

/// The links between the machines of a cluster, all alike except for those that are cut.
#[derive(Debug)]
pub(crate) struct Network {
    random: Random,
    /// Least and most delay of an ordinary message.
    pub(crate) delay: (Duration, Duration),
    /// The share of messages that are lost.
    pub(crate) loss: f64,
    /// The share of messages that arrive twice.
    pub(crate) duplication: f64,
    /// The share of messages that take up to a hundred times as long.
    pub(crate) straggling: f64,
    /// The share of messages to a dead process of which the sender is told.
    pub(crate) refusal: f64,
    /// Directions in which nothing passes: (from, to).
    cut: BTreeSet<(usize, usize)>,
}

impl Network {
    /// Links with delays of 0.1 to 1 ms that lose nothing.
    pub(crate) fn new(random: Random) -> Self {
        Self {
            random,
            delay: (Duration::from_micros(100), Duration::from_millis(1)),
            loss: 0.0,
            duplication: 0.0,
            straggling: 0.0,
            refusal: 1.0,
            cut: BTreeSet::new(),
        }
    }

    /// After which delays a message arrives: never, once, or more often.
    pub(crate) fn deliveries(&mut self, from: usize, to: usize) -> Vec<Duration> {
        if !self.passes(from, to) || self.random.chance(self.loss) {
            return Vec::new();
        }
        let copies = 1 + usize::from(self.random.chance(self.duplication));
        (0..copies).map(|_| self.one_delay()).collect()
    }

    fn one_delay(&mut self) -> Duration {
        let delay = self.random.between(self.delay.0, self.delay.1);
        if self.random.chance(self.straggling) {
            delay * (1 + self.random.below(100) as u32)
        } else {
            delay
        }
    }

    /// Whether the sender learns that a message reached a machine without the process it is for.
    pub(crate) fn refuses(&mut self, from: usize, to: usize) -> bool {
        self.passes(to, from) && self.random.chance(self.refusal)
    }

    pub(crate) fn passes(&self, from: usize, to: usize) -> bool {
        !self.cut.contains(&(from, to))
    }

    /// Lets nothing pass from one side to the other, nor back if `both_ways`.
    pub(crate) fn partition(&mut self, from: &[usize], to: &[usize], both_ways: bool) {
        for (a, b) in from.iter().flat_map(|a| to.iter().map(move |b| (*a, *b))) {
            self.cut.insert((a, b));
            if both_ways {
                self.cut.insert((b, a));
            }
        }
    }

    /// Ends all partitions.
    pub(crate) fn heal(&mut self) {
        self.cut.clear();
    }

    /// Ends everything that is not right with the links.
    pub(crate) fn calm(&mut self) {
        self.heal();
        (self.loss, self.duplication, self.straggling, self.refusal) = (0.0, 0.0, 0.0, 1.0);
    }
}
