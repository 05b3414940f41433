//! The registers of the keys: what nodes answer and what proposers do, in every epoch.

use std::fmt;

use crate::change::Decision;
use crate::scenario::{Config, Kind, Operation, Scenario};
use crate::state::{
    Accepted, KeyRecord, NODES, Node, Nodes, OPERATIONS, Phase, Progress, Register, State, name,
    places_in,
};
use crate::system;

/// A step of a proposer, or of a node that it asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// `node` learns a configuration and makes it durable: from now on it serves no older epoch.
    Adopt { node: usize, config: u8 },
    /// The client calls; the proposer begins in this configuration. Round 0: it only reads so far.
    Start { op: usize, config: u8, asks_prev: bool, round: u8, next_round: u8 },
    /// A read or a scan goes on as a change that writes the value back.
    WriteBack { op: usize, round: u8 },
    /// `node` gets the read, scan or prepare, and its answer comes back.
    Answer { op: usize, node: usize },
    /// `node` gets the accept request.
    Accept { op: usize, node: usize },
    /// `to` gets what `from` has, as a member of the same configuration.
    Copy { from: usize, to: usize },
    /// `from` sends what it has to the members of its configuration.
    SendCopy { from: usize },
    /// `to` gets the copy that was sent.
    LateCopy { to: usize },
    /// `node`, no member any more, deletes its keys.
    Release { node: usize },
    /// `node` is asked in this configuration, of which it is no member, to hold nothing of the range.
    Clear { node: usize, config: u8 },
}

impl Scenario {
    /// Adds the steps of the register that can happen now.
    pub(crate) fn register_steps(&self, state: &State, steps: &mut Vec<system::Step>) {
        let mut can = |step| steps.push(system::Step::Register(step));
        for node in (0..NODES).filter(|node| state.is_up(*node)) {
            self.node_steps(state, node, &mut can);
        }
        for (op, progress) in state.operations.iter().enumerate().take(self.operations.len()) {
            let up = (0..NODES).filter(|node| state.is_up(*node));
            let config = self.config(progress.config);
            match progress.phase {
                Phase::Idle => self.starts(state, op, &mut can),
                Phase::Scan | Phase::Read | Phase::Prepare => {
                    let scans = progress.phase == Phase::Scan;
                    let asked = if scans { config.prev } else { config.everyone() };
                    up.filter(|node| asked.contains(*node) && !progress.answered.contains(*node))
                        .for_each(|node| can(Step::Answer { op, node }));
                    if progress.round == 0 && self.has_quorum(state, progress) {
                        self.free_rounds(state, op, config.epoch)
                            .for_each(|round| can(Step::WriteBack { op, round }));
                    }
                }
                Phase::Accept | Phase::Accepted => up
                    .filter(|node| config.members.contains(*node))
                    .for_each(|node| can(Step::Accept { op, node })),
                Phase::Choose | Phase::Over => {}
            }
        }
    }

    /// Does a step of the register; false if it changes nothing.
    pub(crate) fn register_step(&self, state: &mut State, step: Step) -> bool {
        match step {
            Step::Adopt { node, config } => {
                self.adopt(&mut state.nodes[node], config);
                true
            }
            Step::Start { op, config, asks_prev, round, next_round } => {
                let begun =
                    Progress { config, asks_prev, round, next_round, ..state.operations[op] };
                self.start(state, op, begun);
                true
            }
            Step::WriteBack { op, round } => {
                let progress = &mut state.operations[op];
                progress.phase = Phase::Prepare;
                progress.round = round;
                progress.answered = Nodes::NONE;
                progress.best = Accepted::default();
                progress.agreeing = Nodes::NONE;
                true
            }
            Step::Answer { op, node } => self.answer(state, op, node),
            Step::Accept { op, node } => self.accept(state, op, node),
            Step::Copy { from, to } => self.copy(state, from, to),
            Step::SendCopy { from } => {
                state.late_copy = self.copy_of(state, from);
                true
            }
            Step::LateCopy { to } => self.late_copy(state, to),
            Step::Release { node } => {
                self.release(&mut state.nodes[node]);
                true
            }
            Step::Clear { node, config } => {
                self.clear(&mut state.nodes[node], config);
                true
            }
        }
    }

