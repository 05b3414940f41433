//! Model checking of the data protocol: the registers of a range and the slots that replace its
//! members, in one model, with Stateright. `cargo test -p sky-chord --test model -- --nocapture` prints
//! the state counts and the runs that the broken protocols allow. `SKY_MODEL=large` searches more, which
//! takes hours and some gigabytes.
//!
//! # What is modelled
//!
//! Four nodes a, b, c, d, and ranges that cover one to three points of the ring with a key at each. Mostly
//! there is one range with one key: epoch 1 has the members {a,b,c}. Its slot, Paxos among a, b and c,
//! decides the members of epoch 2: one proposer suspects a and wants {b,c,d}; a is alive, suspects b and
//! wants {a,c,d}; both sets have {a,b,c} as their previous members. Clients put, create, compare and swap,
//! delete and get through proposers of their own, in any epoch they were told of, with ballots in any
//! relative order unless the scenario says otherwise. Each file is a part or a set of scenarios:
//!
//! - [`register`]: what nodes answer and what proposers do for a key; [`change`]: what an operation makes
//!   of its state; [`slot`]: how configurations are decided; [`copying`], [`tombstone`]: anti-entropy and
//!   the collection of tombstones; [`system`]: all of it together; [`properties`]: what must hold
//! - [`scenario`]: how large one run is; [`state`]: one state; [`rules`]: the rules, each of which can be
//!   switched off, and which mistake each stands for
//! - [`replacing`]: members are replaced, with slot, fence, quorums, ballots and answers; [`clients`]: two
//!   clients with two operations each meanwhile; [`sweeping`]: bringing the keys over; [`splitting`],
//!   [`merging`]: two ranges and two keys; [`catching_up`]: copies, at once and late; [`collecting`]:
//!   tombstones that go, with copies and with members that leave and come back; [`losing`]: lost disks;
//!   [`expiring`]: values whose time is over; [`retrying`]: requests sent again, also when the key has forgotten them
//!
//! Messages are late, lost, reordered and duplicated without a network in the state: a request that was
//! sent once can be delivered at any later step or never, an accept request any number of times, also
//! after its operation has returned. The answer to a delivered request is counted at once. A lost or late
//! answer would add nothing: a promise only forbids, so the run without a prepare whose answer is lost
//! permits more, and an operation that returns as early as it can is bound by the real-time order most.
//! (A rule in which a promise *permits* something would need lost answers as steps.)
//!
//! A step that writes is durable; a node that restarts goes on where it was, so only its proposers have
//! anything to forget, and a proposer that stops for ever, or for as long as anybody likes, is one that
//! makes no step. A crash takes a node out for good. A node that lost its disk is another node.
//!
//! Where the model is less strict than the agent, the agent's runs are among the model's: where the slot's
//! steps do not come in all orders, a node votes also in slots of epochs that it has not adopted or has
//! left; the parts of a split are adopted one by one, and the rest goes on meanwhile; a reserved ballot is used whatever the
//! node itself holds by then.
//!
//! # What must hold
//!
//! - The answers are linearizable, for each key.
//! - An acknowledged write is found by later reads, and every quorum that can answer holds it on one of its
//!   nodes: it is not lost while such a quorum survives.
//! - Each slot decides once, and a merge in both its slots or in none: so the configurations that cover a
//!   point form one chain, and one at most is active.
//! - An epoch serves only after a majority of the previous members has left the one before.
//! - Where ranges merge: a proposer that is left alone with a majority can still change every range.
//!
//! Each rule of [`rules::Rules`] is shown to be needed: with it the scenario is searched to the end,
//! without it the checker has to find a run that breaks the named property. [`happens`] shows that what
//! the scenarios are about does happen in them.
//!
//! # Sizes
//!
//! All searches are breadth first and exhaustive; only the one that says "not all", with `SKY_MODEL=large`,
//! ends early. With one key, four nodes, two proposers of the slot and the crash of one node:
//!
//! - one create in each epoch, all orders of all steps of slot and registers: 777,828 states
//! - two operations in any epoch, any ballots, the slot's steps first: 272,430 (creates), 193,020 (put, get)
//! - create then compare and swap against delete then get, in any epoch, one order of ballots, the slot's
//!   decision as one step at any time: 3,248,390
//!
//! Where all orders are too many, the slot's steps come first or are one: [`scenario::Order`] says why that
//! loses nothing. [`replacing`] compares the outcomes of the first with those of all orders. Operations that
//! are bound to an epoch or a round in a scenario are bound to keep it small. States are compared by a
//! hash of 64 bits.
//!
//! # What is not modelled
//!
//! More than five operations or three ranges; leases and time-outs, by which the agent gives up changes; the
//! clocks of members and their votes, upon which a value expires: that step may come at any time; torn writes (the simulator has them); lists of keys; `consistency=any`; configurations forced by
//! an operator; progress: a protocol that never answers would pass, except for what [`happens`] asks for.
//!
//! # How to add a rule
//!
//! A step goes into the file of its part, or into a new one like `tombstone.rs`, the smallest example: a
//! variant of `Step`, when it can happen, what it does; `system.rs` lists the parts. What it remembers
//! goes into `state.rs`, as small as it can be. The rule is a field of [`rules::Rules`], asked for at the
//! one place that it governs, and its test is a call of [`rule_is_needed`] with the smallest scenario
//! that breaks without it.

