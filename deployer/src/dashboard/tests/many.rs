//! The page over a ring of two hundred: agents that only report, in the shape of the real ones. How long
//! an update takes is printed and not judged:
//! `SKY_MANY=1 cargo test --release -p sky-deploy --lib two_hundred -- --nocapture`

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;
use sky_api::{HopReport, KeyEntry, KeyList, LookupReport, OwnReport};
use sky_chord::{Space, Transfer, TransferKind};

use super::browser::{Page, SOON, browser, open};
use super::*;

const NODES: usize = 200;
/// Neighbours on each side that notice when a node is gone.
const NEIGHBOURS: usize = 4;
/// Times of updates that are taken before they are reported.
const UPDATES: usize = 20;

/// What the page measures of itself: for each update the time of the script, of the layout it
/// causes, and until the browser has painted, in milliseconds.
const MEASURE: &str = "window.updates = [];
    const Real = EventSource;
    window.EventSource = class extends Real {
        set onmessage(handle) {
            super.onmessage = (event) => {
                const start = performance.now();
                handle(event);
                const script = performance.now();
                document.body.getBoundingClientRect();
                const layout = performance.now();
                requestAnimationFrame(() => {
                    const { port1, port2 } = new MessageChannel();
                    port1.onmessage = () => updates.push([script - start, layout - script, performance.now() - start]);
                    port2.postMessage(0);
                });
            };
        }
    };";

/// A ring whose pointers and ranges are right, and in which some nodes can be gone.
struct Many {
    peers: Vec<Peer>,
    broken: AtomicBool,
}

impl Many {
    fn new() -> Self {
        let mut places: Vec<Id> =
            (0..NODES).map(|n| Id::hash(format!("node {n}").as_bytes())).collect();
        places.sort_unstable();
        let peer = |(n, position)| Peer {
            node: NodeId { position, incarnation: 1 },
            address: format!("agent-{n}:4321").into(),
        };
        Self {
            peers: places.into_iter().enumerate().map(peer).collect(),
            broken: AtomicBool::new(false),
        }
    }

    /// Whether a node is gone: some alone, some side by side.
    fn is_gone(&self, node: usize) -> bool {
        self.broken.load(Ordering::Relaxed) && (node % 40 == 7 || (100..104).contains(&node))
    }

    fn peer(&self, node: usize) -> &Peer {
        &self.peers[node % NODES]
    }

    /// The first node at or after a point.
    fn owner(&self, point: Id) -> usize {
        self.peers.partition_point(|peer| peer.node.position < point) % NODES
    }

    fn range(&self, owner: usize, by: usize) -> RangeView {
        let owner = owner % NODES;
        let members = [owner, owner + 1, owner + NODES - 1].map(|node| self.peer(node).clone());
        RangeView {
            lo: self.peer(owner + NODES - 1).node.position,
            hi: self.peer(owner).node.position,
            epoch: 3,
            members: members.to_vec(),
            prev: Vec::new(),
            leads: owner == by,
            unswept: false,
            lagging: Vec::new(),
            keys: 1000 + owner as u64,
        }
    }

    fn report(&self, node: usize) -> OwnReport {
        let me = self.peer(node).clone();
        let finger = |index: u8| {
            let start = Space::SHA1.finger_start(me.node.position, index);
            Finger { index, start, peer: self.peer(self.owner(start)).clone() }
        };
        let away = |other: usize| {
            let ahead = (other + NODES - node) % NODES;
            ahead.min(NODES - ahead)
        };
        let member = |other: usize| MemberView {
            peer: self.peer(other).clone(),
            status: MemberStatus::Up,
            suspected_ms: (self.is_gone(other) && away(other) <= NEIGHBOURS)
                .then(|| 12_000 - 100 * away(other) as u64),
            rtt_us: Some(400),
            heard_ms: Some(200),
        };
        let view = View {
            ring: Some("0".repeat(32)),
            phase: Phase::Up,
            predecessor: Some(self.peer(node + NODES - 1).clone()),
            successors: (1..=8).map(|step| self.peer(node + step).clone()).collect(),
            fingers: (0..160).map(finger).collect(),
            ranges: [node, node + 1, node + NODES - 1]
                .map(|owner| self.range(owner, node))
                .to_vec(),
            members: (0..NODES).filter(|other| *other != node).map(member).collect(),
            keys: KeyCount { owned: 1000, replica: 2000 },
            load: Load::default(),
            me,
        };
        OwnReport { view, transfers: self.transfers(node) }
    }

