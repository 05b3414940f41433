//! How an agent starts: settings, refusals with a hint, exit codes, and a ring of two.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::TcpListener;
use std::process::{Command, Output};

fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sky-agent"));
    command.args(arguments).env_remove("SKY_DATA").output().unwrap()
}

fn refused(arguments: &[&str], reason: &str) {
    let output = run(arguments);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let count = |start| text.lines().filter(|line| line.starts_with(start)).count();
    assert_eq!((count("error: "), count("hint: ")), (1, 1), "{text}");
    assert!(text.contains(reason), "{text} / {reason}");
}

#[test]
fn what_cannot_work_is_said_with_a_hint() {
    let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let data = data.to_str().unwrap();
    refused(&["-p", &port, "--data", data], "in use");
    refused(&["--ip", "203.0.113.1", "--data", data], "--ip");
    refused(&["--ip", "0.0.0.0", "--data", data], "--advertise");
    refused(&["--secret-file", "/nonexistent", "--data", data], "/nonexistent");
    refused(&["--log", "lo,ud=x", "--data", data], "log level");
    let file = folder.path().join("settings.yaml");
    std::fs::write(&file, "port: 0\nporte: 1\n").unwrap();
    refused(&["--config", file.to_str().unwrap()], "settings.yaml:2");
    std::fs::write(folder.path().join("file"), "").unwrap();
    let not_a_folder = folder.path().join("file");
    drop(taken);
    refused(&["-p", &port, "--data", not_a_folder.to_str().unwrap()], "cannot be used");
}

#[test]
fn a_command_line_that_is_not_understood_is_a_usage_error() {
    for arguments in [&["--prot", "1"][..], &["--id", "xyz"], &["-p", "70000"], &["unknown"]] {
        assert_eq!(run(arguments).status.code(), Some(64), "{arguments:?}");
    }
    for arguments in ["--version", "--help"] {
        let output = run(&[arguments]);
        assert_eq!(output.status.code(), Some(0));
        assert!(String::from_utf8_lossy(&output.stdout).contains("sky-agent"));
    }
}

#[test]
fn nobody_is_healthy_where_nobody_listens() {
    let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
    let output = run(&["health", "--port", &port.to_string()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("hint: "));
}