    /// What a node can do without being asked by an operation.
    fn node_steps(&self, state: &State, node: usize, can: &mut impl FnMut(Step)) {
        for (place, config) in self.places() {
            let is_newer = |point| config.epoch > self.epoch_of(&state.nodes[node], point);
            let mut points = self.fenced_points(place);
            let concerned = points.any(is_newer) && config.everyone().contains(node);
            if concerned && state.is_told(place) {
                can(Step::Adopt { node, config: place });
            }
            if self.can_clear(state, node, place) {
                can(Step::Clear { node, config: place });
            }
        }
        if self.can_release(state, node) {
            can(Step::Release { node });
        }
        if self.may_copy {
            (0..NODES)
                .filter(|from| *from != node && state.is_up(*from))
                .for_each(|from| can(Step::Copy { from, to: node }));
        }
        if self.may_copy_late && state.late_copy.is_none() {
            if self.copy_of(state, node).is_some() {
                can(Step::SendCopy { from: node });
            }
        } else if self.may_copy_late {
            can(Step::LateCopy { to: node });
        }
    }

    /// Adopts a configuration at all points where the node does not know a later one.
    pub(crate) fn adopt(&self, node: &mut Node, place: u8) {
        let config = self.config(place);
        for point in self.fenced_points(place) {
            if self.epoch_of(node, point) < config.epoch {
                node.config[point] = Some(place);
                node.released = false;
                if !self.rules.promises_outlive_epoch {
                    node.keys[point].promised = 0;
                }
            }
        }
    }

    /// The points at which adopting a configuration is the fence: all that its range covers.
    fn fenced_points(&self, place: u8) -> impl Iterator<Item = usize> {
        let config = self.config(place);
        let all = self.rules.merge_fences_both;
        places_in(config.points).filter(move |point| all || *point == config.last_point())
    }

    /// The ways in which an operation can begin: any epoch it was told of, any free round.
    fn starts(&self, state: &State, op: usize, can: &mut impl FnMut(Step)) {
        let operation = &self.operations[op];
        if operation.after.is_some_and(|earlier| state.operations[earlier].returned.is_none()) {
            return;
        }
        let reserves = self.operations.iter().any(|other| other.follows == Some(op));
        for (config, Config { epoch, prev, points, .. }) in self.places() {
            let wanted = operation.epoch.is_none_or(|only| only == epoch);
            let covered = points >> operation.key & 1 == 1;
            if !wanted || !covered || !state.is_told(config) {
                continue;
            }
            let mut begin = |round, next_round| {
                let mut with = |asks_prev| {
                    can(Step::Start { op, config, asks_prev, round, next_round });
                };
                if !prev.is_empty() {
                    with(true);
                }
                // Not everybody hears of the end of the sweep, so this comes on top.
                if self.is_swept(state, config) {
                    with(false);
                }
            };
            let leader = operation.follows.map(|leader| &state.operations[leader]);
            match (operation.kind, leader) {
                (_, Some(leader)) => {
                    let alive = leader.config == config || !self.rules.sticky_dies_with_epoch;
                    // Who ended without phase 2 has nothing reserved.
                    if leader.phase == Phase::Accepted && alive {
                        begin(leader.next_round, 0);
                    }
                }
                (Kind::Sweep, _) if prev.is_empty() => {}
                (Kind::Retry(first), _) if !self.can_be_retried(&state.operations[first]) => {}
                // A new attempt has a new ballot, above all others.
                _ if state.operations[op].is_sole => begin(self.operations.len() as u8 + 1, 0),
                (Kind::Sweep, _) => begin(0, 0),
                (Kind::Get, _) if !reserves => begin(0, 0),
                _ => {
                    for round in self.free_rounds(state, op, epoch) {
                        let later = |next: &u8| *next > round;
                        if reserves {
                            self.free_rounds(state, op, epoch)
                                .filter(later)
                                .for_each(|next_round| begin(round, next_round));
                        } else {
                            begin(round, 0);
                        }
                    }
                }
            }
        }
    }

    /// The rounds that `op` may take in `epoch`. As many as there are operations are enough for every
    /// relative order.
    fn free_rounds(&self, state: &State, op: usize, epoch: u8) -> impl Iterator<Item = u8> {
        let Operation { round: only, key, .. } = self.operations[op];
        let all = state.operations.iter().zip(&self.operations);
        let taken = all.fold(0u8, |taken, (other, operation)| {
            let same_epoch =
                !self.rules.ballot_has_epoch || self.config(other.config).epoch == epoch;
            if operation.key == key && same_epoch {
                taken | 1 << other.round | 1 << other.next_round
            } else {
                taken
            }
        });
        let unique = self.rules.ballot_is_unique;
        (1..=self.operations.len() as u8)
            .filter(move |round| only.is_none_or(|only| only == *round))
            .filter(move |round| !unique || taken >> round & 1 == 0)
    }

