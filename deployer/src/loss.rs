//! Ranges whose majority of members is gone: what is left of them, who is gone, and whether for good.

use serde::Serialize;
use sky_chord::{Id, NodeId, Peer, RangeView, is_majority};

use crate::observe::{NodeState, Sighting};
use crate::ranges::{gaps, latest};

/// What to do about ranges whose majority is gone for good.
pub(crate) const REPAIR: &str =
    "`sky-deploy repair` tells what may be lost, and lets the survivors go on";

/// A range that cannot decide anything any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct LostRange {
    /// It begins after this point.
    pub(crate) lo: Id,
    /// It ends with this point.
    pub(crate) hi: Id,
    /// The latest epoch that an agent reports.
    pub(crate) epoch: u64,
    /// Its members in that epoch.
    pub(crate) members: Vec<String>,
    /// Whoever holds data of it and answers.
    pub(crate) survivors: Vec<Survivor>,
    /// Whoever held data of it and does not answer.
    pub(crate) gone: Vec<Gone>,
}

/// A node that still answers for a range.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Survivor {
    /// Its name.
    pub(crate) name: String,
    /// Who it is.
    #[serde(skip)]
    pub(crate) node: NodeId,
    /// Where its agent is reached.
    #[serde(skip)]
    pub(crate) url: String,
    /// How many keys of the range it holds, as it reports.
    pub(crate) keys: u64,
    /// Whether it is a member, and knows the latest epoch.
    #[serde(skip)]
    pub(crate) can_decide: bool,
}

/// A node that does not answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Gone {
    /// Its name.
    pub(crate) name: String,
    /// What became of it, as a clause.
    pub(crate) fate: String,
    /// How long the others have not heard of it, in milliseconds, if they know.
    pub(crate) silent_ms: Option<u64>,
    /// What may bring it back with its data; none if nothing does.
    pub(crate) comes_back_by: Option<String>,
}

/// The ranges whose majority does not answer, and the arcs of which nobody is left.
pub(crate) fn judge(nodes: &[Sighting]) -> (Vec<LostRange>, Vec<(Id, Id)>) {
    let views = nodes.iter().filter_map(|seen| seen.view.as_ref());
    let views: Vec<&RangeView> = views.flat_map(|view| &view.ranges).collect();
    let ranges = latest(&views);
    let arcs = ranges.iter().map(|range| (range.lo, range.hi)).collect();
    let mut lost: Vec<LostRange> =
        ranges.iter().filter_map(|range| judge_range(range, &views, nodes)).collect();
    lost.sort_by_key(|range| range.hi);
    (lost, gaps(arcs))
}

/// The ranges that are stuck: those whose majority does not answer, unless the one that is left of two is the
/// tie-breaker, which goes on alone.
pub(crate) fn stuck(nodes: &[Sighting], tie_breaker: Option<&str>) -> Vec<LostRange> {
    let mut lost = judge(nodes).0;
    lost.retain(|range| {
        let goes_on = |survivor: &Survivor| Some(survivor.name.as_str()) == tie_breaker;
        range.members.len() != 2 || !range.survivors.iter().any(goes_on)
    });
    lost
}

impl LostRange {
    /// Whether nobody brings back what its silent members held.
    pub(crate) fn is_for_good(&self) -> bool {
        self.gone.iter().all(|gone| gone.comes_back_by.is_none())
    }

    /// What there is to say of one whose majority is gone for good.
    pub(crate) fn sentence(&self) -> String {
        let gone: Vec<&str> = self.gone.iter().map(|gone| gone.name.as_str()).collect();
        let (lo, hi, gone) = (self.lo, self.hi, gone.join(", "));
        format!("The range ({lo:?}, {hi:?}] lost what {gone} held, and with it its majority.")
    }
}

fn judge_range(range: &RangeView, views: &[&RangeView], nodes: &[Sighting]) -> Option<LostRange> {
    let same = |other: &RangeView| other.hi == range.hi && other.epoch == range.epoch;
    let unswept = views.iter().any(|other| same(other) && other.unswept);
    let answering = |set: &[Peer]| set.iter().filter(|peer| answers(peer, nodes).is_some()).count();
    let has_majority = |set: &[Peer]| is_majority(answering(set), set.len());
    let works = has_majority(&range.members)
        && (!unswept || range.prev.is_empty() || has_majority(&range.prev));
    if works {
        return None;
    }
    let only_before = range
        .prev
        .iter()
        .filter(|peer| unswept && !range.members.iter().any(|member| member.node == peer.node));
    let mut lost = LostRange {
        lo: range.lo,
        hi: range.hi,
        epoch: range.epoch,
        members: range.members.iter().map(|peer| name_of(peer, nodes)).collect(),
        survivors: Vec::new(),
        gone: Vec::new(),
    };
    for peer in range.members.iter().chain(only_before) {
        match answers(peer, nodes) {
            Some(seen) => {
                let own = seen.view.iter().flat_map(|view| &view.ranges).find(|other| same(other));
                let is_member = range.members.iter().any(|member| member.node == peer.node);
                lost.survivors.push(Survivor {
                    name: seen.node.name.clone(),
                    node: peer.node,
                    url: seen.url.clone(),
                    keys: own.map_or(0, |own| own.keys),
                    can_decide: is_member && own.is_some(),
                });
            }
            None => lost.gone.push(gone(peer, nodes)),
        }
    }
    Some(lost)
}

