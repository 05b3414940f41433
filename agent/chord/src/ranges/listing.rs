//! Pages of keys: what a quorum of a range's members holds, in the order of points.
//!
//! A state that a majority of the members holds was chosen. Where the members that answered do not agree, a
//! change is under way, was given up, or is not everywhere yet: the key is read like any other before the
//! page is answered. So a page says of each key what a read of the key could have said.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::round::{Job, Origin, Task};
use super::{ASK_AGAIN, Ranges, Wake, World};
use crate::Id;
use crate::call::{ListingId, RangeCall};
use crate::config::{Ballot, Config, NodeId, Peer};
use crate::event::Records;
use crate::message::{Body, Refusal, ScanEntry};
use crate::record::Key;
use crate::request::{Answer, Cursor, Failure, ListedKey};
use crate::time::Time;

struct Listing {
    origin: Origin,
    config: Arc<Config>,
    ask_prev: bool,
    after: Option<Cursor>,
    through: Id,
    prefix: Arc<str>,
    limit: u32,
    deadline: Time,
    pages: BTreeMap<NodeId, (Vec<ScanEntry>, bool)>,
    /// What is to be answered, once enough members have.
    draft: Option<Draft>,
}

/// A page, and what is not yet known of it.
struct Draft {
    /// The size and version of each key's value, or none if it has no value.
    keys: BTreeMap<Key, Option<(u32, Ballot)>>,
    next: Option<Cursor>,
    /// Keys that are being read.
    unsure: BTreeSet<Key>,
}

/// The listings under way.
#[derive(Default)]
pub(super) struct Listings {
    under_way: BTreeMap<ListingId, Listing>,
    last: u64,
}

/// The fewest keys asked for at once, so that a narrow prefix does not need a round trip a key.
const PAGE: u32 = 256;

impl Ranges {
    /// Lists the next keys of the range that covers this place.
    pub(super) fn list<R: Records>(
        &mut self,
        w: &mut World<'_, R>,
        origin: Origin,
        after: Option<Cursor>,
        prefix: Arc<str>,
        limit: u32,
        deadline: Time,
    ) {
        let start = match &after {
            None => Id::MIN,
            Some(Cursor::AfterKey(key)) => key.hash(),
            Some(Cursor::AfterPoint(point)) => point.plus(Id::small(1)),
        };
        let Some(known) = self.current(start) else {
            return self.finish_origin(w, origin, Err(Failure::NotMember(None)));
        };
        let config = Arc::clone(&known.config);
        let ask_prev = known.must_ask_prev();
        // The list runs from point 0 upwards; a range that wraps is listed in two parts.
        let through = if start <= config.hi { config.hi } else { Id::MAX };
        self.listings.last += 1;
        let id = ListingId(self.listings.last);
        let listing = Listing {
            origin,
            ask_prev,
            config,
            after,
            through,
            prefix,
            limit,
            deadline,
            pages: BTreeMap::new(),
            draft: None,
        };
        let everyone: Vec<Peer> = listing.config.everyone().cloned().collect();
        self.listings.under_way.insert(id, listing);
        for peer in everyone {
            self.ask_page(w, id, &peer);
        }
    }

    fn ask_page<R: Records>(&mut self, w: &mut World<'_, R>, id: ListingId, peer: &Peer) {
        let Some(listing) = self.listings.under_way.get(&id) else { return };
        let question = Body::Scan {
            at: listing.config.tag(),
            after: listing.after.clone(),
            through: listing.through,
            limit: listing.limit.max(PAGE),
            with_digest: false,
            with_version: true,
        };
        w.ask_slowly(peer, question, RangeCall::Listing(id));
    }

    /// A member's page, or none in time.
    pub(super) fn on_listing_answer<R: Records>(
        &mut self,
        w: &mut World<'_, R>,
        id: ListingId,
        from: NodeId,
        answer: Option<Body>,
    ) {
        let found = self.listings.under_way.get_mut(&id).filter(|listing| listing.draft.is_none());
        let Some(listing) = found else { return };
        match answer {
            Some(Body::Scanned { entries, end }) => {
                listing.pages.insert(from, (entries, end));
            }
            Some(Body::Refused(Refusal::Newer(config))) => {
                self.on_newer(w, *config);
                return self.fail_listing(w, id, Failure::NotMember(None));
            }
            _ if listing.deadline <= w.ctx.now => {
                return self.fail_listing(w, id, too_few());
            }
            Some(refused) => {
                let at = listing.config.tag();
                if refused == Body::Refused(Refusal::Behind) && from != w.ctx.me.node {
                    let configs = self.configs_over(&at);
                    self.tell_decided(w, from, configs);
                }
                return self.wake_at(w.ctx, w.ctx.now + ASK_AGAIN, Wake::Page(id, from));
            }
            None => return self.ask_page_again(w, id, from),
        }
        if listing.is_agreed() {
            self.draft_page(w, id);
        }
    }

    /// Asks a member again that did not answer in time, or could not answer yet.
    pub(super) fn ask_page_again<R: Records>(
        &mut self,
        w: &mut World<'_, R>,
        id: ListingId,
        node: NodeId,
    ) {
        let listing = self.listings.under_way.get(&id).filter(|listing| listing.draft.is_none());
        let peer = listing.and_then(|listing| {
            let mut peers = listing.config.everyone();
            peers.find(|peer| peer.node == node).cloned()
        });
        if let Some(peer) = peer {
            self.ask_page(w, id, &peer);
        }
    }

