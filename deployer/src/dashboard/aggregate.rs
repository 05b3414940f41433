//! One state of the ring out of what the deployer and all agents report, for the page and `GET /api/ring`.
//!
//! A node that does not answer keeps its last report, with its age: it turns grey on the page and never
//! disappears, but the verdict does without it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use serde::Serialize;
use sky_api::{OwnReport, path};
use sky_chord::{
    Id, KeyCount, Load, MemberStatus, MemberView, NodeId, Peer, Phase, RangeView, Transfer,
    Verdict, View, check, is_majority,
};

use super::transfers::TransferReport;
use super::{RingFacts, Source};
use crate::node::NodeState;

/// How long an agent may take to report.
const TIMEOUT: Duration = Duration::from_secs(1);
/// How long an agent that only is slow counts as answering; one that refuses does not.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long the deployer may take to look at its nodes.
const OBSERVE_TIMEOUT: Duration = Duration::from_secs(5);

/// A node that should be there, as the deployer sees it.
#[derive(Debug, Clone)]
pub(crate) struct Expected {
    /// Its name in the inventory.
    pub(crate) name: String,
    /// Its position.
    pub(crate) id: Id,
    /// Where its agent answers: `http://host:port`.
    pub(crate) url: String,
    /// `process`, `docker` or `openstack`.
    pub(crate) provider: String,
    /// What the provider says of it.
    pub(crate) state: NodeState,
    /// Whether it runs, as the provider sees it: one that is down may hang.
    pub(crate) runs: bool,
    /// What is to be said of it beyond its state, as a clause.
    pub(crate) note: Option<String>,
    /// Its process, where it is one.
    pub(crate) pid: Option<u32>,
    /// Its container, where it is one.
    pub(crate) container: Option<String>,
}

/// Everything that the page shows.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct RingState {
    /// The ring's name in the inventory.
    pub(crate) name: String,
    /// The random id of the ring, 32 hexadecimal digits; none before an agent has reported one.
    pub(crate) ring: Option<String>,
    /// The version of this program.
    pub(crate) version: &'static str,
    /// How many members a range should have.
    pub(crate) replicas: usize,
    /// When this was put together, in milliseconds since 1970.
    pub(crate) at_ms: u64,
    /// Whether the ring is right.
    pub(crate) verdict: Verdict,
    /// Why the deployer could not look at its nodes, if it could not.
    pub(crate) source_error: Option<String>,
    /// All nodes, by position.
    pub(crate) nodes: Vec<NodeReport>,
    /// The ranges as their newest configurations say, by end point.
    pub(crate) ranges: Vec<Range>,
    /// Data on its way between nodes, and what came a moment ago.
    pub(crate) transfers: Vec<TransferReport>,
}

/// One node. Other nodes are named by their positions.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct NodeReport {
    /// Its name in the inventory, or its address if it is not there.
    pub(crate) name: String,
    /// Its position.
    pub(crate) id: Id,
    /// The position as a share of the circle.
    pub(crate) at: f64,
    /// Where its agent answers.
    pub(crate) url: String,
    /// Who runs it; empty if it is not in the inventory.
    pub(crate) provider: String,
    /// Its state.
    pub(crate) state: NodeState,
    /// Whether it runs, as the provider sees it.
    pub(crate) runs: bool,
    /// What the deployer says of it beyond its state.
    pub(crate) note: Option<String>,
    /// Its process.
    pub(crate) pid: Option<u32>,
    /// Its container.
    pub(crate) container: Option<String>,
    /// Whether it is in the inventory.
    pub(crate) expected: bool,
    /// Whether its agent answers.
    pub(crate) answering: bool,
    /// Why its agent did not answer last time.
    pub(crate) error: Option<String>,
    /// The age of everything below, in milliseconds; none if it never answered.
    pub(crate) age_ms: Option<u64>,
    /// How far its agent has got.
    pub(crate) phase: Option<Phase>,
    /// The share of the circle that it owns, between 0 and 1.
    pub(crate) share: f64,
    /// Keys it holds.
    pub(crate) keys: Option<KeyCount>,
    /// What its agent measured.
    pub(crate) load: Option<Load>,
    /// The node before it.
    pub(crate) predecessor: Option<Id>,
    /// The nodes after it, nearest first.
    pub(crate) successors: Vec<Id>,
    /// Its fingers, those that follow each other with the same target put together.
    pub(crate) fingers: Vec<FingerRun>,
    /// The ranges it answers for.
    pub(crate) ranges: Vec<Range>,
    /// The answering nodes that suspect it, and for how many milliseconds.
    pub(crate) suspected_by: Vec<(Id, u64)>,
}

