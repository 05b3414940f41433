//! Seeded simulations of whole rings on the real node: first with faults, where every answer has to be
//! right, then without, where the ring has to become right and answer everything.
//!
//! `SKY_SEEDS` is the number of seeds and `SKY_FIRST` the first of them; `SKY_SEED` is the one of
//! `one_seed`. `SKY_TRACE` shows every message, `SKY_FAULTS` names the kinds of faults.

#[path = "sim/apart.rs"]
mod apart;
#[path = "sim/clearing.rs"]
mod clearing;
#[path = "sim/damage.rs"]
mod damage;
#[path = "sim/expiring.rs"]
mod expiring;
#[path = "sim/sabotages.rs"]
mod sabotages;
#[path = "sim/silence.rs"]
mod silence;
#[allow(dead_code, reason = "each test program uses its own part of the simulator")]
#[path = "sim/mod.rs"]
mod sim;
#[path = "sim/survivors.rs"]
mod survivors;
#[path = "sim/targeted.rs"]
mod targeted;
#[path = "sim/tombstones.rs"]
mod tombstones;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use sim::life::{Plan, Summary, live};
use sim::random::Random;

/// Few enough for a test run by hand; CI asks for more.
const SEEDS: u64 = 30;

#[test]
#[expect(clippy::print_stdout, reason = "shown when a test fails")]
fn seeds() {
    let number = |name| std::env::var(name).ok().map(|text| text.parse().expect("a number"));
    let first: u64 = number("SKY_FIRST").unwrap_or(0);
    let count = number("SKY_SEEDS").unwrap_or(SEEDS);
    let results = on_all_cores(first..first + count, |seed| tried(|| simulate(seed)));
    for (seed, result) in &results {
        match result {
            Ok(summary) => println!("seed {seed}: {}", summary.line),
            Err(problem) => println!("seed {seed} FAILED: {problem}"),
        }
    }
    let failed: Vec<_> = results.iter().filter(|(_, r)| r.is_err()).map(|(s, _)| s).collect();
    assert!(
        failed.is_empty(),
        "seeds {failed:?} fail; again: SKY_SEED={} cargo test -p sky-chord --test sim one_seed",
        failed[0]
    );
}

#[test]
#[expect(clippy::print_stdout, reason = "shown when asked for")]
fn one_seed() {
    if let Ok(text) = std::env::var("SKY_SEED") {
        println!("seed {text}: {}", simulate(text.parse().expect("a number")).line);
    }
}

#[test]
fn a_seed_always_gives_the_same_run() {
    assert_eq!(simulate(1), simulate(1));
}

fn simulate(seed: u64) -> Summary {
    let mut random = Random::new(seed);
    let plan = Plan::draw(&mut random);
    live(&plan, &mut random)
}

/// Does something that may panic; if it does, the error is what it said.
fn tried<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => panic.downcast::<&str>().map_or_else(|_| String::new(), |s| s.to_string()),
    })
}

/// Does something for each number, several at a time, and returns what came of it in their order.
fn on_all_cores<T: Send>(
    numbers: std::ops::Range<u64>,
    work: impl Fn(u64) -> T + Sync,
) -> Vec<(u64, T)> {
    let next = AtomicU64::new(numbers.start);
    let worker = || {
        let mut done = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= numbers.end {
                return done;
            }
            done.push((number, work(number)));
        }
    };
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let mut results = thread::scope(|scope| {
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(worker)).collect();
        let done = workers.into_iter().flat_map(|worker| worker.join().expect("no panic here"));
        done.collect::<Vec<_>>()
    });
    results.sort_by_key(|(number, _)| *number);
    results
}
