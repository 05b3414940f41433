//! Wrongs on purpose: each restores one mistake that the protocol must not make, outside of the nodes, by
//! changing what they say, what they are asked, or what their disks keep. The simulator has to notice.

use std::collections::BTreeMap;

use sky_chord::{
    Ballot, Body, Condition, Consistency, Message, Operation, Refusal, Register, Request,
    RequestId, Told, View, WatchId,
};

use super::disk::Disk;
use super::machine::Machine;
use super::random::Random;
use super::watch::Question;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sabotage {
    /// Decided configurations do not name the members before.
    PrevIsLeftOut,
    /// A restart does not count the start: ballots are used again.
    BootIsNotRaised,
    /// A disk loses commits that it had synced.
    SyncedIsLost,
    /// A node comes back under its old identity with an empty disk.
    OldNameEmptyDisk,
    /// What a node does not answer is taken for "I hold nothing".
    RefusalIsNothing,
    /// A node answers in whatever epoch it is in.
    NoFence,
    /// The store says that something is durable before it is.
    EarlyPersisted,
    /// A read is answered from one copy.
    OneCopyRead,
    /// A change is carried out a second time under a new id.
    TwinRequest,
    /// An acceptance is told and nothing is stored.
    AcceptIsDropped,
    /// A commit is half there after a power cut.
    TornCommit,
    /// A node tells of a part of its keys only.
    ScanLeavesOut,
    /// A sweep is said to be done when it begins.
    SweptAtOnce,
    /// Votes for configurations are not stored.
    VotesAreForgotten,
    /// A node forgets deleted keys for itself.
    TombstonesVanish,
    /// A condition is not looked at.
    ConditionIsIgnored,
    /// Hints do not say which keys changed, and nobody looks again without need.
    HintsAreEmpty,
    /// A watch tells something after what it told next.
    ToldOutOfTurn,
    /// The time of a value is over when one clock says so.
    OneClockDecides,
    /// A member accepts the outline of a value that it does not hold.
    LackIsDenied,
}

impl Sabotage {
    pub(crate) const ALL: [Self; 20] = [
        Self::PrevIsLeftOut,
        Self::BootIsNotRaised,
        Self::SyncedIsLost,
        Self::OldNameEmptyDisk,
        Self::RefusalIsNothing,
        Self::NoFence,
        Self::EarlyPersisted,
        Self::OneCopyRead,
        Self::TwinRequest,
        Self::AcceptIsDropped,
        Self::TornCommit,
        Self::ScanLeavesOut,
        Self::SweptAtOnce,
        Self::VotesAreForgotten,
        Self::TombstonesVanish,
        Self::ConditionIsIgnored,
        Self::HintsAreEmpty,
        Self::ToldOutOfTurn,
        Self::OneClockDecides,
        Self::LackIsDenied,
    ];
}

/// Whoever does the wrong. Without a sabotage it touches nothing.
#[derive(Debug)]
pub(crate) struct Tamper {
    sabotage: Option<Sabotage>,
    random: Random,
    /// What watches told and is held back.
    held: BTreeMap<(usize, WatchId), Told>,
}

/// What becomes of a message that arrives.
pub(crate) enum Delivery {
    Pass(Message),
    /// It is not handed over, and this is the answer.
    Answer(Message),
}

impl Default for Tamper {
    fn default() -> Self {
        Self { sabotage: None, random: Random::new(0), held: BTreeMap::new() }
    }
}

impl Tamper {
    pub(crate) const fn new(sabotage: Sabotage, random: Random) -> Self {
        Self { sabotage: Some(sabotage), random, held: BTreeMap::new() }
    }

    fn is(&self, sabotage: Sabotage) -> bool {
        self.sabotage == Some(sabotage)
    }

    /// Whether disks have to know what they can take back.
    pub(crate) fn wants_undo(&self) -> bool {
        self.is(Sabotage::SyncedIsLost)
    }

    /// A process is about to start.
    pub(crate) fn on_start(&self, place: &mut Machine) {
        let is_again = place.boot > 0;
        if self.is(Sabotage::BootIsNotRaised) && is_again {
            place.boot -= 1;
        }
        if self.is(Sabotage::OldNameEmptyDisk) && is_again {
            place.disk = Disk::default();
        }
        if self.is(Sabotage::VotesAreForgotten) {
            place.disk.drop_meta("slot/");
        }
    }

    /// A process dies, and nothing has been lost yet.
    pub(crate) fn on_power_cut(&self, place: &mut Machine) {
        if self.is(Sabotage::TornCommit) {
            place.disk.tear();
        }
    }

    /// What was not synced is lost.
    pub(crate) fn after_power_cut(&mut self, place: &mut Machine) {
        if self.is(Sabotage::SyncedIsLost) {
            place.disk.take_back(1 + self.random.below(40));
        }
    }

    /// A sync has ended.
    pub(crate) fn after_sync(&mut self, disk: &mut Disk) {
        if self.is(Sabotage::TombstonesVanish) && self.random.chance(0.1) {
            disk.drop_tombstones();
        }
    }

