//! Who listens on a port of this machine, so that an error can name it.

use std::io::ErrorKind;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use crate::error::{Error, Problem, Result};
use crate::node::{LOOPBACK, NodeSpec};

/// How long a killed process may take to let go of its port.
const ENDS_WITHIN: Duration = Duration::from_secs(3);

/// Whether the ports of nodes that are to be made are free, all problems at once.
pub fn are_free<'a>(nodes: impl IntoIterator<Item = &'a NodeSpec>) -> Result<()> {
    let mut problems = Vec::new();
    for node in nodes {
        if let Some(cause) = taken(node.port) {
            let mut problem = Problem::new(format!("{} cannot have port {}", node.name, node.port));
            problem.causes.push(cause);
            problem.hint =
                Some("end that program, or set another first port at `agent.port`".to_owned());
            problems.push(problem);
        }
    }
    Error::of(problems).map_or(Ok(()), Err)
}

/// Why a port cannot be had; none if it is free. A port that is taken by no process in sight belongs to one
/// that was killed and has not quite ended.
fn taken(port: u16) -> Option<String> {
    let asked = Instant::now();
    loop {
        // Bound and let go at once: nothing was connected, so the port is free again.
        let error = TcpListener::bind((LOOPBACK, port)).err()?;
        let holder = holder(port);
        let may_be_ending = error.kind() == ErrorKind::AddrInUse && asked.elapsed() < ENDS_WITHIN;
        if holder.is_some() || !may_be_ending {
            return Some(holder.unwrap_or_else(|| error.to_string()));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The process that listens on a port, as a sentence.
fn holder(port: u16) -> Option<String> {
    let sockets = ["/proc/net/tcp", "/proc/net/tcp6"].map(std::fs::read_to_string);
    let sockets: Vec<String> = sockets
        .into_iter()
        .flatten()
        .flat_map(|table| {
            table.lines().filter_map(|line| listening_inode(line, port)).collect::<Vec<_>>()
        })
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    for process in std::fs::read_dir("/proc").ok()?.flatten() {
        if !process.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        let Ok(files) = std::fs::read_dir(process.path().join("fd")) else { continue };
        for file in files.flatten() {
            let Ok(target) = std::fs::read_link(file.path()) else { continue };
            if sockets.iter().any(|socket| target.as_os_str() == socket.as_str()) {
                let name = std::fs::read_to_string(process.path().join("comm")).ok()?;
                let pid = process.file_name().to_string_lossy().into_owned();
                return Some(format!("process {pid} ({}) listens there", name.trim()));
            }
        }
    }
    None
}

/// The inode of the socket in a line of `/proc/net/tcp`, if it listens on the port.
fn listening_inode(line: &str, port: u16) -> Option<String> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (_, hex) = fields.get(1)?.rsplit_once(':')?;
    let listens = fields.get(3) == Some(&"0A") && u16::from_str_radix(hex, 16) == Ok(port);
    listens.then(|| fields.get(9).map(|inode| (*inode).to_owned())).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_named_with_its_holder() {
        let listener = TcpListener::bind((LOOPBACK, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let node = NodeSpec {
            name: "a".into(),
            id: sky_chord::Id::small(1),
            host: Some(LOOPBACK),
            port,
            zone: None,
        };
        let error = are_free([&node]).unwrap_err();
        let cause = &error.problems[0].causes[0];
        assert!(cause.contains(&format!("process {} ", std::process::id())), "{cause}");
        drop(listener);
        are_free([&node]).unwrap();
    }
}