/// Fingers `first` to `last` (from 0), all pointing to one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct FingerRun {
    first: u8,
    last: u8,
    node: Id,
}

/// A range (lo, hi].
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Range {
    /// It begins after this point.
    pub(crate) lo: Id,
    /// It ends with this point.
    pub(crate) hi: Id,
    /// `lo` as a share of the circle.
    pub(crate) from: f64,
    /// Its share of the circle.
    pub(crate) share: f64,
    /// The epoch of its configuration.
    pub(crate) epoch: u64,
    /// Its members: the owner, which is the first at or after the end, then those after it.
    pub(crate) members: Vec<Id>,
    /// Members of the epoch before that are still asked.
    pub(crate) prev: Vec<Id>,
    /// Those of `members` that lost their disk: another incarnation answers in their place.
    pub(crate) lost: Vec<Id>,
    /// Those of `prev` that did.
    pub(crate) prev_lost: Vec<Id>,
    /// Whether a sweep is still to be done.
    pub(crate) unswept: bool,
    /// Members that may lack writes.
    pub(crate) lagging: Vec<Id>,
    /// Live keys in it.
    pub(crate) keys: u64,
    /// Whether a majority of its members answers, so that it can be read and written.
    pub(crate) available: bool,
}

impl Range {
    fn new(view: &RangeView, answering: &BTreeSet<NodeId>) -> Self {
        let ids =
            |peers: &[Peer]| -> Vec<Id> { peers.iter().map(|peer| peer.node.position).collect() };
        let mut members = ids(&view.members);
        members.sort_by_key(|member| view.hi.distance_to(*member));
        let majority = |peers: &[Peer]| {
            let there = peers.iter().filter(|peer| answering.contains(&peer.node)).count();
            peers.is_empty() || is_majority(there, peers.len())
        };
        let is_lost = |node: &NodeId| {
            !answering.contains(node) && answering.iter().any(|it| it.position == node.position)
        };
        let lost = |peers: &[Peer]| -> Vec<Id> {
            let lost = peers.iter().map(|peer| peer.node).filter(is_lost);
            lost.map(|node| node.position).collect()
        };
        Self {
            lo: view.lo,
            hi: view.hi,
            from: view.lo.fraction(),
            share: arc(view.lo, view.hi),
            epoch: view.epoch,
            members,
            prev: ids(&view.prev),
            lost: lost(&view.members),
            prev_lost: lost(&view.prev),
            unswept: view.unswept,
            lagging: view.lagging.iter().map(|node| node.position).collect(),
            keys: view.keys,
            available: majority(&view.members) && majority(&view.prev),
        }
    }
}

/// The share of the circle that (lo, hi] takes; all of it if both are equal.
pub(super) fn arc(lo: Id, hi: Id) -> f64 {
    if lo == hi { 1.0 } else { lo.distance_to(hi).fraction() }
}

/// What is known of one position.
#[derive(Debug, Default)]
struct Seen {
    /// The last report, and when it came.
    last: Option<(View, Instant)>,
    /// The data that it moves, as of then.
    transfers: Vec<Transfer>,
    /// Why there was none in the last round.
    error: Option<String>,
    /// Whether the agent counts as answering.
    answering: bool,
}

/// Keeps what was heard, round after round.
pub(crate) struct Aggregator {
    facts: RingFacts,
    source: Arc<dyn Source>,
    http: reqwest::Client,
    /// What the deployer said last.
    expected: Vec<Expected>,
    seen: BTreeMap<Id, Seen>,
}

impl Aggregator {
    /// Knows nothing yet.
    pub(crate) fn new(facts: RingFacts, source: Arc<dyn Source>, token: &str) -> Self {
        Self {
            facts,
            source,
            http: agent_client(TIMEOUT, token),
            expected: Vec::new(),
            seen: BTreeMap::new(),
        }
    }

