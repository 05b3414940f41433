//! Rounds for one key: the proposer's side of its register.
//!
//! A round works in one epoch and with one rule for its first phase, fixed before the first answer is
//! counted. It reads (no promise, one round trip) or prepares and accepts; a change that follows a change
//! of the same process in the same epoch uses the ballot promised with that one and skips the first phase.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::change::{Decision, decide, expire, found};
use super::round::{Job, Origin, Round, Stage, Task};
use super::{Known, Ranges, Wake, World};
use crate::call::{RangeCall, RoundId};
use crate::config::{Ballot, NodeId, Peer};
use crate::event::Records;
use crate::message::{Body, Refusal};
use crate::record::{Key, Register};
use crate::request::{Answer, Failure};
use crate::settings::Settings;
use crate::time::patience;

/// The rounds of this process.
#[derive(Default)]
pub(super) struct Registers {
    pub(super) rounds: BTreeMap<RoundId, Round>,
    /// The round at work on a key, and the jobs that wait for it to end.
    lanes: BTreeMap<Key, VecDeque<Job>>,
    last_round: u64,
    last_ballot: u64,
    sticky: BTreeMap<Key, Sticky>,
}

/// A ballot promised for the next change of a key, if nothing came between.
#[derive(Debug, Clone, Copy)]
struct Sticky {
    accepted: Ballot,
    next: Ballot,
}

/// Beyond this many, promised ballots are forgotten: the next change prepares again.
const STICKY_KEPT: usize = 100_000;
/// The bytes of values that rounds may hold before no further round is begun.
const BYTES_HELD: usize = 256 << 20;
const BACKOFF: Duration = Duration::from_millis(4);

impl Registers {
    /// Whether rounds hold so many bytes of values that no further read should begin.
    fn is_loaded(&self, settings: &Settings) -> bool {
        // Without large values their number is limit enough.
        settings.has_large_values()
            && self.rounds.values().map(Round::bytes_here).sum::<usize>() > BYTES_HELD
    }
}

impl Ranges {
    /// Does something with a key, after what is already waiting for it.
    pub(super) fn submit<R: Records>(&mut self, w: &mut World<'_, R>, key: &Key, job: Job) {
        if let Some(lane) = self.registers.lanes.get_mut(key) {
            lane.push_back(job);
            return;
        }
        self.registers.lanes.insert(key.clone(), VecDeque::new());
        self.begin(w, key.clone(), vec![job], 0, false);
    }

    /// Starts a round for these jobs: one change, or any number of reads.
    fn begin<R: Records>(
        &mut self,
        w: &mut World<'_, R>,
        key: Key,
        jobs: Vec<Job>,
        attempts: u32,
        proposed: bool,
    ) {
        let me = w.ctx.me.node;
        let Some(known) = self.current(key.hash()).filter(|k| k.config.has_member(&me)).cloned()
        else {
            let hint = self.best_known(key.hash()).map(|config| Box::new((*config).clone()));
            let failure = if proposed { Failure::MaybeApplied } else { Failure::NotMember(hint) };
            self.finish_jobs(w, jobs, &Err(failure));
            self.next_in_lane(w, &key);
            return;
        };
        let is_get = jobs.iter().all(|job| matches!(job.task, Task::Get)) && attempts == 0;
        if is_get && self.registers.is_loaded(&w.ctx.settings) {
            let reason = "too many large values are being read at the moment".into();
            self.finish_jobs(w, jobs, &Err(Failure::Unavailable(reason)));
            return self.next_in_lane(w, &key);
        }
        self.registers.last_round += 1;
        let id = RoundId(self.registers.last_round);
        let round = Round {
            key,
            jobs,
            ask_prev: known.must_ask_prev(),
            config: Arc::clone(&known.config),
            stage: if is_get { Stage::Read } else { Stage::Prepare },
            phase: 0,
            ballot: Ballot::ZERO,
            next: Ballot::ZERO,
            proposal: Register::ABSENT,
            outcome: None,
            answers: BTreeMap::new(),
            refused: BTreeMap::new(),
            asked: BTreeSet::new(),
            told: BTreeSet::new(),
            holders: BTreeSet::new(),
            fetching: None,
            attempts,
            proposed,
        };
        self.registers.rounds.insert(id, round);
        if is_get {
            self.ask_first(w, id);
        } else if !self.use_sticky(w, id, &known) {
            self.prepare_round(w, id);
        }
    }

    /// A fresh ballot, above every one seen.
    fn fresh_ballot<R: Records>(&mut self, w: &World<'_, R>, epoch: u64) -> Ballot {
        self.registers.last_ballot += 1;
        let round = self.registers.last_ballot;
        Ballot { epoch, round, node: w.ctx.me.node, boot: w.ctx.boot }
    }

