//! The collection of tombstones.

use crate::scenario::Kind::{Create, Delete, Get, Put, Sweep};
use crate::scenario::Scenario;
use crate::system::LINEARIZABLE;
use crate::{any, checked, is_large, new, old, rule_is_needed};

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
    // A deletion that finds nothing leaves a record like that of one that finds a value.
    let created = [old(Delete).in_round(1), new(Create(1)).in_round(1), new(Create(2)).in_round(2)];
    rule_is_needed(
        "a tombstone with a promise of a later epoch stays",
        |rules| rules.drop_heeds_promise = false,
        LINEARIZABLE,
        &checked("delete and two creates", Scenario::bump(&created)),
    );
}

#[test]
fn tombstones_and_reserved_ballots() {
    let clients = [old(Delete).in_round(1), any(Create(1)).following(0), any(Get).in_round(3)];
    checked("delete, create with the reserved ballot, get", Scenario::bump(&clients));
}

#[test]
fn tombstones_and_copies() {
    let deleted = [old(Put(1)).in_round(1), old(Delete).in_round(2), new(Get).in_round(1)];
    let copies = Scenario::bump(&deleted).decided_at_once().with_copies().with_late_copy();
    rule_is_needed(
        "a tombstone outlives the epoch of its reports, not only its own",
        |rules| rules.drop_awaits_epoch_after_report = false,
        LINEARIZABLE,
        &checked("put, delete, get and copies, one of them late", copies),
    );
}

#[test]
fn tombstones_and_members_that_come_back() {
    let clients = [
        old(Put(1)).in_round(1),
        new(Sweep).in_round(1),
        new(Delete).in_round(2),
        any(Get).in_epoch(4),
    ];
    let scenario = Scenario::leave_and_return(&clients).with_collection();
    rule_is_needed(
        "who becomes a member again starts empty",
        |rules| rules.joiner_starts_empty = false,
        LINEARIZABLE,
        &checked("put, delete and get while a leaves and returns", scenario.clone()),
    );
    if is_large() {
        checked("the same with releases", scenario.with_release());
    }
}
