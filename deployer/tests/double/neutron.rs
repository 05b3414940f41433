//! Neutron: networks, subnets, routers, security groups, ports, floating IPs, tags and quotas.

use std::net::Ipv4Addr;

use serde_json::{Map, Value, json};

use super::cloud::{OURS, State, THEIRS};
use super::http::{Answer, Call};

/// Collection, name of one, name of its quota, and what may be given when one is made.
const KINDS: &[(&str, &str, &str, &[&str])] = &[
    ("networks", "network", "network", &["admin_state_up"]),
    (
        "subnets",
        "subnet",
        "subnet",
        &["network_id", "ip_version", "cidr", "dns_nameservers", "gateway_ip", "enable_dhcp"],
    ),
    ("routers", "router", "router", &["external_gateway_info", "admin_state_up"]),
    ("security-groups", "security_group", "security_group", &[]),
    (
        "security-group-rules",
        "security_group_rule",
        "security_group_rule",
        &[
            "security_group_id",
            "direction",
            "ethertype",
            "protocol",
            "port_range_min",
            "port_range_max",
            "remote_ip_prefix",
            "remote_group_id",
        ],
    ),
    ("ports", "port", "port", &["network_id", "fixed_ips", "security_groups", "admin_state_up"]),
    ("floatingips", "floatingip", "floatingip", &["floating_network_id", "port_id"]),
];

/// An error in Neutron's form.
pub(crate) fn fault(status: u16, kind: &str, message: &str) -> Answer {
    let body = json!({"NeutronError": {"type": kind, "message": message, "detail": ""}});
    Answer::new(status, body)
}

fn not_found(what: &str, id: &str) -> Answer {
    fault(404, &format!("{what}NotFound"), &format!("{what} {id} could not be found."))
}

/// The external network, and a group that every project has.
pub(crate) fn furnish(state: &mut State) {
    external(state, "public");
    let group = json!({"name": "default", "description": "Default security group", "tags": []});
    let group = state.plant("security-groups", group);
    leaving(state, &group);
}

/// An external network with room for floating IPs. Its id comes back.
pub(crate) fn external(state: &mut State, name: &str) -> String {
    let id = state.plant(
        "networks",
        json!({"name": name, "description": "", "tags": [], "router:external": true,
               "shared": false, "project_id": THEIRS, "status": "ACTIVE"}),
    );
    let (_, floating, number) = state.space;
    state.plant(
        "subnets",
        json!({"name": format!("{name}-v4"), "description": "", "tags": [], "network_id": id,
               "cidr": format!("127.{floating}.{number}.0/24"), "ip_version": 4,
               "gateway_ip": null, "project_id": THEIRS}),
    );
    id
}

pub(crate) fn route(state: &mut State, call: &Call, path: &str) -> Answer {
    let parts: Vec<&str> = path.split('/').collect();
    if let ("GET", ["quotas", _, "details.json"]) = (call.method.as_str(), parts.as_slice()) {
        return quotas(state);
    }
    let kind = parts.first().and_then(|first| KINDS.iter().find(|(path, ..)| path == first));
    let Some((kind, one, quota, keys)) = kind else {
        return fault(404, "HTTPNotFound", "The resource could not be found.");
    };
    match (call.method.as_str(), &parts[1..]) {
        ("GET", []) => list(state, call, kind),
        ("POST", []) => match create(state, kind, quota, keys, &call.body[one]) {
            Ok(made) => Answer::new(201, json!({*one: shown(state, kind, &made)})),
            Err(answer) => answer,
        },
        (method, [id, rest @ ..]) => {
            let Some(item) = state.find(kind, id).filter(|item| visible(item)).cloned() else {
                return not_found(&capital(one), id);
            };
            if method != "GET" && item["project_id"] != OURS && rest != ["add_router_interface"] {
                return fault(
                    403,
                    "PolicyNotAuthorized",
                    "rule:admin_or_owner is disallowed by policy",
                );
            }
            match (method, rest) {
                ("GET", []) => Answer::new(200, json!({*one: shown(state, kind, &item)})),
                ("DELETE", []) => delete(state, kind, &item),
                ("PUT", []) => match update(state, kind, id, &call.body[one]) {
                    Ok(()) => Answer::new(200, json!({*one: state.find(kind, id)})),
                    Err(answer) => answer,
                },
                ("PUT", ["tags", tag]) => {
                    if tag.len() > 60 {
                        return fault(400, "HTTPBadRequest", "Invalid input for tag.");
                    }
                    let tags =
                        state.find_mut(kind, id).and_then(|item| item["tags"].as_array_mut());
                    if let Some(tags) = tags.filter(|tags| !tags.contains(&json!(tag))) {
                        tags.push(json!(tag));
                    }
                    Answer::new(201, Value::Null)
                }
                ("PUT", ["add_router_interface"]) => connect(state, id, &call.body),
                ("PUT", ["remove_router_interface"]) => disconnect(state, id, &call.body),
                _ => fault(404, "HTTPNotFound", "The resource could not be found."),
            }
        }
        _ => fault(405, "HTTPMethodNotAllowed", "not this"),
    }
}

