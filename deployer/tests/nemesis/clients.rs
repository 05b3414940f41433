//! The clients: many at once, through random agents, over hot and cold keys. Each request and each
//! answer goes into the history.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use reqwest::{Method, StatusCode};
use sky_chord::Key;

use crate::agents::{Board, State};
use crate::history::{self, Ask, Entry, History, Number, Outcome, Told};
use crate::random::Random;
use crate::rig::SLOTS;

/// Clients of the ordinary kind.
const CLIENTS: usize = 16;
/// Keys that everybody wants, at one time, and requests for each until another takes its place: a
/// history without end could not be judged.
const HOT: (usize, usize) = (6, 400);
/// Keys that are rarely asked for. So few requests that a key remembers all of them: an agent knows a
/// retry with an Idempotency-Key by that.
const COLD: (usize, usize) = (60, 14);
/// Keys that are evenly spread over the circle, each asked for in a steady stream.
pub(crate) const PROBES: usize = 16;
/// How long a probe waits between two requests.
const PROBE_EVERY: Duration = Duration::from_millis(100);
/// How long a client thinks.
const THINKING: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(60));
/// An agent answers everything within 5 s; silence beyond this is no answer.
const PATIENCE: Duration = Duration::from_millis(6500);
/// Who asks a frozen agent gives up sooner: it will not answer.
const SHORT_PATIENCE: Duration = Duration::from_millis(800);

/// What all clients share.
pub(crate) struct Clients {
    pub(crate) history: Arc<History>,
    pub(crate) board: Arc<Board>,
    pub(crate) stop: Arc<AtomicBool>,
    pub(crate) probes: std::sync::Mutex<Vec<Probe>>,
    urls: [String; SLOTS],
    http: reqwest::Client,
    numbers: AtomicU64,
    /// What reads say of how sure their answers have to be.
    consistency: &'static str,
}

/// One request of a steady stream.
#[derive(Debug, Clone)]
pub(crate) struct Probe {
    pub(crate) key: usize,
    pub(crate) is_get: bool,
    pub(crate) begun: u64,
    pub(crate) end: u64,
    pub(crate) succeeded: bool,
}

/// One attempt at a request.
struct Attempt {
    outcome: Outcome,
    etag: Option<Box<str>>,
    said: String,
}

impl Clients {
    pub(crate) fn new(
        history: Arc<History>,
        board: Arc<Board>,
        urls: [String; SLOTS],
        stop: Arc<AtomicBool>,
    ) -> Result<Self, String> {
        let http = reqwest::Client::builder().no_proxy().connect_timeout(SHORT_PATIENCE).build();
        Ok(Self {
            history,
            board,
            stop,
            probes: std::sync::Mutex::default(),
            urls,
            http: http.map_err(|error| error.to_string())?,
            numbers: AtomicU64::new(1),
            consistency: "",
        })
    }

    /// The same, but reads are answered by one copy, which may be old.
    pub(crate) fn with_reads_of_one_copy(self) -> Self {
        Self { consistency: "?consistency=any", ..self }
    }

    /// A number for a value that no other value has.
    pub(crate) fn number(&self) -> Number {
        self.numbers.fetch_add(1, Relaxed)
    }

    /// Runs all clients until they are told to stop.
    pub(crate) async fn run(self: &Arc<Self>, seed: u64) {
        let mut random = Random::new(seed);
        let pool = Rc::new(RefCell::new(Pool::new()));
        let tasks = tokio::task::LocalSet::new();
        for _ in 0..CLIENTS {
            let client = Client {
                shared: Arc::clone(self),
                pool: Rc::clone(&pool),
                random: random.fork(),
                seen: HashMap::new(),
            };
            tasks.spawn_local(client.run());
        }
        for key in 0..PROBES {
            for is_get in [false, true] {
                tasks.spawn_local(probe(Arc::clone(self), key, is_get, random.fork()));
            }
        }
        tasks.await;
    }

