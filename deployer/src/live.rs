//! The ring as the dashboard sees it, and what the dashboard can do to it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::{BoxFuture, FutureExt};
use sky_chord::Settings;

use crate::commands::{Verb, add_node, carry_out};
use crate::dashboard::aggregate::Expected;
use crate::dashboard::{self, Action, Actions, RingFacts, Source};
use crate::deployment::{Deployment, Kept};
use crate::error::{Error, Result};
use crate::node::Handle;
use crate::printer::Printer;
use crate::timing::Progress;

/// Serves the dashboard of a ring until Ctrl-C.
pub async fn serve(path: PathBuf, address: SocketAddr, printer: &Printer) -> Result<()> {
    let deployment = Deployment::open(&path).await?;
    let ring = deployment.inventory.ring.clone();
    let token = deployment.folder.secrets()?.map(|secrets| secrets.token).ok_or_else(|| {
        Error::new(format!("there is no ring {}", ring.name)).hint("`sky-deploy apply` makes it")
    })?;
    let listener = dashboard::bind(address).await.map_err(|error| {
        let hint = error.hint();
        Error::caused("the ring runs, but its dashboard cannot be served", &error).hint(hint)
    })?;
    let bound = listener.local_addr().unwrap_or(address);
    printer.data(format_args!("dashboard  {}", dashboard::page_url(bound, &token)));
    printer.say("Ctrl-C ends the dashboard; the ring keeps running");
    let facts = RingFacts {
        name: ring.name,
        replicas: ring.replicas,
        successors: Settings::default().successors,
    };
    let live = Arc::new(Live { ring: Kept::new(path.clone()), printer: *printer });
    let ended = async {
        // Without a handler for Ctrl-C the process just ends, which is as good.
        let _ = tokio::signal::ctrl_c().await;
    };
    dashboard::serve(listener, facts, live.clone(), live, token, ended).await;
    printer.clear();
    let file = path.display();
    printer.say(format_args!(
        "the ring keeps running; `sky-deploy dashboard {file}` shows it again, \
         `sky-deploy destroy {file}` removes it"
    ));
    Ok(())
}

/// The ring, and where it is told of.
struct Live {
    ring: Kept,
    printer: Printer,
}

impl Live {
    async fn expected(&self) -> Result<Vec<Expected>> {
        let deployment = self.ring.open().await?;
        let provider = deployment.provider.kind().to_string();
        let nodes = deployment.expected().await?.into_iter().map(|seen| Expected {
            name: seen.node.name.clone(),
            id: seen.node.id,
            url: seen.url.clone(),
            provider: provider.clone(),
            state: seen.state,
            runs: seen.runs,
            note: seen.note,
            pid: match &seen.handle {
                Some(Handle::Pid(pid)) => Some(*pid),
                _ => None,
            },
            container: match seen.handle {
                Some(Handle::Container(id)) => Some(id),
                _ => None,
            },
        });
        Ok(nodes.collect())
    }

    async fn act(&self, action: Action) -> Result<String> {
        let mut deployment = Deployment::open(self.ring.path()).await?;
        let progress = Progress::new(&self.printer);
        match action {
            Action::Add => {
                let names = add_node(&mut deployment, &progress).await?;
                Ok(format!("{} added", names.join(", ")))
            }
            Action::Node(name, verb) => {
                let verb = match verb {
                    dashboard::Verb::Pause => Verb::Pause,
                    dashboard::Verb::Unpause => Verb::Unpause,
                    dashboard::Verb::Stop => Verb::Stop,
                    dashboard::Verb::Start => Verb::Start,
                    dashboard::Verb::Drain => Verb::Drain,
                };
                carry_out(&deployment, verb, &name, &progress).await
            }
        }
    }
}

impl Source for Live {
    fn observe(&self) -> BoxFuture<'_, Result<Vec<Expected>, String>> {
        self.expected().map(|nodes| nodes.map_err(|error| error.to_string())).boxed()
    }
}

impl Actions for Live {
    fn carry_out(&self, action: Action) -> BoxFuture<'_, Result<String, String>> {
        self.act(action).map(|said| said.map_err(|error| error.to_string())).boxed()
    }
}
