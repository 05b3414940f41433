//! What belongs to one node: its port, its volumes, its server and its floating IP. Each is looked for
//! before it is made, so that an interrupted run goes on where it was.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::api::{Api, Fault, Service};
use super::make::{make, remove, tag};
use super::marks::Marks;
use super::owned::{self, FloatingIp, Owned, Port, Server, Volume};
use super::shared::{Shared, Workshop};
use crate::error::{Error, Result};
use crate::inventory::FloatingIps;
use crate::node::NodeSpec;

/// How long a server may take to become ACTIVE, or to be gone.
const SERVER_WITHIN: Duration = Duration::from_secs(900);
/// How often a server is looked at meanwhile.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How often a server is looked at that others wait for.
const PLACED_EVERY: Duration = Duration::from_millis(250);
/// How often a server that may have been made is looked for.
const LOOKS: u32 = 10;

/// How many lines of a server's console are shown.
const CONSOLE_LINES: usize = 15;

/// The right to be the one whose server is placed.
type Turn<'a> = tokio::sync::MutexGuard<'a, ()>;

impl Api {
    /// The last lines on a server's console; none if it cannot be had.
    pub(super) async fn console(&self, server: &str) -> Option<String> {
        let body = json!({"os-getConsoleOutput": {"length": CONSOLE_LINES}});
        let path = format!("servers/{server}/action");
        let answer = self.post(Service::Compute, &path, body).await.ok()?;
        let text = answer["output"].as_str()?.trim().to_owned();
        (!text.is_empty()).then_some(text)
    }
}

