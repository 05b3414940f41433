//! `doctor`: has the inventory what it needs, on this machine and where its nodes live?
//!
//! Everything is looked at, whatever is wrong with the rest. Nothing is changed, apart from a file that is
//! written to measure the disk, and removed.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::Context;
use crate::deployment::Deployment;
use crate::error::{Error, Problem, Result};
use crate::health;
use crate::inventory::{Inventory, ProviderKind};
use crate::observe::{NodeState, Sighting};
use crate::plan;
use crate::provider::ports;
use crate::state::{self, RingFolder};

/// By how much the clock of a node may differ. Its agent tells seconds, and takes time to answer.
const CLOCKS_WITHIN: Duration = Duration::from_secs(3);

/// What one look found.
#[derive(Debug, Serialize)]
struct Finding {
    /// What was looked at.
    check: &'static str,
    #[serde(flatten)]
    found: Found,
}

/// How it is.
#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase", tag = "result")]
enum Found {
    /// As it should be.
    Ok { detail: String },
    /// Worth knowing.
    Warning { detail: String, hint: String },
    /// It stands in the way.
    Problem {
        detail: String,
        causes: Vec<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        hint: Option<String>,
    },
}

/// All of it, for `--json`.
#[derive(Serialize)]
struct Report<'a> {
    healthy: bool,
    findings: &'a [Finding],
}

/// What was found so far.
#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn ok(&mut self, check: &'static str, detail: impl Into<String>) {
        self.0.push(Finding { check, found: Found::Ok { detail: detail.into() } });
    }

    fn warn(&mut self, check: &'static str, detail: impl Into<String>, hint: impl Into<String>) {
        let found = Found::Warning { detail: detail.into(), hint: hint.into() };
        self.0.push(Finding { check, found });
    }

    fn fail(&mut self, check: &'static str, problem: Problem) {
        let Problem { what, causes, hint } = problem;
        // What one look runs into, the next one may run into as well.
        let is_it = |known: &Finding| matches!(&known.found, Found::Problem { detail, .. } if *detail == what);
        if self.0.iter().any(is_it) {
            return;
        }
        self.0.push(Finding { check, found: Found::Problem { detail: what, causes, hint } });
    }

    fn error(&mut self, check: &'static str, error: Error) {
        error.problems.into_iter().for_each(|problem| self.fail(check, problem));
    }

    /// Takes what a look gave, with its error as a problem.
    fn take(&mut self, check: &'static str, result: Result<String>) {
        match result {
            Ok(detail) => self.ok(check, detail),
            Err(error) => self.error(check, error),
        }
    }
}

