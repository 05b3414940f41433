//! Takes a node out of its ring: it hands over its data, everything it held is read back from the
//! others, and only then is it removed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures_util::future::{FutureExt, TryFutureExt};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use reqwest::{Method, StatusCode};
use sky_chord::Phase;

use crate::amount;
use crate::converge::{self, Standstill};
use crate::deployment::Deployment;
use crate::error::{Error, Result};
use crate::node::repair_after;
use crate::observe::{NodeState, Sighting};
use crate::printer::Printer;
use crate::timing::Progress;

/// How long a node may be still before it has handed over its data.
const DRAINED_WITHIN: Duration = Duration::from_secs(600);
/// How long after a node was given up the others may be still before they begin to do without it.
const BEGUN_WITHIN: Duration = Duration::from_secs(60);
/// How often a draining node is asked.
const ASK_EVERY: Duration = Duration::from_millis(200);
/// How long a key may be unavailable while it is read back.
const KEY_WITHIN: Duration = Duration::from_secs(30);
/// How many keys are read back at once.
const AT_ONCE: usize = 32;
/// By how much a node may see more of a value's time left than the others do.
const CLOCKS_APART: Duration = Duration::from_secs(10);

/// The keys that a node held, and when the time of a value is over that is kept for a time only.
type Held = BTreeMap<String, Option<Instant>>;

/// Drains a node if it is a member, then removes it and its data.
pub async fn remove(deployment: &Deployment, name: &str, progress: &Progress) -> Result<()> {
    drain(deployment, name, progress).await?;
    let begun = Instant::now();
    deployment.provider.delete(name, false).await?;
    progress.done(begun, "remove", Some(name), format_args!("{name} removed"));
    Ok(())
}

/// Makes a node hand over its data, and proves that nothing is missing. A node that is down cannot:
/// then the others must hold everything without it.
pub async fn drain(deployment: &Deployment, name: &str, progress: &Progress) -> Result<()> {
    let (begun, printer) = (Instant::now(), progress.printer());
    let mut seen = deployment.find(name).await?;
    if seen.state == NodeState::Missing {
        return Ok(()); // Only its place is there.
    }
    if seen.state == NodeState::Paused {
        deployment.provider.unpause(name).await?;
        seen = deployment.find(name).await?;
    }
    deployment.refuse_bound(name).await?;
    let others = others(deployment.observe().await?, name);
    let was_member = match &seen.view {
        Some(view) => view.ring.is_some(),
        None => is_founded(deployment, &others)?,
    };
    if !was_member {
        return Ok(());
    }
    if others.is_empty() {
        return Err(Error::new(format!("{name} is the last node: nobody could take its data"))
            .hint("`sky-deploy destroy` removes the whole ring"));
    }
    let held = hand_over(deployment, name, printer).await?;
    read_back(deployment, name, &held, printer).await?;
    let keys = amount::of(held.len() as u64, "key");
    let said = format_args!("{name} drained: {keys} read back");
    progress.done(begun, "drain", Some(name), said);
    Ok(())
}

fn others(nodes: Vec<Sighting>, name: &str) -> Vec<Sighting> {
    nodes.into_iter().filter(|seen| seen.node.name != name).collect()
}

/// Whether the ring was ever founded, as far as anybody can tell who is not down.
fn is_founded(deployment: &Deployment, others: &[Sighting]) -> Result<bool> {
    let is_recorded = deployment.folder.record()?.is_none_or(|record| record.founded);
    let is_waiting = |seen: &Sighting| seen.view.as_ref().is_some_and(|view| view.ring.is_none());
    Ok(is_recorded || !others.iter().all(is_waiting))
}

