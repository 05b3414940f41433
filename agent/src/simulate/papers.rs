//! What the papers measured.

/// A point of figure 10(a) of Stoica, Morris, Karger, Kaashoek, Balakrishnan: "Chord: a scalable
/// peer-to-peer lookup service for Internet applications", SIGCOMM 2001.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct PathLength {
    /// How many nodes the ring has.
    pub(super) nodes: usize,
    /// Mean, 1st and 99th percentile of the path length.
    pub(super) path: (f64, u32, u32),
}

/// Figure 10(a), read off the plot.
pub(super) const FIGURE_10A: [PathLength; 5] = [
    PathLength { nodes: 64, path: (2.96, 1, 5) },
    PathLength { nodes: 256, path: (3.88, 1, 7) },
    PathLength { nodes: 1024, path: (4.89, 2, 8) },
    PathLength { nodes: 4096, path: (5.85, 2, 10) },
    PathLength { nodes: 16384, path: (6.87, 3, 11) },
];

/// A row of table II of the same authors with Liben-Nowell and Dabek: "Chord: a scalable peer-to-peer
/// lookup protocol for Internet applications", IEEE/ACM Transactions on Networking 11(1), 2003.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Failures {
    /// How many tenths of the nodes fail.
    pub(super) tenths: u8,
    /// Mean, 1st and 99th percentile of the path length.
    pub(super) path: (f64, u32, u32),
    /// Mean, 1st and 99th percentile of the number of time-outs.
    pub(super) timeouts: (f64, u32, u32),
    /// The number of time-outs that the paper expects.
    pub(super) expected: f64,
}

/// How many nodes table II is about.
pub(super) const TABLE_II_NODES: usize = 1000;
/// The length of their successor lists.
pub(super) const TABLE_II_SUCCESSORS: usize = 20;

const fn row(
    tenths: u8,
    path: (f64, u32, u32),
    timeouts: (f64, u32, u32),
    expected: f64,
) -> Failures {
    Failures { tenths, path, timeouts, expected }
}

/// Table II.
pub(super) const TABLE_II: [Failures; 6] = [
    row(0, (3.84, 2, 5), (0.0, 0, 0), 0.0),
    row(1, (4.03, 2, 6), (0.60, 0, 2), 0.45),
    row(2, (4.22, 2, 6), (1.17, 0, 3), 1.06),
    row(3, (4.44, 2, 6), (2.02, 0, 5), 1.90),
    row(4, (4.69, 2, 7), (3.23, 0, 8), 3.13),
    row(5, (5.09, 3, 8), (5.10, 0, 11), 5.06),
];
