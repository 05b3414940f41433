//! The keys of several members, page by page, as one sorted list.

use std::collections::VecDeque;

use sky_api::LocalKeyEntry;
use sky_chord::{Cursor, Id};

use super::Copy;
use super::ranges::Member;
use crate::client::Client;
use crate::error::Result;

/// How many keys a page has, at least and at most.
const PAGES: (usize, usize) = (8, 1000);
/// How many bytes of values an agent has to read for a page.
const PAGE_BYTES: u64 = 8 << 20;

/// A list under way.
pub(super) struct Merge<'a> {
    client: &'a Client,
    members: &'a [Member],
    sides: Vec<Side>,
    through: String,
}

/// What one member holds.
struct Side {
    keys: VecDeque<LocalKeyEntry>,
    cursor: Option<String>,
    ended: bool,
    limit: usize,
}

impl<'a> Merge<'a> {
    /// What these members hold after a place and up to a point.
    pub(super) fn new(
        client: &'a Client,
        members: &'a [Member],
        after: Option<Cursor>,
        through: Id,
    ) -> Self {
        let cursor = after.as_ref().map(sky_api::cursor::text);
        let side =
            |_| Side { keys: VecDeque::new(), cursor: cursor.clone(), ended: false, limit: 256 };
        let sides = members.iter().map(side).collect();
        Self { client, members, sides, through: through.to_string() }
    }

    /// The next key that any member holds, and each member's copy; none at the end. An error is a clause
    /// that names the member.
    pub(super) async fn next(&mut self) -> Result<Option<(String, Vec<Option<Copy>>)>, String> {
        self.fill().await?;
        let heads = self.sides.iter().filter_map(|side| side.keys.front());
        let Some((hash, key)) = heads.map(|head| (&head.hash, &head.key)).min() else {
            return Ok(None);
        };
        let (hash, key) = (hash.clone(), key.clone());
        let take = |side: &mut Side| {
            let is_it = side.keys.front().is_some_and(|head| head.hash == hash && head.key == key);
            is_it.then(|| side.keys.pop_front()).flatten().map(Copy::from)
        };
        let copies = self.sides.iter_mut().map(take).collect();
        Ok(Some((key, copies)))
    }

    /// Gets the next page of all that need one, at once.
    async fn fill(&mut self) -> Result<(), String> {
        let (client, through) = (self.client, &self.through);
        let fetch = self.sides.iter_mut().zip(self.members).map(|(side, member)| async move {
            while side.keys.is_empty() && !side.ended {
                side.fetch(client, &member.url, through)
                    .await
                    .map_err(|error| format!("{}: {}", member.name, error.brief()))?;
            }
            Ok(())
        });
        futures_util::future::try_join_all(fetch).await.map(drop)
    }
}

impl Side {
    async fn fetch(&mut self, client: &Client, url: &str, through: &str) -> Result<()> {
        let page = client.local_page(url, self.cursor.as_deref(), self.limit).await?;
        let listed = page.keys.len();
        let size: u64 = page.keys.iter().map(|entry| u64::from(entry.size)).sum();
        let mean = size / (listed as u64).max(1) + 1;
        self.limit = usize::try_from(PAGE_BYTES / mean).unwrap_or(PAGES.1).clamp(PAGES.0, PAGES.1);
        // Points are written with all their digits: as texts they have the same order.
        self.keys.extend(page.keys.into_iter().take_while(|entry| *entry.hash <= *through));
        self.ended = self.keys.len() < listed || page.cursor.is_none();
        self.cursor = page.cursor;
        Ok(())
    }
}

impl From<LocalKeyEntry> for Copy {
    fn from(entry: LocalKeyEntry) -> Self {
        Self { version: entry.etag, digest: entry.digest, size: entry.size }
    }
}
