//! What clients were told must be explicable by one order of all operations (linearizability), judged
//! for each key by the search of Wing and Gong with the memory of Lowe.

use std::collections::{BTreeMap, BTreeSet};

use sky_chord::{Answer, Ballot, Condition, Key, Operation};

/// States looked at before a history is called too hard to judge.
const STATES_MAX: usize = 2_000_000;

/// Of a history that cannot be explained, this much is shown.
const LINES_SHOWN: usize = 30;

/// All that clients did and were told.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    keys: BTreeMap<Key, Vec<Entry>>,
    clock: u64,
}

/// Names an operation of the history.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct EntryId(Key, usize);

#[derive(Debug, Clone)]
struct Entry {
    operation: Operation,
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
        entries.push(Entry { operation, invoked, outcome: Outcome::Unknown });
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
            let history: Vec<_> = entries.iter().filter(wanted).collect();
            if !Search::new(&history, &versions).explains() {
                let until = |moment| {
                    let begun = history.iter().filter(move |entry| entry.invoked <= moment);
                    begun.map(|entry| entry.until(moment)).collect::<Vec<_>>()
                };
                let explains = |history: &[Entry]| {
                    Search::new(&history.iter().collect::<Vec<_>>(), &versions).explains()
                };
                let moments = 0..=self.clock;
                let first = moments.map(until).find(|history| !explains(history));
                let lines: Vec<_> = first.iter().flatten().map(line).collect();
                let shown = &lines[lines.len().saturating_sub(LINES_SHOWN)..];
                panic!("no order explains what was told of {key:?}:\n{}", shown.join("\n"));
            }
        }
    }
}

impl Entry {
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

    /// Whether a key with this value can have this version.
    fn may_be(&self, value: u64, version: Ballot) -> bool {
        match self.0.get(&value) {
            Some(known) => *known == version,
            None => !self.0.values().any(|known| *known == version),
        }
    }
}

/// Every value of a simulation is a number of its own.
pub(crate) fn number(bytes: &[u8]) -> u64 {
    str::from_utf8(bytes).ok().and_then(|text| text.parse().ok()).expect("a value of the workload")
}

/// The key's value; none if it does not exist.
type State = Option<u64>;

struct Search<'a> {
    history: &'a [&'a Entry],
    versions: &'a Versions,
    seen: BTreeSet<(Vec<u64>, State)>,
}

impl<'a> Search<'a> {
    fn new(history: &'a [&'a Entry], versions: &'a Versions) -> Self {
        Self { history, versions, seen: BTreeSet::new() }
    }

    /// Tries orders until one explains all answers.
    fn explains(&mut self) -> bool {
        let mut todo = vec![(vec![0u64; self.history.len().div_ceil(64)], None)];
        while let Some((done, state)) = todo.pop() {
            let is_done = |at: usize| done[at / 64] >> (at % 64) & 1 == 1;
            let open = || (0..self.history.len()).filter(|at| !is_done(*at));
            let Some(first_end) = open().filter_map(|at| end_of(self.history[at])).min() else {
                return true;
            };
            let mut next = Vec::new();
            for at in open().filter(|at| self.history[*at].invoked < first_end) {
                if let Some(after) = self.apply(state, self.history[at]) {
                    let mut with = done.clone();
                    with[at / 64] |= 1 << (at % 64);
                    next.push((end_of(self.history[at]).unwrap_or(u64::MAX), (with, after)));
                }
            }
            next.sort_by_key(|(end, _)| std::cmp::Reverse(*end));
            for (_, branch) in next {
                if self.seen.insert(branch.clone()) {
                    todo.push(branch);
                }
            }
            assert!(self.seen.len() < STATES_MAX, "the history is too long to be judged");
        }
        false
    }

    /// The state after the operation; none if it cannot have been answered so in this state.
    fn apply(&self, state: State, entry: &Entry) -> Option<State> {
        let answer = match &entry.outcome {
            Outcome::Answered(_, answer) => answer,
            _ => return self.apply_unknown(state, &entry.operation),
        };
        let explained = match (&entry.operation, answer) {
            (Operation::Get { .. }, Answer::Found { value, .. }) => {
                state == Some(number(&value.bytes))
            }
            (Operation::Get { .. }, Answer::Absent) => state.is_none(),
            (Operation::Put { value, condition, .. }, Answer::Stored { created, .. }) => {
                let holds = self.may_hold(state, condition) && *created == state.is_none();
                return holds.then(|| Some(number(&value.bytes)));
            }
            (Operation::Delete { condition, .. }, Answer::Deleted) => {
                return (state.is_some() && self.may_hold(state, condition)).then_some(None);
            }
            (Operation::Delete { .. }, Answer::Absent) => state.is_none(),
            (
                Operation::Put { condition, .. } | Operation::Delete { condition, .. },
                Answer::ConditionFailed { version },
            ) => {
                let seen = match (state, version) {
                    (None, None) => true,
                    (Some(value), Some(version)) => self.versions.may_be(value, *version),
                    _ => false,
                };
                seen && self.may_fail(state, condition)
            }
            _ => false,
        };
        explained.then_some(state)
    }

    /// The state if an operation whose fate is unknown takes effect now; none if it changes nothing.
    fn apply_unknown(&self, state: State, operation: &Operation) -> Option<State> {
        match operation {
            Operation::Put { value, condition, .. } => {
                self.may_hold(state, condition).then(|| Some(number(&value.bytes)))
            }
            Operation::Delete { condition, .. } => {
                (state.is_some() && self.may_hold(state, condition)).then_some(None)
            }
            _ => None,
        }
    }

    fn may_hold(&self, state: State, condition: &Condition) -> bool {
        match condition {
            Condition::Always => true,
            Condition::Absent => state.is_none(),
            Condition::Exists => state.is_some(),
            Condition::Version(versions) => state
                .is_some_and(|value| versions.iter().any(|one| self.versions.may_be(value, *one))),
        }
    }

    fn may_fail(&self, state: State, condition: &Condition) -> bool {
        match condition {
            Condition::Always => false,
            Condition::Absent => state.is_some(),
            Condition::Exists => state.is_none(),
            Condition::Version(versions) => {
                let known = state.and_then(|value| self.versions.0.get(&value));
                known.is_none_or(|known| !versions.contains(known))
            }
        }
    }
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
        Operation::Delete { condition, .. } => format!("delete if {condition:?}"),
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
    use sky_chord::{Consistency, NodeId, Value};

    fn put(number: u64) -> Operation {
        let value = Value { content_type: "".into(), bytes: number.to_string().into() };
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
}
