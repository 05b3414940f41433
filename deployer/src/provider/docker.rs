//! Nodes as containers of a Docker engine, with the network of the machine. Every container and
//! volume carries labels that say which node it is; nothing else is needed to find the ring again.

mod engine;
mod image;
mod logs;

use std::collections::{BTreeMap, HashMap};

use bollard::Docker;
use bollard::models::{
    ContainerCreateBody, ContainerSummary, ContainerSummaryStateEnum, HealthConfig, HostConfig,
    HostConfigLogConfig, Mount, MountType, RestartPolicy, RestartPolicyNameEnum,
    VolumeCreateRequest,
};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, ListContainersOptionsBuilder, ListImagesOptionsBuilder,
    ListVolumesOptionsBuilder, RemoveContainerOptionsBuilder, RemoveImageOptions,
    RemoveVolumeOptions, StopContainerOptionsBuilder,
};
use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::BoxStream;
use tokio::sync::OnceCell;

use super::{Doing, Fact, LogRequest, Provider, Rendered, Said, Site, lines, not_running};
use crate::error::{During, Result};
use crate::inventory::ProviderKind;
use crate::node::{Handle, LOOPBACK, Launch, Machine, MachineState, NodeSpec, Told};
use crate::outlook::Leftover;
use crate::state::Secrets;
pub use engine::Engine;

/// The name of the image; its tag is made from its contents.
const IMAGE: &str = "sky-agent";
/// The tag of an image that lost its own to another: two rings made the image at the same time.
const UNTAGGED: &str = "<none>:<none>";
/// How long a container may take to end by itself, in seconds.
const STOP_WITHIN_S: i32 = 10;
/// One second, as the engine counts time.
const SECOND_NS: i64 = 1_000_000_000;

mod label {
    pub(super) const RING: &str = "sky.ring";
    pub(super) const NODE: &str = "sky.node";
    pub(super) const ID: &str = "sky.id";
    pub(super) const HOST: &str = "sky.host";
    pub(super) const PORT: &str = "sky.port";
    pub(super) const ZONE: &str = "sky.zone";
    /// On images made by this program.
    pub(super) const IMAGE: &str = "sky.image";
}

/// The Docker provider.
pub struct Containers {
    engine: Engine,
    site: Site,
    /// The image in a registry to use instead of this program.
    registry: Option<String>,
    image: OnceCell<String>,
}

impl Containers {
    /// The containers of a ring.
    pub fn new(engine: Engine, site: Site) -> Self {
        Self { engine, site, registry: None, image: OnceCell::new() }
    }

    /// The same, with the image of the agents from a registry.
    #[must_use]
    pub(super) fn with_image(self, registry: Option<String>) -> Self {
        Self { registry, ..self }
    }

    fn ring(&self) -> &str {
        self.site.folder.ring()
    }

    const fn docker(&self) -> &Docker {
        &self.engine.docker
    }

    /// The name of the container of a node, and of its volume.
    fn container(&self, node: &str) -> String {
        container_name(self.ring(), node)
    }

    fn filter(&self) -> HashMap<String, Vec<String>> {
        HashMap::from([("label".to_owned(), vec![format!("{}={}", label::RING, self.ring())])])
    }

    async fn containers(&self) -> Result<Vec<ContainerSummary>> {
        let options = ListContainersOptionsBuilder::new().all(true).filters(&self.filter()).build();
        self.docker().list_containers(Some(options)).await.during(|| "cannot list the containers")
    }

    /// The image of the agents, brought to the engine if it does not have it.
    async fn image(&self) -> Result<&str> {
        let make = async || match &self.registry {
            Some(image) => image::pull(self.docker(), image).await,
            None => image::import(self.docker(), &self.site).await,
        };
        self.image.get_or_try_init(make).await.map(String::as_str)
    }

    async fn create(&self, launch: &Launch) -> Result<()> {
        let name = self.container(&launch.node.name);
        let volume = volume(self.ring(), &launch.node);
        self.docker()
            .create_volume(volume)
            .await
            .during(|| format!("cannot make the volume {name}"))?;
        let body = body(&self.site, launch, &self.site.secrets()?, self.image().await?);
        let options = CreateContainerOptionsBuilder::new().name(&name).build();
        let created = self.docker().create_container(Some(options), body).await;
        created.map(drop).during(|| format!("cannot make the container {name}"))
    }

