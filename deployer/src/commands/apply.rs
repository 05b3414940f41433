//! `apply`: make the ring what the inventory says.

use std::path::Path;
use std::time::Instant;

use super::Context;
use super::plan::{make, render};
use crate::apply;
use crate::cli::Preflight;
use crate::deployment::Deployment;
use crate::error::Result;
use crate::timing::Progress;

pub(super) async fn run(context: &Context<'_>, path: &Path, preflight: Preflight) -> Result<()> {
    let progress = Progress::new(context.printer);
    let begun = Instant::now();
    let mut deployment = Deployment::open(path).await?;
    let lock = deployment.folder.lock("apply")?;
    let plan = make(&deployment, preflight).await?;
    progress.quiet(begun, "plan", "the plan is made");
    for line in render(&plan) {
        context.printer.say(line);
    }
    if plan.asks() {
        context.confirm("Do this?").await?;
    }
    apply::carry_out(&mut deployment, &plan, &progress).await?;
    drop(lock);
    if context.json {
        return context.timed(&progress, "apply", &deployment.status().await?);
    }
    if !plan.is_empty() {
        progress.end("apply");
    }
    for seen in deployment.observe().await? {
        context.printer.data(format_args!("{:<10} {}", seen.node.name, seen.public_url()));
    }
    Ok(())
}
