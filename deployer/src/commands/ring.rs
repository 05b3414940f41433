//! `ring`: the circle, node by node and range by range.

use std::ops::Add;
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;
use sky_chord::{Id, KeyCount, Peer, RangeView, Verdict};

use super::{Context, status};
use crate::converge;
use crate::deployment::Deployment;
use crate::error::Result;
use crate::observe::{NodeState, Sighting};
use crate::ranges;

/// The ring, for `ring --json`. Nodes are called by their names.
#[derive(Serialize)]
struct Picture {
    ring: String,
    #[serde(flatten)]
    verdict: Verdict,
    /// In the order of the circle.
    nodes: Vec<NodeLine>,
    /// As their newest configurations say, in the order of the circle.
    ranges: Vec<RangeLine>,
}

#[derive(Serialize)]
struct NodeLine {
    name: String,
    id: Id,
    state: NodeState,
    /// The share of the circle that it owns, between 0 and 1.
    share: f64,
    /// Its own report; none if it does not answer, as for what follows.
    keys: Option<KeyCount>,
    predecessor: Option<String>,
    successors: Vec<String>,
}

#[derive(Serialize)]
struct RangeLine {
    /// The range begins after this point.
    lo: Id,
    /// It ends with this point.
    hi: Id,
    share: f64,
    epoch: u64,
    keys: u64,
    /// The owner first.
    members: Vec<String>,
    /// Members of the epoch before that are still asked.
    prev: Vec<String>,
    /// Members that may lack writes.
    lagging: Vec<String>,
}

pub(super) async fn run(context: &Context<'_>, path: &Path) -> Result<ExitCode> {
    let deployment = Deployment::open(path).await?;
    let nodes = deployment.expected().await?;
    let verdict = converge::judge(&nodes, deployment.inventory.ring.replicas);
    let picture = Picture::new(deployment.inventory.ring.name.clone(), nodes, verdict);
    if context.json {
        context.json(&picture)?;
    } else {
        picture.print(context);
    }
    Ok(if picture.verdict.right { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Picture {
    fn new(ring: String, mut nodes: Vec<Sighting>, verdict: Verdict) -> Self {
        nodes.sort_by_key(|seen| seen.node.id);
        let views = nodes.iter().filter_map(|seen| seen.view.as_ref());
        let mut reports: Vec<&RangeView> = views.flat_map(|view| &view.ranges).collect();
        // Only the leader knows who lags: of reports of one epoch the first one counts.
        reports.sort_by_key(|range| !range.leads);
        let mut ranges: Vec<RangeLine> = ranges::latest(&reports)
            .into_iter()
            .map(|range| RangeLine::new(range, &nodes))
            .collect();
        ranges.sort_by_key(|range| range.hi);
        let nodes = nodes.iter().map(|seen| {
            let name = seen.node.name.clone();
            let owned = ranges.iter().filter(|range| range.members.first() == Some(&name));
            let view = seen.view.as_ref();
            let known = |peer: &Peer| called(peer, &nodes);
            NodeLine {
                id: seen.node.id,
                state: seen.state,
                share: owned.map(|range| range.share).fold(0.0, f64::add),
                keys: view.map(|view| view.keys),
                predecessor: view.and_then(|view| view.predecessor.as_ref()).map(known),
                successors: view
                    .map_or_else(Vec::new, |view| view.successors.iter().map(known).collect()),
                name,
            }
        });
        Self { ring, verdict, nodes: nodes.collect(), ranges }
    }

    fn print(&self, context: &Context<'_>) {
        let printer = context.printer;
        printer.data(format_args!(
            "{:<10} {:<9} {:<8} {:>7} {:>8} {:>8}  {:<10}  successors",
            "node", "state", "position", "share", "owned", "replica", "before it"
        ));
        for node in &self.nodes {
            let count = |part: fn(KeyCount) -> u64| {
                node.keys.map_or_else(|| "?".to_owned(), |keys| part(keys).to_string())
            };
            printer.data(format_args!(
                "{:<10} {} {:<8} {:>5.1} % {:>8} {:>8}  {:<10}  {}",
                node.name,
                printer.state(node.state, 9),
                format!("{:?}", node.id),
                node.share * 100.0,
                count(|keys| keys.owned),
                count(|keys| keys.replica),
                node.predecessor.as_deref().unwrap_or("?"),
                listed(&node.successors)
            ));
        }
        for range in &self.ranges {
            let arc = format!("({:?}, {:?}]", range.lo, range.hi);
            let beside = [("also asked", &range.prev), ("behind", &range.lagging)];
            let beside = beside.iter().filter(|(_, names)| !names.is_empty());
            let beside: String =
                beside.map(|(what, names)| format!("; {what}: {}", listed(names))).collect();
            printer.data(format_args!(
                "{arc:<20} {:>7.1} % {:>8} keys  epoch {:<4} {}{beside}",
                range.share * 100.0,
                range.keys,
                range.epoch,
                listed(&range.members)
            ));
        }
        let Verdict { right, replicated, problems } = &self.verdict;
        for line in status::verdict(&self.ring, *right, *replicated, problems) {
            printer.data(line);
        }
    }
}

impl RangeLine {
    fn new(range: &RangeView, nodes: &[Sighting]) -> Self {
        let mut members: Vec<&Peer> = range.members.iter().collect();
        // The owner is the first at or after the end of the range.
        members.sort_by_key(|peer| range.hi.distance_to(peer.node.position));
        let lags = |peer: &&&Peer| range.lagging.contains(&peer.node);
        let names = |peer: &&Peer| called(peer, nodes);
        let whole = range.lo == range.hi;
        Self {
            lo: range.lo,
            hi: range.hi,
            share: if whole { 1.0 } else { range.lo.distance_to(range.hi).fraction() },
            epoch: range.epoch,
            keys: range.keys,
            lagging: members.iter().filter(lags).map(names).collect(),
            members: members.iter().map(names).collect(),
            prev: range.prev.iter().map(|peer| called(peer, nodes)).collect(),
        }
    }
}

/// The name of a node, or its address if it is not in the inventory.
fn called(peer: &Peer, nodes: &[Sighting]) -> String {
    let named = nodes.iter().find(|seen| seen.node.id == peer.node.position);
    named.map_or_else(|| peer.address.to_string(), |seen| seen.node.name.clone())
}

fn listed(names: &[String]) -> String {
    names.join(" ")
}
