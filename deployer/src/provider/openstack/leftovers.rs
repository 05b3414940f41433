//! What carries the mark of a ring and belongs to none of its nodes: the remains of interrupted work,
//! which nobody uses and somebody pays for.

use std::collections::BTreeMap;

use super::marks::Marks;
use super::owned::Owned;
use crate::outlook::Leftover;

/// Everything of the ring that no node needs.
pub(super) fn leftovers(owned: &Owned, marks: &Marks) -> Vec<Leftover> {
    let mut left = Vec::new();
    let mut add = |kind: &str, name: &str, id: &str, why: &str| {
        let [kind, name, id, why] = [kind, name, id, why].map(str::to_owned);
        left.push(Leftover { kind, name, id, why });
    };
    let mut servers: BTreeMap<String, u32> = BTreeMap::new();
    for server in &owned.servers {
        let Some(node) = marks.node(&server.description) else {
            add("server", &server.name, &server.id, "its mark names no node");
            continue;
        };
        let count = servers.entry(node.name).or_default();
        *count += 1;
        if *count > 1 {
            add("server", &server.name, &server.id, "its node has another server");
        } else if server.status == "ERROR" {
            add("server", &server.name, &server.id, "it is in ERROR");
        }
    }
    let has_server = |description: &str| {
        marks.node(description).is_some_and(|node| servers.contains_key(&node.name))
    };
    for port in &owned.ports {
        if !has_server(&port.description) {
            add("port", &port.name, &port.id, "its node has no server");
        }
    }
    for volume in &owned.volumes {
        if !has_server(&volume.description) {
            add("volume", &volume.name, &volume.id, "its node has no server");
        }
    }
    for ip in &owned.floating_ips {
        let used = owned.ports.iter().any(|port| Some(&port.id) == ip.port_id.as_ref());
        if !used {
            add("floating IP", &ip.floating_ip_address, &ip.id, "no node uses it");
        }
    }
    if owned.servers.is_empty() {
        let why = "the ring has no server";
        owned.keypairs.iter().for_each(|item| add("key pair", &item.name, &item.name, why));
        owned.server_groups.iter().for_each(|item| add("server group", &item.name, &item.id, why));
        owned
            .security_groups
            .iter()
            .for_each(|item| add("security group", &item.name, &item.id, why));
        owned.routers.iter().for_each(|item| add("router", &item.name, &item.id, why));
        owned.subnets.iter().for_each(|item| add("subnet", &item.name, &item.id, why));
        owned.networks.iter().for_each(|item| add("network", &item.name, &item.id, why));
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::NodeSpec;
    use crate::provider::openstack::owned::{FloatingIp, Network, Port, Server};
    use sky_chord::Id;

    fn described(marks: &Marks, name: &str) -> String {
        let node =
            NodeSpec { name: name.into(), id: Id::small(1), host: None, port: 1, zone: None };
        marks.description_of(&node)
    }

    #[test]
    fn what_nobody_uses_is_named_with_the_reason() {
        let marks = Marks::new("sky");
        let server = |id: &str, node: &str, status: &str| Server {
            id: id.into(),
            description: described(&marks, node),
            status: status.into(),
            ..Server::default()
        };
        let port = |id: &str, node: &str| Port {
            id: id.into(),
            description: described(&marks, node),
            ..Port::default()
        };
        let ip = |id: &str, port: Option<&str>| FloatingIp {
            id: id.into(),
            port_id: port.map(str::to_owned),
            ..FloatingIp::default()
        };
        let mut owned = Owned {
            servers: vec![
                server("s1", "a", "ACTIVE"),
                server("s2", "a", "ACTIVE"),
                server("s3", "b", "ERROR"),
            ],
            ports: vec![port("p1", "a"), port("p2", "c")],
            floating_ips: vec![ip("f1", Some("p1")), ip("f2", None)],
            networks: vec![Network { id: "n".into(), ..Network::default() }],
            ..Owned::default()
        };
        let ids = |owned: &Owned| -> Vec<String> {
            leftovers(owned, &marks).into_iter().map(|left| left.id).collect()
        };
        assert_eq!(ids(&owned), ["s2", "s3", "p2", "f2"]);
        owned.servers.clear();
        assert_eq!(ids(&owned), ["p1", "p2", "f2", "n"]);
    }
}
