//! `add` and `remove`: one node more, one node less, here and in the inventory.

use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;

use super::Context;
use crate::apply;
use crate::cli::{NodeTarget, Preflight};
use crate::deployment::Deployment;
use crate::drain;
use crate::error::{Error, Result};
use crate::inventory::{Nodes, write_count};
use crate::node::NodeSpec;
use crate::observe::NodeState;
use crate::timing::Progress;

pub(super) async fn add(context: &Context<'_>, path: &Path) -> Result<ExitCode> {
    let mut deployment = Deployment::open(path).await?;
    if !deployment.provider.kind().is_local() {
        context
            .confirm(&format!("Make one more server for {}?", deployment.inventory.ring.name))
            .await?;
    }
    let progress = Progress::new(context.printer);
    let (names, path) = (add_node(&mut deployment, &progress).await?, deployment.path.display());
    let Nodes::Count(count) = deployment.inventory.nodes else { return Ok(ExitCode::SUCCESS) };
    context.printer.say(format_args!("{path} says `nodes: {count}` now"));
    context.timed(&progress, "add", &Changed { nodes: &names })?;
    Ok(ExitCode::SUCCESS)
}

/// Nodes that something was done to, for `--json`.
#[derive(Serialize)]
pub(super) struct Changed<'a> {
    pub(super) nodes: &'a [String],
}

/// Adds a node. Returns the names of all that were made.
pub(crate) async fn add_node(
    deployment: &mut Deployment,
    progress: &Progress,
) -> Result<Vec<String>> {
    let _lock = deployment.folder.lock("add")?;
    let Nodes::Count(count) = deployment.inventory.nodes else {
        return Err(Error::new(format!("{} lists its nodes", deployment.path.display()))
            .hint("add an entry such as `- name: green` to `nodes`, then apply"));
    };
    // Written first: interrupted after this, apply makes the node.
    write_count(&deployment.path, count + 1)?;
    deployment.inventory.nodes = Nodes::Count(count + 1);
    let plan = super::plan::make(deployment, Preflight::default()).await?;
    if plan.removes() {
        return Err(Error::new("the ring has nodes that the inventory does not want")
            .hint("apply the inventory first"));
    }
    apply::carry_out(deployment, &plan, progress).await?;
    Ok(plan.steps.iter().map(|step| step.node().name.clone()).collect())
}

pub(super) async fn remove(context: &Context<'_>, target: &NodeTarget) -> Result<ExitCode> {
    let deployment = Deployment::open(&target.target.inventory).await?;
    let name = &target.node;
    deployment.find(name).await?;
    let _lock = deployment.folder.lock(&format!("remove {name}"))?;
    context.confirm(&format!("Drain {name} and delete it with its data?")).await?;
    let progress = Progress::new(context.printer);
    drain::remove(&deployment, name, &progress).await?;
    let others = deployment.observe().await?;
    let left = others.len();
    if others.iter().all(|seen| seen.state == NodeState::Up) {
        let members: Vec<NodeSpec> = others.into_iter().map(|seen| seen.node).collect();
        apply::wait_until_right(&deployment, &members, &progress).await?;
    }
    let path = deployment.path.display();
    match deployment.inventory.nodes {
        Nodes::Count(count) if count > left && left > 0 => {
            write_count(&deployment.path, left)?;
            context.printer.say(format_args!("{path} says `nodes: {left}` now"));
        }
        Nodes::List(_) => context.printer.warn(format_args!(
            "take the entry of {name} out of `nodes` in {path}, or the next apply makes it again"
        )),
        Nodes::Count(_) => {}
    }
    context.timed(&progress, "remove", &Changed { nodes: std::slice::from_ref(name) })?;
    Ok(ExitCode::SUCCESS)
}