    async fn launch(&self, launch: &Launch) -> Result<()> {
        let name = self.container(&launch.node.name);
        let machines = self.machines().await?;
        let there = machines.iter().find(|machine| machine.node.name == launch.node.name);
        match there.map(|machine| (machine.state, &machine.handle)) {
            None | Some((_, None)) => self.create(launch).await?,
            Some((MachineState::Paused, _)) => return self.resume(&launch.node.name).await,
            Some((MachineState::Running { .. }, _)) => return Ok(()),
            Some((MachineState::Stopped | MachineState::Absent, Some(_))) => {}
        }
        let started = self.docker().start_container(&name, None).await;
        started.during(|| format!("cannot start the container {name}"))
    }

    async fn machines(&self) -> Result<Vec<Machine>> {
        let mut machines = Vec::new();
        for container in self.containers().await? {
            let Some(node) = container.labels.as_ref().and_then(spec) else { continue };
            let status = container.status.unwrap_or_default();
            let state = match container.state {
                Some(ContainerSummaryStateEnum::RUNNING) => {
                    MachineState::Running { young: status.contains("health: starting") }
                }
                Some(ContainerSummaryStateEnum::RESTARTING) => {
                    MachineState::Running { young: false }
                }
                Some(ContainerSummaryStateEnum::PAUSED) => MachineState::Paused,
                _ => MachineState::Stopped,
            };
            let again = container.state == Some(ContainerSummaryStateEnum::RESTARTING);
            let note = again.then(|| "it has ended, and the engine starts it again".to_owned());
            let handle = container.id.map(Handle::Container);
            machines.push(Machine { note, ..Machine::near(node, state, handle) });
        }
        let options = ListVolumesOptionsBuilder::new().filters(&self.filter()).build();
        let volumes = self.docker().list_volumes(Some(options)).await;
        for volume in volumes.during(|| "cannot list the volumes")?.volumes.unwrap_or_default() {
            if let Some(node) = spec(&volume.labels)
                && !machines.iter().any(|machine| machine.node.name == node.name)
            {
                machines.push(Machine::near(node, MachineState::Stopped, None));
            }
        }
        machines.sort_by(|a, b| a.node.name.cmp(&b.node.name));
        Ok(machines)
    }

    /// Makes the container of a node anew if it has another image, or was told something else.
    async fn replace(&self, launch: &Launch) -> Result<bool> {
        let image = self.image().await?.to_owned();
        let name = &launch.node.name;
        for container in self.containers().await? {
            let is_it = container.labels.as_ref().and_then(spec).is_some_and(|it| it.name == *name);
            if is_it && container.image.as_ref() == Some(&image) && self.is_told(&container).await?
            {
                return Ok(false);
            }
        }
        self.remove(name, true).await?;
        self.launch(launch).await?;
        // Images are large, and the next upgrade brings another one.
        self.remove_unused_images().await?;
        Ok(true)
    }

    async fn running(&self) -> Result<Vec<ContainerSummary>> {
        let mut containers = self.containers().await?;
        containers.retain(|it| it.state == Some(ContainerSummaryStateEnum::RUNNING));
        Ok(containers)
    }

    /// The nodes whose container runs and has another image than a new one would have.
    pub(super) async fn of_another_image(&self) -> Result<Vec<String>> {
        let image = image_name(&self.site, self.registry.as_deref())?;
        let containers = self.running().await?.into_iter();
        let others = containers.filter(|container| container.image.as_ref() != Some(&image));
        Ok(others.filter_map(|other| Some(spec(other.labels.as_ref()?)?.name)).collect())
    }

    /// The nodes whose container runs and was told something else than a new one would be.
    pub(super) async fn of_other_settings(&self) -> Result<Vec<String>> {
        let mut others = Vec::new();
        for container in self.running().await? {
            if !self.is_told(&container).await? {
                let node = container.labels.as_ref().and_then(spec);
                others.extend(node.map(|node| node.name));
            }
        }
        Ok(others)
    }

    /// Whether a container was told what a new one would be.
    async fn is_told(&self, container: &ContainerSummary) -> Result<bool> {
        let (Some(id), Some(node)) = (&container.id, container.labels.as_ref().and_then(spec))
        else {
            return Ok(true);
        };
        let found = self.docker().inspect_container(id, None).await;
        let found = found.during(|| format!("cannot look at the container {id}"))?;
        let arguments = found.config.and_then(|config| config.cmd).unwrap_or_default();
        Ok(Told::among(&arguments) == Told::wanted(&self.site.agent, &node))
    }

