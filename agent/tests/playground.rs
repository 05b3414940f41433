//! Sessions of `sky-agent playground` and runs of `sky-agent simulate`, as people see them.
//!
//! Each file of `playground/` is a session: its first line is the command, lines with a prompt are what is
//! typed. `UPDATE_EXPECT=1 cargo test -p sky-agent --test playground` writes the files anew.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

const PROMPT: &str = "ring> ";

/// Runs `sky-agent` with something to read; errors stand where they were said.
fn play(arguments: &[&str], typed: &[u8]) -> (String, Option<i32>) {
    let folder = tempfile::tempdir().unwrap();
    let said = folder.path().join("said");
    let file = File::create(&said).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_sky-agent"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(file.try_clone().unwrap())
        .stderr(file)
        .spawn()
        .unwrap();
    // It may end before it has read everything.
    child.stdin.take().unwrap().write_all(typed).ok();
    let status = child.wait().unwrap();
    (String::from_utf8_lossy(&fs::read(said).unwrap()).into_owned(), status.code())
}

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sky-agent"))
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[test]
fn sessions_go_as_they_went() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/playground");
    let mut count = 0;
    for file in fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let expected = fs::read_to_string(&path).unwrap();
        let first = expected.lines().next().unwrap();
        let arguments: Vec<_> = first.split_whitespace().skip(2).collect();
        let typed: Vec<_> = expected.lines().filter_map(|line| line.strip_prefix(PROMPT)).collect();
        let (said, code) = play(&arguments, (typed.join("\n") + "\n").as_bytes());
        let actual = format!("{first}\n{said}");
        assert_eq!(code, Some(i32::from(said.contains("error: "))), "{}", path.display());
        if std::env::var_os("UPDATE_EXPECT").is_some() {
            fs::write(&path, actual).unwrap();
        } else {
            assert_eq!(actual, expected, "{} goes another way", path.display());
        }
        count += 1;
    }
    assert!(count >= 3, "only {count} sessions");
}

#[test]
fn the_finger_tables_are_those_of_the_paper() {
    let (said, code) = play(&["playground", "--bits", "3", "--nodes", "0,1,3"], b"show\n");
    let fingers: Vec<_> = said
        .lines()
        .skip_while(|line| !line.starts_with(PROMPT))
        .skip(2)
        .take(3)
        .map(|line| line.split_whitespace().rev().take(3).collect::<Vec<_>>())
        .collect();
    // Read from the end.
    assert_eq!(fingers, [["0", "3,", "1,"], ["0", "3,", "3,"], ["0", "0,", "0,"]], "{said}");
    assert_eq!(code, Some(0));
}

#[test]
fn a_script_is_played_and_drawings_are_written() {
    let folder = tempfile::tempdir().unwrap();
    let (script, drawing) = (folder.path().join("script"), folder.path().join("ring.svg"));
    fs::write(&script, format!("join 6\nrun\nfail 3\nsvg {} 1\n", drawing.display())).unwrap();
    let output = run(&["playground", script.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let drawing = fs::read_to_string(drawing).unwrap();
    assert!(drawing.starts_with("<svg ") && drawing.ends_with("</svg>\n"), "{drawing}");
    assert!(!drawing.contains("NaN") && !drawing.contains("inf"), "{drawing}");
    for name in ["0", "1", "6"] {
        assert!(drawing.contains(&format!("font-weight=\"600\">{name}</text>")), "node {name}");
    }
    assert!(drawing.contains("Dashed: to a node that is gone."), "{drawing}");
}

#[test]
fn nonsense_is_refused() {
    let refused = |arguments: &[&str], code: i32, reason: &str| {
        let output = run(arguments);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
        assert!(text.contains(reason), "{arguments:?}: {text}");
    };
    refused(&["playground", "--bits", "2"], 64, "3..=16");
    refused(&["playground", "--nodes", "0,8"], 1, "0 to 7");
    refused(&["playground", "--nodes", "1,1"], 1, "once");
    refused(&["playground", "--nodes", ","], 1, "identifier");
    refused(&["playground", "--replicas", "2"], 1, "1, 3, 5 or 7");
    refused(&["playground", "/nonexistent"], 1, "/nonexistent");
    refused(&["playground", "/"], 1, "hint: ");
    refused(&["simulate", "paths"], 64, "path-length");
    refused(&["simulate", "--lookups", "0"], 64, "1..=");
    refused(&["simulate", "--json", "--csv"], 64, "cannot be used with");
    refused(&["simulate", "--svg", "/dev/null/x"], 1, "/dev/null/x");
    let (said, code) = play(&["playground"], b"\x1b[2J\xff\0\n\n#\nquit\n");
    assert!(!said.contains('\x1b') && said.contains("there is no command"), "{said}");
    assert_eq!(code, Some(1));
    let (_, code) = play(&["playground"], &vec![b'x'; 100_000]);
    assert_eq!(code, Some(1));
}

const SMALL: [&str; 6] = ["--max-nodes", "64", "--lookups", "500", "--rings", "2"];

#[test]
fn a_simulation_is_the_same_each_time_and_in_every_form() {
    let of = |more: &[&str]| {
        let output = run(&[&["simulate"][..], &SMALL, more].concat());
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let folder = tempfile::tempdir().unwrap();
    let charts = folder.path().join("new/charts");
    let table = of(&["--svg", charts.to_str().unwrap()]);
    assert_eq!(table, of(&[]));
    assert_ne!(table, of(&["--seed", "2"]));
    for name in ["path-length.svg", "failures-path-length.svg", "failures-time-outs.svg"] {
        let chart = fs::read_to_string(charts.join(name)).unwrap();
        assert!(chart.starts_with("<svg ") && chart.ends_with("</svg>\n"), "{name}");
        assert!(!chart.contains("NaN") && chart.contains("table II") | chart.contains("10(a)"));
    }
    let json: serde_json::Value = serde_json::from_str(&of(&["--json"])).unwrap();
    let csv = of(&["--csv"]);
    let lines: Vec<Vec<&str>> = csv.lines().map(|line| line.split(',').collect()).collect();
    assert!(lines.iter().all(|fields| fields.len() == lines[0].len()), "{csv}");
    let column = |name| lines[0].iter().position(|field| *field == name).unwrap();
    let value = |row: usize, name| lines[row][column(name)].parse::<f64>().unwrap();
    // 8, 16, 32 and 64 nodes, then 0 to 50 % failures.
    assert_eq!(lines.len(), 1 + 4 + 6);
    assert_eq!(json["path_length"][3]["path"]["mean"], value(4, "path_mean"));
    assert_eq!(json["path_length"][3]["paper_path"]["mean"], 2.96);
    assert_eq!(json["failures"][5]["timeouts"]["mean"], value(10, "timeouts_mean"));
    assert_eq!(value(10, "expected_timeouts"), 5.06);
    let only = of(&["failures", "--nodes", "50", "--successors", "8"]);
    assert!(only.contains("50 nodes") && !only.contains("10(a)"), "{only}");
}
