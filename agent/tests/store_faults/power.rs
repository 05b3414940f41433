//! What is left on the disk when the power goes: all that was synced, and of the rest what happened to
//! get there. The store's own system calls are recorded, and played back up to a moment.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sky_agent::store::Store;
use sky_chord::{Key, Write};

use crate::history::{History, Random, Seen, commit, is_thorough, open, record};
use crate::image::{Image, memory};
use crate::need;

/// The smallest thing that a disk writes whole.
const SECTOR: usize = 512;

/// The data directory, which the store makes itself.
const DATA: &str = "data";

/// Commits of the run that is recorded; half of them before the store is opened again.
const COMMITS: usize = 100;

/// The writes of a commit here: at times so large that tables are written, too.
fn large_commit(number: usize) -> Vec<Write> {
    let mut writes = commit(number);
    if number.is_multiple_of(3) {
        let large = (b'a' + (number % 26) as u8) as char;
        let value = record(large.to_string().repeat(550_000));
        writes.push(Write::Record(Key::new(&format!("large {number}")), value));
    }
    writes
}

/// What the test below runs in a process of its own, under a tracer.
#[expect(clippy::print_stdout, reason = "the tracer sees what is reported, and when")]
fn write_commits(folder: &Path) {
    for half in 0..2 {
        let (_directory, disk) = open(folder).unwrap();
        for number in half * COMMITS / 2 + 1..=(half + 1) * COMMITS / 2 {
            disk.write_durably(&large_commit(number)).unwrap();
            println!("durable {number}");
            if number % 7 == 0 {
                disk.mark().unwrap();
            }
        }
    }
}

#[test]
fn a_power_cut_leaves_every_commit_that_was_reported_durable() {
    if let Some(folder) = std::env::var_os("POWER_STORE") {
        return write_commits(Path::new(&folder));
    }
    let has_strace = Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_ok();
    if !need::is_met(has_strace, "strace") {
        return;
    }
    let folder = memory();
    let (root, log) = (folder.path().join("root"), folder.path().join("log"));
    std::fs::create_dir(&root).unwrap();
    let mut traced = Command::new("strace");
    let calls = "trace=openat,write,pwrite64,writev,lseek,ftruncate,fsync,fdatasync,close,rename,\
                 renameat,renameat2,unlink,unlinkat,rmdir,mkdir,mkdirat,linkat,copy_file_range";
    traced.args(["-f", "-y", "-s", "1000000", "-e", calls, "-o"]).arg(&log);
    traced.arg(std::env::current_exe().unwrap());
    let name = "power::a_power_cut_leaves_every_commit_that_was_reported_durable";
    traced.args(["--exact", name, "--nocapture", "--test-threads=1"]);
    let traced = traced.env("POWER_STORE", root.join(DATA)).stdout(Stdio::null()).status();
    assert!(traced.unwrap().success());
    // Or else the images would be refused: they are copies of it.
    std::fs::remove_dir_all(&root).unwrap();

    let history = History::from((1..=COMMITS).map(large_commit));
    let log = std::fs::read(&log).unwrap();
    let calls: Vec<_> = finished(&log).collect();
    let mut random = Random(3);
    let images = if is_thorough() { 1500 } else { 40 };
    let mut moments: Vec<_> =
        (0..images).map(|_| random.below(calls.len() as u64 + 1) as usize).collect();
    moments.push(calls.len());
    moments.sort_unstable();
    let mut disk = PowerDisk { root, ..PowerDisk::default() };
    let mut played = 0;
    for moment in moments {
        while played < moment {
            disk.play(&calls[played]);
            played += 1;
        }
        let image = disk.cut(&mut random);
        let seen = history.look(&image);
        let is_whole = matches!(seen, Seen::Commits(commits) if commits >= disk.reported);
        assert!(is_whole, "after {} calls and {} commits: {seen:?}", played, disk.reported);
    }
    assert_eq!(disk.reported, COMMITS, "everything was recorded");
    assert!(disk.syncs > COMMITS, "{} syncs", disk.syncs);
}

/// The calls of a trace in the order in which they ended, without the number of the process.
fn finished(log: &[u8]) -> impl Iterator<Item = String> {
    let mut begun = BTreeMap::new();
    let lines = log.split(|byte| *byte == b'\n').map(|line| str::from_utf8(line).unwrap());
    lines.filter_map(move |line| {
        let (process, call) = line.split_once(' ')?;
        let call = call.trim_start();
        if let Some(call) = call.strip_suffix(" <unfinished ...>") {
            begun.insert(process.to_owned(), call.to_owned());
            return None;
        }
        if call.starts_with("<...") {
            let (_, end) = call.split_once("resumed>")?;
            return Some(begun.remove(process)? + end);
        }
        Some(call.to_owned())
    })
}

