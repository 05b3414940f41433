//! Nodes as containers of a Docker engine, with the network of the machine. Every container and
//! volume carries labels that say which node it is; nothing else is needed to find the ring again.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use bollard::Docker;
use bollard::models::{
    ContainerCreateBody, ContainerSummary, ContainerSummaryStateEnum, HealthConfig, HostConfig,
    HostConfigLogConfig, Mount, MountType, RestartPolicy, RestartPolicyNameEnum,
    VolumeCreateRequest,
};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, CreateImageOptionsBuilder, ListContainersOptionsBuilder,
    ListImagesOptionsBuilder, ListVolumesOptionsBuilder, LogsOptionsBuilder,
    RemoveContainerOptionsBuilder, RemoveImageOptions, RemoveVolumeOptions,
    StopContainerOptionsBuilder,
};
use bytes::Bytes;
use futures_util::future::FutureExt;
use futures_util::stream::{BoxStream, StreamExt, TryStreamExt};
use sky_chord::Id;
use tokio::sync::OnceCell;

use super::{Doing, LogRequest, Provider, Site, not_running};
use crate::error::{During, Error, Result};
use crate::inventory::ProviderKind;
use crate::node::{Handle, Launch, Machine, MachineState, NodeSpec};

/// The name of the image; its tag is made from its contents.
const IMAGE: &str = "sky-agent";
/// How long a container may take to end by itself, in seconds.
const STOP_WITHIN_S: i32 = 10;
/// How long an engine may take to answer whether it is there.
const PROBE_WITHIN: Duration = Duration::from_secs(3);
/// One second, as the engine counts time.
const SECOND_NS: i64 = 1_000_000_000;

mod label {
    pub(super) const RING: &str = "sky.ring";
    pub(super) const NODE: &str = "sky.node";
    pub(super) const ID: &str = "sky.id";
    pub(super) const PORT: &str = "sky.port";
    pub(super) const ZONE: &str = "sky.zone";
    /// On images made by this program.
    pub(super) const IMAGE: &str = "sky.image";
}

/// A Docker engine that answers.
pub struct Engine {
    docker: Docker,
    place: String,
}

impl Engine {
    /// Where the engine is, as in `DOCKER_HOST`.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// The engine of `DOCKER_HOST`, or the first of the usual sockets that answers.
    pub async fn find() -> Result<Self> {
        let (places, named) = match std::env::var("DOCKER_HOST") {
            Ok(host) if !host.is_empty() => (vec![host], true),
            _ => (usual_sockets(), false),
        };
        let mut reasons = Vec::new();
        for place in places {
            match Self::probe(&place).await {
                Ok(docker) => return Ok(Self { docker, place }),
                // Most of the usual places do not exist, which is no news.
                Err(Absent::NoSocket) if !named => {}
                Err(absent) => reasons.push(format!("{place}: {}", absent.reason())),
            }
        }
        if reasons.is_empty() {
            reasons.push("none of the usual sockets is there".to_owned());
        }
        let hint = if named {
            "DOCKER_HOST names this engine: correct it, or unset it to try the usual sockets"
        } else {
            "start Docker, set DOCKER_HOST, or use `provider: process`"
        };
        let what = format!("no Docker engine answers ({})", reasons.join("; "));
        Err(Error::new(what).hint(hint))
    }

    /// An engine whose containers can have the network of this machine and run this program; or why
    /// there is none.
    pub async fn usable(site: &Site) -> std::result::Result<Self, String> {
        let what =
            |error: Error| error.problems.into_iter().next().map_or_else(String::new, |p| p.what);
        let engine = Self::find().await.map_err(what)?;
        engine.shares_network().await.map_err(what)?;
        static_program(site).map_err(what)?;
        Ok(engine)
    }

