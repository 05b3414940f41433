//! How large one run of the checker is: configurations, operations, who may crash.

use crate::rules::Rules;
use crate::state::{NODES, Node, Nodes, OPERATIONS, RIVALS, State};

/// A configuration of the one range. The first has epoch 1.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Config {
    pub(crate) epoch: u8,
    pub(crate) members: Nodes,
    /// The members of the epoch before, or none if they are the same.
    pub(crate) prev: Nodes,
    /// The place of the configuration in whose slot it is decided.
    pub(crate) parent: u8,
}

impl Config {
    /// Everyone who is asked in this epoch.
    pub(crate) fn everyone(&self) -> Nodes {
        self.members | self.prev
    }
}

/// What a client wants. Values are above 0 and differ between writes: the value is its own mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Writes the value, whatever is there.
    Put(u8),
    /// Writes the value if nothing is there, else returns 0, "it exists".
    Create(u8),
    /// Writes "absent", whatever is there.
    Delete,
    /// Returns the value, 0 if nothing is there.
    Get,
    /// Not a client's: brings the key into the new epoch.
    Sweep,
    /// The client of operation `0` gave up waiting and sends the same request to another proposer.
    Retry(usize),
}

/// One client operation. Each has a proposer of its own, which can stop at any point.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Operation {
    pub(crate) kind: Kind,
    /// Runs in this epoch only.
    pub(crate) epoch: Option<u8>,
    /// Uses this round only.
    pub(crate) round: Option<u8>,
    /// Uses the ballot reserved by this operation, of the same process, and skips phase 1.
    pub(crate) follows: Option<usize>,
}

impl Operation {
    /// An operation in any epoch with any ballot.
    pub(crate) const fn new(kind: Kind) -> Self {
        Self { kind, epoch: None, round: None, follows: None }
    }

    /// The same in one epoch only.
    pub(crate) const fn in_epoch(self, epoch: u8) -> Self {
        Self { epoch: Some(epoch), ..self }
    }

    /// The same with one round only.
    pub(crate) const fn in_round(self, round: u8) -> Self {
        Self { round: Some(round), ..self }
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
}

/// What the checker looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Question {
    /// A state in which something is wrong.
    WhatMustHold,
    /// A state of each kind that the scenario was made for, so that no search was idle.
    WhatMustHappen,
}

/// One run of the checker.
#[derive(Debug, Clone)]
pub(crate) struct Scenario {
    pub(crate) rules: Rules,
    pub(crate) configs: Vec<Config>,
    /// What each proposer of a slot wants, by place in `configs`.
    pub(crate) wanted: Vec<u8>,
    pub(crate) operations: Vec<Operation>,
    /// One of these may crash.
    pub(crate) may_crash: Nodes,
    /// A node that left may delete its keys.
    pub(crate) may_release: bool,
    /// Nodes may copy the register to each other at any time.
    pub(crate) may_copy: bool,
    /// Nodes may forget tombstones.
    pub(crate) may_collect: bool,
    pub(crate) order: Order,
    pub(crate) question: Question,
}

impl Scenario {
    /// Two proposers of the slot: b, who suspects a, wants {a,b,c} -> {b,c,d}; a, who is falsely
    /// suspected and goes on in epoch 1, suspects b and wants {a,c,d}.
    pub(crate) fn replacement(operations: &[Operation]) -> Self {
        assert!(operations.len() <= OPERATIONS, "enlarge OPERATIONS for a longer scenario");
        let abc = Nodes::named("abc");
        let config =
            |members| Config { epoch: 2, members: Nodes::named(members), prev: abc, parent: 0 };
        Self {
            rules: Rules::ALL,
            configs: vec![
                Config { epoch: 1, members: abc, prev: Nodes::NONE, parent: 0 },
                config("bcd"),
                config("acd"),
            ],
            wanted: vec![1, 2],
            operations: operations.to_vec(),
            may_crash: Nodes::NONE,
            may_release: false,
            may_copy: false,
            may_collect: false,
            order: Order::SlotFirst,
            question: Question::WhatMustHold,
        }
    }

    /// The same with one proposer of the slot only, who wants {b,c,d}.
    pub(crate) fn unopposed(operations: &[Operation]) -> Self {
        Self { wanted: vec![1], ..Self::replacement(operations) }
    }

    /// Two changes, each with one proposer: {a,b,c} -> {b,c,d} -> {a,c,d}.
    pub(crate) fn two_changes(operations: &[Operation]) -> Self {
        let mut scenario = Self::replacement(operations).interleaved();
        scenario.configs[2] = Config {
            epoch: 3,
            members: Nodes::named("acd"),
            prev: scenario.configs[1].members,
            parent: 1,
        };
        scenario
    }

    /// A change that keeps the members {a,b,c}: it makes a new epoch, and tombstones are collected.
    pub(crate) fn bump(operations: &[Operation]) -> Self {
        let mut scenario = Self { may_collect: true, ..Self::unopposed(operations) };
        let first = scenario.configs[0];
        scenario.configs = vec![first, Config { epoch: 2, ..first }];
        scenario
    }

    /// The same without anybody who wants another configuration.
    pub(crate) fn unchanged(self) -> Self {
        Self { wanted: Vec::new(), ..self }
    }

    /// The same with all orders of the steps of the slot and the others.
    pub(crate) fn interleaved(self) -> Self {
        Self { order: Order::Interleaved, ..self }
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

    /// The state in which epoch 1 serves and nothing was asked yet.
    pub(crate) fn first_state(&self) -> State {
        assert!(self.wanted.len() <= RIVALS, "enlarge RIVALS for more proposers");
        let mut state = State::default();
        for node in (0..NODES).filter(|node| self.configs[0].members.contains(*node)) {
            state.nodes[node] = Node { config: Some(0), ..Node::default() };
        }
        state
    }

    /// The configuration at this place.
    pub(crate) fn config(&self, place: u8) -> Config {
        self.configs[usize::from(place)]
    }

    /// The places of all configurations with their numbers.
    pub(crate) fn places(&self) -> impl Iterator<Item = (u8, Config)> {
        (0u8..).zip(self.configs.iter().copied())
    }

    /// The epoch of a node, 0 before it heard of any.
    pub(crate) fn epoch_of(&self, node: &Node) -> u8 {
        node.config.map_or(0, |place| self.config(place).epoch)
    }

    /// The ballot of `round` in `epoch` as the acceptors compare it.
    pub(crate) const fn ballot(&self, epoch: u8, round: u8) -> u8 {
        if self.rules.ballot_has_epoch { epoch << 4 | round } else { round }
    }
}
