//! What the real program prints and returns: exit code, stdout and stderr of one call each.

#![expect(clippy::unwrap_used, reason = "tests panic")]

#[path = "parts/changes.rs"]
mod changes;
#[path = "../../agent/tests/support/need.rs"]
mod need;
#[path = "parts/terminal.rs"]
mod terminal;

use std::fs::File;
use std::io::BufRead;
use std::path::Path;
use std::process::{Command, Stdio};

const PROGRAM: &str = env!("CARGO_BIN_EXE_sky-deploy");

/// One call in a folder of its own, where Docker cannot be reached.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path().join(name), text).unwrap();
    }

    /// Exit code, stdout and stderr as one text, without what differs between machines.
    fn run(&self, arguments: &[&str]) -> String {
        self.run_with("DOCKER_HOST", "unix:///nonexistent", arguments)
    }

    fn run_with(&self, variable: &str, value: &str, arguments: &[&str]) -> String {
        self.call(Command::new(PROGRAM).env(variable, value), arguments)
    }

    fn call(&self, command: &mut Command, arguments: &[&str]) -> String {
        let docker = command.get_envs().any(|(name, _)| name == "DOCKER_HOST");
        if !docker {
            command.env("DOCKER_HOST", "unix:///nonexistent");
        }
        let output = command
            .args(arguments)
            .current_dir(self.path())
            .env("XDG_STATE_HOME", self.path().join("state"))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = format!(
            "exit code: {}\n--- stdout\n{}--- stderr\n{}",
            output.status.code().unwrap(),
            String::from_utf8(output.stdout).unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        );
        text.replace(&self.path().display().to_string(), "FOLDER")
    }
}

fn expect(actual: &str, expected: &str) {
    assert!(actual == expected, "--- expected\n{expected}\n--- but got\n{actual}");
}

#[test]
fn a_right_inventory() {
    let folder = Folder::new();
    folder.write("inventory.yaml", "nodes: 3\n");
    expect(
        &folder.run(&["validate"]),
        "exit code: 0
--- stdout
--- stderr
inventory.yaml is right
",
    );
    expect(
        &folder.run(&["validate", "--json"]),
        "exit code: 0
--- stdout
{
  \"valid\": true,
  \"problems\": []
}
--- stderr
",
    );
}

#[test]
fn every_mistake_at_once() {
    let folder = Folder::new();
    folder.write("sky.yaml", "rign: {}\nnodes: 0\nnodes: 5\nagent: {port: 99999}\n");
    expect(
        &folder.run(&["validate", "sky.yaml"]),
        "exit code: 1
--- stdout
--- stderr
error: sky.yaml:1:1: unknown key `rign`
  hint: did you mean `ring`?
error: sky.yaml:2:8: `nodes` must be a whole number from 1 to 1000, or a list of nodes
error: sky.yaml:3:1: `nodes` is given twice, first in line 2
  hint: keep one of them
error: sky.yaml:4:15: `agent.port` must be a whole number from 1 to 65535
",
    );
}

#[test]
fn broken_yaml() {
    let folder = Folder::new();
    folder.write("inventory.yaml", "nodes: [1,\n");
    let text = folder.run(&["plan"]);
    assert!(
        text.starts_with("exit code: 1\n--- stdout\n--- stderr\nerror: inventory.yaml:"),
        "{text}"
    );
    assert!(text.contains(": not YAML: "), "{text}");
}

#[test]
fn no_inventory() {
    expect(
        &Folder::new().run(&["plan"]),
        "exit code: 1
--- stdout
--- stderr
error: cannot read the inventory inventory.yaml
  caused by: No such file or directory (os error 2)
  hint: name the file as the last argument, or let `sky-deploy init` write one
",
    );
}