impl Workshop<'_> {
    /// The port of a node, made if it is not there.
    pub(super) async fn port(
        &self,
        owned: &Owned,
        shared: &Shared,
        node: &NodeSpec,
    ) -> Result<Port, Fault> {
        if let Some(port) = owned.port(self.marks, &node.name) {
            tag(self.api, self.marks, "ports", &port.id, &port.tags).await?;
            return Ok(port.clone());
        }
        let mut fixed = json!({"subnet_id": shared.subnet});
        if let Some(host) = node.host {
            // A node that lost its port comes back where the others know it.
            fixed["ip_address"] = json!(host.to_string());
        }
        let item = json!({
            "name": node.name,
            "description": self.marks.description_of(node),
            "network_id": shared.network,
            "fixed_ips": [fixed],
            "security_groups": [shared.security_group],
        });
        let made = make(self.api, Service::Network, "ports", "port", item).await?;
        let port: Port = owned::items(vec![made]).pop().unwrap_or_default();
        tag(self.api, self.marks, "ports", &port.id, &[]).await?;
        Ok(port)
    }

    /// Gives ports of new nodes the floating IPs that the inventory wants.
    pub(super) async fn floating_ips(&self, owned: &Owned, ports: &[Port]) -> Result<()> {
        let wanted = match self.settings.floating_ips {
            FloatingIps::None => return Ok(()),
            FloatingIps::One => 1_usize.saturating_sub(owned.floating_ips.len()),
            FloatingIps::All => ports.len(),
        };
        // An interrupted run may have left one without.
        for ip in &owned.floating_ips {
            tag(self.api, self.marks, "floatingips", &ip.id, &ip.tags).await?;
        }
        let has_one = |port: &Port| {
            owned.floating_ips.iter().any(|ip| ip.port_id.as_deref() == Some(&port.id))
        };
        // One whose port is gone, perhaps because a run was interrupted.
        let mut free = owned.floating_ips.iter().filter(|ip| ip.port_id.is_none());
        let mut without = ports.iter().filter(|port| !has_one(port));
        if self.settings.floating_ips == FloatingIps::One
            && let Some(ip) = free.next()
        {
            if let Some(port) = without.next() {
                self.move_floating_ip(ip, Some(&port.id)).await?;
            }
            return Ok(());
        }
        for port in without.take(wanted) {
            match free.next() {
                Some(ip) => self.move_floating_ip(ip, Some(&port.id)).await?,
                None => self.new_floating_ip(port).await?,
            }
        }
        Ok(())
    }

    async fn new_floating_ip(&self, port: &Port) -> Result<()> {
        let external = self.resolved.external.as_ref().ok_or_else(|| {
            Error::new("there is no external network for floating IPs")
                .hint("name one at `openstack.external_network`")
        })?;
        let item = json!({
            "floating_network_id": external.id,
            "description": self.marks.description(),
            "port_id": port.id,
        });
        let mut tries = 0;
        let made = loop {
            match make(self.api, Service::Network, "floatingips", "floatingip", item.clone()).await
            {
                // A router interface that was made a moment ago may not be known everywhere.
                Err(fault) if fault.is(404) && tries < 5 => {
                    tries += 1;
                    tokio::time::sleep(LOOK_EVERY).await;
                }
                result => break result,
            }
        };
        let made = made.map_err(|fault| {
            let name = &external.name;
            let exhausted = fault.kind.contains("IpAddressGenerationFailure")
                || fault.kind.contains("ExternalIpAddressExhausted");
            let unreachable = fault.is(404);
            let error = Error::from(fault);
            if exhausted {
                error.hint(format!("the network {name} has no address left: name another one"))
            } else if unreachable {
                error.hint(format!(
                    "the servers' network needs a router with a gateway to {name}; or set \
                     `openstack.floating_ips: none`"
                ))
            } else {
                error
            }
        })?;
        let id = made["id"].as_str().unwrap_or_default();
        Ok(tag(self.api, self.marks, "floatingips", id, &[]).await?)
    }

    async fn move_floating_ip(&self, ip: &FloatingIp, port: Option<&str>) -> Result<(), Fault> {
        let body = json!({"floatingip": {"port_id": port}});
        self.api.put(Service::Network, &format!("floatingips/{}", ip.id), body).await.map(drop)
    }

    /// The server of a node, ACTIVE: made if it is not there, started if it does not run, made anew
    /// if it is broken.
    pub(super) async fn server(
        &self,
        owned: &Owned,
        shared: &Shared,
        node: &NodeSpec,
        port: &Port,
        user_data: &str,
        turn: Turn<'_>,
    ) -> Result<Server> {
        let mut turn = Some(turn);
        let mut port = port.clone();
        let mut there = owned.server(self.marks, &node.name).cloned();
        if let Some(broken) = there.as_ref().filter(|server| server.status == "ERROR") {
            tracing::warn!(server = %broken.id, node = %node.name, "a broken server is made anew");
            delete_server(self.api, &broken.id).await?;
            port = self.port_again(shared, node, &port).await?;
            there = None;
        }
        let mut zones = self.zones(node);
        loop {
            let zone = (!zones.is_empty()).then(|| zones.remove(0));
            let server = match there.take() {
                Some(server) => server,
                None => {
                    let turn = turn.take();
                    self.place(shared, node, &port, zone.as_deref(), user_data, turn).await?
                }
            };
            drop(turn.take());
            let server = self.settled(&server.id).await?;
            match server.status.as_str() {
                "ACTIVE" => return Ok(server),
                "SHUTOFF" => act(self.api, &server.id, "os-start").await?,
                "PAUSED" => act(self.api, &server.id, "unpause").await?,
                "SUSPENDED" => act(self.api, &server.id, "resume").await?,
                _ => {
                    let fault = server.fault.clone().unwrap_or_default();
                    let full = fault.message.contains("No valid host");
                    if full && !zones.is_empty() {
                        tracing::warn!(node = %node.name, ?zone, "the zone has no room, trying another");
                        delete_server(self.api, &server.id).await?;
                        port = self.port_again(shared, node, &port).await?;
                        continue;
                    }
                    return Err(self.broken(node, &server, zone.as_deref()).await);
                }
            }
            return self.becomes_active(&server.id).await;
        }
    }

    /// The port of a node whose server was deleted: clouds may delete it along. A new one gets the
    /// same address, which the other nodes know.
    async fn port_again(&self, shared: &Shared, node: &NodeSpec, port: &Port) -> Result<Port> {
        let owned = Owned::find(self.api, self.marks).await?;
        let node = NodeSpec { host: port.address(), ..node.clone() };
        let again = self.port(&owned, shared, &node).await?;
        if again.id != port.id {
            self.floating_ips(&owned, std::slice::from_ref(&again)).await?;
        }
        Ok(again)
    }

    /// The zones to try for a node, its own first.
    pub(super) fn zones(&self, node: &NodeSpec) -> Vec<String> {
        let all = &self.settings.availability_zones;
        // A zone of the inventory's nodes that is none of the cloud is a label.
        let own = node.zone.iter().filter(|zone| all.contains(zone));
        let others = all.iter().filter(|zone| node.zone.as_ref() != Some(zone));
        own.chain(others).cloned().collect()
    }

    /// Makes a server and, where it is to be apart from the others, waits until it has a hypervisor:
    /// the cloud only sees those that have one when it places the next. Waits for a turn if it has none.
    async fn place(
        &self,
        shared: &Shared,
        node: &NodeSpec,
        port: &Port,
        zone: Option<&str>,
        user_data: &str,
        turn: Option<Turn<'_>>,
    ) -> Result<Server> {
        if shared.server_group.is_none() {
            drop(turn);
            return self.create(shared, node, port, zone, user_data).await;
        }
        let _turn = match turn {
            Some(turn) => turn,
            None => self.placing.lock().await,
        };
        let server = self.create(shared, node, port, zone, user_data).await?;
        let placed = |server: &Server| server.status != "BUILD" || !server.host.is_empty();
        self.wait(&server.id, PLACED_EVERY, placed).await
    }

    pub(super) async fn create(
        &self,
        shared: &Shared,
        node: &NodeSpec,
        port: &Port,
        zone: Option<&str>,
        user_data: &str,
    ) -> Result<Server> {
        let name = &node.name;
        let mut server = json!({
            "name": name,
            "description": self.marks.description_of(node),
            "flavorRef": self.resolved.flavor.id,
            "networks": [{"port": port.id}],
            "key_name": shared.keypair,
            "user_data": user_data,
            "config_drive": self.settings.config_drive,
            "metadata": self.metadata(node),
            "tags": [self.marks.tag()],
        });
        if let Some(zone) = zone {
            server["availability_zone"] = json!(zone);
        }
        let mut devices = Vec::new();
        if let Some(size) = self.settings.root_volume_gb {
            let mut root = json!({
                "boot_index": 0,
                "source_type": "image",
                "destination_type": "volume",
                "uuid": self.resolved.image.id,
                "volume_size": size,
                "delete_on_termination": true,
            });
            if let Some(kind) = &self.settings.volume_type {
                root["volume_type"] = json!(kind);
            }
            devices.push(root);
        } else {
            server["imageRef"] = json!(self.resolved.image.id);
        }
        if let Some(size) = self.settings.data_volume_gb {
            if devices.is_empty() {
                devices.push(json!({
                    "boot_index": 0,
                    "source_type": "image",
                    "destination_type": "local",
                    "uuid": self.resolved.image.id,
                    "delete_on_termination": true,
                }));
            }
            devices.push(json!({
                "boot_index": -1,
                "source_type": "volume",
                "destination_type": "volume",
                "uuid": self.volume(node, size, zone).await?,
                "delete_on_termination": false,
            }));
        }
        if !devices.is_empty() {
            server["block_device_mapping_v2"] = json!(devices);
        }
        let mut body = json!({"server": server});
        if let Some(group) = &shared.server_group {
            body["os:scheduler_hints"] = json!({"group": group});
        }
        let fault = match self.api.post(Service::Compute, "servers", body).await {
            Ok(made) => {
                let id = made["server"]["id"].as_str().unwrap_or_default().to_owned();
                return Ok(Server { id, ..Server::default() });
            }
            Err(fault) => fault,
        };
        if fault.unsure() {
            for _ in 0..LOOKS {
                let servers = owned::servers(self.api, self.marks).await?;
                let is_it = |server: &Server| self.marks.is_node(&server.description, name);
                if let Some(server) = servers.into_iter().find(is_it) {
                    return Ok(server);
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
        let mut error = Error::from(fault);
        if let Some(problem) = error.problems.first_mut() {
            problem.what = format!("the server of {name} is not made: {}", problem.what);
        }
        Err(error)
    }

    fn metadata(&self, node: &NodeSpec) -> Value {
        let mut metadata = json!({
            "sky.ring": self.marks.ring(),
            "sky.node": node.name,
            "sky.id": node.id.to_string(),
            "sky.port": node.port.to_string(),
        });
        if let Some(zone) = &node.zone {
            metadata["sky.zone"] = json!(zone);
        }
        metadata
    }

    /// The data volume of a node, made if it is not there; its id comes back when it can be used.
    async fn volume(&self, node: &NodeSpec, size: u32, zone: Option<&str>) -> Result<String> {
        let volumes = owned::volumes(self.api, self.marks).await?;
        let is_it = |volume: &Volume| self.marks.is_node(&volume.description, &node.name);
        let id = match volumes.into_iter().find(is_it) {
            Some(volume) => volume.id,
            None => {
                let mut item = json!({
                    "name": node.name,
                    "description": self.marks.description_of(node),
                    "size": size,
                    "metadata": self.metadata(node),
                });
                if let Some(kind) = &self.settings.volume_type {
                    item["volume_type"] = json!(kind);
                }
                if let Some(zone) = zone {
                    item["availability_zone"] = json!(zone);
                }
                let made = make(self.api, Service::Volume, "volumes", "volume", item).await?;
                made["id"].as_str().unwrap_or_default().to_owned()
            }
        };
        let begun = Instant::now();
        loop {
            let answer = self.api.get(Service::Volume, &format!("volumes/{id}")).await?;
            let volume: Volume = owned::item(answer, "volume");
            match volume.status.as_str() {
                "available" | "in-use" => return Ok(id),
                status if status.starts_with("error") || begun.elapsed() > SERVER_WITHIN => {
                    let what = format!("the volume {id} of {} is {status}", node.name);
                    return Err(
                        Error::new(what).hint("`sky-deploy audit` lists what is left of it")
                    );
                }
                _ => tokio::time::sleep(LOOK_EVERY).await,
            }
        }
    }

    /// Waits until a server is neither being made nor being changed.
    async fn settled(&self, id: &str) -> Result<Server> {
        let busy = ["", "BUILD", "REBOOT", "HARD_REBOOT", "REBUILD"];
        self.wait(id, LOOK_EVERY, |server| !busy.contains(&server.status.as_str())).await
    }

    async fn becomes_active(&self, id: &str) -> Result<Server> {
        let done = ["ACTIVE", "ERROR"];
        self.wait(id, LOOK_EVERY, |server| done.contains(&server.status.as_str())).await
    }

    async fn wait(
        &self,
        id: &str,
        every: Duration,
        is_it: impl Fn(&Server) -> bool,
    ) -> Result<Server> {
        let begun = Instant::now();
        loop {
            let answer = self.api.get(Service::Compute, &format!("servers/{id}")).await?;
            let server: Server = owned::item(answer, "server");
            if is_it(&server) {
                return Ok(server);
            }
            if begun.elapsed() > SERVER_WITHIN {
                let within = SERVER_WITHIN.as_secs();
                let what = format!("the server {id} is still {} after {within} s", server.status);
                return Err(Error::new(what).hint("the same command again goes on waiting"));
            }
            tokio::time::sleep(every).await;
        }
    }

    /// Why a server came to nothing, with everything that is known of it.
    async fn broken(&self, node: &NodeSpec, server: &Server, zone: Option<&str>) -> Error {
        let fault = server.fault.clone().unwrap_or_default();
        let message = if fault.message.is_empty() { "no reason given" } else { &fault.message };
        let name = &node.name;
        // A server that found no place is in no zone.
        let zone = zone.filter(|_| server.zone.is_empty()).unwrap_or(&server.zone);
        let mut error = Error::new(format!("the server of {name} is {}: {message}", server.status))
            .because(format!(
                "server {}, flavor {}, image {}, zone {}, code {}, request {}",
                server.id,
                self.resolved.flavor.name,
                self.resolved.image.name.as_deref().unwrap_or(&self.resolved.image.id),
                if zone.is_empty() { "any" } else { zone },
                fault.code,
                self.request(&server.id).await.as_deref().unwrap_or("unknown")
            ));
        if let Some(console) = self.api.console(&server.id).await {
            error = error.because(format!("its console ends with: {console}"));
        }
        let lower = message.to_ascii_lowercase();
        error.hint(if lower.contains("no valid host") {
            "the cloud has no hypervisor with room that fits: another flavor or zone, or \
             `openstack.anti_affinity: soft`; the same command again makes this server anew"
        } else if lower.contains("quota") {
            "a quota is used up: ask for a larger one; the same command again goes on from there"
        } else {
            "the same command again makes this server anew"
        })
    }

    /// How the service's log calls the request that made a server.
    async fn request(&self, id: &str) -> Option<String> {
        let path = format!("servers/{id}/os-instance-actions");
        let answer = self.api.get(Service::Compute, &path).await.ok()?;
        let actions = answer["instanceActions"].as_array()?;
        let made = actions.iter().find(|action| action["action"] == "create")?;
        made["request_id"].as_str().map(str::to_owned)
    }
}

/// Does something to a server that takes no arguments. What is done already is done.
pub(super) async fn act(api: &Api, id: &str, action: &str) -> Result<()> {
    let body = json!({action: null});
    let path = format!("servers/{id}/action");
    match api.post(Service::Compute, &path, body).await {
        // 409: it is in that state already, or on its way there.
        Err(fault) if !fault.is(409) => Err(fault.into()),
        _ => Ok(()),
    }
}

/// Deletes a server and waits until it is gone. One that a cloud keeps for a while is as good as gone.
async fn delete_server(api: &Api, id: &str) -> Result<()> {
    let path = format!("servers/{id}");
    remove(api, Service::Compute, &path).await?;
    let begun = Instant::now();
    let mut forced = false;
    loop {
        let answer = match api.get(Service::Compute, &path).await {
            Err(fault) if fault.is(404) => return Ok(()),
            result => result?,
        };
        let server: Server = owned::item(answer, "server");
        match server.status.as_str() {
            "DELETED" => return Ok(()),
            "SOFT_DELETED" if forced => return Ok(()),
            "SOFT_DELETED" => {
                forced = true;
                // Only some may; who may not has deleted it all the same.
                let _ = act(api, id, "forceDelete").await;
            }
            _ if begun.elapsed() > SERVER_WITHIN => {
                return Err(Error::new(format!(
                    "the server {id} is {} and does not go",
                    server.status
                ))
                .hint("the same command again goes on; otherwise ask the cloud's operators"));
            }
            _ => tokio::time::sleep(LOOK_EVERY / 4).await,
        }
    }
}

/// Removes what belongs to one node, in the order in which it depends on each other.
pub(super) async fn delete_node(
    api: &Api,
    marks: &Marks,
    owned: &Owned,
    name: &str,
    keep_data: bool,
) -> Result<()> {
    let servers = owned.servers.iter().filter(|server| marks.is_node(&server.description, name));
    for server in servers {
        delete_server(api, &server.id).await?;
    }
    if keep_data {
        return Ok(());
    }
    let is_port = |port: &&Port| marks.is_node(&port.description, name);
    for port in owned.ports.iter().filter(is_port) {
        for ip in owned.floating_ips.iter().filter(|ip| ip.port_id.as_deref() == Some(&port.id)) {
            let path = format!("floatingips/{}", ip.id);
            // The only one of the ring goes over to another server.
            let others =
                owned.ports.iter().filter(|other| !marks.is_node(&other.description, name));
            let heir = others.min_by(|a, b| a.name.cmp(&b.name));
            match heir.filter(|_| owned.floating_ips.len() == 1) {
                Some(heir) => {
                    let body = json!({"floatingip": {"port_id": heir.id}});
                    match api.put(Service::Network, &path, body).await {
                        // The heir is removed at the same time. The next one, or the end, takes it.
                        Err(fault) if fault.is(404) || fault.is(409) => {}
                        result => drop(result?),
                    }
                }
                None => remove(api, Service::Network, &path).await?,
            }
        }
        remove(api, Service::Network, &format!("ports/{}", port.id)).await?;
    }
    for volume in owned.volumes.iter().filter(|volume| marks.is_node(&volume.description, name)) {
        remove(api, Service::Volume, &format!("volumes/{}", volume.id)).await?;
    }
    Ok(())
}
