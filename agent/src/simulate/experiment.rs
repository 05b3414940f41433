//! The two experiments, and what they measure.

use serde::Serialize;

use super::papers::{self, FIGURE_10A, TABLE_II};
use super::ring::{Draw, Ring, Walk};

/// Mean, 1st and 99th percentile.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Spread {
    pub(super) mean: f64,
    pub(super) p1: u32,
    pub(super) p99: u32,
}

impl Spread {
    /// Of some numbers, at least one.
    fn of(mut numbers: Vec<u32>) -> Self {
        numbers.sort_unstable();
        let total: u64 = numbers.iter().map(|number| u64::from(*number)).sum();
        // The nearest rank.
        let percentile = |percent: usize| {
            let rank = (numbers.len() * percent).div_ceil(100).max(1);
            numbers.get(rank - 1).copied().unwrap_or_default()
        };
        let (p1, p99) = (percentile(1), percentile(99));
        Self { mean: total as f64 / numbers.len().max(1) as f64, p1, p99 }
    }
}

impl From<(f64, u32, u32)> for Spread {
    fn from((mean, p1, p99): (f64, u32, u32)) -> Self {
        Self { mean, p1, p99 }
    }
}

/// How much is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    /// Decides all identifiers, keys and failures.
    pub(super) seed: u64,
    /// Over how many rings the lookups of a measurement are spread.
    pub(super) rings: usize,
    /// How many lookups a measurement takes, over all rings.
    pub(super) lookups: usize,
}

/// The path length in rings of one size.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct PathLength {
    pub(super) nodes: usize,
    pub(super) lookups: usize,
    pub(super) path: Spread,
    /// Half the logarithm of the number of nodes.
    pub(super) expected_path: f64,
    /// The paper's measurement, if it has one of this size.
    pub(super) paper_path: Option<Spread>,
}

/// Path length and time-outs where a part of the nodes has failed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Failures {
    pub(super) nodes: usize,
    pub(super) successors: usize,
    /// The part of the nodes that failed.
    pub(super) failed: f64,
    pub(super) lookups: usize,
    /// Lookups that had nobody left to ask.
    pub(super) lost: usize,
    pub(super) path: Spread,
    pub(super) timeouts: Spread,
    /// The paper's measurements and the number of time-outs it expects, for rings like its own.
    pub(super) paper_path: Option<Spread>,
    pub(super) paper_timeouts: Option<Spread>,
    pub(super) expected_timeouts: Option<f64>,
}

/// Path length against number of nodes: ideal rings, where nodes route by their fingers and their first
/// successor.
pub(super) fn path_length(extent: Extent, nodes: usize) -> PathLength {
    let walks = walks(extent, nodes, 1, 0);
    let paper = FIGURE_10A.iter().find(|point| point.nodes == nodes);
    PathLength {
        nodes,
        lookups: walks.len(),
        path: Spread::of(walks.iter().map(|walk| walk.hops).collect()),
        expected_path: (nodes as f64).log2() / 2.0,
        paper_path: paper.map(|point| point.path.into()),
    }
}

/// Lookups by live nodes when so many tenths of the nodes have failed at once and nobody has noticed.
pub(super) fn failures(extent: Extent, nodes: usize, successors: usize, tenths: u8) -> Failures {
    let dead = nodes * usize::from(tenths) / 10;
    let walks = walks(extent, nodes, successors, dead);
    let found: Vec<&Walk> = walks.iter().filter(|walk| walk.found).collect();
    let like_paper = nodes == papers::TABLE_II_NODES && successors == papers::TABLE_II_SUCCESSORS;
    let paper = TABLE_II.iter().find(|row| like_paper && row.tenths == tenths);
    Failures {
        nodes,
        successors,
        failed: f64::from(tenths) / 10.0,
        lookups: walks.len(),
        lost: walks.len() - found.len(),
        path: Spread::of(found.iter().map(|walk| walk.hops).collect()),
        timeouts: Spread::of(found.iter().map(|walk| walk.timeouts).collect()),
        paper_path: paper.map(|row| row.path.into()),
        paper_timeouts: paper.map(|row| row.timeouts.into()),
        expected_timeouts: paper.map(|row| row.expected),
    }
}

fn walks(extent: Extent, nodes: usize, successors: usize, dead: usize) -> Vec<Walk> {
    let Extent { seed, rings, lookups } = extent;
    let mut walks = Vec::with_capacity(lookups);
    for number in 0..rings {
        let mut ring = Ring::new(&Draw::new(seed, number, "node"), nodes, successors);
        ring.fail(&Draw::new(seed, number, "failure"), dead);
        let (keys, askers) = (Draw::new(seed, number, "key"), Draw::new(seed, number, "asking"));
        // The first rings take what does not divide evenly.
        let share = lookups / rings + usize::from(number < lookups % rings);
        walks.extend((0..share).map(|i| ring.walk(ring.asking(askers.point(i)), keys.point(i))));
    }
    walks
}
