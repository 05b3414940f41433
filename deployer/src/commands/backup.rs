//! `backup`: every key of a live ring, with its value, into one file.
//!
//! Keys are listed by quorums and each value is read by a quorum: it is one that the key had at some
//! moment of the backup, and a key that was there all the time is in it.

use std::cell::Cell;
use std::fs::File;
use std::io::{BufWriter, IsTerminal};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use futures_util::future::try_join_all;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use reqwest::StatusCode;
use serde::Serialize;
use sky_api::KeyEntry;
use sky_api::cursor::{read, text};
use sky_chord::{Cursor, Id, Key};

use super::{Context, interruptible_with};
use crate::amount::{bytes, count, of, rate, since};
use crate::backup::{
    ARCS, Arc, Block, Draft, Entry, FORMAT, Header, Place, Sink, Trailer, Writer, arc_of, upload,
};
use crate::cli::BackupArgs;
use crate::deployment::Deployment;
use crate::error::{During, Error, Result};
use crate::pool::Pool;
use crate::printer::{Mark, Printer};
use crate::state::random_hex;

/// How many keys of an arc are listed at once.
const PAGE: usize = 500;
/// How many bytes of values a block has, if they are small.
const BLOCK_BYTES: u64 = 1 << 20;
/// How many values of a block are read at once.
const VALUES_AT_ONCE: usize = 32;
/// The media type of values without one.
const OCTETS: &str = "application/octet-stream";

/// What was backed up, for `--json`.
#[derive(Serialize)]
struct Report<'a> {
    ring: &'a str,
    to: String,
    #[serde(flatten)]
    trailer: &'a Trailer,
    seconds: f64,
}

