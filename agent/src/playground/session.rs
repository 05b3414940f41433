//! A ring, and what the commands do with it.

use std::collections::BTreeMap;
use std::fmt::Write;

use sky_chord::{Finger, Id, NodeId, Notice, Reply, Request, Settings, Time, Trace, Verdict, View};

use super::command::{Command, HELP};
use super::network::{Network, Told};
use super::picture;
use crate::Failure;

/// After so many rounds the ring will not become right by itself.
const ROUNDS_MAX: u32 = 200;
/// More than this is not read by anybody.
const PROBLEMS_SHOWN: usize = 12;

/// A ring to play with.
pub(super) struct Session {
    network: Network,
    /// The fingers of each node when they were shown last.
    fingers: BTreeMap<NodeId, Vec<NodeId>>,
}

impl Session {
    /// A ring of these nodes, in which everything is right.
    ///
    /// # Errors
    /// If a node cannot start, or the ring does not become right.
    pub(super) fn new(settings: Settings, nodes: &[Id], seed: u64) -> Result<Self, Failure> {
        let mut session = Self { network: Network::new(settings, seed), fingers: BTreeMap::new() };
        for (i, node) in nodes.iter().enumerate() {
            if nodes[..i].contains(node) {
                return Err(Failure {
                    what: format!("there cannot be two nodes at {node:?}"),
                    hint: "Name each identifier once after --nodes.".to_owned(),
                });
            }
            session.start(*node)?;
        }
        session.settle().map_err(|problems| Failure {
            what: format!("the ring does not become right: {problems}"),
            hint: "Begin with fewer nodes, and let the others join.".to_owned(),
        })?;
        session.network.take_told();
        session.fingers = session.fingers();
        Ok(session)
    }

    /// What is said at the beginning.
    pub(super) fn greeting(&mut self) -> String {
        let count = self.network.peers().len();
        let points = 1u32 << self.network.space().bits().min(31);
        let nodes = if count == 1 { "1 node" } else { &format!("{count} nodes") };
        format!(
            "A ring of {nodes} on a circle of {points} identifiers. Time is virtual; nodes act when you \
             let rounds pass.\n{}",
            self.show()
        )
    }

    /// Carries out a command, except for `quit`. Returns what there is to say.
    ///
    /// # Errors
    /// If it cannot be carried out.
    pub(super) fn carry_out(&mut self, command: Command) -> Result<String, Failure> {
        match command {
            Command::Join(nodes) => self.join(&nodes),
            Command::Leave(nodes) => {
                for node in self.some(&nodes)? {
                    self.network.leave(node);
                }
                Ok(format!("{} leaving; let rounds pass", are(&nodes)))
            }
            Command::Fail(nodes) => {
                for node in self.some(&nodes)? {
                    self.network.fail(node);
                }
                Ok(format!("{} gone, and nobody knows yet; let rounds pass", are(&nodes)))
            }
            Command::Step(rounds) => {
                (0..rounds).for_each(|_| self.network.round());
                let news = self.news();
                let now = seconds(self.network.now());
                Ok(if news.is_empty() { format!("{now}  no pointer changed") } else { news })
            }
            Command::Run => Ok(self.run()),
            Command::Show => Ok(self.show()),
            Command::Fingers(node) => self.finger_tables(node),
            Command::Lookup { from, target } => self.look_up(from, target),
            Command::Check => Ok(said(&self.network.verdict())),
            Command::Dot(node) => {
                let chosen = self.node_or_first(node)?;
                Ok(self.network.dot(chosen).trim_end().to_owned())
            }
            Command::Svg(file, node) => {
                let chosen = self.node_or_first(node)?;
                let drawing = picture::draw(self.network.space(), &self.network.views(), chosen);
                std::fs::write(&file, drawing).map_err(|error| Failure {
                    what: format!("{} cannot be written: {error}", file.display()),
                    hint: "Name a file in a folder that is there and that you can write to."
                        .to_owned(),
                })?;
                Ok(format!("{} shows the ring and the fingers of {chosen:?}", file.display()))
            }
            Command::Help => Ok(HELP.to_owned()),
            Command::Quit => Ok(String::new()),
        }
    }

    fn start(&mut self, node: Id) -> Result<Option<Id>, Failure> {
        let contact = self.network.add(node).map_err(|what| Failure {
            what: format!("{node:?} cannot start: {what}"),
            hint: "Try another identifier.".to_owned(),
        })?;
        Ok(contact.map(|peer| peer.node.position))
    }

    fn join(&mut self, nodes: &[Id]) -> Result<String, Failure> {
        for (i, node) in nodes.iter().enumerate() {
            if self.network.at(*node).is_some() || nodes[..i].contains(node) {
                return Err(Failure {
                    what: format!("there is a node at {node:?} already"),
                    hint: "Choose another identifier.".to_owned(),
                });
            }
        }
        let mut text = Vec::new();
        for node in nodes {
            text.push(match self.start(*node)? {
                Some(contact) => format!("{node:?} asks {contact:?} the way; let rounds pass"),
                None => format!("{node:?} founds a ring"),
            });
        }
        Ok(text.join("\n"))
    }

