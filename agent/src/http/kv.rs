//! `/kv`: the operations on keys. The hot path of the agent.

use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use futures_util::Stream;
use serde::Deserialize;
use sky_api::{Code, KeyEntry, KeyList, MAX_TTL_S};
use sky_chord::{
    Answer, Ballot, Condition, Consistency, Cursor, Id, Key, ListedKey, Operation, Reply, Request,
    RequestId, Ttl, Value, patience,
};
use warp::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use warp::http::{Method, StatusCode};
use warp::reply::Response;

use super::etag::Named;
use super::problem::Refused;
use super::route::Route;
use super::{Api, body, etag, json, key};

/// How long a client waits for one operation, if no large value is on its way.
const BUDGET: Duration = Duration::from_secs(5);

/// How many keys a list has, unless the client says otherwise; and at most.
const PAGE: (u32, u32) = (100, 1000);

/// The media type of values that came without one.
pub(super) const OCTETS: &str = "application/octet-stream";

/// The most bytes of a media type (RFC 6838 allows 127 for each half of its name).
const MAX_MEDIA_TYPE: usize = 512;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static(sky_api::header::IDEMPOTENCY_KEY);
const TTL: HeaderName = HeaderName::from_static(sky_api::header::TTL);
const CONSISTENCY: HeaderName = HeaderName::from_static(sky_api::header::CONSISTENCY);

/// The parameters that `/kv` and `/kv/{key}` understand.
#[derive(Debug, Deserialize)]
pub(super) struct Query {
    consistency: Option<String>,
    prefix: Option<String>,
    limit: Option<String>,
    cursor: Option<String>,
}

/// Answers a request for `/kv` (`raw_key` is none) or `/kv/{key}`.
pub(super) async fn answer<B: Buf>(
    api: &Api,
    method: Method,
    raw_key: Option<&str>,
    query: Query,
    headers: HeaderMap,
    body: impl Stream<Item = Result<B, warp::Error>>,
) -> Result<Response, Refused> {
    let Some(raw_key) = raw_key else {
        return match method {
            Method::GET | Method::HEAD => list(api, query).await,
            _ => Err(Refused::method(Route::Keys)),
        };
    };
    let key = key::decode(raw_key)?;
    match method {
        Method::GET | Method::HEAD => get(api, &method, key, &query, &headers).await,
        Method::PUT => {
            let condition = etag::condition(&headers)?;
            store(api, &method, key, condition, &headers, body).await
        }
        Method::POST => {
            if headers.contains_key(header::IF_MATCH) {
                let detail = "POST creates a key, If-Match needs one that exists.";
                return Err(Refused::new(Code::BadRequest, detail).hint("Use PUT to replace."));
            }
            store(api, &method, key, Condition::Absent, &headers, body).await
        }
        Method::DELETE => delete(api, key, &headers).await,
        _ => Err(Refused::method(Route::Key)),
    }
}

/// What came of an operation on one key, apart from a refusal.
#[derive(Debug)]
pub(super) enum Outcome {
    Found(Value, Ballot),
    NotModified(Ballot),
    Stored { version: Ballot, created: bool },
    Deleted,
}

impl Outcome {
    /// The status that says it.
    pub(super) const fn status(&self) -> StatusCode {
        match self {
            Self::Stored { created: true, .. } => StatusCode::CREATED,
            Self::Found(..) | Self::Stored { .. } => StatusCode::OK,
            Self::NotModified(_) => StatusCode::NOT_MODIFIED,
            Self::Deleted => StatusCode::NO_CONTENT,
        }
    }

    fn response(self) -> Response {
        let status = self.status();
        match self {
            Self::Found(value, version) => found(value, &version),
            Self::NotModified(version) | Self::Stored { version, .. } => {
                empty(status, Some(&version))
            }
            Self::Deleted => empty(status, None),
        }
    }
}

async fn get(
    api: &Api,
    method: &Method,
    key: Key,
    query: &Query,
    headers: &HeaderMap,
) -> Result<Response, Refused> {
    let consistency = consistency(query.consistency.as_deref())?;
    let wanted = etag::named(headers, &header::IF_MATCH, true)?;
    let known = etag::named(headers, &header::IF_NONE_MATCH, false)?;
    let mut outcome = read(api, key, consistency, wanted, known).await?;
    if let Outcome::Found(value, _) = &mut outcome
        && *method == Method::GET
    {
        api.hold(value)?;
    }
    let mut response = outcome.response();
    if consistency == Consistency::Any {
        response.headers_mut().insert(CONSISTENCY, HeaderValue::from_static("any"));
    }
    Ok(response)
}

