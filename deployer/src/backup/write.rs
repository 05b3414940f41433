//! Writing a backup, frame by frame.

use std::io::{self, Write};

use sky_chord::Id;

use super::format::{self, BLOCK, DIGEST, HEADER, MAGIC, TRAILER, Tally};
use super::{Block, Header, Trailer};

/// Writes frames, each sealed with a digest that covers all before it.
pub(crate) struct Writer<W> {
    out: W,
    number: u32,
    chain: [u8; DIGEST],
    tally: Tally,
}

impl<W: Write> Writer<W> {
    /// Begins a backup.
    pub(crate) fn begin(mut out: W, header: &Header) -> io::Result<Self> {
        out.write_all(MAGIC)?;
        let mut writer = Self::resume(out, 0, [0; DIGEST], Tally::default());
        writer.frame(HEADER, &serde_json::to_vec(header)?)?;
        Ok(writer)
    }

    /// Goes on after the last whole frame of a backup.
    pub(super) const fn resume(out: W, number: u32, chain: [u8; DIGEST], tally: Tally) -> Self {
        Self { out, number, chain, tally }
    }

    /// Adds a block.
    pub(crate) fn block(&mut self, block: &Block) -> io::Result<()> {
        let too_long =
            || io::Error::other("a value, or the text of a key, is too long for a backup");
        let (body, records) = format::encode(block).ok_or_else(too_long)?;
        self.frame(BLOCK, &body)?;
        self.tally.add(block, body.get(records).unwrap_or_default());
        // What was handed over is there even if this process is killed.
        self.out.flush()
    }

    /// Ends the backup, which has nothing of these parts of the circle.
    pub(crate) fn finish(mut self, left_out: Vec<(Id, Id)>) -> io::Result<(W, Trailer)> {
        let trailer = Trailer { left_out, ..self.tally.trailer() };
        self.frame(TRAILER, &serde_json::to_vec(&trailer)?)?;
        self.out.flush()?;
        Ok((self.out, trailer))
    }

    fn frame(&mut self, kind: u8, body: &[u8]) -> io::Result<()> {
        let too_long = |_| io::Error::other("a block is too long for a backup");
        let length = u32::try_from(body.len()).map_err(too_long)?;
        let head = format::head(kind, self.number, length);
        self.chain = format::digest(&self.chain, &head, body);
        self.out.write_all(&head)?;
        self.out.write_all(body)?;
        self.out.write_all(&self.chain)?;
        self.number = self.number.checked_add(1).ok_or_else(|| {
            io::Error::other("a backup cannot have more than four thousand million blocks")
        })?;
        Ok(())
    }
}
