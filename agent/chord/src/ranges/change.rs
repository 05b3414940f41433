//! The change function of a register: what a client's operation makes of a key's state, and what the
//! client is told.

use super::Errand;
use crate::config::Ballot;
use crate::record::{Done, Effect, Register};
use crate::request::{Answer, Condition, Operation};
use crate::value::Content;

/// What a change does to a register.
pub(super) struct Decision {
    /// What to tell the client, if there is one.
    pub(super) outcome: Option<Answer>,
    pub(super) register: Register,
    pub(super) changes: bool,
}

/// The answer to a read; none if the bytes of the value are elsewhere.
pub(super) fn found(register: &Register) -> Option<Answer> {
    match &register.value {
        Some(Content::Whole(value)) => {
            Some(Answer::Found { value: value.clone(), version: register.version })
        }
        Some(Content::Apart(_)) => None,
        None => Some(Answer::Absent),
    }
}

/// The change function: what becomes of the state, and what the client is told. A request that was
/// carried out before is answered from the state and changes nothing. If the request may have a twin
/// under way elsewhere, a refusal is noted in the state as well, so that the twin cannot succeed later.
/// None if the key does not remember requests as old as this one, so that nobody can tell whether it was
/// carried out: the same request may have reached another member, even if it had not when it was sent here.
pub(super) fn decide(current: Register, ballot: Ballot, errand: &Errand) -> Option<Decision> {
    let Errand { request, stamp, retry, sole, ref operation, .. } = *errand;
    if let Some(done) = current.done.iter().find(|done| done.request == request) {
        let outcome = Some(answer_of(done.effect, done.version, operation));
        return Some(Decision { outcome, register: current, changes: false });
    }
    if !sole && current.may_have_forgotten(stamp) {
        return None;
    }
    let exists = current.value.is_some();
    let (condition, value) = match operation {
        Operation::Put { condition, value, .. } => (condition, Some(value.clone())),
        Operation::Delete { condition, .. } => (condition, None),
        Operation::Get { .. } | Operation::List { .. } => {
            let outcome = found(&current);
            return Some(Decision { outcome, register: current, changes: false });
        }
    };
    let holds = match condition {
        Condition::Always => exists || value.is_some(),
        Condition::Absent => !exists,
        Condition::Exists => exists,
        Condition::Version(versions) => exists && versions.contains(&current.version),
    };
    let effect = match (holds, &value, exists) {
        (false, ..) => Effect::Refused,
        (true, None, _) => Effect::Deleted,
        (true, Some(_), true) => Effect::Replaced,
        (true, Some(_), false) => Effect::Created,
    };
    let mut register = current;
    if effect == Effect::Refused {
        let version = if exists { register.version } else { Ballot::ZERO };
        let outcome = Some(answer_of(effect, version, operation));
        if retry {
            register.remember(Done { request, stamp, effect, version });
        }
        return Some(Decision { outcome, register, changes: retry });
    }
    register.version = ballot;
    register.value = value.map(Content::Whole);
    register.remember(Done { request, stamp, effect, version: ballot });
    Some(Decision { outcome: Some(answer_of(effect, ballot, operation)), register, changes: true })
}

/// What becomes of a value whose time is over, if it is still this version. No request asked for it, so none
/// is remembered.
pub(super) fn expire(current: Register, ballot: Ballot, version: &Ballot) -> Decision {
    if current.value.is_none() || current.version != *version {
        return Decision { outcome: None, register: current, changes: false };
    }
    let register = Register { version: ballot, value: None, ..current };
    Decision { outcome: None, register, changes: true }
}

