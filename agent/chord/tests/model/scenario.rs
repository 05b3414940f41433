//! How large one run of the checker is: configurations, operations, who may crash.

use crate::rules::Rules;
use crate::state::{
    Accepted, KeyRecord, NODES, Node, Nodes, OPERATIONS, POINTS, Phase, Progress, RIVALS, Register,
    State,
};

/// A configuration of a range.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Config {
    pub(crate) epoch: u8,
    /// The points that the range covers, one bit each.
    pub(crate) points: u8,
    pub(crate) members: Nodes,
    /// The members of the epoch before, or none if they are the same.
    pub(crate) prev: Nodes,
}

impl Config {
    /// Everyone who is asked in this epoch.
    pub(crate) fn everyone(&self) -> Nodes {
        self.members | self.prev
    }

    /// The last point of the range, which names it.
    pub(crate) const fn last_point(&self) -> usize {
        self.points.ilog2() as usize
    }

    /// Whether the range covers this point.
    pub(crate) const fn covers(&self, point: usize) -> bool {
        self.points >> point & 1 == 1
    }
}

/// What a slot can decide: configurations that end, and those that take their place.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Change {
    /// The places of the configurations that end, one bit each: two for a merge.
    pub(crate) ends: u8,
    /// The places of the configurations that begin, one bit each: two for a split.
    pub(crate) makes: u8,
}

impl Change {
    const fn new(ends: &[u8], makes: &[u8]) -> Self {
        Self { ends: bits(ends), makes: bits(makes) }
    }

    /// Whether it is decided in two slots.
    pub(crate) const fn merges(&self) -> bool {
        self.ends.count_ones() > 1
    }
}

/// The set of these places.
const fn bits(places: &[u8]) -> u8 {
    match places {
        [] => 0,
        [first, rest @ ..] => 1 << *first | bits(rest),
    }
}

/// What a client wants. Values are above 0 and differ between writes: the value is its own mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Writes the value, whatever is there.
    Put(u8),
    /// Writes the value if nothing is there, else returns 0, "it exists".
    Create(u8),
    /// Writes the second value if the first one is there, else returns 0.
    Replace(u8, u8),
    /// Writes "absent" if a value is there, else returns 0.
    Delete,
    /// Not a client's: a majority has said that the time of this value is over. Writes "absent" if the value is
    /// there, else returns 0.
    Expire(u8),
    /// Returns the value, 0 if nothing is there.
    Get,
    /// Not a client's: brings the key into the new epoch.
    Sweep,
    /// The client of operation `0` gave up waiting and sends the same request to another proposer.
    Retry(usize),
}

impl Kind {
    /// Whether the operation stores a value if it succeeds.
    pub(crate) const fn writes(self) -> bool {
        matches!(self, Self::Put(_) | Self::Create(_) | Self::Replace(..))
    }

    /// Whether the operation leaves nothing there if it succeeds.
    pub(crate) const fn deletes(self) -> bool {
        matches!(self, Self::Delete | Self::Expire(_))
    }
}

/// One client operation. Each has a proposer of its own, which can stop at any point.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Operation {
    pub(crate) kind: Kind,
    /// The point of its key.
    pub(crate) key: usize,
    /// Runs in this epoch only.
    pub(crate) epoch: Option<u8>,
    /// Uses this round only.
    pub(crate) round: Option<u8>,
    /// Starts when this operation, of the same client, has returned.
    pub(crate) after: Option<usize>,
    /// Uses the ballot reserved by this operation, of the same process, and skips phase 1.
    pub(crate) follows: Option<usize>,
}

impl Operation {
    /// An operation in any epoch with any ballot.
    pub(crate) const fn new(kind: Kind) -> Self {
        Self { kind, key: 0, epoch: None, round: None, after: None, follows: None }
    }

    /// The same on the key at this point.
    pub(crate) const fn on_key(self, key: usize) -> Self {
        Self { key, ..self }
    }

    /// The same in one epoch only.
    pub(crate) const fn in_epoch(self, epoch: u8) -> Self {
        Self { epoch: Some(epoch), ..self }
    }

