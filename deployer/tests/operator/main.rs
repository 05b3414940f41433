//! What an operator does to the data of a ring: backup, restore, check, repair. Rings of real processes, and the
//! real program.

#![expect(clippy::unwrap_used, reason = "tests panic")]

mod backup;
mod check;
mod made_with;
mod repair;
#[path = "../parts/ring.rs"]
mod ring;
mod sky_file;
mod writer;

use std::process::Output;

use ring::Ring;

/// Both streams of a command that must fail with exit code 1.
fn fails(ring: &Ring, arguments: &[&str]) -> String {
    let output = ring.run(arguments);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {text}");
    text
}

fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}
