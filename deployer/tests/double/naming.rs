//! What is said before anything is made: credentials, the catalog, names that fit nothing or too much,
//! and what does not fit together.

use std::time::Duration;

use serde_json::{Value, json};

use super::cloud::{OURS, State, THEIRS};
use super::deploy::Site;
use super::faults::{self, Rule, When};
use super::keystone::{CREDENTIAL, PASSWORD};
use super::neutron;

/// A plan of two nodes in a cloud that was changed, with other settings, fails with these words.
fn refused(settings: Value, change: impl Fn(&mut State), words: &[&str]) {
    let site = Site::new(2).with(settings);
    change(&mut site.cloud.state());
    site.fails(&["plan"], words);
    assert_eq!(site.cloud.mutations(0), Vec::<String>::new(), "a plan changes something");
}

fn as_it_is(_: &mut State) {}

fn subnet(state: &mut State, network: &str, cidr: &str) -> String {
    let subnet = json!({"name": cidr, "description": "", "tags": [], "network_id": network,
        "cidr": cidr, "ip_version": 4, "gateway_ip": null});
    state.plant("subnets", subnet)
}

fn network(state: &mut State, name: &str, cidrs: &[&str]) -> String {
    let network = json!({"name": name, "description": "", "tags": [], "router:external": false,
        "shared": false});
    let network = state.plant("networks", network);
    cidrs.iter().for_each(|cidr| drop(subnet(state, &network, cidr)));
    network
}

#[test]
fn names_that_fit_nothing_or_several_things_list_what_fits() {
    refused(
        json!({"image": "debian"}),
        as_it_is,
        &["there is no image debian", "debian-12, debian-12-gpu"],
    );
    refused(json!({"flavor": "m1.smal."}), as_it_is, &["there is no flavor m1.smal.", "m1.small"]);
    refused(
        json!({"image": "twin"}),
        |state| {
            for made in ["2024-01-02T00:00:00Z", "2025-03-04T00:00:00Z"] {
                state.plant(
                    "images",
                    json!({"name": "twin", "status": "active", "created_at": made,
                    "min_disk": 1, "min_ram": 1}),
                );
            }
        },
        &["2 things are called twin", "2024-01-02", "2025-03-04", "write the id"],
    );
    refused(
        json!({"image": "unfinished"}),
        as_it_is,
        &["the image unfinished is queued, not active"],
    );
    refused(
        json!({"network": "twin"}),
        |state| {
            network(state, "twin", &["10.1.0.0/24"]);
            network(state, "twin", &["10.2.0.0/24"]);
        },
        &["2 things are called twin, and one network is needed", "write the id"],
    );
    refused(
        json!({"network": "mine"}),
        |state| drop(network(state, "mine", &["10.1.0.0/24", "10.2.0.0/24"])),
        &[
            "the network mine has 2 IPv4 subnets",
            "10.1.0.0/24",
            "name one of them at `openstack.subnet`",
        ],
    );
    refused(json!({"keypair": "me"}), as_it_is, &["there is no key pair me"]);
    refused(
        json!({"availability_zones": ["closed", "left"]}),
        as_it_is,
        &["there is no availability zone closed", "nova, left, right"],
    );
    // All problems together.
    refused(
        json!({"image": "a", "flavor": "b", "security_group": "c", "router": "d"}),
        as_it_is,
        &["no image a", "no flavor b", "no security group c", "no router d"],
    );
}

#[test]
fn the_way_out_is_checked_before_floating_ips_are_asked_for() {
    let one = json!({"floating_ips": "one"});
    refused(
        one.clone(),
        |state| {
            neutron::external(state, "other");
        },
        &["the cloud has 2 external networks", "public", "other", "`openstack.external_network`"],
    );
    refused(
        one,
        |state| {
            let public = state.all("networks")[0]["id"].as_str().unwrap().to_owned();
            state.remove("networks", &public);
        },
        &["no external network for floating IPs", "floating_ips: none"],
    );
    refused(
        json!({"floating_ips": "one", "router": "blind"}),
        |state| {
            state.plant(
                "routers",
                json!({"name": "blind", "description": "", "tags": [],
                "external_gateway_info": null}),
            );
        },
        &["the router blind has no gateway to the external network public"],
    );
}

