//! The log: what an operator reads of an agent, on standard error.

use std::io::{self, IsTerminal};

use sky_chord::{Notice, Peer};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::SubscriberBuilder;

use crate::Failure;
use crate::options::{LogFormat, Logging};

/// What libraries log is of interest only when something is wrong.
const LIBRARIES: &str = "fjall=warn,lsm_tree=error,hyper=warn,warp=warn,h2=warn";

/// Starts logging.
pub(crate) fn start(logging: &Logging) -> Result<(), Failure> {
    let Logging { format, level } = logging;
    let filter = EnvFilter::try_new(format!("{LIBRARIES},{level}")).map_err(|error| Failure {
        what: format!("`{level}` is not a log level: {error}"),
        hint: "Say error, warn, info, debug or trace with --log.".to_owned(),
    })?;
    let log = SubscriberBuilder::default()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_target(false);
    let started = match format {
        LogFormat::Json => log.json().flatten_event(true).try_init(),
        LogFormat::Text => log.with_ansi(false).try_init(),
        LogFormat::Auto => log.with_ansi(io::stderr().is_terminal()).try_init(),
    };
    started.map_err(|error| Failure {
        what: format!("the log cannot be started: {error}"),
        hint: "Run one agent in a process.".to_owned(),
    })
}

/// Logs a notice of the node as a sentence.
pub(crate) fn tell(notice: &Notice) {
    let list =
        |peers: &[Peer]| peers.iter().map(|peer| &*peer.address).collect::<Vec<_>>().join(", ");
    match notice {
        Notice::Joined { ring } => tracing::info!(ring, "This node is in ring {ring}."),
        Notice::SuccessorChanged { to: Some(peer) } => {
            tracing::info!("The successor is now {}.", peer.address);
        }
        Notice::SuccessorChanged { to: None } => tracing::info!("This node is alone in its ring."),
        Notice::PredecessorChanged { to: Some(peer) } => {
            tracing::info!("The predecessor is now {}.", peer.address);
        }
        Notice::PredecessorChanged { to: None } => tracing::info!("The predecessor is not known."),
        Notice::Suspected { node } => {
            tracing::warn!("Node {} does not answer.", node.address);
        }
        Notice::Recovered { node } => tracing::info!("Node {} answers again.", node.address),
        Notice::Adopted { hi, epoch, members } => {
            tracing::info!(
                %hi, epoch,
                "The range up to {hi:?} is in epoch {epoch}, with the members {}.",
                list(members)
            );
        }
        Notice::SweepStarted { hi, epoch } => {
            tracing::info!(%hi, epoch, "Data of the range up to {hi:?} goes to its new members.");
        }
        Notice::SweepDone { hi, epoch, keys } => {
            tracing::info!(
                %hi, epoch, keys,
                "All members of the range up to {hi:?} have its data: {keys} keys were handled."
            );
        }
        Notice::Aligned { hi, keys } => {
            tracing::info!(
                %hi, keys,
                "The members of the range up to {hi:?} agree again: {keys} keys were handled."
            );
        }
        Notice::Drained => {
            tracing::info!("Everything is handed over: this agent can be stopped.");
        }
        Notice::DiskFull { full: true } => {
            tracing::error!("The disk is full: writes are refused until there is room again.");
        }
        Notice::DiskFull { full: false } => tracing::info!("The disk has room again."),
        Notice::StoreBroken { reason } => {
            tracing::error!("The store failed, and the agent stops: {reason}.");
        }
        Notice::Diverged { count, keys, .. } => {
            tracing::error!(
                "Copies of {count} keys differ although they are of one version ({}): a disk was damaged or \
                 changed from outside.",
                keys.join(", ")
            );
        }
    }
}
