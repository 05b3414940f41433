//! Taking up what a slot decided. Adopting a configuration is the fence: from then on a node answers
//! nothing older for any point of its range.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Known, Ranges, World};
use crate::Id;
use crate::call::RangeCall;
use crate::config::{Config, NodeId, Peer, RangeTag};
use crate::event::{Notice, Records};
use crate::message::{Body, CallId, Refusal};
use crate::timer::Timer;

impl Ranges {
    /// A slot is decided: adopt the result and tell everyone whom it concerns.
    pub(super) fn on_decision<R: Records>(
        &mut self,
        w: &mut World<'_, R>,
        before: &[Peer],
        configs: &[Config],
    ) {
        self.adopt(w, configs);
        let everyone: BTreeMap<NodeId, Peer> = before
            .iter()
            .chain(configs.iter().flat_map(Config::everyone))
            .map(|peer| (peer.node, peer.clone()))
            .collect();
        let me = w.ctx.me.node;
        for peer in everyone.into_values().filter(|peer| peer.node != me) {
            w.ask(&peer, Body::Decided { configs: configs.to_vec() }, RangeCall::Adopt);
        }
    }

    /// Tells a node what it has not heard of.
    pub(super) fn tell_decided<R: Records>(
        &mut self,
        w: &mut World<'_, R>,
        node: NodeId,
        configs: Vec<Config>,
    ) {
        let known = configs.iter().flat_map(Config::everyone).find(|peer| peer.node == node);
        if let Some(peer) = known.cloned() {
            w.ask(&peer, Body::Decided { configs }, RangeCall::Adopt);
        }
    }

    /// The adopted configuration of this range, if it is this epoch's or a later one.
    pub(super) fn configs_over(&self, at: &RangeTag) -> Vec<Config> {
        self.known
            .get(&at.hi)
            .filter(|known| known.config.epoch >= at.epoch)
            .map(|known| (*known.config).clone())
            .into_iter()
            .collect()
    }

    /// Adopts what is newer than what this node knows, and returns the commit that makes it durable.
    pub(super) fn adopt<R: Records>(&mut self, w: &mut World<'_, R>, configs: &[Config]) -> u64 {
        let me = w.ctx.me.node;
        let mut seq = 0;
        for config in configs {
            let concerns = config.has_member(&me)
                || config.has_prev(&me)
                || self.known.values().any(|known| known.config.overlaps(config));
            if concerns {
                seq = seq.max(self.adopt_anyway(w, config));
            } else {
                self.learn(config);
            }
        }
        seq
    }

    /// Adopts a configuration whether or not this node has a part in it.
    fn adopt_anyway<R: Records>(&mut self, w: &mut World<'_, R>, config: &Config) -> u64 {
        let me = w.ctx.me.node;
        self.learn(config);
        let has_duty = config.has_member(&me) || config.has_prev(&me);
        let is_newer = |known: &&Known| {
            let newer = &known.config;
            newer.epoch >= config.epoch && (newer.hi == config.hi || newer.contains(config))
        };
        if let Some(known) = self.known.values().find(is_newer) {
            return known.seq;
        }
        let keeps_members = config.prev.is_empty();
        let mut known = Known {
            config: Arc::new(config.clone()),
            swept: keeps_members,
            released: !has_duty,
            seq: 0,
        };
        known.seq = w.ctx.persist_meta(format!("range/{}", config.hi), &known);
        let seq = known.seq;
        let replaced = self.known.insert(config.hi, known);
        let old_lo = replaced.as_ref().map(|old| old.config.lo);
        if let Some(old) = replaced.filter(|old| old.config.is_cut_by(config)) {
            self.seal_rest(w, &old.config, config.lo);
        }
        self.forget_absorbed(w, config);
        self.invitations.forget(w, config.hi);
        self.changes.abort(config.hi);
        self.abort_work(config.hi);
        if !keeps_members || old_lo != Some(config.lo) {
            self.leading.remove(&config.hi);
        }
        w.ctx.notify(Notice::Adopted {
            hi: config.hi,
            epoch: config.epoch,
            members: config.members.clone(),
        });
        w.ctx.timers.set_earlier(Timer::Reconcile, w.ctx.now);
        seq
    }

    /// One part of a split range is adopted: what was known of the rest is not answered any more either.
    fn seal_rest<R: Records>(&mut self, w: &mut World<'_, R>, old: &Config, hi: Id) {
        if self.known.get(&hi).is_none_or(|known| known.config.epoch < old.epoch) {
            let mut rest = Known::sealed(old, hi);
            rest.seq = w.ctx.persist_meta(format!("range/{hi}"), &rest);
            self.known.insert(hi, rest);
        }
    }

