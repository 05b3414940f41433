//! A scrub: everything on disk is read again, slowly, and compared with the digests kept in memory, so that
//! damage is found before the last good copy is lost. A node that finds any stops answering: what it
//! promised may be gone, and the other members bring its data to another node.

use std::time::Duration;

use super::digest::LEAVES;
use super::{Ranges, World};
use crate::event::Records;
use crate::timer::Timer;

/// Not more often than this is a part read.
const PAUSE: Duration = Duration::from_millis(200);

impl Ranges {
    /// Reads the next parts.
    pub(crate) fn on_scrub<R: Records>(&mut self, w: &mut World<'_, R>) {
        let each = w.ctx.settings.scrub_in / LEAVES as u32;
        let pause = each.max(PAUSE);
        w.ctx.set_timer(Timer::Scrub, pause);
        let parts = pause.as_nanos() / each.as_nanos().max(1);
        for _ in 0..parts.min(LEAVES as u128) {
            let leaf = self.next_scrubbed;
            self.next_scrubbed = leaf.wrapping_add(1);
            let damage = match self.stored.is_sound(w.records, leaf) {
                Ok(true) => continue,
                Ok(false) => "records on disk are not those that were written".to_owned(),
                Err(error) => error.to_string(),
            };
            return w.ctx.break_store(format!("{damage} (points that begin with {leaf:04x})"));
        }
    }
}
