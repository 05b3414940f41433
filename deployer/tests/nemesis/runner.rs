//! One run from its start to the verdict.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::agents::{Agents, State};
use crate::clients::Clients;
use crate::faults::{Halt, Nemesis};
use crate::history::{Ask, History, Outcome};
use crate::judge::{self, Verdict};
use crate::rig::{Kind, SLOTS};
use crate::schedule::Schedule;
use crate::{is_interrupted, report, say};

/// Requests under way at once when every key is read at the end.
const READERS: usize = 32;
/// How long a key may refuse to be read at the end, in a ring that is right.
const READ_WITHIN: Duration = Duration::from_secs(20);
/// What the silence of a key should stay below. Not asserted: a busy machine is slow, too.
const GOAL_NS: u64 = 2_000_000_000;
/// Lines of an agent's log that are shown of a failed run.
const LOG_LINES: usize = 5;

/// The program under test: it is the agent as well.
pub(crate) fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_sky-deploy"))
}

/// Runs the faults of a seed for so long. Panics with what went wrong.
pub(crate) fn run(kind: Kind, seed: u64, time: Duration) {
    say(&format!("{kind:?}, {} s, SKY_NEMESIS_SEED={seed}", time.as_secs()));
    let begun = Instant::now();
    let history = Arc::new(History::new());
    let stop = Arc::new(AtomicBool::new(false));
    let agents = Agents::start(kind, program()).unwrap_or_else(|why| panic!("{why}"));
    let urls = std::array::from_fn(|slot| agents.url(slot));
    let board = Arc::clone(&agents.board);
    let clients = Clients::new(Arc::clone(&history), board, urls, Arc::clone(&stop));
    let clients = Arc::new(clients.unwrap_or_else(|why| panic!("{why}")));

    let working = std::thread::spawn({
        let clients = Arc::clone(&clients);
        move || on_a_runtime(clients.run(seed))
    });
    let mut nemesis = Nemesis::new(agents, &history);
    let ended = torment(&mut nemesis, seed, begun + time);
    stop.store(true, Relaxed);
    working.join().unwrap();
    let calm = match ended {
        Ok(calm) => calm,
        Err(Halt::Interrupted) => Duration::ZERO,
        Err(Halt::Broken(why)) => {
            nemesis.anomalies.push(format!("the run could not go on: {why}"));
            Duration::ZERO
        }
    };
    let mut anomalies = std::mem::take(&mut nemesis.anomalies);
    let copies = on_a_runtime(read_everything(&clients));
    anomalies.extend(history.wrongs());
    say("every key was read; the histories are judged");
    let offending = judge_all(&history);
    anomalies.extend(offending.iter().map(|(_, why)| why.clone()));
    assert!(!is_interrupted(), "interrupted: what the run made is removed");
    nemesis.agents.save_logs();
    anomalies.extend(panics(&nemesis.agents));

    let keys = history.keys();
    let faults: usize = nemesis.counts.values().sum();
    let kinds = nemesis.counts.iter().map(|(kind, count)| format!("  {kind:<40}{count:>5}"));
    let kinds = kinds.collect::<Vec<_>>().join("\n");
    let probes = clients.probes.lock().unwrap();
    let silence = report::silence(&nemesis.measured, &probes, &keys);
    let requests: usize = keys.values().map(Vec::len).sum();
    say(&format!(
        "{kind:?}, seed {seed}, {} s: {requests} requests for {} keys, {faults} faults, {} anomalies\n{}\n  \
         faults\n{kinds}\n{}\n  longest silence of any key after a single crash or pause: {:.2} s ({})\n  \
         right again {:.1} s after the last fault; {copies} reads at the end, every key through every agent",
        begun.elapsed().as_secs(),
        keys.len(),
        anomalies.len(),
        report::requests(keys.values().flatten()),
        silence.table,
        silence.longest_ns as f64 / 1e9,
        silence.where_longest,
        calm.as_secs_f64(),
    ));
    if silence.longest_ns > GOAL_NS {
        say(&format!("longer than wished for:\n{}", silence.details));
    }
    if !anomalies.is_empty() {
        let kept = keep(&nemesis.agents, seed, &anomalies);
        for (key, _) in offending {
            let lines = judge::lines(&keys[&key]).join("\n");
            std::fs::write(kept.join(format!("{key}.txt")), lines).ok();
        }
        panic!(
            "{}\n\nagain: SKY_NEMESIS_SEED={seed} SKY_NEMESIS_SECONDS={}; logs and histories: {}\n{}",
            anomalies.join("\n"),
            time.as_secs(),
            kept.display(),
            last_lines(&nemesis.agents),
        );
    }
}