    /// Two sweeps, one of which has stopped.
    fn transfers(&self, node: usize) -> Vec<Transfer> {
        if !(20..22).contains(&node) || !self.broken.load(Ordering::Relaxed) {
            return Vec::new();
        }
        let range = self.range(node, node);
        vec![Transfer {
            kind: TransferKind::Sweep,
            lo: range.lo,
            hi: range.hi,
            epoch: range.epoch,
            from: vec![self.peer(node + 1).clone(), self.peer(node - 1).clone()],
            to: vec![self.peer(node).clone()],
            keys: 250,
            bytes: 250 << 10,
            through: Some(range.lo.plus(range.lo.distance_to(range.hi).half())),
            known_left: 12,
            took_ms: 10_000,
            still_ms: if node == 20 { 0 } else { 8_000 },
            ended_ms: None,
        }]
    }

    /// The way to a key by fingers alone, past nodes that are gone.
    fn lookup(&self, from: usize, key: &str) -> LookupReport {
        let target = Id::hash(key.as_bytes());
        let (mut here, mut hops) = (from, Vec::new());
        while self.owner(target) != (here + 1) % NODES {
            let place = self.peer(here).node.position;
            let step = |index| self.owner(Space::SHA1.finger_start(place, index));
            let ahead = |next: &usize| self.peer(*next).node.position.is_between(place, target);
            let mut nearer: Vec<usize> = (0..160).rev().map(step).filter(ahead).collect();
            nearer.dedup();
            let Some(answering) = nearer.iter().position(|next| !self.is_gone(*next)) else {
                break;
            };
            hops.extend(nearer[..=answering].iter().map(|next| {
                let answered = !self.is_gone(*next);
                let micros = if answered { 400 } else { 120_000 };
                HopReport { peer: self.peer(*next).clone(), micros, answered }
            }));
            here = nearer[answering];
        }
        let owner = self.owner(target);
        let members = self.range(owner, owner).members;
        let hash = target.to_string();
        let (key, owner) = (key.to_owned(), self.peer(owner).clone());
        LookupReport { key, hash, hops, owner, members, epoch: Some(3) }
    }
}

/// One server for all agents, each below its number.
fn agents(many: Arc<Many>, listener: TcpListener) {
    let ring = many.clone();
    let report = warp::path!(usize / "ring").and_then(move |node: usize| {
        let ring = ring.clone();
        async move {
            if ring.is_gone(node) {
                return Err(warp::reject::not_found());
            }
            Ok(warp::reply::json(&ring.report(node)))
        }
    });
    let lookup = warp::path!(usize / "lookup" / String)
        .map(move |node, key: String| warp::reply::json(&many.lookup(node, &key)));
    let list = warp::path!(usize / "kv").and(warp::query::<BTreeMap<String, String>>()).map(
        |_, query: BTreeMap<String, String>| {
            let first: u32 = query.get("cursor").map_or(0, |cursor| cursor.parse().unwrap());
            let limit: u32 = query["limit"].parse().unwrap();
            let entry = |number| KeyEntry { key: format!("key/{number}"), size: number };
            let keys = (first..first + limit).map(entry).collect();
            warp::reply::json(&KeyList { keys, cursor: Some((first + limit).to_string()) })
        },
    );
    let key = warp::path!(usize / "kv" / String)
        .map(|_, key: String| warp::reply::with_header(key, "etag", "\"3.1.7\""));
    let server = warp::serve(report.or(lookup).or(list).or(key)).incoming(listener).run();
    tokio::spawn(server);
}

/// A dashboard over all of them.
async fn dashboard(many: Arc<Many>) -> (Arc<Deployer>, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let expected = many.peers.iter().enumerate().map(|(node, peer)| Expected {
        name: format!("n{}", node + 1),
        id: peer.node.position,
        url: format!("http://{address}/{node}"),
        provider: "process".to_owned(),
        state: NodeState::Up,
        runs: true,
        note: None,
        pid: None,
        container: None,
    });
    let deployer = Arc::new(Deployer::default());
    *deployer.nodes.lock().unwrap() = expected.collect();
    agents(many, listener);
    let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (source, actions) = (deployer.clone(), deployer.clone());
    let forever = std::future::pending();
    tokio::spawn(serve(listener, facts(), source, actions, TOKEN.to_owned(), forever));
    (deployer, url)
}