    fn is_stopping(&self) -> bool {
        self.stop.load(Relaxed)
    }

    /// One request, answered or not, with a retry for each further agent: all with one Idempotency-Key,
    /// each through another agent. Returns what it was told, and the ETag.
    pub(crate) async fn ask(
        &self,
        key: &str,
        ask: Ask,
        old_etag: Option<&str>,
        agents: &[usize],
    ) -> (Outcome, Option<Box<str>>) {
        let begun = self.history.now();
        let retry_id = (agents.len() > 1).then(|| format!("{key} {}", self.number()));
        let mut via = String::new();
        let mut unsure = false;
        let mut last = Attempt { outcome: Outcome::Nothing, etag: None, said: String::new() };
        for agent in agents {
            last = self.attempt(*agent, key, ask, old_etag, retry_id.as_deref(), false).await;
            via.push_str(&format!("n{agent}:{} ", last.said));
            match last.outcome {
                Outcome::Told(..) => break,
                Outcome::Unknown => unsure = true,
                Outcome::Nothing => {}
            }
        }
        // A refused retry says nothing of the attempts before it.
        if unsure && last.outcome == Outcome::Nothing {
            last.outcome = Outcome::Unknown;
        }
        let (outcome, etag, via) = (last.outcome, last.etag, via.trim_end().into());
        self.history.add(key, Entry { ask, begun, outcome, etag: etag.clone(), via });
        (outcome, etag)
    }

