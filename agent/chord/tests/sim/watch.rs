//! Looks over every message as it is sent, everything that becomes durable, and the views at every
//! sample (a view at every step would be too dear). Panics at the first contradiction:
//!
//! - for a point and epoch there is one configuration, its `prev` are the members before it, and no slot
//!   decides twice ([`ledger`]);
//! - a ballot of a key stands for one state, and of two chosen states the later one knows the earlier
//!   one ([`ledger`]);
//! - a node answers in an epoch only when its adoption is on its disk, and in none below one in which
//!   it answered, that it confirmed, or that it started with;
//! - no node tells of a promise, an acceptance or a vote that is not on its disk;
//! - the epoch of no point goes down, also not over a restart;
//! - no node gives two questions the same name;
//! - a client is told that something is stored only when a majority of disks holds it.

mod ledger;

use std::collections::{BTreeMap, BTreeSet};

use sky_chord::{
    Ballot, Body, CallId, Config, Id, Key, Message, NodeId, Peer, RangeTag, Refusal, SlotBallot,
    View, is_majority,
};

use super::disk::Disk;
use ledger::Ledger;

/// What was seen so far.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    ledger: Ledger,
    /// Questions about data, by who asked.
    questions: BTreeMap<(NodeId, CallId), Question>,
    /// In which epochs each node answers, as it showed by its answers or had on its disk at its start.
    shown: BTreeMap<NodeId, Spans>,
    /// Which configurations each running process ever reported.
    reported: BTreeMap<NodeId, Spans>,
}

/// A configuration as far as it was seen: a range in an epoch, and who keeps it.
#[derive(Debug, Clone)]
pub(crate) struct Range {
    pub(crate) lo: Id,
    pub(crate) hi: Id,
    pub(crate) epoch: u64,
    pub(crate) members: Vec<Peer>,
    /// The members before it if they were others; not seen if none.
    pub(crate) prev: Option<BTreeSet<NodeId>>,
    /// Whether somebody said so. What only the votes on disks tell is not in force before it is found.
    is_told: bool,
}

impl Range {
    fn of(config: &Config) -> Self {
        let Config { lo, hi, epoch, ref members, ref prev, .. } = *config;
        let prev = prev.iter().map(|peer| peer.node).collect();
        Self { lo, hi, epoch, members: members.clone(), prev: Some(prev), is_told: true }
    }

    pub(crate) fn covers(&self, point: Id) -> bool {
        point.is_in_arc(self.lo, self.hi)
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.covers(other.hi) || other.covers(self.hi)
    }

    fn nodes(&self) -> BTreeSet<NodeId> {
        self.members.iter().map(|peer| peer.node).collect()
    }

    fn is_quorum(&self, has: impl Fn(&NodeId) -> bool) -> bool {
        let count = self.members.iter().filter(|peer| has(&peer.node)).count();
        is_majority(count, self.members.len())
    }
}

/// Arcs of the circle, each with an epoch.
#[derive(Debug, Clone, Default)]
struct Spans(Vec<(Id, Id, u64)>);

impl Spans {
    fn add(&mut self, lo: Id, hi: Id, epoch: u64) {
        if !self.0.contains(&(lo, hi, epoch)) {
            self.0.retain(|old| (old.0, old.1) != (lo, hi) || old.2 > epoch);
            self.0.push((lo, hi, epoch));
        }
    }

    /// The highest epoch at this point; 0 if there is none.
    fn epoch(&self, point: Id) -> u64 {
        let covering = self.0.iter().filter(|(lo, hi, _)| point.is_in_arc(*lo, *hi));
        covering.map(|(_, _, epoch)| *epoch).max().unwrap_or(0)
    }
}

/// What a node was asked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Question {
    Prepare { at: RangeTag, key: Key, ballot: Ballot },
    Accept { at: RangeTag, key: Key, ballot: Ballot },
    Read { at: RangeTag, key: Key },
    Scan { at: RangeTag },
    Slot { slots: Vec<RangeTag>, ballot: SlotBallot },
    Decided { configs: Vec<Config> },
}

