//! What a list of keys promises: a key that is there all the while is listed once, one that is never there
//! is not listed. And what a read of one copy promises: nothing that nobody ever wrote.

use sky_chord::{Answer, Key, Operation};

use super::{Entry, Oracle, Outcome, number};

/// Whether a key was there while a list was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Presence {
    Throughout,
    Never,
    /// It came or went, or nobody can tell.
    Unclear,
}

impl Oracle {
    /// A client begins to read a list; returns the moment.
    pub(crate) fn begin_list(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// The list that was begun at that moment is complete. Returns how many keys it had to name.
    pub(crate) fn end_list(&mut self, begun: u64, prefix: &str, listed: &[Key]) -> usize {
        self.clock += 1;
        assert!(
            listed.windows(2).all(|pair| pair[0] < pair[1]),
            "a list names keys twice or out of order: {listed:?}"
        );
        let mut sure = 0;
        let named = |key: &Key| key.name().starts_with(prefix);
        for (key, entries) in self.keys.iter().filter(|(key, _)| named(key)) {
            let is_listed = listed.binary_search(key).is_ok();
            match presence(entries, begun) {
                Presence::Throughout => {
                    assert!(is_listed, "a list leaves out {key:?}, which was there all the while");
                    sure += 1;
                }
                Presence::Never => {
                    assert!(!is_listed, "a list names {key:?}, which was never there meanwhile");
                }
                Presence::Unclear => {}
            }
        }
        let invented = listed.iter().find(|key| !named(key) || !self.keys.contains_key(key));
        assert!(invented.is_none(), "a list names {invented:?}, which nobody wrote");
        sure
    }

    /// One copy was read: it may be old or not yet acknowledged, but somebody wrote it.
    pub(crate) fn read_one_copy(&self, key: &Key, answer: &Answer) {
        let Answer::Found { value, .. } = answer else {
            assert_eq!(*answer, Answer::Absent, "a read of one copy of {key:?}");
            return;
        };
        let entries = self.keys.get(key).map_or(&[][..], Vec::as_slice);
        let is_written = entries.iter().any(|entry| match &entry.operation {
            // What is left of its time is another matter.
            Operation::Put { value: written, .. } => written.bytes == value.bytes,
            _ => false,
        });
        assert!(is_written, "{key:?} has {} in one copy, which nobody wrote", number(&value.bytes));
    }
}

/// Whether a key was there from a moment until now, as far as its history tells for sure: an operation that
/// ended before showed it, and none that could change that came after.
fn presence(entries: &[Entry], begun: u64) -> Presence {
    let mut puts = entries.iter().filter(|entry| may_have(entry, true));
    if puts.next().is_none() {
        return Presence::Never;
    }
    // The latest evidence has the least that could have come after it.
    for entry in entries.iter().rev() {
        let Outcome::Answered(end, answer) = &entry.outcome else { continue };
        let Some(there) = shows(&entry.operation, answer).filter(|_| *end < begun) else {
            continue;
        };
        let may_undo = |other: &Entry| {
            let is_before =
                matches!(other.outcome, Outcome::Answered(end, _) if end < entry.invoked);
            !is_before && may_have(other, !there)
        };
        if !entries.iter().any(may_undo) {
            return if there { Presence::Throughout } else { Presence::Never };
        }
    }
    Presence::Unclear
}

/// Whether the operation may have stored, or may have deleted, the key.
fn may_have(entry: &Entry, stored: bool) -> bool {
    let can = match entry.operation {
        Operation::Put { .. } => stored,
        Operation::Delete { .. } => !stored,
        _ => false,
    };
    can && match &entry.outcome {
        Outcome::Unknown => true,
        Outcome::Answered(_, answer) => matches!(answer, Answer::Stored { .. } | Answer::Deleted),
        Outcome::Nothing => false,
    }
}

/// Whether the answer shows that the key was there; none if it shows nothing.
fn shows(operation: &Operation, answer: &Answer) -> Option<bool> {
    match (operation, answer) {
        (Operation::List { .. }, _) => None,
        (_, Answer::Found { .. } | Answer::Stored { .. }) => Some(true),
        (_, Answer::Absent | Answer::Deleted) => Some(false),
        (_, Answer::ConditionFailed { version }) => Some(version.is_some()),
        (_, Answer::Listed { .. }) => None,
    }
}

#[cfg(test)]
mod tests {
    use sky_chord::{Ballot, Condition, Value};

    use super::*;

    /// A history in which the key was stored, and a list begun after that.
    fn stored() -> (Oracle, Key, u64) {
        let (mut oracle, key) = (Oracle::default(), Key::new("k"));
        let value = Value { content_type: "".into(), bytes: "1".into(), ttl: None };
        let put = Operation::Put { key: key.clone(), value, condition: Condition::Always };
        let id = oracle.begin(&key, &put);
        oracle.end(&id, Answer::Stored { version: Ballot::ZERO, created: true });
        let begun = oracle.begin_list();
        (oracle, key, begun)
    }

    fn delete(oracle: &mut Oracle, key: &Key, answer: Option<Answer>) {
        let delete = Operation::Delete { key: key.clone(), condition: Condition::Always };
        let id = oracle.begin(key, &delete);
        if let Some(answer) = answer {
            oracle.end(&id, answer);
        }
    }

    #[test]
    #[should_panic(expected = "leaves out")]
    fn a_key_that_is_there_has_to_be_listed() {
        let (mut oracle, _, begun) = stored();
        oracle.end_list(begun, "", &[]);
    }

    #[test]
    fn a_key_that_may_have_been_deleted_need_not_be_listed() {
        for answer in [None, Some(Answer::Deleted)] {
            let (mut oracle, key, begun) = stored();
            delete(&mut oracle, &key, answer);
            assert_eq!(oracle.end_list(begun, "", &[]), 0);
            assert_eq!(oracle.end_list(begun, "", &[key]), 0);
        }
    }

    #[test]
    #[should_panic(expected = "never there")]
    fn a_deleted_key_must_not_be_listed() {
        let (mut oracle, key, _) = stored();
        delete(&mut oracle, &key, Some(Answer::Deleted));
        let begun = oracle.begin_list();
        oracle.end_list(begun, "", &[key]);
    }

    #[test]
    #[should_panic(expected = "nobody wrote")]
    fn a_value_that_nobody_wrote_is_found() {
        let (oracle, key, _) = stored();
        let value = Value { content_type: "".into(), bytes: "2".into(), ttl: None };
        oracle.read_one_copy(&key, &Answer::Found { value, version: Ballot::ZERO });
    }
}
