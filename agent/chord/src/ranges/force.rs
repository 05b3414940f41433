//! What an operator orders when a majority of a range's members is gone for good: the survivors go on with
//! what they hold.
//!
//! They decide it in the slot that the members would have used, all of them instead of a majority: whatever
//! one of them accepted there before is found and finished first, and of two orders that name a common
//! survivor one wins. The new configuration asks every survivor until its sweep is done. Its epoch is far
//! above the last one, so that it also outdoes what those that are gone may have decided among themselves.
//! After that it is a range like any other, which takes in new members when there are nodes to take.
//!
//! What those that are gone acknowledged and no survivor has is lost. If they come back, they learn the new
//! epoch and refuse; only a majority of them, talking to clients before it hears of that, could go on in the
//! past.

use std::time::Duration;

use super::slots::Voters;
use super::{Known, Ranges, World};
use crate::config::{Config, NodeId, Peer, Proposal, RangeTag};
use crate::event::{Records, Ticket};
use crate::request::Reply;
use crate::time::Time;
use crate::timer::Timer;

/// An order that is being carried out.
pub(super) struct Order {
    at: RangeTag,
    survivors: Vec<Peer>,
    until: Time,
}

/// How far the epoch of survivors is above the last one.
const EPOCHS_AHEAD: u64 = 1 << 20;
/// How long the survivors may take to agree.
const PATIENCE: Duration = Duration::from_secs(8);

impl Ranges {
    /// Takes an order, or says why not.
    pub(crate) fn order<R: Records>(
        &mut self,
        w: &mut World<'_, R>,
        ticket: Ticket,
        at: RangeTag,
        survivors: &[NodeId],
    ) {
        match self.survivors(w, at, survivors) {
            Err(reason) => w.ctx.reply(ticket, Reply::Forced(Err(reason))),
            Ok(survivors) => {
                let until = w.ctx.now + PATIENCE;
                self.orders.insert(ticket, Order { at, survivors, until });
                self.carry_out_orders(w);
            }
        }
    }

    /// Those that the order names, if the range can go on with nobody else.
    fn survivors<R: Records>(
        &self,
        w: &World<'_, R>,
        at: RangeTag,
        named: &[NodeId],
    ) -> Result<Vec<Peer>, String> {
        let known = self.known.get(&at.hi).filter(|known| self.is_current(known));
        let known = known.filter(|known| !known.is_sealed());
        let Some(known) = known else { return Err("this node knows no such range".to_owned()) };
        let config = &known.config;
        if config.tag() != at {
            return Err(format!("the range is in epoch {}, not {}", config.epoch, at.epoch));
        }
        if !named.contains(&w.ctx.me.node) {
            return Err("this node is not one of the survivors that were named".to_owned());
        }
        let holders = known.holders();
        if let Some(stranger) = named.iter().find(|node| holders.iter().all(|p| p.node != **node)) {
            return Err(format!("{stranger} has no data of the range"));
        }
        let (survivors, gone): (Vec<&Peer>, Vec<&Peer>) =
            holders.into_iter().partition(|peer| named.contains(&peer.node));
        if let Some(peer) = gone.iter().find(|peer| !w.members.is_suspect(&peer.node)) {
            return Err(format!("{} is not gone: it was heard of just now", peer.address));
        }
        if can_decide(known, named) {
            return Err("the survivors are enough to go on by themselves".to_owned());
        }
        Ok(survivors.into_iter().cloned().collect())
    }

    /// The next step of every order.
    pub(super) fn carry_out_orders<R: Records>(&mut self, w: &mut World<'_, R>) {
        for (ticket, order) in std::mem::take(&mut self.orders) {
            let now = self.current(order.at.hi).map(|known| (known.config.clone(), known.seq));
            match now {
                Some((config, _)) if config.tag() == order.at && w.ctx.now < order.until => {
                    self.try_to_force(w, &config, &order);
                    self.orders.insert(ticket, order);
                    let soon = w.ctx.now + Duration::from_millis(50);
                    w.ctx.timers.set_earlier(Timer::Reconcile, soon);
                }
                Some((config, seq)) if config.forced && config.epoch > order.at.epoch => {
                    let config = Box::new((*config).clone());
                    w.ctx.reply_after(seq, ticket, Reply::Forced(Ok(config)));
                }
                Some((config, _)) if config.epoch > order.at.epoch => {
                    let reason = format!(
                        "a change that was under way is done: the range is in epoch {}",
                        config.epoch
                    );
                    w.ctx.reply(ticket, Reply::Forced(Err(reason)));
                }
                _ => {
                    let reason =
                        format!("not all survivors agreed within {} s", PATIENCE.as_secs());
                    w.ctx.reply(ticket, Reply::Forced(Err(reason)));
                }
            }
        }
    }

    fn try_to_force<R: Records>(&mut self, w: &mut World<'_, R>, config: &Config, order: &Order) {
        if self.is_forcing(order.at, w.ctx.now) {
            return;
        }
        let forced = Config {
            epoch: config.epoch + EPOCHS_AHEAD,
            members: order.survivors.clone(),
            prev: order.survivors.clone(),
            forced: true,
            tie_breaker: None,
            ..config.clone()
        };
        let voters = Voters::Survivors(order.survivors.clone());
        self.start_attempt(w, vec![order.at], voters, Proposal::Next(vec![forced]));
    }
}

/// Whether these nodes can serve the range, or change it, without an order.
fn can_decide(known: &Known, nodes: &[NodeId]) -> bool {
    let has = |node: &NodeId| nodes.contains(node);
    let (config, unswept) = (&known.config, known.must_ask_prev());
    config.is_read_quorum(unswept, has) || !unswept && config.is_slot_quorum(has)
}
