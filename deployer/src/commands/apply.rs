//! `apply`: make the ring what the inventory says.

use std::path::Path;

use super::Context;
use super::plan::{make, render};
use crate::apply;
use crate::cli::Preflight;
use crate::deployment::Deployment;
use crate::error::Result;

pub(super) async fn run(context: &Context<'_>, path: &Path, preflight: Preflight) -> Result<()> {
    let mut deployment = Deployment::open(path).await?;
    let lock = deployment.folder.lock("apply")?;
    let plan = make(&deployment, preflight).await?;
    for line in render(&plan) {
        context.printer.say(line);
    }
    if plan.asks() {
        context.confirm("Do this?")?;
    }
    apply::carry_out(&mut deployment, &plan, context.printer).await?;
    drop(lock);
    if context.json {
        context.json(&deployment.status().await?)?;
    } else {
        for seen in deployment.observe().await? {
            context.printer.data(format_args!("{:<10} {}", seen.node.name, seen.public_url()));
        }
    }
    Ok(())
}
