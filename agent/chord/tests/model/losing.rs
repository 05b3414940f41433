//! Nodes that come back, with their disk or without.

use crate::scenario::Kind::Create;
use crate::scenario::Scenario;
use crate::system::{LINEARIZABLE, ONE_DECISION};
use crate::{checked, new, old, rule_is_needed};

#[test]
fn a_lost_disk_is_a_new_node() {
    let slot = Scenario::replacement(&[]).interleaved().with_lost_disk_of("abc");
    rule_is_needed(
        "a lost disk is a new node, for the slots",
        |rules| rules.lost_disk_is_new_node = false,
        ONE_DECISION,
        &checked("slot alone while any disk is lost", slot),
    );
    let creates = [old(Create(1)).in_round(1), old(Create(2)).in_round(2)];
    let scenario = Scenario::replacement(&creates).unchanged().with_lost_disk_of("abc");
    rule_is_needed(
        "a lost disk is a new node, for the keys",
        |rules| rules.lost_disk_is_new_node = false,
        LINEARIZABLE,
        &checked("two creates in one epoch while any disk is lost", scenario),
    );
    let creates = [old(Create(1)).in_round(1), new(Create(2)).in_round(1)];
    let scenario = Scenario::unopposed(&creates).interleaved().with_lost_disk_of("a");
    rule_is_needed(
        "a lost disk is a new node, for the epochs",
        |rules| rules.lost_disk_is_new_node = false,
        LINEARIZABLE,
        &checked("a create in each epoch while a's disk is lost and d takes its place", scenario),
    );
}
