//! HTTP calls to agents.

use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use reqwest::header::{
    AUTHORIZATION, CONTENT_TYPE, DATE, ETAG, HeaderMap, HeaderName, HeaderValue,
};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::de::DeserializeOwned;
use sky_api::{
    ForceRequest, InitRequest, KeyList, LocalKeyEntry, LocalKeys, MAX_VALUE_BYTES, OwnReport,
    Problem, path,
};
use sky_chord::{Config, View};
use tokio::time::timeout;

use crate::error::{During, Error, Result};

/// How long an agent may take to accept a connection.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// How long an agent may take to report on itself: it only has to read its memory.
const REPORT_WITHIN: Duration = Duration::from_secs(3);
/// How long a request for a key may take, if no large value is on its way: an agent answers within a few
/// seconds, whatever happens.
const KEY_WITHIN: Duration = Duration::from_secs(15);
/// How many keys are asked for at once.
const PAGE: usize = 1000;

/// Talks to agents, with the deployment's token if it has one.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
}

/// The header that agents want of administrators, and some of every client.
pub fn bearer(token: Option<&str>) -> Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    if let Some(token) = token {
        let value = HeaderValue::from_str(&format!("Bearer {token}"));
        let mut value = value.during(|| "the token of the ring cannot be sent")?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    Ok(headers)
}

