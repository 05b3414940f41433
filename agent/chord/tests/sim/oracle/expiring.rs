//! Values that are kept for a time only: they may be gone when it is over by the clocks of as many machines
//! as it takes, and from then on.

use sky_chord::{Condition, Key, Operation, Time, Value};

use super::{Entry, Oracle, Outcome, number};
use crate::sim::clock::TRUE_RATE;
use crate::sim::cluster::Cluster;
use crate::sim::watch::Range;

/// Which keys may have a single member: none, those of some ranges while others join, or all.
struct Alone {
    all: bool,
    ranges: Vec<Range>,
}

impl Alone {
    fn of(cluster: &Cluster) -> Self {
        let staying = cluster.machines.iter().filter(|place| !place.gone && !place.leaving).count();
        let all = staying <= 1 || cluster.settings.replicas == 1 || cluster.began_small;
        let mut ranges = if all { Vec::new() } else { cluster.configs() };
        ranges.retain(|range| range.members.len() == 1);
        Self { all, ranges }
    }

    fn may_keep(&self, key: &Key) -> bool {
        self.all || self.ranges.iter().any(|range| key.hash().is_in_arc(range.lo, range.hi))
    }
}

/// A value that is kept for a time.
#[derive(Debug)]
pub(super) struct Expiring {
    key: Key,
    value: Value,
    begun: Time,
    /// How far the clocks of machines had gone ahead when it was written.
    ahead: Vec<u64>,
    /// Whether a node may have kept the key alone since: then its clock suffices.
    by_one: bool,
}

impl Oracle {
    /// A client begins to write a value that is kept for a time.
    pub(crate) fn expires(&mut self, cluster: &Cluster, key: &Key, value: &Value) {
        let (key, value) = (key.clone(), value.clone());
        let (begun, ahead) = (cluster.now, cluster.ahead());
        let by_one = Alone::of(cluster).may_keep(&key);
        self.expiring.push(Expiring { key, value, begun, ahead, by_one });
    }

    /// Sees which values may be gone by now; before anything is noted that shows one gone.
    pub(crate) fn expire(&mut self, cluster: &Cluster) {
        if self.expiring.is_empty() {
            return;
        }
        let alone = Alone::of(cluster);
        let over = self.expiring.extract_if(.., |expiring| {
            expiring.by_one |= alone.may_keep(&expiring.key);
            expiring.may_be_over(cluster)
        });
        for Expiring { key, value, .. } in over.collect::<Vec<_>>() {
            self.may_expire(&key, &value);
        }
    }

    /// From now on this value may vanish by itself.
    pub(crate) fn may_expire(&mut self, key: &Key, value: &Value) {
        self.clock += 1;
        let operation = Operation::Delete { key: key.clone(), condition: Condition::Always };
        let (expires, invoked) = (Some(number(&value.bytes)), self.clock);
        let entry = Entry { operation, expires, invoked, outcome: Outcome::Unknown };
        self.keys.entry(key.clone()).or_default().push(entry);
    }
}

impl Expiring {
    /// Whether its time may be over by as many clocks as it takes.
    fn may_be_over(&self, cluster: &Cluster) -> bool {
        let Some(ttl) = self.value.ttl else { return false };
        let passed = cluster.now.since(self.begun).as_micros() as u64;
        let passed = passed + passed * cluster.drift / TRUE_RATE;
        let ahead = cluster.ahead().into_iter().enumerate();
        let before = |machine: usize| self.ahead.get(machine).copied().unwrap_or(0);
        let shown = ahead.map(|(machine, ahead)| passed + ahead - before(machine));
        let over = shown.filter(|shown| *shown / 1000 >= ttl.whole_ms).count();
        over >= if self.by_one { 1 } else { 2 }
    }
}
