//! What a cloud would give its servers: a network of their own, which this machine is connected to.
//!
//! The bridge is in a network namespace of its own, where no firewall of this machine is in the way.
//! Everything is named after this process, and removed with it.

use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Begins the name of every namespace; the number of the process follows.
const PREFIX: &str = "skyt-";

/// A bridge, and the end of a wire to it here.
pub(crate) struct Network {
    /// Tells the networks of one process apart.
    number: usize,
    /// How many namespaces it has had: the system takes a moment to forget one and its wire.
    made: AtomicUsize,
}

/// The namespace of one server; removed when this is dropped.
pub(crate) struct Namespace {
    pub(crate) name: String,
}

impl Network {
    /// A network where this machine has the first address of `10.A.B.0/24`, which is its gateway's and
    /// thus no server's.
    pub(crate) fn new(number: usize, net: (u8, u8)) -> Self {
        remove_those_of_ended_processes();
        let network = Self { number, made: AtomicUsize::new(0) };
        let (hub, wire) = (network.hub(), network.wire());
        ip(&format!("netns add {hub}"));
        ip(&format!("-n {hub} link add hub type bridge"));
        ip(&format!("-n {hub} link set hub up"));
        ip(&format!("link add {wire} type veth peer name host netns {hub}"));
        ip(&format!("-n {hub} link set host master hub up"));
        ip(&format!("addr add {}/24 dev {wire}", Ipv4Addr::new(10, net.0, net.1, 1)));
        ip(&format!("link set {wire} up"));
        network
    }

    fn hub(&self) -> String {
        format!("{PREFIX}{}-hub{}", std::process::id(), self.number)
    }

    fn wire(&self) -> String {
        // Names of devices have 15 characters at most.
        format!("st{}x{}", std::process::id(), self.number)
    }

    /// A namespace with a wire to the bridge and this address.
    pub(crate) fn namespace(&self, address: Ipv4Addr) -> Namespace {
        let server = self.made.fetch_add(1, Ordering::Relaxed);
        let hub = self.hub();
        let name = format!("{PREFIX}{}-{}-{server}", std::process::id(), self.number);
        let namespace = Namespace { name };
        let name = &namespace.name;
        ip(&format!("netns add {name}"));
        ip(&format!("-n {name} link set lo up"));
        ip(&format!("-n {name} link add eth0 type veth peer name s{server} netns {hub}"));
        ip(&format!("-n {name} addr add {address}/24 dev eth0"));
        ip(&format!("-n {name} link set eth0 up"));
        ip(&format!("-n {hub} link set s{server} master hub up"));
        namespace
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // The wires go with the namespace of their other ends.
        remove(&self.hub());
    }
}

impl Namespace {
    /// A command within it, that ends when this thread ends however that comes.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, "setpriv", "--pdeathsig", "KILL", program]);
        command
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

fn remove(namespace: &str) {
    let mut command = Command::new("ip");
    command.args(["netns", "del", namespace]).stderr(Stdio::null());
    command.status().ok();
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {errors}");
}

/// What a test left that was killed.
fn remove_those_of_ended_processes() {
    let output = Command::new("ip").args(["netns", "list"]).output().unwrap();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let name = line.split(' ').next().unwrap_or_default();
        let process = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        let ended = |process: &str| !std::path::Path::new("/proc").join(process).exists();
        if process.is_some_and(ended) {
            remove(name);
        }
    }
}
