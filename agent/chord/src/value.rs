//! Values, and what is known of them where their bytes are not.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// A value as a client stored it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Value {
    /// The media type the client gave, kept as it is.
    pub content_type: Arc<str>,
    /// The bytes.
    pub bytes: Bytes,
    /// How long it is kept, if not for ever.
    pub ttl: Option<Ttl>,
}

impl Value {
    /// A short digest of media type and bytes, to compare copies by.
    pub fn digest(&self) -> u64 {
        xxh3_64_with_seed(&self.bytes, xxh3_64(self.content_type.as_bytes()))
    }

    /// What is known of it without its bytes.
    pub fn outline(&self) -> Outline {
        Outline {
            content_type: Arc::clone(&self.content_type),
            size: self.bytes.len() as u64,
            digest: self.digest(),
            ttl: self.ttl,
        }
    }
}

/// How long a value is kept after it was written. What is left is told as a span and never as a date, so
/// that the clocks of nodes need not agree: each counts by its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ttl {
    /// The whole time, in milliseconds, as the client gave it.
    pub whole_ms: u64,
    /// What is left of it, as far as the one who says so can tell.
    pub left_ms: u64,
}

impl Ttl {
    /// That of a value written now.
    pub fn new(whole: Duration) -> Self {
        let whole_ms = u64::try_from(whole.as_millis()).unwrap_or(u64::MAX);
        Self { whole_ms, left_ms: whole_ms }
    }

    /// As if nothing had gone by yet.
    pub const fn anew(self) -> Self {
        Self { left_ms: self.whole_ms, ..self }
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.bytes.len())
    }
}

/// A value without its bytes, which are kept apart from it or known to the reader: a promise or a ballot that
/// changes moves none of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outline {
    /// As in the value.
    pub content_type: Arc<str>,
    /// How many bytes it has.
    pub size: u64,
    /// [`Value::digest`].
    pub digest: u64,
    /// As in the value.
    pub ttl: Option<Ttl>,
}

impl Outline {
    /// The value, with these bytes. None if they are not those of the value.
    pub fn with(&self, bytes: Bytes) -> Option<Value> {
        let value = Value { content_type: Arc::clone(&self.content_type), bytes, ttl: self.ttl };
        let is_it = value.bytes.len() as u64 == self.size && value.digest() == self.digest;
        is_it.then_some(value)
    }
}

/// A value, or what is known of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// All of it.
    Whole(Value),
    /// Its bytes are elsewhere.
    Apart(Outline),
}

impl Content {
    /// Its size in bytes.
    pub fn size(&self) -> usize {
        match self {
            Self::Whole(value) => value.bytes.len(),
            Self::Apart(outline) => usize::try_from(outline.size).unwrap_or(usize::MAX),
        }
    }

    /// [`Value::digest`].
    pub fn digest(&self) -> u64 {
        match self {
            Self::Whole(value) => value.digest(),
            Self::Apart(outline) => outline.digest,
        }
    }

    /// How long it is kept, if not for ever.
    pub const fn ttl(&self) -> Option<Ttl> {
        match self {
            Self::Whole(value) => value.ttl,
            Self::Apart(outline) => outline.ttl,
        }
    }

    /// The same, to be changed.
    pub const fn ttl_mut(&mut self) -> Option<&mut Ttl> {
        match self {
            Self::Whole(value) => value.ttl.as_mut(),
            Self::Apart(outline) => outline.ttl.as_mut(),
        }
    }

    /// The value, if its bytes are here.
    pub const fn whole(&self) -> Option<&Value> {
        match self {
            Self::Whole(value) => Some(value),
            Self::Apart(_) => None,
        }
    }

    /// Whether it has the same bytes and media type.
    pub fn is_like(&self, other: &Self) -> bool {
        self.size() == other.size() && self.digest() == other.digest()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outline_takes_only_the_bytes_of_its_value() {
        let ttl = Some(Ttl::new(Duration::from_secs(9)));
        let value = Value { content_type: "text/plain".into(), bytes: "abc".into(), ttl };
        let outline = value.outline();
        assert_eq!(outline.with("abc".into()), Some(value.clone()));
        assert_eq!(outline.with("abd".into()), None);
        assert_eq!(outline.with("ab".into()), None);
        let other = Value { content_type: "text/html".into(), ..value.clone() };
        assert!(Content::Whole(value.clone()).is_like(&Content::Apart(outline)));
        assert!(!Content::Whole(value).is_like(&Content::Whole(other)));
    }
}
