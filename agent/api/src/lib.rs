//! What an agent's HTTP interface and its callers share: paths, headers, JSON bodies, error codes.
//!
//! The reports of the ring are [`sky_chord::View`]s, sent as JSON as they are.

pub mod batch;
pub mod cursor;
pub mod watch;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sky_chord::{Id, NodeId, Notice, Peer, Transfer, View};

/// The default port of an agent, for HTTP and peers alike.
pub const DEFAULT_PORT: u16 = 4321;

/// The longest key, in bytes of UTF-8.
pub const MAX_KEY_BYTES: usize = 1024;

/// The most bytes that the values of a ring may be allowed to have.
pub const MAX_VALUE_BYTES: usize = 64 << 20;

/// The longest time that a value can be kept for, in seconds: nine digits, or 31 years.
pub const MAX_TTL_S: u64 = 999_999_999;

/// Paths of an agent.
pub mod path {
    /// Keys: `/kv` lists, `/kv/{key}` is one of them.
    pub const KV: &str = "/kv";
    /// `POST` with [`super::batch::BatchRequest`]: several operations on keys.
    pub const BATCH: &str = "/kv:batch";
    /// This agent's view; with `?scope=all` everyone's ([`super::RingReport`]).
    pub const RING: &str = "/ring";
    /// The ring as a Graphviz digraph.
    pub const RING_DOT: &str = "/ring.dot";
    /// `/lookup/{key}`: [`super::LookupReport`].
    pub const LOOKUP: &str = "/lookup";
    /// Server-sent events.
    pub const EVENTS: &str = "/events";
    /// Server-sent events about keys ([`super::watch::WatchReport`]): `/watch` about those of a prefix,
    /// `/watch/{key}` about one.
    pub const WATCH: &str = "/watch";
    /// 200 while the process works.
    pub const HEALTHZ: &str = "/healthz";
    /// 200 when the agent can serve clients, else 503 with the reason.
    pub const READYZ: &str = "/readyz";
    /// This interface as an OpenAPI document.
    pub const OPENAPI: &str = "/openapi.json";
    /// Prometheus text.
    pub const METRICS: &str = "/metrics";
    /// Keys held by this agent itself, with their marks ([`super::LocalKeys`]).
    pub const LOCAL: &str = "/local";
    /// `POST` with [`super::InitRequest`]: found a ring. Needs the token.
    pub const INIT: &str = "/admin/init";
    /// `POST`: hand over all data and leave the ring. Needs the token.
    pub const LEAVE: &str = "/admin/leave";
    /// `POST` with [`super::ForceRequest`]: the survivors of a range whose majority is gone for good go on
    /// without it. May lose what was acknowledged. Needs the token.
    pub const FORCE: &str = "/admin/force";
}

/// Names of headers.
pub mod header {
    /// Makes a retry of a change safe.
    pub const IDEMPOTENCY_KEY: &str = "idempotency-key";
    /// `Bearer` and the deployment's token, for administrative calls.
    pub const AUTHORIZATION: &str = "authorization";
    /// The id of a request: the client's if it sends one, else the agent's; in every answer.
    pub const REQUEST_ID: &str = "x-request-id";
    /// How many seconds a value is kept; on an answer, how many of them are left (as in RFC 8030, 5.2).
    pub const TTL: &str = "ttl";
    /// `any` on an answer that one copy gave (`?consistency=any`): it may be old.
    pub const CONSISTENCY: &str = "sky-consistency";
}

/// The stable codes of errors, in [`Problem::code`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// 400: the request cannot be understood.
    BadRequest,
    /// 400: not a key: empty, longer than 1 KiB, `.`, `..`, or not UTF-8.
    InvalidKey,
    /// 401: the call needs the deployment's token or the ring secret.
    Unauthorized,
    /// 403: the `Host` or `Origin` header is not one this agent answers to.
    ForbiddenOrigin,
    /// 404: no such key.
    NotFound,
    /// 404: no such path.
    NoSuchPath,
    /// 405: the path exists, the method does not.
    MethodNotAllowed,
    /// 409: the key exists already.
    AlreadyExists,
    /// 409: the agent belongs to another ring.
    OtherRing,
    /// 411: the body needs a length.
    LengthRequired,
    /// 412: the condition of `If-Match` does not hold.
    PreconditionFailed,
    /// 413: the value is larger than the agent's limit.
    TooLarge,
    /// 415: the body has a type that is not understood here.
    UnsupportedMediaType,
    /// 422: there are more keys than one watch can tell of.
    TooManyKeys,
    /// 503: no majority of the key's members can be reached, or the agent is not in a ring yet.
    Unavailable,
    /// 503: too many requests are waiting.
    Overloaded,
    /// 504: the change may or may not be applied, now or later.
    MaybeApplied,
    /// 507: the disks are full.
    DiskFull,
    /// 500: a fault of the agent.
    Internal,
}