#[test]
fn what_does_not_fit_is_said_with_its_numbers() {
    refused(
        json!({"image": "huge"}),
        as_it_is,
        &[
            "the image huge needs a disk of 500 GiB, and the servers have 20 GiB",
            "needs 65536 MiB of memory, and the flavor m1.small has 2048 MiB",
            "choose a larger flavor",
        ],
    );
    let volumes = json!({"data_volume_gb": 10, "floating_ips": "all"});
    for (limit, most, words) in [
        ("instances", 1, "the quota of instances is too small: 2 needed, 0 of 1 used"),
        ("cores", 1, "the quota of cores is too small: 2 needed"),
        ("ram", 4000, "the quota of RAM (MiB) is too small: 4096 needed"),
        ("server_groups", 0, "the quota of server groups is too small: 1 needed"),
        ("server_group_members", 1, "the quota of server group members is too small: 2 needed"),
        ("key_pairs", 0, "the quota of key pairs is too small: 1 needed"),
        ("network", 0, "the quota of networks is too small: 1 needed"),
        ("subnet", 0, "the quota of subnets is too small: 1 needed"),
        ("router", 0, "the quota of routers is too small: 1 needed"),
        ("security_group", 1, "the quota of security groups is too small: 1 needed, 1 of 1 used"),
        ("security_group_rule", 3, "the quota of security group rules is too small"),
        ("floatingip", 1, "the quota of floating IPs is too small: 2 needed"),
        ("volumes", 1, "the quota of volumes is too small: 2 needed"),
        ("gigabytes", 19, "the quota of volume gigabytes is too small: 20 needed"),
    ] {
        let change = |state: &mut State| state.restrict(limit, most);
        let way = match limit {
            "server_group_members" => "or set `openstack.anti_affinity: none`",
            _ => "or plan fewer or smaller nodes",
        };
        refused(volumes.clone(), change, &[words, &format!("ask for a larger quota, {way}")]);
    }
    refused(
        json!({"data_volume_gb": 10}),
        |state| state.catalog = |services| services.retain(|one| one["type"] != "block-storage"),
        &["the cloud has no volume service", "`openstack.data_volume_gb`"],
    );
}

/// A plan counts all that it takes: with exactly that, the ring can be made.
#[test]
fn a_ring_fits_into_exactly_the_quotas_of_its_plan() {
    let site = Site::new(2).with(json!({"data_volume_gb": 1, "floating_ips": "all",
        "allow_from": ["127.0.0.0/8"]}));
    let names = [
        ("instances", "instances"),
        ("cores", "cores"),
        ("RAM (MiB)", "ram"),
        ("server groups", "server_groups"),
        ("networks", "network"),
        ("subnets", "subnet"),
        ("routers", "router"),
        ("ports", "port"),
        ("security groups", "security_group"),
        ("security group rules", "security_group_rule"),
        ("floating IPs", "floatingip"),
        ("volumes", "volumes"),
        ("volume gigabytes", "gigabytes"),
    ];
    for quota in site.json(&["plan"])["quotas"].as_array().unwrap() {
        let name = names.iter().find(|(name, _)| quota["what"] == *name);
        let Some((_, name)) = name else { continue };
        let all = quota["need"].as_i64().unwrap() + quota["used"].as_i64().unwrap();
        site.cloud.state().limits.insert(name, all);
    }
    let made = site.apply();
    assert_eq!(made.code, Some(0), "{made:?}");
    site.must(&["destroy", "--yes"]);
}

