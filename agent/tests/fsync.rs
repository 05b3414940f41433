//! Durability as the kernel sees it: every acknowledged write was synced on two of three disks.

#![expect(clippy::unwrap_used, reason = "this is test code")]

#[path = "support/need.rs"]
mod need;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const PUTS: usize = 1000;
const PATIENCE: Duration = Duration::from_secs(60);

/// A process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

fn agent(port: u16, first: u16, data: &Path) -> Running {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sky-agent"));
    command.args(["--log", "warn", "--port", &port.to_string(), "--data"]).arg(data);
    if port != first {
        command.args(["--join", &first.to_string()]);
    }
    Running(command.stdin(Stdio::null()).spawn().unwrap())
}

/// Writes every sync of a running process to `log`, from the moment this returns.
fn trace(process: &Running, log: &Path) -> Running {
    let mut command = Command::new("strace");
    command.args(["-f", "-e", "trace=fsync,fdatasync", "-o"]).arg(log);
    command.args(["-p", &process.0.id().to_string()]);
    let mut tracer = Running(command.stderr(Stdio::piped()).spawn().unwrap());
    let mut said = BufReader::new(tracer.0.stderr.take().unwrap()).lines();
    let attached = said.find(|line| line.as_ref().is_ok_and(|line| line.contains("attached")));
    assert!(attached.is_some(), "strace could not attach");
    // Goes on reading, or the tracer would stop at a full pipe.
    std::thread::spawn(move || said.for_each(drop));
    tracer
}

fn syncs(log: &Path) -> usize {
    let lines = std::fs::read_to_string(log).unwrap();
    lines.lines().filter(|line| line.contains("sync(")).count()
}

/// Waits until an agent's own report fulfils a condition. That can only be found by asking.
async fn until(http: &reqwest::Client, port: u16, holds: impl Fn(&sky_chord::View) -> bool) {
    let asking = async {
        loop {
            if let Ok(answer) = http.get(format!("http://127.0.0.1:{port}/ring")).send().await
                && answer.json().await.is_ok_and(|view| holds(&view))
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.expect("the ring of three is formed");
}

#[tokio::test]
async fn every_new_put_is_synced_by_two_agents() {
    let has_strace = Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_ok();
    if !need::is_met(has_strace, "strace") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
    let ports = [free_port(), free_port(), free_port()];
    let data = |port: u16| folder.path().join(port.to_string());
    let agents = ports.map(|port| agent(port, ports[0], &data(port)));
    for port in ports {
        until(&http, port, |view| {
            view.ranges.len() == 3
                && view.ranges.iter().all(|range| range.members.len() == 3 && !range.unswept)
        })
        .await;
    }

    let logs = ports.map(|port| folder.path().join(format!("{port}.strace")));
    let tracers: Vec<_> = agents.iter().zip(&logs).map(|(agent, log)| trace(agent, log)).collect();
    for i in 0..PUTS {
        let url = format!("http://127.0.0.1:{}/kv/key-{i}", ports[0]);
        let answer = http.put(url).body("value").send().await.unwrap();
        assert_eq!(answer.status(), 201);
    }
    drop(tracers);
    let counted: usize = logs.iter().map(|log| syncs(log)).sum();
    assert!(counted >= 2 * PUTS, "{counted} syncs for {PUTS} writes");
}
