//! The command line.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use clap::{Args, Parser, Subcommand};

use crate::dashboard::DEFAULT_ADDRESS;
use crate::inventory::{Wishes, parse_duration};

/// Puts a ring on machines, containers or processes, and shows it live.
#[derive(Debug, Parser)]
#[command(name = "sky-deploy", version, arg_required_else_help = true)]
#[command(after_help = "Exit codes: plan 0 no change, 2 changes, 1 error; every other command 0 \
                        done (status, ring: right, check: alike, doctor: no problem), 1 not done or not right; 64 usage error.")]
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

/// A backup to be made.
#[derive(Debug, Args)]
pub struct BackupArgs {
    /// Where to: a file, an http or https URL, env:NAME for a URL in the environment, or - for stdout
    pub file: String,
    /// Leave out the parts of the circle that nobody keeps any more
    #[arg(long)]
    pub without_lost: bool,
    /// Its ring.
    #[command(flatten)]
    pub target: Target,
}

/// A backup to be restored.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// Where from: a file, an http or https URL, env:NAME for a URL in the environment, or - for stdin
    pub file: String,
    /// The ring to fill.
    #[command(flatten)]
    pub target: Target,
    /// Replace keys that exist
    #[arg(long, conflicts_with = "skip_existing")]
    pub overwrite: bool,
    /// Leave keys that exist as they are
    #[arg(long)]
    pub skip_existing: bool,
    /// Read everything back and compare
    #[arg(long)]
    pub verify: bool,
    /// Restore what there is of a backup that was cut or damaged
    #[arg(long)]
    pub incomplete: bool,
}

/// A repair of what is stuck.
#[derive(Debug, Args)]
pub struct RepairArgs {
    /// Its ring.
    #[command(flatten)]
    pub target: Target,
    /// Do it, although writes may be lost; without this only tell
    #[arg(long)]
    pub accept_loss: bool,
}

/// A comparison of all copies.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Its ring.
    #[command(flatten)]
    pub target: Target,
    /// How many seconds what differs is looked at again before it is reported
    #[arg(long, value_name = "SECONDS", default_value_t = 15)]
    pub patience: u64,
}

/// An inventory to be written.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// The file to write
    #[arg(default_value = "inventory.yaml")]
    pub file: PathBuf,
    /// What stands in it.
    #[command(flatten)]
    pub wishes: Wishes,
    /// Replace the file if it exists
    #[arg(long)]
    pub force: bool,
}

/// How the ring is.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Its ring.
    #[command(flatten)]
    pub target: Target,
    /// Show it again every so many seconds until Ctrl-C; the exit code is that of the last time
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2",
          value_parser = seconds)]
    pub watch: Option<u64>,
}

/// What is to be shown, and where.
#[derive(Debug, Args)]
pub struct RenderArgs {
    /// Its ring.
    #[command(flatten)]
    pub target: Target,
    /// Only what is for this node
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,
    /// Write it to a file that only its owner can read
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// With the secret and the token of the ring
    #[arg(long, requires = "output")]
    pub with_secrets: bool,
}

/// Which logs, and what of them.
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// The name of a node, or all; lines of all begin with the name of their node
    #[arg(default_value = ALL)]
    node: String,
    /// Its ring.
    #[command(flatten)]
    target: Target,
    /// Go on with what is written later, also by nodes that come later, until Ctrl-C
    #[arg(long, short)]
    pub follow: bool,
    /// Only the last so many lines of each node
    #[arg(long, short = 'n', value_name = "LINES", alias = "lines")]
    pub tail: Option<usize>,
    /// Only what was written since then: how long ago (90s, 10m, 2h), or a time such as
    /// 2026-11-28T14:00:00Z, which is in UTC unless it says otherwise
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub since: Option<SystemTime>,
}

/// Stands for all nodes.
pub const ALL: &str = "all";

