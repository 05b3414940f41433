//! `adopt`: what this machine must know of a ring, found again in the ring itself.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::Context;
use crate::client::Client;
use crate::deployment::Deployment;
use crate::error::{Error, Result};
use crate::printer::Mark;
use crate::state::RingRecord;

/// How long agents may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);
/// How often they are asked meanwhile.
const ASK_EVERY: Duration = Duration::from_millis(500);

pub(super) async fn run(context: &Context<'_>, path: &Path) -> Result<ExitCode> {
    let deployment = Deployment::open(path).await?;
    let ring = &deployment.inventory.ring.name;
    let folder = &deployment.folder;
    if folder.record()?.is_some() && folder.secrets()?.is_some() {
        let place = folder.path().display();
        return Err(Error::new(format!("this machine knows the ring {ring} already"))
            .hint(format!("what it knows is in {place}; there is nothing to adopt")));
    }
    let nodes = deployment.provider.observe().await?;
    if nodes.is_empty() {
        return Err(Error::new(format!("there is no node of a ring {ring} to adopt"))
            .hint("check `ring.name`, `provider` and the cloud, or make the ring with `apply`"));
    }
    let secrets = deployment.provider.recall().await?.ok_or_else(|| {
        Error::new(format!("no node of {ring} tells its secrets to this machine")).hint(
            "start a node with the tools of its cloud or engine, or bring back the ssh key of the ring \
             (`openstack.ssh_key`); without it `sky-deploy destroy` still works",
        )
    })?;
    let client = Client::new(Some(secrets.token.clone()))?;
    let ring_id = member(&deployment, &client).await?.ok_or_else(|| {
        Error::new(format!("no agent of {ring} answers as a member of a ring"))
            .hint("start the nodes with the tools of their cloud or engine, then adopt again")
    })?;
    let _lock = folder.lock("adopt")?;
    folder.keep_secrets(&secrets)?;
    let provider = deployment.provider.kind();
    let (replicas, tie_breaker) = {
        let ring = &deployment.inventory.ring;
        (ring.replicas, ring.tie_breaker.clone())
    };
    let record = RingRecord { provider, ring_id, founded: true, replicas, tie_breaker };
    folder.write_record(&record)?;
    let done = format_args!("{ring} adopted: {} nodes, provider {provider}", nodes.len());
    context.printer.step(Mark::Done, done);
    if context.json {
        context.json(&serde_json::json!({ "ring": ring, "nodes": nodes.len() }))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The ring that one of the agents is a member of. They are looked for anew, because there may be a way
/// to them only since their secrets are known.
async fn member(deployment: &Deployment, client: &Client) -> Result<Option<String>> {
    let begun = Instant::now();
    loop {
        for machine in deployment.provider.observe().await? {
            if let Ok(view) = client.view(&machine.url).await
                && let Some(id) = view.ring
            {
                return Ok(Some(id.to_string()));
            }
        }
        if begun.elapsed() > ANSWER_WITHIN {
            return Ok(None);
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}
