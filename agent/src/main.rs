//! The program `sky-agent`.

use std::process::ExitCode;

fn main() -> ExitCode {
    sky_agent::main_with(std::env::args_os())
}
