//! What every provider must do: a node is made, found again, frozen, stopped, started on its data and
//! removed, and nothing is left.

use std::time::{Duration, Instant};

use sky_deploy::client::Client;
use sky_deploy::node::{Launch, Machine, MachineState};
use sky_deploy::provider::Provider;

pub(crate) async fn machine(provider: &dyn Provider) -> Option<Machine> {
    let mut machines = provider.observe().await.unwrap();
    assert!(machines.len() <= 1, "{machines:?}");
    // Its address may be there before it.
    machines.pop().filter(|machine| machine.state != MachineState::Absent)
}

/// A signal takes effect a moment after it was sent.
async fn reaches(provider: &dyn Provider, wanted: impl Fn(&Machine) -> bool) -> Machine {
    let begun = Instant::now();
    loop {
        let found = machine(provider).await;
        if let Some(machine) = found.as_ref().filter(|machine| wanted(machine)) {
            return machine.clone();
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "still {found:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn is_running(machine: &Machine) -> bool {
    matches!(machine.state, MachineState::Running { .. })
}

async fn answers(client: &Client, launch: &Launch) {
    let begun = Instant::now();
    loop {
        match client.view(&launch.node.url()).await {
            Ok(view) => {
                assert_eq!(view.me.node.position, launch.node.id);
                return;
            }
            Err(error) => assert!(begun.elapsed() < Duration::from_secs(20), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The life of a node that was prepared.
pub(crate) async fn life(provider: &dyn Provider, launch: &Launch) {
    let client = Client::new(None).unwrap();
    assert_eq!(machine(provider).await, None);
    assert!(provider.pause("a").await.is_err(), "what is not there cannot be frozen");
    provider.stop("a").await.unwrap();

    provider.start(launch).await.unwrap();
    let made = reaches(provider, is_running).await;
    assert_eq!(made.node, launch.node);
    assert!(made.handle.is_some());
    answers(&client, launch).await;
    provider.start(launch).await.unwrap();
    assert_eq!(reaches(provider, is_running).await.handle, made.handle, "started twice");

    provider.pause("a").await.unwrap();
    reaches(provider, |machine| machine.state == MachineState::Paused).await;
    assert!(client.view(&launch.node.url()).await.is_err(), "a frozen node answers");
    provider.unpause("a").await.unwrap();
    reaches(provider, is_running).await;
    answers(&client, launch).await;

    let identity = client.view(&launch.node.url()).await.unwrap().me.node;
    provider.pause("a").await.unwrap();
    provider.stop("a").await.unwrap();
    reaches(provider, |machine| machine.state == MachineState::Stopped).await;
    assert!(provider.unpause("a").await.is_err(), "what is stopped cannot go on");
    provider.start(launch).await.unwrap();
    answers(&client, launch).await;
    let after = client.view(&launch.node.url()).await.unwrap().me.node;
    assert_eq!(after, identity, "the node lost its data");

    provider.delete("a", true).await.unwrap();
    let kept = reaches(provider, |machine| machine.state == MachineState::Stopped).await;
    assert_eq!(kept.node, launch.node);
    provider.start(launch).await.unwrap();
    answers(&client, launch).await;
    let after = client.view(&launch.node.url()).await.unwrap().me.node;
    assert_eq!(after, identity, "the kept data is gone");
    assert!(provider.leftovers().await.unwrap().is_empty());
}

/// The end of a node and of what it shared with others.
pub(crate) async fn end(provider: &dyn Provider) {
    provider.delete("a", false).await.unwrap();
    assert_eq!(machine(provider).await, None);
    provider.delete("a", false).await.unwrap();
    provider.clear().await.unwrap();
    provider.clear().await.unwrap();
}
