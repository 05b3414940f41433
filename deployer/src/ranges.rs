//! The ranges of a ring, put together from what all agents report: an agent that missed a change reports
//! one that is no more.

use sky_chord::{Id, RangeView};

/// For each point the report with the highest epoch, once.
pub(crate) fn latest<'a>(views: &[&'a RangeView]) -> Vec<&'a RangeView> {
    let mut sorted = views.to_vec();
    sorted.sort_by_key(|view| std::cmp::Reverse(view.epoch));
    let mut taken: Vec<&RangeView> = Vec::new();
    for view in sorted {
        let covers = |a: &RangeView, b: &RangeView| b.hi.is_in_arc(a.lo, a.hi);
        if !taken.iter().any(|other| covers(view, other) || covers(other, view)) {
            taken.push(view);
        }
    }
    taken
}

/// What these disjoint arcs leave of the circle.
pub(crate) fn gaps(mut arcs: Vec<(Id, Id)>) -> Vec<(Id, Id)> {
    arcs.sort_by_key(|(_, hi)| *hi);
    let Some((_, mut end)) = arcs.last().copied() else { return vec![(Id::MIN, Id::MIN)] };
    let mut gaps = Vec::new();
    for (lo, hi) in arcs {
        if lo != end {
            gaps.push((end, lo));
        }
        end = hi;
    }
    gaps
}

#[cfg(test)]
mod tests {
    use sky_chord::Peer;

    use super::*;

    fn view(lo: u64, hi: u64, epoch: u64) -> RangeView {
        RangeView {
            lo: Id::small(lo),
            hi: Id::small(hi),
            epoch,
            members: Vec::<Peer>::new(),
            prev: Vec::new(),
            leads: false,
            unswept: false,
            lagging: Vec::new(),
            keys: 0,
        }
    }

    #[test]
    fn old_reports_of_a_range_that_was_split_do_not_count() {
        let views = [view(9, 5, 1), view(9, 2, 2), view(2, 5, 2), view(5, 9, 1), view(2, 5, 2)];
        let views: Vec<&RangeView> = views.iter().collect();
        let mut found: Vec<_> = latest(&views).iter().map(|view| (view.lo, view.hi)).collect();
        found.sort();
        let small = |lo, hi| (Id::small(lo), Id::small(hi));
        assert_eq!(found, [small(2, 5), small(5, 9), small(9, 2)]);
        assert!(gaps(found.clone()).is_empty());
        found.remove(1);
        assert_eq!(gaps(found), [small(5, 9)]);
        assert!(gaps(vec![small(4, 4)]).is_empty());
    }
}
