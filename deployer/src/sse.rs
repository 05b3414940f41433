//! Server-sent events as they come from an agent (HTML standard, section 9.2).

use std::time::Duration;

use reqwest::Response;

use crate::error::{During, Error, Result};

/// Agents say something every few seconds. One that is silent for so long is not there any more.
const SILENT_FOR: Duration = Duration::from_secs(30);

/// One event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Event {
    /// The place to go on from, if it tells one.
    pub id: Option<String>,
    /// What it says; empty if it only tells the place.
    pub data: String,
}

/// The events of a response.
pub(crate) struct Events {
    response: Response,
    parser: Parser,
}

impl Events {
    /// The events that come with this response.
    pub(crate) fn new(response: Response) -> Self {
        Self { response, parser: Parser::default() }
    }

    /// The next event; none if the agent has ended them.
    pub(crate) async fn next(&mut self) -> Result<Option<Event>> {
        loop {
            if let Some(event) = self.parser.next() {
                return Ok(Some(event));
            }
            let chunk = tokio::time::timeout(SILENT_FOR, self.response.chunk()).await;
            let Ok(chunk) = chunk else {
                return Err(Error::new(format!("nothing was heard for {SILENT_FOR:?}")));
            };
            match chunk.during(|| "the connection broke")? {
                Some(chunk) => self.parser.bytes.extend_from_slice(&chunk),
                None => return Ok(None),
            }
        }
    }
}

/// Cuts what comes into events.
#[derive(Default)]
struct Parser {
    bytes: Vec<u8>,
    event: Event,
}

impl Parser {
    fn next(&mut self) -> Option<Event> {
        while let Some(end) = self.bytes.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.bytes.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end_matches(['\n', '\r']);
            if line.is_empty() {
                let event = std::mem::take(&mut self.event);
                if event != Event::default() {
                    return Some(event);
                }
                continue;
            }
            let (name, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match name {
                "id" => self.event.id = Some(value.to_owned()),
                "data" => {
                    if !self.event.data.is_empty() {
                        self.event.data.push('\n');
                    }
                    self.event.data.push_str(value);
                }
                // Comments, and what agents do not use.
                _ => {}
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_found_however_they_are_cut() {
        let text = ":\n\nid: a.1\n\ndata:{\"x\": 1}\nid:a.2\r\n\r\n: still here\n\ndata: one\ndata: two\n\nid:";
        let event = |id: Option<&str>, data: &str| Event {
            id: id.map(str::to_owned),
            data: data.to_owned(),
        };
        let expected =
            [event(Some("a.1"), ""), event(Some("a.2"), "{\"x\": 1}"), event(None, "one\ntwo")];
        for size in [1, 3, 7, text.len()] {
            let mut parser = Parser::default();
            let mut found = Vec::new();
            for part in text.as_bytes().chunks(size) {
                parser.bytes.extend_from_slice(part);
                while let Some(event) = parser.next() {
                    found.push(event);
                }
            }
            assert_eq!(found, expected, "in pieces of {size}");
        }
    }
}
