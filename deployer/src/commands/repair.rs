//! `repair`: ranges whose majority is gone for good go on with what the survivors hold.
//!
//! This is the one thing that may lose what was acknowledged, and the one that must not be done while a
//! member that is gone could come back: it would go on in the epoch it knows. So nothing is done while a
//! majority answers, or while a node that is gone still has its data.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde::Serialize;
use sky_api::ForceRequest;
use sky_chord::{Config, Id};

use super::{Context, interruptible_with};
use crate::amount::{count, now, of};
use crate::cli::RepairArgs;
use crate::deployment::Deployment;
use crate::error::{During, Error, Problem, Result};
use crate::loss::{self, Gone, LostRange, Survivor};
use crate::machine;
use crate::printer::{Mark, Printer};

/// How long the agents are asked again before a silent one counts as gone.
const SILENT_FOR: Duration = Duration::from_secs(5);
/// How long the repaired ranges may take to have a majority again.
const REPAIRED_WITHIN: Duration = Duration::from_secs(60);
/// How often ranges are forced that are stuck again.
const PASSES: usize = 3;
/// How often the agents are asked.
const ASK_EVERY: Duration = Duration::from_millis(500);

/// What was found, for `--json`.
#[derive(Serialize)]
struct Report<'a> {
    ring: &'a str,
    lost: &'a [LostRange],
    nobody_left: &'a [(Id, Id)],
    repaired: &'a [Repaired],
}

/// A line of the ring's `repairs.jsonl`: what was done, and what it was before.
#[derive(Serialize)]
struct Repaired {
    at: u64,
    by: String,
    range: LostRange,
    /// What the survivors decided, or why not.
    outcome: Result<Config, String>,
}

pub(super) async fn run(context: &Context<'_>, args: &RepairArgs) -> Result<ExitCode> {
    let hint = "ranges that were repaired stay so; the same command again goes on with the rest";
    interruptible_with(hint.to_owned(), repair(context, args)).await
}

