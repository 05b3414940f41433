//! Logs as lines with their times, and following them through everything that ends a connection.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt};

use super::LogRequest;
use crate::error::Result;
use crate::moment;

/// A line of a node's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// When it was written, by the clock of its node: what the line itself says, or else the one before.
    pub at: Option<SystemTime>,
    /// Its text, without the end of the line.
    pub text: Bytes,
}

/// What a log is followed by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// A line.
    Line(LogLine),
    /// Everything that was there at first has been told; only what is followed has this.
    CaughtUp,
}

/// A line as a provider has it.
pub(super) struct Entry {
    pub(super) line: LogLine,
    /// When it was written by the clock that the provider can be asked by; that of the line if none.
    pub(super) place: Option<SystemTime>,
}

/// Cuts a text into lines. What stands after the last end of a line waits for the rest.
#[derive(Default)]
pub(super) struct Cutter {
    rest: Vec<u8>,
    last: Option<SystemTime>,
}

impl Cutter {
    /// The lines that `text` completes; `else_at` is their time if neither they nor those before have one.
    pub(super) fn cut(&mut self, text: &[u8], else_at: Option<SystemTime>) -> Vec<LogLine> {
        self.rest.extend_from_slice(text);
        let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') else {
            return Vec::new();
        };
        let left = self.rest.split_off(end + 1);
        let whole = Bytes::from(std::mem::replace(&mut self.rest, left));
        let mut lines = Vec::new();
        let mut begin = 0;
        for (at, _) in whole.iter().enumerate().filter(|(_, byte)| **byte == b'\n') {
            lines.push(self.line(whole.slice(begin..at), else_at));
            begin = at + 1;
        }
        lines
    }

    /// The last line, if it has no end.
    pub(super) fn finish(&mut self) -> Option<LogLine> {
        let text = Bytes::from(std::mem::take(&mut self.rest));
        (!text.is_empty()).then(|| self.line(text, None))
    }

    fn line(&mut self, text: Bytes, else_at: Option<SystemTime>) -> LogLine {
        let at = time_of(&text).or(else_at).or(self.last);
        self.last = at;
        LogLine { at, text }
    }
}

/// The time that a line of an agent begins with, in either of its formats.
fn time_of(line: &[u8]) -> Option<SystemTime> {
    let text = line.strip_prefix(b"{\"timestamp\":\"").unwrap_or(line);
    let end = text.iter().position(|byte| matches!(byte, b' ' | b'"'))?;
    // The shortest that an agent writes is longer than a date.
    std::str::from_utf8(&text[..end]).ok().filter(|text| text.len() > 19).and_then(moment::parse)
}

/// Of all lines of a log, those that are wanted.
pub(super) fn wanted_of(mut lines: Vec<LogLine>, wanted: LogRequest) -> Vec<LogLine> {
    let is_late = |line: &LogLine| wanted.since.is_none_or(|since| line.at >= Some(since));
    let late = lines.iter().position(is_late).unwrap_or(lines.len());
    let last = wanted.lines.map_or(0, |count| lines.len().saturating_sub(count));
    lines.drain(..late.max(last));
    lines
}

/// Where a log that is read through connections has come to.
struct Reader<'a, O> {
    open: O,
    wanted: LogRequest,
    pause: Duration,
    /// The place of the last line that was told.
    told: Option<SystemTime>,
    caught_up: bool,
    entries: Option<BoxStream<'a, Result<Entry>>>,
    /// Whether the connection before has ended.
    again: bool,
}

/// A log that `open` reads once, from a time on. When it is followed and comes to an end, because the node
/// was stopped or made anew or the connection broke, it is opened again after `pause`, without telling a
/// line twice. An error of what is followed is told, and tried again as well.
pub(super) fn kept_up<'a, O>(
    wanted: LogRequest,
    pause: Duration,
    open: O,
) -> BoxStream<'a, Result<Said>>
where
    O: Fn(LogRequest) -> BoxStream<'a, Result<Entry>> + Send + 'a,
{
    let reader =
        Reader { open, wanted, pause, told: None, caught_up: false, entries: None, again: false };
    stream::unfold(reader, |mut reader| async {
        let said = reader.next().await?;
        Some((said, reader))
    })
    .boxed()
}

impl<'a, O: Fn(LogRequest) -> BoxStream<'a, Result<Entry>>> Reader<'a, O> {
    async fn next(&mut self) -> Option<Result<Said>> {
        loop {
            let entries = match &mut self.entries {
                Some(entries) => entries,
                closed => {
                    if self.caught_up && !self.wanted.follow {
                        return None;
                    }
                    if std::mem::replace(&mut self.again, false) {
                        tokio::time::sleep(self.pause).await;
                    }
                    let wanted = request(self.wanted, self.told, self.caught_up);
                    closed.insert((self.open)(wanted))
                }
            };
            match entries.next().await {
                Some(Ok(entry)) => {
                    let place = entry.place.or(entry.line.at);
                    // Who is asked from a time on tells from the beginning of that second.
                    let known = self.caught_up && place.is_some() && place <= self.told;
                    self.told = self.told.max(place);
                    let hidden = !self.caught_up && self.wanted.lines == Some(0);
                    let early = self.wanted.since.is_some_and(|since| entry.line.at < Some(since));
                    if !known && !hidden && !early {
                        return Some(Ok(Said::Line(entry.line)));
                    }
                }
                Some(Err(error)) => {
                    self.entries = None;
                    self.again = true;
                    if !self.wanted.follow {
                        self.caught_up = true;
                    }
                    return Some(Err(error));
                }
                None => {
                    self.entries = None;
                    self.again = self.caught_up;
                    if !std::mem::replace(&mut self.caught_up, true) && self.wanted.follow {
                        return Some(Ok(Said::CaughtUp));
                    }
                }
            }
        }
    }
}

