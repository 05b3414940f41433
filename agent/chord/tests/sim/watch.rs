//! Looks over every message and view: at most one configuration for a point and epoch, no epoch that
//! goes down, no answer behind the fence, no promise that is not on disk.

use std::collections::BTreeMap;

use sky_chord::{
    Ballot, Body, CallId, Config, Id, Key, Message, NodeId, Peer, RangeTag, Refusal, View,
    is_majority,
};

use super::disk::Disk;

/// What was seen so far. Panics at the first contradiction.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// All configurations said to be decided, by epoch.
    decided: BTreeMap<u64, Vec<Config>>,
    /// Questions about data, by who asked.
    questions: BTreeMap<(NodeId, CallId), Question>,
    /// Which configurations each node said it has adopted, durably.
    adopted: BTreeMap<NodeId, Vec<Range>>,
    /// Which configurations each running process ever reported.
    reported: BTreeMap<NodeId, Vec<Range>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Range {
    lo: Id,
    hi: Id,
    epoch: u64,
}

impl Range {
    fn covers(&self, point: Id) -> bool {
        point.is_in_arc(self.lo, self.hi)
    }
}

#[derive(Debug, Clone)]
enum Question {
    Prepare { at: RangeTag, key: Key, ballot: Ballot },
    Accept { at: RangeTag, key: Key, ballot: Ballot },
    Read { at: RangeTag, key: Key },
    Decided { configs: Vec<Config> },
}

impl Watch {
    /// A message leaves a node whose disk is this.
    pub(crate) fn on_send(&mut self, from: &Peer, to: &Peer, message: &Message, disk: &Disk) {
        match &message.body {
            Body::Decided { configs } => {
                configs.iter().for_each(|config| self.on_config(config));
                self.ask(from, message.call, Question::Decided { configs: configs.clone() });
            }
            Body::ConfigIs { config: Some(config), .. } => self.on_config(config),
            Body::Refused(Refusal::Newer(config)) => self.on_config(config),
            Body::Prepare { at, key, ballot } => {
                let (at, key, ballot) = (*at, key.clone(), *ballot);
                self.ask(from, message.call, Question::Prepare { at, key, ballot });
            }
            Body::Accept { at, key, ballot, .. } => {
                let (at, key, ballot) = (*at, key.clone(), *ballot);
                self.ask(from, message.call, Question::Accept { at, key, ballot });
            }
            Body::Read { at, key, .. } => {
                let (at, key) = (*at, key.clone());
                self.ask(from, message.call, Question::Read { at, key });
            }
            Body::Promised { .. } | Body::Accepted | Body::Held { .. } | Body::Adopted => {
                self.on_answer(from, to, message, disk);
            }
            _ => {}
        }
    }

    fn ask(&mut self, from: &Peer, call: CallId, question: Question) {
        self.questions.insert((from.node, call), question);
    }

    fn on_answer(&mut self, from: &Peer, to: &Peer, message: &Message, disk: &Disk) {
        let question = self.questions.get(&(to.node, message.call)).cloned();
        match (question, &message.body) {
            (Some(Question::Prepare { at, key, ballot }), Body::Promised { .. }) => {
                self.assert_fence(from, at, &key);
                let is_member =
                    self.config(key.hash(), at.epoch).is_some_and(|c| c.has_member(&from.node));
                assert!(
                    !is_member || disk.marks(&key).0 >= ballot,
                    "{from:?} promised {ballot:?} for {key:?} before it was on disk"
                );
            }
            (Some(Question::Accept { at, key, ballot }), Body::Accepted) => {
                self.assert_fence(from, at, &key);
                assert!(
                    disk.marks(&key).1 >= ballot,
                    "{from:?} accepted {ballot:?} for {key:?} before it was on disk"
                );
            }
            (Some(Question::Read { at, key }), Body::Held { .. }) => {
                self.assert_fence(from, at, &key);
            }
            (Some(Question::Decided { configs }), Body::Adopted) => {
                let ranges = self.adopted.entry(from.node).or_default();
                for Config { lo, hi, epoch, .. } in configs {
                    ranges.push(Range { lo, hi, epoch });
                }
            }
            (question, body) => {
                panic!("{from:?} gives {to:?} an answer {body:?} to {question:?}");
            }
        }
    }

