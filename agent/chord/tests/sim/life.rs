//! One ring's life: first with faults, where every answer has to be right, then without, where the ring
//! has to become right and answer everything.
//!
//! Zave's invariant is asserted of the pointers at every sample, from when the ring has become right until
//! the first fault that kills a node or may let somebody take a live one for dead, joins included; and
//! again when the ring has become right after the last fault. Before, it cannot be: she begins with a ring
//! of more than r nodes. In between neither: her model presupposes perfect failure detection and a live
//! entry in each list, and a partition makes two rings of one until it heals.

use std::time::Duration;

use sky_chord::Settings;

use super::cluster::{Cluster, Step, even_position};
use super::faults::{Faults, Kind};
use super::random::Random;
use super::replicas;
use super::tamper::{Sabotage, Tamper};
use super::workload::{TWINS_COME_WITHIN, Workload};

/// What a life is like.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) size: usize,
    pub(crate) even: bool,
    pub(crate) settings: Settings,
    pub(crate) clients: usize,
    pub(crate) keys: usize,
    pub(crate) steady: usize,
    /// How many clients watch keys.
    pub(crate) watchers: usize,
    /// The longest pause of a client.
    pub(crate) think: Duration,
    /// Whether a key may be changed as often as clients like.
    pub(crate) hot: bool,
    pub(crate) kinds: Vec<Kind>,
    /// How long there are faults.
    pub(crate) troubled: Duration,
    pub(crate) drift: u64,
    pub(crate) wall_spread: Duration,
    /// Whether nobody does anything after the faults for so long that deleted keys are forgotten.
    pub(crate) idle: bool,
    pub(crate) sabotage: Option<Sabotage>,
}

/// How a life went.
#[derive(Debug, PartialEq)]
pub(crate) struct Summary {
    pub(crate) line: String,
    /// Another number for another run.
    pub(crate) mark: u64,
}

impl Plan {
    /// The plan of a seed.
    pub(crate) fn draw(random: &mut Random) -> Self {
        let size: usize = random.pick(&[1, 2, 3, 3, 4, 5, 5, 6, 7, 9]).expect("a size");
        let kinds = Kind::draw(random);
        let hot = kinds.iter().all(|kind| kind.delays_nobody());
        let settings = Settings {
            tombstones_kept: tombstones_kept(&kinds, hot, random),
            tombstones_at_once: if size.is_multiple_of(2) { 3 } else { 50_000 },
            replicas: random.pick(&[3, 3, 3, 3, 1, 5, 5, 7]).expect("a number"),
            successors: random.pick(&[8, 8, 4]).expect("a length"),
            repair_after: random.between(Duration::from_secs(2), Duration::from_secs(8)),
            compare_every: random.between(Duration::from_secs(5), Duration::from_secs(40)),
            use_member_cache: random.chance(0.7),
            apart_above: random.pick(&[0, 1, 2, usize::MAX]).expect("a size"),
            ..Settings::default()
        };
        let even = random.chance(0.5);
        let tie_breaker = (size == 2 && even).then(|| even_position(0, size));
        Self {
            hot,
            size,
            even,
            settings: Settings { tie_breaker, ..settings },
            clients: 1 + random.below(6),
            keys: random.pick(&[1, 2, 3, 5, 20, 60]).expect("a number"),
            steady: random.below(13),
            think: Duration::from_millis(random.pick(&[20, 200, 200, 1000]).expect("a pause")),
            kinds,
            troubled: random.between(Duration::from_secs(10), Duration::from_secs(40)),
            drift: random.pick(&[0, 1000, 50_000]).expect("a drift"),
            wall_spread: Duration::from_secs(random.pick(&[0, 3, 600]).expect("a spread")),
            idle: random.chance(0.2),
            watchers: random.below(4),
            sabotage: None,
        }
    }
}

/// How long deleted keys are remembered: longer than requests can be on their way. Where clocks leap, no
/// time is long enough.
fn tombstones_kept(kinds: &[Kind], hot: bool, random: &mut Random) -> Duration {
    let least = if hot { Duration::from_secs(8) } else { TWINS_COME_WITHIN * 9 / 4 };
    match kinds.contains(&Kind::Leap) {
        true => Duration::from_secs(3600),
        false => random.between(least, least * 2),
    }
}

