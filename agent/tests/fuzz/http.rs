//! Bytes from a client that may be anything: the connection comes to an end, the agent goes on, and no
//! answer is an internal error. Part of the unit tests, so that the memory of the agent alone is counted.
//!
//! `UPDATE_INPUTS=1 cargo test -p sky-agent --lib http::fuzz` makes the first inputs anew.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sky_chord::{Id, Peer, Phase, Reply, Request, RingId, Start};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::{Api, serve_connection};
use crate::config::{Secret, Settings};
use crate::driver::{Driver, Handle, Parts};
use crate::fuzz::{self, Target};
use crate::rpc::Rpc;
use crate::store::{Committer, Directory, Room, Store};

/// Longer than anything may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A client that hears nothing for so long has nothing to wait for, mostly.
const QUIET: Duration = Duration::from_millis(4);

/// An agent that is a ring of its own, without its port.
struct Agent {
    api: Arc<Api>,
    handle: Handle,
    listener: TcpListener,
    _stop: (watch::Sender<bool>, watch::Sender<bool>),
    _folder: TempDir,
}

impl Agent {
    async fn start() -> Self {
        let shm = Path::new("/dev/shm");
        let folder = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() };
        let folder = folder.unwrap();
        let (directory, store) = Directory::open(folder.path(), None, Id::small(7)).unwrap();
        let me = Peer { node: directory.node(), address: "127.0.0.1:1".into() };
        let room = Room::new(directory.path(), Some(0));
        let committer = Committer::start(store.clone(), room, Arc::default()).unwrap();
        let (events, network) = mpsc::channel(100);
        let settings = sky_chord::Settings::default();
        let meta = store.meta().unwrap();
        let (handle, driver) = Driver::new(Parts {
            start: Start { me: me.clone(), boot: 1, settings, meta, seed: 1, wall: 0 },
            store,
            committer,
            rpc: Rpc::new(me, None, events, Arc::default()),
            network,
            counters: Arc::default(),
            found: Some(RingId(1)),
            trouble: watch::channel(None).1,
        })
        .unwrap();
        let settings = Settings {
            name: "agent".to_owned(),
            ip: [127, 0, 0, 1].into(),
            port: 1,
            advertise: "127.0.0.1:1".into(),
            join: Vec::new(),
            id: None,
            data: folder.path().to_owned(),
            secret: None,
            // Nobody guesses it: the agent is not told to leave its ring.
            token: Some(Secret::new(&[7; 32])),
            require_token: false,
            wait_for_init: false,
            max_value_bytes: 4096,
            disk_reserve: Some(0),
            repair_after: Duration::from_secs(10),
            replicas: 3,
            tie_breaker: None,
        };
        let (stop, stopping) = watch::channel(false);
        let (stop_driving, stopped) = watch::channel(false);
        let api = Api::new(handle.clone(), &settings, stopping);
        tokio::spawn(driver.run(stopped));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _stop = (stop, stop_driving);
        let agent = Self { api, handle, listener, _stop, _folder: folder };
        while agent.phase().await != Phase::Up {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        agent
    }

    async fn phase(&self) -> Phase {
        match self.handle.request(Request::View).await {
            Ok(Reply::View(view)) => view.phase,
            answer => panic!("the agent does not answer: {answer:?}"),
        }
    }

    /// What a client hears that sends these bytes, up to so many bytes if it waits for them.
    async fn hear(&self, input: &[u8], wanted: usize) -> Vec<u8> {
        let mut client = TcpStream::connect(self.listener.local_addr().unwrap()).await.unwrap();
        let (server, remote) = self.listener.accept().await.unwrap();
        let client = async move {
            let mut heard = Vec::new();
            // It may have been hung up on already.
            client.write_all(input).await.ok();
            loop {
                let patience = if heard.len() < wanted { PATIENCE } else { QUIET };
                match timeout(patience, client.read_buf(&mut heard)).await {
                    Ok(Ok(1..)) => {}
                    _ => return heard,
                }
            }
        };
        let serving = serve_connection(Arc::clone(&self.api), server, remote);
        let both = async { tokio::join!(client, serving).0 };
        timeout(PATIENCE, both).await.expect("the connection ends when the client does")
    }

