//! A node that is told anything by anybody: it does not panic, comes to an end with every event, and
//! goes on answering.
//!
//! An ordinary test runs the kept inputs and some random ones; `.ci/fuzz node 3600` goes on for an hour,
//! guided by the code that is reached.
//!
//! Inputs are made of steps, see [`steps::Step`]. `UPDATE_CORPUS=1 cargo test -p sky-chord --test fuzz`
//! makes the first inputs anew, from what a node of a real ring was told: needed when messages change.

mod network;
mod steps;

use std::collections::BTreeSet;
use std::path::PathBuf;

use network::{Network, Told};
use steps::{Stage, Step, encode};

/// Folder of the kept inputs.
fn corpus() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/__fuzz__/node/corpus")
}

#[test]
fn node_fuzz() {
    // An input that never ends is found there: the fuzzer's own time-out only sees the main thread.
    let last = std::env::var_os("SKY_FUZZ_LAST");
    bolero::check!().for_each(|input: &[u8]| {
        if let Some(last) = &last {
            std::fs::write(last, input).unwrap();
        }
        let mut stage = Stage::new(input.first().copied().unwrap_or_default());
        let mut rest = input.get(1..).unwrap_or_default();
        while let Some(step) = Step::decode(&mut rest) {
            stage.take(step);
        }
        stage.still_answers();
    });
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
    if std::env::var_os("UPDATE_CORPUS").is_some() {
        std::fs::create_dir_all(corpus()).unwrap();
        for (name, input) in recorded() {
            std::fs::write(corpus().join(name), input).unwrap();
        }
    }
    let mut kinds = BTreeSet::new();
    for entry in std::fs::read_dir(corpus()).unwrap() {
        let input = std::fs::read(entry.unwrap().path()).unwrap();
        let mut rest = input.get(1..).unwrap_or_default();
        while let Some(step) = Step::decode(&mut rest) {
            kinds.extend(step.kind());
        }
    }
    let heard = Network::kinds_heard();
    let missing: Vec<_> = heard.difference(&kinds).collect();
    assert!(missing.is_empty(), "make the inputs anew with UPDATE_CORPUS=1: {missing:?} missing");
}