    /// Whether the node is told at once that a commit is durable.
    pub(crate) fn persists_early(&self) -> bool {
        self.is(Sabotage::EarlyPersisted)
    }

    /// A client asks. Returns what else is asked.
    pub(crate) fn on_request(&mut self, request: &mut Request) -> Option<Request> {
        let Request::Operate { operation, retry, budget, .. } = request else { return None };
        match operation {
            Operation::Get { consistency, .. } if self.is(Sabotage::OneCopyRead) => {
                *consistency = Consistency::Any;
            }
            Operation::Put { condition, .. } if self.is(Sabotage::ConditionIsIgnored) => {
                if matches!(condition, Condition::Version(_)) {
                    *condition = Condition::Exists;
                }
            }
            _ => {}
        }
        if self.is(Sabotage::TwinRequest) && operation.is_change() {
            let id = RequestId::given(u128::from(self.random.next()));
            let (retry, operation, budget) = (*retry, operation.clone(), *budget);
            return Some(Request::Operate { id, retry, operation, budget });
        }
        None
    }

    /// A node sends a message, perhaps an answer to a question. Returns what else it sends.
    pub(crate) fn on_send(
        &mut self,
        message: &mut Message,
        question: Option<&Question>,
    ) -> Vec<Message> {
        match (self.sabotage, &mut message.body) {
            (Some(Sabotage::PrevIsLeftOut), Body::Decided { configs }) => {
                configs.iter_mut().for_each(|config| config.prev.clear());
            }
            (Some(Sabotage::PrevIsLeftOut), Body::ConfigIs { config: Some(config), .. }) => {
                config.prev.clear();
            }
            (Some(Sabotage::PrevIsLeftOut), Body::Refused(Refusal::Newer(config))) => {
                config.prev.clear();
            }
            (Some(Sabotage::RefusalIsNothing), Body::Refused(_)) => match question {
                Some(Question::Prepare { .. }) => {
                    message.body =
                        Body::Promised { accepted: Ballot::ZERO, register: Register::ABSENT };
                }
                Some(Question::Read { .. }) => {
                    message.body =
                        Body::Held { accepted: Ballot::ZERO, register: Some(Register::ABSENT) };
                }
                _ => {}
            },
            (Some(Sabotage::LackIsDenied), Body::Refused(Refusal::Lacks)) => {
                message.body = Body::Accepted;
            }
            (Some(Sabotage::ScanLeavesOut), Body::Scanned { entries, .. }) => {
                let random = &mut self.random;
                entries.retain(|_| random.chance(0.5));
            }
            (Some(Sabotage::HintsAreEmpty), Body::Changed { keys, .. }) => keys.clear(),
            (Some(Sabotage::OneClockDecides), Body::OverdueAre { over }) => over.fill(true),
            (Some(Sabotage::SweptAtOnce), Body::Decided { configs }) => {
                let call = message.call;
                let swept = configs.iter().map(|config| Body::Swept { at: config.tag() });
                return swept.map(|body| Message { call, body }).collect();
            }
            _ => {}
        }
        Vec::new()
    }

    /// A watch tells something. Returns what is told.
    pub(crate) fn on_told(&mut self, machine: usize, watch: WatchId, told: Told) -> Vec<Told> {
        let is_held = matches!(told, Told::Value { .. })
            && self.is(Sabotage::ToldOutOfTurn)
            && !self.held.contains_key(&(machine, watch))
            && self.random.chance(0.2);
        if is_held {
            self.held.insert((machine, watch), told);
            return Vec::new();
        }
        let late = self.held.remove(&(machine, watch));
        std::iter::once(told).chain(late).collect()
    }

    /// Whether the view of the receiver is needed for [`Self::on_deliver`].
    pub(crate) fn wants_view(&self, message: &Message) -> bool {
        let is_data =
            matches!(message.body, Body::Prepare { .. } | Body::Accept { .. } | Body::Read { .. });
        is_data && self.is(Sabotage::NoFence)
    }

    /// A message arrives at a node that sees this.
    pub(crate) fn on_deliver(&mut self, mut message: Message, view: Option<&View>) -> Delivery {
        if let (
            Body::Prepare { at, key, .. }
            | Body::Accept { at, key, .. }
            | Body::Read { at, key, .. },
            Some(view),
        ) = (&mut message.body, view)
        {
            let mut ranges = view.ranges.iter();
            if let Some(range) = ranges.find(|range| key.hash().is_in_arc(range.lo, range.hi)) {
                (at.hi, at.epoch) = (range.hi, range.epoch);
            }
        }
        let is_dropped = matches!(message.body, Body::Accept { .. })
            && self.is(Sabotage::AcceptIsDropped)
            && self.random.chance(0.2);
        if is_dropped {
            return Delivery::Answer(Message { call: message.call, body: Body::Accepted });
        }
        Delivery::Pass(message)
    }
}