    /// Asks everybody at once and puts the answers together.
    pub(crate) async fn round(&mut self) -> RingState {
        let source_error = self.observe().await;
        let strangers = self.strangers();
        let asked: Vec<(Id, String)> = self
            .expected
            .iter()
            .map(|node| (node.id, node.url.clone()))
            .chain(strangers.iter().map(|peer| (peer.node.position, url_of(peer))))
            .collect();
        let answers = join_all(asked.iter().map(|(id, url)| ask(&self.http, *id, url))).await;
        let now = Instant::now();
        for ((id, _), answer) in asked.iter().zip(answers) {
            self.seen.entry(*id).or_default().hear(answer, now);
        }
        self.seen.retain(|id, _| asked.iter().any(|(known, _)| known == id));
        self.state(&strangers, source_error, now)
    }

    /// Asks the deployer; says why it could not tell, if it could not.
    async fn observe(&mut self) -> Option<String> {
        match tokio::time::timeout(OBSERVE_TIMEOUT, self.source.observe()).await {
            Ok(Ok(nodes)) => {
                self.expected = nodes;
                None
            }
            Ok(Err(error)) => Some(error),
            Err(_) => {
                Some(format!("the provider did not answer within {} s", OBSERVE_TIMEOUT.as_secs()))
            }
        }
    }

    /// Members of the ring, by the word of those who answer, that are not in the inventory.
    fn strangers(&self) -> Vec<Peer> {
        let mut strangers = BTreeMap::new();
        for view in self.views() {
            let heard = view
                .members
                .iter()
                .filter(|member| {
                    !matches!(member.status, MemberStatus::Left | MemberStatus::Suspect)
                })
                .map(|member| &member.peer);
            let needed = view.ranges.iter().flat_map(|range| &range.members);
            for peer in heard.chain(needed) {
                if self.expected.iter().all(|node| node.id != peer.node.position) {
                    strangers.insert(peer.node.position, peer.clone());
                }
            }
        }
        strangers.into_values().collect()
    }

    /// The reports of the agents that answer.
    fn views(&self) -> impl Iterator<Item = &View> {
        self.seen
            .values()
            .filter(|seen| seen.answering)
            .filter_map(|seen| seen.last.as_ref().map(|(view, _)| view))
    }

