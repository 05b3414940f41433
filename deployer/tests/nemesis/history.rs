//! What clients asked and were told.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Names a value: no two writes of a run store the same.
pub(crate) type Number = u64;

/// What a client asked of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Ask {
    Get,
    /// `POST`.
    Create(Number),
    /// `PUT`.
    Set(Number),
    /// `PUT` with `If-Match: *`.
    Update(Number),
    /// `PUT` with the `If-Match` of the second value.
    Swap(Number, Number),
    Delete,
    /// `DELETE` with the `If-Match` of this value.
    DeleteIf(Number),
}

impl Ask {
    /// The value that it stores, if it is carried out.
    pub(crate) const fn stores(self) -> Option<Number> {
        match self {
            Self::Create(new) | Self::Set(new) | Self::Update(new) | Self::Swap(new, _) => {
                Some(new)
            }
            Self::Get | Self::Delete | Self::DeleteIf(_) => None,
        }
    }

    /// For the table at the end.
    pub(crate) const fn kind(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Create(_) => "create",
            Self::Set(_) => "set",
            Self::Update(_) => "update",
            Self::Swap(..) => "compare-and-swap",
            Self::Delete => "delete",
            Self::DeleteIf(_) => "delete if",
        }
    }
}

/// What a client was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Told {
    /// 200 to `GET`.
    Found(Number),
    /// 404.
    Absent,
    /// 201.
    Created,
    /// 200 to `PUT`.
    Replaced,
    /// 204.
    Deleted,
    /// 409.
    Exists,
    /// 412.
    Failed,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Outcome {
    /// Answered at this moment.
    Told(u64, Told),
    /// 504, or no answer: it may take effect at any later moment, or never.
    Unknown,
    /// 503, 507, or no connection: it never takes effect.
    Nothing,
}

/// One request, over all its retries.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) ask: Ask,
    /// When the first attempt began, in nanoseconds of [`History::now`].
    pub(crate) begun: u64,
    pub(crate) outcome: Outcome,
    /// The ETag of the answer.
    pub(crate) etag: Option<Box<str>>,
    /// The agents asked, one after the other, and what each said.
    pub(crate) via: Box<str>,
}

impl Entry {
    /// When it was answered.
    pub(crate) const fn end(&self) -> Option<u64> {
        match self.outcome {
            Outcome::Told(end, _) => Some(end),
            Outcome::Unknown | Outcome::Nothing => None,
        }
    }
}

/// Everything that clients did, by key.
#[derive(Debug)]
pub(crate) struct History {
    started: Instant,
    keys: Mutex<std::collections::BTreeMap<String, Vec<Entry>>>,
    /// Answers that no agent may give, such as a status that is not documented or a damaged value.
    wrong: Mutex<Vec<String>>,
}

impl History {
    pub(crate) fn new() -> Self {
        Self { started: Instant::now(), keys: Mutex::default(), wrong: Mutex::default() }
    }

    /// Nanoseconds since the run began, on a clock that never jumps.
    pub(crate) fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    pub(crate) fn add(&self, key: &str, entry: Entry) {
        let mut keys = self.keys();
        match keys.get_mut(key) {
            Some(entries) => entries.push(entry),
            None => drop(keys.insert(key.to_owned(), vec![entry])),
        }
    }

    pub(crate) fn wrong(&self, what: String) {
        self.wrong.lock().unwrap_or_else(PoisonError::into_inner).push(what);
    }

    pub(crate) fn wrongs(&self) -> Vec<String> {
        self.wrong.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn keys(&self) -> MutexGuard<'_, std::collections::BTreeMap<String, Vec<Entry>>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The bytes of a value: its number, its key, and as much more as the number says, so that a value that
/// is cut, mixed up or under another key is noticed. Some are so long that they are kept apart from their
/// records.
pub(crate) fn bytes(key: &str, number: Number) -> Vec<u8> {
    let mut text = format!("{number} {key} ").into_bytes();
    let mut more = number;
    let length = match number % 64 {
        0 => 70_000,
        16 | 32 | 48 => 4000,
        small => small as usize % 16 * 8,
    };
    text.extend((0..length).map(|_| {
        more = more.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (more >> 56) as u8
    }));
    text
}

/// The number of a value; none if these are not the bytes of a value of this key.
pub(crate) fn number(key: &str, found: &[u8]) -> Option<Number> {
    let digits = found.split(|byte| *byte == b' ').next()?;
    let number = str::from_utf8(digits).ok()?.parse().ok()?;
    (bytes(key, number) == found).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_values_are_noticed() {
        for number_ in [1, 16, 64, 77] {
            let mut value = bytes("k", number_);
            assert_eq!(number("k", &value), Some(number_));
            assert_eq!(number("l", &value), None);
            *value.last_mut().unwrap() ^= 1;
            assert_eq!(number("k", &value), None);
            value.pop();
            assert_eq!(number("k", &value), None);
        }
        assert_eq!(number("k", b""), None);
    }
}