#[test]
fn a_new_inventory() {
    let folder = Folder::new();
    expect(
        &folder.run(&["init", "--nodes", "4", "--name", "blue", "--provider", "process"]),
        "exit code: 0
--- stdout
--- stderr
✓ inventory.yaml is written
next: `sky-deploy plan` shows what would be made, `sky-deploy apply` makes it
",
    );
    let plan = folder.run(&["plan"]);
    assert!(plan.contains("ring blue, provider process"), "{plan}");
    assert!(plan.contains("blue-4") && !plan.contains("blue-5"), "{plan}");
    let written = std::fs::read_to_string(folder.path().join("inventory.yaml")).unwrap();
    expect(
        &folder.run(&["init"]),
        "exit code: 1
--- stdout
--- stderr
error: inventory.yaml exists already
  hint: `--force` replaces it, another name as the last argument keeps it
",
    );
    let kept = std::fs::read_to_string(folder.path().join("inventory.yaml")).unwrap();
    assert_eq!(kept, written);
    assert!(folder.run(&["init", "--force"]).starts_with("exit code: 0\n"));
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../inventory.yaml");
    let replaced = std::fs::read(folder.path().join("inventory.yaml")).unwrap();
    assert_eq!(replaced, std::fs::read(shipped).unwrap());

    let text = folder.run(&["init", "--provider", "openstack", "cloud.yaml"]);
    assert!(text.contains("next: correct `openstack` in it"), "{text}");
    assert!(text.contains("`sky-deploy apply cloud.yaml`"), "{text}");
    assert!(folder.run(&["validate", "cloud.yaml"]).starts_with("exit code: 0\n"));
    for wrong in [["--nodes", "0"], ["--nodes", "1001"], ["--name", "Blue"], ["--provider", "x"]] {
        let text = folder.run(&["init", wrong[0], wrong[1], "never.yaml"]);
        assert!(text.starts_with("exit code: 64\n"), "{text}");
    }
    assert!(!folder.path().join("never.yaml").exists());
}

#[test]
fn the_schema_is_data_on_stdout() {
    let text = Folder::new().run(&["schema"]);
    assert!(text.starts_with("exit code: 0\n--- stdout\n{"), "{text}");
    assert!(text.ends_with("}\n--- stderr\n"), "{text}");
    assert!(text.contains("https://json-schema.org/draft/2020-12/schema"), "{text}");
}

#[test]
fn bash_completes_commands_and_values() {
    let folder = Folder::new();
    let script = folder.run(&["completions", "bash"]);
    let script = script.split_once("--- stdout\n").unwrap().1.split_once("--- stderr").unwrap().0;
    folder.write("completions", script);
    for (line, wanted) in [
        ("sky-deploy vali", "validate"),
        ("sky-deploy init --provider dock", "docker"),
        ("sky-deploy kv cre", "create"),
    ] {
        let complete = "source ./completions; COMP_WORDS=($1); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); \
                        [[ $(complete -p sky-deploy) =~ -F\\ ([^\\ ]+) ]]; \
                        ${BASH_REMATCH[1]} sky-deploy \"${COMP_WORDS[-1]}\" \"${COMP_WORDS[-2]}\"; \
                        echo \"${COMPREPLY[@]}\"";
        let mut bash = Command::new("bash");
        bash.args(["-c", complete, "bash", line]).current_dir(folder.path());
        let output = bash.output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), wanted, "{output:?}");
    }
    for shell in ["zsh", "fish", "elvish", "powershell"] {
        let text = folder.run(&["completions", shell]);
        assert!(text.starts_with("exit code: 0\n") && text.contains("validate"), "{text}");
    }
    assert!(folder.run(&["completions", "csh"]).starts_with("exit code: 64\n"));
}

#[test]
fn manual_pages() {
    let folder = Folder::new();
    let page = folder.run(&["man"]);
    assert!(page.starts_with("exit code: 0\n") && page.contains(".TH sky-deploy 1"), "{page}");
    let text = folder.run(&["man", "pages/man1"]);
    assert!(text.ends_with("the manual pages are in pages/man1\n"), "{text}");
    for name in ["sky-deploy.1", "sky-deploy-apply.1", "sky-deploy-kv-get.1"] {
        let page = std::fs::read_to_string(folder.path().join("pages/man1").join(name)).unwrap();
        assert!(page.contains(".SH NAME"), "{name}: {page}");
    }
}

