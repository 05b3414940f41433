//! Compares the copies of all keys: what each member of a range holds itself, key by key, in sorted pages,
//! so that little memory is needed however large the ring is.
//!
//! Writes go on meanwhile, and members answer at different moments. What differs is therefore looked at
//! again, some times and with growing pauses; it counts only if a copy that differs from another does not
//! change any more. What changed at every look was not compared. A tombstone counts as absent.

mod merge;
mod ranges;
mod settle;

use std::time::Duration;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use serde::Serialize;
use sky_chord::Id;

use crate::deployment::Deployment;
use crate::error::Result;
use merge::Merge;
use ranges::{Member, Range};

/// How many ranges are compared at once.
const RANGES_AT_ONCE: usize = 4;
/// How many differing keys are looked at again together.
const BATCH: usize = 500;
/// How many differences are told of one range; it is left after those.
const TOLD: usize = 100;
/// How often everything is compared anew when ranges changed meanwhile.
const TRIES: usize = 3;

/// What came of it.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// The ring.
    pub(crate) ring: String,
    /// Whether all copies of all keys were compared and are alike.
    pub(crate) clean: bool,
    /// How many ranges were compared.
    pub(crate) ranges: usize,
    /// How many keys.
    pub(crate) keys: u64,
    /// How many copies of them.
    pub(crate) copies: u64,
    /// How many keys were written at every look and could not be compared.
    pub(crate) busy: u64,
    /// These keys, at most some of each range.
    pub(crate) busy_keys: Vec<String>,
    /// Keys whose copies differ, at most some of each range.
    pub(crate) differences: Vec<Difference>,
    /// Whether a range has more differences than those.
    pub(crate) more: bool,
    /// Ranges that could not be compared.
    pub(crate) not_compared: Vec<NotCompared>,
}

/// A key whose copies differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Difference {
    /// The key.
    pub(crate) key: String,
    /// How they differ.
    pub(crate) kind: Kind,
    /// What each member holds.
    pub(crate) copies: Vec<Held>,
}

/// How copies differ; the gravest that applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// Two members hold other values under one version.
    OtherValue,
    /// A member holds nothing.
    Missing,
    /// A member holds another version.
    OtherVersion,
}

/// What a member holds of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Held {
    /// The member's name.
    pub(crate) node: String,
    /// What it holds; none if nothing.
    pub(crate) copy: Option<Copy>,
}

/// A copy of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Copy {
    /// Its version.
    pub(crate) version: String,
    /// The digest of value and media type.
    pub(crate) digest: String,
    /// The bytes of its value.
    pub(crate) size: u32,
}

/// A range that could not be compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct NotCompared {
    /// It begins after this point.
    pub(crate) lo: Id,
    /// It ends with this point.
    pub(crate) hi: Id,
    /// Why, as a clause.
    pub(crate) reason: String,
}

/// Compares the whole ring. `patience` is how long what differs is looked at again.
pub(crate) async fn ring(
    deployment: &Deployment,
    patience: Duration,
    progress: &dyn Fn(u64),
) -> Result<Report> {
    let mut tries = 1;
    loop {
        let (ranges, not_compared) = ranges::settled(deployment, patience).await?;
        let mut report = Report {
            ring: deployment.inventory.ring.name.clone(),
            clean: false,
            ranges: 0,
            keys: 0,
            copies: 0,
            busy: 0,
            busy_keys: Vec::new(),
            differences: Vec::new(),
            more: false,
            not_compared,
        };
        let compared = stream::iter(&ranges).map(|range| range_copies(deployment, range, patience));
        let mut compared = std::pin::pin!(compared.buffer_unordered(RANGES_AT_ONCE));
        while let Some(outcome) = compared.next().await {
            match outcome {
                Ok(found) => {
                    report.ranges += 1;
                    report.keys += found.keys;
                    report.copies += found.copies;
                    report.busy += found.busy.len() as u64;
                    report.busy_keys.extend(found.busy.into_iter().take(TOLD));
                    report.differences.extend(found.differences);
                    report.more |= found.more;
                }
                Err(not_compared) => report.not_compared.push(not_compared),
            }
            progress(report.keys);
        }
        report.clean = report.is_clean();
        if report.clean || tries == TRIES {
            return Ok(report);
        }
        // A range that got other members meanwhile was not compared fairly.
        let (now, _) = ranges::settled(deployment, patience).await?;
        if now == ranges {
            return Ok(report);
        }
        tries += 1;
    }
}

