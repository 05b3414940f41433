//! The inventory: what the user wants. Parsed strictly, and checked as a whole before anything is done.

mod check;
mod edit;
mod keys;
mod openstack;
mod schema;

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sky_chord::Id;

use crate::error::{During, Error, Problem, Result};
use crate::state::remove_all;
pub use edit::Wishes;
pub use openstack::{AntiAffinity, FloatingIps, Openstack};
pub use schema::schema;

/// A whole inventory. The shipped `inventory.yaml` describes every key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inventory {
    /// The ring as a whole.
    #[serde(default)]
    pub ring: Ring,
    /// Where the nodes live.
    #[serde(default)]
    pub provider: ProviderChoice,
    /// The nodes.
    pub nodes: Nodes,
    /// What every agent is told.
    #[serde(default)]
    pub agent: Agent,
    /// Settings of the Docker provider: none yet.
    #[serde(default)]
    pub docker: Docker,
    /// Settings of the OpenStack provider.
    #[serde(default)]
    pub openstack: Openstack,
}

/// The ring as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ring {
    /// Tells rings apart on one machine.
    pub name: String,
    /// How many members hold each key.
    pub replicas: usize,
    /// The node of a ring of two that goes on alone when the other one is gone.
    pub tie_breaker: Option<String>,
    /// What the agents share to know each other; made at the first apply if not given.
    pub secret: Option<String>,
}

impl Default for Ring {
    fn default() -> Self {
        Self { name: "sky".to_owned(), replicas: 3, tie_breaker: None, secret: None }
    }
}

/// Where the user wants the nodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ProviderChoice {
    /// Docker where an engine answers, else processes.
    #[default]
    Auto,
    /// Plain processes.
    Process,
    /// Containers of a Docker engine.
    Docker,
    /// OpenStack machines.
    Openstack,
}

/// Where the nodes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProviderKind {
    /// Plain processes.
    Process,
    /// Containers of a Docker engine.
    Docker,
    /// Servers of an OpenStack cloud, with a container each.
    Openstack,
}

impl ProviderKind {
    /// Whether all nodes share this machine and its ports.
    pub const fn is_local(self) -> bool {
        matches!(self, Self::Process | Self::Docker)
    }
}

impl std::fmt::Display for ProviderKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Process => "process",
            Self::Docker => "docker",
            Self::Openstack => "openstack",
        })
    }
}

/// The nodes: how many, or which.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Nodes {
    /// This many, named `RING-1`, `RING-2` and so on.
    Count(usize),
    /// These.
    List(Vec<NodeEntry>),
}

/// One node of a list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeEntry {
    /// Its name; `RING-` and its place in the list if not given.
    pub name: Option<String>,
    /// Its position on the circle; chosen if not given.
    pub id: Option<Id>,
    /// Its port; chosen if not given.
    pub port: Option<u16>,
    /// What it shares with others when something fails: a rack, a zone.
    pub zone: Option<String>,
}

/// What every agent is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Agent {
    /// The port of the first node; the others follow.
    pub port: u16,
    /// The largest value accepted, in bytes.
    pub max_value_bytes: u64,
    /// How long a dead node may come back with its disk before it is replaced: `10s`, `2m`, `1h`, or
    /// `auto`, which is 10 s on this machine and 2 min in a cloud.
    pub repair_after: String,
    /// How logs are written.
    pub log: LogFormat,
}

impl Default for Agent {
    fn default() -> Self {
        Self {
            port: sky_api::DEFAULT_PORT,
            max_value_bytes: 1 << 20,
            repair_after: "auto".to_owned(),
            log: LogFormat::Text,
        }
    }
}

/// How an agent writes its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Settings of the Docker provider.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Docker {}

impl Inventory {
    /// Reads and checks an inventory. A syntax error stops at the first; everything else is
    /// reported together.
    pub fn load(path: &Path) -> Result<Self> {
        let text = read(path)?;
        Self::parse(&text, &path.display().to_string())
    }

    /// Checks the text of an inventory; `file` is what errors call it.
    pub fn parse(text: &str, file: &str) -> Result<Self> {
        check::check(text, file)?;
        serde_yaml::from_str(text).map_err(|error| {
            let place = error
                .location()
                .map_or_else(String::new, |at| format!(":{}:{}", at.line(), at.column()));
            Error { problems: vec![Problem::new(format!("{file}{place}: {error}"))] }
        })
    }