impl Code {
    /// All of them.
    pub const ALL: [Self; 19] = [
        Self::BadRequest,
        Self::InvalidKey,
        Self::Unauthorized,
        Self::ForbiddenOrigin,
        Self::NotFound,
        Self::NoSuchPath,
        Self::MethodNotAllowed,
        Self::AlreadyExists,
        Self::OtherRing,
        Self::LengthRequired,
        Self::PreconditionFailed,
        Self::TooLarge,
        Self::UnsupportedMediaType,
        Self::TooManyKeys,
        Self::Internal,
        Self::Unavailable,
        Self::Overloaded,
        Self::MaybeApplied,
        Self::DiskFull,
    ];

    /// The HTTP status that goes with it.
    pub const fn status(self) -> u16 {
        match self {
            Self::BadRequest | Self::InvalidKey => 400,
            Self::Unauthorized => 401,
            Self::ForbiddenOrigin => 403,
            Self::NotFound | Self::NoSuchPath => 404,
            Self::MethodNotAllowed => 405,
            Self::AlreadyExists | Self::OtherRing => 409,
            Self::LengthRequired => 411,
            Self::PreconditionFailed => 412,
            Self::TooLarge => 413,
            Self::UnsupportedMediaType => 415,
            Self::TooManyKeys => 422,
            Self::Internal => 500,
            Self::Unavailable | Self::Overloaded => 503,
            Self::MaybeApplied => 504,
            Self::DiskFull => 507,
        }
    }

    /// What happened, in a few words: [`Problem::title`].
    pub const fn title(self) -> &'static str {
        match self {
            Self::BadRequest => "The request is not understood",
            Self::InvalidKey => "Not a key",
            Self::Unauthorized => "Not authorized",
            Self::ForbiddenOrigin => "Not from there",
            Self::NotFound => "No such key",
            Self::NoSuchPath => "No such path",
            Self::MethodNotAllowed => "No such method here",
            Self::AlreadyExists => "The key exists already",
            Self::OtherRing => "Another ring",
            Self::LengthRequired => "The length is missing",
            Self::PreconditionFailed => "The condition does not hold",
            Self::TooLarge => "Too large",
            Self::UnsupportedMediaType => "Not this media type",
            Self::TooManyKeys => "Too many keys",
            Self::Unavailable => "Not available now",
            Self::Overloaded => "Too many requests are waiting",
            Self::MaybeApplied => "Perhaps applied",
            Self::DiskFull => "The disks are full",
            Self::Internal => "A fault of the agent",
        }
    }
}

/// The body of every error: `application/problem+json` (RFC 9457).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Problem {
    /// A stable code for programs.
    pub code: Code,
    /// The HTTP status.
    pub status: u16,
    /// What happened, in a few words.
    pub title: String,
    /// What happened, to what, and why.
    pub detail: String,
    /// What to do next.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub hint: Option<String>,
    /// The id of the request, as in the header `X-Request-Id` and in the agent's log. The results of a
    /// batch have none of their own.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub request_id: Option<String>,
}

/// `GET /ring`: what this agent sees, and the data that it is moving.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OwnReport {
    /// Its view.
    #[serde(flatten)]
    pub view: View,
    /// Data that it is bringing to members of ranges, and what it brought in the last half minute.
    #[serde(default)]
    pub transfers: Vec<Transfer>,
}

/// `GET /ring?scope=all`: every known member and its view, if it answered in time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RingReport {
    /// The nodes, by position.
    pub nodes: Vec<NodeReport>,
}

/// One node of a [`RingReport`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NodeReport {
    /// Who.
    pub peer: Peer,
    /// What it reports; none if it did not answer.
    pub view: Option<View>,
}