fn capital(one: &str) -> String {
    one.split('_').map(|word| word[..1].to_uppercase() + &word[1..]).collect()
}

fn visible(item: &Value) -> bool {
    item["project_id"] == OURS || item["shared"] == true || item["router:external"] == true
}

/// An item as it is shown: groups with their rules, and nothing that is kept for the double.
fn shown(state: &State, kind: &str, item: &Value) -> Value {
    let mut item = item.clone();
    if kind == "security-groups" {
        let id = item["id"].as_str().unwrap_or_default();
        let rules = state.of("security-group-rules", "security_group_id", id);
        item["security_group_rules"] = rules.cloned().collect();
    }
    item
}

fn list(state: &State, call: &Call, kind: &str) -> Answer {
    let mut items: Vec<Value> =
        state.all(kind).iter().filter(|item| visible(item)).cloned().collect();
    for (key, value) in &call.query {
        match key.as_str() {
            "project_id" | "device_id" | "network_id" | "name" | "id" => {
                items.retain(|item| item[key] == *value);
            }
            "fixed_ips" => {
                let Some(subnet) = value.strip_prefix("subnet_id=") else { continue };
                items.retain(|item| addresses(item).iter().any(|(other, _)| other == subnet));
            }
            "marker" | "limit" => {}
            other => return fault(400, "HTTPBadRequest", &format!("'{other}' is not a filter")),
        }
    }
    let items: Vec<Value> = items.iter().map(|item| shown(state, kind, item)).collect();
    let key = kind.replace('-', "_");
    state.pages(call, &key, items, &format!("{key}_links"))
}

fn quotas(state: &State) -> Answer {
    let mut quota = Map::new();
    for (kind, _, name, _) in KINDS {
        let used = state.used(kind);
        let limit = state.limit(name);
        quota.insert((*name).to_owned(), json!({"limit": limit, "used": used, "reserved": 0}));
    }
    Answer::new(200, json!({"quota": quota}))
}

type Made<T = Value> = Result<T, Answer>;

