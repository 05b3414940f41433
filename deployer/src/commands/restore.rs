//! `restore`: the keys of a backup into a ring, of whatever size.
//!
//! The file is read through before anything is changed. Blocks are stored many at once; how many of the
//! first ones are all done is kept in the ring's folder, and the next run goes on there. What was done
//! beyond that is done again, which changes nothing.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::pin::pin;
use std::process::ExitCode;
use std::time::Instant;

use futures_util::stream::{self, Stream, StreamExt, TryStreamExt};
use reqwest::{Method, StatusCode};
use serde::{Deserialize, Serialize};

use super::{Context, backup, interruptible_with};
use crate::amount::{self, bytes, count, now, rate, since};
use crate::backup::{Block, Damage, Entry, Feed, Header, Part, Place, Trailer};
use crate::cli::RestoreArgs;
use crate::deployment::Deployment;
use crate::error::{During, Error, Result};
use crate::pool::Pool;
use crate::printer::{Mark, Printer};
use crate::state::{read_json, write_json};

/// How many blocks are under way at once.
const BLOCKS_AT_ONCE: usize = 16;
/// How many keys of a block are under way at once.
const KEYS_AT_ONCE: usize = 32;
/// How many keys that are not as they should be are named.
const NAMED: usize = 5;

/// What is done with keys that exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Existing {
    /// There should be none.
    Refuse,
    /// They stay.
    Skip,
    /// They get the value of the backup.
    Overwrite,
}

/// How far a restore has come, kept in the ring's folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    /// The id of the backup.
    backup: String,
    /// The id of the ring.
    ring: String,
    /// How it was begun.
    existing: Existing,
    /// How many blocks, from the first one, are stored.
    blocks: u64,
}

/// What is in a backup, as far as it can be read.
struct Contents {
    header: Header,
    holds: Trailer,
    damage: Option<Damage>,
}

/// By how many seconds the clocks of this machine and of the agents may differ.
const CLOCKS_APART: u64 = 5;

/// What came of it.
#[derive(Debug, Default, Serialize)]
struct Counts {
    /// Keys that a run before had stored.
    before: Cell<u64>,
    /// Keys that were stored.
    stored: Cell<u64>,
    /// Keys that had the value already.
    present: Cell<u64>,
    /// Keys that had another value and kept it.
    kept: Cell<u64>,
    /// Keys whose time was over.
    expired: Cell<u64>,
    /// The bytes of all values.
    bytes: Cell<u64>,
    /// Some of the keys that kept another value.
    #[serde(skip)]
    examples: RefCell<Vec<String>>,
}

#[derive(Serialize)]
struct Report<'a> {
    ring: &'a str,
    from: String,
    #[serde(flatten)]
    counts: &'a Counts,
    verified: Option<u64>,
    seconds: f64,
}

impl Counts {
    /// Remembers a key as an example.
    fn name(&self, key: &str) {
        let mut examples = self.examples.borrow_mut();
        if examples.len() < NAMED {
            examples.push(format!("`{}`", key.escape_debug()));
        }
    }
}

fn add(cell: &Cell<u64>, number: u64) {
    cell.set(cell.get() + number);
}

pub(super) async fn run(context: &Context<'_>, args: &RestoreArgs) -> Result<ExitCode> {
    let place = Place::parse(&args.file)?;
    if args.verify && !place.can_be_read_again() {
        return Err(Error::new("what comes through a pipe cannot be verified")
            .hint("restore from a file, or verify by comparing the contents of two backups"));
    }
    let hint = match place.can_be_read_again() {
        true => "what is stored stays; the same command again goes on from there",
        false => "what is stored stays; send the backup again, with --skip-existing or --overwrite",
    };
    let work = async {
        let deployment = Deployment::open(&args.target.inventory).await?;
        restore(context, args, &place, &deployment).await
    };
    interruptible_with(hint.to_owned(), work).await
}

