//! What a member answers, and what it puts on disk before it does.

use super::digest::{DEEPEST, fingerprint};
use super::expiry::{counted_anew, expires, told};
use super::stored::Seen;
use super::{Ranges, World};
use crate::Id;
use crate::config::{Ballot, Peer, RangeTag};
use crate::event::Records;
use crate::message::{Body, CallId, Refusal, ScanEntry};
use crate::record::{Key, Record, Register};
use crate::request::Cursor;

/// The most keys in the answer to one scan.
const SCAN_LIMIT: usize = 1024;
/// After how many bytes of values, which have to be read for it, it is answered with fewer keys.
pub(super) const SCAN_BYTES: usize = 8 << 20;

/// An answer, and the commit that has to be on disk before it is given (0: none).
pub(super) type Answered = Result<(Body, u64), Refusal>;

impl Ranges {
    /// A question that only a member or a former member may answer.
    pub(crate) fn on_question<R: Records>(
        &mut self,
        w: &mut World<'_, R>,
        from: &Peer,
        call: CallId,
        question: Body,
    ) {
        if w.ctx.is_broken() {
            return w.ctx.answer(from, call, Body::Refused(Refusal::Broken));
        }
        let answered = match question {
            Body::Prepare { at, key, ballot } => self.prepare(w, at, &key, ballot),
            Body::Accept { at, key, ballot, register, next } => {
                self.accept(w, at, &key, ballot, register, next)
            }
            Body::Read { at, key, with_value } => self.read(w, at, &key, with_value),
            Body::Scan { at, after, through, limit, with_digest, with_version } => {
                self.scan(w, at, after.as_ref(), through, limit, (with_digest, with_version))
            }
            Body::Tombstones { at, keys } => self.tombstones_held(w, at, &keys),
            Body::Collect { at, keys } => self.drop_tombstones(w, at, &keys),
            Body::Overdue { at, keys } => self.overdue(w, at, &keys),
            Body::Digest { at, prefix } => self.digest(w, at, &prefix),
            _ => return,
        };
        match answered {
            Ok((body, seq)) => w.ctx.answer_after(seq, from, call, body),
            Err(refusal) => w.ctx.answer(from, call, Body::Refused(refusal)),
        }
    }

    /// Phase 1: promises the ballot and tells what was accepted. A node that is only in `prev` makes no
    /// promise: every ballot of this epoch is above every one it could have accepted.
    fn prepare<R: Records>(
        &mut self,
        w: &mut World<'_, R>,
        at: RangeTag,
        key: &Key,
        ballot: Ballot,
    ) -> Answered {
        let known = self.duty(&w.ctx.me.node, at, key.hash())?;
        let is_member = known.config.has_member(&w.ctx.me.node);
        let adopted = known.seq;
        let seen = self.stored.get(w.records, key).map_err(|_| Refusal::Broken)?;
        let (old, mut seq) = (seen.record, seen.seq.max(adopted));
        let register = told(w.ctx, &old).outlined(w.ctx.settings.apart_above);
        let accepted = old.accepted;
        if is_member {
            if old.promised > ballot {
                return Err(Refusal::Promised(old.promised));
            }
            if old.promised < ballot {
                self.may_write()?;
                let new = Record { promised: ballot, ..old.clone() };
                seq = self.stored.put(w.ctx, key, &old, new);
            }
        }
        Ok((Body::Promised { accepted, register }, seq))
    }