    fn start(&self, state: &mut State, op: usize, mut progress: Progress) {
        let operation = &self.operations[op];
        if !progress.is_sole {
            progress.before = state.returned();
        }
        progress.phase = match operation.kind {
            _ if progress.round > 0 => Phase::Prepare,
            Kind::Sweep => Phase::Scan,
            _ => Phase::Read,
        };
        state.operations[op] = progress;
        if let Some(leader) = operation.follows {
            let current = state.operations[leader].register;
            self.propose(state, op, current, false);
        }
    }

    /// Whether a node lets a message of `epoch` pass the fence. It refuses a newer epoch as long as it
    /// has not adopted it, which is a step of its own.
    fn passes_fence(&self, state: &State, place: usize, key: usize, config: u8) -> bool {
        let node = &state.nodes[place];
        let config = self.config(config);
        let adopts = config.members.contains(place) || self.rules.prev_adopts;
        // A message names its range by the last point.
        let point = if self.rules.merge_fences_both { key } else { config.last_point() };
        let own = self.epoch_of(node, point);
        own > 0
            && !(own > config.epoch && self.rules.older_is_refused)
            && !(own < config.epoch && self.rules.newer_is_adopted && adopts)
            && !(node.released && self.rules.released_refuses)
    }

    /// Read, scan and prepare, node side and the counting of the answer.
    fn answer(&self, state: &mut State, op: usize, place: usize) -> bool {
        let mut progress = state.operations[op];
        let config = self.config(progress.config);
        let key = self.operations[op].key;
        let is_fenced = progress.phase != Phase::Scan || self.rules.scan_is_fenced;
        if is_fenced && !self.passes_fence(state, place, key, progress.config) {
            return false;
        }
        let record = &mut state.nodes[place].keys[key];
        // Who only was a member promises nothing: it has left the epochs that it could accept in.
        let promises = config.members.contains(place) || self.rules.prev_promises;
        if progress.phase == Phase::Prepare && promises {
            let ballot = self.ballot(config.epoch, progress.round);
            let own = record.promised == ballot && !self.rules.ballot_is_unique;
            if record.promised >= ballot && !own {
                return self.tick_off(state, op);
            }
            record.promised = ballot;
        }
        let accepted = record.accepted;
        progress.answered |= Nodes::one(place);
        if accepted.ballot > progress.best.ballot {
            progress.best = accepted;
            progress.agreeing = Nodes::NONE;
        }
        if accepted.ballot == progress.best.ballot {
            progress.agreeing |= Nodes::one(place);
        }
        state.operations[op] = progress;
        if self.has_quorum(state, &progress) {
            self.phase_one_is_over(state, op);
        }
        true
    }

    /// Whether enough nodes answered for phase 1, or for the scan of the sweep.
    fn has_quorum(&self, state: &State, progress: &Progress) -> bool {
        let config = self.config(progress.config);
        let by_prev = progress.answered.is_majority_of(config.prev);
        let by_members = progress.answered.is_majority_of(config.members);
        if progress.phase == Phase::Scan {
            return by_prev || !self.rules.scan_asks_majority;
        }
        let relaxed = !self.rules.quorum_is_fixed && self.is_swept(state, progress.config);
        if !progress.asks_prev || relaxed {
            return by_members;
        }
        (by_members || !self.rules.members_are_asked) && (by_prev || !self.rules.prev_is_asked)
    }

    fn phase_one_is_over(&self, state: &mut State, op: usize) {
        let progress = &state.operations[op];
        let Accepted { ballot, register } = progress.best;
        // Chosen, if no answer says otherwise.
        let members = self.config(progress.config).members;
        let is_settled = progress.agreeing.is_majority_of(members);
        match progress.phase {
            // A key that a sealed majority has never seen needs no write.
            Phase::Scan if ballot == 0 || !self.rules.sweep_brings_keys => {
                self.finish(state, op, Phase::Over, Some(0));
            }
            Phase::Read if is_settled || !self.rules.read_writes_back => {
                self.finish(state, op, Phase::Over, Some(register.value));
            }
            Phase::Prepare => self.propose(state, op, register, is_settled),
            _ => {}
        }
    }

