//! Tests of the data part by itself: what needs no other node.

use std::cell::Cell;
use std::collections::BTreeMap;

use super::stored::Stored;
use super::*;
use crate::config::Ballot;
use crate::event::{Output, Scan, Write};
use crate::record::{Record, Register};
use crate::request::segments;
use crate::settings::Settings;

/// A store that does as log-structured ones do: what was removed is passed over one by one.
#[derive(Default)]
struct Shelf {
    records: BTreeMap<Key, Option<Record>>,
    passed: Cell<usize>,
}

impl Shelf {
    /// Carries out what the node wants written.
    fn write(&mut self, ctx: &mut Context, stored: &mut Stored) {
        ctx.seal_commit();
        while let Some(output) = ctx.take_output() {
            let Output::Persist { seq, writes } = output else { continue };
            for write in writes {
                match write {
                    Write::Record(key, record) => drop(self.records.insert(key, Some(record))),
                    Write::Forget(key) => drop(self.records.insert(key, None)),
                    _ => {}
                }
            }
            ctx.on_persisted(seq);
            stored.on_persisted(seq);
        }
    }
}

impl Records for Shelf {
    fn get(&self, key: &Key) -> Result<Option<Record>, StoreError> {
        Ok(self.records.get(key).cloned().flatten())
    }

    fn bytes(&self, _: &Key) -> Result<Option<Bytes>, StoreError> {
        Ok(None)
    }

    fn scan(
        &self,
        after: Option<&Cursor>,
        through: Id,
        limit: usize,
    ) -> Result<Scan<Record>, StoreError> {
        let mut entries = Vec::new();
        let here = |key: &&Key| after.is_none_or(|after| after.is_before(key));
        for key in self.records.keys().filter(here).take_while(|key| key.hash() <= through) {
            self.passed.set(self.passed.get() + 1);
            if let Some(record) = &self.records[key] {
                if entries.len() >= limit {
                    return Ok(Scan { entries, end: false });
                }
                entries.push((key.clone(), record.clone()));
            }
        }
        Ok(Scan { entries, end: true })
    }
}

fn node() -> NodeId {
    NodeId { position: Id::small(33), incarnation: 1 }
}

fn context() -> Context {
    let me = Peer { node: node(), address: "n".into() };
    Context::new(Time::default(), me, 1, Settings::default(), 7)
}

fn key(index: usize) -> Key {
    Key::new(&format!("key {index}"))
}

fn record(round: u64) -> Record {
    let ballot = Ballot { epoch: 1, round, node: node(), boot: 1 };
    let register = Register { version: ballot, ..Register::ABSENT };
    Record { promised: ballot, accepted: ballot, register, ..Record::EMPTY }
}

/// Where this one of 256 equal arcs of the circle begins.
fn part(of_256: u8) -> Id {
    let mut bytes = [0; 20];
    bytes[0] = of_256;
    Id::from_bytes(bytes)
}

/// All records in (lo, hi], as pages of some size.
fn read(stored: &Stored, shelf: &Shelf, lo: Id, hi: Id, limit: usize) -> Vec<Key> {
    let mut keys = Vec::new();
    for (mut after, through) in segments(lo, hi) {
        loop {
            let page = stored.scan(shelf, after.as_ref(), through, limit).expect("a page");
            assert!(page.end || !page.entries.is_empty(), "a page that is not the last one");
            after = page.next();
            let held = page.entries.into_iter().filter(|(_, seen)| seen.record != Record::EMPTY);
            keys.extend(held.map(|(key, _)| key));
            if after.is_none() {
                break;
            }
        }
    }
    keys
}

