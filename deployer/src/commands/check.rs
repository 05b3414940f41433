//! `check`: are all copies of all keys alike?

use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::{Context, interruptible_with};
use crate::amount::{count, of};
use crate::cli::CheckArgs;
use crate::compare::{self, Held, Kind};
use crate::deployment::Deployment;
use crate::error::Result;
use crate::printer::Mark;

pub(super) async fn run(context: &Context<'_>, args: &CheckArgs) -> Result<ExitCode> {
    let work = compare_all(context, args);
    interruptible_with("nothing was changed".to_owned(), work).await
}

async fn compare_all(context: &Context<'_>, args: &CheckArgs) -> Result<ExitCode> {
    let deployment = Deployment::open(&args.target.inventory).await?;
    // An error that tells why, if there is nobody to ask.
    deployment.agents().await?;
    let printer = context.printer;
    let begun = Instant::now();
    let progress = |keys| printer.passing(format_args!("{} keys compared", count(keys)));
    let patience = Duration::from_secs(args.patience);
    let report = compare::ring(&deployment, patience, &progress).await?;
    printer.clear();
    if context.json {
        context.json(&report)?;
    } else {
        for difference in &report.differences {
            let copies: Vec<String> = difference.copies.iter().map(shown).collect();
            let how = match difference.kind {
                Kind::OtherValue => "other value under one version",
                Kind::Missing => "missing",
                Kind::OtherVersion => "other version",
            };
            let key = difference.key.escape_debug();
            printer.data(format_args!("{how}: `{key}`: {}", copies.join(", ")));
        }
        if report.more {
            printer.data("some ranges have more differences than these");
        }
        for range in &report.not_compared {
            printer.data(format_args!(
                "could not be compared: ({:?}, {:?}]: {}",
                range.lo, range.hi, range.reason
            ));
        }
        for key in &report.busy_keys {
            let key = key.escape_debug();
            printer.data(format_args!("could not be compared: `{key}`: written at every look"));
        }
        if report.busy > 0 {
            let busy = of(report.busy, "key");
            printer.hint(format_args!(
                "of {busy} no moment was found without a write: `--patience SECONDS` gives it more time"
            ));
        }
        let mark = if report.clean { Mark::Done } else { Mark::Failed };
        let alike = if report.clean { ": all alike" } else { "" };
        printer.step(
            mark,
            format_args!(
                "{}: {}, {}, {} copies compared in {:.1} s{alike}",
                report.ring,
                of(report.ranges as u64, "range"),
                of(report.keys, "key"),
                count(report.copies),
                begun.elapsed().as_secs_f64()
            ),
        );
    }
    Ok(if report.clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What a member holds, for people.
fn shown(held: &Held) -> String {
    match &held.copy {
        None => format!("{} nothing", held.node),
        Some(copy) => {
            // Epoch and round, as in the log; the whole version is in the JSON.
            let version = copy.version.trim_matches('"');
            let version: Vec<&str> = version.split('.').take(2).collect();
            format!("{} {} ({} bytes, {})", held.node, version.join("."), copy.size, copy.digest)
        }
    }
}
