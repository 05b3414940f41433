//! The Docker engine: where it is, whether it answers, and whether containers there can have the
//! network of this machine.

use std::path::PathBuf;
use std::time::Duration;

use bollard::Docker;

use super::image::static_program;
use crate::error::{During, Error, Result};
use crate::provider::Site;

/// How long an engine may take to answer whether it is there.
const PROBE_WITHIN: Duration = Duration::from_secs(3);

/// A Docker engine that answers.
pub struct Engine {
    pub(super) docker: Docker,
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

    /// The engine at `host`, as in `DOCKER_HOST`; errors call it `place`.
    pub(in crate::provider) async fn of(host: &str, place: String) -> Result<Self> {
        match Self::probe(host).await {
            Ok(docker) => Ok(Self { docker, place }),
            Err(absent) => {
                Err(Error::new(format!("{place} does not answer")).because(absent.reason()))
            }
        }
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

    /// What the engine is; an error if it is none for us.
    pub(super) async fn facts(&self) -> Result<String> {
        let version = self.docker.version().await;
        let version = version.during(|| format!("the engine at {} fails", self.place))?;
        self.shares_network().await?;
        let or = |text: Option<String>| text.unwrap_or_else(|| "?".to_owned());
        let (engine, api) = (or(version.version), or(version.api_version));
        Ok(format!("engine {engine} with API {api} at {}", self.place))
    }

    /// Refuses engines whose "host" is another machine: the agents would not be reachable.
    pub(super) async fn shares_network(&self) -> Result<()> {
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