    /// A range that was merged into this one is not there any more.
    fn forget_absorbed<R: Records>(&mut self, w: &mut World<'_, R>, config: &Config) {
        let is_absorbed =
            |old: &Config| old.hi != config.hi && old.epoch < config.epoch && config.contains(old);
        let absorbed: Vec<Id> = self
            .known
            .values()
            .map(|k| &k.config)
            .filter(|c| is_absorbed(c))
            .map(|c| c.hi)
            .collect();
        for hi in absorbed {
            self.known.remove(&hi);
            self.changes.abort(hi);
            self.stop_leading(hi);
            self.invitations.forget(w, hi);
            w.ctx.forget_meta(format!("range/{hi}"));
        }
    }

    /// This node is about to become a member: what it still holds of an earlier membership must not be taken
    /// for something that the members have, since they may have forgotten that they deleted it.
    pub(crate) fn on_clear<R: Records>(
        &mut self,
        w: &mut World<'_, R>,
        from: &Peer,
        call: CallId,
        config: Config,
    ) {
        let at = config.tag();
        self.adopt_anyway(w, &config);
        self.on_swept(w, at);
        let is_outside = |known: &Known| known.config.tag() == at && known.released;
        if Self::is_leaving(w) || !self.current(at.hi).is_some_and(is_outside) {
            return w.ctx.answer(from, call, Body::Refused(Refusal::NotMember));
        }
        let is_clear = self.forget_keys(w, &config).is_some_and(|forgotten| forgotten.is_nothing());
        if is_clear {
            self.invitations.note(w, at);
        }
        let answer = if is_clear { Body::Cleared } else { Body::Refused(Refusal::Behind) };
        w.ctx.answer_after(w.ctx.last_commit(), from, call, answer);
    }

    /// Another node has adopted something: so does this one.
    pub(super) fn on_newer<R: Records>(&mut self, w: &mut World<'_, R>, config: Config) {
        self.adopt(w, &[config]);
    }

    /// A decision is told: it is adopted, and that is confirmed when it is on disk.
    pub(crate) fn on_decided<R: Records>(
        &mut self,
        w: &mut World<'_, R>,
        from: &Peer,
        call: CallId,
        configs: &[Config],
    ) {
        let seq = self.adopt(w, configs);
        w.ctx.answer_after(seq, from, call, Body::Adopted);
    }

    /// Which configuration covers a point?
    pub(crate) fn on_get_config<R: Records>(
        &self,
        w: &mut World<'_, R>,
        from: &Peer,
        call: CallId,
        point: Id,
    ) {
        let known = self.current(point).filter(|known| !known.is_sealed());
        let config = known.map(|known| (*known.config).clone());
        let swept = known.is_some_and(|known| known.swept);
        // A configuration that only this node's memory holds must not be adopted by others yet.
        let seq = known.map_or(0, |known| known.seq);
        w.ctx.answer_after(seq, from, call, Body::ConfigIs { config, swept });
    }

    /// The answer about a range this node has a part in. A member that has not heard of this node's
    /// configuration is told: it may be the one to lead it.
    pub(super) fn on_config_answer<R: Records>(
        &mut self,
        w: &mut World<'_, R>,
        from: NodeId,
        point: Id,
        answer: Option<Body>,
    ) {
        let Some(Body::ConfigIs { config: theirs, swept }) = answer else { return };
        let epoch = theirs.as_ref().map_or(0, |config| config.epoch);
        let mine = self.current(point).filter(|known| !known.is_sealed());
        let mine = mine.map(|known| &*known.config);
        if let Some(mine) = mine.filter(|config| config.epoch > epoch).cloned() {
            return self.tell_decided(w, from, vec![mine]);
        }
        if let Some(config) = theirs {
            let at = config.tag();
            self.adopt(w, &[config]);
            if swept {
                self.on_swept(w, at);
            }
        }
    }

    /// The sweep of an epoch is done.
    pub(crate) fn on_swept<R: Records>(&mut self, w: &mut World<'_, R>, at: RangeTag) {
        let me = w.ctx.me.node;
        let Some(known) = self.known.get_mut(&at.hi) else { return };
        if known.config.tag() != at || known.swept {
            return;
        }
        known.swept = true;
        known.released = !known.config.has_member(&me);
        known.seq = w.ctx.persist_meta(format!("range/{}", at.hi), &*known);
        w.ctx.timers.set_earlier(Timer::Reconcile, w.ctx.now);
    }
}
