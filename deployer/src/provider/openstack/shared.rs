//! What all servers of a ring share: network, subnet, router, security group, server group and key
//! pair. What the inventory names is used; the rest is made, and removed after the last server.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::api::{Api, Fault, Service};
use super::make::{make, remove, tag};
use super::marks::Marks;
use super::owned::{self, Owned, Port, Router};
use super::resolve::Resolved;
use crate::error::{Error, Problem, Result};
use crate::inventory::{AntiAffinity, Openstack};

/// The ids of what all servers share.
#[derive(Debug, Clone)]
pub(super) struct Shared {
    pub(super) network: String,
    pub(super) subnet: String,
    pub(super) security_group: String,
    pub(super) server_group: Option<String>,
    /// The name of the key pair: it has no id.
    pub(super) keypair: String,
}

/// What is needed to make things in a project.
pub(super) struct Workshop<'a> {
    pub(super) api: &'a Api,
    pub(super) settings: &'a Openstack,
    pub(super) marks: &'a Marks,
    pub(super) resolved: &'a Resolved,
    /// Held while a server that is to be apart from the others gets its hypervisor.
    pub(super) placing: &'a tokio::sync::Mutex<()>,
}

impl Workshop<'_> {
    /// Makes what is missing. `ports` are those of the agents, `public_key` is ours.
    pub(super) async fn ensure(
        &self,
        owned: &Owned,
        ports: &BTreeSet<u16>,
        public_key: &str,
    ) -> Result<Shared> {
        let (network, subnet) = match (&self.resolved.network, &self.resolved.subnet) {
            (Some(network), Some(subnet)) => (network.id.clone(), subnet.id.clone()),
            _ => self.network(owned).await?,
        };
        let security_group = self.security_group(owned, ports).await?;
        let server_group = self.server_group(owned).await?;
        let keypair = self.keypair(owned, public_key).await?;
        Ok(Shared { network, subnet, security_group, server_group, keypair })
    }

    /// What a resource all nodes share is made with.
    fn named(&self, more: Value) -> Value {
        let mut item = json!({
            "name": self.marks.shared_name(),
            "description": self.marks.description(),
        });
        if let (Some(item), Value::Object(more)) = (item.as_object_mut(), more) {
            item.extend(more);
        }
        item
    }

    /// Makes something of Neutron unless it is there, and tags it. Its id comes back.
    async fn one(
        &self,
        collection: &str,
        key: &str,
        there: Option<(&str, &[String])>,
        more: Value,
    ) -> Result<String, Fault> {
        let (id, tags) = match there {
            Some((id, tags)) => (id.to_owned(), tags.to_vec()),
            None => {
                let item = self.named(more);
                let made = make(self.api, Service::Network, collection, key, item).await?;
                (made["id"].as_str().unwrap_or_default().to_owned(), Vec::new())
            }
        };
        tag(self.api, self.marks, collection, &id, &tags).await?;
        Ok(id)
    }

    async fn network(&self, owned: &Owned) -> Result<(String, String), Fault> {
        let there = owned.networks.first().map(|item| (item.id.as_str(), &*item.tags));
        let network = self.one("networks", "network", there, json!({})).await?;
        let there = owned.subnets.iter().find(|subnet| subnet.network_id == network);
        let there = there.map(|item| (item.id.as_str(), &*item.tags));
        let more = json!({
            "network_id": network,
            "ip_version": 4,
            "cidr": self.settings.cidr,
            "dns_nameservers": self.settings.dns,
        });
        let subnet = self.one("subnets", "subnet", there, more).await?;
        let router = match (&self.resolved.router, &self.resolved.external) {
            (Some(router), _) => router.id.clone(),
            // A cloud without a way out: the servers still reach each other.
            (None, None) => return Ok((network, subnet)),
            (None, Some(external)) => {
                let there = owned.routers.first().map(|item| (item.id.as_str(), &*item.tags));
                let more = json!({"external_gateway_info": {"network_id": external.id}});
                self.one("routers", "router", there, more).await?
            }
        };
        let connected = interfaces(self.api, &router).await?;
        let is_ours = |port: &Port| port.fixed_ips.iter().any(|fixed| fixed.subnet_id == subnet);
        if !connected.iter().any(is_ours) {
            let path = format!("routers/{router}/add_router_interface");
            let connected =
                self.api.put(Service::Network, &path, json!({"subnet_id": subnet})).await;
            match connected {
                // An earlier try got through, and its answer did not.
                Err(fault) if fault.message.contains("already has a port on subnet") => {}
                result => drop(result?),
            }
        }
        Ok((network, subnet))
    }

    async fn security_group(&self, owned: &Owned, ports: &BTreeSet<u16>) -> Result<String> {
        if let Some(group) = &self.resolved.security_group {
            return Ok(group.id.clone());
        }
        let there = owned.security_groups.first();
        let known = there.map(|item| (item.id.as_str(), &*item.tags));
        let group = self.one("security-groups", "security_group", known, json!({})).await?;
        let existing = there.map_or(&[][..], |group| &group.security_group_rules);
        let (missing, superfluous) = changes(existing, &rules(self.settings, ports, &group));
        for rule in missing {
            let body = json!({"security_group_rule": rule.body(&group)});
            let post = || self.api.post(Service::Network, "security-group-rules", body.clone());
            let mut made = post().await;
            if made.as_ref().is_err_and(Fault::unsure) {
                made = post().await; // No group has the same rule twice.
            }
            match made {
                Err(fault) if fault.is(409) && !fault.is_quota() => {} // It is there.
                result => drop(result?),
            }
        }
        for id in superfluous {
            self.api.delete(Service::Network, &format!("security-group-rules/{id}")).await?;
        }
        Ok(group)
    }

    async fn server_group(&self, owned: &Owned) -> Result<Option<String>> {
        let policy = match self.settings.anti_affinity {
            AntiAffinity::None => return Ok(None),
            AntiAffinity::Soft => "soft-anti-affinity",
            AntiAffinity::Hard => "anti-affinity",
        };
        if let Some(group) = owned.server_groups.first() {
            return Ok(Some(group.id.clone()));
        }
        let name = self.marks.tag();
        let body = json!({"server_group": {"name": name, "policy": policy}});
        let fault = match self.api.post(Service::Compute, "os-server-groups", body).await {
            Ok(made) => return Ok(made["server_group"]["id"].as_str().map(str::to_owned)),
            Err(fault) => fault,
        };
        if fault.unsure() {
            let groups =
                self.api.list(Service::Compute, "os-server-groups", "server_groups").await?;
            let found = groups.iter().find(|group| group["name"] == name);
            if let Some(id) = found.and_then(|group| group["id"].as_str()) {
                return Ok(Some(id.to_owned()));
            }
        }
        let forbidden = fault.is(403) && !fault.is_quota();
        let error = Error::from(fault);
        Err(if forbidden {
            error.hint("set `openstack.anti_affinity: none` to do without a server group")
        } else {
            error
        })
    }

    async fn keypair(&self, owned: &Owned, public_key: &str) -> Result<String> {
        if let Some(name) = &self.resolved.keypair {
            return Ok(name.clone());
        }
        let name = self.marks.shared_name();
        let same = |other: &str| {
            other.split_whitespace().take(2).eq(public_key.split_whitespace().take(2))
        };
        match owned.keypairs.iter().find(|pair| pair.name == name) {
            Some(pair) if same(&pair.public_key) => return Ok(name),
            // Another machine made it. Servers have copies, so nothing is lost with it.
            Some(_) => self.api.delete(Service::Compute, &format!("os-keypairs/{name}")).await?,
            None => {}
        }
        // That library calls the cloud itself, which a rehearsal must not.
        if self.api.rehearsal().is_none() {
            let new = self.api.cloud().new_keypair(name.clone()).with_public_key(public_key);
            let Err(error) = new.create().await else { return Ok(name) };
            tracing::debug!(%error, "the key pair is made in another way");
        }
        // Perhaps only its answer was lost, or the token was refused, or the service is busy, or its
        // version document names a host that only the cloud reaches.
        let body = json!({"keypair": {"name": name, "public_key": public_key}});
        let Err(fault) = self.api.post(Service::Compute, "os-keypairs", body).await else {
            return Ok(name);
        };
        let pairs = self.api.list(Service::Compute, "os-keypairs", "keypairs").await?;
        let mut pairs = pairs.iter().map(|item| &item["keypair"]);
        let there = pairs.find(|pair| pair["name"] == name);
        match there.and_then(|pair| pair["public_key"].as_str()) {
            Some(key) if same(key) => Ok(name),
            Some(_) => Err(Error::from(fault).hint(format!(
                "there is another key pair {name}: name one at `openstack.keypair`, or give the \
                 ring another name"
            ))),
            None => Err(fault.into()),
        }
    }
}

