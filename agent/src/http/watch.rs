//! `/watch` and `/watch/{key}`: changes of keys as server-sent events, to be resumed after any of them at the
//! agent that told them. Elsewhere, and after too long a time, everything is told anew.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream;
use serde::Deserialize;
use sky_api::watch::WatchReport;
use sky_api::{Code, MAX_KEY_BYTES, MissedWhy};
use sky_chord::{Reply, Request, Subject, WATCHED_KEYS_MAX, WatchEnd};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use warp::http::Method;
use warp::http::header::HeaderMap;
use warp::reply::Response;
use warp::sse;

use super::problem::Refused;
use super::{Api, batch, etag, events, key, kv};
use crate::kept::Next;
use crate::watches::{Event, Feed, ROOM, WatchPlace, Wish};

/// How long the first event may take before the answer begins without it; and how long a client that does
/// not want to follow waits for all that is there.
const FIRST_WITHIN: Duration = Duration::from_secs(5);
const ALL_WITHIN: Duration = Duration::from_secs(15);
/// How soon the node is asked again that was too busy.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// The parameters of `/watch` and `/watch/{key}`.
#[derive(Debug, Deserialize)]
pub(super) struct WatchQuery {
    prefix: Option<String>,
    values: Option<String>,
    after: Option<String>,
    follow: Option<String>,
}

/// Where a client wants to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Begin {
    /// With what is there.
    Anew,
    After(WatchPlace),
    /// After something that is no place.
    Nowhere,
}

/// What is there and what changes from then on, or what changed since the place that the client names.
/// `raw_key` is none for the keys of a prefix.
pub(super) async fn stream(
    api: &Arc<Api>,
    method: Method,
    raw_key: Option<&str>,
    query: WatchQuery,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    let follow = events::flag("follow", query.follow.as_deref(), true)?;
    let values = events::flag("values", query.values.as_deref(), false)?;
    let begin = begin(query.after.as_deref(), &headers)?;
    let subject = match raw_key {
        Some(raw) => Subject::Key(key::decode(raw)?),
        None => Subject::Prefix(prefix(query.prefix)?.into()),
    };
    if method == Method::HEAD {
        return Ok(events::answer(stream::empty()));
    }
    let reader = open(api, Wish { subject, values }, begin, follow).await?;
    let events = stream::unfold(reader, |mut reader| async move {
        let event = reader.next().await?;
        Some((Ok::<_, Infallible>(event), reader))
    });
    Ok(events::answer(events))
}

fn prefix(given: Option<String>) -> Result<String, Refused> {
    let prefix = given.unwrap_or_default();
    if prefix.len() > MAX_KEY_BYTES {
        let detail = "The prefix is longer than 1024 bytes, as no key is.";
        return Err(Refused::new(Code::BadRequest, detail));
    }
    Ok(prefix)
}

/// The header is that of a browser that connects again to the same address, so it is newer than `after`.
fn begin(after: Option<&str>, headers: &HeaderMap) -> Result<Begin, Refused> {
    let after = after.map(str::parse).transpose().map_err(|_| {
        Refused::new(Code::BadRequest, "`after` is not the id of an event of a watch.")
            .hint("Pass the id of the last event seen, or leave it out to be told everything.")
    })?;
    Ok(match headers.get("last-event-id") {
        // A refusal would make a browser give up.
        Some(last) => {
            let place = last.to_str().ok().and_then(|text| text.parse().ok());
            place.map_or(Begin::Nowhere, Begin::After)
        }
        None => after.map_or(Begin::Anew, Begin::After),
    })
}

/// A reader for this wish: of the watch that it had, or of a new one.
async fn open(api: &Arc<Api>, wish: Wish, begin: Begin, follow: bool) -> Result<Reader, Refused> {
    let watches = api.handle.watches();
    let why = match begin {
        Begin::Anew => None,
        Begin::Nowhere => Some(MissedWhy::OtherStart),
        Begin::After(place) => match watches.find(place, &wish) {
            Some(feed) if !matches!(feed.events.after(place.at.number), Next::Missed { .. }) => {
                return Ok(Reader::new(api, feed, place.at.number, None, follow));
            }
            Some(_) => Some(MissedWhy::NotKept),
            None => Some(MissedWhy::OtherStart),
        },
    };
    let feed = watch_anew(api, wish).await?;
    let reader = Reader::new(api, Arc::clone(&feed), 0, why, follow);
    // Whether there are too many keys is known before the first of them is told.
    let mut last = feed.events.last();
    let first = timeout_at(Instant::now() + FIRST_WITHIN, last.wait_for(|last| *last > 0));
    drop(first.await);
    match feed.events.after(0) {
        Next::Item(_, Event::Ended(why)) => Err(ended(why)),
        _ => Ok(reader),
    }
}

