//! Two neighbouring ranges with the same members become one: one proposal for the slots of both.

use crate::scenario::Kind::{Create, Sweep};
use crate::scenario::Scenario;
use crate::system::{LINEARIZABLE, NOT_STUCK, ONE_DECISION};
use crate::{any, checked, happens, is_large, new, old, print, rule_is_needed, search};

/// All ways in which the slots' proposers can order their ballots, each with so many: for each proposer
/// its ballots, ascending.
fn orders(ballots_of: &[usize]) -> Vec<Vec<Vec<u8>>> {
    let mut orders = vec![vec![Vec::new(); ballots_of.len()]];
    for ballot in 1..=ballots_of.iter().sum::<usize>() as u8 {
        let extended = orders.iter().flat_map(|order: &Vec<Vec<u8>>| {
            let has_more = |proposer: &usize| order[*proposer].len() < ballots_of[*proposer];
            (0..ballots_of.len()).filter(has_more).map(|proposer| {
                let mut order = order.clone();
                order[proposer].push(ballot);
                order
            })
        });
        orders = extended.collect();
    }
    orders
}

/// Checks the scenario for each order of so many ballots of the slots' proposers.
fn checked_in_all_orders(what: &str, ballots_of: &[usize], scenario: &Scenario) {
    let orders = orders(ballots_of);
    let (mut all, mut largest, mut deepest) = (0, 0, 0);
    for order in &orders {
        let what = format!("{what}, ballots {order:?}");
        let (states, depth) = search(&what, &scenario.with_slot_ballots(order));
        all += states;
        largest = largest.max(states);
        deepest = deepest.max(depth);
    }
    print(&format!(
        "{what}: holds in all {all} states of {} orders of the ballots, at most {largest}, depth {deepest}",
        orders.len()
    ));
}

/// Ballots of the slots' proposers with which most can happen: the merge comes first, both others find it
/// and have a ballot left to ask both slots.
fn merge_first() -> [Vec<u8>; 3] {
    [vec![1], vec![2, 4], vec![3, 5]]
}

#[test]
fn slots_of_a_merge() {
    let slots = Scenario::merge(1, &[]);
    checked_in_all_orders("slots of a merge", &[1, 2, 2], &slots);
    checked_in_all_orders(
        "slots of a merge and a split",
        &[1, 2, 1],
        &Scenario::merge_and_split(&[]),
    );
    let two = Scenario::two_merges();
    checked(
        "slots of two merges that share a range",
        two.with_slot_ballots(&[vec![1], vec![2], vec![3, 4], vec![5, 6]]),
    );
    let split = Scenario::merge_and_split(&[]).interleaved();
    checked("slots of a merge, a split and adoption", split.with_slot_ballots(&merge_first()));
    if is_large() {
        checked_in_all_orders(
            "slots of a merge and adoption",
            &[1, 2, 2],
            &slots.clone().interleaved(),
        );
        checked_in_all_orders("slots of a merge", &[2, 2, 2], &slots);
        let again = Scenario { wanted: vec![0, 1, 2, 0], ..slots };
        checked_in_all_orders("slots of a merge with two proposers", &[1, 2, 2, 1], &again);
        checked_in_all_orders(
            "slots of a merge and a split",
            &[2, 2, 2],
            &Scenario::merge_and_split(&[]),
        );
        checked_in_all_orders("slots of two merges that share a range", &[1, 1, 2, 2], &two);
    }
}

#[test]
fn rules_of_the_slots_of_a_merge() {
    let slots = Scenario::merge(1, &[]).with_slot_ballots(&merge_first());
    let slots = checked("slots of a merge", slots);
    rule_is_needed(
        "acceptors vote in both slots at once",
        |rules| rules.merge_is_atomic = false,
        ONE_DECISION,
        &slots,
    );
    rule_is_needed(
        "who finds a merge asks both slots",
        |rules| rules.found_merge_asks_both = false,
        ONE_DECISION,
        &slots,
    );
    rule_is_needed(
        "a merge that is found is not given up",
        |rules| rules.found_merge_is_not_given_up = false,
        ONE_DECISION,
        &slots,
    );
    rule_is_needed(
        "a merge of which one slot has gone on is dead",
        |rules| rules.overtaken_merge_is_dead = false,
        ONE_DECISION,
        &slots,
    );
    rule_is_needed(
        "members vote about a merge when they have left one of its epochs",
        |rules| rules.slots_outlive_epochs = false,
        NOT_STUCK,
        &checked("slots of a merge and adoption", slots.interleaved()),
    );
    let ballots = [vec![1], vec![2], vec![3, 4]];
    let bump = Scenario::merge_and_bump().with_slot_ballots(&ballots);
    rule_is_needed(
        "a merge is about two epochs",
        |rules| rules.merge_names_epochs = false,
        ONE_DECISION,
        &checked("slots of a merge and a new epoch on the right", bump),
    );
    let ballots = [vec![1], vec![2, 4], vec![3]];
    let split = Scenario::merge_and_split(&[]).with_slot_ballots(&ballots);
    rule_is_needed(
        "the other slot tells whether a merge is dead",
        |rules| rules.slot_tells_dead_merge = false,
        ONE_DECISION,
        &checked("slots of a merge and a split", split),
    );
}

#[test]
fn clients_while_ranges_merge() {
    let merge = |left, operations: &[_]| {
        Scenario::merge(left, operations).with_slot_ballots(&merge_first())
    };
    let creates = [any(Create(1)).in_round(1), any(Create(2)).in_round(2)];
    happens(
        &[("a range answers, and what it was merged into", Scenario::both_epochs_served)],
        merge(1, &creates),
    );
    checked("merge and two creates", merge(1, &creates));
    checked("merge with a later epoch on the left and two creates", merge(2, &creates));
    let creates = [old(Create(1)).on_key(1), new(Create(2)).on_key(1)];
    checked("merge and two creates on the right", merge(1, &creates));
    let all_orders = [old(Create(1)).in_round(1), new(Create(2)).in_round(1)];
    checked(
        "merge and two creates, all orders",
        Scenario { wanted: vec![0, 1], ..merge(1, &all_orders) }.interleaved(),
    );
}

#[test]
fn rules_of_merged_data() {
    let creates = [old(Create(1)).in_round(1), any(Create(2)).in_epoch(3).in_round(1)];
    rule_is_needed(
        "adopting the merged range fences off both",
        |rules| rules.merge_fences_both = false,
        LINEARIZABLE,
        &checked("merge, replacement and two creates", Scenario::merge_and_replace(&creates)),
    );
    let clients = [
        old(Create(1)).on_key(1).in_round(1),
        new(Sweep).on_key(1).in_round(1),
        any(Create(2)).on_key(1).in_epoch(3).in_round(1),
    ];
    let scenario = Scenario::replace_and_merge(&clients);
    rule_is_needed(
        "a merge waits for the sweep",
        |rules| rules.slot_waits_for_sweep = false,
        LINEARIZABLE,
        &checked("replacement, merge and two creates", scenario.clone().decided_at_once()),
    );
    if is_large() {
        checked("replacement, merge and two creates, all orders", scenario);
    }
}