impl Watch {
    /// A message leaves a node whose disk is this.
    pub(crate) fn on_send(&mut self, from: &Peer, to: &Peer, message: &Message, disk: &Disk) {
        let question = match &message.body {
            Body::Decided { configs } => {
                configs.iter().for_each(|config| self.ledger.on_config(Range::of(config)));
                Question::Decided { configs: configs.clone() }
            }
            Body::Prepare { at, key, ballot } => {
                Question::Prepare { at: *at, key: key.clone(), ballot: *ballot }
            }
            Body::Accept { at, key, ballot, .. } => {
                Question::Accept { at: *at, key: key.clone(), ballot: *ballot }
            }
            Body::Read { at, key, .. } => Question::Read { at: *at, key: key.clone() },
            Body::Scan { at, .. } => Question::Scan { at: *at },
            Body::SlotPrepare { at, ballot } | Body::SlotAccept { at, ballot, .. } => {
                Question::Slot { slots: at.clone(), ballot: *ballot }
            }
            Body::ConfigIs { config: Some(config), .. } => {
                return self.ledger.on_config(Range::of(config));
            }
            Body::Refused(Refusal::Newer(config)) => {
                return self.ledger.on_config(Range::of(config));
            }
            Body::Promised { .. }
            | Body::Accepted
            | Body::Held { .. }
            | Body::Scanned { .. }
            | Body::SlotPromised { .. }
            | Body::SlotAccepted
            | Body::Adopted => return self.on_answer(from, to, message, disk),
            _ => return,
        };
        let before = self.questions.insert((from.node, message.call), question.clone());
        assert!(
            before.is_none_or(|before| before == question),
            "{from:?} asks {question:?} under a name that it used before"
        );
    }

    /// What a node asked under this name, if it was about data.
    pub(crate) fn question(&self, node: &NodeId, call: CallId) -> Option<&Question> {
        self.questions.get(&(*node, call))
    }

    fn on_answer(&mut self, from: &Peer, to: &Peer, message: &Message, disk: &Disk) {
        let question = self.questions.get(&(to.node, message.call)).cloned();
        let told = |key: &Key, accepted: Ballot| {
            assert!(
                disk.marks(key).1 >= accepted,
                "{from:?} tells that {key:?} was accepted at {accepted:?} before it was on disk"
            );
        };
        match (question, &message.body) {
            (Some(Question::Prepare { at, key, ballot }), Body::Promised { accepted, .. }) => {
                self.assert_fence(from, at, key.hash());
                let config = self.ledger.config(key.hash(), at.epoch);
                let is_member = config.is_some_and(|c| c.nodes().contains(&from.node));
                assert!(
                    !is_member || disk.marks(&key).0 >= ballot,
                    "{from:?} promised {ballot:?} for {key:?} before it was on disk"
                );
                told(&key, *accepted);
            }
            (Some(Question::Accept { at, key, ballot }), Body::Accepted) => {
                self.assert_fence(from, at, key.hash());
                told(&key, ballot);
            }
            (Some(Question::Read { at, key }), Body::Held { accepted, .. }) => {
                self.assert_fence(from, at, key.hash());
                told(&key, *accepted);
            }
            (Some(Question::Scan { at }), Body::Scanned { entries, .. }) => {
                self.assert_fence(from, at, at.hi);
                entries.iter().for_each(|entry| told(&entry.key, entry.accepted));
            }
            (
                Some(Question::Slot { slots, ballot }),
                Body::SlotPromised { .. } | Body::SlotAccepted,
            ) => {
                // Of the two slots of a merge one may belong to an epoch that the node has left.
                let shown = self.shown.entry(from.node).or_default();
                let mut held = slots.clone();
                held.retain(|slot| slots.len() == 1 || shown.epoch(slot.hi) <= slot.epoch);
                assert!(!held.is_empty(), "{from:?} votes about {slots:?}, and has left both");
                held.into_iter().for_each(|slot| self.assert_fence(from, slot, slot.hi));
                for slot in slots {
                    assert!(
                        self.ledger.has_voted(from.node, slot, ballot),
                        "{from:?} votes for {ballot:?} in {slot:?} before it was on disk"
                    );
                }
            }
            (Some(Question::Decided { configs }), Body::Adopted) => {
                // What does not concern it a node confirms and does not keep.
                let durable = self.ledger.durable(&from.node).clone();
                let shown = self.shown.entry(from.node).or_default();
                for Config { lo, hi, epoch, .. } in configs {
                    if durable.epoch(hi) >= epoch {
                        shown.add(lo, hi, epoch);
                    }
                }
            }
            (question, body) => {
                panic!("{from:?} gives {to:?} an answer {body:?} to {question:?}");
            }
        }
    }