    async fn probe(place: &str) -> std::result::Result<Docker, Absent> {
        if let Some(path) = place.strip_prefix("unix://") {
            match std::os::unix::net::UnixStream::connect(path) {
                Ok(_) => {}
                Err(error) => {
                    return Err(match error.kind() {
                        std::io::ErrorKind::NotFound => Absent::NoSocket,
                        std::io::ErrorKind::PermissionDenied => Absent::Forbidden,
                        _ => Absent::Other(error.to_string()),
                    });
                }
            }
        }
        let docker =
            Docker::connect_with_host(place).map_err(|error| Absent::Other(error.to_string()))?;
        match tokio::time::timeout(PROBE_WITHIN, docker.ping()).await {
            Ok(Ok(_)) => Ok(docker),
            Ok(Err(error)) => Err(Absent::Other(Error::caused("no answer", &error).to_string())),
            Err(_) => Err(Absent::Other("no answer within 3 s".to_owned())),
        }
    }

    /// Refuses engines whose "host" is another machine: the agents would not be reachable.
    async fn shares_network(&self) -> Result<()> {
        let info =
            self.docker.info().await.during(|| "the Docker engine says nothing of itself")?;
        let rootless =
            info.security_options.iter().flatten().any(|option| option.contains("rootless"));
        let system = info.operating_system.unwrap_or_default();
        let elsewhere = if rootless {
            "a rootless engine, which has a network of its own".to_owned()
        } else if system.contains("Docker Desktop") {
            "Docker Desktop, which keeps containers in a virtual machine".to_owned()
        } else {
            return Ok(());
        };
        Err(Error::new(format!("the engine at {} is {elsewhere}", self.place))
            .hint("use `provider: process` on this machine"))
    }
}

/// Why an engine is not there.
enum Absent {
    NoSocket,
    Forbidden,
    Other(String),
}

impl Absent {
    fn reason(self) -> String {
        match self {
            Self::NoSocket => "there is no such socket".to_owned(),
            Self::Forbidden => {
                "no permission to use the socket; membership in the group docker gives it"
                    .to_owned()
            }
            Self::Other(reason) => reason,
        }
    }
}

fn usual_sockets() -> Vec<String> {
    let mut sockets = vec![PathBuf::from("/var/run/docker.sock")];
    if let Some(runtime) = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from) {
        sockets.push(runtime.join("docker.sock"));
    }
    if let Some(home) = std::env::var_os("HOME").map(PathBuf::from) {
        for path in [".docker/run/docker.sock", ".docker/desktop/docker.sock"] {
            sockets.push(home.join(path));
        }
    }
    sockets.iter().map(|path| format!("unix://{}", path.display())).collect()
}

/// The bytes of the program, if it can run in an empty container.
fn static_program(site: &Site) -> Result<Vec<u8>> {
    let bytes = site.program_bytes()?;
    match has_interpreter(&bytes) {
        Some(false) => Ok(bytes),
        Some(true) => Err(Error::new(
            "this program needs a dynamic loader, so it cannot run in an empty container",
        )
        .hint(
            "build it without RUSTFLAGS in the environment (they replace those of the project, \
               which link statically), or use `provider: process`",
        )),
        None => Err(Error::new("this program is not a Linux program, so containers cannot run it")
            .hint("use `provider: process`")),
    }
}