pub(super) async fn run(context: &Context<'_>, args: &BackupArgs) -> Result<ExitCode> {
    let deployment = Deployment::open(&args.target.inventory).await?;
    let place = Place::parse(&args.file)?;
    match &place {
        Place::Pipe => {
            let hint = "what was written is incomplete; begin anew".to_owned();
            interruptible_with(hint, to_pipe(context, &deployment, &place, args.without_lost))
                .await?;
        }
        Place::File(path) => {
            // A device or a pipe would be replaced by a file.
            if std::fs::metadata(path).is_ok_and(|there| !there.is_file()) {
                return Err(Error::new(format!("{} is no ordinary file", path.display())).hint(
                    "`sky-deploy backup -` writes to the standard output, for anything else",
                ));
            }
            if path.exists() {
                context.confirm(&format!("Replace {}?", path.display())).await?;
            }
            let mut draft = path.clone().into_os_string();
            draft.push(".partial");
            let draft = PathBuf::from(draft);
            let hint = goes_on(&draft);
            interruptible_with(hint, async {
                let begun = Instant::now();
                let trailer =
                    to_file(context, &deployment, &draft, path, args.without_lost).await?;
                summary(context, &deployment, &place, &trailer, begun)
            })
            .await?;
        }
        Place::Url(url) => {
            deployment.folder.create()?;
            let file = deployment.folder.path().join("upload");
            let draft = deployment.folder.path().join("upload.partial");
            let begun = Instant::now();
            let reading = to_file(context, &deployment, &draft, &file, args.without_lost);
            let trailer = interruptible_with(goes_on(&draft), reading).await?;
            let kept = format!(
                "the backup is kept in {}; the same command again makes a new one",
                file.display()
            );
            interruptible_with(kept.clone(), async {
                context.printer.passing(format_args!("sending the backup to {place}"));
                upload(&file, &place, url).await.map_err(|error| {
                    let hint = error.problems.first().and_then(|problem| problem.hint.clone());
                    error.hint(hint.map_or(kept.clone(), |hint| format!("{hint}; {kept}")))
                })
            })
            .await?;
            std::fs::remove_file(&file).during(|| format!("cannot remove {}", file.display()))?;
            summary(context, &deployment, &place, &trailer, begun)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn goes_on(draft: &Path) -> String {
    format!("what was read is in {}; the same command again goes on from there", draft.display())
}

/// The parts of the circle that nobody keeps any more, and that the backup is to be made without.
async fn left_out(
    context: &Context<'_>,
    deployment: &Deployment,
    allowed: bool,
) -> Result<Vec<(Id, Id)>> {
    deployment.agents().await?;
    deployment.refuse_lost(&deployment.expected().await?).await?;
    let lost = deployment.kept_by_nobody().await?;
    let Some((lo, hi)) = lost.first() else { return Ok(lost) };
    let parts = of(lost.len() as u64, "part");
    if !allowed {
        let ring = &deployment.inventory.ring.name;
        let what = format!("nobody keeps {parts} of the circle of {ring} any more");
        return Err(Error::new(what)
            .because(format!("such as ({lo:?}, {hi:?}]"))
            .hint("--without-lost makes a backup of the rest"));
    }
    context.printer.warn(format_args!("{parts} of the circle that nobody keeps are left out"));
    Ok(lost)
}

/// The header of a backup that begins now.
async fn header(deployment: &Deployment) -> Result<Header> {
    let ring = deployment.inventory.ring.name.clone();
    let ring_id = Pool::of(deployment).await?.ring().await?;
    let begun = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    Ok(Header { format: FORMAT, ring, ring_id, id: random_hex(16)?, begun })
}

async fn to_pipe(
    context: &Context<'_>,
    deployment: &Deployment,
    place: &Place,
    without_lost: bool,
) -> Result<()> {
    let out = std::io::stdout();
    if out.is_terminal() {
        return Err(Error::new("a backup is not for a terminal")
            .hint("give it a file name, or a pipe: `sky-deploy backup - | ...`"));
    }
    let begun = Instant::now();
    let writing = || "cannot write to the standard output";
    let out = File::from(out.as_fd().try_clone_to_owned().during(writing)?);
    let lost = left_out(context, deployment, without_lost).await?;
    let header = header(deployment).await?;
    let writer = Writer::begin(BufWriter::new(out), &header).during(writing)?;
    let new = std::array::from_fn(|_| Arc::New);
    let what = What { arcs: new, keys_before: 0, lost };
    let trailer = collect(context, deployment, what, writer, "the standard output").await?;
    let Trailer { keys, bytes: size, .. } = trailer;
    context.printer.step(Mark::Done, said(deployment, place, keys, size, begun));
    Ok(())
}

/// Makes the backup in `draft`, or goes on with it, and gives it its name.
async fn to_file(
    context: &Context<'_>,
    deployment: &Deployment,
    draft: &Path,
    name: &Path,
    without_lost: bool,
) -> Result<Trailer> {
    let printer = context.printer;
    let lost = left_out(context, deployment, without_lost).await?;
    let (draft, begun, writer) = Draft::open(draft, header(deployment).await?)?;
    let shown = draft.path().display().to_string();
    if let Some(damage) = &begun.damage {
        printer.warn(format_args!("{shown}: {damage}; it is read again from there"));
    }
    let so_far = begun.so_far;
    if so_far.blocks > 0 {
        let age = since(begun.header.begun);
        printer.say(format_args!("going on with {shown}, begun {age}: {} keys", so_far.keys));
    }
    let trailer = if begun.complete {
        so_far
    } else {
        let what = What { arcs: begun.arcs, keys_before: so_far.keys, lost };
        collect(context, deployment, what, writer, &shown).await?
    };
    draft.publish(name)?;
    Ok(trailer)
}

fn summary(
    context: &Context<'_>,
    deployment: &Deployment,
    place: &Place,
    trailer: &Trailer,
    begun: Instant,
) -> Result<()> {
    let seconds = begun.elapsed().as_secs_f64();
    let Trailer { keys, bytes: size, .. } = *trailer;
    context.printer.step(Mark::Done, said(deployment, place, keys, size, begun));
    if context.json {
        let ring = &deployment.inventory.ring.name;
        return context.json(&Report { ring, to: place.to_string(), trailer, seconds });
    }
    context.printer.say(format_args!("content {}", trailer.content));
    Ok(())
}

fn said(deployment: &Deployment, place: &Place, keys: u64, size: u64, begun: Instant) -> String {
    let to = match place {
        Place::Pipe => "the standard output".to_owned(),
        place => place.to_string(),
    };
    let ring = &deployment.inventory.ring.name;
    let seconds = begun.elapsed().as_secs_f64();
    let (keys, size) = (of(keys, "key"), bytes(size));
    format!("{ring} backed up to {to}: {keys}, {size} of values, {seconds:.1} s")
}

/// What is to be read.
struct What {
    /// How far each arc is.
    arcs: [Arc; ARCS],
    /// How many keys that makes.
    keys_before: u64,
    /// The parts (lo, hi] of the circle that are left out.
    lost: Vec<(Id, Id)>,
}

/// Reads all arcs at once and writes them.
async fn collect(
    context: &Context<'_>,
    deployment: &Deployment,
    What { arcs, keys_before, lost }: What,
    writer: Writer<BufWriter<File>>,
    to: &str,
) -> Result<Trailer> {
    let pool = Pool::of(deployment).await?;
    let sink = Sink::start(writer);
    let progress = Progress { keys: Cell::new(keys_before), bytes: Cell::new(0) };
    let of = expected_keys(deployment).await;
    let read = {
        let arcs = arcs.into_iter().enumerate();
        let arcs = arcs.map(|(number, arc)| read_arc(&pool, number, arc, &lost, &sink, &progress));
        let mut read = std::pin::pin!(try_join_all(arcs));
        tokio::select! {
            read = &mut read => read.map(drop),
            never = show(context.printer, &progress, keys_before, of) => match never {},
        }
    };
    context.printer.clear();
    let written = || format!("cannot write to {to}");
    match read {
        Ok(()) | Err(Stop::Unwritten) => sink.finish(lost).await.during(written),
        Err(Stop::Failed(error)) => Err(error),
    }
}

/// Why an arc was not read to its end.
enum Stop {
    Failed(Error),
    /// The sink knows why.
    Unwritten,
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

struct Progress {
    keys: Cell<u64>,
    bytes: Cell<u64>,
}

/// About how many keys there are, as the agents count them.
async fn expected_keys(deployment: &Deployment) -> u64 {
    let nodes = deployment.observe().await.unwrap_or_default();
    nodes.iter().filter_map(|seen| seen.view.as_ref()).map(|view| view.keys.owned).sum()
}

async fn show(
    printer: &Printer,
    progress: &Progress,
    before: u64,
    of: u64,
) -> std::convert::Infallible {
    let begun = Instant::now();
    loop {
        tokio::time::sleep(super::SHOW_EVERY).await;
        let keys = progress.keys.get();
        printer.passing(format_args!(
            "{} of about {} keys, {}, {}",
            count(keys),
            count(of.max(keys)),
            bytes(progress.bytes.get()),
            rate(keys - before, begun.elapsed())
        ));
    }
}

/// The cursor where an arc begins; none at the start of the circle.
fn start_of(arc: usize) -> Option<Cursor> {
    let mut first = [0; 20];
    first[0] = (arc as u8) << 4;
    let before = Id::from_bytes(first).plus(Id::MAX);
    (arc > 0).then_some(Cursor::AfterPoint(before))
}

/// Whether nothing of an arc follows after this place.
fn is_past(arc: usize, place: &Cursor) -> bool {
    match place {
        Cursor::AfterKey(key) => arc_of(&key.hash()) > arc,
        Cursor::AfterPoint(Id::MAX) => true,
        Cursor::AfterPoint(point) => arc_of(&point.plus(Id::small(1))) > arc,
    }
}

/// The place behind the lost part in which the next key would be; none if it is in none.
fn beyond(place: Option<&Cursor>, lost: &[(Id, Id)]) -> Option<Cursor> {
    let next = match place {
        None => Id::MIN,
        Some(Cursor::AfterPoint(point)) => point.plus(Id::small(1)),
        // Its own point is kept by somebody.
        Some(Cursor::AfterKey(_)) => return None,
    };
    let (_, hi) = lost.iter().find(|(lo, hi)| next.is_in_arc(*lo, *hi))?;
    // A part that goes on at the beginning of the circle ends at the end of it.
    Some(Cursor::AfterPoint(if *hi < next { Id::MAX } else { *hi }))
}

async fn read_arc(
    pool: &Pool<'_>,
    arc: usize,
    state: Arc,
    lost: &[(Id, Id)],
    sink: &Sink,
    progress: &Progress,
) -> Result<(), Stop> {
    let mut cursor = match state {
        Arc::New => start_of(arc).map(|start| text(&start)),
        Arc::At(cursor) => Some(cursor),
        Arc::Done => return Ok(()),
    };
    loop {
        while let Some(place) = beyond(cursor.as_deref().and_then(read).as_ref(), lost) {
            if is_past(arc, &place) {
                let end = Block { arc, next: None, entries: Vec::new() };
                return if sink.put(end).await { Ok(()) } else { Err(Stop::Unwritten) };
            }
            cursor = Some(text(&place));
        }
        let page = pool.page(cursor.as_deref(), PAGE).await?;
        let listed = page.keys.len();
        let mut keys: Vec<KeyEntry> = page.keys;
        keys.retain(|entry| arc_of(&Key::new(&entry.key).hash()) == arc);
        let next = page.cursor.filter(|next| {
            let place = read(next);
            keys.len() == listed && place.is_none_or(|place| !is_past(arc, &place))
        });
        let mut rest = keys.as_slice();
        loop {
            let (now, later) = rest.split_at(block_length(rest));
            let entries = values(pool, now, progress).await?;
            let after = match now.last() {
                Some(last) if !later.is_empty() => {
                    Some(text(&Cursor::AfterKey(Key::new(&last.key))))
                }
                _ => next.clone(),
            };
            let says_something = !entries.is_empty() || after.is_none();
            if says_something && !sink.put(Block { arc, next: after, entries }).await {
                return Err(Stop::Unwritten);
            }
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        if next.is_none() {
            return Ok(());
        }
        cursor = next;
    }
}

/// How many of these keys go into one block: at least one.
fn block_length(keys: &[KeyEntry]) -> usize {
    let mut size = 0;
    let fitting = keys.iter().take_while(|entry| {
        size += u64::from(entry.size);
        size <= BLOCK_BYTES
    });
    fitting.count().max(1).min(keys.len())
}

/// The values of these keys, without those that are gone by now.
async fn values(pool: &Pool<'_>, keys: &[KeyEntry], progress: &Progress) -> Result<Vec<Entry>> {
    let read = stream::iter(keys).map(|listed| async {
        let found = value(pool, &listed.key, listed.size as usize).await?;
        if let Some(entry) = &found {
            progress.keys.set(progress.keys.get() + 1);
            progress.bytes.set(progress.bytes.get() + entry.value.len() as u64);
        }
        Ok::<_, Error>(found)
    });
    let found: Vec<Option<Entry>> = read.buffered(VALUES_AT_ONCE).try_collect().await?;
    Ok(found.into_iter().flatten().collect())
}

/// A key with its value, of about so many bytes; none if it does not exist.
pub(super) async fn value(pool: &Pool<'_>, key: &str, bytes: usize) -> Result<Option<Entry>> {
    let found = pool.get(key, bytes).await?;
    if found.answer.status == StatusCode::NOT_FOUND {
        return Ok(None);
    }
    let answer = found.success()?.answer;
    let content_type = answer.content_type.unwrap_or_else(|| OCTETS.to_owned());
    let expires = answer.ttl.map(|left| crate::amount::now().saturating_add(left));
    Ok(Some(Entry { key: key.to_owned(), content_type, value: answer.body, expires }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arcs_begin_and_end_where_the_next_one_begins() {
        assert_eq!(start_of(0), None);
        for arc in 1..ARCS {
            let Some(Cursor::AfterPoint(before)) = start_of(arc) else { panic!("{arc}") };
            assert_eq!(arc_of(&before), arc - 1);
            assert_eq!(arc_of(&before.plus(Id::small(1))), arc);
            assert!(is_past(arc - 1, &Cursor::AfterPoint(before)));
            assert!(!is_past(arc, &Cursor::AfterPoint(before)));
        }
        assert!(is_past(ARCS - 1, &Cursor::AfterPoint(Id::MAX)));
        assert!(!is_past(ARCS - 1, &Cursor::AfterPoint(Id::MAX.plus(Id::MAX))));
    }

    #[test]
    fn lost_parts_are_passed_over() {
        let point = |number| Cursor::AfterPoint(Id::small(number));
        let lost = [(Id::small(4), Id::small(6)), (Id::small(90), Id::small(2))];
        let next = |place| beyond(Some(&place), &lost);
        assert_eq!(beyond(None, &lost), Some(point(2)));
        assert_eq!([2, 3, 6, 7].map(|at| next(point(at))), [const { None }; 4]);
        assert_eq!([4, 5].map(|at| next(point(at))), [Some(point(6)), Some(point(6))]);
        assert_eq!(next(point(90)), Some(Cursor::AfterPoint(Id::MAX)));
        assert_eq!(next(Cursor::AfterKey(Key::new("k"))), None);
    }

    #[test]
    fn blocks_are_bounded() {
        let key = |size| KeyEntry { key: "k".to_owned(), size };
        assert_eq!(block_length(&[]), 0);
        assert_eq!(block_length(&[key(1), key(2)]), 2);
        let half = u32::try_from(BLOCK_BYTES / 2).unwrap();
        assert_eq!(block_length(&[key(half), key(half), key(1)]), 2);
        assert_eq!(block_length(&[key(half * 3), key(1)]), 1);
    }
}
