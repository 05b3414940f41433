//! The double of a cloud: its state, and the one door through which every call comes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::faults::{Effect, Rule, Rules, When};
use super::guests::Guests;
use super::http::{Answer, Call, serve};
use super::{cinder, glance, keystone, neutron, nova};

/// The project of the tests.
pub(crate) const OURS: &str = "0a1b2c3d4e5f60718293a4b5c6d7e8f9";
/// Somebody else's.
pub(crate) const THEIRS: &str = "ffffffffffffffffffffffffffffffff";

/// Decides what becomes of a server: the message of its fault if it goes to ERROR.
type Fate = Box<dyn Fn(&Value) -> Option<String> + Send>;

/// Everything in the cloud, and its manners.
pub(crate) struct State {
    /// By kind, in the order in which they were made. Keys that begin with `_` are not shown.
    items: BTreeMap<&'static str, Vec<Value>>,
    next: u64,
    /// The second and third part of all addresses: of servers, and of floating IPs.
    pub(crate) space: (u8, u8, u8),
    pub(crate) address: SocketAddr,
    /// By the names that the services use; no limit if there is none.
    pub(crate) limits: BTreeMap<&'static str, i64>,
    pub(crate) fate: Fate,
    /// How often a new server is looked at before it is ACTIVE.
    pub(crate) looks_to_build: u64,
    /// Whether deleted servers stay a while.
    pub(crate) soft_delete: bool,
    /// Whether a server takes its ports along when it is deleted.
    pub(crate) ports_go_with_servers: bool,
    pub(crate) hypervisors: u64,
    /// The most items of one page.
    pub(crate) page: usize,
    /// Whether version documents hold addresses that only the cloud reaches.
    pub(crate) inner_links: bool,
    pub(crate) token_life: Duration,
    pub(crate) tokens: BTreeSet<String>,
    pub(crate) revoked: BTreeSet<String>,
    /// What the catalog is like in the end.
    pub(crate) catalog: fn(&mut Vec<Value>),
    pub(crate) guests: Guests,
    pub(crate) rules: Rules,
    /// All calls so far.
    pub(crate) calls: Vec<Call>,
    /// The program under test.
    pub(crate) client: Option<Pid>,
    /// Connections up to this one belong to a client that was killed.
    dead: Option<u64>,
    newest: u64,
}

impl State {
    /// An id that no other item has.
    pub(crate) fn id(&mut self) -> String {
        self.next += 1;
        format!(
            "{:08x}-5a5a-4b4b-8c8c-{:012x}",
            self.next.wrapping_mul(2_654_435_761) as u32,
            self.next
        )
    }

    /// A time of creation: later for what is made later.
    pub(crate) fn time(&self) -> String {
        format!("2026-01-01T00:{:02}:{:02}Z", self.next / 60 % 60, self.next % 60)
    }

