//! The program: an agent if it is started as one, else the deployer.

use std::process::ExitCode;

use clap::Parser;
use sky_deploy::printer::Printer;
use sky_deploy::{agent_exe, cli, commands};

/// The command line cannot be understood (`EX_USAGE` of sysexits.h).
const USAGE: u8 = 64;

fn main() -> ExitCode {
    if let Some(code) = agent_exe::run_as_agent() {
        return code;
    }
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers, everything else is a mistake. Nobody reads a closed
            // stream.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let printer = Printer::from_environment();
    printer.warnings();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let what = "cannot wait for anything on this machine";
            printer.error(&sky_deploy::error::Error::caused(what, &error));
            return ExitCode::FAILURE;
        }
    };
    runtime.block_on(commands::run(cli, &printer))
}
