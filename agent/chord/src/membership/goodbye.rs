//! How a node takes its leave: it goes when another one has heard that it leaves, and who wanted to leave and
//! falls silent has left. So a last word that is lost leaves nobody waiting.

use super::known::Known;
use super::{MemberChange, Membership};
use crate::config::NodeId;
use crate::context::Context;
use crate::message::MemberStatus;
use crate::timer::Timer;

impl Membership {
    /// Another node repeats what this one says of itself.
    pub(super) fn on_echo(&mut self, ctx: &mut Context) {
        let is_leaving = self.status_of(&self.me) == Some(MemberStatus::Leaving);
        if is_leaving && !self.is_leave_heard {
            self.is_leave_heard = true;
            ctx.timers.set_earlier(Timer::Reconcile, ctx.now);
        }
    }

    /// Whether this node may go: another one has heard that it leaves. If not, one is told again.
    pub(crate) fn may_go(&self, ctx: &mut Context) -> bool {
        let Some(other) = self.random_other(ctx) else { return true };
        if !self.is_leave_heard
            && let Some(known) = self.table.get(&other)
        {
            self.introduce(ctx, &known.entry.peer);
        }
        self.is_leave_heard
    }

    /// Who wanted to leave and is silent has left, though its last word was lost. If it is still there after
    /// all, it contradicts.
    pub(super) fn say_goodbye(&mut self, ctx: &Context) {
        let is_over = |since| ctx.now.since(since) >= ctx.settings.repair_after;
        let is_gone = |known: &&Known| {
            known.word == MemberStatus::Leaving && known.suspected_since().is_some_and(is_over)
        };
        let gone = self.table.values().filter(is_gone).map(|known| known.entry.peer.node);
        for node in gone.collect::<Vec<_>>() {
            self.set_left(node);
        }
    }

    pub(super) fn set_left(&mut self, node: NodeId) {
        self.edit(&node, |known| {
            known.entry.status = MemberStatus::Left;
            known.word = MemberStatus::Left;
        });
        self.tell_later(node);
        self.changes.push(MemberChange::Status(node));
        self.unsaved = true;
    }
}
