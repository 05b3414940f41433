//! Reading a backup, and telling where one is cut or damaged.

use std::io::{self, Read};

use bytes::Bytes;

use super::format::{self, BLOCK, DIGEST, FORMAT, HEAD, HEADER, MAGIC, TRAILER, Tally};
use super::{Block, Header, Trailer};

/// Reads frames, and believes none whose digest is wrong.
pub(crate) struct Reader<R> {
    input: R,
    header: Header,
    number: u32,
    chain: [u8; DIGEST],
    tally: Tally,
    offset: u64,
    ended: bool,
}

/// What follows the header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Frame {
    /// Keys.
    Block(Block),
    /// The end of a complete backup.
    Trailer(Trailer),
}

/// Why a backup cannot be read any further.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Damage {
    /// It is something else.
    #[error("it does not begin like a backup of sky-deploy")]
    NotABackup,
    /// It has a later format.
    #[error("it has format {0}, this program knows those up to {FORMAT}")]
    Newer(String),
    /// It ends too early.
    #[error("it is incomplete: it ends at byte {at}, {within}")]
    Cut {
        /// Where it ends.
        at: u64,
        /// Within what.
        within: String,
    },
    /// Bytes were changed.
    #[error("it is damaged in bytes {from} to {to}: {what}")]
    Changed {
        /// Where the damaged part begins.
        from: u64,
        /// Where it ends.
        to: u64,
        /// What it was.
        what: String,
    },
    /// It cannot be read at all.
    #[error("it cannot be read on from byte {at}: {error}")]
    Unreadable {
        /// Where.
        at: u64,
        /// Why.
        error: io::Error,
    },
}

impl Damage {
    /// Whether what is there is right, and only the rest is missing.
    pub(crate) const fn is_cut(&self) -> bool {
        matches!(self, Self::Cut { .. })
    }
}

impl<R: Read> Reader<R> {
    /// Reads the header.
    pub(crate) fn open(mut input: R) -> Result<Self, Damage> {
        let mut magic = Vec::new();
        let length = MAGIC.len();
        let read = input.by_ref().take(length as u64).read_to_end(&mut magic);
        read.map_err(|error| Damage::Unreadable { at: 0, error })?;
        if magic.len() < length && MAGIC.starts_with(&magic) {
            let at = magic.len() as u64;
            return Err(Damage::Cut { at, within: "within its first bytes".to_owned() });
        }
        if !magic.starts_with(&MAGIC[..length - 1]) {
            return Err(Damage::NotABackup);
        }
        if magic != MAGIC {
            return Err(Damage::Newer(format!("{:?}", char::from(magic[length - 1]))));
        }
        let header = Header {
            format: 0,
            ring: String::new(),
            ring_id: String::new(),
            id: String::new(),
            begun: 0,
        };
        let mut reader = Self {
            input,
            header,
            number: 0,
            chain: [0; DIGEST],
            tally: Tally::default(),
            offset: length as u64,
            ended: false,
        };
        let body = match reader.frame()? {
            (HEADER, body) => body,
            _ => return Err(reader.changed(0, "it does not begin with its header")),
        };
        reader.header = serde_json::from_slice(&body)
            .map_err(|error| reader.changed(body.len(), &format!("its header: {error}")))?;
        if !(1..=FORMAT).contains(&reader.header.format) {
            return Err(Damage::Newer(reader.header.format.to_string()));
        }
        Ok(reader)
    }

    /// Which backup it is.
    pub(crate) const fn header(&self) -> &Header {
        &self.header
    }

    /// What was read so far, as a trailer would say it.
    pub(crate) fn so_far(&self) -> Trailer {
        self.tally.trailer()
    }

    /// Where the next frame is to be written, and what it is to be sealed with.
    pub(super) fn into_end(self) -> (u64, u32, [u8; DIGEST], Tally) {
        (self.offset, self.number, self.chain, self.tally)
    }

