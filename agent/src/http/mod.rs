//! The HTTP interface of an agent: what design and README call the client interface.
//!
//! ```text
//! serve_connection -> guard (Host, Origin) -> warp routes -> kv, batch, watch, ring, events, admin, metrics, page
//!                                                         -> Api::ask -> driver::Handle
//! ```
//!
//! Every error is a [`sky_api::Problem`]; whatever no route took is made one by the last filter.

mod admin;
mod batch;
mod body;
pub(crate) mod dot;
mod etag;
mod events;
#[cfg(test)]
#[path = "../../tests/fuzz/http.rs"]
mod fuzz;
mod guard;
mod key;
mod kv;
mod metrics;
mod openapi;
mod problem;
mod request_id;
mod ring;
mod route;
mod watch;

use std::convert::Infallible;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::ops::Deref;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::body::Body;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use rustix::net::sockopt;
use sky_api::Code;
use sky_chord::{Reply, Request, RequestId, Value};
use tokio::net::TcpStream;
use tracing::Instrument;
use warp::filters::path::FullPath;
use warp::http::header::{
    CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue, X_CONTENT_TYPE_OPTIONS,
};
use warp::http::{Method, StatusCode};
use warp::reply::Response;
use warp::{Filter, Rejection};

use crate::config::{Secret, Settings};
use crate::driver::{Busy, Handle};
use crate::fair::{Client, Share, Shares};
use crate::page::{File, Page};
use openapi::Document;
use problem::Refused;
use route::Route;

/// How long a client may take for the head of a request, and keep an idle connection.
const HEAD_PATIENCE: Duration = Duration::from_secs(60);

/// The most bytes of a request's head, and of what is read at once of its body.
const READ_BUFFER: usize = 64 << 10;

/// Bytes of large bodies and answers that may be in memory at once, four of the largest.
const MEMORY: usize = 4 * sky_api::MAX_VALUE_BYTES;

/// The interface, as one client has it.
#[derive(Debug)]
pub struct Api {
    handle: Handle,
    common: Arc<Common>,
}

/// What all connections share.
#[derive(Debug)]
pub struct Common {
    max_value_bytes: usize,
    /// How much longer a read may take than otherwise.
    read_patience: Duration,
    /// Bytes of large bodies and answers that may be in memory.
    memory: Arc<Shares>,
    token: Option<Secret>,
    /// What clients have to bring; none if everyone may ask.
    client_token: Option<Secret>,
    /// Host names this agent answers to, besides its addresses and `localhost`.
    names: Vec<String>,
    stopping: tokio::sync::watch::Receiver<bool>,
    ids: RequestIds,
    metrics: metrics::Requests,
    requests: request_id::Requests,
    page: Page,
    openapi: Document,
}

impl Api {
    /// The interface of the agent behind `handle`. Once `stopping` holds true, connections end after
    /// the request under way, and event streams at once.
    pub fn new(
        handle: Handle,
        settings: &Settings,
        stopping: tokio::sync::watch::Receiver<bool>,
    ) -> Arc<Self> {
        let advertised = guard::host_of(&settings.advertise).to_owned();
        let common = Common {
            max_value_bytes: settings.max_value_bytes,
            read_patience: settings.protocol().patience(),
            memory: Shares::new(MEMORY),
            token: settings.token.clone(),
            client_token: settings.token.clone().filter(|_| settings.require_token),
            names: vec![advertised, settings.name.clone()],
            stopping,
            ids: RequestIds::default(),
            metrics: metrics::Requests::default(),
            requests: request_id::Requests::default(),
            page: Page::default(),
            openapi: Document::new(settings),
        };
        Arc::new(Self { handle, common: Arc::new(common) })
    }

    /// The same, for this client.
    fn of(&self, client: Client) -> Arc<Self> {
        Arc::new(Self { handle: self.handle.of(client), common: Arc::clone(&self.common) })
    }

    /// Lets a value take the memory that it needs, if it is large, for as long as anybody has it.
    fn hold(&self, value: &mut Value) -> Result<(), Refused> {
        let room = self.room_for(value.bytes.len())?;
        let bytes = std::mem::take(&mut value.bytes);
        value.bytes = body::held(bytes, room.into_iter().collect());
        Ok(())
    }

