//! Text that may be anything as an inventory: it is taken or refused, with at least one sentence. Part
//! of the unit tests, so that coverage can be measured without building the program.
//!
//! `.ci/fuzz inventory 3600` goes on for an hour, guided by the code that is reached.

use super::{Inventory, Nodes};

#[test]
fn inventory_fuzz() {
    bolero::check!().for_each(|input: &[u8]| {
        let Ok(text) = std::str::from_utf8(input) else { return };
        match Inventory::parse(text, "i.yaml") {
            Ok(inventory) => {
                let listed = inventory.listed().map(|entries| entries.len());
                match inventory.nodes {
                    Nodes::Count(count) => assert!((1..=1000).contains(&count) && listed.is_none()),
                    Nodes::List(entries) => assert_eq!(listed, Some(entries.len())),
                }
            }
            Err(error) => {
                assert!(!error.problems.is_empty());
                assert!(error.problems.iter().all(|problem| !problem.what.is_empty()));
            }
        }
    });
}
