//! The settings of an agent.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sky_chord::Id;

/// The version of this agent, as `--version` and the views show it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// How one agent was told to run: flags, environment and file put together.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What people call this agent.
    pub name: String,
    /// The address that is listened on.
    pub ip: IpAddr,
    /// The port, for HTTP and peers alike.
    pub port: u16,
    /// Where others reach this agent: `host:port`.
    pub advertise: Arc<str>,
    /// Agents that are asked about the ring: `host:port` each.
    pub join: Vec<String>,
    /// The position on the circle, if it was given.
    pub id: Option<Id>,
    /// The data directory.
    pub data: PathBuf,
    /// The secret that all agents of a ring share; none: every agent of the ring is let in.
    pub secret: Option<Secret>,
    /// What administrative calls over HTTP have to bring; none: nothing but the loopback protects them.
    pub token: Option<Secret>,
    /// Whether clients have to bring the token too, not only administrators.
    pub require_token: bool,
    /// Whether the agent never founds a ring by itself.
    pub wait_for_init: bool,
    /// The largest value accepted, in bytes.
    pub max_value_bytes: usize,
    /// Writes are refused when the disk has fewer bytes left than this; if not given, than the store may
    /// take for a while when it compacts.
    pub disk_reserve: Option<u64>,
    /// How long a dead member may come back with its disk before it is replaced.
    pub repair_after: Duration,
    /// How many nodes hold each key.
    pub replicas: usize,
    /// The position of the node that goes on alone when a ring of two has lost the other one.
    pub tie_breaker: Option<Id>,
}

impl Settings {
    /// What the protocol is told.
    pub fn protocol(&self) -> sky_chord::Settings {
        sky_chord::Settings {
            repair_after: self.repair_after,
            replicas: self.replicas,
            tie_breaker: self.tie_breaker,
            max_value_bytes: self.max_value_bytes,
            ..sky_chord::Settings::default()
        }
    }
}

/// Something that must not be shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// A secret from its bytes; white space around it is not part of it.
    pub fn new(bytes: &[u8]) -> Self {
        Self(bytes.trim_ascii().to_vec())
    }

    /// The bytes, for proofs that are not shown either.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Whether `offered` is the same, in a time that does not depend on where they differ.
    pub fn matches(&self, offered: &[u8]) -> bool {
        self.0.len() == offered.len()
            && self.0.iter().zip(offered).fold(0, |differences, (a, b)| differences | (a ^ b)) == 0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}
