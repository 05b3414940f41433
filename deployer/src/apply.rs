//! Carries out a plan, and waits until the ring is right. May be interrupted at any point: the next
//! apply finds out what is there and goes on.

use std::time::{Duration, Instant};

use futures_util::future::FutureExt;
use futures_util::stream::{self, StreamExt};

use crate::amount::of;
use crate::deployment::Deployment;
use crate::error::{Error, Result};
use crate::node::NodeSpec;
use crate::observe::{NodeState, Sighting};
use crate::plan::{Plan, Step, wanted_nodes};
use crate::provider::ports;
use crate::timing::Progress;
use crate::{converge, drain};

/// How many nodes are started at once.
const AT_ONCE: usize = 8;
/// How often agents that do not answer yet are asked.
const ASK_EVERY: Duration = Duration::from_millis(100);

/// Does what the plan says and waits until the ring is right.
pub async fn carry_out(
    deployment: &mut Deployment,
    plan: &Plan,
    progress: &Progress,
) -> Result<()> {
    let observed = deployment.observe().await?;
    let kind = deployment.provider.kind();
    let mut wanted = wanted_nodes(&deployment.inventory, kind, &observed)?;
    let starts = |step: &&Step| matches!(step, Step::Create(_) | Step::Start(_));
    let starting: Vec<&NodeSpec> = plan.steps.iter().filter(starts).map(Step::node).collect();
    if !starting.is_empty() {
        if kind.is_local() {
            ports::are_free(starting.iter().copied())?;
        }
        deployment.prepare()?;
        // Nodes that were made before need nothing new.
        let created = plan.created();
        if !created.is_empty() {
            let begun = Instant::now();
            progress.printer().passing("preparing what the nodes need");
            for prepared in deployment.provider.prepare(&created).await? {
                if let Some(node) = wanted.iter_mut().find(|node| node.name == prepared.name) {
                    *node = prepared;
                }
            }
            progress.quiet(begun, "prepare", "what the nodes need is prepared");
        }
    }
    let deployment = &*deployment;

    // Boxed, or the compiler cannot see that this work may move between threads.
    let steps = plan.steps.iter().map(|step| do_step(deployment, step, &wanted, progress).boxed());
    let results: Vec<Result<()>> =
        stream::iter(steps.collect::<Vec<_>>()).buffer_unordered(AT_ONCE).collect().await;
    let failed = results.into_iter().filter_map(Result::err).flat_map(|error| error.problems);
    Error::of(failed.collect()).map_or(Ok(()), Err)?;

    found(deployment, &wanted, progress).await?;
    let is_removed = |seen: &Sighting| wanted.iter().all(|node| node.name != seen.node.name);
    let (leaving, broken): (Vec<Sighting>, Vec<Sighting>) =
        observed.into_iter().filter(is_removed).partition(|seen| seen.state == NodeState::Up);
    for seen in broken {
        drain::remove(deployment, &seen.node.name, progress).await?;
    }
    // Those that are to leave are members until they have left.
    let mut members = wanted.clone();
    members.extend(leaving.iter().map(|seen| seen.node.clone()));
    wait_until_right(deployment, &members, progress).await?;
    for seen in leaving {
        drain::remove(deployment, &seen.node.name, progress).await?;
        members.retain(|node| node.name != seen.node.name);
        wait_until_right(deployment, &members, progress).await?;
    }
    Ok(())
}

/// Everything but removals, which come later, one at a time.
async fn do_step(
    deployment: &Deployment,
    step: &Step,
    all: &[NodeSpec],
    progress: &Progress,
) -> Result<()> {
    let begun = Instant::now();
    let (kind, done) = match step {
        Step::Create(node) | Step::Start(node) => {
            // As it was prepared: with its address.
            let node = all.iter().find(|prepared| prepared.name == node.name).unwrap_or(node);
            deployment.start(node, all).await?;
            let (kind, done) = match step {
                Step::Create(_) => ("create", "created"),
                _ => ("start", "started"),
            };
            (kind, format!("{} {done} at {}", node.name, node.url()))
        }
        Step::Unpause(node) => {
            deployment.provider.unpause(&node.name).await?;
            ("unpause", format!("{} goes on", node.name))
        }
        Step::Restart(node) => {
            deployment.provider.stop(&node.name).await?;
            deployment.start(node, all).await?;
            ("restart", format!("{} started again, to join again", node.name))
        }
        Step::Remove(_) => return Ok(()),
    };
    progress.done(begun, kind, Some(&step.node().name), done);
    Ok(())
}

