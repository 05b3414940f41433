//! The configuration slots, one for each configuration that can end: single-decree Paxos among its
//! members. A merge is decided in the slots of both ranges at once.

use std::fmt;

use crate::scenario::{Change, Config, Order, Scenario};
use crate::state::{
    NODES, Node, Nodes, Phase, Rival, SLOTS, SlotRecord, State, Vote, name, places_in,
};
use crate::system;

/// A step of one of the slots' proposers, or of a node that it asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// The proposer begins.
    Start { rival: usize },
    /// `node` gets its prepare for these slots, and the promise comes back.
    Prepare { rival: usize, node: usize, slots: u8 },
    /// The proposer goes on in one of several ways.
    Go { rival: usize, next: Next },
    /// `node` gets its accept request for these slots.
    Accept { rival: usize, node: usize, slots: u8 },
}

/// What a proposer does when it has its promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// It asks these slots, with a fresh ballot.
    Ask { slots: u8 },
    /// It asks these slots to accept the change.
    Propose { slots: u8, change: u8 },
}

impl Scenario {
    /// Adds the steps of the slots that can happen now.
    pub(crate) fn slot_steps(&self, state: &State, steps: &mut Vec<system::Step>) {
        for (rival, proposer) in state.rivals.iter().enumerate().take(self.wanted.len()) {
            let electorate = self.electorate(rival, proposer.asked);
            let acceptors =
                (0..NODES).filter(|node| electorate.contains(*node) && state.is_up(*node));
            let parts = self.parts(proposer.asked);
            let mut can = |step| steps.push(system::Step::Slot(step));
            match proposer.phase {
                Phase::Idle if self.slots_are_open(state, rival) => can(Step::Start { rival }),
                Phase::Prepare => acceptors.for_each(|node| {
                    parts.clone().for_each(|slots| can(Step::Prepare { rival, node, slots }));
                }),
                Phase::Choose => {
                    let ways = self.ways_on(state, self.wanted[rival], proposer);
                    ways.into_iter().for_each(|next| can(Step::Go { rival, next }));
                }
                Phase::Accept | Phase::Accepted => acceptors.for_each(|node| {
                    parts.clone().for_each(|slots| can(Step::Accept { rival, node, slots }));
                }),
                Phase::Idle | Phase::Scan | Phase::Read | Phase::Over => {}
            }
        }
    }

    /// Does a step of a slot; false if it changes nothing.
    pub(crate) fn slot_step(&self, state: &mut State, step: Step) -> bool {
        match step {
            Step::Start { rival } if self.order == Order::SlotAtOnce => {
                let change = self.wanted[rival];
                let slots = self.change(change).ends;
                let is_open = places_in(slots).all(|slot| state.chosen[slot] == 0);
                if is_open {
                    places_in(slots).for_each(|slot| state.chosen[slot] |= 1 << change);
                    self.tell(state, change);
                    state.rivals[rival].stop();
                }
                is_open
            }
            Step::Start { rival } => {
                let change = self.wanted[rival];
                let slots = self.change(change).ends;
                if self.rules.slot_has_phase_one {
                    self.go_on(state, rival, Next::Ask { slots });
                } else {
                    state.rivals[rival].attempts = 1;
                    self.go_on(state, rival, Next::Propose { slots, change });
                }
                true
            }
            Step::Prepare { rival, node, slots } => self.slot_prepare(state, rival, node, slots),
            Step::Go { rival, next } => {
                self.go_on(state, rival, next);
                true
            }
            Step::Accept { rival, node, slots } => self.slot_accept(state, rival, node, slots),
        }
    }

    fn slot_prepare(&self, state: &mut State, rival: usize, node: usize, slots: u8) -> bool {
        let ballot = self.slot_ballot(rival, &state.rivals[rival]);
        let Some(accepted) = self.promise(&mut state.nodes[node], slots, ballot) else {
            return false;
        };
        let proposer = &mut state.rivals[rival];
        for slot in places_in(slots) {
            proposer.answered[slot] |= Nodes::one(node);
            proposer.best[slot] = proposer.best[slot].max(accepted[slot]);
        }
        if self.all_answered(rival, proposer) {
            match *self.ways_on(state, self.wanted[rival], &state.rivals[rival]) {
                [] => state.rivals[rival].stop(),
                [next] => self.go_on(state, rival, next),
                _ => {
                    state.rivals[rival].phase = Phase::Choose;
                    state.rivals[rival].answered = Default::default();
                }
            }
        }
        true
    }

