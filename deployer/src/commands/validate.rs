//! `validate`: is the inventory right?

use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;

use super::Context;
use crate::error::Result;
use crate::inventory::Inventory;

#[derive(Serialize)]
struct Report {
    valid: bool,
    problems: Vec<String>,
}

pub(super) fn run(context: &Context<'_>, path: &Path) -> Result<ExitCode> {
    let checked = Inventory::load(path);
    if context.json {
        let problems = checked.as_ref().err().map_or_else(Vec::new, |error| {
            error.problems.iter().map(|problem| problem.what.clone()).collect()
        });
        context.json(&Report { valid: problems.is_empty(), problems })?;
        return Ok(if checked.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    checked?;
    context.printer.say(format_args!("{} is right", path.display()));
    Ok(ExitCode::SUCCESS)
}
