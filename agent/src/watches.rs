//! The watches of this agent's clients. What one tells is kept for a while, also when its client is gone, so
//! that a client that comes back misses nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use sky_api::watch::MAX_VALUE_BYTES;
use sky_chord::{Ballot, Key, Subject, Told, WATCHES_MAX, WatchEnd, WatchId};
use tokio::sync::watch;

use crate::kept::Kept;
use crate::notices::{NotAPlace, Place};

/// How much a watch may tell that nobody has taken yet.
pub const ROOM: u32 = 128;
/// How many events of a watch are kept, and how many bytes of values.
const KEPT: usize = 1024;
const KEPT_BYTES: usize = 4 << 20;
/// How long a watch goes on without its client.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a client wants to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// What it watches.
    pub subject: Subject,
    /// Whether it wants values too.
    pub values: bool,
}

/// An event of a watch.
#[derive(Debug, Clone)]
pub enum Event {
    /// A key has a value.
    Value {
        /// The key.
        key: Key,
        /// Its version.
        version: Ballot,
        /// The size of the value.
        size: u32,
        /// Its media type.
        content_type: Arc<str>,
        /// The value, if it is wanted and short.
        value: Option<Bytes>,
    },
    /// A key does not exist any more.
    Deleted {
        /// The key.
        key: Key,
        /// The version told last.
        version: Ballot,
    },
    /// Everything was told.
    Synced,
    /// Nothing more is told.
    Ended(WatchEnd),
}

impl Event {
    /// Whether it takes of the room of a watch.
    const fn takes_room(&self) -> bool {
        matches!(self, Self::Value { .. } | Self::Deleted { .. })
    }
}

/// A place in what a watch told: after the event with this number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WatchPlace {
    /// The start of the agent, and the number of the event.
    pub at: Place,
    /// Which watch of this start.
    pub watch: u64,
}

impl fmt::Display for WatchPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, watch } = self;
        write!(f, "{:x}.{}.{watch}.{}", at.incarnation, at.boot, at.number)
    }
}

impl FromStr for WatchPlace {
    type Err = NotAPlace;

    fn from_str(text: &str) -> Result<Self, NotAPlace> {
        // The place without the watch, and the place with the watch for the number.
        let (head, number) = text.rsplit_once('.').ok_or(NotAPlace)?;
        let (start, _) = head.rsplit_once('.').ok_or(NotAPlace)?;
        let watch = head.parse::<Place>()?.number;
        Ok(Self { at: format!("{start}.{number}").parse()?, watch })
    }
}

/// One watch, and what it told.
#[derive(Debug)]
pub struct Feed {
    /// Its name for the node.
    pub id: WatchId,
    /// What it tells.
    pub events: Kept<Event>,
    wish: OnceLock<Wish>,
    is_synced: AtomicBool,
    /// The number of the reader that came last: earlier ones make way for it.
    reader: watch::Sender<u64>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The number of the last event that a reader took.
    taken: u64,
    /// How much was taken for which the node has not been given room again.
    owed: u32,
    /// Since when there is no reader.
    left: Option<Instant>,
}

impl Feed {
    /// Whether who watches wants values too.
    pub fn wants_values(&self) -> bool {
        self.wish.get().is_some_and(|wish| wish.values)
    }

