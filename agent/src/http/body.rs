//! Reading request bodies: streamed, bounded in size, memory and time.

use std::pin::pin;
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::{Stream, StreamExt};
use serde::de::DeserializeOwned;
use serde_json::Value;
use sky_api::Code;
use tokio::time::timeout;
use warp::http::header::{
    CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HeaderMap, HeaderValue,
};

use super::problem::Refused;
use crate::fair::Share;

/// How long a client may take to send a short body, and how fast it has to send a long one.
const PATIENCE: Duration = Duration::from_secs(30);
const BYTES_PER_SECOND: usize = 1 << 20;

/// How much beyond the limit is still read of a body that is refused, so that the client, who is busy
/// sending, gets to see the answer instead of a reset connection.
const DRAINED: usize = 16 << 20;

/// Bodies and answers up to this size are not counted.
pub(super) const SMALL: usize = 64 << 10;

/// A body whose length is not known gets memory in steps of so many bytes.
const STEP: usize = 1 << 20;

/// The whole value, at most `limit` bytes. Chunked bodies are as good as those with a length. `room` gives
/// the memory for so many bytes, or says that there is none.
pub(super) async fn collect<B: Buf>(
    headers: &HeaderMap,
    body: impl Stream<Item = Result<B, warp::Error>>,
    limit: usize,
    room: impl Fn(usize) -> Result<Option<Share>, Refused>,
) -> Result<Bytes, Refused> {
    within(headers, body, limit, room, || too_large(limit)).await
}

/// The whole of a body that has to be JSON, at most `limit` bytes. [`read_json`] reads it.
pub(super) async fn collect_json<B: Buf>(
    headers: &HeaderMap,
    body: impl Stream<Item = Result<B, warp::Error>>,
    limit: usize,
    room: impl Fn(usize) -> Result<Option<Share>, Refused>,
) -> Result<Bytes, Refused> {
    let is_json = |value: &HeaderValue| {
        let text = value.to_str().unwrap_or_default();
        let essence = text.split(';').next().unwrap_or_default();
        essence.trim().eq_ignore_ascii_case("application/json")
    };
    if !headers.get(CONTENT_TYPE).is_none_or(is_json) || headers.contains_key(CONTENT_ENCODING) {
        let detail = "The body has to be application/json, without a Content-Encoding.";
        return Err(Refused::new(Code::UnsupportedMediaType, detail));
    }
    let too_large = || {
        Refused::new(Code::TooLarge, format!("The body is larger than {limit} bytes."))
            .hint("Send it as several requests.")
    };
    within(headers, body, limit, room, too_large).await
}

/// Bytes that take some of what there is of memory, until nobody has them any more.
pub(super) fn held(bytes: impl Into<Bytes>, room: Vec<Share>) -> Bytes {
    let bytes = bytes.into();
    if room.is_empty() { bytes } else { Bytes::from_owner(Held { bytes, _room: room }) }
}

struct Held {
    bytes: Bytes,
    _room: Vec<Share>,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// What a JSON body says.
pub(super) fn read_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refused> {
    serde_json::from_slice(body).map_err(|error| {
        Refused::new(Code::BadRequest, format!("The JSON body is not understood: {error}."))
    })
}

/// What a JSON value says. `7.0` is as good an integer as `7`, as JSON Schema has it.
pub(super) fn from_json<T: DeserializeOwned>(mut value: Value) -> Result<T, Refused> {
    write_whole_numbers(&mut value);
    serde_json::from_value(value).map_err(|error| {
        Refused::new(Code::BadRequest, format!("The JSON body is not understood: {error}."))
    })
}

fn write_whole_numbers(value: &mut Value) {
    match value {
        Value::Number(number) => {
            // 2^64 is the first one that is too large.
            let whole =
                |it: &f64| it.fract() == 0.0 && (0.0..18_446_744_073_709_551_616.0).contains(it);
            if let Some(whole) = number.as_f64().filter(|it| number.is_f64() && whole(it)) {
                *value = Value::from(whole as u64);
            }
        }
        Value::Array(values) => values.iter_mut().for_each(write_whole_numbers),
        Value::Object(values) => values.values_mut().for_each(write_whole_numbers),
        _ => {}
    }
}

/// The whole body, at most `limit` bytes.
async fn within<B: Buf>(
    headers: &HeaderMap,
    body: impl Stream<Item = Result<B, warp::Error>>,
    limit: usize,
    room: impl Fn(usize) -> Result<Option<Share>, Refused>,
    too_large: impl Fn() -> Refused,
) -> Result<Bytes, Refused> {
    let length = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let length: usize = length.unwrap_or_default();
    let room_at_first = if length > limit { Err(too_large()) } else { room(length) };
    let patience = PATIENCE + Duration::from_secs((limit / BYTES_PER_SECOND) as u64);
    let mut growing = Growing { bytes: Vec::new(), counted: SMALL, room: Vec::new() };
    let started = match room_at_first {
        // The client waits for leave to send, and does not get it.
        Err(refused) if headers.contains_key(EXPECT) => return Err(refused),
        room => room.map(|share| growing.begin(length, share)),
    };
    match timeout(patience, read(body, limit, growing, started, room, too_large)).await {
        Ok(read) => read,
        Err(_) => {
            let detail = format!("The body did not arrive within {} seconds.", patience.as_secs());
            Err(Refused::new(Code::BadRequest, detail)
                .hint("Send less at once, or look at the network between client and agent."))
        }
    }
}

/// A body as it comes in, and the memory that it has.
struct Growing {
    bytes: Vec<u8>,
    /// How many bytes may come before more memory is needed.
    counted: usize,
    room: Vec<Share>,
}

impl Growing {
    /// For so many bytes, as the client says. That is only a claim: no more than a little is set aside.
    fn begin(&mut self, length: usize, share: Option<Share>) {
        self.bytes.reserve(length.min(SMALL));
        if share.is_some() {
            self.counted = length;
        }
        self.room.extend(share);
    }

