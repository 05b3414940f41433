//! The servers from inside: how this machine reaches their agents, and their Docker engines, which run
//! the agents by the very code that runs containers on this machine.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{BoxStream, StreamExt};
use tokio::net::{TcpListener, UnixStream};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use super::marks::Marks;
use super::ssh::{Forward, Place, Ran, Ssh, unreached};
use super::tunnel::Tunnel;
use crate::error::{During, Error, Result};
use crate::inventory::FloatingIps;
use crate::node::Launch;
use crate::printer::Mark;
use crate::provider::docker::{Containers, Engine};
use crate::provider::lines::Entry;
use crate::provider::{LogRequest, Provider, Site};
use crate::state::Secrets;

/// How long a server may take from its start until it is prepared.
const READY_WITHIN: Duration = Duration::from_secs(900);
/// How often it is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// How long a server may refuse our key, or show another than its own.
const REFUSED_WITHIN: Duration = Duration::from_secs(180);
/// How long the engine of a server may take to start after it has booted.
const ENGINE_WITHIN: Duration = Duration::from_secs(120);
/// How long sshd may take to listen again with another key.
const BACK_WITHIN: Duration = Duration::from_secs(60);
/// How long a direct connection may take before ssh is used.
const DIRECT_WITHIN: Duration = Duration::from_millis(1500);
/// How many servers are talked to through ssh at once: sshd refuses more logins under way than ten.
const AT_ONCE: usize = 6;

/// The servers of a ring from inside.
pub(super) struct Guests {
    site: Site,
    ssh: Arc<Ssh>,
    tunnel: Arc<Tunnel>,
    /// URLs of agents on this machine, by server.
    doors: Mutex<BTreeMap<String, Door>>,
    /// Engines, by server.
    engines: Mutex<BTreeMap<String, Arc<Guest>>>,
    logins: tokio::sync::Semaphore,
}

/// How an agent is reached.
struct Door {
    url: String,
    /// What was the gateway when it was opened.
    gateway: Place,
    /// Passes connections on; none if it is reached directly.
    passing: Option<JoinHandle<()>>,
}

impl Drop for Door {
    fn drop(&mut self) {
        if let Some(passing) = &self.passing {
            passing.abort();
        }
    }
}

/// The Docker engine of a server.
struct Guest {
    containers: Containers,
    forward: std::sync::Mutex<Forward>,
}

impl Guests {
    /// The servers of the site's ring.
    pub(super) fn new(site: Site) -> Self {
        let ssh = Arc::new(Ssh::new(site.folder.path(), &site.openstack));
        let logins = tokio::sync::Semaphore::new(AT_ONCE);
        let tunnel = Arc::new(Tunnel::new(Arc::clone(&ssh)));
        Self { site, ssh, tunnel, doors: Mutex::default(), engines: Mutex::default(), logins }
    }

    /// Whether the key that may log in is there already.
    pub(super) fn has_key(&self) -> bool {
        self.ssh.has_key()
    }

    /// The key that may log in to the servers.
    pub(super) async fn public_key(&self, marks: &Marks) -> Result<String> {
        self.ssh.public_key(&marks.tag()).await
    }

    /// The first host key of a node's server: private and public.
    pub(super) async fn host_key(&self, node: &str) -> Result<(String, String)> {
        self.ssh.host_key(node).await
    }

    /// Trusts a new server with the host key that it was given.
    pub(super) async fn trust(&self, place: &Place) -> Result<()> {
        if self.ssh.knows(&place.server)? {
            return Ok(());
        }
        let (_, public) = self.ssh.host_key(&place.node).await?;
        self.ssh.pin(&place.server, &[&public])
    }

    /// Trusts a server that another machine made, unless this one knows it.
    pub(super) fn trust_again(&self, server: &str, key: &str) -> Result<()> {
        if self.ssh.knows(server)? { Ok(()) } else { self.ssh.pin(server, &[key]) }
    }

    /// The host key that a server is known by.
    pub(super) fn host_key_of(&self, server: &str) -> Result<Option<String>> {
        self.ssh.pinned(server)
    }

    /// Forgets a server that is gone.
    pub(super) async fn forget(&self, server: &str) -> Result<()> {
        self.doors.lock().await.remove(server);
        self.engines.lock().await.remove(server);
        if self.ssh.knows(server)? { self.ssh.pin(server, &[]) } else { Ok(()) }
    }

    /// Removes what is kept of connections.
    pub(super) fn forget_all(&self) {
        self.ssh.forget();
    }