    /// Phase 2: accepts the state, and promises the proposer's next ballot with the same write.
    fn accept<R: Records>(
        &mut self,
        w: &mut World<'_, R>,
        at: RangeTag,
        key: &Key,
        ballot: Ballot,
        register: Register,
        next: Option<Ballot>,
    ) -> Answered {
        let known = self.duty(&w.ctx.me.node, at, key.hash())?;
        if !known.config.has_member(&w.ctx.me.node) {
            return Err(Refusal::NotMember);
        }
        let adopted = known.seq;
        let seen = self.stored.get(w.records, key).map_err(|_| Refusal::Broken)?;
        let old = seen.record;
        if old.accepted == ballot {
            return Ok((Body::Accepted, seen.seq.max(adopted)));
        }
        if old.promised > ballot {
            return Err(Refusal::Promised(old.promised));
        }
        let register = with_value_of(&old.register, register).ok_or(Refusal::Lacks)?;
        self.may_write()?;
        let promised = next.map_or(ballot, |next| next.max(ballot));
        let expires = expires(w.ctx, &old, &register);
        let register = counted_anew(register);
        let new = Record { promised, accepted: ballot, register, expires };
        let seq = self.stored.put(w.ctx, key, &old, new);
        Ok((Body::Accepted, seq))
    }

    /// Tells what was accepted, without a promise.
    fn read<R: Records>(
        &self,
        w: &World<'_, R>,
        at: RangeTag,
        key: &Key,
        with_value: bool,
    ) -> Answered {
        let adopted = self.duty(&w.ctx.me.node, at, key.hash())?.seq;
        let seen = match with_value {
            true => self.stored.whole(w.records, key),
            false => self.stored.get(w.records, key),
        };
        let seen = seen.map_err(|_| Refusal::Broken)?;
        let accepted = seen.record.accepted;
        let register = with_value.then(|| told(w.ctx, &seen.record));
        Ok((Body::Held { accepted, register }, seen.seq.max(adopted)))
    }

    /// Tells which keys were accepted, in the order of points.
    fn scan<R: Records>(
        &self,
        w: &World<'_, R>,
        at: RangeTag,
        after: Option<&Cursor>,
        through: Id,
        limit: u32,
        (with_digest, with_version): (bool, bool),
    ) -> Answered {
        let adopted = self.duty(&w.ctx.me.node, at, at.hi)?.seq;
        let limit = (limit as usize).clamp(1, SCAN_LIMIT);
        let (mut entries, mut seq, mut bytes) = (Vec::new(), adopted, 0);
        let mut after = after.cloned();
        loop {
            let part = self.stored.scan(w.records, after.as_ref(), through, limit - entries.len());
            let part = part.map_err(|_| Refusal::Broken)?;
            after = part.next();
            for (key, Seen { record, seq: written }) in part.entries {
                (seq, bytes) = (seq.max(written), bytes + record.register.bytes_here());
                entries.push(ScanEntry {
                    digest: with_digest.then(|| fingerprint(&key, &record)),
                    key,
                    accepted: record.accepted,
                    live: record.is_live(),
                    size: record.register.value_bytes() as u32,
                    version: with_version.then_some(record.register.version),
                });
            }
            let end = after.is_none();
            if end || entries.len() >= limit || bytes >= SCAN_BYTES {
                return Ok((Body::Scanned { entries, end }, seq));
            }
        }
    }

    /// Tells digests of what was accepted.
    fn digest<R: Records>(&self, w: &World<'_, R>, at: RangeTag, prefix: &[u8]) -> Answered {
        let known = self.duty(&w.ctx.me.node, at, at.hi)?;
        if prefix.len() > DEEPEST {
            return Err(Refusal::NotMember);
        }
        let sums = self.stored.digests(w.records, &known.config, prefix);
        let sums = sums.map_err(|_| Refusal::Broken)?;
        Ok((Body::Digested { sums }, known.seq))
    }

    fn may_write(&self) -> Result<(), Refusal> {
        if self.disk_full { Err(Refusal::DiskFull) } else { Ok(()) }
    }
}

/// The register with the content that this node holds, if it has only an outline of it. None if this node
/// does not hold it.
pub(super) fn with_value_of(held: &Register, mut register: Register) -> Option<Register> {
    if let Some(outline) = register.apart() {
        let ttl = outline.ttl;
        let mut content = held.value.clone().filter(|_| register.has_value_of(held))?;
        if let (Some(counted), Some(told)) = (content.ttl_mut(), ttl) {
            *counted = told;
        }
        register.value = Some(content);
    }
    Some(register)
}
