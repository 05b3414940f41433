//! Tests of `check`.

use super::*;
use crate::view::{KeyCount, Load};

fn peer(position: u64) -> Peer {
    let node = NodeId { position: Id::small(position), incarnation: 7 };
    Peer { node, address: format!("10.0.0.{position}:4321").into() }
}

/// The reports of a right ring of three replicas and lists of four.
fn ring(positions: &[u64]) -> Vec<(Peer, Option<View>)> {
    let count = positions.len();
    let at = |i: usize| peer(positions[i % count]);
    let mut reports: Vec<_> = (0..count)
        .map(|i| {
            let view = View {
                me: at(i),
                ring: Some("ab".into()),
                phase: Phase::Up,
                predecessor: (count > 1).then(|| at(i + count - 1)),
                successors: (1..=4.min(count - 1)).map(|step| at(i + step)).collect(),
                fingers: Vec::new(),
                ranges: Vec::new(),
                members: Vec::new(),
                keys: KeyCount::default(),
                load: Load::default(),
            };
            (at(i), Some(view))
        })
        .collect();
    for i in 0..count {
        let mut members = vec![at(i + count - 1), at(i), at(i + 1)];
        members.sort();
        members.dedup();
        for member in &members {
            let range = RangeView {
                lo: at(i + count - 1).node.position,
                hi: at(i).node.position,
                epoch: 5,
                members: members.clone(),
                prev: Vec::new(),
                leads: member.node == at(i).node,
                unswept: false,
                lagging: Vec::new(),
                keys: 0,
            };
            let holder = reports.iter_mut().find(|(peer, _)| peer == member);
            holder.unwrap().1.as_mut().unwrap().ranges.push(range);
        }
    }
    reports
}

/// The verdict over a ring of 10, 20, 30, 40, 50 after some damage to the node at index 1.
fn damaged(damage: impl FnOnce(&mut View)) -> Verdict {
    let mut reports = ring(&[10, 20, 30, 40, 50]);
    damage(reports[1].1.as_mut().unwrap());
    check(&reports, 3, 4)
}

/// Asserts the verdict and that one problem contains each of the words.
#[track_caller]
fn assert_wrong(verdict: &Verdict, replicated: bool, words: &[&str]) {
    assert!(!verdict.right, "{verdict:?}");
    assert_eq!(verdict.replicated, replicated, "{verdict:?}");
    let named = |problem: &String| words.iter().all(|word| problem.contains(word));
    assert!(verdict.problems.iter().any(named), "{verdict:?}");
}

fn own_range(view: &mut View) -> &mut RangeView {
    let me = view.me.node.position;
    view.ranges.iter_mut().find(|range| range.hi == me).unwrap()
}

#[test]
fn good_rings_of_every_small_size_are_right() {
    for count in 1..=7 {
        let positions: Vec<u64> = (1..=count).map(|i| i * 10).collect();
        let verdict = check(&ring(&positions), 3, 4);
        assert_eq!(verdict, Verdict { right: true, replicated: true, problems: vec![] });
    }
}

#[test]
fn nodes_outside_the_ring_are_named() {
    let mut reports = ring(&[10, 20, 30, 40, 50]);
    reports.push((peer(60), None));
    assert_wrong(&check(&reports, 3, 4), true, &["60 (10.0.0.60:4321)", "does not answer"]);
    let mut reports = ring(&[10, 20, 30, 40, 50]);
    let mut outsider = ring(&[60]).remove(0);
    outsider.1.as_mut().unwrap().ring = Some("cd".into());
    reports.push(outsider);
    assert_wrong(&check(&reports, 3, 4), true, &["60", "another ring: cd instead of ab"]);
    for (phase, words) in
        [(Phase::Joining, "still joining"), (Phase::Drained, "left"), (Phase::Waiting, "yet")]
    {
        let mut reports = ring(&[10, 20, 30, 40, 50]);
        let mut outsider = ring(&[60]).remove(0);
        outsider.1.as_mut().unwrap().phase = phase;
        reports.push(outsider);
        assert_wrong(&check(&reports, 3, 4), true, &["60", words]);
    }
    assert_wrong(&check(&[(peer(1), None)], 3, 4), false, &["No node is a member"]);
    assert!(!check(&[], 3, 4).right);
    let mut twins = ring(&[10, 20, 30]);
    let mut twin = twins[0].clone();
    twin.1.as_mut().unwrap().me.node.incarnation = 8;
    twins.push(twin);
    assert_wrong(&check(&twins, 3, 4), false, &["same position"]);
}

