//! What clients were told must be explicable by one order of all operations (linearizability), judged
//! for each key ([`search`]). Lists of keys and reads of one copy promise less and are judged in
//! [`presence`]; when values that are kept for a time may be gone is in [`expiring`].

mod expiring;
mod presence;
mod search;

use std::collections::BTreeMap;

use search::explains;
use sky_chord::{Answer, Ballot, Condition, Consistency, Key, Operation, Value};

/// Of a history that cannot be explained, this much is shown.
const LINES_SHOWN: usize = 30;

/// All that clients did and were told.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    keys: BTreeMap<Key, Vec<Entry>>,
    /// Values that are kept for a time only, until it can be over.
    expiring: Vec<expiring::Expiring>,
    clock: u64,
}

/// Names an operation of the history.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct EntryId(Key, usize);

#[derive(Debug, Clone)]
struct Entry {
    operation: Operation,
    /// It is no client's operation, but deletes this value, whose time is over.
    expires: Option<u64>,
    invoked: u64,
    outcome: Outcome,
}

#[derive(Debug, Clone)]
enum Outcome {
    /// It may take effect at any later moment, or never.
    Unknown,
    /// It took effect before this moment, with this answer.
    Answered(u64, Answer),
    /// It never takes effect.
    Nothing,
}

impl Oracle {
    /// A client begins an operation on a key.
    pub(crate) fn begin(&mut self, key: &Key, operation: &Operation) -> EntryId {
        self.clock += 1;
        let entries = self.keys.entry(key.clone()).or_default();
        let (operation, invoked) = (operation.clone(), self.clock);
        entries.push(Entry { operation, expires: None, invoked, outcome: Outcome::Unknown });
        EntryId(key.clone(), entries.len() - 1)
    }

    /// The client was answered.
    pub(crate) fn end(&mut self, id: &EntryId, answer: Answer) {
        self.clock += 1;
        let clock = self.clock;
        self.entry(id).outcome = Outcome::Answered(clock, answer);
    }

    /// The client was told that nothing was changed.
    pub(crate) fn cancel(&mut self, id: &EntryId) {
        self.entry(id).outcome = Outcome::Nothing;
    }

    /// Somebody was told what a key is, as read at some time since then. Returns the moment.
    pub(crate) fn observe(&mut self, key: &Key, since: u64, answer: Answer) -> u64 {
        let operation = Operation::Get { key: key.clone(), consistency: Consistency::Quorum };
        let id = self.begin(key, &operation);
        self.entry(&id).invoked = since;
        self.end(&id, answer);
        self.clock
    }

    /// How many changes of the same key may have come after an operation began: a key remembers only the
    /// last few requests.
    pub(crate) fn changes_since(&self, id: &EntryId) -> usize {
        let entries = self.keys.get(&id.0).map_or(&[][..], Vec::as_slice);
        let begun = entries[id.1].invoked;
        let may_follow = |entry: &&Entry| match entry.outcome {
            Outcome::Answered(end, _) => end > begun,
            Outcome::Unknown => true,
            Outcome::Nothing => false,
        };
        entries.iter().filter(|entry| entry.is_remembered()).filter(may_follow).count()
    }

    /// How many changes of the same key were ever begun.
    pub(crate) fn changes(&self, id: &EntryId) -> usize {
        let entries = self.keys.get(&id.0).map_or(&[][..], Vec::as_slice);
        entries.iter().filter(|entry| entry.is_remembered()).count()
    }

    fn entry(&mut self, id: &EntryId) -> &mut Entry {
        &mut self.keys.get_mut(&id.0).expect("a key of the history")[id.1]
    }

    /// Panics unless all answers can be explained.
    pub(crate) fn judge(&self) {
        for (key, entries) in &self.keys {
            let versions = Versions::of(key, entries);
            let wanted = |entry: &&Entry| match entry.outcome {
                Outcome::Unknown => entry.operation.is_change(),
                Outcome::Answered(..) => true,
                Outcome::Nothing => false,
            };
            let mut history: Vec<_> = entries.iter().filter(wanted).collect();
            history.sort_by_key(|entry| entry.invoked);
            if explains(&history, &versions) {
                continue;
            }
            // The first moment from which on nothing explains what was told.
            let until = |moment: u64| {
                let begun = history.iter().filter(move |entry| entry.invoked <= moment);
                begun.map(|entry| entry.until(moment)).collect::<Vec<_>>()
            };
            let (mut fine, mut wrong) = (0, self.clock);
            while wrong - fine > 1 {
                let middle = fine.midpoint(wrong);
                let known = until(middle);
                let is_fine = explains(&known.iter().collect::<Vec<_>>(), &versions);
                *(if is_fine { &mut fine } else { &mut wrong }) = middle;
            }
            let lines: Vec<_> = until(wrong).iter().map(line).collect();
            let shown = &lines[lines.len().saturating_sub(LINES_SHOWN)..];
            panic!("no order explains what was told of {key:?}:\n{}", shown.join("\n"));
        }
    }
}

