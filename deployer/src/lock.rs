//! Who changes a ring now: one command at a time, and the others are told who, where and since when.
//!
//! On a disk of this machine the lock of the kernel (`flock`) is the whole truth. It goes with the process
//! that holds it, however that ends, so nobody waits for the dead, and nothing has to expire.
//!
//! On a disk that other machines may share (NFS, SMB, sshfs and so on) a kernel's lock may end at its
//! machine. There the holder also gives a sign of life every [`BEAT`], by writing its note again, and a
//! note of another machine counts until it is [`EXPIRES`] old. Ages are told by the clock of that disk,
//! so clocks of machines need not agree. A holder that finds the note of somebody else, because its
//! machine slept that long, ends at once: whatever it did may be interrupted anywhere.
//!
//! Two machines with a folder each (`adopt`) know nothing of each other's locks.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::error::{During, Error, Result};
use crate::printer::Printer;
use crate::state::{create_private, random_hex, read_json, remove_all, write_json};
use crate::{amount, machine, moment};

/// How often a holder on a shared disk gives a sign of life.
const BEAT: Duration = Duration::from_secs(10);
/// How long after its last sign of life a holder on another machine is taken for dead.
const EXPIRES: Duration = Duration::from_secs(60);
/// How long two who take a lock of a shared disk at one time need to see each other's notes.
const SETTLES: Duration = Duration::from_secs(1);

/// File systems that other machines may share, by their magic numbers (`statfs(2)`): NFS, SMB and CIFS,
/// FUSE (sshfs, virtiofs and others), 9P, Ceph, AFS, Lustre, GFS2, OCFS2, BeeGFS, VirtualBox.
const SHARED: [u64; 14] = [
    0x6969,
    0x517b,
    0xff53_4d42,
    0xfe53_4d42,
    0x6573_5546,
    0x0102_1997,
    0x00c3_6400,
    0x5346_414f,
    0x6b41_4653,
    0x0bd0_0bd0,
    0x0116_1970,
    0x7461_636f,
    0x1983_0326,
    0x786f_4256,
];

/// Who holds a lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Holder {
    /// What is done: `apply`.
    pub(crate) command: String,
    /// Who does it.
    pub(crate) user: String,
    /// The name of the machine it is done on.
    pub(crate) host: String,
    /// The process.
    pub(crate) pid: u32,
    /// Since when, in UTC.
    pub(crate) since: String,
    /// The run of the kernel of that machine.
    boot: String,
    /// Tells this holder from all others.
    mark: String,
}

impl fmt::Display for Holder {
    /// As a sentence without a full stop.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { command, user, host, pid, since, .. } = self;
        write!(f, "{user}@{host} runs `sky-deploy {command}` (process {pid}) since {since}")?;
        let began = moment::parse(since).and_then(|since| since.duration_since(UNIX_EPOCH).ok());
        began.map_or(Ok(()), |began| write!(f, ", {}", amount::since(began.as_secs())))
    }
}

/// The lock of a ring, held until it is dropped or the process ends.
#[derive(Debug)]
pub struct Lock {
    /// Held for its lock; dropped last.
    _file: File,
    path: PathBuf,
    note: PathBuf,
    holder: Holder,
    beat: Option<(Sender<()>, JoinHandle<()>)>,
}

/// Takes the lock `name` in the folder of `ring` for `command`, or says who has it.
pub(crate) fn take(folder: &Path, ring: &str, name: &str, command: &str) -> Result<Lock> {
    take_on(is_shared(folder), folder, ring, name, command)
}

/// Who holds the lock `name` in `folder` now as far as its note tells, which nobody is disturbed by.
pub(crate) fn holder(folder: &Path, name: &str) -> Result<Option<Holder>> {
    let note = note_of(folder, name);
    let Some(holder) = read_json::<Holder>(&note)? else { return Ok(None) };
    let here = holder.boot == machine::boot_id();
    let lives = match here {
        true => Path::new(&format!("/proc/{}", holder.pid)).exists(),
        false => is_alive_elsewhere(is_shared(folder), folder, &note, &holder)?.is_some(),
    };
    Ok(lives.then_some(holder))
}

