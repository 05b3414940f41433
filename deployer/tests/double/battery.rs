//! Servers are a provider like the others: the battery of all of them, and one inventory for all.

use std::process::Stdio;

use serde_json::{Value, json};
use sky_chord::Id;
use sky_deploy::inventory::{Agent, Openstack};
use sky_deploy::node::{Launch, NodeSpec};
use sky_deploy::printer::Printer;
use sky_deploy::provider::openstack::Servers;
use sky_deploy::provider::{Provider, Site as ProviderSite};
use sky_deploy::state::RingFolder;

use super::deploy::{Site, has_keygen};
use super::keystone::PASSWORD;
use super::{need, parts};

#[test]
fn servers_pass_the_battery_of_all_providers() {
    if !need::is_met(has_keygen(), "ssh-keygen") {
        return;
    }
    let site = Site::new(1);
    let before = site.cloud.state().dump();
    let clouds = json!({"clouds": {"double": {"region_name": "RegionOne", "auth": {
        "auth_url": format!("http://{}/identity", site.cloud.address), "username": "me",
        "password": PASSWORD, "project_name": "mine"}}}});
    std::fs::write(site.path("clouds.yaml"), clouds.to_string()).unwrap();
    // The one place where a library finds this file without variables of the process. Nothing else
    // here depends on it.
    std::env::set_current_dir(site.path("")).unwrap();
    let folder = RingFolder::at(&site.path("state"), "battery");
    folder.create().unwrap();
    folder.make_secrets(None).unwrap();
    let openstack: Openstack = serde_json::from_value(site.openstack.clone()).unwrap();
    let openstack =
        Openstack { cloud: Some("double".to_owned()), data_volume_gb: Some(1), ..openstack };
    let provider = Servers::new(ProviderSite {
        folder,
        agent: Agent::default(),
        openstack,
        program: env!("CARGO_BIN_EXE_sky-deploy").into(),
        printer: Printer::from_environment(),
    });
    let node = NodeSpec {
        name: "a".into(),
        id: Id::small(7),
        host: None,
        port: 4321,
        zone: Some("left".into()),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let prepared = provider.prepare(std::slice::from_ref(&node)).await.unwrap();
        let again = provider.prepare(&prepared).await.unwrap();
        assert_eq!(again, prepared);
        let node = prepared.into_iter().next().unwrap();
        assert!(node.host.is_some());
        let launch = Launch {
            node,
            join: vec!["127.0.0.1:9".into()],
            require_token: false,
            replicas: 3,
            tie_breaker: None,
        };
        parts::life(&provider, &launch).await;
        parts::end(&provider).await;
    });
    assert_eq!(site.cloud.state().dump(), before);
}

/// What a plan says whatever its provider is.
fn essence(plan: &Value) -> Value {
    let steps = plan["steps"].as_array().unwrap().iter();
    let steps: Vec<Value> =
        steps.map(|step| json!([step["do"], step["name"], step["id"], step["zone"]])).collect();
    json!([plan["ring"], steps, plan["shares"], plan["keys_to_move"], plan["warnings"]])
}

#[test]
fn one_inventory_gives_one_plan_on_every_back_end() {
    let mut site = Site::new(0);
    let listed = json!([{"name": "red", "id": "ff"}, {"zone": "left"}, {}]);
    for nodes in [json!(5), listed] {
        site.nodes = nodes;
        let mut plans = Vec::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let engine = runtime.block_on(sky_deploy::provider::docker::Engine::find()).is_ok();
        let docker = need::is_met(engine, "a Docker engine").then_some("docker");
        for provider in ["process", "openstack"].into_iter().chain(docker) {
            site.provider = provider;
            let mut command = site.command(&["plan", "--json"]);
            let ran = site.watch(command.stdin(Stdio::null()).spawn().unwrap());
            assert_eq!(ran.code, Some(2), "{provider}: {ran:?}");
            let plan: Value = serde_json::from_str(&ran.out).unwrap();
            assert_eq!(plan["provider"], provider);
            plans.push(essence(&plan));
        }
        assert!(plans.iter().all(|plan| *plan == plans[0]), "{plans:#?}");
    }
}
