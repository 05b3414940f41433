//! Nodes as servers of an OpenStack cloud, with the agent in a container on each. Everything this
//! provider makes carries the mark of its ring ([`marks`]), so that nothing else is needed to find it
//! again, and nothing without the mark is ever changed or deleted.
//!
//! ```text
//! Servers -> shared, machines -> make -> api -> auth -> clouds
//!         -> resolve, preflight, owned -> marks
//!         -> guests -> tunnel -> ssh
//!                   -> user_data, and the containers of `docker`
//! ```

mod api;
mod auth;
mod clouds;
mod examine;
mod guests;
mod launch;
mod leftovers;
mod machines;
mod make;
mod marks;
mod owned;
mod preflight;
mod rehearsal;
mod resolve;
mod shared;
mod ssh;
mod tunnel;
mod user_data;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{self, BoxStream, StreamExt, TryStreamExt};
use tokio::sync::{Mutex, OnceCell};

use super::{
    Doing, Fact, LogRequest, Patience, Provider, Rendered, Said, Site, lines, not_running,
};
use crate::error::{Error, Problem, Result};
use crate::inventory::{FloatingIps, ProviderKind};
use crate::node::{Handle, Launch, Machine, MachineState, NodeSpec};
use crate::outlook::{Leftover, Outlook, Quota};
use crate::state::Secrets;
use api::Api;
use guests::Guests;
use marks::Marks;
use owned::{Owned, Port, Server};
use resolve::Resolved;
use shared::{Shared, Workshop};
use ssh::Place;

/// How long what was found in the cloud is taken for true by those who only look.
const FRESH: Duration = Duration::from_secs(2);
/// How long after it was made a server may be expected to be still booting.
const YOUNG: Duration = Duration::from_secs(600);
/// How many ports are made at once.
const AT_ONCE: usize = 8;
/// How long a server may take to stop, freeze or go on.
const CHANGED_WITHIN: Duration = Duration::from_secs(180);
/// How often it is looked at meanwhile.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The key of a server's metadata that holds its host key.
const HOST_KEY: &str = "sky.host-key";

/// The OpenStack provider.
pub struct Servers {
    site: Site,
    marks: Marks,
    guests: Guests,
    api: OnceCell<Api>,
    resolved: OnceCell<Resolved>,
    shared: OnceCell<Shared>,
    seen: Mutex<Option<(Instant, Arc<Owned>)>>,
    placing: Mutex<()>,
}

impl Servers {
    /// The servers of a ring.
    pub fn new(site: Site) -> Self {
        let marks = Marks::new(site.folder.ring());
        Self {
            guests: Guests::new(site.clone()),
            site,
            marks,
            api: OnceCell::new(),
            resolved: OnceCell::new(),
            shared: OnceCell::new(),
            seen: Mutex::default(),
            placing: Mutex::default(),
        }
    }

    async fn api(&self) -> Result<&Api> {
        self.api.get_or_try_init(|| Api::connect(&self.site.openstack)).await
    }

    async fn resolved(&self) -> Result<&Resolved> {
        let api = self.api().await?;
        self.resolved.get_or_try_init(|| resolve::resolve(api, &self.site.openstack)).await
    }

    /// What the ring owns now.
    async fn owned(&self) -> Result<Arc<Owned>> {
        let api = self.api().await?;
        let mut owned = Owned::find(api, &self.marks).await?;
        owned.ports.extend(api.rehearsal().into_iter().flat_map(|all| owned::items(all.ports())));
        let owned = Arc::new(owned);
        *self.seen.lock().await = Some((Instant::now(), Arc::clone(&owned)));
        Ok(owned)
    }

    /// What the ring owned a moment ago.
    async fn lately(&self) -> Result<Arc<Owned>> {
        if let Some((when, owned)) = &*self.seen.lock().await
            && when.elapsed() < FRESH
        {
            return Ok(Arc::clone(owned));
        }
        self.owned().await
    }

    /// Something was changed: what was seen before is not true any more.
    async fn changed(&self) {
        *self.seen.lock().await = None;
    }

