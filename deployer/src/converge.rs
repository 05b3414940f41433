//! Whether the ring is right, and waiting until it is. Judges the agents' own reports with
//! [`sky_chord::check`]; knows no provider.

use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use sky_chord::{NodeId, Peer, Settings, Verdict, View};

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

/// Waits until `judge` of what `look` sees is right. Says what it waits for when that changes; an
/// error after `within`.
pub async fn wait<'a>(
    what: &str,
    within: Duration,
    replicas: usize,
    printer: &Printer,
    mut look: impl FnMut() -> BoxFuture<'a, Result<Vec<Sighting>>>,
) -> Result<Vec<Sighting>> {
    let begun = Instant::now();
    let mut said = String::new();
    loop {
        let nodes = look().await?;
        let verdict = judge(&nodes, replicas);
        if verdict.right {
            printer.clear();
            return Ok(nodes);
        }
        if begun.elapsed() > within {
            let mut problem =
                Problem::new(format!("{what} is not right after {} s", within.as_secs()));
            problem.causes = verdict.problems;
            problem.hint = Some(
                "`sky-deploy logs all` may tell why; the same command again goes on waiting".into(),
            );
            return Err(Error { problems: vec![problem] });
        }
        let reason = match verdict.problems.as_slice() {
            [] => "waiting for the agents".to_owned(),
            [only] => only.clone(),
            [first, others @ ..] => format!("{first} (and {} more)", others.len()),
        };
        if reason != said {
            printer.passing(format_args!("{what}: {reason}"));
            said = reason;
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}
