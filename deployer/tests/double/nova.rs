//! Nova at microversion 2.67: servers, server groups, key pairs, flavors, zones and limits.

use serde_json::{Value, json};

use super::cloud::{OURS, State, THEIRS};
use super::guests::Boot;
use super::http::{Answer, Call};
use super::neutron;

/// What may be said of a new server.
const SERVER_KEYS: &[&str] = &[
    "name",
    "description",
    "flavorRef",
    "imageRef",
    "networks",
    "key_name",
    "user_data",
    "config_drive",
    "metadata",
    "tags",
    "availability_zone",
    "block_device_mapping_v2",
];
/// The most of user-data, in bytes of base64.
const USER_DATA_LIMIT: usize = 65_535;

/// An error in Nova's form.
pub(crate) fn fault(status: u16, kind: &str, message: &str) -> Answer {
    Answer::new(status, json!({kind: {"code": status, "message": message}}))
}

fn bad(message: &str) -> Answer {
    fault(400, "badRequest", message)
}

fn missing(what: &str, id: &str) -> Answer {
    fault(404, "itemNotFound", &format!("{what} {id} could not be found."))
}

pub(crate) fn furnish(state: &mut State) {
    for (name, vcpus, ram, disk) in
        [("m1.tiny", 1, 256, 1), ("m1.small", 1, 2048, 20), ("m1.small.gpu", 2, 4096, 40)]
    {
        state.plant(
            "flavors",
            json!({"name": name, "vcpus": vcpus, "ram": ram, "disk": disk, "project_id": THEIRS}),
        );
    }
    for (name, up) in [("nova", true), ("left", true), ("right", true), ("closed", false)] {
        state.plant("zones", json!({"zoneName": name, "zoneState": {"available": up}}));
    }
}

pub(crate) fn route(state: &mut State, call: &Call, path: &str) -> Answer {
    let parts: Vec<&str> = path.split('/').collect();
    let typed = call.header("x-openstack-nova-api-version") == Some("2.67");
    match (call.method.as_str(), parts.as_slice()) {
        ("GET", [""]) => {
            // The name by which many a service knows itself is of no use outside.
            let host = state.address.to_string();
            let host = if state.inner_links { "127.0.0.1:1" } else { &host };
            let links = json!([{"rel": "self", "href": format!("http://{host}/compute/v2.1/")}]);
            Answer::new(
                200,
                json!({"version": {"id": "v2.1", "status": "CURRENT", "version": "2.90",
                "min_version": "2.1", "updated": "2013-07-23T11:33:21Z", "links": links}}),
            )
        }
        ("GET", ["limits"]) => limits(state),
        ("GET", ["flavors", "detail"]) => {
            state.pages(call, "flavors", state.all("flavors").to_vec(), "flavors_links")
        }
        ("GET", ["os-availability-zone"]) => {
            Answer::new(200, json!({"availabilityZoneInfo": state.all("zones")}))
        }
        ("GET", ["os-keypairs"]) => {
            let ours = state.of("keypairs", "project_id", OURS);
            let pairs = ours.map(|pair| json!({"keypair": pair})).collect();
            state.pages(call, "keypairs", pairs, "keypairs_links")
        }
        ("POST", ["os-keypairs"]) => keypair(state, &call.body["keypair"]),
        ("DELETE", ["os-keypairs", name]) => {
            let pair = state.of("keypairs", "name", name).find(|pair| pair["project_id"] == OURS);
            let Some(id) = pair.and_then(|pair| pair["id"].as_str()).map(str::to_owned) else {
                return missing("Keypair", name);
            };
            state.remove("keypairs", &id);
            Answer::new(204, Value::Null)
        }
        ("GET", ["os-server-groups"]) => {
            let ours = state.of("os-server-groups", "project_id", OURS).cloned().collect();
            state.pages(call, "server_groups", ours, "server_groups_links")
        }
        ("POST", ["os-server-groups"]) if typed => server_group(state, &call.body["server_group"]),
        ("DELETE", ["os-server-groups", id]) => {
            if state.find("os-server-groups", id).is_none() {
                return missing("Instance group", id);
            }
            state.remove("os-server-groups", id);
            Answer::new(204, Value::Null)
        }
        ("GET", ["servers", "detail"]) => {
            let ids: Vec<String> = state
                .of("servers", "project_id", OURS)
                .filter_map(|server| server["id"].as_str().map(str::to_owned))
                .collect();
            ids.iter().for_each(|id| grow(state, id));
            let ours = state.of("servers", "project_id", OURS).map(shown).collect();
            state.pages(call, "servers", ours, "servers_links")
        }
        ("POST", ["servers"]) if typed => match create(state, &call.body) {
            Ok(made) | Err(made) => made,
        },
        ("GET", ["servers", id, "os-instance-actions"]) => {
            let Some(server) = state.find("servers", id) else { return missing("Instance", id) };
            let action =
                json!({"action": "create", "request_id": server["_request"], "message": null});
            Answer::new(200, json!({"instanceActions": [action]}))
        }
        (method, ["servers", id, rest @ ..]) => {
            if state.find("servers", id).is_none_or(|server| server["project_id"] != OURS) {
                return missing("Instance", id);
            }
            grow(state, id);
            match (method, rest) {
                ("GET", []) => {
                    Answer::new(200, json!({"server": state.find("servers", id).map(shown)}))
                }
                ("DELETE", []) => {
                    remove(state, id, state.soft_delete);
                    Answer::new(204, Value::Null)
                }
                ("POST", ["action"]) => act(state, id, &call.body),
                ("POST", ["metadata"]) => annotate(state, id, &call.body["metadata"]),
                _ => fault(404, "itemNotFound", "The resource could not be found."),
            }
        }
        _ => fault(404, "itemNotFound", "The resource could not be found, or not at this version."),
    }
}