#[test]
fn wrong_pointers_are_named() {
    let verdict = damaged(|view| drop(view.successors.remove(0)));
    assert_wrong(&verdict, true, &["The successor of 20", "is 40", "should be 30"]);
    let verdict = damaged(|view| view.successors.truncate(2));
    assert_wrong(&verdict, true, &["The successor list of 20", "should be 30", "10"]);
    let verdict = damaged(|view| view.successors.clear());
    assert_wrong(&verdict, true, &["The successor of 20", "is nobody"]);
    let verdict = damaged(|view| view.predecessor = Some(peer(50)));
    assert_wrong(&verdict, true, &["The predecessor of 20", "is 50", "should be 10"]);
}

#[test]
fn two_rings_are_not_one() {
    let mut reports = ring(&[10, 30, 50]);
    reports.extend(ring(&[20, 40, 60]));
    assert_wrong(&check(&reports, 3, 4), false, &["The successor of 20", "is 40", "should be 30"]);
}

#[test]
fn damaged_ranges_are_named() {
    let verdict = damaged(|view| own_range(view).epoch = 4);
    assert_wrong(&verdict, false, &["20", "has not taken up epoch 5"]);
    let verdict = damaged(|view| view.ranges.clear());
    assert_wrong(&verdict, false, &["Nobody leads the range (10, 20]"]);
    let verdict = damaged(|view| own_range(view).unswept = true);
    assert_wrong(&verdict, false, &["20", "still bringing the range (10, 20]"]);
    let verdict = damaged(|view| own_range(view).lagging = vec![peer(30).node]);
    assert_wrong(&verdict, false, &["30 (10.0.0.30:4321) may lack writes"]);
    let verdict = damaged(|view| view.ranges.iter_mut().for_each(|range| range.leads = true));
    assert_wrong(&verdict, false, &["More than one node leads"]);
    let verdict = damaged(|view| own_range(view).lo = Id::small(15));
    assert_wrong(&verdict, false, &["disagree about epoch 5"]);
    let verdict = damaged(|view| drop(own_range(view).members.pop()));
    assert_wrong(&verdict, false, &["disagree about epoch 5"]);
}

#[test]
fn gaps_and_missing_members_are_named() {
    let mut reports = ring(&[10, 20, 30, 40, 50]);
    for (_, view) in &mut reports {
        view.as_mut().unwrap().ranges.retain(|range| range.hi != Id::small(40));
    }
    assert_wrong(&check(&reports, 3, 4), false, &["No node answers for (30, 40]"]);
    for (_, view) in &mut reports {
        view.as_mut().unwrap().ranges.clear();
    }
    assert_wrong(&check(&reports, 3, 4), false, &["any range"]);
    let mut reports = ring(&[10, 20, 30, 40, 50]);
    for (_, view) in &mut reports {
        let view = view.as_mut().unwrap();
        for range in view.ranges.iter_mut().filter(|range| range.hi == Id::small(40)) {
            range.members.retain(|member| member.node != peer(50).node);
        }
        if view.me == peer(50) {
            view.ranges.retain(|range| range.hi != Id::small(40));
        }
    }
    assert_wrong(&check(&reports, 3, 4), false, &["(30, 40] has 2 members", "instead of 3"]);
    let mut reports = ring(&[10, 20, 30, 40, 50]);
    reports[3].1 = None;
    assert_wrong(&check(&reports, 3, 4), false, &["40", "is not in the ring"]);
}

