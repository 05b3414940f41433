//! What a provider knows before anything is done: what will be made beside the nodes, and what it
//! takes of the quotas.

use serde::Serialize;

/// What a plan means for the place where the nodes live.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Outlook {
    /// What is made beside the nodes.
    pub resources: Vec<Resource>,
    /// What the plan takes of each quota it touches.
    pub quotas: Vec<Quota>,
    /// What the user should know before saying yes.
    pub warnings: Vec<String>,
}

/// Something that is made or removed beside the nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Resource {
    /// Its type, in the words of the provider: `network`, `security group`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// What else tells it apart: its addresses, its size.
    pub detail: String,
}

/// A quota that a plan touches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Quota {
    /// Of what: `instances`, `RAM (MiB)`.
    pub what: String,
    /// How many the plan needs.
    pub need: u64,
    /// How many are used already.
    pub used: u64,
    /// How many there may be; none if there is no limit.
    pub limit: Option<u64>,
}

impl Quota {
    /// Whether the plan fits.
    pub fn suffices(&self) -> bool {
        self.limit.is_none_or(|limit| self.used.saturating_add(self.need) <= limit)
    }
}

/// Something that carries the mark of a ring and that no node of the ring uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Leftover {
    /// Its type.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: String,
    /// Why it is one, as a clause.
    pub why: String,
}
