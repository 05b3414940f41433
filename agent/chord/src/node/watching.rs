//! Watches and those who are told of changes, between the other parts of the node.

use super::Node;
use crate::event::{Records, Ticket};
use crate::ranges::Client;
use crate::record::RequestId;
use crate::request::{Failure, Reply, Request};
use crate::watch::PATIENCE;

impl<R: Records> Node<R> {
    /// Brings what changed to those who watch, what watches want to the data part, and what came of it
    /// back. False if there was nothing.
    pub(super) fn serve_watches(&mut self) -> bool {
        let changed = self.ranges.take_changed(!self.audience.is_empty());
        self.audience.on_changed(&mut self.ctx, changed);
        if let Some((watch, look, outcome)) = self.ranges.take_looked() {
            self.watches.on_looked(&mut self.ctx, watch, look, outcome);
        } else if let Some((watch, look, operation)) = self.watches.take_wanted() {
            // It has no time in it: it must not be taken for the clock of the shell.
            let id = RequestId::given(0);
            let client = Client::Watch(watch, look);
            let patience = PATIENCE + self.ctx.settings.patience();
            let (ranges, mut world) = self.data();
            ranges.operate(&mut world, client, id, false, operation, patience);
        } else {
            return false;
        }
        true
    }

    /// A request of the shell about watches.
    pub(super) fn request_about_watches(&mut self, ticket: Ticket, request: Request) {
        let reply = match request {
            Request::Watch { .. } if !self.ring.is_joined() => {
                let reason = "this agent is not in a ring, or not any more";
                Reply::Watching(Err(Failure::Unavailable(reason.into())))
            }
            Request::Watch { subject, room } => {
                Reply::Watching(self.watches.begin(&mut self.ctx, subject, room))
            }
            Request::WatchRoom { watch, room } => {
                self.watches.make_room(&mut self.ctx, watch, room);
                Reply::Noted
            }
            Request::Unwatch { watch } => {
                self.watches.end(&mut self.ctx, watch);
                Reply::Noted
            }
            _ => return,
        };
        self.ctx.reply(ticket, reply);
    }
}