/// How sure a client wants the answer to be.
pub(super) fn consistency(text: Option<&str>) -> Result<Consistency, Refused> {
    match text {
        None | Some("quorum") => Ok(Consistency::Quorum),
        Some("any") => Ok(Consistency::Any),
        Some(other) => {
            let detail = format!("The consistency `{other}` is neither `quorum` nor `any`.");
            Err(Refused::new(Code::BadRequest, detail))
        }
    }
}

/// Reads a key, if its version is one of those `wanted`, and its value unless that is `known`.
pub(super) async fn read(
    api: &Api,
    key: Key,
    consistency: Consistency,
    wanted: Option<Named>,
    known: Option<Named>,
) -> Result<Outcome, Refused> {
    let operation = Operation::Get { key: key.clone(), consistency };
    match operate(api, api.ids.next(), false, operation).await? {
        Answer::Found { version, .. } if wanted.is_some_and(|tags| !tags.contains(&version)) => {
            Err(condition_failed(&key, &Condition::Version(Vec::new())))
        }
        Answer::Found { version, .. } if known.is_some_and(|tags| tags.contains(&version)) => {
            Ok(Outcome::NotModified(version))
        }
        Answer::Found { value, version } => Ok(Outcome::Found(value, version)),
        Answer::Absent => Err(no_such_key(&key)),
        other => Err(unexpected(&other)),
    }
}

fn found(value: Value, version: &Ballot) -> Response {
    let content_type = match &*value.content_type {
        OCTETS => HeaderValue::from_static(OCTETS),
        other => HeaderValue::from_str(other).unwrap_or(HeaderValue::from_static(OCTETS)),
    };
    let mut response = Response::new(value.bytes.into());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, content_type);
    // A stored HTML page must not act with the rights of the agent's own page.
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    if let Some(ttl) = value.ttl {
        headers.insert(TTL, seconds_left(ttl).into());
    }
    insert_etag(headers, version);
    response
}

/// What is left of a value's time, in whole seconds, rounded up.
pub(super) fn seconds_left(ttl: Ttl) -> u64 {
    ttl.left_ms.div_ceil(1000)
}

/// How long a value is to be kept.
pub(super) fn ttl_of(seconds: u64) -> Result<Ttl, Refused> {
    if (1..=MAX_TTL_S).contains(&seconds) {
        return Ok(Ttl::new(Duration::from_secs(seconds)));
    }
    let detail = format!("A TTL is a whole number of seconds from 1 to {MAX_TTL_S}.");
    Err(Refused::new(Code::BadRequest, detail).hint("Leave it out to keep the value for ever."))
}

/// The `TTL` header of a request.
fn ttl(headers: &HeaderMap) -> Result<Option<Ttl>, Refused> {
    let Some(header) = headers.get(TTL) else { return Ok(None) };
    let is_number =
        |text: &&str| !text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit());
    let seconds = header.to_str().ok().filter(is_number).and_then(|text| text.parse().ok());
    ttl_of(seconds.unwrap_or(0)).map(Some)
}

async fn store<B: Buf>(
    api: &Api,
    method: &Method,
    key: Key,
    condition: Condition,
    headers: &HeaderMap,
    body: impl Stream<Item = Result<B, warp::Error>>,
) -> Result<Response, Refused> {
    let content_type = match headers.get(header::CONTENT_TYPE) {
        None => OCTETS,
        Some(value) => value.to_str().map_err(|_| {
            Refused::new(Code::BadRequest, "The Content-Type is not plain ASCII text.")
        })?,
    };
    if headers.contains_key(header::CONTENT_ENCODING) {
        let detail = "A Content-Encoding would not be stored with the value.";
        let hint = "Send the bytes without that header; name the format in Content-Type.";
        return Err(Refused::new(Code::UnsupportedMediaType, detail).hint(hint));
    }
    check_length(content_type)?;
    let ttl = ttl(headers)?;
    let id = request_id(api, method, &condition, idempotency_key(headers))?;
    let bytes = body::collect(headers, body, api.max_value_bytes, |it| api.room_for(it)).await?;
    let value = Value { content_type: content_type.into(), bytes, ttl };
    match write(api, id, key.clone(), value, condition).await {
        Err(refused) if *method == Method::POST && refused.is(Code::PreconditionFailed) => {
            let detail = format!("The key {} exists already.", quoted(&key));
            Err(Refused::new(Code::AlreadyExists, detail).hint("Use PUT to replace its value."))
        }
        outcome => Ok(outcome?.response()),
    }
}

