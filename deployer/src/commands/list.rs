//! `list`: which rings are on this machine?

use std::process::ExitCode;

use serde::Serialize;

use super::Context;
use crate::error::Result;
use crate::inventory::{Agent, Openstack, ProviderChoice, ProviderKind};
use crate::provider::{self, Site};
use crate::state::RingFolder;

#[derive(Serialize)]
struct Ring {
    ring: String,
    provider: ProviderKind,
    /// None if the provider does not answer.
    nodes: Option<usize>,
    folder: String,
    /// Who changes it at this moment, on which machine, since when; none if nobody does.
    #[serde(skip_serializing_if = "Option::is_none")]
    changing: Option<String>,
}

pub(super) async fn run(context: &Context<'_>) -> Result<ExitCode> {
    let mut rings = Vec::new();
    for folder in RingFolder::all()? {
        let Some(record) = folder.record()? else { continue };
        let kept = Some(record.provider);
        let site = Site::new(folder.clone(), Agent::default(), Openstack::default())?;
        let nodes = match provider::choose(ProviderChoice::Auto, kept, site).await {
            Ok(chosen) => chosen.provider.observe().await.ok().map(|nodes| nodes.len()),
            Err(_) => None,
        };
        rings.push(Ring {
            ring: folder.ring().to_owned(),
            provider: record.provider,
            nodes,
            folder: folder.path().display().to_string(),
            changing: folder.holder()?.map(|holder| holder.to_string()),
        });
    }
    if context.json {
        context.json(&rings)?;
    } else {
        if rings.is_empty() {
            context.printer.say("no rings; `sky-deploy apply` makes one");
        }
        for ring in &rings {
            let nodes = ring.nodes.map_or_else(|| "?".to_owned(), |nodes| nodes.to_string());
            context.printer.data(format_args!(
                "{:<16} {:<8} {nodes:>4} nodes  {}",
                ring.ring,
                ring.provider.to_string(),
                ring.folder
            ));
            if let Some(holder) = &ring.changing {
                context.printer.data(format_args!("  {holder}"));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
