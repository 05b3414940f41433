//! `status`: is the ring right?

use std::path::Path;
use std::process::ExitCode;

use super::Context;
use crate::deployment::Deployment;
use crate::error::Result;
use crate::node::Handle;

pub(super) async fn run(context: &Context<'_>, path: &Path) -> Result<ExitCode> {
    let deployment = Deployment::open(path).await?;
    let status = deployment.status().await?;
    if context.json {
        context.json(&status)?;
    } else {
        let printer = context.printer;
        for node in &status.nodes {
            let keys = node.keys.map_or_else(|| "?".to_owned(), |keys| keys.to_string());
            let handle = match &node.handle {
                Some(Handle::Pid(pid)) => format!("pid {pid}"),
                Some(Handle::Container(id)) => {
                    format!("container {}", id.get(..12).unwrap_or(id))
                }
                Some(Handle::Server(id)) => format!("server {id}"),
                None => String::new(),
            };
            printer.data(format_args!(
                "{:<10} {:<9} {:<26} {keys:>8} keys  {handle}",
                node.name, node.state, node.url
            ));
        }
        let verdict = match (status.right, status.replicated) {
            (true, _) => "right",
            (false, true) => "not right, but every key has all its copies",
            (false, false) => "not right",
        };
        printer.data(format_args!("ring {} is {verdict}", status.ring));
        for problem in &status.problems {
            printer.data(format_args!("  {problem}"));
        }
    }
    Ok(if status.right { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
