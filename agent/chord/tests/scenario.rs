//! Scenarios as text: commands, and what the nodes did upon them. Each file of `scenarios/` begins with
//! a sentence about it; lines with `>` are commands, the lines below each are what came of it.
//!
//! `UPDATE_EXPECT=1 cargo test -p sky-chord --test scenario` writes the files anew. Only commit the
//! changes if you understand what caused them.

#[allow(dead_code, reason = "each test program uses its own part of the simulator")]
#[path = "sim/mod.rs"]
mod sim;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use sim::cluster::Cluster;
use sky_chord::{
    Answer, Condition, Consistency, Failure, Id, Key, NodeId, Notice, Operation, Peer, Reply,
    Request, Settings, Subject, Told, Value,
};

#[test]
fn scenarios() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let files = std::fs::read_dir(&folder).expect("the folder of scenarios");
    let mut paths: Vec<_> = files.map(|file| file.expect("a file").path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "no scenarios in {}", folder.display());
    let update = std::env::var_os("UPDATE_EXPECT").is_some();
    let mut changed = Vec::new();
    for path in paths {
        let expected = std::fs::read_to_string(&path).expect("a text file");
        let actual = play(&expected);
        if actual == expected {
            continue;
        }
        if update {
            std::fs::write(&path, actual).expect("a file that can be written");
        } else {
            let first = actual.lines().zip(expected.lines()).find(|(new, old)| new != old);
            changed.push(format!("{}: {first:?} (new, expected)\n{actual}", path.display()));
        }
    }
    assert!(changed.is_empty(), "scenarios went another way:\n{}", changed.join("\n"));
}

/// Plays the commands of a scenario and returns its text with what they lead to now.
fn play(text: &str) -> String {
    let mut stage = Stage::new();
    let mut lines = text.lines().peekable();
    let mut result = String::new();
    while let Some(line) = lines.next_if(|line| !line.starts_with('>')) {
        result += line;
        result += "\n";
    }
    for command in lines.filter(|line| line.starts_with('>')) {
        let told = stage.command(command[1..].trim());
        let _ = write!(result, "{command}\n{told}");
    }
    result
}

/// A cluster whose nodes are called A, B, C, ... in the order they were added.
struct Stage {
    cluster: Cluster,
    /// Configurations already told of.
    told: BTreeSet<String>,
}

impl Stage {
    fn new() -> Self {
        let settings = Settings { repair_after: Duration::from_secs(5), ..Settings::default() };
        Self { cluster: Cluster::new(1, settings), told: BTreeSet::new() }
    }

    /// Carries out one command and returns what came of it, a line each.
    fn command(&mut self, command: &str) -> String {
        let words: Vec<_> = command.split_whitespace().collect();
        let mut out = match words.as_slice() {
            ["add", positions @ ..] => {
                positions.iter().for_each(|position| self.add(position));
                String::new()
            }
            ["init", node] => {
                self.cluster.init(machine(node));
                String::new()
            }
            ["settle"] => {
                self.cluster.settle();
                String::new()
            }
            ["run", seconds] => {
                let seconds = seconds.parse().expect("seconds");
                self.cluster.run_for(Duration::from_secs(seconds));
                String::new()
            }
            ["put", key, value, "via", node] => self.operate(node, put(key, value)),
            ["get", key, "via", node] => {
                let (key, consistency) = (Key::new(key), Consistency::Quorum);
                self.operate(node, Operation::Get { key, consistency })
            }
            ["delete", key, "via", node] => {
                let (key, condition) = (Key::new(key), Condition::Always);
                self.operate(node, Operation::Delete { key, condition })
            }
            ["watch", prefix, "via", node] => {
                let subject = Subject::Prefix((*prefix).into());
                let reply = self.cluster.ask(machine(node), Request::Watch { subject, room: 100 });
                assert!(matches!(reply, Reply::Watching(Ok(_))), "{reply:?}");
                String::new()
            }
            ["crash", nodes @ ..] => {
                nodes.iter().for_each(|node| self.cluster.crash(machine(node)));
                String::new()
            }
            ["start", nodes @ ..] => {
                nodes.iter().for_each(|node| self.cluster.start(machine(node)));
                String::new()
            }
            ["lose", node] => {
                self.cluster.crash(machine(node));
                self.cluster.machines[machine(node)].gone = true;
                String::new()
            }
            ["leave", node] => {
                self.cluster.leave(machine(node));
                let gone = |cluster: &mut Cluster| cluster.machines[machine(node)].gone;
                assert!(self.cluster.run_until(Duration::from_secs(30), gone), "{node} stays");
                String::new()
            }
            ["partition", nodes @ ..] => {
                let sides: Vec<Vec<_>> = nodes
                    .split(|word| *word == "|")
                    .map(|side| side.iter().map(|node| machine(node)).collect())
                    .collect();
                self.cluster.network.partition(&sides[0], &sides[1], true);
                String::new()
            }
            ["heal"] => {
                self.cluster.network.heal();
                String::new()
            }
            ["show"] => self.show(),
            other => panic!("no such command: {other:?}"),
        };
        let told = self.notices() + &self.watched();
        out.insert_str(0, &told);
        out
    }

