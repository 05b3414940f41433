//! What must hold in every state, and what must happen in some.

use crate::scenario::{Kind, Scenario};
use crate::state::{Nodes, OPERATIONS, Phase, Rival, State};

impl Scenario {
    /// Whether the answers given so far are those of one register that does one operation at a time,
    /// each between its call and its return (Herlihy and Wing, 1990). A write without an answer may
    /// have happened, or not.
    pub(crate) fn is_linearizable(&self, state: &State) -> bool {
        let client =
            |op: &usize| !matches!(self.operations[*op].kind, Kind::Sweep | Kind::Retry(_));
        let (mut answered, mut possible) = (0, 0);
        for op in (0..self.operations.len()).filter(client) {
            let progress = &state.operations[op];
            if progress.returned.is_some() {
                answered |= 1 << op;
            } else if progress.phase != Phase::Idle && self.operations[op].kind != Kind::Get {
                possible |= 1 << op;
            }
        }
        self.can_order(state, answered, possible, 0)
    }

    /// Whether the `answered` operations, with any of the `possible` ones between them, can be put in
    /// an order that explains the answers, beginning with the register at `value`.
    fn can_order(&self, state: &State, answered: u8, possible: u8, value: u8) -> bool {
        answered == 0
            || (0..OPERATIONS).filter(|op| (answered | possible) >> op & 1 == 1).any(|op| {
                let progress = &state.operations[op];
                let rest = !(1 << op);
                let (after, result) = match self.operations[op].kind {
                    Kind::Put(new) => (new, 1),
                    Kind::Delete => (0, 1),
                    Kind::Create(new) if value == 0 => (new, 1),
                    Kind::Create(_) => (value, 0),
                    Kind::Get | Kind::Sweep | Kind::Retry(_) => (value, value),
                };
                progress.before & answered == 0
                    && progress.returned.is_none_or(|returned| returned == result)
                    && self.can_order(state, answered & rest, possible & rest, after)
            })
    }

    /// Whether every acknowledged write was found by the reads and creates that began after it: such a
    /// read finds something and such a create fails. Says nothing where an operation deletes.
    pub(crate) fn acknowledged_is_found(&self, state: &State) -> bool {
        let kinds = || state.operations.iter().zip(&self.operations);
        let acknowledged = kinds().enumerate().fold(0u8, |set, (i, (progress, operation))| {
            let writes = matches!(operation.kind, Kind::Put(_) | Kind::Create(_));
            if writes && progress.returned == Some(1) { set | 1 << i } else { set }
        });
        let deletes = self.operations.iter().any(|operation| operation.kind == Kind::Delete);
        deletes
            || kinds().all(|(progress, operation)| {
                let missed = match operation.kind {
                    Kind::Get => progress.returned == Some(0),
                    Kind::Create(_) => progress.returned == Some(1),
                    Kind::Put(_) | Kind::Delete | Kind::Sweep | Kind::Retry(_) => false,
                };
                !missed || progress.before & acknowledged == 0
            })
    }

    /// Whether every slot decided one configuration at most: there is one for each epoch.
    pub(crate) fn slots_are_decided_once(&self, state: &State) -> bool {
        let mut epochs = 0u8;
        self.places().filter(|(place, _)| state.decided >> place & 1 == 1).all(|(_, config)| {
            let first = epochs >> config.epoch & 1 == 0;
            epochs |= 1 << config.epoch;
            first
        })
    }

    /// Whether each epoch changes or returns something only after a majority of the previous members
    /// have left the epoch before, so that it cannot answer any more.
    pub(crate) fn old_epoch_is_sealed(&self, state: &State) -> bool {
        state.operations.iter().all(|progress| {
            let config = self.config(progress.config);
            let served = matches!(progress.phase, Phase::Accept | Phase::Accepted | Phase::Over);
            let mut sealed = Nodes::NONE;
            for (place, node) in state.nodes.iter().enumerate() {
                if self.epoch_of(node) >= config.epoch {
                    sealed |= Nodes::one(place);
                }
            }
            !served || config.prev.is_empty() || sealed.is_majority_of(config.prev)
        })
    }

    /// The new epoch gave an answer, and a crashed before it left the old one.
    pub(crate) fn replaces_a_crashed_member(&self, state: &State) -> bool {
        let left_behind = |node: u8| state.nodes[usize::from(node)].config == Some(0);
        state.crashed.is_some_and(left_behind) && self.answered_in(state, 2)
    }

    /// The old epoch answers on: the suspected owner was alive. The slot's steps must come first in the
    /// scenario, so that the answer came after the decision.
    pub(crate) fn suspicion_was_false(&self, state: &State) -> bool {
        state.decided != 0 && self.answered_in(state, 1) && !self.answered_in(state, 2)
    }

    /// Both epochs gave an answer.
    pub(crate) fn both_epochs_served(&self, state: &State) -> bool {
        self.answered_in(state, 1) && self.answered_in(state, 2)
    }

    /// A proposer of the slot found another's proposal and finished that one.
    pub(crate) fn rival_was_helped(&self, state: &State) -> bool {
        let helps = |(rival, wanted): (&Rival, &u8)| rival.value != 0 && rival.value != *wanted;
        state.decided != 0 && state.rivals.iter().zip(&self.wanted).any(helps)
    }

    fn answered_in(&self, state: &State, epoch: u8) -> bool {
        state.operations.iter().any(|progress| {
            progress.returned.is_some() && self.config(progress.config).epoch == epoch
        })
    }
}
