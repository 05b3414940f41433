//! Copies to members that missed something.

use crate::scenario::Kind::{Create, Get, Put};
use crate::scenario::Scenario;
use crate::system::LINEARIZABLE;
use crate::{any, checked, is_large, new, old, rule_is_needed};

#[test]
fn copies_at_once() {
    let creates = [any(Create(1)), any(Create(2))];
    checked("two creates and copies", Scenario::unopposed(&creates).with_copies());
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
fn copies_of_an_older_epoch() {
    let clients = [old(Create(1)).in_round(1), new(Create(2)).in_round(1), new(Get).in_round(2)];
    let scenario = Scenario::unopposed(&clients).with_late_copy();
    rule_is_needed(
        "copies heed promises of a later epoch",
        |rules| rules.copy_heeds_promise = false,
        LINEARIZABLE,
        &checked("a create in each epoch, get and a late copy", scenario),
    );
    if is_large() {
        let copies = Scenario::unopposed(&clients).with_late_copy().with_copies();
        checked("a create in each epoch, get, copies and a late one", copies);
        let puts = [any(Put(1)).in_round(1), any(Put(2)).in_round(2), any(Get).in_round(3)];
        checked("two puts, get and a late copy", Scenario::unopposed(&puts).with_late_copy());
    }
}