    /// These nodes, if they are there and not all there are.
    fn some(&self, nodes: &[Id]) -> Result<Vec<NodeId>, Failure> {
        let found: Vec<NodeId> =
            nodes.iter().map(|node| self.node(*node)).collect::<Result<_, _>>()?;
        let stays = |peer: &sky_chord::Peer| !found.contains(&peer.node);
        if !self.network.peers().iter().any(stays) {
            return Err(Failure {
                what: "nobody would be left".to_owned(),
                hint: "Keep one node at least; `quit` ends the playground.".to_owned(),
            });
        }
        Ok(found)
    }

    fn node(&self, position: Id) -> Result<NodeId, Failure> {
        self.network.at(position).ok_or_else(|| {
            let nodes = self.network.peers();
            let nodes: Vec<_> = nodes.iter().map(|peer| format!("{:?}", peer.node)).collect();
            let hint = match nodes.len() {
                0..=16 => format!("There are nodes at {}.", nodes.join(", ")),
                count => format!("There are {count} nodes; `show` lists them."),
            };
            Failure { what: format!("there is no node at {position:?}"), hint }
        })
    }

    fn node_or_first(&self, position: Option<Id>) -> Result<NodeId, Failure> {
        match (position, self.network.peers().first()) {
            (None, Some(first)) => Ok(first.node),
            (position, _) => self.node(position.unwrap_or_default()),
        }
    }

    /// Lets rounds pass until everything is right; returns how many.
    fn settle(&mut self) -> Result<u32, String> {
        for rounds in 0..=ROUNDS_MAX {
            if self.network.verdict().right && !self.network.is_anybody_leaving() {
                return Ok(rounds);
            }
            self.network.round();
        }
        Err(said(&self.network.verdict()))
    }

    fn run(&mut self) -> String {
        let settled = self.settle();
        let mut text = self.news();
        let end = match settled {
            Ok(0) => "The ring is right already.".to_owned(),
            Ok(1) => "The ring is right after 1 round.".to_owned(),
            Ok(rounds) => format!("The ring is right after {rounds} rounds."),
            Err(problems) => format!(
                "{problems}\n{ROUNDS_MAX} rounds have passed. Where a majority of a range's members is \
                 gone, agents do not guess what it held: let fewer nodes fail at once."
            ),
        };
        if !text.is_empty() {
            text.push('\n');
        }
        text + &end
    }

    /// What happened since the last time: changes of pointers as they came, then those of fingers.
    fn news(&mut self) -> String {
        let mut lines: Vec<String> = self.network.take_told().iter().filter_map(told).collect();
        let now = self.fingers();
        for (node, fingers) in &now {
            let before = self.fingers.get(node);
            if before.is_none_or(|before| before != fingers) && !fingers.is_empty() {
                let mut line = format!("           {node:?}: fingers {}", runs(fingers));
                if let Some(before) = before.filter(|before| !before.is_empty()) {
                    let _ = write!(line, ", before {}", runs(before));
                }
                lines.push(line);
            }
        }
        self.fingers = now;
        lines.join("\n")
    }

    fn fingers(&mut self) -> BTreeMap<NodeId, Vec<NodeId>> {
        let views = self.network.views();
        views.iter().map(|view| (view.me.node, nodes_of(&view.fingers))).collect()
    }

    fn show(&mut self) -> String {
        let head = ["node", "predecessor", "successors", "fingers"].map(str::to_owned);
        let mut rows = vec![head];
        for view in self.network.views() {
            let nodes = |peers: &[sky_chord::Peer]| {
                let nodes: Vec<_> = peers.iter().map(|peer| format!("{:?}", peer.node)).collect();
                if nodes.is_empty() { "-".to_owned() } else { nodes.join(", ") }
            };
            let fingers = nodes_of(&view.fingers);
            rows.push([
                format!("{:?}", view.me.node),
                nodes(view.predecessor.as_slice()),
                nodes(&view.successors),
                if fingers.is_empty() { "-".to_owned() } else { runs(&fingers) },
            ]);
        }
        let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
        let (first, second, third) = (width(0), width(1), width(2));
        let mut text = String::new();
        for [node, predecessor, successors, fingers] in &rows {
            let _ = writeln!(
                text,
                "{node:>first$}  {predecessor:>second$}  {successors:third$}  {fingers}"
            );
        }
        let now = self.network.now().as_micros() as f64 / 1e6;
        let right = if self.network.verdict().right { "right" } else { "not right yet" };
        let _ = write!(text, "At {now:.1} s the ring is {right}.");
        text
    }

    fn finger_tables(&mut self, node: Option<Id>) -> Result<String, Failure> {
        let chosen = node.map(|node| self.node(node)).transpose()?;
        let space = self.network.space();
        let views = self.network.views();
        let wanted = views.iter().filter(|view| chosen.is_none_or(|node| view.me.node == node));
        let tables: Vec<_> = wanted.map(|view| finger_table(view, space)).collect();
        Ok(tables.join("\n"))
    }

