//! Measurements as tables, CSV and charts.

use super::chart::{Chart, Look, Series};
use super::experiment::{Failures, PathLength, Spread};
use super::papers::{TABLE_II_NODES, TABLE_II_SUCCESSORS};

/// What stands above the rows of [`path_row`].
pub(super) const PATH_HEAD: &str = "\
Path length of lookups in ideal rings, as in SIGCOMM 2001, figure 10(a)
A path is the number of forwardings from the asking node to the key's predecessor.

         |       |     here      |     paper     |          | from the
   nodes | 1/2 lg|  mean  1% 99% |  mean  1% 99% |  lookups | paper";

/// What stands above the rows of [`failure_row`].
pub(super) fn failures_head(nodes: usize, successors: usize) -> String {
    let like = if (nodes, successors) == (TABLE_II_NODES, TABLE_II_SUCCESSORS) {
        ", as in ToN 2003, table II".to_owned()
    } else {
        format!(" (the paper has {TABLE_II_NODES} nodes and {TABLE_II_SUCCESSORS} entries)")
    };
    format!(
        "\
Lookups after a part of {nodes} nodes failed at once, successor lists of {successors}{like}
Nobody has noticed yet: a time-out is a dead node asked.

        |      path     | in the paper  | off  |    time-outs   |  in the paper  | expected | off  |
 failed |  mean  1% 99% |  mean  1% 99% |      |  mean   1% 99% |  mean   1% 99% |          |      | lost"
    )
}

/// One size of rings.
pub(super) fn path_row(row: &PathLength) -> String {
    format!(
        "{:8} | {:5.2} | {} | {} | {:8} | {}",
        row.nodes,
        row.expected_path,
        spread(Some(row.path)),
        spread(row.paper_path),
        row.lookups,
        off(row.path.mean, row.paper_path.map(|paper| paper.mean)).trim_start(),
    )
}

/// One part of the nodes that failed.
pub(super) fn failure_row(row: &Failures) -> String {
    let expected = row.expected_timeouts;
    format!(
        "{:6.0}% | {} | {} | {} | {}  | {}  | {} | {} | {}",
        row.failed * 100.0,
        spread(Some(row.path)),
        spread(row.paper_path),
        off(row.path.mean, row.paper_path.map(|paper| paper.mean)),
        spread(Some(row.timeouts)),
        spread(row.paper_timeouts),
        expected.map_or_else(|| " ".repeat(8), |mean| format!("{mean:8.2}")),
        off(row.timeouts.mean, expected.filter(|mean| *mean > 0.0)),
        row.lost,
    )
}

fn spread(spread: Option<Spread>) -> String {
    spread.map_or_else(
        || " ".repeat(13),
        |Spread { mean, p1, p99 }| format!("{mean:5.2} {p1:3} {p99:3}"),
    )
}

/// How far a measurement is from another, in per cent.
fn off(is: f64, should: Option<f64>) -> String {
    should.map_or_else(
        || "    ".to_owned(),
        |should| format!("{:+3.0}%", (is / should - 1.0) * 100.0),
    )
}

/// All measurements, one a line; a field is empty where there is nothing.
pub(super) fn csv(paths: &[PathLength], failures: &[Failures]) -> String {
    let mut lines = vec![
        "experiment,nodes,successors,failed,lookups,lost,path_mean,path_p1,path_p99,\
         timeouts_mean,timeouts_p1,timeouts_p99,expected_path,expected_timeouts,\
         paper_path_mean,paper_path_p1,paper_path_p99,\
         paper_timeouts_mean,paper_timeouts_p1,paper_timeouts_p99"
            .to_owned(),
    ];
    lines.extend(paths.iter().map(|row| {
        format!(
            "path-length,{},1,0,{},0,{},,,,{},,{},,,",
            row.nodes,
            row.lookups,
            fields(Some(row.path)),
            row.expected_path,
            fields(row.paper_path)
        )
    }));
    lines.extend(failures.iter().map(|row| {
        format!(
            "failures,{},{},{},{},{},{},{},,{},{},{}",
            row.nodes,
            row.successors,
            row.failed,
            row.lookups,
            row.lost,
            fields(Some(row.path)),
            fields(Some(row.timeouts)),
            row.expected_timeouts.map_or_else(String::new, |mean| mean.to_string()),
            fields(row.paper_path),
            fields(row.paper_timeouts)
        )
    }));
    lines.join("\n")
}