mod catching_up;
mod change;
mod clients;
mod collecting;
mod copying;
mod expiring;
mod losing;
mod merging;
mod properties;
mod register;
mod replacing;
mod retrying;
mod rules;
mod scenario;
mod slot;
mod splitting;
mod state;
mod sweeping;
mod system;
mod tombstone;

use std::fmt::Write as _;

use rules::Rules;
use scenario::{Kind, Occasion, Operation, Question, Scenario};
use state::State;
use stateright::{Checker, HasDiscoveries, Model, Path};
use system::Step;

/// An operation in any epoch, in any round.
const fn any(kind: Kind) -> Operation {
    Operation::new(kind)
}

/// An operation of the old epoch, in any round.
const fn old(kind: Kind) -> Operation {
    Operation::new(kind).in_epoch(1)
}

/// An operation of the new epoch, in any round.
const fn new(kind: Kind) -> Operation {
    Operation::new(kind).in_epoch(2)
}

/// Whether to search what takes minutes and gigabytes too.
fn is_large() -> bool {
    std::env::var("SKY_MODEL").is_ok_and(|size| size == "large")
}

/// Searches all states of the scenario under all rules, fails with the run that breaks a property if there
/// is one, and hands the scenario back for [`rule_is_needed`].
fn checked(what: &str, scenario: Scenario) -> Scenario {
    let (states, depth) = search(what, &scenario);
    print(&format!("{what}: holds in all {states} states, depth {depth}"));
    scenario
}

/// Searches as many states as it is told, nearest first, and fails with the run that breaks a property.
fn searched_in_part(what: &str, states: usize, scenario: &Scenario) {
    let checker = scenario.clone().checker().target_state_count(states).spawn_bfs().join();
    fail_if_broken(what, scenario, &checker);
    let (states, depth) = (checker.unique_state_count(), checker.max_depth());
    print(&format!("{what}: holds in the first {states} states, to depth {depth} (not all)"));
}

/// How many states there are, and the length of the longest of the shortest runs to each.
fn search(what: &str, scenario: &Scenario) -> (usize, usize) {
    let checker = scenario.clone().checker().spawn_bfs().join();
    fail_if_broken(what, scenario, &checker);
    assert!(checker.is_done(), "{what}: the search ended early");
    (checker.unique_state_count(), checker.max_depth())
}

fn fail_if_broken(what: &str, scenario: &Scenario, checker: &impl Checker<Scenario>) {
    for property in scenario.properties() {
        if let Some(path) = checker.discovery(property.name) {
            panic!("{what}: not always true that {}:\n{}", property.name, story(path));
        }
    }
}

/// Fails if the scenario cannot break the property although a rule is switched off.
fn rule_is_needed(
    rule: &str,
    switch_off: fn(&mut Rules),
    broken: &'static str,
    scenario: &Scenario,
) {
    let mut careless = scenario.clone();
    switch_off(&mut careless.rules);
    let found = HasDiscoveries::AnyOf([broken].into());
    let checker = careless.checker().finish_when(found).spawn_bfs().join();
    let states = checker.unique_state_count();
    let Some(path) = checker.discovery(broken) else {
        panic!("{rule}: without this rule, {broken} in all {states} states as well");
    };
    print(&format!("{rule}: without it, not always true that {broken}:\n{}", story(path)));
}

/// Fails if one of these kinds of states is never reached.
fn happens(occasions: &'static [Occasion], scenario: Scenario) {
    let scenario = Scenario { question: Question::WhatMustHappen(occasions), ..scenario };
    let checker = scenario.checker().finish_when(HasDiscoveries::All).spawn_bfs().join();
    for (name, _) in occasions {
        let path = checker.discovery(name).unwrap_or_else(|| panic!("never happens: {name}"));
        print(&format!("{name}:\n{}", story(path)));
    }
}

/// The steps of a run, one a line, and what the operations returned.
fn story(path: Path<State, Step>) -> String {
    let last = path.last_state().operations;
    let mut text = String::new();
    for (number, step) in path.into_actions().iter().enumerate() {
        let _ = writeln!(text, "{:6}. {step}", number + 1);
    }
    for (op, progress) in last.iter().enumerate() {
        if let Some(result) = progress.returned {
            let _ = writeln!(text, "        operation {op} returned {result}");
        }
    }
    text
}

/// Shows the result of a search to whoever runs the tests with `--nocapture`.
#[expect(clippy::print_stdout, reason = "the sizes are part of what these tests report")]
fn print(text: &str) {
    println!("{text}");
}