fn note_of(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.json"))
}

fn take_on(shared: bool, folder: &Path, ring: &str, name: &str, command: &str) -> Result<Lock> {
    let path = folder.join(name);
    let note = note_of(folder, name);
    let file = loop {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .during(|| format!("cannot open {}", path.display()))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(held(ring, read_json(&note)?, None)),
            // Then notes are all there is.
            Err(Errno::NOLCK | Errno::OPNOTSUPP | Errno::NOSYS) if shared => {}
            Err(error) => {
                return Err(Error::caused(format!("cannot lock {}", path.display()), &error));
            }
        }
        // Whoever held it may have removed the whole folder meanwhile.
        let is_it = |there: std::fs::Metadata, own: std::fs::Metadata| there.ino() == own.ino();
        let own = file.metadata().during(|| format!("cannot look at {}", path.display()))?;
        if std::fs::metadata(&path).is_ok_and(|there| is_it(there, own)) {
            break file;
        }
        create_private(folder)?;
    };
    // On a disk of this machine the kernel has told already that nobody holds it.
    let before: Option<Holder> = if shared { read_json(&note)? } else { None };
    if let Some(holder) = before
        && let Some(age) = is_alive_elsewhere(shared, folder, &note, &holder)?
    {
        return Err(held(ring, Some(holder), Some(age)));
    }
    let holder = Holder {
        command: command.to_owned(),
        user: machine::user(),
        host: machine::host(),
        pid: std::process::id(),
        since: moment::seconds(SystemTime::now()),
        boot: machine::boot_id(),
        mark: random_hex(8)?,
    };
    match write_json(&note, &holder) {
        Err(error) if shared => return Err(error),
        // The kernel's lock holds without it, and on a full disk what makes room must not be kept from it.
        Err(error) => {
            let _ = std::fs::remove_file(&note);
            tracing::warn!(%error, "others will not be told who changes the ring");
        }
        Ok(()) => {}
    }
    let mut lock = Lock { _file: file, path, note, holder, beat: None };
    if shared {
        std::thread::sleep(SETTLES);
        match read_json(&lock.note)? {
            Some(other) if other != lock.holder => {
                return Err(held(ring, Some(other), Some(Duration::ZERO)));
            }
            _ => lock.beat = Some(lock.beats(ring)),
        }
    }
    Ok(lock)
}

impl Lock {
    /// Whether this is a file of the lock itself.
    pub(crate) fn owns(&self, path: &Path) -> bool {
        path == self.path || path == self.note
    }

    /// Gives the lock up, and its files with it.
    pub(crate) fn remove(self) -> Result<()> {
        // Still held: whoever opens the file before it goes is refused, or sees that it is another one.
        remove_all(&self.path).during(|| format!("cannot remove {}", self.path.display()))
    }

    /// Gives signs of life until it is told to stop.
    fn beats(&self, ring: &str) -> (Sender<()>, JoinHandle<()>) {
        let (stop, stopped) = mpsc::channel();
        let (note, holder, ring) = (self.note.clone(), self.holder.clone(), ring.to_owned());
        let beats = std::thread::spawn(move || {
            while stopped.recv_timeout(BEAT) == Err(RecvTimeoutError::Timeout) {
                match beat(&note, &holder) {
                    Ok(None) => {}
                    Ok(Some(other)) => {
                        let error = held(&ring, Some(other), Some(Duration::ZERO))
                            .because("this command gave no sign of life for too long")
                            .hint(
                                "what is done is done; the same command later goes on from there",
                            );
                        Printer::from_environment().error(&error);
                        std::process::exit(1);
                    }
                    Err(error) => tracing::warn!(%error, "no sign of life could be given"),
                }
            }
        });
        (stop, beats)
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if let Some((stop, beats)) = self.beat.take() {
            drop(stop);
            let _ = beats.join();
        }
        // Another's if this one was taken for dead; a note that stays is known to be of nobody who lives.
        if matches!(read_json::<Holder>(&self.note), Ok(Some(holder)) if holder == self.holder) {
            let _ = std::fs::remove_file(&self.note);
        }
    }
}