    /// Ends when an impatient client has no hope in an agent any more.
    async fn is_left(&self, agent: usize, impatient: bool) {
        if !impatient {
            std::future::pending::<()>().await;
        }
        while self.board.get(agent) == State::Running {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// One request through an agent that is well, given up as soon as it is not.
    async fn ask_the_well(&self, key: &str, ask: Ask, agent: usize) -> Outcome {
        let begun = self.history.now();
        let Attempt { outcome, etag, said } = self.attempt(agent, key, ask, None, None, true).await;
        let via = format!("n{agent}:{said}").into();
        self.history.add(key, Entry { ask, begun, outcome, etag, via });
        outcome
    }

    async fn attempt(
        &self,
        agent: usize,
        key: &str,
        ask: Ask,
        old_etag: Option<&str>,
        retry_id: Option<&str>,
        impatient: bool,
    ) -> Attempt {
        let method = match ask {
            Ask::Get => Method::GET,
            Ask::Create(_) => Method::POST,
            Ask::Set(_) | Ask::Update(_) | Ask::Swap(..) => Method::PUT,
            Ask::Delete | Ask::DeleteIf(_) => Method::DELETE,
        };
        let is_frozen = self.board.get(agent) == State::Frozen;
        let patience = if is_frozen { SHORT_PATIENCE } else { PATIENCE };
        let consistency = if ask == Ask::Get { self.consistency } else { "" };
        let url = format!("{}/kv/{key}{consistency}", self.urls[agent]);
        let mut request = self.http.request(method, url).timeout(patience);
        if let Some(number) = ask.stores() {
            request = request.body(history::bytes(key, number));
        }
        match (ask, old_etag) {
            (Ask::Update(_), _) => request = request.header("if-match", "*"),
            (Ask::Swap(..) | Ask::DeleteIf(_), Some(etag)) => {
                request = request.header("if-match", etag);
            }
            _ => {}
        }
        if let Some(id) = retry_id {
            request = request.header("idempotency-key", id);
        }
        let nothing = |outcome, said: &str| Attempt { outcome, etag: None, said: said.to_owned() };
        let sent = tokio::select! {
            sent = request.send() => sent,
            () = self.is_left(agent, impatient) => return nothing(Outcome::Unknown, "left"),
        };
        let answer = match sent {
            Ok(answer) => answer,
            Err(error) if error.is_connect() => return nothing(Outcome::Nothing, "unreachable"),
            Err(error) if error.is_timeout() => return nothing(Outcome::Unknown, "silent"),
            Err(_) => return nothing(Outcome::Unknown, "broken off"),
        };
        let (status, etag) = (answer.status(), etag(&answer));
        let body = tokio::select! {
            body = answer.bytes() => body,
            () = self.is_left(agent, impatient) => return nothing(Outcome::Unknown, "left"),
        };
        let Ok(body) = body else {
            return nothing(Outcome::Unknown, "broken off");
        };
        let end = self.history.now();
        let said = status.as_u16().to_string();
        let told = match (ask, status) {
            (_, StatusCode::SERVICE_UNAVAILABLE | StatusCode::INSUFFICIENT_STORAGE) => {
                return Attempt { outcome: Outcome::Nothing, etag: None, said };
            }
            (_, StatusCode::GATEWAY_TIMEOUT) => {
                return Attempt { outcome: Outcome::Unknown, etag: None, said };
            }
            (Ask::Get, StatusCode::OK) => match history::number(key, &body) {
                Some(number) => Told::Found(number),
                None => {
                    let shown = String::from_utf8_lossy(&body[..body.len().min(60)]).into_owned();
                    self.history.wrong(format!("GET {key} through n{agent}: {shown:?}"));
                    return Attempt { outcome: Outcome::Unknown, etag: None, said };
                }
            },
            (Ask::Get | Ask::Delete, StatusCode::NOT_FOUND) => Told::Absent,
            (Ask::Create(_) | Ask::Set(_), StatusCode::CREATED) => Told::Created,
            (Ask::Create(_), StatusCode::CONFLICT) => Told::Exists,
            (Ask::Set(_) | Ask::Update(_) | Ask::Swap(..), StatusCode::OK) => Told::Replaced,
            (Ask::Delete | Ask::DeleteIf(_), StatusCode::NO_CONTENT) => Told::Deleted,
            (
                Ask::Update(_) | Ask::Swap(..) | Ask::DeleteIf(_),
                StatusCode::PRECONDITION_FAILED,
            ) => Told::Failed,
            _ => {
                let shown = String::from_utf8_lossy(&body).into_owned();
                self.history.wrong(format!("{ask:?} {key} through n{agent}: {status} {shown}"));
                return Attempt { outcome: Outcome::Unknown, etag: None, said };
            }
        };
        Attempt { outcome: Outcome::Told(end, told), etag, said }
    }
}

fn etag(answer: &reqwest::Response) -> Option<Box<str>> {
    answer.headers().get("etag").and_then(|etag| etag.to_str().ok()).map(Into::into)
}

/// One client.
struct Client {
    shared: Arc<Clients>,
    pool: Rc<RefCell<Pool>>,
    random: Random,
    /// The value and ETag that it saw last of a key: by now perhaps another.
    seen: HashMap<String, (Number, Box<str>)>,
}

impl Client {
    async fn run(mut self) {
        while !self.shared.is_stopping() {
            let (key, is_cold) = self.pool.borrow_mut().pick(&mut self.random);
            if self.random.chance(0.1) {
                // Who has just read a key is likely to succeed with a compare-and-swap.
                let agent = self.agent();
                self.ask(&key, Ask::Get, &[agent]).await;
            }
            let known = self.seen.get(&key).map(|(number, _)| *number);
            let ask = self.choose(known);
            let mut agents = vec![self.agent()];
            if is_cold && ask != Ask::Get && self.random.chance(0.5) {
                agents.extend([self.agent(), self.agent()]);
            }
            self.ask(&key, ask, &agents).await;
            tokio::time::sleep(self.random.between(THINKING.0, THINKING.1)).await;
        }
    }

    async fn ask(&mut self, key: &str, ask: Ask, agents: &[usize]) {
        let known = self.seen.get(key).map(|(_, etag)| &**etag);
        let (outcome, etag) = self.shared.ask(key, ask, known, agents).await;
        let value = match outcome {
            Outcome::Told(_, Told::Found(value)) => Some(value),
            Outcome::Told(_, Told::Created | Told::Replaced) => ask.stores(),
            _ => None,
        };
        if let (Some(value), Some(etag)) = (value, etag) {
            if self.seen.len() > 500 {
                self.seen.clear();
            }
            self.seen.insert(key.to_owned(), (value, etag));
        }
    }

    fn choose(&mut self, known: Option<Number>) -> Ask {
        let new = self.shared.number();
        match (self.random.below(100), known) {
            (0..15, Some(old)) => Ask::Swap(new, old),
            (15..18, Some(old)) => Ask::DeleteIf(old),
            (18..34, _) => Ask::Create(new),
            (34..54, _) => Ask::Set(new),
            (54..57, _) => Ask::Update(new),
            (57..65, _) => Ask::Delete,
            _ => Ask::Get,
        }
    }

    /// An agent that seems to be well, mostly; sometimes any.
    fn agent(&mut self) -> usize {
        let board = &self.shared.board;
        let mut agents = board.all(State::Running);
        if agents.is_empty() || self.random.chance(0.05) {
            agents = (0..SLOTS).filter(|slot| board.get(*slot) != State::Absent).collect();
        }
        self.random.pick(&agents).unwrap_or_default()
    }
}

/// The keys that are in use now.
struct Pool {
    hot: Vec<(String, usize)>,
    cold: Vec<(String, usize)>,
    made: usize,
}

impl Pool {
    fn new() -> Self {
        let mut pool = Self { hot: Vec::new(), cold: Vec::new(), made: 0 };
        pool.hot = (0..HOT.0).map(|_| pool.make("hot", HOT.1)).collect();
        pool.cold = (0..COLD.0).map(|_| pool.make("cold", COLD.1)).collect();
        pool
    }

    fn make(&mut self, kind: &str, uses: usize) -> (String, usize) {
        self.made += 1;
        (format!("{kind}-{}", self.made), uses)
    }

    /// A key, and whether it is a cold one.
    fn pick(&mut self, random: &mut Random) -> (String, bool) {
        let is_cold = random.chance(0.5);
        let keys = if is_cold { &mut self.cold } else { &mut self.hot };
        let at = random.below(keys.len());
        let (key, uses) = &mut keys[at];
        *uses -= 1;
        let (key, is_used_up) = (key.clone(), *uses == 0);
        if is_used_up && is_cold {
            self.cold[at] = self.make("cold", COLD.1);
        } else if is_used_up {
            self.hot[at] = self.make("hot", HOT.1);
        }
        (key, is_cold)
    }
}

/// A name whose point lies in this one of [`PROBES`] equal parts of the circle.
pub(crate) fn probe_key(part: usize) -> String {
    let names = (0..).map(|i| format!("probe-{part}-{i}"));
    let lies_there =
        |name: &String| usize::from(Key::new(name).hash().as_bytes()[0]) * PROBES / 256 == part;
    names.into_iter().find(lies_there).unwrap_or_default()
}

/// Reads or writes one key again and again, through agents that seem to be well.
async fn probe(shared: Arc<Clients>, key: usize, is_get: bool, mut random: Random) {
    let name = probe_key(key);
    while !shared.is_stopping() {
        tokio::time::sleep(PROBE_EVERY).await;
        let Some(agent) = random.pick(&shared.board.all(State::Running)) else { continue };
        let ask = if is_get { Ask::Get } else { Ask::Set(shared.number()) };
        let begun = shared.history.now();
        let outcome = shared.ask_the_well(&name, ask, agent).await;
        let succeeded = matches!(outcome, Outcome::Told(..));
        let probe = Probe { key, is_get, begun, end: shared.history.now(), succeeded };
        shared.probes.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(probe);
    }
}
