//! The id of a request: it is in the answer, in a refusal's body, and in the log.

use std::fmt::Write;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use sky_api::{Code, Problem};
use warp::http::header::{CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue};
use warp::http::{Method, StatusCode};
use warp::reply::Response;

/// The header of both request and answer.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static(sky_api::header::REQUEST_ID);

/// The longest id that is taken from a client.
const LONGEST: usize = 128;

/// From here on a request is slow enough to be told of.
const SLOW: Duration = Duration::from_secs(1);

/// How many failed and slow requests are logged in a second. When a ring is in trouble there are
/// thousands, and one is like the other.
const LINES: u32 = 10;

/// Makes ids, and logs what is worth it.
#[derive(Debug)]
pub(super) struct Requests {
    start: u64,
    count: AtomicU64,
    began: Instant,
    /// The second of which lines are counted, from the start of the agent.
    second: AtomicU64,
    lines: AtomicU32,
}

impl Default for Requests {
    fn default() -> Self {
        Self {
            // The hasher's keys come from the operating system's source of random numbers.
            start: RandomState::new().hash_one(1),
            count: AtomicU64::new(0),
            began: Instant::now(),
            second: AtomicU64::new(0),
            lines: AtomicU32::new(0),
        }
    }
}

impl Requests {
    /// The id that the client gave, if it is fit for a log, else a new one.
    pub(super) fn id(&self, headers: &HeaderMap) -> HeaderValue {
        if let Some(given) = headers.get(&REQUEST_ID).filter(|given| is_fit(given.as_bytes())) {
            return given.clone();
        }
        let number = self.start.wrapping_add(self.count.fetch_add(1, Relaxed));
        let mut text = String::with_capacity(16);
        // Writing to a String cannot fail.
        let _ = write!(text, "{number:016x}");
        // Digits are always a header value.
        HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("none"))
    }

    /// Logs the answer to a request if it failed or was slow. Called within the request's span.
    pub(super) fn log(&self, method: &Method, path: &str, response: &Response, took: Duration) {
        let (status, took_ms) = (response.status().as_u16(), took.as_millis());
        let code = response.extensions().get::<Problem>().map(|problem| problem.code);
        // `/readyz` says with 503 that all is in order, but not yet.
        let failed = response.status().is_server_error() && code.is_some();
        if !failed && took < SLOW {
            tracing::debug!(%method, path, status, took_ms, ?code, "A request was answered.");
        } else if !self.may_log() {
            tracing::debug!(%method, path, status, took_ms, ?code, "A request failed or was slow.");
        } else if !failed {
            tracing::info!(%method, path, status, took_ms, ?code, "A request was slow.");
        } else if code == Some(Code::Internal) {
            tracing::error!(%method, path, status, took_ms, ?code, "A request failed.");
        } else {
            tracing::warn!(%method, path, status, took_ms, ?code, "A request failed.");
        }
    }

    fn may_log(&self) -> bool {
        let second = self.began.elapsed().as_secs();
        if self.second.swap(second, Relaxed) != second {
            self.lines.store(0, Relaxed);
        }
        self.lines.fetch_add(1, Relaxed) < LINES
    }
}

fn is_fit(given: &[u8]) -> bool {
    let fit = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:/+=@~".contains(byte);
    (1..=LONGEST).contains(&given.len()) && given.iter().all(fit)
}

/// Puts the id into the answer, and writes the body of a refusal with it.
pub(super) fn finish(response: &mut Response, id: HeaderValue) {
    if let Some(mut problem) = response.extensions_mut().remove::<Problem>() {
        problem.request_id = id.to_str().ok().map(str::to_owned);
        *response.body_mut() = serde_json::to_vec(&problem).unwrap_or_default().into();
        // That of the empty body, if somebody set it.
        response.headers_mut().remove(CONTENT_LENGTH);
    }
    response.headers_mut().insert(REQUEST_ID, id);
}

/// A refusal whose body [`finish`] writes.
pub(super) fn unfinished(problem: Problem) -> Response {
    let mut response = Response::default();
    *response.status_mut() = StatusCode::from_u16(problem.status).unwrap_or_default();
    response.extensions_mut().insert(problem);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_clients_are_kept_if_they_are_fit_for_a_log() {
        let requests = Requests::default();
        let id = |given: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, HeaderValue::from_bytes(given).unwrap());
            requests.id(&headers)
        };
        let longest = "x".repeat(LONGEST);
        for fit in ["1", "018f-7a/b+c=d@e.f_g:h~", &longest] {
            assert_eq!(id(fit.as_bytes()), fit);
        }
        let longer = "x".repeat(LONGEST + 1);
        for unfit in ["", "a b", "a\"b", "\u{e9}", "a;b", "a\tb", &longer] {
            let made = id(unfit.as_bytes());
            assert!(made != unfit && made.len() == 16, "{unfit}: {made:?}");
        }
        assert_ne!(requests.id(&HeaderMap::new()), requests.id(&HeaderMap::new()));
    }

    #[test]
    fn a_flood_of_failures_is_not_a_flood_of_lines() {
        let requests = Requests::default();
        let logged = (0..1000).filter(|_| requests.may_log()).count();
        let seconds = 1 + requests.began.elapsed().as_secs() as usize;
        assert!((1..=seconds * LINES as usize).contains(&logged), "{logged} in {seconds} seconds");
    }
}