fn fields(spread: Option<Spread>) -> String {
    spread.map_or_else(|| ",,".to_owned(), |Spread { mean, p1, p99 }| format!("{mean},{p1},{p99}"))
}

/// The charts, with the names of their files.
pub(super) fn charts(paths: &[PathLength], failures: &[Failures]) -> Vec<(&'static str, String)> {
    let mut charts = Vec::new();
    if !paths.is_empty() {
        charts.push(("path-length.svg", path_chart(paths).draw()));
    }
    if let Some(first) = failures.first() {
        let nodes = format!("{} nodes, successor lists of {}", first.nodes, first.successors);
        charts.push(("failures-path-length.svg", failure_path_chart(failures, &nodes).draw()));
        charts.push(("failures-time-outs.svg", timeout_chart(failures, &nodes).draw()));
    }
    charts
}

fn path_chart(rows: &[PathLength]) -> Chart {
    let x = |row: &PathLength| (row.nodes as f64).log2();
    let exactly = |mean: f64| Spread { mean, p1: 0, p99: 0 };
    let paper = rows.iter().filter_map(|row| Some((x(row), row.paper_path?)));
    let mut series = vec![
        Series {
            name: "expected: half the logarithm of the number of nodes".to_owned(),
            look: Look::Theory,
            points: rows.iter().map(|row| (x(row), exactly(row.expected_path))).collect(),
        },
        Series {
            name: "SIGCOMM 2001, figure 10(a)".to_owned(),
            look: Look::Paper,
            points: paper.collect(),
        },
        ours(rows.iter().map(|row| (x(row), row.path)).collect()),
    ];
    series.retain(|series| !series.points.is_empty());
    Chart {
        title: "Path length of lookups".to_owned(),
        subtitle: "Ideal rings; nodes route by their fingers and their first successor".to_owned(),
        x_name: "Nodes in the ring".to_owned(),
        y_name: "Path length (forwardings)".to_owned(),
        x_marks: rows.iter().map(|row| (x(row), row.nodes.to_string())).collect(),
        series,
    }
}

fn failure_path_chart(rows: &[Failures], nodes: &str) -> Chart {
    let paper = rows.iter().filter_map(|row| Some((row.failed, row.paper_path?)));
    let ours = ours(rows.iter().map(|row| (row.failed, row.path)).collect());
    failure_chart(
        rows,
        ("Path length after simultaneous failures", "Path length (forwardings)"),
        nodes,
        vec![table_ii(paper.collect()), ours],
    )
}

fn timeout_chart(rows: &[Failures], nodes: &str) -> Chart {
    let paper = rows.iter().filter_map(|row| Some((row.failed, row.paper_timeouts?)));
    let expected = rows.iter().filter_map(|row| {
        Some((row.failed, Spread { mean: row.expected_timeouts?, p1: 0, p99: 0 }))
    });
    let expected = Series {
        name: "expected by the paper".to_owned(),
        look: Look::Theory,
        points: expected.collect(),
    };
    let ours = ours(rows.iter().map(|row| (row.failed, row.timeouts)).collect());
    failure_chart(
        rows,
        ("Time-outs after simultaneous failures", "Time-outs in a lookup"),
        nodes,
        vec![expected, table_ii(paper.collect()), ours],
    )
}

fn failure_chart(
    rows: &[Failures],
    (title, y_name): (&str, &str),
    nodes: &str,
    mut series: Vec<Series>,
) -> Chart {
    series.retain(|series| !series.points.is_empty());
    Chart {
        title: title.to_owned(),
        subtitle: format!("{nodes}; before anybody has noticed"),
        x_name: "Part of the nodes that failed".to_owned(),
        y_name: y_name.to_owned(),
        x_marks: rows
            .iter()
            .map(|row| (row.failed, format!("{:.0} %", row.failed * 100.0)))
            .collect(),
        series,
    }
}

fn ours(points: Vec<(f64, Spread)>) -> Series {
    let name = "sky-agent simulate: mean, 1st to 99th percentile".to_owned();
    Series { name, look: Look::Ours, points }
}

fn table_ii(points: Vec<(f64, Spread)>) -> Series {
    Series { name: "ToN 2003, table II".to_owned(), look: Look::Paper, points }
}