async fn restore(
    context: &Context<'_>,
    args: &RestoreArgs,
    place: &Place,
    deployment: &Deployment,
) -> Result<ExitCode> {
    let printer = context.printer;
    let ring = &deployment.inventory.ring.name;
    let existing = match (args.overwrite, args.skip_existing) {
        (true, _) => Existing::Overwrite,
        (_, true) => Existing::Skip,
        _ => Existing::Refuse,
    };
    let contents = match place.can_be_read_again() {
        true => Some(look_through(place, printer).await?),
        false => None,
    };
    if let Some(contents) = &contents {
        refuse_damaged(contents, place, args.incomplete)?;
        if !contents.holds.left_out.is_empty() {
            let parts = amount::of(contents.holds.left_out.len() as u64, "part");
            printer.warn(format_args!(
                "{place} has nothing of {parts} of the circle, which nobody kept when it was made"
            ));
        }
    }
    deployment.folder.create()?;
    let _lock = deployment.folder.lock_for("restore.lock", "restore")?;
    let kept_at = deployment.folder.path().join("restore.json");
    let pool = Pool::of(deployment).await?;
    let ring_id = pool.ring().await?;
    let kept: Option<Kept> = read_json(&kept_at)?;
    let begun_before = kept.zip(contents.as_ref()).map(|(kept, contents)| {
        let new = Kept::new(&contents.header, &ring_id, existing);
        kept.done(new, contents.holds.blocks, args.verify)
    });
    let done = begun_before.unwrap_or_default();
    if done == 0 && existing == Existing::Refuse && !is_empty(&pool).await? {
        return Err(Error::new(format!("the ring {ring} has keys already")).hint(
            "--skip-existing leaves those that exist as they are, --overwrite replaces them",
        ));
    }
    let what = match &contents {
        Some(Contents { header, holds, .. }) => format!(
            "the backup of {} begun {} ({}, {} of values)",
            header.ring,
            since(header.begun),
            amount::of(holds.keys, "key"),
            bytes(holds.bytes)
        ),
        None => "the backup that comes through the pipe".to_owned(),
    };
    context.confirm(&format!("Restore {what} into the ring {ring}?")).await?;
    if done > 0 {
        printer.say(format_args!("going on after block {done}"));
    }

    let begun = Instant::now();
    let counts = Counts::default();
    let job = Job { pool: &pool, existing, counts: &counts, printer, ring_id, kept_at };
    job.store(Blocks::open(place, contents.as_ref()).await?, done).await?;
    let mut said = format!("{} stored in {ring}", amount::of(counts.stored.get(), "key"));
    for (number, what) in [
        (&counts.present, "had their value"),
        (&counts.kept, "kept another"),
        (&counts.expired, "were past their time"),
    ] {
        if number.get() > 0 {
            said.push_str(&format!(", {} {what}", count(number.get())));
        }
    }
    let size = bytes(counts.bytes.get());
    printer.step(Mark::Done, format!("{said}: {size}, {:.1} s", begun.elapsed().as_secs_f64()));
    let examples = counts.examples.take();
    if existing == Existing::Refuse && !examples.is_empty() {
        printer.warn(format_args!(
            "others wrote keys of the backup meanwhile, and theirs were left: {}",
            examples.join(", ")
        ));
    }
    let verified = match args.verify {
        true => Some(job.verify(Blocks::open(place, contents.as_ref()).await?).await?),
        false => {
            job.forget()?;
            None
        }
    };
    if context.json {
        let seconds = begun.elapsed().as_secs_f64();
        let from = place.to_string();
        context.json(&Report { ring, from, counts: &counts, verified, seconds })?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads all of the backup, to know before anything is changed whether it is whole.
async fn look_through(place: &Place, printer: &Printer) -> Result<Contents> {
    let mut feed = Feed::start(place.read().await?);
    let failed = |damage: Damage| Error::caused(format!("cannot restore {place}"), &damage);
    let Some(Part::Header(header)) = feed.next().await.map_err(failed)? else {
        return Err(Error::new(format!("cannot restore {place}: it has no header")));
    };
    let mut holds =
        Trailer { keys: 0, bytes: 0, blocks: 0, content: String::new(), left_out: Vec::new() };
    let mut shown = Instant::now();
    let damage = loop {
        match feed.next().await {
            Ok(Some(Part::Block(block))) => {
                holds.blocks += 1;
                holds.keys += block.entries.len() as u64;
                holds.bytes += block.entries.iter().map(|e| e.value.len() as u64).sum::<u64>();
                if shown.elapsed() > super::SHOW_EVERY {
                    shown = Instant::now();
                    printer.passing(format_args!("checking {place}: {} keys", count(holds.keys)));
                }
            }
            Ok(Some(Part::End(trailer))) => holds = trailer,
            Ok(Some(Part::Header(_))) => {}
            Ok(None) => break None,
            Err(damage) => break Some(damage),
        }
    };
    printer.clear();
    Ok(Contents { header, holds, damage })
}

fn refuse_damaged(contents: &Contents, place: &Place, allowed: bool) -> Result<()> {
    match &contents.damage {
        Some(damage @ Damage::Unreadable { .. }) => {
            Err(Error::caused(format!("cannot restore {place}"), damage))
        }
        Some(damage) if !allowed => {
            let keys = count(contents.holds.keys);
            let hint = format!("--incomplete restores the {keys} keys before that, and no more");
            Err(Error::caused(format!("cannot restore {place}"), damage).hint(hint))
        }
        _ => Ok(()),
    }
}

async fn is_empty(pool: &Pool<'_>) -> Result<bool> {
    let mut cursor = None;
    loop {
        let page = pool.page(cursor.as_deref(), 1).await?;
        if !page.keys.is_empty() {
            return Ok(false);
        }
        cursor = page.cursor;
        if cursor.is_none() {
            return Ok(true);
        }
    }
}

impl Kept {
    fn new(header: &Header, ring: &str, existing: Existing) -> Self {
        Self { backup: header.id.clone(), ring: ring.to_owned(), existing, blocks: 0 }
    }

    /// How many of the blocks, `of` in all, a `new` restore need not store again. Where all were stored, only
    /// a verification goes on: nobody else would find out what became of them since.
    fn done(self, new: Self, of: u64, verifies: bool) -> u64 {
        let blocks = self.blocks;
        let is_same = self == Self { blocks, ..new };
        if is_same && (blocks < of || verifies) { blocks } else { 0 }
    }
}

/// Which of the blocks under way are done, and how many of the first ones all are.
#[derive(Default)]
struct Watermark {
    all_before: u64,
    beyond: BTreeSet<u64>,
}

impl Watermark {
    fn done(&mut self, block: u64) {
        self.beyond.insert(block);
        while self.beyond.remove(&self.all_before) {
            self.all_before += 1;
        }
    }
}

struct Job<'a> {
    pool: &'a Pool<'a>,
    existing: Existing,
    counts: &'a Counts,
    printer: &'a Printer,
    ring_id: String,
    kept_at: PathBuf,
}

impl Job<'_> {
    /// Stores all blocks but the first `done`.
    async fn store(&self, blocks: Blocks, done: u64) -> Result<()> {
        let of = blocks.keys;
        let mut kept = Kept::new(&blocks.header, &self.ring_id, self.existing);
        let mut watermark = Watermark { all_before: done, ..Watermark::default() };
        let (begun, mut shown) = (Instant::now(), Instant::now());
        let work = blocks.stream().map(|block| async {
            let (number, block) = block?;
            if number >= done {
                self.store_block(&block).await?;
            } else {
                add(&self.counts.before, block.entries.len() as u64);
            }
            Ok::<_, Error>(number)
        });
        let mut work = pin!(work.buffer_unordered(BLOCKS_AT_ONCE));
        while let Some(number) = work.try_next().await? {
            if number >= done {
                watermark.done(number);
            }
            if shown.elapsed() > super::SHOW_EVERY {
                shown = Instant::now();
                self.show(begun, of);
                kept.blocks = watermark.all_before;
                write_json(&self.kept_at, &kept)?;
            }
        }
        // From here on the next run verifies at most.
        kept.blocks = watermark.all_before;
        write_json(&self.kept_at, &kept)?;
        self.printer.clear();
        Ok(())
    }

    fn show(&self, begun: Instant, of: Option<u64>) {
        let Counts { before, stored, present, kept, expired, bytes: size, .. } = self.counts;
        let keys = stored.get() + present.get() + kept.get() + expired.get();
        let of = of.map_or_else(String::new, |of| format!(" of {}", count(of)));
        self.printer.passing(format_args!(
            "{}{of} keys, {}, {}",
            count(before.get() + keys),
            bytes(size.get()),
            rate(keys, begun.elapsed())
        ));
    }

    async fn store_block(&self, block: &Block) -> Result<()> {
        let store = stream::iter(&block.entries).map(|entry| self.store_key(entry));
        store.buffer_unordered(KEYS_AT_ONCE).try_collect().await
    }

    async fn store_key(&self, entry: &Entry) -> Result<()> {
        let Entry { key, content_type, value, .. } = entry;
        let ttl = entry.left(now());
        if ttl == Some(0) {
            add(&self.counts.expired, 1);
            return Ok(());
        }
        // A key that somebody else makes meanwhile is not replaced unless that is asked for.
        let method = match self.existing {
            Existing::Overwrite => Method::PUT,
            Existing::Refuse | Existing::Skip => Method::POST,
        };
        let answered = self.pool.store(&method, key, (content_type, value), ttl).await?;
        add(&self.counts.bytes, value.len() as u64);
        if answered.answer.status != StatusCode::CONFLICT {
            answered.success()?;
            add(&self.counts.stored, 1);
            return Ok(());
        }
        let there = backup::value(self.pool, key, value.len()).await?;
        if there.is_some_and(|there| there.holds_the_same(entry)) {
            add(&self.counts.present, 1);
        } else {
            add(&self.counts.kept, 1);
            self.counts.name(key);
        }
        Ok(())
    }

    /// Reads everything back. Returns how many keys are as in the backup; an error if some are not.
    async fn verify(&self, blocks: Blocks) -> Result<u64> {
        let of = blocks.keys;
        let (right, missing, other) = (Cell::new(0), Cell::new(0), Cell::new(0));
        let counts = Counts::default();
        let check = |entry: Entry| {
            let (right, missing, other, counts) = (&right, &missing, &other, &counts);
            async move {
                match backup::value(self.pool, &entry.key, entry.value.len()).await? {
                    Some(found) if found.holds_the_same(&entry) => add(right, 1),
                    // It was gone before, or is by now; clocks may differ by a little.
                    None if entry.left(now()).is_some_and(|left| left <= CLOCKS_APART) => {}
                    found => {
                        add(if found.is_some() { other } else { missing }, 1);
                        counts.name(&entry.key);
                    }
                }
                Ok::<_, Error>(())
            }
        };
        let (begun, mut shown) = (Instant::now(), Instant::now());
        let work = blocks.stream().map(|block| async {
            let checks = stream::iter(block?.1.entries).map(&check);
            checks.buffer_unordered(KEYS_AT_ONCE).try_collect::<()>().await
        });
        let mut work = pin!(work.buffer_unordered(BLOCKS_AT_ONCE));
        while work.try_next().await?.is_some() {
            if shown.elapsed() > super::SHOW_EVERY {
                shown = Instant::now();
                let read = right.get() + missing.get() + other.get();
                let of = of.map_or_else(String::new, |of| format!(" of {}", count(of)));
                let rate = rate(read, begun.elapsed());
                self.printer.passing(format_args!("{}{of} keys read back, {rate}", count(read)));
            }
        }
        self.printer.clear();
        // Whatever comes of it: what is not as it should be has to be stored again.
        self.forget()?;
        let (right, missing, other) = (right.get(), missing.get(), other.get());
        if missing == 0 && (other == 0 || self.existing == Existing::Skip) {
            let kept =
                if other > 0 { format!(", {} kept another", count(other)) } else { String::new() };
            let said = format!("{} read back as in the backup{kept}", amount::of(right, "key"));
            self.printer.step(Mark::Done, said);
            return Ok(right);
        }
        let what = format!(
            "the ring is not as the backup: {} keys are missing and {} have another value, such as {}",
            count(missing),
            count(other),
            counts.examples.borrow().join(", ")
        );
        Err(Error::new(what).hint(
            "if your clients changed these keys meanwhile that is as it should be; otherwise \
             --overwrite stores them again",
        ))
    }

    /// Nothing is left to be gone on with.
    fn forget(&self) -> Result<()> {
        let forgetting = || format!("cannot remove {}", self.kept_at.display());
        std::fs::remove_file(&self.kept_at).during(forgetting)
    }
}