    pub(crate) fn all(&self, kind: &str) -> &[Value] {
        self.items.get(kind).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn find(&self, kind: &str, id: &str) -> Option<&Value> {
        self.all(kind).iter().find(|item| item["id"] == id)
    }

    pub(crate) fn find_mut(&mut self, kind: &str, id: &str) -> Option<&mut Value> {
        self.items.get_mut(kind)?.iter_mut().find(|item| item["id"] == id)
    }

    pub(crate) fn insert(&mut self, kind: &'static str, item: Value) -> Value {
        self.items.entry(kind).or_default().push(item.clone());
        item
    }

    pub(crate) fn remove(&mut self, kind: &str, id: &str) {
        if let Some(items) = self.items.get_mut(kind) {
            items.retain(|item| item["id"] != id);
        }
    }

    pub(crate) fn of<'a>(
        &'a self,
        kind: &str,
        key: &'a str,
        value: &'a str,
    ) -> impl Iterator<Item = &'a Value> {
        self.all(kind).iter().filter(move |item| item[key] == value)
    }

    /// How many of a kind our project has.
    pub(crate) fn used(&self, kind: &str) -> i64 {
        self.of(kind, "project_id", OURS).count().try_into().unwrap()
    }

    /// -1 if there is none.
    pub(crate) fn limit(&self, name: &str) -> i64 {
        self.limits.get(name).copied().unwrap_or(-1)
    }

    /// Sets a limit.
    pub(crate) fn restrict(&mut self, name: &'static str, most: i64) {
        self.limits.insert(name, most);
    }

    /// Whether one more fits.
    pub(crate) fn fits(&self, limit: &str, used: i64, more: i64) -> bool {
        let most = self.limit(limit);
        most < 0 || used + more <= most
    }

    /// Makes something without asking anybody.
    pub(crate) fn plant(&mut self, kind: &'static str, mut item: Value) -> String {
        let id = item["id"].as_str().map_or_else(|| self.id(), str::to_owned);
        item["id"] = json!(id);
        if item["project_id"].is_null() {
            item["project_id"] = json!(OURS);
        }
        self.insert(kind, item);
        id
    }

    /// Everything there is, as it is.
    pub(crate) fn dump(&self) -> BTreeMap<&'static str, Vec<Value>> {
        let kept = self.items.iter().filter(|(_, items)| !items.is_empty());
        kept.map(|(kind, items)| (*kind, items.clone())).collect()
    }

    /// A page of a list as all services but Glance give it.
    pub(crate) fn pages(&self, call: &Call, key: &str, items: Vec<Value>, name: &str) -> Answer {
        let at = |item: &Value| {
            item["id"].as_str().or(item["keypair"]["name"].as_str()).map(str::to_owned)
        };
        let marker = call.argument("marker");
        let begin = marker
            .and_then(|marker| items.iter().position(|item| at(item).as_deref() == Some(marker)));
        let begin = begin.map_or(0, |at| at + 1);
        let limit = call.argument("limit").and_then(|limit| limit.parse().ok());
        let size = self.page.min(limit.unwrap_or(usize::MAX));
        let mut page: Vec<Value> = items.into_iter().skip(begin).collect();
        let more = page.len() > size;
        page.truncate(size);
        let mut body = json!({key: page.clone()});
        if more {
            let marker = page.last().and_then(at).unwrap_or_default();
            let others = call.query.iter().filter(|(key, _)| key != "marker");
            let others: String = others.map(|(k, v)| format!("{k}={v}&")).collect();
            // Services behind a proxy often do not know how they are reached.
            let href = format!("http://inner.invalid{}?{others}marker={marker}", call.path);
            body[name] = json!([{"rel": "next", "href": href}]);
        }
        Answer::new(200, body)
    }
}

/// A running double.
pub(crate) struct Cloud {
    state: Arc<Mutex<State>>,
    pub(crate) address: SocketAddr,
    listener: Arc<TcpListener>,
}

/// Every cloud has addresses of its own, so that tests can run side by side.
static CLOUDS: AtomicU64 = AtomicU64::new(0);