    fn state(&self, strangers: &[Peer], source_error: Option<String>, now: Instant) -> RingState {
        let answering: BTreeSet<NodeId> = self.views().map(|view| view.me.node).collect();
        let ranges = newest_ranges(self.views(), &answering);
        let strangers = strangers.iter().map(|peer| Expected {
            name: peer.address.to_string(),
            id: peer.node.position,
            url: url_of(peer),
            provider: String::new(),
            state: NodeState::Up,
            runs: true,
            note: None,
            pid: None,
            container: None,
        });
        let nodes = self.expected.iter().cloned().map(|node| (node, true));
        let mut nodes: Vec<NodeReport> = nodes
            .chain(strangers.map(|node| (node, false)))
            .map(|(node, expected)| self.report(node, expected, &ranges, &answering, now))
            .collect();
        nodes.sort_by_key(|node| node.id);
        RingState {
            name: self.facts.name.clone(),
            ring: self.views().find_map(|view| view.ring.clone()),
            version: env!("CARGO_PKG_VERSION"),
            replicas: self.facts.replicas,
            at_ms: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis),
            verdict: self.verdict(&nodes),
            source_error,
            nodes,
            ranges,
            transfers: self.transfers(now),
        }
    }

    /// The data that those who answer move.
    fn transfers(&self, now: Instant) -> Vec<TransferReport> {
        let answering = self.seen.values().filter(|seen| seen.answering);
        let told = answering.filter_map(|seen| Some((seen.last.as_ref()?, &seen.transfers)));
        told.flat_map(|((view, at), transfers)| {
            let age = millis(now.duration_since(*at));
            transfers.iter().map(move |transfer| {
                let ranges = self.views().flat_map(|view| {
                    view.ranges.iter().map(move |range| (view.me.node.position, range))
                });
                TransferReport::new(transfer, view.me.node.position, age, ranges)
            })
        })
        .collect()
    }

    fn report(
        &self,
        node: Expected,
        expected: bool,
        ranges: &[Range],
        answering: &BTreeSet<NodeId>,
        now: Instant,
    ) -> NodeReport {
        let seen = self.seen.get(&node.id);
        let last = seen.and_then(|seen| seen.last.as_ref());
        let view = last.map(|(view, _)| view);
        let is_answering = seen.is_some_and(|seen| seen.answering);
        let position = |peer: &Peer| peer.node.position;
        let state = match (node.state, view) {
            (NodeState::Up, Some(view)) if is_answering => match view.phase {
                Phase::Waiting | Phase::Joining => NodeState::Starting,
                Phase::Up => NodeState::Up,
                Phase::Leaving | Phase::Drained => NodeState::Draining,
            },
            (state, _) => state,
        };
        // One that lost its disk stays suspected, and its successor at the same place is somebody else.
        let is_it = |member: &&MemberView| match view {
            Some(view) => member.peer.node == view.me.node,
            None => position(&member.peer) == node.id && member.status != MemberStatus::Left,
        };
        let suspects = self.views().flat_map(|other| {
            let members = other.members.iter().filter(is_it);
            members.filter_map(|member| Some((other.me.node.position, member.suspected_ms?)))
        });
        NodeReport {
            at: node.id.fraction(),
            expected,
            answering: is_answering,
            error: seen.and_then(|seen| seen.error.clone()),
            age_ms: last.map(|(_, at)| millis(now.duration_since(*at))),
            phase: view.map(|view| view.phase),
            share: ranges
                .iter()
                .filter(|range| range.members.first() == Some(&node.id))
                .map(|range| range.share)
                .sum(),
            keys: view.map(|view| view.keys),
            load: view.map(|view| view.load.clone()),
            predecessor: view.and_then(|view| view.predecessor.as_ref().map(position)),
            successors: view
                .map_or(Vec::new(), |view| view.successors.iter().map(position).collect()),
            fingers: view.map_or(Vec::new(), finger_runs),
            ranges: view.map_or(Vec::new(), |view| {
                view.ranges.iter().map(|range| Range::new(range, answering)).collect()
            }),
            suspected_by: suspects.collect(),
            state,
            name: node.name,
            id: node.id,
            url: node.url,
            provider: node.provider,
            runs: node.runs,
            note: node.note,
            pid: node.pid,
            container: node.container,
        }
    }

    /// The verdict over everybody, in the names of the inventory, with what the deployer knows beside.
    fn verdict(&self, nodes: &[NodeReport]) -> Verdict {
        let reports: Vec<(Peer, Option<View>)> = nodes
            .iter()
            .filter(|node| node.expected || node.answering)
            .map(|node| {
                let seen = self.seen.get(&node.id);
                let last = seen.and_then(|seen| seen.last.as_ref()).map(|(view, _)| view);
                let peer = last.map_or_else(|| peer_of(node), |view| view.me.clone());
                (peer, last.filter(|_| node.answering).cloned())
            })
            .collect();
        let verdict = check(&reports, self.facts.replicas, self.facts.successors);
        let mut problems: Vec<String> = nodes.iter().filter_map(complaint).collect();
        let right = verdict.right && problems.is_empty();
        // That a node does not answer is said above, with the reason.
        let said: BTreeSet<String> =
            nodes.iter().map(|node| format!("{} does not answer.", node.name)).collect();
        let named = verdict.problems.iter().map(|problem| with_names(problem, nodes));
        problems.extend(named.filter(|problem| !said.contains(problem)));
        Verdict { right, replicated: verdict.replicated, problems }
    }
}

impl Seen {
    /// Takes in the outcome of one question.
    fn hear(&mut self, answer: Result<OwnReport, Silence>, now: Instant) {
        match answer {
            Ok(OwnReport { view, transfers }) => {
                let last = Some((view, now));
                *self = Self { last, transfers, error: None, answering: true };
            }
            Err(silence) => {
                let recent =
                    self.last.as_ref().is_some_and(|(_, at)| now.duration_since(*at) < PATIENCE);
                self.answering = recent && silence.slow;
                self.error = Some(silence.why);
            }
        }
    }
}

/// Why an agent did not report.
struct Silence {
    why: String,
    /// It may just be busy.
    slow: bool,
}

/// A client for agents with the ring's token: no proxy stands between the deployer and its own nodes.
pub(super) fn agent_client(timeout: Duration, token: &str) -> reqwest::Client {
    let builder = reqwest::Client::builder()
        .no_proxy()
        .timeout(timeout)
        .connect_timeout(TIMEOUT)
        // A token that cannot be sent is refused by the agents, which is said then.
        .default_headers(crate::client::bearer(Some(token)).unwrap_or_default());
    // Building fails only if TLS cannot be set up, and then so does the default client, which panics.
    builder.build().unwrap_or_default()
}

