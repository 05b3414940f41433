//! Bits that are not what was written, and runs of bytes.

use std::path::Path;

use crate::history::{History, Random, Seen, in_tables_and_journal, is_thorough};
use crate::image::Image;

/// Bits flipped in a file that is too large for all of them.
const SAMPLE: u64 = 80;

/// Bits to flip in a file: all of a small one; of others some, and all where batches of journals begin.
fn bits(image: &Image, name: &Path, random: &mut Random) -> Vec<usize> {
    let end = 8 * (image.content(name) + 1).min(image.0[name].len());
    if end <= 8 * 256 || is_thorough() && end < 8 * 4096 {
        return (0..end).collect();
    }
    let sample = if is_thorough() { 20 * SAMPLE } else { SAMPLE };
    let mut bits: Vec<_> = (0..sample).map(|_| random.below(end as u64) as usize).collect();
    if name.extension().is_some_and(|ending| ending == "jnl") {
        let batches: Vec<_> = batches(&image.0[name]).collect();
        for at in [batches[0], batches[1], batches[batches.len() / 2], *batches.last().unwrap()] {
            // The head of a batch, and of its first item.
            bits.extend(8 * at..8 * (at + 34));
        }
    }
    bits
}

/// Where batches begin: behind the end of another.
fn batches(journal: &[u8]) -> impl Iterator<Item = usize> {
    let ends = journal.windows(4).enumerate().filter(|(_, bytes)| bytes == b"FJL\x03");
    std::iter::once(0).chain(ends.map(|(at, _)| at + 4).filter(|at| journal.get(*at) == Some(&1)))
}

fn check_flips(image: &Image, history: &History, judge: impl Fn(&Path, usize, &Seen) -> bool) {
    let mut random = Random(1);
    for name in image.0.keys() {
        for bit in bits(image, name, &mut random) {
            let seen = history.look(&image.with(name, |bytes| bytes[bit / 8] ^= 1 << (bit % 8)));
            let is_fine = seen.is_told()
                || seen == Seen::Commits(history.len())
                || judge(name, bit / 8, &seen);
            assert!(is_fine, "{}, byte {}, bit {}: {seen:?}", name.display(), bit / 8, bit % 8);
        }
    }
}

#[test]
fn a_flipped_bit_is_harmless_or_told() {
    let history = History::of(50);
    check_flips(&in_tables_and_journal(30, 50, true), &history, |_, _, _| false);
}

#[test]
fn only_the_last_commit_may_look_torn_before_it_is_marked() {
    let history = History::of(50);
    let image = in_tables_and_journal(30, 50, false);
    let journal = image.journals().pop().unwrap();
    let last = batches(&image.0[&journal]).last().unwrap();
    check_flips(&image, &history, |name, at, seen| {
        name == journal && at >= last && *seen == Seen::Commits(49)
    });
}

#[test]
fn overwritten_sectors_are_harmless_or_told() {
    let history = History::of(50);
    let image = in_tables_and_journal(30, 50, true);
    let mut random = Random(2);
    for name in image.0.keys() {
        let sectors = image.content(name).div_ceil(512);
        for sector in 0..sectors {
            let noise = random.below(4);
            let seen = history.look(&image.with(name, |bytes| {
                for byte in bytes.iter_mut().skip(512 * sector).take(512) {
                    *byte = if noise == 0 { 0 } else { random.below(256) as u8 };
                }
            }));
            let is_fine = seen.is_told() || seen == Seen::Commits(50);
            assert!(is_fine, "{}, sector {sector}: {seen:?}", name.display());
        }
    }
}
