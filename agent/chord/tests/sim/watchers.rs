//! Clients that watch keys while everything else happens. Each value and each deletion that a watch tells
//! was read after what it told of the key before: the history of the key has to explain it like any other
//! read. In the end every watch has told what is there.
//!
//! A client whose machine dies or leaves goes on through another one, where it is told everything anew. Slow
//! ones make room for a few events at a time.

use std::collections::BTreeMap;
use std::time::Duration;

use sky_chord::{Answer, Ballot, Key, Reply, Request, Subject, Time, Told, WatchEnd, WatchId};

use super::cluster::Cluster;
use super::oracle::Oracle;
use super::random::Random;

/// How long a client watches through one machine, at most.
const STAYS: Duration = Duration::from_secs(40);
/// How long it takes at most until something is told that is there.
const TOLD_WITHIN: Duration = Duration::from_secs(60);

#[derive(Default)]
pub(crate) struct Watchers {
    watchers: Vec<Watcher>,
    /// How many values and deletions were told.
    pub(crate) told: usize,
}

struct Watcher {
    subject: Subject,
    /// How much it has room for at once.
    room: u32,
    random: Random,
    ready: Time,
    watch: Option<Open>,
}

/// A watch of some process.
struct Open {
    machine: usize,
    process: u64,
    id: WatchId,
    /// When it began, by the clock of the history.
    begun: u64,
    until: Time,
    /// What it told last of each key, and when.
    last: BTreeMap<Key, (Option<Ballot>, u64)>,
    is_synced: bool,
    /// How much was told that it was not given room for again, and when it is.
    taken: u32,
    makes_room: Time,
}

impl Watchers {
    pub(crate) fn new(mut random: Random, count: usize, prefix: &str, keys: &[Key]) -> Self {
        let watchers = (0..count).map(|_| {
            let mut random = random.fork();
            let key = keys.get(random.below(keys.len())).cloned();
            let subject = match (random.below(4), key) {
                (0, Some(key)) => Subject::Key(key),
                (1, _) => Subject::Prefix(format!("{prefix}-steady").into()),
                _ => Subject::Prefix(prefix.into()),
            };
            let room = random.pick(&[1, 3, 100, 100]).expect("a number");
            Watcher { subject, room, random, ready: Time::default(), watch: None }
        });
        Self { watchers: watchers.collect(), told: 0 }
    }

    /// Takes what was told, and lets clients begin and end watches.
    pub(crate) fn act(&mut self, cluster: &mut Cluster, oracle: &mut Oracle) {
        oracle.expire(cluster);
        for (machine, process, id, told) in cluster.take_told() {
            let is_of =
                |open: &Open| (open.machine, open.process, open.id) == (machine, process, id);
            // The client may have ended it.
            let mut watchers = self.watchers.iter_mut();
            let Some(watcher) = watchers.find(|it| it.watch.as_ref().is_some_and(is_of)) else {
                continue;
            };
            self.told += usize::from(matches!(told, Told::Value { .. } | Told::Deleted { .. }));
            watcher.on_told(cluster.now, oracle, told);
        }
        for watcher in &mut self.watchers {
            watcher.act(cluster, oracle);
        }
    }

    /// Whether every watch has told what is there, and nothing else; if not, what is wrong.
    fn problem(&self, there: &BTreeMap<Key, Ballot>) -> Option<String> {
        for watcher in &self.watchers {
            let Some(open) = watcher.watch.as_ref().filter(|open| open.is_synced) else {
                return Some(format!("{:?} is not told", watcher.subject));
            };
            let wanted = there.iter().filter(|(key, _)| watcher.subject.covers(key));
            let wanted: BTreeMap<_, _> = wanted.map(|(key, version)| (key, *version)).collect();
            let told = open.last.iter().filter_map(|(key, (version, _))| Some((key, (*version)?)));
            let told: BTreeMap<_, _> = told.collect();
            if told != wanted {
                let (subject, machine) = (&watcher.subject, open.machine);
                return Some(format!("{subject:?}: n{machine} told {told:?}, there is {wanted:?}"));
            }
        }
        None
    }

