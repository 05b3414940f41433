//! A real agent against its own `/openapi.json`: schemathesis makes requests of the document, right and
//! wrong ones, and looks whether the answers are as the document says.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/need.rs"]
mod need;
#[allow(dead_code, reason = "other tests use the rest")]
mod support;

use std::process::Stdio;
use std::time::Duration;

use support::Agent;
use tokio::process::Command;
use tokio::time::timeout;

const TOKEN: &str = "open-sesame";

/// What ends a run that does not end by itself.
const PATIENCE: Duration = Duration::from_secs(300);

async fn is_there() -> bool {
    let version = Command::new("schemathesis")
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .await
        .is_ok_and(|output| output.status.success());
    need::is_met(version, "`schemathesis` on the PATH, as in .ci/requirements.txt")
}

/// Runs schemathesis with these arguments; it must find nothing.
async fn run(agent: &Agent, arguments: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/openapi/schemathesis.toml");
    let output = Command::new("schemathesis")
        .args(["--config-file", config, "run", &agent.url("/openapi.json")])
        .args(["-H", &format!("Authorization: Bearer {TOKEN}"), "--no-color"])
        // It warns of calls that it seldom gets an answer 200 from: nobody can guess what `force` takes.
        .args(["--checks", "all", "--warnings", "off"])
        .args(arguments)
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(PATIENCE, output).await.expect("it ends in time").unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let said = text(&output.stdout) + &text(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("No issues found"), "it has checked nothing: {said}");
}

#[tokio::test]
async fn an_agent_answers_as_its_document_says() {
    if !is_there().await {
        return;
    }
    let agent = Agent::spawn(&["--require-token"], Some(TOKEN)).await;
    agent.ready().await;
    run(&agent, &["--exclude-path", "/admin/leave"]).await;
    agent.ready().await;
    // After this one the agent serves nobody.
    run(&agent, &["--include-path", "/admin/leave"]).await;
    agent.terminate();
    assert!(agent.exited().await.success());
}
