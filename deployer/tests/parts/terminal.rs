//! What the program shows on a terminal, and what it asks there.

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use super::{Folder, PROGRAM, need};

fn has_script() -> bool {
    let found = Command::new("script").arg("--version").output().is_ok();
    need::is_met(found, "`script` of util-linux")
}

/// The program on a terminal of its own, with 5 rows of 30 columns. `answer` gets what was shown since it
/// last pressed keys, and says which it presses now.
fn on_a_terminal(
    folder: &Folder,
    arguments: &str,
    answer: impl Fn(&str) -> Option<&'static [u8]>,
) -> (String, i32) {
    let line = format!("stty rows 5 cols 30 && exec {PROGRAM} {arguments}");
    let mut terminal = Command::new("script")
        .args(["-qefc", &line, "/dev/null"])
        .current_dir(folder.path())
        .env("XDG_STATE_HOME", folder.path().join("state"))
        .env("DOCKER_HOST", "unix:///nonexistent")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut keys = terminal.stdin.take().unwrap();
    let mut screen = terminal.stdout.take().unwrap();
    let (mut text, mut piece, mut answered) = (String::new(), [0; 4096], 0);
    loop {
        let length = screen.read(&mut piece).unwrap();
        if length == 0 {
            break;
        }
        text.push_str(&String::from_utf8_lossy(&piece[..length]));
        if let Some(pressed) = answer(&text[answered..]) {
            keys.write_all(pressed).unwrap();
            answered = text.len();
        }
    }
    (text, terminal.wait().unwrap().code().unwrap())
}

#[test]
fn what_is_watched_fits_the_terminal_and_questions_hear_ctrl_c() {
    let folder = Folder::new();
    if !has_script() {
        return;
    }
    folder.write("inventory.yaml", "nodes: 9\n");
    let frames = |text: &str| text.matches("\x1b[J").count();
    let ctrl_c = |pressed: bool| pressed.then_some(&b"\x03"[..]);
    let (text, code) = on_a_terminal(&folder, "status --watch 1", |text| ctrl_c(frames(text) == 2));
    assert_eq!(code, 1, "{text}");
    let second = text.split("\x1b[H").nth(2).unwrap();
    assert!(second.contains("ring sky is not right") && second.contains("more lines"), "{text}");
    assert_eq!(second.split("\x1b[J").next().unwrap().matches('\n').count(), 4, "{text}");
    assert!(second.contains("\x1b[?7h"), "long lines stay cut: {text}");

    folder.write("keys.sky", "");
    let (text, code) =
        on_a_terminal(&folder, "backup keys.sky", |text| ctrl_c(text.contains("[y/N]")));
    assert!(code == 1 && text.contains("nothing was done"), "{text}");
}

/// An apply in another terminal ends while the question stands.
#[test]
fn nodes_that_come_while_destroy_asks_are_asked_for_too() {
    let folder = Folder::new();
    if !has_script() {
        return;
    }
    folder.write("inventory.yaml", "nodes: 2\n");
    let add = |i: u16| {
        let node = format!("state/sky/sky/nodes/sky-{i}");
        std::fs::create_dir_all(folder.path().join(&node).join("data")).unwrap();
        let spec = serde_json::json!({
            "name": format!("sky-{i}"), "id": format!("{i:040x}"), "port": 4000 + i, "zone": null,
        });
        let record = serde_json::json!({"node": spec, "program": "/none", "process": null});
        folder.write(&format!("{node}/record.json"), &record.to_string());
    };
    add(1);
    let (text, code) = on_a_terminal(&folder, "destroy", |text| {
        text.contains("[y/N]").then(|| {
            add(2);
            &b"y\n"[..]
        })
    });
    assert!(text.contains("Remove the 1 node of the ring sky"), "{text}");
    assert!(text.contains("Meanwhile sky has got sky-2. Remove 2 nodes in all"), "{text}");
    assert!(code == 0 && text.contains("nothing is left of the ring sky"), "{text}");
    assert!(!folder.path().join("state/sky").exists(), "{text}");
}
