//! Starting a node on a server, and showing what that would take.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::owned::{self, Owned, Port, Server};
use super::{HOST_KEY, Servers, api, user_data};
use crate::error::{Error, Result};
use crate::node::{Launch, NodeSpec};
use crate::printer::Mark;
use crate::provider::{Body, Rendered, docker};
use crate::state::Secrets;

/// Stands for the user-data of a server where its parameters are shown, because it is shown as text.
const USER_DATA: &str = "<user-data, gzipped, in base64>";
/// Stand for keys that only apply makes, or that nobody should see.
const PUBLIC_KEY: &str = "<public key of the ring>";
const HOST_KEYS: (&str, &str) = ("<private host key>\n", "<public host key>");

impl Servers {
    pub(super) async fn launch(&self, launch: &Launch) -> Result<()> {
        let node = &launch.node;
        // Whoever is started first queues first, so that servers are placed in the order of the ring.
        let secrets = self.site.secrets()?;
        let before = self.before_server(launch, &secrets);
        let (turn, prepared) = futures_util::join!(self.placing.lock(), before);
        let (owned, port, user_data) = prepared?;
        let user_data = user_data::encode(&user_data)?;
        let shared = self.shared(&owned, std::slice::from_ref(node)).await?;
        let workshop = self.workshop().await?;
        let server = workshop.server(&owned, shared, node, &port, &user_data, turn).await?;
        let zone = if server.zone.is_empty() { "its zone" } else { &server.zone };
        let (printer, id) = (self.site.printer, &server.id);
        printer.step(Mark::Working, format_args!("{} runs on server {id} in {zone}", node.name));
        self.changed().await;
        let mut owned = Owned::clone(&owned);
        owned.servers = owned::servers(self.api().await?, &self.marks).await?;
        owned.ports.push(port);
        self.warn_of_shared_hypervisor(&owned, &server, node);
        let Some(place) = self.place(&owned, &node.name) else {
            return Err(Error::new(format!("the server of {} is gone again", node.name))
                .hint("somebody else changes this ring; the same command again makes it anew"));
        };
        self.guests.trust(&place).await?;
        // With an image from a registry its user-data says everything.
        if self.site.openstack.agent_image.is_none() {
            let gateway = self.gateway(&owned);
            if let Err(error) = self.guests.ready(&place, gateway.as_ref()).await {
                return Err(match self.api().await?.console(&server.id).await {
                    Some(console) => error.because(format!("its console ends with: {console}")),
                    None => error,
                });
            }
            self.guests.launch(&place, gateway.as_ref(), launch).await?;
        }
        self.publish_host_key(&server).await
    }

    /// Writes the host key of a server into its metadata, where a machine that has lost everything finds
    /// it: who may write there may replace the server as well.
    async fn publish_host_key(&self, server: &Server) -> Result<()> {
        let Some(key) = self.guests.host_key_of(&server.id)? else { return Ok(()) };
        if server.metadata.get(HOST_KEY) == Some(&key) {
            return Ok(());
        }
        let body = serde_json::json!({"metadata": {HOST_KEY: key}});
        let path = format!("servers/{}/metadata", server.id);
        self.api().await?.post(api::Service::Compute, &path, body).await?;
        Ok(())
    }

    /// What a server is made of: what there is, its port, and its user-data as text.
    async fn before_server(
        &self,
        launch: &Launch,
        secrets: &Secrets,
    ) -> Result<(Arc<Owned>, Port, String)> {
        let node = &launch.node;
        let owned = self.lately().await?;
        let shared = self.shared(&owned, std::slice::from_ref(node)).await?;
        let port = self.workshop().await?.port(&owned, shared, node).await?;
        let (host_private, host_public) = self.host_key(&node.name).await?;
        let user_data = user_data::render(&user_data::Bootstrap {
            marks: &self.marks,
            settings: &self.site.openstack,
            agent: &self.site.agent,
            launch,
            secrets,
            public_key: &self.public_key().await?,
            host_key: (&host_private, &host_public),
        })?;
        Ok((owned, port, user_data))
    }

    /// Soft anti-affinity is a wish. Members of the same ranges on one hypervisor are worth a word.
    fn warn_of_shared_hypervisor(&self, owned: &Owned, server: &Server, node: &NodeSpec) {
        let ids: BTreeSet<_> = self.nodes(owned).values().map(|node| node.id).collect();
        let members = crate::placement::members(&ids, node.id, 3);
        let near = owned.servers.iter().filter(|other| {
            other.id != server.id && !server.host.is_empty() && other.host == server.host
        });
        let near = near.filter_map(|other| self.marks.node(&other.description));
        for other in near.filter(|other| members.contains(&other.id)) {
            tracing::warn!(
                "{} and {} keep copies of the same keys and are on one hypervisor",
                node.name,
                other.name
            );
        }
    }

    /// The key that may log in to the servers.
    pub(super) async fn public_key(&self) -> Result<String> {
        if self.api().await?.rehearsal().is_some() && !self.guests.has_key() {
            return Ok(PUBLIC_KEY.to_owned());
        }
        self.guests.public_key(&self.marks).await
    }

    /// The first host key of a node's server: private and public.
    async fn host_key(&self, node: &str) -> Result<(String, String)> {
        if self.api().await?.rehearsal().is_some() {
            let (private, public) = HOST_KEYS;
            return Ok((private.to_owned(), public.to_owned()));
        }
        self.guests.host_key(node).await
    }

    /// What the server of a node is made with, and what was rehearsed before.
    pub(super) async fn rendered(
        &self,
        launch: &Launch,
        secrets: &Secrets,
    ) -> Result<Vec<Rendered>> {
        let api = self.api().await?;
        let Some(rehearsal) = api.rehearsal() else {
            return Err(Error::new("nothing was rehearsed"));
        };
        let node = &launch.node;
        let name = node.name.clone();
        let (owned, port, text) = self.before_server(launch, secrets).await?;
        // Says so here, as apply would.
        user_data::encode(&text)?;
        let shared = self.shared(&owned, std::slice::from_ref(node)).await?;
        let workshop = self.workshop().await?;
        let zone = workshop.zones(node).into_iter().next();
        workshop.create(shared, node, &port, zone.as_deref(), USER_DATA).await?;
        let calls = rehearsal.take().into_iter();
        let mut parts: Vec<Rendered> = calls
            .map(|call| {
                let mut items = call.body.as_object().into_iter().flat_map(|body| body.values());
                let of = items.find_map(|item| self.marks.node(item["description"].as_str()?));
                let node = of.map(|node| node.name);
                Rendered { node, what: call.what, body: Body::Parameters(call.body) }
            })
            .collect();
        let (what, body) = ("user-data".to_owned(), Body::Text(text));
        parts.push(Rendered { node: Some(name), what, body });
        if self.site.openstack.agent_image.is_none() {
            parts.extend(docker::rendered(&self.site, None, launch, secrets)?);
        }
        Ok(parts)
    }
}