fn create(
    state: &mut State,
    kind: &'static str,
    quota: &str,
    keys: &[&str],
    wanted: &Value,
) -> Made {
    let given = wanted.as_object().cloned().unwrap_or_default();
    for (key, value) in &given {
        let named =
            matches!(key.as_str(), "name" | "description") && kind != "security-group-rules";
        let named = named && !(kind == "floatingips" && key == "name");
        if !named && !keys.contains(&key.as_str()) {
            let message = format!("Unrecognized attribute(s) '{key}'");
            return Err(fault(400, "HTTPBadRequest", &message));
        }
        if named && value.as_str().is_none_or(|text| text.len() > 255) {
            let message = format!("Invalid input for {key}. Reason: not a string of at most 255.");
            return Err(fault(400, "HTTPBadRequest", &message));
        }
    }
    if !state.fits(quota, state.used(kind), 1) {
        let message = format!("Quota exceeded for resources: ['{quota}'].");
        return Err(fault(409, "OverQuota", &message));
    }
    let (id, made) = (state.id(), state.time());
    let mut item = json!({
        "id": id, "name": "", "description": "", "tags": [], "project_id": OURS, "tenant_id": OURS,
        "status": "ACTIVE", "created_at": made, "shared": false,
    });
    item.as_object_mut().unwrap().extend(given);
    match kind {
        "networks" => item["router:external"] = json!(false),
        "subnets" => return subnet(state, item),
        "routers" => gateway(state, &item)?,
        "security-groups" => {
            let item = state.insert(kind, item);
            leaving(state, &id);
            return Ok(item);
        }
        "security-group-rules" => rule(state, &item)?,
        "ports" => port(state, &mut item)?,
        "floatingips" => floating_ip(state, &mut item)?,
        _ => {}
    }
    Ok(state.insert(kind, item))
}

/// The rules that let everything out.
fn leaving(state: &mut State, group: &str) {
    for ethertype in ["IPv4", "IPv6"] {
        state.plant(
            "security-group-rules",
            json!({"security_group_id": group, "direction": "egress", "ethertype": ethertype,
                   "protocol": null, "port_range_min": null, "port_range_max": null,
                   "remote_ip_prefix": null, "remote_group_id": null}),
        );
    }
}

fn subnet(state: &mut State, mut item: Value) -> Made {
    let network = item["network_id"].as_str().unwrap_or_default().to_owned();
    if state.find("networks", &network).is_none_or(|network| network["project_id"] != OURS) {
        return Err(not_found("Network", &network));
    }
    let cidr = item["cidr"].as_str().unwrap_or_default().to_owned();
    if state.of("subnets", "network_id", &network).any(|other| other["cidr"] == cidr) {
        let message = format!(
            "Invalid input for operation: Requested subnet with cidr: {cidr} overlaps with another subnet."
        );
        return Err(fault(400, "InvalidInput", &message));
    }
    item["gateway_ip"] = json!(nth(&cidr, 1).to_string());
    let item = state.insert("subnets", item);
    // The cloud's own DHCP server takes an address, and counts.
    let address = free(state, item["id"].as_str().unwrap_or_default());
    state.plant(
        "ports",
        json!({"name": "", "description": "", "tags": [], "network_id": network,
               "device_owner": "network:dhcp", "device_id": "dhcp-agent", "security_groups": [],
               "fixed_ips": [{"subnet_id": item["id"], "ip_address": address}], "status": "ACTIVE"}),
    );
    Ok(item)
}

fn gateway(state: &State, router: &Value) -> Made<()> {
    let Some(network) = router["external_gateway_info"]["network_id"].as_str() else {
        return Ok(());
    };
    let external = state.find("networks", network);
    match external {
        Some(network) if network["router:external"] == true => Ok(()),
        _ => {
            let message =
                format!("Bad router request: Network {network} is not an external network.");
            Err(fault(400, "BadRequest", &message))
        }
    }
}

fn rule(state: &State, wanted: &Value) -> Made<()> {
    let group = wanted["security_group_id"].as_str().unwrap_or_default();
    if state.find("security-groups", group).is_none() {
        return Err(not_found("SecurityGroup", group));
    }
    let same = |other: &Value| {
        let keys = [
            "direction",
            "ethertype",
            "protocol",
            "port_range_min",
            "port_range_max",
            "remote_ip_prefix",
            "remote_group_id",
        ];
        keys.iter().all(|key| other[*key] == wanted[*key])
    };
    let twin =
        state.of("security-group-rules", "security_group_id", group).find(|other| same(other));
    match twin {
        Some(twin) => {
            let message = format!("Security group rule already exists. Rule id is {}.", twin["id"]);
            Err(fault(409, "SecurityGroupRuleExists", &message))
        }
        None => Ok(()),
    }
}

