//! The paths of the dashboard, who may use them, and the files of the page.

use std::net::IpAddr;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::{Stream, StreamExt, pin_mut};
use serde_json::json;
use sky_api::{Code, Problem, path};
use sky_chord::Id;
use tokio::sync::watch;
use warp::Filter;
use warp::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use warp::reply::{Reply, Response};

use super::aggregate::{NodeReport, RingState};
use super::history::History;
use super::proxy::{Proxy, decode, parameter, target_of_key, target_of_list};
use super::{Action, Actions, Verb};

/// The largest body that is passed on; agents have their own, lower limit.
const LARGEST_BODY: usize = 16 << 20;
/// How long a stream of events may be silent before a comment keeps it alive.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// What the page may load: its own files and calls, nothing else.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const PAGE: &str = include_str!("index.html");
/// In the page's text, the folder of its files.
const ASSETS_MARK: &str = "__ASSETS__";
const SCRIPT: &str = "text/javascript; charset=utf-8";
/// The files of the page: name, content type, text.
const ASSETS: [(&str, &str, &str); 18] = [
    ("style.css", "text/css; charset=utf-8", include_str!("style.css")),
    ("icon.svg", "image/svg+xml", include_str!("icon.svg")),
    ("main.js", SCRIPT, include_str!("main.js")),
    ("state.js", SCRIPT, include_str!("state.js")),
    ("dom.js", SCRIPT, include_str!("dom.js")),
    ("ring.js", SCRIPT, include_str!("ring.js")),
    ("geometry.js", SCRIPT, include_str!("geometry.js")),
    ("labels.js", SCRIPT, include_str!("labels.js")),
    ("suspicion.js", SCRIPT, include_str!("suspicion.js")),
    ("transfers.js", SCRIPT, include_str!("transfers.js")),
    ("trace.js", SCRIPT, include_str!("trace.js")),
    ("sha1.js", SCRIPT, include_str!("sha1.js")),
    ("browse.js", SCRIPT, include_str!("browse.js")),
    ("panels.js", SCRIPT, include_str!("panels.js")),
    ("coverage.js", SCRIPT, include_str!("coverage.js")),
    ("timeline.js", SCRIPT, include_str!("timeline.js")),
    ("keys.js", SCRIPT, include_str!("keys.js")),
    ("actions.js", SCRIPT, include_str!("actions.js")),
];
/// The folder's name is a hash of all files, so that a browser never mixes two versions.
static ASSETS_HASH: LazyLock<String> = LazyLock::new(|| {
    let all: String = ASSETS.iter().map(|(_, _, text)| *text).collect();
    Id::hash(all.as_bytes()).to_string()[..16].to_owned()
});

/// What all requests share.
pub(super) struct Shared {
    states: watch::Receiver<Arc<RingState>>,
    history: Arc<Mutex<History>>,
    actions: Arc<dyn Actions>,
    token: String,
    /// Turns true when the server stops: streams end then.
    stopped: watch::Receiver<bool>,
    proxy: Proxy,
}

impl Shared {
    pub(super) fn new(
        states: watch::Receiver<Arc<RingState>>,
        history: Arc<Mutex<History>>,
        actions: Arc<dyn Actions>,
        token: String,
        stopped: watch::Receiver<bool>,
    ) -> Arc<Self> {
        let proxy = Proxy::new(&token);
        Arc::new(Self { states, history, actions, token, stopped, proxy })
    }
}

/// All of it, as one filter that never rejects.
pub(super) fn routes(
    shared: Arc<Shared>,
) -> impl Filter<Extract = (impl Reply,), Error = warp::Rejection> + Clone {
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    warp::method()
        .and(warp::path::full())
        .and(query)
        .and(warp::header::headers_cloned())
        .and(warp::body::stream())
        .then(move |method: Method, path: warp::path::FullPath, query: String, headers, body| {
            let shared = shared.clone();
            async move {
                let call = Call { method, path: path.as_str(), query: &query, headers: &headers };
                let answer = call.answer(&shared, body).await;
                with_safety(answer.unwrap_or_else(|problem| problem_response(&problem)))
            }
        })
}