/// Faults until the deadline, then peace until the ring is right. Returns how long that took.
fn torment(nemesis: &mut Nemesis<'_>, seed: u64, deadline: Instant) -> Result<Duration, Halt> {
    for step in Schedule::new(seed) {
        nemesis.step(&step, deadline)?;
        if Instant::now() > deadline {
            break;
        }
    }
    nemesis.calm()
}

pub(crate) fn on_a_runtime<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// Reads every key through every agent; the answers go into the history, which has to explain them.
/// Returns how many there were.
async fn read_everything(clients: &Clients) -> usize {
    use futures_util::stream::{self, StreamExt};
    let keys: Vec<String> = clients.history.keys().keys().cloned().collect();
    let agents = clients.board.all(State::Running);
    let (answered, silent) = (Cell::new(0), RefCell::new(BTreeSet::new()));
    let read = async |key: &String, agent: usize| {
        let begun = Instant::now();
        // Who did not answer for one key need not be asked for all others.
        while !silent.borrow().contains(&agent) && !is_interrupted() {
            if let (Outcome::Told(..), _) = clients.ask(key, Ask::Get, None, &[agent]).await {
                answered.set(answered.get() + 1);
                return;
            }
            if begun.elapsed() > READ_WITHIN && silent.borrow_mut().insert(agent) {
                clients.history.wrong(format!("{key} cannot be read through n{agent} at the end"));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let reads = keys.iter().flat_map(|key| agents.iter().map(move |agent| (key, *agent)));
    stream::iter(reads)
        .for_each_concurrent(READERS, async |(key, agent)| read(key, agent).await)
        .await;
    answered.get()
}

/// The keys whose answers cannot be explained, and why.
fn judge_all(history: &History) -> Vec<(String, String)> {
    let keys = history.keys();
    let verdict = |(key, entries): (&String, &Vec<_>)| match judge::judge(key, entries) {
        Verdict::Explained => None,
        Verdict::Impossible(why) => Some((key.clone(), why)),
        Verdict::TooHard => {
            Some((key.clone(), format!("the history of {key} is too hard to judge")))
        }
    };
    keys.iter().take_while(|_| !is_interrupted()).filter_map(verdict).collect()
}

/// What agents said of themselves that must not happen.
fn panics(agents: &Agents) -> Vec<String> {
    let mut found = Vec::new();
    for slot in 0..SLOTS {
        let log = std::fs::read(agents.rig.log(slot)).unwrap_or_default();
        let log = String::from_utf8_lossy(&log).into_owned();
        let panics = log.lines().filter(|line| line.contains("panicked"));
        found.extend(panics.map(|line| format!("n{slot} logged: {line}")));
    }
    found
}

/// Keeps logs and anomalies of a failed run.
fn keep(agents: &Agents, seed: u64, anomalies: &[String]) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("sky-nemesis-failed-{seed}"));
    std::fs::create_dir_all(&folder).ok();
    agents.rig.keep_logs(&folder);
    std::fs::write(folder.join("anomalies.txt"), anomalies.join("\n\n")).ok();
    folder
}

fn last_lines(agents: &Agents) -> String {
    let mut shown = String::new();
    for slot in 0..SLOTS {
        let log = std::fs::read(agents.rig.log(slot)).unwrap_or_default();
        let log = String::from_utf8_lossy(&log).into_owned();
        let lines: Vec<&str> = log.lines().collect();
        for line in &lines[lines.len().saturating_sub(LOG_LINES)..] {
            shown.push_str(&format!("n{slot}: {line}\n"));
        }
    }
    shown
}
