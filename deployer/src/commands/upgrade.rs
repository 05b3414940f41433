//! `upgrade`: every node gets the program of this process, one after the other. The ring must be right
//! before each of them, so that no key ever misses two copies.

use std::path::Path;
use std::process::ExitCode;

use super::Context;
use crate::apply;
use crate::deployment::Deployment;
use crate::error::{Error, Result};
use crate::node::NodeSpec;
use crate::observe::NodeState;
use crate::plan;
use crate::printer::Mark;

pub(super) async fn run(context: &Context<'_>, path: &Path) -> Result<ExitCode> {
    let deployment = Deployment::open(path).await?;
    let ring = &deployment.inventory.ring.name;
    let seen = deployment.observe().await?;
    if seen.is_empty() {
        return Err(Error::new(format!("the ring {ring} has no nodes"))
            .hint("`sky-deploy apply` makes them"));
    }
    if let Some(seen) = seen.iter().find(|seen| seen.state != NodeState::Up) {
        return Err(Error::new(format!("{} is {}", seen.node.name, seen.state))
            .hint("a ring is upgraded when all its nodes are up: `sky-deploy apply` first"));
    }
    context
        .confirm(&format!("Give the {} nodes of {ring} this program, one by one?", seen.len()))?;
    let _lock = deployment.folder.lock("upgrade")?;
    let nodes: Vec<NodeSpec> = seen.into_iter().map(|seen| seen.node).collect();
    apply::wait_until_right(&deployment, &nodes, context.printer).await?;
    let mut renewed = 0;
    for node in &nodes {
        let launch =
            plan::launch(node, &nodes, &deployment.inventory.ring, deployment.provider.kind());
        if deployment.provider.renew(&launch).await? {
            renewed += 1;
            context.printer.step(Mark::Done, format_args!("{} renewed", node.name));
            apply::wait_until_right(&deployment, &nodes, context.printer).await?;
        } else {
            context.printer.step(Mark::Done, format_args!("{} has this program", node.name));
        }
    }
    context.printer.say(format_args!("{renewed} of {} nodes renewed", nodes.len()));
    Ok(ExitCode::SUCCESS)
}
