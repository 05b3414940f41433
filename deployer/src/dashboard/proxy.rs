//! Passes calls for keys on to a live agent.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use sky_api::{Code, Problem};
use sky_chord::Phase;
use warp::http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use warp::reply::Response;

use super::aggregate::{NodeReport, RingState, agent_client};
use super::routes::problem;

/// How long an agent may take to answer; agents themselves give up earlier.
const TIMEOUT: Duration = Duration::from_secs(15);
/// What a page cannot do with a value that is shown as a document: run scripts in our name.
const SANDBOX: &str = "default-src 'none'; sandbox";

/// The headers of a request that mean something to an agent.
const PASSED_ON: [HeaderName; 5] = [
    header::CONTENT_TYPE,
    header::IF_MATCH,
    header::IF_NONE_MATCH,
    HeaderName::from_static(sky_api::header::IDEMPOTENCY_KEY),
    HeaderName::from_static(sky_api::header::TTL),
];
/// The headers of an answer that mean something to a client.
const PASSED_BACK: [HeaderName; 5] = [
    header::CONTENT_TYPE,
    header::ETAG,
    header::LAST_MODIFIED,
    header::RETRY_AFTER,
    HeaderName::from_static(sky_api::header::TTL),
];

/// Whose answer it is: the agent's position.
const AGENT: HeaderName = HeaderName::from_static("sky-agent");

/// A client for agents that takes them in turn.
pub(super) struct Proxy {
    http: reqwest::Client,
    turn: AtomicUsize,
}

impl Proxy {
    pub(super) fn new(token: &str) -> Self {
        Self { http: agent_client(TIMEOUT, token), turn: AtomicUsize::new(0) }
    }

    /// The agents that can answer for the ring, another one first each time.
    pub(super) fn agents<'a>(&self, ring: &'a RingState) -> Vec<&'a NodeReport> {
        let can_answer = |node: &&NodeReport| node.answering && node.phase == Some(Phase::Up);
        let mut agents: Vec<&NodeReport> = ring.nodes.iter().filter(can_answer).collect();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let first = turn.checked_rem(agents.len()).unwrap_or(0);
        agents.rotate_left(first);
        agents
    }

    /// Has the call answered by the first of these agents. Another one is only tried while the call cannot have
    /// reached any, so that no change is made twice.
    pub(super) async fn pass_on(
        &self,
        agents: &[&NodeReport],
        method: &Method,
        target: &str,
        headers: &HeaderMap,
        body: Bytes,
    ) -> Result<Response, Problem> {
        for agent in agents {
            let url = format!("{}{target}", agent.url);
            let mut request = self.http.request(method.clone(), url);
            for name in PASSED_ON {
                if let Some(value) = headers.get(&name) {
                    request = request.header(name, value);
                }
            }
            let answer = match request.body(body.clone()).send().await {
                Ok(response) => answer(agent, response, method).await,
                Err(error) => Err(error),
            };
            match answer {
                Ok(response) => return Ok(response),
                Err(error) if error.is_connect() => {}
                Err(error) => return Err(no_answer(&agent.url, method, &error)),
            }
        }
        Err(problem(
            Code::Unavailable,
            "No agent",
            "no agent of the ring answers".to_owned(),
            Some("start the nodes that are down, or run `sky-deploy apply`"),
        ))
    }
}

/// The agent's answer as ours.
async fn answer(
    agent: &NodeReport,
    response: reqwest::Response,
    method: &Method,
) -> reqwest::Result<Response> {
    let status = response.status();
    let headers = response.headers().clone();
    let mut answer = Response::new(response.bytes().await?.into());
    *answer.status_mut() = status;
    for name in PASSED_BACK {
        if let Some(value) = headers.get(&name) {
            answer.headers_mut().insert(name, value.clone());
        }
    }
    if *method == Method::HEAD
        && let Some(length) = headers.get(header::CONTENT_LENGTH)
    {
        answer.headers_mut().insert(header::CONTENT_LENGTH, length.clone());
    }
    if let Ok(position) = HeaderValue::from_str(&agent.id.to_string()) {
        answer.headers_mut().insert(AGENT, position);
    }
    let sandbox = HeaderValue::from_static(SANDBOX);
    answer.headers_mut().insert(header::CONTENT_SECURITY_POLICY, sandbox);
    Ok(answer)
}

/// An agent took the call and did not answer it.
fn no_answer(agent: &str, method: &Method, error: &reqwest::Error) -> Problem {
    let why = if error.is_timeout() {
        format!("it took longer than {} s", TIMEOUT.as_secs())
    } else {
        "the connection broke".to_owned()
    };
    let detail = format!("the agent at {agent} did not answer: {why}");
    if method.is_safe() {
        problem(Code::Unavailable, "No answer", detail, Some("try again"))
    } else {
        let hint = "read the key to see, or repeat the call with the same Idempotency-Key";
        problem(Code::MaybeApplied, "Perhaps done", detail, Some(hint))
    }
}

/// The key in a path, decoded once and encoded again in the one way that no URL library touches.
pub(super) fn target_of_key(path: &str, encoded: &str) -> Result<String, Problem> {
    let key = decode(encoded).filter(|key| !matches!(key.as_str(), "" | "." | "..")).ok_or_else(
        || {
            problem(
                Code::InvalidKey,
                "Not a key",
                format!("`{encoded}` is not a key"),
                Some("a key is percent-encoded UTF-8, not empty, and neither `.` nor `..`"),
            )
        },
    )?;
    let mut target = format!("{path}/");
    for byte in key.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            target.push(char::from(byte));
        } else {
            target.push_str(&format!("%{byte:02X}"));
        }
    }
    Ok(target)
}

/// The path of a list of keys, with the query as it came.
pub(super) fn target_of_list(path: &str, query: &str) -> String {
    if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") }
}

/// A parameter of a query, decoded.
pub(super) fn parameter(query: &str, name: &str) -> Option<String> {
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let (_, value) = pairs.find(|(key, value)| *key == name && !value.is_empty())?;
    decode(value)
}

/// Percent-decodes; nothing if that is not UTF-8 or an escape is broken.
pub(super) fn decode(encoded: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(encoded.len());
    let mut rest = encoded.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(if byte == b'%' {
            let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
            (digit(rest.next())? * 16 + digit(rest.next())?) as u8
        } else {
            byte
        });
    }
    String::from_utf8(bytes).ok()
}