    fn prepare_round<R: Records>(&mut self, w: &mut World<'_, R>, id: RoundId) {
        let Some(epoch) = self.registers.rounds.get(&id).map(|round| round.config.epoch) else {
            return;
        };
        let ballot = self.fresh_ballot(w, epoch);
        let Some(round) = self.registers.rounds.get_mut(&id) else { return };
        round.ballot = ballot;
        round.enter(Stage::Prepare);
        self.ask_rest(w, id);
    }

    /// Goes straight to the second phase if this process made the last change of the key in this epoch
    /// and nobody came between.
    fn use_sticky<R: Records>(&mut self, w: &mut World<'_, R>, id: RoundId, known: &Known) -> bool {
        let Some(round) = self.registers.rounds.get(&id) else { return false };
        if matches!(round.jobs.first(), Some(Job { task: Task::Identity, .. })) {
            return false;
        }
        let Some(sticky) = self.registers.sticky.remove(&round.key) else { return false };
        if sticky.next.epoch != known.config.epoch {
            return false;
        }
        let Ok(seen) = self.stored.get(w.records, &round.key) else { return false };
        if seen.record.accepted != sticky.accepted || seen.record.promised != sticky.next {
            return false;
        }
        let Some(round) = self.registers.rounds.get_mut(&id) else { return false };
        round.ballot = sticky.next;
        round.note_holders(&seen.record.register);
        self.propose(w, id, seen.record.register, false);
        true
    }

    /// A read asks this node and as few others as can agree with it; the rest if one is slow.
    fn ask_first<R: Records>(&mut self, w: &mut World<'_, R>, id: RoundId) {
        let Some(round) = self.registers.rounds.get(&id) else { return };
        if round.ask_prev {
            return self.ask_rest(w, id);
        }
        let mut fastest: Vec<_> = round
            .config
            .members
            .iter()
            .filter(|peer| !w.members.is_suspect(&peer.node))
            .map(|peer| (peer.node != w.ctx.me.node, w.members.rto(&peer.node), peer.clone()))
            .collect();
        fastest.sort();
        let majority = round.config.members.len() / 2 + 1;
        if fastest.len() < majority {
            return self.ask_rest(w, id);
        }
        fastest.truncate(majority);
        let fastest = fastest.into_iter().map(|(_, _, peer)| peer).collect();
        self.ask(w, id, fastest);
    }

    /// Asks everyone not yet asked: all who do not seem to be down, or really all if those are too few.
    fn ask_rest<R: Records>(&mut self, w: &mut World<'_, R>, id: RoundId) {
        let Some(round) = self.registers.rounds.get(&id) else { return };
        let everyone: Vec<_> = match round.stage {
            Stage::Read | Stage::Prepare if round.ask_prev => {
                round.config.everyone().cloned().collect()
            }
            _ => round.config.members.clone(),
        };
        let (up, down): (Vec<_>, Vec<_>) =
            everyone.into_iter().partition(|peer| !w.members.is_suspect(&peer.node));
        let is_up = |node: &NodeId| up.iter().any(|peer| peer.node == *node);
        let is_enough = round.config.is_read_quorum(round.ask_prev, is_up);
        let to =
            if is_enough && round.attempts == 0 { up.clone() } else { [up, down.clone()].concat() };
        let missed: Vec<_> = down
            .iter()
            .filter(|peer| round.stage == Stage::Accept && !to.iter().any(|t| t.node == peer.node))
            .map(|peer| peer.node)
            .collect();
        let tag = round.config.tag();
        for node in missed {
            self.report_lagging(w, tag, node);
        }
        let Some(round) = self.registers.rounds.get(&id) else { return };
        let to = to.into_iter().filter(|peer| !round.asked.contains(&peer.node)).collect();
        self.ask(w, id, to);
    }

    pub(super) fn ask<R: Records>(&mut self, w: &mut World<'_, R>, id: RoundId, to: Vec<Peer>) {
        for peer in to {
            let Some(round) = self.registers.rounds.get_mut(&id) else { return };
            round.asked.insert(peer.node);
            let (at, key, ballot) = (round.config.tag(), round.key.clone(), round.ballot);
            let question = match round.stage {
                Stage::Read => Body::Read { at, key, with_value: peer.node == w.ctx.me.node },
                Stage::Prepare => Body::Prepare { at, key, ballot },
                Stage::Fetch => Body::Read { at, key, with_value: true },
                Stage::Accept | Stage::Done => Body::Accept {
                    at,
                    key,
                    ballot,
                    register: round.proposal_for(&peer.node, w.ctx.settings.apart_above),
                    next: Some(round.next),
                },
                Stage::Waiting => return,
            };
            let call = RangeCall::Round(id, round.phase);
            let bytes = round.expected_bytes();
            w.ask_for(&peer, question, call, bytes);
        }
    }

