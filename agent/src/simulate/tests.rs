//! Tests of `simulate`: the figures of the papers.

use std::time::Duration;

use sky_chord::{Id, Reply, Request, Settings, Space};

use super::experiment::{Extent, failures, path_length};
use super::papers::{FIGURE_10A, TABLE_II, TABLE_II_NODES, TABLE_II_SUCCESSORS};
use super::ring::{Ring, Walk};
use crate::playground::network::Network;

const EXTENT: Extent = Extent { seed: 1, rings: 5, lookups: 5000 };

fn is_near(what: &str, is: f64, should: f64, tolerance: f64) {
    let off = (is - should).abs() / should;
    assert!(off <= tolerance, "{what}: {is:.3}, the paper has {should}");
}

#[test]
fn paths_are_as_long_as_in_the_paper() {
    for paper in FIGURE_10A.iter().filter(|point| point.nodes <= 1024) {
        let row = path_length(EXTENT, paper.nodes);
        is_near(&format!("path of {} nodes", paper.nodes), row.path.mean, paper.path.0, 0.05);
        assert!(row.path.p1.abs_diff(paper.path.1) <= 1, "{row:?}");
        assert!(row.path.p99.abs_diff(paper.path.2) <= 1, "{row:?}");
    }
}

#[test]
fn failures_cost_what_they_cost_in_the_paper() {
    for paper in &TABLE_II {
        let row = failures(EXTENT, TABLE_II_NODES, TABLE_II_SUCCESSORS, paper.tenths);
        let what = |of: &str| format!("{of} with {} tenths dead", paper.tenths);
        // A hop names only so many candidates, and all of them may be dead.
        assert!(row.lost * 100 <= row.lookups, "{}: {}", what("lookups lost"), row.lost);
        is_near(&what("path"), row.path.mean, paper.path.0, 0.05);
        if paper.tenths == 0 {
            assert_eq!(row.timeouts.mean, 0.0);
        } else {
            is_near(&what("time-outs"), row.timeouts.mean, paper.expected, 0.15);
        }
    }
}

#[test]
fn a_seed_decides_everything() {
    let extent = Extent { lookups: 500, rings: 3, ..EXTENT };
    assert_eq!(failures(extent, 100, 8, 3), failures(extent, 100, 8, 3));
    let other = Extent { seed: 2, ..extent };
    assert_ne!(failures(extent, 100, 8, 3), failures(other, 100, 8, 3));
}

/// What is measured here without messages is what real nodes do that send them.
#[test]
fn lookups_of_whole_nodes_take_the_same_path() {
    let space = Space::new(12).unwrap();
    let settings = Settings {
        space,
        successors: 2,
        use_member_cache: false,
        fix_fingers_every: Duration::from_millis(100),
        ..Settings::default()
    };
    let mut network = Network::new(settings, 1);
    let points = (0..24u64).map(|i| Id::small((i * i * 37 + i * 101 + 5) % 4096));
    for point in points {
        network.add(point).unwrap();
    }
    for _ in 0..200 {
        if network.verdict().right {
            break;
        }
        network.round();
    }
    assert_eq!(network.verdict().problems, Vec::<String>::new());
    let peers = network.peers();
    let ring = Ring::of(space, &peers, 2);
    let mut longest = 0;
    for (i, key) in (0..4096).step_by(29).map(Id::small).enumerate() {
        let from = i % peers.len();
        let reply = network.ask(peers[from].node, Request::Lookup { target: key });
        let Some(Reply::LookedUp(Ok(trace))) = reply else { panic!("{key:?}: {reply:?}") };
        let hops = u32::try_from(trace.hops.len()).unwrap();
        assert_eq!(ring.walk(from, key), Walk { hops, timeouts: 0, found: true }, "{key:?}");
        longest = longest.max(hops);
    }
    assert!((3..=6).contains(&longest), "24 nodes need some hops, but few: {longest}");
}
