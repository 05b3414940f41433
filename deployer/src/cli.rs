//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::dashboard::DEFAULT_ADDRESS;

/// Puts a ring on machines, containers or processes, and shows it live.
#[derive(Debug, Parser)]
#[command(name = "sky-deploy", version, arg_required_else_help = true)]
#[command(after_help = "Exit codes: plan 0 no change, 2 changes, 1 error; every other command 0 \
                        done (status: right), 1 not done or not right; 64 usage error.")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Answer every question with yes
    #[arg(long, short, global = true)]
    pub yes: bool,
    /// Print data as JSON
    #[arg(long, global = true)]
    pub json: bool,
}

/// The inventory of a command.
#[derive(Debug, Args)]
pub struct Target {
    /// The inventory
    #[arg(default_value = "inventory.yaml")]
    pub inventory: PathBuf,
}

/// How what a plan needs is checked beforehand.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct Preflight {
    /// Go on although quotas, sizes or routes of the cloud do not seem to suffice
    #[arg(long)]
    pub skip_preflight: bool,
}

/// The node and inventory of a command.
#[derive(Debug, Args)]
pub struct NodeTarget {
    /// The name of a node
    pub node: String,
    /// Its ring.
    #[command(flatten)]
    pub target: Target,
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Check an inventory, all mistakes at once
    Validate(Target),
    /// Show what apply would do
    Plan {
        /// Its ring.
        #[command(flatten)]
        target: Target,
        /// Whether it can work at all.
        #[command(flatten)]
        preflight: Preflight,
    },
    /// Make the ring what the inventory says, and show it live until Ctrl-C
    Apply {
        /// Its ring.
        #[command(flatten)]
        target: Target,
        /// Leave as soon as the ring is right, without a dashboard
        #[arg(long, short)]
        detach: bool,
        /// Whether it can work at all.
        #[command(flatten)]
        preflight: Preflight,
        /// Where the dashboard listens
        #[arg(long, value_name = "ADDRESS", default_value_t = DEFAULT_ADDRESS)]
        dashboard: SocketAddr,
    },
    /// Show how the ring is, node by node
    Status(Target),
    /// Show the log of a node, or of all
    Logs {
        /// The name of a node, or all
        node: String,
        /// Its ring.
        #[command(flatten)]
        target: Target,
        /// Go on with what is written later
        #[arg(long, short)]
        follow: bool,
        /// Only the last so many lines
        #[arg(long, short = 'n', value_name = "LINES")]
        lines: Option<usize>,
    },
    /// Show the ring live until Ctrl-C
    Dashboard {
        /// Its ring.
        #[command(flatten)]
        target: Target,
        /// Where the dashboard listens
        #[arg(long, value_name = "ADDRESS", default_value_t = DEFAULT_ADDRESS)]
        dashboard: SocketAddr,
    },
    /// List the rings of this machine
    List,
    /// Add a node to the ring, and to the inventory if that is a number
    Add(Target),
    /// Drain a node and delete it with its data, and take it out of the inventory if that is a number
    Remove(NodeTarget),
    /// Make a node hand over its data, read all of it back from the others, and stop the node
    Drain(NodeTarget),
    /// Freeze a node
    Pause(NodeTarget),
    /// Let a frozen node go on
    Unpause(NodeTarget),
    /// End a node; its data stays
    Stop(NodeTarget),
    /// Start a node on its data
    Start(NodeTarget),
    /// Stop a node and start it again
    Restart(NodeTarget),
    /// Give every node this version of the program, one after the other, and wait in between until
    /// the ring is right
    Upgrade(Target),
    /// Take over a ring that another machine made, or whose folder on this machine is lost
    Adopt(Target),
    /// List what carries the ring's mark and no node uses
    Audit(Target),
    /// Remove the whole ring, and its data
    Destroy {
        /// Its ring.
        #[command(flatten)]
        target: Target,
        /// Leave the data, for the next apply
        #[arg(long)]
        keep_data: bool,
    },
    /// Read and write keys
    Kv {
        /// What to do with them.
        #[command(subcommand)]
        command: KvCommand,
    },
}

/// What can be done with keys.
#[derive(Debug, Subcommand)]
pub enum KvCommand {
    /// Print the value of a key
    Get {
        /// The key
        key: String,
        /// Its ring.
        #[command(flatten)]
        target: Target,
    },
    /// Set a key
    Put {
        /// The key
        key: String,
        /// The value; - reads it from the standard input
        value: String,
        /// Its ring.
        #[command(flatten)]
        target: Target,
    },
    /// Set a key that does not exist yet
    Create {
        /// The key
        key: String,
        /// The value; - reads it from the standard input
        value: String,
        /// Its ring.
        #[command(flatten)]
        target: Target,
    },
    /// Delete a key
    Delete {
        /// The key
        key: String,
        /// Its ring.
        #[command(flatten)]
        target: Target,
    },
    /// List keys, in the order of their points on the circle
    List {
        /// Its ring.
        #[command(flatten)]
        target: Target,
        /// Only keys that begin with this
        #[arg(long, default_value = "")]
        prefix: String,
    },
}
