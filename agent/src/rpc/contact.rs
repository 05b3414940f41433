//! Asking at the join addresses, for ever if need be: the other agents may start later than this one.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use sky_chord::Event;
use tokio::sync::watch;

use super::{Lane, Shared};

/// Pause between two rounds, doubled each time, between these.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

pub(super) async fn join(
    shared: &Arc<Shared>,
    addresses: Vec<String>,
    mut joined: watch::Receiver<bool>,
    trouble: watch::Sender<Option<String>>,
) {
    let mut pause = PAUSE.0;
    loop {
        let round = join_all(addresses.iter().map(|address| ask(shared, address)));
        let answers = tokio::select! {
            () = crate::until(&mut joined) => break,
            answers = round => answers,
        };
        let problems: Vec<_> = answers.iter().filter_map(|answer| answer.as_ref().err()).collect();
        let none_answers = problems.len() == addresses.len();
        trouble.send_if_modified(|trouble| {
            let text = none_answers.then(|| {
                let problems: Vec<_> = problems.iter().map(|problem| problem.as_str()).collect();
                format!("no agent to join answers: {}", problems.join("; "))
            });
            let changed = *trouble != text;
            *trouble = text;
            changed
        });
        tokio::select! {
            () = crate::until(&mut joined) => break,
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(PAUSE.1),
        }
    }
    trouble.send_replace(None);
}

/// Asks who answers at this address and tells the node. An error is what keeps it from answering.
async fn ask(shared: &Shared, address: &str) -> Result<(), String> {
    match shared.connect(address, None, Lane::Ordinary).await {
        Ok((_, theirs)) => {
            shared.all_is_well(address);
            // Fails only when the agent is stopping.
            shared.events.send(Event::Contact { peer: theirs.peer, ring: theirs.ring }).await.ok();
            Ok(())
        }
        Err(error) => {
            shared.complain(address, &error.to_string());
            Err(format!("{address}: {error}"))
        }
    }
}
