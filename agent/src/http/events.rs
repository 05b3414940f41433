//! `/events`: the notices of this agent as server-sent events (HTML standard, section 9.2), to be resumed
//! after any of them.

use std::convert::Infallible;
use std::fmt::Display;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::{Stream, stream};
use serde::{Deserialize, Serialize};
use sky_api::{Code, EventReport, MissedReport, MissedWhy};
use tokio::sync::watch;
use warp::Reply;
use warp::http::header::HeaderMap;
use warp::reply::Response;
use warp::sse::{self, Event};

use super::Api;
use super::problem::Refused;
use crate::kept::Next;
use crate::notices::{Notices, Place};

/// How often something is sent, so that proxies and clients see that the stream lives.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// The parameters of `/events`.
#[derive(Debug, Deserialize)]
pub(super) struct EventsQuery {
    after: Option<String>,
    follow: Option<String>,
}

/// Where a reader wants to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Begin {
    /// With what happens from now on.
    Now,
    /// After the notice of this number.
    After(u64),
    /// With everything that is kept: the place is one of an earlier start of the agent, or none.
    OtherStart,
}

/// The notices from the place that the client names, or from now on, until the agent stops; with
/// `follow=false` only those that are there.
pub(super) fn stream(
    api: &Api,
    query: &EventsQuery,
    headers: &HeaderMap,
) -> Result<Response, Refused> {
    let follow = flag("follow", query.follow.as_deref(), true)?;
    let notices = api.handle.notices();
    let from = from(&notices, query.after.as_deref(), headers)?;
    let last = notices.last();
    let reader =
        Reader { stopping: api.stopping.clone(), follow, last, seen: 0, first: None, notices };
    let events = stream::unfold(reader.starting(from), |mut reader| async move {
        let event = reader.next().await?;
        Some((Ok::<_, Infallible>(event), reader))
    });
    Ok(answer(events))
}

/// A parameter that is `true` or `false`.
pub(super) fn flag(name: &str, text: Option<&str>, usual: bool) -> Result<bool, Refused> {
    match text {
        None => Ok(usual),
        Some("true") => Ok(true),
        Some("false") => Ok(false),
        Some(other) => {
            let detail = format!("`{name}={other}` is neither `true` nor `false`.");
            Err(Refused::new(Code::BadRequest, detail))
        }
    }
}

/// An answer that goes on with these events.
pub(super) fn answer(
    events: impl Stream<Item = Result<Event, Infallible>> + Send + Sync + 'static,
) -> Response {
    let mut response =
        sse::reply(sse::keep_alive().interval(KEEP_ALIVE).stream(events)).into_response();
    // nginx would hold events back until it has a buffer full of them.
    response.headers_mut().insert("x-accel-buffering", warp::http::HeaderValue::from_static("no"));
    response
}

/// The header is that of a browser that connects again to the same address, so it is newer than `after`.
fn from(notices: &Notices, after: Option<&str>, headers: &HeaderMap) -> Result<Begin, Refused> {
    let known = |place: Place| notices.number(place).map_or(Begin::OtherStart, Begin::After);
    let after = match after {
        None => Begin::Now,
        Some("0") => Begin::After(0),
        Some(text) => text.parse().map(known).map_err(|_| {
            Refused::new(Code::BadRequest, "`after` is not the id of an event of an agent.")
                .hint("Pass the id of the last event seen, or 0 for all that are kept.")
        })?,
    };
    let Some(last) = headers.get("last-event-id") else { return Ok(after) };
    // A refusal would make a browser give up.
    let place = last.to_str().ok().and_then(|text| text.parse().ok());
    Ok(place.map_or(Begin::OtherStart, known))
}

/// One reader of the notices.
struct Reader {
    notices: Arc<Notices>,
    last: watch::Receiver<u64>,
    stopping: watch::Receiver<bool>,
    follow: bool,
    /// The number of the last notice it has.
    seen: u64,
    /// What it is told before all else.
    first: Option<Event>,
}

impl Reader {
    fn starting(mut self, from: Begin) -> Self {
        let now = *self.last.borrow();
        self.seen = match from {
            Begin::Now => now,
            Begin::After(number) => number,
            Begin::OtherStart => 0,
        };
        let place = self.notices.place(self.seen);
        self.first = Some(match from {
            Begin::OtherStart => missed(place, None, MissedWhy::OtherStart),
            // An id alone is no event, but what a client comes back with that saw no other.
            Begin::Now | Begin::After(_) => Event::default().id(place.to_string()),
        });
        self
    }

    async fn next(&mut self) -> Option<Event> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        loop {
            self.last.mark_unchanged();
            match self.notices.after(self.seen) {
                Next::Item(number, (at, notice)) => {
                    self.seen = number;
                    let report = EventReport { at_ms: at_ms(at), notice };
                    return Some(event(self.notices.place(number), &report));
                }
                Next::Missed { count, up_to } => {
                    self.seen = up_to;
                    let place = self.notices.place(up_to);
                    return Some(missed(place, Some(count), MissedWhy::NotKept));
                }
                Next::Nothing if !self.follow => return None,
                Next::Nothing => {}
            }
            tokio::select! {
                changed = self.last.changed() => changed.ok()?,
                () = crate::until(&mut self.stopping) => return None,
            }
        }
    }
}

fn missed(place: Place, count: Option<u64>, why: MissedWhy) -> Event {
    event(place, &MissedReport::new(at_ms(SystemTime::now()), count, why))
}

fn at_ms(at: SystemTime) -> u64 {
    let since_epoch = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
}

/// An event, and the place to go on from.
pub(super) fn event(place: impl Display, report: &impl Serialize) -> Event {
    Event::default().id(place.to_string()).data(serde_json::to_string(report).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use sky_chord::Notice;

    use super::*;

    #[test]
    fn an_event_carries_its_place_and_time() {
        let place = Place { incarnation: 10, boot: 2, number: 7 };
        let report = EventReport { at_ms: 1234, notice: Notice::DiskFull { full: true } };
        let text = event(place, &report).to_string();
        let data = r#"data:{"at_ms":1234,"event":"disk_full","full":true}"#;
        assert_eq!(text, format!("{data}\nid:a.2.7\n\n"));
    }

    #[test]
    fn a_reader_begins_where_it_says() {
        let notices = Notices::new(10, 2);
        notices.push(Notice::Drained);
        let with = |last: Option<&'static str>, after| {
            let mut headers = HeaderMap::new();
            if let Some(last) = last {
                headers.insert("last-event-id", last.parse().unwrap());
            }
            from(&notices, after, &headers).ok()
        };
        assert_eq!(with(None, None), Some(Begin::Now));
        assert_eq!(with(None, Some("0")), Some(Begin::After(0)));
        assert_eq!(with(None, Some("a.2.1")), Some(Begin::After(1)));
        assert_eq!(with(None, Some("a.1.1")), Some(Begin::OtherStart));
        assert_eq!(with(None, Some("1")), None, "nobody gave that out");
        assert_eq!(with(Some("a.2.1"), Some("0")), Some(Begin::After(1)), "the header is newer");
        assert_eq!(with(Some("1"), None), Some(Begin::OtherStart));
    }
}