/// Writes the note again, as it is: its file says when. Returns who has the lock instead.
fn beat(note: &Path, own: &Holder) -> Result<Option<Holder>> {
    // None: the ring was destroyed, and nothing may be made again in its folder.
    let Some(holder) = read_json::<Holder>(note)? else { return Ok(None) };
    if holder != *own {
        return Ok(Some(holder));
    }
    let failed = || format!("cannot write {}", note.display());
    let text = std::fs::read(note).during(failed)?;
    let mut file = OpenOptions::new().write(true).open(note).during(failed)?;
    file.write_all(&text).and_then(|()| file.sync_all()).during(failed)?;
    Ok(None)
}

/// How long ago a holder on another machine gave its last sign of life; none if it does not count.
fn is_alive_elsewhere(
    shared: bool,
    folder: &Path,
    note: &Path,
    holder: &Holder,
) -> Result<Option<Duration>> {
    // Of this machine's processes the kernel tells more.
    if !shared || holder.boot == machine::boot_id() {
        return Ok(None);
    }
    let probe = folder.join(format!(".clock-{}", std::process::id()));
    let failed = || format!("cannot ask the clock of {}", folder.display());
    let now = std::fs::write(&probe, b"?").and_then(|()| std::fs::metadata(&probe)?.modified());
    let _ = std::fs::remove_file(&probe);
    let last = std::fs::metadata(note).and_then(|note| note.modified()).during(failed)?;
    let age = now.during(failed)?.duration_since(last).unwrap_or_default();
    Ok((age < EXPIRES).then_some(age))
}

/// Whether other machines may have this folder too.
fn is_shared(folder: &Path) -> bool {
    // Only the lower half: the numbers have 32 bits, and some systems extend their sign.
    rustix::fs::statfs(folder).is_ok_and(|fs| SHARED.contains(&(fs.f_type as u64 & 0xffff_ffff)))
}

/// The error for a lock that somebody else has; `age` is that of the last sign of life of another machine.
fn held(ring: &str, holder: Option<Holder>, age: Option<Duration>) -> Error {
    let Some(holder) = holder else {
        return Error::new(format!(
            "the ring {ring} is being changed by a command that has just begun"
        ))
        .hint("wait until it is done");
    };
    let Holder { host, pid, .. } = &holder;
    let error = Error::new(format!("the ring {ring} is being changed: {holder}"));
    match age {
        Some(age) => error.hint(format!(
            "wait until it is done, or end it on {host}; if that machine is gone, its lock expires \
             {} s after its last sign of life, {} s ago",
            EXPIRES.as_secs(),
            age.as_secs()
        )),
        None if is_stopped(*pid) => error.hint(format!(
            "that process is suspended: `fg` in its terminal or `kill -CONT {pid}` lets it go on, \
             `kill -9 {pid}` ends it, and its lock goes with it"
        )),
        None => error.hint("wait until it is done, or end that process: its lock goes with it"),
    }
}

