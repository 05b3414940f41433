//! Looks again at keys whose copies differed, until they are alike or do not change any more.

use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt, TryStreamExt};
use sky_chord::{Cursor, Id, Key};

use super::ranges::Member;
use super::{Copy, Difference, differ, difference, of_each};
use crate::client::Client;
use crate::error::Result;

/// The pauses before the first looks; the last one is used for all further looks.
const PAUSES: [Duration; 5] = [
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
];
/// How many keys are looked at at once.
const AT_ONCE: usize = 16;
/// In how many of the last looks a copy must have been the same to count as not changing.
const SAME_IN: usize = 3;
/// How many more looks are spent on keys that were written at every one before, and the pause before each.
/// Copies of such a key are alike only between two writes.
const QUICK: (usize, Duration) = (40, Duration::from_millis(10));

/// What became of the keys.
pub(super) struct Settled {
    pub(super) differences: Vec<Difference>,
    /// Keys that were written at every look.
    pub(super) busy: Vec<String>,
}

struct Suspect {
    key: String,
    /// What the members held at the last looks, the latest last.
    looks: Vec<Vec<Option<Copy>>>,
}

/// Looks at these keys until `patience` is over.
pub(super) async fn settle(
    client: &Client,
    members: &[Member],
    keys: Vec<String>,
    patience: Duration,
) -> Result<Settled, String> {
    let begun = Instant::now();
    let mut pauses = PAUSES.into_iter();
    let mut pause = PAUSES[0];
    let mut suspects: Vec<Suspect> =
        keys.into_iter().map(|key| Suspect { key, looks: Vec::new() }).collect();
    loop {
        pause = pauses.next().unwrap_or(pause);
        tokio::time::sleep(pause).await;
        suspects = look(client, members, suspects).await?;
        for suspect in &mut suspects {
            let old = suspect.looks.len().saturating_sub(SAME_IN);
            suspect.looks.drain(..old);
        }
        if suspects.is_empty() || begun.elapsed() >= patience {
            break;
        }
    }
    let (stuck, mut busy): (Vec<_>, Vec<_>) = suspects.into_iter().partition(Suspect::is_stuck);
    for _ in 0..QUICK.0 {
        if busy.is_empty() {
            break;
        }
        tokio::time::sleep(QUICK.1).await;
        busy = look(client, members, busy).await?;
    }
    let mut differences: Vec<Difference> = stuck
        .into_iter()
        .map(|mut suspect| {
            difference(suspect.key, members, suspect.looks.pop().unwrap_or_default())
        })
        .collect();
    differences.sort_by(|a, b| a.key.cmp(&b.key));
    Ok(Settled { differences, busy: busy.into_iter().map(|suspect| suspect.key).collect() })
}

/// Looks once more at these keys. Returns those whose copies still differ.
async fn look(
    client: &Client,
    members: &[Member],
    suspects: Vec<Suspect>,
) -> Result<Vec<Suspect>, String> {
    let looked = stream::iter(suspects).map(|mut suspect| async {
        let seen = of_each(members, async |member| held(client, member, &suspect.key).await);
        suspect.looks.push(seen.await?);
        Ok::<_, String>(suspect)
    });
    let looked: Vec<Suspect> = looked.buffer_unordered(AT_ONCE).try_collect().await?;
    Ok(looked.into_iter().filter(Suspect::differs).collect())
}

impl Suspect {
    fn differs(&self) -> bool {
        self.looks.last().is_some_and(|last| differ(last))
    }

    /// Whether a member held the same at all these looks, and each time something else than another.
    fn is_stuck(&self) -> bool {
        let members = self.looks.first().map_or(0, Vec::len);
        (0..members).any(|member| {
            let first = &self.looks[0][member];
            self.looks.iter().all(|look| look[member] == *first)
                && self.looks.iter().all(|look| differ(look))
        })
    }
}

/// What a member holds of a key now.
async fn held(client: &Client, member: &Member, key: &str) -> Result<Option<Copy>> {
    let point = Key::new(key).hash();
    let before = (point != Id::MIN).then(|| Cursor::AfterPoint(point.plus(Id::MAX)));
    let before = before.as_ref().map(sky_api::cursor::text);
    let page = client.local_page(&member.url, before.as_deref(), 1).await?;
    Ok(page.keys.into_iter().find(|entry| entry.key == key).map(Copy::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suspect(looks: &[[u32; 3]]) -> Suspect {
        let copy = |version: u32| {
            let version_text = version.to_string();
            (version > 0).then(|| Copy {
                digest: version_text.clone(),
                version: version_text,
                size: 1,
            })
        };
        let looks = looks.iter().map(|look| look.iter().map(|version| copy(*version)).collect());
        Suspect { key: "k".to_owned(), looks: looks.collect() }
    }

    #[test]
    fn what_is_written_all_the_time_is_not_a_difference() {
        // Every copy moves on, each seen at another moment.
        assert!(!suspect(&[[1, 2, 1], [5, 4, 4], [7, 7, 8]]).is_stuck());
        // One copy stays behind, however busy the others are.
        assert!(suspect(&[[5, 5, 1], [6, 7, 1], [8, 8, 1]]).is_stuck());
        // One was never told, one never heard of the deletion.
        assert!(suspect(&[[3, 3, 0], [3, 3, 0]]).is_stuck());
        assert!(suspect(&[[0, 3, 0], [0, 3, 0], [0, 3, 0]]).is_stuck());
        // It catches up.
        assert!(!suspect(&[[3, 3, 1], [3, 3, 3]]).differs());
    }
}
