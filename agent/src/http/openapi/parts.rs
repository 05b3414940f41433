//! Parameters and headers of the document.

use serde_json::{Map, Value, json};
use sky_api::{MAX_KEY_BYTES, header};

/// What a call takes besides its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parameter {
    Key,
    Consistency,
    IfMatch,
    IfNoneMatch,
    IfNoneMatchAny,
    IdempotencyKey,
    Ttl,
    Prefix,
    Limit,
    Cursor,
    Scope,
    After,
    Follow,
    Values,
    WatchAfter,
    WatchFollow,
    LastEventId,
    PageVersion,
    PageFile,
}

/// Quoted tags. Agents give out none with a comma.
const TAGS: &str = r##"^(W/)?"[!#-+.-~-]*"( *, *(W/)?"[!#-+.-~-]*")*$"##;

/// A place in a list: a key, in the hexadecimal digits of its UTF-8 (RFC 3629, section 4), or a point.
const CURSOR: &str = "^(k([0-7][0-9a-f]|(c[2-9a-f]|d[0-9a-f])[89ab][0-9a-f]\
    |(e0[ab]|e[1-9a-cef][89ab]|ed[89])[0-9a-f][89ab][0-9a-f]\
    |(f0[9ab]|f[1-3][89ab]|f48)[0-9a-f][89ab][0-9a-f][89ab][0-9a-f])*|p[0-9a-f]{40})$";

/// A number from 1 to [`sky_api::MAX_TTL_S`].
const TTL: &str = "^[1-9][0-9]{0,8}$";

/// A place among the events: see `Place`.
pub(super) const PLACE: &str = r"^(0|[0-9a-f]{1,16}\.[0-9]{1,9}\.[0-9]{1,19})$";

/// A place among those of a watch: see `WatchPlace`.
pub(super) const WATCH_PLACE: &str = r"^[0-9a-f]{1,16}\.[0-9]{1,9}\.[0-9]{1,19}\.[0-9]{1,19}$";

impl Parameter {
    /// The parameter object.
    pub(super) fn json(self) -> Value {
        let text = json!({ "type": "string" });
        let tags = json!({ "anyOf": [{ "const": "*" }, { "type": "string", "pattern": TAGS }] });
        let (place, name, about, schema) = match self {
            Self::Key => (
                "path",
                "key",
                "The key: UTF-8 of up to 1,024 bytes, percent-encoded. A slash may be encoded or not.",
                json!({
                    "type": "string",
                    "minLength": 1,
                    "maxLength": MAX_KEY_BYTES,
                    "not": { "enum": [".", ".."] },
                }),
            ),
            Self::Consistency => (
                "query",
                "consistency",
                "`any` reads one copy, which may be old or not yet acknowledged.",
                json!({ "enum": ["quorum", "any"], "default": "quorum" }),
            ),
            Self::IfMatch => ("header", "If-Match", "Only if the version is one of these.", tags),
            Self::IfNoneMatch => {
                ("header", "If-None-Match", "Only if the version is none of these.", tags)
            }
            Self::IfNoneMatchAny => (
                "header",
                "If-None-Match",
                "`*`: only if the key does not exist.",
                json!({ "enum": ["*"] }),
            ),
            Self::IdempotencyKey => (
                "header",
                "Idempotency-Key",
                "Makes a retry safe: the same key with the same call is applied once.",
                json!({ "type": "string", "minLength": 1, "maxLength": 255 }),
            ),
            Self::Ttl => (
                "header",
                "TTL",
                "How many seconds the value is kept, for ever if left out. It goes when most of its nodes say \
                    that the time is over, never before and about a second later.",
                json!({ "type": "string", "pattern": TTL }),
            ),
            Self::Prefix => ("query", "prefix", "Only keys that begin so.", text),
            Self::Limit => (
                "query",
                "limit",
                "The most keys of the page.",
                json!({ "type": "integer", "minimum": 1, "maximum": 1000, "default": 100 }),
            ),
            Self::Cursor => (
                "query",
                "cursor",
                "The `cursor` of the page before.",
                json!({ "type": "string", "pattern": CURSOR, "maxLength": 1 + 2 * MAX_KEY_BYTES }),
            ),
            Self::Scope => (
                "query",
                "scope",
                "`all`: what all known nodes report, and not only this one.",
                json!({ "enum": ["all"] }),
            ),
            Self::After => (
                "query",
                "after",
                "The id of the last event seen; `0` begins with the oldest one that is kept.",
                json!({ "type": "string", "pattern": PLACE }),
            ),
            Self::Follow => (
                "query",
                "follow",
                "`false` ends the stream after the events that are there.",
                json!({ "type": "boolean", "default": true }),
            ),
            Self::Values => (
                "query",
                "values",
                "`true`: events have the value in them if it has at most 16 KiB.",
                json!({ "type": "boolean", "default": false }),
            ),
            Self::WatchAfter => (
                "query",
                "after",
                "The id of the last event seen.",
                json!({ "type": "string", "pattern": WATCH_PLACE }),
            ),
            Self::WatchFollow => (
                "query",
                "follow",
                "`false` ends the stream after `synced`, or after what is there if that was told before.",
                json!({ "type": "boolean", "default": true }),
            ),
            Self::LastEventId => (
                "header",
                "Last-Event-ID",
                "As `after`, and taken rather than it. A text that is no id is like one of another start.",
                text,
            ),
            Self::PageVersion => ("path", "version", "A digest of all files.", text),
            Self::PageFile => ("path", "file", "The name of a file.", text),
        };
        let mut parameter =
            json!({ "in": place, "name": name, "description": about, "schema": schema });
        if place == "path" {
            parameter["required"] = true.into();
        }
        parameter
    }
}

/// What every call takes.
pub(super) fn request_id() -> Value {
    json!({
        "in": "header",
        "name": "X-Request-Id",
        "description": "Comes back in the answer, and is in the agent's log. One that has more than 128 bytes, or \
            others than letters, digits and `-_.:/+=@~`, is replaced by one that the agent makes.",
        "schema": { "type": "string" },
    })
}

/// A header of an answer.
#[derive(Debug, Clone, Copy)]
pub(super) enum Header {
    ETag,
    Ttl,
    Consistency,
}

/// These headers, and those that every answer has.
pub(super) fn headers(headers: &[Header]) -> Value {
    let mut all = Map::new();
    all.insert("X-Request-Id".to_owned(), required("The id of the request."));
    for header in headers {
        let (name, header) = match header {
            Header::ETag => ("ETag", required("The version of the value: opaque, in quotes.")),
            Header::Ttl => (
                "TTL",
                optional(
                    "How many seconds are left of the time that the value is kept, if not for ever.",
                ),
            ),
            Header::Consistency => {
                (header::CONSISTENCY, optional("`any` if the answer is that of one copy."))
            }
        };
        all.insert(name.to_owned(), header);
    }
    all.into()
}

/// A header that is always there.
pub(super) fn required(description: &str) -> Value {
    json!({ "required": true, "description": description, "schema": { "type": "string" } })
}

/// A header that may be there.
pub(super) fn optional(description: &str) -> Value {
    json!({ "description": description, "schema": { "type": "string" } })
}

/// One server-sent event with an id of this form and data of this schema.
pub(super) fn event(id: &str, data: &Value) -> Value {
    json!({
        "type": "object",
        "properties": {
            "id": { "type": "string", "pattern": id },
            "data": {
                "type": "string",
                "contentMediaType": "application/json",
                "contentSchema": data,
            },
        },
    })
}
