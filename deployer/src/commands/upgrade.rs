//! `upgrade`: every node gets the program of this process and what stands under `agent`, one after the other. The ring must be right
//! before each of them, so that no key ever misses two copies.

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use serde::Serialize;

use super::Context;
use crate::apply;
use crate::deployment::Deployment;
use crate::error::{Error, Result};
use crate::node::NodeSpec;
use crate::observe::NodeState;
use crate::plan;
use crate::timing::Progress;

/// What was done, for `--json`.
#[derive(Serialize)]
struct Upgraded<'a> {
    ring: &'a str,
    nodes: usize,
    renewed: usize,
}

pub(super) async fn run(context: &Context<'_>, path: &Path) -> Result<ExitCode> {
    let progress = Progress::new(context.printer);
    let deployment = Deployment::open(path).await?;
    deployment.refuse_changed()?;
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
        .confirm(&format!(
            "Give the {} nodes of {ring} this program and these settings, one by one?",
            seen.len()
        ))
        .await?;
    let _lock = deployment.folder.lock("upgrade")?;
    let nodes: Vec<NodeSpec> = seen.into_iter().map(|seen| seen.node).collect();
    apply::wait_until_right(&deployment, &nodes, &progress).await?;
    let mut renewed = 0;
    for node in &nodes {
        let launch =
            plan::launch(node, &nodes, &deployment.inventory.ring, deployment.provider.kind());
        let begun = Instant::now();
        if deployment.provider.renew(&launch).await? {
            renewed += 1;
            progress.done(begun, "renew", Some(&node.name), format_args!("{} renewed", node.name));
            apply::wait_until_right(&deployment, &nodes, &progress).await?;
        } else {
            let said = format_args!("{} has this program and these settings", node.name);
            progress.done(begun, "renew", Some(&node.name), said);
        }
    }
    context.printer.say(format_args!("{renewed} of {} nodes renewed", nodes.len()));
    context.timed(&progress, "upgrade", &Upgraded { ring, nodes: nodes.len(), renewed })?;
    Ok(ExitCode::SUCCESS)
}
