//! Real agents, as processes in network namespaces and as containers, that are killed, frozen, cut off,
//! filled up, added and drained, while clients ask for keys and note every answer. At the end one order of
//! all requests has to explain the answers for each key (linearizability), the ring has to be right again,
//! and no agent may have panicked or ended by itself.
//!
//! ```console
//! $ cargo test -p sky-deploy --test nemesis                    # about 75 s of faults, then 45 s with containers
//! $ SKY_NEMESIS_SECONDS=3600 cargo test -p sky-deploy --test nemesis processes    # an hour
//! $ SKY_NEMESIS_SEED=7 cargo test -p sky-deploy --test nemesis processes          # the faults of seed 7 again
//! ```
//!
//! It needs root, `ip`, `tc`, `nft`, `nsenter` and `setpriv`, the second part a Docker engine as well. A
//! seed decides which faults come, where, in which order and how long; when requests meet them is up to
//! the machine. Everything it makes is named after its process; a run that is killed is cleaned up after by
//! the next. Clocks are not set: a namespace can only shift those that never jump.

#![expect(clippy::unwrap_used, reason = "tests panic")]

mod agents;
mod clients;
mod faults;
mod history;
mod judge;
#[path = "../../../agent/tests/support/need.rs"]
mod need;
#[path = "../../../agent/chord/tests/sim/random.rs"]
#[expect(dead_code, reason = "the simulator uses the rest")]
mod random;
mod report;
mod rig;
mod runner;
mod schedule;
mod stale;

use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, Once, PoisonError};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use rig::Kind;

/// One run at a time: they would slow each other down.
static TURN: Mutex<()> = Mutex::new(());

/// Whether somebody pressed Ctrl-C, or told the test to end in another way.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Sees to it that Ctrl-C ends the run in order, with everything removed that it made.
fn watch_for_signals() {
    static WATCHING: Once = Once::new();
    let watch = async {
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        let [mut interrupt, mut terminate, mut hangup] = kinds.map(|kind| signal(kind).unwrap());
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
        INTERRUPTED.store(true, Relaxed);
    };
    WATCHING.call_once(|| drop(std::thread::spawn(|| runner::on_a_runtime(watch))));
}

pub(crate) fn is_interrupted() -> bool {
    INTERRUPTED.load(Relaxed)
}

/// Tells whoever watches. Not `eprintln!`: the test harness would hide that of a test that passes.
pub(crate) fn say(what: &str) {
    writeln!(std::io::stderr(), "nemesis: {what}").ok();
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

/// The seed of the environment, or one that no other run has.
fn seed() -> u64 {
    number("SKY_NEMESIS_SEED").unwrap_or_else(|| {
        let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        u64::from(time.subsec_micros())
    })
}

fn run(kind: Kind, usual: Duration) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let lacking = rig::lacking(kind);
    if need::is_met(lacking.is_none(), &lacking.unwrap_or_default()) {
        let time = number("SKY_NEMESIS_SECONDS").map_or(usual, Duration::from_secs);
        watch_for_signals();
        runner::run(kind, seed(), time);
    }
}

#[test]
fn processes_survive_the_nemesis() {
    run(Kind::Processes, Duration::from_secs(75));
}

#[test]
fn containers_survive_the_nemesis() {
    run(Kind::Containers, Duration::from_secs(45));
}

/// The judge on a server that lies: reads of one copy, which may be old, taken for ordinary reads.
#[test]
fn stale_reads_are_caught() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let lacking = rig::lacking(Kind::Processes);
    if need::is_met(lacking.is_none(), &lacking.unwrap_or_default()) {
        watch_for_signals();
        stale::run();
    }
}
