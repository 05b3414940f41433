//! The sweep: bringing what the previous members hold into the new epoch, so that they need not be asked
//! any more.

use crate::scenario::Kind::{Get, Put, Sweep};
use crate::scenario::Scenario;
use crate::system::{DURABLE, FOUND};
use crate::{any, checked, is_large, new, old, rule_is_needed};

#[test]
fn rules_of_the_sweep() {
    let swept = [old(Put(1)).in_round(1), any(Sweep).in_round(1), new(Get)];
    let swept = checked("put, sweep and get", Scenario::unopposed(&swept));
    rule_is_needed(
        "the quorum is fixed at the start",
        |rules| rules.quorum_is_fixed = false,
        FOUND,
        &swept,
    );
    rule_is_needed(
        "a majority of the previous members is scanned",
        |rules| rules.scan_asks_majority = false,
        FOUND,
        &swept,
    );
    rule_is_needed(
        "who is scanned has left the old epoch",
        |rules| rules.scan_is_fenced = false,
        FOUND,
        &swept,
    );
    for broken in [FOUND, DURABLE] {
        rule_is_needed(
            "what is scanned is accepted anew",
            |rules| rules.sweep_brings_keys = false,
            broken,
            &swept,
        );
    }
}

#[test]
fn a_sweep_that_is_refused() {
    let clients = [
        old(Put(1)).in_round(1),
        new(Sweep).in_round(1),
        new(Put(2)).in_round(2),
        new(Get).in_round(3),
    ];
    let scenario = Scenario::unopposed(&clients);
    rule_is_needed(
        "what was refused is swept again",
        |rules| rules.sweep_tries_again = false,
        FOUND,
        &checked("sweep, put and get", scenario.clone().with_first_done("ac")),
    );
    if is_large() {
        checked("put, sweep, put and get", scenario);
    }
}
