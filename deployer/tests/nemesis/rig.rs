//! The places that agents run in: a network of their own, each with a small disk of its own. Made and
//! removed by the test itself; what a run that was killed left behind is removed by the next one.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Nodes that there is room for.
pub(crate) const SLOTS: usize = 7;

/// The size of each node's disk. Only what is used takes memory.
const DISK: &str = "size=400m";

/// What every namespace, mount and container of a run is named after: this and the runner's process.
const MARK: &str = "sky-nemesis-";

/// How agents are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Each a process in a network namespace of its own.
    Processes,
    /// Each a container of the Docker engine, on a network of its own.
    Containers,
}

/// The places of one run. Dropping it removes them.
#[derive(Debug)]
pub(crate) struct Rig {
    pub(crate) kind: Kind,
    /// `sky-nemesis-PID`.
    pub(crate) name: String,
    /// The image of the containers.
    pub(crate) image: String,
    subnet: [u8; 3],
    folder: PathBuf,
}

/// Runs a program that must succeed; returns what it printed.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    run_with(program, arguments, "")
}

/// The same, with something to read.
pub(crate) fn run_with(program: &str, arguments: &[&str], input: &str) -> Result<String, String> {
    use std::io::Write as _;
    let failed = |why: String| format!("`{program} {}` failed: {why}", arguments.join(" "));
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that does not read to the end says why itself.
        stdin.write_all(input.as_bytes()).ok();
    }
    let output = child.wait_with_output().map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }
}

/// What the machine lacks, as a sentence; none if everything is there.
pub(crate) fn lacking(kind: Kind) -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("root, for network namespaces and mounts".to_owned());
    }
    let mut tools =
        vec![("ip", "-V"), ("tc", "-V"), ("nft", "-v"), ("nsenter", "-V"), ("setpriv", "-V")];
    if kind == Kind::Containers {
        tools.push(("docker", "version"));
    }
    let missing = tools.iter().find(|(tool, version)| run(tool, &[version]).is_err());
    if let Some((tool, _)) = missing {
        let package = match *tool {
            "nft" => "Debian's package nftables",
            "docker" => "a Docker engine that answers",
            _ => "Debian's packages iproute2 and util-linux",
        };
        return Some(format!("`{tool}` ({package})"));
    }
    let probe = format!("{MARK}{}-probe", std::process::id());
    let made = run("ip", &["netns", "add", &probe]);
    run("ip", &["netns", "del", &probe]).ok();
    made.err().map(|why| format!("network namespaces ({why})"))
}

impl Rig {
    /// Makes the network and the disks.
    pub(crate) fn new(kind: Kind, program: &Path) -> Result<Self, String> {
        remove_leftovers();
        let pid = std::process::id();
        let name = format!("{MARK}{pid}");
        let folder = std::env::temp_dir().join(&name);
        let subnet = free_subnet(pid)?;
        let rig = Self { kind, image: format!("{name}:agent"), name, subnet, folder };
        for slot in 0..SLOTS {
            let disk = rig.disk(slot);
            fs::create_dir_all(&disk).map_err(|error| error.to_string())?;
            let mount = ["-t", "tmpfs", "-o", DISK, "tmpfs", &disk.to_string_lossy()];
            run("mount", &mount)?;
        }
        fs::create_dir_all(rig.folder.join("logs")).map_err(|error| error.to_string())?;
        match kind {
            Kind::Processes => rig.make_namespaces()?,
            Kind::Containers => rig.make_engine_parts(program)?,
        }
        Ok(rig)
    }

    /// A switch in a namespace of its own, where no firewall of this machine looks at what it passes
    /// on, and a namespace for each node. This machine has a leg in it, to ask every agent.
    fn make_namespaces(&self) -> Result<(), String> {
        let switch = format!("{}-switch", self.name);
        run("ip", &["netns", "add", &switch])?;
        run("ip", &["-n", &switch, "link", "add", "br0", "type", "bridge"])?;
        run("ip", &["-n", &switch, "link", "set", "br0", "up"])?;
        let leg = self.leg();
        run("ip", &["link", "add", &leg, "type", "veth", "peer", "host", "netns", &switch])?;
        run("ip", &["address", "add", &format!("{}/24", self.address(254)), "dev", &leg])?;
        run("ip", &["link", "set", &leg, "up"])?;
        let plug = |port: &str| {
            run("ip", &["-n", &switch, "link", "set", port, "master", "br0"])?;
            run("ip", &["-n", &switch, "link", "set", port, "up"])
        };
        plug("host")?;
        for slot in 0..SLOTS {
            let space = self.namespace(slot);
            let (port, address) = (format!("n{slot}"), format!("{}/24", self.node_address(slot)));
            run("ip", &["netns", "add", &space])?;
            let peer = ["type", "veth", "peer", &port, "netns", &switch];
            run("ip", &[&["-n", &space, "link", "add", "eth0"][..], &peer].concat())?;
            run("ip", &["-n", &space, "address", "add", &address, "dev", "eth0"])?;
            for link in ["lo", "eth0"] {
                run("ip", &["-n", &space, "link", "set", link, "up"])?;
            }
            plug(&port)?;
        }
        Ok(())
    }

    /// The network and the image of the containers, the latter as `sky-deploy` makes it: the program
    /// and nothing else.
    fn make_engine_parts(&self, program: &Path) -> Result<(), String> {
        let subnet = format!("{}/24", self.address(0));
        let gateway = self.address(254).to_string();
        let label = format!("sky.nemesis={}", std::process::id());
        let place = ["--subnet", &subnet, "--gateway", &gateway, "--label", &label, &self.name];
        run("docker", &[&["network", "create"][..], &place].concat())?;
        let archive = self.folder.join("image.tar");
        let packed = || {
            let mut tar = tar::Builder::new(fs::File::create(&archive)?);
            // The engine does not know the format of files with holes.
            tar.sparse(false);
            tar.append_path_with_name(program, "sky-agent")?;
            tar.finish()
        };
        packed().map_err(|error| error.to_string())?;
        let change = r#"ENTRYPOINT ["/sky-agent"]"#;
        let archive = archive.to_string_lossy();
        run("docker", &["import", "--change", change, &archive, &self.image]).map(drop)
    }

