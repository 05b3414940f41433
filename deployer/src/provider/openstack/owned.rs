//! What a ring owns in a project, found again by its marks. The models hold only what is used, and
//! take whatever a service sends: one odd item must not hide the others.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Mutex;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::api::{Api, Fault, Service};
use super::marks::Marks;

/// Everything in the project that carries the mark of one ring.
#[derive(Debug, Clone, Default)]
pub(super) struct Owned {
    pub(super) networks: Vec<Network>,
    pub(super) subnets: Vec<Subnet>,
    pub(super) routers: Vec<Router>,
    pub(super) security_groups: Vec<SecurityGroup>,
    pub(super) ports: Vec<Port>,
    pub(super) floating_ips: Vec<FloatingIp>,
    pub(super) servers: Vec<Server>,
    pub(super) volumes: Vec<Volume>,
    pub(super) server_groups: Vec<ServerGroup>,
    pub(super) keypairs: Vec<KeyPair>,
}

/// A network.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Network {
    pub(super) id: String,
    #[serde(deserialize_with = "text")]
    pub(super) name: String,
    #[serde(deserialize_with = "text")]
    pub(super) description: String,
    pub(super) tags: Vec<String>,
    #[serde(deserialize_with = "text")]
    pub(super) project_id: String,
}

/// A subnet.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Subnet {
    pub(super) id: String,
    #[serde(deserialize_with = "text")]
    pub(super) name: String,
    #[serde(deserialize_with = "text")]
    pub(super) description: String,
    pub(super) tags: Vec<String>,
    pub(super) network_id: String,
    #[serde(deserialize_with = "text")]
    pub(super) cidr: String,
    pub(super) ip_version: u8,
}

/// A router.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Router {
    pub(super) id: String,
    #[serde(deserialize_with = "text")]
    pub(super) name: String,
    #[serde(deserialize_with = "text")]
    pub(super) description: String,
    pub(super) tags: Vec<String>,
    pub(super) external_gateway_info: Value,
}

/// A security group with its rules.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct SecurityGroup {
    pub(super) id: String,
    #[serde(deserialize_with = "text")]
    pub(super) name: String,
    #[serde(deserialize_with = "text")]
    pub(super) description: String,
    pub(super) tags: Vec<String>,
    pub(super) security_group_rules: Vec<Value>,
}

/// A port.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Port {
    pub(super) id: String,
    #[serde(deserialize_with = "text")]
    pub(super) name: String,
    #[serde(deserialize_with = "text")]
    pub(super) description: String,
    pub(super) tags: Vec<String>,
    #[serde(deserialize_with = "text")]
    pub(super) device_id: String,
    #[serde(deserialize_with = "text")]
    pub(super) device_owner: String,
    pub(super) fixed_ips: Vec<FixedIp>,
}

/// An address of a port.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct FixedIp {
    pub(super) subnet_id: String,
    #[serde(deserialize_with = "text")]
    pub(super) ip_address: String,
}

impl Port {
    /// Its first address.
    pub(super) fn address(&self) -> Option<IpAddr> {
        self.fixed_ips.iter().find_map(|fixed| fixed.ip_address.parse().ok())
    }
}

/// A floating IP.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct FloatingIp {
    pub(super) id: String,
    #[serde(deserialize_with = "text")]
    pub(super) description: String,
    pub(super) tags: Vec<String>,
    #[serde(deserialize_with = "text")]
    pub(super) floating_ip_address: String,
    pub(super) port_id: Option<String>,
}

/// A server.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Server {
    pub(super) id: String,
    #[serde(deserialize_with = "text")]
    pub(super) name: String,
    #[serde(deserialize_with = "text")]
    pub(super) description: String,
    #[serde(deserialize_with = "text")]
    pub(super) status: String,
    #[serde(deserialize_with = "text")]
    pub(super) created: String,
    pub(super) metadata: BTreeMap<String, String>,
    /// The hypervisor, as a hash that is the same for all servers of the project on it.
    #[serde(rename = "hostId", deserialize_with = "text")]
    pub(super) host: String,
    #[serde(rename = "OS-EXT-AZ:availability_zone", deserialize_with = "text")]
    pub(super) zone: String,
    pub(super) fault: Option<ServerFault>,
}

/// Why a server is in ERROR.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct ServerFault {
    pub(super) code: u16,
    #[serde(deserialize_with = "text")]
    pub(super) message: String,
}

/// A volume.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Volume {
    pub(super) id: String,
    #[serde(deserialize_with = "text")]
    pub(super) name: String,
    #[serde(deserialize_with = "text")]
    pub(super) description: String,
    #[serde(deserialize_with = "text")]
    pub(super) status: String,
}

/// A server group.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct ServerGroup {
    pub(super) id: String,
    #[serde(deserialize_with = "text")]
    pub(super) name: String,
    pub(super) members: Vec<String>,
}

/// A key pair.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct KeyPair {
    pub(super) name: String,
    #[serde(deserialize_with = "text")]
    pub(super) public_key: String,
}