    /// A node that adopted an epoch answers for nothing older.
    fn assert_fence(&self, node: &Peer, at: RangeTag, key: &Key) {
        let adopted = self.adopted.get(&node.node).into_iter().flatten();
        let newest = adopted.filter(|r| r.covers(key.hash())).map(|r| r.epoch).max();
        assert!(
            newest.is_none_or(|newest| newest <= at.epoch),
            "{node:?} adopted epoch {newest:?} and answers for {key:?} at {at:?}"
        );
    }

    /// A configuration is said to be decided.
    fn on_config(&mut self, config: &Config) {
        let others = self.decided.entry(config.epoch).or_default();
        let mut known = others.iter().filter(|other| other.overlaps(config)).peekable();
        if known.peek().is_none() {
            others.push(config.clone());
            return;
        }
        for other in known {
            assert!(is_same(other, config), "two configurations:\n{other:?}\n{config:?}");
        }
    }

    /// A node reports what it sees.
    pub(crate) fn on_view(&mut self, view: &View) {
        for range in &view.ranges {
            let (lo, hi, epoch) = (range.lo, range.hi, range.epoch);
            let (members, prev) = (range.members.clone(), range.prev.clone());
            self.on_config(&Config {
                lo,
                hi,
                epoch,
                members,
                prev,
                forced: false,
                tie_breaker: None,
            });
            let before = self.reported.entry(view.me.node).or_default();
            let now = Range { lo, hi, epoch };
            if !before.contains(&now) {
                before.push(now);
            }
        }
        let before = [&self.reported, &self.adopted].map(|by_node| by_node.get(&view.me.node));
        for old in before.into_iter().flatten().flatten() {
            let now = view.ranges.iter().find(|r| r.hi == old.hi).map(|range| range.epoch);
            assert!(
                now.is_none_or(|epoch| epoch >= old.epoch),
                "{:?} went from {old:?} to epoch {now:?}",
                view.me
            );
        }
    }

    /// A process died: what it had not yet put on disk was never true.
    pub(crate) fn on_crash(&mut self, node: &NodeId) {
        self.reported.remove(node);
    }

    /// A client is told that its change is stored.
    pub(crate) fn on_stored(&self, key: &Key, version: Ballot, disks: &[(NodeId, &Disk)]) {
        let holds = |peer: &Peer| {
            let mut here = disks.iter().filter(|(node, _)| *node == peer.node);
            here.any(|(_, disk)| disk.has_held(key, version))
        };
        let configs = self.decided.range(version.epoch..).flat_map(|(_, configs)| configs);
        let mut of_key = configs.filter(|config| config.covers(key.hash()));
        let on_majority = |config: &Config| {
            let holding = config.members.iter().filter(|peer| holds(peer)).count();
            is_majority(holding, config.members.len())
        };
        assert!(of_key.any(on_majority), "{key:?} {version:?} is on no majority of disks");
    }

    /// Whether the configuration of a key in an epoch was seen.
    pub(crate) fn knows(&self, key: &Key, epoch: u64) -> bool {
        self.config(key.hash(), epoch).is_some()
    }

    /// The configuration of a point in an epoch, if it was seen.
    fn config(&self, point: Id, epoch: u64) -> Option<&Config> {
        self.decided.get(&epoch)?.iter().find(|config| config.covers(point))
    }

    /// For each point the configuration of the highest epoch seen.
    pub(crate) fn latest_configs(&self) -> Vec<Config> {
        let mut latest: Vec<Config> = Vec::new();
        for config in self.decided.values().rev().flatten() {
            if !latest.iter().any(|newer| newer.overlaps(config)) {
                latest.push(config.clone());
            }
        }
        latest
    }
}

/// The same range and members. `prev` is left out: a view does not show it any more after the sweep.
fn is_same(one: &Config, other: &Config) -> bool {
    let nodes = |config: &Config| config.members.iter().map(|p| p.node).collect::<Vec<_>>();
    (one.lo, one.hi) == (other.lo, other.hi) && nodes(one) == nodes(other)
}
