//! One battery for every provider: a node is made, found again, frozen, stopped, started on its data
//! and removed, and nothing is left.

#![expect(clippy::unwrap_used, reason = "tests panic")]

#[path = "../../agent/tests/support/need.rs"]
mod need;

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use sky_chord::Id;
use sky_deploy::client::Client;
use sky_deploy::inventory::Agent;
use sky_deploy::node::{Launch, Machine, MachineState, NodeSpec};
use sky_deploy::provider::docker::{Containers, Engine};
use sky_deploy::provider::process::Processes;
use sky_deploy::provider::{LogRequest, Provider, Site};
use sky_deploy::state::RingFolder;

/// A ring that nobody else has, in a folder of its own.
fn site(folder: &tempfile::TempDir, kind: &str) -> Site {
    let ring = format!("test-{kind}-{}", std::process::id());
    let folder = RingFolder::at(folder.path(), &ring);
    folder.create().unwrap();
    folder.make_secrets(None).unwrap();
    let program = env!("CARGO_BIN_EXE_sky-deploy").into();
    Site { folder, agent: Agent::default(), program }
}

fn launch(port: u16) -> Launch {
    let node = NodeSpec { name: "a".into(), id: Id::small(7), port, zone: Some("left".into()) };
    Launch { node, join: vec!["127.0.0.1:9".into()] }
}

async fn machine(provider: &dyn Provider) -> Option<Machine> {
    let mut machines = provider.observe().await.unwrap();
    assert!(machines.len() <= 1, "{machines:?}");
    machines.pop()
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

async fn log(provider: &dyn Provider, lines: Option<usize>) -> String {
    let wanted = LogRequest { lines, follow: false };
    let pieces: Vec<_> = provider.logs("a", wanted).map(|piece| piece.unwrap()).collect().await;
    String::from_utf8(pieces.concat()).unwrap()
}

async fn battery(provider: &dyn Provider, launch: &Launch) {
    let client = Client::new(None).unwrap();
    provider.check().await.unwrap();
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

    let whole = log(provider, None).await;
    assert!(whole.lines().count() >= 2, "the log says too little: {whole}");
    assert_eq!(log(provider, Some(1)).await, whole.lines().last().unwrap().to_owned() + "\n");
    let following = LogRequest { lines: Some(1), follow: true };
    let first = provider.logs("a", following).next().await.unwrap().unwrap();
    assert!(whole.contains(std::str::from_utf8(&first).unwrap()));

    let identity = client.view(&launch.node.url()).await.unwrap().me.node;
    provider.pause("a").await.unwrap();
    provider.stop("a").await.unwrap();
    reaches(provider, |machine| machine.state == MachineState::Stopped).await;
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

    provider.delete("a", false).await.unwrap();
    assert_eq!(machine(provider).await, None);
    provider.delete("a", false).await.unwrap();
    provider.clear().await.unwrap();
    provider.clear().await.unwrap();
}

fn run(work: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work);
}

#[test]
fn processes() {
    let folder = tempfile::tempdir().unwrap();
    let site = site(&folder, "process");
    let home = site.folder.clone();
    run(battery(&Processes::new(site), &launch(15_001)));
    assert_eq!(std::fs::read_dir(home.path().join("nodes")).unwrap().count(), 0);
}

/// A program that was killed between starting a process and writing it down finds it again.
#[test]
fn a_process_without_its_record_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let site = site(&folder, "lost");
    let record = site.folder.path().join("nodes/a/record.json");
    let provider = Processes::new(site);
    run(async {
        let launch = launch(15_002);
        provider.start(&launch).await.unwrap();
        let made = machine(&provider).await.unwrap();
        let text = std::fs::read_to_string(&record).unwrap();
        let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
        json["process"] = serde_json::Value::Null;
        std::fs::write(&record, json.to_string()).unwrap();
        assert_eq!(machine(&provider).await.unwrap().handle, made.handle);
        // A number that another process has got since is not ours.
        json["process"] =
            serde_json::json!({"pid": std::process::id(), "start_ticks": 1, "boot": ""});
        std::fs::write(&record, json.to_string()).unwrap();
        assert_eq!(machine(&provider).await.unwrap().handle, made.handle);
        provider.delete("a", false).await.unwrap();
    });
}

#[test]
fn docker() {
    run(async {
        let found = Engine::find().await;
        if !need::is_met(found.is_ok(), "a Docker engine") {
            return;
        }
        let engine = found.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let provider = Containers::new(engine, site(&folder, "docker"));
        battery(&provider, &launch(15_003)).await;
    });
}