/// What is asked for next.
fn request(wanted: LogRequest, told: Option<SystemTime>, caught_up: bool) -> LogRequest {
    if caught_up {
        return LogRequest { lines: None, since: told.or(wanted.since), follow: true };
    }
    // The last line at least, to know what comes after it.
    LogRequest { lines: wanted.lines.map(|lines| lines.max(1)), since: wanted.since, follow: false }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::error::Error;

    fn at(second: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(second)
    }

    fn texts(lines: &[LogLine]) -> Vec<&str> {
        lines.iter().map(|line| std::str::from_utf8(&line.text).unwrap()).collect()
    }

    #[test]
    fn lines_have_the_time_they_say_or_that_of_the_line_before() {
        let mut cutter = Cutter::default();
        let text = "2026-11-28T14:00:00.5Z  INFO one\n  two\n{\"timestamp\":\"2026-11-28T14:00:01.5Z\"}\nthr";
        let mut lines = cutter.cut(text.as_bytes(), None);
        lines.extend(cutter.cut(b"ee\nfour", None));
        lines.extend(cutter.finish());
        assert_eq!(&texts(&lines)[3..], ["three", "four"]);
        let first = moment::parse("2026-11-28T14:00:00.5Z");
        let second = moment::parse("2026-11-28T14:00:01.5Z");
        let times: Vec<_> = lines.iter().map(|line| line.at).collect();
        assert_eq!(times, [first, first, second, second, second]);
        assert!(cutter.finish().is_none());
        let without = Cutter::default().cut(b"2026 1\n2026-11-28 2\n\n", Some(at(7)));
        assert!(without.iter().all(|line| line.at == Some(at(7))), "{without:?}");
    }

    #[test]
    fn the_last_lines_since_a_time() {
        let lines: Vec<LogLine> =
            (0..5).map(|n| LogLine { at: Some(at(n)), text: n.to_string().into() }).collect();
        let pick = |count, since: Option<u64>| {
            let wanted = LogRequest { lines: count, since: since.map(at), follow: false };
            texts(&wanted_of(lines.clone(), wanted)).concat()
        };
        assert_eq!(pick(None, None), "01234");
        assert_eq!(pick(Some(2), None), "34");
        assert_eq!(pick(Some(0), None), "");
        assert_eq!(pick(Some(9), Some(2)), "234");
        assert_eq!(pick(Some(1), Some(2)), "4");
        assert_eq!(pick(None, Some(9)), "");
    }

    /// An engine whose log grows by one line with each connection, which breaks after that, and that
    /// cannot be reached the second time.
    #[tokio::test]
    async fn what_is_followed_is_told_once_through_broken_connections() {
        let asked = Mutex::new(Vec::new());
        let open = |wanted: LogRequest| {
            let mut asked = asked.lock().unwrap();
            asked.push(wanted);
            let grown = asked.len() as u64;
            let since = wanted.since.unwrap_or(at(0));
            let lines = (1..=grown + 1).map(at).filter(|time| *time >= since).map(|time| {
                let line = LogLine { at: Some(time), text: format!("{time:?}").into() };
                Ok(Entry { line, place: Some(time) })
            });
            if grown == 2 {
                return stream::iter([Err(Error::new("away"))]).boxed();
            }
            let lines: Vec<_> = lines.collect();
            let skip = wanted.lines.map_or(0, |count| lines.len().saturating_sub(count));
            stream::iter(lines.into_iter().skip(skip)).boxed()
        };
        for (lines, first) in [(None, 1), (Some(1), 2), (Some(0), 3)] {
            asked.lock().unwrap().clear();
            let wanted = LogRequest { lines, since: None, follow: true };
            let said = kept_up(wanted, Duration::ZERO, open).take(8).collect::<Vec<_>>().await;
            let errors = said.iter().filter(|said| said.is_err()).count();
            let caught_up = said.iter().filter(|said| **said == Ok(Said::CaughtUp)).count();
            assert_eq!((errors, caught_up), (1, 1), "{said:?}");
            let told: Vec<_> = said
                .into_iter()
                .filter_map(|said| match said {
                    Ok(Said::Line(line)) => line.at,
                    _ => None,
                })
                .collect();
            assert_eq!(told, (first..first + 6).map(at).collect::<Vec<_>>());
        }
        asked.lock().unwrap().clear();
        let once = LogRequest { lines: None, since: Some(at(2)), follow: false };
        let said = kept_up(once, Duration::ZERO, open).collect::<Vec<_>>().await;
        assert!(matches!(&said[..], [Ok(Said::Line(line))] if line.at == Some(at(2))), "{said:?}");
    }
}
