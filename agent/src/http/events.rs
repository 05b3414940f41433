//! `/events`: the notices of this agent as server-sent events (HTML standard, section 9.2).

use std::convert::Infallible;
use std::time::{Duration, UNIX_EPOCH};

use futures_util::stream;
use sky_api::EventReport;
use tokio::sync::broadcast::error::RecvError;
use warp::Reply;
use warp::reply::Response;
use warp::sse::{self, Event};

use super::Api;
use crate::driver::Numbered;

/// How often something is sent, so that proxies and clients see that the stream lives.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// All notices from now on; ends when the agent stops. A client that cannot follow misses some, and
/// sees that by the ids.
pub(super) fn stream(api: &Api) -> Response {
    let state = (api.handle.notices(), api.stopping.clone());
    let events = stream::unfold(state, |(mut notices, mut stopping)| async move {
        let notice = tokio::select! {
            notice = notices.recv() => notice,
            _ = stopping.wait_for(|stopping| *stopping) => return None,
        };
        let event = match notice {
            Ok(notice) => event(notice),
            Err(RecvError::Lagged(missed)) => Event::default().comment(format!("{missed} missed")),
            Err(RecvError::Closed) => return None,
        };
        Some((Ok::<_, Infallible>(event), (notices, stopping)))
    });
    let mut response =
        sse::reply(sse::keep_alive().interval(KEEP_ALIVE).stream(events)).into_response();
    // nginx would hold events back until it has a buffer full of them.
    response.headers_mut().insert("x-accel-buffering", warp::http::HeaderValue::from_static("no"));
    response
}

fn event((number, at, notice): Numbered) -> Event {
    let since_epoch = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let at_ms = u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX);
    let data = serde_json::to_string(&EventReport { at_ms, notice }).unwrap_or_default();
    Event::default().id(number.to_string()).data(data)
}

#[cfg(test)]
mod tests {
    use sky_chord::Notice;

    use super::*;

    #[test]
    fn an_event_carries_its_number_and_time() {
        let at = UNIX_EPOCH + Duration::from_millis(1234);
        let text = event((7, at, Notice::DiskFull { full: true })).to_string();
        let data = r#"data:{"at_ms":1234,"event":"disk_full","full":true}"#;
        assert_eq!(text, format!("{data}\nid:7\n\n"));
    }
}
