//! One battery for every provider: a node is made, found again, frozen, stopped, started on its data
//! and removed, and nothing is left.

#![expect(clippy::unwrap_used, reason = "tests panic")]

#[path = "battery/inside.rs"]
mod inside;
#[path = "../../agent/tests/support/need.rs"]
mod need;
#[path = "battery/parts.rs"]
mod parts;

use sky_chord::Id;
use sky_deploy::inventory::{Agent, Openstack};
use sky_deploy::node::{LOOPBACK, Launch, MachineState, NodeSpec};
use sky_deploy::printer::Printer;
use sky_deploy::provider::docker::{Containers, Engine};
use sky_deploy::provider::process::Processes;
use sky_deploy::provider::{Provider, Site};
use sky_deploy::state::RingFolder;

/// A ring that nobody else has, in a folder of its own.
fn site(folder: &tempfile::TempDir, kind: &str) -> Site {
    let ring = format!("test-{kind}-{}", std::process::id());
    let folder = RingFolder::at(folder.path(), &ring);
    folder.create().unwrap();
    folder.make_secrets(None).unwrap();
    let program = env!("CARGO_BIN_EXE_sky-deploy").into();
    let (agent, openstack) = (Agent::default(), Openstack::default());
    Site { folder, agent, openstack, program, printer: Printer::from_environment() }
}

fn launch(port: u16) -> Launch {
    let node = NodeSpec {
        name: "a".into(),
        id: Id::small(7),
        host: Some(LOOPBACK),
        port,
        zone: Some("left".into()),
    };
    Launch {
        node,
        join: vec!["127.0.0.1:9".into()],
        require_token: false,
        replicas: 3,
        tie_breaker: None,
    }
}

async fn battery(provider: &dyn Provider, launch: &Launch) {
    let node = launch.node.clone();
    assert_eq!(provider.prepare(std::slice::from_ref(&node)).await.unwrap(), [node]);
    parts::life(provider, launch).await;
    inside::inside(provider, launch).await;
    parts::end(provider).await;
}

fn run(work: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work);
}

#[test]
fn processes() {
    let folder = tempfile::tempdir().unwrap();
    let site = site(&folder, "process");
    let nodes = site.folder.path().join("nodes");
    let provider = Processes::new(site);
    run(battery(&provider, &launch(15_001)));
    assert_eq!(std::fs::read_dir(&nodes).unwrap().count(), 0);
    // What a delete that was killed has left is no node, and goes with the next one.
    std::fs::create_dir_all(nodes.join(".gone-a/data")).unwrap();
    run(async {
        assert_eq!(parts::machine(&provider).await, None);
        provider.delete("a", false).await.unwrap();
    });
    assert_eq!(std::fs::read_dir(&nodes).unwrap().count(), 0);
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
        let made = parts::machine(&provider).await.unwrap();
        let text = std::fs::read_to_string(&record).unwrap();
        let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
        json["process"] = serde_json::Value::Null;
        std::fs::write(&record, json.to_string()).unwrap();
        assert_eq!(parts::machine(&provider).await.unwrap().handle, made.handle);
        // A number that another process has got since is not ours.
        json["process"] =
            serde_json::json!({"pid": std::process::id(), "start_ticks": 1, "boot": ""});
        std::fs::write(&record, json.to_string()).unwrap();
        assert_eq!(parts::machine(&provider).await.unwrap().handle, made.handle);
        // One of before the machine was started again is told, whoever has its number now.
        provider.stop("a").await.unwrap();
        let own = std::fs::read_to_string("/proc/self/stat").unwrap();
        let ticks = own.rsplit_once(") ").unwrap().1.split(' ').nth(19).unwrap();
        let ticks: u64 = ticks.parse().unwrap();
        json["process"] =
            serde_json::json!({"pid": std::process::id(), "start_ticks": ticks, "boot": "other"});
        std::fs::write(&record, json.to_string()).unwrap();
        let machine = parts::machine(&provider).await.unwrap();
        assert_eq!((machine.state, machine.handle), (MachineState::Stopped, None));
        assert_eq!(machine.note.as_deref(), Some("this machine was started again since"));
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
