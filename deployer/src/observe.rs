//! What there is: the machines of a ring, joined with what their agents report.

use futures_util::future::join_all;
use serde::Serialize;
use sky_api::OwnReport;
use sky_chord::{Id, Phase, Transfer, View};

use crate::client::Client;
use crate::error::Result;
use crate::inventory::ProviderKind;
pub use crate::node::NodeState;
use crate::node::{Handle, LOOPBACK, Machine, MachineState, NodeSpec};
use crate::provider::Provider;

/// A node as it is found: its machine, and its own report.
#[derive(Debug, Clone, PartialEq)]
pub struct Sighting {
    /// The node.
    pub node: NodeSpec,
    /// What it does.
    pub state: NodeState,
    /// How the provider calls it.
    pub handle: Option<Handle>,
    /// Whether it runs, as the provider sees it: a container or a server has a handle even when it does not.
    pub runs: bool,
    /// What it reports; none if it does not answer.
    pub view: Option<View>,
    /// The data that it brings to members of ranges, and brought a moment ago.
    pub transfers: Vec<Transfer>,
    /// Where this program reaches its agent.
    pub url: String,
    /// What the provider or the agent says of it beyond its state, as a clause.
    pub note: Option<String>,
}

impl Sighting {
    fn new(machine: Machine, report: Option<OwnReport>) -> Self {
        // A process of another ring may have taken the port.
        let report = report.filter(|report| report.view.me.node.position == machine.node.id);
        let (view, transfers) = report.map(|it| (it.view, it.transfers)).unzip();
        let transfers = transfers.unwrap_or_default();
        let state = match (machine.state, &view) {
            (MachineState::Stopped, _) => NodeState::Down,
            (MachineState::Absent, _) => NodeState::Missing,
            (MachineState::Paused, _) => NodeState::Paused,
            (MachineState::Running { young }, None) => {
                if young {
                    NodeState::Starting
                } else {
                    NodeState::Down
                }
            }
            (MachineState::Running { .. }, Some(view)) => match view.phase {
                Phase::Waiting | Phase::Joining => NodeState::Starting,
                Phase::Up => NodeState::Up,
                Phase::Leaving | Phase::Drained => NodeState::Draining,
            },
        };
        let runs = matches!(machine.state, MachineState::Running { .. });
        let Machine { node, handle, url, note, .. } = machine;
        let full = view.as_ref().is_some_and(|view| view.load.disk_full);
        let own = match state {
            NodeState::Down if runs => Some("it runs and does not answer"),
            _ => full.then_some("its disk is full: it stores nothing new"),
        };
        let note = note.or_else(|| own.map(str::to_owned));
        Self { node, state, handle, runs, view, transfers, url, note }
    }

    /// Whether it has handed over everything and is no member any more.
    pub fn has_left(&self) -> bool {
        self.view.as_ref().is_some_and(|view| view.phase == Phase::Drained)
    }

    /// Where its agent is for others than this process, which may have a passage of its own to it.
    pub fn public_url(&self) -> String {
        let passage = self.url.starts_with("http://127.") && self.node.host != Some(LOOPBACK);
        match self.node.host {
            Some(_) if passage => self.node.url(),
            Some(_) => self.url.clone(),
            None => String::new(),
        }
    }

    /// A node that is wanted and not there.
    pub fn missing(node: NodeSpec) -> Self {
        let (url, state) = (node.url(), NodeState::Missing);
        let (handle, view, note) = (None, None, None);
        Self { url, node, state, handle, runs: false, view, transfers: Vec::new(), note }
    }
}

/// The nodes of a ring as they are now. One dead agent does not hold up the others.
pub async fn observe(provider: &dyn Provider, client: &Client) -> Result<Vec<Sighting>> {
    let machines = provider.observe().await?;
    let reports = machines.iter().map(|machine| async {
        match machine.state {
            MachineState::Running { .. } => client.report(&machine.url).await.ok(),
            MachineState::Paused | MachineState::Stopped | MachineState::Absent => None,
        }
    });
    let reports = join_all(reports).await;
    let seen = machines.into_iter().zip(reports);
    Ok(seen.map(|(machine, report)| Sighting::new(machine, report)).collect())
}

/// A ring, for `status --json`.
#[derive(Debug, Serialize)]
pub struct StatusReport {
    /// Its name.
    pub ring: String,
    /// Whether everything is as it should be.
    pub right: bool,
    /// Whether every range has its full, caught-up members.
    pub replicated: bool,
    /// What is not right, a sentence each.
    pub problems: Vec<String>,
    /// Whether ranges have lost their majority for good, so that only `repair` gets them going again.
    pub needs_repair: bool,
    /// The nodes of the inventory and those found, by name.
    pub nodes: Vec<NodeReport>,
}

/// A node, for `status --json`.
#[derive(Debug, Serialize)]
pub struct NodeReport {
    /// Its name.
    pub name: String,
    /// Its position on the circle, 40 hexadecimal digits.
    pub id: Id,
    /// Where it serves clients, and its page; empty while it has no address.
    pub url: String,
    /// What it does.
    pub state: NodeState,
    /// Where it lives.
    pub provider: ProviderKind,
    /// Whether it runs, as the provider sees it.
    #[serde(skip)]
    pub runs: bool,
    /// What is to be said of it beyond its state; none if there is nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// `pid`, `container` or `server`; none if it does not run.
    #[serde(flatten)]
    pub handle: Option<Handle>,
    /// How many keys it owns; none if it does not answer.
    pub keys: Option<u64>,
}

impl NodeReport {
    /// The report of a node.
    pub fn new(sighting: &Sighting, provider: ProviderKind) -> Self {
        Self {
            name: sighting.node.name.clone(),
            id: sighting.node.id,
            url: sighting.public_url(),
            state: sighting.state,
            runs: sighting.runs,
            provider,
            note: sighting.note.clone(),
            handle: sighting.handle.clone(),
            keys: sighting.view.as_ref().map(|view| view.keys.owned),
        }
    }
}
