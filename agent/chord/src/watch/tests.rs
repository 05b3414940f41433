//! Tests of `watch`.

use super::*;
use crate::event::Output;
use crate::message::CallId;
use crate::settings::Settings;
use crate::value::Value;
use crate::{Id, Key};

fn node(number: u64) -> NodeId {
    NodeId { position: Id::small(number), incarnation: number }
}

fn peer(number: u64) -> Peer {
    Peer { node: node(number), address: format!("n{number}:1").into() }
}

fn version(round: u64) -> Ballot {
    Ballot { epoch: 1, round, ..Ballot::ZERO }
}

fn key(number: usize) -> Key {
    Key::new(&format!("key {number}"))
}

fn value() -> Value {
    Value { content_type: "x".into(), bytes: "v".into(), ttl: None }
}

/// One node that knows another, with its watches and those it tells.
struct Stage {
    ctx: Context,
    members: Membership,
    watches: Watches,
    audience: Audience,
}

impl Stage {
    fn new() -> Self {
        let ctx = Context::new(Time::default(), peer(1), 1, Settings::default(), 1);
        let mut members = Membership::new(&ctx, None);
        members.learn(&peer(2));
        Self { ctx, members, watches: Watches::default(), audience: Audience::default() }
    }

    /// Lets time go by, with the timers of both parts.
    fn wait(&mut self, time: Duration) {
        self.ctx.now = self.ctx.now + time;
        while let Some(timer) = self.ctx.timers.pop(self.ctx.now) {
            match timer {
                Timer::Watch => self.watches.on_timer(&mut self.ctx, &self.members),
                Timer::Hint => self.audience.on_timer(&mut self.ctx, &self.members),
                _ => {}
            }
        }
    }

    fn watch(&mut self, subject: Subject, room: u32) -> WatchId {
        let id = self.watches.begin(&mut self.ctx, subject, room).unwrap();
        self.wait(Duration::ZERO);
        id
    }

    /// What is said to the other node.
    fn said(&mut self) -> Vec<Body> {
        let mut said = Vec::new();
        while let Some(output) = self.ctx.take_output() {
            if let Output::Send { message, .. } = output {
                said.push(message.body);
            }
        }
        said
    }

    fn told(&mut self) -> Vec<Told> {
        let mut all = Vec::new();
        while let Some(output) = self.ctx.take_output() {
            if let Output::Told { told, .. } = output {
                all.push(told);
            }
        }
        all
    }

    fn wanted(&mut self) -> Vec<Look> {
        std::iter::from_fn(|| self.watches.take_wanted()).map(|(_, look, _)| look).collect()
    }

    fn answer(&mut self, id: WatchId, look: Look, answer: Answer) {
        self.watches.on_looked(&mut self.ctx, id, look, Ok(answer));
    }

    /// The other node and this one tell of changes from now on, in these sessions.
    fn both_tell(&mut self, session: u64, hints: u64) {
        let revision = self.watches.revision;
        for from in [peer(1), peer(2)] {
            let said = (session, revision, hints);
            self.watches.on_watched(&mut self.ctx, &from, said, &self.members);
        }
        self.wait(Duration::ZERO);
    }

    fn listen(&mut self, revision: u64, subjects: Option<Vec<Subject>>) -> (u64, u64, u64) {
        self.audience.on_watch(&mut self.ctx, &peer(2), CallId(1), revision, subjects, 5000);
        match self.said().as_slice() {
            [Body::Watched { session, revision, hints }] => (*session, *revision, *hints),
            other => panic!("{other:?}"),
        }
    }
}

fn found(round: u64) -> Answer {
    Answer::Found { value: value(), version: version(round) }
}

fn listed(numbers: impl Iterator<Item = usize>) -> Answer {
    let mut keys: Vec<_> = numbers
        .map(|number| ListedKey { key: key(number), size: 1, version: version(1) })
        .collect();
    keys.sort_by(|one, other| one.key.cmp(&other.key));
    Answer::Listed { keys, next: None }
}

