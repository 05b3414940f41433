//! Reading request bodies: streamed, bounded in size and in time.

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

/// How long a client may take to send a body.
const PATIENCE: Duration = Duration::from_secs(30);

/// How much of a body that is too large is still read, so that the client, who is busy sending, gets
/// to see the answer instead of a reset connection.
const DRAINED: usize = 16 << 20;

/// The whole value, at most `limit` bytes. Chunked bodies are as good as those with a length.
pub(super) async fn collect<B: Buf>(
    headers: &HeaderMap,
    body: impl Stream<Item = Result<B, warp::Error>>,
    limit: usize,
) -> Result<Bytes, Refused> {
    within(headers, body, limit).await?.ok_or_else(|| too_large(limit))
}

/// The whole of a body that has to be JSON, at most `limit` bytes. [`read_json`] reads it.
pub(super) async fn collect_json<B: Buf>(
    headers: &HeaderMap,
    body: impl Stream<Item = Result<B, warp::Error>>,
    limit: usize,
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
    within(headers, body, limit).await?.ok_or_else(|| {
        Refused::new(Code::TooLarge, format!("The body is larger than {limit} bytes."))
            .hint("Send it as several requests.")
    })
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

/// The whole body; none if it has more than `limit` bytes.
async fn within<B: Buf>(
    headers: &HeaderMap,
    body: impl Stream<Item = Result<B, warp::Error>>,
    limit: usize,
) -> Result<Option<Bytes>, Refused> {
    let length = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if length.is_some_and(|length: usize| length > limit) && headers.contains_key(EXPECT) {
        // The client waits for leave to send, and does not get it.
        return Ok(None);
    }
    match timeout(PATIENCE, read(body, length.unwrap_or_default(), limit)).await {
        Ok(read) => read,
        Err(_) => Err(Refused::new(Code::BadRequest, "The body did not arrive within 30 seconds.")
            .hint("Send less at once, or look at the network between client and agent.")),
    }
}

async fn read<B: Buf>(
    body: impl Stream<Item = Result<B, warp::Error>>,
    expected: usize,
    limit: usize,
) -> Result<Option<Bytes>, Refused> {
    let mut body = pin!(body);
    // The length is only a claim: no more than this is set aside for it.
    let mut bytes = Vec::with_capacity(expected.min(limit).min(64 << 10));
    let mut read = 0;
    while let Some(part) = body.next().await {
        let mut part = part.map_err(|_| {
            Refused::new(Code::BadRequest, "The connection broke before the body was complete.")
        })?;
        read += part.remaining();
        if read > limit.saturating_add(DRAINED) {
            break;
        }
        if read > limit {
            bytes = Vec::new();
            continue;
        }
        while part.has_remaining() {
            let length = part.chunk().len();
            bytes.extend_from_slice(part.chunk());
            part.advance(length);
        }
    }
    Ok((read <= limit).then(|| bytes.into()))
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

    async fn collect_parts(parts: &[&'static [u8]], limit: usize) -> Result<Bytes, Code> {
        let parts: Vec<_> = parts.iter().map(|part| Ok(Bytes::from_static(part))).collect();
        let body = stream::iter(parts);
        collect(&HeaderMap::new(), body, limit).await.map_err(|refused| refused.code())
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
        assert_eq!(collect(&headers, body, 4).await.unwrap_err().code(), Code::TooLarge);
    }
}
