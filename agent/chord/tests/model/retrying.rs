//! Clients that ask again. A key remembers one request.

use crate::scenario::Kind::{Create, Delete, Get, Put, Replace, Retry};
use crate::scenario::Scenario;
use crate::system::LINEARIZABLE;
use crate::{any, checked, happens, is_large, old, rule_is_needed};

#[test]
fn a_request_is_carried_out_once() {
    let retried = [any(Create(1)), any(Retry(0))];
    rule_is_needed(
        "a retry is recognised",
        |rules| rules.requests_are_known = false,
        LINEARIZABLE,
        &checked("create and its retry", Scenario::unopposed(&retried)),
    );
    let forgotten = |first, retry| {
        let clients = [
            old(Create(1)).in_round(first),
            old(Delete).in_round(2),
            old(Retry(0)).in_round(retry),
            old(Get).in_round(4),
        ];
        Scenario::replacement(&clients).unchanged()
    };
    rule_is_needed(
        "what may be forgotten is refused",
        |rules| rules.unknown_is_refused = false,
        LINEARIZABLE,
        &checked("create, delete, a retry of the create, get", forgotten(1, 3)),
    );
    rule_is_needed(
        "also when it is the first attempt that comes late",
        |rules| rules.first_attempts_can_be_late = false,
        LINEARIZABLE,
        &checked("a retry, delete, and the first attempt, get", forgotten(3, 1)),
    );
    rule_is_needed(
        "what may be forgotten is carried out only by who is alone with it",
        |rules| rules.sole_is_alone = false,
        LINEARIZABLE,
        &forgotten(3, 1),
    );
    let refused = [
        old(Replace(1, 2)).in_round(3),
        old(Put(1)).in_round(2),
        old(Retry(0)).in_round(1),
        old(Get).in_round(4),
    ];
    rule_is_needed(
        "a refused retry is remembered",
        |rules| rules.refusals_are_noted = false,
        LINEARIZABLE,
        &checked(
            "a refused retry, put, and the first attempt, get",
            Scenario::replacement(&refused).unchanged(),
        ),
    );
}

#[test]
fn a_request_that_nobody_remembers_is_carried_out_by_one() {
    let mut clients = vec![
        old(Create(1)).in_round(3),
        old(Put(2)).in_round(1),
        old(Delete).in_round(2),
        old(Retry(0)).in_round(4),
    ];
    let scenario = Scenario::replacement(&clients).unchanged();
    happens(
        &[("a request too old to be remembered is carried out", Scenario::sole_one_is_done)],
        scenario.clone(),
    );
    checked("create that comes late, put, delete, a retry of the create", scenario);
    if is_large() {
        clients.push(old(Get).in_round(5));
        let scenario = Scenario::replacement(&clients).unchanged();
        checked("create that comes late, put, delete, a retry of the create, get", scenario);
    }
}