#[test]
fn full_members_in_the_wrong_place_are_replicated_but_not_right() {
    let mut reports = ring(&[10, 20, 30, 40, 50]);
    // (30, 40] is kept by 10, 40, 50 instead of 30, 40, 50.
    let mut moved = None;
    for (peer_, view) in &mut reports {
        for range in &mut view.as_mut().unwrap().ranges {
            if range.hi == Id::small(40) {
                range.members = vec![peer(10), peer(40), peer(50)];
                if peer_.node == peer(30).node {
                    moved = Some(range.clone());
                }
            }
        }
    }
    let view = reports[2].1.as_mut().unwrap();
    view.ranges.retain(|range| range.hi != Id::small(40));
    reports[0].1.as_mut().unwrap().ranges.push(moved.unwrap());
    let verdict = check(&reports, 3, 4);
    assert_wrong(&verdict, true, &["The members of the range (30, 40]", "but should be 30"]);
    assert_eq!(verdict.problems.len(), 1, "{verdict:?}");
}

#[test]
fn a_later_epoch_counts_and_an_older_report_of_a_former_member_does_not() {
    let mut reports = ring(&[10, 20, 30, 40, 50]);
    let old = own_range(reports[1].1.as_mut().unwrap()).clone();
    let former = RangeView { epoch: 3, leads: false, unswept: true, ..old };
    reports[4].1.as_mut().unwrap().ranges.push(former);
    assert!(check(&reports, 3, 4).right);
}

type State = (NodeId, Option<Peer>, Vec<Peer>);

fn states(count: u64, r: u64) -> Vec<State> {
    (0..count)
        .map(|i| {
            let list = (1..=r.min(count - 1)).map(|step| peer((i + step) % count)).collect();
            (peer(i).node, Some(peer((i + count - 1) % count)), list)
        })
        .collect()
}

#[test]
fn the_invariant_holds_in_good_rings() {
    for count in 1..=12 {
        zave_invariant(&states(count, 3), 3, true).unwrap();
    }
    zave_invariant(&[], 3, true).unwrap();
    // A newcomer that nobody points to yet, and a dead first entry.
    let mut appendage = states(12, 3);
    appendage.retain(|(node, ..)| node.position != Id::small(5));
    for (node, _, list) in &mut appendage {
        if node.position != Id::small(4) {
            list.retain(|peer| peer.node.position != Id::small(5));
        }
    }
    zave_invariant(&appendage, 3, true).unwrap();
    appendage.push((peer(5).node, None, vec![peer(6), peer(7), peer(8)]));
    zave_invariant(&appendage, 3, true).unwrap();
}

#[test]
fn the_invariant_names_each_kind_of_damage() {
    let broken = |damage: &dyn Fn(&mut Vec<State>)| {
        let mut states = states(12, 3);
        damage(&mut states);
        zave_invariant(&states, 3, true).unwrap_err()
    };
    assert!(broken(&|s| s[0].2.swap(0, 1)).contains("not ordered"));
    assert!(broken(&|s| s[0].2[1] = peer(1)).contains("not ordered"));
    assert!(broken(&|s| s[0].2[0] = peer(0)).contains("not ordered"));
    assert!(broken(&|s| drop(s.drain(1..4))).contains("lives"));
    assert!(broken(&|s| s[0].2.clear()).contains("alone"));
    let two_rings = |s: &mut Vec<State>| {
        for (i, (_, _, list)) in s.iter_mut().enumerate() {
            let i = i as u64;
            *list = [2, 4, 6].iter().map(|step| peer((i + step) % 12)).collect();
        }
    };
    assert!(broken(&two_rings).contains("another ring"));
    let loopy = |s: &mut Vec<State>| {
        for (i, (_, _, list)) in s.iter_mut().enumerate() {
            *list = vec![peer((i as u64 + 5) % 12)];
        }
    };
    assert!(broken(&loopy).contains("between"));
    let skipping = |s: &mut Vec<State>| {
        for (i, (_, _, list)) in s.iter_mut().enumerate() {
            let i = i as u64;
            *list = [1, 3, 5].iter().map(|step| peer((i + step) % 12)).collect();
        }
    };
    assert!(broken(&skipping).contains("principals"));
}