impl Entry {
    /// Whether the key remembers the request.
    const fn is_remembered(&self) -> bool {
        self.operation.is_change() && self.expires.is_none()
    }

    /// The operation as it was known at this moment.
    fn until(&self, moment: u64) -> Self {
        let mut entry = self.clone();
        if end_of(self).is_some_and(|end| end > moment) {
            entry.outcome = Outcome::Unknown;
        }
        entry
    }
}

/// Which version each value has: the same for everybody who saw it, and another for every value.
struct Versions(BTreeMap<u64, Ballot>);

impl Versions {
    fn of(key: &Key, entries: &[Entry]) -> Self {
        let mut of_value = BTreeMap::new();
        let mut of_version = BTreeMap::new();
        for entry in entries {
            let (value, version) = match (&entry.outcome, &entry.operation) {
                (Outcome::Answered(_, Answer::Found { value, version }), _) => {
                    (number(&value.bytes), *version)
                }
                (
                    Outcome::Answered(_, Answer::Stored { version, .. }),
                    Operation::Put { value, .. },
                ) => (number(&value.bytes), *version),
                _ => continue,
            };
            let before = of_value.insert(value, version);
            assert!(
                before.is_none_or(|before| before == version),
                "{key:?}: value {value} had version {before:?} and then {version:?}"
            );
            let other = of_version.insert(version, value);
            assert!(
                other.is_none_or(|other| other == value),
                "{key:?}: version {version:?} is that of {value} and of {other:?}"
            );
        }
        Self(of_value)
    }

    /// The version of a value that somebody saw.
    fn of_value(&self, value: u64) -> Option<Ballot> {
        self.0.get(&value).copied()
    }

    /// Whether a key with this value can have this version.
    fn may_be(&self, value: u64, version: Ballot) -> bool {
        match self.0.get(&value) {
            Some(known) => *known == version,
            None => !self.0.values().any(|known| *known == version),
        }
    }
}

/// Every value of a simulation is a number of its own, and perhaps a dot and something to make it longer.
pub(crate) fn number(bytes: &[u8]) -> u64 {
    let text = str::from_utf8(bytes).ok().and_then(|text| text.split('.').next());
    text.and_then(|text| text.parse().ok()).expect("a value of the workload")
}

fn end_of(entry: &Entry) -> Option<u64> {
    match entry.outcome {
        Outcome::Answered(end, _) => Some(end),
        _ => None,
    }
}

