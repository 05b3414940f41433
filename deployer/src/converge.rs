//! Whether the ring is right, and waiting until it is. Judges the agents' own reports with
//! [`sky_chord::check`]; knows no provider.

use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use sky_chord::{NodeId, Peer, Settings, Transfer, TransferKind, Verdict, View};

use crate::amount;
use crate::error::{Error, Problem, Result};
use crate::observe::{NodeState, Sighting};
use crate::printer::Printer;

/// How often the agents are asked while their ring is not right.
const ASK_EVERY: Duration = Duration::from_millis(250);

/// The verdict over the nodes that should form the ring.
pub fn judge(nodes: &[Sighting], replicas: usize) -> Verdict {
    let reports: Vec<(Peer, Option<View>)> =
        nodes.iter().map(|node| (peer(node, nodes), node.view.clone())).collect();
    let mut verdict = sky_chord::check(&reports, replicas, Settings::default().successors);
    for node in nodes {
        // The protocol knows positions and addresses; people know names.
        let unnamed = format!("{:?} ({})", node.node.id, node.node.address());
        for problem in &mut verdict.problems {
            *problem = problem.replace(&unnamed, &node.node.name);
        }
        verdict
            .problems
            .retain(|problem| *problem != format!("{} does not answer.", node.node.name));
    }
    let not_up = nodes.iter().filter(|node| node.state != NodeState::Up);
    let not_up: Vec<String> =
        not_up.map(|node| format!("{} is {}{}.", node.node.name, node.state, why(node))).collect();
    verdict.right &= not_up.is_empty();
    verdict.problems.splice(0..0, not_up);
    verdict
}

/// What the provider has to say of a node that is not up.
fn why(node: &Sighting) -> String {
    node.note.as_ref().map_or_else(String::new, |note| format!(": {note}"))
}

/// Who a node is: it says so itself, or the others know, or its position has to do.
fn peer(node: &Sighting, all: &[Sighting]) -> Peer {
    if let Some(view) = &node.view {
        return view.me.clone();
    }
    let members = all.iter().filter_map(|other| other.view.as_ref()).flat_map(|view| &view.members);
    let known = members.map(|member| &member.peer).find(|peer| peer.node.position == node.node.id);
    known.cloned().unwrap_or_else(|| Peer {
        node: NodeId { position: node.node.id, incarnation: 0 },
        address: node.node.address().into(),
    })
}

/// How long nothing has moved, while somebody waits: data may take as long as it needs.
pub struct Standstill(Instant);

impl Standstill {
    /// The wait begins.
    pub fn begin() -> Self {
        Self(Instant::now())
    }

    /// How long nothing has moved by now, as the agents tell.
    pub fn after(&mut self, nodes: &[Sighting]) -> Duration {
        let still = sweeps(nodes).map(|sweep| sweep.ended_ms.unwrap_or(sweep.still_ms)).min();
        let moved = still.and_then(|ms| Instant::now().checked_sub(Duration::from_millis(ms)));
        self.0 = moved.map_or(self.0, |moved| moved.max(self.0));
        self.0.elapsed()
    }
}

/// Data on its way to new members of ranges, or brought to them a moment ago.
fn sweeps(nodes: &[Sighting]) -> impl Iterator<Item = &Transfer> {
    let transfers = nodes.iter().flat_map(|node| &node.transfers);
    transfers.filter(|transfer| transfer.kind == TransferKind::Sweep)
}

/// How many keys were moved so far by what is under way, to stand behind a sentence.
pub fn moved(nodes: &[Sighting]) -> String {
    let under_way = sweeps(nodes).filter(|sweep| sweep.ended_ms.is_none());
    match under_way.map(|sweep| sweep.keys).sum() {
        0 => String::new(),
        keys => format!("; {} moved", amount::of(keys, "key")),
    }
}

/// Waits until `judge` of what `look` sees is right, and says what it waits for; an error if nothing has moved
/// for `within`.
pub async fn wait<'a>(
    what: &str,
    within: Duration,
    replicas: usize,
    printer: &Printer,
    mut look: impl FnMut() -> BoxFuture<'a, Result<Vec<Sighting>>>,
) -> Result<Vec<Sighting>> {
    let (begun, mut standstill) = (Instant::now(), Standstill::begin());
    loop {
        let nodes = look().await?;
        let verdict = judge(&nodes, replicas);
        if verdict.right {
            printer.clear();
            return Ok(nodes);
        }
        if standstill.after(&nodes) > within {
            let waited = begun.elapsed().as_secs();
            let mut problem = Problem::new(format!("{what} is not right after {waited} s"));
            problem.causes = verdict.problems;
            problem.hint = Some(
                "`sky-deploy logs all` may tell why; `sky-deploy apply` goes on waiting".into(),
            );
            return Err(Error { problems: vec![problem] });
        }
        let reason = match verdict.problems.as_slice() {
            [] => "waiting for the agents".to_owned(),
            [only] => only.clone(),
            [first, others @ ..] => format!("{first} (and {} more)", others.len()),
        };
        printer.passing(format_args!("{what}: {reason}{}", moved(&nodes)));
        tokio::time::sleep(ASK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use sky_chord::Id;

    use super::*;
    use crate::node::NodeSpec;

    fn bringing(kind: TransferKind, keys: u64, still_ms: u64, ended_ms: Option<u64>) -> Sighting {
        let (lo, hi) = (Id::small(1), Id::small(2));
        let (from, to) = (Vec::new(), Vec::new());
        let (bytes, through, known_left, took_ms) = (0, None, 0, 9);
        let moving = Transfer {
            kind,
            lo,
            hi,
            epoch: 3,
            from,
            to,
            keys,
            bytes,
            through,
            known_left,
            took_ms,
            still_ms,
            ended_ms,
        };
        let node = NodeSpec { name: "n".to_owned(), id: hi, host: None, port: 1, zone: None };
        Sighting { transfers: vec![moving], ..Sighting::missing(node) }
    }

    #[test]
    fn a_wait_is_as_long_as_nothing_has_moved() {
        let minute = Duration::from_secs(60);
        let begun = Instant::now().checked_sub(minute).expect("a machine that runs for longer");
        let mut standstill = Standstill(begun);
        let catchup = bringing(TransferKind::Catchup, 5, 10, None);
        assert!(standstill.after(std::slice::from_ref(&catchup)) >= minute);
        let ended = bringing(TransferKind::Sweep, 5, 30_000, Some(20_000));
        let after = standstill.after(&[catchup, ended]).as_secs();
        assert!((20..30).contains(&after), "{after}");
        let sweep = bringing(TransferKind::Sweep, 1234, 1_000, None);
        assert!(standstill.after(std::slice::from_ref(&sweep)) < Duration::from_secs(20));
        assert!(standstill.after(&[]) < Duration::from_secs(20), "what has moved has moved");
        assert_eq!((moved(&[sweep]), moved(&[])), ("; 1,234 keys moved".into(), String::new()));
    }
}