    /// The same with one round only.
    pub(crate) const fn in_round(self, round: u8) -> Self {
        Self { round: Some(round), ..self }
    }

    /// The same by the client of operation `earlier`, when that one has returned.
    pub(crate) const fn after(self, earlier: usize) -> Self {
        Self { after: Some(earlier), ..self }
    }

    /// The same with the ballot that operation `leader` reserved.
    pub(crate) const fn following(self, leader: usize) -> Self {
        Self { follows: Some(leader), ..self }
    }
}

/// In which order the steps of the slot and all others are explored. A second slot's proposers wait
/// for the sweep, so two changes need all orders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// All orders.
    Interleaved,
    /// The steps of slot 1 come first and decide. No step of the register reads or writes what the
    /// slot's proposers and acceptors remember, and a decision forces nobody, so every run can be sorted
    /// this way, and completed by a decision, and still ends in the same registers and answers.
    SlotFirst,
    /// All orders, but a slot decides in one step. The slots are searched by themselves; to the registers
    /// only the decision matters.
    SlotAtOnce,
}

/// What the checker looks for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Question {
    /// A state in which something is wrong.
    WhatMustHold,
    /// A state of each of these kinds, for which the scenario was made, so that no search was idle.
    WhatMustHappen(&'static [Occasion]),
}

