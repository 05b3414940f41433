//! Tests of `membership`.

use std::time::Duration;

use super::*;
use crate::ring::testnet::{Net, Part, peer, settings};

const FOUR: [u64; 4] = [10, 120, 230, 340];

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn entry(position: u64, version: u64, status: MemberStatus) -> MemberEntry {
    MemberEntry { peer: peer(position), version, status }
}

/// A node at 10 that knows 20 and 30.
fn lone() -> (Context, Membership) {
    let mut ctx = Context::new(Time::default(), peer(10), 3, settings(), 1);
    let mut members = Membership::new(&ctx, None);
    let up = |position| entry(position, 1 << 32, MemberStatus::Up);
    members.on_gossip(&mut ctx, &peer(20), vec![up(20), up(30)], false);
    members.take_changes();
    (ctx, members)
}

fn gossip(ctx: &mut Context, members: &mut Membership, entry: MemberEntry) {
    members.on_gossip(ctx, &peer(99), vec![entry], false);
}

#[test]
fn tables_become_equal() {
    let mut net = Net::ring(settings(), &FOUR);
    let is_equal = |net: &Net| {
        let first = net.parts.values().next().map(|part| part.members.entries());
        net.parts.values().all(|part| Some(part.members.entries()) == first)
    };
    net.until("the tables are equal", Duration::from_secs(3), is_equal);
    let digests: BTreeSet<_> = net.parts.values().map(|part| part.members.digest).collect();
    assert_eq!(digests.len(), 1, "equal tables have one digest");
    net.act(peer(120).node, |part| {
        part.members.set_status(MemberStatus::Leaving);
    });
    net.until("the news is everywhere", Duration::from_secs(2), |net| {
        net.parts
            .values()
            .all(|part| part.members.status_of(&peer(120).node) == Some(MemberStatus::Leaving))
    });
    assert_eq!(net.part(10).members.live().count(), 4, "a leaving node is still there");
}

#[test]
fn entries_merge_in_any_order() {
    let news = [
        entry(20, 7, MemberStatus::Up),
        entry(20, 7, MemberStatus::Suspect),
        entry(20, 9, MemberStatus::Up),
        entry(20, 9, MemberStatus::Leaving),
        entry(30, 2, MemberStatus::Left),
        entry(30, 1, MemberStatus::Up),
    ];
    let mut ends = BTreeSet::new();
    for shift in 0..news.len() {
        for backwards in [false, true] {
            let mut ctx = Context::new(Time::default(), peer(10), 1, settings(), 1);
            let mut members = Membership::new(&ctx, None);
            let mut order = news.clone();
            order.rotate_left(shift);
            if backwards {
                order.reverse();
            }
            order.into_iter().for_each(|entry| gossip(&mut ctx, &mut members, entry));
            assert_eq!(members.status_of(&peer(20).node), Some(MemberStatus::Leaving));
            assert!(members.has_left(&peer(30).node));
            ends.insert(members.digest);
        }
    }
    assert_eq!(ends.len(), 1);
}

#[test]
fn silence_is_suspicion_and_a_word_ends_it() {
    let mut net = Net::ring(settings(), &FOUR);
    net.run(Duration::from_secs(2));
    let silent = peer(120).node;
    net.paused.insert(silent);
    let is_suspect = |net: &Net| net.parts[&peer(10).node].members.is_suspect(&silent);
    let took = net.until("it is suspected", Duration::from_secs(2), is_suspect);
    assert!(took >= millis(1400), "not before its time: {took:?}");
    net.run(millis(500));
    let now = net.now;
    let part = net.part(10);
    assert!(part.members.suspected_for(now, &silent).unwrap() >= millis(490));
    assert!(part.changes.contains(&MemberChange::Suspected(silent)));
    assert!(part.notices.contains(&Notice::Suspected { node: peer(120) }));
    assert!(!part.members.live().any(|peer| peer.node == silent));
    net.paused.clear();
    net.until("it is trusted again", Duration::from_secs(2), Net::is_ideal);
    let part = net.part(10);
    assert!(part.changes.contains(&MemberChange::Recovered(silent)));
    assert!(part.notices.contains(&Notice::Recovered { node: peer(120) }));
    assert_eq!(part.members.suspected_for(now, &silent), None);
    // It has refuted what was said of it, and nobody repeats it.
    net.run(Duration::from_secs(5));
    let refuted = |part: &Part| part.members.table[&silent].entry.status == MemberStatus::Up;
    assert!(net.parts.values().all(refuted));
}

