//! Which ranges there are, and who keeps them, by the agents' own reports.

use std::time::{Duration, Instant};

use sky_chord::{Cursor, Id, NodeId, RangeView};

use super::NotCompared;
use crate::deployment::Deployment;
use crate::error::Result;
use crate::observe::Sighting;
use crate::ranges::{gaps, latest};

/// How often the agents are asked while a range is being changed.
const ASK_EVERY: Duration = Duration::from_millis(300);

/// A range all of whose members answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) lo: Id,
    pub(super) hi: Id,
    pub(super) epoch: u64,
    pub(super) members: Vec<Member>,
}

/// A member of a range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    /// The name of the node.
    pub(super) name: String,
    /// Where its agent is reached.
    pub(super) url: String,
}

impl Range {
    /// The range as one or two stretches of the list of keys: after a place, up to a point.
    pub(super) fn segments(&self) -> Vec<(Option<Cursor>, Id)> {
        sky_chord::segments(self.lo, self.hi)
    }
}

/// The ranges of the ring, and those that cannot be compared; these only after some waiting.
pub(super) async fn settled(
    deployment: &Deployment,
    patience: Duration,
) -> Result<(Vec<Range>, Vec<NotCompared>)> {
    let begun = Instant::now();
    loop {
        let nodes = deployment.observe().await?;
        let found = judge(&nodes, deployment.inventory.ring.replicas);
        if found.1.is_empty() || begun.elapsed() >= patience {
            return Ok(found);
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

fn judge(nodes: &[Sighting], replicas: usize) -> (Vec<Range>, Vec<NotCompared>) {
    let views = nodes.iter().filter_map(|seen| seen.view.as_ref());
    let views: Vec<&RangeView> = views.flat_map(|view| &view.ranges).collect();
    let wanted = replicas.min(nodes.iter().filter(|seen| !seen.has_left()).count());
    let mut ranges = Vec::new();
    let mut not_compared = Vec::new();
    for view in latest(&views) {
        let (lo, hi) = (view.lo, view.hi);
        match members(view, &views, nodes, wanted) {
            Ok(members) => ranges.push(Range { lo, hi, epoch: view.epoch, members }),
            Err(reason) => not_compared.push(NotCompared { lo, hi, reason }),
        }
    }
    let arcs = ranges.iter().map(|range| (range.lo, range.hi));
    let arcs = arcs.chain(not_compared.iter().map(|range| (range.lo, range.hi))).collect();
    for (lo, hi) in gaps(arcs) {
        let reason = "no agent that answers keeps it".to_owned();
        not_compared.push(NotCompared { lo, hi, reason });
    }
    ranges.sort_by_key(|range| range.hi);
    (ranges, not_compared)
}

fn members(
    view: &RangeView,
    views: &[&RangeView],
    nodes: &[Sighting],
    wanted: usize,
) -> Result<Vec<Member>, String> {
    let mut members = Vec::new();
    for peer in &view.members {
        let node = nodes.iter().find(|seen| seen.node.id == peer.node.position);
        let name = node.map_or_else(|| format!("{:?}", peer.node), |seen| seen.node.name.clone());
        let is_it = |id: NodeId| id == peer.node;
        match node.map(|seen| (seen, seen.view.as_ref())) {
            Some((seen, Some(report))) if is_it(report.me.node) => {
                members.push(Member { name, url: seen.url.clone() });
            }
            Some((_, Some(_))) => return Err(format!("{name} has lost its data and began anew")),
            Some((seen, None)) => return Err(format!("{name} is {}", seen.state)),
            None => return Err(format!("{name} is not a node of the ring any more")),
        }
    }
    if members.len() < wanted {
        return Err(format!("it has {} of {wanted} members", members.len()));
    }
    let reports: Vec<_> =
        views.iter().filter(|other| other.hi == view.hi && other.epoch == view.epoch).collect();
    if reports.len() < members.len() {
        return Err("some of its members do not know of it yet".to_owned());
    }
    if !view.prev.is_empty() && reports.iter().any(|report| report.unswept) {
        return Err("its data is still being brought to new members".to_owned());
    }
    Ok(members)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_over_the_start_of_the_circle_has_two_stretches() {
        let range = |lo, hi| Range { lo, hi, epoch: 1, members: Vec::new() };
        let (two, nine) = (Id::small(2), Id::small(9));
        let after = |point| Some(Cursor::AfterPoint(point));
        assert_eq!(range(two, nine).segments(), [(after(two), nine)]);
        assert_eq!(range(nine, two).segments(), [(after(nine), Id::MAX), (None, two)]);
        assert_eq!(range(two, two).segments(), [(after(two), Id::MAX), (None, two)]);
        assert_eq!(range(Id::MAX, two).segments(), [(None, two)]);
    }
}