/// A file: what is surely on the disk, and what happened since.
#[derive(Clone, Default)]
struct FileState {
    synced: Vec<u8>,
    pending: Vec<Change>,
    length: usize,
}

#[derive(Clone)]
enum Change {
    Write(usize, Vec<u8>),
    Length(usize),
}

impl FileState {
    fn sync(&mut self) {
        for change in std::mem::take(&mut self.pending) {
            apply(&mut self.synced, &change);
        }
    }
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Length(length) => bytes.resize(*length, 0),
        Change::Write(at, data) => {
            bytes.resize(bytes.len().max(at + data.len()), 0);
            bytes[*at..at + data.len()].copy_from_slice(data);
        }
    }
}

/// What is there under each name: a file, or a folder.
type Names = BTreeMap<PathBuf, Option<usize>>;

/// A change of a folder.
#[derive(Clone)]
enum Entry {
    Made(PathBuf, Option<usize>),
    Gone(PathBuf),
    Renamed(PathBuf, PathBuf),
}

impl Entry {
    fn folder(&self) -> &Path {
        let (Self::Made(path, _) | Self::Gone(path) | Self::Renamed(_, path)) = self;
        path.parent().unwrap()
    }

    fn apply(&self, names: &mut Names) {
        match self {
            Self::Made(path, file) => drop(names.insert(path.clone(), *file)),
            Self::Gone(path) => drop(names.remove(path)),
            Self::Renamed(from, to) => {
                if let Some(file) = names.remove(from) {
                    names.insert(to.clone(), file);
                }
            }
        }
    }
}

/// The disk under the store.
#[derive(Default)]
struct PowerDisk {
    /// The only folder that is there from the beginning.
    root: PathBuf,
    files: Vec<FileState>,
    names: Names,
    synced_names: Names,
    pending_names: Vec<Entry>,
    /// File and place of each descriptor.
    open: BTreeMap<u32, (usize, usize)>,
    /// Commits that were reported durable.
    reported: usize,
    syncs: usize,
}

impl PowerDisk {
    fn change_names(&mut self, entry: Entry) {
        entry.apply(&mut self.names);
        self.pending_names.push(entry);
    }

    fn ours(&self, path: &str) -> Option<PathBuf> {
        Some(Path::new(path).strip_prefix(&self.root).ok()?.to_owned())
    }

    /// Takes a call as the tracer wrote it down.
    fn play(&mut self, line: &str) {
        let Some((name, rest)) = line.split_once('(') else { return };
        let Some((arguments, result)) = rest.rsplit_once(" = ") else { return };
        if result.starts_with('-') {
            return;
        }
        let arguments = arguments.trim_end().strip_suffix(')').unwrap_or(arguments);
        let descriptor = || arguments.split('<').next()?.parse::<u32>().ok();
        let path = |n: usize| self.ours(arguments.split('"').nth(2 * n + 1)?);
        match name {
            "openat" => {
                let (Some(path), Some((descriptor, _))) = (path(0), result.split_once('<')) else {
                    return;
                };
                let file = match self.names.get(&path) {
                    Some(Some(file)) => *file,
                    None if arguments.contains("O_CREAT") => {
                        self.files.push(FileState::default());
                        let file = self.files.len() - 1;
                        self.change_names(Entry::Made(path, Some(file)));
                        file
                    }
                    Some(None) | None => return,
                };
                if arguments.contains("O_TRUNC") {
                    self.files[file].pending.push(Change::Length(0));
                    self.files[file].length = 0;
                }
                let at = if arguments.contains("O_APPEND") { self.files[file].length } else { 0 };
                self.open.insert(descriptor.parse().unwrap(), (file, at));
            }
            "close" => drop(descriptor().map(|number| self.open.remove(&number))),
            "lseek" => {
                let place = descriptor().and_then(|number| self.open.get_mut(&number));
                if let Some((_, at)) = place {
                    *at = result.trim().parse().unwrap();
                }
            }
            "write" | "pwrite64" => {
                let Some(number) = descriptor() else { return };
                let bytes = text(arguments);
                if let Some(rest) = bytes.strip_prefix(b"durable ") {
                    self.reported = str::from_utf8(rest).unwrap().trim().parse().unwrap();
                }
                let Some((file, at)) = self.open.get_mut(&number) else {
                    let to = arguments.split(['<', '>']).nth(1).and_then(|path| self.ours(path));
                    return assert!(to.is_none(), "nobody opened {to:?}");
                };
                assert_eq!(result.trim().parse(), Ok(bytes.len()), "written whole");
                let place = match name {
                    "write" => std::mem::replace(at, *at + bytes.len()),
                    _ => arguments.rsplit_once(", ").unwrap().1.parse().unwrap(),
                };
                let file = &mut self.files[*file];
                file.length = file.length.max(place + bytes.len());
                file.pending.push(Change::Write(place, bytes));
            }
            "ftruncate" => {
                let Some((file, _)) = descriptor().and_then(|number| self.open.get(&number)) else {
                    return;
                };
                let length = arguments.rsplit_once(", ").unwrap().1.parse().unwrap();
                self.files[*file].length = length;
                self.files[*file].pending.push(Change::Length(length));
            }
            "fsync" | "fdatasync" => {
                self.syncs += 1;
                let folder = arguments.split(['<', '>']).nth(1).and_then(|path| self.ours(path));
                if let Some((file, _)) = descriptor().and_then(|number| self.open.get(&number)) {
                    self.files[*file].sync();
                } else if let Some(folder) = folder {
                    self.sync_folder(&folder);
                }
            }
            "rename" | "renameat" | "renameat2" => {
                if let (Some(from), Some(to)) = (path(0), path(1)) {
                    self.change_names(Entry::Renamed(from, to));
                }
            }
            "unlink" | "unlinkat" | "rmdir" => {
                if let Some(path) = path(0) {
                    self.change_names(Entry::Gone(path));
                }
            }
            "mkdir" | "mkdirat" => {
                if let Some(path) = path(0) {
                    self.change_names(Entry::Made(path, None));
                }
            }
            other => assert!(!line.contains(self.root.to_str().unwrap()), "{other} is not known"),
        }
    }

