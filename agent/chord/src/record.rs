//! What is stored for a key: the register of CASPaxos, with its value and recent request ids.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::Id;
use crate::config::Ballot;
use crate::value::{Content, Outline, Value};

/// How many request ids a key remembers, so that a retry is answered and not applied again.
pub const REQUEST_IDS_KEPT: usize = 16;

/// A key and the point it hashes to. Ordered by point, then by name: the order of storage.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key {
    hash: Id,
    name: Arc<str>,
}

impl Key {
    /// The key of this name; its point is the SHA-1 of the name.
    pub fn new(name: &str) -> Self {
        Self { hash: Id::hash(name.as_bytes()), name: name.into() }
    }

    /// Before all keys of the next point, in the order of storage.
    pub(crate) fn first_after(point: Id) -> Self {
        Self { hash: point.plus(Id::small(1)), name: "".into() }
    }

    /// The point of the circle.
    pub const fn hash(&self) -> Id {
        self.hash
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The stored form: the 20 bytes of the point, then the name, so that byte order is ring order.
    pub fn to_bytes(&self) -> Vec<u8> {
        [self.hash.as_bytes(), self.name.as_bytes()].concat()
    }

    /// Reads the stored form; `None` if it is not one.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (hash, name) = bytes.split_first_chunk()?;
        Some(Self { hash: Id::from_bytes(*hash), name: str::from_utf8(name).ok()?.into() })
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.name)
    }
}

/// Identifies one request of a client over all its retries.
///
/// The id of an agent begins with the time the request came. An id made of a client's own text has the
/// highest bit set and no time in it.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct RequestId(pub u128);

impl RequestId {
    const GIVEN: u128 = 1 << 127;

    /// The id of a request that came at this time (microseconds on the agent's clock), with a number
    /// that no other request of that moment has.
    pub const fn at(micros: u64, number: u64) -> Self {
        Self((micros as u128) << 64 & !Self::GIVEN | number as u128)
    }

    /// The id of a request that the client itself identifies, by a hash of its text.
    pub const fn given(hash: u128) -> Self {
        Self(hash | Self::GIVEN)
    }

    /// The time in the id, if there is one.
    pub(crate) const fn micros(self) -> Option<u64> {
        if self.has_time() { Some((self.0 >> 64) as u64) } else { None }
    }

    const fn has_time(self) -> bool {
        self.0 & Self::GIVEN == 0
    }
}

/// What a change did, remembered with the id of its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Effect {
    /// The key did not exist and was stored.
    Created,
    /// The key existed and got a new value.
    Replaced,
    /// The key existed and was deleted.
    Deleted,
    /// A condition did not hold; nothing was changed. Kept so that a late duplicate changes nothing.
    Refused,
}

/// A request that was carried out on this key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// The request.
    pub request: RequestId,
    /// When it came to the first agent, in microseconds on that agent's clock: the same for everybody to
    /// whom that agent handed it.
    pub stamp: u64,
    /// What it did.
    pub effect: Effect,
    /// The version that it made, or found.
    pub version: Ballot,
}

/// The state of a key that the members agree on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Register {
    /// The ballot of the round that changed the value: the ETag. A re-proposal leaves it alone.
    pub version: Ballot,
    /// The value; `None` is a tombstone, or a key never written.
    pub value: Option<Content>,
    /// The last requests carried out, oldest first, at most [`REQUEST_IDS_KEPT`].
    pub done: Vec<Done>,
    /// The latest stamp of the requests carried out that are not in `done` any more; 0 if there are none.
    pub forgotten: u64,
}

impl Register {
    /// A key that was never written.
    pub const ABSENT: Self =
        Self { version: Ballot::ZERO, value: None, done: Vec::new(), forgotten: 0 };

    /// The size of the value in bytes; 0 if there is none.
    pub fn value_bytes(&self) -> usize {
        self.value.as_ref().map_or(0, Content::size)
    }

    /// The value, if its bytes are in here.
    pub fn whole(&self) -> Option<&Value> {
        self.value.as_ref().and_then(Content::whole)
    }

    /// How many bytes of the value are in here.
    pub fn bytes_here(&self) -> usize {
        self.whole().map_or(0, |value| value.bytes.len())
    }

    /// The outline of the value, if its bytes are not in here.
    pub fn apart(&self) -> Option<&Outline> {
        match &self.value {
            Some(Content::Apart(outline)) => Some(outline),
            Some(Content::Whole(_)) | None => None,
        }
    }