    /// Memory for so many bytes; none are needed for a few.
    fn room_for(&self, bytes: usize) -> Result<Option<Share>, Refused> {
        if bytes <= body::SMALL {
            return Ok(None);
        }
        self.memory.take(self.handle.client(), bytes).map(Some).ok_or_else(|| {
            self.handle.counters().overloaded.fetch_add(1, Relaxed);
            let detail = "Nothing was changed: too many large values are on their way already.";
            let hint = "Try again in a second, with fewer of them at once.";
            Refused::new(Code::Overloaded, detail).hint(hint)
        })
    }

    async fn ask(&self, request: Request) -> Result<Reply, Refused> {
        let is_change =
            matches!(&request, Request::Operate { operation, .. } if operation.is_change());
        match self.handle.request(request).await {
            Ok(Reply::StoreFailed(reason)) => {
                let detail = format!("The agent cannot read its store: {reason}.");
                let hint = "Ask another agent, and look at this one's log and disk.";
                Err(Refused::new(Code::Internal, detail).hint(hint))
            }
            Ok(reply) => Ok(reply),
            Err(Busy::Stopped) if is_change => Err(sky_chord::Failure::MaybeApplied.into()),
            Err(busy @ (Busy::Refused | Busy::Stopped)) => {
                let detail = format!("Nothing was changed: {busy}.");
                let hint = "Try again in a second, or ask another agent.";
                Err(Refused::new(Code::Overloaded, detail).hint(hint))
            }
        }
    }
}

impl Deref for Api {
    type Target = Common;

    fn deref(&self) -> &Common {
        &self.common
    }
}

/// Serves one connection, already accepted, until the client or the agent ends it. HTTP/1.1 and
/// HTTP/2 without TLS are told apart here.
pub async fn serve_connection(api: Arc<Api>, stream: TcpStream, remote: SocketAddr) {
    let api = api.of(remote.ip().into());
    if let Err(error) = prepare(&stream) {
        tracing::debug!(%remote, %error, "small answers may be delayed, and dead clients stay");
    }
    let mut stopping = api.stopping.clone();
    let routes = TowerToHyperService::new(warp::service(routes(&api)));
    let is_used = AtomicBool::new(false);
    let service = service_fn(|mut request: hyper::Request<hyper::body::Incoming>| {
        let started = Instant::now();
        is_used.store(true, Relaxed);
        let (method, uri) = (request.method().clone(), request.uri().clone());
        let id = api.requests.id(request.headers());
        let span = tracing::error_span!("request", id = id.to_str().unwrap_or_default());
        let admitted = guard::check(&request, &api.names).and_then(|()| {
            api.client_token.as_ref().map_or(Ok(()), |token| guard::admit_client(&request, token))
        });
        if request.uri().path().starts_with("/admin/") {
            request.extensions_mut().insert(Remote(remote));
        }
        let answer = admitted.map(|()| routes.call(request));
        let api = Arc::clone(&api);
        let answered = async move {
            let mut response = match answer {
                Ok(answer) => answer.await?,
                Err(refused) => refused.into_response(),
            };
            let took = started.elapsed();
            api.requests.log(&method, uri.path(), &response, took);
            request_id::finish(&mut response, id);
            let nosniff = HeaderValue::from_static("nosniff");
            response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, nosniff);
            api.metrics.count(metrics::method_index(&method), response.status(), took);
            Ok::<_, Infallible>(if method == Method::HEAD { head_of(response) } else { response })
        };
        answered.instrument(span)
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .max_buf_size(READ_BUFFER)
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(HEAD_PATIENCE);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    // Which version it speaks may be said for ever.
    let unused = async {
        tokio::time::sleep(HEAD_PATIENCE).await;
        if is_used.load(Relaxed) {
            std::future::pending().await
        }
    };
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        () = unused => return tracing::debug!(%remote, "A connection made no request."),
        // An error means that nobody is left who could stop the agent any more gently.
        () = crate::until(&mut stopping) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%remote, error, "the connection broke");
    }
}