/// A media type comes back as a header, and is kept beside the value.
pub(super) fn check_length(content_type: &str) -> Result<(), Refused> {
    if content_type.len() <= MAX_MEDIA_TYPE {
        return Ok(());
    }
    let detail = format!("The media type is longer than {MAX_MEDIA_TYPE} bytes.");
    Err(Refused::new(Code::BadRequest, detail))
}

/// Sets the value of a key.
pub(super) async fn write(
    api: &Api,
    (id, retry): (RequestId, bool),
    key: Key,
    value: Value,
    condition: Condition,
) -> Result<Outcome, Refused> {
    let operation = Operation::Put { key: key.clone(), value, condition: condition.clone() };
    match operate(api, id, retry, operation).await? {
        Answer::Stored { version, created } => Ok(Outcome::Stored { version, created }),
        Answer::ConditionFailed { .. } => Err(condition_failed(&key, &condition)),
        other => Err(unexpected(&other)),
    }
}

async fn delete(api: &Api, key: Key, headers: &HeaderMap) -> Result<Response, Refused> {
    let condition = etag::condition(headers)?;
    let id = request_id(api, &Method::DELETE, &condition, idempotency_key(headers))?;
    remove(api, id, key, condition).await.map(Outcome::response)
}

/// Deletes a key.
pub(super) async fn remove(
    api: &Api,
    (id, retry): (RequestId, bool),
    key: Key,
    condition: Condition,
) -> Result<Outcome, Refused> {
    if condition == Condition::Absent {
        let detail = "A key that must not exist cannot be deleted.";
        return Err(Refused::new(Code::BadRequest, detail).hint("Leave out If-None-Match."));
    }
    let operation = Operation::Delete { key: key.clone(), condition: condition.clone() };
    match operate(api, id, retry, operation).await? {
        Answer::Deleted => Ok(Outcome::Deleted),
        Answer::Absent | Answer::ConditionFailed { .. } if condition == Condition::Always => {
            Err(no_such_key(&key))
        }
        Answer::Absent | Answer::ConditionFailed { .. } => Err(condition_failed(&key, &condition)),
        other => Err(unexpected(&other)),
    }
}

/// A page of keys. A page of the protocol may be short, at the end of a range or where few names
/// have the prefix; they are put together as long as there is time.
async fn list(api: &Api, query: Query) -> Result<Response, Refused> {
    let limit = page_size(query.limit.as_deref(), PAGE)?;
    let start = query.cursor.as_deref().map(key::read_cursor).transpose()?;
    let mut next = start.clone();
    let prefix = query.prefix.unwrap_or_default().into();
    let started = Instant::now();
    let mut keys: Vec<KeyEntry> = Vec::new();
    loop {
        let left = limit - u32::try_from(keys.len()).unwrap_or(limit);
        let operation = Operation::List {
            after: next.clone(),
            prefix: std::sync::Arc::clone(&prefix),
            limit: left,
        };
        let (page, after) = match operate(api, api.ids.next(), false, operation).await {
            Ok(Answer::Listed { keys, next }) => (keys, next),
            Ok(other) => return Err(unexpected(&other)),
            // What was gone through so far is good; who asks on hears of the trouble then.
            Err(_) if next != start => break,
            Err(refused) => return Err(refused),
        };
        keys.extend(page.into_iter().map(entry));
        next = after.filter(|cursor| *cursor != Cursor::AfterPoint(Id::MAX));
        if next.is_none() || keys.len() >= limit as usize || started.elapsed() > BUDGET / 2 {
            break;
        }
    }
    Ok(json(&KeyList { keys, cursor: next.as_ref().map(sky_api::cursor::text) }))
}

fn entry(listed: ListedKey) -> KeyEntry {
    KeyEntry { key: listed.key.name().to_owned(), size: listed.size }
}