/// Whether floating IPs of the external network can lead to a subnet that the inventory names: a router
/// must connect the two. What other projects keep to themselves is given the benefit of the doubt.
pub(super) async fn way_out(api: &Api, resolved: &Resolved) -> Result<Option<Problem>, Fault> {
    let (Some(network), Some(subnet), Some(external)) =
        (&resolved.network, &resolved.subnet, &resolved.external)
    else {
        return Ok(None);
    };
    let ports = ports_in(api, &subnet.id).await?;
    let connected: Vec<&Port> = ports.iter().filter(|port| is_interface(port)).collect();
    if connected.is_empty() && network.project_id != api.project() {
        return Ok(None);
    }
    for port in connected {
        let answer = match api.get(Service::Network, &format!("routers/{}", port.device_id)).await {
            Err(fault) if fault.is(404) => return Ok(None),
            result => result?,
        };
        let router: Router = owned::item(answer, "router");
        if router.external_gateway_info["network_id"].as_str() == Some(&external.id) {
            return Ok(None);
        }
    }
    Ok(Some(Problem {
        hint: Some(
            "connect it to a router with a gateway there, or set `openstack.floating_ips: none`"
                .to_owned(),
        ),
        ..Problem::new(format!(
            "no router leads from the network {} to the external network {}",
            network.name, external.name
        ))
    }))
}