    /// How a proposer can go on that has asked enough acceptors.
    pub(crate) fn ways_on(&self, state: &State, wanted: u8, proposer: &Rival) -> Vec<Next> {
        let Rival { asked, best, .. } = proposer;
        let found = |slot: usize| (best[slot].ballot > 0).then_some(best[slot].change);
        let both = |change| Next::Propose { slots: *asked, change };
        let merge = self.changes.iter().position(|change| change.merges() && change.ends == *asked);
        let merge = merge.map(|place| place as u8);
        let is_misread = asked.count_ones() > 1 && !self.rules.merge_names_epochs;
        let misread = is_misread.then(|| places_in(*asked).find_map(found)).flatten();
        let Some(merge) = merge.or(misread) else {
            let slot = asked.trailing_zeros() as usize;
            let change = found(slot).unwrap_or(wanted);
            return self.finish_found(state, slot, wanted, change).into_iter().collect();
        };
        let mut slots = places_in(*asked);
        let has_merge = |slot| found(slot) == Some(merge);
        let has_other = |slot| found(slot).is_some_and(|change| change != merge);
        let is_dead = if self.rules.overtaken_merge_is_dead {
            slots.clone().any(has_other)
        } else {
            !slots.clone().any(has_merge) && slots.clone().any(has_other)
        };
        if !is_dead {
            return vec![both(merge)];
        }
        // One slot has accepted something above the merge, which is thus not chosen. Either slot will do.
        let one = |slot| match found(slot).filter(|change| *change != merge) {
            Some(change) => self.finish_found(state, slot, wanted, change),
            None => {
                self.fresh(slot, wanted).map(|change| Next::Propose { slots: 1 << slot, change })
            }
        };
        slots.by_ref().filter_map(one).collect()
    }

    /// How to finish a change that was found in a slot.
    fn finish_found(&self, state: &State, slot: usize, wanted: u8, change: u8) -> Option<Next> {
        let ends = self.change(change).ends;
        let alone = |change| Next::Propose { slots: 1 << slot, change };
        if ends == 1 << slot || !self.rules.found_merge_asks_both {
            return Some(alone(change));
        }
        if !self.rules.found_merge_is_not_given_up {
            return self.fresh(slot, wanted).map(alone);
        }
        if !self.rules.merge_names_epochs {
            let slots = places_in(ends).map(|place| 1 << self.latest_like(state, place));
            return Some(Next::Ask { slots: slots.fold(0, |all, slot| all | slot) });
        }
        if !self.rules.slot_tells_dead_merge {
            let other = self.config((ends & !(1 << slot)).trailing_zeros() as u8);
            let went_on = self.places().any(|(place, config)| {
                state.is_told(place) && config.points == other.points && config.epoch > other.epoch
            });
            if went_on {
                return self.fresh(slot, wanted).map(alone);
            }
        }
        Some(Next::Ask { slots: ends })
    }

    /// The latest configuration of the same range as this one, of those with slots, that anybody was told of.
    fn latest_like(&self, state: &State, place: usize) -> u8 {
        let points = self.config(place as u8).points;
        let told = self.places().take(SLOTS).filter(|(place, _)| state.is_told(*place));
        let same = told.filter(|(_, config)| config.points == points);
        same.max_by_key(|(_, config)| config.epoch).map_or(place as u8, |(place, _)| place)
    }

    /// What to propose in a slot in which nothing has to be finished: what the proposer wants, or else
    /// whatever there is that ends this range alone.
    pub(crate) fn fresh(&self, slot: usize, wanted: u8) -> Option<u8> {
        let mut places = std::iter::once(wanted).chain(0..self.changes.len() as u8);
        places.find(|place| self.change(*place).ends == 1 << slot)
    }