fn annotate(state: &mut State, id: &str, wanted: &Value) -> Answer {
    let Some(server) = state.find_mut("servers", id) else { return missing("Instance", id) };
    let metadata = server["metadata"].as_object_mut().unwrap();
    metadata.extend(wanted.as_object().cloned().unwrap_or_default());
    Answer::new(200, json!({"metadata": server["metadata"]}))
}

/// A server as it is shown: without what only the double knows.
fn shown(server: &Value) -> Value {
    let kept = server.as_object().unwrap().iter().filter(|(key, _)| !key.starts_with('_'));
    kept.map(|(key, value)| (key.clone(), value.clone())).collect::<serde_json::Map<_, _>>().into()
}

fn limits(state: &State) -> Answer {
    let sum = |key: &str| -> i64 {
        state.of("servers", "project_id", OURS).filter_map(|server| server[key].as_i64()).sum()
    };
    Answer::new(
        200,
        json!({"limits": {"rate": [], "absolute": {
            "maxTotalInstances": state.limit("instances"), "totalInstancesUsed": state.used("servers"),
            "maxTotalCores": state.limit("cores"), "totalCoresUsed": sum("_vcpus"),
            "maxTotalRAMSize": state.limit("ram"), "totalRAMUsed": sum("_ram"),
            "maxServerGroups": state.limit("server_groups"),
            "totalServerGroupsUsed": state.used("os-server-groups"),
            "maxServerGroupMembers": state.limit("server_group_members"),
            "maxTotalKeypairs": state.limit("key_pairs"),
        }}}),
    )
}

fn keypair(state: &mut State, wanted: &Value) -> Answer {
    let name = wanted["name"].as_str().unwrap_or_default();
    let ours = state.of("keypairs", "name", name).any(|pair| pair["project_id"] == OURS);
    if ours {
        return fault(409, "conflictingRequest", &format!("Key pair '{name}' already exists."));
    }
    if !wanted["public_key"].as_str().is_some_and(|key| key.starts_with("ssh-ed25519 AAAA")) {
        return bad("Keypair data is invalid: failed to generate fingerprint");
    }
    let pair = json!({"name": name, "public_key": wanted["public_key"], "fingerprint": "aa:bb"});
    state.plant("keypairs", pair.clone());
    let mut shown = pair;
    shown["user_id"] = json!("u1");
    Answer::new(200, json!({"keypair": shown}))
}

fn server_group(state: &mut State, wanted: &Value) -> Answer {
    if !wanted["policies"].is_null() || wanted["policy"].as_str().is_none() {
        return bad(
            "Invalid input for field/attribute server_group. 'policy' is a required property",
        );
    }
    if !state.fits("server_groups", state.used("os-server-groups"), 1) {
        return fault(403, "forbidden", "Quota exceeded, too many server groups.");
    }
    let group =
        json!({"name": wanted["name"], "policy": wanted["policy"], "members": [], "rules": {}});
    let id = state.plant("os-server-groups", group);
    Answer::new(200, json!({"server_group": state.find("os-server-groups", &id)}))
}