#[test]
fn a_listener_is_told_as_long_as_its_lease_runs() {
    let mut stage = Stage::new();
    let change = |stage: &mut Stage, round| {
        let changed = vec![(key(1), version(round)), (Key::new("other"), version(round))];
        stage.audience.on_changed(&mut stage.ctx, changed);
        stage.wait(Duration::from_millis(20));
        stage.said()
    };
    assert_eq!(stage.listen(7, None), (0, 0, 0), "it does not know what is watched");
    let (session, ..) = stage.listen(7, Some(vec![Subject::Prefix("key".into())]));
    let hint = |number, round| {
        let keys = vec![(key(1), version(round))];
        vec![Body::Changed { session, number, keys, more: false }]
    };
    assert_eq!(change(&mut stage, 1), hint(1, 1));
    assert_eq!(stage.listen(7, None), (session, 7, 1));
    assert_eq!(stage.listen(6, Some(Vec::new())), (session, 7, 1), "an old wish comes late");
    assert_eq!(change(&mut stage, 2), hint(2, 2));
    stage.ctx.now = stage.ctx.now + Duration::from_secs(6);
    assert_eq!(change(&mut stage, 3), Vec::new(), "its lease has run out");
    assert_eq!(stage.listen(7, None), (0, 0, 0));
    let (again, ..) = stage.listen(7, Some(vec![Subject::Key(key(1))]));
    assert_ne!(again, session);
    assert_eq!(stage.listen(8, Some(Vec::new())), (0, 0, 0));
    assert_eq!(change(&mut stage, 4), Vec::new(), "it wants nothing any more");
}