/// The `limit` parameter; `(usual, most)` bound it.
pub(super) fn page_size(limit: Option<&str>, (usual, most): (u32, u32)) -> Result<u32, Refused> {
    match limit.map(str::parse) {
        None => Ok(usual),
        Some(Ok(limit)) if (1..=most).contains(&limit) => Ok(limit),
        Some(_) => {
            let detail = format!("The limit is not a number from 1 to {most}.");
            Err(Refused::new(Code::BadRequest, detail))
        }
    }
}

fn idempotency_key(headers: &HeaderMap) -> Option<&[u8]> {
    headers.get(IDEMPOTENCY_KEY).map(HeaderValue::as_bytes)
}

/// The id of a change over all its retries, and whether it may be one: from what the client gave, else a
/// new one that is never sent again.
pub(super) fn request_id(
    api: &Api,
    method: &Method,
    condition: &Condition,
    given: Option<&[u8]>,
) -> Result<(RequestId, bool), Refused> {
    let Some(given) = given else { return Ok((api.ids.next(), false)) };
    if !(1..=255).contains(&given.len()) {
        let detail = "The Idempotency-Key is empty or longer than 255 bytes.";
        return Err(Refused::new(Code::BadRequest, detail).hint("A random UUID is a good one."));
    }
    // Another kind of change under the same text is another request.
    let kind = format!("{method} {condition:?} ");
    Ok((hashed(&[kind.as_bytes(), given].concat()), true))
}

/// The id of a change that comes once more in one batch, as this one of those that are alike.
pub(super) fn repeated(id: RequestId, number: u32) -> RequestId {
    hashed(&[&id.0.to_be_bytes()[..], &number.to_be_bytes()].concat())
}

fn hashed(text: &[u8]) -> RequestId {
    let hash = Id::hash(text);
    RequestId::given(
        hash.as_bytes().iter().take(16).fold(0, |id, byte| id << 8 | u128::from(*byte)),
    )
}

async fn operate(
    api: &Api,
    id: RequestId,
    retry: bool,
    operation: Operation,
) -> Result<Answer, Refused> {
    let started = Instant::now();
    // To the owner of the key, and from there to the other members; or back.
    let large = match &operation {
        Operation::Put { value, .. } => patience(value.bytes.len()) * 2,
        Operation::Get { .. } => api.read_patience,
        _ => Duration::ZERO,
    };
    let request = Request::Operate { id, retry, operation, budget: BUDGET + large };
    let reply = api.ask(request).await;
    api.handle.record(started.elapsed());
    match reply? {
        Reply::Operated(outcome) => Ok(outcome?),
        other => Err(unexpected(&other)),
    }
}

/// An answer that does not belong to the question.
pub(super) fn unexpected(answer: &impl std::fmt::Debug) -> Refused {
    tracing::error!(?answer, "the node gave an answer that does not belong to the question");
    Refused::new(Code::Internal, "The agent misunderstood itself.")
        .hint("This is a bug: please report it with the agent's log.")
}

fn no_such_key(key: &Key) -> Refused {
    Refused::new(Code::NotFound, format!("There is no key {}.", quoted(key)))
}

fn condition_failed(key: &Key, condition: &Condition) -> Refused {
    let key = quoted(key);
    let (detail, hint) = match condition {
        Condition::Always | Condition::Exists => (
            format!("There is no key {key}."),
            "Create it with POST, or with PUT without If-Match.",
        ),
        Condition::Absent => (
            format!("The key {key} exists already."),
            "Replace its value with PUT, without If-None-Match.",
        ),
        Condition::Version(_) => (
            format!("The key {key} has another version by now, or does not exist any more."),
            "Read the key again and decide anew.",
        ),
    };
    Refused::new(Code::PreconditionFailed, detail).hint(hint)
}

/// A key for a sentence: cut short, control characters made visible.
fn quoted(key: &Key) -> String {
    let name = key.name();
    let short: String = name.chars().take(80).collect();
    let dots = if short.len() < name.len() { "…" } else { "" };
    format!("`{}{dots}`", short.escape_debug())
}

fn empty(status: StatusCode, version: Option<&Ballot>) -> Response {
    let mut response = Response::new(Bytes::new().into());
    *response.status_mut() = status;
    if let Some(version) = version {
        insert_etag(response.headers_mut(), version);
    }
    response
}

fn insert_etag(headers: &mut HeaderMap, version: &Ballot) {
    // Made of quotes, digits and dots: always a header value.
    if let Ok(tag) = HeaderValue::try_from(etag::text(version)) {
        headers.insert(header::ETAG, tag);
    }
}
