//! This program as an agent: the one place where the deployer touches the agent's code, so that one
//! file on a machine is enough to deploy.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

/// Set for an agent that shall not end with the terminal it was started from.
pub const OWN_SESSION: &str = "SKY_OWN_SESSION";

/// Runs the agent if this process was started as `sky-agent …` or `sky-deploy agent …`.
pub fn run_as_agent() -> Option<ExitCode> {
    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    let program = arguments.first().map(Path::new).and_then(Path::file_name);
    if !program.is_some_and(|name| name.as_encoded_bytes().ends_with(b"sky-agent")) {
        if arguments.get(1).is_none_or(|first| first != "agent") {
            return None;
        }
        arguments.remove(1);
    }
    if std::env::var_os(OWN_SESSION).is_some() {
        // Fails only if this process leads a session already.
        let _ = rustix::process::setsid();
    }
    Some(sky_agent::main_with(arguments))
}