/// Small answers go out at once, and who takes nothing of a large one for a while has gone: it keeps memory
/// and a place from others.
fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, HEAD_PATIENCE)?;
    #[cfg(target_os = "linux")]
    sockopt::set_tcp_user_timeout(stream, HEAD_PATIENCE.as_millis() as u32)?;
    Ok(())
}

/// The answer to HEAD (RFC 9110, section 9.3.2): in HTTP/2 nobody else leaves out the body.
fn head_of(mut response: Response) -> Response {
    let has_length =
        ![StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED].contains(&response.status());
    if let Some(length) = response.body().size_hint().exact().filter(|_| has_length) {
        response.headers_mut().entry(CONTENT_LENGTH).or_insert(length.into());
    }
    response.map(|_| Bytes::new().into())
}

/// Where a request came from, for the administrative calls.
#[derive(Debug, Clone, Copy)]
struct Remote(SocketAddr);

/// All routes. `/kv` comes first and is one filter: the other paths may cost a little more.
fn routes(
    api: &Arc<Api>,
) -> impl Filter<Extract = (Response,), Error = Infallible> + Clone + Send + Sync + 'static {
    let api = Arc::clone(api);
    let others = others(&api).boxed();
    let with_api = warp::any().map(move || Arc::clone(&api));
    let keys = warp::path("kv")
        .and(with_api)
        .and(warp::method())
        .and(warp::path::full())
        .and(warp::query::<kv::Query>())
        .and(warp::header::headers_cloned())
        .and(warp::body::stream())
        .then(|api: Arc<Api>, method, path: FullPath, query, headers, body| async move {
            let key = path.as_str().strip_prefix("/kv/");
            let answer = kv::answer(&api, method, key, query, headers, body).await;
            answer.unwrap_or_else(Refused::into_response)
        });
    keys.or(others).unify().recover(problem::recover).unify()
}

fn others(
    api: &Arc<Api>,
) -> impl Filter<Extract = (Response,), Error = Rejection> + Clone + Send + Sync + 'static {
    let api = Arc::clone(api);
    let api = warp::any().map(move || Arc::clone(&api));
    let call = |route| at(route).and(api.clone());
    let batch = call(Route::Batch)
        .and(warp::header::headers_cloned())
        .and(warp::body::stream())
        .then(|api: Arc<Api>, headers, body| async move {
            finish(batch::answer(&api, headers, body).await)
        });
    let ring = call(Route::Ring)
        .and(warp::query())
        .then(|api: Arc<Api>, query| async move { finish(ring::ring(&api, query).await) });
    let dot =
        call(Route::RingDot).then(|api: Arc<Api>| async move { finish(ring::dot(&api).await) });
    let local = call(Route::Local)
        .and(warp::query())
        .then(|api: Arc<Api>, query| async move { finish(ring::local(&api, query).await) });
    let lookup = call(Route::Lookup).and(warp::path::full()).then(
        |api: Arc<Api>, path: FullPath| async move {
            let key = path.as_str().strip_prefix("/lookup/").unwrap_or_default();
            finish(ring::lookup(&api, key).await)
        },
    );
    let events = call(Route::Events)
        .and(warp::query())
        .and(warp::header::headers_cloned())
        .map(|api: Arc<Api>, query, headers| finish(events::stream(&api, &query, &headers)));
    let watch = call(Route::Watch)
        .or(call(Route::WatchKey))
        .unify()
        .and(warp::method())
        .and(warp::path::full())
        .and(warp::query())
        .and(warp::header::headers_cloned())
        .then(|api: Arc<Api>, method, path: FullPath, query, headers| async move {
            let key = path.as_str().strip_prefix("/watch/");
            finish(watch::stream(&api, method, key, query, headers).await)
        });
    let health = at(Route::Healthz).map(|| text("text/plain; charset=utf-8", "ok\n".to_owned()));
    let ready = call(Route::Readyz)
        .then(|api: Arc<Api>| async move { finish(ring::readiness(&api).await) });
    let metrics = call(Route::Metrics)
        .then(|api: Arc<Api>| async move { finish(metrics::report(&api).await) });
    let openapi = call(Route::OpenApi).map(|api: Arc<Api>| api.openapi.response());
    let page = at(Route::Page).or(at(Route::PageFile)).unify();
    let page = page.and(api.clone()).and(warp::path::full()).and_then(
        |api: Arc<Api>, path: FullPath| async move {
            api.page.find(path.as_str()).map(File::response).ok_or_else(warp::reject::not_found)
        },
    );
    let init = call(Route::Init)
        .and(admitted(api.clone()))
        .and(warp::body::content_length_limit(4096))
        .and(warp::body::json())
        .then(|api: Arc<Api>, request| async move { finish(admin::init(&api, request).await) });
    let leave = call(Route::Leave)
        .and(admitted(api.clone()))
        .then(|api: Arc<Api>| async move { finish(admin::leave(&api).await) });
    let force = call(Route::Force)
        .and(admitted(api.clone()))
        .and(warp::body::content_length_limit(64 << 10))
        .and(warp::body::json())
        .then(|api: Arc<Api>, request| async move {
            match body::from_json(request) {
                Ok(request) => finish(admin::force(&api, request).await),
                Err(refused) => refused.into_response(),
            }
        });
    let views = ring
        .or(dot)
        .unify()
        .or(local)
        .unify()
        .or(lookup)
        .unify()
        .or(events)
        .unify()
        .or(watch)
        .unify();
    let checks = health.or(ready).unify().or(metrics).unify().or(openapi).unify();
    let admin = init.or(leave).unify().or(force).unify();
    batch.or(views).unify().or(checks).unify().or(page).unify().or(admin).unify()
}