/// What can be watched.
#[derive(Debug, Clone, Copy)]
pub enum Watched<'a> {
    /// One key.
    Key(&'a str),
    /// All keys that begin so.
    Prefix(&'a str),
}
const TTL: HeaderName = HeaderName::from_static(sky_api::header::TTL);

/// What became of a request for a key.
pub struct KeyAnswer {
    /// The HTTP status.
    pub status: StatusCode,
    /// The version of the value, if there is one.
    pub etag: Option<String>,
    /// The media type of the body.
    pub content_type: Option<String>,
    /// How many seconds are left of the time that the value is kept; none if it is for ever.
    pub ttl: Option<u64>,
    /// The value, or the problem as JSON.
    pub body: Bytes,
}

impl Client {
    /// A client with the token of a deployment.
    pub fn new(token: Option<String>) -> Result<Self> {
        let http = reqwest::Client::builder()
            .default_headers(bearer(token.as_deref())?)
            .connect_timeout(CONNECT_WITHIN)
            // Agents are never behind a proxy.
            .no_proxy()
            .build()
            .during(|| "cannot make an HTTP client")?;
        Ok(Self { http })
    }

    /// What an agent sees.
    pub async fn view(&self, agent: &str) -> Result<View> {
        Ok(self.report(agent).await?.view)
    }

    /// What an agent sees, and the data that it moves.
    pub async fn report(&self, agent: &str) -> Result<OwnReport> {
        let request = self.http.get(format!("{agent}{}", path::RING)).timeout(REPORT_WITHIN);
        json(request, agent).await
    }

    /// The clock of an agent's machine, to the second, and how long the answer took.
    pub async fn clock(&self, agent: &str) -> Result<(SystemTime, Duration)> {
        let begun = Instant::now();
        let request = self.http.get(format!("{agent}{}", path::HEALTHZ)).timeout(REPORT_WITHIN);
        let answer = request.send().await.during(|| format!("{agent} does not answer"))?;
        let date = answer.headers().get(DATE).and_then(|date| date.to_str().ok());
        let clock = date.and_then(crate::moment::http);
        let clock = clock.ok_or_else(|| Error::new(format!("{agent} does not tell its time")))?;
        Ok((clock, begun.elapsed()))
    }

    /// Founds the ring, or does nothing if it is founded with this id.
    pub async fn init(&self, agent: &str, ring: &str) -> Result<()> {
        let body = InitRequest { ring: ring.to_owned() };
        send(self.admin(agent, path::INIT).json(&body), agent).await.map(drop)
    }

    /// Asks an agent to hand over its data and leave the ring. It goes on after the answer.
    pub async fn leave(&self, agent: &str) -> Result<()> {
        send(self.admin(agent, path::LEAVE), agent).await.map(drop)
    }

    /// Lets the survivors of a range go on; the agent is one of them.
    pub async fn force(&self, agent: &str, request: &ForceRequest) -> Result<Config> {
        json(self.admin(agent, path::FORCE).json(request), agent).await
    }

    /// All keys that an agent holds itself, in order of their points.
    pub async fn local_keys(&self, agent: &str) -> Result<Vec<LocalKeyEntry>> {
        let mut keys = Vec::new();
        let mut cursor: Option<String> = None;
        loop {
            let page = self.local_page(agent, cursor.as_deref(), PAGE).await?;
            keys.extend(page.keys);
            match page.cursor {
                Some(next) => cursor = Some(next),
                None => return Ok(keys),
            }
        }
    }

    /// A page of the keys of the ring that begin with `prefix`, in order of their points.
    pub async fn keys(&self, agent: &str, prefix: &str, cursor: Option<&str>) -> Result<KeyList> {
        let url =
            format!("{agent}{}?limit={PAGE}&prefix={}{}", path::KV, encode(prefix), after(cursor));
        json(self.http.get(url).timeout(KEY_WITHIN), agent).await
    }

    /// One request for a key. Every answer of the agent is an answer; only silence is an error.
    pub async fn key(
        &self,
        agent: &str,
        method: Method,
        key: &str,
        value: Option<Bytes>,
        ttl: Option<u64>,
    ) -> Result<KeyAnswer> {
        let within = key_within(value.as_ref().map_or(0, Bytes::len));
        let mut request = self.key_request(agent, method, key);
        if let Some(value) = value {
            request = request.body(value);
        }
        answer(with_ttl(request, ttl), agent, within).await
    }

    /// [`Self::key`] with the media type of the value.
    pub async fn typed_key(
        &self,
        agent: &str,
        method: Method,
        key: &str,
        value: Option<(&str, &Bytes)>,
        ttl: Option<u64>,
    ) -> Result<KeyAnswer> {
        let within = key_within(value.map_or(0, |(_, value)| value.len()));
        let mut request = self.key_request(agent, method, key);
        if let Some((content_type, value)) = value {
            request = request.header(CONTENT_TYPE, content_type).body(value.clone());
        }
        answer(with_ttl(request, ttl), agent, within).await
    }

    /// A page of all keys from a place on, as [`KeyList`] if it is a success.
    pub async fn key_page(
        &self,
        agent: &str,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<KeyAnswer> {
        let url = format!("{agent}{}?limit={limit}{}", path::KV, after(cursor));
        answer(self.http.get(url), agent, KEY_WITHIN).await
    }

    /// A page of the keys that an agent holds itself, from a place on.
    pub async fn local_page(
        &self,
        agent: &str,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<LocalKeys> {
        let url = format!("{agent}{}?limit={limit}{}", path::LOCAL, after(cursor));
        json(self.http.get(url).timeout(KEY_WITHIN), agent).await
    }

    /// What changes, as server-sent events, from the place on that the same agent told. The inner error is a
    /// refusal that another agent would give as well.
    pub async fn watch(
        &self,
        agent: &str,
        what: Watched<'_>,
        values: bool,
        place: Option<&str>,
    ) -> Result<Result<Response>> {
        let path = match what {
            Watched::Key(key) => format!("{}/{}?", path::WATCH, encode(key)),
            Watched::Prefix(prefix) => format!("{}?prefix={}&", path::WATCH, encode(prefix)),
        };
        let mut request = self.http.get(format!("{agent}{path}values={values}"));
        if let Some(place) = place {
            request = request.header("last-event-id", place);
        }
        let answer = timeout(KEY_WITHIN, request.send()).await;
        let failed = || format!("no answer from the agent at {agent}");
        let response = answer.map_err(|_| Error::new(failed()))?.during(failed)?;
        let status = response.status();
        if status.is_success() {
            return Ok(Ok(response));
        }
        let refusal = problem(agent, status, &response.bytes().await.unwrap_or_default());
        if status.is_client_error() { Ok(Err(refusal)) } else { Err(refusal) }
    }

    fn key_request(&self, agent: &str, method: Method, key: &str) -> RequestBuilder {
        let url = format!("{agent}{}/{}", path::KV, encode(key));
        self.http.request(method, url)
    }

    fn admin(&self, agent: &str, path: &str) -> RequestBuilder {
        self.http.post(format!("{agent}{path}")).timeout(KEY_WITHIN)
    }
}

/// The error that a body of `application/problem+json` describes.
pub fn problem(agent: &str, status: StatusCode, body: &[u8]) -> Error {
    match serde_json::from_slice::<Problem>(body) {
        Ok(problem) => {
            let error = Error::new(format!("the agent at {agent} refuses: {}", problem.detail));
            match problem.hint {
                Some(hint) => error.hint(hint),
                None => error,
            }
        }
        Err(_) => Error::new(format!("the agent at {agent} answers {status}"))
            .hint("is that a sky-agent, and of this version?"),
    }
}

/// A request to keep a value for so many seconds.
fn with_ttl(request: RequestBuilder, seconds: Option<u64>) -> RequestBuilder {
    match seconds {
        Some(seconds) => request.header(TTL, seconds),
        None => request,
    }
}

/// How long a request with a value of so many bytes may take, or the answer with one: to the agent, from
/// there to another one, and from that to the others.
fn key_within(bytes: usize) -> Duration {
    KEY_WITHIN + sky_chord::patience(bytes) * 3
}

/// The answer, which has to begin within this time.
async fn answer(request: RequestBuilder, agent: &str, within: Duration) -> Result<KeyAnswer> {
    let failed = || format!("no answer from the agent at {agent}");
    let late = |_| Error::new(failed());
    let response = timeout(within, request.send()).await.map_err(late)?.during(failed)?;
    let length = response.content_length().unwrap_or_default();
    let within = key_within(usize::try_from(length).unwrap_or_default().min(MAX_VALUE_BYTES));
    let header = |name| {
        let value = response.headers().get(name).and_then(|value| value.to_str().ok());
        value.map(str::to_owned)
    };
    Ok(KeyAnswer {
        status: response.status(),
        etag: header(ETAG),
        content_type: header(CONTENT_TYPE),
        ttl: header(TTL).and_then(|text| text.parse().ok()),
        body: timeout(within, response.bytes()).await.map_err(late)?.during(failed)?,
    })
}

async fn send(request: RequestBuilder, agent: &str) -> Result<Response> {
    let response =
        request.send().await.during(|| format!("no answer from the agent at {agent}"))?;
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let body = response.bytes().await.unwrap_or_default();
    Err(problem(agent, status, &body))
}

async fn json<T: DeserializeOwned>(request: RequestBuilder, agent: &str) -> Result<T> {
    let response = send(request, agent).await?;
    response.json().await.during(|| format!("the agent at {agent} answers something else"))
}

fn after(cursor: Option<&str>) -> String {
    cursor.map_or_else(String::new, |cursor| format!("&cursor={}", encode(cursor)))
}

/// Percent-encodes everything that could mean something in a URL.
fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'~' | b'.' => {
                encoded.push(char::from(byte));
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_a_url() {
        assert_eq!(encode("a/b c?d=é"), "a%2Fb%20c%3Fd%3D%C3%A9");
    }

    #[test]
    fn problems_keep_their_hint() {
        let body = br#"{"code":"unauthorized","status":401,"title":"t","detail":"no token","hint":"send it"}"#;
        let error = problem("http://a", StatusCode::UNAUTHORIZED, body);
        assert_eq!(error.to_string(), "the agent at http://a refuses: no token (send it)");
    }
}
