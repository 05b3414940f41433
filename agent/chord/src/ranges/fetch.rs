//! The bytes of a large value, for a round that needs them.
//!
//! Phase 1 tells outlines of large values: mostly nobody needs the bytes, who replaces a value least of all.
//! They are got afterwards from whoever holds the value, by its version, if a client wants to read it or if a
//! member that has to accept it does not hold it. A version is that of one value for ever, so that it does
//! not matter what becomes of the key meanwhile: the second phase of the round tells.

use super::acceptor::with_value_of;
use super::round::{Fetching, Stage};
use super::{Ranges, World};
use crate::call::RoundId;
use crate::event::Records;
use crate::record::Register;

impl Ranges {
    /// Gets the bytes of the value of the state that the first phase found; with them it is proposed.
    pub(super) fn fetch<R: Records>(
        &mut self,
        w: &mut World<'_, R>,
        id: RoundId,
        found: Register,
        settled: bool,
    ) {
        let Some(round) = self.registers.rounds.get_mut(&id) else { return };
        let holders = round.config.everyone().filter(|peer| round.holders.contains(&peer.node));
        let mut sources: Vec<_> = holders.cloned().collect();
        sources.sort_by_key(|peer| {
            let is_suspect = w.members.is_suspect(&peer.node);
            (peer.node != w.ctx.me.node, is_suspect, w.members.rto(&peer.node))
        });
        round.fetching = Some(Fetching { found, settled, sources: sources.into() });
        round.enter(Stage::Fetch);
        self.fetch_on(w, id);
    }

    /// Asks the next one who holds the bytes.
    pub(super) fn fetch_on<R: Records>(&mut self, w: &mut World<'_, R>, id: RoundId) {
        let Some(round) = self.registers.rounds.get_mut(&id) else { return };
        if round.is_late(w.ctx.now) {
            let failure = round.failure();
            return self.fail_round(w, id, failure);
        }
        match round.fetching.as_mut().and_then(|fetching| fetching.sources.pop_front()) {
            Some(source) => self.ask(w, id, vec![source]),
            None => self.start_over(w, id),
        }
    }

    /// Somebody told what it holds now.
    pub(super) fn on_fetched<R: Records>(
        &mut self,
        w: &mut World<'_, R>,
        id: RoundId,
        held: &Register,
    ) {
        let Some(round) = self.registers.rounds.get_mut(&id) else { return };
        let Some(fetching) = &round.fetching else { return };
        let whole = with_value_of(held, fetching.found.clone());
        let Some(whole) = whole.filter(|register| register.apart().is_none()) else {
            return self.fetch_on(w, id);
        };
        let settled = fetching.settled;
        round.fetching = None;
        self.propose(w, id, whole, settled);
    }
}
