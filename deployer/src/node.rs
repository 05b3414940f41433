//! What a node is: the values that plans, providers and reports have in common.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sky_chord::Id;

use crate::inventory::{Agent, LogFormat, parse_duration};

/// What never changes in the life of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSpec {
    /// Its name in the inventory.
    pub name: String,
    /// Its position on the circle.
    pub id: Id,
    /// The address its agent listens on and tells the others; none until it has one.
    #[serde(default = "loopback")]
    pub host: Option<IpAddr>,
    /// Its port.
    pub port: u16,
    /// What it shares with others when something fails.
    pub zone: Option<String>,
}

impl NodeSpec {
    /// Where it listens: `127.0.0.1:4321`; only `:4321` while it has no address.
    pub fn address(&self) -> String {
        match self.host {
            Some(host) => std::net::SocketAddr::new(host, self.port).to_string(),
            None => format!(":{}", self.port),
        }
    }

    /// Where its page is for whoever reaches its address.
    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }
}

/// The address local agents listen on.
pub const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// For records from before nodes had addresses.
const fn loopback() -> Option<IpAddr> {
    Some(LOOPBACK)
}

/// A node that is to run, and whom it asks about the ring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// The node.
    pub node: NodeSpec,
    /// The addresses of all other nodes.
    pub join: Vec<String>,
    /// Whether clients must bring the deployment's token, because others than this machine's users can
    /// reach the agent.
    pub require_token: bool,
    /// How many nodes hold each key.
    pub replicas: usize,
    /// The position of the node that goes on alone when a ring of two has lost the other one.
    pub tie_breaker: Option<Id>,
}

/// What an agent is told that an inventory may change: flags, each with its value.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told(BTreeMap<String, String>);

impl Told {
    const FLAGS: [&'static str; 3] = ["--log-format", "--repair-after", "--max-value-bytes"];

    /// What the agent of this node would be told now.
    pub fn wanted(agent: &Agent, node: &NodeSpec) -> Self {
        let log = match agent.log {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        };
        let repair_after = repair_after(agent, node).as_secs();
        let values = [log.to_owned(), repair_after.to_string(), agent.max_value_bytes.to_string()];
        Self(Self::FLAGS.map(str::to_owned).into_iter().zip(values).collect())
    }

    /// What an agent with these arguments was told.
    pub fn among(arguments: &[String]) -> Self {
        let pairs = arguments.windows(2).filter(|pair| Self::FLAGS.contains(&pair[0].as_str()));
        Self(pairs.map(|pair| (pair[0].clone(), pair[1].clone())).collect())
    }
}

/// How long a node may be down before its data is copied to another.
pub fn repair_after(agent: &Agent, node: &NodeSpec) -> Duration {
    // Machines of a cloud take longer to come back than processes.
    let in_a_cloud = node.host.is_some_and(|host| !host.is_loopback());
    let usual = Duration::from_secs(if in_a_cloud { 120 } else { 10 });
    parse_duration(&agent.repair_after).unwrap_or(usual)
}

impl Launch {
    /// The agent's arguments. Secrets are not among them: every user of a machine can read those.
    pub fn arguments(&self, agent: &Agent, data: &str) -> Vec<String> {
        let mut arguments = vec!["--wait-for-init".to_owned()];
        for (flag, value) in [
            ("--name", self.node.name.clone()),
            ("--ip", self.node.host.unwrap_or(LOOPBACK).to_string()),
            ("--port", self.node.port.to_string()),
            ("--id", self.node.id.to_string()),
            ("--data", data.to_owned()),
            ("--replicas", self.replicas.to_string()),
        ] {
            arguments.extend([flag.to_owned(), value]);
        }
        let Told(told) = Told::wanted(agent, &self.node);
        arguments.extend(told.into_iter().flat_map(|(flag, value)| [flag, value]));
        if let Some(position) = self.tie_breaker {
            arguments.extend(["--tie-breaker".to_owned(), position.to_string()]);
        }
        if self.require_token {
            arguments.push("--require-token".to_owned());
        }
        if !self.join.is_empty() {
            arguments.extend(["--join".to_owned(), self.join.join(",")]);
        }
        arguments
    }
}

/// A node as the provider finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Which node.
    pub node: NodeSpec,
    /// What it does.
    pub state: MachineState,
    /// How the provider calls it; none if only its data is there.
    pub handle: Option<Handle>,
    /// Where this program reaches its agent, which may be another address than the other agents use.
    pub url: String,
    /// What the provider says of it beyond its state, as a clause.
    pub note: Option<String>,
}

impl Machine {
    /// A machine whose agent is reached where it listens.
    pub fn near(node: NodeSpec, state: MachineState, handle: Option<Handle>) -> Self {
        Self { url: node.url(), node, state, handle, note: None }
    }
}

/// What a machine does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MachineState {
    /// It runs; `young` for about the first half minute.
    Running {
        /// Whether it may still be starting.
        young: bool,
    },
    /// It is frozen.
    Paused,
    /// It does not run; its data is there.
    Stopped,
    /// There is neither a machine nor data, only its place: an address that was prepared.
    Absent,
}

/// How a provider calls a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Handle {
    /// A process id.
    Pid(u32),
    /// A container id.
    Container(String),
    /// The id of a server of a cloud.
    Server(String),
}

/// What a node does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// It runs, and is not yet a member.
    Starting,
    /// It is a member.
    Up,
    /// It is frozen.
    Paused,
    /// It hands over its data, or has done so.
    Draining,
    /// It does not run, or does not answer.
    Down,
    /// The inventory wants it and it is not there.
    Missing,
}

impl std::fmt::Display for NodeState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Starting => "starting",
            Self::Up => "up",
            Self::Paused => "paused",
            Self::Draining => "draining",
            Self::Down => "down",
            Self::Missing => "missing",
        })
    }
}
