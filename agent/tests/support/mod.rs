//! A real agent in a process of its own, for tests.

use std::net::TcpListener;
use std::process::{ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

/// Longer than anything here may take, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running agent; it is killed when this is dropped.
pub(crate) struct Agent {
    child: Mutex<Option<Child>>,
    pid: Pid,
    port: u16,
    http: reqwest::Client,
    _directory: TempDir,
}

impl Agent {
    /// Starts a ring of one and waits until it serves clients.
    pub(crate) async fn start(arguments: &[&str]) -> Self {
        let agent = Self::spawn(arguments, None).await;
        agent.ready().await;
        agent
    }

    /// Starts an agent, with a token for administrators or none, and waits until it listens.
    pub(crate) async fn spawn(arguments: &[&str], token: Option<&str>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let port = free_port();
        let mut command = Command::new(env!("CARGO_BIN_EXE_sky-agent"));
        command
            .args(["--port", &port.to_string(), "--log", "warn", "--data"])
            .arg(directory.path().join("data"));
        if let Some(token) = token {
            let file = directory.path().join("token");
            std::fs::write(&file, token).unwrap();
            command.arg("--token-file").arg(file);
        }
        command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
        let child = command.spawn().unwrap();
        let pid = Pid::from_raw(child.id().unwrap().cast_signed()).unwrap();
        let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
        let agent = Self { child: Mutex::new(Some(child)), pid, port, http, _directory: directory };
        agent.wait_for("/healthz").await;
        agent
    }

    /// Waits until it can serve clients.
    pub(crate) async fn ready(&self) {
        self.wait_for("/readyz").await;
    }

    /// Asks until the answer is a success. A port that opens can only be found by trying.
    async fn wait_for(&self, path: &str) {
        let asking = async {
            loop {
                let answer = self.http.get(self.url(path)).send().await;
                if answer.is_ok_and(|answer| answer.status().is_success()) {
                    return;
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, asking).await.unwrap_or_else(|_| panic!("{path} did not become good"));
    }

    /// A request to it.
    pub(crate) fn request(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, self.url(path))
    }

    /// A `GET`.
    pub(crate) fn get(&self, path: &str) -> reqwest::RequestBuilder {
        self.http.get(self.url(path))
    }

    /// A `PUT`.
    pub(crate) fn put(
        &self,
        path: &str,
        body: impl Into<reqwest::Body>,
    ) -> reqwest::RequestBuilder {
        self.http.put(self.url(path)).body(body)
    }

    /// The address of a path.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// Where other agents reach it.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The most memory that it has had so far, in MiB.
    pub(crate) fn memory_peak(&self) -> u64 {
        let status = format!("/proc/{}/status", self.pid.as_raw_nonzero());
        let status = std::fs::read_to_string(status).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10
    }

    /// Sends a request as it is written, which no client library would do to every path: `head` ends
    /// with a line end. Status and body come back.
    pub(crate) async fn raw(&self, head: &str, body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        let request = format!("{head}host: localhost\r\nconnection: close\r\n\r\n{body}");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        (status.unwrap_or_else(|| panic!("not an HTTP answer: {answer}")), body.to_owned())
    }

    /// Asks it to stop.
    pub(crate) fn terminate(&self) {
        kill_process(self.pid, Signal::TERM).unwrap();
    }

    /// Waits until it has stopped.
    pub(crate) async fn exited(&self) -> ExitStatus {
        let mut child = self.child.lock().unwrap().take().expect("it is waited for once");
        timeout(PATIENCE, child.wait()).await.expect("it stops in time").unwrap()
    }
}

/// A port that nobody listens on now.
fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}
