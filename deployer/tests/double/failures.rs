//! What goes wrong while a ring is made or removed: what is said, what is left, and that the same
//! command goes on.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::cloud::State;
use super::deploy::{Ran, Site};
use super::faults::{self, Effect, Rule, When, broken, later};
use super::sweep::{portrait, same};

const APPLY: &[&str] = &["apply", "--detach", "--yes"];
const DESTROY: &[&str] = &["destroy", "--yes"];
/// Everything that is made, by the end of the path that makes it.
const COLLECTIONS: &[&str] = &[
    "/networks",
    "/subnets",
    "/routers",
    "/security-groups",
    "/security-group-rules",
    "/os-server-groups",
    "/os-keypairs",
    "/ports",
    "/floatingips",
    "/volumes",
    "/servers",
];

/// A ring with all there can be.
fn rich(nodes: usize) -> Site {
    Site::new(nodes).with(json!({"floating_ips": "all", "allow_from": ["127.0.0.0/8"],
        "data_volume_gb": 1}))
}

fn done(ran: &Ran) {
    assert_eq!(ran.code, Some(0), "{ran:?}");
    ran.says(&[]);
}

/// The same ring in a cloud where nothing goes wrong.
fn undisturbed(like: &Site) -> Vec<String> {
    let mut site = Site::new(0);
    site.nodes = like.nodes.clone();
    let cidr = site.openstack["cidr"].take();
    site.openstack = like.openstack.clone();
    site.openstack["cidr"] = cidr;
    done(&site.apply());
    portrait(&site.cloud.state())
}

/// Whatever is made is made once, although each first answer is lost.
fn each_first_answer(effect: fn() -> Effect) {
    let site = rich(2);
    let empty = portrait(&site.cloud.state());
    for end in COLLECTIONS {
        site.cloud.rule(Rule::on(When::After, "POST", end, effect()));
    }
    for end in ["/add_router_interface", "/tags/sky.ring=sky"] {
        site.cloud.rule(Rule::on(When::After, "PUT", end, effect()));
    }
    done(&site.apply());
    same(&portrait(&site.cloud.state()), &undisturbed(&site), "lost answers");
    let deletes = |call: &super::http::Call| call.method == "DELETE";
    site.cloud.rule(Rule::new(When::After, deletes, effect()).times(1));
    site.cloud.rule(Rule::on(When::After, "PUT", "/remove_router_interface", effect()));
    done(&site.run(DESTROY));
    same(&portrait(&site.cloud.state()), &empty, "lost answers");
}

#[test]
fn nothing_is_made_twice_when_connections_end_without_an_answer() {
    each_first_answer(|| Effect::HangUp);
}

#[test]
fn nothing_is_made_twice_when_a_proxy_answers_instead() {
    each_first_answer(|| broken(502));
}

#[test]
fn nothing_is_made_twice_when_a_service_fails_after_its_work() {
    each_first_answer(|| faults::nova(500, "computeFault", "Unexpected API Error."));
}

#[test]
fn what_was_not_made_and_not_answered_is_said_and_made_by_the_next_run() {
    for end in ["/ports", "/os-keypairs"] {
        let site = Site::new(1);
        site.cloud.rule(Rule::on(When::Before, "POST", end, Effect::HangUp));
        let ran = site.apply();
        if ran.code != Some(0) {
            ran.says(&["was not answered", "the same command again"]);
            done(&site.apply());
        }
        done(&site.run(DESTROY));
    }
}

#[test]
fn services_that_are_asked_too_much_are_waited_for() {
    let site = Site::new(1);
    for (status, end, times) in
        [(429, "/networks", 4), (503, "/ports", 2), (429, "/servers", 1), (429, "/os-keypairs", 2)]
    {
        site.cloud.rule(Rule::on(When::Before, "POST", end, later(status, "0")).times(times));
    }
    let asks = |call: &super::http::Call| call.method == "GET";
    site.cloud.rule(Rule::new(When::Before, asks, later(429, "0")).times(3));
    let begun = Instant::now();
    done(&site.apply());
    // "At once" is said by services that are asked too much, too: the pauses grow all the same.
    assert!(begun.elapsed() > Duration::from_secs(7), "{:?}", begun.elapsed());
    site.cloud.rule(Rule::on(When::Before, "GET", "/networks", later(429, "500")));
    site.fails(&["status"], &["GET /networks of network was answered 429", "the service is busy"]);
    done(&site.run(DESTROY));
}

