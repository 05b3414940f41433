//! Model checking of the data protocol: the registers of a range and the slots that replace its
//! members, in one model, with Stateright. `cargo test -p sky-chord --test model -- --nocapture` prints
//! the state counts and the runs that the broken protocols allow.
//!
//! # What is modelled
//!
//! Four nodes a, b, c, d; one range with one key. Epoch 1 has the members {a,b,c}. Its slot, Paxos among
//! a, b and c, decides the members of epoch 2: one proposer suspects a and wants {b,c,d}; a is alive,
//! suspects b and wants {a,c,d}; both sets have {a,b,c} as their previous members. In one scenario the
//! slot of epoch 2 makes a second change, {b,c,d} -> {a,c,d}. Clients put, create, delete and get through
//! proposers of their own, in any epoch they were told of, with ballots in any relative order. The
//! sweep, the release of a node that left, the ballot reserved for the next change, a client's retry,
//! copies between nodes (anti-entropy) and the collection of tombstones are there for the scenarios that
//! ask for them.
//!
//! Messages are late, lost, reordered and duplicated without a network in the state: a request that was
//! sent once can be delivered at any later step or never, an accept request any number of times, also
//! after its operation has returned. The answer to a delivered request is counted at once. A lost or late
//! answer would add nothing: a promise only forbids, so the run without a prepare whose answer is lost
//! permits more, and an operation that returns as early as it can is bound by the real-time order most.
//! (A rule in which a promise *permits* something would need lost answers as steps.)
//!
//! A step that writes is durable; a node that restarts goes on where it was, so only its proposers have
//! anything to forget, and a proposer that stops for ever is one that makes no step. A crash takes a
//! node out for good.
//!
//! # What must hold
//!
//! The answers are linearizable; an acknowledged write is found by later reads; each slot decides once;
//! an epoch serves only after a majority of the previous members has left the one before. Each rule of
//! [`rules::Rules`] is shown to be needed: with it the scenario is checked to the end, without it the
//! checker has to find a run that breaks the named property. [`the_scenarios_are_not_idle`] shows that
//! what the scenarios are about does happen.
//!
//! # Sizes
//!
//! All searches are breadth first and, unless a rule is off, exhaustive: nothing is capped. The smallest
//! scenario is the slot alone (1,510 states). The largest has one create in each epoch, both proposers of
//! the slot and the crash of a, in all orders of all steps (797,268 states). Where all orders are too
//! many, the slot's steps come first; [`scenario::Order`] says why that loses nothing.
//! [`the_order_of_the_slots_steps_changes_no_outcome`] compares the two. Operations that
//! are bound to an epoch or a round in a scenario are bound to keep it small. States are compared by a
//! hash of 64 bits.
//!
//! # What is not modelled
//!
//! Splits and merges, and changes by them; more than one key; expiry; leases and clocks; torn writes;
//! the bound on remembered request ids; copies that arrive in a later epoch than they were sent in;
//! progress: a protocol that never answers would pass, except for what the idle check asks for.
//!
//! # How to add a rule
//!
//! A step goes into the file of its part, or into a new one like `tombstone.rs`, the smallest example: a
//! variant of `Step`, when it can happen, what it does; `system.rs` lists the parts. What it remembers
//! goes into `state.rs`, as small as it can be. The rule is a field of [`rules::Rules`], asked for at the
//! one place that it governs, and its test is a call of [`rule_is_needed`] with the smallest scenario
//! that breaks without it. Expiry would be a step that turns a value into "absent" at each node by
//! itself, and a register in `Scenario::can_order` that may do the same once; a merge is a slot whose
//! decision ends another range's chain and needs a second range in the state.

mod properties;
mod register;
mod rules;
mod scenario;
mod slot;
mod state;
mod system;
mod tombstone;

use std::collections::BTreeSet;
use std::fmt::Write as _;

