//! `audit`: is there anything of the ring that no node uses?

use std::path::Path;
use std::process::ExitCode;

use super::Context;
use crate::deployment::Deployment;
use crate::error::Result;

pub(super) async fn run(context: &Context<'_>, path: &Path) -> Result<ExitCode> {
    let deployment = Deployment::open(path).await?;
    let left = deployment.provider.leftovers().await?;
    let ring = &deployment.inventory.ring.name;
    if context.json {
        context.json(&left)?;
    } else if left.is_empty() {
        context.printer.say(format_args!("everything of the ring {ring} belongs to a node"));
    } else {
        for item in &left {
            context.printer.data(format_args!(
                "{:<16} {:<24} {:<38} {}",
                item.kind, item.name, item.id, item.why
            ));
        }
        context.printer.say(
            "`sky-deploy apply` uses what it can of this again, `sky-deploy destroy` removes it with \
             the ring",
        );
    }
    Ok(if left.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