#[test]
fn a_listener_is_told_when_there_was_more() {
    let mut stage = Stage::new();
    stage.listen(1, Some(vec![Subject::Prefix("".into())]));
    let changed = (0..1000).map(|number| (key(number), version(1))).collect();
    stage.audience.on_changed(&mut stage.ctx, changed);
    stage.wait(Duration::from_millis(20));
    match stage.said().as_slice() {
        [Body::Changed { keys, more: true, .. }] => assert!(keys.len() < 1000),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_watch_keeps_to_its_room_and_tells_the_last_value_only() {
    let mut stage = Stage::new();
    let id = stage.watch(Subject::Key(key(1)), 1);
    assert!(stage.wanted().is_empty(), "nobody tells of changes yet");
    stage.both_tell(3, 0);
    assert_eq!(stage.wanted(), [Look::Key(key(1))]);
    stage.answer(id, Look::Key(key(1)), found(1));
    let first = Told::Value { key: key(1), value: value(), version: version(1) };
    assert_eq!(stage.told(), [first, Told::Synced]);
    for round in [2, 3] {
        let keys = vec![(key(1), version(round))];
        stage.watches.on_changed(&mut stage.ctx, &node(2), (3, round - 1), keys, false);
    }
    assert!(stage.wanted().is_empty(), "there is no room");
    stage.watches.make_room(&mut stage.ctx, id, 5);
    assert_eq!(stage.wanted(), [Look::Key(key(1))]);
    let keys = vec![(key(1), version(3))];
    stage.watches.on_changed(&mut stage.ctx, &node(1), (3, 1), keys, false);
    stage.answer(id, Look::Key(key(1)), found(3));
    let last = Told::Value { key: key(1), value: value(), version: version(3) };
    assert_eq!(stage.told(), [last]);
    assert!(stage.wanted().is_empty(), "the hint while it was read said what was found");
    let keys = vec![(key(1), version(4))];
    stage.watches.on_changed(&mut stage.ctx, &node(1), (3, 2), keys, false);
    let read = stage.wanted();
    let keys = vec![(key(1), version(5))];
    stage.watches.on_changed(&mut stage.ctx, &node(1), (3, 3), keys, false);
    stage.answer(id, read[0].clone(), found(4));
    assert_eq!(stage.wanted(), [Look::Key(key(1))], "something newer was hinted at meanwhile");
    stage.answer(id, Look::Key(key(1)), Answer::Absent);
    let deleted = Told::Deleted { key: key(1), version: version(4) };
    assert_eq!(stage.told().last(), Some(&deleted));
}

#[test]
fn a_hint_that_was_missed_is_made_up_for_by_a_look() {
    let mut stage = Stage::new();
    let id = stage.watch(Subject::Prefix("key".into()), 100);
    stage.both_tell(3, 0);
    assert_eq!(stage.wanted(), [Look::Page(None)]);
    stage.answer(id, Look::Page(None), listed(0..2));
    let mut read = stage.wanted();
    read.sort_by_key(|look| format!("{look:?}"));
    assert_eq!(read, [Look::Key(key(0)), Look::Key(key(1))]);
    read.into_iter().for_each(|look| stage.answer(id, look, found(1)));
    assert_eq!(stage.told().last(), Some(&Told::Synced));
    stage.wait(Duration::from_secs(2));
    assert!(stage.wanted().is_empty(), "nothing is missing");

    // It has sent two messages, and none has come.
    stage.both_tell(3, 2);
    assert_eq!(stage.wanted(), [Look::Page(None)]);
    stage.answer(id, Look::Page(None), listed(1..2));
    assert_eq!(stage.wanted(), [Look::Key(key(0))], "it has vanished from the list");
    stage.answer(id, Look::Key(key(0)), Answer::Absent);
    let deleted = Told::Deleted { key: key(0), version: version(1) };
    assert_eq!(stage.told(), [deleted]);

    // It was started again, and does not know what it told before.
    stage.wait(Duration::from_secs(2));
    stage.both_tell(4, 0);
    assert_eq!(stage.wanted(), [Look::Page(None)]);
    stage.answer(id, Look::Page(None), listed(1..2));
    stage.wait(Duration::from_secs(2));
    stage.watches.on_changed(&mut stage.ctx, &node(2), (4, 2), Vec::new(), false);
    stage.wait(Duration::ZERO);
    assert_eq!(stage.wanted(), [Look::Page(None)], "the first message of the session is missing");
}

#[test]
fn a_watch_of_too_many_keys_ends_before_it_tells_any() {
    let mut stage = Stage::new();
    let id = stage.watch(Subject::Prefix("key".into()), 100);
    stage.both_tell(3, 0);
    stage.wanted();
    stage.answer(id, Look::Page(None), listed(0..=WATCHED_KEYS_MAX));
    assert_eq!(stage.told(), [Told::Ended(WatchEnd::TooManyKeys)]);
    assert!(stage.wanted().is_empty());
    let ids = (0..WATCHES_MAX).map(|_| stage.watch(Subject::Key(key(1)), 1)).collect::<Vec<_>>();
    assert!(stage.watches.begin(&mut stage.ctx, Subject::Key(key(1)), 1).is_err());
    stage.watches.end(&mut stage.ctx, ids[0]);
    assert!(stage.watches.begin(&mut stage.ctx, Subject::Key(key(1)), 1).is_ok());
}

#[test]
fn members_are_asked_every_second_and_told_what_is_watched_once() {
    let mut stage = Stage::new();
    stage.watch(Subject::Key(key(1)), 1);
    let asked = |said: Vec<Body>| match said.as_slice() {
        [Body::Watch { subjects, .. }] => subjects.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(asked(stage.said()), Some(vec![Subject::Key(key(1))]));
    stage.wait(Duration::from_secs(1));
    assert!(asked(stage.said()).is_some(), "it has not answered");
    stage.both_tell(3, 0);
    stage.said();
    stage.wait(Duration::from_secs(1));
    assert_eq!(asked(stage.said()), None);
    let (said, other) = ((0, 0, 0), peer(2));
    stage.watches.on_watched(&mut stage.ctx, &other, said, &stage.members);
    assert!(asked(stage.said()).is_some(), "it was started again");
    let id = WatchId(1);
    stage.watches.end(&mut stage.ctx, id);
    stage.wait(Duration::ZERO);
    assert_eq!(asked(stage.said()), Some(Vec::new()));
    stage.wait(Duration::from_secs(5));
    assert!(stage.said().is_empty());
}