async fn repair(context: &Context<'_>, args: &RepairArgs) -> Result<ExitCode> {
    let deployment = Deployment::open(&args.target.inventory).await?;
    let printer = context.printer;
    let ring = &deployment.inventory.ring.name;
    deployment.agents().await?;
    let Found { lost, nobody_left, silent } = look(&deployment, printer).await?;
    if lost.is_empty() && nobody_left.is_empty() {
        printer.step(Mark::Done, format_args!("every range of {ring} has a majority that answers"));
        if context.json {
            context.json(&Report { ring, lost: &[], nobody_left: &[], repaired: &[] })?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    if !context.json {
        show(printer, &lost, &nobody_left);
    }
    refuse_what_may_come_back(gone_of(&lost))?;
    if lost.is_empty() {
        return Err(beyond_repair(&nobody_left, &silent));
    }
    if !args.accept_loss {
        if context.json {
            context.json(&Report {
                ring,
                lost: &lost,
                nobody_left: &nobody_left,
                repaired: &[],
            })?;
        }
        return Err(Error::new(format!("{} ranges of {ring} are stuck", lost.len()))
            .hint("--accept-loss lets the survivors go on with what they hold"));
    }
    let _lock = deployment.folder.lock("repair")?;
    if !context.yes {
        let question = "Writes may be lost for ever. Type the name of the ring to go on:";
        match printer.ask(question).await {
            Some(answer) if answer == *ring => {}
            Some(_) => return Err(Error::new("nothing was done")),
            None => {
                return Err(Error::new("nothing was done, because there is nobody to ask")
                    .hint("look at what is said above, then say yes beforehand with --yes"));
            }
        }
    }
    let repaired = force_all(&deployment, lost, printer).await?;
    if context.json {
        let (lost, nobody_left) = (&[], &nobody_left[..]);
        context.json(&Report { ring, lost, nobody_left, repaired: &repaired })?;
    }
    let (still_lost, _) = loss::judge(&deployment.expected().await?);
    Error::of(failures(&repaired, &still_lost)).map_or(Ok(()), Err)?;
    wait(&deployment, printer).await?;
    printer.say(format_args!(
        "`sky-deploy apply` makes the nodes that are gone anew, `sky-deploy check` compares the copies"
    ));
    if nobody_left.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    Err(beyond_repair(&nobody_left, &silent))
}

/// The ranges that could not be repaired: the last answer was no, and they are `still_lost`. An answer may
/// be that something else had to be finished first, and that may be all that a range needed.
fn failures(repaired: &[Repaired], still_lost: &[LostRange]) -> Vec<Problem> {
    let latest: BTreeMap<Id, &Repaired> = repaired.iter().map(|it| (it.range.hi, it)).collect();
    latest
        .values()
        .filter(|done| still_lost.iter().any(|range| range.hi == done.range.hi))
        .filter_map(|done| Some((&done.range, done.outcome.as_ref().err()?)))
        .map(|(range, reason)| {
            let mut problem = Problem::new(format!("{} could not be repaired", named(range)));
            problem.causes.push(reason.clone());
            problem.hint = Some("the same command again tries it again".to_owned());
            problem
        })
        .collect()
}

fn beyond_repair(nobody_left: &[(Id, Id)], silent: &[Gone]) -> Error {
    // What nobody who answers has kept may be with these.
    if let Err(error) = refuse_what_may_come_back(silent) {
        return error;
    }
    let what = of(nobody_left.len() as u64, "range");
    Error::new(format!("there is nothing left to repair {what} from"))
        .hint(
            "`sky-deploy backup --without-lost FILE` saves the rest; restore that, and what an older backup \
             has, into a new ring",
        )
}

/// What is wrong with a ring.
struct Found {
    lost: Vec<LostRange>,
    /// The arcs that nobody who answers has kept.
    nobody_left: Vec<(Id, Id)>,
    /// Who does not answer and may come back.
    silent: Vec<Gone>,
}

/// What is stuck, after the silent had some time to answer.
async fn look(deployment: &Deployment, printer: &Printer) -> Result<Found> {
    let begun = Instant::now();
    loop {
        let nodes = deployment.expected().await?;
        let (lost, nobody_left) = loss::judge(&nodes);
        let is_well = lost.is_empty() && nobody_left.is_empty();
        if is_well || begun.elapsed() > SILENT_FOR {
            printer.clear();
            return Ok(Found { lost, nobody_left, silent: loss::silent(&nodes) });
        }
        printer.passing("asking again those who do not answer");
        tokio::time::sleep(ASK_EVERY).await;
    }
}

fn named(range: &LostRange) -> String {
    format!("({:?}, {:?}]", range.lo, range.hi)
}

fn show(printer: &Printer, lost: &[LostRange], nobody_left: &[(Id, Id)]) {
    for range in lost {
        let members = range.members.join(", ");
        printer.data(format_args!("{} in epoch {}, members {members}", named(range), range.epoch));
        for Survivor { name, keys, .. } in &range.survivors {
            printer.data(format_args!("  {name:<10} answers and holds {}", of(*keys, "key")));
        }
        for gone in &range.gone {
            let since = gone.silent_ms.map_or_else(String::new, |ms| {
                format!(", not heard of for {} s", count(ms / 1000))
            });
            printer.data(format_args!("  {:<10} is gone: {}{since}", gone.name, gone.fate));
        }
        let gone: Vec<&str> = range.gone.iter().map(|gone| gone.name.as_str()).collect();
        printer.data(format_args!(
            "  may be lost: writes that were acknowledged by {} and had not reached a survivor",
            gone.join(", ")
        ));
    }
    for (lo, hi) in nobody_left {
        printer.data(format_args!("({lo:?}, {hi:?}]: nobody who answers has kept it"));
    }
}

fn gone_of(lost: &[LostRange]) -> impl Iterator<Item = &Gone> {
    lost.iter().flat_map(|range| &range.gone)
}

fn refuse_what_may_come_back<'a>(gone: impl IntoIterator<Item = &'a Gone>) -> Result<()> {
    let mut back: Vec<(&str, &str, &str)> = gone
        .into_iter()
        .filter_map(|gone| Some((&*gone.name, &*gone.fate, gone.comes_back_by.as_deref()?)))
        .collect();
    back.sort_unstable();
    back.dedup();
    let problems = back.into_iter().map(|(name, fate, command)| {
        let mut problem = Problem::new(format!("{name} is not gone for good: {fate}"));
        problem.hint = Some(format!(
            "`{command}` may bring it back with all it holds; if its disk is beyond repair, remove its \
             data, so that it never comes back"
        ));
        problem
    });
    Error::of(problems.collect()).map_or(Ok(()), Err)
}

/// Lets the survivors of each range go on. What a range had begun before it got stuck is finished first,
/// and may leave it stuck again.
async fn force_all(
    deployment: &Deployment,
    mut lost: Vec<LostRange>,
    printer: &Printer,
) -> Result<Vec<Repaired>> {
    let mut repaired = Vec::new();
    for _ in 0..PASSES {
        let pass = force(deployment, lost, printer).await?;
        let is_done = pass.iter().all(|range| range.outcome.is_ok());
        repaired.extend(pass);
        if is_done {
            break;
        }
        tokio::time::sleep(ASK_EVERY).await;
        lost = loss::judge(&deployment.expected().await?).0;
        refuse_what_may_come_back(gone_of(&lost))?;
    }
    Ok(repaired)
}

/// Lets the survivors of each range go on.
async fn force(
    deployment: &Deployment,
    lost: Vec<LostRange>,
    printer: &Printer,
) -> Result<Vec<Repaired>> {
    let by = format!("{}@{}", machine::user(), machine::host());
    let mut repaired = Vec::new();
    for range in lost {
        let what = named(&range);
        let Some(decider) = range.survivors.iter().find(|survivor| survivor.can_decide) else {
            let reason = "no member of its latest epoch answers".to_owned();
            printer.step(Mark::Failed, format_args!("{what}: {reason}"));
            repaired.push(note(
                deployment,
                Repaired { at: now(), by: by.clone(), range, outcome: Err(reason) },
            )?);
            continue;
        };
        let request = ForceRequest {
            hi: range.hi,
            epoch: range.epoch,
            survivors: range.survivors.iter().map(|survivor| survivor.node).collect(),
            by: by.clone(),
        };
        let outcome = deployment.client.force(&decider.url, &request).await;
        let outcome = outcome.map_err(|error| error.brief());
        match &outcome {
            Ok(config) => printer.step(
                Mark::Done,
                format_args!("{what} goes on in epoch {} from {}", config.epoch, decider.name),
            ),
            Err(reason) => printer.step(Mark::Failed, format_args!("{what}: {reason}")),
        }
        repaired.push(note(deployment, Repaired { at: now(), by: by.clone(), range, outcome })?);
    }
    Ok(repaired)
}

/// Writes down what was done.
fn note(deployment: &Deployment, done: Repaired) -> Result<Repaired> {
    let path = deployment.folder.path().join("repairs.jsonl");
    let writing = || format!("cannot write {}", path.display());
    let mut line = serde_json::to_vec(&done).during(writing)?;
    line.push(b'\n');
    let mut options = OpenOptions::new();
    let mut file = options.create(true).append(true).mode(0o600).open(&path).during(writing)?;
    file.write_all(&line).and_then(|()| file.sync_all()).during(writing)?;
    Ok(done)
}

/// Waits until every range has a majority that answers.
async fn wait(deployment: &Deployment, printer: &Printer) -> Result<()> {
    let begun = Instant::now();
    loop {
        let (lost, _) = loss::judge(&deployment.expected().await?);
        if lost.is_empty() {
            printer.step(Mark::Done, "every repaired range has a majority that answers");
            return Ok(());
        }
        if begun.elapsed() > REPAIRED_WITHIN {
            let seconds = REPAIRED_WITHIN.as_secs();
            let what = format!("{} ranges have no majority after {seconds} s", lost.len());
            return Err(Error::new(what).hint("`sky-deploy logs all` may tell why"));
        }
        printer.passing(format_args!("{} ranges have no majority yet", lost.len()));
        tokio::time::sleep(ASK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost(hi: u64) -> LostRange {
        let (lo, hi, epoch) = (Id::small(0), Id::small(hi), 1);
        let (members, survivors, gone) = (Vec::new(), Vec::new(), Vec::new());
        LostRange { lo, hi, epoch, members, survivors, gone }
    }

    #[test]
    fn a_range_that_is_well_in_the_end_was_repaired_whatever_was_answered() {
        let tried = |hi, outcome| Repaired { at: 1, by: "me".to_owned(), range: lost(hi), outcome };
        let no = || Err("a change that was under way is done".to_owned());
        let repaired = [tried(3, no()), tried(5, no()), tried(5, no())];
        let [problem] = failures(&repaired, &[lost(5), lost(7)]).try_into().unwrap();
        assert_eq!(problem.what, format!("{} could not be repaired", named(&lost(5))));
        assert!(failures(&repaired, &[]).is_empty());
    }
}