/// Waits until the ring of these nodes is right.
pub async fn wait_until_right(
    deployment: &Deployment,
    wanted: &[NodeSpec],
    progress: &Progress,
) -> Result<()> {
    let begun = Instant::now();
    let ring = format!("the ring {}", deployment.inventory.ring.name);
    let replicas = deployment.inventory.ring.replicas;
    let names = names(wanted);
    let look = || {
        async {
            let nodes = deployment.observe().await?;
            deployment.refuse_dead(&nodes, &names).await?;
            deployment.refuse_lost(&nodes).await?;
            Ok(nodes.into_iter().filter(|seen| names.contains(&seen.node.name)).collect())
        }
        .boxed()
    };
    let within = deployment.provider.patience().right;
    let nodes = converge::wait(&ring, within, replicas, progress.printer(), look).await?;
    progress.done(
        begun,
        "right",
        None,
        format_args!("{ring} is right: {}", of(nodes.len() as u64, "node")),
    );
    Ok(())
}

/// Founds the ring if no agent and no data directory knows one: every agent must have said so, and
/// the ring must never have been founded before.
async fn found(deployment: &Deployment, wanted: &[NodeSpec], progress: &Progress) -> Result<()> {
    let names = names(wanted);
    let name = &deployment.inventory.ring.name;
    let begun = Instant::now();
    let within = deployment.provider.patience().answer;
    let silent = loop {
        let nodes = deployment.observe().await?;
        if nodes.iter().any(knows_a_ring) {
            return remember_founded(deployment);
        }
        deployment.refuse_dead(&nodes, &names).await?;
        let answers = |name: &&String| {
            nodes.iter().any(|seen| seen.node.name == **name && seen.view.is_some())
        };
        let silent: Vec<String> = names.iter().filter(|name| !answers(name)).cloned().collect();
        if silent.is_empty() || begun.elapsed() > within {
            break silent;
        }
        progress.printer().passing(format_args!("waiting for the answer of {}", silent.join(", ")));
        tokio::time::sleep(ASK_EVERY).await;
    };
    if !silent.is_empty() {
        return Err(Error::new(format!(
            "no answer from {} after {} s",
            silent.join(", "),
            within.as_secs()
        ))
        .hint("`sky-deploy logs NODE` may tell why; apply again goes on waiting"));
    }
    let record = deployment.folder.record()?.ok_or_else(|| {
        Error::new(format!("the record of the ring {name} is gone"))
            .hint("somebody else changes this ring: apply again")
    })?;
    if record.founded {
        return Err(Error::new(format!(
            "the ring {name} was founded before, and none of its agents has its data any more"
        ))
        .hint("nothing is left to save: `sky-deploy destroy`, then apply again"));
    }
    let first = wanted.first().ok_or_else(|| Error::new("a ring needs a node"))?;
    let seen = deployment.find(&first.name).await?;
    deployment.client.init(&seen.url, &record.ring_id).await?;
    remember_founded(deployment)?;
    let said = format_args!("{} founded the ring {name}", first.name);
    progress.done(begun, "found", Some(&first.name), said);
    Ok(())
}

fn remember_founded(deployment: &Deployment) -> Result<()> {
    match deployment.folder.record()? {
        Some(mut record) if !record.founded => {
            record.founded = true;
            deployment.folder.write_record(&record)
        }
        _ => Ok(()),
    }
}

fn knows_a_ring(seen: &Sighting) -> bool {
    seen.view.as_ref().is_some_and(|view| view.ring.is_some())
}

fn names(nodes: &[NodeSpec]) -> Vec<String> {
    nodes.iter().map(|node| node.name.clone()).collect()
}
