//! `POST /kv:batch`: several operations in one request. Each is an ordinary one, answered by itself.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::{Buf, Bytes};
use futures_util::{Stream, StreamExt, stream};
use sky_api::batch::{
    BatchOperation, BatchReport, BatchRequest, BatchResult, Content, MAX_OPERATIONS, max_body_bytes,
};
use sky_api::{Code, header};
use sky_chord::{Key, RequestId, Value};
use warp::http::Method;
use warp::http::header::{HeaderMap, HeaderValue, IF_MATCH, IF_NONE_MATCH};
use warp::reply::Response;

use super::etag::{self, Named};
use super::kv::{self, Outcome};
use super::problem::Refused;
use super::{Api, body, json_within, key};
use crate::fair::Share;

/// How many keys of one batch are worked on at once.
const AT_ONCE: usize = 16;

/// Carries out a batch.
pub(super) async fn answer<B: Buf>(
    api: &Api,
    headers: HeaderMap,
    body: impl Stream<Item = Result<B, warp::Error>>,
) -> Result<Response, Refused> {
    let most = max_body_bytes(api.max_value_bytes);
    let body = body::collect_json(&headers, body, most, |it| api.room_for(it)).await?;
    // What was read of it is as large, and there until all is done.
    let _read = api.room_for(body.len())?;
    let BatchRequest { operations } = body::read_json(&body)?;
    if operations.len() > MAX_OPERATIONS {
        let found = operations.len();
        let detail = format!("The batch has {found} operations; {MAX_OPERATIONS} are the most.");
        return Err(Refused::new(Code::TooLarge, detail).hint("Send it as several batches."));
    }
    drop(body);
    let count = operations.len();
    let mut by_key: BTreeMap<String, Vec<(usize, BatchOperation)>> = BTreeMap::new();
    for (index, operation) in operations.into_iter().enumerate() {
        by_key.entry(operation.key().to_owned()).or_default().push((index, operation));
    }
    let answer = Answer { room: AtomicUsize::new(most), memory: Mutex::default() };
    let in_order = |operations: Vec<(usize, BatchOperation)>| async {
        let mut results = Vec::with_capacity(operations.len());
        let mut ids = Ids::default();
        for (index, operation) in operations {
            results.push((index, one(api, operation, &mut ids, &answer).await));
        }
        results
    };
    let results = stream::iter(by_key.into_values()).map(in_order).buffer_unordered(AT_ONCE);
    let mut results: Vec<_> = results.collect::<Vec<_>>().await.into_iter().flatten().collect();
    results.sort_unstable_by_key(|(index, _)| *index);
    debug_assert_eq!(results.len(), count);
    let results = results.into_iter().map(|(_, result)| result).collect();
    let memory = answer.memory.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(json_within(memory, &BatchReport { results }))
}

/// What the values take that the answer tells.
struct Answer {
    /// How many bytes more there may be: as many as may be written.
    room: AtomicUsize,
    /// The memory of large ones.
    memory: Mutex<Vec<Share>>,
}

/// The ids of the changes of one key so far, and how often each was used.
#[derive(Default)]
struct Ids(BTreeMap<RequestId, u32>);

impl Ids {
    /// A change that comes again is another one, and the same in a batch that is sent again.
    fn next(&mut self, (id, retry): (RequestId, bool)) -> (RequestId, bool) {
        let used = self.0.entry(id).or_default();
        let id = if *used == 0 { id } else { kv::repeated(id, *used) };
        *used += 1;
        (id, retry)
    }
}

async fn one(api: &Api, operation: BatchOperation, ids: &mut Ids, answer: &Answer) -> BatchResult {
    let outcome = carry_out(api, operation, ids).await;
    outcome.and_then(|outcome| fits(api, outcome, answer)).map_or_else(refused, result)
}

async fn carry_out(
    api: &Api,
    operation: BatchOperation,
    ids: &mut Ids,
) -> Result<Outcome, Refused> {
    match operation {
        BatchOperation::Get { key, consistency, if_match, if_none_match } => {
            let (key, consistency) = (named(key)?, kv::consistency(consistency.as_deref())?);
            let (wanted, known) = conditions(if_match, if_none_match)?;
            kv::read(api, key, consistency, wanted, known).await
        }
        BatchOperation::Put {
            key,
            value,
            content_type,
            ttl,
            if_match,
            if_none_match,
            idempotency_key,
        } => {
            let key = named(key)?;
            let (matching, other) = conditions(if_match, if_none_match)?;
            let condition = etag::condition_of(matching, other)?;
            let content_type = media_type(content_type)?;
            let bytes = bytes(value)?;
            if bytes.len() > api.max_value_bytes {
                return Err(body::too_large(api.max_value_bytes));
            }
            let given = idempotency(idempotency_key.as_deref())?;
            let id = kv::request_id(api, &Method::PUT, &condition, given)?;
            let ttl = ttl.map(kv::ttl_of).transpose()?;
            let value = Value { content_type: content_type.as_str().into(), bytes, ttl };
            kv::write(api, ids.next(id), key, value, condition).await
        }
        BatchOperation::Delete { key, if_match, idempotency_key } => {
            let key = named(key)?;
            let condition = etag::condition_of(conditions(if_match, None)?.0, None)?;
            let given = idempotency(idempotency_key.as_deref())?;
            let id = kv::request_id(api, &Method::DELETE, &condition, given)?;
            kv::remove(api, ids.next(id), key, condition).await
        }
    }
}