    fn go_on(&self, state: &mut State, rival: usize, next: Next) {
        let proposer = &mut state.rivals[rival];
        let attempts = proposer.attempts;
        match next {
            // Who has no ballot left stops here: any proposer may.
            Next::Ask { .. } if usize::from(attempts) >= self.slot_ballots[rival].len() => {
                proposer.stop();
            }
            Next::Ask { slots } => {
                let attempts = attempts + 1;
                *proposer =
                    Rival { phase: Phase::Prepare, attempts, asked: slots, ..Rival::default() };
            }
            Next::Propose { slots, change } => {
                let phase = Phase::Accept;
                *proposer = Rival { phase, attempts, asked: slots, change, ..Rival::default() };
                if !self.rules.config_is_decided {
                    self.tell(state, change);
                }
            }
        }
    }

    fn slot_accept(&self, state: &mut State, rival: usize, node: usize, slots: u8) -> bool {
        let before = *state;
        let proposer = &mut state.rivals[rival];
        let ballot = self.slot_ballot(rival, proposer);
        let Rival { change, asked, .. } = *proposer;
        if !self.vote(&mut state.nodes[node], slots, Vote { ballot, change }) {
            return false;
        }
        if proposer.phase == Phase::Accept {
            for slot in places_in(slots) {
                proposer.answered[slot] |= Nodes::one(node);
                if proposer.answered[slot].is_majority_of(self.electorate(rival, asked)) {
                    state.chosen[slot] |= 1 << change;
                }
            }
            if self.all_answered(rival, proposer) {
                proposer.phase = Phase::Accepted;
                proposer.answered = Default::default();
                self.tell(state, change);
                self.close_slots_if_idle(state, asked);
            }
        }
        *state != before
    }

    /// An acceptor promises the ballot in all these slots, or in none, and tells what it accepted.
    pub(crate) fn promise(&self, node: &mut Node, slots: u8, ballot: u8) -> Option<[Vote; SLOTS]> {
        let is_above = |slot: usize| node.slots[slot].promised < ballot;
        if !places_in(slots).all(is_above) || !self.still_votes(node, slots) {
            return None;
        }
        places_in(slots).for_each(|slot| node.slots[slot].promised = ballot);
        Some(node.slots.map(|slot| slot.accepted))
    }

    /// An acceptor accepts in all these slots, or in none.
    pub(crate) fn vote(&self, node: &mut Node, slots: u8, vote: Vote) -> bool {
        let may = |slot: usize| node.slots[slot].promised <= vote.ballot;
        if !places_in(slots).all(may) || !self.still_votes(node, slots) {
            return false;
        }
        for slot in places_in(slots) {
            node.slots[slot] = SlotRecord { promised: vote.ballot, accepted: vote };
        }
        true
    }

    /// Whether a node votes about these slots: in the epochs that they end, or of the two slots of a merge
    /// in one whose epoch it has left. Where no node adopts anything before the slots are decided, all vote.
    fn still_votes(&self, node: &Node, slots: u8) -> bool {
        let end = |slot: usize| self.config(slot as u8).last_point();
        let is_current = |slot: usize| node.config[end(slot)] == Some(slot as u8);
        let has_left = |slot: usize| self.epoch_of(node, end(slot)) > self.config(slot as u8).epoch;
        let may_have_left = slots.count_ones() > 1 && self.rules.slots_outlive_epochs;
        let votes = places_in(slots).any(is_current)
            && places_in(slots).all(|slot| is_current(slot) || may_have_left && has_left(slot));
        votes || self.order != Order::Interleaved || !self.rules.slot_asks_old_members
    }

    /// What an acceptor is told that is behind in one of these slots: the latest configuration with the
    /// same end.
    pub(crate) fn catch_up(&self, told: u8, node: &mut Node, slots: u8) {
        for config in places_in(slots).map(|slot| self.config(slot as u8)) {
            let end = config.last_point();
            let same =
                |(place, other): &(u8, Config)| told >> place & 1 == 1 && other.last_point() == end;
            let latest = self.places().filter(same).max_by_key(|(_, other)| other.epoch);
            if let Some((place, _)) = latest.filter(|_| self.epoch_of(node, end) < config.epoch) {
                self.adopt(node, place);
            }
        }
    }

    /// Lets everybody learn of what a change makes. Who belongs to no older epoch adopts it at once:
    /// until then it would only refuse, which to a proposer is a request that is late.
    fn tell(&self, state: &mut State, change: u8) {
        for place in places_in(self.change(change).makes) {
            state.told |= 1 << place;
            let config = self.config(place as u8);
            for node in (0..NODES).filter(|node| config.everyone().contains(*node)) {
                for point in places_in(config.points) {
                    state.nodes[node].config[point].get_or_insert(place as u8);
                }
            }
        }
    }

