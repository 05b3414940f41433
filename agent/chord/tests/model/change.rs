//! The change function of a register: what an operation makes of a key's state, and what its client is
//! told.

use crate::scenario::{Kind, Scenario};
use crate::state::{Done, Register};

/// What an operation makes of a key's state.
pub(crate) struct Decision {
    pub(crate) register: Register,
    pub(crate) result: u8,
    pub(crate) changes: bool,
}

impl Scenario {
    /// None if nobody can tell whether the request was carried out before. A key remembers one request.
    pub(crate) fn carry_out(
        &self,
        op: usize,
        is_sole: bool,
        current: Register,
    ) -> Option<Decision> {
        let request = self.request(op);
        let unchanged = |result| Some(Decision { register: current, result, changes: false });
        if matches!(self.kind(op), Kind::Get | Kind::Sweep) {
            return unchanged(current.value);
        }
        if current.done.request == request && self.rules.requests_are_known {
            return unchanged(current.done.result);
        }
        let is_retry = matches!(self.operations[op].kind, Kind::Retry(_));
        let is_checked = !is_sole && (is_retry || self.rules.first_attempts_can_be_late);
        if is_checked && request <= current.forgotten && self.rules.unknown_is_refused {
            return None;
        }
        let kind = match self.kind(op) {
            Kind::Expire(_) if !self.rules.expiry_names_its_version => Kind::Delete,
            kind => kind,
        };
        let (value, result) = apply(kind, current.value);
        let mut register = Register { value, ..current };
        // A refused condition is noted if another attempt may be under way, so that it fails as well.
        let is_noted = result > 0 || (is_retry && self.rules.refusals_are_noted);
        if self.remembers_requests() && is_noted {
            register.forgotten = register.forgotten.max(current.done.request);
            register.done = Done { request, result };
        }
        Some(Decision { register, result, changes: is_noted })
    }

    /// The number of a request: the same for all its attempts. Numbers say nothing about the order of
    /// the calls, as clocks do not.
    fn request(&self, op: usize) -> u8 {
        match self.operations[op].kind {
            Kind::Retry(first) => first as u8 + 1,
            _ => op as u8 + 1,
        }
    }

    /// What the client asked for, also when it asked again.
    fn kind(&self, op: usize) -> Kind {
        match self.operations[op].kind {
            Kind::Retry(first) => self.operations[first].kind,
            kind => kind,
        }
    }

    /// The attempt that follows this one, if there is one in the scenario.
    pub(crate) fn retry_of(&self, op: usize) -> Option<usize> {
        self.operations.iter().position(|operation| operation.kind == Kind::Retry(op))
    }

    /// Requests are remembered only where a client asks again, to keep the other scenarios small.
    fn remembers_requests(&self) -> bool {
        self.operations.iter().any(|operation| matches!(operation.kind, Kind::Retry(_)))
    }
}

/// The value and the result that an operation makes of a value.
pub(crate) const fn apply(kind: Kind, value: u8) -> (u8, u8) {
    match kind {
        Kind::Put(new) => (new, 1),
        Kind::Delete if value > 0 => (0, 1),
        Kind::Create(new) if value == 0 => (new, 1),
        Kind::Replace(old, new) if value == old => (new, 1),
        Kind::Expire(old) if value == old => (0, 1),
        Kind::Create(_) | Kind::Replace(..) | Kind::Delete | Kind::Expire(_) => (value, 0),
        Kind::Get | Kind::Sweep | Kind::Retry(_) => (value, value),
    }
}
