//! Puts a ring on containers or processes, keeps it as its inventory says, and shows it live.
//!
//! ```text
//! main -> cli, commands, live -> deployment -> inventory, state, provider, client, observe
//!         live -> dashboard
//!                       -> plan (pure) -> apply -> drain, converge -> sky_chord::check
//! printer prints; error says what, why, and what to do
//! ```

pub mod agent_exe;
mod amount;
pub mod apply;
mod backup;
pub mod cli;
pub mod client;
pub mod commands;
mod compare;
pub mod converge;
mod dashboard;
pub mod deployment;
pub mod drain;
pub mod error;
#[cfg(test)]
#[path = "../../agent/tests/fuzz/driver.rs"]
mod fuzz;
mod health;
pub mod inventory;
pub mod live;
pub mod lock;
mod loss;
mod machine;
mod moment;
pub mod node;
pub mod observe;
pub mod outlook;
mod placement;
pub mod plan;
mod pool;
pub mod printer;
pub mod provider;
mod ranges;
mod room;
mod sse;
pub mod state;
pub mod timing;
mod weave;
