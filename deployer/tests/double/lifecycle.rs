//! The life of a ring in a cloud that works: planned, made, used, changed in size, frozen, stopped and
//! removed, beside things of other people that stay as they are.

use serde_json::{Value, json};

use super::cloud::{OURS, THEIRS};
use super::deploy::Site;
use super::nova;

/// What others have, named so that a careless program would take it for its own.
fn neighbours(site: &Site) {
    let mut state = site.cloud.state();
    let network = state.plant(
        "networks",
        json!({"name": "sky", "description": "", "tags": [],
        "shared": true, "project_id": THEIRS, "router:external": false}),
    );
    state.plant(
        "subnets",
        json!({"name": "sky", "description": "", "tags": [], "network_id": network,
        "cidr": "192.168.0.0/24", "ip_version": 4, "project_id": THEIRS}),
    );
    state.plant(
        "security-groups",
        json!({"name": "sky", "description": "sky.ring=sky", "tags": [],
        "shared": true, "project_id": THEIRS}),
    );
    for (name, description) in
        [("sky-1", "my own sky-1"), ("my-sky-1", "sky.ring=my-sky sky.node=sky-1"), ("sky-2", "")]
    {
        state.plant(
            "ports",
            json!({"name": name, "description": description, "tags": ["sky.ring=sky"],
            "network_id": network, "fixed_ips": [], "device_id": "", "device_owner": "",
            "security_groups": []}),
        );
        state.plant("servers", json!({"name": name, "description": description, "status": "ACTIVE",
            "created": "2020-01-01T00:00:00Z", "metadata": {}, "tags": ["sky.ring=sky"], "hostId": "h"}));
        state.plant(
            "volumes",
            json!({"name": name, "description": description, "size": 1,
            "status": "available", "metadata": {"sky.ring": "sky"}}),
        );
    }
    state.plant(
        "floatingips",
        json!({"description": null, "tags": [], "port_id": null,
        "floating_ip_address": "198.51.100.7", "project_id": OURS}),
    );
    state.plant(
        "keypairs",
        json!({"name": "mine", "public_key": "ssh-ed25519 AAAA my sky.ring=sky2"}),
    );
    state.plant("os-server-groups", json!({"name": "sky", "policy": "affinity", "members": []}));
}

#[test]
fn a_ring_is_planned_made_used_changed_and_removed_beside_other_peoples_things() {
    let mut site = Site::new(3);
    neighbours(&site);
    let before = site.cloud.state().dump();

    let plan = site.run(&["plan"]);
    assert_eq!(plan.code, Some(2), "{plan:?}");
    plan.says(&[
        "+ network          sky",
        "+ subnet           sky",
        "+ router           sky                      to public",
        "+ security group   sky",
        "+ server group     sky.ring=sky             soft anti-affinity",
        "+ key pair         sky",
        "+ port             sky-3",
        "+ server           sky-3                    m1.small of debian-12",
        "quota instances                 3 needed, 3 used no limit",
    ]);
    assert_eq!(site.cloud.mutations(0), Vec::<String>::new(), "a plan changes something");
    assert!(!site.path("state").exists());
    site.fails(&["apply", "--detach"], &["nothing was done", "--yes"]);
    assert_eq!(site.cloud.mutations(0), Vec::<String>::new());

    let made = site.apply();
    assert_eq!(made.code, Some(0), "{made:?}");
    made.says(&["sky-1 created at", "founded the ring sky", "the ring sky is right: 3 nodes"]);
    let from = site.cloud.count();
    let again = site.apply();
    assert_eq!(again.code, Some(0), "{again:?}");
    again.says(&["no changes"]);
    assert_eq!(site.run(&["plan"]).code, Some(0));
    assert_eq!(
        site.cloud.mutations(from),
        Vec::<String>::new(),
        "the second apply changes something"
    );
    assert_eq!(site.run(&["audit"]).code, Some(0));

    site.must(&["kv", "put", "greeting", "hello"]);
    assert_eq!(site.must(&["kv", "get", "greeting"]), "hello");

    // The agents' port is open to the group and to nobody else.
    let state = site.cloud.state();
    let ours = state.of("security-groups", "description", "sky.ring=sky");
    let group = ours.filter(|group| group["project_id"] == OURS).last().unwrap()["id"].clone();
    let rules = state.of("security-group-rules", "security_group_id", group.as_str().unwrap());
    let agent = rules.filter(|rule| rule["port_range_min"] == 4321).collect::<Vec<_>>();
    assert_eq!(agent.len(), 1, "{agent:?}");
    assert_eq!(
        (&agent[0]["remote_group_id"], &agent[0]["remote_ip_prefix"]),
        (&group, &Value::Null)
    );
    drop(state);

    site.nodes = json!(4);
    let grown = site.apply();
    assert_eq!(grown.code, Some(0), "{grown:?}");
    grown.says(&["sky-4 created at", "is right: 4 nodes"]);
    site.nodes = json!(2);
    let shrunk = site.apply();
    assert_eq!(shrunk.code, Some(0), "{shrunk:?}");
    shrunk.says(&["sky-4 drained", "sky-4 removed", "sky-3 removed", "is right: 2 nodes"]);
    assert_eq!(site.must(&["kv", "get", "greeting"]), "hello");
    assert_eq!(site.run(&["audit"]).code, Some(0));

    site.must(&["pause", "sky-1"]);
    site.must(&["pause", "sky-1"]);
    assert_eq!(site.json(&["status"])["nodes"][0]["state"], "paused");
    site.must(&["unpause", "sky-1"]);
    site.must(&["stop", "sky-2"]);
    assert_eq!(site.json(&["status"])["nodes"][1]["state"], "down");
    let started = site.apply();
    assert_eq!(started.code, Some(0), "{started:?}");
    assert_eq!(site.must(&["kv", "get", "greeting"]), "hello");

    let gone = site.run(&["destroy", "--yes"]);
    assert_eq!(gone.code, Some(0), "{gone:?}");
    gone.says(&["nothing is left of the ring sky"]);
    assert_eq!(site.cloud.state().dump(), before);
    assert!(!site.home().exists());
    site.run(&["destroy", "--yes"]).says(&["there is no ring sky"]);
}