/// Where a path leads.
enum Route<'a> {
    Page,
    Asset(&'a str),
    Ring,
    Events,
    History,
    Keys,
    Key(&'a str),
    Lookup(&'a str),
    Nodes,
    Local(&'a str),
    Node(&'a str, Verb),
}

impl<'a> Route<'a> {
    fn parse(path: &'a str) -> Option<Self> {
        let path = path.strip_prefix('/')?;
        Some(match path.split_once('/') {
            None if path.is_empty() => Self::Page,
            Some(("assets", file)) => {
                Self::Asset(file.strip_prefix(ASSETS_HASH.as_str())?.strip_prefix('/')?)
            }
            Some(("api", rest)) => match rest.split_once('/') {
                None if rest == "ring" => Self::Ring,
                None if rest == "events" => Self::Events,
                None if rest == "history" => Self::History,
                None if rest == "kv" => Self::Keys,
                None if rest == "nodes" => Self::Nodes,
                Some(("kv", key)) => Self::Key(key),
                Some(("lookup", key)) => Self::Lookup(key),
                Some(("nodes", node)) => {
                    let (name, what) = node.split_once('/')?;
                    if what == "local" {
                        Self::Local(name)
                    } else {
                        Self::Node(name, Verb::parse(what)?)
                    }
                }
                _ => return None,
            },
            _ => return None,
        })
    }

    /// The methods that it knows, as in the header `Allow`.
    const fn allow(&self) -> &'static str {
        match self {
            Self::Nodes | Self::Node(..) => "POST",
            Self::Key(_) => "GET, HEAD, PUT, POST, DELETE",
            _ => "GET, HEAD",
        }
    }
}

/// A request without its body.
struct Call<'a> {
    method: Method,
    path: &'a str,
    query: &'a str,
    headers: &'a HeaderMap,
}

impl Call<'_> {
    async fn answer(
        &self,
        shared: &Arc<Shared>,
        body: impl Stream<Item = Result<impl Buf, warp::Error>>,
    ) -> Result<Response, Problem> {
        self.check_origin()?;
        let route = Route::parse(self.path).ok_or_else(|| {
            let detail = format!("there is nothing at {}", self.path);
            problem(Code::NoSuchPath, "No such path", detail, Some("the page is at /"))
        })?;
        if !route.allow().split(", ").any(|method| method == self.method.as_str()) {
            let detail = format!("{} {} is not possible", self.method, self.path);
            let problem = problem(Code::MethodNotAllowed, "Wrong method", detail, None);
            let mut response = problem_response(&problem);
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(route.allow()));
            return Ok(response);
        }
        if !self.method.is_safe() {
            self.check_token(&shared.token)?;
        }
        let ring = shared.states.borrow().clone();
        // The node that is to answer, if it is not just any.
        let mut named = None;
        let target = match route {
            Route::Page => return Ok(page()),
            Route::Asset(name) => return asset(name),
            Route::Ring => return Ok(warp::reply::json(&*ring).into_response()),
            Route::Events => return Ok(events(shared)),
            Route::History => {
                let states = shared.history.lock().unwrap_or_else(PoisonError::into_inner).states();
                return Ok(warp::reply::json(&states).into_response());
            }
            Route::Nodes => return act(shared, Action::Add).await,
            Route::Node(name, verb) => {
                let name = decode(name).unwrap_or_default();
                if !ring.nodes.iter().any(|node| node.expected && node.name == name) {
                    let detail = format!("the inventory has no node `{name}`");
                    return Err(problem(Code::NotFound, "No such node", detail, None));
                }
                return act(shared, Action::Node(name, verb)).await;
            }
            Route::Keys => target_of_list(path::KV, self.query),
            Route::Key(key) => target_of_key(path::KV, key)?,
            Route::Lookup(key) => {
                named = parameter(self.query, "from");
                target_of_key(path::LOOKUP, key)?
            }
            Route::Local(name) => {
                named = Some(decode(name).unwrap_or_default());
                target_of_list(path::LOCAL, self.query)
            }
        };
        let body = collect(body).await?;
        let agents = match named {
            Some(name) => vec![agent_of(&ring, &name)?],
            None => shared.proxy.agents(&ring),
        };
        shared.proxy.pass_on(&agents, &self.method, &target, self.headers, body).await
    }

    /// Only pages of this server may call it: see the module's documentation.
    fn check_origin(&self) -> Result<(), Problem> {
        let host = self.headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("");
        let name = Uri::builder().scheme("http").authority(host).path_and_query("/").build();
        let is_local = name.as_ref().ok().and_then(Uri::host).is_some_and(|name| {
            name == "localhost" || name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok()
        });
        let origin = self.headers.get(header::ORIGIN);
        let is_own =
            origin.is_none_or(|origin| origin.as_bytes() == format!("http://{host}").as_bytes());
        if is_local && is_own {
            return Ok(());
        }
        Err(problem(
            Code::ForbiddenOrigin,
            "Foreign origin",
            "the dashboard only answers to its own page".to_owned(),
            Some("open it at the address that sky-deploy printed, by IP address or as localhost"),
        ))
    }

    fn check_token(&self, token: &str) -> Result<(), Problem> {
        let given = self.headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
        let given = given.and_then(|value| value.strip_prefix(b"Bearer ")).unwrap_or_default();
        // Hashes are compared, so that the time it takes tells nothing about the token.
        if Id::hash(given) == Id::hash(token.as_bytes()) {
            return Ok(());
        }
        Err(problem(
            Code::Unauthorized,
            "Token needed",
            "changes need the token of this dashboard".to_owned(),
            Some("open the address that sky-deploy printed: it ends with #token=…"),
        ))
    }
}