    /// Removes the images that this program made and no container uses.
    async fn remove_unused_images(&self) -> Result<()> {
        let ours = HashMap::from([("label".to_owned(), vec![format!("{}={IMAGE}", label::IMAGE)])]);
        let options = ListImagesOptionsBuilder::new().filters(&ours).build();
        let images = self.docker().list_images(Some(options)).await;
        let images = images.during(|| "cannot list the images")?;
        let untagged =
            images.iter().filter(|image| image.repo_tags.iter().all(|tag| tag == UNTAGGED));
        let untagged = untagged.map(|image| &image.id);
        let tags = images.iter().flat_map(|image| &image.repo_tags).filter(|tag| *tag != UNTAGGED);
        for tag in tags.chain(untagged) {
            let removed = self.docker().remove_image(tag, None::<RemoveImageOptions>, None).await;
            match removed {
                // It is in use, perhaps by another ring.
                Err(error) if matches!(status(&error), Some(404 | 409)) => {}
                result => {
                    result.during(|| format!("cannot remove the image {tag}"))?;
                }
            }
        }
        Ok(())
    }

    /// Volumes of the ring whose node has no container.
    async fn unused_volumes(&self) -> Result<Vec<Leftover>> {
        let unused = self.machines().await?.into_iter().filter(|machine| machine.handle.is_none());
        Ok(unused
            .map(|machine| Leftover {
                kind: "volume".to_owned(),
                name: self.container(&machine.node.name),
                id: self.container(&machine.node.name),
                why: "its node has no container".to_owned(),
            })
            .collect())
    }

    /// The secrets as the environment of any container of the ring has them.
    async fn secrets_of_a_container(&self) -> Result<Option<Secrets>> {
        for container in self.containers().await? {
            let Some(id) = container.id else { continue };
            let found = self.docker().inspect_container(&id, None).await;
            let found = found.during(|| format!("cannot look at the container {id}"))?;
            let environment = found.config.and_then(|config| config.env).unwrap_or_default();
            let value = |name: &str| {
                let line = environment.iter().find_map(|line| line.strip_prefix(name));
                line.and_then(|rest| rest.strip_prefix('=')).map(str::to_owned)
            };
            if let (Some(secret), Some(token)) = (value("SKY_SECRET"), value("SKY_TOKEN")) {
                return Ok(Some(Secrets { secret, token }));
            }
        }
        Ok(None)
    }

    async fn resume(&self, name: &str) -> Result<()> {
        let container = self.container(name);
        match self.docker().unpause_container(&container).await {
            // It is not paused.
            Err(error) if status(&error) == Some(500) => {
                let machines = self.machines().await?;
                let runs =
                    |machine: &Machine| matches!(machine.state, MachineState::Running { .. });
                let it = machines.iter().find(|machine| machine.node.name == name);
                if it.is_some_and(runs) { Ok(()) } else { Err(not_running(name)) }
            }
            Err(error) if status(&error) == Some(404) => Err(not_running(name)),
            result => result.during(|| format!("cannot unpause the container {container}")),
        }
    }

    async fn remove(&self, name: &str, keep_data: bool) -> Result<()> {
        let container = self.container(name);
        self.end(name).await?;
        let options = RemoveContainerOptionsBuilder::new().force(true).build();
        absent_is_fine(self.docker().remove_container(&container, Some(options)).await)
            .during(|| format!("cannot remove the container {container}"))?;
        if keep_data {
            return Ok(());
        }
        absent_is_fine(self.docker().remove_volume(&container, None::<RemoveVolumeOptions>).await)
            .during(|| format!("cannot remove the volume {container}"))
    }

    async fn end(&self, name: &str) -> Result<()> {
        let container = self.container(name);
        // A frozen process would not notice that it is to end.
        let paused = self
            .machines()
            .await?
            .into_iter()
            .any(|machine| machine.node.name == name && machine.state == MachineState::Paused);
        if paused {
            self.resume(name).await?;
        }
        let options = StopContainerOptionsBuilder::new().t(STOP_WITHIN_S).build();
        absent_is_fine(self.docker().stop_container(&container, Some(options)).await)
            .during(|| format!("cannot stop the container {container}"))
    }
}