#[test]
fn two_refused_connections_are_suspicion() {
    let (mut ctx, mut members) = lone();
    let node = peer(20).node;
    members.on_unreachable(&mut ctx, &node);
    members.on_unreachable(&mut ctx, &node);
    assert!(!members.is_suspect(&node), "one broken connection is one failure");
    ctx.now = ctx.now + millis(400);
    members.heard(&mut ctx, &peer(20));
    members.on_unreachable(&mut ctx, &node);
    assert!(!members.is_suspect(&node), "it was heard in between");
    ctx.now = ctx.now + millis(400);
    members.on_unreachable(&mut ctx, &node);
    assert!(members.is_suspect(&node));
    members.on_unreachable(&mut ctx, &peer(77).node);
}

#[test]
fn who_wanted_to_leave_and_is_silent_has_left() {
    for (status, leaves) in [(MemberStatus::Leaving, true), (MemberStatus::Up, false)] {
        let (mut ctx, mut members) = lone();
        let node = peer(20).node;
        gossip(&mut ctx, &mut members, entry(20, (1 << 32) + 1, status));
        for _ in 0..2 {
            ctx.now = ctx.now + millis(400);
            members.on_unreachable(&mut ctx, &node);
        }
        members.on_timer_ping(&mut ctx);
        assert!(members.is_suspect(&node) && !members.has_left(&node), "it may come back");
        ctx.now = ctx.now + ctx.settings.repair_after;
        members.on_timer_ping(&mut ctx);
        assert_eq!(members.has_left(&node), leaves);
        members.heard(&mut ctx, &peer(20));
        gossip(&mut ctx, &mut members, entry(20, (1 << 32) + 2, status));
        assert!(!members.is_suspect(&node), "it is there after all");
    }
}

#[test]
fn a_node_that_was_stopped_itself_suspects_nobody() {
    let mut net = Net::ring(settings(), &FOUR);
    net.run(Duration::from_secs(2));
    net.paused.insert(peer(120).node);
    net.run(Duration::from_secs(20));
    net.paused.clear();
    net.part(120).changes.clear();
    net.run(Duration::from_secs(5));
    let suspected = |change: &MemberChange| matches!(change, MemberChange::Suspected(_));
    assert!(!net.part(120).changes.iter().any(suspected));
    assert!(net.is_ideal());
}

#[test]
fn a_rumour_is_believed_without_news_of_ones_own() {
    let (mut ctx, mut members) = lone();
    let node = peer(20).node;
    let rumour = entry(20, 1 << 32, MemberStatus::Suspect);
    members.heard(&mut ctx, &peer(20));
    gossip(&mut ctx, &mut members, rumour.clone());
    assert!(!members.is_suspect(&node), "just heard");
    let next = MemberEntry { version: (1 << 32) + 1, ..rumour };
    ctx.now = ctx.now + Duration::from_secs(5);
    members.set_monitored([node].into());
    gossip(&mut ctx, &mut members, next.clone());
    assert!(!members.is_suspect(&node), "watched by this node itself");
    members.set_monitored([].into());
    let next = MemberEntry { version: next.version + 1, ..next };
    gossip(&mut ctx, &mut members, next.clone());
    assert_eq!(members.status_of(&node), Some(MemberStatus::Suspect));
    let refuted = MemberEntry { version: next.version + 1, status: MemberStatus::Up, ..next };
    gossip(&mut ctx, &mut members, refuted);
    assert_eq!(members.status_of(&node), Some(MemberStatus::Up));
    let changes = members.take_changes();
    assert_eq!(changes, [MemberChange::Suspected(node), MemberChange::Recovered(node)]);
}

