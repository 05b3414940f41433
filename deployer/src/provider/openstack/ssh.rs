//! The operator's own ssh program: keys, known hosts, commands and forwarded sockets.
//!
//! A server is known by its id, not by its address, which clouds give away again. Its first host key
//! was put there by us, so no key is ever taken on trust.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::process::{Child, Command};

use crate::error::{During, Error, Result};
use crate::inventory::Openstack;
use crate::state;

/// How long a connection may take.
const CONNECT_S: u32 = 15;
/// How long a forwarded socket may take to be there.
const FORWARD_WITHIN: Duration = Duration::from_secs(30);
/// How often it is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How many rings this process has opened: each has a login of its own to its gateway.
static OPENED: AtomicU32 = AtomicU32::new(0);

/// A server as ssh reaches it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// The node on it.
    pub(super) node: String,
    /// The id of the server.
    pub(super) server: String,
    /// Its address in its own network.
    pub(super) fixed: IpAddr,
    /// The port of its agent.
    pub(super) port: u16,
    /// Its floating IP.
    pub(super) floating: Option<IpAddr>,
}

impl Place {
    /// Where it is reached from outside of its network.
    pub(super) fn outside(&self) -> IpAddr {
        self.floating.unwrap_or(self.fixed)
    }
}

/// Calls of ssh for the servers of one ring.
pub(super) struct Ssh {
    folder: PathBuf,
    user: String,
    /// The private key; ssh finds one by itself if none is given.
    key: Option<PathBuf>,
    /// Sockets have short paths, or the system refuses them.
    sockets: PathBuf,
    /// That of the login to the gateway, another one for each value of this type: a dashboard opens its
    /// ring again for every change, and who ends removes its sockets.
    control: PathBuf,
}

/// A forwarded socket; the forwarding ends when this is dropped.
pub(super) struct Forward {
    /// The socket on this machine.
    pub(super) socket: PathBuf,
    child: Child,
}

impl Drop for Forward {
    fn drop(&mut self) {
        let _ = self.child.start_kill();
        let _ = std::fs::remove_file(&self.socket);
    }
}