    /// A node answers in the epoch that is on its disk, and for nothing older than what it has shown.
    fn assert_fence(&mut self, node: &Peer, at: RangeTag, point: Id) {
        let shown = self.shown.entry(node.node).or_default();
        let newest = shown.epoch(point);
        assert!(
            newest <= at.epoch,
            "{node:?} has shown epoch {newest} and answers for {point:?} at {at:?}"
        );
        let durable = self.ledger.durable(&node.node).epoch(point);
        assert!(
            durable >= at.epoch,
            "{node:?} answers for {point:?} at {at:?}, and epoch {durable} is on its disk"
        );
        if newest < at.epoch
            && let Some(config) = self.ledger.config(point, at.epoch)
        {
            shown.add(config.lo, config.hi, config.epoch);
        }
    }

    /// These writes of a node are on its disk now.
    pub(crate) fn on_durable(&mut self, node: &Peer, writes: &[sky_chord::Write]) {
        writes.iter().for_each(|write| self.ledger.on_durable(node.node, write));
    }

    /// A node reports what it sees.
    pub(crate) fn on_view(&mut self, view: &View) {
        let node = view.me.node;
        let reported = self.reported.entry(node).or_default();
        for range in &view.ranges {
            let (lo, hi, epoch) = (range.lo, range.hi, range.epoch);
            let members = range.members.clone();
            // A view does not show it any more after the sweep.
            let prev = range.prev.iter().map(|peer| peer.node).collect::<BTreeSet<_>>();
            let prev = Some(prev).filter(|prev| !prev.is_empty());
            self.ledger.on_config(Range { lo, hi, epoch, members, prev, is_told: true });
            reported.add(lo, hi, epoch);
        }
        let before = [Some(&*reported), self.shown.get(&node), Some(self.ledger.durable(&node))];
        for (lo, hi, epoch) in before.into_iter().flatten().flat_map(|spans| &spans.0) {
            let now = view.ranges.iter().find(|range| range.hi == *hi).map(|range| range.epoch);
            assert!(
                now.is_none_or(|now| now >= *epoch),
                "{:?} went from epoch {epoch} of ({lo:?}, {hi:?}] to {now:?}",
                view.me,
            );
        }
    }

    /// A process died: what it had not yet put on disk was never true.
    pub(crate) fn on_crash(&mut self, node: &NodeId) {
        self.reported.remove(node);
    }

    /// A process starts: what its disk has ever held is a floor under all it will say.
    pub(crate) fn on_start(&mut self, node: &NodeId) {
        let durable = self.ledger.durable(node).clone();
        let shown = self.shown.entry(*node).or_default();
        durable.0.into_iter().for_each(|(lo, hi, epoch)| shown.add(lo, hi, epoch));
    }

    /// A client is told that its change is stored.
    pub(crate) fn on_stored(&self, key: &Key, version: Ballot, disks: &[(NodeId, &Disk)]) {
        let holds = |peer: &NodeId| {
            let mut here = disks.iter().filter(|(node, _)| node == peer);
            here.any(|(_, disk)| disk.has_held(key, version))
        };
        let mut configs = self.ledger.configs_from(key.hash(), version.epoch);
        assert!(
            configs.any(|config| config.is_quorum(holds)),
            "{key:?} {version:?} is on no majority of disks"
        );
    }

    /// Whether the configuration of a key in an epoch was seen.
    pub(crate) fn knows(&self, key: &Key, epoch: u64) -> bool {
        self.ledger.config(key.hash(), epoch).is_some()
    }

    /// For each point the configuration of the highest epoch decided.
    pub(crate) fn latest(&self) -> Vec<Range> {
        self.ledger.latest(|_| true)
    }

    /// For each point the configuration of the highest epoch that somebody told of.
    pub(crate) fn in_force(&self) -> Vec<Range> {
        self.ledger.latest(|range| range.is_told)
    }
}
