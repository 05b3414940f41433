//! What a disk may do to the files of a store, and what the store does then: it opens with every commit
//! that it had acknowledged, or it refuses with a reason. It never panics, never serves what was not
//! written, and never silently goes without something in the middle.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod cut;
mod flip;
mod history;
mod image;
#[path = "../support/need.rs"]
mod need;
mod power;