    /// Phase 2 begins with what the operation makes of the current state. An operation that changes
    /// nothing ends without it if that state is known to be chosen, except a sweep's. One of which nobody
    /// can tell whether it was carried out ends without an answer, or waits for a node that is alone with it.
    fn propose(&self, state: &mut State, op: usize, current: Register, is_settled: bool) {
        let kind = self.operations[op].kind;
        let is_sole = state.operations[op].is_sole;
        let Some(decision) = self.carry_out(op, is_sole, current) else {
            if self.can_be_sole(state, op) {
                let before = state.operations[op].before;
                state.operations[op] = Progress { is_sole: true, before, ..Progress::default() };
            } else {
                self.finish(state, op, Phase::Over, None);
            }
            return;
        };
        let Decision { register, result, changes } = decision;
        let is_chosen = is_settled && kind != Kind::Sweep;
        let exists = matches!(kind, Kind::Create(_)) && !self.rules.exists_writes_back;
        if !changes && (is_chosen || exists) {
            return self.finish(state, op, Phase::Over, Some(result));
        }
        let progress = &mut state.operations[op];
        progress.register = register;
        progress.result = result;
        progress.phase = Phase::Accept;
        progress.answered = Nodes::NONE;
        progress.agreeing = Nodes::NONE;
        progress.best = Accepted::default();
    }

    /// An accept request, node side and the counting of the answer.
    fn accept(&self, state: &mut State, op: usize, place: usize) -> bool {
        let before = *state;
        let is_fenced = {
            let progress = &state.operations[op];
            !self.passes_fence(state, place, self.operations[op].key, progress.config)
        };
        let progress = &mut state.operations[op];
        let config = self.config(progress.config);
        let key = self.operations[op].key;
        let ballot = self.ballot(config.epoch, progress.round);
        if is_fenced {
            return false;
        }
        let record = &mut state.nodes[place].keys[key];
        if record.promised > ballot {
            return self.tick_off(state, op);
        }
        record.accepted = Accepted { ballot, register: progress.register };
        record.promised = match progress.next_round {
            0 => ballot,
            next => self.ballot(config.epoch, next),
        };
        if progress.phase == Phase::Accept {
            progress.answered |= Nodes::one(place);
            if progress.answered.is_majority_of(config.members) {
                let result = progress.result;
                self.finish(state, op, Phase::Accepted, Some(result));
            }
        }
        *state != before
    }

    /// The operation is over, in phase 2 or before it: its client gets the answer, unless another attempt has
    /// given it. A refusal counts from the attempt made last.
    fn finish(&self, state: &mut State, op: usize, phase: Phase, result: Option<u8>) {
        let is_overtaken =
            self.retry_of(op).is_some_and(|retry| state.operations[retry].phase != Phase::Idle);
        let progress = &mut state.operations[op];
        progress.phase = phase;
        progress.result = 0;
        progress.answered = Nodes::NONE;
        progress.best = Accepted::default();
        progress.agreeing = Nodes::NONE;
        let Some(result) = result else { return };
        if result > 0 || !is_overtaken {
            progress.returned.get_or_insert(result);
        }
        match self.operations[op].kind {
            Kind::Sweep => state.swept[self.operations[op].key] |= 1 << progress.config,
            Kind::Retry(first) => {
                state.operations[first].returned.get_or_insert(result);
            }
            _ => {}
        }
    }

    /// Ends a sweep's operation that a node has refused, where that is as good as done.
    fn tick_off(&self, state: &mut State, op: usize) -> bool {
        let progress = state.operations[op];
        let is_open = matches!(progress.phase, Phase::Prepare | Phase::Accept);
        let ends = self.operations[op].kind == Kind::Sweep && !self.rules.sweep_tries_again;
        if is_open && ends {
            self.finish(state, op, Phase::Over, Some(0));
        }
        is_open && ends
    }

    /// Whether the client of an operation still waits, and asks another node as well.
    fn can_be_retried(&self, first: &Progress) -> bool {
        let is_kept_away = first.is_sole && self.rules.sole_is_alone;
        first.phase != Phase::Idle && first.returned.is_none() && !is_kept_away
    }