async fn watch_anew(api: &Api, wish: Wish) -> Result<Arc<Feed>, Refused> {
    let watches = api.handle.watches();
    let abandoned = watches.make_way().map_err(|too_many| {
        let detail = format!("The watch was not begun: {too_many}.");
        Refused::new(Code::Overloaded, detail).hint("Watch through another agent of the ring.")
    })?;
    if let Some(watch) = abandoned {
        api.ask(Request::Unwatch { watch }).await?;
    }
    let request = Request::Watch { subject: wish.subject.clone(), room: ROOM };
    match api.ask(request).await? {
        Reply::Watching(outcome) => {
            let id = outcome?;
            watches.claim(id, wish).ok_or_else(|| kv::unexpected(&id))
        }
        other => Err(kv::unexpected(&other)),
    }
}

fn ended(why: WatchEnd) -> Refused {
    match why {
        WatchEnd::TooManyKeys => {
            let detail = format!(
                "There are more than {WATCHED_KEYS_MAX} keys, the most that one watch tells of."
            );
            Refused::new(Code::TooManyKeys, detail).hint("Watch several longer prefixes instead.")
        }
        WatchEnd::Left => Refused::new(Code::Unavailable, "This agent has left its ring.")
            .hint("Watch through another agent of the ring."),
    }
}

/// One reader of a watch. When it goes, the watch waits for it to come back.
struct Reader {
    api: Arc<Api>,
    feed: Arc<Feed>,
    stopping: watch::Receiver<bool>,
    last: watch::Receiver<u64>,
    /// Its own number, and that of the reader that came last.
    number: u64,
    latest: watch::Receiver<u64>,
    follow: bool,
    until: Instant,
    /// The number of the last event it has.
    seen: u64,
    /// What it is told before all else.
    first: Option<sse::Event>,
    is_over: bool,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.feed.detach(self.number);
    }
}

impl Reader {
    fn new(
        api: &Arc<Api>,
        feed: Arc<Feed>,
        seen: u64,
        missed: Option<MissedWhy>,
        follow: bool,
    ) -> Self {
        let (number, latest) = feed.attach();
        let place = api.handle.watches().place(feed.id, seen);
        // An id alone is no event, but what a client comes back with that saw no other.
        let first = match missed {
            Some(why) => events::event(place, &WatchReport::Missed { why }),
            None => sse::Event::default().id(place.to_string()),
        };
        Self {
            api: Arc::clone(api),
            stopping: api.stopping.clone(),
            last: feed.events.last(),
            number,
            latest,
            follow,
            until: Instant::now() + ALL_WITHIN,
            seen,
            first: Some(first),
            is_over: false,
            feed,
        }
    }

    async fn next(&mut self) -> Option<sse::Event> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        loop {
            let owes = !self.make_room().await;
            if self.is_over || *self.latest.borrow() != self.number {
                return None;
            }
            self.last.mark_unchanged();
            match self.feed.events.after(self.seen) {
                Next::Item(number, event) => return Some(self.take(number, &event)),
                // It was too slow to come back: the next one is told everything.
                Next::Missed { .. } => return None,
                Next::Nothing if !self.follow && self.feed.is_synced() => return None,
                Next::Nothing => {}
            }
            let (number, follow, until) = (self.number, self.follow, self.until);
            let late = async move {
                match follow {
                    true => std::future::pending().await,
                    false => tokio::time::sleep_until(until).await,
                }
            };
            let latest = &mut self.latest;
            let replaced = async { drop(latest.wait_for(|latest| *latest != number).await) };
            tokio::select! {
                changed = self.last.changed() => changed.ok()?,
                () = crate::until(&mut self.stopping) => return None,
                () = replaced => return None,
                () = late => return None,
                () = tokio::time::sleep(TRY_AGAIN), if owes => {}
            }
        }
    }

    /// Lets the node tell more after what was taken. False if it has to be tried again.
    async fn make_room(&self) -> bool {
        let Some(room) = self.feed.take_owed() else { return true };
        let request = Request::WatchRoom { watch: self.feed.id, room };
        let is_made = self.api.ask(request).await.is_ok();
        if !is_made {
            self.feed.owe(room);
        }
        is_made
    }

    fn take(&mut self, number: u64, event: &Event) -> sse::Event {
        self.seen = number;
        self.feed.take(number, event);
        self.is_over = matches!(event, Event::Ended(_));
        let place = self.api.handle.watches().place(self.feed.id, number);
        events::event(place, &report(event, self.feed.wants_values()))
    }
}

fn report(event: &Event, with_value: bool) -> WatchReport {
    match event {
        Event::Value { key, version, size, content_type, value } => WatchReport::Value {
            key: key.name().to_owned(),
            etag: etag::text(version),
            size: *size,
            content_type: content_type.to_string(),
            value: value.as_deref().filter(|_| with_value).map(batch::content),
        },
        Event::Deleted { key, version } => {
            WatchReport::Deleted { key: key.name().to_owned(), etag: etag::text(version) }
        }
        Event::Synced => WatchReport::Synced,
        Event::Ended(why) => WatchReport::Ended { problem: ended(*why).problem() },
    }
}
