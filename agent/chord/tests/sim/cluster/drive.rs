//! Driving the nodes: events go in, and what they want done is done.

use std::time::Duration;

use sky_chord::{Answer, Body, Event, Load, Message, NodeId, Output, Peer, Reply, Ticket, Time};

use super::{Cluster, What};
use crate::sim::disk::Ended;
use crate::sim::tamper::Delivery;

impl Cluster {
    pub(super) fn deliver(
        &mut self,
        machine: usize,
        to: NodeId,
        sender: usize,
        from: Peer,
        message: Message,
    ) {
        if self.is_running(machine) && self.machines[machine].peer.node == to {
            let view = if self.tamper.wants_view(&message) { self.view(machine) } else { None };
            match self.tamper.on_deliver(message, view.as_ref()) {
                Delivery::Pass(message) => {
                    self.note(|| format!("n{machine} < n{sender} {message:?}"));
                    self.handle(machine, Event::Receive { from, message });
                }
                Delivery::Answer(answer) => self.send(machine, from, answer),
            }
        } else if self.network.refuses(sender, machine) {
            self.handle(sender, Event::Unreachable { node: to });
        }
    }

    pub(super) fn tick(&mut self, machine: usize, process: u64) {
        if !self.machines[machine].is_process(process) {
            return;
        }
        let now = self.now;
        let running = self.machines[machine].process.as_mut().expect("it runs");
        if running.wake == Some(now) {
            running.wake = None;
            self.handle(machine, Event::Tick);
        }
    }

    pub(super) fn synced(&mut self, machine: usize, process: u64) {
        if !self.machines[machine].is_process(process) {
            return;
        }
        let event = match self.machines[machine].disk.finish_sync() {
            Some(Ended::Synced(seq, writes)) => {
                self.watch.on_durable(&self.machines[machine].peer, &writes);
                self.tamper.after_sync(&mut self.machines[machine].disk);
                Some(Event::Persisted { seq })
            }
            Some(Ended::Failed(seq)) => {
                self.note(|| format!("n{machine}: its store fails at commit {seq}"));
                Some(Event::PersistFailed { seq, reason: "input/output error".to_owned() })
            }
            None => None,
        };
        if let Some(event) = event {
            let after = self.random.between(Duration::ZERO, Duration::from_micros(200));
            self.schedule(after, What::ToProcess { machine, process, event });
        }
        if self.machines[machine].disk.start_sync() {
            self.schedule_sync(machine, process);
        }
    }

    fn schedule_sync(&mut self, machine: usize, process: u64) {
        let (least, most) = self.machines[machine].sync;
        let after = self.random.between(least, most);
        self.schedule(after, What::Synced { machine, process });
    }

    pub(super) fn measured(&mut self, machine: usize, process: u64) {
        if self.machines[machine].is_process(process) {
            let disk_full = self.machines[machine].disk_full;
            self.handle(machine, Event::Measured(Load { disk_full, ..Load::default() }));
        }
    }

    pub(super) fn handle(&mut self, machine: usize, event: Event) {
        let now = self.now;
        let place = &mut self.machines[machine];
        let Some(process) = &mut place.process else { return };
        if place.paused {
            place.backlog.push_back(event);
            return;
        }
        let is_failure = matches!(event, Event::PersistFailed { .. });
        process.node.handle(process.clock.read(now), event);
        place.told_failed |= is_failure;
        self.drain(machine);
        for (machine, key, version) in std::mem::take(&mut self.stored) {
            let asked =
                if self.watch.knows(&key, version.epoch) { vec![machine] } else { self.awake() };
            for view in
                asked.into_iter().filter_map(|machine| self.view(machine)).collect::<Vec<_>>()
            {
                self.watch.on_view(&view);
            }
            let now = self.machines.iter().map(|place| (place.peer.node, &place.disk));
            let disks: Vec<_> = now.chain(self.lost.iter().map(|(n, disk)| (*n, disk))).collect();
            self.watch.on_stored(&key, version, &disks);
        }
    }

