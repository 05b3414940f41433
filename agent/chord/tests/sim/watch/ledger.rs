//! What is decided, as it can be told from the disks of all nodes and from what they say: configurations,
//! slots, and the states of keys.

use std::collections::{BTreeMap, BTreeSet};

use sky_chord::{
    Ballot, Config, Id, Key, NodeId, Proposal, RangeTag, Record, Register, Slot, SlotBallot, Write,
};

use super::{Range, Spans};

/// All that was ever decided.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// All configurations said to be decided, by epoch.
    decided: BTreeMap<u64, Vec<Range>>,
    /// What each node's disk ever held of epochs.
    durable: BTreeMap<NodeId, Spans>,
    none: Spans,
    /// The highest ballot each node's disk ever promised in a slot.
    votes: BTreeMap<(NodeId, RangeTag), SlotBallot>,
    /// What was accepted in a slot under a ballot, and by whom.
    slots: BTreeMap<(RangeTag, SlotBallot), Accepted<Proposal>>,
    /// What was accepted for a key under a ballot, and by whom.
    states: BTreeMap<Key, BTreeMap<Ballot, Accepted<Register>>>,
}

#[derive(Debug)]
struct Accepted<T> {
    what: T,
    by: BTreeSet<NodeId>,
    is_chosen: bool,
}

impl<T> Accepted<T> {
    const fn new(what: T) -> Self {
        Self { what, by: BTreeSet::new(), is_chosen: false }
    }
}

impl Ledger {
    /// A write of a node is on its disk.
    pub(super) fn on_durable(&mut self, node: NodeId, write: &Write) {
        match write {
            Write::Record(key, record) => self.on_record(node, key, record),
            Write::Meta { name, bytes: Some(bytes) } if name.starts_with("slot/") => {
                let (tag, slot) = postcard::from_bytes(bytes).expect("a slot");
                self.on_slot(node, tag, slot);
            }
            Write::Meta { name, bytes: Some(bytes) } if name.starts_with("range/") => {
                // The configuration comes first in the record.
                let (config, _) = postcard::take_from_bytes::<Config>(bytes).expect("a range");
                let spans = self.durable.entry(node).or_default();
                spans.add(config.lo, config.hi, config.epoch);
                // The rest of a split range, whose members are not known, has none.
                if !config.members.is_empty() {
                    self.on_config(Range::of(&config));
                }
            }
            _ => {}
        }
    }

    /// A configuration is said to be decided.
    pub(super) fn on_config(&mut self, config: Range) {
        let others = self.decided.entry(config.epoch).or_default();
        let mut is_new = true;
        for other in others.iter_mut().filter(|other| other.overlaps(&config)) {
            let is_same = (other.lo, other.hi) == (config.lo, config.hi)
                && other.nodes() == config.nodes()
                && (other.prev.is_none() || config.prev.is_none() || other.prev == config.prev);
            assert!(is_same, "two configurations:\n{other:?}\n{config:?}");
            other.is_told |= config.is_told;
            is_new = other.prev.is_none() && config.prev.is_some();
            if is_new {
                other.prev.clone_from(&config.prev);
            }
        }
        if !is_new {
            return;
        }
        for before in self.overlapping(config.epoch - 1, &config) {
            assert_follows(before, &config);
        }
        for after in self.overlapping(config.epoch + 1, &config) {
            assert_follows(&config, after);
        }
        let others = self.decided.entry(config.epoch).or_default();
        if !others.iter().any(|other| other.hi == config.hi) {
            others.push(config);
        }
    }

    fn overlapping(&self, epoch: u64, config: &Range) -> impl Iterator<Item = &Range> {
        let others = self.decided.get(&epoch).into_iter().flatten();
        others.filter(|other| other.overlaps(config))
    }

    /// A node has voted in a slot.
    fn on_slot(&mut self, node: NodeId, tag: RangeTag, slot: Slot) {
        if let Some(promised) = slot.promised {
            let vote = self.votes.insert((node, tag), promised);
            assert!(vote.is_none_or(|vote| vote <= promised), "{node:?} votes again in {tag:?}");
        }
        let Some((ballot, proposal)) = slot.accepted else { return };
        let here =
            self.slots.entry((tag, ballot)).or_insert_with(|| Accepted::new(proposal.clone()));
        assert_eq!(here.what, proposal, "{ballot:?} stands for two proposals in {tag:?}");
        here.by.insert(node);
        let by = here.by.clone();
        let is_chosen =
            self.config(tag.hi, tag.epoch).is_some_and(|c| c.is_quorum(|n| by.contains(n)));
        if !is_chosen {
            return;
        }
        for ((other, _), accepted) in self.slots.range_mut((tag, ballot)..=(tag, ballot)) {
            debug_assert_eq!(*other, tag);
            accepted.is_chosen = true;
        }
        let of_slot = self.slots.iter().filter(|((other, _), _)| *other == tag);
        for (_, accepted) in of_slot.filter(|(_, accepted)| accepted.is_chosen) {
            assert_eq!(accepted.what, proposal, "the slot {tag:?} is decided twice");
        }
        for config in proposal.configs() {
            self.on_config(Range { is_told: false, ..Range::of(config) });
        }
    }

