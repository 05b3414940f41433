//! One port for clients and peers: the first byte of a connection tells them apart.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::fair::{Share, Shares};
use crate::http::{self, Api};
use crate::rpc::{self, Rpc};

/// How long a new connection may say nothing.
const SILENCE: Duration = Duration::from_secs(5);

/// How long requests under way may take when the agent stops.
const GOODBYE: Duration = Duration::from_secs(5);

/// Connections that have not said anything yet; one machine alone can have half of them.
const STRANGERS: usize = 4096;

/// Connections of clients; one machine alone can have half of them.
const CLIENTS: usize = 8192;

/// Connections of peers: a ring of a thousand nodes, each of them starting again.
const PEERS: usize = 2048;

/// Pause after the system refused a connection, as it does when no file descriptors are left.
const RECOVERY: Duration = Duration::from_millis(100);

/// What a client reads when there are too many of them.
const TOO_MANY: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\n\
    content-length: 0\r\n\r\n";

#[derive(Clone)]
struct Door {
    rpc: Rpc,
    api: Arc<Api>,
    strangers: Arc<Shares>,
    clients: Arc<Shares>,
    peers: Arc<Semaphore>,
    stopping: watch::Receiver<bool>,
}

/// Accepts connections until `stopping` holds true, then lets requests under way finish.
pub(crate) async fn accept(
    listener: TcpListener,
    rpc: Rpc,
    api: Arc<Api>,
    mut stopping: watch::Receiver<bool>,
) {
    let door = Door {
        rpc,
        api,
        strangers: Shares::new(STRANGERS),
        clients: Shares::new(CLIENTS),
        peers: Arc::new(Semaphore::new(PEERS)),
        stopping: stopping.clone(),
    };
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = crate::until(&mut stopping) => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, remote)) => match door.strangers.take(remote.ip().into(), 1) {
                    Some(stranger) => {
                        connections.spawn(door.clone().welcome(stream, remote, stranger));
                    }
                    None => tracing::debug!(%remote, "Too many connections say nothing."),
                },
                Err(error) => {
                    tracing::warn!(%error, "A connection cannot be accepted: {error}.");
                    tokio::time::sleep(RECOVERY).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
    drop(listener);
    let rest = async { while connections.join_next().await.is_some() {} };
    if timeout(GOODBYE, rest).await.is_err() {
        tracing::warn!("Some requests are broken off: they take longer than {GOODBYE:?}.");
    }
}

impl Door {
    /// Serves a client to its end; a peer is handed on.
    async fn welcome(self, mut stream: TcpStream, remote: SocketAddr, stranger: Share) {
        let mut first = [0];
        let mut stopping = self.stopping.clone();
        let said = tokio::select! {
            biased;
            said = timeout(SILENCE, stream.peek(&mut first)) => matches!(said, Ok(Ok(1))),
            () = crate::until(&mut stopping) => false,
        };
        if !said {
            tracing::debug!(%remote, "A connection said nothing.");
            return;
        }
        drop(stranger);
        if rpc::is_peer(first[0]) {
            let Ok(permit) = self.peers.try_acquire_owned() else {
                tracing::debug!(%remote, "There are too many connections of peers.");
                return;
            };
            tokio::spawn(async move {
                self.rpc.serve(stream).await;
                drop(permit);
            });
            return;
        }
        match self.clients.take(remote.ip().into(), 1) {
            Some(_share) => http::serve_connection(self.api, stream, remote).await,
            // A client that does not read its refusal needs none.
            None => drop(timeout(SILENCE, stream.write_all(TOO_MANY)).await),
        }
    }
}