impl LogsArgs {
    /// Which node, or [`ALL`], and the inventory. A file alone, as all other commands take one, is meant as the
    /// inventory: no node has such a name.
    pub fn what(&self) -> (&str, &Path) {
        let inventory = Path::new(&self.node);
        let is_file = inventory.extension().is_some_and(|it| it == "yaml" || it == "yml");
        if is_file { (ALL, inventory) } else { (&self.node, &self.target.inventory) }
    }
}

fn moment(text: &str) -> Result<SystemTime, &'static str> {
    let ago = parse_duration(text).and_then(|ago| SystemTime::now().checked_sub(ago));
    ago.or_else(|| crate::moment::parse(text)).ok_or(
        "must be how long ago, such as 90s, 10m or 2h, or a time such as 2026-11-28T14:00:00Z",
    )
}

/// A time in seconds.
fn ttl(text: &str) -> Result<u64, &'static str> {
    let seconds = parse_duration(text).map(|time| time.as_secs());
    seconds.filter(|seconds| *seconds > 0).ok_or("must be a time such as 90s, 10m or 2h")
}

fn seconds(text: &str) -> Result<u64, &'static str> {
    let number = text.parse().ok().filter(|seconds| *seconds > 0);
    number.ok_or(
        "must be a number of seconds; an inventory stands before `--watch`, or after the seconds",
    )
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write an inventory with every key, its default and an explanation
    Init(InitArgs),
    /// Print the JSON Schema of inventories, for editors
    ///
    /// An editor with a YAML language server completes and checks an inventory that begins with the line
    ///
    ///   # yaml-language-server: $schema=inventory.schema.json
    ///
    /// after `sky-deploy schema > inventory.schema.json`. `sky-deploy validate` checks more, such as names
    /// given twice.
    #[command(verbatim_doc_comment)]
    Schema,
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
    /// Show exactly what would be put onto machines, and change nothing
    ///
    /// For each node: the process with its arguments and environment; the parameters of its container;
    /// the parameters of its port and server and its cloud-init user-data. And what all nodes share. All of
    /// it is made by the code that apply makes it with.
    ///
    /// Words in angle brackets stand for what is secret, and for ids and keys that apply makes; the
    /// addresses 192.0.2.N stand for those that a cloud will choose.
    #[command(verbatim_doc_comment)]
    Render(RenderArgs),
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
    /// Look whether everything is there that the inventory needs, and what to do if not
    ///
    /// Looks at the inventory, this machine (open files, disk, fsync, ports), the Docker engine or the
    /// cloud (login, catalog, image, flavor, network, quotas), the state of the ring, its nodes, their
    /// program and clocks, and what is left over. All at once, and changes nothing. Exit code 0: no
    /// problem, though perhaps warnings.
    #[command(verbatim_doc_comment)]
    Doctor(Target),
    /// Show how the ring is, node by node
    Status(StatusArgs),
    /// Show the circle: each node with its neighbours and keys, each range with its members and epoch
    Ring(Target),
    /// Show the log of a node, or of all in the order of time
    Logs(LogsArgs),
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
    /// Let ranges go on whose majority of members is gone for good, with what the survivors hold
    ///
    /// Tells every range that is stuck: its members, who answers, who is gone and since when, and what may
    /// be lost. With --accept-loss, and after the name of the ring was typed, the survivors go on without
    /// the others; what was done is noted in repairs.jsonl in the ring's folder and in the agents' logs.
    ///
    /// Refuses while a majority answers, and while a node that is gone has its data still: started again,
    /// it brings back what it holds. A node that is given up must never come back: remove its data first.
    #[command(verbatim_doc_comment)]
    Repair(RepairArgs),
    /// Compare all copies of all keys, while the ring is used
    ///
    /// Every member of every range is asked what it holds itself. Tells keys that a member lacks, holds in
    /// another version, or with another value under one version; and what could not be compared: ranges of
    /// which a member is missing or does not answer, and keys that were written at every look. Exit code 0:
    /// everything was compared and is alike.
    ///
    /// What differs is looked at again for a while, because writes go on meanwhile and members catch up; it
    /// is reported if a copy that differs does not change any more. Changes nothing itself.
    #[command(verbatim_doc_comment)]
    Check(CheckArgs),
    /// Write all keys of the ring into a file, while the ring is used
    ///
    /// The value of each key is one that it had at some moment of the backup; a key that is there all the
    /// time is in it. Nothing is said of several keys at one moment. Keys are read from all agents, many
    /// at once, with little memory.
    ///
    /// A file is written as FILE.partial and renamed at the end. Interrupted, by Ctrl-C or otherwise, the
    /// same command again goes on where it was. Every block has a checksum, and the end has one over all:
    /// `restore` tells a file that is cut or damaged, and where. The line `content` is the same for two
    /// backups exactly if they hold the same keys, values and media types.
    ///
    /// A URL gets the backup by one PUT with its length told beforehand: pre-signed URLs of S3 (up to
    /// 5 GiB there) and temporary URLs of Swift work, and any server that takes PUT. The backup is made in
    /// the ring's folder first, which needs the room, and goes on there if it is interrupted. A URL is a
    /// secret if it is signed: put it into a variable and say env:NAME, because others see arguments.
    #[command(verbatim_doc_comment)]
    Backup(BackupArgs),
    /// Write the keys of a backup into the ring, of whatever size
    ///
    /// The whole backup is checked before anything is changed. Refuses a ring that has keys unless told
    /// what to do with them; a key that a client writes meanwhile is not replaced, except with
    /// --overwrite. Interrupted, the same command again goes on where it was. Keys that are in the ring and
    /// not in the backup stay.
    #[command(verbatim_doc_comment)]
    Restore(RestoreArgs),
    /// Print what a shell needs to complete this program's commands
    ///
    /// bash: sky-deploy completions bash > ~/.local/share/bash-completion/completions/sky-deploy
    /// zsh:  sky-deploy completions zsh > DIR/_sky-deploy, with DIR in $fpath
    /// fish: sky-deploy completions fish > ~/.config/fish/completions/sky-deploy.fish
    #[command(verbatim_doc_comment)]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write it and one for each command into a folder
    Man {
        /// The folder, such as ~/.local/share/man/man1; made if it is not there
        dir: Option<PathBuf>,
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
        #[arg(allow_negative_numbers = true)]
        value: String,
        /// Keep the value for this time only (90s, 10m, 2h)
        #[arg(long, value_name = "TIME", value_parser = ttl)]
        ttl: Option<u64>,
        /// Its ring.
        #[command(flatten)]
        target: Target,
    },
    /// Set a key that does not exist yet
    Create {
        /// The key
        key: String,
        /// The value; - reads it from the standard input
        #[arg(allow_negative_numbers = true)]
        value: String,
        /// Keep the value for this time only (90s, 10m, 2h)
        #[arg(long, value_name = "TIME", value_parser = ttl)]
        ttl: Option<u64>,
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
    /// List keys, in the order of their points on the circle; escaped, unless with --json
    List {
        /// Its ring.
        #[command(flatten)]
        target: Target,
        /// Only keys that begin with this
        #[arg(long, default_value = "")]
        prefix: String,
    },
    /// Print what is there and every change, until Ctrl-C, through agents that come and go
    Watch(WatchArgs),
}

/// The arguments of `kv watch`.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["key", "prefix"])))]
pub struct WatchArgs {
    /// The key
    #[arg(long)]
    pub key: Option<String>,
    /// All keys that begin with this; all keys if it is empty
    #[arg(long)]
    pub prefix: Option<String>,
    /// Print values too, if they have at most 16 KiB
    #[arg(long)]
    pub values: bool,
    /// Its ring.
    #[command(flatten)]
    pub target: Target,
}