#[test]
fn credentials_are_taken_from_where_they_are_and_refused_by_name() {
    let site = Site::new(1);
    let url = format!("http://{}/identity", site.cloud.address);
    let clouds = json!({"clouds": {
        "robot": {"auth_type": "v3applicationcredential", "auth": {"auth_url": url,
            "application_credential_id": CREDENTIAL.0, "application_credential_secret": CREDENTIAL.1}},
        "named": {"auth_type": "v3applicationcredential", "auth": {"auth_url": url, "username": "me",
            "user_domain_name": "Default", "application_credential_name": "robot",
            "application_credential_secret": CREDENTIAL.1}},
        "domains": {"auth": {"auth_url": format!("{url}/v3/"), "username": "me", "password": PASSWORD,
            "project_name": "mine", "user_domain_name": "Default", "project_domain_name": "Default"}},
        "wrong": {"auth": {"auth_url": url, "username": "me", "password": "guess",
            "project_name": "mine"}},
        "homeless": {"auth": {"auth_url": url, "username": "me", "password": PASSWORD}},
        "elsewhere": {"region_name": "Nowhere", "auth": {"auth_url": url, "username": "me",
            "password": PASSWORD, "project_name": "mine"}},
        "nobody": {"auth": {"auth_url": "http://127.0.0.1:1", "username": "me", "password": PASSWORD,
            "project_name": "mine"}},
    }});
    std::fs::write(site.path("clouds.yaml"), clouds.to_string()).unwrap();
    let run = |name: &str, arguments: &[&str]| {
        let mut command = site.command(arguments);
        command.env("OS_CLOUD", name).env_remove("OS_AUTH_URL").env_remove("OS_REGION_NAME");
        site.watch(command.spawn().unwrap())
    };
    for good in ["robot", "named", "domains"] {
        let ran = run(good, &["plan"]);
        assert_eq!(ran.code, Some(2), "{good}: {ran:?}");
        ran.says(&[]);
    }
    for (bad, words) in [
        ("wrong", &["cannot log in to the cloud wrong of clouds.yaml", "check user, password"][..]),
        (
            "homeless",
            &["the cloud homeless of clouds.yaml has neither project_name nor project_id"],
        ),
        ("elsewhere", &["is not in the region Nowhere, only in RegionOne", "check `region_name`"]),
        ("nobody", &["Keystone does not answer at http://127.0.0.1:1/v3", "check auth_url"]),
        ("other", &["clouds.yaml has no cloud other", "robot"]),
    ] {
        for arguments in [&["plan"][..], &["destroy", "--yes"]] {
            let ran = run(bad, arguments);
            assert_eq!(ran.code, Some(1), "{bad}: {ran:?}");
            ran.says(words);
        }
    }
    let mut bare = site.command(&["plan"]);
    bare.env_remove("OS_AUTH_URL");
    site.watch(bare.spawn().unwrap()).says(&["nothing says which cloud", "OS_CLOUD"]);
}

#[test]
fn a_service_that_cannot_be_reached_is_named_with_its_url() {
    refused(
        json!({}),
        |state| {
            state.catalog = |services| {
                for service in services.iter_mut().filter(|one| one["type"] == "network") {
                    service["endpoints"][1]["url"] = json!("http://127.0.0.1:1/");
                }
            };
        },
        &["of network", "http://127.0.0.1:1/v2.0", "public", "`interface`"],
    );
    // Catalogs hold what nobody can understand.
    let site = Site::new(1);
    site.cloud.state().catalog = |services| {
        services.insert(0, json!({"type": null, "endpoints": 5}));
        for service in services.iter_mut().skip(1) {
            let endpoints = service["endpoints"].as_array_mut().unwrap();
            endpoints.insert(0, json!({"interface": "public", "region": null, "url": null}));
            endpoints[2]["region"] = Value::Null;
            endpoints[2]["region_id"] = Value::Null;
        }
    };
    assert_eq!(site.run(&["plan"]).code, Some(2));
}