#[test]
fn who_leaves_and_falls_silent_has_left_also_by_hearsay() {
    let (mut ctx, mut members) = lone();
    let node = peer(20).node;
    let known = |members: &Membership| members.table[&node].entry.clone();
    gossip(&mut ctx, &mut members, entry(30, 1 << 33, MemberStatus::Up));
    gossip(&mut ctx, &mut members, entry(20, 1 << 33, MemberStatus::Leaving));
    assert!(!members.unsaved, "that it leaves is on its way to the disk at once");
    members.suspect(&mut ctx, node);
    assert!(members.is_suspect(&node));
    assert_eq!(known(&members).status, MemberStatus::Leaving, "and others are told that");
    let (mut ctx, mut third) = lone();
    gossip(&mut ctx, &mut third, known(&members));
    third.suspect(&mut ctx, node);
    ctx.now = ctx.now + ctx.settings.repair_after;
    third.say_goodbye(&ctx);
    assert!(third.has_left(&node));
}

#[test]
fn a_node_refutes_what_is_said_of_it() {
    let (mut ctx, mut members) = lone();
    members.set_status(MemberStatus::Up);
    let version = |members: &Membership| members.table[&peer(10).node].entry.version;
    let before = version(&members);
    gossip(&mut ctx, &mut members, entry(10, before, MemberStatus::Suspect));
    assert_eq!(version(&members), before + 1);
    gossip(&mut ctx, &mut members, entry(10, before + 50, MemberStatus::Left));
    assert_eq!(version(&members), before + 51);
    gossip(&mut ctx, &mut members, entry(10, u64::MAX, MemberStatus::Suspect));
    assert_eq!(members.status_of(&peer(10).node), Some(MemberStatus::Up));
}

#[test]
fn a_restart_is_noticed_and_the_address_is_learnt() {
    let (mut ctx, mut members) = lone();
    let moved = Peer { address: "10.9.9.9:1".into(), ..peer(20) };
    members.heard(&mut ctx, &moved);
    assert_eq!(members.current(&peer(20)), moved);
    gossip(&mut ctx, &mut members, entry(20, 1 << 32, MemberStatus::Leaving));
    assert_eq!(members.current(&peer(20)), moved, "older news does not undo it");
    members.take_changes();
    let restarted = MemberEntry { peer: moved, ..entry(20, 2 << 32, MemberStatus::Joining) };
    gossip(&mut ctx, &mut members, restarted);
    let node = peer(20).node;
    let changes = members.take_changes();
    assert_eq!(changes, [MemberChange::Restarted(node), MemberChange::Status(node)]);
}

#[test]
fn the_table_survives_a_restart() {
    let mut net = Net::ring(settings(), &FOUR);
    net.run(Duration::from_secs(3));
    let part = net.kill(120);
    net.restart(part);
    let members = &net.part(120).members;
    assert_eq!(members.known().count(), 4);
    assert_eq!(members.table[&peer(120).node].entry.version, 2 << 32);
    assert_eq!(members.status_of(&peer(10).node), Some(MemberStatus::Up));
}

#[test]
fn live_members_are_walked_backwards_around_the_circle() {
    let (_, members) = lone();
    let before = |point| members.live_before(Id::small(point)).cloned().collect::<Vec<_>>();
    assert_eq!(before(30), [peer(20)]);
    assert_eq!(before(31), [peer(30), peer(20)]);
    assert_eq!(before(15), [peer(30), peer(20)]);
    assert_eq!(members.next_live(false), Some(&peer(20)));
    assert_eq!(members.next_live(true), None, "neither was heard itself");
}

#[test]
fn the_view_tells_what_is_known() {
    let mut net = Net::ring(settings(), &FOUR);
    net.run(Duration::from_secs(2));
    net.kill(120);
    net.run(Duration::from_secs(3));
    let now = net.now;
    let views = net.part(10).members.views(now);
    assert_eq!(views.len(), 3);
    assert_eq!(views[0].status, MemberStatus::Suspect);
    assert!(views[0].suspected_ms.unwrap() >= 1000);
    assert_eq!(views[1].status, MemberStatus::Up);
    assert_eq!(views[1].rtt_us, Some(4000), "twice the latency of this network");
    assert!(views[1].heard_ms.unwrap() < 1000);
}
