//! `GET /watch` and `/watch/{key}`: what changes, told as server-sent events.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::batch::Content;
use crate::{MissedWhy, Problem};

/// The longest value that an event has in it, in bytes.
pub const MAX_VALUE_BYTES: usize = 16 << 10;

/// The data of one event. Its id is the place to go on from, as `Last-Event-ID` or `?after=`.
///
/// For each key versions are told in their order. Some may be left out, never the last one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum WatchReport {
    /// The key has this value now.
    Value {
        /// The key.
        key: String,
        /// The version, as the header `ETag` has it.
        etag: String,
        /// The size of the value in bytes.
        size: u32,
        /// The media type that was stored with it.
        content_type: String,
        /// The value, if it was asked for and is not too long.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        value: Option<Content>,
    },
    /// A key that was told of does not exist any more.
    Deleted {
        /// The key.
        key: String,
        /// The version that was told last.
        etag: String,
    },
    /// Everything that was there at the beginning has been told.
    Synced,
    /// Events were missed. Everything that is there is told anew, up to `synced`: what is not told until
    /// then is not there any more.
    Missed {
        /// Why.
        why: MissedWhy,
    },
    /// Nothing more is told.
    Ended {
        /// Why, and what to do next.
        problem: Problem,
    },
}
