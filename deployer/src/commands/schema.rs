//! `schema`: what editors need to know of inventories.

use std::process::ExitCode;

use super::Context;
use crate::error::Result;
use crate::inventory;

pub(super) fn run(context: &Context<'_>) -> Result<ExitCode> {
    context.json(&inventory::schema()?)?;
    Ok(ExitCode::SUCCESS)
}