/// Only when asked for: in a debug build, or on a busy machine, so many agents do not answer in time.
#[tokio::test]
async fn two_hundred_nodes_can_be_looked_at() {
    if std::env::var_os("SKY_MANY").is_none() {
        return;
    }
    let Some((chromium, chromedriver)) = browser() else { return };
    let many = Arc::new(Many::new());
    let (deployer, url) = dashboard(many.clone()).await;
    let (page, driver) = open(&chromium, &chromedriver).await;
    let outcome = AssertUnwindSafe(story(&page, &url, &many, &deployer)).catch_unwind().await;
    page.0.close().await.unwrap();
    drop(driver);
    if let Err(failure) = outcome {
        std::panic::resume_unwind(failure);
    }
}

async fn story(page: &Page, url: &str, many: &Many, deployer: &Deployer) {
    page.screen(1400, 1000, false).await;
    let measure = json!({ "source": MEASURE });
    page.devtools("Page.addScriptToEvaluateOnNewDocument", measure).await;
    page.0.goto(url).await.unwrap();
    page.says("#verdict", "The ring is right").await;
    assert_eq!(page.count("#ring g.node").await, NODES);
    assert_eq!(page.count("#ring .arc").await, NODES);
    assert_eq!(page.count("[data-row]").await, NODES);
    measured(page, "a ring that is right").await;
    page.is_tidy().await;
    page.look("many-right").await;

    many.broken.store(true, Ordering::Relaxed);
    for node in (0..NODES).filter(|node| many.is_gone(*node)) {
        deployer.nodes.lock().unwrap()[node].state = NodeState::Down;
    }
    page.says("#verdict", "Some keys are out of reach").await;
    page.says("#suspicions", "n8 is suspected by").await;
    page.says("#transfers", "Stalled: nothing has moved for").await;
    page.says("#transfers", "50.0 % of the range · 250 of about 1,0").await;
    page.wait("#ring .transfer.stalled", SOON).await;
    page.click("[data-row][data-name=n8]").await;
    page.says("#node", "Suspected by").await;
    page.wait("#ring .suspicion", SOON).await;

    // From the node on the far side, past those that are gone.
    page.fill("#key", "never-stored").await;
    page.run("document.getElementById('trace-from').value = 'n100'").await;
    page.click("#key-form [value=trace]").await;
    page.wait("#key-result [data-done=trace]", SOON).await;
    let way = many.lookup(99, "never-stored").hops;
    assert!(way.len() > 1, "{way:?}");
    assert_eq!(page.count("#ring .hop-mark").await, way.len());
    assert_eq!(page.count("#key-result .steps li").await, way.len());
    let silent = way.iter().filter(|hop| !hop.answered).count();
    assert_eq!(page.count("#ring .hop-mark.silent").await, silent);
    page.click("#list-form [type=submit]").await;
    page.says("#key-pages", "20 keys").await;
    measured(page, "nodes gone, one selected, a lookup, a page of keys").await;
    for (width, dark) in [(1400, false), (1400, true), (390, false)] {
        page.screen(width, 1000, dark).await;
        page.is_tidy().await;
        page.look(&format!("many-{width}{}", if dark { "-dark" } else { "" })).await;
    }
}

/// Takes the times of some updates and prints them.
#[expect(clippy::print_stdout, reason = "what was measured is for people")]
async fn measured(page: &Page, what: &str) {
    page.run("updates.length = 0").await;
    let updates: Vec<[f64; 3]> = loop {
        let updates: Vec<[f64; 3]> =
            serde_json::from_value(page.run("return updates").await).unwrap();
        if updates.len() >= UPDATES {
            break updates;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    };
    for (part, name) in ["script", "layout", "until painted"].iter().enumerate() {
        let mut times: Vec<f64> = updates.iter().map(|update| update[part]).collect();
        times.sort_by(f64::total_cmp);
        let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
        println!("{NODES} nodes, {what}: {name} median {median:.1} ms, worst {worst:.1} ms");
    }
}