fn page() -> Response {
    let text = PAGE.replace(ASSETS_MARK, &format!("/assets/{}", *ASSETS_HASH));
    let mut response = warp::reply::html(text).into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

fn asset(name: &str) -> Result<Response, Problem> {
    let (_, content_type, text) =
        ASSETS.iter().find(|(known, _, _)| *known == name).ok_or_else(|| {
            problem(Code::NoSuchPath, "No such file", format!("the page has no file {name}"), None)
        })?;
    let mut response = Response::new((*text).into());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    let forever = HeaderValue::from_static("public, max-age=31536000, immutable");
    headers.insert(header::CACHE_CONTROL, forever);
    Ok(response)
}

/// The node of this name, which has to answer.
fn agent_of<'a>(ring: &'a RingState, name: &str) -> Result<&'a NodeReport, Problem> {
    let node = ring.nodes.iter().find(|node| node.name == name).ok_or_else(|| {
        let detail = format!("the ring has no node `{name}`");
        problem(Code::NotFound, "No such node", detail, None)
    })?;
    if node.answering {
        return Ok(node);
    }
    let why = node.error.as_deref().unwrap_or("it never answered");
    let detail = format!("{name} does not answer: {why}");
    Err(problem(Code::Unavailable, "No answer", detail, Some("ask another node")))
}

/// The state now and after every round, until the server stops or the reader leaves.
fn events(shared: &Shared) -> Response {
    let mut states = shared.states.clone();
    states.mark_changed();
    let streams = (states, shared.stopped.clone());
    let events = futures_util::stream::unfold(streams, |(mut states, mut stopped)| async move {
        let event = tokio::select! {
            _ = stopped.wait_for(|stopped| *stopped) => return None,
            change = states.changed() => {
                change.ok()?;
                let state = states.borrow_and_update().clone();
                format!("retry: 1000\ndata: {}\n\n", serde_json::to_string(&*state).ok()?)
            }
            () = tokio::time::sleep(KEEP_ALIVE) => ": still here\n\n".to_owned(),
        };
        Some((Ok::<_, std::convert::Infallible>(event), (states, stopped)))
    });
    let mut response = warp::reply::stream(events).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// Carries an action out to its end, also when the browser does not wait for it.
async fn act(shared: &Shared, action: Action) -> Result<Response, Problem> {
    let actions = shared.actions.clone();
    tracing::info!(?action, "asked for by the dashboard");
    let done = tokio::spawn(async move { actions.carry_out(action).await }).await;
    let outcome =
        done.unwrap_or_else(|_| Err("the action ended with a fault of sky-deploy".to_owned()));
    match outcome {
        Ok(message) => Ok(warp::reply::json(&json!({ "message": message })).into_response()),
        Err(why) => Err(problem(Code::Internal, "Not done", why, None)),
    }
}

async fn collect(
    body: impl Stream<Item = Result<impl Buf, warp::Error>>,
) -> Result<Bytes, Problem> {
    pin_mut!(body);
    let mut bytes = Vec::new();
    while let Some(chunk) = body.next().await {
        let mut chunk = chunk.map_err(|error| {
            problem(
                Code::BadRequest,
                "Broken request",
                format!("the body broke off: {error}"),
                None,
            )
        })?;
        if bytes.len() + chunk.remaining() > LARGEST_BODY {
            let detail = format!("values have at most {LARGEST_BODY} bytes here");
            return Err(problem(Code::TooLarge, "Too large", detail, None));
        }
        bytes.extend_from_slice(&chunk.copy_to_bytes(chunk.remaining()));
    }
    Ok(bytes.into())
}

/// An error of the dashboard itself.
pub(super) fn problem(code: Code, title: &str, detail: String, hint: Option<&str>) -> Problem {
    let status = match code {
        Code::BadRequest | Code::InvalidKey => StatusCode::BAD_REQUEST,
        Code::Unauthorized => StatusCode::UNAUTHORIZED,
        Code::ForbiddenOrigin => StatusCode::FORBIDDEN,
        Code::NotFound | Code::NoSuchPath => StatusCode::NOT_FOUND,
        Code::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
        Code::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::MaybeApplied => StatusCode::GATEWAY_TIMEOUT,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let hint = hint.map(str::to_owned);
    Problem {
        code,
        status: status.as_u16(),
        title: title.to_owned(),
        detail,
        hint,
        request_id: None,
    }
}

fn problem_response(problem: &Problem) -> Response {
    let mut response = warp::reply::json(problem).into_response();
    *response.status_mut() =
        StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let json = HeaderValue::from_static("application/problem+json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

/// The answer to a request that names no path.
pub(super) fn no_path() -> Response {
    let detail = "Ask for a path, as `/`.".to_owned();
    let problem = problem(Code::BadRequest, "The request names no path", detail, None);
    with_safety(problem_response(&problem))
}

/// What every answer says to the browser.
fn with_safety(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers
        .entry(header::CONTENT_SECURITY_POLICY)
        .or_insert_with(|| HeaderValue::from_static(POLICY));
    response
}
