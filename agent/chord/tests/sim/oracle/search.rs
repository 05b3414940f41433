//! The search for an order of operations that explains all answers: that of Wing and Gong with the memory
//! of Lowe, made short by what versions tell. A version is the ballot of the change that made it, so changes
//! took effect in the order of their versions. What nobody saw of unknown changes is taken into account
//! without counting how often each was used: that allows more than there was, never less.

use std::collections::BTreeSet;

use sky_chord::{Answer, Ballot, Condition, Operation};

use super::{Entry, Outcome, Versions, end_of, number};

/// Places looked at before a history is called too hard to judge.
const PLACES_MAX: usize = 1_000_000;

/// What a key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Absent,
    Value(u64),
    /// It has a value that nobody ever saw.
    Unseen,
}

/// How far an order has got.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    /// The first answered operation that is not in the order yet, and those after it that are.
    first: usize,
    done: Vec<usize>,
    state: State,
    /// The version of the last change whose version is known.
    version: Ballot,
}

struct Search<'a> {
    /// In the order in which they began.
    answered: Vec<&'a Entry>,
    unknown: Vec<&'a Entry>,
    versions: &'a Versions,
}

/// Whether some order explains all answers.
pub(super) fn explains(history: &[&Entry], versions: &Versions) -> bool {
    let (answered, unknown) = history.iter().partition(|entry| end_of(entry).is_some());
    Search { answered, unknown, versions }.explains()
}

impl Search<'_> {
    fn explains(&self) -> bool {
        let start =
            Place { first: 0, done: Vec::new(), state: State::Absent, version: Ballot::ZERO };
        let mut seen = BTreeSet::new();
        let mut todo = vec![start];
        while let Some(place) = todo.pop() {
            if place.first == self.answered.len() {
                return true;
            }
            let (candidates, first_end) = self.candidates(&place);
            let mut next: Vec<Place> = self.unknown_steps(&place, first_end);
            // What ended first is tried first.
            for at in candidates {
                next.extend(self.apply(&place, at));
            }
            for place in next {
                if !seen.contains(&place) {
                    seen.insert(place.clone());
                    todo.push(place);
                }
            }
            assert!(seen.len() < PLACES_MAX, "the history is too long to be judged");
        }
        false
    }

    /// The answered operations that may come next, those that ended first last; and when the first of all
    /// that are open ended.
    fn candidates(&self, place: &Place) -> (Vec<usize>, u64) {
        let mut first_end = u64::MAX;
        let mut open = Vec::new();
        for (at, entry) in self.answered.iter().enumerate().skip(place.first) {
            if entry.invoked > first_end {
                break;
            }
            if place.done.binary_search(&at).is_err() {
                let end = end_of(entry).unwrap_or(u64::MAX);
                first_end = first_end.min(end);
                open.push((end, at));
            }
        }
        open.retain(|(_, at)| self.answered[*at].invoked < first_end);
        open.sort_by_key(|(end, _)| std::cmp::Reverse(*end));
        (open.into_iter().map(|(_, at)| at).collect(), first_end)
    }

    /// Places reached by operations whose fate is unknown.
    fn unknown_steps(&self, place: &Place, before: u64) -> Vec<Place> {
        let mut next = Vec::new();
        for entry in self.unknown.iter().filter(|entry| entry.invoked < before) {
            let (state, version) = match &entry.operation {
                Operation::Put { value, condition, .. }
                    if self.may_hold(place.state, condition) =>
                {
                    let value = number(&value.bytes);
                    match self.versions.of_value(value) {
                        Some(version) if version > place.version => (State::Value(value), version),
                        Some(_) => continue,
                        None => (State::Unseen, place.version),
                    }
                }
                Operation::Delete { condition, .. }
                    if place.state != State::Absent
                        && self.may_hold(place.state, condition)
                        && entry.expires.is_none_or(|value| self.is(place.state, value)) =>
                {
                    (State::Absent, place.version)
                }
                _ => continue,
            };
            next.push(Place { state, version, ..place.clone() });
        }
        next
    }

    /// The place after an answered operation; none if it cannot have been answered so here.
    fn apply(&self, place: &Place, at: usize) -> Option<Place> {
        let Entry { operation, outcome: Outcome::Answered(_, answer), .. } = self.answered[at]
        else {
            return None;
        };
        let (mut state, mut version) = (place.state, place.version);
        let explained = match (operation, answer) {
            (Operation::Get { .. }, Answer::Found { value, .. }) => {
                state == State::Value(number(&value.bytes))
            }
            (Operation::Get { .. }, Answer::Absent) => state == State::Absent,
            (Operation::Put { value, condition, .. }, Answer::Stored { created, version: new }) => {
                let holds = self.may_hold(state, condition)
                    && *created == (state == State::Absent)
                    && *new > version;
                (state, version) = (State::Value(number(&value.bytes)), *new);
                holds
            }
            (Operation::Delete { condition, .. }, Answer::Deleted) => {
                let holds = state != State::Absent && self.may_hold(state, condition);
                state = State::Absent;
                holds
            }
            (Operation::Delete { .. }, Answer::Absent) => state == State::Absent,
            (
                Operation::Put { condition, .. } | Operation::Delete { condition, .. },
                Answer::ConditionFailed { version },
            ) => self.has_version(state, *version) && self.may_fail(state, condition),
            _ => false,
        };
        if !explained {
            return None;
        }
        let mut place = Place { state, version, ..place.clone() };
        match place.done.binary_search(&at) {
            Err(here) if at > place.first => place.done.insert(here, at),
            _ => place.first += 1,
        }
        while place.done.first() == Some(&place.first) {
            place.done.remove(0);
            place.first += 1;
        }
        Some(place)
    }

    /// Whether the key can have this value.
    fn is(&self, state: State, value: u64) -> bool {
        match state {
            State::Value(held) => held == value,
            State::Unseen => self.versions.of_value(value).is_none(),
            State::Absent => false,
        }
    }

    fn has_version(&self, state: State, version: Option<Ballot>) -> bool {
        match (state, version) {
            (State::Absent, None) => true,
            (State::Value(value), Some(version)) => self.versions.may_be(value, version),
            // Some version that belongs to no value that was seen.
            (State::Unseen, Some(version)) => !self.versions.0.values().any(|v| *v == version),
            _ => false,
        }
    }

    fn may_hold(&self, state: State, condition: &Condition) -> bool {
        match condition {
            Condition::Always => true,
            Condition::Absent => state == State::Absent,
            Condition::Exists => state != State::Absent,
            Condition::Version(versions) => {
                versions.iter().any(|version| self.has_version(state, Some(*version)))
            }
        }
    }

    fn may_fail(&self, state: State, condition: &Condition) -> bool {
        match (condition, state) {
            (Condition::Always, _) => false,
            (Condition::Absent, _) => state != State::Absent,
            (Condition::Exists, _) => state == State::Absent,
            (Condition::Version(versions), State::Value(value)) => {
                self.versions.of_value(value).is_none_or(|known| !versions.contains(&known))
            }
            (Condition::Version(_), _) => true,
        }
    }
}