/// The blocks of a backup, numbered from 0.
struct Blocks {
    feed: Feed,
    header: Header,
    place: String,
    /// How many keys they have in all, if that is known.
    keys: Option<u64>,
    /// Whether the backup is known to end too early. Then what is there is all.
    cut: bool,
    number: u64,
}

impl Blocks {
    /// Begins to read a backup, which must be the one that was looked through, if any was.
    async fn open(place: &Place, contents: Option<&Contents>) -> Result<Self> {
        let mut feed = Feed::start(place.read().await?);
        let place = place.to_string();
        let header = match feed.next().await {
            Ok(Some(Part::Header(header))) => header,
            Ok(_) => return Err(Error::new(format!("cannot restore {place}: it has no header"))),
            Err(damage) => return Err(Error::caused(format!("cannot restore {place}"), &damage)),
        };
        if contents.is_some_and(|contents| contents.header != header) {
            let what = format!("cannot restore {place}: it is another backup than a moment ago");
            return Err(
                Error::new(what).hint("the same command again checks and restores that one")
            );
        }
        let keys = contents.map(|contents| contents.holds.keys);
        let cut = contents.is_some_and(|contents| contents.damage.is_some());
        Ok(Self { feed, header, place, keys, cut, number: 0 })
    }

    fn stream(self) -> impl Stream<Item = Result<(u64, Block)>> {
        stream::unfold(self, |mut blocks| async {
            match blocks.feed.next().await {
                Ok(Some(Part::Block(block))) => {
                    blocks.number += 1;
                    Some((Ok((blocks.number - 1, block)), blocks))
                }
                Ok(_) => None,
                Err(Damage::Cut { .. } | Damage::Changed { .. }) if blocks.cut => None,
                Err(damage) => {
                    let what = format!("{} was restored only up to its damage", blocks.place);
                    Some((Err(Error::caused(what, &damage)), blocks))
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::{FORMAT, Writer};

    fn header(id: &str) -> Header {
        let (ring, ring_id, id) = ("r".to_owned(), "0".to_owned(), id.to_owned());
        Header { format: FORMAT, ring, ring_id, id, begun: 1 }
    }

    #[test]
    fn what_was_all_stored_is_stored_again_unless_it_is_only_verified() {
        let new = |existing| Kept::new(&header("a"), "ring", existing);
        let kept = |blocks| Kept { blocks, ..new(Existing::Overwrite) };
        for (blocks, verifies, done) in [(3, false, 3), (3, true, 3), (4, true, 4), (4, false, 0)] {
            assert_eq!(kept(blocks).done(new(Existing::Overwrite), 4, verifies), done, "{blocks}");
        }
        assert_eq!(kept(3).done(new(Existing::Skip), 4, true), 0);
        assert_eq!(kept(3).done(Kept::new(&header("b"), "ring", Existing::Overwrite), 4, true), 0);
    }

    #[tokio::test]
    async fn a_backup_that_was_replaced_since_it_was_looked_through_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::File(folder.path().join("all"));
        let put = |id: &str| {
            let writer = Writer::begin(Vec::new(), &header(id)).unwrap();
            let (bytes, _) = writer.finish(Vec::new()).unwrap();
            std::fs::write(folder.path().join("all"), bytes).unwrap();
        };
        put("a");
        let contents = look_through(&place, &Printer::from_environment()).await.unwrap();
        assert!(Blocks::open(&place, Some(&contents)).await.is_ok());
        put("b");
        let refused = Blocks::open(&place, Some(&contents)).await.err().unwrap().to_string();
        assert!(refused.contains("it is another backup than a moment ago"), "{refused}");
        assert!(Blocks::open(&place, None).await.is_ok());
    }

    #[test]
    fn the_watermark_waits_for_the_slowest_block() {
        let mut watermark = Watermark { all_before: 3, ..Watermark::default() };
        for (done, all_before) in [(5, 3), (4, 3), (3, 6), (7, 6), (6, 8)] {
            watermark.done(done);
            assert_eq!(watermark.all_before, all_before, "after {done}");
        }
    }
}