/// The addresses of a port, each with its subnet.
fn addresses(port: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let fixed = port["fixed_ips"].as_array().into_iter().flatten();
    fixed.map(|fixed| (text(&fixed["subnet_id"]), text(&fixed["ip_address"]))).collect()
}

fn nth(cidr: &str, n: u32) -> Ipv4Addr {
    let first = cidr.split('/').next().and_then(|first| first.parse::<Ipv4Addr>().ok());
    Ipv4Addr::from_bits(first.map_or(0, Ipv4Addr::to_bits) + n)
}

/// The first address of a subnet that nobody has; none if there is no such.
fn free(state: &State, subnet: &str) -> Option<String> {
    let cidr = state.find("subnets", subnet)?["cidr"].as_str()?.to_owned();
    let length: u32 = cidr.split_once('/')?.1.parse().ok()?;
    let mut taken: Vec<String> =
        state.all("ports").iter().flat_map(addresses).map(|(_, address)| address).collect();
    let floating = state.all("floatingips").iter();
    taken.extend(floating.filter_map(|ip| ip["floating_ip_address"].as_str().map(str::to_owned)));
    let last = (1_u32 << (32 - length)) - 1;
    (2..last).map(|n| nth(&cidr, n).to_string()).find(|address| !taken.contains(address))
}

fn port(state: &State, item: &mut Value) -> Made<()> {
    let network = item["network_id"].as_str().unwrap_or_default().to_owned();
    if state.find("networks", &network).is_none_or(|network| !visible(network)) {
        return Err(not_found("Network", &network));
    }
    let (subnet, wanted) = addresses(item).into_iter().next().unwrap_or_default();
    if state.find("subnets", &subnet).is_none_or(|subnet| subnet["network_id"] != network) {
        return Err(fault(
            400,
            "InvalidInput",
            "Failed to create port on network, because fixed_ips included invalid subnet.",
        ));
    }
    let address = if wanted.is_empty() {
        free(state, &subnet)
    } else if state.all("ports").iter().flat_map(addresses).any(|(_, other)| other == wanted) {
        let message = format!("IP address {wanted} already allocated in subnet {subnet}");
        return Err(fault(409, "IpAddressAlreadyAllocated", &message));
    } else {
        Some(wanted)
    };
    let Some(address) = address else {
        let message = format!("No more IP addresses available on network {network}.");
        return Err(fault(409, "IpAddressGenerationFailure", &message));
    };
    for group in item["security_groups"].as_array().into_iter().flatten() {
        let id = group.as_str().unwrap_or_default();
        if state.find("security-groups", id).is_none_or(|group| !visible(group)) {
            return Err(not_found("SecurityGroup", id));
        }
    }
    item["fixed_ips"] = json!([{"subnet_id": subnet, "ip_address": address}]);
    item["device_id"] = json!("");
    item["device_owner"] = json!("");
    item["mac_address"] = json!("fa:16:3e:00:00:01");
    Ok(())
}

/// Whether a router with a gateway to `external` is connected to the subnet.
fn is_routed(state: &State, subnet: &str, external: &str) -> bool {
    state.all("ports").iter().any(|port| {
        port["device_owner"] == "network:router_interface"
            && addresses(port).iter().any(|(other, _)| other == subnet)
            && port["device_id"]
                .as_str()
                .and_then(|id| state.find("routers", id))
                .is_some_and(|router| router["external_gateway_info"]["network_id"] == external)
    })
}

fn floating_ip(state: &mut State, item: &mut Value) -> Made<()> {
    let network = item["floating_network_id"].as_str().unwrap_or_default().to_owned();
    if state.find("networks", &network).is_none_or(|network| network["router:external"] != true) {
        return Err(fault(
            400,
            "BadRequest",
            "Bad floatingip request: Network is not a valid external network",
        ));
    }
    associate(state, item, &network)?;
    let subnet = state.of("subnets", "network_id", &network).next();
    let subnet = subnet.and_then(|subnet| subnet["id"].as_str()).unwrap_or_default().to_owned();
    let Some(address) = free(state, &subnet) else {
        let message = format!("No more IP addresses available on network {network}.");
        return Err(fault(409, "IpAddressGenerationFailure", &message));
    };
    item["floating_ip_address"] = json!(address);
    state.guests.forward(&address, item["fixed_ip_address"].as_str());
    Ok(())
}

