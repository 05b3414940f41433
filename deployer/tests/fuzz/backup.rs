//! Bytes that may be anything as a backup: they are read to their end or the damage is told, without a
//! panic and without memory that was only announced. Part of the unit tests, because nobody else can reach
//! the reader.
//!
//! Digests would keep nearly all that is changed by chance away from what is behind them: so an input is
//! either a file, or parts that are sealed before they are read.
//!
//! `UPDATE_INPUTS=1 cargo test -p sky-deploy --lib backup::fuzz` makes the first inputs anew: needed when
//! the format changes.

use std::path::PathBuf;

use super::format::{self, BLOCK, DIGEST, HEADER, MAGIC, TRAILER};
use super::{Block, Entry, FORMAT, Frame, Header, Reader, Writer};
use crate::fuzz::{self, Target};

fn kept() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/inputs/backup")
}

/// What the first byte of an input says of the others.
mod kind {
    pub(super) const FILE: u8 = 0;
    /// Frames without digests: kind (u8), length (u16), body. The first is the header.
    pub(super) const FRAMES: u8 = 1;
    pub(super) const COUNT: u8 = 2;
}

struct Bytes;

impl Target for Bytes {
    const NAME: &str = "backup";
    const INPUTS: usize = 20_000;
    /// An empty record takes 8 bytes, and some ten times that in memory.
    const MEMORY: (u64, u64) = (2 << 20, 64);

    fn take(&mut self, input: &[u8]) -> Vec<String> {
        let Some((kind, bytes)) = input.split_first() else { return Vec::new() };
        match kind % kind::COUNT {
            kind::FILE => read(bytes),
            _ => read(&sealed(bytes)),
        }
    }

    fn seams(input: &[u8]) -> Vec<usize> {
        if input.first().is_none_or(|kind| kind % kind::COUNT == kind::FILE) {
            return vec![1];
        }
        let (mut seams, mut at) = (vec![1], 1);
        while let Some((_, body)) = frame(&input[at..]) {
            at += 3 + body.len();
            seams.push(at);
        }
        seams
    }
}

/// The first of some frames without digests.
fn frame(bytes: &[u8]) -> Option<(u8, &[u8])> {
    let (head, rest) = bytes.split_at_checked(3)?;
    let length = usize::from(u16::from_le_bytes([head[1], head[2]]));
    Some((head[0], &rest[..length.min(rest.len())]))
}

/// The file that these frames make.
fn sealed(mut frames: &[u8]) -> Vec<u8> {
    let mut file = MAGIC.to_vec();
    let (mut number, mut chain) = (0, [0; DIGEST]);
    while let Some((kind, body)) = frame(frames) {
        let head = format::head(kind, number, body.len() as u32);
        chain = format::digest(&chain, &head, body);
        file.extend([&head, body, &chain].concat());
        frames = &frames[3 + body.len()..];
        number += 1;
    }
    file
}

/// Reads all of it, and tells what there was.
fn read(bytes: &[u8]) -> Vec<String> {
    let mut reader = match Reader::open(bytes) {
        Ok(reader) => reader,
        Err(damage) => return vec![fuzz::gist(damage)],
    };
    assert!((1..=FORMAT).contains(&reader.header().format));
    let mut saw = Vec::new();
    let mut keys = 0;
    loop {
        match reader.next() {
            Ok(Some(Frame::Block(block))) => {
                let (body, records) = format::encode(&block).unwrap();
                assert_eq!(format::decode(body.into()), Some((block.clone(), records)));
                keys += block.entries.len() as u64;
                saw.push(format!("block {} {}", block.entries.len().min(3), block.next.is_some()));
            }
            Ok(Some(Frame::Trailer(trailer))) => {
                assert_eq!((trailer.keys, &trailer), (keys, &reader.so_far()));
                saw.push("trailer".to_owned());
            }
            Ok(None) => break,
            Err(damage) => {
                saw.push(fuzz::gist(damage));
                break;
            }
        }
    }
    saw
}

/// A backup of few keys, and the same as frames that are still to be sealed.
fn inputs() -> [(&'static str, Vec<u8>); 2] {
    let text = |text: &str| text.to_owned();
    let header =
        Header { format: FORMAT, ring: text("r"), ring_id: text("01"), id: text("7"), begun: 9 };
    let entry = |key: &str, value: &'static [u8]| Entry {
        key: text(key),
        content_type: text("text/plain"),
        value: value.into(),
        expires: (key == "a").then_some(1_800_000_000),
    };
    let first = Block {
        arc: 3,
        next: Some(text("k00")),
        entries: vec![entry("a", b"one"), entry("\u{fc}", b"")],
    };
    let blocks = [first, Block { arc: 15, next: None, entries: Vec::new() }];
    let mut writer = Writer::begin(Vec::new(), &header).unwrap();
    let mut frames = vec![(HEADER, serde_json::to_vec(&header).unwrap())];
    for block in &blocks {
        writer.block(block).unwrap();
        frames.push((BLOCK, format::encode(block).unwrap().0));
    }
    let (file, trailer) = writer.finish(Vec::new()).unwrap();
    frames.push((TRAILER, serde_json::to_vec(&trailer).unwrap()));
    let frames = frames
        .into_iter()
        .flat_map(|(kind, body)| [&[kind], &(body.len() as u16).to_le_bytes()[..], &body].concat());
    let file = [vec![kind::FILE], file].concat();
    [("file", file), ("frames", [kind::FRAMES].into_iter().chain(frames).collect())]
}

#[test]
fn any_bytes_are_read_as_a_backup_or_refused() {
    for (name, input) in inputs() {
        let path = kept().join(name);
        if std::env::var_os("UPDATE_INPUTS").is_some() {
            std::fs::create_dir_all(kept()).unwrap();
            std::fs::write(&path, &input).unwrap();
        }
        assert_eq!(std::fs::read(&path).unwrap(), input, "UPDATE_INPUTS=1 makes it anew");
        assert!(Bytes.take(&input).contains(&"trailer".to_owned()), "{name} is whole");
    }
    let old = std::fs::read(kept().join("file-of-format-1")).unwrap();
    assert!(
        Bytes.take(&old).contains(&"trailer".to_owned()),
        "backups of the first format are read"
    );
    fuzz::run(&mut Bytes, &kept());
}
