//! `sky-agent playground`: a small ring of real nodes in one process, in virtual time, to look at step by
//! step. The same commands always lead to the same ring.
//!
//! Its circle has only a few bits, so that identifiers are small numbers; the nodes are those of the
//! agents in every other respect. They keep no keys, and lookups go by fingers and successors as in the
//! papers, not by the table of members that agents have besides.

mod command;
pub(crate) mod network;
mod picture;
mod session;

use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, builder::RangedU64ValueParser};
use sky_chord::{Settings, Space};

use crate::Failure;
use command::Command;
use session::Session;

/// More nodes take too long, and cannot be looked at.
const NODES_MAX: usize = 64;
/// What is longer is no command.
const LINE_MAX: u64 = 4096;
const PROMPT: &str = "ring> ";

/// The ring to begin with.
#[derive(Debug, Args)]
pub struct Options {
    /// File with commands, one a line [default: they are read from the terminal or pipe]
    script: Option<PathBuf>,
    /// How many bits identifiers have
    #[arg(long, default_value_t = 3, value_parser = RangedU64ValueParser::<u8>::new().range(3..=16))]
    bits: u8,
    /// Identifiers of the nodes to begin with, separated by commas
    #[arg(long, value_name = "N,N,...", value_delimiter = ',', default_value = "0,1,3")]
    nodes: Vec<String>,
    /// Length of the successor lists; agents have 8
    #[arg(long, value_name = "ENTRIES", default_value_t = 3,
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=16))]
    successors: usize,
    /// How many nodes keep each range: 1, 3, 5 or 7. A majority of them has to live
    #[arg(long, value_name = "NUMBER", default_value_t = 3)]
    replicas: usize,
    /// Decides at what moments nodes act
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Plays until the commands end. The exit code is 1 if one could not be carried out.
pub(crate) fn main(options: &Options) -> ExitCode {
    let played = match &options.script {
        Some(path) => match File::open(path) {
            Ok(file) => play(options, BufReader::new(file), false),
            Err(error) => {
                refuse(&Failure {
                    what: format!("the script {} cannot be read: {error}", path.display()),
                    hint: "Name a file with one command a line.".to_owned(),
                });
                return ExitCode::FAILURE;
            }
        },
        None => {
            let is_interactive = io::stdin().is_terminal() && io::stdout().is_terminal();
            play(options, io::stdin().lock(), is_interactive)
        }
    };
    match played {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        // Whoever reads along has enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            refuse(&Failure {
                what: format!("commands cannot be read or answered: {error}"),
                hint: "Is the script a text file, and is there room where the output goes to?"
                    .to_owned(),
            });
            ExitCode::FAILURE
        }
    }
}

/// Carries out all commands; returns whether all of them could be.
fn play(options: &Options, mut lines: impl BufRead, is_interactive: bool) -> io::Result<bool> {
    let mut out = io::stdout().lock();
    let (space, mut session) = match begin(options) {
        Ok(begun) => begun,
        Err(failure) => {
            refuse(&failure);
            return Ok(false);
        }
    };
    writeln!(out, "{}", session.greeting())?;
    if is_interactive {
        writeln!(out, "`help` lists the commands.")?;
    }
    let mut all_done = true;
    let mut bytes = Vec::new();
    loop {
        if is_interactive {
            write!(out, "{PROMPT}")?;
            out.flush()?;
        }
        bytes.clear();
        if lines.by_ref().take(LINE_MAX).read_until(b'\n', &mut bytes)? == 0 {
            if is_interactive {
                writeln!(out)?;
            }
            return Ok(all_done);
        }
        let line = String::from_utf8_lossy(&bytes);
        // What a terminal would obey is not shown to it.
        let line = line.trim_end().replace(|c: char| c.is_control() && c != '\t', "\u{fffd}");
        if !is_interactive {
            // So that what is kept of it reads like a session.
            writeln!(out, "{PROMPT}{line}")?;
        }
        match Command::read(&line, space) {
            Ok(None) => {}
            Ok(Some(Command::Quit)) => return Ok(all_done),
            Ok(Some(command)) => match session.carry_out(command) {
                Ok(text) if text.is_empty() => {}
                Ok(text) => writeln!(out, "{text}")?,
                Err(failure) => {
                    all_done = false;
                    out.flush()?;
                    refuse(&failure);
                }
            },
            Err(failure) => {
                all_done = false;
                out.flush()?;
                refuse(&failure);
            }
        }
    }
}

fn begin(options: &Options) -> Result<(Space, Session), Failure> {
    let Options { bits, nodes, successors, replicas, seed, .. } = options;
    let space = Space::new(*bits).unwrap_or(Space::SHA1);
    if ![1, 3, 5, 7].contains(replicas) {
        return Err(Failure {
            what: format!("a range cannot be kept by {replicas} nodes"),
            hint: "Set --replicas to 1, 3, 5 or 7.".to_owned(),
        });
    }
    let ids: Vec<_> =
        nodes.iter().map(|node| command::point(node.trim(), space)).collect::<Result<_, _>>()?;
    if ids.len() > NODES_MAX {
        return Err(Failure {
            what: format!("{} nodes are too many to look at", ids.len()),
            hint: format!("Begin with {NODES_MAX} at most."),
        });
    }
    let settings = Settings {
        space,
        successors: *successors,
        replicas: *replicas,
        // In one round, every node does both.
        fix_fingers_every: Settings::default().stabilize_every,
        repair_after: Duration::from_secs(3),
        use_member_cache: false,
        ..Settings::default()
    };
    Ok((space, Session::new(settings, &ids, *seed)?))
}

fn refuse(Failure { what, hint }: &Failure) {
    writeln!(io::stderr(), "error: {what}\nhint: {hint}").ok();
}