fn line(entry: &Entry) -> String {
    let what = match &entry.operation {
        Operation::Put { value, condition, .. } => {
            format!("put {} if {condition:?}", number(&value.bytes))
        }
        Operation::Delete { condition, .. } => match entry.expires {
            Some(value) => format!("{value} may expire"),
            None => format!("delete if {condition:?}"),
        },
        other => format!("{other:?}"),
    };
    let told = match &entry.outcome {
        Outcome::Answered(end, Answer::Found { value, version }) => {
            format!("{end:>5} found {} {version:?}", number(&value.bytes))
        }
        Outcome::Answered(end, answer) => format!("{end:>5} {answer:?}"),
        _ => "unknown".to_owned(),
    };
    format!("{:>5} {what:<60} {told}", entry.invoked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sky_chord::NodeId;

    fn put(number: u64) -> Operation {
        let value = Value { content_type: "".into(), bytes: number.to_string().into(), ttl: None };
        Operation::Put { key: Key::new("k"), value, condition: Condition::Always }
    }

    fn stored(created: bool, round: u64) -> Answer {
        Answer::Stored { version: ballot(round), created }
    }

    fn ballot(round: u64) -> Ballot {
        Ballot { round, node: NodeId { ..Ballot::ZERO.node }, ..Ballot::ZERO }
    }

    fn found(put: &Operation, round: u64) -> Answer {
        match put {
            Operation::Put { value, .. } => {
                Answer::Found { value: value.clone(), version: ballot(round) }
            }
            _ => Answer::Absent,
        }
    }

    fn run(steps: impl FnOnce(&mut Oracle, &Key, &Operation)) {
        let mut oracle = Oracle::default();
        let key = Key::new("k");
        let get = Operation::Get { key: key.clone(), consistency: Consistency::Quorum };
        steps(&mut oracle, &key, &get);
        oracle.judge();
    }

    #[test]
    fn an_unknown_write_may_be_seen_later() {
        run(|oracle, key, get| {
            oracle.begin(key, &put(1));
            let first = oracle.begin(key, get);
            oracle.end(&first, Answer::Absent);
            let second = oracle.begin(key, get);
            oracle.end(&second, found(&put(1), 1));
        });
    }

    #[test]
    #[should_panic(expected = "no order explains")]
    fn a_stale_read_is_found() {
        run(|oracle, key, get| {
            for (number, created) in [(1, true), (2, false)] {
                let id = oracle.begin(key, &put(number));
                oracle.end(&id, stored(created, number));
            }
            let id = oracle.begin(key, get);
            oracle.end(&id, found(&put(1), 1));
        });
    }

    #[test]
    #[should_panic(expected = "no order explains")]
    fn a_watch_that_goes_back_is_found() {
        run(|oracle, key, _| {
            let begun = oracle.begin_list();
            for (number, created) in [(1, true), (2, false)] {
                let id = oracle.begin(key, &put(number));
                oracle.end(&id, stored(created, number));
            }
            let moment = oracle.observe(key, begun, found(&put(2), 2));
            oracle.observe(key, moment, found(&put(1), 1));
        });
    }

    #[test]
    fn a_watch_may_be_late() {
        run(|oracle, key, _| {
            let begun = oracle.begin_list();
            for (number, created) in [(1, true), (2, false)] {
                let id = oracle.begin(key, &put(number));
                oracle.end(&id, stored(created, number));
            }
            let moment = oracle.observe(key, begun, found(&put(1), 1));
            oracle.observe(key, moment, found(&put(2), 2));
        });
    }

    #[test]
    #[should_panic(expected = "no order explains")]
    fn a_lost_write_is_found() {
        run(|oracle, key, get| {
            let id = oracle.begin(key, &put(1));
            oracle.end(&id, stored(true, 1));
            let id = oracle.begin(key, get);
            oracle.end(&id, Answer::Absent);
        });
    }

    #[test]
    #[should_panic(expected = "no order explains")]
    fn a_change_that_was_refused_must_not_be_seen() {
        run(|oracle, key, get| {
            let id = oracle.begin(key, &put(1));
            oracle.cancel(&id);
            let id = oracle.begin(key, get);
            oracle.end(&id, found(&put(1), 1));
        });
    }

    #[test]
    #[should_panic(expected = "no order explains")]
    fn two_winners_of_one_create_are_found() {
        run(|oracle, key, _| {
            let create = |number| match put(number) {
                Operation::Put { key, value, .. } => {
                    Operation::Put { key, value, condition: Condition::Absent }
                }
                other => other,
            };
            let ids = [1, 2].map(|number| (number, oracle.begin(key, &create(number))));
            for (number, id) in ids {
                oracle.end(&id, stored(true, number));
            }
        });
    }

    #[test]
    fn a_value_may_expire_when_its_time_is_over() {
        run(|oracle, key, get| {
            let id = oracle.begin(key, &put(1));
            oracle.end(&id, stored(true, 1));
            expire(oracle, key, 1);
            for answer in [found(&put(1), 1), Answer::Absent] {
                let id = oracle.begin(key, get);
                oracle.end(&id, answer);
            }
        });
    }

    #[test]
    #[should_panic(expected = "no order explains")]
    fn another_value_must_not_expire_in_its_place() {
        run(|oracle, key, get| {
            for (number, created) in [(1, true), (2, false)] {
                let id = oracle.begin(key, &put(number));
                oracle.end(&id, stored(created, number));
            }
            expire(oracle, key, 1);
            let id = oracle.begin(key, get);
            oracle.end(&id, Answer::Absent);
        });
    }

    fn expire(oracle: &mut Oracle, key: &Key, number: u64) {
        if let Operation::Put { value, .. } = put(number) {
            oracle.may_expire(key, &value);
        }
    }
}