/// The path of this route with one of its methods; another method is told which there are.
fn at(route: Route) -> impl Filter<Extract = (), Error = Rejection> + Clone {
    let matches = move |full: FullPath, method: Method| async move {
        if !route.is_at(full.as_str()) {
            Err(warp::reject::not_found())
        } else if route.methods().contains(&method) {
            Ok(())
        } else {
            Err(warp::reject::custom(Refused::method(route)))
        }
    };
    warp::path::full().and(warp::method()).and_then(matches).untuple_one()
}

/// Lets administrators pass, see [`guard::admit`].
fn admitted(
    api: impl Filter<Extract = (Arc<Api>,), Error = Infallible> + Clone,
) -> impl Filter<Extract = (), Error = Rejection> + Clone {
    let admit = |api: Arc<Api>, remote: Remote, headers: HeaderMap| async move {
        guard::admit(&headers, remote.0, api.token.as_ref()).map_err(warp::reject::custom)
    };
    api.and(warp::ext::get::<Remote>())
        .and(warp::header::headers_cloned())
        .and_then(admit)
        .untuple_one()
}

fn finish(answer: Result<Response, Refused>) -> Response {
    answer.unwrap_or_else(Refused::into_response)
}

fn json(value: &impl serde::Serialize) -> Response {
    json_within(Vec::new(), value)
}

/// JSON that takes this memory until it is sent.
fn json_within(memory: Vec<Share>, value: &impl serde::Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(json) => text("application/json", body::held(json, memory)),
        Err(error) => kv::unexpected(&error).into_response(),
    }
}

fn text(content_type: &'static str, body: impl Into<Bytes>) -> Response {
    let mut response = Response::new(body.into().into());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Makes ids for requests that have none: the time, and a count from a random number on.
#[derive(Debug)]
struct RequestIds {
    start: u64,
    count: AtomicU64,
}

impl Default for RequestIds {
    fn default() -> Self {
        // The hasher's keys come from the operating system's source of random numbers.
        Self { start: RandomState::new().hash_one(0), count: AtomicU64::new(0) }
    }
}

impl RequestIds {
    fn next(&self) -> RequestId {
        let number = self.start.wrapping_add(self.count.fetch_add(1, Relaxed));
        RequestId::at(crate::wall_clock(), number)
    }
}