/// Waits until a node has handed over everything, or, while it does not answer, until the others hold
/// everything without it: silence alone does not tell whether it still is a member. What it said to hold.
async fn hand_over(deployment: &Deployment, name: &str, printer: &Printer) -> Result<Held> {
    let (begun, mut standstill) = (Instant::now(), Standstill::begin());
    let (mut held, mut is_asked) = (Held::new(), false);
    loop {
        let nodes = deployment.observe().await?;
        let (still, moved) = (standstill.after(&nodes), converge::moved(&nodes));
        let now = deployment.among(nodes.clone(), name)?;
        if let Some(view) = now.view.as_ref().filter(|view| view.ring.is_some()) {
            // Who was started again meanwhile has to be told again.
            let is_to_leave = !is_asked || view.phase == Phase::Up;
            let is_drained = view.phase == Phase::Drained;
            if is_to_leave || is_drained {
                held.extend(held_by(deployment, &now.url).await?);
            }
            if is_drained {
                return Ok(held);
            }
            if is_to_leave {
                deployment.client.leave(&now.url).await?;
                is_asked = true;
            }
            let left = amount::of(view.ranges.len() as u64, "range");
            printer.passing(format_args!("{name} hands over its data: {left} left{moved}"));
            if still > DRAINED_WITHIN {
                let waited = begun.elapsed().as_secs();
                let error = format!("{name} has not handed over its data in {waited} s");
                return Err(Error::new(error).hint(
                    "`sky-deploy status` may tell why; the same command again goes on waiting",
                ));
            }
        } else {
            let verdict = converge::judge(&others(nodes, name), deployment.inventory.ring.replicas);
            if verdict.replicated {
                return Ok(held);
            }
            let sentence = "does not answer: waiting until the others hold everything without it";
            printer.passing(format_args!("{name} {sentence}{moved}"));
            let begins = repair_after(&deployment.inventory.agent, &now.node) + BEGUN_WITHIN;
            if still > begins.max(deployment.provider.patience().right) {
                return Err(not_without(name, verdict.problems));
            }
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

fn not_without(name: &str, causes: Vec<String>) -> Error {
    let error = format!("{name} does not answer, and the others do not hold everything without it");
    let mut error = Error::new(error).hint(format!(
        "`sky-deploy start {name}`, if it can be started, and remove it again; `sky-deploy status` tells \
         what the others lack"
    ));
    if let Some(problem) = error.problems.last_mut() {
        problem.causes = causes;
    }
    error
}

/// The keys that an agent says to hold.
async fn held_by(deployment: &Deployment, agent: &str) -> Result<Held> {
    let now = Instant::now();
    let keys = deployment.client.local_keys(agent).await?.into_iter();
    Ok(keys.map(|held| (held.key, held.ttl.map(|ttl| now + Duration::from_secs(ttl)))).collect())
}

/// Reads every key back through the other agents.
async fn read_back(
    deployment: &Deployment,
    name: &str,
    held: &Held,
    printer: &Printer,
) -> Result<()> {
    let others = others(deployment.observe().await?, name).into_iter();
    let agents: Vec<_> =
        others.filter(|other| other.state == NodeState::Up).map(|other| other.url).collect();
    if agents.is_empty() {
        return Err(Error::new(format!("no other node is up to take over from {name}"))
            .hint("`sky-deploy apply` starts what is down"));
    }
    let total = amount::of(held.len() as u64, "key");
    printer.passing(format_args!("reading back {total}"));
    // Boxed, or the compiler cannot see that this work may move between threads.
    let checks = held.iter().zip(agents.iter().cycle()).map(|((key, over), agent)| {
        let check = is_found(deployment, agent, key);
        check.map_ok(move |found| (!found && !is_over(*over)).then_some(key)).boxed()
    });
    let mut done = 0;
    let checks = stream::iter(checks.collect::<Vec<_>>()).buffer_unordered(AT_ONCE);
    let checks = checks.inspect(|_| {
        done += 1;
        if done % 1000 == 0 {
            printer.passing(format_args!("reading back {total}: {}", amount::count(done)));
        }
    });
    let lost: Vec<Option<&String>> = checks.try_collect().await?;
    let lost: Vec<&String> = lost.into_iter().flatten().collect();
    if let Some(example) = lost.first() {
        return Err(Error::new(format!(
            "{} of {} keys that {name} held are not found through the others, such as `{example}`",
            lost.len(),
            held.len()
        ))
        .hint(format!(
            "{name} was not removed. If your clients deleted these keys meanwhile, the same command \
             again removes it"
        )));
    }
    Ok(())
}

/// Whether the time of a value may be over by now.
fn is_over(over: Option<Instant>) -> bool {
    over.is_some_and(|over| over < Instant::now() + CLOCKS_APART)
}

/// Whether a key is found through an agent. Asks again while the key is unavailable.
async fn is_found(deployment: &Deployment, agent: &str, key: &str) -> Result<bool> {
    let begun = Instant::now();
    loop {
        let error = match deployment.client.key(agent, Method::HEAD, key, None, None).await {
            Ok(answer) if answer.status == StatusCode::OK => return Ok(true),
            Ok(answer) if answer.status == StatusCode::NOT_FOUND => return Ok(false),
            Ok(answer) => crate::client::problem(agent, answer.status, &answer.body),
            Err(error) => error,
        };
        if begun.elapsed() > KEY_WITHIN {
            return Err(error);
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}