    async fn workshop(&self) -> Result<Workshop<'_>> {
        Ok(Workshop {
            api: self.api().await?,
            settings: &self.site.openstack,
            marks: &self.marks,
            resolved: self.resolved().await?,
            placing: &self.placing,
        })
    }

    /// What all servers share, made where it is missing, once in the life of this value.
    async fn shared(&self, owned: &Owned, nodes: &[NodeSpec]) -> Result<&Shared> {
        let make = async || {
            let known = owned.ports.iter().filter_map(|port| self.marks.node(&port.description));
            let ports: BTreeSet<u16> =
                known.chain(nodes.iter().cloned()).map(|node| node.port).collect();
            let key = self.public_key().await?;
            self.workshop().await?.ensure(owned, &ports, &key).await
        };
        self.shared.get_or_try_init(make).await
    }

    /// The server of a node as ssh reaches it.
    fn place(&self, owned: &Owned, node: &str) -> Option<Place> {
        let port = owned.port(&self.marks, node)?;
        let spec = self.marks.node(&port.description)?;
        let floating = owned.floating_ips.iter().find(|ip| ip.port_id.as_deref() == Some(&port.id));
        Some(Place {
            node: node.to_owned(),
            server: owned.server(&self.marks, node)?.id.clone(),
            fixed: port.address()?,
            port: spec.port,
            floating: floating.and_then(|ip| ip.floating_ip_address.parse().ok()),
        })
    }

    /// The server through which this machine reaches the others.
    fn gateway(&self, owned: &Owned) -> Option<Place> {
        if self.site.openstack.floating_ips == FloatingIps::None {
            return None;
        }
        let runs = |node: &String| {
            owned.server(&self.marks, node).is_some_and(|server| server.status == "ACTIVE")
        };
        let (running, others): (Vec<String>, Vec<String>) =
            self.nodes(owned).into_keys().partition(runs);
        let places = running.iter().chain(&others).filter_map(|node| self.place(owned, node));
        places.into_iter().find(|place| place.floating.is_some())
    }

    /// Where this machine reaches the agent of a running server.
    async fn reach(&self, owned: &Owned, place: &Place, gateway: Option<&Place>) -> Result<String> {
        let runs = |gateway: &Place| {
            owned.servers.iter().any(|s| s.id == gateway.server && s.status == "ACTIVE")
        };
        match gateway.filter(|gateway| !runs(gateway)) {
            Some(gateway) => Err(Error::new(format!(
                "{}, through which this machine reaches it, does not run",
                gateway.node
            ))),
            None => self.guests.reach(place, gateway).await,
        }
    }

    /// The nodes there are, by name, with what tells them.
    fn nodes(&self, owned: &Owned) -> BTreeMap<String, NodeSpec> {
        let ports = owned.ports.iter().map(|port| (&port.description, port.address()));
        let servers = owned.servers.iter().map(|server| (&server.description, None));
        let mut nodes: BTreeMap<String, NodeSpec> = BTreeMap::new();
        for (description, host) in ports.chain(servers) {
            let Some(mut node) = self.marks.node(description) else { continue };
            node.host = host;
            nodes.entry(node.name.clone()).or_insert(node);
        }
        nodes
    }

    async fn machines(&self) -> Result<Vec<Machine>> {
        let owned = self.lately().await?;
        let gateway = self.gateway(&owned);
        let mut machines = Vec::new();
        for (name, node) in self.nodes(&owned) {
            let server = owned.server(&self.marks, &name);
            let state = match server {
                Some(server) => state(server),
                None if owned.volume(&self.marks, &name).is_some() => MachineState::Stopped,
                None => MachineState::Absent,
            };
            let handle = server.map(|server| Handle::Server(server.id.clone()));
            let running = matches!(state, MachineState::Running { .. });
            let mut note = match server {
                Some(server) => note(server),
                None => Some("it has no server".to_owned()),
            };
            let mut url = node.url();
            if let Some(place) = self.place(&owned, &name).filter(|_| running) {
                match self.reach(&owned, &place, gateway.as_ref()).await {
                    Ok(reached) => url = reached,
                    Err(error) => note = Some(error.brief()),
                }
            }
            machines.push(Machine { node, state, handle, url, note });
        }
        Ok(machines)
    }

    async fn make_ports(&self, new: &[NodeSpec]) -> Result<Vec<NodeSpec>> {
        let owned = self.owned().await?;
        let shared = self.shared(&owned, new).await?;
        let workshop = self.workshop().await?;
        let ports = new.iter().map(|node| workshop.port(&owned, shared, node).boxed());
        // What is under way comes to its end, whatever becomes of the others.
        let ports: Vec<Result<Port, _>> =
            stream::iter(ports.collect::<Vec<_>>()).buffered(AT_ONCE).collect().await;
        let ports: Vec<Port> = ports.into_iter().collect::<Result<_, _>>()?;
        workshop.floating_ips(&owned, &ports).await?;
        self.changed().await;
        let addressed = new.iter().zip(&ports);
        Ok(addressed
            .map(|(node, port)| NodeSpec { host: port.address(), ..node.clone() })
            .collect())
    }

    /// An error about a quota with the numbers, which some services do not tell.
    async fn explained(&self, mut error: Error, new: &[NodeSpec]) -> Error {
        let is_quota = |problem: &Problem| problem.what.to_ascii_lowercase().contains("quota");
        let Some(problem) = error.problems.iter_mut().find(|problem| is_quota(problem)) else {
            return error;
        };
        self.changed().await;
        if let Err(numbers) = self.outlook(new).await {
            let numbers = numbers.problems.into_iter().filter(is_quota);
            problem.causes.extend(numbers.map(|problem| problem.what));
        }
        error
    }

    /// How much of what Nova takes as user-data a new server needs.
    fn room_for_user_data(&self, owned: &Owned, new: &[NodeSpec]) -> Result<Quota> {
        let existing = self.nodes(owned).into_values();
        let nodes: Vec<NodeSpec> = new.iter().cloned().chain(existing).collect();
        let (settings, agent) = (&self.site.openstack, &self.site.agent);
        let need = user_data::size(&self.marks, settings, agent, &nodes)?;
        let quota = Quota {
            what: "user-data (bytes)".to_owned(),
            need: need as u64,
            used: 0,
            limit: Some(user_data::LIMIT as u64),
        };
        if quota.suffices() { Ok(quota) } else { Err(user_data::too_large(need)) }
    }

    /// Does something to the server of a node, and waits until it is so.
    async fn change(&self, name: &str, action: &str, wanted: &[&str]) -> Result<bool> {
        let owned = self.owned().await?;
        let Some(server) = owned.server(&self.marks, name) else { return Ok(false) };
        let api = self.api().await?;
        if !wanted.contains(&server.status.as_str()) {
            machines::act(api, &server.id, action).await?;
        }
        let begun = Instant::now();
        loop {
            self.changed().await;
            let servers = owned::servers(api, &self.marks).await?;
            let now = servers.iter().find(|other| other.id == server.id);
            match now.map(|server| server.status.as_str()) {
                None => return Ok(false),
                Some(status) if wanted.contains(&status) => return Ok(true),
                Some("ERROR") => {
                    return Err(Error::new(format!("the server of {name} is in ERROR"))
                        .hint("`sky-deploy apply` makes it anew"));
                }
                Some(status) if begun.elapsed() > CHANGED_WITHIN => {
                    let what = format!("the server of {name} is still {status} after {action}");
                    return Err(Error::new(what).hint("the same command again goes on waiting"));
                }
                Some(_) => tokio::time::sleep(LOOK_EVERY).await,
            }
        }
    }

    async fn remove(&self, name: &str, keep_data: bool) -> Result<()> {
        let owned = self.owned().await?;
        if keep_data && owned.volume(&self.marks, name).is_none() {
            return Err(Error::new(format!(
                "the data of {name} lies on the root disk of its server, and would go with it"
            ))
            .hint(
                "leave --keep-data out, or make rings with `openstack.data_volume_gb`, whose data \
                 lies on volumes",
            ));
        }
        if let Some(server) = owned.server(&self.marks, name) {
            self.guests.forget(&server.id).await?;
        }
        let api = self.api().await?;
        let removed = machines::delete_node(api, &self.marks, &owned, name, keep_data).await;
        self.changed().await;
        removed
    }

    /// A node whose server runs, and the way to it.
    async fn running(&self, name: &str) -> Result<(Place, Option<Place>)> {
        let owned = self.lately().await?;
        let active =
            owned.server(&self.marks, name).is_some_and(|server| server.status == "ACTIVE");
        let place = self.place(&owned, name).filter(|_| active).ok_or_else(|| not_running(name))?;
        Ok((place, self.gateway(&owned)))
    }
}

