//! Lines of many logs as one, in the order of their times as far as that is known: a line waits a moment
//! for earlier ones of the others, and what was there before is sorted in whole. Pure: it is told the time.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long a line waits for earlier ones of logs that are silent.
const WAITS: Duration = Duration::from_millis(300);
/// How long the lines of all wait for a log that has not yet told what was there before.
const OPENS_WITHIN: Duration = Duration::from_secs(10);
/// How many lines of a log may wait.
const WAITING_MAX: usize = 256;

/// Some logs, each under a number.
#[derive(Default)]
pub(crate) struct Weave {
    logs: BTreeMap<usize, Log>,
}

struct Log {
    opened: Instant,
    /// Whether it has told what was there before.
    live: bool,
    ended: bool,
    /// When its last line was written.
    last: SystemTime,
    lines: VecDeque<Waiting>,
}

struct Waiting {
    at: SystemTime,
    came: Instant,
    text: String,
}

impl Weave {
    /// Another log.
    pub(crate) fn open(&mut self, log: usize, now: Instant) {
        let (live, ended, last, lines) = (false, false, UNIX_EPOCH, VecDeque::new());
        self.logs.insert(log, Log { opened: now, live, ended, last, lines });
    }

    /// A line of a log, as it is to be shown.
    pub(crate) fn line(&mut self, log: usize, at: Option<SystemTime>, text: String, now: Instant) {
        let Some(log) = self.logs.get_mut(&log) else { return };
        // Lines of one log stay in their order, whatever its clock does.
        log.last = at.unwrap_or(log.last).max(log.last);
        log.lines.push_back(Waiting { at: log.last, came: now, text });
    }

    /// A log has told what was there before.
    pub(crate) fn live(&mut self, log: usize) {
        if let Some(log) = self.logs.get_mut(&log) {
            log.live = true;
        }
    }

    /// Nothing more comes of a log.
    pub(crate) fn end(&mut self, log: usize) {
        if let Some(log) = self.logs.get_mut(&log) {
            log.ended = true;
        }
    }

    /// Whether a log should not be read until some of its lines are taken.
    pub(crate) fn is_full(&self, log: usize) -> bool {
        self.logs.get(&log).is_some_and(|log| log.lines.len() >= WAITING_MAX)
    }

    /// The next line, and the log it is of; none if it has to wait, or there is none.
    pub(crate) fn next(&mut self, now: Instant) -> Option<(usize, String)> {
        self.logs.retain(|_, log| !log.ended || !log.lines.is_empty());
        let number = self.first()?;
        if self.wakes().is_some_and(|wakes| wakes > now) {
            return None;
        }
        let line = self.logs.get_mut(&number)?.lines.pop_front()?;
        Some((number, line.text))
    }

    /// The log with the earliest line.
    fn first(&self) -> Option<usize> {
        let heads = self.logs.iter().filter_map(|(n, log)| Some((log.lines.front()?.at, *n)));
        heads.min().map(|(_, number)| number)
    }

    /// Until when the next line waits; none if there is no line.
    pub(crate) fn wakes(&self) -> Option<Instant> {
        let first = self.first()?;
        let log = self.logs.get(&first)?;
        let came = log.lines.front()?.came;
        // Whoever is live has nothing to add to what was there before.
        let hurries = !log.live || self.is_full(first);
        let silent = self.logs.values().filter(|log| log.lines.is_empty() && !log.ended);
        let waits = silent.map(|log| match log.live {
            true if hurries => came,
            true => came + WAITS,
            false => came.max(log.opened + OPENS_WITHIN),
        });
        Some(waits.max().unwrap_or(came))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(weave: &mut Weave, now: Instant) -> String {
        std::iter::from_fn(|| weave.next(now)).map(|(_, text)| text).collect()
    }

    fn say(weave: &mut Weave, log: usize, second: u64, now: Instant) {
        let at = UNIX_EPOCH + Duration::from_secs(second);
        weave.line(log, Some(at), second.to_string(), now);
    }

    #[test]
    fn what_was_there_before_is_sorted_whole() {
        let (mut weave, now) = (Weave::default(), Instant::now());
        weave.open(0, now);
        weave.open(1, now);
        for second in [1, 4, 5] {
            say(&mut weave, 0, second, now);
        }
        assert_eq!(all(&mut weave, now + WAITS * 2), "", "the other log may begin earlier");
        say(&mut weave, 1, 2, now);
        assert_eq!(all(&mut weave, now), "12");
        say(&mut weave, 1, 3, now);
        assert_eq!(all(&mut weave, now), "3");
        weave.end(1);
        assert_eq!(all(&mut weave, now), "45");
        assert_eq!(weave.wakes(), None);
    }

    #[test]
    fn a_log_that_cannot_be_read_does_not_hold_up_the_others_for_ever() {
        let (mut weave, now) = (Weave::default(), Instant::now());
        weave.open(0, now);
        weave.open(1, now);
        say(&mut weave, 0, 1, now);
        assert_eq!(weave.wakes(), Some(now + OPENS_WITHIN));
        assert_eq!(all(&mut weave, now + OPENS_WITHIN), "1");
        say(&mut weave, 0, 2, now + OPENS_WITHIN * 2);
        assert_eq!(all(&mut weave, now + OPENS_WITHIN * 2 + WAITS), "2");
    }

    #[test]
    fn live_lines_wait_a_moment_for_earlier_ones() {
        let (mut weave, now) = (Weave::default(), Instant::now());
        for log in 0..3 {
            weave.open(log, now);
            weave.live(log);
        }
        say(&mut weave, 0, 7, now);
        assert_eq!(all(&mut weave, now), "");
        say(&mut weave, 1, 6, now + WAITS / 2);
        assert_eq!(all(&mut weave, now + WAITS), "");
        assert_eq!(all(&mut weave, now + WAITS * 3 / 2), "67");
        // A clock that was set back does not turn lines of one log around.
        say(&mut weave, 0, 3, now + WAITS * 2);
        say(&mut weave, 0, 9, now + WAITS * 2);
        weave.line(2, None, "?".to_owned(), now + WAITS * 2);
        assert_eq!(all(&mut weave, now + WAITS * 3), "?39");
        for second in 0..WAITING_MAX as u64 {
            assert!(!weave.is_full(1));
            say(&mut weave, 1, second, now);
        }
        assert!(weave.is_full(1) && !weave.is_full(0));
    }
}