    /// Does all that a node wants done.
    pub(super) fn drain(&mut self, machine: usize) {
        loop {
            let Some(process) = &mut self.machines[machine].process else { return };
            let number = process.number;
            match process.node.poll() {
                Output::Send { to, message } => self.send(machine, to, message),
                Output::Persist { seq, writes } => {
                    let place = &mut self.machines[machine];
                    assert!(!place.told_failed, "n{machine} writes although its store has failed");
                    if self.tamper.persists_early() {
                        let event = Event::Persisted { seq };
                        self.schedule(
                            Duration::ZERO,
                            What::ToProcess { machine, process: number, event },
                        );
                    }
                    if self.machines[machine].disk.write(seq, writes) {
                        self.schedule_sync(machine, number);
                    }
                }
                Output::Reply { ticket, reply } => self.reply(ticket, reply),
                Output::Notify(notice) => {
                    self.note(|| format!("n{machine} ! {notice:?}"));
                    self.notices.push((machine, notice));
                }
                Output::Told { watch, told } => {
                    self.note(|| format!("n{machine} ! {watch:?} {told:?}"));
                    let told = self.tamper.on_told(machine, watch, told).into_iter();
                    self.told.extend(told.map(|told| (machine, number, watch, told)));
                }
                Output::Wait { until } => {
                    self.wait(machine, until);
                    return;
                }
            }
        }
    }

    fn wait(&mut self, machine: usize, until: Option<Time>) {
        let now = self.now;
        let Some(process) = &mut self.machines[machine].process else { return };
        let soonest = now + Duration::from_micros(1);
        let wake = until.map(|until| process.clock.when(until).max(soonest));
        if wake != process.wake {
            process.wake = wake;
            let number = process.number;
            if let Some(at) = wake {
                self.schedule(at - now, What::Tick { machine, process: number });
            }
        }
    }

    fn send(&mut self, sender: usize, to: Peer, mut message: Message) {
        let from = self.machines[sender].peer.clone();
        assert_ne!(from.node, to.node, "what a node says to itself stays inside: {message:?}");
        let question = self.watch.question(&to.node, message.call);
        let extra = self.tamper.on_send(&mut message, question);
        if let Some(bytes) = self.data_bytes.as_mut().filter(|_| is_about_data(&message.body)) {
            *bytes += postcard::to_stdvec(&message).expect("it can be encoded").len();
        }
        self.watch.on_send(&from, &to, &message, &self.machines[sender].disk);
        self.note(|| format!("n{sender} > {} {message:?}", to.address));
        let known = self.machines.iter().position(|place| place.peer.address == to.address);
        let machine = known.expect("an address of the cluster");
        for message in std::iter::once(message).chain(extra) {
            for after in self.network.deliveries(self.now, sender, machine) {
                let (from, message) = (from.clone(), message.clone());
                self.schedule(after, What::Deliver { machine, to: to.node, sender, from, message });
            }
        }
    }

    fn reply(&mut self, ticket: Ticket, reply: Reply) {
        let (machine, key) = self.asked.remove(&ticket).expect("one answer to each request");
        if !matches!(reply, Reply::View(_)) {
            self.note(|| format!("n{machine} answers {reply:?}"));
        }
        if let (Some(key), Reply::Operated(Ok(Answer::Stored { version, .. }))) = (key, &reply) {
            self.stored.push((machine, key, *version));
        }
        self.finished.push((ticket, Some(reply)));
    }
}

fn is_about_data(body: &Body) -> bool {
    use Body::*;
    matches!(
        body,
        Prepare { .. }
            | Promised { .. }
            | Accept { .. }
            | Accepted
            | Read { .. }
            | Held { .. }
            | Scan { .. }
            | Scanned { .. }
            | Digest { .. }
            | Digested { .. }
    )
}