fn named(name: String) -> Result<Key, Refused> {
    key::named(&name)
}

fn conditions(
    if_match: Option<String>,
    if_none_match: Option<String>,
) -> Result<(Option<Named>, Option<Named>), Refused> {
    let wanted = etag::listed(if_match.as_deref(), IF_MATCH.as_str(), true)?;
    let known = etag::listed(if_none_match.as_deref(), IF_NONE_MATCH.as_str(), false)?;
    Ok((wanted, known))
}

/// A media type that can be sent back as a header later.
fn media_type(given: Option<String>) -> Result<String, Refused> {
    let Some(given) = given else { return Ok(kv::OCTETS.to_owned()) };
    let value = HeaderValue::from_str(&given).ok();
    if value.is_some_and(|value| value.to_str().is_ok()) && given.trim() == given {
        kv::check_length(&given)?;
        return Ok(given);
    }
    let detail = "The content_type is not what a Content-Type header could say: plain ASCII text.";
    Err(Refused::new(Code::BadRequest, detail))
}

/// What could be sent as a header as well, so that either way of retrying finds the other.
fn idempotency(given: Option<&str>) -> Result<Option<&[u8]>, Refused> {
    match given {
        Some(text) if HeaderValue::from_str(text).is_err() => {
            let detail = format!("The {} holds control characters.", header::IDEMPOTENCY_KEY);
            Err(Refused::new(Code::BadRequest, detail).hint("A random UUID is a good one."))
        }
        given => Ok(given.map(str::as_bytes)),
    }
}

fn bytes(value: Content) -> Result<Bytes, Refused> {
    match value {
        Content::Text(text) => Ok(text.into()),
        Content::Base64(text) => match BASE64_STANDARD.decode(text) {
            Ok(bytes) => Ok(bytes.into()),
            Err(error) => {
                let detail = format!("The value is not base64 with padding: {error}.");
                Err(Refused::new(Code::BadRequest, detail))
            }
        },
    }
}

/// Refuses a value that would make the answer too large together with those before it, or for which there is
/// no memory.
fn fits(api: &Api, outcome: Outcome, answer: &Answer) -> Result<Outcome, Refused> {
    let Outcome::Found(value, _) = &outcome else { return Ok(outcome) };
    let size = value.bytes.len();
    match answer.room.fetch_update(Relaxed, Relaxed, |room| room.checked_sub(size)) {
        Ok(_) => {
            let share = api.room_for(size)?;
            answer.memory.lock().unwrap_or_else(PoisonError::into_inner).extend(share);
            Ok(outcome)
        }
        Err(room) => {
            let detail = format!(
                "The answer has room for {room} bytes of values more, and this one has {size}."
            );
            let hint = "Read it by itself, or in a batch with fewer values.";
            Err(Refused::new(Code::TooLarge, detail).hint(hint))
        }
    }
}

fn result(outcome: Outcome) -> BatchResult {
    let result = BatchResult { status: outcome.status().as_u16(), ..BatchResult::default() };
    match outcome {
        Outcome::Found(value, version) => BatchResult {
            etag: Some(etag::text(&version)),
            content_type: Some(value.content_type.to_string()),
            value: Some(content(&value.bytes)),
            ttl: value.ttl.map(kv::seconds_left),
            ..result
        },
        Outcome::NotModified(version) | Outcome::Stored { version, .. } => {
            BatchResult { etag: Some(etag::text(&version)), ..result }
        }
        Outcome::Deleted => result,
    }
}

/// A value in JSON.
pub(super) fn content(bytes: &[u8]) -> Content {
    match str::from_utf8(bytes) {
        Ok(text) => Content::Text(text.to_owned()),
        Err(_) => Content::Base64(BASE64_STANDARD.encode(bytes)),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is the end of the refusal")]
fn refused(refused: Refused) -> BatchResult {
    let problem = refused.problem();
    BatchResult { status: problem.status, problem: Some(problem), ..BatchResult::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_as_they_were() {
        for value in [&b""[..], "ü\0".as_bytes(), &[0, 159, 146, 150]] {
            assert_eq!(bytes(content(value)).unwrap(), value);
        }
        for wrong in ["AA", "A===", "AA==\n", "ü"] {
            let refused = bytes(Content::Base64(wrong.to_owned())).unwrap_err();
            assert_eq!(refused.code(), Code::BadRequest, "{wrong}");
        }
    }

    #[test]
    fn what_no_header_could_say_is_refused() {
        assert_eq!(
            media_type(Some("text/plain; x=\"ü\"".into())).unwrap_err().code(),
            Code::BadRequest
        );
        assert_eq!(media_type(Some("a\nb".into())).unwrap_err().code(), Code::BadRequest);
        assert_eq!(media_type(None).unwrap(), kv::OCTETS);
        assert!(idempotency(Some("a\r\nb")).is_err() && idempotency(Some("a")).is_ok());
    }
}
