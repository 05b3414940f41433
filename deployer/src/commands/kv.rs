//! `kv`: keys, through any agent of the ring.

use std::io::Read;
use std::path::Path;
use std::process::ExitCode;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use bytes::Bytes;
use reqwest::{Method, StatusCode};
use serde::Serialize;
use sky_api::batch::Content;

use super::Context;
use crate::cli::KvCommand;
use crate::client::{self, KeyAnswer};
use crate::deployment::Deployment;
use crate::error::{During, Error, Result};

pub(super) async fn run(context: &Context<'_>, command: KvCommand) -> Result<ExitCode> {
    match command {
        KvCommand::Get { key, target } => {
            let answer = request(&target.inventory, Method::GET, &key, None, None).await?;
            if !context.json {
                context.printer.value(&answer.body);
                return Ok(ExitCode::SUCCESS);
            }
            let value = match String::from_utf8(answer.body.to_vec()) {
                Ok(text) => Content::Text(text),
                Err(_) => Content::Base64(BASE64_STANDARD.encode(&answer.body)),
            };
            context.json(&Report { value: Some(value), ..Report::of(&key, answer) })?;
        }
        KvCommand::Put { key, value, ttl, target } => {
            change(context, &target.inventory, Method::PUT, &key, Some(&value), ttl).await?;
        }
        KvCommand::Create { key, value, ttl, target } => {
            change(context, &target.inventory, Method::POST, &key, Some(&value), ttl).await?;
        }
        KvCommand::Delete { key, target } => {
            change(context, &target.inventory, Method::DELETE, &key, None, None).await?;
        }
        KvCommand::Watch(args) => return super::watch::run(context, &args).await,
        KvCommand::List { target, prefix } => list(context, &target.inventory, &prefix).await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// What came of a request for a key, for `--json`; named as in the results of a batch.
#[derive(Serialize)]
struct Report<'a> {
    key: &'a str,
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    etag: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<Content>,
    /// How many seconds are left of the time that it is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl: Option<u64>,
}

impl<'a> Report<'a> {
    fn of(key: &'a str, answer: KeyAnswer) -> Self {
        let KeyAnswer { status, etag, content_type, ttl, .. } = answer;
        Self { key, status: status.as_u16(), etag, content_type, value: None, ttl }
    }
}

/// Refuses what a path of the interface cannot name.
pub(super) fn check(key: &str) -> Result<()> {
    if matches!(key, "" | "." | "..") {
        return Err(Error::new(format!("`{key}` cannot be a key"))
            .hint("a key is 1 byte to 1 KiB of text, and neither . nor .."));
    }
    Ok(())
}

async fn change(
    context: &Context<'_>,
    inventory: &Path,
    method: Method,
    key: &str,
    value: Option<&str>,
    ttl: Option<u64>,
) -> Result<()> {
    let value = value.map(read_value).transpose()?;
    let done = if value.is_some() { "stored" } else { "deleted" };
    let answer = request(inventory, method, key, value, ttl).await?;
    context.printer.say(format_args!("{done} {key}"));
    if context.json { context.json(&Report::of(key, answer)) } else { Ok(()) }
}

fn read_value(argument: &str) -> Result<Bytes> {
    if argument != "-" {
        return Ok(Bytes::copy_from_slice(argument.as_bytes()));
    }
    let mut value = Vec::new();
    std::io::stdin().lock().read_to_end(&mut value).during(|| "cannot read the standard input")?;
    Ok(value.into())
}

async fn request(
    inventory: &Path,
    method: Method,
    key: &str,
    value: Option<Bytes>,
    ttl: Option<u64>,
) -> Result<KeyAnswer> {
    check(key)?;
    let deployment = Deployment::open(inventory).await?;
    let agents = deployment.agents().await?;
    let agent = agents.first().map(String::as_str).unwrap_or_default();
    let answer = deployment.client.key(agent, method, key, value, ttl).await?;
    if answer.status.is_success() {
        return Ok(answer);
    }
    Err(match answer.status {
        StatusCode::NOT_FOUND => Error::new(format!("there is no key {key}")),
        StatusCode::CONFLICT => Error::new(format!("the key {key} exists already"))
            .hint("`sky-deploy kv put` replaces it"),
        status => client::problem(agent, status, &answer.body),
    })
}

async fn list(context: &Context<'_>, inventory: &Path, prefix: &str) -> Result<()> {
    let deployment = Deployment::open(inventory).await?;
    let agents = deployment.agents().await?;
    let agent = agents.first().map(String::as_str).unwrap_or_default();
    let mut entries = Vec::new();
    let mut cursor: Option<String> = None;
    loop {
        let page = deployment.client.keys(agent, prefix, cursor.as_deref()).await?;
        if context.json {
            entries.extend(page.keys);
        } else {
            for entry in page.keys {
                // A key with control characters must not act on the terminal, nor be two lines.
                context.printer.data(entry.key.escape_debug());
            }
        }
        cursor = page.cursor;
        if cursor.is_none() {
            break;
        }
    }
    if context.json { context.json(&entries) } else { Ok(()) }
}