    /// Whether a node's disk holds a vote for this ballot or a later one.
    pub(super) fn has_voted(&self, node: NodeId, slot: RangeTag, ballot: SlotBallot) -> bool {
        self.votes.get(&(node, slot)).is_some_and(|vote| *vote >= ballot)
    }

    /// A node has a state of a key.
    fn on_record(&mut self, node: NodeId, key: &Key, record: &Record) {
        // Wherever the bytes of the value are.
        let (ballot, register) = (record.accepted, &record.register.clone().outlined(0));
        if ballot == Ballot::ZERO {
            return;
        }
        let config = self.decided.get(&ballot.epoch).into_iter().flatten();
        let config = config.into_iter().find(|config| config.covers(key.hash()));
        let states = self.states.entry(key.clone()).or_default();
        let here = states.entry(ballot).or_insert_with(|| Accepted::new(register.clone()));
        assert_eq!(here.what, *register, "{ballot:?} stands for two states of {key:?}");
        let is_new = here.by.insert(node);
        if !is_new
            || here.is_chosen
            || !config.is_some_and(|c| c.is_quorum(|n| here.by.contains(n)))
        {
            return;
        }
        here.is_chosen = true;
        let chosen = |(_, state): &(&Ballot, &Accepted<Register>)| state.is_chosen;
        let before = states.range(..ballot).rev().find(chosen);
        let after = states.range(ballot..).skip(1).find(chosen);
        for (earlier, later) in [
            before.zip(Some((&ballot, &states[&ballot]))),
            after.map(|after| ((&ballot, &states[&ballot]), after)),
        ]
        .into_iter()
        .flatten()
        {
            assert!(
                knows(&later.1.what, &earlier.1.what),
                "of {key:?} {:?} was chosen with {:?}, and later {:?} with {:?}",
                earlier.0,
                earlier.1.what,
                later.0,
                later.1.what,
            );
        }
    }

    /// What a node's disk ever held of epochs.
    pub(super) fn durable(&self, node: &NodeId) -> &Spans {
        self.durable.get(node).unwrap_or(&self.none)
    }

    /// The configuration of a point in an epoch, if it was seen.
    pub(super) fn config(&self, point: Id, epoch: u64) -> Option<&Range> {
        self.decided.get(&epoch)?.iter().find(|config| config.covers(point))
    }

    /// The configurations of a point from an epoch on.
    pub(super) fn configs_from(&self, point: Id, epoch: u64) -> impl Iterator<Item = &Range> {
        let configs = self.decided.range(epoch..).flat_map(|(_, configs)| configs);
        configs.filter(move |config| config.covers(point))
    }

    /// For each point the configuration of the highest epoch, among those that count.
    pub(super) fn latest(&self, counts: impl Fn(&Range) -> bool) -> Vec<Range> {
        let mut latest: Vec<Range> = Vec::new();
        for config in self.decided.values().rev().flatten().filter(|config| counts(config)) {
            if !latest.iter().any(|newer| newer.overlaps(config)) {
                latest.push(config.clone());
            }
        }
        latest
    }
}

/// Whether a state comes from an earlier one: a later change, or the same one. A deleted key may have
/// been forgotten in between.
fn knows(later: &Register, earlier: &Register) -> bool {
    let is_forgotten = later.version == Ballot::ZERO && earlier.value.is_none();
    let is_same = later.version == earlier.version && later.value == earlier.value;
    is_forgotten || is_same || later.version > earlier.version
}

/// The configuration of the next epoch names the members before it, unless it has the same ones.
fn assert_follows(before: &Range, after: &Range) {
    let Some(prev) = &after.prev else { return };
    let named = if prev.is_empty() { after.nodes() } else { prev.clone() };
    assert_eq!(named, before.nodes(), "not the members before:\n{before:?}\n{after:?}");
}