/// Text that some services leave out or send as null.
fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Option::<String>::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// The items that were said to be odd.
static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// The items that can be understood. What cannot is said, and left alone.
pub(super) fn items<T: DeserializeOwned>(values: Vec<Value>) -> Vec<T> {
    let item = |value: Value| {
        let id = value["id"].as_str().unwrap_or("without an id").to_owned();
        match serde_json::from_value(value) {
            Ok(item) => Some(item),
            Err(error) => {
                // Lists are read again and again.
                if SAID.lock().is_ok_and(|mut said| said.insert(id.clone())) {
                    tracing::warn!(%id, %error, "left out a resource that cannot be understood");
                }
                None
            }
        }
    };
    values.into_iter().filter_map(item).collect()
}

/// The item at `key` of an answer. One that cannot be understood is as good as empty.
pub(super) fn item<T: DeserializeOwned + Default>(mut answer: Value, key: &str) -> T {
    items(vec![answer[key].take()]).pop().unwrap_or_default()
}

impl Owned {
    /// Asks all services side by side.
    pub(super) async fn find(api: &Api, marks: &Marks) -> Result<Self, Fault> {
        let (networks, subnets, routers, security_groups, ports, floating_ips) = futures_util::try_join!(
            ours(api, "networks", "networks"),
            ours(api, "subnets", "subnets"),
            ours(api, "routers", "routers"),
            ours(api, "security-groups", "security_groups"),
            ours(api, "ports", "ports"),
            ours(api, "floatingips", "floatingips"),
        )?;
        let (servers, server_groups, keypairs, volumes) = futures_util::try_join!(
            servers(api, marks),
            api.list(Service::Compute, "os-server-groups", "server_groups"),
            api.list(Service::Compute, "os-keypairs", "keypairs"),
            volumes(api, marks),
        )?;
        let keypairs = keypairs.into_iter().map(|mut item| item["keypair"].take()).collect();
        let mut owned = Self {
            networks: items(networks),
            subnets: items(subnets),
            routers: items(routers),
            security_groups: items(security_groups),
            ports: items(ports),
            floating_ips: items(floating_ips),
            servers,
            volumes,
            server_groups: items(server_groups),
            keypairs: items(keypairs),
        };
        owned.networks.retain(|item| marks.owns(&item.description));
        owned.subnets.retain(|item| marks.owns(&item.description));
        owned.routers.retain(|item| marks.owns(&item.description));
        owned.security_groups.retain(|item| marks.owns(&item.description));
        owned.ports.retain(|item| marks.owns(&item.description));
        owned.floating_ips.retain(|item| marks.owns(&item.description));
        owned.server_groups.retain(|item| item.name == marks.tag());
        let comment = format!(" {}", marks.tag());
        owned.keypairs.retain(|item| item.public_key.trim_end().ends_with(&comment));
        Ok(owned)
    }

    /// The port of a node.
    pub(super) fn port(&self, marks: &Marks, node: &str) -> Option<&Port> {
        self.ports.iter().find(|port| marks.is_node(&port.description, node))
    }

    /// The server of a node: the oldest, should there be two.
    pub(super) fn server(&self, marks: &Marks, node: &str) -> Option<&Server> {
        self.servers.iter().find(|server| marks.is_node(&server.description, node))
    }

    /// The data volume of a node.
    pub(super) fn volume(&self, marks: &Marks, node: &str) -> Option<&Volume> {
        self.volumes.iter().find(|volume| marks.is_node(&volume.description, node))
    }
}

/// The servers of the ring. One that is deleted but still listed is gone.
pub(super) async fn servers(api: &Api, marks: &Marks) -> Result<Vec<Server>, Fault> {
    let mut servers: Vec<Server> =
        items(api.list(Service::Compute, "servers/detail", "servers").await?);
    servers.retain(|server| {
        marks.owns(&server.description)
            && !matches!(server.status.as_str(), "DELETED" | "SOFT_DELETED")
    });
    servers.sort_by(|a, b| (&a.created, &a.id).cmp(&(&b.created, &b.id)));
    Ok(servers)
}

/// What Neutron has of one kind in our project: an administrator's list would hold everyone's.
pub(super) async fn ours(api: &Api, path: &str, key: &str) -> Result<Vec<Value>, Fault> {
    let path = format!("{path}?project_id={}", api.project());
    api.list(Service::Network, &path, key).await
}

/// The volumes of the ring, where the cloud has any.
pub(super) async fn volumes(api: &Api, marks: &Marks) -> Result<Vec<Volume>, Fault> {
    if !api.has(Service::Volume).await {
        return Ok(Vec::new());
    }
    let mut volumes: Vec<Volume> =
        items(api.list(Service::Volume, "volumes/detail", "volumes").await?);
    volumes.retain(|volume| marks.owns(&volume.description));
    Ok(volumes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_items_do_not_hide_the_others() {
        let values = serde_json::json!([
            {"id": "a", "name": null, "description": null, "fixed_ips": [{"ip_address": "10.0.0.5"}]},
            {"id": "b", "fixed_ips": "none"},
            {"id": "c", "status": "N/A", "mac_address": "", "allowed_address_pairs": [{"ip_address": "10.0.0.0/8"}]},
        ]);
        let ports: Vec<Port> = items(values.as_array().unwrap().clone());
        let ids: Vec<&str> = ports.iter().map(|port| port.id.as_str()).collect();
        assert_eq!(ids, ["a", "c"]);
        assert_eq!(ports[0].address(), Some("10.0.0.5".parse().unwrap()));
    }
}