pub(super) async fn run(context: &Context<'_>, path: &Path) -> Result<ExitCode> {
    let mut findings = Findings::default();
    let inventory = Inventory::load(path);
    machine(&mut findings);
    match inventory {
        Ok(inventory) => {
            let detail = format!("{}: ring {}", path.display(), inventory.ring.name);
            findings.ok("inventory", detail);
            ring(&mut findings, path, &inventory).await;
        }
        Err(error) => findings.error("inventory", error),
    }
    let findings = findings.0;
    let is_problem = |finding: &Finding| matches!(finding.found, Found::Problem { .. });
    let healthy = !findings.iter().any(is_problem);
    if context.json {
        context.json(&Report { healthy, findings: &findings })?;
    } else {
        show(context, &findings);
    }
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn show(context: &Context<'_>, findings: &[Finding]) {
    let printer = context.printer;
    let mut counts = [0, 0];
    for Finding { check, found } in findings {
        let (sign, detail, causes, hint) = match found {
            Found::Ok { detail } => ("ok", detail, &[][..], None),
            Found::Warning { detail, hint } => {
                counts[1] += 1;
                ("warning", detail, &[][..], Some(hint))
            }
            Found::Problem { detail, causes, hint } => {
                counts[0] += 1;
                ("problem", detail, &causes[..], hint.as_ref())
            }
        };
        printer.data(format_args!("{} {check:<12} {detail}", printer.finding(sign, 8)));
        for cause in causes {
            printer.data(format_args!("{:22}because {cause}", ""));
        }
        if let Some(hint) = hint {
            printer.data(format_args!("{:22}{} {hint}", "", printer.finding("hint:", 0)));
        }
    }
    let number = |count: i32, what: &str| match count {
        0 => format!("no {what}s"),
        1 => format!("1 {what}"),
        more => format!("{more} {what}s"),
    };
    let [problems, warnings] = counts;
    printer.data(format_args!("{}, {}", number(problems, "problem"), number(warnings, "warning")));
}

/// What every ring needs of this machine.
fn machine(findings: &mut Findings) {
    match health::open_files() {
        Ok(detail) => findings.ok("open files", detail),
        Err((detail, hint)) => findings.warn("open files", detail, hint),
    }
    let home = match state::home() {
        Ok(home) => home,
        Err(error) => return findings.error("state folder", error),
    };
    // What is not there yet is made on the disk of what is above it.
    let there = home.ancestors().find(|folder| folder.exists()).map(Path::to_owned);
    let Some(there) = there else { return };
    disk(findings, &home, there);
}

fn disk(findings: &mut Findings, home: &Path, there: PathBuf) {
    match health::disk_room(&there) {
        Ok((detail, None)) => findings.ok("disk space", detail),
        Ok((detail, Some(hint))) => findings.warn("disk space", detail, hint),
        Err(error) => findings.error("disk space", error),
    }
    match health::sync_time(&there) {
        Ok(time) if time > health::SLOW_SYNC => findings.warn(
            "fsync",
            format!("{} takes {} ms to write 4 KiB for good", home.display(), time.as_millis()),
            "every write of a client waits for that: use a faster disk, or set XDG_STATE_HOME",
        ),
        Ok(time) => {
            let ms = time.as_secs_f64() * 1000.0;
            findings.ok("fsync", format!("{}: {ms:.1} ms for 4 KiB", home.display()));
        }
        Err(error) => findings.error("fsync", error),
    }
}

/// What the ring needs, and how it is.
async fn ring(findings: &mut Findings, path: &Path, inventory: &Inventory) {
    let name = &inventory.ring.name;
    let made = RingFolder::of(name).and_then(|folder| state_of(findings, &folder, inventory));
    let made = made.unwrap_or_else(|error| {
        findings.error("ring", error);
        false
    });
    let deployment = match Deployment::open(path).await {
        Ok(deployment) => deployment,
        Err(error) => return findings.error("provider", error),
    };
    let kind = deployment.provider.kind();
    findings.ok("provider", format!("{kind} ({})", deployment.why));
    if kind == ProviderKind::Openstack {
        match health::ssh_client().await {
            Ok(version) => findings.ok("ssh", version),
            Err(error) if inventory.openstack.agent_image.is_some() => {
                let hint = "only `logs`, `upgrade` and floating_ips need it here";
                findings.warn("ssh", error.brief(), hint);
            }
            Err(error) => findings.error("ssh", error),
        }
    }
    let facts = deployment.provider.examine().await;
    // Then whatever else is asked there fails in the same way.
    let is_lost = facts.first().is_some_and(|(_, fact)| fact.is_err());
    facts.into_iter().for_each(|(check, fact)| findings.take(check, fact));
    if is_lost {
        return;
    }
    let nodes = match deployment.observe().await {
        Ok(nodes) => nodes,
        Err(error) => return findings.error("nodes", error),
    };
    match plan::plan(inventory, kind, &deployment.why, &nodes) {
        Err(error) => findings.error("plan", error),
        Ok(plan) => {
            let new = plan.created();
            let down = plan.steps.iter().filter(|step| matches!(step, plan::Step::Start(_)));
            let starting: Vec<_> =
                down.map(|step| step.node().clone()).chain(new.clone()).collect();
            if kind.is_local() && !starting.is_empty() {
                let count = starting.len();
                let free = ports::are_free(&starting).map(|()| format!("{count} are free"));
                findings.take("ports", free);
            }
            match deployment.provider.outlook(&new).await {
                Ok(outlook) => {
                    for quota in outlook.quotas.iter().filter(|quota| quota.need > 0) {
                        let limit =
                            quota.limit.map_or("no limit".to_owned(), |limit| limit.to_string());
                        let (what, need, used) = (&quota.what, quota.need, quota.used);
                        findings
                            .ok("quota", format!("{what}: {need} needed, {used} used of {limit}"));
                    }
                    for warning in outlook.warnings {
                        findings.warn("plan", warning, "see `sky-deploy plan`");
                    }
                }
                Err(error) => findings.error("plan", error),
            }
            if !plan.is_empty() && made {
                let detail = format!("{} steps from what the inventory says", plan.steps.len());
                findings.warn("plan", detail, "`sky-deploy plan` shows them, `apply` does them");
            }
        }
    }
    running(findings, &deployment, &nodes, made).await;
}

/// What is kept of the ring on this machine. Returns whether the ring was made.
fn state_of(findings: &mut Findings, folder: &RingFolder, inventory: &Inventory) -> Result<bool> {
    if let Some(holder) = folder.holder()? {
        findings.warn("lock", holder.to_string(), "what is found here may be under way");
    }
    let record = folder.record()?;
    let Some(record) = record else {
        if folder.path().exists() {
            findings.warn(
                "ring",
                format!("{} is there, and no ring was made", folder.path().display()),
                "an apply was interrupted, or its record was lost: `sky-deploy apply` goes on, \
                 `destroy` removes it",
            );
        } else {
            findings.ok("ring", format!("{} is not made yet", inventory.ring.name));
        }
        return Ok(false);
    };
    record.agrees_with(&inventory.ring)?;
    if folder.secrets()?.is_none() {
        return Err(Error::new(format!("the secrets of {} are gone", inventory.ring.name))
            .hint("`sky-deploy adopt` asks its nodes for them"));
    }
    findings.ok("ring", format!("made, with its state in {}", folder.path().display()));
    Ok(true)
}

/// How the nodes are that there are.
async fn running(findings: &mut Findings, deployment: &Deployment, nodes: &[Sighting], made: bool) {
    if made && nodes.is_empty() {
        findings.warn("nodes", "there are none", "`sky-deploy apply` makes them");
    }
    let mut up = 0;
    for seen in nodes {
        let name = &seen.node.name;
        if seen.state == NodeState::Up {
            up += 1;
            if let Some(note) = &seen.note {
                let hint = format!("`sky-deploy logs {name}` tells since when");
                findings.warn("nodes", format!("{name}: {note}"), &hint);
            }
            continue;
        }
        let note = seen.note.as_ref().map_or_else(String::new, |note| format!(": {note}"));
        let mut problem = Problem::new(format!("{name} is {}{note}", seen.state));
        problem.hint = Some(format!(
            "`sky-deploy apply` brings it back, `sky-deploy logs {name}` may tell why"
        ));
        findings.fail("nodes", problem);
    }
    if up == 0 {
        return leftovers(findings, deployment).await;
    }
    findings.ok("nodes", format!("{up} of {} are up", nodes.len()));
    for range in deployment.lost_for_good(nodes) {
        let mut problem = Problem::new(range.sentence());
        problem.hint = Some("`sky-deploy repair` tells what may be lost".to_owned());
        findings.fail("ranges", problem);
    }
    match deployment.provider.outdated().await {
        Ok(old) if old.is_empty() => findings.ok("program", "all nodes run this one"),
        Ok(old) => findings.warn(
            "program",
            format!("{} run another than this one ({})", old.join(", "), env!("CARGO_PKG_VERSION")),
            "`sky-deploy upgrade` gives them this one, one by one",
        ),
        Err(error) => findings.error("program", error),
    }
    match deployment.provider.told_otherwise().await {
        Ok(others) if others.is_empty() => {
            findings.ok("settings", "all nodes have those under `agent`")
        }
        Ok(others) => findings.warn(
            "settings",
            format!("{} run with other ones than stand under `agent`", others.join(", ")),
            "`sky-deploy upgrade` gives them these, one by one",
        ),
        Err(error) => findings.error("settings", error),
    }
    let mut furthest = Duration::ZERO;
    for seen in nodes.iter().filter(|seen| seen.state == NodeState::Up) {
        let Ok((clock, took)) = deployment.client.clock(&seen.url).await else { continue };
        let ahead = clock.duration_since(SystemTime::now()).unwrap_or_default();
        let behind = SystemTime::now().duration_since(clock).unwrap_or_default();
        let (off, which) = if ahead > behind { (ahead, "ahead") } else { (behind, "behind") };
        let off = off.saturating_sub(took);
        furthest = furthest.max(off);
        if off > CLOCKS_WITHIN {
            let name = &seen.node.name;
            findings.warn(
                "clocks",
                format!("that of {name} is {} s {which} of this machine's", off.as_secs()),
                "the ring does not need it, but logs cannot be told in order: let NTP set both",
            );
        }
    }
    if furthest <= CLOCKS_WITHIN {
        findings.ok("clocks", format!("all agree within {} s", CLOCKS_WITHIN.as_secs()));
    }
    leftovers(findings, deployment).await;
}

async fn leftovers(findings: &mut Findings, deployment: &Deployment) {
    match deployment.provider.leftovers().await {
        Ok(left) if left.is_empty() => findings.ok("leftovers", "nothing that no node uses"),
        Ok(left) => {
            for item in left {
                findings.warn(
                    "leftovers",
                    format!("{} {}: {}", item.kind, item.name, item.why),
                    "`sky-deploy audit` lists them, `apply` uses or `destroy` removes them",
                );
            }
        }
        Err(error) => findings.error("leftovers", error),
    }
}
