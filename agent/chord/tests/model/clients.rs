//! Two clients that each do one thing after the other, while the members change.

use crate::scenario::Kind::{Create, Delete, Get, Replace};
use crate::scenario::{Operation, Scenario};
use crate::{any, checked, happens, is_large, searched_in_part};

/// Create, then compare and swap; delete, then get. The ballots of each epoch are in the order of these
/// rounds.
fn operations([create, replace, delete, get]: [u8; 4]) -> [Operation; 4] {
    [
        any(Create(1)).in_round(create),
        any(Replace(1, 2)).in_round(replace).after(0),
        any(Delete).in_round(delete),
        any(Get).in_round(get).after(2),
    ]
}

#[test]
fn two_clients_with_two_operations_each() {
    let scenario = |rounds| Scenario::unopposed(&operations(rounds)).decided_at_once();
    happens(
        &[("all are answered, in both epochs", Scenario::all_are_answered)],
        scenario([1, 2, 3, 4]),
    );
    checked(
        "create and replace, delete and get, crash of any",
        scenario([1, 2, 3, 4]).with_crash_of("abcd"),
    );
    if is_large() {
        let with_slot = Scenario::replacement(&operations([1, 2, 3, 4])).interleaved();
        searched_in_part(
            "create and replace, delete and get, two proposers of the slot, crash of any",
            10_000_000,
            &with_slot.with_crash_of("abcd"),
        );
        for rounds in [1, 2, 3, 4].map(orders_from).concat() {
            let what = format!("create and replace, delete and get in rounds {rounds:?}");
            checked(&what, scenario(rounds).with_crash_of("abcd"));
        }
    }
}

/// The orders of four rounds that begin with this one.
fn orders_from(first: u8) -> Vec<[u8; 4]> {
    let others: Vec<u8> = (1..=4).filter(|round| *round != first).collect();
    [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]]
        .map(|[a, b, c]| [first, others[a], others[b], others[c]])
        .to_vec()
}
