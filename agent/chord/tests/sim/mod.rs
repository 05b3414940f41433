//! A simulated world for the real [`sky_chord::Node`]: clocks, network, disks, faults and clients, all
//! decided by one seed.
//!
//! ```text
//! life (a whole run) -> workload (clients, watchers) -> cluster (processes, clocks) -> network, disk
//!                    -> faults             -> cluster
//! oracle judges what clients were told; watch judges what nodes say and what their disks hold;
//! replicas compares the disks in the end
//! tamper does wrong on purpose, to see that it is noticed
//! ```

pub(crate) mod clock;
pub(crate) mod cluster;
pub(crate) mod disk;
pub(crate) mod faults;
pub(crate) mod life;
pub(crate) mod machine;
pub(crate) mod network;
pub(crate) mod oracle;
pub(crate) mod random;
pub(crate) mod replicas;
pub(crate) mod tamper;
pub(crate) mod watch;
pub(crate) mod watchers;
pub(crate) mod workload;
