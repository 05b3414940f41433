//! The settings of a node that the protocol depends on.

use std::time::Duration;

use crate::id::{Id, Space};
use crate::time::patience;

/// How a node behaves. All nodes of a ring should have the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The size of the circle.
    pub space: Space,
    /// The length of the successor list (r in the papers).
    pub successors: usize,
    /// How many members a range has, when the ring has as many nodes.
    pub replicas: usize,
    /// The position of the node that goes on alone when a ring of two has lost the other node.
    pub tie_breaker: Option<Id>,
    /// How often the ring pointers are checked.
    pub stabilize_every: Duration,
    /// How often one finger is looked up again.
    pub fix_fingers_every: Duration,
    /// How often the neighbours and co-members are asked whether they are there.
    pub ping_every: Duration,
    /// How often the member table is compared with that of a random member.
    pub gossip_every: Duration,
    /// How long a node may be silent before it is suspected.
    pub suspect_after: Duration,
    /// How long a suspected member may come back with its disk before it is replaced.
    pub repair_after: Duration,
    /// The most bytes of a value: what may take long has to be waited for.
    pub max_value_bytes: usize,
    /// Values of more bytes are kept apart from their records, and sent only to who lacks them.
    pub apart_above: usize,
    /// Whether lookups may use the member table, or only fingers and successors.
    pub use_member_cache: bool,
    /// Bounds of the time-out of one question to a peer, computed from its round-trip times.
    pub rto: (Duration, Duration),
    /// How many keys a sweep handles at once.
    pub sweep_window: usize,
    /// How often all members of a range are compared, even if nothing seems to be missing.
    pub compare_every: Duration,
    /// How long a deleted key is remembered at least, with the ids of its last requests.
    pub tombstones_kept: Duration,
    /// How many deleted keys of a range are forgotten in one epoch.
    pub tombstones_at_once: usize,
    /// How long it takes to read everything on disk once, to find what was damaged there.
    pub scrub_in: Duration,
    /// How often a watch looks at everything again, even if nothing seems to be missing.
    pub look_every: Duration,
}

/// Values up to this size take no longer than anything else.
const NOT_LARGE: usize = 1 << 20;

impl Settings {
    /// Whether values may be so large that they take long, or much memory.
    pub(crate) const fn has_large_values(&self) -> bool {
        self.max_value_bytes > NOT_LARGE
    }

    /// How much longer than otherwise a read may take whose value can be as large as any.
    pub const fn patience(&self) -> Duration {
        if self.has_large_values() { patience(self.max_value_bytes) } else { Duration::ZERO }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            space: Space::SHA1,
            successors: 8,
            replicas: 3,
            tie_breaker: None,
            stabilize_every: Duration::from_millis(300),
            fix_fingers_every: Duration::from_millis(500),
            ping_every: Duration::from_millis(400),
            gossip_every: Duration::from_secs(1),
            suspect_after: Duration::from_millis(1500),
            repair_after: Duration::from_secs(10),
            max_value_bytes: NOT_LARGE,
            apart_above: 64 << 10,
            use_member_cache: true,
            rto: (Duration::from_millis(100), Duration::from_secs(1)),
            sweep_window: 128,
            compare_every: Duration::from_secs(300),
            tombstones_kept: Duration::from_secs(3600),
            tombstones_at_once: 50_000,
            scrub_in: Duration::from_secs(24 * 3600),
            look_every: Duration::from_secs(30),
        }
    }
}