    /// The name of this machine's leg in the network; at most 15 characters.
    fn leg(&self) -> String {
        leg_of(std::process::id())
    }

    pub(crate) fn namespace(&self, slot: usize) -> String {
        format!("{}-{slot}", self.name)
    }

    const fn address(&self, last: u8) -> Ipv4Addr {
        let [a, b, c] = self.subnet;
        Ipv4Addr::new(a, b, c, last)
    }

    /// Where this machine is in the network.
    pub(crate) const fn host_address(&self) -> Ipv4Addr {
        self.address(254)
    }

    #[expect(clippy::cast_possible_truncation, reason = "there are few nodes")]
    pub(crate) const fn node_address(&self, slot: usize) -> Ipv4Addr {
        self.address(10 + slot as u8)
    }

    /// The small disk of a node.
    pub(crate) fn disk(&self, slot: usize) -> PathBuf {
        self.folder.join(format!("disk{slot}"))
    }

    /// What a node logged.
    pub(crate) fn log(&self, slot: usize) -> PathBuf {
        self.folder.join("logs").join(format!("n{slot}.log"))
    }

    /// Keeps the logs of a failed run, which the next run would remove.
    pub(crate) fn keep_logs(&self, folder: &Path) {
        for slot in 0..SLOTS {
            let log = self.log(slot);
            if log.exists() {
                fs::copy(log, folder.join(format!("n{slot}.log"))).ok();
            }
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

fn leg_of(pid: u32) -> String {
    format!("snm{pid}")
}

/// Removes everything that is named after a run.
fn remove(name: &str) {
    let pid = name.strip_prefix(MARK).unwrap_or_default();
    for kind in ["container", "network"] {
        let label = format!("label=sky.nemesis={pid}");
        let all: &[&str] = if kind == "container" { &["-a"] } else { &[] };
        let list = [&[kind, "ls", "-q", "--filter", &label][..], all].concat();
        // No engine: no containers.
        for id in run("docker", &list).unwrap_or_default().split_whitespace() {
            let force: &[&str] = if kind == "container" { &["-f", "-v"] } else { &[] };
            report(run("docker", &[&[kind, "rm"][..], force, &[id]].concat()));
        }
    }
    let image = format!("{name}:agent");
    if run("docker", &["image", "inspect", &image]).is_ok() {
        report(run("docker", &["image", "rm", &image]));
    }
    for space in namespaces().filter(|space| run_of(space) == Some(name)) {
        for pid in run("ip", &["netns", "pids", &space]).unwrap_or_default().split_whitespace() {
            report(run("kill", &["-9", pid]));
        }
        report(run("ip", &["netns", "del", &space]));
    }
    let folder = std::env::temp_dir().join(name);
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    for mount in mounts.lines().filter_map(|line| line.split(' ').nth(1)) {
        if Path::new(mount).starts_with(&folder) {
            report(run("umount", &["--lazy", mount]));
        }
    }
    if folder.exists() {
        report(fs::remove_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display())));
    }
}

/// Removes what runs left behind whose process is gone.
fn remove_leftovers() {
    let folders = fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten();
    let folders = folders.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let label = r#"{{.Label "sky.nemesis"}}"#;
    let filter = ["--filter", "label=sky.nemesis", "--format", label];
    let engine = |list: &[&str]| run("docker", &[list, &filter].concat()).unwrap_or_default();
    let labels = engine(&["container", "ls", "-a"]) + &engine(&["network", "ls"]);
    let labels: Vec<String> = labels.lines().map(|pid| format!("{MARK}{pid}")).collect();
    let mut runs: Vec<String> = folders
        .chain(namespaces())
        .chain(labels)
        .filter_map(|name| run_of(&name).map(str::to_owned))
        .collect();
    runs.sort();
    runs.dedup();
    for name in runs {
        let pid = name.strip_prefix(MARK).unwrap_or_default();
        let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        let is_alive = program.file_name().is_some_and(|file| {
            file.as_encoded_bytes().starts_with(b"nemesis-")
                && pid != std::process::id().to_string()
        });
        if !is_alive {
            remove(&name);
        }
    }
}

/// `sky-nemesis-PID`, if the name begins so.
fn run_of(name: &str) -> Option<&str> {
    let pid = name.strip_prefix(MARK)?;
    let digits = pid.bytes().take_while(u8::is_ascii_digit).count();
    (digits > 0).then(|| &name[..MARK.len() + digits])
}

fn namespaces() -> impl Iterator<Item = String> {
    let entries = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned())
}

/// A /24 that no route of this machine leads to.
fn free_subnet(pid: u32) -> Result<[u8; 3], String> {
    let routes = run("ip", &["-4", "route", "show", "table", "all"])?;
    let [_, _, high, low] = pid.to_be_bytes();
    (0..100u8)
        .map(|more| [10, 150 + high.wrapping_add(more) % 100, low])
        .find(|[a, b, c]| !routes.contains(&format!("{a}.{b}.{c}.")))
        .ok_or_else(|| "every network below 10.150 is in use".to_owned())
}

/// Cleaning goes on after a failure, but says what it was.
fn report<T>(result: Result<T, String>) {
    if let Err(problem) = result {
        crate::say(&format!("cannot clean up: {problem}"));
    }
}