/// Fails with one server, which must be told whole; and then goes on.
fn goes_on(site: &Site, words: &[&str]) {
    let wanted = undisturbed(site);
    site.fails(APPLY, words);
    site.cloud.state().rules.clear();
    site.cloud.state().fate = Box::new(|_| None);
    done(&site.apply());
    same(&portrait(&site.cloud.state()), &wanted, "after a failure");
    done(&site.run(DESTROY));
}

#[test]
fn a_quota_that_is_used_up_half_way_stops_nothing_that_is_under_way() {
    let message = "Quota exceeded for instances: Requested 1, but already used 10 of 10 instances";
    let site = Site::new(2);
    let full = || faults::nova(403, "forbidden", message);
    site.cloud.rule(Rule::on(When::Before, "POST", "/servers", full()));
    goes_on(
        &site,
        &["the server of sky-", message, "ask for a larger quota", "goes on from there"],
    );

    let site = Site::new(3);
    let full = || faults::neutron(409, "OverQuota", "Quota exceeded for resources: ['port'].");
    site.cloud.rule(Rule::on(When::Before, "POST", "/ports", full()).after(1).times(2));
    goes_on(&site, &["['port']", "ports", "ask for a larger quota"]);

    // Neutron tells no numbers, so they are asked for.
    let mut site = Site::new(3);
    let shrink = |state: &mut State| state.restrict("port", 3);
    site.cloud.rule(Rule::on(When::Before, "POST", "/security-groups", Effect::Change(shrink)));
    let short = site.fails(APPLY, &["['port']", "the quota of ports is too small:"]);
    assert!(short.err.contains("3 of 3 used"), "{short:?}");
    assert_eq!(site.cloud.state().of("ports", "device_owner", "").count(), 1);
    site.nodes = json!(1);
    site.cloud.state().limits.clear();
    done(&site.apply());
    done(&site.run(DESTROY));

    let site = rich(2);
    let message =
        "VolumeLimitExceeded: Maximum number of volumes allowed (1) exceeded for quota 'volumes'.";
    site.cloud.rule(Rule::on(
        When::Before,
        "POST",
        "/volumes",
        faults::nova(413, "overLimit", message),
    ));
    goes_on(&site, &["exceeded for quota 'volumes'", "ask for a larger quota"]);
}

#[test]
fn the_floating_ip_of_another_node_is_not_taken_for_one_that_was_not_made() {
    let site = rich(2);
    site.cloud.rule(Rule::on(When::Before, "POST", "/floatingips", broken(502)).after(1));
    goes_on(&site, &["POST /floatingips of network was answered 502"]);
}

fn no_room(server: &Value) -> Option<String> {
    (server["OS-EXT-AZ:availability_zone"] == "left")
        .then(|| "No valid host was found. There are not enough hosts available.".to_owned())
}

#[test]
fn a_zone_without_room_is_passed_over_and_its_broken_server_removed() {
    for ports_go in [false, true] {
        let site = Site::new(2).with(json!({"availability_zones": ["left", "right"]}));
        site.cloud.state().fate = Box::new(no_room);
        site.cloud.state().ports_go_with_servers = ports_go;
        let made = site.apply();
        done(&made);
        made.says(&["the zone has no room", "runs on server", "in right"]);
        let state = site.cloud.state();
        let zones: Vec<&Value> = state
            .all("servers")
            .iter()
            .map(|server| &server["OS-EXT-AZ:availability_zone"])
            .collect();
        assert_eq!(zones, ["right", "right"]);
        drop(state);
        assert_eq!(site.run(&["audit"]).code, Some(0));
        site.cloud.state().ports_go_with_servers = false;
        done(&site.run(DESTROY));
    }
}

