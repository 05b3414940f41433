//! The one seam for everything that can hold a node. No back end knows another, nothing here knows
//! flags or output, and there is no list of nodes to lose: they are found again by label or record.

pub mod docker;
mod lines;
pub mod openstack;
pub mod ports;
pub mod process;
mod rendering;

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::BoxStream;

use crate::error::{During, Error, Result};
use crate::inventory::{Agent, Openstack, ProviderChoice, ProviderKind};
use crate::node::{Launch, Machine, NodeSpec};
use crate::outlook::{Leftover, Outlook};
use crate::printer::Printer;
use crate::state::{RingFolder, Secrets};
pub use lines::{LogLine, Said};
pub use rendering::{Body, Rendered, redacted};

/// Work of a provider under way.
pub type Doing<'a, T> = BoxFuture<'a, Result<T>>;

/// What the providers of a ring have in common.
#[derive(Debug, Clone)]
pub struct Site {
    /// The ring's folder.
    pub folder: RingFolder,
    /// What new agents are told.
    pub agent: Agent,
    /// The cloud, and what servers there are made of.
    pub openstack: Openstack,
    /// The program that nodes run copies of.
    pub program: PathBuf,
    /// Says what takes long.
    pub printer: Printer,
}

impl Site {
    /// A site whose nodes run copies of the program of this process.
    pub fn new(folder: RingFolder, agent: Agent, openstack: Openstack) -> Result<Self> {
        let program =
            std::env::current_exe().during(|| "cannot find the program of this process")?;
        let printer = Printer::from_environment();
        Ok(Self { folder, agent, openstack, program, printer })
    }

    /// What the agents of the ring share.
    fn secrets(&self) -> Result<Secrets> {
        self.folder.secrets()?.ok_or_else(|| {
            Error::new(format!("the ring {} has no secrets", self.folder.ring()))
                .hint("`sky-deploy apply` makes them")
        })
    }

    fn program_bytes(&self) -> Result<Vec<u8>> {
        let program = &self.program;
        std::fs::read(program).during(|| format!("cannot read {}", program.display()))
    }
}

/// Which part of a log is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogRequest {
    /// The last so many lines; all if none.
    pub lines: Option<usize>,
    /// Only lines written since then.
    pub since: Option<SystemTime>,
    /// Whether to go on with what is written later.
    pub follow: bool,
}

/// What can hold the nodes of one ring. Every call may be repeated: what is done already is done.
pub trait Provider: Send + Sync {
    /// Which one it is.
    fn kind(&self) -> ProviderKind;

    /// What comes with making these nodes, and whether they can be made at all. Changes nothing.
    fn outlook<'a>(&'a self, new: &'a [NodeSpec]) -> Doing<'a, Outlook> {
        let _ = new;
        std::future::ready(Ok(Outlook::default())).boxed()
    }

    /// Prepares what all nodes share, and what new nodes need before the first of them is started: an
    /// address each, so that every node can be told all others. Gives them back with it.
    fn prepare<'a>(&'a self, new: &'a [NodeSpec]) -> Doing<'a, Vec<NodeSpec>>;

    /// [`Self::prepare`], only rehearsed: from then on this provider changes nothing any more. Addresses
    /// that are not decided yet have others in their place.
    fn rehearse<'a>(&'a self, new: &'a [NodeSpec]) -> Doing<'a, Vec<NodeSpec>> {
        std::future::ready(Ok(new.to_vec())).boxed()
    }