    /// Whether this proposer may begin: it was told of what it wants to end, the changes that led there are
    /// complete, and the newcomers hold nothing.
    fn slots_are_open(&self, state: &State, rival: usize) -> bool {
        let waits = self.rules.slot_waits_for_sweep;
        places_in(self.change(self.wanted[rival]).ends).all(|place| {
            let place = place as u8;
            let is_clear = |node: &usize| {
                !self.newcomers(place).contains(*node) || self.is_clear(state, *node, place)
            };
            let are_clear = !self.rules.newcomer_is_clear || (0..NODES).all(|node| is_clear(&node));
            state.is_told(place) && (!waits || self.is_swept(state, place)) && are_clear
        })
    }

    /// The change at this place.
    pub(crate) fn change(&self, place: u8) -> Change {
        self.changes[usize::from(place)]
    }

    /// Whose majority decides in the slots that a proposer asks: both ranges of a merge have the same
    /// members.
    fn electorate(&self, rival: usize, asked: u8) -> Nodes {
        let wanted = self.change(self.wanted[rival]);
        let slots = if self.rules.slot_asks_old_members { asked } else { wanted.makes };
        places_in(slots).next().map_or(Nodes::NONE, |place| self.config(place as u8).members)
    }

    fn all_answered(&self, rival: usize, proposer: &Rival) -> bool {
        let electorate = self.electorate(rival, proposer.asked);
        places_in(proposer.asked).all(|slot| proposer.answered[slot].is_majority_of(electorate))
    }

    /// The sets of slots that one message is about.
    fn parts(&self, slots: u8) -> impl Iterator<Item = u8> + Clone {
        let together = self.rules.merge_is_atomic.then_some(slots);
        let apart = if self.rules.merge_is_atomic { 0 } else { slots };
        together.into_iter().chain(places_in(apart).map(|slot| 1 << slot))
    }

    fn slot_ballot(&self, rival: usize, proposer: &Rival) -> u8 {
        self.slot_ballots[rival][usize::from(proposer.attempts) - 1]
    }

    /// Forgets slots when all their proposers have finished and no merge can ask them again: there is
    /// nobody left to read them.
    fn close_slots_if_idle(&self, state: &mut State, slots: u8) {
        let of_slots = |rival: &usize| self.change(self.wanted[*rival]).ends & slots != 0;
        let rivals = || (0..self.wanted.len()).filter(of_slots);
        let merges = self.changes.iter().any(Change::merges);
        if !merges && rivals().all(|rival| state.rivals[rival].phase == Phase::Accepted) {
            rivals().for_each(|rival| state.rivals[rival].phase = Phase::Over);
            for slot in places_in(slots) {
                state.nodes.iter_mut().for_each(|node| node.slots[slot] = SlotRecord::default());
            }
        }
    }

    /// Forgets what only the slots' own steps read, once none of them will be explored any more.
    pub(crate) fn close_slots(&self, state: &mut State) {
        state.rivals = Default::default();
        state.nodes.iter_mut().for_each(|node| node.slots = Default::default());
    }
}

impl Rival {
    /// Takes no more steps and leaves no requests behind.
    fn stop(&mut self) {
        *self = Self { phase: Phase::Over, ..Self::default() };
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Start { rival } => write!(f, "slot proposer {rival} starts"),
            Self::Prepare { rival, node, slots } => {
                let slots = Slots(slots);
                write!(f, "{} promises {slots} to slot proposer {rival}", name(node))
            }
            Self::Go { rival, next: Next::Ask { slots } } => {
                write!(f, "slot proposer {rival} asks {}", Slots(slots))
            }
            Self::Go { rival, next: Next::Propose { slots, change } } => {
                write!(f, "slot proposer {rival} proposes change {change} for {}", Slots(slots))
            }
            Self::Accept { rival, node, slots } => {
                let slots = Slots(slots);
                write!(f, "{} accepts for {slots} from slot proposer {rival}", name(node))
            }
        }
    }
}

/// Slots by the places of the configurations that they end.
struct Slots(u8);

impl fmt::Display for Slots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let places: Vec<_> = places_in(self.0).map(|place| place.to_string()).collect();
        write!(f, "slot {}", places.join(" and "))
    }
}