    /// Asks somebody again who refused for want of something that it has, or gets, by now.
    fn ask_once_more<R: Records>(&mut self, w: &mut World<'_, R>, id: RoundId, node: NodeId) {
        let Some(round) = self.registers.rounds.get(&id) else { return };
        let peer = round.config.everyone().find(|peer| peer.node == node).cloned();
        self.ask(w, id, peer.into_iter().collect());
    }

    /// An answer of a member to a round, or none in time.
    pub(super) fn on_round_answer<R: Records>(
        &mut self,
        w: &mut World<'_, R>,
        id: RoundId,
        phase: u32,
        from: NodeId,
        answer: Option<Body>,
    ) {
        let Some(round) = self.registers.rounds.get_mut(&id).filter(|r| r.phase == phase) else {
            return;
        };
        match (round.stage, answer) {
            (Stage::Read, Some(Body::Held { accepted, register })) => {
                round.answers.insert(from, (accepted, register));
            }
            (Stage::Prepare, Some(Body::Promised { accepted, register })) => {
                round.answers.insert(from, (accepted, Some(register)));
            }
            (Stage::Fetch, Some(Body::Held { register: Some(register), .. })) => {
                return self.on_fetched(w, id, &register);
            }
            (Stage::Fetch, Some(_) | None) => return self.fetch_on(w, id),
            (Stage::Accept | Stage::Done, Some(Body::Accepted)) => {
                round.answers.insert(from, (Ballot::ZERO, None));
            }
            (stage, Some(Body::Refused(refusal))) => {
                self.on_round_refused(w, id, stage, from, refusal);
            }
            (stage, None) => self.on_round_silence(w, id, stage, from),
            // An answer to a stage that is over.
            (_, Some(_)) => return,
        }
        self.advance(w, id);
    }

    fn on_round_refused<R: Records>(
        &mut self,
        w: &mut World<'_, R>,
        id: RoundId,
        stage: Stage,
        from: NodeId,
        refusal: Refusal,
    ) {
        let Some(round) = self.registers.rounds.get_mut(&id) else { return };
        let tag = round.config.tag();
        match &refusal {
            Refusal::Newer(config) => {
                let config = (**config).clone();
                self.on_newer(w, config);
            }
            Refusal::Behind if from != w.ctx.me.node && round.told.insert(from) => {
                let configs = self.configs_over(&tag);
                self.tell_decided(w, from, configs);
                return self.ask_once_more(w, id, from);
            }
            Refusal::Lacks => {
                round.holders.remove(&from);
                if round.proposal.bytes_here() > 0 {
                    return self.ask_once_more(w, id, from);
                }
            }
            Refusal::Promised(ballot) => {
                let higher = ballot.round;
                self.registers.last_ballot = self.registers.last_ballot.max(higher);
            }
            _ => {}
        }
        let Some(round) = self.registers.rounds.get_mut(&id) else { return };
        if matches!(stage, Stage::Accept | Stage::Done) {
            self.registers.sticky.remove(&round.key);
            if stage == Stage::Done && is_missed(&refusal, &w.ctx.me.node) {
                self.report_lagging(w, tag, from);
            }
        }
        if let Some(round) = self.registers.rounds.get_mut(&id) {
            round.refused.insert(from, refusal);
        }
    }

    /// A member did not answer in time: it is asked again while the round needs it.
    fn on_round_silence<R: Records>(
        &mut self,
        w: &mut World<'_, R>,
        id: RoundId,
        stage: Stage,
        from: NodeId,
    ) {
        let Some(round) = self.registers.rounds.get_mut(&id) else { return };
        match stage {
            Stage::Waiting => {}
            Stage::Done => {
                round.refused.insert(from, Refusal::NotMember);
                let tag = round.config.tag();
                self.report_lagging(w, tag, from);
            }
            _ if round.is_late(w.ctx.now) => {
                let failure = round.failure();
                self.fail_round(w, id, failure);
            }
            _ if round.answers.contains_key(&from) => {}
            _ => {
                round.asked.remove(&from);
                self.ask_rest(w, id);
            }
        }
    }

