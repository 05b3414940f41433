//! The dashboard's server over real sockets: agents that only report stand in for the ring.

#[path = "../../tests/parts/browser.rs"]
mod browser;
mod many;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use reqwest::{Method, StatusCode};
use serde_json::Value;
use sky_chord::{
    Finger, Id, KeyCount, Load, MemberStatus, MemberView, NodeId, Peer, Phase, RangeView, View,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use warp::Filter;

use super::aggregate::{Aggregator, Expected};
use super::*;
use crate::node::NodeState;

const TOKEN: &str = "a token of this test";

/// An agent that reports a fixed view and says what it was asked for.
struct Agent {
    expected: Expected,
    asked: Arc<Mutex<Vec<String>>>,
    /// Ends the agent.
    _end: oneshot::Sender<()>,
}

fn peer(position: u64, address: &str) -> Peer {
    Peer {
        node: NodeId { position: Id::small(position), incarnation: position },
        address: address.into(),
    }
}

fn view(me: Peer, others: &[Peer]) -> View {
    let finger = |index, peer: &Peer| Finger { index, start: Id::MIN, peer: peer.clone() };
    View {
        ring: Some("0".repeat(32)),
        phase: Phase::Up,
        predecessor: others.last().cloned(),
        successors: others.to_vec(),
        fingers: others
            .iter()
            .flat_map(|peer| [finger(0, peer), finger(1, peer), finger(2, peer)])
            .take(3)
            .collect(),
        ranges: vec![RangeView {
            lo: others.last().map_or(me.node.position, |peer| peer.node.position),
            hi: me.node.position,
            epoch: 1,
            members: [std::slice::from_ref(&me), others].concat(),
            prev: Vec::new(),
            leads: true,
            unswept: false,
            lagging: Vec::new(),
            keys: 0,
        }],
        members: others
            .iter()
            .map(|peer| MemberView {
                peer: peer.clone(),
                status: MemberStatus::Up,
                suspected_ms: None,
                rtt_us: None,
                heard_ms: None,
            })
            .collect(),
        keys: KeyCount::default(),
        load: Load::default(),
        me,
    }
}

/// An agent at `position` that answers `GET /ring`, and every call for a key with its path.
async fn agent(position: u64, others: &[Peer]) -> Agent {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let view = view(peer(position, &address), others);
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = asked.clone();
    let ring = warp::path!("ring").map(move || warp::reply::json(&view));
    let rest = warp::method().and(warp::path::full()).and(warp::body::bytes()).map(
        move |method: Method, path: warp::path::FullPath, body: bytes::Bytes| {
            log.lock().unwrap().push(format!("{method} {}", path.as_str()));
            let reply = warp::reply::with_header(body.to_vec(), "etag", "\"7\"");
            warp::reply::with_header(reply, "content-type", "text/html")
        },
    );
    let (end, ended) = oneshot::channel();
    let server = warp::serve(ring.or(rest)).incoming(listener).graceful(ended.map(|_| ())).run();
    tokio::spawn(server);
    let expected = Expected {
        name: format!("n{position}"),
        id: Id::small(position),
        url: format!("http://{address}"),
        provider: "process".to_owned(),
        state: NodeState::Up,
        runs: true,
        note: None,
        pid: Some(1),
        container: None,
    };
    Agent { expected, asked, _end: end }
}

/// A deployer that says what the test tells it, and notes what it is asked to do.
#[derive(Default)]
struct Deployer {
    nodes: Mutex<Vec<Expected>>,
    done: Mutex<Vec<Action>>,
}

impl Source for Deployer {
    fn observe(&self) -> BoxFuture<'_, Result<Vec<Expected>, String>> {
        async { Ok(self.nodes.lock().unwrap().clone()) }.boxed()
    }
}

impl Actions for Deployer {
    fn carry_out(&self, action: Action) -> BoxFuture<'_, Result<String, String>> {
        let refused = action == Action::Node("n1".to_owned(), Verb::Start);
        self.done.lock().unwrap().push(action);
        async move { if refused { Err("it runs".to_owned()) } else { Ok("done".to_owned()) } }
            .boxed()
    }
}

fn facts() -> RingFacts {
    RingFacts { name: "test".to_owned(), replicas: 3, successors: 8 }
}

/// A dashboard over one agent.
struct Fixture {
    url: String,
    deployer: Arc<Deployer>,
    agent: Agent,
    http: reqwest::Client,
    stop: oneshot::Sender<()>,
    server: tokio::task::JoinHandle<()>,
}