#[test]
fn a_broken_server_is_described_and_made_anew_by_the_next_run() {
    let quota = "Quota exceeded for cores: Requested 1, but already used 20 of 20 cores";
    for (message, hint) in [
        ("No valid host was found.", "the cloud has no hypervisor with room"),
        (quota, "a quota is used up"),
        ("Binding failed for port 1, please check neutron logs for more information.", "anew"),
    ] {
        let site = Site::new(1).with(json!({"availability_zones": ["left"]}));
        site.cloud.state().fate = Box::new(move |_| Some(message.to_owned()));
        site.fails(
            APPLY,
            &[
                "the server of sky-1 is ERROR",
                message,
                hint,
                "flavor m1.small",
                "image debian-12",
                "zone left",
                "code 500",
                "request req-create-0",
                "Kernel panic",
            ],
        );
        let audit = site.run(&["audit"]);
        assert_eq!(audit.code, Some(1), "{audit:?}");
        audit.says(&["it is in ERROR"]);
        site.cloud.state().fate = Box::new(|_| None);
        done(&site.apply());
        assert_eq!(site.cloud.state().used("servers"), 1);
        assert_eq!(site.run(&["audit"]).code, Some(0));
        done(&site.run(DESTROY));
    }
}

#[test]
fn servers_that_take_long_and_deletions_that_wait_come_to_an_end() {
    let site = Site::new(2);
    let before = site.cloud.state().dump();
    site.cloud.state().looks_to_build = 2;
    done(&site.apply());
    site.cloud.state().soft_delete = true;
    for (end, kind) in [
        ("/subnets/", "SubnetInUse"),
        ("/networks/", "NetworkInUse"),
        ("/ports/", "PortInUse"),
        ("/routers/", "RouterInUse"),
        ("/security-groups/", "SecurityGroupInUse"),
    ] {
        let applies =
            move |call: &super::http::Call| call.method == "DELETE" && call.path.contains(end);
        let busy = faults::neutron(409, kind, "still in use");
        site.cloud.rule(Rule::new(When::Before, applies, busy).times(3));
    }
    done(&site.run(DESTROY));
    assert_eq!(site.cloud.state().dump(), before);

    // Who may not force a deletion has deleted the server all the same.
    done(&site.apply());
    let forbidden =
        || faults::nova(403, "forbidden", "Policy doesn't allow os_compute_api:os-deferred-delete");
    let forces = |call: &super::http::Call| call.body.get("forceDelete").is_some();
    site.cloud.rule(Rule::new(When::Before, forces, forbidden()).times(9));
    let kept = site.run(DESTROY);
    let state = site.cloud.state();
    assert!(state.all("servers").iter().all(|server| server["status"] == "SOFT_DELETED"));
    assert_eq!(kept.code, Some(0), "{kept:?}");
    assert!(state.all("networks").iter().all(|network| network["name"] != "sky"), "{kept:?}");
}

#[test]
fn what_policy_forbids_is_said_with_another_way() {
    let site = Site::new(1);
    let message = "Policy doesn't allow os_compute_api:os-server-groups:create to be performed.";
    site.cloud.rule(Rule::on(
        When::Before,
        "POST",
        "/os-server-groups",
        faults::nova(403, "forbidden", message),
    ));
    site.fails(APPLY, &[message, "request req-", "openstack.anti_affinity: none"]);
    done(&site.run(DESTROY));

    let site = rich(1);
    let message = "rule:create_floatingip is disallowed by policy";
    site.cloud.rule(Rule::on(
        When::Before,
        "POST",
        "/floatingips",
        faults::neutron(403, "PolicyNotAuthorized", message),
    ));
    site.fails(APPLY, &[message, "the cloud's policy forbids this"]);
    done(&site.run(DESTROY));
}

#[test]
fn a_pool_without_floating_ips_is_named() {
    let site = rich(1);
    let message = "No more IP addresses available on network 1234.";
    let empty = faults::neutron(409, "IpAddressGenerationFailure", message);
    site.cloud.rule(Rule::on(When::Before, "POST", "/floatingips", empty));
    site.fails(APPLY, &[message, "the network public has no address left"]);
    assert_eq!(site.cloud.state().used("floatingips"), 0);
    done(&site.apply());
    assert_eq!(site.cloud.state().used("floatingips"), 1);
    done(&site.run(DESTROY));
}

