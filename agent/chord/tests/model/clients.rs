//! Two clients that each do one thing after the other, while the members change.

use crate::scenario::Kind::{Create, Delete, Get, Replace};
use crate::scenario::{Operation, Scenario};
use crate::{any, checked, is_large, new, old};

#[test]
fn two_clients_with_two_operations_each() {
    let fixed = [
        old(Create(1)).in_round(1),
        any(Replace(1, 2)).in_round(2).after(0),
        any(Delete).in_round(3),
        new(Get).in_round(1).after(2),
    ];
    checked(
        "create and replace, delete and get",
        Scenario::unopposed(&fixed).decided_at_once().with_crash_of("a"),
    );
    if is_large() {
        let free: [Operation; 4] = [
            any(Create(1)).in_round(1),
            any(Replace(1, 2)).in_round(2).after(0),
            any(Delete).in_round(3),
            any(Get).in_round(4).after(2),
        ];
        checked(
            "create and replace, delete and get in any epoch",
            Scenario::unopposed(&free).decided_at_once().with_crash_of("abcd"),
        );
    }
}
