//! `init`: the first inventory.

use std::io::Write;
use std::process::ExitCode;

use super::Context;
use crate::cli::InitArgs;
use crate::error::{Error, Result};
use crate::inventory::{ProviderChoice, replace};
use crate::printer::Mark;

pub(super) fn run(context: &Context<'_>, args: &InitArgs) -> Result<ExitCode> {
    let file = args.file.display();
    let text = args
        .wishes
        .inventory()
        .ok_or_else(|| Error::new("the inventory of this program has other keys than expected"))?;
    if args.force {
        replace(&args.file, &text)?;
    } else {
        // Never over a file that somebody makes at this moment.
        let new = std::fs::OpenOptions::new().write(true).create_new(true).open(&args.file);
        let written = new.and_then(|mut new| new.write_all(text.as_bytes()));
        written.map_err(|error| {
            if error.kind() == std::io::ErrorKind::AlreadyExists {
                return Error::new(format!("{file} exists already"))
                    .hint("`--force` replaces it, another name as the last argument keeps it");
            }
            Error::caused(format!("cannot write {file}"), &error)
        })?;
    }
    let printer = context.printer;
    printer.step(Mark::Done, format_args!("{file} is written"));
    if args.wishes.provider == Some(ProviderChoice::Openstack) {
        printer.say(format_args!(
            "next: correct `openstack` in it: its cloud, image and flavor, and who may use the agents"
        ));
    }
    let argument =
        if args.file.as_os_str() == "inventory.yaml" { String::new() } else { format!(" {file}") };
    printer.say(format_args!(
        "next: `sky-deploy plan{argument}` shows what would be made, `sky-deploy apply{argument}` makes it"
    ));
    if context.json {
        context.json(&serde_json::json!({ "file": args.file }))?;
    }
    Ok(ExitCode::SUCCESS)
}
