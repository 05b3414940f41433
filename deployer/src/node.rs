//! What a node is: the values that plans, providers and reports have in common.

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
    /// Its port, on the loopback address.
    pub port: u16,
    /// What it shares with others when something fails.
    pub zone: Option<String>,
}

impl NodeSpec {
    /// Where it listens: `127.0.0.1:4321`.
    pub fn address(&self) -> String {
        format!("{LOOPBACK}:{}", self.port)
    }

    /// Where its page is.
    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }
}

/// The address local agents listen on.
pub const LOOPBACK: &str = "127.0.0.1";

/// A node that is to run, and whom it asks about the ring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// The node.
    pub node: NodeSpec,
    /// The addresses of all other nodes.
    pub join: Vec<String>,
}

impl Launch {
    /// The agent's arguments. Secrets are not among them: every user of a machine can read those.
    pub fn arguments(&self, agent: &Agent, data: &str) -> Vec<String> {
        let log = match agent.log {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        };
        // The inventory was checked: the default stands for what cannot be.
        let repair_after = parse_duration(&agent.repair_after).map_or(10, |time| time.as_secs());
        let mut arguments = vec!["--wait-for-init".to_owned()];
        for (flag, value) in [
            ("--name", self.node.name.clone()),
            ("--ip", LOOPBACK.to_owned()),
            ("--port", self.node.port.to_string()),
            ("--id", self.node.id.to_string()),
            ("--data", data.to_owned()),
            ("--log-format", log.to_owned()),
            ("--repair-after", repair_after.to_string()),
            ("--max-value-bytes", agent.max_value_bytes.to_string()),
        ] {
            arguments.extend([flag.to_owned(), value]);
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
}

/// How a provider calls a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Handle {
    /// A process id.
    Pid(u32),
    /// A container id.
    Container(String),
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
