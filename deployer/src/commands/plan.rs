//! `plan`: what would apply do?

use std::path::Path;
use std::process::ExitCode;

use super::Context;
use crate::amount;
use crate::cli::Preflight;
use crate::deployment::Deployment;
use crate::error::Result;
use crate::inventory::ProviderKind;
use crate::plan::{Plan, Share, Step};

/// There is something to do.
const CHANGES: u8 = 2;

pub(super) async fn run(
    context: &Context<'_>,
    path: &Path,
    preflight: Preflight,
) -> Result<ExitCode> {
    let deployment = Deployment::open(path).await?;
    let plan = make(&deployment, preflight).await?;
    if context.json {
        context.json(&plan)?;
    } else {
        for line in render(&plan) {
            context.printer.data(line);
        }
    }
    Ok(if plan.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(CHANGES) })
}

/// The plan for a ring as it is now.
pub(super) async fn make(deployment: &Deployment, preflight: Preflight) -> Result<Plan> {
    deployment.refuse_changed()?;
    let observed = deployment.observe().await?;
    let kind = deployment.provider.kind();
    let mut plan = crate::plan::plan(&deployment.inventory, kind, &deployment.why, &observed)?;
    if deployment.folder.record()?.is_some_and(|record| record.founded) {
        plan = plan.with_handovers(&observed);
    }
    // In a cloud every server would have to be logged in to.
    if kind != ProviderKind::Openstack {
        plan.warnings.extend(told_otherwise(&deployment.provider.told_otherwise().await?));
    }
    match deployment.provider.outlook(&plan.created()).await {
        Ok(outlook) => Ok(plan.with(outlook)),
        Err(error) if preflight.skip_preflight => {
            plan.warnings.extend(error.problems.into_iter().map(|problem| problem.what));
            Ok(plan)
        }
        Err(error) => Err(error),
    }
}

/// That nodes run with other settings than the inventory has, if any do.
fn told_otherwise(nodes: &[String]) -> Option<String> {
    let run = if nodes.len() == 1 { "runs" } else { "run" };
    let names = nodes.join(", ");
    (!nodes.is_empty()).then(|| {
        format!(
            "{names} {run} with other settings than stand under `agent`: `sky-deploy upgrade` changes \
             that, node by node"
        )
    })
}

/// A plan for people, line by line.
pub(super) fn render(plan: &Plan) -> Vec<String> {
    let mut lines = vec![format!("ring {}, provider {} ({})", plan.ring, plan.provider, plan.why)];
    if plan.is_empty() {
        lines.push("no changes: the nodes of the inventory are there, and no others".to_owned());
    }
    for resource in &plan.resources {
        let (kind, name, detail) = (&resource.kind, &resource.name, &resource.detail);
        let line = format!("  + {kind:<16} {name:<24} {detail}");
        lines.push(line.trim_end().to_owned());
    }
    for step in &plan.steps {
        let node = step.node();
        let (sign, verb) = match step {
            Step::Create(_) => ("+", "create"),
            Step::Start(_) => (">", "start on its data"),
            Step::Unpause(_) => (">", "unpause"),
            Step::Restart(_) => (">", "restart, because it has left the ring"),
            Step::Remove(_) => ("-", "drain, then delete with its data"),
        };
        let share = plan.shares.iter().find(|share| share.id == node.id).map(owns);
        let share = share.unwrap_or_default();
        lines.push(format!("  {sign} {:<10} {:<16} {verb}{share}", node.name, node.address()));
    }
    if !plan.is_empty() {
        let stays = |share: &&Share| {
            share.before != share.after && share.before.is_some() && share.after.is_some()
        };
        for share in plan.shares.iter().filter(stays) {
            lines.push(format!("    {:<10} stays{}", share.name, owns(share)));
        }
        if plan.keys_to_move > 0 {
            lines.push(format!("about {} to move", amount::of(plan.keys_to_move, "key")));
        }
    }
    for quota in &plan.quotas {
        let limit =
            quota.limit.map_or_else(|| "no limit".to_owned(), |limit| format!("of {limit}"));
        let (what, need, used) = (&quota.what, quota.need, quota.used);
        lines.push(format!("  quota {what:<20} {need:>6} needed, {used} used {limit}"));
    }
    lines.extend(plan.warnings.iter().map(|warning| format!("warning: {warning}")));
    lines
}

fn owns(share: &Share) -> String {
    let percent = |part: f64| format!("{:.1} %", part * 100.0);
    match (share.before, share.after) {
        (Some(before), Some(after)) if before != after => {
            format!(", owns {} instead of {}", percent(after), percent(before))
        }
        (_, Some(after)) => format!(", owns {}", percent(after)),
        (Some(before), None) => format!(", owned {}", percent(before)),
        (None, None) => String::new(),
    }
}