/// Whether an ELF program asks for a loader (a program header of type PT_INTERP); none if it is not
/// a 64-bit little-endian ELF file.
fn has_interpreter(elf: &[u8]) -> Option<bool> {
    let number = |at: usize, length: usize| {
        let bytes = elf.get(at..at.checked_add(length)?)?;
        Some(bytes.iter().rev().fold(0usize, |high, byte| (high << 8) | usize::from(*byte)))
    };
    if !elf.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let (headers, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    let kinds: Option<Vec<usize>> =
        (0..count).map(|i| number(headers.checked_add(i.checked_mul(size)?)?, 4)).collect();
    Some(kinds?.contains(&3))
}

/// The Docker provider.
pub struct Containers {
    engine: Engine,
    site: Site,
    image: OnceCell<String>,
}

impl Containers {
    /// The containers of a ring.
    pub fn new(engine: Engine, site: Site) -> Self {
        Self { engine, site, image: OnceCell::new() }
    }

    fn ring(&self) -> &str {
        self.site.folder.ring()
    }

    const fn docker(&self) -> &Docker {
        &self.engine.docker
    }

    /// The name of the container of a node, and of its volume.
    fn container(&self, node: &str) -> String {
        if node.starts_with(&format!("{}-", self.ring())) {
            node.to_owned()
        } else {
            format!("{}-{node}", self.ring())
        }
    }

    fn filter(&self) -> HashMap<String, Vec<String>> {
        HashMap::from([("label".to_owned(), vec![format!("{}={}", label::RING, self.ring())])])
    }

    fn labels(&self, node: &NodeSpec) -> HashMap<String, String> {
        let mut labels = HashMap::from([
            (label::RING.to_owned(), self.ring().to_owned()),
            (label::NODE.to_owned(), node.name.clone()),
            (label::ID.to_owned(), node.id.to_string()),
            (label::PORT.to_owned(), node.port.to_string()),
        ]);
        if let Some(zone) = &node.zone {
            labels.insert(label::ZONE.to_owned(), zone.clone());
        }
        labels
    }

    async fn containers(&self) -> Result<Vec<ContainerSummary>> {
        let options = ListContainersOptionsBuilder::new().all(true).filters(&self.filter()).build();
        self.docker().list_containers(Some(options)).await.during(|| "cannot list the containers")
    }

    /// The image of the program, imported if the engine does not have it.
    async fn image(&self) -> Result<&str> {
        let make = async || {
            let program = static_program(&self.site)?;
            let tag = format!("{IMAGE}:{}", &Id::hash(&program).to_string()[..16]);
            if self.docker().inspect_image(&tag).await.is_ok() {
                return Ok(tag);
            }
            let failed = || "cannot make the image of the agent";
            let mut archive = tar::Builder::new(Vec::with_capacity(program.len() + 4096));
            let mut header = tar::Header::new_ustar();
            header.set_size(program.len() as u64);
            header.set_mode(0o755);
            archive.append_data(&mut header, "sky-agent", program.as_slice()).during(failed)?;
            let archive = archive.into_inner().during(failed)?;
            let (repo, version) = tag.split_once(':').unwrap_or((&tag, "latest"));
            let options = CreateImageOptionsBuilder::new()
                .from_src("-")
                .repo(repo)
                .tag(version)
                .changes(vec![
                    r#"ENTRYPOINT ["/sky-agent"]"#.to_owned(),
                    format!("LABEL {}={IMAGE}", label::IMAGE),
                ])
                .build();
            let body = bollard::body_full(archive.into());
            let steps = self.docker().create_image(Some(options), Some(body), None);
            steps.try_collect::<Vec<_>>().await.during(failed)?;
            Ok(tag)
        };
        self.image.get_or_try_init(make).await.map(String::as_str)
    }

    async fn create(&self, launch: &Launch) -> Result<()> {
        let node = &launch.node;
        let name = self.container(&node.name);
        let secrets = self.site.secrets()?;
        let labels = self.labels(node);
        let volume = VolumeCreateRequest {
            name: Some(name.clone()),
            labels: Some(labels.clone()),
            ..VolumeCreateRequest::default()
        };
        self.docker()
            .create_volume(volume)
            .await
            .during(|| format!("cannot make the volume {name}"))?;
        let host = HostConfig {
            network_mode: Some("host".to_owned()),
            restart_policy: Some(RestartPolicy {
                name: Some(RestartPolicyNameEnum::UNLESS_STOPPED),
                maximum_retry_count: None,
            }),
            mounts: Some(vec![Mount {
                typ: Some(MountType::VOLUME),
                source: Some(name.clone()),
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
        let health = ["CMD", "/sky-agent", "health", "--port"].map(str::to_owned);
        let body = ContainerCreateBody {
            image: Some(self.image().await?.to_owned()),
            cmd: Some(launch.arguments(&self.site.agent, "/data")),
            env: Some(vec![
                format!("SKY_SECRET={}", secrets.secret),
                format!("SKY_TOKEN={}", secrets.token),
            ]),
            labels: Some(labels),
            healthcheck: Some(HealthConfig {
                test: Some(health.into_iter().chain([node.port.to_string()]).collect()),
                interval: Some(5 * SECOND_NS),
                timeout: Some(3 * SECOND_NS),
                retries: Some(3),
                start_period: Some(30 * SECOND_NS),
                start_interval: None,
            }),
            host_config: Some(host),
            ..ContainerCreateBody::default()
        };
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
            Some((MachineState::Stopped, Some(_))) => {}
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
            let handle = container.id.map(Handle::Container);
            machines.push(Machine { node, state, handle });
        }
        let options = ListVolumesOptionsBuilder::new().filters(&self.filter()).build();
        let volumes = self.docker().list_volumes(Some(options)).await;
        for volume in volumes.during(|| "cannot list the volumes")?.volumes.unwrap_or_default() {
            if let Some(node) = spec(&volume.labels)
                && !machines.iter().any(|machine| machine.node.name == node.name)
            {
                machines.push(Machine { node, state: MachineState::Stopped, handle: None });
            }
        }
        machines.sort_by(|a, b| a.node.name.cmp(&b.node.name));
        Ok(machines)
    }

    async fn resume(&self, name: &str) -> Result<()> {
        let container = self.container(name);
        match self.docker().unpause_container(&container).await {
            Err(error) if status(&error) == Some(500) => Ok(()), // It is not paused.
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

/// The node that labels describe.
fn spec(labels: &HashMap<String, String>) -> Option<NodeSpec> {
    Some(NodeSpec {
        name: labels.get(label::NODE)?.clone(),
        id: labels.get(label::ID)?.parse().ok()?,
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

    fn check(&self) -> Doing<'_, ()> {
        async {
            self.engine.shares_network().await?;
            self.image().await.map(drop)
        }
        .boxed()
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
        async {
            let ours =
                HashMap::from([("label".to_owned(), vec![format!("{}={IMAGE}", label::IMAGE)])]);
            let options = ListImagesOptionsBuilder::new().filters(&ours).build();
            let images = self.docker().list_images(Some(options)).await;
            let images = images.during(|| "cannot list the images")?;
            for tag in images.iter().flat_map(|image| &image.repo_tags) {
                let removed =
                    self.docker().remove_image(tag, None::<RemoveImageOptions>, None).await;
                match removed {
                    // Another ring uses it.
                    Err(error) if matches!(status(&error), Some(404 | 409)) => {}
                    result => {
                        result.during(|| format!("cannot remove the image {tag}"))?;
                    }
                }
            }
            Ok(())
        }
        .boxed()
    }

    fn logs<'a>(&'a self, name: &'a str, wanted: LogRequest) -> BoxStream<'a, Result<Bytes>> {
        let lines = wanted.lines.map_or_else(|| "all".to_owned(), |lines| lines.to_string());
        let options = LogsOptionsBuilder::new()
            .stdout(true)
            .stderr(true)
            .follow(wanted.follow)
            .tail(&lines)
            .build();
        let container = self.container(name);
        let pieces = self.docker().logs(&container, Some(options)).map(move |piece| {
            let piece = piece.during(|| format!("cannot read the log of {container}"))?;
            Ok(piece.into_bytes())
        });
        pieces.boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_that_need_a_loader_are_recognised() {
        let mut elf = vec![0; 64 + 56];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[32] = 64;
        elf[54] = 56;
        elf[56] = 1;
        elf[64] = 1;
        assert_eq!(has_interpreter(&elf), Some(false));
        elf[64] = 3;
        assert_eq!(has_interpreter(&elf), Some(true));
        assert_eq!(has_interpreter(&elf[..66]), None);
        assert_eq!(has_interpreter(b"#!/bin/sh"), None);
    }
}
