//! `sky-agent simulate`: lookups of the product's own core, measured against the papers.
//!
//! The rings have fingers and successor lists only, as the papers' have: agents also keep a gossiped
//! table of all members, with which a lookup in an ordinary ring takes one hop, and which is left out
//! here. Fingers, the routing decision and the course of a lookup are those of the agents.

mod chart;
mod experiment;
mod papers;
mod report;
mod ring;
#[cfg(test)]
mod tests;

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum, builder::RangedU64ValueParser};
use serde::Serialize;

use crate::Failure;
use experiment::{Extent, Failures, PathLength};

/// The smallest rings measured.
const NODES_MIN: usize = 8;
/// The largest rings, as in the papers: their fingers take about 130 MB.
const NODES_MAX: u64 = 16_384;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Experiment {
    /// Path length against number of nodes (SIGCOMM 2001, figure 10a)
    PathLength,
    /// Path length and time-outs when a part of the nodes has failed at once (ToN 2003, table II)
    Failures,
}

/// What to measure, and how much of it.
#[derive(Debug, Args)]
pub struct Options {
    /// What to measure [default: all]
    #[arg(value_enum)]
    experiment: Option<Experiment>,
    /// Largest ring for path-length; the others are all smaller powers of two from 8
    #[arg(long, value_name = "NODES", default_value_t = NODES_MAX as usize,
        value_parser = nodes_from(NODES_MIN as u64))]
    max_nodes: usize,
    /// Size of the ring for failures
    #[arg(long, value_name = "NODES", default_value_t = papers::TABLE_II_NODES,
        value_parser = nodes_from(10))]
    nodes: usize,
    /// Length of the successor lists for failures; agents have 8 of them, the paper 20
    #[arg(long, value_name = "ENTRIES", default_value_t = papers::TABLE_II_SUCCESSORS,
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=64))]
    successors: usize,
    /// Lookups for each size, and for each part of the nodes that fails
    #[arg(long, default_value_t = 10_000,
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=10_000_000))]
    lookups: usize,
    /// Rings that these lookups are spread over, each with other identifiers
    #[arg(long, default_value_t = 10, value_parser = RangedU64ValueParser::<usize>::new().range(1..=1000))]
    rings: usize,
    /// Decides all identifiers, keys and failures
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Print comma-separated values
    #[arg(long, conflicts_with = "json")]
    csv: bool,
    /// Draw charts of it into this folder, which is made if it is not there
    #[arg(long, value_name = "FOLDER")]
    svg: Option<PathBuf>,
}

fn nodes_from(least: u64) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(least..=NODES_MAX)
}

/// All measurements, for `--json`.
#[derive(Debug, Serialize)]
struct Results {
    seed: u64,
    rings: usize,
    path_length: Vec<PathLength>,
    failures: Vec<Failures>,
}

/// Measures, and prints what came of it to `out`.
pub(crate) fn main(options: &Options, out: &mut impl Write) -> Result<(), Failure> {
    if let Some(folder) = &options.svg {
        // Before minutes of work, not after.
        std::fs::create_dir_all(folder).map_err(|error| not_drawn(folder, &error))?;
    }
    match measure(options, out) {
        // Whoever reads along has enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Ok(results) => options.svg.as_ref().map_or(Ok(()), |folder| draw(&results, folder)),
        Err(error) => Err(Failure {
            what: format!("the measurements cannot be printed: {error}"),
            hint: "Is there room where they go to?".to_owned(),
        }),
    }
}

fn measure(options: &Options, out: &mut impl Write) -> io::Result<Results> {
    let Options { experiment, max_nodes, nodes, successors, lookups, rings, seed, .. } = *options;
    let extent = Extent { seed, rings: rings.min(lookups), lookups };
    let is_wanted = |this| experiment.is_none_or(|wanted| wanted == this);
    let shows_table = !options.json && !options.csv;
    let mut results = Results { seed, rings: extent.rings, path_length: vec![], failures: vec![] };
    if is_wanted(Experiment::PathLength) {
        if shows_table {
            writeln!(out, "{}", report::PATH_HEAD)?;
        }
        for nodes in std::iter::successors(Some(NODES_MIN), |nodes| Some(nodes * 2)) {
            if nodes > max_nodes {
                break;
            }
            let row = experiment::path_length(extent, nodes);
            if shows_table {
                writeln!(out, "{}", report::path_row(&row))?;
            }
            results.path_length.push(row);
        }
    }
    if is_wanted(Experiment::Failures) {
        if shows_table {
            let gap = if results.path_length.is_empty() { "" } else { "\n" };
            writeln!(out, "{gap}{}", report::failures_head(nodes, successors))?;
        }
        for tenths in 0..=5 {
            let row = experiment::failures(extent, nodes, successors, tenths);
            if shows_table {
                writeln!(out, "{}", report::failure_row(&row))?;
            }
            results.failures.push(row);
        }
    }
    if options.json {
        serde_json::to_writer_pretty(&mut *out, &results)?;
        writeln!(out)?;
    } else if options.csv {
        writeln!(out, "{}", report::csv(&results.path_length, &results.failures))?;
    }
    out.flush()?;
    Ok(results)
}

fn draw(results: &Results, folder: &Path) -> Result<(), Failure> {
    for (name, chart) in report::charts(&results.path_length, &results.failures) {
        let file = folder.join(name);
        std::fs::write(&file, chart).map_err(|error| not_drawn(&file, &error))?;
    }
    Ok(())
}

fn not_drawn(path: &Path, error: &io::Error) -> Failure {
    Failure {
        what: format!("nothing can be drawn at {}: {error}", path.display()),
        hint: "Name a folder after --svg that you can write to.".to_owned(),
    }
}
