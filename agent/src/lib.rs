//! The Sky agent: one member of a Chord ring, with its store, its peers and its HTTP interface.
//!
//! ```text
//! main -> lib -> agent -> driver (owns the one Node) -> rpc, store, metrics, fair
//!                      -> accept -> rpc; http, page -> driver::Handle
//!             -> playground, simulate: whole rings in one process, without a network and a store
//! ```
//!
//! One thread runs all of it, so that nothing has to be locked; a second one waits for the disk.

mod accept;
mod agent;
pub mod config;
pub mod driver;
pub mod fair;
#[cfg(test)]
#[path = "../tests/fuzz/driver.rs"]
mod fuzz;
mod health;
pub mod http;
pub mod kept;
mod logging;
pub mod metrics;
pub mod notices;
pub mod options;
mod page;
mod playground;
pub mod rpc;
mod simulate;
pub mod store;
mod svg;
pub mod watches;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Parser;
use options::{Cli, Command, Options};

/// The exit code of a command line that is not understood (`EX_USAGE`).
const USAGE: u8 = 64;

/// Acts as `sky-agent` with this command line, the name of the program first, until it is done.
pub fn main_with<A: Into<OsString> + Clone>(args: impl IntoIterator<Item = A>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Nobody reads it if this fails.
            error.print().ok();
            return ExitCode::from(if error.use_stderr() { USAGE } else { 0 });
        }
    };
    let outcome = match cli.command {
        Some(Command::Health { port, ip, live }) => return health::main(ip, port, live),
        Some(Command::Playground(options)) => return playground::main(&options),
        Some(Command::Simulate(options)) => simulate::main(&options, &mut std::io::stdout()),
        None => read_settings(cli).and_then(|(settings, logging)| {
            logging::start(&logging)?;
            agent::run(settings)
        }),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let Failure { what, hint } = failure;
            writeln!(std::io::stderr(), "error: {what}\nhint: {hint}").ok();
            ExitCode::FAILURE
        }
    }
}

fn read_settings(cli: Cli) -> Result<(config::Settings, options::Logging), Failure> {
    let file = cli.config.as_deref().map(Options::read).transpose()?.unwrap_or_default();
    let options = cli.options.or(file);
    let logging = options.logging();
    Ok((options.resolve(|name| std::env::var_os(name))?, logging))
}

/// Why the agent cannot run, in a sentence, and what to do about it.
#[derive(Debug)]
struct Failure {
    what: String,
    hint: String,
}

impl From<options::InvalidSetting> for Failure {
    fn from(error: options::InvalidSetting) -> Self {
        Self { what: error.to_string(), hint: error.hint }
    }
}

impl From<store::DirectoryError> for Failure {
    fn from(error: store::DirectoryError) -> Self {
        Self { what: error.to_string(), hint: error.hint() }
    }
}

/// What the machine's wall clock shows, in microseconds since 1970.
fn wall_clock() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// Waits until the flag is set, or nobody is left who could set it.
async fn until(flag: &mut tokio::sync::watch::Receiver<bool>) {
    drop(flag.wait_for(|is_set| *is_set).await);
}
