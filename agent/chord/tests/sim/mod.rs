//! A simulated world for the real [`sky_chord::Node`]: clock, network, disks, faults and clients, all
//! decided by one seed.
//!
//! ```text
//! workload (clients) -> cluster (clock, processes) -> network, disk
//! faults             -> cluster
//! oracle judges what clients were told; watch judges what nodes say to each other
//! ```

pub(crate) mod cluster;
pub(crate) mod disk;
pub(crate) mod faults;
pub(crate) mod machine;
pub(crate) mod network;
pub(crate) mod oracle;
pub(crate) mod random;
pub(crate) mod watch;
pub(crate) mod workload;