/// The ports with an address of a subnet.
async fn ports_in(api: &Api, subnet: &str) -> Result<Vec<Port>, Fault> {
    let path = format!("ports?fixed_ips=subnet_id%3D{subnet}");
    Ok(owned::items(api.list(Service::Network, &path, "ports").await?))
}

/// Whether a port connects a router to a subnet.
fn is_interface(port: &Port) -> bool {
    port.device_owner.starts_with("network:") && port.device_owner.contains("interface")
}

/// The ports by which a router is connected to subnets.
async fn interfaces(api: &Api, router: &str) -> Result<Vec<Port>, Fault> {
    let path = format!("ports?device_id={router}");
    let ports: Vec<Port> = owned::items(api.list(Service::Network, &path, "ports").await?);
    Ok(ports.into_iter().filter(is_interface).collect())
}

/// What a rule of a security group lets in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rule {
    ethertype: &'static str,
    protocol: String,
    port: Option<u16>,
    /// A network, or else the members of a group.
    from: Result<String, String>,
}

impl Rule {
    fn body(&self, group: &str) -> Value {
        let (network, members) = match &self.from {
            Ok(network) => (Some(network), None),
            Err(members) => (None, Some(members)),
        };
        json!({
            "security_group_id": group,
            "direction": "ingress",
            "ethertype": self.ethertype,
            "protocol": self.protocol,
            "port_range_min": self.port,
            "port_range_max": self.port,
            "remote_ip_prefix": network,
            "remote_group_id": members,
        })
    }

    /// A rule as Neutron lists it; none if it is not of a kind we make.
    fn read(rule: &Value) -> Option<Self> {
        let port = |key: &str| rule[key].as_u64().and_then(|port| u16::try_from(port).ok());
        let ethertype = match rule["ethertype"].as_str()? {
            "IPv4" => "IPv4",
            "IPv6" => "IPv6",
            _ => return None,
        };
        let everyone = if ethertype == "IPv4" { "0.0.0.0/0" } else { "::/0" };
        let from = match (rule["remote_ip_prefix"].as_str(), rule["remote_group_id"].as_str()) {
            (_, Some(group)) => Err(group.to_owned()),
            (prefix, None) => Ok(Openstack::network(prefix.unwrap_or(everyone))),
        };
        (port("port_range_min") == port("port_range_max")).then_some(())?;
        let protocol = rule["protocol"].as_str()?.to_owned();
        Some(Self { ethertype, protocol, port: port("port_range_min"), from })
    }
}