    /// The wanted nodes as entries with names, if the inventory lists them.
    pub fn listed(&self) -> Option<Vec<NodeEntry>> {
        let Nodes::List(entries) = &self.nodes else { return None };
        let named = entries.iter().enumerate().map(|(i, entry)| {
            let name = entry.name.clone().unwrap_or_else(|| node_name(&self.ring.name, i + 1));
            NodeEntry { name: Some(name), ..entry.clone() }
        });
        Some(named.collect())
    }
}

/// The name of the `number`-th node of a ring.
pub fn node_name(ring: &str, number: usize) -> String {
    format!("{ring}-{number}")
}

/// Changes `nodes: N` in an inventory file, and nothing else in it. False if the file lists its
/// nodes.
pub fn write_count(path: &Path, count: usize) -> Result<bool> {
    let text = edit::with_value(&read(path)?, &["nodes"], &count.to_string());
    text.map_or(Ok(false), |text| replace(path, &text).map(|()| true))
}

/// Writes a whole file anew: whoever reads it meanwhile sees the old or the new one. Nobody may read it who
/// could not read the old one: it may hold a secret.
pub fn replace(path: &Path, text: &str) -> Result<()> {
    // Of a link, the file behind it is meant.
    let file = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mut draft = file.clone().into_os_string();
    draft.push(".new");
    let draft = PathBuf::from(draft);
    let write = || {
        // What an interrupted call has left may be open to everybody.
        remove_all(&draft)?;
        let old = std::fs::metadata(&file).ok();
        let mode = if old.is_some() { 0o600 } else { 0o666 };
        let mut new = File::options().write(true).create_new(true).mode(mode).open(&draft)?;
        if let Some(old) = old {
            new.set_permissions(old.permissions())?;
        }
        new.write_all(text.as_bytes())?;
        new.sync_all()?;
        std::fs::rename(&draft, &file)
    };
    write().during(|| format!("cannot write {}", path.display()))
}