    /// Enough members have answered: what they do not agree about is read.
    fn draft_page<R: Records>(&mut self, w: &mut World<'_, R>, id: ListingId) {
        let Some(listing) = self.listings.under_way.get_mut(&id) else { return };
        let draft = listing.merge();
        let (unsure, deadline) = (draft.unsure.clone(), listing.deadline);
        listing.draft = Some(draft);
        for key in unsure {
            let origin = Origin::Listing(id, key.clone());
            self.submit(w, &key, Job { origin, task: Task::Get, deadline });
        }
        self.finish_listing(w, id);
    }

    /// A key of a page was read.
    pub(super) fn on_listed_key_read<R: Records>(
        &mut self,
        w: &mut World<'_, R>,
        id: ListingId,
        key: Key,
        outcome: Result<Answer, Failure>,
    ) {
        let Some(listing) = self.listings.under_way.get_mut(&id) else { return };
        let Some(draft) = &mut listing.draft else { return };
        let value = match outcome {
            Ok(Answer::Found { value, version }) => Some((value.bytes.len() as u32, version)),
            Ok(_) => None,
            Err(failure) => return self.fail_listing(w, id, failure),
        };
        draft.unsure.remove(&key);
        draft.keys.insert(key, value);
        self.finish_listing(w, id);
    }

    fn finish_listing<R: Records>(&mut self, w: &mut World<'_, R>, id: ListingId) {
        let is_sure = |draft: &Draft| draft.unsure.is_empty();
        let listing = self.listings.under_way.get(&id);
        if listing.and_then(|listing| listing.draft.as_ref()).is_some_and(is_sure)
            && let Some(Listing { origin, draft: Some(draft), .. }) =
                self.listings.under_way.remove(&id)
        {
            let keys = draft.keys.into_iter();
            let listed = |(key, value): (Key, Option<_>)| {
                value.map(|(size, version)| ListedKey { key, size, version })
            };
            let keys = keys.filter_map(listed).collect();
            self.finish_origin(w, origin, Ok(Answer::Listed { keys, next: draft.next }));
        }
    }

    fn fail_listing<R: Records>(&mut self, w: &mut World<'_, R>, id: ListingId, failure: Failure) {
        if let Some(listing) = self.listings.under_way.remove(&id) {
            self.finish_origin(w, listing.origin, Err(failure));
        }
    }
}

fn too_few() -> Failure {
    Failure::Unavailable("too few of the nodes that keep this range answered in time".into())
}

impl Listing {
    fn is_agreed(&self) -> bool {
        let has = |node: &NodeId| self.pages.contains_key(node);
        self.config.is_read_quorum(self.ask_prev, has)
    }

    fn merge(&self) -> Draft {
        let (merged, horizon) = merge_pages(self.pages.values());
        let next = match horizon {
            Some(key) => Some(Cursor::AfterKey(key)),
            None if self.through == Id::MAX => None,
            None => Some(Cursor::AfterPoint(self.through)),
        };
        let mut draft = Draft { keys: BTreeMap::new(), next, unsure: BTreeSet::new() };
        for (key, newest) in merged {
            let has_prefix = key.name().starts_with(&*self.prefix);
            let is_chosen = self.config.is_quorum(|node| {
                let page = self.pages.get(node).map(|(entries, _)| entries);
                page.and_then(|entries| {
                    let at = entries.binary_search_by(|entry| entry.key.cmp(&key));
                    at.ok().map(|at| &entries[at])
                })
                .is_some_and(|entry| entry.accepted == newest.accepted)
            });
            if has_prefix && !is_chosen {
                draft.unsure.insert(key.clone());
            }
            if has_prefix && (newest.live || !is_chosen) {
                let version = newest.version.unwrap_or(Ballot::ZERO);
                draft.keys.insert(key.clone(), Some((newest.size, version)));
            }
            if draft.keys.len() >= self.limit as usize {
                draft.next = Some(Cursor::AfterKey(key));
                break;
            }
        }
        draft
    }
}

/// Joins pages of several nodes: for each key the entry with the highest ballot, up to where every page
/// reaches; and the last key that all pages are sure about, or none if all reach to the end.
pub(super) fn merge_pages<'a>(
    pages: impl Iterator<Item = &'a (Vec<ScanEntry>, bool)>,
) -> (BTreeMap<Key, ScanEntry>, Option<Key>) {
    let mut merged: BTreeMap<Key, ScanEntry> = BTreeMap::new();
    let mut horizon: Option<Key> = None;
    for (entries, end) in pages {
        if !end && let Some(last) = entries.last() {
            horizon = Some(horizon.map_or(last.key.clone(), |other| other.min(last.key.clone())));
        }
        for entry in entries {
            let newest = merged.entry(entry.key.clone()).or_insert_with(|| entry.clone());
            if newest.accepted < entry.accepted {
                *newest = entry.clone();
            }
        }
    }
    if let Some(horizon) = &horizon {
        merged.retain(|key, _| key <= horizon);
    }
    (merged, horizon)
}
