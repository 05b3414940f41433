//! The collection of tombstones.

use crate::scenario::Kind::{Create, Delete, Get, Put};
use crate::scenario::Scenario;
use crate::system::LINEARIZABLE;
use crate::{any, checked, happens, is_large, new, old, rule_is_needed};

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
    let created = [
        old(Put(1)),
        old(Delete).in_round(2),
        new(Create(2)).in_round(1),
        new(Create(3)).in_round(2),
    ];
    rule_is_needed(
        "a tombstone with a promise of a later epoch stays",
        |rules| rules.drop_heeds_promise = false,
        LINEARIZABLE,
        &checked("delete and two creates", Scenario::bump(&created).with_first_done("abc")),
    );
}

#[test]
fn tombstones_and_reserved_ballots() {
    let clients = [old(Put(1)), old(Delete), any(Create(2)).following(1), any(Get)];
    let scenario = Scenario::bump(&clients).with_first_done("abc");
    checked("delete, create with the reserved ballot, get", scenario);
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
    let clients = [any(Put(1)), any(Delete).in_epoch(2).in_round(2), any(Get)];
    let scenario = Scenario::come_back(&clients).with_collection();
    happens(
        &[
            ("nobody holds the tombstone any more", Scenario::tombstone_is_gone),
            ("who had left is a member again", Scenario::has_come_back),
        ],
        scenario.clone(),
    );
    rule_is_needed(
        "who becomes a member again holds nothing",
        |rules| rules.newcomer_is_clear = false,
        LINEARIZABLE,
        &checked("put, delete and get while a returns", scenario),
    );
    if is_large() {
        let clients = [any(Put(1)), any(Delete), any(Get)];
        let scenario = Scenario::come_back(&clients).with_collection().with_release();
        checked("put, delete and get in any epoch while a releases and returns", scenario);
    }
}