    /// The same, without the bytes of a value of more than `most`.
    #[must_use]
    pub fn outlined(mut self, most: usize) -> Self {
        if let Some(Content::Whole(value)) = &self.value
            && value.bytes.len() > most
        {
            self.value = Some(Content::Apart(value.outline()));
        }
        self
    }

    /// Whether `other` has the same value, wherever the bytes are: a version is that of one value, unless a
    /// copy of it is damaged.
    pub fn has_value_of(&self, other: &Self) -> bool {
        let alike = |(mine, its): (&Content, &Content)| mine.is_like(its);
        self.version == other.version
            && self.value.as_ref().zip(other.value.as_ref()).is_some_and(alike)
    }

    /// Notes that `request` was carried out, and forgets the oldest if there are too many.
    pub fn remember(&mut self, done: Done) {
        if self.done.len() >= REQUEST_IDS_KEPT {
            let forgotten = self.done.drain(..=self.done.len() - REQUEST_IDS_KEPT);
            self.forgotten =
                forgotten.map(|done| done.stamp).max().unwrap_or(0).max(self.forgotten);
        }
        self.done.push(done);
    }

    /// Whether a request with this stamp may have been carried out so long ago that it is not remembered. If
    /// it was, its own stamp is among those forgotten, so that the clocks of agents need not agree.
    pub const fn may_have_forgotten(&self, stamp: u64) -> bool {
        self.forgotten != 0 && stamp <= self.forgotten
    }
}

/// What one node durably holds for a key: the state of an acceptor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// No ballot below this one is answered.
    pub promised: Ballot,
    /// The ballot under which `register` was accepted; [`Ballot::ZERO`] if nothing was.
    pub accepted: Ballot,
    /// What was accepted.
    pub register: Register,
    /// When the value's time is over, in microseconds on this node's own clock, if it has a [`Ttl`].
    pub expires: Option<u64>,
}

impl Record {
    /// A key this node has heard nothing of.
    pub const EMPTY: Self = Self {
        promised: Ballot::ZERO,
        accepted: Ballot::ZERO,
        register: Register::ABSENT,
        expires: None,
    };

    /// Whether a value is held (neither nothing nor a tombstone).
    pub const fn is_live(&self) -> bool {
        self.register.value.is_some()
    }

    /// Whether it says that the key does not exist any more.
    pub fn is_tombstone(&self) -> bool {
        self.register.value.is_none() && self.accepted != Ballot::ZERO
    }

    /// The stored form. The first byte is the version of the format.
    pub fn to_bytes(&self) -> Vec<u8> {
        postcard::to_extend(self, vec![RECORD_FORMAT]).unwrap_or_default()
    }

    /// Reads the stored form; `None` if it is damaged or of a newer format.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (format, rest) = bytes.split_first()?;
        match *format {
            RECORD_FORMAT => postcard::from_bytes(rest).ok(),
            second::FORMAT => postcard::from_bytes::<second::Record>(rest).ok().map(Self::from),
            first::FORMAT => postcard::from_bytes::<first::Record>(rest).ok().map(Self::from),
            _ => None,
        }
    }
}

const RECORD_FORMAT: u8 = 3;

/// The second format of records, of agents that kept all values in them.
mod second {
    use super::{Ballot, Deserialize, Done, Value};

    pub(super) const FORMAT: u8 = 2;

    #[derive(Deserialize)]
    #[cfg_attr(test, derive(serde::Serialize))]
    pub(super) struct Record {
        pub(super) promised: Ballot,
        pub(super) accepted: Ballot,
        pub(super) register: Register,
        pub(super) expires: Option<u64>,
    }

    #[derive(Deserialize)]
    #[cfg_attr(test, derive(serde::Serialize))]
    pub(super) struct Register {
        pub(super) version: Ballot,
        pub(super) value: Option<Value>,
        pub(super) done: Vec<Done>,
        pub(super) forgotten: u64,
    }
}

impl From<second::Record> for Record {
    fn from(record: second::Record) -> Self {
        let second::Record { promised, accepted, register, expires } = record;
        let second::Register { version, value, done, forgotten } = register;
        let register = Register { version, value: value.map(Content::Whole), done, forgotten };
        Self { promised, accepted, register, expires }
    }
}

/// The first format of records, of agents that knew of no [`Ttl`].
mod first {
    use bytes::Bytes;

    use super::{Arc, Ballot, Deserialize, Done};

    pub(super) const FORMAT: u8 = 1;

