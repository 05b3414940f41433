//! A node that is told anything by anybody: it does not panic, comes to an end with every event, takes no
//! memory that was only announced, and goes on answering.
//!
//! Inputs are made of steps, see [`steps::Step`]. `UPDATE_INPUTS=1 cargo test -p sky-chord --test fuzz`
//! makes the first inputs anew, from what a node of a real ring was told: needed when messages change.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../../tests/fuzz/driver.rs"]
mod driver;
mod network;
mod steps;

use std::collections::BTreeSet;
use std::path::PathBuf;

use driver::Target;
use network::{Network, Told};
use steps::{Stage, Step, encode};

/// Folder of the kept inputs.
fn kept() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/inputs")
}

struct Steps;

impl Target for Steps {
    const NAME: &str = "node";
    const INPUTS: usize = 400;
    const MEMORY: (u64, u64) = (16 << 20, 4 << 10);

    fn take(&mut self, input: &[u8]) -> Vec<String> {
        let mut stage = Stage::new(input.first().copied().unwrap_or_default());
        let mut rest = input.get(1..).unwrap_or_default();
        while let Some(step) = Step::decode(&mut rest) {
            stage.take(step);
        }
        stage.still_answers()
    }

    fn seams(input: &[u8]) -> Vec<usize> {
        let mut rest = input.get(1..).unwrap_or_default();
        let mut seams = vec![input.len() - rest.len()];
        while Step::decode(&mut rest).is_some() {
            seams.push(input.len() - rest.len());
        }
        seams
    }
}

#[test]
fn a_node_bears_whatever_it_is_told() {
    driver::run(&mut Steps, &kept());
}

/// What one node of a ring was told, from its start on, in the form of inputs.
fn recorded() -> Vec<(&'static str, Vec<u8>)> {
    network::stories()
        .into_iter()
        .map(|(name, kind, told)| {
            let steps: Vec<_> = told.iter().map(Told::step).collect();
            (name, encode(kind, &steps))
        })
        .collect()
}

#[test]
fn the_kept_inputs_hold_every_kind_of_message() {
    if std::env::var_os("UPDATE_INPUTS").is_some() {
        std::fs::create_dir_all(kept()).unwrap();
        for (name, input) in recorded() {
            std::fs::write(kept().join(name), input).unwrap();
        }
    }
    let mut kinds = BTreeSet::new();
    for entry in std::fs::read_dir(kept()).unwrap() {
        let input = std::fs::read(entry.unwrap().path()).unwrap();
        let mut rest = input.get(1..).unwrap_or_default();
        while let Some(step) = Step::decode(&mut rest) {
            kinds.extend(step.kind());
        }
    }
    let heard = Network::kinds_heard();
    let missing: Vec<_> = heard.difference(&kinds).collect();
    assert!(missing.is_empty(), "make the inputs anew with UPDATE_INPUTS=1: {missing:?} missing");
}
