//! `destroy`: the whole ring goes.

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use futures_util::stream::{self, StreamExt};
use serde::Serialize;

use super::Context;
use crate::amount::of;
use crate::deployment::Deployment;
use crate::error::{Error, Result};
use crate::node::Machine;
use crate::timing::Progress;

/// How many nodes are removed at once.
const AT_ONCE: usize = 8;

/// What was removed, for `--json`.
#[derive(Serialize)]
struct Destroyed<'a> {
    ring: &'a str,
    nodes: usize,
    kept_data: bool,
}

pub(super) async fn run(context: &Context<'_>, path: &Path, keep_data: bool) -> Result<ExitCode> {
    let deployment = Deployment::open(path).await?;
    let printer = context.printer;
    let progress = Progress::new(printer);
    let ring = &deployment.inventory.ring.name;
    let asked = deployment.provider.observe().await?;
    let nothing = asked.is_empty() && !deployment.folder.path().exists();
    // An interrupted apply may have made what nodes share, and no node yet.
    if nothing && deployment.provider.leftovers().await?.is_empty() {
        printer.say(format_args!("there is no ring {ring}"));
        context.report(&progress, &Destroyed { ring, nodes: 0, kept_data: false })?;
        return Ok(ExitCode::SUCCESS);
    }
    let fate = if keep_data { "keep their data" } else { "delete all their data" };
    let all = of(asked.len() as u64, "node");
    context.confirm(&format!("Remove the {all} of the ring {ring} and {fate}?")).await?;
    let lock = deployment.folder.lock("destroy")?;
    // While the question stood, an apply elsewhere may have made nodes.
    let nodes = deployment.provider.observe().await?;
    let new = not_among(&nodes, &asked);
    if !new.is_empty() {
        let (new, all) = (new.join(", "), of(nodes.len() as u64, "node"));
        let question = format!("Meanwhile {ring} has got {new}. Remove {all} in all and {fate}?");
        context.confirm(&question).await?;
    }
    let results = stream::iter(&nodes).map(|machine| {
        let deployment = &deployment;
        let progress = &progress;
        async move {
            let begun = Instant::now();
            deployment.provider.delete(&machine.node.name, keep_data).await?;
            let name = &machine.node.name;
            progress.done(begun, "remove", Some(name), format_args!("{name} removed"));
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
        let begun = Instant::now();
        deployment.provider.clear().await?;
        deployment.folder.remove(lock)?;
        progress.quiet(begun, "clear", "what the nodes shared is removed");
        printer.say(format_args!("nothing is left of the ring {ring}"));
    }
    let report = Destroyed { ring, nodes: nodes.len(), kept_data: keep_data };
    context.timed(&progress, "destroy", &report)?;
    Ok(ExitCode::SUCCESS)
}

/// The names of the nodes that were not there before.
fn not_among<'a>(nodes: &'a [Machine], before: &[Machine]) -> Vec<&'a str> {
    let names = nodes.iter().map(|machine| machine.node.name.as_str());
    names.filter(|name| before.iter().all(|machine| machine.node.name != *name)).collect()
}