impl Fixture {
    async fn new() -> Self {
        let agent = agent(1, &[]).await;
        let deployer = Arc::new(Deployer::default());
        deployer.nodes.lock().unwrap().push(agent.expected.clone());
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (stop, stopped) = oneshot::channel();
        let shutdown = stopped.map(|_: Result<(), _>| ());
        let (source, actions) = (deployer.clone(), deployer.clone());
        let server =
            tokio::spawn(serve(listener, facts(), source, actions, TOKEN.to_owned(), shutdown));
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { url, deployer, agent, http, stop, server }
    }

    fn call(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, format!("{}{path}", self.url))
    }

    async fn code(&self, request: reqwest::RequestBuilder) -> (StatusCode, String) {
        let response = request.send().await.unwrap();
        let status = response.status();
        assert_eq!(response.headers()["x-content-type-options"], "nosniff");
        let body: Value = response.json().await.unwrap();
        (status, body["code"].as_str().unwrap_or_default().to_owned())
    }
}

#[tokio::test]
async fn the_page_and_its_files_are_served_for_ever_under_their_hash() {
    let fixture = Fixture::new().await;
    let page = fixture.call(Method::GET, "/").send().await.unwrap();
    assert!(page.headers()["content-security-policy"].to_str().unwrap().contains("'none'"));
    let text = page.text().await.unwrap();
    let files: Vec<&str> =
        text.split('"').filter(|quoted| quoted.starts_with("/assets/")).collect();
    assert_eq!(files.len(), 3, "{files:?}");
    for file in files {
        let response = fixture.call(Method::GET, file).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{file}");
        assert!(response.headers()["cache-control"].to_str().unwrap().contains("immutable"));
    }
    assert!(!text.contains("http://") && !text.contains("https://"), "the page works offline");
    let old = fixture.call(Method::GET, "/assets/0000000000000000/main.js");
    assert_eq!(fixture.code(old).await, (StatusCode::NOT_FOUND, "no_such_path".to_owned()));
}

#[tokio::test]
async fn every_file_that_a_script_imports_is_served() {
    let fixture = Fixture::new().await;
    let page = fixture.call(Method::GET, "/").send().await.unwrap().text().await.unwrap();
    let main = page.split('"').find(|quoted| quoted.ends_with("/main.js")).unwrap();
    let mut files = vec![main.to_owned()];
    let mut next = 0;
    while let Some(file) = files.get(next).cloned() {
        let response = fixture.call(Method::GET, &file).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{file}");
        let folder = file.rsplit_once('/').unwrap().0;
        for import in response.text().await.unwrap().split("from './").skip(1) {
            let import = format!("{folder}/{}", import.split('\'').next().unwrap());
            if !files.contains(&import) {
                files.push(import);
            }
        }
        next += 1;
    }
    assert_eq!(files.len(), 16);
}