#[test]
fn what_is_held_is_found_and_what_was_forgotten_is_passed_over_once() {
    let (mut ctx, mut stored, mut shelf) = (context(), Stored::default(), Shelf::default());
    let mut held = BTreeMap::new();
    for round in 0..6_000 {
        let key = key(ctx.rng.below(2_000));
        let old = held.get(&key).cloned().unwrap_or(Record::EMPTY);
        if old != Record::EMPTY && ctx.rng.below(3) == 0 {
            stored.forget(&mut ctx, &key, &old);
            held.remove(&key);
        } else {
            let new = record(round);
            stored.put(&mut ctx, &key, &old, new.clone());
            held.insert(key, new);
        }
        if ctx.rng.below(20) == 0 {
            shelf.write(&mut ctx, &mut stored);
        }
        if round % 50 == 0 {
            let [lo, hi] = [(); 2].map(|()| Id::hash(&ctx.rng.next().to_be_bytes()));
            let limit = 1 + ctx.rng.below(300);
            let mut expected: Vec<_> = segments(lo, hi)
                .into_iter()
                .flat_map(|(after, through)| {
                    let is_in = move |key: &&Key| {
                        after.as_ref().is_none_or(|after| after.is_before(key))
                            && key.hash() <= through
                    };
                    held.keys().filter(is_in).cloned().collect::<Vec<_>>()
                })
                .collect();
            let mut found = read(&stored, &shelf, lo, hi, limit);
            expected.sort();
            found.sort();
            assert_eq!(found, expected, "({lo}, {hi}]");
        }
    }
    shelf.write(&mut ctx, &mut stored);

    let (lo, hi) = (part(64), part(192));
    for (key, old) in held.iter().filter(|(key, _)| lo < key.hash() && key.hash() <= hi) {
        stored.forget(&mut ctx, key, old);
    }
    assert!(read(&stored, &shelf, lo, hi, 100).is_empty(), "before it is written");
    shelf.write(&mut ctx, &mut stored);
    let forgotten = shelf.records.range(Key::first_after(lo)..Key::first_after(hi)).count();
    shelf.passed.set(0);
    assert!(read(&stored, &shelf, lo, hi, 100).is_empty());
    assert!(forgotten > 500 && shelf.passed.get() < 20, "{forgotten}, {:?}", shelf.passed);
}

/// A node left a range and has kept a part of it, with more keys than are looked at in one go.
#[test]
fn keys_behind_a_part_that_is_kept_are_forgotten() {
    let (mut ctx, mut ranges, mut shelf) = (context(), Ranges::default(), Shelf::default());
    let other =
        Peer { node: NodeId { position: Id::small(7), incarnation: 1 }, address: "other".into() };
    let (lo, kept, hi) = (part(0), part(128), part(192));
    for (end, epoch, released) in [(hi, 5, true), (kept, 6, false)] {
        let members = vec![if released { other.clone() } else { ctx.me.clone() }];
        let prev = Vec::new();
        let config = Config { lo, hi: end, epoch, members, prev, forced: false, tie_breaker: None };
        let known = Known { config: Arc::new(config), swept: true, released, seq: 0 };
        ranges.known.insert(end, known);
    }
    for index in 0..2_000 {
        ranges.stored.put(&mut ctx, &key(index), &Record::EMPTY, record(1));
    }
    shelf.write(&mut ctx, &mut ranges.stored);
    let left = Arc::clone(&ranges.known[&hi].config);
    let members = Membership::new(&ctx, None);
    let held = |ranges: &Ranges, lo, hi| read(&ranges.stored, &shelf, lo, hi, 100).len();
    let (here, there) = (held(&ranges, lo, kept), held(&ranges, kept, hi));
    assert!(here > 900 && there > 400);
    let mut w = World { ctx: &mut ctx, records: &shelf, members: &members };
    for _ in 0..=there / 256 {
        assert!(!ranges.forget_keys(&mut w, &left).expect("a readable store").is_nothing());
    }
    assert_eq!((held(&ranges, lo, kept), held(&ranges, kept, hi)), (here, 0));
}

/// A range was merged with the one before it and split again, of which this node knows the second part.
#[test]
fn who_asks_in_an_epoch_that_is_over_hears_of_a_later_one() {
    let (me, id) = (node(), Id::small);
    let mut ranges = Ranges::default();
    for (lo, hi, epoch) in [(0, 19, 102), (19, 33, 110)] {
        let members = vec![Peer { node: me, address: "n".into() }];
        let (lo, hi, prev) = (id(lo), id(hi), Vec::new());
        let config = Config { lo, hi, epoch, members, prev, forced: false, tie_breaker: None };
        let known = Known { config: Arc::new(config), swept: true, released: false, seq: 0 };
        ranges.known.insert(hi, known);
    }
    let refused = |hi, epoch, point| {
        let at = RangeTag { hi: id(hi), epoch };
        match ranges.duty(&me, at, id(point)) {
            Err(Refusal::Newer(config)) => Some((config.hi, config.epoch)),
            Err(Refusal::Behind) => None,
            other => panic!("{:?}", other.err()),
        }
    };
    assert_eq!(refused(33, 105, 10), Some((id(33), 110)), "the merged range is no more");
    assert_eq!(refused(33, 105, 30), Some((id(33), 110)));
    assert_eq!(refused(33, 111, 10), None, "of that this node has not heard");
    assert_eq!(refused(19, 103, 10), None);
}