impl Forward {
    /// Whether the connection is still there.
    pub(super) fn lives(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

/// What became of a command on a server.
pub(super) enum Ran {
    /// It ended well, and said this.
    Done(String),
    /// It ended badly; both outputs.
    Failed(String),
    /// There was no connection; ssh's own words.
    Unreached(String),
}

impl Ssh {
    /// The ssh of a ring, with its keys in the ring's folder.
    pub(super) fn new(ring: &Path, settings: &Openstack) -> Self {
        let folder = ring.join("ssh");
        let own = folder.join("id_ed25519");
        let key = match (&settings.ssh_key, &settings.keypair) {
            (Some(path), _) => Some(expand(path)),
            (None, Some(_)) => None,
            (None, None) => Some(own),
        };
        let hash = sky_chord::Id::hash(folder.as_os_str().as_encoded_bytes()).to_string();
        let base = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let base = base.filter(|path| path.is_dir()).unwrap_or_else(std::env::temp_dir);
        let uid = rustix::process::getuid().as_raw();
        let sockets = base.join(format!("sky-{uid}-{}", &hash[..8]));
        let number = OPENED.fetch_add(1, Ordering::Relaxed);
        let control = sockets.join(format!("gw-{}-{number}", std::process::id()));
        Self { folder, user: settings.ssh_user.clone(), key, sockets, control }
    }

    /// Whether the key that may log in is there, or is not ours to make.
    pub(super) fn has_key(&self) -> bool {
        self.key.as_ref().is_none_or(|key| key.exists())
    }

    /// The public key that may log in, with `comment`. The key is made if the ring has none.
    pub(super) async fn public_key(&self, comment: &str) -> Result<String> {
        let Some(key) = &self.key else { return Ok(String::new()) };
        if !key.exists() {
            if *key != self.folder.join("id_ed25519") {
                return Err(Error::new(format!("there is no private key {}", key.display()))
                    .hint("`openstack.ssh_key` names it"));
            }
            state::create_private(&self.folder)?;
            keygen(key, comment).await?;
        }
        let public = key.with_extension("pub");
        let text = match std::fs::read_to_string(&public) {
            Ok(text) => text,
            // Only the private half was given.
            Err(_) => run_keygen(&["-y", "-f", &key.to_string_lossy()]).await?,
        };
        let words: Vec<&str> = text.split_whitespace().take(2).collect();
        Ok(format!("{} {comment}", words.join(" ")))
    }

    /// The first host key of a node's server, private and public; made once for each node.
    pub(super) async fn host_key(&self, node: &str) -> Result<(String, String)> {
        let folder = self.folder.join("hosts");
        let path = folder.join(node);
        if !path.exists() {
            state::create_private(&folder)?;
            keygen(&path, node).await?;
        }
        let read = |path: &Path| {
            std::fs::read_to_string(path).during(|| format!("cannot read {}", path.display()))
        };
        Ok((read(&path)?, read(&public_of(&path))?.trim().to_owned()))
    }

    fn known_hosts(&self) -> PathBuf {
        self.folder.join("known_hosts")
    }

    /// The host keys that are known, by server.
    fn known(&self) -> Result<BTreeMap<String, Vec<String>>> {
        let mut known: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let path = self.known_hosts();
        let text = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            result => result.during(|| format!("cannot read {}", path.display()))?,
        };
        for (server, key) in text.lines().filter_map(|line| line.split_once(' ')) {
            known.entry(server.to_owned()).or_default().push(key.to_owned());
        }
        Ok(known)
    }

    /// Replaces the host keys of a server; none forgets it.
    pub(super) fn pin(&self, server: &str, keys: &[&str]) -> Result<()> {
        let mut known = self.known()?;
        known.remove(server);
        if !keys.is_empty() {
            // Without the comment: two words.
            let bare = |key: &&str| key.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
            known.insert(server.to_owned(), keys.iter().map(bare).collect());
        }
        let lines = known
            .iter()
            .flat_map(|(server, keys)| keys.iter().map(move |key| format!("{server} {key}\n")));
        state::create_private(&self.folder)?;
        state::write_private(&self.known_hosts(), lines.collect::<String>().as_bytes())
    }

    /// Whether a server's host key is known.
    pub(super) fn knows(&self, server: &str) -> Result<bool> {
        Ok(self.known()?.contains_key(server))
    }

    /// The host key that was pinned last for a server.
    pub(super) fn pinned(&self, server: &str) -> Result<Option<String>> {
        Ok(self.known()?.get_mut(server).and_then(Vec::pop))
    }

    /// What every call has, for a server.
    fn options(&self, server: &str) -> Vec<String> {
        let mut options: Vec<String> = [
            "BatchMode=yes".to_owned(),
            format!("ConnectTimeout={CONNECT_S}"),
            "StrictHostKeyChecking=yes".to_owned(),
            format!("UserKnownHostsFile=\"{}\"", self.known_hosts().display()),
            "GlobalKnownHostsFile=/dev/null".to_owned(),
            format!("HostKeyAlias={server}"),
            "HostKeyAlgorithms=ssh-ed25519".to_owned(),
            "CheckHostIP=no".to_owned(),
            "ServerAliveInterval=15".to_owned(),
            "ServerAliveCountMax=4".to_owned(),
            "LogLevel=ERROR".to_owned(),
            format!("User={}", self.user),
        ]
        .into_iter()
        .flat_map(|option| ["-o".to_owned(), option])
        .collect();
        if let Some(key) = &self.key {
            options.extend(["-i".to_owned(), key.display().to_string()]);
            options.extend(["-o".to_owned(), "IdentitiesOnly=yes".to_owned()]);
        }
        options
    }

    /// The arguments that lead to a server: by its floating IP, through the gateway, or directly.
    fn way(&self, place: &Place, gateway: Option<&Place>) -> Vec<String> {
        let mut arguments = self.options(&place.server);
        let jump = gateway.filter(|gateway| gateway.server != place.server);
        match (place.floating, jump) {
            (Some(floating), _) => arguments.push(floating.to_string()),
            (None, Some(gateway)) => {
                let mut words = self.shared(gateway);
                words.extend(["-W".to_owned(), "%h:%p".to_owned()]);
                words.push(gateway.outside().to_string());
                let words: Vec<String> = words.iter().map(|word| quoted(word)).collect();
                let command = format!("ProxyCommand=ssh {}", words.join(" "));
                arguments.extend(["-o".to_owned(), command, place.fixed.to_string()]);
            }
            (None, None) => arguments.push(place.fixed.to_string()),
        }
        arguments
    }

    /// A call of ssh that uses the login that [`super::tunnel`] holds.
    pub(super) fn through(&self, gateway: &Place) -> Command {
        let mut command = ssh();
        command.args(self.shared(gateway));
        command
    }

    /// The options of such a call. Without that login it is a login of its own.
    fn shared(&self, gateway: &Place) -> Vec<String> {
        let mut options = self.options(&gateway.server);
        let control = format!("ControlPath={}", self.control.display());
        options.extend(["-o".to_owned(), control]);
        options
    }

    /// The socket of that login.
    pub(super) fn control(&self) -> &Path {
        &self.control
    }

    /// Makes the folder of the sockets. Secrets pass through them, and its name can be guessed: one that
    /// somebody else has made, or may look into, is refused.
    pub(super) fn make_sockets(&self) -> Result<()> {
        state::create_private(&self.sockets)?;
        let place = self.sockets.display();
        let found = std::fs::symlink_metadata(&self.sockets);
        let found = found.during(|| format!("cannot look at {place}"))?;
        let why = if !found.is_dir() {
            "it is a link or a file"
        } else if found.uid() != rustix::process::getuid().as_raw() {
            "it belongs to another user"
        } else if found.mode() & 0o077 != 0 {
            "other users may get into it"
        } else {
            return Ok(());
        };
        Err(Error::new(format!("the folder {place} cannot be used for connections to servers"))
            .because(why)
            .hint("remove it, or set XDG_RUNTIME_DIR to a folder of your own"))
    }

    /// Runs a command of the shell on a server, with nothing on its standard input.
    pub(super) async fn run(
        &self,
        place: &Place,
        gateway: Option<&Place>,
        script: &str,
    ) -> Result<Ran> {
        self.make_sockets()?;
        let mut command = ssh();
        command.args(self.way(place, gateway)).arg(script).stdin(Stdio::null());
        let output = command.output().await.map_err(|error| no_ssh(&error))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        Ok(match output.status.code() {
            Some(0) => Ran::Done(out),
            // ssh's own code for everything that is not the command's.
            Some(255) | None => Ran::Unreached(err),
            Some(_) => Ran::Failed(format!("{out}\n{err}").trim().to_owned()),
        })
    }

    /// Forwards the Docker socket of a server to one of this machine.
    pub(super) async fn docker(&self, place: &Place, gateway: Option<&Place>) -> Result<Forward> {
        self.make_sockets()?;
        let random = state::random_hex(4)?;
        let socket = self.sockets.join(format!("d-{random}"));
        let mut command = ssh();
        command
            .args(["-N", "-o", "ExitOnForwardFailure=yes", "-o", "StreamLocalBindMask=0177"])
            .arg("-L")
            .arg(format!("{}:/var/run/docker.sock", socket.display()))
            .args(self.way(place, gateway))
            .stdin(Stdio::null())
            .stderr(Stdio::piped());
        let child = command.spawn().map_err(|error| no_ssh(&error))?;
        let mut forward = Forward { socket, child };
        let begun = std::time::Instant::now();
        while !forward.socket.exists() {
            if !forward.lives() || begun.elapsed() > FORWARD_WITHIN {
                let said = last_words(&mut forward.child).await;
                return Err(unreached(place, &said));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(forward)
    }

    /// Removes what is kept of connections.
    pub(super) fn forget(&self) {
        let _ = std::fs::remove_dir_all(&self.sockets);
    }
}

/// What ssh said before it ended.
pub(super) async fn last_words(child: &mut Child) -> String {
    let _ = child.start_kill();
    let mut text = Vec::new();
    if let Some(mut stderr) = child.stderr.take() {
        use tokio::io::AsyncReadExt;
        let _ = stderr.read_to_end(&mut text).await;
    }
    String::from_utf8_lossy(&text).trim().to_owned()
}

/// The error for a server that ssh does not get to, with what to do by ssh's own words.
pub(super) fn unreached(place: &Place, said: &str) -> Error {
    let address = place.outside();
    let error = Error::new(format!("ssh does not get to {} at {address}", place.node));
    let told = said.lines().filter(|line| !line.starts_with("Warning:"));
    let error = told.fold(error, |error, line| error.because(line));
    error.hint(if said.contains("Permission denied") {
        "the key is refused: cloud-init did not run, or the image has another login user \
         (`openstack.ssh_user`)"
    } else if said.contains("host key is known for") || said.contains("not accessible") {
        "another machine made this server: `sky-deploy adopt` takes the ring over"
    } else if said.contains("Host key verification failed") || said.contains("IDENTIFICATION") {
        "the machine shows another host key than it was given: cloud-init did not run, or somebody \
         stands in between"
    } else {
        "the security group must let this machine in on port 22 (`openstack.ssh_from`), and the \
         server must have booted"
    })
}

fn ssh() -> Command {
    let mut command = Command::new("ssh");
    command.kill_on_drop(true);
    command
}

pub(super) fn no_ssh(error: &std::io::Error) -> Error {
    Error::caused("cannot run ssh", error).hint("install the OpenSSH client")
}

async fn keygen(path: &Path, comment: &str) -> Result<()> {
    let path = path.to_string_lossy();
    run_keygen(&["-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", &path]).await.map(drop)
}

async fn run_keygen(arguments: &[&str]) -> Result<String> {
    let output = Command::new("ssh-keygen").args(arguments).stdin(Stdio::null()).output().await;
    let output = output.map_err(|error| {
        Error::caused("cannot run ssh-keygen", &error).hint("install the OpenSSH client")
    })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Error::new("ssh-keygen cannot make or read a key").because(said));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The file of the public half; node names have no dots, so nothing is cut off.
fn public_of(path: &Path) -> PathBuf {
    let mut public = path.as_os_str().to_owned();
    public.push(".pub");
    public.into()
}

fn expand(path: &str) -> PathBuf {
    match (path.strip_prefix("~/"), std::env::var_os("HOME")) {
        (Some(rest), Some(home)) => Path::new(&home).join(rest),
        _ => PathBuf::from(path),
    }
}

/// A word for the shell that runs a proxy command.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@,%".contains(c);
    if word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(server: &str, floating: Option<&str>) -> Place {
        Place {
            node: format!("node-of-{server}"),
            server: server.into(),
            fixed: "10.64.0.5".parse().unwrap(),
            port: 4321,
            floating: floating.map(|ip| ip.parse().unwrap()),
        }
    }

    #[test]
    fn the_way_leads_through_the_gateway_where_there_is_no_other() {
        let ssh = Ssh::new(Path::new("/ring"), &Openstack::default());
        let gateway = place("g", Some("192.0.2.7"));
        let inner = ssh.way(&place("a", None), Some(&gateway));
        assert_eq!(inner.last().unwrap(), "10.64.0.5");
        assert!(inner.iter().any(|word| word == "HostKeyAlias=a"));
        let jump = inner.iter().find(|word| word.starts_with("ProxyCommand=")).unwrap();
        assert!(jump.contains("HostKeyAlias=g") && jump.ends_with("-W %h:%p 192.0.2.7"), "{jump}");
        let own = ssh.way(&gateway, Some(&gateway));
        assert_eq!(own.last().unwrap(), "192.0.2.7");
        assert!(!own.iter().any(|word| word.starts_with("ProxyCommand=")));
        assert_eq!(ssh.way(&place("a", None), None).last().unwrap(), "10.64.0.5");
    }

    #[test]
    fn host_keys_are_pinned_by_server_and_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let ssh = Ssh::new(folder.path(), &Openstack::default());
        ssh.pin("a", &["ssh-ed25519 AAAA me@here"]).unwrap();
        ssh.pin("b", &["ssh-ed25519 BBBB", "ssh-ed25519 CCCC"]).unwrap();
        ssh.pin("a", &["ssh-ed25519 DDDD"]).unwrap();
        let text = std::fs::read_to_string(ssh.known_hosts()).unwrap();
        assert_eq!(text, "a ssh-ed25519 DDDD\nb ssh-ed25519 BBBB\nb ssh-ed25519 CCCC\n");
        ssh.pin("b", &[]).unwrap();
        assert!(ssh.knows("a").unwrap() && !ssh.knows("b").unwrap());
    }

    #[test]
    fn rings_opened_by_one_process_have_gateway_sockets_of_their_own() {
        let open = || Ssh::new(Path::new("/ring"), &Openstack::default());
        let (first, second) = (open(), open());
        assert_ne!(first.control, second.control);
        assert_eq!(first.sockets, second.sockets);
    }

    #[test]
    fn sockets_lie_in_a_folder_that_only_their_owner_gets_into() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| Ssh {
            sockets: folder.path().join(name),
            ..Ssh::new(folder.path(), &Openstack::default())
        };
        let ssh = at("own");
        ssh.make_sockets().unwrap();
        ssh.make_sockets().unwrap();
        std::fs::set_permissions(&ssh.sockets, PermissionsExt::from_mode(0o750)).unwrap();
        let error = ssh.make_sockets().unwrap_err().to_string();
        assert!(error.contains("other users may get into it"), "{error}");
        assert!(error.contains("XDG_RUNTIME_DIR"), "{error}");
        std::fs::create_dir(folder.path().join("elsewhere")).unwrap();
        symlink(folder.path().join("elsewhere"), folder.path().join("link")).unwrap();
        let error = at("link").make_sockets().unwrap_err().to_string();
        assert!(error.contains("it is a link"), "{error}");
    }

    #[test]
    fn words_for_a_shell_stay_words() {
        assert_eq!(quoted("a b'c"), "'a b'\\''c'");
        assert_eq!(quoted("%h:%p"), "%h:%p");
    }
}