use rules::Rules;
use scenario::Kind::{Create, Delete, Get, Put, Retry, Sweep};
use scenario::{Kind, Operation, Question, Scenario};
use state::State;
use stateright::{Checker, HasDiscoveries, Model, Path, Property};
use system::{FOUND, LINEARIZABLE, ONE_DECISION, SEALED, Step};

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

/// Searches all states of the scenario under all rules, fails with the run that breaks a property if there
/// is one, and hands the scenario back for [`rule_is_needed`].
fn checked(what: &str, scenario: Scenario) -> Scenario {
    let checker = scenario.clone().checker().spawn_bfs().join();
    let states = checker.unique_state_count();
    for property in scenario.properties() {
        if let Some(path) = checker.discovery(property.name) {
            panic!("{what}: not always true that {}:\n{}", property.name, story(path));
        }
    }
    assert!(checker.is_done(), "{what}: the search ended early");
    print(&format!("{what}: holds in all {states} states, depth {}", checker.max_depth()));
    scenario
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

#[test]
fn old_and_new_owner_create_while_the_slot_decides_and_a_crashes() {
    let creates = [old(Create(1)).in_round(1), new(Create(2)).in_round(1)];
    let scenario = Scenario::replacement(&creates).interleaved().with_crash_of("a");
    checked("two creates, all orders, crash of a", scenario);
}

#[test]
fn two_clients_in_any_epoch_while_any_node_crashes() {
    let scenario =
        |operations: &[Operation]| Scenario::replacement(operations).with_crash_of("abcd");
    checked("two creates, crash of any", scenario(&[any(Create(1)), any(Create(2))]));
    checked("put and get, crash of any", scenario(&[any(Put(1)), any(Get)]));
}

#[test]
fn three_clients() {
    let creates = [old(Create(1)), new(Create(2)).in_round(1), new(Get)];
    checked("two creates and get", Scenario::unopposed(&creates));
    let puts = [any(Put(1)).in_round(1), new(Put(2)).in_round(2), new(Get).in_round(3)];
    checked("two puts and get", Scenario::replacement(&puts));
}

#[test]
fn two_clients_while_nodes_copy() {
    let creates = [any(Create(1)), any(Create(2))];
    checked("two creates and copies", Scenario::unopposed(&creates).with_copies());
}

/// The answers and the registers of all states that the scenario can reach.
fn outcomes(scenario: &Scenario) -> BTreeSet<impl Ord + use<>> {
    let mut frontier = scenario.init_states();
    let mut reached = BTreeSet::from_iter(frontier.iter().copied());
    while let Some(state) = frontier.pop() {
        frontier
            .extend(scenario.next_states(&state).into_iter().filter(|next| reached.insert(*next)));
    }
    let answers = |state: &State| state.operations.map(|op| (op.before, op.returned));
    let registers = |state: &State| state.nodes.map(|node| node.accepted);
    reached.iter().map(|state| (answers(state), registers(state))).collect()
}

#[test]
fn the_order_of_the_slots_steps_changes_no_outcome() {
    let clients = [old(Create(1)).in_round(1), any(Get).in_round(2)];
    let scenario = Scenario::unopposed(&clients);
    let sorted = outcomes(&scenario);
    print(&format!("{} outcomes", sorted.len()));
    assert!(sorted == outcomes(&scenario.interleaved()), "sorting the steps changed the outcomes");
}

#[test]
fn the_scenarios_are_not_idle() {
    let clients = [old(Create(1)).in_round(1), new(Create(2)).in_round(1)];
    let scenario = Scenario {
        question: Question::WhatMustHappen,
        ..Scenario::replacement(&clients).with_crash_of("a")
    };
    let checker = scenario.clone().checker().finish_when(HasDiscoveries::All).spawn_bfs().join();
    for Property { name, .. } in scenario.properties() {
        let path = checker.discovery(name).unwrap_or_else(|| panic!("never happens: {name}"));
        print(&format!("{name}:\n{}", story(path)));
    }
}

#[test]
fn rules_of_the_slot() {
    let slot = checked("slot alone", Scenario::replacement(&[]).interleaved());
    rule_is_needed(
        "a majority of the old members decides",
        |rules| rules.slot_asks_old_members = false,
        ONE_DECISION,
        &slot,
    );
    rule_is_needed(
        "the slot's proposers ask first",
        |rules| rules.slot_has_phase_one = false,
        ONE_DECISION,
        &slot,
    );
    let creates = [new(Create(1)).in_round(1), new(Create(2)).in_round(2)];
    rule_is_needed(
        "only decided configurations serve",
        |rules| rules.config_is_decided = false,
        LINEARIZABLE,
        &checked("two creates in epoch 2", Scenario::replacement(&creates)),
    );
    let clients = [
        old(Create(1)).in_round(1),
        new(Sweep).in_round(1),
        any(Create(2)).in_epoch(3).in_round(1),
    ];
    rule_is_needed(
        "the next change waits for the sweep",
        |rules| rules.slot_waits_for_sweep = false,
        LINEARIZABLE,
        &checked("two changes", Scenario::two_changes(&clients)),
    );
}

#[test]
fn rules_of_leaving() {
    let sweep = Scenario::replacement(&[new(Sweep)]).interleaved().with_release();
    rule_is_needed(
        "who left remembers the slot",
        |rules| rules.leaver_remembers = false,
        ONE_DECISION,
        &checked("sweep and release, all orders", sweep),
    );
    let creates = [old(Create(1)).in_round(1), new(Sweep).in_round(1), new(Create(2)).in_round(2)];
    rule_is_needed(
        "who left remembers the epoch",
        |rules| rules.leaver_remembers = false,
        LINEARIZABLE,
        &checked("two creates and release", Scenario::unopposed(&creates).with_release()),
    );
    let read = [old(Put(1)).in_round(1), any(Sweep).in_round(1), new(Get)];
    rule_is_needed(
        "who left refuses",
        |rules| rules.released_refuses = false,
        FOUND,
        &checked("put, get and release", Scenario::unopposed(&read).with_release()),
    );
}

#[test]
fn rules_of_the_fence() {
    let creates = [old(Create(1)), new(Create(2))];
    let creates = checked("a create in each epoch", Scenario::unopposed(&creates));
    rule_is_needed(
        "acceptors heed the epoch",
        |rules| {
            rules.older_is_refused = false;
            rules.newer_is_adopted = false;
        },
        LINEARIZABLE,
        &creates,
    );
    rule_is_needed(
        "older epochs are refused",
        |rules| rules.older_is_refused = false,
        LINEARIZABLE,
        &creates,
    );
    rule_is_needed(
        "nodes adopt before they answer",
        |rules| rules.newer_is_adopted = false,
        LINEARIZABLE,
        &creates,
    );
    rule_is_needed(
        "nodes adopt before they answer",
        |rules| rules.newer_is_adopted = false,
        SEALED,
        &creates,
    );
}

#[test]
fn rules_of_the_quorums() {
    let creates = [old(Create(1)), new(Create(2))];
    rule_is_needed(
        "the new epoch asks the previous members",
        |rules| rules.prev_is_asked = false,
        LINEARIZABLE,
        &checked("a create in each epoch", Scenario::unopposed(&creates)),
    );
    rule_is_needed(
        "the new epoch asks the previous members",
        |rules| rules.prev_is_asked = false,
        FOUND,
        &checked("put, then get", Scenario::unopposed(&[old(Put(1)), new(Get)])),
    );
    let creates = [new(Create(1)), new(Create(2))];
    rule_is_needed(
        "the new epoch asks its members",
        |rules| rules.members_are_asked = false,
        LINEARIZABLE,
        &checked("two creates in epoch 2", Scenario::unopposed(&creates)),
    );
    let swept = [old(Put(1)).in_round(1), any(Sweep).in_round(1), new(Get)];
    rule_is_needed(
        "the quorum is fixed at the start",
        |rules| rules.quorum_is_fixed = false,
        FOUND,
        &checked("put, sweep and get", Scenario::unopposed(&swept)),
    );
}

#[test]
fn rules_of_the_ballots() {
    let creates = [any(Create(1)), any(Create(2))];
    rule_is_needed(
        "no ballot is used twice",
        |rules| rules.ballot_is_unique = false,
        LINEARIZABLE,
        &checked("two creates", Scenario::unopposed(&creates)),
    );
    let puts = [old(Put(1)).in_round(2), new(Put(2)).in_round(1), new(Get).in_round(3)];
    rule_is_needed(
        "a ballot begins with its epoch",
        |rules| rules.ballot_has_epoch = false,
        LINEARIZABLE,
        &checked("a put in each epoch and get", Scenario::unopposed(&puts)),
    );
    let creates = [old(Get), any(Create(1)).following(0), any(Create(2))];
    rule_is_needed(
        "the reserved ballot dies with its epoch",
        |rules| rules.sticky_dies_with_epoch = false,
        LINEARIZABLE,
        &checked("create with a reserved ballot", Scenario::unopposed(&creates)),
    );
    let puts = [old(Put(1)), any(Put(2)).following(0), any(Get).in_round(3)];
    rule_is_needed(
        "the reserved ballot dies with its epoch",
        |rules| rules.sticky_dies_with_epoch = false,
        LINEARIZABLE,
        &checked("put with a reserved ballot", Scenario::unopposed(&puts)),
    );
    let creates = [any(Create(1)).in_round(1), any(Create(2)).in_round(2), any(Get).in_round(3)];
    rule_is_needed(
        "copies heed promises",
        |rules| rules.copy_heeds_promise = false,
        LINEARIZABLE,
        &checked(
            "creates, get and copies",
            Scenario::replacement(&creates).unchanged().with_copies(),
        ),
    );
}

#[test]
fn rules_of_the_answers() {
    let gets = [old(Put(1)).in_round(1), old(Get).in_round(2), any(Get).in_round(3)];
    rule_is_needed(
        "reads write back",
        |rules| rules.read_writes_back = false,
        LINEARIZABLE,
        &checked("put and two gets", Scenario::unopposed(&gets)),
    );
    let creates = [old(Create(1)).in_round(1), old(Create(2)).in_round(2), any(Get).in_round(3)];
    rule_is_needed(
        "\"it exists\" is written back",
        |rules| rules.exists_writes_back = false,
        LINEARIZABLE,
        &checked("two creates in epoch 1 and get", Scenario::unopposed(&creates)),
    );
    let retried = [any(Create(1)), any(Retry(0))];
    rule_is_needed(
        "a retry is recognised",
        |rules| rules.requests_are_known = false,
        LINEARIZABLE,
        &checked("create and its retry", Scenario::unopposed(&retried)),
    );
}

#[test]
fn rules_of_tombstones() {
    // The read may begin before the deletion and write back after it.
    let deleted = |get| [old(Put(1)).in_round(1), get, old(Delete).in_round(3)];
    rule_is_needed(
        "all members hold a tombstone before one forgets it",
        |rules| rules.all_hold_tombstone = false,
        LINEARIZABLE,
        &checked("put, get after the bump, delete", Scenario::bump(&deleted(new(Get).in_round(2)))),
    );
    let unchanging = Scenario::bump(&deleted(old(Get).in_round(2))).unchanged();
    rule_is_needed(
        "a tombstone outlives the epoch of its reports",
        |rules| rules.drop_awaits_epoch = false,
        LINEARIZABLE,
        &checked("put, get, delete in one epoch", unchanging),
    );
    let created = [old(Delete).in_round(1), new(Create(1)).in_round(1), new(Create(2)).in_round(2)];
    rule_is_needed(
        "a tombstone with a later promise stays",
        |rules| rules.drop_heeds_promise = false,
        LINEARIZABLE,
        &checked("delete and two creates", Scenario::bump(&created)),
    );
}