    /// What is made for a node, and what was rehearsed before. Changes nothing; after [`Self::rehearse`].
    fn render<'a>(&'a self, launch: &'a Launch, secrets: &'a Secrets) -> Doing<'a, Vec<Rendered>>;

    /// The nodes of the ring, by name.
    fn observe(&self) -> Doing<'_, Vec<Machine>>;

    /// Makes what is missing of a node and starts it, on the data it may already have.
    fn start<'a>(&'a self, launch: &'a Launch) -> Doing<'a, ()>;

    /// Ends a node in an orderly way, and by force if it does not end within seconds.
    fn stop<'a>(&'a self, name: &'a str) -> Doing<'a, ()>;

    /// Freezes a node: it does nothing, but its connections stay.
    fn pause<'a>(&'a self, name: &'a str) -> Doing<'a, ()>;

    /// Lets a frozen node go on.
    fn unpause<'a>(&'a self, name: &'a str) -> Doing<'a, ()>;

    /// Ends a node and removes it; its data too unless `keep_data`.
    fn delete<'a>(&'a self, name: &'a str, keep_data: bool) -> Doing<'a, ()>;

    /// Gives a node the program of this process, and tells it what the inventory says now, on the data it
    /// has. False if it runs that already.
    fn renew<'a>(&'a self, launch: &'a Launch) -> Doing<'a, bool>;

    /// Removes what the nodes shared, after the last one is gone.
    fn clear(&self) -> Doing<'_, ()>;

    /// What carries the mark of the ring and belongs to none of its nodes.
    fn leftovers(&self) -> Doing<'_, Vec<Leftover>>;

    /// What there is to know of the place where the nodes live: what was looked at, and how it is. If the
    /// first of it is an error, nothing else can be had there.
    fn examine(&self) -> BoxFuture<'_, Vec<Fact>> {
        std::future::ready(Vec::new()).boxed()
    }

    /// The nodes that run another program than this one, or than what the inventory names.
    fn outdated(&self) -> Doing<'_, Vec<String>>;

    /// The nodes that run and were told something else than what the inventory says now.
    fn told_otherwise(&self) -> Doing<'_, Vec<String>>;

    /// What the agents of the ring share, as one of its nodes knows it: for a machine that has lost it.
    /// None if no node can be asked.
    fn recall(&self) -> Doing<'_, Option<Secrets>>;

    /// How long things may take here.
    fn patience(&self) -> Patience {
        Patience { answer: Duration::from_secs(60), right: Duration::from_secs(180) }
    }

    /// The log of a node, line by line. Followed, it goes on through everything that happens to the node,
    /// and its errors are of the moment: it is tried again.
    fn logs(&self, name: &str, wanted: LogRequest) -> BoxStream<'_, Result<Said>>;
}

/// What was looked at of a provider, and how it is.
pub type Fact = (&'static str, Result<String>);

/// How long nodes may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// To answer for the first time after they were started.
    pub answer: Duration,
    /// To become a right ring.
    pub right: Duration,
}

/// A provider, and why it was chosen.
pub struct Chosen {
    /// The provider.
    pub provider: Box<dyn Provider>,
    /// Why this one, as a clause.
    pub why: String,
}

/// The error for what only a running node can do.
fn not_running(name: &str) -> Error {
    Error::new(format!("{name} does not run")).hint(format!("`sky-deploy start {name}` starts it"))
}

/// Opens the provider of a ring: the one the ring has, else the one the inventory wants.
pub async fn choose(
    wanted: ProviderChoice,
    kept: Option<ProviderKind>,
    site: Site,
) -> Result<Chosen> {
    let ring = site.folder.ring().to_owned();
    match (kept, wanted) {
        (Some(ProviderKind::Process), ProviderChoice::Auto) => {
            Ok(processes(site, "the ring was made there"))
        }
        (Some(ProviderKind::Docker), ProviderChoice::Auto) => {
            let engine = docker::Engine::find().await.map_err(|error| {
                error.hint(format!("the nodes of {ring} are containers: start their engine"))
            })?;
            Ok(containers(engine, site, "the ring was made there"))
        }
        (Some(ProviderKind::Process) | None, ProviderChoice::Process) => {
            Ok(processes(site, "the inventory says so"))
        }
        (Some(ProviderKind::Docker) | None, ProviderChoice::Docker) => {
            Ok(containers(docker::Engine::find().await?, site, "the inventory says so"))
        }
        (Some(ProviderKind::Openstack), ProviderChoice::Auto) => {
            Ok(servers(site, "the ring was made there"))
        }
        (Some(ProviderKind::Openstack) | None, ProviderChoice::Openstack) => {
            Ok(servers(site, "the inventory says so"))
        }
        (Some(kept), _) => Err(Error::new(format!(
            "the ring {ring} was made with the provider {kept}, and a ring stays where it is"
        ))
        .hint(format!("write `provider: {kept}` or `auto`, or give the new ring another name"))),
        (None, ProviderChoice::Auto) => Ok(match docker::Engine::usable(&site).await {
            Ok(engine) => containers(engine, site, "a Docker engine answers"),
            Err(reason) => processes(site, format!("Docker cannot be used: {reason}")),
        }),
    }
}

fn processes(site: Site, why: impl Into<String>) -> Chosen {
    Chosen { provider: Box::new(process::Processes::new(site)), why: why.into() }
}

fn servers(site: Site, why: &str) -> Chosen {
    Chosen { provider: Box::new(openstack::Servers::new(site)), why: why.to_owned() }
}

fn containers(engine: docker::Engine, site: Site, why: &str) -> Chosen {
    let why = format!("{why}; the engine is {}", engine.place());
    Chosen { provider: Box::new(docker::Containers::new(engine, site)), why }
}
