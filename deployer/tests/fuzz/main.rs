//! Text that may be anything as an inventory: it is taken or refused, with at least one sentence, and
//! without more memory than a text of that length can need.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../../agent/tests/fuzz/driver.rs"]
mod driver;

use std::path::Path;

use driver::Target;
use sky_deploy::inventory::{Inventory, Nodes};

struct Text;

impl Target for Text {
    const NAME: &str = "inventory";
    const INPUTS: usize = 3000;
    const MEMORY: (u64, u64) = (1 << 20, 1 << 10);

    fn take(&mut self, input: &[u8]) -> Vec<String> {
        let text = String::from_utf8_lossy(input);
        match Inventory::parse(&text, "i.yaml") {
            Ok(inventory) => {
                let listed = inventory.listed().map(|entries| entries.len());
                match &inventory.nodes {
                    Nodes::Count(count) => assert!((1..=1000).contains(count) && listed.is_none()),
                    Nodes::List(entries) => assert_eq!(listed, Some(entries.len())),
                }
                vec![driver::gist(format_args!("{inventory:?}"))]
            }
            Err(error) => {
                assert!(!error.problems.is_empty());
                assert!(error.problems.iter().all(|problem| !problem.what.is_empty()));
                error.problems.iter().map(|problem| driver::gist(&problem.what)).collect()
            }
        }
    }

    fn seams(input: &[u8]) -> Vec<usize> {
        let is_seam = |byte: &u8| matches!(byte, b'\n' | b',' | b'{' | b'}' | b'[' | b']' | b':');
        (0..input.len()).filter(|at| is_seam(&input[*at])).map(|at| at + 1).collect()
    }
}

#[test]
fn any_text_is_taken_as_an_inventory_or_refused() {
    driver::run(
        &mut Text,
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/inputs/inventory"),
    );
}
