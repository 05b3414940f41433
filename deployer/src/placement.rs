//! Where nodes stand on the circle, and in which zones: geometry without any input or output.

use std::collections::{BTreeMap, BTreeSet};

use sky_chord::Id;

/// The middle of the `place`-th of `total` equal parts of the circle.
pub(crate) fn even_position(place: usize, total: usize) -> Id {
    // Long division of (2 place + 1) 2^160 by 2 total, digit by digit.
    let divisor = 2 * total as u64;
    let mut rest = 2 * place as u64 + 1;
    let mut bytes = [0; 20];
    for byte in &mut bytes {
        let digit = (rest << 8) / divisor;
        rest = (rest << 8) % divisor;
        *byte = digit as u8;
    }
    Id::from_bytes(bytes)
}

/// The middle of the widest arc between two of the positions.
pub(crate) fn widest_gap(ids: &BTreeSet<Id>) -> Id {
    let arcs = arcs(ids);
    // The first of equals, so that the same state always gives the same plan.
    let widest = arcs.iter().rev().max_by_key(|(from, to)| arc_length(*from, *to));
    widest.map_or(Id::MAX.half(), |(from, to)| from.plus(arc_length(*from, *to).half()))
}

/// The arcs between neighbours, each as (predecessor, position).
pub(crate) fn arcs(ids: &BTreeSet<Id>) -> Vec<(Id, Id)> {
    let last = ids.last().copied();
    let before = last.into_iter().chain(ids.iter().copied());
    before.zip(ids.iter().copied()).collect()
}

/// The length of the arc (from, to]; that of the whole circle, short of one point, if they are equal.
pub(crate) fn arc_length(from: Id, to: Id) -> Id {
    if from == to { Id::MAX } else { from.distance_to(to) }
}

/// The members of the range that ends with `owner`: the owner and its neighbours, alternating.
pub(crate) fn members(ids: &BTreeSet<Id>, owner: Id, replicas: usize) -> BTreeSet<Id> {
    let forward = ids.range(owner..).chain(ids.range(..owner)).skip(1);
    let backward = ids.range(..owner).rev().chain(ids.range(owner..).rev());
    let neighbours = backward.zip(forward).flat_map(|(before, after)| [*before, *after]);
    let mut members = BTreeSet::from([owner]);
    for neighbour in neighbours {
        if members.len() >= replicas {
            break;
        }
        members.insert(neighbour);
    }
    members
}

/// A zone for each position that has none yet: one that neither neighbour has where that can be had,
/// and of those the one with the fewest nodes. `given` are the positions that have a zone.
pub(crate) fn zones(
    ids: &BTreeSet<Id>,
    given: &BTreeMap<Id, String>,
    zones: &[String],
) -> BTreeMap<Id, String> {
    let mut chosen = given.clone();
    for id in ids {
        if chosen.contains_key(id) {
            continue;
        }
        let before = ids.range(..id).next_back().or_else(|| ids.last());
        let after = ids.range(id..).nth(1).or_else(|| ids.first());
        let neighbours = [before, after].into_iter().flatten().filter(|other| *other != id);
        let near: Vec<&String> = neighbours.filter_map(|other| chosen.get(other)).collect();
        let cost = |zone: &&String| {
            let same = near.iter().filter(|other| *other == zone).count();
            (same, chosen.values().filter(|other| other == zone).count())
        };
        if let Some(zone) = zones.iter().min_by_key(cost).cloned() {
            chosen.insert(*id, zone);
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_the_owner_and_its_neighbours() {
        let ids: BTreeSet<Id> = [1, 2, 3, 4, 5].map(Id::small).into();
        let of = |owner, replicas| members(&ids, Id::small(owner), replicas);
        assert_eq!(of(1, 3), [5, 1, 2].map(Id::small).into());
        assert_eq!(of(5, 3), [4, 5, 1].map(Id::small).into());
        assert_eq!(of(3, 5), ids);
        assert_eq!(of(3, 9), ids);
    }

    #[test]
    fn neighbours_stand_in_different_zones() {
        let names = ["a", "b", "c"].map(str::to_owned);
        for (nodes, count) in [(2, 2), (3, 3), (4, 2), (6, 3), (12, 3), (20, 2)] {
            let ids: BTreeSet<Id> = (0..nodes).map(|place| even_position(place, nodes)).collect();
            let placed = zones(&ids, &BTreeMap::new(), &names[..count]);
            let around: Vec<&String> = ids.iter().map(|id| &placed[id]).collect();
            for (i, zone) in around.iter().enumerate() {
                assert_ne!(
                    *zone,
                    around[(i + 1) % nodes],
                    "{nodes} nodes in {count} zones: {around:?}"
                );
            }
        }
    }

    #[test]
    fn a_new_position_takes_the_zone_its_neighbours_do_not_have() {
        let ids: BTreeSet<Id> = [1, 2, 3].map(Id::small).into();
        let given: BTreeMap<Id, String> =
            [(Id::small(1), "a".to_owned()), (Id::small(3), "b".to_owned())].into();
        let names = ["a", "b", "c"].map(str::to_owned);
        assert_eq!(zones(&ids, &given, &names)[&Id::small(2)], "c");
        assert_eq!(zones(&ids, &given, &[]), given);
    }
}