/// What a server does.
fn state(server: &Server) -> MachineState {
    match server.status.as_str() {
        // Its agent was never started: an apply was interrupted, or is under way.
        "ACTIVE" if !server.metadata.contains_key(HOST_KEY) => MachineState::Stopped,
        "ACTIVE" => {
            let age = crate::moment::parse(&server.created)
                .and_then(|made| SystemTime::now().duration_since(made).ok());
            MachineState::Running { young: age.is_some_and(|age| age < YOUNG) }
        }
        "PAUSED" | "SUSPENDED" => MachineState::Paused,
        "SHUTOFF" | "ERROR" | "SHELVED" | "SHELVED_OFFLOADED" => MachineState::Stopped,
        // On its way to something.
        _ => MachineState::Running { young: true },
    }
}

/// What Nova says of a server that does not just run.
fn note(server: &Server) -> Option<String> {
    let status = &server.status;
    match (&server.fault, status.as_str()) {
        (Some(fault), "ERROR") => Some(format!("its server is in ERROR: {}", fault.message)),
        (_, "ACTIVE") if state(server) == MachineState::Stopped => {
            Some("its server runs, and the agent was not started yet".to_owned())
        }
        (_, "ACTIVE") => None,
        _ => Some(format!("its server is {status}")),
    }
}