    fn add(
        &mut self,
        part: &[u8],
        room: &impl Fn(usize) -> Result<Option<Share>, Refused>,
    ) -> Result<(), Refused> {
        let length = self.bytes.len() + part.len();
        while length > self.counted {
            self.room.extend(room(STEP)?);
            self.counted += STEP;
        }
        if self.bytes.capacity() < length && self.counted > SMALL {
            // It is most likely as long as it was said to be.
            self.bytes.reserve_exact(self.counted - self.bytes.len());
        }
        self.bytes.extend_from_slice(part);
        Ok(())
    }
}

async fn read<B: Buf>(
    body: impl Stream<Item = Result<B, warp::Error>>,
    limit: usize,
    mut growing: Growing,
    mut so_far: Result<(), Refused>,
    room: impl Fn(usize) -> Result<Option<Share>, Refused>,
    too_large: impl Fn() -> Refused,
) -> Result<Bytes, Refused> {
    let mut body = pin!(body);
    let mut read = 0;
    while let Some(part) = body.next().await {
        let mut part = part.map_err(|_| {
            Refused::new(Code::BadRequest, "The connection broke before the body was complete.")
        })?;
        read += part.remaining();
        if so_far.is_ok() && read > limit {
            so_far = Err(too_large());
        }
        while so_far.is_ok() && part.has_remaining() {
            let length = part.chunk().len();
            so_far = growing.add(part.chunk(), &room);
            part.advance(length);
        }
        if so_far.is_err() {
            growing = Growing { bytes: Vec::new(), counted: 0, room: Vec::new() };
            if read > limit.saturating_add(DRAINED) {
                break;
            }
        }
    }
    so_far.map(|()| held(growing.bytes, growing.room))
}

/// The refusal of a value of more than `limit` bytes.
pub(super) fn too_large(limit: usize) -> Refused {
    Refused::new(Code::TooLarge, format!("The value is larger than {limit} bytes."))
        .hint("Split the value, or start the agents with a larger limit for values.")
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;
    use crate::fair::{Client, Shares};

    async fn collect_parts(parts: &[&'static [u8]], limit: usize) -> Result<Bytes, Code> {
        let parts: Vec<_> = parts.iter().map(|part| Ok(Bytes::from_static(part))).collect();
        let body = stream::iter(parts);
        collect(&HeaderMap::new(), body, limit, |_| Ok(None))
            .await
            .map_err(|refused| refused.code())
    }

    #[tokio::test]
    async fn a_body_may_be_as_large_as_the_limit_and_no_larger() {
        assert_eq!(collect_parts(&[b"ab", b"", b"cd"], 4).await.unwrap(), "abcd");
        assert_eq!(collect_parts(&[b"ab", b"cde"], 4).await, Err(Code::TooLarge));
        assert_eq!(collect_parts(&[], 0).await.unwrap(), "");
    }

    #[test]
    fn whole_numbers_may_be_written_with_a_fraction() {
        let read = |text: &str| from_json::<Vec<u64>>(serde_json::from_str(text).unwrap()).ok();
        assert_eq!(read("[7.0, 1e3, 18446744073709551615]"), Some(vec![7, 1000, u64::MAX]));
        for wrong in ["[7.5]", "[-1.0]", "[1.9e19]", "[1e300]"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[tokio::test]
    async fn a_client_that_asks_first_is_refused_before_it_sends() {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_LENGTH, 5.into());
        headers.insert(EXPECT, "100-continue".parse().unwrap());
        let body = stream::pending::<Result<Bytes, warp::Error>>();
        let refused = collect(&headers, body, 4, |_| Ok(None)).await.unwrap_err();
        assert_eq!(refused.code(), Code::TooLarge);
    }

    #[tokio::test]
    async fn memory_is_taken_for_what_is_said_to_come_or_else_as_it_comes() {
        let parts = |count| stream::iter((0..count).map(|_| Ok(Bytes::from(vec![7; SMALL]))));
        let memory = Shares::new(4 << 20);
        let room = |bytes| {
            let share = memory.take(Client::default(), bytes);
            share.map(Some).ok_or_else(|| Refused::new(Code::Overloaded, "no room"))
        };
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_LENGTH, (2 << 20).into());
        let held = collect(&headers, parts(32), 8 << 20, room).await.unwrap();
        assert_eq!(held.len(), 2 << 20);
        // Half of it is taken, so that there is no more for this client.
        let refused = collect(&headers, parts(32), 8 << 20, room).await.unwrap_err();
        assert_eq!(refused.code(), Code::Overloaded);
        let part = held.slice(1..2);
        drop(held);
        assert!(memory.take(Client::default(), 1 << 20).is_none(), "some of it is still used");
        drop(part);
        let unknown = HeaderMap::new();
        let held = collect(&unknown, parts(17), 8 << 20, room).await.unwrap();
        assert_eq!(held.len(), 17 * SMALL);
        let refused = collect(&unknown, parts(100), 8 << 20, room).await.unwrap_err();
        assert_eq!(refused.code(), Code::Overloaded);
        drop(held);
        assert!(memory.take(Client::default(), 4 << 20).is_some(), "all was given back");
    }
}