fn create(state: &mut State, body: &Value) -> Result<Answer, Answer> {
    let wanted = &body["server"];
    let text = |key: &str| wanted[key].as_str().unwrap_or_default().to_owned();
    let keys = wanted.as_object().cloned().unwrap_or_default();
    if let Some(odd) = keys.keys().find(|key| !SERVER_KEYS.contains(&key.as_str())) {
        return Err(bad(&format!(
            "Additional properties are not allowed ('{odd}' was unexpected)"
        )));
    }
    let too_long = |key: &str| wanted[key].as_str().is_some_and(|text| text.len() > 255);
    if text("name").is_empty() || too_long("name") || too_long("description") {
        return Err(bad("Invalid input for field/attribute name or description"));
    }
    let user_data = text("user_data");
    if user_data.len() > USER_DATA_LIMIT {
        let message = format!(
            "Invalid input for field/attribute user_data. Value: {user_data}. '{user_data}' is too long"
        );
        return Err(bad(&message));
    }
    let tags = wanted["tags"].as_array().cloned().unwrap_or_default();
    let odd = |tag: &Value| tag.as_str().is_none_or(|t| t.len() > 60 || t.contains(['/', ',']));
    if tags.iter().any(odd) {
        return Err(bad("Invalid input for field/attribute tags"));
    }
    let flavor = state.find("flavors", &text("flavorRef")).cloned();
    let flavor = flavor.ok_or_else(|| bad("Flavor could not be found."))?;
    let image = text("imageRef");
    let devices = wanted["block_device_mapping_v2"].as_array().cloned().unwrap_or_default();
    let boots = devices.iter().find(|device| device["boot_index"] == 0);
    let image_id = boots.and_then(|device| device["uuid"].as_str()).unwrap_or(&image).to_owned();
    if state.find("images", &image_id).is_none() {
        return Err(bad(&format!("Image {image_id} could not be found.")));
    }
    let zone = text("availability_zone");
    if !zone.is_empty() && state.of("zones", "zoneName", &zone).next().is_none() {
        return Err(bad("The requested availability zone is not available"));
    }
    let key = text("key_name");
    if state.of("keypairs", "name", &key).next().is_none() {
        return Err(bad("Invalid key_name provided."));
    }
    let group = body["os:scheduler_hints"]["group"].as_str().unwrap_or_default().to_owned();
    if !group.is_empty() && state.find("os-server-groups", &group).is_none() {
        return Err(bad(&format!("Instance group {group} could not be found.")));
    }
    let port = wanted["networks"][0]["port"].as_str().unwrap_or_default().to_owned();
    match state.find("ports", &port) {
        None => return Err(bad(&format!("Port {port} could not be found."))),
        Some(port) if port["device_id"] != "" => {
            let message = format!("Port {} is still in use.", port["id"]);
            return Err(fault(409, "conflictingRequest", &message));
        }
        Some(_) => {}
    }
    quota(state, &flavor)?;
    let id = state.id();
    let number = state.all("servers").len() as u64;
    let (made, zone) = (state.time(), if zone.is_empty() { "nova".to_owned() } else { zone });
    let volumes: Vec<String> = devices
        .iter()
        .filter(|device| device["source_type"] == "volume")
        .filter_map(|device| device["uuid"].as_str().map(str::to_owned))
        .collect();
    let mut server = json!({
        "id": id, "name": text("name"), "description": wanted["description"], "status": "BUILD",
        "created": made, "tags": tags, "metadata": wanted["metadata"], "key_name": key,
        "hostId": format!("{:056x}", number % state.hypervisors + 1),
        "OS-EXT-AZ:availability_zone": zone, "config_drive": "True", "project_id": OURS,
        "tenant_id": OURS, "flavor": {"original_name": flavor["name"], "ram": flavor["ram"]},
        "image": {"id": image_id}, "os-extended-volumes:volumes_attached": volumes,
        "_port": port, "_group": group, "_user_data": user_data, "_vcpus": flavor["vcpus"],
        "_ram": flavor["ram"], "_looks": state.looks_to_build,
        "_request": format!("req-create-{number}"),
    });
    if let Some(message) = (state.fate)(&server) {
        server["status"] = json!("ERROR");
        server["fault"] = json!({"code": 500, "created": made, "message": message});
        server["OS-EXT-AZ:availability_zone"] = json!("");
        server["hostId"] = json!("");
        server["_zone"] = json!(zone);
    }
    state.insert("servers", server);
    if let Some(port) = state.find_mut("ports", &port) {
        port["device_id"] = json!(id);
        port["device_owner"] = json!(format!("compute:{zone}"));
    }
    if let Some(members) =
        state.find_mut("os-server-groups", &group).and_then(|group| group["members"].as_array_mut())
    {
        members.push(json!(id));
    }
    for volume in &volumes {
        if let Some(volume) = state.find_mut("volumes", volume) {
            volume["status"] = json!("in-use");
            volume["attachments"] = json!([{"server_id": id}]);
        }
    }
    Ok(Answer::new(202, json!({"server": {"id": id, "links": [], "OS-DCF:diskConfig": "MANUAL"}})))
}

