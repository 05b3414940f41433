//! How messages fare: delay, loss, duplication, reordering (each copy has its own delay), partitions,
//! paths that hold everything back. Each direction between two machines is a link of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sky_chord::Time;

use super::random::Random;

/// How one direction between two machines treats what is sent.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Quality {
    /// The share of messages that are lost.
    pub(crate) loss: f64,
    /// The share of messages that arrive twice.
    pub(crate) duplication: f64,
    /// The share of messages that take up to a hundred times as long.
    pub(crate) straggling: f64,
}

/// From which machine to which.
type Link = (usize, usize);

/// The links between the machines of a cluster.
#[derive(Debug)]
pub(crate) struct Network {
    random: Random,
    /// Least and most delay of an ordinary message.
    pub(crate) delay: (Duration, Duration),
    /// The quality of links that have none of their own.
    pub(crate) usual: Quality,
    /// The share of messages to a dead process of which the sender is told.
    pub(crate) refusal: f64,
    own: BTreeMap<Link, Quality>,
    /// Directions in which nothing passes.
    cut: BTreeSet<Link>,
    /// Directions in which nothing arrives before a moment, and then everything in the order it was
    /// sent; with how much is held back.
    clogged: BTreeMap<Link, (Time, u64)>,
}

impl Network {
    /// Links with delays of 0.1 to 1 ms that lose nothing.
    pub(crate) fn new(random: Random) -> Self {
        Self {
            random,
            delay: (Duration::from_micros(100), Duration::from_millis(1)),
            usual: Quality::default(),
            refusal: 1.0,
            own: BTreeMap::new(),
            cut: BTreeSet::new(),
            clogged: BTreeMap::new(),
        }
    }

    /// After which delays a message arrives: never, once, or more often.
    pub(crate) fn deliveries(&mut self, now: Time, from: usize, to: usize) -> Vec<Duration> {
        let quality = self.own.get(&(from, to)).copied().unwrap_or(self.usual);
        if !self.passes(from, to) || self.random.chance(quality.loss) {
            return Vec::new();
        }
        if let Some((open, held)) = self.clogged.get_mut(&(from, to))
            && *open > now
        {
            *held += 1;
            return vec![open.since(now) + Duration::from_micros(*held)];
        }
        let copies = 1 + usize::from(self.random.chance(quality.duplication));
        (0..copies).map(|_| self.one_delay(quality.straggling)).collect()
    }

    fn one_delay(&mut self, straggling: f64) -> Duration {
        let delay = self.random.between(self.delay.0, self.delay.1);
        if self.random.chance(straggling) {
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

    /// Gives one direction a quality of its own.
    pub(crate) fn set_quality(&mut self, from: usize, to: usize, quality: Quality) {
        self.own.insert((from, to), quality);
    }

    /// All links are alike again, and good.
    pub(crate) fn restore_quality(&mut self) {
        self.own.clear();
        self.usual = Quality::default();
        self.refusal = 1.0;
    }

    /// Holds back everything in one direction until a moment.
    pub(crate) fn clog(&mut self, from: usize, to: usize, until: Time) {
        self.clogged.insert((from, to), (until, 0));
    }

    /// Ends all partitions.
    pub(crate) fn heal(&mut self) {
        self.cut.clear();
    }

    /// Ends everything that is not right with the links. What is held back still comes when its path
    /// would have been free.
    pub(crate) fn calm(&mut self) {
        self.heal();
        self.restore_quality();
        self.clogged.clear();
    }
}
