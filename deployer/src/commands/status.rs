//! `status`: is the ring right?

use std::path::Path;
use std::pin::pin;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::Context;
use crate::cli::StatusArgs;
use crate::deployment::{Deployment, Kept};
use crate::error::Result;
use crate::moment;
use crate::node::Handle;
use crate::observe::StatusReport;
use crate::printer::Printer;

pub(super) async fn run(context: &Context<'_>, args: &StatusArgs) -> Result<ExitCode> {
    let path = &args.target.inventory;
    if let Some(seconds) = args.watch {
        return watch(context, path, Duration::from_secs(seconds)).await;
    }
    let status = Deployment::open(path).await?.status().await?;
    if context.json {
        context.json(&status)?;
    } else {
        context.printer.data(lines(&status, context.printer).join("\n"));
    }
    Ok(code(&status))
}

fn code(status: &StatusReport) -> ExitCode {
    if status.right { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// One look, for `status --watch --json`.
#[derive(Serialize)]
struct Look<'a> {
    at: &'a str,
    #[serde(flatten)]
    status: &'a StatusReport,
}

/// Looks again and again until Ctrl-C. An inventory that cannot be used ends it; so does a provider that
/// does not answer at the first look, while later it is one more thing that is not right.
async fn watch(context: &Context<'_>, path: &Path, every: Duration) -> Result<ExitCode> {
    let printer = context.printer;
    let ring = Kept::new(path.to_owned());
    let mut ended = pin!(tokio::signal::ctrl_c());
    let mut last = None;
    loop {
        let look = async { ring.open().await?.status().await };
        let seen = tokio::select! {
            seen = look => seen,
            _ = &mut ended => break,
        };
        let at = moment::seconds(SystemTime::now());
        match seen {
            Ok(status) if context.json => {
                context.json_line(&Look { at: &at, status: &status })?;
                last = Some(code(&status));
            }
            Ok(status) => {
                printer.frame(&at, &lines(&status, printer));
                last = Some(code(&status));
            }
            Err(error) if last.is_none() => return Err(error),
            Err(error) => {
                printer.error(&error);
                last = Some(ExitCode::FAILURE);
            }
        }
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            _ = &mut ended => break,
        }
    }
    Ok(last.unwrap_or(ExitCode::FAILURE))
}

fn lines(status: &StatusReport, printer: &Printer) -> Vec<String> {
    let nodes = status.nodes.iter().map(|node| {
        let keys = node.keys.map_or_else(|| "?".to_owned(), |keys| keys.to_string());
        let handle = match &node.handle {
            Some(Handle::Pid(pid)) => format!("pid {pid}"),
            Some(Handle::Container(id)) => format!("container {}", id.get(..12).unwrap_or(id)),
            Some(Handle::Server(id)) => format!("server {id}"),
            None => String::new(),
        };
        let state = printer.state(node.state, 9);
        format!("{:<10} {state} {:<26} {keys:>8} keys  {handle}", node.name, node.url)
    });
    let StatusReport { ring, right, replicated, problems, .. } = status;
    nodes.chain(verdict(ring, *right, *replicated, problems)).collect()
}

/// Whether the ring is right, and what is not.
pub(super) fn verdict(
    ring: &str,
    right: bool,
    replicated: bool,
    problems: &[String],
) -> impl Iterator<Item = String> {
    let verdict = match (right, replicated) {
        (true, _) => "right",
        (false, true) => "not right, but every key has all its copies",
        (false, false) => "not right",
    };
    let first = format!("ring {ring} is {verdict}");
    std::iter::once(first).chain(problems.iter().map(|problem| format!("  {problem}")))
}