#[test]
fn a_plan_says_why_processes() {
    let folder = Folder::new();
    folder.write("inventory.yaml", "nodes: 3\n");
    expect(
        &folder.run(&["plan"]),
        "exit code: 2
--- stdout
ring sky, provider process (Docker cannot be used: no Docker engine answers (unix:///nonexistent: there is no such socket))
  + sky-1      127.0.0.1:4321   create, owns 33.3 %
  + sky-2      127.0.0.1:4322   create, owns 33.3 %
  + sky-3      127.0.0.1:4323   create, owns 33.3 %
--- stderr
",
    );
    assert!(!folder.path().join("state").exists(), "a plan must not change anything");
}

#[test]
fn no_permission_on_the_socket_is_said() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::new();
    folder.write("inventory.yaml", "provider: docker\nnodes: 3\n");
    let socket = folder.path().join("docker.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o000)).unwrap();
    let mut command = Command::new("setpriv");
    if std::os::unix::net::UnixStream::connect(&socket).is_ok() {
        // Root may use every socket, so it hands the call to somebody who may not. The program is
        // copied to where that user can read it.
        let program = folder.path().join("sky-deploy");
        std::fs::copy(PROGRAM, &program).unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(program);
    } else {
        command = Command::new(PROGRAM);
    }
    command.env("DOCKER_HOST", format!("unix://{}", socket.display()));
    let text = folder.call(&mut command, &["plan"]);
    assert!(text.contains("no permission to use the socket"), "{text}");
    assert!(text.starts_with("exit code: 1\n"), "{text}");
}

#[test]
fn docker_is_wanted_and_not_there() {
    let folder = Folder::new();
    folder.write("inventory.yaml", "provider: docker\nnodes: 3\n");
    expect(
        &folder.run(&["plan"]),
        "exit code: 1
--- stdout
--- stderr
error: no Docker engine answers (unix:///nonexistent: there is no such socket)
  hint: DOCKER_HOST names this engine: correct it, or unset it to try the usual sockets
",
    );
}

#[test]
fn a_missing_ring_is_not_right() {
    let folder = Folder::new();
    folder.write("inventory.yaml", "{ring: {name: blue}, nodes: 1}\n");
    let text = folder.run(&["status", "--json"]);
    let json = text.split("--- stdout\n").nth(1).unwrap().split("--- stderr").next().unwrap();
    let status: serde_json::Value = serde_json::from_str(json).unwrap();
    assert!(text.starts_with("exit code: 1\n"), "{text}");
    assert_eq!(status["ring"], "blue");
    assert_eq!(status["right"], false);
    assert_eq!(status["nodes"][0]["name"], "blue-1");
    assert_eq!(status["nodes"][0]["state"], "missing");
    assert_eq!(status["nodes"][0]["url"], "http://127.0.0.1:4321");
    assert_eq!(status["nodes"][0]["provider"], "process");
}

#[test]
fn a_ring_is_watched_until_ctrl_c() {
    let folder = Folder::new();
    folder.write("inventory.yaml", "nodes: 1\n");
    for json in [false, true] {
        let mut command = Command::new(PROGRAM);
        command.args(["status", "--watch", "1"]).args(json.then_some("--json"));
        let mut watch = command
            .current_dir(folder.path())
            .env("XDG_STATE_HOME", folder.path().join("state"))
            .env("DOCKER_HOST", "unix:///nonexistent")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = std::io::BufReader::new(watch.stdout.take().unwrap()).lines();
        let mut times = Vec::new();
        while times.len() < 2 {
            let line = lines.next().unwrap().unwrap();
            assert!(!line.contains('\x1b'), "{line}");
            if json {
                let look: serde_json::Value = serde_json::from_str(&line).unwrap();
                assert_eq!(look["nodes"][0]["state"], "missing");
                times.push(look["at"].as_str().unwrap().to_owned());
            } else if line.ends_with('Z') {
                times.push(line);
                assert!(lines.next().unwrap().unwrap().contains("sky-1      missing"));
            }
        }
        assert!(times[0] < times[1] && times[0].len() == "2000-01-01T00:00:00Z".len(), "{times:?}");
        let pid = rustix::process::Pid::from_child(&watch);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        assert_eq!(watch.wait().unwrap().code(), Some(1));
    }
    let text = folder.run(&["status", "--watch", "inventory.yaml"]);
    assert!(text.starts_with("exit code: 64\n"), "{text}");
    assert!(text.contains("an inventory stands before `--watch`"), "{text}");
}

#[test]
fn what_cannot_be_written_is_told() {
    let folder = Folder::new();
    folder.write("inventory.yaml", "nodes: 1\n");
    let full = File::options().write(true).open("/dev/full").unwrap();
    let output = Command::new(PROGRAM)
        .args(["validate", "--json"])
        .current_dir(folder.path())
        .stdout(full)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        text.starts_with("error: cannot write to the standard output\n  caused by: No space"),
        "{text}"
    );

    // A device would be replaced by a file.
    let text = folder.run(&["backup", "/dev/null", "--yes"]);
    assert!(text.contains("error: /dev/null is no ordinary file\n"), "{text}");
    // What would be done is said where nobody can be asked.
    folder.write("keys.sky", "");
    let text = folder.run(&["backup", "keys.sky"]);
    assert!(text.contains("nobody is there to ask: Replace keys.sky?\n  hint: say yes"), "{text}");
}

#[test]
fn an_unknown_node() {
    let folder = Folder::new();
    folder.write("inventory.yaml", "nodes: 1\n");
    expect(
        &folder.run(&["pause", "green"]),
        "exit code: 1
--- stdout
--- stderr
error: the ring sky has no node green
  hint: the ring has no nodes; `sky-deploy apply` makes them
",
    );
}

#[test]
fn usage_errors() {
    let folder = Folder::new();
    for arguments in [&["aply"][..], &["kv", "get"], &[], &["apply", "--dashboard", "x"]] {
        let text = folder.run(arguments);
        assert!(text.starts_with("exit code: 64\n--- stdout\n--- stderr\n"), "{text}");
    }
    assert!(folder.run(&["--version"]).starts_with("exit code: 0\n--- stdout\nsky-deploy "));
}

#[test]
fn no_rings_and_nothing_to_destroy() {
    let folder = Folder::new();
    folder.write("inventory.yaml", "nodes: 1\n");
    expect(&folder.run(&["list", "--json"]), "exit code: 0\n--- stdout\n[]\n--- stderr\n");
    expect(
        &folder.run(&["destroy"]),
        "exit code: 0\n--- stdout\n--- stderr\nthere is no ring sky\n",
    );
    folder.write("other.yaml", "{nodes: 1, ring: {name: other}}\n");
    for arguments in [&["logs", "other.yaml"][..], &["logs", "all", "other.yaml"]] {
        let text = folder.run(arguments);
        assert!(text.contains("error: the ring other has no nodes, and so no logs\n"), "{text}");
    }
}

#[test]
fn a_port_in_use_is_named_and_nothing_is_made() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let folder = Folder::new();
    folder.write("inventory.yaml", &format!("{{nodes: 1, agent: {{port: {port}}}}}\n"));
    let text = folder.run(&["apply", "--detach"]);
    let holder = format!("caused by: process {} (", std::process::id());
    assert!(text.starts_with("exit code: 1\n"), "{text}");
    assert!(text.contains(&format!("error: sky-1 cannot have port {port}\n")), "{text}");
    assert!(text.contains(&holder), "{text}");
    let status = folder.run(&["status"]);
    assert!(status.contains("sky-1      missing"), "{status}");
}

#[test]
fn the_holder_of_the_lock_is_named() {
    let folder = Folder::new();
    folder.write("inventory.yaml", "nodes: 1\n");
    let ring = sky_deploy::state::RingFolder::at(&folder.path().join("state/sky"), "sky");
    let _lock = ring.lock("apply").unwrap();
    let text = folder.run(&["apply", "--detach"]);
    let pid = std::process::id();
    assert!(text.starts_with(
        "exit code: 1\n--- stdout\n--- stderr\nerror: the ring sky is being changed: "
    ));
    assert!(text.contains(&format!(" runs `sky-deploy apply` (process {pid}) since 2")), "{text}");
    // A second may turn between taking the lock and telling its age.
    assert!(text.contains(" ago\n  hint: wait until it is done, or end that process"), "{text}");
}

/// The data of a call as JSON, and its exit code.
fn json(text: &str) -> (String, serde_json::Value) {
    let (code, rest) = text.split_once("\n--- stdout\n").unwrap();
    let data = rest.split_once("--- stderr\n").unwrap().0;
    (code.to_owned(), serde_json::from_str(data).unwrap_or_else(|error| panic!("{error}: {text}")))
}

#[test]
fn what_is_rendered_has_no_secrets_and_changes_nothing() {
    let folder = Folder::new();
    folder.write("inventory.yaml", "{provider: process, nodes: 2, agent: {repair_after: 7s}}\n");
    let (code, rendered) = json(&folder.run(&["render", "--json"]));
    assert_eq!(code, "exit code: 0");
    assert!(!folder.path().join("state").exists());
    let parts = rendered["parts"].as_array().unwrap();
    assert_eq!(parts.len(), 2);
    assert_eq!((&parts[0]["node"], &parts[0]["what"]), (&"sky-1".into(), &"process".into()));
    let parameters = &parts[0]["parameters"];
    assert_eq!(parameters["environment"]["SKY_SECRET"], "<secret>");
    let arguments: Vec<&str> =
        parameters["arguments"].as_array().unwrap().iter().map(|a| a.as_str().unwrap()).collect();
    assert!(arguments.windows(2).any(|pair| pair == ["--repair-after", "7"]), "{arguments:?}");
    assert!(arguments.windows(2).any(|pair| pair == ["--join", "127.0.0.1:4322"]), "{arguments:?}");

    let text = folder.run(&["render", "--node", "sky-2"]);
    assert!(text.contains("# sky-2: process\n{") && !text.contains("# sky-1"), "{text}");
    let text = folder.run(&["render", "--node", "green"]);
    assert!(
        text.contains(
            "error: the inventory wants no node green\n  hint: its nodes are sky-1, sky-2"
        )
    );
    let text = folder.run(&["render", "--with-secrets"]);
    assert!(text.starts_with("exit code: 64\n") && text.contains("--output"), "{text}");
    let text = folder.run(&["render", "--with-secrets", "--output", "all"]);
    assert!(text.contains("error: the ring sky has no secrets yet\n"), "{text}");

    let ring = sky_deploy::state::RingFolder::at(&folder.path().join("state/sky"), "sky");
    ring.create().unwrap();
    let secrets = ring.make_secrets(None).unwrap();
    assert!(!folder.run(&["render"]).contains(&secrets.secret));
    let text = folder.run(&["render", "--with-secrets", "--output", "all"]);
    expect(&text, "exit code: 0\n--- stdout\n--- stderr\n✓ all is written\n");
    let file = folder.path().join("all");
    let written = std::fs::read_to_string(&file).unwrap();
    assert!(written.contains(&secrets.secret) && written.contains(&secrets.token));
    let mode = std::os::unix::fs::PermissionsExt::mode(&file.metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
}

/// What `doctor --json` found: each check with its result and detail.
fn found(folder: &Folder, code: i32) -> Vec<(String, String, String)> {
    let text = folder.run(&["doctor", "--json"]);
    let (ended, report) = json(&text);
    assert_eq!(ended, format!("exit code: {code}"), "{text}");
    assert_eq!(report["healthy"], code == 0);
    let word = |finding: &serde_json::Value, key: &str| finding[key].as_str().unwrap().to_owned();
    let findings = report["findings"].as_array().unwrap().iter();
    findings.map(|it| (word(it, "check"), word(it, "result"), word(it, "detail"))).collect()
}

#[test]
fn doctor_looks_at_everything_whatever_is_wrong() {
    let folder = Folder::new();
    let has = |found: &[(String, String, String)], check: &str, result: &str, words: &str| {
        let is_it = found.iter().any(|(c, r, d)| c == check && r == result && d.contains(words));
        assert!(is_it, "no {check} {result} {words} in {found:#?}");
    };
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let inventory = format!("{{provider: process, nodes: 1, agent: {{port: {port}}}}}\n");
    folder.write("inventory.yaml", &inventory);
    let findings = found(&folder, 1);
    has(&findings, "inventory", "ok", "ring sky");
    has(&findings, "ring", "ok", "sky is not made yet");
    has(&findings, "fsync", "ok", " ms for 4 KiB");
    has(&findings, "provider", "ok", "process");
    has(&findings, "ports", "problem", &format!("sky-1 cannot have port {port}"));
    assert!(!folder.path().join("state").exists(), "it made something");
    drop(listener);
    has(&found(&folder, 0), "ports", "ok", "1 are free");

    // An inventory of mistakes, and an engine that is not there.
    folder.write("inventory.yaml", "rign: {}\nnodes: 0\n");
    let findings = found(&folder, 1);
    assert_eq!(findings.iter().filter(|(check, ..)| check == "inventory").count(), 2);
    has(&findings, "fsync", "ok", " ms for 4 KiB");
    folder.write("inventory.yaml", "{provider: docker, nodes: 1}\n");
    has(&found(&folder, 1), "provider", "problem", "no Docker engine answers");
    let text = folder.run(&["doctor"]);
    assert!(text.contains("\nproblem  provider     no Docker engine answers"), "{text}");
    assert!(text.contains("hint: DOCKER_HOST names this engine"), "{text}");

    // What an interrupted apply leaves, and a lock.
    folder.write("inventory.yaml", "{provider: process, nodes: 1}\n");
    let ring = sky_deploy::state::RingFolder::at(&folder.path().join("state/sky"), "sky");
    let _lock = ring.lock("apply").unwrap();
    let findings = found(&folder, 0);
    has(&findings, "ring", "warning", "is there, and no ring was made");
    has(&findings, "lock", "warning", "runs `sky-deploy apply`");
    std::fs::write(ring.path().join("ring.json"), "{").unwrap();
    has(&found(&folder, 1), "ring", "problem", "cannot be understood");
}
