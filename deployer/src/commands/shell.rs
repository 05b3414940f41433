//! `completions` and `man`: what a shell and its user want to know of this program.

use std::path::Path;
use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;

use super::Context;
use crate::cli::Cli;
use crate::error::{During, Result};
use crate::printer::Mark;

pub(super) fn completions(context: &Context<'_>, shell: Shell) -> ExitCode {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "sky-deploy", &mut text);
    if shell == Shell::Bash {
        // clap_complete 4.6.11 writes a hyphen of the program's name in two ways, and then bash completes
        // nothing after the first word.
        let script = String::from_utf8_lossy(&text).replace("sky__subcmd__deploy", "sky__deploy");
        text = script.into_bytes();
    }
    context.printer.bytes(&text);
    ExitCode::SUCCESS
}

pub(super) fn man(context: &Context<'_>, dir: Option<&Path>) -> Result<ExitCode> {
    let Some(dir) = dir else {
        let mut page = Vec::new();
        let rendered = clap_mangen::Man::new(Cli::command()).render(&mut page);
        rendered.during(|| "cannot make the manual page")?;
        context.printer.bytes(&page);
        return Ok(ExitCode::SUCCESS);
    };
    std::fs::create_dir_all(dir)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), dir))
        .during(|| format!("cannot write manual pages to {}", dir.display()))?;
    let written = format_args!("the manual pages are in {}", dir.display());
    context.printer.step(Mark::Done, written);
    Ok(ExitCode::SUCCESS)
}