    /// Where this machine reaches the agent of a server, or why it does not.
    pub(super) async fn reach(&self, place: &Place, gateway: Option<&Place>) -> Result<String> {
        let direct = |ip| format!("http://{}", std::net::SocketAddr::new(ip, place.port));
        let settings = &self.site.openstack;
        let Some(gateway) = gateway.filter(|_| settings.floating_ips != FloatingIps::None) else {
            return Ok(direct(place.fixed));
        };
        let mut doors = self.doors.lock().await;
        // Another gateway is another way: the old one may be down.
        if let Some(door) = doors.get(&place.server).filter(|door| door.gateway == *gateway) {
            return Ok(door.url.clone());
        }
        // Where the security group lets this machine in, nothing needs to stand in between.
        if let Some(floating) = place.floating.filter(|_| !settings.allow_from.is_empty()) {
            let connected = tokio::net::TcpStream::connect((floating, place.port));
            if let Ok(Ok(_)) = tokio::time::timeout(DIRECT_WITHIN, connected).await {
                let url = direct(floating);
                let door = Door { url: url.clone(), gateway: gateway.clone(), passing: None };
                doors.insert(place.server.clone(), door);
                return Ok(url);
            }
        }
        // First, because an answer of an agent is not waited for as long as a login may take.
        self.tunnel.hold(gateway).await?;
        let door = self.open(place, gateway).await?;
        let url = door.url.clone();
        doors.insert(place.server.clone(), door);
        Ok(url)
    }