    fn new(id: WatchId) -> Self {
        let state = State { taken: 0, owed: 0, left: Some(Instant::now()) };
        let events = Kept::new(KEPT, KEPT_BYTES);
        let (wish, reader) = (OnceLock::new(), watch::Sender::new(0));
        let is_synced = AtomicBool::new(false);
        Self { id, events, wish, is_synced, reader, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A reader comes. It reads until another one comes, as the channel tells.
    pub fn attach(&self) -> (u64, watch::Receiver<u64>) {
        self.state().left = None;
        self.reader.send_modify(|reader| *reader += 1);
        let reader = self.reader.subscribe();
        let number = *reader.borrow();
        (number, reader)
    }

    /// The reader of this number goes.
    pub fn detach(&self, number: u64) {
        if *self.reader.borrow() == number {
            self.state().left = Some(Instant::now());
        }
    }

    /// A reader took this event.
    pub fn take(&self, number: u64, event: &Event) {
        let mut state = self.state();
        if number > state.taken {
            state.taken = number;
            state.owed += u32::from(event.takes_room());
        }
    }

    /// For how much the node is to be given room, if it is enough to be worth it: that is owed no longer.
    pub fn take_owed(&self) -> Option<u32> {
        let mut state = self.state();
        (state.owed >= ROOM / 4).then(|| std::mem::take(&mut state.owed))
    }

    /// The node was not given the room.
    pub fn owe(&self, room: u32) {
        self.state().owed += room;
    }

    /// Whether everything that was there at the beginning has been told.
    pub fn is_synced(&self) -> bool {
        self.is_synced.load(Relaxed)
    }
}

/// The watches of one start of an agent.
#[derive(Debug)]
pub struct Watches {
    start: Place,
    open: Mutex<BTreeMap<WatchId, Arc<Feed>>>,
}

impl Watches {
    /// None yet, of this start.
    pub fn new(incarnation: u64, boot: u32) -> Self {
        Self { start: Place { incarnation, boot, number: 0 }, open: Mutex::default() }
    }

    fn open_ones(&self) -> MutexGuard<'_, BTreeMap<WatchId, Arc<Feed>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The node has begun a watch.
    pub fn begin(&self, id: WatchId) {
        self.open_ones().insert(id, Arc::new(Feed::new(id)));
    }

    /// A watch tells something.
    pub fn tell(&self, id: WatchId, told: Told) {
        let Some(feed) = self.open_ones().get(&id).cloned() else { return };
        // What is wanted may not be known yet.
        let wants_values = feed.wish.get().is_none_or(|wish| wish.values);
        let (event, bytes) = match told {
            Told::Value { key, value, version } => {
                let size = value.bytes.len();
                let is_told = wants_values && size <= MAX_VALUE_BYTES;
                // A part of a message would hold all of it.
                let bytes = is_told.then(|| Bytes::copy_from_slice(&value.bytes));
                let (content_type, size) = (value.content_type, size as u32);
                let kept = bytes.as_ref().map_or(0, Bytes::len);
                (Event::Value { key, version, size, content_type, value: bytes }, kept)
            }
            Told::Deleted { key, version } => (Event::Deleted { key, version }, 0),
            Told::Synced => (Event::Synced, 0),
            Told::Ended(why) => (Event::Ended(why), 0),
        };
        feed.is_synced.fetch_or(matches!(event, Event::Synced), Relaxed);
        feed.events.push(event, bytes);
    }

    /// The watch that the node has just begun for this wish.
    pub fn claim(&self, id: WatchId, wish: Wish) -> Option<Arc<Feed>> {
        let feed = self.open_ones().get(&id).cloned()?;
        feed.wish.set(wish).ok()?;
        Some(feed)
    }

    /// The watch of this place, if it was begun for the same wish.
    pub fn find(&self, place: WatchPlace, wish: &Wish) -> Option<Arc<Feed>> {
        let is_mine = Place { number: 0, ..place.at } == self.start;
        let feed = self.open_ones().get(&WatchId(place.watch)).cloned()?;
        let told = *feed.events.last().borrow();
        let is_his = feed.wish.get() == Some(wish) && place.at.number <= told;
        (is_mine && is_his).then_some(feed)
    }

    /// The place after this event of a watch.
    pub const fn place(&self, watch: WatchId, number: u64) -> WatchPlace {
        WatchPlace { at: Place { number, ..self.start }, watch: watch.0 }
    }

    /// Forgets the watches whose clients have been away for too long by now, and returns them.
    pub fn expire(&self, now: Instant) -> Vec<WatchId> {
        let is_long = |left| now.saturating_duration_since(left) >= PATIENCE;
        let is_over = |feed: &Feed| feed.state().left.is_some_and(is_long);
        let mut open = self.open_ones();
        let over: Vec<_> = open.values().filter(|feed| is_over(feed)).map(|feed| feed.id).collect();
        over.iter().for_each(|id| drop(open.remove(id)));
        over
    }

    /// Whether there can be one more. If none can, but for one whose client is away, that one is forgotten
    /// and returned: the node has to end it.
    ///
    /// # Errors
    /// If there are too many whose clients are there.
    pub fn make_way(&self) -> Result<Option<WatchId>, TooMany> {
        let mut open = self.open_ones();
        if open.len() < WATCHES_MAX {
            return Ok(None);
        }
        // Of one that has only just begun nobody has read the name yet.
        let begun = open.values().filter(|feed| feed.wish.get().is_some());
        let left = begun.filter_map(|feed| Some((feed.state().left?, feed.id)));
        let (_, id) = left.min().ok_or(TooMany)?;
        open.remove(&id);
        Ok(Some(id))
    }
}

/// There are as many watches as there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the agent has {WATCHES_MAX} watches, the most that it can have")]
pub struct TooMany;

#[cfg(test)]
mod tests {
    use sky_chord::Value;

    use super::*;

    fn wish() -> Wish {
        Wish { subject: Subject::Prefix("a".into()), values: true }
    }

    fn value(size: usize) -> Told {
        let value = Value { content_type: "x".into(), bytes: vec![7; size].into(), ttl: None };
        Told::Value { key: Key::new("a"), value, version: Ballot::ZERO }
    }

    #[test]
    fn a_place_is_of_one_watch_of_one_start() {
        let watches = Watches::new(0xab, 3);
        watches.begin(WatchId(5));
        let feed = watches.claim(WatchId(5), wish()).unwrap();
        watches.tell(feed.id, Told::Synced);
        let place = watches.place(feed.id, 1);
        assert_eq!(
            (place.to_string().as_str(), place.to_string().parse()),
            ("ab.3.5.1", Ok(place))
        );
        assert!(watches.find(place, &wish()).is_some());
        for other in ["ab.3.5.2", "ab.3.6.1", "ab.2.5.1", "ac.3.5.1"] {
            assert!(watches.find(other.parse().unwrap(), &wish()).is_none(), "{other}");
        }
        let others = [
            Wish { values: false, ..wish() },
            Wish { subject: Subject::Key(Key::new("a")), ..wish() },
        ];
        assert!(others.iter().all(|other| watches.find(place, other).is_none()));
        for text in ["", "1", "ab.3", "ab.3.1", "ab.3.5.1.0", "ab.3.5.-1", "ab.3.+5.1", "x.3.5.1"] {
            assert_eq!(text.parse::<WatchPlace>(), Err(NotAPlace), "{text}");
        }
    }

    #[test]
    fn room_is_given_once_for_each_event() {
        let watches = Watches::new(1, 1);
        watches.begin(WatchId(1));
        let feed = watches.claim(WatchId(1), wish()).unwrap();
        let event = Event::Deleted { key: Key::new("a"), version: Ballot::ZERO };
        let read = |numbers: std::ops::RangeInclusive<u64>, event: &Event| -> u32 {
            let take = |number| {
                feed.take(number, event);
                feed.take_owed()
            };
            numbers.filter_map(take).sum()
        };
        assert_eq!(read(1..=200, &event), 192);
        assert_eq!(read(1..=200, &event), 0, "a reader comes back");
        assert_eq!(read(201..=300, &Event::Synced), 0);
        feed.owe(32);
        assert_eq!(feed.take_owed(), Some(40));
    }

    #[test]
    fn short_values_are_kept_as_long_as_there_is_room() {
        let watches = Watches::new(1, 1);
        watches.begin(WatchId(1));
        let feed = watches.claim(WatchId(1), wish()).unwrap();
        watches.tell(feed.id, value(MAX_VALUE_BYTES));
        watches.tell(feed.id, value(MAX_VALUE_BYTES + 1));
        let kept = |number| match feed.events.after(number) {
            crate::kept::Next::Item(_, Event::Value { value, size, .. }) => (value.is_some(), size),
            other => panic!("{other:?}"),
        };
        assert_eq!(kept(0), (true, MAX_VALUE_BYTES as u32));
        assert_eq!(kept(1), (false, MAX_VALUE_BYTES as u32 + 1));
        assert!(ROOM as usize * MAX_VALUE_BYTES < KEPT_BYTES, "what nobody has taken is kept");
    }

    #[test]
    fn who_is_away_for_too_long_is_forgotten() {
        let watches = Watches::new(1, 1);
        for id in 0..WATCHES_MAX as u64 {
            watches.begin(WatchId(id));
        }
        let feeds: Vec<_> =
            (0..WATCHES_MAX as u64).map(|id| watches.claim(WatchId(id), wish()).unwrap()).collect();
        let readers: Vec<_> = feeds.iter().map(|feed| feed.attach().0).collect();
        assert_eq!(watches.make_way(), Err(TooMany));
        feeds[3].detach(readers[3]);
        assert_eq!(watches.make_way(), Ok(Some(WatchId(3))));
        assert_eq!(watches.make_way(), Ok(None));
        feeds[4].attach();
        feeds[4].detach(readers[4]);
        feeds[5].detach(readers[5]);
        let now = Instant::now();
        assert_eq!(watches.expire(now), []);
        assert_eq!(watches.expire(now + PATIENCE), [WatchId(5)], "4 has another reader");
    }
}
