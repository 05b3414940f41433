//! The dashboard: one page that shows the whole ring live, and the HTTP interface behind it.
//!
//! Every second [`aggregate`] asks all agents for their reports and makes one [`aggregate::RingState`]
//! of them; [`routes`] hands it out. The page is the files beside this one, compiled in; the script
//! draws from the JSON, the server renders nothing.
//!
//! # HTTP interface
//!
//! | call | meaning |
//! |---|---|
//! | `GET /` | the page; its files are at `/assets/{hash}/{file}` and never change |
//! | `GET /api/ring` | [`aggregate::RingState`] as JSON |
//! | `GET /api/events` | the same as server-sent events, one after each round of reports |
//! | `GET /api/history` | what it was before, oldest first: each state that differed in more than numbers |
//! | `GET`, `HEAD /api/kv/{key}` | `/kv/{key}` of any live agent |
//! | `PUT`, `POST`, `DELETE /api/kv/{key}` | the same; needs the token |
//! | `GET /api/kv?prefix=&limit=&cursor=` | `/kv` of any live agent: keys across the ring, paged |
//! | `GET /api/lookup/{key}?from=` | `/lookup/{key}` of this node, or of any: the way to the key's owner |
//! | `GET /api/nodes/{name}/local?limit=&cursor=` | `/local` of this node: the keys that it holds itself |
//! | `POST /api/nodes` | add a node; needs the token |
//! | `POST /api/nodes/{name}/{verb}` | `pause`, `unpause`, `stop`, `start` or `drain` it; needs the token |
//!
//! Answers of agents say in `sky-agent` whose they are, by position.
//! Actions answer when they are done: 200 with `{"message": "…"}`, or a [`sky_api::Problem`]. So does
//! every error. Everything that changes something needs `Authorization: Bearer TOKEN`; the page takes
//! the token from the fragment of its address ([`page_url`]), which browsers never send anywhere.
//!
//! # Who may ask
//!
//! The server answers only to requests whose `Host` is `localhost` or an IP address, so that no foreign
//! site can reach it by pointing its own name here, and whose `Origin`, if any, is its own.

pub(crate) mod aggregate;
mod history;
mod proxy;
mod routes;
mod server;
#[cfg(test)]
mod tests;
mod transfers;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::net::TcpListener;
use tokio::sync::watch;

use aggregate::{Aggregator, Expected, RingState};
use history::History;

/// Where the dashboard listens unless told otherwise.
pub(crate) const DEFAULT_ADDRESS: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8080);

/// How often the agents are asked for their reports.
const ROUND: Duration = Duration::from_secs(1);
/// How long open connections are waited for when the server stops.
const GOODBYE: Duration = Duration::from_secs(1);

/// What the dashboard shows, and what stays the same while it does.
#[derive(Debug, Clone)]
pub(crate) struct RingFacts {
    /// The ring's name in the inventory.
    pub(crate) name: String,
    /// How many members a range should have.
    pub(crate) replicas: usize,
    /// How long the successor lists should be.
    pub(crate) successors: usize,
}

/// The deployer's knowledge of the nodes that should be there.
pub(crate) trait Source: Send + Sync {
    /// The nodes as they are now; asked once a round. The error is a sentence that is shown on the
    /// page, which then goes on with what it heard last.
    fn observe(&self) -> BoxFuture<'_, Result<Vec<Expected>, String>>;
}

/// What the page can make the deployer do.
pub(crate) trait Actions: Send + Sync {
    /// Does it and says what was done, or why not: a sentence for the user either way.
    fn carry_out(&self, action: Action) -> BoxFuture<'_, Result<String, String>>;
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Add a node.
    Add,
    /// Do something to the node of this name.
    Node(String, Verb),
}

/// What can be done to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    /// Freeze it.
    Pause,
    /// Let it go on.
    Unpause,
    /// End it and keep its data.
    Stop,
    /// Start it on its data.
    Start,
    /// Hand its data over, make it leave the ring, and stop it.
    Drain,
}

impl Verb {
    /// The verb of a path or a log.
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "pause" => Self::Pause,
            "unpause" => Self::Unpause,
            "stop" => Self::Stop,
            "start" => Self::Start,
            "drain" => Self::Drain,
            _ => return None,
        })
    }
}

/// Why the dashboard cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("the dashboard cannot listen on {address}: {source}")]
pub(crate) struct BindError {
    /// Where.
    pub(crate) address: SocketAddr,
    /// Why not.
    pub(crate) source: io::Error,
}

impl BindError {
    /// What to do next.
    pub(crate) fn hint(&self) -> &'static str {
        match self.source.kind() {
            io::ErrorKind::AddrInUse => {
                "another program uses this port, perhaps another dashboard: end it, or choose \
                 another port, such as `--dashboard 127.0.0.1:8081`"
            }
            io::ErrorKind::PermissionDenied => "ports below 1024 are reserved: choose a higher one",
            _ => "choose an address of this machine",
        }
    }
}

/// Takes the address. Port 0 takes any free port; [`TcpListener::local_addr`] tells which.
pub(crate) async fn bind(address: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(address).await.map_err(|source| BindError { address, source })
}

/// The page's address with the token in its fragment: to be printed for the user, never to be logged.
pub(crate) fn page_url(address: SocketAddr, token: &str) -> String {
    let mut address = address;
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    format!("http://{address}/#token={token}")
}

/// Serves the dashboard until `shutdown` is done. Must run inside a tokio runtime.
pub(crate) async fn serve(
    listener: TcpListener,
    facts: RingFacts,
    source: Arc<dyn Source>,
    actions: Arc<dyn Actions>,
    token: String,
    shutdown: impl Future<Output = ()> + Send,
) {
    let mut aggregator = Aggregator::new(facts, source, &token);
    let history = Arc::new(Mutex::new(History::default()));
    let kept = history.clone();
    let keep = move |state: RingState| {
        let state = Arc::new(state);
        kept.lock().unwrap_or_else(PoisonError::into_inner).take(&state);
        state
    };
    let (sender, states) = watch::channel(keep(aggregator.round().await));
    let rounds = async move {
        let mut ticks = tokio::time::interval(ROUND);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        ticks.tick().await;
        loop {
            ticks.tick().await;
            sender.send_replace(keep(aggregator.round().await));
        }
    };
    let (stop, stopped) = watch::channel(false);
    let shared = routes::Shared::new(states, history, actions, token, stopped.clone());
    let routes = routes::routes(shared);
    let mut server = std::pin::pin!(server::serve(listener, routes, stopped));
    tokio::select! {
        () = &mut server => {}
        () = rounds => {}
        () = shutdown => {
            stop.send_replace(true);
            // Whoever still keeps a connection open after this is cut off.
            let _ = tokio::time::timeout(GOODBYE, server).await;
        }
    }
}
