//! One agent from start to end: puts the parts together and takes them apart in order.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use rustix::process::{Resource, getrlimit, setrlimit};
use sky_chord::{Id, Peer, RingId, Start};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::Failure;
use crate::accept::accept;
use crate::config::{Settings, VERSION};
use crate::driver::{Driver, Parts};
use crate::http::Api;
use crate::metrics::Counters;
use crate::rpc::Rpc;
use crate::store::{Committer, Directory, Room, Store};

/// Events of the network that may wait for the node. Beyond that peers have to wait.
const NETWORK: usize = 1024;

fn fatal(what: impl Into<String>) -> impl FnOnce(io::Error) -> Failure {
    let what = what.into();
    move |error| Failure {
        what: format!("{what}: {error}"),
        hint: "This is a limit of the system: look at its memory, processes and open files.".into(),
    }
}

/// Runs an agent until it is told to stop by SIGTERM or SIGINT.
pub(crate) fn run(settings: Settings) -> Result<(), Failure> {
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(fatal("the agent cannot start"))?;
    let outcome = runtime.block_on(live(settings));
    // A name that is being resolved must not hold up the end.
    runtime.shutdown_background();
    outcome
}

async fn live(settings: Settings) -> Result<(), Failure> {
    let listener = listen(&settings).await?;
    let default = Id::hash(settings.advertise.as_bytes());
    let (directory, store) = Directory::open(&settings.data, settings.id, default)?;
    let unreadable = |error: &dyn std::fmt::Display| {
        Failure {
        what: format!("the store in {} is damaged: {error}", settings.data.display()),
        hint: "Check that disk. To start this node anew, empty, remove the directory: the ring brings the \
               data back from the other members."
            .to_owned(),
    }
    };
    let random = |error: getrandom::Error| fatal("no random numbers can be had")(error.into());

    let me = Peer { node: directory.node(), address: Arc::clone(&settings.advertise) };
    let start = Start {
        me: me.clone(),
        boot: directory.boot(),
        settings: settings.protocol(),
        meta: store.meta().map_err(|error| unreadable(&error))?,
        seed: getrandom::u64().map_err(random)?,
        wall: crate::wall_clock(),
    };
    let founds = settings.join.is_empty() && !settings.wait_for_init;
    let mut ring = [0; 16];
    getrandom::fill(&mut ring).map_err(random)?;

    let counters = Arc::new(Counters::default());
    let room = Room::new(directory.path(), settings.disk_reserve);
    let committer = Committer::start(store.clone(), room, Arc::clone(&counters))
        .map_err(fatal("the thread that writes to disk cannot be started"))?;
    let (events, network) = mpsc::channel(NETWORK);
    let rpc = Rpc::new(me.clone(), settings.secret.clone(), events, Arc::clone(&counters));
    let (trouble, troubles) = watch::channel(None);
    let (handle, driver) = Driver::new(Parts {
        start,
        store,
        committer,
        rpc: rpc.clone(),
        network,
        counters,
        found: founds.then_some(RingId(u128::from_be_bytes(ring))),
        trouble: troubles,
    })
    .map_err(|error| unreadable(&error))?;
    let others = settings.join.iter().filter(|address| ***address != *me.address);
    let others: Vec<_> = others.cloned().collect();
    if !others.is_empty() {
        tokio::spawn(rpc.clone().join(others, driver.joined(), trouble));
    }
    announce(&settings, &me);

    let (stop_accepting, stopping) = watch::channel(false);
    let (stop_driving, stopped) = watch::channel(false);
    let api = Api::new(handle, &settings, stopping.clone());
    let mut driving = tokio::spawn(driver.run(stopped));
    let accepting = tokio::spawn(accept(listener, rpc, api, stopping));
    let signals = signals().map_err(fatal("signals cannot be received"))?;
    let name = tokio::select! {
        name = signals => name,
        ended = &mut driving => return Err(store_failed(ended)),
    };
    tracing::info!("{name}: the agent finishes the requests under way and stops.");
    stop_accepting.send_replace(true);
    accepting.await.ok();
    stop_driving.send_replace(true);
    driving.await.ok();
    drop(directory);
    tracing::info!("The agent has stopped. Everything it acknowledged is on disk.");
    Ok(())
}

/// The node ended by itself.
fn store_failed(ended: Result<Result<(), String>, tokio::task::JoinError>) -> Failure {
    let reason = match ended {
        Ok(Ok(())) => "it was stopped".to_owned(),
        Ok(Err(reason)) => reason,
        Err(error) => error.to_string(),
    };
    Failure {
        what: format!("the store failed: {reason}"),
        hint: "Check the disk. If it is sound, start the agent again; if data on it is damaged, remove the \
               data directory: the node joins anew and the others bring its data back."
            .to_owned(),
    }
}

async fn listen(settings: &Settings) -> Result<TcpListener, Failure> {
    let address = SocketAddr::new(settings.ip, settings.port);
    TcpListener::bind(address).await.map_err(|error| Failure {
        what: format!("the agent cannot listen on {address}: {error}"),
        hint: match error.kind() {
            io::ErrorKind::AddrInUse => format!(
                "Another program uses port {}. Stop it, or give this agent another --port.",
                settings.port
            ),
            io::ErrorKind::PermissionDenied => {
                "Ports below 1024 need privileges: give a higher --port.".to_owned()
            }
            io::ErrorKind::AddrNotAvailable => {
                "This machine does not have that address: give one of its own with --ip.".to_owned()
            }
            _ => "Check --ip and --port.".to_owned(),
        },
    })
}

fn announce(settings: &Settings, me: &Peer) {
    let Settings { name, ip, port, data, .. } = settings;
    tracing::info!(
        name,
        address = %me.address,
        id = %me.node.position,
        "Agent {name} ({VERSION}) listens on http://{}, data in {}.",
        SocketAddr::new(*ip, *port),
        data.display()
    );
    if settings.secret.is_none() && !ip.is_loopback() {
        tracing::warn!(
            "No ring secret is set: whoever reaches this port can join the ring. Set --secret-file."
        );
    }
}

/// Waits for SIGTERM or SIGINT. The same signal once more ends the process at once.
fn signals() -> io::Result<impl Future<Output = &'static str>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::warn!("The agent was told twice: it ends at once.");
            std::process::exit(1);
        });
        name
    })
}

/// Many clients need many files, and the usual limit of 1,024 is only the soft one.
fn raise_file_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!(%error, "The limit of open files stays as it is.");
    }
}
