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
use crate::plan;
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
    refuse_unapplied(deployment).await?;
    deployment.inventory.nodes = Nodes::Count(count + 1);
    let plan = super::plan::make(deployment, Preflight::default()).await?;
    // Not before it is known that it can be done, and not later: interrupted after this, apply makes the node.
    write_count(&deployment.path, count + 1)?;
    apply::carry_out(deployment, &plan, progress).await?;
    Ok(plan.steps.iter().map(|step| step.node().name.clone()).collect())
}

/// What to do after `add` was interrupted: once more, it would add a second node.
pub(super) const GO_ON: &str = "if the inventory says one node more by now, `sky-deploy apply` goes on \
                                from there; if not, nothing was done";

/// An error if the ring has other nodes than the inventory says: one more would not be the only change.
async fn refuse_unapplied(deployment: &Deployment) -> Result<()> {
    let (kind, observed) = (deployment.provider.kind(), deployment.observe().await?);
    let plan = plan::plan(&deployment.inventory, kind, &deployment.why, &observed)?;
    let (path, created) = (deployment.path.display(), plan.created());
    let what = if plan.removes() {
        format!("the ring has nodes that {path} does not want")
    } else if let Some(node) = created.first() {
        format!("{path} wants {}, which is not made yet", node.name)
    } else {
        return Ok(());
    };
    Err(Error::new(what)
        .hint("`sky-deploy apply` makes the ring what the inventory says; then add"))
}

pub(super) async fn remove(context: &Context<'_>, target: &NodeTarget) -> Result<ExitCode> {
    let deployment = Deployment::open(&target.target.inventory).await?;
    let name = &target.node;
    deployment.find(name).await?;
    let _lock = deployment.folder.lock(&format!("remove {name}"))?;
    context.confirm(&format!("Drain {name} and delete it with its data?")).await?;
    let progress = Progress::new(context.printer);
    take_out(&deployment, name, &progress).await?;
    context.timed(&progress, "remove", &Changed { nodes: std::slice::from_ref(name) })?;
    Ok(ExitCode::SUCCESS)
}

/// Removes a node, from the inventory too, and waits until the ring is right without it.
async fn take_out(deployment: &Deployment, name: &str, progress: &Progress) -> Result<()> {
    let before = deployment.observe().await?;
    let left = before.iter().filter(|seen| seen.node.name != name).count();
    drain::remove(deployment, name, progress).await?;
    // At once: whatever happens from now on, the next apply must not make the node again.
    let (path, printer) = (deployment.path.display(), progress.printer());
    match deployment.inventory.nodes {
        Nodes::Count(count) if count > left && left > 0 => {
            write_count(&deployment.path, left).map_err(|error| {
                error.hint(format!("write `nodes: {left}`, or the next apply makes {name} again"))
            })?;
            printer.say(format_args!("{path} says `nodes: {left}` now"));
        }
        Nodes::List(_) => printer.warn(format_args!(
            "take the entry of {name} out of `nodes` in {path}, or the next apply makes it again"
        )),
        Nodes::Count(_) => {}
    }
    let others = deployment.observe().await?;
    if others.iter().all(|seen| seen.state == NodeState::Up) {
        let members: Vec<NodeSpec> = others.into_iter().map(|seen| seen.node).collect();
        apply::wait_until_right(deployment, &members, progress).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::apply::tests::{Stage, answers, listener, report};
    use crate::printer::Printer;

    #[tokio::test]
    async fn who_was_removed_is_not_wanted_any_more_however_the_wait_ends() {
        let mut stage = Stage::new("nodes: 2 # two\n");
        let (listener, port) = listener().await;
        let stays = stage.silent(1, port);
        // Nobody keeps anything: this never becomes right.
        answers(listener, report(&stays, Some(Vec::new())));
        stage.place(2, 1);
        let progress = Progress::new(&Printer::from_environment());
        let remove = take_out(&stage.deployment, "sky-2", &progress);
        let ended = tokio::time::timeout(Duration::from_secs(1), remove).await;
        assert!(ended.is_err(), "{ended:?}");
        assert_eq!(stage.inventory(), "nodes: 1 # two\n");
    }
}