    /// Lets time pass until everything is told that is there. Changes that clients have given up may still
    /// come.
    pub(crate) fn assert_complete(
        &mut self,
        cluster: &mut Cluster,
        oracle: &mut Oracle,
        keys: &[Key],
    ) {
        for watcher in &mut self.watchers {
            if let Some(open) = &mut watcher.watch {
                open.until = cluster.now + TOLD_WITHIN * 4;
            }
        }
        let end = cluster.now + TOLD_WITHIN;
        loop {
            let machine = cluster.joined()[0];
            let mut there = BTreeMap::new();
            for key in keys {
                let read = super::workload::get(key);
                if let Ok(Answer::Found { version, .. }) = cluster.operate(machine, read) {
                    there.insert(key.clone(), version);
                }
                self.act(cluster, oracle);
            }
            let Some(problem) = self.problem(&there) else { return };
            assert!(
                cluster.now < end,
                "{TOLD_WITHIN:?} after the last change a watch is behind: {problem}"
            );
            let pause = cluster.now + Duration::from_secs(1);
            while cluster.now < pause {
                cluster.step();
                self.act(cluster, oracle);
            }
        }
    }
}

impl Watcher {
    fn on_told(&mut self, now: Time, oracle: &mut Oracle, told: Told) {
        let Some(open) = &mut self.watch else { return };
        let (key, version, answer) = match told {
            Told::Value { key, value, version } => {
                (key, Some(version), Answer::Found { value, version })
            }
            Told::Deleted { key, version } => {
                let before = open.last.get(&key).and_then(|(version, _)| *version);
                assert_eq!(before, Some(version), "{key:?} is told to be deleted");
                (key, None, Answer::Absent)
            }
            Told::Synced => {
                assert!(!open.is_synced, "{:?} is synced twice", self.subject);
                open.is_synced = true;
                return;
            }
            Told::Ended(why) => {
                assert_eq!(why, WatchEnd::Left, "{:?}", self.subject);
                self.watch = None;
                return;
            }
        };
        assert!(self.subject.covers(&key), "{key:?} is told of to {:?}", self.subject);
        let (before, since) = open.last.get(&key).copied().unwrap_or((None, open.begun));
        assert!(before != version, "{key:?} is told twice to be at {version:?}");
        let moment = oracle.observe(&key, since, answer);
        open.last.insert(key, (version, moment));
        open.taken += 1;
        assert!(open.taken <= self.room, "more is told than there is room for");
        if open.taken == self.room {
            open.makes_room = now + self.random.between(Duration::ZERO, Duration::from_millis(300));
        }
    }

    fn act(&mut self, cluster: &mut Cluster, oracle: &mut Oracle) {
        if let Some(open) = &mut self.watch {
            if cluster.process(open.machine) != Some(open.process) {
                self.watch = None;
            } else if cluster.now >= open.until && !cluster.machines[open.machine].paused {
                cluster.ask_at_once(open.machine, Request::Unwatch { watch: open.id });
                self.watch = None;
            } else if open.taken == self.room && cluster.now >= open.makes_room {
                let room = Request::WatchRoom { watch: open.id, room: open.taken };
                if cluster.ask_at_once(open.machine, room).is_some() {
                    open.taken = 0;
                }
            }
            return;
        }
        if cluster.now < self.ready {
            return;
        }
        self.ready = cluster.now + Duration::from_millis(300);
        let Some(machine) = self.random.pick(&cluster.joined()) else { return };
        let Some(process) = cluster.process(machine) else { return };
        let begun = oracle.begin_list();
        let request = Request::Watch { subject: self.subject.clone(), room: self.room };
        let Some(Reply::Watching(Ok(id))) = cluster.ask_at_once(machine, request) else { return };
        let until = cluster.now + self.random.between(Duration::from_secs(1), STAYS);
        self.watch = Some(Open {
            machine,
            process,
            id,
            begun,
            until,
            last: BTreeMap::new(),
            is_synced: false,
            taken: 0,
            makes_room: cluster.now,
        });
    }
}
