//! `logs`: what does a node say?

use std::path::Path;
use std::process::ExitCode;

use futures_util::stream::{self, StreamExt};

use super::Context;
use crate::deployment::Deployment;
use crate::error::Result;
use crate::provider::LogRequest;

pub(super) async fn run(
    context: &Context<'_>,
    node: &str,
    path: &Path,
    follow: bool,
    lines: Option<usize>,
) -> Result<ExitCode> {
    let deployment = Deployment::open(path).await?;
    let names = if node == "all" {
        let nodes = deployment.observe().await?;
        nodes.into_iter().map(|seen| seen.node.name).collect()
    } else {
        vec![deployment.find(node).await?.node.name]
    };
    let many = names.len() > 1;
    let wanted = LogRequest { lines, follow };
    let logs = names.iter().map(|name| {
        let pieces = deployment.provider.logs(name, wanted);
        pieces.map(move |piece| (name, piece)).boxed()
    });
    let mut pieces = if follow {
        stream::select_all(logs).boxed()
    } else {
        stream::iter(logs).flatten().boxed()
    };
    while let Some((name, piece)) = pieces.next().await {
        let piece = piece?;
        if many {
            for line in piece.split_inclusive(|byte| *byte == b'\n') {
                context.printer.bytes(format!("{name} | ").as_bytes());
                context.printer.bytes(line);
            }
        } else {
            context.printer.bytes(&piece);
        }
    }
    Ok(ExitCode::SUCCESS)
}