/// A duration such as `10s`, `2m` or `1h`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit());
    let number: u32 = text.strip_suffix(unit)?.parse().ok()?;
    match unit {
        "s" => Some(Duration::from_secs(number.into())),
        "m" => Some(Duration::from_secs(u64::from(number) * 60)),
        "h" => Some(Duration::from_secs(u64::from(number) * 3600)),
        _ => None,
    }
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|error| {
        let failed = Error::caused(format!("cannot read the inventory {}", path.display()), &error);
        if error.kind() == ErrorKind::NotFound {
            failed.hint("name the file as the last argument, or let `sky-deploy init` write one")
        } else {
            failed
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_inventory_is_the_defaults_and_names_every_key() {
        let text = edit::SHIPPED;
        let shipped = Inventory::parse(text, "inventory.yaml").unwrap();
        assert_eq!(shipped.nodes, Nodes::Count(5));
        assert_eq!(
            shipped,
            Inventory {
                ring: Ring::default(),
                provider: ProviderChoice::Auto,
                nodes: Nodes::Count(5),
                agent: Agent::default(),
                docker: Docker::default(),
                openstack: Openstack::default(),
            }
        );
        // What the types know: the keys they write are the keys they read.
        let mut known = Vec::new();
        let entry = serde_yaml::to_value(NodeEntry::default()).unwrap();
        for value in [serde_yaml::to_value(&shipped).unwrap(), entry] {
            collect_keys(&value, &mut known);
        }
        for key in &known {
            let described = text.lines().any(|line| {
                let line = line.trim_start_matches([' ', '#', '-', '{', ',']);
                line.starts_with(&format!("{key}:"))
            });
            assert!(described, "inventory.yaml does not describe `{key}`");
        }
        let mut checked = keys::known_keys();
        checked.sort_unstable();
        known.sort_unstable();
        assert_eq!(checked, known, "the checker and the types know different keys");
    }

    fn collect_keys(value: &serde_yaml::Value, keys: &mut Vec<String>) {
        for (key, value) in value.as_mapping().into_iter().flatten() {
            keys.push(key.as_str().unwrap().to_owned());
            collect_keys(value, keys);
        }
    }

    fn problems(text: &str) -> Vec<String> {
        let error = Inventory::parse(text, "i.yaml").unwrap_err();
        error.problems.into_iter().map(|problem| problem.what).collect()
    }

    #[test]
    fn every_problem_is_reported_at_once_with_its_place() {
        let text = "\
ring:
  nam: blue
  replicas: 2
  replicas: 4
provider: dokker
nodes:
  - {name: a, id: '1', port: 5000}
  - {name: a, id: '01', port: 5000}
  - {name: B, id: xyz}
agent:
  port: many
  repair_after: 10
  log: [json]
openstack: 5
";
        let found = problems(text);
        for wanted in [
            "i.yaml:2:3: unknown key `nam` in `ring`",
            "i.yaml:4:3: `replicas` is given twice, first in line 3",
            "i.yaml:3:13: `ring.replicas` must be one of 1, 3, 5, 7",
            "i.yaml:5:11: `provider` must be one of auto, process, docker, openstack",
            "i.yaml:8:12: the name a is given twice, first in line 7",
            "i.yaml:8:19: the id 01 is given twice, first in line 7",
            "i.yaml:8:31: the port 5000 is given twice, first in line 7",
            "i.yaml:9:12: `nodes[2].name` must",
            "i.yaml:9:19: `nodes[2].id` must",
            "i.yaml:11:9: `agent.port` must",
            "i.yaml:12:17: `agent.repair_after` must",
            "i.yaml:13:8: `agent.log` must",
            "i.yaml:14:12: `openstack` must be a map",
        ] {
            assert!(
                found.iter().any(|problem| problem.starts_with(wanted)),
                "not reported: {wanted}\nbut: {found:#?}"
            );
        }
        assert_eq!(found.len(), 13, "{found:#?}");
    }

    #[test]
    fn broken_text_is_an_error_with_a_place_and_never_a_panic() {
        for text in
            ["nodes: [", "\t", "- 5", "", "5", "a: &x 5\nb: *x", "nodes: *y", "? {a: b}\n: c"]
        {
            assert_eq!(problems(text).len(), 1, "{text:?}");
        }
        assert_eq!(problems("ring: {}"), ["i.yaml:1:1: `nodes` is missing"]);
        let wants = problems("nodes: 5\nprovider: openstack\n");
        assert!(wants[0].starts_with("i.yaml:2:11: `openstack.image`"), "{wants:?}");
        assert_eq!(wants.len(), 2);
    }

    #[test]
    fn counts_are_changed_in_place() {
        let text = "# ring\nnodes: 5   # five\nagent: {port: 5}\n";
        let count = |text, count| edit::with_value(text, &["nodes"], count);
        let grown = count(text, "12").unwrap();
        assert_eq!(grown, "# ring\nnodes: 12   # five\nagent: {port: 5}\n");
        assert_eq!(count("nodes: [{name: a}]", "2"), None);
    }

    #[test]
    fn a_changed_file_stays_as_private_as_it_was_and_behind_its_link() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("private.yaml"), folder.path().join("link.yaml"));
        std::fs::write(&file, "nodes: 3 # ours\n").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
        symlink("private.yaml", &link).unwrap();
        // Left by a call that was killed.
        std::fs::write(folder.path().join("private.yaml.new"), "").unwrap();
        assert!(write_count(&link, 4).unwrap());
        assert!(link.symlink_metadata().unwrap().is_symlink());
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "nodes: 4 # ours\n");
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_new_inventory_is_right_and_differs_from_the_shipped_one_only_where_wished() {
        assert_eq!(Wishes::default().inventory().unwrap(), edit::SHIPPED);
        for provider in <ProviderChoice as clap::ValueEnum>::value_variants() {
            for name in ["blue-2", "null", "true", "e1"] {
                let wishes = Wishes {
                    nodes: Some(7),
                    provider: Some(*provider),
                    name: Some(name.to_owned()),
                };
                let text = wishes.inventory().unwrap();
                let made = Inventory::parse(&text, "new.yaml").unwrap();
                assert_eq!(made.nodes, Nodes::Count(7));
                assert_eq!(made.provider, *provider);
                assert_eq!(made.ring, Ring { name: name.to_owned(), ..Ring::default() });
                let others = |text: &str| -> Vec<String> {
                    let lines = text.lines().map(str::trim_start).filter(|line| {
                        ["name: ", "provider: ", "nodes: ", "image: ", "flavor: "]
                            .iter()
                            .all(|key| !line.trim_start_matches("# ").starts_with(key))
                    });
                    lines.map(str::to_owned).collect()
                };
                assert_eq!(others(&text), others(edit::SHIPPED));
                assert_eq!(text.lines().count(), edit::SHIPPED.lines().count());
            }
        }
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(parse_duration("2m"), Some(Duration::from_secs(120)));
        assert_eq!(parse_duration("10"), None);
        assert_eq!(parse_duration("s"), None);
    }
}
