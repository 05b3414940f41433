//! Fuzzing on stable Rust: inputs that are kept in the repository, and what becomes of them by chance.
//!
//! No coverage is measured. A target tells what it saw instead (kinds of messages, errors, answers), and
//! an input that shows something new is kept in memory and changed further.
//!
//! An ordinary test runs the kept inputs and always the same changed ones. `SKY_FUZZ_SECONDS` goes on for
//! so long, from another seed each time (`SKY_FUZZ_SEED` names one); `SKY_FUZZ_INPUT` runs one file. An
//! input that fails is left in the folder of temporary files, and its name printed.

#![allow(clippy::disallowed_types, reason = "this is a test, also where it tests the protocol")]
#![allow(clippy::print_stdout, reason = "for whoever waits for an hour")]

use std::collections::BTreeSet;
use std::fmt::{Display, Write};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

/// Longer inputs would only be slow.
const LONGEST: usize = 64 << 10;

/// What is fuzzed.
pub(crate) trait Target {
    const NAME: &str;

    /// How many inputs an ordinary test takes beside the kept ones.
    const INPUTS: usize;

    /// Memory taken at once that is fine for any input, and for each of its bytes on top.
    const MEMORY: (u64, u64);

    /// Takes an input, and tells what was seen. Panics if that is not as it should be.
    fn take(&mut self, input: &[u8]) -> Vec<String>;

    /// Where an input can be cut so that both parts may have a meaning.
    fn seams(input: &[u8]) -> Vec<usize>;
}

/// Runs a target on the kept inputs in this folder and on changed ones.
pub(crate) fn run<T: Target>(target: &mut T, kept: &Path) {
    if let Some(file) = std::env::var_os("SKY_FUZZ_INPUT") {
        return drop(check(target, &std::fs::read(file).unwrap()));
    }
    let seconds = std::env::var("SKY_FUZZ_SECONDS").ok().map(|text| text.parse().unwrap());
    let time = seconds.map(Duration::from_secs);
    let seed = std::env::var("SKY_FUZZ_SEED").ok().map(|text| text.parse().unwrap());
    let by_chance = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().subsec_nanos();
    let seed = seed.unwrap_or(if time.is_some() { u64::from(by_chance) } else { 1 });

    let mut names: Vec<_> = std::fs::read_dir(kept).unwrap().map(|e| e.unwrap().path()).collect();
    names.sort();
    let mut pool = Vec::new();
    let mut seen = BTreeSet::new();
    for name in names {
        let input = std::fs::read(name).unwrap();
        seen.extend(check(target, &input));
        pool.push(input);
    }
    assert!(!pool.is_empty(), "there are inputs in {}", kept.display());

    let (begin, mut random, mut count) = (Instant::now(), Random(seed), 0);
    while time.map_or(count < T::INPUTS, |time| begin.elapsed() < time) {
        let input = change::<T>(&pool, &mut random);
        let saw = check(target, &input);
        if !saw.iter().all(|saw| seen.contains(saw)) {
            seen.extend(saw);
            pool.push(input);
        }
        count += 1;
        if time.is_some() && count.is_multiple_of(1 << 14) {
            println!("{}: {count} inputs, {} kinds seen", T::NAME, seen.len());
        }
    }
    println!("{}: seed {seed}, {count} inputs, {} kinds seen", T::NAME, seen.len());
}

/// Runs one input, and keeps it if it fails.
fn check<T: Target>(target: &mut T, input: &[u8]) -> Vec<String> {
    let file = std::env::temp_dir().join(format!("sky-fuzz-{}-{}", T::NAME, std::process::id()));
    // One that never ends can be found there, too.
    std::fs::write(&file, input).unwrap();
    let mut saw = Vec::new();
    let result = catch_unwind(AssertUnwindSafe(|| {
        let memory = allocation_counter::measure(|| saw = target.take(input)).bytes_max;
        let limit = T::MEMORY.0 + T::MEMORY.1 * input.len() as u64;
        assert!(memory <= limit, "{memory} bytes taken for {} bytes of input", input.len());
    }));
    if let Err(panic) = result {
        println!("SKY_FUZZ_INPUT={}", file.display());
        resume_unwind(panic);
    }
    std::fs::remove_file(file).unwrap();
    saw
}