/// `GET /lookup/{key}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LookupReport {
    /// The key.
    pub key: String,
    /// The point it hashes to.
    pub hash: String,
    /// The nodes asked, in order.
    pub hops: Vec<HopReport>,
    /// The first node at or after the point.
    pub owner: Peer,
    /// The members of the key's range, owner first, if known.
    pub members: Vec<Peer>,
    /// The epoch of the range, if known.
    pub epoch: Option<u64>,
}

/// One hop of a [`LookupReport`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HopReport {
    /// Who was asked.
    pub peer: Peer,
    /// How long its answer took, in microseconds.
    pub micros: u64,
    /// Whether it answered.
    pub answered: bool,
}

/// `GET /kv?prefix=&limit=&cursor=`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KeyList {
    /// Keys in the order of their points.
    pub keys: Vec<KeyEntry>,
    /// Pass it as `cursor` for the next page; none at the end.
    pub cursor: Option<String>,
}

/// One key of a [`KeyList`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KeyEntry {
    /// The key.
    pub key: String,
    /// The size of its value in bytes.
    pub size: u32,
}

/// `GET /local?limit=&cursor=`: keys held by the agent itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LocalKeys {
    /// Keys in the order of their points.
    pub keys: Vec<LocalKeyEntry>,
    /// Pass it as `cursor` for the next page; none at the end.
    pub cursor: Option<String>,
}

/// One key of [`LocalKeys`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LocalKeyEntry {
    /// The key.
    pub key: String,
    /// The point it hashes to.
    pub hash: String,
    /// The size of its value in bytes.
    pub size: u32,
    /// Its ETag.
    pub etag: String,
    /// A digest of media type and value, 16 hexadecimal digits.
    pub digest: String,
    /// What is left of its time in seconds, rounded up, as this node counts; left out if it is kept for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u64>,
    /// `owned`, or `replica`.
    pub mark: Mark,
}

/// Whether a node owns a key or holds a replica of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mark {
    /// The node is the first at or after the key's point.
    Owned,
    /// Another node is.
    Replica,
}

/// `POST /admin/init`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InitRequest {
    /// The random id of the new ring, 32 hexadecimal digits. The same id again changes nothing.
    #[schemars(regex(pattern = r"^[0-9a-fA-F]{32}$"))]
    pub ring: String,
}

/// `POST /admin/force`; the answer is the [`sky_chord::Config`] that the survivors go on with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ForceRequest {
    /// The last point of the range, which names it.
    pub hi: Id,
    /// Its latest epoch.
    pub epoch: u64,
    /// Everyone who still answers and holds data of it.
    pub survivors: Vec<NodeId>,
    /// Who wants it, for the log.
    pub by: String,
}

/// `GET /readyz`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Readiness {
    /// Whether clients can be served.
    pub ready: bool,
    /// Why, or why not yet.
    pub reason: String,
}

/// The data of one server-sent event of `GET /events`: the fields of the notice, with its name as
/// `event`, and when it was given. The event's id is the place to go on from: as `Last-Event-ID`, or
/// `?after=`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct EventReport {
    /// Milliseconds since 1 January 1970, UTC.
    pub at_ms: u64,
    /// What happened.
    #[serde(flatten)]
    pub notice: Notice,
}

/// The data of an event that stands for others: the client has missed some, and should read the whole
/// state anew (`GET /ring`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MissedReport {
    /// Milliseconds since 1 January 1970, UTC.
    pub at_ms: u64,
    /// Always `missed`.
    pub event: MissedEvent,
    /// How many; none if nobody knows.
    pub count: Option<u64>,
    /// Why.
    pub why: MissedWhy,
}

impl MissedReport {
    /// Events were missed.
    pub const fn new(at_ms: u64, count: Option<u64>, why: MissedWhy) -> Self {
        Self { at_ms, event: MissedEvent::Missed, count, why }
    }
}

/// The name of a [`MissedReport`] among the events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MissedEvent {
    /// Events were missed.
    Missed,
}

/// Why events were missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MissedWhy {
    /// They are not kept any more: the client was away, or slow, for too long.
    NotKept,
    /// The place is one of another start of the agent, of another agent, or of something else. What is there
    /// follows.
    OtherStart,
}
