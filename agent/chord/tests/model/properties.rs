//! What must hold in every state, and what must happen in some.

use crate::change::apply;
use crate::scenario::{Change, Config, Kind, Operation, Order, Scenario};
use crate::slot::Next;
use crate::state::{
    NODES, Node, Nodes, OPERATIONS, POINTS, Phase, Progress, Rival, SLOTS, State, Vote, places_in,
};

impl Scenario {
    /// Whether the answers given so far are those of one register that does one operation at a time,
    /// each between its call and its return (Herlihy and Wing, 1990). A write without an answer may
    /// have happened, or not.
    pub(crate) fn is_linearizable(&self, state: &State) -> bool {
        (0..POINTS).all(|key| self.is_linearizable_at(state, key))
    }

    fn is_linearizable_at(&self, state: &State, key: usize) -> bool {
        let client = |op: &usize| {
            let operation = &self.operations[*op];
            operation.key == key && !matches!(operation.kind, Kind::Sweep | Kind::Retry(_))
        };
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
                let (after, result) = apply(self.operations[op].kind, value);
                progress.before & answered == 0
                    && progress.returned.is_none_or(|returned| returned == result)
                    && self.can_order(state, answered & rest, possible & rest, after)
            })
    }

    /// Whether every acknowledged write was found by the reads and creates of its key that began after
    /// it: such a read finds something and such a create fails. Says nothing of keys that an operation
    /// deletes.
    pub(crate) fn acknowledged_is_found(&self, state: &State) -> bool {
        (0..POINTS).all(|key| self.acknowledged_is_found_at(state, key))
    }

    fn acknowledged_is_found_at(&self, state: &State, key: usize) -> bool {
        let of_key = || {
            let all = state.operations.iter().zip(&self.operations).enumerate();
            all.filter(|(_, (_, operation))| operation.key == key)
        };
        let acknowledged = of_key().fold(0u8, |set, (i, (progress, operation))| {
            if operation.kind.writes() && progress.returned == Some(1) { set | 1 << i } else { set }
        });
        of_key().any(|(_, (_, operation))| operation.kind.deletes())
            || of_key().all(|(_, (progress, operation))| {
                let missed = match operation.kind {
                    Kind::Get => progress.returned == Some(0),
                    Kind::Create(_) => progress.returned == Some(1),
                    _ => false,
                };
                !missed || progress.before & acknowledged == 0
            })
    }

    /// Whether every quorum of the latest configuration finds every acknowledged write, or a later one, on
    /// one of its nodes, so that the write outlives the loss of all others. Says nothing of keys that an
    /// operation deletes: deletions are forgotten in time.
    pub(crate) fn acknowledged_is_durable(&self, state: &State) -> bool {
        state.operations.iter().zip(&self.operations).all(|(progress, operation)| {
            let is_acknowledged = operation.kind.writes()
                && progress.phase == Phase::Accepted
                && progress.returned == Some(1);
            let is_deleted = || {
                let mut of_key = self.operations.iter().filter(|other| other.key == operation.key);
                of_key.any(|other| other.kind.deletes())
            };
            !is_acknowledged
                || is_deleted()
                || self.is_on_every_quorum(state, progress, operation.key)
        })
    }

    fn is_on_every_quorum(&self, state: &State, progress: &Progress, key: usize) -> bool {
        let covering = |(place, config): &(u8, Config)| state.is_told(*place) && config.covers(key);
        let told = self.places().filter(covering);
        let Some((place, latest)) = told.max_by_key(|(_, config)| config.epoch) else {
            return true;
        };
        let ballot = self.ballot(self.config(progress.config).epoch, progress.round);
        let lacks = |node: &Node| {
            let answers = !(node.released && self.rules.released_refuses);
            answers && node.keys[key].accepted.ballot < ballot
        };
        let places = state.nodes.iter().enumerate().filter(|(_, node)| lacks(node));
        let lacking = places.fold(Nodes::NONE, |set, (place, _)| set | Nodes::one(place));
        let asks_prev = !self.is_swept(state, place);
        !lacking.is_majority_of(latest.members) || asks_prev && !lacking.is_majority_of(latest.prev)
    }

    /// Whether every slot decided one change at most, and where it decided a merge, the other slot of
    /// the merge decided nothing else. So the configurations that cover a point form one chain.
    pub(crate) fn slots_are_decided_once(&self, state: &State) -> bool {
        state.chosen.iter().all(|chosen| {
            chosen.count_ones() <= 1
                && places_in(*chosen).all(|change| {
                    let mut slots = places_in(self.change(change as u8).ends);
                    slots.all(|slot| state.chosen[slot] & !(1 << change) == 0)
                })
        })
    }

    /// Whether a single proposer, with all members up or with any majority of them, can still change
    /// what covers each point. It may begin again as often as it finishes what others had begun.
    pub(crate) fn nobody_is_stuck(&self, state: &State) -> bool {
        let merges = self.changes.iter().any(Change::merges);
        let slots_are_open = self.order != Order::SlotFirst || self.is_fresh(state);
        !merges
            || !slots_are_open
            || (0..POINTS).filter_map(|point| self.slot_at(state, point)).all(|slot| {
                let members = self.configs[slot].members;
                let without_one = |node: usize| members.without(node);
                let mut majorities = (0..NODES).map(without_one).chain([members]);
                majorities.all(|up| self.can_change(state, slot, up))
            })
    }

    /// The slot of the latest configuration that covers a point, if a change of that one alone is in the
    /// scenario.
    fn slot_at(&self, state: &State, point: usize) -> Option<usize> {
        let covers = |place: &usize| self.configs[*place].covers(point);
        let mut place = (0..self.first).find(covers)?;
        while place < SLOTS && state.chosen[place] != 0 {
            let change = self.change(state.chosen[place].trailing_zeros() as u8);
            place = places_in(change.makes).find(covers)?;
        }
        let has_change = place < SLOTS && self.fresh(place, 0).is_some();
        has_change.then_some(place)
    }

    /// Whether a proposer that starts with this slot, with nobody else at work and these acceptors up,
    /// gets it decided. Each round it goes on in a slot that is not decided yet.
    fn can_change(&self, state: &State, slot: usize, up: Nodes) -> bool {
        let mut state = *state;
        let Some(wanted) = self.fresh(slot, 0) else { return false };
        let mut proposer = Rival { asked: 1 << slot, ..Rival::default() };
        for ballot in 100..110 {
            proposer.best = Default::default();
            let (asked, mut promised) = (proposer.asked, Nodes::NONE);
            for node in (0..NODES).filter(|node| up.contains(*node)) {
                self.catch_up(state.told, &mut state.nodes[node], asked);
                if let Some(accepted) = self.promise(&mut state.nodes[node], asked, ballot) {
                    promised |= Nodes::one(node);
                    places_in(asked).for_each(|slot| {
                        proposer.best[slot] = proposer.best[slot].max(accepted[slot]);
                    });
                }
            }
            if !promised.is_majority_of(self.configs[slot].members) {
                return false;
            }
            let is_open = |next: &Next| {
                let (Next::Ask { slots } | Next::Propose { slots, .. }) = *next;
                places_in(slots).any(|slot| state.chosen[slot] == 0)
            };
            let ways = self.ways_on(&state, wanted, &proposer);
            match ways.into_iter().find(is_open) {
                Some(Next::Ask { slots }) => proposer.asked = slots,
                Some(Next::Propose { slots, change }) => {
                    for node in (0..NODES).filter(|node| promised.contains(*node)) {
                        self.vote(&mut state.nodes[node], slots, Vote { ballot, change });
                    }
                    places_in(slots).for_each(|slot| state.chosen[slot] |= 1 << change);
                    proposer.asked = 1 << slot;
                }
                None => return false,
            }
            if state.chosen[slot] != 0 {
                return true;
            }
        }
        false
    }

    /// Whether each epoch changes or returns something only after a majority of the previous members
    /// have left the epoch before, so that it cannot answer any more.
    pub(crate) fn old_epoch_is_sealed(&self, state: &State) -> bool {
        state.operations.iter().zip(&self.operations).all(|(progress, operation)| {
            let config = self.config(progress.config);
            let served = matches!(progress.phase, Phase::Accept | Phase::Accepted | Phase::Over);
            let mut sealed = Nodes::NONE;
            for (place, node) in state.nodes.iter().enumerate() {
                if self.epoch_of(node, operation.key) >= config.epoch {
                    sealed |= Nodes::one(place);
                }
            }
            !served || config.prev.is_empty() || sealed.is_majority_of(config.prev)
        })
    }

    /// The new epoch gave an answer, and a crashed before it left the old one.
    pub(crate) fn replaces_a_crashed_member(&self, state: &State) -> bool {
        let left_behind = |node: u8| state.nodes[usize::from(node)].config[0] == Some(0);
        state.crashed.is_some_and(left_behind) && self.answered_in(state, 2)
    }

    /// The old epoch answers on: the suspected owner was alive. The slot's steps must come first in the
    /// scenario, so that the answer came after the decision.
    pub(crate) fn suspicion_was_false(&self, state: &State) -> bool {
        state.chosen[0] != 0 && self.answered_in(state, 1) && !self.answered_in(state, 2)
    }

    /// Both epochs gave an answer.
    pub(crate) fn both_epochs_served(&self, state: &State) -> bool {
        self.answered_in(state, 1) && self.answered_in(state, 2)
    }

    /// Every operation succeeded, and both epochs gave an answer.
    pub(crate) fn all_are_answered(&self, state: &State) -> bool {
        let of_clients = || state.operations.iter().zip(&self.operations);
        let has_failed = |(progress, operation): (&Progress, &Operation)| match operation.kind {
            Kind::Get => progress.returned.is_none(),
            _ => progress.returned != Some(1),
        };
        !of_clients().any(has_failed) && self.both_epochs_served(state)
    }

    /// A proposer of the slot found another's proposal and finished that one.
    pub(crate) fn rival_was_helped(&self, state: &State) -> bool {
        let helps = |(rival, wanted): (&Rival, &u8)| {
            matches!(rival.phase, Phase::Accept | Phase::Accepted) && rival.change != *wanted
        };
        state.chosen[0] != 0 && state.rivals.iter().zip(&self.wanted).any(helps)
    }

    /// The time of a value was over, and it went.
    pub(crate) fn has_expired(&self, state: &State) -> bool {
        self.expiry_returned(state, 1)
    }

    /// A value was written anew before its time was over, and stayed.
    pub(crate) fn is_kept(&self, state: &State) -> bool {
        self.expiry_returned(state, 0)
    }

    fn expiry_returned(&self, state: &State, result: u8) -> bool {
        let mut all = state.operations.iter().zip(&self.operations);
        all.any(|(progress, operation)| {
            matches!(operation.kind, Kind::Expire(_)) && progress.returned == Some(result)
        })
    }

    /// The key was deleted, and all members of the latest epoch have forgotten it.
    pub(crate) fn tombstone_is_gone(&self, state: &State) -> bool {
        let is_empty = |node: usize| state.nodes[node].keys[0].accepted.ballot == 0;
        let members = self.configs[1].members;
        let is_deleted = |(progress, operation): (&Progress, &Operation)| {
            operation.kind == Kind::Delete && progress.returned == Some(1)
        };
        state.operations.iter().zip(&self.operations).any(is_deleted)
            && (0..NODES).filter(|node| members.contains(*node)).all(is_empty)
    }

    /// a serves in the last epoch.
    pub(crate) fn has_come_back(&self, state: &State) -> bool {
        let last = self.configs.len() as u8 - 1;
        let Node { config, released, .. } = state.nodes[0];
        config[0] == Some(last) && !released
    }

    /// A request that may have been forgotten was carried out by a node that is alone with it.
    pub(crate) fn sole_one_is_done(&self, state: &State) -> bool {
        state.operations.iter().any(|progress| progress.is_sole && progress.returned == Some(1))
    }

    fn answered_in(&self, state: &State, epoch: u8) -> bool {
        state.operations.iter().any(|progress| {
            progress.returned.is_some() && self.config(progress.config).epoch == epoch
        })
    }
}