    /// The next frame; none after the trailer.
    pub(crate) fn next(&mut self) -> Result<Option<Frame>, Damage> {
        if self.ended {
            let mut byte = [0];
            let more = loop {
                match self.input.read(&mut byte) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    other => break other,
                }
            };
            return match more {
                Ok(0) => Ok(None),
                Ok(_) => Err(self.changed(0, "something follows after its end")),
                Err(error) => Err(Damage::Unreadable { at: self.offset, error }),
            };
        }
        let (kind, body) = self.frame()?;
        let length = body.len();
        match kind {
            BLOCK => {
                let Some((block, records)) = format::decode(body.clone()) else {
                    return Err(self.changed(length, "a block is not understood"));
                };
                self.tally.add(&block, body.get(records).unwrap_or_default());
                Ok(Some(Frame::Block(block)))
            }
            TRAILER => {
                let trailer: Trailer = serde_json::from_slice(&body)
                    .map_err(|error| self.changed(length, &format!("its end: {error}")))?;
                let left_out = trailer.left_out.clone();
                if trailer != (Trailer { left_out, ..self.tally.trailer() }) {
                    return Err(self.changed(length, "its end tells of other blocks"));
                }
                self.ended = true;
                Ok(Some(Frame::Trailer(trailer)))
            }
            _ => Err(self.changed(length, "a part of an unknown kind")),
        }
    }

    fn frame(&mut self) -> Result<(u8, Bytes), Damage> {
        let what = match self.number {
            0 => "its header".to_owned(),
            number => format!("block {number}"),
        };
        let head = self.exactly(HEAD, 0, &what)?;
        let head: [u8; HEAD] = head.try_into().unwrap_or_default();
        let number = u32::from_le_bytes([head[1], head[2], head[3], head[4]]);
        let length = u32::from_le_bytes([head[5], head[6], head[7], head[8]]);
        if head != format::head(head[0], number, length) {
            return Err(self.changed_between(HEAD, &format!("the head of {what}")));
        }
        if number != self.number {
            let what = format!("{what} is missing: it has number {number}");
            return Err(self.changed_between(HEAD, &what));
        }
        let body = self.exactly(length as usize, HEAD, &what)?;
        let digest = self.exactly(DIGEST, HEAD + body.len(), &what)?;
        let chain = format::digest(&self.chain, &head, &body);
        let total = HEAD + body.len() + DIGEST;
        if digest != chain {
            return Err(self.changed_between(total, &format!("{what} does not match its digest")));
        }
        self.chain = chain;
        self.number = self.number.wrapping_add(1);
        self.offset += total as u64;
        Ok((head[0], body.into()))
    }

    /// So many bytes, `done` after the start of the frame. Takes memory only for what is there.
    fn exactly(&mut self, length: usize, done: usize, what: &str) -> Result<Vec<u8>, Damage> {
        let mut bytes = Vec::with_capacity(length.min(1 << 20));
        let read = self.input.by_ref().take(length as u64).read_to_end(&mut bytes);
        let at = self.offset + (done + bytes.len()) as u64;
        read.map_err(|error| Damage::Unreadable { at, error })?;
        if bytes.len() < length {
            let within = if at == self.offset { "before" } else { "within" };
            return Err(Damage::Cut { at, within: format!("{within} {what}, and has no end") });
        }
        Ok(bytes)
    }

    /// The frame that was read last, with a body of so many bytes, is wrong.
    fn changed(&self, length: usize, what: &str) -> Damage {
        let to = self.offset;
        let from = to.saturating_sub((HEAD + length + DIGEST) as u64);
        Damage::Changed { from, to, what: what.to_owned() }
    }

    /// The next bytes are wrong.
    fn changed_between(&self, length: usize, what: &str) -> Damage {
        let (from, to) = (self.offset, self.offset + length as u64);
        Damage::Changed { from, to, what: what.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use sky_chord::Id;

    use super::super::{Entry, Writer};
    use super::*;

    fn header() -> Header {
        let text = |text: &str| text.to_owned();
        Header { format: FORMAT, ring: text("r"), ring_id: text("01"), id: text("7"), begun: 9 }
    }

    fn blocks() -> Vec<Block> {
        let entry = |key: &str, value: &'static [u8]| Entry {
            key: key.to_owned(),
            content_type: "text/plain".to_owned(),
            value: Bytes::from_static(value),
            expires: (key == "b").then_some(1_800_000_000),
        };
        let next = Some("k00".to_owned());
        vec![
            Block { arc: 3, next, entries: vec![entry("a", b"one"), entry("ü/ ", b"")] },
            Block { arc: 3, next: None, entries: vec![entry("b", &[0, 255])] },
            Block { arc: 15, next: None, entries: Vec::new() },
        ]
    }

    fn write(blocks: &[Block]) -> (Vec<u8>, Trailer) {
        let mut writer = Writer::begin(Vec::new(), &header()).unwrap();
        for block in blocks {
            writer.block(block).unwrap();
        }
        writer.finish(vec![(Id::small(4), Id::small(9))]).unwrap()
    }

    fn read(bytes: &[u8]) -> Result<Vec<Frame>, Damage> {
        let mut reader = Reader::open(bytes)?;
        let mut frames = Vec::new();
        while let Some(frame) = reader.next()? {
            frames.push(frame);
        }
        assert_eq!(reader.header(), &header());
        Ok(frames)
    }

    #[test]
    fn what_was_written_is_read() {
        let (bytes, trailer) = write(&blocks());
        assert_eq!((trailer.keys, trailer.bytes, trailer.blocks), (3, 5, 3));
        let mut expected: Vec<Frame> = blocks().into_iter().map(Frame::Block).collect();
        expected.push(Frame::Trailer(trailer));
        assert_eq!(read(&bytes).unwrap(), expected);
    }

    #[test]
    fn the_content_depends_on_neither_blocks_nor_their_order() {
        let [first, second, third] = blocks().try_into().unwrap();
        let whole = Block {
            entries: [first.entries.clone(), second.entries.clone()].concat(),
            ..second.clone()
        };
        let content = |blocks: &[Block]| write(blocks).1.content;
        let same = content(&[first.clone(), second.clone(), third.clone()]);
        assert_eq!(content(&[third, whole]), same);
        assert_ne!(content(&[second, first.clone()]), same);
        assert_ne!(content(&[first]), same);
    }

    #[test]
    fn a_cut_at_any_byte_is_told() {
        let (bytes, _) = write(&blocks());
        for length in 0..bytes.len() {
            let damage = read(&bytes[..length]).unwrap_err();
            let at = format!("it ends at byte {length}, ");
            assert!(damage.is_cut() && damage.to_string().contains(&at), "{length}: {damage}");
        }
    }

    #[test]
    fn any_flipped_bit_is_told_and_where() {
        let (bytes, _) = write(&blocks());
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            match read(&bytes).unwrap_err() {
                Damage::Changed { from, to, .. } => {
                    assert!((from..to).contains(&(bit as u64 / 8)), "bit {bit}: {from} to {to}");
                }
                Damage::NotABackup | Damage::Newer(_) => assert!(bit < 64, "bit {bit}"),
                other => panic!("bit {bit}: {other}"),
            }
        }
    }

    #[test]
    fn blocks_that_are_missing_swapped_or_too_many_are_told() {
        let (all, _) = write(&blocks());
        let ends: Vec<usize> = {
            let mut reader = Reader::open(&*all).unwrap();
            let mut ends = vec![reader.offset as usize];
            while reader.next().unwrap().is_some() {
                ends.push(reader.offset as usize);
            }
            ends
        };
        let without = [&all[..ends[0]], &all[ends[1]..]].concat();
        let swapped =
            [&all[..ends[0]], &all[ends[1]..ends[2]], &all[ends[0]..ends[1]], &all[ends[2]..]];
        let more = [&all[..], b"x"].concat();
        let of_another = {
            let (other, _) = write(&blocks()[1..]);
            [&all[..ends[1]], &other[ends[1]..]].concat()
        };
        for bytes in [without, swapped.concat(), more, of_another] {
            let damage = read(&bytes).unwrap_err();
            assert!(matches!(damage, Damage::Changed { .. }), "{damage}");
        }
    }

    #[test]
    fn other_files_are_not_backups() {
        assert!(matches!(read(b"something else"), Err(Damage::NotABackup)));
        assert!(matches!(read(b"short"), Err(Damage::NotABackup)));
        assert!(matches!(read(b"SKYBACK2...."), Err(Damage::Newer(_))));
    }
}