fn quota(state: &State, flavor: &Value) -> Result<(), Answer> {
    let sum = |key: &str| -> i64 {
        state.of("servers", "project_id", OURS).filter_map(|server| server[key].as_i64()).sum()
    };
    for (name, used, more) in [
        ("instances", state.used("servers"), 1),
        ("cores", sum("_vcpus"), flavor["vcpus"].as_i64().unwrap_or(0)),
        ("ram", sum("_ram"), flavor["ram"].as_i64().unwrap_or(0)),
    ] {
        if !state.fits(name, used, more) {
            let most = state.limit(name);
            let message = format!(
                "Quota exceeded for {name}: Requested {more}, but already used {used} of {most} {name}"
            );
            return Err(fault(403, "forbidden", &message));
        }
    }
    Ok(())
}

/// A server comes into being while it is looked at.
fn grow(state: &mut State, id: &str) {
    let Some(server) = state.find_mut("servers", id) else { return };
    if server["status"] != "BUILD" {
        return;
    }
    let looks = server["_looks"].as_u64().unwrap_or(0);
    if looks > 0 {
        server["_looks"] = json!(looks - 1);
        return;
    }
    server["status"] = json!("ACTIVE");
    boot(state, id);
}

/// Starts what the user-data says.
fn boot(state: &mut State, id: &str) {
    let Some(server) = state.find("servers", id).cloned() else { return };
    let volume = server["os-extended-volumes:volumes_attached"][0].as_str();
    let boot = Boot {
        server: id.to_owned(),
        disk: volume.unwrap_or(id).to_owned(),
        user_data: server["_user_data"].as_str().unwrap_or_default().to_owned(),
    };
    state.guests.boot(boot);
}

fn act(state: &mut State, id: &str, body: &Value) -> Answer {
    let action = body.as_object().and_then(|body| body.keys().next()).cloned().unwrap_or_default();
    let status = state.find("servers", id).and_then(|server| server["status"].as_str());
    let status = status.unwrap_or_default().to_owned();
    let next = match (action.as_str(), status.as_str()) {
        ("os-getConsoleOutput", _) => {
            return Answer::new(200, json!({"output": state.guests.console(id)}));
        }
        ("os-start", "SHUTOFF") | ("unpause", "PAUSED") | ("resume", "SUSPENDED") => "ACTIVE",
        ("os-stop", "ACTIVE" | "ERROR") => "SHUTOFF",
        ("pause", "ACTIVE") => "PAUSED",
        ("forceDelete", _) => {
            remove(state, id, false);
            return Answer::new(202, Value::Null);
        }
        _ => {
            let message =
                format!("Cannot '{action}' instance {id} while it is in vm_state {status}");
            return fault(409, "conflictingRequest", &message);
        }
    };
    if let Some(server) = state.find_mut("servers", id) {
        server["status"] = json!(next);
    }
    match action.as_str() {
        "os-start" => boot(state, id),
        "os-stop" => state.guests.end(id),
        "pause" => state.guests.freeze(id, true),
        _ => state.guests.freeze(id, false),
    }
    Answer::new(202, Value::Null)
}

/// A server goes, or is put away to go later.
pub(crate) fn remove(state: &mut State, id: &str, softly: bool) {
    state.guests.end(id);
    if softly {
        if let Some(server) = state.find_mut("servers", id) {
            server["status"] = json!("SOFT_DELETED");
        }
        return;
    }
    let Some(server) = state.find("servers", id).cloned() else { return };
    let port = server["_port"].as_str().unwrap_or_default().to_owned();
    if state.ports_go_with_servers {
        neutron::loosen(state, &port);
        state.remove("ports", &port);
    } else if let Some(port) = state.find_mut("ports", &port) {
        port["device_id"] = json!("");
        port["device_owner"] = json!("");
    }
    let group = server["_group"].as_str().unwrap_or_default();
    if let Some(members) =
        state.find_mut("os-server-groups", group).and_then(|group| group["members"].as_array_mut())
    {
        members.retain(|member| *member != id);
    }
    let volumes = server["os-extended-volumes:volumes_attached"].as_array().cloned();
    for volume in volumes.unwrap_or_default().iter().filter_map(Value::as_str) {
        if let Some(volume) = state.find_mut("volumes", volume) {
            volume["status"] = json!("available");
            volume["attachments"] = json!([]);
        }
    }
    state.remove("servers", id);
}
