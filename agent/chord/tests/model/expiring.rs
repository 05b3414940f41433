//! Values that are kept for a time: when a majority has said that it is over, somebody deletes the value, unless
//! the key has another one by then. When that is the model leaves open: no answer depends on it.

use crate::scenario::Kind::{Create, Expire, Get, Put};
use crate::scenario::Scenario;
use crate::system::LINEARIZABLE;
use crate::{any, checked, happens, new, old, rule_is_needed};

#[test]
fn a_value_that_is_written_anew_does_not_expire() {
    let clients = [
        old(Put(1)).in_round(1),
        old(Put(2)).in_round(2),
        new(Expire(1)).in_round(3),
        new(Get).in_round(4),
    ];
    let scenario = Scenario::unopposed(&clients).decided_at_once();
    happens(
        &[("it goes", Scenario::has_expired), ("it stays", Scenario::is_kept)],
        scenario.clone(),
    );
    let scenario = checked("put, put anew, expiry of the first, get", scenario);
    rule_is_needed(
        "expiry names the version that it ends",
        |rules| rules.expiry_names_its_version = false,
        LINEARIZABLE,
        &scenario,
    );
}

#[test]
fn what_has_expired_does_not_come_back() {
    let clients = [old(Put(1)).in_round(1), any(Expire(1)).in_round(2), any(Create(2)).in_round(3)];
    let scenario = Scenario::unopposed(&clients).decided_at_once();
    checked("put, expiry, create, crash of any", scenario.with_crash_of("abcd"));
    // Two members ask at once, and one comes late.
    let clients = [
        old(Put(1)).in_round(1),
        old(Expire(1)).in_round(2),
        new(Create(2)).in_round(3),
        new(Expire(1)).in_round(4),
    ];
    let scenario = Scenario::unopposed(&clients).decided_at_once();
    checked("put, expiry, create, late expiry", scenario);
}