    async fn take(&self, input: &[u8]) -> Vec<String> {
        let heard = self.hear(input, 0).await;
        assert_eq!(self.phase().await, Phase::Up);
        let heard = String::from_utf8_lossy(&heard);
        let methods = ["GET", "HEAD", "PUT", "POST", "DELETE", "PRI"];
        let method = methods.into_iter().find(|method| input.starts_with(method.as_bytes()));
        let mut saw = Vec::new();
        for line in heard.lines() {
            // The first line of an answer; the code of an error.
            if let Some((_, status)) = line.split_once("HTTP/1.") {
                let status: String = status.chars().skip(2).take(3).collect();
                assert_ne!(status, "500", "{heard}");
                saw.push(format!("{method:?} {status}"));
            } else if let Some((_, code)) = line.split_once("\"code\":") {
                saw.push(code.chars().take(20).collect());
            }
        }
        saw
    }
}

struct Requests {
    runtime: Runtime,
    agent: Agent,
}

impl Requests {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let agent = runtime.block_on(Agent::start());
        Self { runtime, agent }
    }
}

impl Target for Requests {
    const NAME: &str = "http";
    const INPUTS: usize = 400;
    /// One page of keys and values, and what the agent does beside.
    const MEMORY: (u64, u64) = (8 << 20, 64);

    fn take(&mut self, input: &[u8]) -> Vec<String> {
        self.runtime.block_on(self.agent.take(input))
    }

    fn seams(input: &[u8]) -> Vec<usize> {
        let is_seam = |byte: &u8| matches!(byte, b' ' | b'\n' | b'?' | b'&' | b'/' | b':');
        (0..input.len()).filter(|at| is_seam(&input[*at])).map(|at| at + 1).collect()
    }
}

fn kept() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/inputs/http")
}

#[test]
fn clients_may_send_any_bytes() {
    fuzz::run(&mut Requests::new(), &kept());
}