#[tokio::test]
async fn a_request_that_names_no_path_is_refused() {
    let fixture = Fixture::new().await;
    let mut client = TcpStream::connect(fixture.url.trim_start_matches("http://")).await.unwrap();
    client.write_all(b"GET name HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let mut status = [0; 12];
    client.read_exact(&mut status).await.unwrap();
    assert_eq!(&status, b"HTTP/1.1 400");
    let page = fixture.call(Method::GET, "/").send().await.unwrap();
    assert_eq!(page.status(), StatusCode::OK);
}

#[tokio::test]
async fn states_come_as_json_and_as_events() {
    let fixture = Fixture::new().await;
    let response = fixture.call(Method::GET, "/api/ring").send().await.unwrap();
    let state: Value = response.json().await.unwrap();
    assert_eq!(state["nodes"][0]["name"], "n1");
    assert_eq!(state["nodes"][0]["answering"], true);
    let events = fixture.call(Method::GET, "/api/events").send().await.unwrap();
    assert_eq!(events.headers()["content-type"], "text/event-stream");
    let mut chunks = events.bytes_stream();
    for _ in 0..2 {
        let text = String::from_utf8(chunks.next().await.unwrap().unwrap().to_vec()).unwrap();
        let json = text.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
        let state: Value = serde_json::from_str(json).unwrap();
        assert_eq!(state["name"], "test");
    }
    let history = fixture.call(Method::GET, "/api/history").send().await.unwrap();
    let history: Value = history.json().await.unwrap();
    assert_eq!(history.as_array().unwrap().len(), 1, "states that look alike are kept once");
    assert_eq!(history[0]["at_ms"], state["at_ms"]);
    fixture.stop.send(()).unwrap();
    fixture.server.await.unwrap();
    assert!(chunks.next().await.is_none_or(|end| end.is_err()), "streams end with the server");
}

#[tokio::test]
async fn changes_need_the_token() {
    let fixture = Fixture::new().await;
    let unauthorized = (StatusCode::UNAUTHORIZED, "unauthorized".to_owned());
    for (method, path) in [
        (Method::POST, "/api/nodes"),
        (Method::POST, "/api/nodes/n1/stop"),
        (Method::PUT, "/api/kv/a"),
        (Method::POST, "/api/kv/a"),
        (Method::DELETE, "/api/kv/a"),
    ] {
        assert_eq!(fixture.code(fixture.call(method.clone(), path)).await, unauthorized);
        let wrong = fixture.call(method.clone(), path).bearer_auth("wrong");
        assert_eq!(fixture.code(wrong).await, unauthorized, "{method} {path}");
    }
    assert_eq!(*fixture.agent.asked.lock().unwrap(), [] as [String; 0]);
    assert_eq!(*fixture.deployer.done.lock().unwrap(), []);
}

#[tokio::test]
async fn actions_are_carried_out_and_report() {
    let fixture = Fixture::new().await;
    let act = |path: &str| fixture.call(Method::POST, path).bearer_auth(TOKEN);
    for path in ["/api/nodes", "/api/nodes/n1/pause", "/api/nodes/n1/drain"] {
        let answer: Value = act(path).send().await.unwrap().json().await.unwrap();
        assert_eq!(answer["message"], "done", "{path}");
    }
    let refused: Value = act("/api/nodes/n1/start").send().await.unwrap().json().await.unwrap();
    assert_eq!(refused["detail"], "it runs");
    let node = |verb| Action::Node("n1".to_owned(), verb);
    let done = [Action::Add, node(Verb::Pause), node(Verb::Drain), node(Verb::Start)];
    assert_eq!(*fixture.deployer.done.lock().unwrap(), done);
    let unknown = fixture.code(act("/api/nodes/n9/stop")).await;
    assert_eq!(unknown, (StatusCode::NOT_FOUND, "not_found".to_owned()));
    let verb = fixture.code(act("/api/nodes/n1/burn")).await;
    assert_eq!(verb, (StatusCode::NOT_FOUND, "no_such_path".to_owned()));
    let method = fixture.call(Method::GET, "/api/nodes/n1/stop");
    assert_eq!(fixture.code(method).await.1, "method_not_allowed");
}

#[tokio::test]
async fn keys_reach_the_agent_exactly() {
    let fixture = Fixture::new().await;
    for (sent, received) in [
        ("plain", "plain"),
        ("a%2Fb", "a%2Fb"),
        ("a/b", "a%2Fb"),
        ("%2e%2e%2fx", "..%2Fx"),
        ("100%25", "100%25"),
        ("%C3%A9%20%2B+", "%C3%A9%20%2B%2B"),
    ] {
        let put = fixture.call(Method::PUT, &format!("/api/kv/{sent}")).bearer_auth(TOKEN);
        let response = put.body("<script>").send().await.unwrap();
        assert_eq!(response.headers()["etag"], "\"7\"");
        let policy = response.headers()["content-security-policy"].to_str().unwrap();
        assert!(policy.contains("sandbox"), "a stored value is never a page of ours");
        assert_eq!(response.text().await.unwrap(), "<script>");
        let asked = fixture.agent.asked.lock().unwrap().pop().unwrap();
        assert_eq!(asked, format!("PUT /kv/{received}"));
    }
    for bad in ["", "%ff", "%2", "%zz"] {
        let get = fixture.call(Method::GET, &format!("/api/kv/{bad}"));
        assert_eq!(fixture.code(get).await.1, "invalid_key", "{bad}");
    }
}

#[tokio::test]
async fn one_node_can_be_asked() {
    let fixture = Fixture::new().await;
    let local = fixture.call(Method::GET, "/api/nodes/n1/local?limit=5").send().await.unwrap();
    assert_eq!(local.headers()["sky-agent"], Id::small(1).to_string());
    let lookup = fixture.call(Method::GET, "/api/lookup/a%2Fb?from=n1").send().await.unwrap();
    assert_eq!(lookup.headers()["sky-agent"], Id::small(1).to_string());
    assert_eq!(*fixture.agent.asked.lock().unwrap(), ["GET /local", "GET /lookup/a%2Fb"]);
    for path in ["/api/nodes/n9/local", "/api/lookup/a?from=n9"] {
        let unknown = fixture.code(fixture.call(Method::GET, path)).await;
        assert_eq!(unknown, (StatusCode::NOT_FOUND, "not_found".to_owned()), "{path}");
    }
    let change = fixture.call(Method::POST, "/api/nodes/n1/local").bearer_auth(TOKEN);
    assert_eq!(fixture.code(change).await.1, "method_not_allowed");
}

#[tokio::test]
async fn foreign_sites_are_refused() {
    let fixture = Fixture::new().await;
    let forbidden = (StatusCode::FORBIDDEN, "forbidden_origin".to_owned());
    let rebound = fixture.call(Method::GET, "/api/ring").header("host", "evil.example:8080");
    assert_eq!(fixture.code(rebound).await, forbidden);
    let foreign = fixture.call(Method::POST, "/api/nodes").bearer_auth(TOKEN);
    let foreign = foreign.header("origin", "http://evil.example");
    assert_eq!(fixture.code(foreign).await, forbidden);
    let own = fixture.call(Method::POST, "/api/nodes").bearer_auth(TOKEN);
    let own = own.header("origin", &fixture.url).send().await.unwrap();
    assert_eq!(own.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_node_that_ends_keeps_its_data_and_a_stranger_is_shown() {
    let stranger = agent(3, &[]).await;
    let address = stranger.expected.url.trim_start_matches("http://").to_owned();
    let here = agent(1, &[peer(3, &address)]).await;
    let gone = agent(2, &[]).await;
    let deployer = Arc::new(Deployer::default());
    *deployer.nodes.lock().unwrap() = vec![here.expected.clone(), gone.expected.clone()];
    let mut aggregator = Aggregator::new(facts(), deployer.clone(), "token");
    let before = aggregator.round().await;
    assert!(before.nodes.iter().all(|node| node.answering));

    let Agent { expected, _end: end, .. } = gone;
    end.send(()).unwrap();
    while TcpStream::connect(expected.url.trim_start_matches("http://")).await.is_ok() {}
    let say = |runs: bool, note: Option<&str>| {
        let node = &mut deployer.nodes.lock().unwrap()[1];
        (node.state, node.runs, node.note) = (NodeState::Down, runs, note.map(str::to_owned));
    };
    say(true, Some("it runs and does not answer"));
    let hangs = aggregator.round().await;
    assert!(hangs.nodes[1].runs, "it can be stopped");
    assert_eq!(hangs.verdict.problems[0], "n2 is down: it runs and does not answer.");
    say(false, None);
    let state = aggregator.round().await;
    let names: Vec<&str> = state.nodes.iter().map(|node| node.name.as_str()).collect();
    assert_eq!(names, ["n1", "n2", address.as_str()]);
    assert!(!state.nodes[1].answering && state.nodes[1].age_ms.is_some());
    assert!(state.nodes[2].answering && !state.nodes[2].expected);
    assert!(!state.verdict.right);
    assert_eq!(state.verdict.problems[0], "n2 is down: its process has ended.");

    // What looks alike is kept once, and the oldest goes when there is too much.
    let (before, state) = (Arc::new(before), Arc::new(state));
    let again = Arc::new(aggregator.round().await);
    let mut history = History::default();
    for state in [&before, &state, &again] {
        history.take(state);
    }
    let at = |state: &Arc<RingState>| state.at_ms;
    let kept: Vec<_> = history.states().iter().map(at).collect();
    assert_eq!(kept, [before.at_ms, state.at_ms]);
    for _ in 0..2000 {
        history.take(&before);
        history.take(&state);
    }
    let reports: usize = history.states().iter().map(|state| state.nodes.len()).sum();
    assert!((3900..=4000).contains(&reports), "{reports}");
    // The fingers 0 to 2 all point to the stranger.
    assert_eq!(serde_json::to_value(&state.nodes[0].fingers).unwrap()[0]["last"], 2);
}

/// A deployer whose provider refuses, with another number each time.
#[derive(Default)]
struct Refused(AtomicUsize);

impl Source for Refused {
    fn observe(&self) -> BoxFuture<'_, Result<Vec<Expected>, String>> {
        let number = self.0.fetch_add(1, Ordering::Relaxed);
        async move { Err(format!("refused (request {number})")) }.boxed()
    }
}

#[tokio::test]
async fn a_provider_that_fails_again_and_again_fills_no_history() {
    let mut aggregator = Aggregator::new(facts(), Arc::new(Refused::default()), "token");
    let mut history = History::default();
    let mut state = aggregator.round().await;
    history.take(&Arc::new(state.clone()));
    history.take(&Arc::new(aggregator.round().await));
    assert_eq!(history.states().len(), 1);
    // Without nodes there is an end to it too.
    for number in 0..5000 {
        state.ring = Some(number.to_string());
        history.take(&Arc::new(state.clone()));
    }
    assert_eq!(history.states().len(), 4000);
}

#[tokio::test]
async fn a_port_in_use_is_an_error_with_a_hint() {
    let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let error = bind(listener.local_addr().unwrap()).await.unwrap_err();
    assert!(error.hint().contains("--dashboard"), "{error}");
}

#[test]
fn the_printed_address_opens_in_a_browser() {
    assert_eq!(page_url(DEFAULT_ADDRESS, "t"), "http://127.0.0.1:8080/#token=t");
    assert_eq!(page_url("[::]:80".parse().unwrap(), "t"), "http://[::1]:80/#token=t");
}