/// Sets what follows from the port of a floating IP.
fn associate(state: &State, item: &mut Value, network: &str) -> Made<()> {
    item["fixed_ip_address"] = Value::Null;
    item["status"] = json!("DOWN");
    let Some(port) = item["port_id"].as_str() else { return Ok(()) };
    let Some(found) = state.find("ports", port).filter(|port| visible(port)) else {
        return Err(not_found("Port", port));
    };
    let (subnet, address) = addresses(found).into_iter().next().unwrap_or_default();
    if !is_routed(state, &subnet, network) {
        let message = format!(
            "External network {network} is not reachable from subnet {subnet}. Therefore, cannot \
             associate Port {port} with a Floating IP."
        );
        return Err(fault(404, "ExternalGatewayForFloatingIPNotFound", &message));
    }
    let twin = state.of("floatingips", "port_id", port).find(|other| other["id"] != item["id"]);
    if twin.is_some() {
        let message = format!("Cannot associate floating IP with port {port}: it already has one.");
        return Err(fault(409, "FloatingIPPortAlreadyAssociated", &message));
    }
    item["fixed_ip_address"] = json!(address);
    item["status"] = json!("ACTIVE");
    Ok(())
}

fn update(state: &mut State, kind: &str, id: &str, wanted: &Value) -> Made<()> {
    let mut item = state.find(kind, id).cloned().unwrap_or_default();
    let given = wanted.as_object().cloned().unwrap_or_default();
    item.as_object_mut().unwrap().extend(given);
    if kind == "floatingips" {
        let network = item["floating_network_id"].as_str().unwrap_or_default().to_owned();
        associate(state, &mut item, &network)?;
        let address = item["floating_ip_address"].as_str().unwrap_or_default().to_owned();
        state.guests.forward(&address, item["fixed_ip_address"].as_str());
    }
    if let Some(place) = state.find_mut(kind, id) {
        *place = item;
    }
    Ok(())
}

fn connect(state: &mut State, router: &str, body: &Value) -> Answer {
    let subnet = body["subnet_id"].as_str().unwrap_or_default();
    let Some(found) = state.find("subnets", subnet).cloned() else {
        return not_found("Subnet", subnet);
    };
    let is_it = |port: &&Value| addresses(port).iter().any(|(other, _)| other == subnet);
    if state.of("ports", "device_id", router).any(|port| is_it(&port)) {
        let message = format!("Bad router request: Router already has a port on subnet {subnet}.");
        return fault(400, "BadRequest", &message);
    }
    let address = found["gateway_ip"].as_str().unwrap_or_default();
    let port = state.plant(
        "ports",
        json!({"name": "", "description": "", "tags": [], "network_id": found["network_id"],
               "device_owner": "network:router_interface", "device_id": router,
               "security_groups": [], "status": "ACTIVE",
               "fixed_ips": [{"subnet_id": subnet, "ip_address": address}]}),
    );
    Answer::new(200, json!({"id": router, "subnet_id": subnet, "port_id": port}))
}

