//! What is asked of the nodes of a cluster, and waiting for what becomes of it.

use std::time::Duration;

use sky_chord::{
    Answer, Event, Failure, Operation, Reply, Request, RequestId, Ticket, Told, Verdict, View,
    WatchId,
};

use super::{Cluster, Step, key_of};

impl Cluster {
    /// Hands a request to a node. The answer comes out of [`Self::take_finished`].
    pub(crate) fn request(&mut self, machine: usize, mut request: Request) -> Ticket {
        if let Some(twin) = self.tamper.on_request(&mut request) {
            self.hand_over(machine, twin);
        }
        self.hand_over(machine, request)
    }

    fn hand_over(&mut self, machine: usize, request: Request) -> Ticket {
        let ticket = Ticket(self.number());
        let key = match &request {
            Request::Operate { operation, id, .. } => {
                self.note(|| format!("n{machine} ? {operation:?} as {:x}", id.0));
                key_of(operation).cloned()
            }
            _ => None,
        };
        self.asked.insert(ticket, (machine, key));
        self.handle(machine, Event::Request { ticket, request });
        ticket
    }

    /// Answers, and tickets whose process died before it answered.
    pub(crate) fn take_finished(&mut self) -> Vec<(Ticket, Option<Reply>)> {
        std::mem::take(&mut self.finished)
    }

    /// Asks, and lets time pass until the answer comes.
    pub(crate) fn ask(&mut self, machine: usize, request: Request) -> Reply {
        let ticket = self.request(machine, request);
        let end = self.now + Duration::from_secs(10);
        while self.now < end {
            match self.take_reply(ticket) {
                Some(reply) => return reply.expect("no crash in between"),
                None => self.step(),
            };
        }
        panic!("n{machine} does not answer");
    }

    fn take_reply(&mut self, ticket: Ticket) -> Option<Option<Reply>> {
        let at = self.finished.iter().position(|(other, _)| *other == ticket)?;
        Some(self.finished.remove(at).1)
    }

    /// Carries out an operation through a machine, letting time pass.
    pub(crate) fn operate(
        &mut self,
        machine: usize,
        operation: Operation,
    ) -> Result<Answer, Failure> {
        let id = RequestId::at(self.wall(machine), self.random.next());
        let budget = Duration::from_secs(5);
        match self.ask(machine, Request::Operate { id, retry: false, operation, budget }) {
            Reply::Operated(outcome) => outcome,
            other => panic!("not the answer to an operation: {other:?}"),
        }
    }

    /// What a node reports; none if it cannot answer.
    pub(crate) fn view(&mut self, machine: usize) -> Option<View> {
        match self.ask_at_once(machine, Request::View)? {
            Reply::View(view) => Some(*view),
            other => panic!("not a view: {other:?}"),
        }
    }

    /// Asks for what a node answers at once; none if it cannot answer.
    pub(crate) fn ask_at_once(&mut self, machine: usize, request: Request) -> Option<Reply> {
        if !self.is_running(machine) || self.machines[machine].paused {
            return None;
        }
        let ticket = self.request(machine, request);
        match self.take_reply(ticket) {
            Some(Some(reply)) => Some(reply),
            other => panic!("it is answered at once, not {other:?}"),
        }
    }

    /// What watches told.
    pub(crate) fn take_told(&mut self) -> Vec<(usize, u64, WatchId, Told)> {
        std::mem::take(&mut self.told)
    }

    /// Whether the ring is right, by the reports of all that should form it.
    pub(crate) fn verdict(&mut self) -> Verdict {
        let mut reports = Vec::new();
        for machine in self.expected() {
            reports.push((self.machines[machine].peer.clone(), self.view(machine)));
        }
        sky_chord::check(&reports, self.settings.replicas, self.settings.successors)
    }

    /// Whether no node takes its disk to be full.
    pub(crate) fn has_room(&mut self) -> bool {
        let machines = self.expected();
        machines.into_iter().all(|machine| self.view(machine).is_none_or(|v| !v.load.disk_full))
    }

    /// Lets the ring come to rest; fails if it is not right within a virtual minute.
    pub(crate) fn settle(&mut self) {
        if !self.run_until(Duration::from_secs(60), |cluster| cluster.verdict().right) {
            let verdict = self.verdict();
            panic!("at {:?} the ring is not right: {:#?}", self.now, verdict.problems);
        }
    }

    /// How many events the next virtual second brings.
    pub(crate) fn events_of_a_second(&mut self) -> u64 {
        let before = self.last_number;
        self.run_for(Duration::from_secs(1));
        self.last_number - before
    }

    pub(crate) fn run_for(&mut self, duration: Duration) {
        self.run_until(duration, |_| false);
    }

    /// Lets time pass until the condition holds, looked at with every sample; false if it never did.
    pub(crate) fn run_until(
        &mut self,
        limit: Duration,
        mut condition: impl FnMut(&mut Self) -> bool,
    ) -> bool {
        let end = self.now + limit;
        while self.now < end {
            if self.step() == Step::Sample && condition(self) {
                return true;
            }
        }
        false
    }
}
