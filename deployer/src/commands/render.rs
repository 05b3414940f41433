//! `render`: what exactly would be put onto machines?

use std::process::ExitCode;

use serde::Serialize;

use super::Context;
use crate::cli::RenderArgs;
use crate::deployment::Deployment;
use crate::error::{During, Error, Result};
use crate::inventory::ProviderKind;
use crate::plan;
use crate::printer::Mark;
use crate::provider::{Body, Rendered, redacted};
use crate::state::write_private;

/// What would be put onto machines, for `--json`.
#[derive(Serialize)]
struct Rendering<'a> {
    ring: &'a str,
    provider: ProviderKind,
    parts: Vec<Rendered>,
}

pub(super) async fn run(context: &Context<'_>, args: &RenderArgs) -> Result<ExitCode> {
    let deployment = Deployment::open(&args.target.inventory).await?;
    let ring = &deployment.inventory.ring;
    let secrets = match (args.with_secrets, deployment.folder.secrets()?) {
        (false, _) => redacted(),
        (true, Some(secrets)) => secrets,
        (true, None) => {
            return Err(Error::new(format!("the ring {} has no secrets yet", ring.name))
                .hint("the first `sky-deploy apply` makes them; leave --with-secrets out"));
        }
    };
    let (kind, provider) = (deployment.provider.kind(), &deployment.provider);
    let observed = deployment.observe().await?;
    let plan = plan::plan(&deployment.inventory, kind, &deployment.why, &observed)?;
    let mut nodes = plan::wanted_nodes(&deployment.inventory, kind, &observed)?;
    if let Some(name) =
        args.node.as_ref().filter(|name| nodes.iter().all(|node| node.name != **name))
    {
        let names: Vec<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
        return Err(Error::new(format!("the inventory wants no node {name}"))
            .hint(format!("its nodes are {}", names.join(", "))));
    }
    for prepared in provider.rehearse(&plan.created()).await? {
        if let Some(node) = nodes.iter_mut().find(|node| node.name == prepared.name) {
            *node = prepared;
        }
    }
    let mut parts = Vec::new();
    for node in &nodes {
        let launch = plan::launch(node, &nodes, ring, kind);
        parts.extend(provider.render(&launch, &secrets).await?);
    }
    if let Some(name) = &args.node {
        parts.retain(|part| part.node.as_ref() == Some(name));
    }
    let text = if context.json {
        let rendering = Rendering { ring: &ring.name, provider: kind, parts };
        serde_json::to_string_pretty(&rendering).during(|| "cannot encode the answer")? + "\n"
    } else {
        parts.iter().map(shown).collect::<Vec<_>>().join("\n")
    };
    match &args.output {
        Some(path) => {
            let whole = std::path::absolute(path);
            let whole = whole.during(|| format!("cannot write {}", path.display()))?;
            write_private(&whole, text.as_bytes())?;
            context.printer.step(Mark::Done, format_args!("{} is written", path.display()));
        }
        None => context.printer.bytes(text.as_bytes()),
    }
    Ok(ExitCode::SUCCESS)
}

/// A part for people, under a heading.
fn shown(part: &Rendered) -> String {
    let node = part.node.as_deref().unwrap_or("all nodes");
    let body = match &part.body {
        // `{:#}` of a value is JSON over several lines.
        Body::Parameters(value) => format!("{value:#}\n"),
        Body::Text(text) => text.clone(),
    };
    format!("# {node}: {}\n{body}", part.what)
}