/// The volume of a node.
fn volume(ring: &str, node: &NodeSpec) -> VolumeCreateRequest {
    VolumeCreateRequest {
        name: Some(container_name(ring, &node.name)),
        labels: Some(labels(ring, node)),
        ..VolumeCreateRequest::default()
    }
}

/// The container of a node.
fn body(site: &Site, launch: &Launch, secrets: &Secrets, image: &str) -> ContainerCreateBody {
    let (ring, node) = (site.folder.ring(), &launch.node);
    let name = container_name(ring, &node.name);
    let host = HostConfig {
        network_mode: Some("host".to_owned()),
        restart_policy: Some(RestartPolicy {
            name: Some(RestartPolicyNameEnum::UNLESS_STOPPED),
            maximum_retry_count: None,
        }),
        mounts: Some(vec![Mount {
            typ: Some(MountType::VOLUME),
            source: Some(name),
            target: Some("/data".to_owned()),
            ..Mount::default()
        }]),
        readonly_rootfs: Some(true),
        cap_drop: Some(vec!["ALL".to_owned()]),
        security_opt: Some(vec!["no-new-privileges".to_owned()]),
        log_config: Some(HostConfigLogConfig {
            typ: Some("json-file".to_owned()),
            config: Some(HashMap::from([
                ("max-size".to_owned(), "16m".to_owned()),
                ("max-file".to_owned(), "2".to_owned()),
            ])),
        }),
        ..HostConfig::default()
    };
    let health = ["CMD", "/sky-agent", "health", "--ip"].map(str::to_owned);
    let address = node.host.unwrap_or(LOOPBACK).to_string();
    let health = health.into_iter().chain([address, "--port".to_owned(), node.port.to_string()]);
    ContainerCreateBody {
        image: Some(image.to_owned()),
        cmd: Some(launch.arguments(&site.agent, "/data")),
        env: Some(vec![
            format!("SKY_SECRET={}", secrets.secret),
            format!("SKY_TOKEN={}", secrets.token),
        ]),
        labels: Some(labels(ring, node)),
        healthcheck: Some(HealthConfig {
            test: Some(health.collect()),
            interval: Some(5 * SECOND_NS),
            timeout: Some(3 * SECOND_NS),
            retries: Some(3),
            start_period: Some(30 * SECOND_NS),
            start_interval: None,
        }),
        host_config: Some(host),
        ..ContainerCreateBody::default()
    }
}

/// The image of new containers.
fn image_name(site: &Site, registry: Option<&str>) -> Result<String> {
    match registry {
        Some(image) => Ok(image.to_owned()),
        None => Ok(image::name(&image::static_program(site)?)),
    }
}

/// What is made for a node, with the image of a registry or of this program.
pub(super) fn rendered(
    site: &Site,
    registry: Option<&str>,
    launch: &Launch,
    secrets: &Secrets,
) -> Result<Vec<Rendered>> {
    let name = container_name(site.folder.ring(), &launch.node.name);
    let image = image_name(site, registry)?;
    let failed = || format!("cannot show the container {name}");
    let volume = serde_json::to_value(volume(site.folder.ring(), &launch.node)).during(failed)?;
    let body = serde_json::to_value(body(site, launch, secrets, &image)).during(failed)?;
    let node = &launch.node.name;
    Ok(vec![
        Rendered::call(node, "POST /volumes/create of docker", volume),
        Rendered::call(node, format!("POST /containers/create?name={name} of docker"), body),
    ])
}

/// The name of the container of a node, and of its volume.
pub(super) fn container_name(ring: &str, node: &str) -> String {
    if node.starts_with(&format!("{ring}-")) { node.to_owned() } else { format!("{ring}-{node}") }
}

fn labels(ring: &str, node: &NodeSpec) -> HashMap<String, String> {
    node_labels(ring, node).into_iter().collect()
}

/// The labels that tell which node a container or volume is of.
pub(super) fn node_labels(ring: &str, node: &NodeSpec) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::from([
        (label::RING.to_owned(), ring.to_owned()),
        (label::NODE.to_owned(), node.name.clone()),
        (label::ID.to_owned(), node.id.to_string()),
        (label::PORT.to_owned(), node.port.to_string()),
    ]);
    if let Some(host) = &node.host {
        labels.insert(label::HOST.to_owned(), host.to_string());
    }
    if let Some(zone) = &node.zone {
        labels.insert(label::ZONE.to_owned(), zone.clone());
    }
    labels
}