impl Provider for Servers {
    fn kind(&self) -> ProviderKind {
        ProviderKind::Openstack
    }

    fn outlook<'a>(&'a self, new: &'a [NodeSpec]) -> Doing<'a, Outlook> {
        async move {
            if new.is_empty() {
                return Ok(Outlook::default());
            }
            let (api, resolved) = (self.api().await?, self.resolved().await?);
            let owned = self.lately().await?;
            let (settings, marks) = (&self.site.openstack, &self.marks);
            let mut outlook =
                preflight::outlook(api, settings, marks, resolved, &owned, new).await?;
            outlook.quotas.push(self.room_for_user_data(&owned, new)?);
            Ok(outlook)
        }
        .boxed()
    }

    fn prepare<'a>(&'a self, new: &'a [NodeSpec]) -> Doing<'a, Vec<NodeSpec>> {
        async move {
            match self.make_ports(new).await {
                Err(error) => Err(self.explained(error, new).await),
                made => made,
            }
        }
        .boxed()
    }

    fn rehearse<'a>(&'a self, new: &'a [NodeSpec]) -> Doing<'a, Vec<NodeSpec>> {
        async move {
            self.api().await?.rehearse();
            self.make_ports(new).await
        }
        .boxed()
    }

    fn render<'a>(&'a self, launch: &'a Launch, secrets: &'a Secrets) -> Doing<'a, Vec<Rendered>> {
        self.rendered(launch, secrets).boxed()
    }

    fn observe(&self) -> Doing<'_, Vec<Machine>> {
        self.machines().boxed()
    }

    fn start<'a>(&'a self, launch: &'a Launch) -> Doing<'a, ()> {
        async move {
            match self.launch(launch).await {
                Err(error) => Err(self.explained(error, std::slice::from_ref(&launch.node)).await),
                done => done,
            }
        }
        .boxed()
    }

    fn stop<'a>(&'a self, name: &'a str) -> Doing<'a, ()> {
        async move {
            let owned = self.owned().await?;
            let frozen = owned.server(&self.marks, name).is_some_and(|s| s.status == "PAUSED");
            if frozen {
                // A frozen machine cannot end in an orderly way.
                self.change(name, "unpause", &["ACTIVE"]).await?;
            }
            self.change(name, "os-stop", &["SHUTOFF", "ERROR"]).await.map(drop)
        }
        .boxed()
    }

    fn pause<'a>(&'a self, name: &'a str) -> Doing<'a, ()> {
        async move {
            let (place, _) = match self.running(name).await {
                Ok(running) => running,
                Err(error) => {
                    let owned = self.owned().await?;
                    let paused =
                        owned.server(&self.marks, name).is_some_and(|s| s.status == "PAUSED");
                    return if paused { Ok(()) } else { Err(error) };
                }
            };
            tracing::debug!(server = %place.server, "pausing");
            self.change(name, "pause", &["PAUSED"]).await.map(drop)
        }
        .boxed()
    }

    fn unpause<'a>(&'a self, name: &'a str) -> Doing<'a, ()> {
        async move {
            let found = self.change(name, "unpause", &["ACTIVE"]).await?;
            if found { Ok(()) } else { Err(not_running(name)) }
        }
        .boxed()
    }

    fn delete<'a>(&'a self, name: &'a str, keep_data: bool) -> Doing<'a, ()> {
        self.remove(name, keep_data).boxed()
    }

    fn renew<'a>(&'a self, launch: &'a Launch) -> Doing<'a, bool> {
        async move {
            let (place, gateway) = self.running(&launch.node.name).await?;
            self.guests.renew(&place, gateway.as_ref(), launch).await
        }
        .boxed()
    }

    fn clear(&self) -> Doing<'_, ()> {
        async {
            let cleared = shared::clear(self.api().await?, &self.marks).await;
            self.changed().await;
            self.guests.forget_all();
            cleared
        }
        .boxed()
    }

    fn leftovers(&self) -> Doing<'_, Vec<Leftover>> {
        async { Ok(leftovers::leftovers(&*self.owned().await?, &self.marks)) }.boxed()
    }

    fn examine(&self) -> BoxFuture<'_, Vec<Fact>> {
        self.facts().boxed()
    }

    fn outdated(&self) -> Doing<'_, Vec<String>> {
        async {
            let owned = self.lately().await?;
            let gateway = self.gateway(&owned);
            let mut outdated = Vec::new();
            for name in self.nodes(&owned).keys() {
                let Ok((place, _)) = self.running(name).await else { continue };
                outdated.extend(self.guests.outdated(&place, gateway.as_ref()).await?);
            }
            Ok(outdated)
        }
        .boxed()
    }

    fn told_otherwise(&self) -> Doing<'_, Vec<String>> {
        async {
            let owned = self.lately().await?;
            let gateway = self.gateway(&owned);
            let mut others = Vec::new();
            for name in self.nodes(&owned).keys() {
                let Ok((place, _)) = self.running(name).await else { continue };
                others.extend(self.guests.told_otherwise(&place, gateway.as_ref()).await?);
            }
            Ok(others)
        }
        .boxed()
    }

    fn recall(&self) -> Doing<'_, Option<Secrets>> {
        async {
            let owned = self.owned().await?;
            let gateway = self.gateway(&owned);
            for server in &owned.servers {
                if let Some(key) = server.metadata.get(HOST_KEY) {
                    self.guests.trust_again(&server.id, key)?;
                }
            }
            for name in self.nodes(&owned).keys() {
                let Some(place) = self.place(&owned, name) else { continue };
                match self.guests.secrets(&place, gateway.as_ref()).await {
                    Ok(Some(secrets)) => return Ok(Some(secrets)),
                    Ok(None) => {}
                    Err(error) => tracing::warn!(node = %name, %error, "cannot be asked"),
                }
            }
            Ok(None)
        }
        .boxed()
    }

    fn patience(&self) -> Patience {
        Patience { answer: Duration::from_secs(900), right: Duration::from_secs(900) }
    }

    fn logs(&self, name: &str, wanted: LogRequest) -> BoxStream<'_, Result<Said>> {
        let name = name.to_owned();
        let open = move |wanted| {
            let name = name.clone();
            let opened = async move {
                let (place, gateway) = self.running(&name).await?;
                self.guests.logs(&place, gateway.as_ref(), wanted).await
            };
            stream::once(opened).try_flatten().boxed()
        };
        lines::kept_up(wanted, FRESH, open)
    }
}