/// What is let in: the members of the group to each other's agents and, through the one with a
/// floating IP, to SSH; the inventory's networks to the agents and to SSH.
pub(super) fn rules(settings: &Openstack, ports: &BTreeSet<u16>, group: &str) -> BTreeSet<Rule> {
    let tcp = |ethertype, port, from| Rule {
        ethertype,
        protocol: "tcp".to_owned(),
        port: Some(port),
        from,
    };
    let members = || Err(group.to_owned());
    let kind = |network: &str| if network.contains(':') { "IPv6" } else { "IPv4" };
    let mut rules = BTreeSet::from([
        tcp("IPv4", 22, members()),
        Rule { ethertype: "IPv4", protocol: "icmp".to_owned(), port: None, from: members() },
    ]);
    for port in ports {
        rules.insert(tcp("IPv4", *port, members()));
        for network in &settings.allow_from {
            rules.insert(tcp(kind(network), *port, Ok(network.clone())));
        }
    }
    for network in &settings.ssh_from {
        rules.insert(tcp(kind(network), 22, Ok(network.clone())));
    }
    rules
}

/// The rules to add, and the ids of those to remove, to get from what there is to what is wanted.
fn changes(existing: &[Value], wanted: &BTreeSet<Rule>) -> (Vec<Rule>, Vec<String>) {
    let incoming = existing.iter().filter(|rule| rule["direction"] == "ingress");
    let known: Vec<(Option<Rule>, &Value)> =
        incoming.map(|rule| (Rule::read(rule), rule)).collect();
    let has = |rule: &Rule| known.iter().any(|(other, _)| other.as_ref() == Some(rule));
    let missing = wanted.iter().filter(|rule| !has(rule)).cloned().collect();
    let is_wanted = |rule: &Option<Rule>| rule.as_ref().is_some_and(|rule| wanted.contains(rule));
    let superfluous = known.iter().filter(|(rule, _)| !is_wanted(rule));
    let superfluous = superfluous.filter_map(|(_, rule)| rule["id"].as_str().map(str::to_owned));
    (missing, superfluous.collect())
}

/// Removes what all servers shared. One thing that cannot be removed does not keep the others; the
/// error lists all that is left.
pub(super) async fn clear(api: &Api, marks: &Marks) -> Result<()> {
    let owned = Owned::find(api, marks).await?;
    let mut problems = Vec::new();
    let mut note = |kind: &str, name: &str, id: &str, result: Result<(), Fault>| {
        if let Err(fault) = result {
            let error = Error::from(fault);
            let mut problem = Problem::new(format!("cannot remove the {kind} {name} ({id})"));
            problem.causes = error.problems.into_iter().map(|problem| problem.what).collect();
            problems.push(problem);
        }
    };
    for item in &owned.floating_ips {
        let path = format!("floatingips/{}", item.id);
        note(
            "floating IP",
            &item.floating_ip_address,
            &item.id,
            remove(api, Service::Network, &path).await,
        );
    }
    for item in &owned.ports {
        let path = format!("ports/{}", item.id);
        note("port", &item.name, &item.id, remove(api, Service::Network, &path).await);
    }
    for item in &owned.volumes {
        let path = format!("volumes/{}", item.id);
        note("volume", &item.name, &item.id, remove(api, Service::Volume, &path).await);
    }
    for item in &owned.server_groups {
        let result = if item.members.is_empty() {
            remove(api, Service::Compute, &format!("os-server-groups/{}", item.id)).await
        } else {
            Ok(()) // Somebody put servers of theirs into it.
        };
        note("server group", &item.name, &item.id, result);
    }
    for item in &owned.keypairs {
        let path = format!("os-keypairs/{}", item.name);
        note("key pair", &item.name, &item.name, remove(api, Service::Compute, &path).await);
    }
    for item in &owned.security_groups {
        let path = format!("security-groups/{}", item.id);
        note("security group", &item.name, &item.id, remove(api, Service::Network, &path).await);
    }
    for item in &owned.routers {
        note("router", &item.name, &item.id, remove_router(api, item).await);
    }
    for item in &owned.subnets {
        let path = format!("subnets/{}", item.id);
        let removed = match disconnect(api, &item.id).await {
            Ok(()) => remove(api, Service::Network, &path).await,
            kept => kept,
        };
        note("subnet", &item.name, &item.id, removed);
    }
    for item in &owned.networks {
        let path = format!("networks/{}", item.id);
        note("network", &item.name, &item.id, remove(api, Service::Network, &path).await);
    }
    let Some(last) = problems.last_mut() else { return Ok(()) };
    for network in &owned.networks {
        let path = format!("ports?network_id={}", network.id);
        let ports: Vec<Port> = match api.list(Service::Network, &path, "ports").await {
            Ok(ports) => owned::items(ports),
            Err(_) => continue,
        };
        let foreign = ports.iter().filter(|port| !port.device_owner.starts_with("network:"));
        let foreign = foreign.filter(|port| !marks.owns(&port.description));
        last.causes.extend(foreign.map(|port| {
            format!(
                "the port {} ({}) of somebody else is in the network {}",
                port.id, port.name, network.name
            )
        }));
    }
    last.hint =
        Some("remove what is in the way, then the same command again removes the rest".to_owned());
    Error::of(problems).map_or(Ok(()), Err)
}