/// The node that labels describe.
fn spec(labels: &HashMap<String, String>) -> Option<NodeSpec> {
    Some(NodeSpec {
        name: labels.get(label::NODE)?.clone(),
        id: labels.get(label::ID)?.parse().ok()?,
        // Containers from before nodes had addresses have the loopback's.
        host: Some(labels.get(label::HOST).and_then(|host| host.parse().ok()).unwrap_or(LOOPBACK)),
        port: labels.get(label::PORT)?.parse().ok()?,
        zone: labels.get(label::ZONE).cloned(),
    })
}

const fn status(error: &bollard::errors::Error) -> Option<u16> {
    match error {
        bollard::errors::Error::DockerResponseServerError { status_code, .. } => Some(*status_code),
        _ => None,
    }
}

/// What is not there need not be removed.
fn absent_is_fine(
    result: std::result::Result<(), bollard::errors::Error>,
) -> std::result::Result<(), bollard::errors::Error> {
    match result {
        Err(error) if status(&error) == Some(404) => Ok(()),
        result => result,
    }
}

impl Provider for Containers {
    fn kind(&self) -> ProviderKind {
        ProviderKind::Docker
    }

    fn prepare<'a>(&'a self, new: &'a [NodeSpec]) -> Doing<'a, Vec<NodeSpec>> {
        async {
            self.engine.shares_network().await?;
            self.image().await?;
            Ok(new.to_vec())
        }
        .boxed()
    }

    fn render<'a>(&'a self, launch: &'a Launch, secrets: &'a Secrets) -> Doing<'a, Vec<Rendered>> {
        std::future::ready(rendered(&self.site, self.registry.as_deref(), launch, secrets)).boxed()
    }

    fn renew<'a>(&'a self, launch: &'a Launch) -> Doing<'a, bool> {
        self.replace(launch).boxed()
    }

    fn leftovers(&self) -> Doing<'_, Vec<Leftover>> {
        self.unused_volumes().boxed()
    }

    fn examine(&self) -> BoxFuture<'_, Vec<Fact>> {
        async { vec![("docker", self.engine.facts().await)] }.boxed()
    }

    fn outdated(&self) -> Doing<'_, Vec<String>> {
        self.of_another_image().boxed()
    }

    fn told_otherwise(&self) -> Doing<'_, Vec<String>> {
        self.of_other_settings().boxed()
    }

    fn recall(&self) -> Doing<'_, Option<Secrets>> {
        self.secrets_of_a_container().boxed()
    }

    fn observe(&self) -> Doing<'_, Vec<Machine>> {
        self.machines().boxed()
    }

    fn start<'a>(&'a self, launch: &'a Launch) -> Doing<'a, ()> {
        self.launch(launch).boxed()
    }

    fn stop<'a>(&'a self, name: &'a str) -> Doing<'a, ()> {
        self.end(name).boxed()
    }

    fn pause<'a>(&'a self, name: &'a str) -> Doing<'a, ()> {
        async move {
            let container = self.container(name);
            match self.docker().pause_container(&container).await {
                Err(error) if matches!(status(&error), Some(404 | 409)) => {
                    let machines = self.machines().await?;
                    let paused = machines.iter().any(|machine| {
                        machine.node.name == name && machine.state == MachineState::Paused
                    });
                    if paused { Ok(()) } else { Err(not_running(name)) }
                }
                result => result.during(|| format!("cannot pause the container {container}")),
            }
        }
        .boxed()
    }

    fn unpause<'a>(&'a self, name: &'a str) -> Doing<'a, ()> {
        self.resume(name).boxed()
    }

    fn delete<'a>(&'a self, name: &'a str, keep_data: bool) -> Doing<'a, ()> {
        self.remove(name, keep_data).boxed()
    }

    fn clear(&self) -> Doing<'_, ()> {
        self.remove_unused_images().boxed()
    }

    fn logs(&self, name: &str, wanted: LogRequest) -> BoxStream<'_, Result<Said>> {
        let name = name.to_owned();
        lines::kept_up(wanted, logs::PAUSE, move |wanted| self.log(&name, wanted))
    }
}