    fn look_up(&mut self, from: Id, target: Id) -> Result<String, Failure> {
        let node = self.node(from)?;
        let reply = self.network.ask(node, Request::Lookup { target });
        let mut text = self.news();
        if !text.is_empty() {
            text.push('\n');
        }
        match reply {
            Some(Reply::LookedUp(Ok(trace))) => Ok(text + &route(from, &trace)),
            Some(Reply::LookedUp(Err(failure))) => {
                Ok(text + &format!("No owner found: {failure}."))
            }
            _ => Ok(text + &format!("{from:?} has not answered for ten seconds.")),
        }
    }
}

/// The hops of a lookup.
fn route(from: Id, trace: &Trace) -> String {
    let mut text = String::new();
    let (mut at, mut timeouts) = (from, 0);
    for hop in &trace.hops {
        let next = hop.peer.node.position;
        let millis = hop.elapsed.as_millis();
        let _ = if hop.answered {
            writeln!(text, "  {at:?} -> {next:?}  answered after {millis} ms")
        } else {
            timeouts += 1;
            writeln!(text, "  {at:?} -> {next:?}  no answer for {millis} ms")
        };
        if hop.answered {
            at = next;
        }
    }
    let (owner, target) = (trace.owner.node, trace.target);
    let _ = write!(
        text,
        "{target:?} belongs to {owner:?}: it is the first node at or after it, as {at:?} knows. Hops: {}, \
         time-outs: {timeouts}.",
        trace.hops.len() - timeouts
    );
    text
}

/// A finger table as in figure 3 of the paper (SIGCOMM 2001).
fn finger_table(view: &View, space: sky_chord::Space) -> String {
    let me = view.me.node.position;
    let name = |peer: Option<&sky_chord::Peer>| {
        peer.map_or_else(|| "nobody".to_owned(), |peer| format!("{:?}", peer.node))
    };
    let (successor, predecessor) = (name(view.successors.first()), name(view.predecessor.as_ref()));
    let mut text = format!("node {me:?}: successor {successor}, predecessor {predecessor}\n");
    let _ = writeln!(text, "{:>7}  {:>6}  {:16}  node", "finger", "start", "interval");
    for index in 0..space.bits() {
        let start = space.finger_start(me, index);
        let end = if index + 1 < space.bits() { space.finger_start(me, index + 1) } else { me };
        let finger = view.fingers.iter().find(|finger| finger.index == index);
        let node = name(finger.map(|finger| &finger.peer));
        let interval = format!("[{start:?}, {end:?})");
        let (offset, start) = (format!("+{}", 1u64 << index.min(63)), format!("{start:?}"));
        let _ = writeln!(text, "{offset:>7}  {start:>6}  {interval:16}  {node}");
    }
    text.truncate(text.trim_end().len());
    text
}

fn nodes_of(fingers: &[Finger]) -> Vec<NodeId> {
    fingers.iter().map(|finger| finger.peer.node).collect()
}

/// A list of nodes where long runs of the same are counted.
fn runs(nodes: &[NodeId]) -> String {
    let runs = nodes.chunk_by(|one, two| one == two).flat_map(|run| {
        let node = format!("{:?}", run[0]);
        if run.len() > 3 { vec![format!("{node} x{}", run.len())] } else { vec![node; run.len()] }
    });
    runs.collect::<Vec<_>>().join(", ")
}

fn are(nodes: &[Id]) -> String {
    let names: Vec<_> = nodes.iter().map(|node| format!("{node:?}")).collect();
    format!("{} {}", names.join(", "), if names.len() == 1 { "is" } else { "are" })
}

/// What a node told, if it is about the ring.
fn told(told: &Told) -> Option<String> {
    let name = |peer: &Option<sky_chord::Peer>| {
        peer.as_ref().map_or_else(|| "nobody".to_owned(), |peer| format!("{:?}", peer.node))
    };
    let what = match &told.notice {
        Notice::SuccessorChanged { to } => format!("successor {}", name(to)),
        Notice::PredecessorChanged { to } => format!("predecessor {}", name(to)),
        Notice::Suspected { node } => format!("{:?} does not answer", node.node),
        Notice::Recovered { node } => format!("{:?} answers again", node.node),
        Notice::Drained => "has handed over everything and left".to_owned(),
        _ => return None,
    };
    Some(format!("{}  {:?}: {what}", seconds(told.at), told.node))
}

fn seconds(at: Time) -> String {
    format!("{:7.3} s", at.as_micros() as f64 / 1e6)
}

fn said(verdict: &Verdict) -> String {
    if verdict.right {
        return "The ring is right.".to_owned();
    }
    let mut lines = vec!["The ring is not right.".to_owned()];
    lines.extend(verdict.problems.iter().take(PROBLEMS_SHOWN).map(|line| format!("  {line}")));
    if let more @ 1.. = verdict.problems.len().saturating_sub(PROBLEMS_SHOWN) {
        lines.push(format!("  And {more} more."));
    }
    lines.join("\n")
}