impl Cloud {
    /// A cloud with images, flavors, an external network and things of other people.
    pub(crate) fn new() -> Self {
        let cloud = u32::try_from(CLOUDS.fetch_add(1, Ordering::Relaxed)).unwrap();
        // Two runs of the tests on one machine are kept apart as well.
        let own = 64 + std::process::id() % 15 * 4 + cloud / 250 % 4;
        let [own, number] = [own, cloud % 250 + 1].map(|part| u8::try_from(part).unwrap());
        let inner: Arc<std::sync::OnceLock<Arc<Mutex<State>>>> = Arc::default();
        let door = Arc::clone(&inner);
        let (address, listener) = serve(move |call| pass(door.wait(), call));
        let state = Arc::new(Mutex::new(State {
            items: BTreeMap::new(),
            next: 0,
            space: (own, own + 64, number),
            address,
            limits: BTreeMap::new(),
            fate: Box::new(|_| None),
            looks_to_build: 0,
            soft_delete: false,
            ports_go_with_servers: false,
            hypervisors: 8,
            page: 1000,
            inner_links: false,
            token_life: Duration::from_secs(3600),
            tokens: BTreeSet::new(),
            revoked: BTreeSet::new(),
            catalog: |_| {},
            guests: Guests::new(),
            rules: Rules::default(),
            calls: Vec::new(),
            client: None,
            dead: None,
            newest: 0,
        }));
        assert!(inner.set(Arc::clone(&state)).is_ok());
        let cloud = Self { state, address, listener };
        glance::furnish(&mut cloud.state());
        nova::furnish(&mut cloud.state());
        neutron::furnish(&mut cloud.state());
        cloud
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        // A failed assertion elsewhere must not hide its own message behind this one.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Something goes wrong.
    pub(crate) fn rule(&self, rule: Rule) {
        self.state().rules.add(rule);
    }

    /// The network of servers that tests use here.
    pub(crate) fn cidr(&self) -> String {
        let (own, _, number) = self.state().space;
        format!("127.{own}.{number}.0/24")
    }

    /// The calls since `from` that change something.
    pub(crate) fn mutations(&self, from: usize) -> Vec<String> {
        let state = self.state();
        state.calls[from..].iter().filter(|call| call.mutates()).map(Call::line).collect()
    }

    /// How many calls there were.
    pub(crate) fn count(&self) -> usize {
        self.state().calls.len()
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        self.state().guests.end_all();
        // The thread that accepts connections ends with the next one.
        let _ = rustix::net::shutdown(&*self.listener, rustix::net::Shutdown::Both);
    }
}

/// One call: faults, then the services.
fn pass(state: &Mutex<State>, call: Call) -> Option<Answer> {
    let mut guard = state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let state = &mut *guard;
    state.newest = state.newest.max(call.connection);
    if state.dead.is_some_and(|dead| call.connection <= dead) {
        return None;
    }
    state.calls.push(call.clone());
    if let Some(effect) = state.rules.find(When::Before, &call) {
        match effect {
            Effect::Answer(answer) => return Some(stamped(state.calls.len(), answer.clone())),
            Effect::HangUp => return None,
            Effect::Repeat => {
                let message =
                    format!("Invalid input for field/attribute server. Value: {}.", call.body);
                return Some(nova::fault(400, "badRequest", &message));
            }
            Effect::Kill => return state.kill(),
            Effect::Interrupt => state.signal(Signal::INT),
            Effect::Change(change) => change(state),
        }
    }
    let answer = route(state, &call);
    let answer = match state.rules.find(When::After, &call) {
        Some(Effect::Answer(answer)) => answer.clone(),
        Some(Effect::HangUp) => return None,
        Some(Effect::Kill) => return state.kill(),
        Some(Effect::Interrupt) => {
            state.signal(Signal::INT);
            answer
        }
        Some(Effect::Change(change)) => {
            change(state);
            answer
        }
        Some(Effect::Repeat) | None => answer,
    };
    Some(stamped(state.calls.len(), answer))
}

fn stamped(number: usize, answer: Answer) -> Answer {
    answer.header("X-Openstack-Request-Id", &format!("req-{number:08}"))
}

impl State {
    fn signal(&self, signal: Signal) {
        if let Some(client) = self.client {
            // It may have ended by itself.
            let _ = kill_process(client, signal);
        }
    }

    fn kill(&mut self) -> Option<Answer> {
        self.signal(Signal::KILL);
        // What it still had under way is not carried out.
        self.dead = Some(self.newest);
        None
    }
}

fn route(state: &mut State, call: &Call) -> Answer {
    let path = call.path.clone();
    if let Some(path) = path.strip_prefix("/identity/v3") {
        return keystone::route(state, call, path);
    }
    // Version documents are for everyone.
    let open = path.trim_end_matches('/') == "/compute/v2.1";
    let token = call.header("x-auth-token").unwrap_or_default();
    if !open && (!state.tokens.contains(token) || state.revoked.contains(token)) {
        let body = json!({"error": {"code": 401, "title": "Unauthorized",
            "message": "The request you have made requires authentication."}});
        return Answer::new(401, body);
    }
    if let Some(path) = path.strip_prefix("/compute/v2.1") {
        nova::route(state, call, path.trim_matches('/'))
    } else if let Some(path) = path.strip_prefix("/network/v2.0/") {
        neutron::route(state, call, path)
    } else if let Some(path) = path.strip_prefix("/image/v2/") {
        glance::route(state, call, path)
    } else if let Some(path) = path.strip_prefix(&format!("/volume/v3/{OURS}/")) {
        cinder::route(state, call, path)
    } else {
        Answer::new(404, Value::String("<html><body>Not Found</body></html>".to_owned()))
    }
}