    #[derive(Deserialize)]
    #[cfg_attr(test, derive(serde::Serialize))]
    pub(super) struct Record {
        pub(super) promised: Ballot,
        pub(super) accepted: Ballot,
        pub(super) register: Register,
    }

    #[derive(Deserialize)]
    #[cfg_attr(test, derive(serde::Serialize))]
    pub(super) struct Register {
        pub(super) version: Ballot,
        pub(super) value: Option<Value>,
        pub(super) done: Vec<Done>,
        pub(super) forgotten: u64,
    }

    #[derive(Deserialize)]
    #[cfg_attr(test, derive(serde::Serialize))]
    pub(super) struct Value {
        pub(super) content_type: Arc<str>,
        pub(super) bytes: Bytes,
    }
}

impl From<first::Record> for Record {
    fn from(record: first::Record) -> Self {
        let first::Record { promised, accepted, register } = record;
        let first::Register { version, value, done, forgotten } = register;
        let value = value.map(|first::Value { content_type, bytes }| Value {
            content_type,
            bytes,
            ttl: None,
        });
        let register = second::Register { version, value, done, forgotten };
        second::Record { promised, accepted, register, expires: None }.into()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::value::Ttl;

    fn value() -> Value {
        let ttl = Some(Ttl::new(Duration::from_secs(1)));
        Value { content_type: "text/plain".into(), bytes: "v".into(), ttl }
    }

    #[test]
    fn keys_are_stored_in_ring_order() {
        let mut keys: Vec<_> = (0..100).map(|i| Key::new(&format!("key {i}"))).collect();
        keys.sort();
        assert!(keys.is_sorted_by_key(Key::to_bytes));
        for key in keys {
            assert_eq!(Key::from_bytes(&key.to_bytes()), Some(key));
        }
        assert_eq!(Key::from_bytes(b"short"), None);
    }

    #[test]
    fn the_oldest_request_id_is_forgotten_first() {
        let mut register = Register::ABSENT;
        for i in 0..20 {
            register.remember(Done {
                request: RequestId(i),
                stamp: i as u64,
                effect: Effect::Replaced,
                version: Ballot::ZERO,
            });
        }
        let kept: Vec<_> = register.done.iter().map(|done| done.request.0).collect();
        assert_eq!(kept, (4..20).collect::<Vec<_>>());
        assert!(register.may_have_forgotten(3));
        assert!(!register.may_have_forgotten(4));
        assert!(!Register::ABSENT.may_have_forgotten(0));
    }

    #[test]
    fn damaged_records_are_refused() {
        let record = Record {
            register: Register { value: Some(Content::Whole(value())), ..Register::ABSENT },
            expires: Some(7),
            ..Record::EMPTY
        };
        let bytes = record.to_bytes();
        assert_eq!(Record::from_bytes(&bytes), Some(record));
        assert_eq!(Record::from_bytes(&bytes[..bytes.len() - 1]), None);
        assert_eq!(Record::from_bytes(&[9]), None);
    }

    #[test]
    fn records_of_the_first_format_are_read() {
        let value = first::Value { content_type: "text/plain".into(), bytes: "v".into() };
        let (version, done) = (Ballot { epoch: 3, ..Ballot::ZERO }, Vec::new());
        let old = first::Record {
            promised: version,
            accepted: version,
            register: first::Register { version, value: Some(value), done, forgotten: 9 },
        };
        let bytes = postcard::to_extend(&old, vec![first::FORMAT]).unwrap();
        let record = Record::from_bytes(&bytes).unwrap();
        assert_eq!((record.promised, record.accepted, record.expires), (version, version, None));
        let Register { version: told, value, forgotten, .. } = record.register;
        assert_eq!((told, forgotten), (version, 9));
        let Some(Content::Whole(Value { content_type, bytes, ttl })) = value else { panic!() };
        assert_eq!((&*content_type, &*bytes, ttl), ("text/plain", &b"v"[..], None));
    }

    #[test]
    fn records_of_the_second_format_are_read() {
        let (version, done) = (Ballot { epoch: 3, ..Ballot::ZERO }, Vec::new());
        let old = second::Record {
            promised: version,
            accepted: version,
            register: second::Register { version, value: Some(value()), done, forgotten: 9 },
            expires: Some(7),
        };
        let bytes = postcard::to_extend(&old, vec![second::FORMAT]).unwrap();
        let record = Record::from_bytes(&bytes).unwrap();
        assert_eq!((record.promised, record.expires), (version, Some(7)));
        assert_eq!(record.register.value, Some(Content::Whole(value())));
    }
}
