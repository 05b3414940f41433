//! What a test needs and not every machine has. A missing need is said aloud, and fails the test on CI
//! (`CI=true`), where everything must be there.

use std::io::Write;

/// Whether the need is met. If not, the test has nothing to do.
pub(crate) fn is_met(met: bool, need: &str) -> bool {
    assert!(met || std::env::var("CI").as_deref() != Ok("true"), "CI must provide this: {need}");
    if !met {
        // Not `eprintln!`: the test harness would hide that of a test that passes.
        let note = format!("SKIPPED, because it needs {need}. To run it, provide that.");
        writeln!(std::io::stderr(), "{note}").ok();
    }
    met
}