/// The node, if it is this very one that answers.
fn answers<'a>(peer: &Peer, nodes: &'a [Sighting]) -> Option<&'a Sighting> {
    let is_it = |seen: &&Sighting| seen.view.as_ref().is_some_and(|it| it.me.node == peer.node);
    nodes.iter().find(is_it)
}

fn name_of(peer: &Peer, nodes: &[Sighting]) -> String {
    let at = nodes.iter().find(|seen| seen.node.id == peer.node.position);
    at.map_or_else(|| format!("{:?} ({})", peer.node, peer.address), |seen| seen.node.name.clone())
}

/// The nodes that do not answer and may come back with what they hold, which nobody else may know of.
pub(crate) fn silent(nodes: &[Sighting]) -> Vec<Gone> {
    let silent = nodes.iter().filter(|seen| seen.view.is_none()).map(|seen| {
        let (fate, comes_back_by) = fate(seen);
        Gone { name: seen.node.name.clone(), fate: fate.to_owned(), silent_ms: None, comes_back_by }
    });
    silent.filter(|gone| gone.comes_back_by.is_some()).collect()
}

fn gone(peer: &Peer, nodes: &[Sighting]) -> Gone {
    let name = name_of(peer, nodes);
    let at = nodes.iter().find(|seen| seen.node.id == peer.node.position);
    let (fate, comes_back_by) = at.map_or(("it is not a node of the ring any more", None), fate);
    let heard = nodes.iter().filter_map(|seen| seen.view.as_ref()).flat_map(|view| &view.members);
    let heard = heard.filter(|member| member.peer.node == peer.node);
    let silent_ms = heard.filter_map(|member| member.heard_ms.or(member.suspected_ms)).min();
    Gone { name, fate: fate.to_owned(), silent_ms, comes_back_by }
}

/// What became of a node that is not the one it was or does not answer, and what may bring it back.
fn fate(seen: &Sighting) -> (&'static str, Option<String>) {
    let (fate, verb) = match seen.state {
        _ if seen.view.is_some() => return ("it began anew without its data", None),
        NodeState::Missing => return ("neither it nor its data is there", None),
        NodeState::Paused => ("it is paused", "unpause"),
        NodeState::Starting => ("it is starting", "restart"),
        _ if seen.runs => ("it runs and does not answer", "restart"),
        _ => ("it does not run, and its data is there", "start"),
    };
    (fate, Some(format!("sky-deploy {verb} {}", seen.node.name)))
}

#[cfg(test)]
mod tests {
    use sky_chord::{KeyCount, Load, MemberStatus, MemberView, Phase, View};

    use super::*;
    use crate::node::{Handle, LOOPBACK, NodeSpec};

    fn peer(position: u64) -> Peer {
        let node = NodeId { position: Id::small(position), incarnation: 1 };
        Peer { node, address: format!("a{position}").into() }
    }

    fn range(epoch: u64, members: &[u64], prev: &[u64], unswept: bool) -> RangeView {
        let peers = |set: &[u64]| set.iter().map(|position| peer(*position)).collect();
        RangeView {
            lo: Id::small(9),
            hi: Id::small(9),
            epoch,
            members: peers(members),
            prev: peers(prev),
            leads: false,
            unswept,
            lagging: Vec::new(),
            keys: 7,
        }
    }

    fn up(position: u64, ranges: Vec<RangeView>) -> Sighting {
        let silent = MemberView {
            peer: peer(3),
            status: MemberStatus::Up,
            suspected_ms: Some(40),
            rtt_us: None,
            heard_ms: Some(50 + position),
        };
        let view = View {
            me: peer(position),
            ring: Some("r".to_owned()),
            phase: Phase::Up,
            predecessor: None,
            successors: Vec::new(),
            fingers: Vec::new(),
            ranges,
            members: vec![silent],
            keys: KeyCount::default(),
            load: Load::default(),
        };
        Sighting { state: NodeState::Up, runs: true, view: Some(view), ..down(position) }
    }