fn answer_of(effect: Effect, version: Ballot, operation: &Operation) -> Answer {
    match effect {
        Effect::Created => Answer::Stored { version, created: true },
        Effect::Replaced => Answer::Stored { version, created: false },
        Effect::Deleted => Answer::Deleted,
        Effect::Refused => match operation {
            Operation::Delete { condition: Condition::Always, .. } => Answer::Absent,
            _ => Answer::ConditionFailed { version: (version != Ballot::ZERO).then_some(version) },
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::NodeId;
    use crate::id::Id;
    use crate::record::{Key, RequestId};
    use crate::value::Value;

    fn ballot(round: u64) -> Ballot {
        Ballot { epoch: 1, round, node: NodeId { position: Id::MIN, incarnation: 1 }, boot: 1 }
    }

    fn put(condition: Condition) -> Operation {
        let value = Value { content_type: "text/plain".into(), bytes: "v".into(), ttl: None };
        Operation::Put { key: Key::new("k"), value, condition }
    }

    fn delete(condition: Condition) -> Operation {
        Operation::Delete { key: Key::new("k"), condition }
    }

    fn errand(request: u128, retry: bool, operation: &Operation) -> Errand {
        let (request, stamp, operation) = (RequestId(request), request as u64, operation.clone());
        Errand { request, stamp, retry, sole: false, operation, budget: Default::default() }
    }

    fn apply(state: &mut Register, round: u64, request: u128, operation: &Operation) -> Answer {
        let decision = decide(state.clone(), ballot(round), &errand(request, false, operation))
            .expect("it can be told");
        *state = decision.register;
        decision.outcome.expect("there is a client")
    }

    #[test]
    fn conditions_hold_or_change_nothing() {
        let mut state = Register::ABSENT;
        let created = apply(&mut state, 1, 1, &put(Condition::Absent));
        assert_eq!(created, Answer::Stored { version: ballot(1), created: true });
        let again = apply(&mut state, 2, 2, &put(Condition::Absent));
        assert_eq!(again, Answer::ConditionFailed { version: Some(ballot(1)) });
        let stale = apply(&mut state, 3, 3, &put(Condition::Version(vec![ballot(9)])));
        assert_eq!(stale, Answer::ConditionFailed { version: Some(ballot(1)) });
        let fresh = apply(&mut state, 4, 4, &put(Condition::Version(vec![ballot(1)])));
        assert_eq!(fresh, Answer::Stored { version: ballot(4), created: false });
        assert_eq!(apply(&mut state, 5, 5, &delete(Condition::Always)), Answer::Deleted);
        assert_eq!(apply(&mut state, 6, 6, &delete(Condition::Always)), Answer::Absent);
        let gone = apply(&mut state, 7, 7, &put(Condition::Exists));
        assert_eq!(gone, Answer::ConditionFailed { version: None });
    }

    #[test]
    fn a_request_is_carried_out_once() {
        let mut state = Register::ABSENT;
        let first = apply(&mut state, 1, 7, &put(Condition::Absent));
        assert_eq!(apply(&mut state, 2, 7, &put(Condition::Absent)), first);
        assert_eq!(apply(&mut state, 3, 8, &delete(Condition::Always)), Answer::Deleted);
        assert_eq!(apply(&mut state, 4, 7, &put(Condition::Absent)), first);
        assert_eq!(state.value, None);
    }

    #[test]
    fn a_request_too_old_to_be_remembered_changes_nothing() {
        let mut state = Register::ABSENT;
        for round in 1..=20 {
            apply(&mut state, round, u128::from(round), &put(Condition::Always));
        }
        let decide = |errand: Errand| decide(state.clone(), ballot(21), &errand);
        let put = put(Condition::Always);
        assert!(decide(errand(1, true, &put)).is_none());
        assert!(decide(errand(1, false, &put)).is_none(), "it may have a twin");
        let sole = Errand { sole: true, ..errand(1, false, &put) };
        assert!(decide(sole).is_some_and(|decision| decision.changes), "it has none");
        assert!(decide(errand(20, true, &put)).is_some_and(|decision| !decision.changes));
        assert!(decide(errand(21, true, &put)).is_some_and(|decision| decision.changes));
    }

    #[test]
    fn a_refusal_that_may_have_a_twin_is_remembered() {
        let mut state = Register::ABSENT;
        apply(&mut state, 1, 1, &put(Condition::Absent));
        let create = put(Condition::Absent);
        let refused =
            decide(state.clone(), ballot(2), &errand(2, true, &create)).expect("it can be told");
        assert!(refused.changes);
        state = refused.register;
        apply(&mut state, 3, 3, &delete(Condition::Always));
        let twin = apply(&mut state, 4, 2, &create);
        assert_eq!(twin, Answer::ConditionFailed { version: Some(ballot(1)) });
        assert_eq!(state.value, None);
    }

    #[test]
    fn a_value_expires_unless_it_was_written_anew() {
        let mut state = Register::ABSENT;
        apply(&mut state, 1, 1, &put(Condition::Always));
        let version = state.version;
        apply(&mut state, 2, 2, &put(Condition::Always));
        let late = expire(state.clone(), ballot(3), &version);
        assert!(!late.changes && late.register == state);
        let over = expire(state.clone(), ballot(4), &ballot(2));
        assert!(over.changes && over.register.value.is_none());
        assert_eq!((over.register.version, &over.register.done), (ballot(4), &state.done));
        assert!(!expire(over.register, ballot(5), &ballot(4)).changes, "there is nothing left");
    }
}