    /// Whether a request that is too old to be remembered can be carried out all the same.
    fn can_be_sole(&self, state: &State, op: usize) -> bool {
        let is_retried =
            |retry: usize| state.operations[retry].phase != Phase::Idle && self.rules.sole_is_alone;
        self.retry_of(op).is_some_and(|retry| !is_retried(retry))
    }

    /// Releases are for scenarios with one range: the one at point 0.
    fn can_release(&self, state: &State, place: usize) -> bool {
        let node = &state.nodes[place];
        let left = node.config[0].is_some_and(|config| {
            !self.config(config).members.contains(place) && self.is_swept(state, config)
        });
        self.may_release && left && !node.released
    }

    fn release(&self, node: &mut Node) {
        *node = if self.rules.leaver_remembers {
            Node { released: true, keys: Default::default(), ..*node }
        } else {
            Node { config: [Some(0), None, None], ..Node::default() }
        };
    }

    /// Whether this node can be asked to become clear: some change makes it a member, and it is none.
    fn can_clear(&self, state: &State, node: usize, place: u8) -> bool {
        let is_newcomer = self.newcomers(place).contains(node);
        let waits = self.rules.slot_waits_for_sweep;
        let is_over = state.is_told(place) && (!waits || self.is_swept(state, place));
        let config = self.config(place);
        let points = || places_in(config.points);
        let is_behind = |point| self.epoch_of(&state.nodes[node], point) <= config.epoch;
        let has_heard = points().any(|point| state.nodes[node].config[point].is_some());
        self.rules.newcomer_is_clear
            && is_newcomer
            && is_over
            && has_heard
            && points().all(is_behind)
            && !self.is_clear(state, node, place)
    }

    /// Whether a node is no member in this configuration, says so, and holds nothing of its range. One that
    /// never heard of the range is.
    pub(crate) fn is_clear(&self, state: &State, node: usize, place: u8) -> bool {
        let Node { config, released, keys, .. } = state.nodes[node];
        places_in(self.config(place).points).all(|point| {
            let has_left = config[point] == Some(place) && released;
            keys[point] == KeyRecord::default() && (config[point].is_none() || has_left)
        })
    }

    fn clear(&self, node: &mut Node, place: u8) {
        self.adopt(node, place);
        node.released = true;
        for point in places_in(self.config(place).points) {
            node.keys[point] = KeyRecord::default();
        }
    }

    /// Who is no member of a configuration and becomes one by a change that ends it.
    pub(crate) fn newcomers(&self, place: u8) -> Nodes {
        let all = self.changes.iter().filter(|change| change.ends >> place & 1 == 1);
        let made = all.flat_map(|change| places_in(change.makes));
        let members = made.fold(Nodes::NONE, |set, place| set | self.config(place as u8).members);
        let config = self.config(place);
        (0..NODES)
            .filter(|node| members.contains(*node) && !config.members.contains(*node))
            .fold(Nodes::NONE, |set, node| set | Nodes::one(node))
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Adopt { node, config } => write!(f, "{} adopts config {config}", name(node)),
            Self::Start { op, config, round: 0, .. } => {
                write!(f, "operation {op} starts to read in config {config}")
            }
            Self::Start { op, config, round, next_round: 0, .. } => {
                write!(f, "operation {op} starts in config {config}, round {round}")
            }
            Self::Start { op, config, round, next_round, .. } => {
                write!(f, "operation {op} starts in config {config}, round {round}")?;
                write!(f, ", and reserves round {next_round}")
            }
            Self::WriteBack { op, round } => {
                write!(f, "operation {op} goes on to write back, round {round}")
            }
            Self::Answer { op, node } => write!(f, "{} answers operation {op}", name(node)),
            Self::Accept { op, node } => write!(f, "{} accepts operation {op}", name(node)),
            Self::Copy { from, to } => write!(f, "{} copies from {}", name(to), name(from)),
            Self::SendCopy { from } => write!(f, "{} sends a copy", name(from)),
            Self::LateCopy { to } => write!(f, "{} gets the copy that was sent", name(to)),
            Self::Release { node } => write!(f, "{} deletes its keys", name(node)),
            Self::Clear { node, config } => {
                write!(f, "{} makes sure in config {config} that it holds nothing", name(node))
            }
        }
    }
}

/// The operations fit the bit sets that hold them.
const _: () = assert!(OPERATIONS <= 8);
