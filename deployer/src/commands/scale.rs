//! `add` and `remove`: one node more, one node less, here and in the inventory.

use std::path::Path;
use std::process::ExitCode;

use super::Context;
use crate::apply;
use crate::cli::{NodeTarget, Preflight};
use crate::deployment::Deployment;
use crate::drain;
use crate::error::{Error, Result};
use crate::inventory::{Nodes, write_count};
use crate::node::NodeSpec;
use crate::observe::NodeState;
use crate::printer::{Mark, Printer};

pub(super) async fn add(context: &Context<'_>, path: &Path) -> Result<ExitCode> {
    let mut deployment = Deployment::open(path).await?;
    if !deployment.provider.kind().is_local() {
        context
            .confirm(&format!("Make one more server for {}?", deployment.inventory.ring.name))?;
    }
    let said = add_node(&mut deployment, context.printer).await?;
    context.printer.step(Mark::Done, said);
    Ok(ExitCode::SUCCESS)
}

/// Adds a node, and says which.
pub(crate) async fn add_node(deployment: &mut Deployment, printer: &Printer) -> Result<String> {
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
    apply::carry_out(deployment, &plan, printer).await?;
    let names: Vec<&str> = plan.steps.iter().map(|step| step.node().name.as_str()).collect();
    Ok(format!(
        "{} added; {} says `nodes: {}` now",
        names.join(", "),
        deployment.path.display(),
        count + 1
    ))
}

pub(super) async fn remove(context: &Context<'_>, target: &NodeTarget) -> Result<ExitCode> {
    let deployment = Deployment::open(&target.target.inventory).await?;
    let name = &target.node;
    deployment.find(name).await?;
    let _lock = deployment.folder.lock(&format!("remove {name}"))?;
    context.confirm(&format!("Drain {name} and delete it with its data?"))?;
    drain::remove(&deployment, name, context.printer).await?;
    let others = deployment.observe().await?;
    let left = others.len();
    if others.iter().all(|seen| seen.state == NodeState::Up) {
        let members: Vec<NodeSpec> = others.into_iter().map(|seen| seen.node).collect();
        apply::wait_until_right(&deployment, &members, context.printer).await?;
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
    Ok(ExitCode::SUCCESS)
}