    /// Sees whether the answers suffice for the next stage, or can never do.
    fn advance<R: Records>(&mut self, w: &mut World<'_, R>, id: RoundId) {
        let Some(round) = self.registers.rounds.get_mut(&id) else { return };
        match round.stage {
            Stage::Read if round.first_phase_done() => {
                let answer = match round.settled() {
                    Some((_, Some(register))) => found(&register),
                    Some((Ballot::ZERO, None)) => Some(Answer::Absent),
                    Some((_, None)) | None => None,
                };
                match answer {
                    Some(answer) => self.finish_reads(w, id, answer),
                    None => self.prepare_round(w, id),
                }
            }
            Stage::Prepare if round.first_phase_done() => {
                let settled = round.settled().is_some();
                let register = round.highest();
                round.note_holders(&register);
                self.propose(w, id, register, settled);
            }
            Stage::Accept if round.second_phase_done() => self.finish_round(w, id),
            Stage::Done if !round.is_waiting() => {
                self.registers.rounds.remove(&id);
            }
            Stage::Done | Stage::Fetch | Stage::Waiting => {}
            _ if round.is_hopeless() => self.start_over(w, id),
            _ if !round.is_waiting() => {
                let asked = round.asked.len();
                self.ask_rest(w, id);
                if self.registers.rounds.get(&id).is_some_and(|round| round.asked.len() == asked) {
                    self.start_over(w, id);
                }
            }
            _ => {}
        }
    }

    /// Decides what the key's next state is, and asks the members to accept it. `settled` says that the
    /// state is known to be chosen, so that an answer about it needs no second phase.
    pub(super) fn propose<R: Records>(
        &mut self,
        w: &mut World<'_, R>,
        id: RoundId,
        current: Register,
        settled: bool,
    ) {
        let Some(round) = self.registers.rounds.get_mut(&id) else { return };
        let task = round.jobs.first().map(|job| &job.task);
        if matches!(task, Some(Task::Get)) && current.apart().is_some() {
            return self.fetch(w, id, current, settled);
        }
        let (version, outline) = (current.version, current.apart().map(|_| current.clone()));
        let decision = match task {
            Some(Task::Change(errand)) => decide(current, round.ballot, errand),
            Some(Task::Expire(version)) => Some(expire(current, round.ballot, version)),
            _ => Some(Decision { outcome: found(&current), register: current, changes: false }),
        };
        let Some(decision) = decision else {
            let failure = if round.proposed { Failure::MaybeApplied } else { Failure::TooOld };
            return self.fail_round(w, id, failure);
        };
        let is_identity = matches!(round.jobs.first(), Some(Job { task: Task::Identity, .. }));
        // Its client has gone, and may have been served elsewhere so long ago that nobody remembers.
        let is_late = round.is_late(w.ctx.now);
        if decision.changes && is_late {
            let failure = round.failure();
            return self.fail_round(w, id, failure);
        }
        // A refusal that is only noted changes nothing for the client, whatever becomes of it.
        let is_refusal = decision.outcome.as_ref().is_some_and(Answer::is_refusal);
        let applies = decision.changes && !is_refusal;
        round.outcome = decision.outcome.map(Ok);
        if settled && !decision.changes && !is_identity {
            return self.finish_round(w, id);
        }
        if decision.register.version != version {
            round.holders.clear();
        } else if let Some(current) = outline {
            // It is decided again, alike, when the bytes are here.
            let is_asked = |p: &&Peer| round.attempts > 0 || !w.members.is_suspect(&p.node);
            let mut asked = round.config.members.iter().filter(is_asked);
            if asked.any(|peer| !round.holders.contains(&peer.node)) {
                return self.fetch(w, id, current, settled);
            }
        }
        let epoch = round.ballot.epoch;
        let next = self.fresh_ballot(w, epoch);
        let Some(round) = self.registers.rounds.get_mut(&id) else { return };
        round.proposed |= applies;
        round.proposal = decision.register;
        round.next = next;
        round.enter(Stage::Accept);
        self.ask_rest(w, id);
    }

    /// The second phase is done, or was not needed.
    fn finish_round<R: Records>(&mut self, w: &mut World<'_, R>, id: RoundId) {
        let Some(round) = self.registers.rounds.get_mut(&id) else { return };
        let jobs = std::mem::take(&mut round.jobs);
        let key = round.key.clone();
        let tag = round.config.tag();
        // Who refused, say for want of disk space, lacks this from now on.
        let refused = round.refused.iter().filter(|(_, why)| is_missed(why, &w.ctx.me.node));
        let missed: Vec<_> = match round.stage {
            Stage::Accept => refused.map(|(node, _)| *node).collect(),
            _ => Vec::new(),
        };
        let outcome = round.outcome.take().unwrap_or(Ok(Answer::Absent));
        if round.stage == Stage::Accept {
            let clean = round.refused.is_empty();
            let sticky = Sticky { accepted: round.ballot, next: round.next };
            round.stage = Stage::Done;
            let is_over = !round.is_waiting();
            let is_identity = matches!(jobs.first(), Some(Job { task: Task::Identity, .. }));
            if clean && !is_identity {
                if self.registers.sticky.len() >= STICKY_KEPT {
                    self.registers.sticky.clear();
                }
                self.registers.sticky.insert(key.clone(), sticky);
            }
            if is_over {
                self.registers.rounds.remove(&id);
            }
        } else {
            self.registers.rounds.remove(&id);
        }
        for node in missed {
            self.report_lagging(w, tag, node);
        }
        self.finish_jobs(w, jobs, &outcome);
        self.next_in_lane(w, &key);
    }