/// Takes an interface off a router; what is not there is off.
async fn unplug(api: &Api, router: &str, interface: Value) -> Result<(), Fault> {
    let path = format!("routers/{router}/remove_router_interface");
    match api.put(Service::Network, &path, interface).await {
        Err(fault) if !fault.is(404) => Err(fault),
        _ => Ok(()),
    }
}

async fn remove_router(api: &Api, router: &Router) -> Result<(), Fault> {
    for port in interfaces(api, &router.id).await? {
        unplug(api, &router.id, json!({"port_id": port.id})).await?;
    }
    remove(api, Service::Network, &format!("routers/{}", router.id)).await
}

/// Takes a subnet of ours off the routers that are not ours.
async fn disconnect(api: &Api, subnet: &str) -> Result<(), Fault> {
    for port in ports_in(api, subnet).await?.iter().filter(|port| is_interface(port)) {
        unplug(api, &port.device_id, json!({"subnet_id": subnet})).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(id: &str, rule: &Rule) -> Value {
        let mut value = rule.body("g");
        value["id"] = json!(id);
        value
    }

    #[test]
    fn rules_follow_the_inventory() {
        let mut settings =
            Openstack { allow_from: vec!["10.0.0.0/8".into()], ..Openstack::default() };
        let ports = BTreeSet::from([4321]);
        let first = rules(&settings, &ports, "g");
        assert_eq!(first.len(), 5);
        assert!(
            !first
                .iter()
                .any(|rule| rule.port == Some(4321) && rule.from == Ok("0.0.0.0/0".into()))
        );
        let existing: Vec<Value> =
            first.iter().enumerate().map(|(i, rule)| listed(&i.to_string(), rule)).collect();
        assert_eq!(changes(&existing, &first), (vec![], vec![]));

        settings.allow_from = vec!["fd00::/8".into()];
        let (missing, superfluous) = changes(&existing, &rules(&settings, &ports, "g"));
        assert_eq!((missing.len(), superfluous.len()), (1, 1));
        assert_eq!(missing[0].ethertype, "IPv6");
    }

    #[test]
    fn a_network_is_the_same_however_it_is_written() {
        let written =
            "{allow_from: ['2001:DB8:0::/32', 10.0.0.0/+8, 10.0.0.0/08], ssh_from: ['0::/0']}";
        let settings: Openstack = serde_yaml::from_str(written).unwrap();
        let wanted = rules(&settings, &BTreeSet::from([4321]), "g");
        let networks: Vec<&str> =
            wanted.iter().filter_map(|rule| rule.from.as_deref().ok()).collect();
        assert_eq!(networks, ["10.0.0.0/8", "::/0", "2001:db8::/32"]);
        // As Neutron lists them, and as a cloud might that keeps what it is given.
        for network in ["2001:db8::/32", "2001:DB8::/32"] {
            let by_cloud = |(i, rule): (usize, &Rule)| {
                let mut value = listed(&i.to_string(), rule);
                if value["remote_ip_prefix"] == "2001:db8::/32" {
                    value["remote_ip_prefix"] = json!(network);
                }
                value
            };
            let existing: Vec<Value> = wanted.iter().enumerate().map(by_cloud).collect();
            assert_eq!(changes(&existing, &wanted), (vec![], vec![]), "{network}");
        }
    }

    #[test]
    fn rules_for_leaving_are_left_alone_and_odd_ones_removed() {
        let existing = [
            json!({"id": "1", "direction": "egress", "ethertype": "IPv4"}),
            json!({"id": "2", "direction": "ingress", "ethertype": "IPv4", "protocol": null}),
        ];
        let (_, superfluous) = changes(&existing, &BTreeSet::new());
        assert_eq!(superfluous, ["2"]);
    }
}
