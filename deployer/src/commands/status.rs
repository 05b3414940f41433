//! `status`: is the ring right?

use std::path::Path;
use std::pin::pin;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::Context;
use crate::amount::of;
use crate::cli::StatusArgs;
use crate::deployment::{Deployment, Kept};
use crate::error::Result;
use crate::loss::REPAIR;
use crate::moment;
use crate::node::Handle;
use crate::observe::{NodeState, StatusReport};
use crate::printer::Printer;

/// How many sentences about what is not right are shown.
const MOST: usize = 8;

pub(super) async fn run(context: &Context<'_>, args: &StatusArgs) -> Result<ExitCode> {
    let path = &args.target.inventory;
    if let Some(seconds) = args.watch {
        return watch(context, path, Duration::from_secs(seconds)).await;
    }
    let status = Deployment::open(path).await?.status().await?;
    if context.json {
        context.json(&status)?;
    } else {
        let printer = context.printer;
        let lines = nodes(&status, printer).chain([verdict_of(&status)]).chain(problems(&status));
        printer.data(lines.collect::<Vec<_>>().join("\n"));
        next(&status).iter().for_each(|hint| printer.hint(hint));
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
                let first = last.is_none();
                let (nodes, verdict) = (nodes(&status, printer), verdict_of(&status));
                if printer.rows().is_some() {
                    // What matters most first: not everything may fit.
                    let lines = nodes.chain(problems(&status)).chain(next(&status));
                    printer.frame(first, &format!("{at}  {verdict}"), &lines.collect::<Vec<_>>());
                } else {
                    let lines = nodes.chain([verdict]).chain(problems(&status));
                    printer.frame(first, &at, &lines.collect::<Vec<_>>());
                }
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

fn nodes(status: &StatusReport, printer: &Printer) -> impl Iterator<Item = String> {
    status.nodes.iter().map(move |node| {
        let keys = node.keys.map_or_else(|| "? keys".to_owned(), |keys| of(keys, "key"));
        let handle = match &node.handle {
            Some(Handle::Pid(pid)) => format!("pid {pid}"),
            Some(Handle::Container(id)) => format!("container {}", id.get(..12).unwrap_or(id)),
            Some(Handle::Server(id)) => format!("server {id}"),
            None => String::new(),
        };
        let state = printer.state(node.state, 9);
        let line = format!("{:<10} {state} {:<26} {keys:>13}  {handle}", node.name, node.url);
        line.trim_end().to_owned()
    })
}

fn verdict_of(status: &StatusReport) -> String {
    let StatusReport { ring, right, replicated, .. } = status;
    verdict(ring, *right, *replicated, &[]).collect()
}

/// What is not right. One node that is down makes many sentences, of which the first tell most.
fn problems(status: &StatusReport) -> Vec<String> {
    let StatusReport { problems, nodes, .. } = status;
    let shown = if problems.len() > MOST { MOST - 1 } else { problems.len() };
    let mut lines: Vec<String> = problems[..shown].iter().map(|it| format!("  {it}")).collect();
    if shown < problems.len() {
        lines.push(format!("  and {} more: `sky-deploy ring` tells all", problems.len() - shown));
    }
    // Those that are not up are told with it already.
    let noted = nodes.iter().filter(|node| node.state == NodeState::Up);
    let noted = noted.filter_map(|node| Some((&node.name, node.note.as_ref()?)));
    lines.extend(noted.map(|(name, note)| format!("  {name}: {note}")));
    lines
}

/// What to do about what is not right.
fn next(status: &StatusReport) -> Vec<String> {
    let is = |state: NodeState| status.nodes.iter().any(move |node| node.state == state);
    let mut hints = Vec::new();
    let down = |runs: bool| {
        status.nodes.iter().any(move |node| node.state == NodeState::Down && node.runs == runs)
    };
    match (is(NodeState::Missing), down(false)) {
        (true, true) => hints
            .push("`sky-deploy apply` makes what is missing and starts what is down, on its data"),
        (true, false) => hints.push("`sky-deploy apply` makes what is missing"),
        (false, true) => hints.push("`sky-deploy apply` starts what is down, on its data"),
        (false, false) => {}
    }
    if down(true) {
        hints.push("`sky-deploy restart NODE` starts anew what runs and does not answer");
    }
    if is(NodeState::Paused) {
        hints.push("`sky-deploy unpause NODE` lets it go on");
    }
    if status.needs_repair {
        hints.push(REPAIR);
    }
    hints.into_iter().map(str::to_owned).collect()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::ProviderKind;
    use crate::node::{LOOPBACK, NodeSpec};
    use crate::observe::{NodeReport, Sighting};

    #[test]
    fn what_runs_and_does_not_answer_is_not_for_apply() {
        let hints = |nodes: &[(NodeState, bool)]| {
            let report = |(state, runs): &(NodeState, bool)| {
                let (name, id, host) = ("n".to_owned(), sky_chord::Id::MIN, Some(LOOPBACK));
                let node = Sighting::missing(NodeSpec { name, id, host, port: 1, zone: None });
                let seen = Sighting { state: *state, runs: *runs, ..node };
                NodeReport::new(&seen, ProviderKind::Docker)
            };
            next(&StatusReport {
                ring: "r".to_owned(),
                right: false,
                replicated: false,
                problems: Vec::new(),
                needs_repair: false,
                nodes: nodes.iter().map(report).collect(),
            })
        };
        let start = "`sky-deploy apply` starts what is down, on its data";
        let restart = "`sky-deploy restart NODE` starts anew what runs and does not answer";
        let (stopped, hangs) = ((NodeState::Down, false), (NodeState::Down, true));
        assert_eq!(hints(&[stopped, (NodeState::Up, true)]), [start]);
        assert_eq!(hints(&[hangs]), [restart]);
        assert_eq!(hints(&[hangs, stopped]), [start, restart]);
    }
}