/// Requests of every kind, with the beginning of the answer.
const REQUESTS: &[(&str, &str, &str)] = &[
    (
        "put",
        "PUT /kv/a HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ncontent-type: text/plain\r\n\r\nvalue",
        "HTTP/1.1 20",
    ),
    (
        "put-if-match",
        "PUT /kv/a HTTP/1.1\r\nhost: localhost\r\nif-match: \"abc\", *\r\ncontent-length: 1\r\n\r\nv",
        "HTTP/1.1 4",
    ),
    (
        "put-chunked",
        "PUT /kv/b%20c%2Fd HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n",
        "HTTP/1.1 20",
    ),
    (
        "put-too-large",
        "PUT /kv/a HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99999999\r\nexpect: 100-continue\r\n\r\n",
        "HTTP/1.1 413",
    ),
    (
        "put-idempotent",
        "PUT /kv/i HTTP/1.1\r\nhost: localhost\r\nidempotency-key: once\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 20",
    ),
    (
        "expect",
        "PUT /kv/e HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\nab",
        "HTTP/1.1 ",
    ),
    ("post", "POST /kv/p HTTP/1.1\r\nhost: 127.0.0.1:1\r\ncontent-length: 0\r\n\r\n", "HTTP/1.1 "),
    (
        "get",
        "GET /kv/a?consistency=any HTTP/1.1\r\nhost: [::1]:80\r\nif-none-match: *\r\n\r\n",
        "HTTP/1.1 ",
    ),
    ("head", "HEAD /kv/none HTTP/1.1\r\nhost: localhost\r\n\r\n", "HTTP/1.1 404"),
    ("delete", "DELETE /kv/a HTTP/1.0\r\nif-match: W/\"x\"\r\n\r\n", "HTTP/1.0 4"),
    (
        "list",
        "GET /kv?prefix=a%20&limit=4294967295&cursor=AAAA HTTP/1.1\r\nhost: localhost\r\n\r\n",
        "HTTP/1.1 ",
    ),
    ("dots", "GET /kv/.. HTTP/1.1\r\nhost: localhost\r\n\r\n", "HTTP/1.1 400"),
    ("bad-percent", "GET /kv/%zz%ff HTTP/1.1\r\nhost: localhost\r\n\r\n", "HTTP/1.1 400"),
    ("lookup", "GET /lookup/a%25 HTTP/1.1\r\nhost: localhost\r\n\r\n", "HTTP/1.1 200"),
    ("ring", "GET /ring?scope=all HTTP/1.1\r\nhost: agent\r\n\r\n", "HTTP/1.1 200"),
    ("dot", "GET /ring.dot HTTP/1.1\r\nhost: localhost\r\n\r\n", "HTTP/1.1 200"),
    ("local", "GET /local?limit=7&after=%00 HTTP/1.1\r\nhost: localhost\r\n\r\n", "HTTP/1.1 "),
    (
        "events",
        "GET /events HTTP/1.1\r\nhost: localhost\r\nlast-event-id: 5\r\n\r\n",
        "HTTP/1.1 200",
    ),
    (
        "watch",
        "GET /watch?prefix=a&values=true&after=a.1.1.1 HTTP/1.1\r\nhost: localhost\r\n\r\n",
        "HTTP/1.1 ",
    ),
    (
        "watch-key",
        "GET /watch/a%25?follow=false HTTP/1.1\r\nhost: localhost\r\nlast-event-id: 5\r\n\r\n",
        "HTTP/1.1 ",
    ),
    (
        "metrics",
        "GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
        "HTTP/1.1 200",
    ),
    ("page", "GET / HTTP/1.1\r\nhost: localhost\r\naccept-encoding: gzip\r\n\r\n", "HTTP/1.1 200"),
    (
        "pipelined",
        "GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\nGET /readyz HTTP/1.1\r\nhost: localhost\r\n\r\n",
        "HTTP/1.1 200",
    ),
    ("half-pipelined", "GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\nGET /re", "HTTP/1.1 200"),
    (
        "batch",
        "POST /kv:batch HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 130\r\n\r\n{\"operations\":[{\"op\":\"put\",\"key\":\"a\",\"value\":{\"base64\":\"AA==\"},\"if_match\":\"*\"},{\"op\":\"get\",\"key\":\"a\"},{\"op\":\"delete\",\"key\":\"..\"}]}",
        "HTTP/1.1 200",
    ),
    ("bad-header", "GET /healthz HTTP/1.1\r\nhost: localhost\r\nno colon\r\n\r\n", "HTTP/1.1 400"),
    (
        "init",
        "POST /admin/init HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer x\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}",
        "HTTP/1.1 4",
    ),
    (
        "leave",
        "POST /admin/leave HTTP/1.1\r\nhost: localhost\r\norigin: http://localhost\r\n\r\n",
        "HTTP/1.1 4",
    ),
    (
        "force",
        "POST /admin/force HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer x\r\ncontent-type: application/json\r\ncontent-length: 43\r\n\r\n{\"hi\":\"1\",\"epoch\":1,\"survivors\":[],\"by\":\"\"}",
        "HTTP/1.1 4",
    ),
    (
        "foreign",
        "POST /kv/a HTTP/1.1\r\nhost: evil.example\r\norigin: http://evil.example\r\n\r\n",
        "HTTP/1.1 403",
    ),
    ("no-path", "GET name HTTP/1.1\r\nhost: localhost\r\n\r\n", "HTTP/1.1 400"),
    ("connect", "CONNECT localhost:1 HTTP/1.1\r\nhost: localhost\r\n\r\n", "HTTP/1.1 400"),
    ("any", "OPTIONS * HTTP/1.1\r\nhost: localhost\r\n\r\n", "HTTP/1.1 404"),
    (
        "two-lengths",
        "PUT /kv/a HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        "HTTP/1.1 400",
    ),
    (
        "http2",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x1d\x01\x05\0\0\0\x01\x42\x03PUT\x44\x05/kv/h\x41\x09localhost\x46\x04http",
        "\0",
    ),
    ("not-http", "\x16\x03\x01\x02\0\x01\0\x01\u{7f}", ""),
];

#[test]
fn the_kept_inputs_are_understood() {
    if std::env::var_os("UPDATE_INPUTS").is_some() {
        std::fs::create_dir_all(kept()).unwrap();
        for (name, request, _) in REQUESTS {
            std::fs::write(kept().join(name), request).unwrap();
        }
    }
    let Requests { runtime, agent } = Requests::new();
    for (name, request, answer) in REQUESTS {
        assert!(kept().join(name).exists(), "{name} is not kept: UPDATE_INPUTS=1 does that");
        let heard = runtime.block_on(agent.hear(request.as_bytes(), answer.len()));
        let heard = String::from_utf8_lossy(&heard);
        assert!(heard.starts_with(answer), "{name}: {heard}");
    }
}
