//! In the end all members of a range hold the same: the disks are compared key by key.

use std::collections::{BTreeMap, BTreeSet};

use sky_chord::{Ballot, Key, NodeId, Record};

use super::cluster::Cluster;

/// Panics unless all members of each range hold the same values under the same ballots. Members that
/// nobody writes to collect tombstones at their own pace, so one that has none left is as good as one
/// that still has it.
pub(crate) fn assert_alike(cluster: &Cluster) {
    cluster.machines.iter().for_each(|place| place.disk.assert_nothing_is_left_over());
    let disks: BTreeMap<NodeId, BTreeMap<Key, Record>> =
        cluster.machines.iter().map(|place| (place.peer.node, place.disk.records())).collect();
    for range in cluster.watch.in_force() {
        let held: Vec<_> = range
            .members
            .iter()
            .map(|peer| (peer, disks.get(&peer.node).expect("every member has its disk")))
            .collect();
        let keys: BTreeSet<&Key> = held.iter().flat_map(|(_, records)| records.keys()).collect();
        for key in keys.into_iter().filter(|key| range.covers(key.hash())) {
            let states: Vec<_> = held.iter().map(|(_, records)| state(records.get(key))).collect();
            let present = states.iter().flatten();
            let is_deleted = present.clone().all(|record| !record.is_live());
            let is_complete = is_deleted || states.iter().all(Option::is_some);
            let content = |record: &Record| (record.accepted, record.register.clone().outlined(0));
            let mut contents = present.map(|record| content(record));
            let first = contents.next();
            assert!(
                is_complete && contents.all(|other| Some(other) == first),
                "the members of ({:?}, {:?}] hold {key:?} differently: {:?}",
                range.lo,
                range.hi,
                held.iter().map(|(peer, _)| peer).zip(&states).collect::<Vec<_>>(),
            );
        }
    }
}

/// A record with something accepted in it.
fn state(record: Option<&Record>) -> Option<&Record> {
    record.filter(|record| record.accepted != Ballot::ZERO)
}