    /// Adds a node at a position given by its first hexadecimal digits.
    fn add(&mut self, digits: &str) {
        let position: Id = format!("{digits:0<40}").parse().expect("hexadecimal digits");
        self.cluster.add(position);
    }

    fn operate(&mut self, node: &str, operation: Operation) -> String {
        match self.cluster.operate(machine(node), operation) {
            Ok(Answer::Found { value, .. }) => {
                format!("  found {}\n", String::from_utf8_lossy(&value.bytes))
            }
            Ok(Answer::Absent) => "  absent\n".to_owned(),
            Ok(Answer::Stored { created: true, .. }) => "  created\n".to_owned(),
            Ok(Answer::Stored { .. }) => "  replaced\n".to_owned(),
            Ok(Answer::Deleted) => "  deleted\n".to_owned(),
            Ok(other) => format!("  {other:?}\n"),
            Err(Failure::Unavailable(_)) => "  unavailable\n".to_owned(),
            Err(other) => format!("  {other}\n"),
        }
    }

    /// What the nodes told since the last command. Each configuration is told once.
    fn notices(&mut self) -> String {
        let mut lines = String::new();
        for (machine, notice) in std::mem::take(&mut self.cluster.notices) {
            let who = letter(machine);
            let line = match notice {
                Notice::Joined { .. } => format!("{who} belongs to the ring"),
                Notice::SuccessorChanged { to } => {
                    let to = to.map_or("nobody".to_owned(), |peer| self.name(&peer));
                    format!("{who} is followed by {to}")
                }
                Notice::PredecessorChanged { to } => {
                    let to = to.map_or("nobody".to_owned(), |peer| self.name(&peer));
                    format!("{who} follows {to}")
                }
                Notice::Suspected { node } => format!("{who} suspects {}", self.name(&node)),
                Notice::Recovered { node } => format!("{who} hears {} again", self.name(&node)),
                Notice::Adopted { hi, epoch, members } => {
                    let members: Vec<_> = members.iter().map(|peer| self.name(peer)).collect();
                    let hi = self.point(hi);
                    format!("range of {hi}, epoch {epoch}: {}", members.join(" "))
                }
                Notice::SweepDone { hi, epoch, keys } => {
                    format!("range of {}, epoch {epoch}: swept, {keys} keys", self.point(hi))
                }
                Notice::Aligned { hi, keys } => {
                    format!("range of {}: {keys} keys levelled", self.point(hi))
                }
                Notice::Drained => format!("{who} is drained"),
                _ => continue,
            };
            let is_config = line.starts_with("range") && line.contains("epoch");
            if !is_config || self.told.insert(line.clone()) {
                let _ = writeln!(lines, "  {line}");
            }
        }
        lines
    }

    /// What watches told since the last command.
    fn watched(&mut self) -> String {
        let mut lines = String::new();
        for (machine, _, _, told) in self.cluster.take_told() {
            let what = match told {
                Told::Value { key, value, .. } => {
                    format!("that {key:?} is {}", String::from_utf8_lossy(&value.bytes))
                }
                Told::Deleted { key, .. } => format!("that {key:?} is gone"),
                Told::Synced => "that this is all".to_owned(),
                Told::Ended(why) => format!("no more: {why:?}"),
            };
            let _ = writeln!(lines, "  {} tells {what}", letter(machine));
        }
        lines
    }

    /// Who is beside whom, and who keeps what.
    fn show(&mut self) -> String {
        let mut lines = String::new();
        for machine in self.cluster.awake() {
            let Some(view) = self.cluster.view(machine) else { continue };
            let successors: Vec<_> = view.successors.iter().map(|peer| self.name(peer)).collect();
            let predecessor = view.predecessor.map_or("-".to_owned(), |peer| self.name(&peer));
            let who = letter(machine);
            let _ = writeln!(lines, "  {predecessor} < {who} < {}", successors.join(" "));
            for range in view.ranges.iter().filter(|range| range.leads) {
                let members: Vec<_> = range.members.iter().map(|peer| self.name(peer)).collect();
                let (lo, hi) = (self.point(range.lo), self.point(range.hi));
                let (epoch, keys, members) = (range.epoch, range.keys, members.join(" "));
                let _ = writeln!(lines, "    ({lo}, {hi}] epoch {epoch}: {members}, {keys} keys");
            }
        }
        lines
    }

    fn name(&self, peer: &Peer) -> String {
        self.name_of(peer.node).unwrap_or_else(|| format!("{peer:?}"))
    }

    fn name_of(&self, node: NodeId) -> Option<String> {
        self.cluster.machines.iter().position(|m| m.peer.node == node).map(letter)
    }

    fn point(&self, point: Id) -> String {
        let mut machines = self.cluster.machines.iter();
        machines
            .position(|machine| machine.peer.node.position == point)
            .map_or_else(|| format!("{point:?}"), letter)
    }
}

fn letter(machine: usize) -> String {
    char::from(b'A' + machine as u8).to_string()
}

fn machine(letter: &str) -> usize {
    usize::from(letter.as_bytes()[0] - b'A')
}

fn put(key: &str, value: &str) -> Operation {
    let value =
        Value { content_type: "text/plain".into(), bytes: value.to_owned().into(), ttl: None };
    Operation::Put { key: Key::new(key), value, condition: Condition::Always }
}