#[test]
fn odd_items_and_small_pages_hide_nothing() {
    let site = Site::new(2);
    {
        let mut state = site.cloud.state();
        state.page = 1;
        state.inner_links = true;
        state.plant("ports", json!({"name": null, "description": null, "fixed_ips": "none"}));
        state.plant("ports", json!({"name": null, "status": "N/A", "fixed_ips": []}));
        state.plant(
            "servers",
            json!({"name": "odd", "description": null, "status": "MIGRATING",
            "metadata": {}, "created": null}),
        );
        state.plant("networks", json!({"name": null, "project_id": THEIRS, "shared": true}));
        state.plant("images", json!({"name": null, "status": "active", "size": null}));
        state.plant("floatingips", json!({"description": null, "floating_ip_address": null}));
    }
    let before = site.cloud.state().dump();
    let made = site.apply();
    assert_eq!(made.code, Some(0), "{made:?}");
    let from = site.cloud.count();
    assert_eq!(site.apply().code, Some(0));
    assert_eq!(site.cloud.mutations(from), Vec::<String>::new());
    site.must(&["destroy", "--yes"]);
    assert_eq!(site.cloud.state().dump(), before);
}

#[test]
fn tokens_are_renewed_when_they_expire_or_are_revoked() {
    let site = Site::new(1);
    site.cloud.state().token_life = Duration::from_secs(60);
    for (method, end) in [
        ("GET", "/servers/detail"),
        ("GET", "/v2/images"),
        ("POST", "/networks"),
        ("POST", "/os-keypairs"),
        ("POST", "/os-server-groups"),
        ("POST", "/servers"),
    ] {
        let revoke = |state: &mut State| state.revoked.extend(state.tokens.clone());
        site.cloud.rule(Rule::on(When::Before, method, end, faults::Effect::Change(revoke)));
    }
    let made = site.apply();
    assert_eq!(made.code, Some(0), "{made:?}");
    made.says(&[]);
    let logins = |site: &Site| {
        let state = site.cloud.state();
        state.calls.iter().filter(|call| call.path.ends_with("/auth/tokens")).count()
    };
    let before = logins(&site);
    assert!((7..=8).contains(&before), "{before} logins for six revocations");
    assert_eq!(site.cloud.state().used("servers"), 1);
    // A token that is short-lived is used all the same.
    assert_eq!(site.run(&["plan"]).code, Some(0));
    assert_eq!(logins(&site), before + 1);
    site.must(&["destroy", "--yes"]);
    assert_eq!(site.cloud.state().of("servers", "project_id", OURS).count(), 0);
}

/// Somebody may know better than the quotas of a cloud.
#[test]
fn who_knows_better_skips_the_preflight() {
    let site = Site::new(2);
    site.cloud.state().restrict("instances", 1);
    site.fails(&["plan"], &["the quota of instances is too small: 2 needed"]);
    let plan = site.run(&["plan", "--skip-preflight"]);
    assert_eq!(plan.code, Some(2), "{plan:?}");
    plan.says(&["warning: the quota of instances is too small: 2 needed"]);
}

/// A network of ours that the inventory names must have a router to where floating IPs come from. What
/// another project keeps to itself is not doubted.
#[test]
fn a_named_network_needs_a_way_to_its_floating_ips() {
    let settings =
        json!({"network": "named", "floating_ips": "all", "allow_from": ["127.0.0.0/8"]});
    let words = ["no router leads from the network named to the external network public"];
    refused(settings.clone(), |state| drop(network(state, "named", &["127.1.1.0/24"])), &words);
    let site = Site::new(2).with(settings);
    {
        let mut state = site.cloud.state();
        let id = network(&mut state, "named", &["127.1.1.0/24"]);
        let network = state.find_mut("networks", &id).unwrap();
        network["project_id"] = json!(THEIRS);
        network["shared"] = json!(true);
    }
    let plan = site.run(&["plan"]);
    assert_eq!(plan.code, Some(2), "{plan:?}");
}