/// How long after it was written a value with the longest time is gone, although it was counted anew by members
/// that caught up, the leader of its range has changed, and members have disagreed before.
const EXPIRED_WITHIN: Duration = Duration::from_secs(50);

/// More than that many events for each node in a second at rest are nodes that talk in circles: it takes a
/// tenth of that to look after neighbours.
const AT_REST_MAX: u64 = 1_000;

/// Lives through a plan. Panics where something is not as it was promised.
pub(crate) fn live(plan: &Plan, random: &mut Random) -> Summary {
    let mut cluster = Cluster::new(random.next(), plan.settings.clone());
    (cluster.drift, cluster.wall_spread) = (plan.drift, plan.wall_spread);
    if let Some(sabotage) = plan.sabotage {
        cluster.tamper = Tamper::new(sabotage, random.fork());
    }
    cluster.began_small = plan.size <= 2;
    for index in 0..plan.size {
        cluster.add(if plan.even { even_position(index, plan.size) } else { random.id() });
    }
    cluster.init(0);
    let mut workload = Workload::with_steady(random.fork(), plan.clients, plan.keys, plan.steady);
    (workload.think, workload.hot) = (plan.think, plan.hot);
    workload.watch(plan.watchers);
    workload.clocks_apart =
        plan.wall_spread > Duration::ZERO || plan.kinds.contains(&Kind::WallClock);
    let mut faults = Faults::new(random.fork(), plan.kinds.clone(), plan.size + 3);
    faults.begin(&mut cluster);

    let end = cluster.now + plan.troubled;
    while cluster.now < end {
        match workload.step(&mut cluster) {
            Step::Alarm(alarm) => faults.on_alarm(&mut cluster, alarm),
            Step::Sample if !cluster.asserts_ring && faults.spare_the_ring() => {
                cluster.asserts_ring = cluster.verdict().right;
            }
            _ => {}
        }
    }

    faults.stop(&mut cluster);
    wait_until_right(&mut cluster, &mut workload);
    workload.finish(&mut cluster);
    cluster.settle();
    if plan.idle {
        let kept = plan.settings.tombstones_kept.min(Duration::from_secs(100));
        cluster.run_for(kept + kept / 4);
    }
    (workload.open, workload.strict, cluster.asserts_ring) = (true, true, true);
    workload.hot = true;
    workload.run_for(&mut cluster, Duration::from_secs(3));
    if random.chance(0.25) {
        cluster.add(random.id());
        wait_until_right(&mut cluster, &mut workload);
    }
    workload.finish(&mut cluster);
    let clocks_agree = !workload.clocks_apart && !plan.kinds.contains(&Kind::Leap);
    if clocks_agree && random.chance(0.3) {
        cluster.run_for(EXPIRED_WITHIN);
        workload.time_is_over = true;
    }
    workload.read_back(&mut cluster);
    workload.assert_watched(&mut cluster);
    workload.oracle.judge();
    // What nobody noticed the next comparison finds.
    cluster.run_for(plan.settings.compare_every * 5 / 4 + Duration::from_secs(2));
    cluster.settle();
    replicas::assert_alike(&cluster);
    let (events, nodes) = (cluster.events_of_a_second(), cluster.expected().len());
    assert!(events < AT_REST_MAX * nodes as u64, "{events} events in a second at rest");
    let line = format!(
        "{} nodes, {} at the end, {} replicas, {:?}: {} answered, {} failed, {} listed, {} told, {:?}",
        plan.size,
        cluster.expected().len(),
        plan.settings.replicas,
        faults.kinds(),
        workload.answered,
        workload.failed,
        workload.listed,
        workload.watchers.told,
        Duration::from_micros(cluster.now.as_micros()),
    );
    Summary { line, mark: cluster.random.next() }
}

/// The ring has to become right, and to know that its disks have room, while clients go on.
fn wait_until_right(cluster: &mut Cluster, workload: &mut Workload) {
    let end = cluster.now + Duration::from_secs(90);
    while cluster.now < end {
        if workload.step(cluster) == Step::Sample && cluster.verdict().right && cluster.has_room() {
            return;
        }
    }
    let verdict = cluster.verdict();
    panic!("90 s after the last change the ring is not right: {:#?}", verdict.problems);
}