#[test]
fn a_refusal_that_repeats_the_request_tells_no_secret() {
    let site = Site::new(1);
    let repeats =
        |call: &super::http::Call| call.method == "POST" && call.path.ends_with("/servers");
    site.cloud.rule(Rule::new(When::Before, repeats, Effect::Repeat));
    let ran = site.fails(APPLY, &["the server of sky-1 is not made", "400", "(left out)"]);
    let state = site.cloud.state();
    let sent = state.calls.iter().rev().find(|call| repeats(call)).unwrap();
    let user_data = sent.body["server"]["user_data"].as_str().unwrap();
    assert!(!ran.err.contains(&user_data[..60]) && ran.err.len() < 4000, "{}", ran.err);
    drop(state);
    done(&site.run(DESTROY));
}

#[test]
fn copies_on_one_hypervisor_are_said() {
    let site = Site::new(2);
    site.cloud.state().hypervisors = 1;
    let made = site.apply();
    done(&made);
    made.says(&["keep copies of the same keys and are on one hypervisor"]);
    done(&site.run(DESTROY));
}

#[test]
fn an_interrupted_apply_says_how_to_go_on_and_does() {
    for end in ["/subnets", "/ports", "/servers"] {
        let site = Site::new(2);
        let wanted = undisturbed(&site);
        site.cloud.rule(Rule::on(When::Before, "POST", end, Effect::Interrupt));
        site.fails(APPLY, &["interrupted", "the same command again goes on from there"]);
        done(&site.apply());
        same(&portrait(&site.cloud.state()), &wanted, end);
        done(&site.run(DESTROY));
    }
}

#[test]
fn a_floating_ip_waits_for_its_router_and_a_lone_one_goes_over() {
    let mut site = rich(2);
    let message = "External network is not reachable from subnet.";
    let early = faults::neutron(404, "ExternalGatewayForFloatingIPNotFound", message);
    site.cloud.rule(Rule::on(When::Before, "POST", "/floatingips", early));
    done(&site.apply());
    assert_eq!(site.cloud.state().used("floatingips"), 2);
    site.nodes = json!(1);
    let shrinks = site.run(&["plan"]);
    shrinks.says(&["- sky-2", "drain, then delete with its data"]);
    done(&site.apply());
    assert_eq!(site.cloud.state().used("floatingips"), 1);
    done(&site.run(DESTROY));
}

#[test]
fn a_destroy_goes_on_with_the_rest_and_lists_what_is_left() {
    let site = rich(2);
    done(&site.apply());
    let plant = |state: &mut State| {
        let subnet = state.of("subnets", "name", "sky").next().unwrap().clone();
        state.plant(
            "ports",
            json!({"name": "printer", "description": "", "tags": [],
            "network_id": subnet["network_id"], "device_id": "", "device_owner": "",
            "security_groups": [],
            "fixed_ips": [{"subnet_id": subnet["id"], "ip_address": "127.0.0.99"}]}),
        )
    };
    let foreign = plant(&mut site.cloud.state());
    // One volume cannot be deleted either.
    let volume = site.cloud.state().all("volumes")[0]["id"].as_str().unwrap().to_owned();
    let stuck = faults::nova(400, "badRequest", "Invalid volume: Volume status must be available");
    site.cloud.rule(Rule::on(When::Before, "DELETE", &format!("volumes/{volume}"), stuck).times(9));
    site.fails(
        DESTROY,
        &[
            "cannot remove the volume",
            "Volume status must be available",
            "cannot remove the subnet sky",
            "cannot remove the network sky",
            &foreign,
            "(printer) of somebody else is in the network sky",
            "remove what is in the way",
        ],
    );
    let state = site.cloud.state();
    let left: Vec<&str> = ["servers", "floatingips", "routers", "os-server-groups", "keypairs"]
        .into_iter()
        .filter(|kind| state.used(kind) > 0)
        .collect();
    assert_eq!((left, state.used("volumes"), state.used("security-groups")), (vec![], 1, 1));
    drop(state);
    assert!(site.home().exists(), "what is left could not be removed any more");
    site.cloud.state().remove("ports", &foreign);
    site.cloud.state().rules.clear();
    done(&site.run(DESTROY));
    assert_eq!(site.cloud.state().used("volumes"), 0);
}