/// The report of the agent at `url`, which should be at position `id`.
async fn ask(http: &reqwest::Client, id: Id, url: &str) -> Result<OwnReport, Silence> {
    let silence = |error: &reqwest::Error| Silence {
        slow: error.is_timeout(),
        why: match () {
            () if error.is_timeout() => format!("no answer within {} s", TIMEOUT.as_secs()),
            () if error.is_connect() => "the connection is refused".to_owned(),
            () if error.is_decode() => "the answer is not the report of an agent".to_owned(),
            () => error.to_string(),
        },
    };
    let request = http.get(format!("{url}{}", path::RING)).send();
    let response = request.await.and_then(reqwest::Response::error_for_status);
    let report: OwnReport =
        response.map_err(|error| silence(&error))?.json().await.map_err(|e| silence(&e))?;
    let position = report.view.me.node.position;
    if position == id {
        return Ok(report);
    }
    let why = format!("another node answers at this address: {position}");
    Err(Silence { why, slow: false })
}

/// Each point's newest configuration: of two ranges that overlap, the later epoch.
fn newest_ranges<'a>(
    views: impl Iterator<Item = &'a View>,
    answering: &BTreeSet<NodeId>,
) -> Vec<Range> {
    let mut all: Vec<&RangeView> = views.flat_map(|view| &view.ranges).collect();
    // The leader's report comes first: only it knows who lags behind.
    all.sort_by_key(|range| (std::cmp::Reverse((range.epoch, range.leads)), range.hi));
    let mut newest: Vec<Range> = Vec::new();
    for range in all {
        let overlaps = |other: &Range| {
            range.hi.is_in_arc(other.lo, other.hi) || other.hi.is_in_arc(range.lo, range.hi)
        };
        if !newest.iter().any(overlaps) {
            newest.push(Range::new(range, answering));
        }
    }
    newest.sort_by_key(|range| range.hi);
    newest
}

fn finger_runs(view: &View) -> Vec<FingerRun> {
    let mut runs: Vec<FingerRun> = Vec::new();
    for finger in &view.fingers {
        let node = finger.peer.node.position;
        match runs.last_mut() {
            Some(run) if run.node == node && finger.index == run.last.saturating_add(1) => {
                run.last = finger.index;
            }
            _ => runs.push(FingerRun { first: finger.index, last: finger.index, node }),
        }
    }
    runs
}

/// What is wrong with a node itself, in a sentence, beyond what its own report says.
fn complaint(node: &NodeReport) -> Option<String> {
    let name = &node.name;
    Some(match node.state {
        NodeState::Paused => format!("{name} is paused."),
        NodeState::Down => match &node.note {
            Some(note) => format!("{name} is down: {note}."),
            None => format!("{name} is down: its {} has ended.", body_of(node)),
        },
        NodeState::Missing => format!("{name} is missing: its {} does not exist.", body_of(node)),
        NodeState::Draining if node.phase == Some(Phase::Leaving) => {
            format!("{name} is draining: it hands its data over.")
        }
        NodeState::Starting if !node.answering => {
            format!("{name} is starting and does not answer yet.")
        }
        NodeState::Up | NodeState::Draining if node.expected && !node.answering => {
            let why = node.error.as_deref().unwrap_or("no answer yet");
            format!("{name} runs and does not answer: {why}.")
        }
        _ => return None,
    })
}

/// What a node's agent lives in.
fn body_of(node: &NodeReport) -> &'static str {
    match node.provider.as_str() {
        "docker" => "container",
        "openstack" => "machine",
        _ => "process",
    }
}

/// The sentence with the nodes' names for their addresses and positions.
fn with_names(sentence: &str, nodes: &[NodeReport]) -> String {
    nodes.iter().filter(|node| node.expected).fold(sentence.to_owned(), |text, node| {
        let short = format!("{:?}", node.id);
        let text = text.replace(&format!("{short} ({})", address_of(node)), &node.name);
        // A short number could be part of anything.
        if short.len() < 8 { text } else { text.replace(&short, &node.name) }
    })
}

/// Where a node's agent answers, as `host:port`.
fn address_of(node: &NodeReport) -> &str {
    node.url.trim_start_matches("http://")
}

fn url_of(peer: &Peer) -> String {
    format!("http://{}", peer.address)
}

/// A node that never answered: its incarnation is not known.
fn peer_of(node: &NodeReport) -> Peer {
    Peer { node: NodeId { position: node.id, incarnation: 0 }, address: address_of(node).into() }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
