//! Takes a node out of its ring: it hands over its data, everything it held is read back from the
//! others, and only then is it removed.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures_util::future::{FutureExt, TryFutureExt};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use reqwest::{Method, StatusCode};
use sky_chord::Phase;

use crate::amount;
use crate::converge::{self, Standstill};
use crate::deployment::Deployment;
use crate::error::{Error, Result};
use crate::observe::{NodeState, Sighting};
use crate::printer::Printer;
use crate::timing::Progress;

/// How long a node may be still before it has handed over its data.
const DRAINED_WITHIN: Duration = Duration::from_secs(600);
/// How long the others may be still before they hold every key again without a node that is down.
const REPLICATED_WITHIN: Duration = Duration::from_secs(180);
/// How often a draining node is asked.
const ASK_EVERY: Duration = Duration::from_millis(200);
/// How long a key may be unavailable while it is read back.
const KEY_WITHIN: Duration = Duration::from_secs(30);
/// How many keys are read back at once.
const AT_ONCE: usize = 32;

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
    let Some(view) = &seen.view else {
        return wait_for_the_others(deployment, name, printer).await;
    };
    if view.ring.is_none() {
        return Ok(()); // It never was a member.
    }
    let others = others(deployment, name).await?;
    if others.is_empty() {
        return Err(Error::new(format!("{name} is the last node: nobody could take its data"))
            .hint("`sky-deploy destroy` removes the whole ring"));
    }
    let agent = seen.url.clone();
    let mut held: BTreeSet<String> =
        deployment.client.local_keys(&agent).await?.into_iter().collect();
    if view.phase != Phase::Drained {
        deployment.client.leave(&agent).await?;
    }
    let drained = wait_until_drained(deployment, &seen, printer).await?;
    if drained {
        held.extend(deployment.client.local_keys(&agent).await?);
    }
    let agents: Vec<String> = others
        .iter()
        .filter(|other| other.state == NodeState::Up)
        .map(|other| other.url.clone())
        .collect();
    read_back(deployment, name, &agents, &held, printer).await?;
    let keys = amount::of(held.len() as u64, "key");
    let said = format_args!("{name} drained: {keys} read back");
    progress.done(begun, "drain", Some(name), said);
    Ok(())
}

async fn others(deployment: &Deployment, name: &str) -> Result<Vec<Sighting>> {
    let nodes = deployment.observe().await?;
    Ok(nodes.into_iter().filter(|seen| seen.node.name != name).collect())
}

/// Waits until a leaving node has handed over everything. False if it has ended meanwhile, which the
/// read-back must make up for.
async fn wait_until_drained(
    deployment: &Deployment,
    seen: &Sighting,
    printer: &Printer,
) -> Result<bool> {
    let name = &seen.node.name;
    let (begun, mut standstill) = (Instant::now(), Standstill::begin());
    loop {
        let nodes = deployment.observe().await?;
        let (still, moved) = (standstill.after(&nodes), converge::moved(&nodes));
        let now = deployment.among(nodes, name)?;
        match now.view.as_ref().map(|view| (view.phase, view.ranges.len())) {
            Some((Phase::Drained, _)) => return Ok(true),
            None if now.state == NodeState::Down => return Ok(false),
            Some((_, ranges)) => {
                let left = amount::of(ranges as u64, "range");
                printer.passing(format_args!("{name} hands over its data: {left} left{moved}"));
            }
            None => {}
        }
        if still > DRAINED_WITHIN {
            let waited = begun.elapsed().as_secs();
            return Err(Error::new(format!("{name} has not handed over its data in {waited} s"))
                .hint("`sky-deploy status` may tell why; the same command again goes on waiting"));
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

/// Waits until everything is held in full by the other nodes.
async fn wait_for_the_others(deployment: &Deployment, name: &str, printer: &Printer) -> Result<()> {
    let mut standstill = Standstill::begin();
    loop {
        let others = others(deployment, name).await?;
        let ring = others.iter().any(|seen| seen.view.as_ref().is_some_and(|v| v.ring.is_some()));
        let verdict = converge::judge(&others, deployment.inventory.ring.replicas);
        if verdict.replicated || (!ring && others.iter().all(|seen| seen.view.is_some())) {
            return Ok(());
        }
        if standstill.after(&others) > REPLICATED_WITHIN {
            let mut error = Error::new(format!(
                "{name} is down, and the others do not hold everything without it"
            ))
            .hint(format!("`sky-deploy start {name}`, then remove it again"));
            if let Some(problem) = error.problems.last_mut() {
                problem.causes = verdict.problems;
            }
            return Err(error);
        }
        let moved = converge::moved(&others);
        printer.passing(format_args!("{name} is down: waiting for the others to hold all{moved}"));
        tokio::time::sleep(ASK_EVERY).await;
    }
}

/// Reads every key back through the other agents.
async fn read_back(
    deployment: &Deployment,
    name: &str,
    agents: &[String],
    held: &BTreeSet<String>,
    printer: &Printer,
) -> Result<()> {
    if agents.is_empty() {
        return Err(Error::new(format!("no other node is up to take over from {name}"))
            .hint("`sky-deploy apply` starts what is down"));
    }
    let total = amount::of(held.len() as u64, "key");
    printer.passing(format_args!("reading back {total}"));
    // Boxed, or the compiler cannot see that this work may move between threads.
    let checks = held.iter().zip(agents.iter().cycle()).map(|(key, agent)| {
        let check = is_found(deployment, agent, key);
        check.map_ok(move |found| (!found).then_some(key)).boxed()
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