    fn down(position: u64) -> Sighting {
        let node = NodeSpec {
            name: format!("n{position}"),
            id: Id::small(position),
            host: Some(LOOPBACK),
            port: 1,
            zone: None,
        };
        // A container has its handle also while it does not run.
        let handle = Some(Handle::Container("c".to_owned()));
        Sighting { state: NodeState::Down, handle, ..Sighting::missing(node) }
    }

    #[test]
    fn a_range_with_a_majority_is_not_lost() {
        let held = vec![range(4, &[1, 2, 3], &[], false)];
        let (lost, gaps) = judge(&[up(1, held.clone()), up(2, held), down(3)]);
        assert!(lost.is_empty() && gaps.is_empty());
    }

    #[test]
    fn a_range_without_one_tells_who_is_gone_and_who_may_come_back() {
        let held = vec![range(4, &[1, 2, 3], &[], false)];
        let mut anew = up(2, Vec::new());
        anew.view.as_mut().unwrap().me.node.incarnation = 2;
        let (lost, _) = judge(&[up(1, held), anew, down(3)]);
        let [lost] = lost.try_into().unwrap();
        assert_eq!(lost.members, ["n1", "n2", "n3"]);
        let [survivor] = lost.survivors.try_into().unwrap();
        assert_eq!((survivor.node, survivor.keys, survivor.can_decide), (peer(1).node, 7, true));
        let [second, third] = lost.gone.try_into().unwrap();
        assert_eq!((second.name.as_str(), second.comes_back_by), ("n2", None));
        assert_eq!(third.comes_back_by.as_deref(), Some("sky-deploy start n3"));
        assert_eq!(third.silent_ms, Some(51));
    }

    #[test]
    fn a_majority_is_gone_for_good_when_nobody_can_bring_it_back() {
        let held = vec![range(4, &[1, 2, 3], &[], false)];
        let mut anew = up(2, Vec::new());
        anew.view.as_mut().unwrap().me.node.incarnation = 2;
        let mut third = down(3);
        let nodes = [up(1, held), anew, third.clone()];
        let [lost] = stuck(&nodes, None).try_into().unwrap();
        assert!(!lost.is_for_good(), "the third may be started again");
        third.state = NodeState::Missing;
        let [first, second, _] = nodes;
        let [lost] = stuck(&[first, second, third], Some("n1")).try_into().unwrap();
        assert!(lost.is_for_good());
        let of = format!("{:?}", (Id::small(9), Id::small(9))).replace(')', "]");
        let wanted = format!("The range {of} lost what n2, n3 held, and with it its majority.");
        assert_eq!(lost.sentence(), wanted);
    }

    #[test]
    fn of_two_members_the_tie_breaker_is_not_stuck() {
        let held = vec![range(4, &[1, 2], &[], false)];
        let nodes = [up(1, held), down(2)];
        let is_stuck = |tie_breaker| !stuck(&nodes, tie_breaker).is_empty();
        assert!(!is_stuck(Some("n1")) && is_stuck(Some("n2")) && is_stuck(None));
    }

    #[test]
    fn an_unswept_range_needs_its_former_members_too() {
        let members = [1, 2, 4];
        let swept = |unswept| vec![range(5, &members, &[1, 3, 5], unswept)];
        let nodes = |unswept| [up(1, swept(unswept)), up(2, swept(unswept)), up(4, swept(unswept))];
        assert!(judge(&nodes(false)).0.is_empty());
        let (lost, _) = judge(&nodes(true));
        let names: Vec<&str> = lost[0].gone.iter().map(|gone| gone.name.as_str()).collect();
        assert_eq!((lost[0].survivors.len(), names.len()), (3, 2));
    }

    #[test]
    fn whoever_does_not_answer_may_have_what_nobody_reports() {
        let mut hangs = down(2);
        hangs.runs = true;
        let mut paused = down(4);
        paused.state = NodeState::Paused;
        let mut missing = down(5);
        missing.state = NodeState::Missing;
        let nodes = [up(1, Vec::new()), hangs, down(3), paused, missing];
        let found: Vec<_> =
            silent(&nodes).into_iter().map(|gone| gone.comes_back_by.unwrap()).collect();
        let wanted = ["restart n2", "start n3", "unpause n4"].map(|it| format!("sky-deploy {it}"));
        assert_eq!(found, wanted);
    }

    #[test]
    fn old_reports_decide_nothing() {
        let old = vec![range(4, &[1, 2, 3], &[], false)];
        let new = vec![range(5, &[1, 3, 4], &[], false)];
        let (lost, _) = judge(&[up(2, old), up(1, new), down(3)]);
        let [survivor] = lost[0].survivors.clone().try_into().unwrap();
        assert_eq!((lost[0].epoch, survivor.name.as_str()), (5, "n1"));
    }
}