impl Report {
    /// What was not compared is not known to be alike.
    const fn is_clean(&self) -> bool {
        self.differences.is_empty() && self.not_compared.is_empty() && self.busy == 0
    }
}

/// What was found in one range.
#[derive(Default)]
struct Found {
    keys: u64,
    copies: u64,
    busy: Vec<String>,
    differences: Vec<Difference>,
    more: bool,
}

async fn range_copies(
    deployment: &Deployment,
    range: &Range,
    patience: Duration,
) -> Result<Found, NotCompared> {
    let client = &deployment.client;
    let mut found = Found::default();
    let mut suspects = Vec::new();
    let not_compared = |reason| NotCompared { lo: range.lo, hi: range.hi, reason };
    for (after, through) in range.segments() {
        let mut merge = Merge::new(client, &range.members, after, through);
        loop {
            let next = merge.next().await.map_err(not_compared)?;
            if let Some((_, copies)) = &next {
                found.keys += 1;
                found.copies += copies.iter().flatten().count() as u64;
            }
            let ended = next.is_none();
            suspects.extend(next.filter(|(_, copies)| differ(copies)).map(|(key, _)| key));
            if suspects.len() >= BATCH || (ended && !suspects.is_empty()) {
                let batch = std::mem::take(&mut suspects);
                let settled = settle::settle(client, &range.members, batch, patience).await;
                let settled = settled.map_err(not_compared)?;
                found.busy.extend(settled.busy);
                found.differences.extend(settled.differences);
            }
            if found.differences.len() > TOLD {
                found.differences.truncate(TOLD);
                found.more = true;
                return Ok(found);
            }
            if ended {
                break;
            }
        }
    }
    Ok(found)
}

/// Whether these copies are not all the same.
fn differ(copies: &[Option<Copy>]) -> bool {
    copies.windows(2).any(|pair| pair[0] != pair[1])
}

/// How these copies, of these members, differ.
fn difference(key: String, members: &[Member], copies: Vec<Option<Copy>>) -> Difference {
    let held: Vec<&Copy> = copies.iter().flatten().collect();
    let other_value = held.iter().any(|a| held.iter().any(|b| a.version == b.version && a != b));
    let kind = match (other_value, held.len() < copies.len()) {
        (true, _) => Kind::OtherValue,
        (false, true) => Kind::Missing,
        (false, false) => Kind::OtherVersion,
    };
    let copies =
        members.iter().zip(copies).map(|(member, copy)| Held { node: member.name.clone(), copy });
    Difference { key, kind, copies: copies.collect() }
}

/// Asks all of these members something at once.
async fn of_each<T>(
    members: &[Member],
    ask: impl AsyncFn(&Member) -> Result<T>,
) -> Result<Vec<T>, String> {
    let asked = stream::iter(members).map(|member| async {
        ask(member).await.map_err(|error| format!("{}: {}", member.name, error.brief()))
    });
    asked.buffered(members.len().max(1)).try_collect().await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(version: &str, digest: &str) -> Option<Copy> {
        Some(Copy { version: version.to_owned(), digest: digest.to_owned(), size: 1 })
    }

    #[test]
    fn what_was_not_compared_is_not_alike() {
        let report = |busy| Report {
            ring: "r".to_owned(),
            clean: false,
            ranges: 1,
            keys: 5,
            copies: 15,
            busy,
            busy_keys: Vec::new(),
            differences: Vec::new(),
            more: false,
            not_compared: Vec::new(),
        };
        assert!(report(0).is_clean() && !report(1).is_clean());
    }

    #[test]
    fn differences_are_told_by_their_gravest_kind() {
        let member = |name: &str| Member { name: name.to_owned(), url: String::new() };
        let members = [member("a"), member("b"), member("c")];
        let kind = |copies: [Option<Copy>; 3]| {
            let copies = copies.to_vec();
            differ(&copies).then(|| difference("k".to_owned(), &members, copies).kind)
        };
        let (one, two, odd) = (copy("1", "x"), copy("2", "y"), copy("1", "z"));
        assert_eq!(kind([one.clone(), one.clone(), one.clone()]), None);
        assert_eq!(kind([None, None, None]), None);
        assert_eq!(kind([one.clone(), one.clone(), None]), Some(Kind::Missing));
        assert_eq!(kind([two, one.clone(), one.clone()]), Some(Kind::OtherVersion));
        assert_eq!(kind([None, one, odd]), Some(Kind::OtherValue));
    }
}
