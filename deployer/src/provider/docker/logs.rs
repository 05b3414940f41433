//! Logs of containers, through the API of their engine.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bollard::query_parameters::LogsOptionsBuilder;
use futures_util::stream::{self, BoxStream, StreamExt};

use super::{Containers, status};
use crate::error::{During, Result};
use crate::moment;
use crate::provider::LogRequest;
use crate::provider::lines::{Cutter, Entry};

/// How long after the end of a log that is followed it is opened again.
pub(super) const PAUSE: Duration = Duration::from_secs(1);

impl Containers {
    /// What the engine has of the log of a node, once; nothing if there is no container.
    pub(in crate::provider) fn log(
        &self,
        name: &str,
        wanted: LogRequest,
    ) -> BoxStream<'_, Result<Entry>> {
        let since = wanted.since.and_then(|since| since.duration_since(UNIX_EPOCH).ok());
        let since = since.and_then(|since| i32::try_from(since.as_secs()).ok()).unwrap_or(0);
        let lines = wanted.lines.map_or_else(|| "all".to_owned(), |lines| lines.to_string());
        let options = LogsOptionsBuilder::new()
            .stdout(true)
            .stderr(true)
            .timestamps(true)
            .since(since)
            .follow(wanted.follow)
            .tail(&lines)
            .build();
        let container = self.container(name);
        let mut cutter = Cutter::default();
        let pieces = self.docker().logs(&container, Some(options));
        pieces
            .flat_map(move |piece| {
                let entries: Vec<Result<Entry>> = match piece {
                    Ok(piece) => {
                        let bytes = piece.into_bytes();
                        let (place, text) = stamped(&bytes);
                        let lines = cutter.cut(text, place).into_iter();
                        lines.map(|line| Ok(Entry { line, place })).collect()
                    }
                    Err(error) if status(&error) == Some(404) => Vec::new(),
                    Err(error) => {
                        vec![Err(error).during(|| format!("cannot read the log of {container}"))]
                    }
                };
                stream::iter(entries)
            })
            .boxed()
    }
}

/// What the engine wrote before each piece of a line, and the piece.
fn stamped(bytes: &[u8]) -> (Option<SystemTime>, &[u8]) {
    let end = bytes.iter().position(|byte| *byte == b' ');
    let stamp = end.and_then(|end| std::str::from_utf8(&bytes[..end]).ok());
    match (end, stamp.and_then(moment::parse)) {
        (Some(end), Some(place)) => (Some(place), &bytes[end + 1..]),
        _ => (None, bytes),
    }
}
