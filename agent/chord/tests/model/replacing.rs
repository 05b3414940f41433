//! One range whose members are replaced: slot, fence, quorums, ballots, answers.

use std::collections::BTreeSet;

use stateright::Model;

use crate::scenario::Kind::{Create, Delete, Get, Put, Sweep};
use crate::scenario::{Operation, Scenario};
use crate::state::State;
use crate::system::{FOUND, LINEARIZABLE, ONE_DECISION, SEALED};
use crate::{any, checked, happens, new, old, print, rule_is_needed};

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

/// The answers and the registers of all states that the scenario can reach.
fn outcomes(scenario: &Scenario) -> BTreeSet<impl Ord + use<>> {
    let mut frontier = scenario.init_states();
    let mut reached = BTreeSet::from_iter(frontier.iter().copied());
    while let Some(state) = frontier.pop() {
        frontier
            .extend(scenario.next_states(&state).into_iter().filter(|next| reached.insert(*next)));
    }
    let answers = |state: &State| state.operations.map(|op| (op.before, op.returned));
    let registers = |state: &State| state.nodes.map(|node| node.keys);
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
    happens(
        &[
            ("a crashed member is replaced", Scenario::replaces_a_crashed_member),
            ("a suspected owner serves on", Scenario::suspicion_was_false),
            ("both epochs serve", Scenario::both_epochs_served),
            ("a rival's proposal is finished", Scenario::rival_was_helped),
        ],
        Scenario::replacement(&clients).with_crash_of("a"),
    );
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
    for broken in [LINEARIZABLE, SEALED] {
        rule_is_needed(
            "previous members adopt before they answer",
            |rules| rules.prev_adopts = false,
            broken,
            &creates,
        );
    }
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
    let mut by_round = Scenario::unopposed(&puts);
    by_round.rules.ballot_has_epoch = false;
    by_round.rules.prev_promises = true;
    let by_round = checked("ballots without epoch, promised by previous members too", by_round);
    rule_is_needed(
        "previous members promise if ballots have no epoch",
        |rules| rules.prev_promises = false,
        LINEARIZABLE,
        &by_round,
    );
    rule_is_needed(
        "promises outlive the epoch if ballots have none",
        |rules| rules.promises_outlive_epoch = false,
        LINEARIZABLE,
        &by_round,
    );
    let creates =
        [any(Put(1)), old(Delete), any(Create(2)).following(1), any(Create(3)).in_round(4)];
    rule_is_needed(
        "the reserved ballot dies with its epoch",
        |rules| rules.sticky_dies_with_epoch = false,
        LINEARIZABLE,
        &checked(
            "delete, create with the reserved ballot, create",
            Scenario::unopposed(&creates).with_first_done("abc"),
        ),
    );
    let puts = [old(Put(1)), any(Put(2)).following(0), any(Get).in_round(3)];
    rule_is_needed(
        "the reserved ballot dies with its epoch",
        |rules| rules.sticky_dies_with_epoch = false,
        LINEARIZABLE,
        &checked("put with a reserved ballot", Scenario::unopposed(&puts)),
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
}
