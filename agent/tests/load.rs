//! More than an agent can do at once: large values, and clients that ask for too much.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stdout, reason = "shown when a test fails")]

#[path = "load/fair.rs"]
mod fair;
#[path = "load/large.rs"]
mod large;
#[allow(dead_code, reason = "each test program uses its own part")]
mod support;

/// These tests measure what others would disturb: one at a time.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