/// A kind of state, by name.
pub(crate) type Occasion = (&'static str, fn(&Scenario, &State) -> bool);

/// One run of the checker.
#[derive(Debug, Clone)]
pub(crate) struct Scenario {
    pub(crate) rules: Rules,
    /// The first ones, one for each range, then those that can be decided.
    pub(crate) configs: Vec<Config>,
    /// How many of them are there from the beginning.
    pub(crate) first: usize,
    pub(crate) changes: Vec<Change>,
    /// What each proposer of a slot wants, by place in `changes`.
    pub(crate) wanted: Vec<u8>,
    /// The ballots of each proposer of a slot, in the order in which it takes them.
    pub(crate) slot_ballots: Vec<Vec<u8>>,
    pub(crate) operations: Vec<Operation>,
    /// One of these may crash.
    pub(crate) may_crash: Nodes,
    /// A node that left may delete its keys.
    pub(crate) may_release: bool,
    /// Nodes may copy the register to each other at any time.
    pub(crate) may_copy: bool,
    /// A node may send a copy of the register that arrives later.
    pub(crate) may_copy_late: bool,
    /// Nodes may forget tombstones.
    pub(crate) may_collect: bool,
    /// Operation 0, which writes 1, was carried out before the run and is on these nodes.
    pub(crate) held_before: Nodes,
    /// One of these may lose its disk.
    pub(crate) may_lose_disk: Nodes,
    pub(crate) order: Order,
    pub(crate) question: Question,
}

impl Scenario {
    /// The members {a,b,c} of the one range, and these changes.
    fn of_one_range(operations: &[Operation], configs: &[Config], changes: &[Change]) -> Self {
        Self::of(1, configs.to_vec(), changes.to_vec()).with(operations)
    }

    fn of(first: usize, configs: Vec<Config>, changes: Vec<Change>) -> Self {
        Self {
            rules: Rules::ALL,
            wanted: (0..changes.len() as u8).collect(),
            slot_ballots: (1..=changes.len() as u8).map(|ballot| vec![ballot]).collect(),
            configs,
            first,
            changes,
            operations: Vec::new(),
            may_crash: Nodes::NONE,
            may_release: false,
            may_copy: false,
            may_copy_late: false,
            may_collect: false,
            held_before: Nodes::NONE,
            may_lose_disk: Nodes::NONE,
            order: Order::SlotFirst,
            question: Question::WhatMustHold,
        }
    }

    /// Two proposers of the slot: b, who suspects a, wants {a,b,c} -> {b,c,d}; a, who is falsely
    /// suspected and goes on in epoch 1, suspects b and wants {a,c,d}.
    pub(crate) fn replacement(operations: &[Operation]) -> Self {
        let changes = [Change::new(&[0], &[1]), Change::new(&[0], &[2])];
        Self::of_one_range(operations, &[ABC, replaced(ABC, "bcd"), replaced(ABC, "acd")], &changes)
    }

    /// The same with one proposer of the slot only, who wants {b,c,d}.
    pub(crate) fn unopposed(operations: &[Operation]) -> Self {
        Self { wanted: vec![0], ..Self::replacement(operations) }
    }

    /// Two changes, each with one proposer: {a,b,c} -> {b,c,d} -> {a,c,d}.
    pub(crate) fn two_changes(operations: &[Operation]) -> Self {
        let bcd = replaced(ABC, "bcd");
        let changes = [Change::new(&[0], &[1]), Change::new(&[1], &[2])];
        Self::of_one_range(operations, &[ABC, bcd, replaced(bcd, "acd")], &changes).interleaved()
    }

    /// The range with the keys at points 0 and 1 is split; the right part gets other members at once.
    pub(crate) fn split(operations: &[Operation]) -> Self {
        let whole = Config { points: 0b11, ..ABC };
        let left = bumped(ABC);
        let right = Config { points: 0b10, ..replaced(ABC, "bcd") };
        Self::of_one_range(operations, &[whole, left, right], &[Change::new(&[0], &[1, 2])])
    }

    /// a has left the range and still holds what operation 0 wrote before that; a new epoch begins, and a
    /// comes back for b: {b,c,d} -> {b,c,d} -> {a,c,d}.
    pub(crate) fn come_back(operations: &[Operation]) -> Self {
        let bcd = Config { members: Nodes::named("bcd"), epoch: 2, ..ABC };
        let again = bumped(bcd);
        let configs = [bcd, again, replaced(again, "acd")];
        let changes = [0, 1].map(|place| Change::new(&[place], &[place + 1]));
        let scenario = Self::of_one_range(operations, &configs, &changes);
        scenario.decided_at_once().with_first_done("abcd")
    }

    /// A change that keeps the members {a,b,c}: it makes a new epoch, and tombstones are collected.
    pub(crate) fn bump(operations: &[Operation]) -> Self {
        let changes = [Change::new(&[0], &[1])];
        let scenario = Self::of_one_range(operations, &[ABC, bumped(ABC)], &changes);
        scenario.with_collection()
    }

    /// Two neighbouring ranges, left (place 0, epoch `left_epoch`) and right (place 1, epoch 1), with the
    /// members {a,b,c}. Three proposers: to merge them; to replace a by d on the left; to begin a new
    /// epoch on the right.
    pub(crate) fn merge(left_epoch: u8, operations: &[Operation]) -> Self {
        let left = Config { epoch: left_epoch, ..ABC };
        let right = Config { points: 0b10, ..ABC };
        let configs = vec![left, right, merged(left), replaced(left, "bcd"), bumped(right)];
        let changes =
            vec![Change::new(&[0, 1], &[2]), Change::new(&[0], &[3]), Change::new(&[1], &[4])];
        Self::of(2, configs, changes).with(operations)
    }

    /// Two neighbouring ranges that are merged and split at the same point again, and a third proposer
    /// who wants a new epoch on the left and may have heard of nothing since the beginning.
    pub(crate) fn merge_and_split(operations: &[Operation]) -> Self {
        let right = Config { points: 0b10, ..ABC };
        let whole = merged(ABC);
        let half = |points| Config { points, ..bumped(whole) };
        let configs = vec![ABC, right, whole, bumped(ABC), half(0b01), half(0b10)];
        let changes =
            vec![Change::new(&[0, 1], &[2]), Change::new(&[0], &[3]), Change::new(&[2], &[4, 5])];
        Self::of(2, configs, changes).with(operations)
    }

    /// Two neighbouring ranges: proposers to merge them, to begin a new epoch on the right, which can end in
    /// turn, and to begin a new epoch on the left.
    pub(crate) fn merge_and_bump() -> Self {
        let right = Config { points: 0b10, ..ABC };
        let next = bumped(right);
        let configs = vec![ABC, right, next, merged(ABC), bumped(ABC)];
        let changes =
            vec![Change::new(&[0, 1], &[3]), Change::new(&[1], &[2]), Change::new(&[0], &[4])];
        Self::of(2, configs, changes)
    }

    /// Three neighbouring ranges with the members {a,b,c}: proposers who want to merge the first two, the
    /// last two, and to begin a new epoch in the middle and on the right.
    pub(crate) fn two_merges() -> Self {
        let range = |points| Config { points, ..ABC };
        let [left, middle, right] = [0b001, 0b010, 0b100].map(range);
        let configs = vec![
            left,
            middle,
            right,
            Config { points: 0b011, ..bumped(left) },
            Config { points: 0b110, ..bumped(left) },
            bumped(middle),
            bumped(right),
            bumped(left),
        ];
        let changes = vec![
            Change::new(&[0, 1], &[3]),
            Change::new(&[1, 2], &[4]),
            Change::new(&[1], &[5]),
            Change::new(&[2], &[6]),
            Change::new(&[0], &[7]),
        ];
        let scenario = Self::of(3, configs, changes);
        Self { wanted: vec![0, 1, 2, 3], ..scenario }
    }

    /// The right one of two ranges moves to the members of the left one, {b,c,d}; then they are merged.
    pub(crate) fn replace_and_merge(operations: &[Operation]) -> Self {
        let left = Config { members: Nodes::named("bcd"), ..ABC };
        let right = Config { points: 0b10, ..ABC };
        let moved = replaced(right, "bcd");
        let whole = Config { points: 0b11, ..bumped(moved) };
        let configs = vec![left, right, moved, Config { prev: Nodes::NONE, ..whole }];
        let changes = vec![Change::new(&[1], &[2]), Change::new(&[0, 2], &[3])];
        Self::of(2, configs, changes).with(operations).interleaved()
    }

    /// Two neighbouring ranges that are merged; then a is replaced by d.
    pub(crate) fn merge_and_replace(operations: &[Operation]) -> Self {
        let right = Config { points: 0b10, ..ABC };
        let whole = merged(ABC);
        let configs = vec![ABC, right, whole, replaced(whole, "bcd")];
        let changes = vec![Change::new(&[0, 1], &[2]), Change::new(&[2], &[3])];
        Self::of(2, configs, changes).with(operations)
    }

    /// The same with these operations.
    fn with(self, operations: &[Operation]) -> Self {
        assert!(operations.len() <= OPERATIONS, "enlarge OPERATIONS for a longer scenario");
        Self { operations: operations.to_vec(), ..self }
    }

    /// The same with these ballots of the slots' proposers: for each the ballots that it takes in turn.
    pub(crate) fn with_slot_ballots(&self, ballots: &[Vec<u8>]) -> Self {
        Self { slot_ballots: ballots.to_vec(), ..self.clone() }
    }

    /// The same without anybody who wants another configuration.
    pub(crate) fn unchanged(self) -> Self {
        Self { wanted: Vec::new(), ..self }
    }

    /// The same with all orders of the steps of the slot and the others.
    pub(crate) fn interleaved(self) -> Self {
        Self { order: Order::Interleaved, ..self }
    }

    /// The same with all orders of the steps, where each slot decides in one step.
    pub(crate) fn decided_at_once(self) -> Self {
        Self { order: Order::SlotAtOnce, ..self }
    }

    /// The same with one of `nodes`, named as in `"abcd"`, crashing at any time, or none.
    pub(crate) fn with_crash_of(self, nodes: &str) -> Self {
        Self { may_crash: Nodes::named(nodes), ..self }
    }

    /// The same with nodes that delete their keys when they have left and the sweep is done.
    pub(crate) fn with_release(self) -> Self {
        Self { may_release: true, ..self }
    }

    /// The same with anti-entropy.
    pub(crate) fn with_copies(self) -> Self {
        Self { may_copy: true, ..self }
    }

    /// The same with one copy that is on its way for any time.
    pub(crate) fn with_late_copy(self) -> Self {
        Self { may_copy_late: true, ..self }
    }

    /// The same with the collection of tombstones.
    pub(crate) fn with_collection(self) -> Self {
        Self { may_collect: true, ..self }
    }

    /// The same with one of `nodes` losing its disk at any time, or none.
    pub(crate) fn with_lost_disk_of(self, nodes: &str) -> Self {
        Self { may_lose_disk: Nodes::named(nodes), ..self }
    }

    /// The same with operation 0 carried out before, with what it wrote on `nodes`.
    pub(crate) fn with_first_done(self, nodes: &str) -> Self {
        Self { held_before: Nodes::named(nodes), ..self }
    }

    /// The same with ranges that cover the keys at points 0 and 1.
    pub(crate) fn with_two_keys(mut self) -> Self {
        self.configs.iter_mut().for_each(|config| config.points = 0b11);
        self
    }

    /// The state in which the first configurations serve and nothing was asked yet.
    pub(crate) fn first_state(&self) -> State {
        assert!(self.wanted.len() <= RIVALS, "enlarge RIVALS for more proposers");
        let mut state = State { told: (1 << self.first) - 1, ..State::default() };
        for (place, config) in self.places().take(self.first) {
            for node in (0..NODES).filter(|node| config.members.contains(*node)) {
                for point in (0..POINTS).filter(|point| config.covers(*point)) {
                    state.nodes[node].config[point] = Some(place);
                }
            }
        }
        if !self.held_before.is_empty() {
            self.write_before(&mut state);
        }
        state
    }

    fn write_before(&self, state: &mut State) {
        state.operations[0] =
            Progress { phase: Phase::Over, returned: Some(1), ..Progress::default() };
        let ballot = self.ballot(1, 1);
        let register = Register { value: 1, ..Register::default() };
        let record = KeyRecord { promised: ballot, accepted: Accepted { ballot, register } };
        for node in (0..NODES).filter(|node| self.held_before.contains(*node)) {
            state.nodes[node].keys[0] = record;
            state.nodes[node].config[0] = Some(0);
        }
    }

    /// The configuration at this place.
    pub(crate) fn config(&self, place: u8) -> Config {
        self.configs[usize::from(place)]
    }

    /// The places of all configurations with their numbers.
    pub(crate) fn places(&self) -> impl Iterator<Item = (u8, Config)> {
        (0..self.configs.len() as u8).map(|place| (place, self.config(place)))
    }

    /// The epoch of a node at a point, 0 before it heard of any.
    pub(crate) fn epoch_of(&self, node: &Node, point: usize) -> u8 {
        node.config[point].map_or(0, |place| self.config(place).epoch)
    }

    /// The ballot of `round` in `epoch` as the acceptors compare it.
    pub(crate) const fn ballot(&self, epoch: u8, round: u8) -> u8 {
        if self.rules.ballot_has_epoch { epoch << 4 | round } else { round }
    }

    /// Whether `place` needs no previous members any more: everything was brought over, if there was
    /// anything to bring.
    pub(crate) fn is_swept(&self, state: &State, place: u8) -> bool {
        let config = self.config(place);
        let is_done = |point: usize| state.swept[point] >> place & 1 == 1;
        let mut covered = (0..POINTS).filter(|point| config.covers(*point));
        config.prev.is_empty()
            || if self.rules.sweep_covers_all_keys {
                covered.all(is_done)
            } else {
                covered.any(is_done)
            }
    }
}

/// The members {a,b,c} of the range that covers point 0 only, in epoch 1.
const ABC: Config =
    Config { epoch: 1, points: 0b01, members: Nodes::named("abc"), prev: Nodes::NONE };

/// The next epoch of the same range with other members.
fn replaced(old: Config, members: &str) -> Config {
    Config { epoch: old.epoch + 1, members: Nodes::named(members), prev: old.members, ..old }
}

/// The next epoch of the same range with the same members.
const fn bumped(old: Config) -> Config {
    Config { epoch: old.epoch + 1, prev: Nodes::NONE, ..old }
}

/// The range that takes the place of both, where the left one has the higher epoch, or the same.
const fn merged(left: Config) -> Config {
    Config { points: 0b11, ..bumped(left) }
}