fn disconnect(state: &mut State, router: &str, body: &Value) -> Answer {
    let is_it = |port: &&Value| match (body["port_id"].as_str(), body["subnet_id"].as_str()) {
        (Some(id), _) => port["id"] == id,
        (None, subnet) => addresses(port).iter().any(|(other, _)| Some(other.as_str()) == subnet),
    };
    let Some(port) = state.of("ports", "device_id", router).find(is_it).cloned() else {
        let message = format!("Router {router} has no interface on that subnet.");
        return fault(404, "RouterInterfaceNotFoundForSubnet", &message);
    };
    let (subnet, _) = addresses(&port).into_iter().next().unwrap_or_default();
    let floats = state.all("floatingips").iter().any(|ip| {
        let port = ip["port_id"].as_str().and_then(|port| state.find("ports", port));
        port.is_some_and(|port| addresses(port).iter().any(|(other, _)| *other == subnet))
    });
    if floats {
        let message = format!(
            "Router interface for subnet {subnet} on router {router} cannot be deleted, as it is required by one or more floating IPs."
        );
        return fault(409, "RouterInterfaceInUseByFloatingIP", &message);
    }
    state.remove("ports", port["id"].as_str().unwrap_or_default());
    Answer::new(200, json!({"id": router, "subnet_id": subnet, "port_id": port["id"]}))
}

fn delete(state: &mut State, kind: &str, item: &Value) -> Answer {
    let id = item["id"].as_str().unwrap_or_default().to_owned();
    let cloud = |port: &Value| port["device_owner"] == "network:dhcp";
    let uses = |port: &Value| match kind {
        "networks" => port["network_id"] == id && !cloud(port),
        "subnets" => addresses(port).iter().any(|(other, _)| *other == id) && !cloud(port),
        "routers" => port["device_id"] == id,
        "security-groups" => {
            port["security_groups"].as_array().into_iter().flatten().any(|group| *group == id)
        }
        "ports" => port["id"] == id && port["device_owner"] == "network:router_interface",
        _ => false,
    };
    if state.all("ports").iter().any(uses) {
        let (kind, what) = match kind {
            "networks" => {
                ("NetworkInUse", "There are one or more ports still in use on the network")
            }
            "subnets" => {
                ("SubnetInUse", "One or more ports have an IP allocation from this subnet")
            }
            "routers" => ("RouterInUse", "Router still has ports"),
            "ports" => ("ServicePortInUse", "Port has device owner network:router_interface"),
            _ => ("SecurityGroupInUse", "Security Group in use"),
        };
        return fault(409, kind, &format!("Unable to complete operation on {id}. {what}."));
    }
    match kind {
        "networks" | "subnets" => {
            let key = if kind == "networks" { "network_id" } else { "_" };
            let gone = |port: &&Value| {
                port[key] == id || addresses(port).iter().any(|(other, _)| *other == id)
            };
            let ports = state.all("ports").iter().filter(gone);
            let ports: Vec<String> =
                ports.filter_map(|port| port["id"].as_str().map(str::to_owned)).collect();
            ports.iter().for_each(|port| state.remove("ports", port));
            let of = state.of("subnets", "network_id", &id);
            let subnets: Vec<String> =
                of.filter_map(|subnet| subnet["id"].as_str().map(str::to_owned)).collect();
            subnets.iter().for_each(|subnet| state.remove("subnets", subnet));
        }
        "security-groups" => {
            let of = state.of("security-group-rules", "security_group_id", &id);
            let rules: Vec<String> =
                of.filter_map(|rule| rule["id"].as_str().map(str::to_owned)).collect();
            rules.iter().for_each(|rule| state.remove("security-group-rules", rule));
        }
        "ports" => loosen(state, &id),
        "floatingips" => {
            let address = item["floating_ip_address"].as_str().unwrap_or_default();
            state.guests.forward(address, None);
        }
        _ => {}
    }
    state.remove(kind, &id);
    Answer::new(204, Value::Null)
}

/// A port that goes leaves its floating IP behind.
pub(crate) fn loosen(state: &mut State, port: &str) {
    let ip = state.of("floatingips", "port_id", port).next();
    let Some(id) = ip.and_then(|ip| ip["id"].as_str()).map(str::to_owned) else { return };
    if let Some(ip) = state.find_mut("floatingips", &id) {
        ip["port_id"] = Value::Null;
        ip["fixed_ip_address"] = Value::Null;
        ip["status"] = json!("DOWN");
    }
}