/// The first words of a text without the numbers and names in it, so that alike ones are the same.
pub(crate) fn gist(text: impl Display) -> String {
    let mut gist = Gist::default();
    // It stops when there are enough of them.
    write!(gist, "{text} ").ok();
    gist.words
}

#[derive(Default)]
struct Gist {
    words: String,
    word: String,
    is_quoted: bool,
    is_escaped: bool,
}

impl Write for Gist {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        for letter in text.chars() {
            if std::mem::take(&mut self.is_escaped) {
                continue;
            }
            self.is_escaped = self.is_quoted && letter == '\\';
            self.is_quoted ^= letter == '`' || letter == '"';
            if letter.is_ascii_alphanumeric() && !self.is_quoted {
                self.word.push(letter);
                continue;
            }
            let word = std::mem::take(&mut self.word);
            if !word.is_empty() && word.chars().all(char::is_alphabetic) {
                self.words += &word;
                self.words.push(' ');
            }
        }
        if self.words.len() < 80 { Ok(()) } else { Err(std::fmt::Error) }
    }
}

/// One of the inputs, changed in some places.
fn change<T: Target>(pool: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut input = random.of(pool).clone();
    for _ in 0..=random.below(4) {
        let other = random.of(pool);
        if random.below(2) == 0 {
            change_parts::<T>(&mut input, other, random);
        } else {
            change_bytes(&mut input, other, random);
        }
        input.truncate(LONGEST);
    }
    input
}

/// Drops, doubles or exchanges a part, or takes one from another input.
fn change_parts<T: Target>(input: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    let part = |of: &[u8], random: &mut Random| {
        let mut seams = T::seams(of);
        seams.extend([0, of.len()]);
        seams.retain(|seam| *seam <= of.len());
        seams.sort_unstable();
        seams.dedup();
        let last = random.below(seams.len());
        let first = last.saturating_sub(1 + random.below(3));
        seams[first]..seams[last]
    };
    let (one, foreign) = (part(input, random), part(other, random));
    let doubled = input[one.clone()].to_vec();
    let at = part(input, random).start;
    let (place, new) = match random.below(5) {
        0 => (one, Vec::new()),
        1 => (at..at, doubled),
        2 => (at..at, other[foreign].to_vec()),
        3 => (one, other[foreign].to_vec()),
        // This one up to here, and then the other one.
        _ => (at..input.len(), other[foreign.start..].to_vec()),
    };
    input.splice(place, new);
}

/// Changes some bytes.
fn change_bytes(input: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    let range = |of: &[u8], random: &mut Random| {
        let start = random.below(of.len() + 1);
        start..(start + 1 + random.below(8)).min(of.len())
    };
    let place = range(input, random);
    let at = place.start..place.start;
    match random.below(9) {
        0 => drop(input.splice(place, [])),
        1 => {
            drop(input.splice(at, (0..=random.below(4)).map(|_| random.byte()).collect::<Vec<_>>()))
        }
        2 => drop(input.splice(place, other[range(other, random)].to_vec())),
        // The largest number there is in the encoding of peers, and one that is too large.
        3 => drop(input.splice(at, vec![0xff; 1 + random.below(20)])),
        // A number of a text.
        4 => drop(input.splice(place, *random.of(&[*b"-1", *b"00", *b"9e", *b"99"]))),
        5 => {
            let doubled = input[place].to_vec();
            let times = 1 << random.below(10);
            input.splice(at, doubled.repeat(times));
        }
        6 => input.truncate(at.start),
        7 => {
            let kinds = [0, 1, 0x7f, 0x80, 0xff, b' ', b'\n', b'"', b':', b'%'];
            input[place].fill(*random.of(&kinds));
        }
        _ => input[place].iter_mut().take(1).for_each(|byte| *byte ^= 1 << random.below(8)),
    }
}

/// Numbers that are the same for the same seed (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ mixed >> 31) % limit as u64) as usize
    }

    fn byte(&mut self) -> u8 {
        self.below(256) as u8
    }

    fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}