    fn sync_folder(&mut self, folder: &Path) {
        let pending = std::mem::take(&mut self.pending_names);
        for entry in pending {
            if entry.folder() == folder {
                entry.apply(&mut self.synced_names);
            } else {
                self.pending_names.push(entry);
            }
        }
    }

    /// What is there after the power is cut now.
    fn cut(&self, random: &mut Random) -> Image {
        let mut names = self.synced_names.clone();
        // Every folder gets as far as it happens to get, in its order.
        let mut kept = BTreeMap::new();
        for entry in &self.pending_names {
            let pending =
                self.pending_names.iter().filter(|e| e.folder() == entry.folder()).count();
            let draw = || random.below(pending as u64 + 1);
            let left = kept.entry(entry.folder()).or_insert_with(draw);
            if *left > 0 {
                *left -= 1;
                entry.apply(&mut names);
            }
        }
        let mut image = Image::default();
        for (name, file) in &names {
            let folders = || name.ancestors().skip(1).filter(|folder| *folder != Path::new(""));
            let (Some(file), Ok(inside)) = (file, name.strip_prefix(DATA)) else { continue };
            if !folders().all(|folder| names.get(folder) == Some(&None)) {
                continue;
            }
            let file = &self.files[*file];
            let mut bytes = file.synced.clone();
            // Everything, nothing, or some sectors of what was not synced.
            let style = random.below(3);
            for change in &file.pending {
                match change {
                    Change::Length(_) if style == 0 || style == 2 && random.below(2) == 0 => {}
                    Change::Write(..) if style == 0 => {}
                    Change::Write(at, data) if style == 2 => {
                        let mut at = *at;
                        let mut data = &data[..];
                        while !data.is_empty() {
                            let (sector, rest) =
                                data.split_at(data.len().min(SECTOR - at % SECTOR));
                            if random.below(2) == 0 {
                                apply(&mut bytes, &Change::Write(at, sector.to_owned()));
                            }
                            at += sector.len();
                            data = rest;
                        }
                    }
                    change => apply(&mut bytes, change),
                }
            }
            image.insert(inside.to_owned(), bytes);
        }
        image
    }
}

/// The bytes of the text in the arguments of a call.
fn text(arguments: &str) -> Vec<u8> {
    let (_, quoted) = arguments.split_once('"').unwrap();
    let mut bytes = Vec::new();
    let mut rest = quoted.as_bytes();
    while let [byte, tail @ ..] = rest {
        rest = tail;
        match (byte, tail) {
            (b'"', _) => break,
            (b'\\', [digit @ b'0'..=b'7', ..]) => {
                let digits = tail.iter().take(3).take_while(|b| matches!(b, b'0'..=b'7')).count();
                let _ = digit;
                let octal = str::from_utf8(&tail[..digits]).unwrap();
                bytes.push(u8::from_str_radix(octal, 8).unwrap());
                rest = &tail[digits..];
            }
            (b'\\', [escaped, tail @ ..]) => {
                let named = [(b'n', b'\n'), (b't', b'\t'), (b'r', b'\r'), (b'v', 11), (b'f', 12)];
                let meant = named.iter().find(|(name, _)| name == escaped).map(|(_, byte)| *byte);
                bytes.push(meant.unwrap_or(*escaped));
                rest = tail;
            }
            (byte, _) => bytes.push(*byte),
        }
    }
    bytes
}
