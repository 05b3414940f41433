//! When a node that leaves has no part in any range any more.
//!
//! What it has handed over, the sweep tells. But it may also have been named in a configuration that it has
//! not heard of: one that follows a configuration to whose leader it has said that it is ready to become a
//! member. Of those it decides the slots itself, if nobody has: either it finds itself named, and hands over,
//! or nobody can name it any more.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Ranges, World};
use crate::Id;
use crate::call::RangeCall;
use crate::config::{Config, Proposal, RangeTag};
use crate::event::Records;
use crate::message::{Body, MemberStatus};

/// The ranges whose leaders were told that this node is ready to become a member, and in which epoch.
#[derive(Default)]
pub(super) struct Invitations(BTreeMap<Id, u64>);

/// How the meta records of invitations begin.
pub(super) const INVITED_META: &str = "invited/";

impl Invitations {
    /// Notes what the store kept.
    pub(super) fn restore(&mut self, at: RangeTag) {
        self.0.insert(at.hi, at.epoch);
    }

    /// This node is ready to become a member in the epoch after this one.
    pub(super) fn note<R>(&mut self, w: &mut World<'_, R>, at: RangeTag) {
        if self.0.insert(at.hi, at.epoch) != Some(at.epoch) {
            w.ctx.persist_meta(format!("{INVITED_META}{}", at.hi), &at);
        }
    }

    /// Something later is known of the range.
    pub(super) fn forget<R>(&mut self, w: &mut World<'_, R>, hi: Id) {
        if self.0.remove(&hi).is_some() {
            w.ctx.forget_meta(format!("{INVITED_META}{hi}"));
        }
    }
}

impl Ranges {
    /// Whether this node is about to leave, or has left.
    pub(super) fn is_leaving<R>(w: &World<'_, R>) -> bool {
        let status = w.members.status_of(&w.ctx.me.node);
        matches!(status, Some(MemberStatus::Leaving | MemberStatus::Left))
    }

    /// A leaving node has done its part when it has no duty in any range, and can get none.
    pub(super) fn see_whether_drained<R: Records>(&mut self, w: &mut World<'_, R>) {
        let is_leaving = Self::is_leaving(w);
        let has_duty = self.known.values().any(|known| !known.released && self.is_current(known));
        self.drained = is_leaving && !has_duty && self.turn_down(w);
    }

    /// Sees to it that no configuration names this node unheard of. True if none can.
    fn turn_down<R: Records>(&mut self, w: &mut World<'_, R>) -> bool {
        let open: Vec<Arc<Config>> = self
            .known
            .values()
            .filter(|known| self.invitations.0.get(&known.config.hi) == Some(&known.config.epoch))
            .filter(|known| self.is_current(known))
            .map(|known| Arc::clone(&known.config))
            .collect();
        for config in &open {
            // Its members may have gone long ago, and then others know what became of the range.
            let live: Vec<_> = w.members.live().filter(|peer| peer.node != w.ctx.me.node).collect();
            if let Some(peer) = live.get(w.ctx.rng.below(live.len())).map(|peer| (*peer).clone()) {
                let question = Body::GetConfig { point: config.hi };
                w.ask(&peer, question, RangeCall::Config(config.hi));
            }
            if !self.is_changing(config.hi, w.ctx.now) {
                self.start_change(w, config, Proposal::Next(vec![config.next()]));
            }
        }
        open.is_empty()
    }
}
