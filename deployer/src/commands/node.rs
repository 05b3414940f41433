//! `drain`, `pause`, `unpause`, `stop`, `start` and `restart`: one thing, done to one node.

use std::process::ExitCode;
use std::time::Instant;

use super::Context;
use super::scale::Changed;
use crate::cli::NodeTarget;
use crate::deployment::Deployment;
use crate::drain;
use crate::error::{Error, Result};
use crate::node::NodeSpec;
use crate::observe::{NodeState, Sighting};
use crate::provider::ports;
use crate::timing::Progress;

/// What can be done to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Drain,
    Pause,
    Unpause,
    Stop,
    Start,
    Restart,
}

impl Verb {
    const fn name(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Pause => "pause",
            Self::Unpause => "unpause",
            Self::Stop => "stop",
            Self::Start => "start",
            Self::Restart => "restart",
        }
    }
}

pub(super) async fn run(
    context: &Context<'_>,
    verb: Verb,
    target: &NodeTarget,
) -> Result<ExitCode> {
    let deployment = Deployment::open(&target.target.inventory).await?;
    let progress = Progress::new(context.printer);
    let begun = Instant::now();
    let said = carry_out(&deployment, verb, &target.node, &progress).await?;
    progress.done(begun, verb.name(), Some(&target.node), said);
    context.report(&progress, &Changed { nodes: std::slice::from_ref(&target.node) })?;
    Ok(ExitCode::SUCCESS)
}

/// Does it, and says what was done.
pub(crate) async fn carry_out(
    deployment: &Deployment,
    verb: Verb,
    name: &str,
    progress: &Progress,
) -> Result<String> {
    let seen = deployment.find(name).await?;
    let _lock = deployment.folder.lock(&format!("{} {name}", verb.name()))?;
    let provider = &deployment.provider;
    Ok(match verb {
        Verb::Drain => {
            drain::drain(deployment, name, progress).await?;
            provider.stop(name).await?;
            format!(
                "{name} has left the ring and is stopped; `sky-deploy remove {name}` deletes it, \
                 `sky-deploy start {name}` lets it join again"
            )
        }
        Verb::Pause => {
            provider.pause(name).await?;
            format!("{name} is paused; `sky-deploy unpause {name}` lets it go on")
        }
        Verb::Unpause => {
            provider.unpause(name).await?;
            format!("{name} goes on")
        }
        Verb::Stop => {
            provider.stop(name).await?;
            format!("{name} is stopped; `sky-deploy start {name}` starts it on its data")
        }
        Verb::Start => {
            start(deployment, &seen).await?;
            format!("{name} is started at {}", seen.public_url())
        }
        Verb::Restart => {
            // What may not be started is not stopped either.
            deployment.refuse_changed()?;
            provider.stop(name).await?;
            let seen = deployment.find(name).await?;
            start(deployment, &seen).await?;
            format!("{name} is started again at {}", seen.public_url())
        }
    })
}

async fn start(deployment: &Deployment, seen: &Sighting) -> Result<()> {
    let name = &seen.node.name;
    if seen.state == NodeState::Paused {
        return Err(Error::new(format!("{name} is paused"))
            .hint(format!("`sky-deploy unpause {name}` lets it go on")));
    }
    if seen.handle.is_none() && deployment.provider.kind().is_local() {
        ports::are_free([&seen.node])?;
    }
    let nodes = deployment.observe().await?;
    let all: Vec<NodeSpec> = nodes.into_iter().map(|seen| seen.node).collect();
    deployment.start(&seen.node, &all).await
}
