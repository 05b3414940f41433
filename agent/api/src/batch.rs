//! `POST /kv:batch`: several operations on keys in one request, each with a result of its own.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use crate::Problem;

/// The most operations of one batch.
pub const MAX_OPERATIONS: usize = 256;

/// The most bytes of the JSON text of a batch, for agents that take values up to `max_value_bytes`: what
/// one value of that size takes at worst, but at least 4 MiB and at most 16: larger values go by themselves.
pub const fn max_body_bytes(max_value_bytes: usize) -> usize {
    match max_value_bytes.saturating_mul(2) {
        ..=0x40_0000 => 4 << 20,
        0x100_0000.. => 16 << 20,
        one => one,
    }
}

/// The body of `POST /kv:batch`. It is not a transaction: every operation succeeds or fails by itself, and
/// others see some of them done before the rest. Those on one key are carried out in their order, each
/// after the one before was answered; those on different keys in any order, several at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchRequest {
    /// The operations.
    #[schemars(length(max = MAX_OPERATIONS))]
    pub operations: Vec<BatchOperation>,
}

/// One operation of a [`BatchRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "op", rename_all = "lowercase", deny_unknown_fields)]
pub enum BatchOperation {
    /// As `GET /kv/{key}`.
    Get {
        /// The key, as it is: not percent-encoded.
        key: String,
        /// `any` reads one copy, which may be old.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        consistency: Option<String>,
        /// As the header `If-Match`.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        if_match: Option<String>,
        /// As the header `If-None-Match`.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        if_none_match: Option<String>,
    },
    /// As `PUT /kv/{key}`.
    Put {
        /// The key, as it is: not percent-encoded.
        key: String,
        /// The new value.
        value: Content,
        /// The media type to store with it; `application/octet-stream` if left out.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        content_type: Option<String>,
        /// As the header `TTL`: how many seconds the value is kept, at least one; for ever if left out.
        #[serde(skip_serializing_if = "Option::is_none", default, deserialize_with = "whole")]
        #[schemars(with = "Option<u64>")]
        ttl: Option<u64>,
        /// As the header `If-Match`: `*`, or quoted tags.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        if_match: Option<String>,
        /// As the header `If-None-Match`: `*` creates and never replaces.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        if_none_match: Option<String>,
        /// As the header `Idempotency-Key`. It may be the same for all operations of a batch: of those that are
        /// alike, with one key, each is a change of its own.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        idempotency_key: Option<String>,
    },
    /// As `DELETE /kv/{key}`.
    Delete {
        /// The key, as it is: not percent-encoded.
        key: String,
        /// As the header `If-Match`: `*`, or quoted tags.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        if_match: Option<String>,
        /// As the header `Idempotency-Key`. It may be the same for all operations of a batch.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        idempotency_key: Option<String>,
    },
}

/// A whole number, also one that is written as 60.0: in JSON they are the same.
fn whole<'de, D: Deserializer<'de>>(number: D) -> Result<Option<u64>, D::Error> {
    /// From here on it is none of 64 bits.
    const MOST: f64 = (1u128 << 64) as f64;
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Number {
        Whole(u64),
        Other(f64),
    }
    match Option::deserialize(number)? {
        None => Ok(None),
        Some(Number::Whole(number)) => Ok(Some(number)),
        Some(Number::Other(number)) if (0.0..MOST).contains(&number) && number.fract() == 0.0 => {
            Ok(Some(number as u64))
        }
        Some(Number::Other(_)) => Err(serde::de::Error::custom("a ttl is a whole number")),
    }
}

impl BatchOperation {
    /// The key it is about.
    pub fn key(&self) -> &str {
        match self {
            Self::Get { key, .. } | Self::Put { key, .. } | Self::Delete { key, .. } => key,
        }
    }
}

/// The bytes of a value in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Content {
    /// Its bytes are the UTF-8 of this text.
    Text(String),
    /// Its bytes in base64 with padding (RFC 4648, section 4).
    Base64(String),
}

/// The answer to a [`BatchRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BatchReport {
    /// One for each operation, in their order.
    pub results: Vec<BatchResult>,
}

/// What came of one operation of a batch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BatchResult {
    /// The status that the single call would have had.
    pub status: u16,
    /// The version of the value that was read or written.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub etag: Option<String>,
    /// The media type stored with the value that was read.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub content_type: Option<String>,
    /// The value that was read: text if it is UTF-8, else base64.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub value: Option<Content>,
    /// How many seconds are left of the time that the value is kept, if it is not for ever.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ttl: Option<u64>,
    /// Why the operation was refused; with every status from 400 on.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub problem: Option<Problem>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<BatchRequest, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_not_meant_for_an_operation_is_refused() {
        let batch = r#"{"operations":[{"op":"put","key":"a","value":{"base64":"AA=="}}]}"#;
        let read_back = serde_json::to_string(&read(batch).unwrap()).unwrap();
        assert_eq!(read_back, batch);
        for wrong in [
            r#"{}"#,
            r#"{"operations":[{"op":"move","key":"a"}]}"#,
            r#"{"operations":[{"op":"get"}]}"#,
            r#"{"operations":[{"op":"get","key":"a","idempotency_key":"x"}]}"#,
            r#"{"operations":[{"op":"put","key":"a"}]}"#,
            r#"{"operations":[{"op":"put","key":"a","value":"x"}]}"#,
            r#"{"operations":[{"op":"put","key":"a","value":{"text":"x","base64":""}}]}"#,
            r#"{"operations":[],"atomic":true}"#,
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
