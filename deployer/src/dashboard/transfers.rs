//! Data on its way between nodes, as the agents that bring it tell.

use serde::Serialize;
use sky_chord::{Id, Peer, RangeView, Transfer, TransferKind};

use super::aggregate::arc;

/// Data of the range (lo, hi] on its way, or how it got there a moment ago.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct TransferReport {
    /// Why it is moved.
    kind: TransferKind,
    /// The range begins after this point.
    lo: Id,
    /// The range ends with this point.
    pub(super) hi: Id,
    /// The share of the circle that the range has.
    share: f64,
    /// The epoch of the range.
    pub(super) epoch: u64,
    /// The node that brings it.
    pub(super) by: Id,
    /// Who has the data.
    from: Vec<Id>,
    /// Who gets it; empty if no member is new.
    to: Vec<Id>,
    /// Keys done so far.
    keys: u64,
    /// How many there are, as those who have them count; none if they do not tell.
    about: Option<u64>,
    /// Bytes of the values done so far.
    bytes: u64,
    /// The share of the range that was gone through, between 0 and 1; none if keys do not come in order.
    done: Option<f64>,
    /// Keys that were found and are not yet done.
    known_left: u64,
    /// How long it has taken, in milliseconds.
    took_ms: u64,
    /// How long nothing was done.
    still_ms: u64,
    /// How long ago it ended; none while it is under way.
    pub(super) ended_ms: Option<u64>,
}

impl TransferReport {
    /// What the node `by` told `age_ms` ago. `ranges` are those that its sources report.
    pub(super) fn new<'a>(
        transfer: &Transfer,
        by: Id,
        age_ms: u64,
        ranges: impl Iterator<Item = (Id, &'a RangeView)>,
    ) -> Self {
        let ids =
            |peers: &[Peer]| -> Vec<Id> { peers.iter().map(|peer| peer.node.position).collect() };
        let (lo, hi) = (transfer.lo, transfer.hi);
        let from = ids(&transfer.from);
        let counted = ranges.filter(|(node, range)| {
            from.contains(node) && (range.lo, range.hi, range.epoch) == (lo, hi, transfer.epoch)
        });
        let is_sweep = transfer.kind == TransferKind::Sweep;
        let about = counted.map(|(_, range)| range.keys).max().filter(|_| is_sweep);
        let since_then = |ms: u64| ms.saturating_add(age_ms);
        // What ended takes no longer, and what is under way does.
        let going_on = if transfer.ended_ms.is_some() { 0 } else { age_ms };
        Self {
            kind: transfer.kind,
            lo,
            hi,
            share: arc(lo, hi),
            epoch: transfer.epoch,
            by,
            to: ids(&transfer.to),
            keys: transfer.keys,
            about,
            bytes: transfer.bytes,
            done: transfer.through.map(|through| done(lo, through, hi)),
            known_left: transfer.known_left,
            took_ms: transfer.took_ms.saturating_add(going_on),
            still_ms: transfer.still_ms.saturating_add(going_on),
            ended_ms: transfer.ended_ms.map(since_then),
            from,
        }
    }
}

/// How much of (lo, hi] lies before `through`.
fn done(lo: Id, through: Id, hi: Id) -> f64 {
    let gone = if through == lo { 0.0 } else { arc(lo, through) };
    if through == hi { 1.0 } else { (gone / arc(lo, hi)).clamp(0.0, 1.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_gone_through_is_a_share_of_the_range() {
        let quarter = |quarters: u8| {
            let mut bytes = [0; 20];
            bytes[0] = quarters * 64;
            Id::from_bytes(bytes)
        };
        assert_eq!(done(quarter(1), quarter(1), quarter(3)), 0.0);
        assert_eq!(done(quarter(1), quarter(2), quarter(3)), 0.5);
        assert_eq!(done(quarter(1), quarter(3), quarter(3)), 1.0);
        assert_eq!(done(quarter(3), quarter(0), quarter(1)), 0.5, "over the end of the circle");
        let whole = (quarter(1), quarter(2), quarter(1));
        assert_eq!(done(whole.0, whole.1, whole.2), 0.25);
    }
}
