//! Seeded simulations of whole rings on the real node: first with faults, where every answer has to be
//! right, then without, where the ring has to become right and answer everything.
//!
//! `SKY_SEEDS` is the number of seeds, `SKY_SEED` one of them for `one_seed`, `SKY_TRACE` shows every
//! message, `SKY_FAULTS` names the kinds of faults.

#[allow(dead_code, reason = "each test program uses its own part of the simulator")]
#[path = "sim/mod.rs"]
mod sim;
#[path = "sim/survivors.rs"]
mod survivors;
#[path = "sim/targeted.rs"]
mod targeted;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use sim::cluster::{Cluster, Step, even_position};
use sim::faults::Faults;
use sim::random::Random;
use sim::workload::Workload;
use sky_chord::Settings;

/// Few enough for a test run by hand; CI asks for more.
const SEEDS: u64 = 30;

#[test]
fn seeds() {
    let count = std::env::var("SKY_SEEDS").map_or(SEEDS, |text| text.parse().unwrap());
    let failed: Vec<_> = (0..count).filter(|seed| !run(*seed)).collect();
    assert!(
        failed.is_empty(),
        "seeds {failed:?} fail; again: SKY_SEED={} cargo test -p sky-chord --test sim one_seed",
        failed[0]
    );
}

#[test]
fn one_seed() {
    if let Ok(text) = std::env::var("SKY_SEED") {
        assert!(run(text.parse().unwrap()), "SKY_SEED={text} fails");
    }
}

#[test]
fn a_seed_always_gives_the_same_run() {
    assert_eq!(simulate(1).1, simulate(1).1);
}

/// Runs a seed and says how it went.
#[expect(clippy::print_stdout, reason = "shown when a test fails")]
fn run(seed: u64) -> bool {
    let result = catch_unwind(AssertUnwindSafe(|| simulate(seed)));
    println!("seed {seed}: {}", result.as_ref().map_or("FAILED", |(summary, _)| summary));
    result.is_ok()
}

/// One ring's life. Returns a line about it, and a number that is another for another run.
fn simulate(seed: u64) -> (String, u64) {
    let mut random = Random::new(seed);
    let size = random.pick(&[1, 2, 3, 3, 4, 5, 5, 6, 7]).expect("a size");
    let settings = Settings {
        repair_after: random.between(Duration::from_secs(2), Duration::from_secs(8)),
        use_member_cache: random.chance(0.7),
        tombstones_kept: random.between(Duration::from_secs(6), Duration::from_secs(20)),
        compare_every: random.between(Duration::from_secs(5), Duration::from_secs(60)),
        ..Settings::default()
    };
    let mut cluster = Cluster::new(random.next(), settings);
    let even = random.chance(0.5);
    for index in 0..size {
        cluster.add(if even { even_position(index, size) } else { random.id() });
    }
    cluster.init(0);
    let (clients, keys) = (1 + random.below(5), 1 + random.below(5));
    let mut workload = Workload::new(random.fork(), clients, keys);
    let mut faults = Faults::new(random.fork(), size + 3);
    faults.begin(&mut cluster);

    let end = cluster.now + random.between(Duration::from_secs(10), Duration::from_secs(40));
    while cluster.now < end {
        if let Step::Alarm(alarm) = workload.step(&mut cluster) {
            faults.on_alarm(&mut cluster, alarm);
        }
    }

    faults.stop(&mut cluster);
    wait_until_right(&mut cluster, &mut workload);
    workload.finish(&mut cluster);
    cluster.settle();
    (workload.open, workload.strict, cluster.asserts_ring) = (true, true, true);
    workload.run_for(&mut cluster, Duration::from_secs(3));
    workload.finish(&mut cluster);
    workload.read_back(&mut cluster);
    workload.oracle.judge();
    let summary = format!(
        "{size} nodes, {} at the end, {:?}: {} answered, {} failed, {:?}",
        cluster.expected().len(),
        faults.kinds(),
        workload.answered,
        workload.failed,
        Duration::from_micros(cluster.now.as_micros()),
    );
    (summary, cluster.random.next())
}

/// The ring has to become right while clients go on.
fn wait_until_right(cluster: &mut Cluster, workload: &mut Workload) {
    let end = cluster.now + Duration::from_secs(90);
    while cluster.now < end {
        if workload.step(cluster) == Step::Sample && cluster.verdict().right {
            return;
        }
    }
    let verdict = cluster.verdict();
    panic!("90 s after the last fault the ring is not right: {:#?}", verdict.problems);
}