    /// Opens a port of this machine whose connections end at the agent of a server.
    async fn open(&self, place: &Place, gateway: &Place) -> Result<Door> {
        let failed = || "cannot listen on this machine for an agent behind a gateway";
        let listener = TcpListener::bind((crate::node::LOOPBACK, 0)).await.during(failed)?;
        let url = format!("http://{}", listener.local_addr().during(failed)?);
        let through = gateway.clone();
        let (tunnel, place, gateway) = (Arc::clone(&self.tunnel), place.clone(), gateway.clone());
        let passing = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((mut near, _)) = listener.accept().await {
                // Ended connections are taken off the list on the way.
                while connections.try_join_next().is_some() {}
                let (tunnel, place, gateway) =
                    (Arc::clone(&tunnel), place.clone(), gateway.clone());
                connections.spawn(async move {
                    let Ok(socket) = tunnel.socket(&place, &gateway).await else { return };
                    let Ok(mut far) = UnixStream::connect(socket).await else { return };
                    // Either side may end it, which is no error.
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                });
            }
        });
        Ok(Door { url, gateway: through, passing: Some(passing) })
    }

    /// Makes and starts the agent's container on a server that is prepared.
    pub(super) async fn launch(
        &self,
        place: &Place,
        gateway: Option<&Place>,
        launch: &Launch,
    ) -> Result<()> {
        let said = format!("{} is prepared; the agent is sent to it", place.node);
        self.site.printer.step(Mark::Working, said);
        self.started(place, gateway).await?.containers.start(launch).await
    }

    /// Gives the agent of a server the program of this process. False if it has it.
    pub(super) async fn renew(
        &self,
        place: &Place,
        gateway: Option<&Place>,
        launch: &Launch,
    ) -> Result<bool> {
        self.ready(place, gateway).await?;
        self.started(place, gateway).await?.containers.renew(launch).await
    }

    /// The log of the agent of a server, once.
    pub(super) async fn logs(
        &self,
        place: &Place,
        gateway: Option<&Place>,
        wanted: LogRequest,
    ) -> Result<BoxStream<'static, Result<Entry>>> {
        let guest = self.guest(place, gateway).await?;
        let name = place.node.clone();
        // The stream must not outlive the connection, so it takes it along.
        let (send, receive) = tokio::sync::mpsc::channel(16);
        tokio::spawn(async move {
            let mut entries = guest.containers.log(&name, wanted);
            loop {
                tokio::select! {
                    entry = entries.next() => {
                        let Some(entry) = entry else { return };
                        if send.send(entry).await.is_err() {
                            return;
                        }
                    }
                    () = send.closed() => return,
                }
            }
        });
        let entries = futures_util::stream::unfold(receive, |mut receive| async {
            receive.recv().await.map(|entry| (entry, receive))
        });
        Ok(entries.boxed())
    }

    /// The secrets that the agent of a server knows.
    pub(super) async fn secrets(
        &self,
        place: &Place,
        gateway: Option<&Place>,
    ) -> Result<Option<Secrets>> {
        self.guest(place, gateway).await?.containers.recall().await
    }

    /// Its node, if its agent is of another image than a new one would be.
    pub(super) async fn outdated(
        &self,
        place: &Place,
        gateway: Option<&Place>,
    ) -> Result<Vec<String>> {
        self.guest(place, gateway).await?.containers.of_another_image().await
    }

    /// Its node, if its agent was told something else than a new one would be.
    pub(super) async fn told_otherwise(
        &self,
        place: &Place,
        gateway: Option<&Place>,
    ) -> Result<Vec<String>> {
        self.guest(place, gateway).await?.containers.of_other_settings().await
    }

    /// The engine of a server that may have booted a moment ago.
    async fn started(&self, place: &Place, gateway: Option<&Place>) -> Result<Arc<Guest>> {
        let begun = Instant::now();
        loop {
            match self.guest(place, gateway).await {
                Err(error) if begun.elapsed() < ENGINE_WITHIN => {
                    tracing::debug!(node = %place.node, %error, "its engine is not there yet");
                    tokio::time::sleep(LOOK_EVERY).await;
                }
                result => return result,
            }
        }
    }

    /// The engine of a server, through a socket that ssh forwards.
    async fn guest(&self, place: &Place, gateway: Option<&Place>) -> Result<Arc<Guest>> {
        let known = self.engines.lock().await.get(&place.server).cloned();
        if let Some(guest) = known
            && guest.forward.lock().is_ok_and(|mut forward| forward.lives())
        {
            return Ok(guest);
        }
        self.jump(place, gateway).await?;
        let _login = self.logins.acquire().await;
        let forward = self.ssh.docker(place, gateway).await?;
        let host = format!("unix://{}", forward.socket.display());
        let engine = Engine::of(&host, format!("the Docker engine of {}", place.node)).await?;
        let registry = self.site.openstack.agent_image.clone();
        let containers = Containers::new(engine, self.site.clone()).with_image(registry);
        let guest = Arc::new(Guest { containers, forward: std::sync::Mutex::new(forward) });
        self.engines.lock().await.insert(place.server.clone(), Arc::clone(&guest));
        Ok(guest)
    }

    /// Makes sure of the gateway, if a server is reached through one.
    async fn jump(&self, place: &Place, gateway: Option<&Place>) -> Result<()> {
        match gateway.filter(|gateway| place.floating.is_none() && gateway.server != place.server) {
            Some(gateway) => self.tunnel.hold(gateway).await,
            None => Ok(()),
        }
    }

    /// Waits until cloud-init has prepared a server, and replaces its first host key.
    pub(super) async fn ready(&self, place: &Place, gateway: Option<&Place>) -> Result<()> {
        // cloud-init may end without having come to our script, for example when it cannot read its
        // user-data.
        const LOOK: &str = "if test -e /var/lib/sky/ready; then echo ready; exit 0; fi; \
             if test -e /var/lib/sky/failed; then \
             why=$(sudo -n cat /var/lib/sky/failed); \
             else status=$(cloud-init status 2> /dev/null | sed -n 's/^status: //p'); \
             case \"$status\" in done|error|disabled) why=\"cloud-init: $status\";; \
             *) echo waiting; exit 0;; esac; \
             test ! -e /var/lib/sky/ready || { echo ready; exit 0; }; fi; \
             echo \"$why\"; sudo -n tail -n 15 /var/log/cloud-init-output.log; exit 3";
        const TELL: &str =
            "cloud-init status --long; sudo -n tail -n 15 /var/log/cloud-init-output.log";
        let begun = Instant::now();
        let mut refused: Option<Instant> = None;
        loop {
            let ran = match self.jump(place, gateway).await {
                Ok(()) => self.run(place, gateway, LOOK).await?,
                Err(error) => Ran::Unreached(error.brief()),
            };
            let late = begun.elapsed() > READY_WITHIN;
            match ran {
                Ran::Done(text) if text.ends_with("ready") => break,
                Ran::Failed(text) => {
                    let what = format!("{} could not be prepared", place.node);
                    return Err(Error::new(what).because(text).hint(
                        "mend the image or its network; `sky-deploy remove` and apply make the \
                         server anew",
                    ));
                }
                Ran::Done(_) if late => {
                    let within = READY_WITHIN.as_secs();
                    let what = format!("{} is not prepared after {within} s", place.node);
                    let error = Error::new(what);
                    let error = match self.run(place, gateway, TELL).await? {
                        Ran::Done(text) | Ran::Failed(text) => error.because(text),
                        Ran::Unreached(_) => error,
                    };
                    return Err(error.hint("the same command again goes on waiting"));
                }
                Ran::Unreached(said) => {
                    // Keys may come a moment after sshd, but not much later.
                    let is_refusal =
                        said.contains("Permission denied") || said.contains("verification failed");
                    let since = *refused.get_or_insert_with(Instant::now);
                    if !is_refusal {
                        refused = None;
                    } else if since.elapsed() > REFUSED_WITHIN {
                        return Err(unreached(place, &said));
                    }
                    if late {
                        return Err(unreached(place, &said));
                    }
                    tracing::debug!(node = %place.node, %said, "not reached yet");
                }
                Ran::Done(_) => refused = None,
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        self.rotate(place, gateway).await
    }

    async fn run(&self, place: &Place, gateway: Option<&Place>, script: &str) -> Result<Ran> {
        let _login = self.logins.acquire().await;
        self.ssh.run(place, gateway, script).await
    }

    /// Lets a server make a host key of its own: the first one was in its user-data, which others may
    /// read.
    async fn rotate(&self, place: &Place, gateway: Option<&Place>) -> Result<()> {
        // The new key is made first and known here before it is used, so that an interruption locks
        // nobody out.
        const MAKE: &str = "sudo -n sh -c 'set -e; cd /etc/ssh; \
             if test -e /var/lib/sky/host-key-is-own; then echo own; exit 0; fi; \
             test -e sky_host_key || ssh-keygen -q -t ed25519 -N \"\" -C sky -f sky_host_key; \
             cat sky_host_key.pub'";
        const USE: &str = "sudo -n sh -c 'set -e; cd /etc/ssh; \
             mv sky_host_key.pub ssh_host_ed25519_key.pub; mv sky_host_key ssh_host_ed25519_key; \
             touch /var/lib/sky/host-key-is-own; \
             if command -v systemctl > /dev/null 2>&1; then \
             systemctl reload ssh 2> /dev/null || systemctl reload sshd; \
             else kill -HUP \"$(cat /run/sshd.pid)\"; fi'";
        let failed = |text: String| {
            Error::new(format!("{} cannot change its host key", place.node)).because(text)
        };
        let run = async |script| match self.run(place, gateway, script).await? {
            Ran::Done(text) => Ok(text),
            Ran::Failed(text) | Ran::Unreached(text) => Err(failed(text)),
        };
        let own = run(MAKE).await?;
        if own == "own" {
            return Ok(());
        }
        let (_, first) = self.ssh.host_key(&place.node).await?;
        self.ssh.pin(&place.server, &[&first, &own])?;
        run(USE).await?;
        self.ssh.pin(&place.server, &[&own])?;
        // For a moment nobody listens while sshd takes the new key.
        let begun = Instant::now();
        loop {
            let said = match self.ssh.run(place, gateway, "true").await? {
                Ran::Unreached(said) => said,
                Ran::Done(_) | Ran::Failed(_) => return Ok(()),
            };
            if begun.elapsed() > BACK_WITHIN {
                return Err(unreached(place, &said));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::{Agent, Openstack};
    use crate::state::RingFolder;

    #[tokio::test]
    async fn a_door_is_opened_anew_when_another_server_is_the_gateway() {
        let folder = tempfile::tempdir().unwrap();
        let settings =
            Openstack { allow_from: vec!["127.0.0.0/8".to_owned()], ..Openstack::default() };
        let ring = RingFolder::at(folder.path(), "sky");
        let guests = Guests::new(Site::new(ring, Agent::default(), settings).unwrap());
        let agent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = agent.local_addr().unwrap();
        let place = |server: &str| Place {
            node: format!("node-of-{server}"),
            server: server.to_owned(),
            fixed: "10.64.0.5".parse().unwrap(),
            port: address.port(),
            floating: Some(address.ip()),
        };
        let (old, new, url) = (place("a"), place("b"), "http://127.0.0.1:1".to_owned());
        let door = Door { url: url.clone(), gateway: old.clone(), passing: None };
        guests.doors.lock().await.insert("a".to_owned(), door);
        assert_eq!(guests.reach(&old, Some(&old)).await.unwrap(), url);
        let reached = guests.reach(&old, Some(&new)).await.unwrap();
        assert_eq!(reached, format!("http://{address}"));
    }
}