/// Whether a process of this machine is stopped, as by Ctrl-Z.
fn is_stopped(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elsewhere(folder: &Path) -> Holder {
        let holder = Holder {
            command: "apply".into(),
            user: "anna".into(),
            host: "far".into(),
            pid: 7,
            since: "2026-11-28T14:00:00Z".into(),
            boot: "another".into(),
            mark: "hers".into(),
        };
        write_json(&note_of(folder, "lock"), &holder).unwrap();
        holder
    }

    fn age(folder: &Path, age: Duration) {
        let note = File::options().write(true).open(note_of(folder, "lock")).unwrap();
        note.set_modified(SystemTime::now() - age).unwrap();
    }

    #[test]
    fn one_at_a_time_and_the_others_are_told_who() {
        let folder = tempfile::tempdir().unwrap();
        for shared in [false, true] {
            let take = |command| take_on(shared, folder.path(), "sky", "lock", command);
            let lock = take("apply").unwrap();
            let problem = take("destroy").unwrap_err().problems.remove(0);
            let me = format!(
                "{}@{} runs `sky-deploy apply` (process {}) since 2",
                machine::user(),
                machine::host(),
                std::process::id()
            );
            assert!(problem.what.contains(&me), "{}", problem.what);
            assert!(problem.hint.unwrap().contains("end that process"));
            assert_eq!(holder(folder.path(), "lock").unwrap(), Some(lock.holder.clone()));
            drop(lock);
            assert_eq!(holder(folder.path(), "lock").unwrap(), None);
            assert!(!note_of(folder.path(), "lock").exists());
            drop(take("destroy").unwrap());
        }
    }

    /// On a full disk no note can be written, and what makes room needs the lock.
    #[test]
    fn a_note_that_cannot_be_written_keeps_nobody_from_a_disk_of_this_machine() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(note_of(folder.path(), "lock")).unwrap();
        let take = |shared| take_on(shared, folder.path(), "sky", "lock", "destroy");
        assert!(take(true).is_err());
        let lock = take(false).unwrap();
        assert!(take(false).is_err(), "locked twice");
        drop(lock);
        take(false).unwrap();
    }

    #[test]
    fn whoever_died_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let take = |shared| take_on(shared, folder.path(), "sky", "lock", "apply");
        // Its note is there and its kernel's lock is not: killed here, or this machine was restarted.
        elsewhere(folder.path());
        drop(take(false).unwrap());
        let mut dead = elsewhere(folder.path());
        dead.boot = machine::boot_id();
        write_json(&note_of(folder.path(), "lock"), &dead).unwrap();
        drop(take(true).unwrap());
        // On another machine that shares the disk: for a while nobody knows.
        elsewhere(folder.path());
        age(folder.path(), Duration::from_secs(12));
        let problem = take(true).unwrap_err().problems.remove(0);
        assert!(problem.what.contains("anna@far runs `sky-deploy apply` (process 7)"));
        let hint = problem.hint.unwrap();
        assert!(hint.contains("expires 60 s after its last sign of life, 1"), "{hint}");
        age(folder.path(), EXPIRES + Duration::from_secs(1));
        drop(take(true).unwrap());
        // A note that nobody understands stops nobody either, but is told.
        std::fs::write(note_of(folder.path(), "lock"), "{").unwrap();
        assert!(take(true).unwrap_err().problems[0].what.contains("cannot be understood"));
    }

    #[test]
    fn a_sign_of_life_changes_nothing_but_its_time() {
        let folder = tempfile::tempdir().unwrap();
        let lock = take_on(false, folder.path(), "sky", "lock", "apply").unwrap();
        age(folder.path(), EXPIRES * 2);
        let seen = || std::fs::metadata(&lock.note).unwrap().modified().unwrap();
        let (before, text) = (seen(), std::fs::read(&lock.note).unwrap());
        assert_eq!(beat(&lock.note, &lock.holder).unwrap(), None);
        assert!(seen() > before + EXPIRES);
        assert_eq!(std::fs::read(&lock.note).unwrap(), text);
        let other = elsewhere(folder.path());
        assert_eq!(beat(&lock.note, &lock.holder).unwrap(), Some(other.clone()));
        // It is not ours to remove.
        let note = lock.note.clone();
        drop(lock);
        assert_eq!(read_json(&note).unwrap(), Some(other));
        std::fs::remove_file(&note).unwrap();
        let (own, none) = (elsewhere(folder.path()), std::fs::remove_file(&note));
        none.unwrap();
        assert_eq!(beat(&note, &own).unwrap(), None);
        assert!(!note.exists(), "nothing is made again where a ring was destroyed");
    }
}
