//! The connection to the gateway: one login of ssh that everything else goes through. Agents behind it
//! are reached through sockets of this machine that it forwards.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::process::Child;
use tokio::sync::Mutex;

use super::ssh::{Place, Ssh, last_words, no_ssh, unreached};
use crate::error::{Error, Result};

/// How long the login may take.
const LOGIN_WITHIN: Duration = Duration::from_secs(30);
/// How often it is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long a gateway that did not answer is not asked again: callers would queue up behind it.
const REST: Duration = Duration::from_secs(3);

/// The connection to the gateway, made when it is needed and made anew when it was lost.
pub(super) struct Tunnel {
    ssh: Arc<Ssh>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    login: Option<Login>,
    /// When the last try failed, and how.
    failed: Option<(Instant, Error)>,
}

/// A login that holds.
struct Login {
    server: String,
    child: Child,
    /// The sockets forwarded so far.
    forwarded: BTreeSet<PathBuf>,
    control: PathBuf,
}

impl Login {
    /// Whether this is a server's login, ssh lives, and its sockets are there. One that was removed cannot
    /// be asked for again: ssh takes it for there.
    fn leads_to(&mut self, server: &str) -> bool {
        self.server == server
            && matches!(self.child.try_wait(), Ok(None))
            && self.forwarded.iter().chain([&self.control]).all(|socket| socket.exists())
    }
}

impl Drop for Login {
    fn drop(&mut self) {
        let _ = self.child.start_kill();
        for socket in self.forwarded.iter().chain([&self.control]) {
            let _ = std::fs::remove_file(socket);
        }
    }
}

impl Tunnel {
    /// No connection yet.
    pub(super) fn new(ssh: Arc<Ssh>) -> Self {
        Self { ssh, state: Mutex::default() }
    }

    /// Makes sure that the gateway is logged in to.
    pub(super) async fn hold(&self, gateway: &Place) -> Result<()> {
        self.login(&mut *self.state.lock().await, gateway).await.map(drop)
    }

    /// A socket of this machine that leads to the agent of a server.
    pub(super) async fn socket(&self, place: &Place, gateway: &Place) -> Result<PathBuf> {
        let mut state = self.state.lock().await;
        let login = self.login(&mut state, gateway).await?;
        let socket = login.control.with_extension(place.node.as_str());
        if login.forwarded.contains(&socket) {
            return Ok(socket);
        }
        let target = std::net::SocketAddr::new(place.fixed, place.port);
        let forward = format!("{}:{target}", socket.display());
        let mut command = self.ssh.through(gateway);
        command.args(["-O", "forward", "-L", &forward]).arg(gateway.outside().to_string());
        let output = command.output().await.map_err(|error| no_ssh(&error))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(unreached(place, &said));
        }
        login.forwarded.insert(socket.clone());
        Ok(socket)
    }

    async fn login<'a>(&self, state: &'a mut State, gateway: &Place) -> Result<&'a mut Login> {
        if !state.login.as_mut().is_some_and(|login| login.leads_to(&gateway.server)) {
            state.login = None;
            if let Some((when, error)) = &state.failed
                && when.elapsed() < REST
            {
                return Err(error.clone());
            }
            match self.log_in(gateway).await {
                Ok(login) => (state.login, state.failed) = (Some(login), None),
                Err(error) => {
                    state.failed = Some((Instant::now(), error.clone()));
                    return Err(error);
                }
            }
        }
        state.login.as_mut().ok_or_else(|| Error::new("there is no connection to the gateway"))
    }

    async fn log_in(&self, gateway: &Place) -> Result<Login> {
        self.ssh.make_sockets()?;
        let control = self.ssh.control().to_owned();
        // ssh refuses to be the master of a socket that is there already.
        let _ = std::fs::remove_file(&control);
        let mut command = self.ssh.through(gateway);
        command
            .args(["-M", "-N", "-o", "StreamLocalBindMask=0177", "-o", "StreamLocalBindUnlink=yes"])
            .arg(gateway.outside().to_string())
            .stdin(Stdio::null())
            .stderr(Stdio::piped());
        let child = command.spawn().map_err(|error| no_ssh(&error))?;
        let server = gateway.server.clone();
        let mut login = Login { server, child, forwarded: BTreeSet::new(), control };
        let begun = Instant::now();
        // ssh makes the socket when it has logged in.
        while !login.control.exists() {
            if !matches!(login.child.try_wait(), Ok(None)) || begun.elapsed() > LOGIN_WITHIN {
                return Err(unreached(gateway, &last_words(&mut login.child).await));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(login)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_login_whose_sockets_were_removed_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let (control, agent) = (folder.path().join("gw-1-0"), folder.path().join("gw-1-0.sky-1"));
        std::fs::write(&control, "").unwrap();
        std::fs::write(&agent, "").unwrap();
        let child = tokio::process::Command::new("sleep").arg("60").spawn().unwrap();
        let forwarded = BTreeSet::from([agent.clone()]);
        let mut login = Login { server: "g".to_owned(), child, forwarded, control };
        assert!(login.leads_to("g") && !login.leads_to("other"));
        std::fs::remove_file(&agent).unwrap();
        assert!(!login.leads_to("g"));
    }
}