#[test]
fn two_rings_of_one_project_do_not_touch_each_other() {
    let mut site = Site::new(1);
    assert_eq!(site.apply().code, Some(0));
    let first = site.cloud.state().dump();
    site.ring = "sky2".to_owned();
    site.openstack["cidr"] = json!(site.cloud.cidr().replace(".0/24", ".128/25"));
    let made = site.apply();
    assert_eq!(made.code, Some(0), "{made:?}");
    assert_eq!(site.cloud.state().of("servers", "project_id", OURS).count(), 2);
    site.must(&["destroy", "--yes"]);
    assert_eq!(site.cloud.state().dump(), first);
    site.ring = "sky".to_owned();
    assert_eq!(site.json(&["status"])["right"], true);
    site.must(&["destroy", "--yes"]);
}

#[test]
fn a_ring_whose_folder_is_lost_is_removed_by_its_marks() {
    let site = Site::new(2).with(json!({"data_volume_gb": 1}));
    let before = site.cloud.state().dump();
    assert_eq!(site.apply().code, Some(0));
    std::fs::remove_dir_all(site.path("state")).unwrap();
    // What is made here would not fit to what is there.
    let from = site.cloud.count();
    for command in [
        &["apply", "--detach", "--yes"][..],
        &["plan"],
        &["add", "--yes"],
        &["start", "sky-1"],
        &["restart", "sky-1"],
        &["upgrade", "--yes"],
    ] {
        site.fails(command, &["the ring sky is there", "`sky-deploy adopt`", "`ring.name`"]);
    }
    assert_eq!(site.cloud.mutations(from), Vec::<String>::new());
    assert!(["secret", "token", "ring.json"].iter().all(|name| !site.home().join(name).exists()));
    assert_eq!(site.json(&["status"])["nodes"].as_array().unwrap().len(), 2);
    site.fails(
        &["adopt"],
        &["no node of sky tells its secrets", "`sky-deploy destroy` still works"],
    );
    site.must(&["destroy", "--yes"]);
    assert_eq!(site.cloud.state().dump(), before);
}

#[test]
fn an_audit_lists_what_nobody_uses() {
    let site = Site::new(1);
    assert_eq!(site.apply().code, Some(0));
    let server = {
        let mut state = site.cloud.state();
        let mut server = state.all("servers")[0].clone();
        server["id"] = Value::Null;
        server["created"] = json!("2027-01-01T00:00:00Z");
        server["_port"] = json!("");
        state.plant(
            "floatingips",
            json!({"description": "sky.ring=sky", "tags": [], "port_id": null,
            "floating_ip_address": "198.51.100.9"}),
        );
        let port = json!({"name": "sky-9", "tags": [], "network_id": "n", "fixed_ips": [],
            "device_id": "", "device_owner": "", "security_groups": [],
            "description": "sky.ring=sky sky.node=sky-9 sky.id=09 sky.port=4321"});
        state.plant("ports", port);
        state.plant("servers", server)
    };
    let audit = site.run(&["audit"]);
    assert_eq!(audit.code, Some(1), "{audit:?}");
    audit.says(&[
        "its node has another server",
        &server,
        "198.51.100.9",
        "no node uses it",
        "its node has no server",
    ]);
    assert_eq!(site.json(&["audit"]).as_array().unwrap().len(), 3);
    nova::remove(&mut site.cloud.state(), &server, false);
    site.must(&["destroy", "--yes"]);
    assert_eq!(site.cloud.state().used("floatingips"), 0);
}
