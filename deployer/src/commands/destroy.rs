//! `destroy`: the whole ring goes.

use std::path::Path;
use std::process::ExitCode;

use futures_util::stream::{self, StreamExt};

use super::Context;
use crate::deployment::Deployment;
use crate::error::{Error, Result};
use crate::printer::Mark;

/// How many nodes are removed at once.
const AT_ONCE: usize = 8;

pub(super) async fn run(context: &Context<'_>, path: &Path, keep_data: bool) -> Result<ExitCode> {
    let deployment = Deployment::open(path).await?;
    let printer = context.printer;
    let ring = &deployment.inventory.ring.name;
    let nodes = deployment.provider.observe().await?;
    let nothing = nodes.is_empty() && !deployment.folder.path().exists();
    // An interrupted apply may have made what nodes share, and no node yet.
    if nothing && deployment.provider.leftovers().await?.is_empty() {
        printer.say(format_args!("there is no ring {ring}"));
        return Ok(ExitCode::SUCCESS);
    }
    let fate = if keep_data { "keep their data" } else { "delete all their data" };
    context.confirm(&format!("Remove the {} nodes of the ring {ring} and {fate}?", nodes.len()))?;
    let _lock = deployment.folder.lock("destroy")?;
    let results = stream::iter(&nodes).map(|machine| {
        let deployment = &deployment;
        async move {
            deployment.provider.delete(&machine.node.name, keep_data).await?;
            printer.step(Mark::Done, format_args!("{} removed", machine.node.name));
            Ok(())
        }
    });
    // One that cannot be removed does not keep the others.
    let results: Vec<Result<()>> = results.buffer_unordered(AT_ONCE).collect().await;
    let mut failed: Vec<_> =
        results.into_iter().filter_map(Result::err).flat_map(|error| error.problems).collect();
    if !failed.is_empty() && !keep_data && !deployment.provider.kind().is_local() {
        // The rest goes all the same, and perhaps what could not be removed before.
        let cleared = deployment.provider.clear().await;
        let left = deployment.provider.observe().await?;
        if left.iter().all(|machine| machine.handle.is_none()) {
            failed.clear();
        }
        failed.extend(cleared.err().into_iter().flat_map(|error| error.problems));
    }
    Error::of(failed).map_or(Ok(()), Err)?;
    if keep_data {
        printer.say(format_args!(
            "the data of {ring} is kept; `sky-deploy apply` starts the ring on it"
        ));
    } else {
        deployment.provider.clear().await?;
        deployment.folder.remove()?;
        printer.say(format_args!("nothing is left of the ring {ring}"));
    }
    Ok(ExitCode::SUCCESS)
}