    fn finish_reads<R: Records>(&mut self, w: &mut World<'_, R>, id: RoundId, answer: Answer) {
        let Some(round) = self.registers.rounds.remove(&id) else { return };
        self.finish_jobs(w, round.jobs, &Ok(answer));
        self.next_in_lane(w, &round.key);
    }

    /// Starts over after a pause, or gives up if the time is over.
    pub(super) fn start_over<R: Records>(&mut self, w: &mut World<'_, R>, id: RoundId) {
        let Some(round) = self.registers.rounds.get_mut(&id) else { return };
        let is_full = round.is_full();
        let is_late = round.is_late(w.ctx.now);
        if is_full || is_late {
            let failure = round.failure();
            return self.fail_round(w, id, failure);
        }
        round.enter(Stage::Waiting);
        // Proposers that get in each other's way with a large value need more distance: what one of them sends
        // has to arrive before the next one begins.
        let size = round.size();
        let pause = (BACKOFF + patience(size) / 16) * (1 << round.attempts.min(5));
        let pause = pause.mul_f64(0.5 + w.ctx.rng.unit());
        let at = w.ctx.now + pause;
        self.wake_at(w.ctx, at, Wake::Round(id));
    }

    /// A round that waited starts over, in the epoch that counts now.
    pub(super) fn restart_round<R: Records>(&mut self, w: &mut World<'_, R>, id: RoundId) {
        let Some(round) = self.registers.rounds.remove(&id) else { return };
        self.begin(w, round.key, round.jobs, round.attempts + 1, round.proposed);
    }

    pub(super) fn fail_round<R: Records>(
        &mut self,
        w: &mut World<'_, R>,
        id: RoundId,
        failure: Failure,
    ) {
        let Some(round) = self.registers.rounds.remove(&id) else { return };
        self.finish_jobs(w, round.jobs, &Err(failure));
        self.next_in_lane(w, &round.key);
    }

    /// The next job for this key: a change alone, or all reads that wait in front.
    fn next_in_lane<R: Records>(&mut self, w: &mut World<'_, R>, key: &Key) {
        let Some(lane) = self.registers.lanes.get_mut(key) else { return };
        let mut jobs = Vec::new();
        while let Some(job) = lane.front() {
            let is_get = matches!(job.task, Task::Get);
            if !jobs.is_empty() && !is_get {
                break;
            }
            jobs.extend(lane.pop_front());
            if !is_get {
                break;
            }
        }
        if jobs.is_empty() {
            self.registers.lanes.remove(key);
        } else {
            self.begin(w, key.clone(), jobs, 0, false);
        }
    }

    fn finish_jobs<R: Records>(
        &mut self,
        w: &mut World<'_, R>,
        jobs: Vec<Job>,
        outcome: &Result<Answer, Failure>,
    ) {
        for job in jobs {
            match job.origin {
                Origin::Here(operation) => self.finish_operation(w, operation, outcome.clone()),
                Origin::There(peer, call) => {
                    w.ctx.answer(&peer, call, Body::Forwarded { outcome: outcome.clone() });
                }
                Origin::Pass(pass, key) => self.on_pass_key_done(w, pass, key, outcome.is_ok()),
                Origin::Listing(listing, key) => {
                    self.on_listed_key_read(w, listing, key, outcome.clone());
                }
                Origin::Expiry(id) => self.on_expired(w, id),
                Origin::Comparison(id, key) => {
                    self.on_compared_key_done(w, id, key, outcome.is_ok());
                }
            }
        }
    }
}

/// Whether a member that refuses to accept lacks the state from now on. One that promised another node
/// something is brought up to date by that node's round, or by the next comparison; but rounds of this node
/// for the key, also of an earlier start, are over.
fn is_missed(refusal: &Refusal, me: &NodeId) -> bool {
    !matches!(refusal, Refusal::Promised(ballot) if ballot.node != *me)
}
