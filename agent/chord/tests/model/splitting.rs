//! A range with two keys: it is split, with a key in each part, or swept as a whole.

use crate::scenario::Kind::{Create, Get, Put, Sweep};
use crate::scenario::Scenario;
use crate::system::{FOUND, LINEARIZABLE};
use crate::{checked, happens, is_large, new, old, rule_is_needed};

#[test]
fn clients_while_a_range_is_split() {
    let one_each = [old(Create(1)).in_round(1), new(Create(1)).on_key(1).in_round(1)];
    happens(
        &[("a range answers, and a part of it", Scenario::both_epochs_served)],
        Scenario::split(&one_each),
    );
    checked("split, a create on either side", Scenario::split(&one_each));
    let right = [old(Create(1)).on_key(1), new(Create(2)).on_key(1)];
    rule_is_needed(
        "a new part asks the previous members",
        |rules| rules.prev_is_asked = false,
        LINEARIZABLE,
        &checked("split and two creates on the right", Scenario::split(&right)),
    );
    if is_large() {
        let both = [
            old(Create(1)).in_round(1),
            new(Create(2)).in_round(1),
            old(Create(1)).on_key(1).in_round(1),
            new(Create(2)).on_key(1).in_round(1),
        ];
        checked("split and two creates on either side", Scenario::split(&both));
    }
}

#[test]
fn a_sweep_of_two_keys() {
    let clients = [old(Put(1)), new(Sweep).in_round(1), new(Sweep).on_key(1).in_round(1), new(Get)];
    let scenario = Scenario::unopposed(&clients).with_two_keys();
    rule_is_needed(
        "a range is swept when all its keys are",
        |rules| rules.sweep_covers_all_keys = false,
        FOUND,
        &checked("get and a sweep of two keys", scenario.clone().with_first_done("ac")),
    );
    if is_large() {
        checked("put, get and a sweep of two keys", scenario);
    }
}
