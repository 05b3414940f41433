//! The store on a real disk: what was written is there again, what is damaged is said to be, and a
//! directory serves one agent only.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use sky_agent::metrics::Counters;
use sky_agent::store::{Committer, Directory, DirectoryError, Disk, Room, Store};
use sky_chord::{
    Content, Cursor, Id, Key, Record, Records, Register, Scan, StoreError, Value, Write,
};

fn record(bytes: impl Into<Bytes>) -> Record {
    let value = Value { content_type: "text/plain".into(), bytes: bytes.into(), ttl: None };
    Record {
        register: Register { value: Some(Content::Whole(value)), ..Register::ABSENT },
        ..Record::EMPTY
    }
}

fn open(path: &Path) -> Result<(Directory, Disk), DirectoryError> {
    Directory::open(path, None, Id::small(7))
}

fn refused(path: &Path, id: Option<Id>) -> DirectoryError {
    match Directory::open(path, id, Id::small(7)) {
        Ok(_) => panic!("the directory should be refused"),
        Err(error) => {
            assert!(!error.hint().is_empty());
            error
        }
    }
}

#[test]
fn everything_written_is_there_again() {
    let folder = tempfile::tempdir().unwrap();
    let keys: Vec<_> = (0..100).map(|i| Key::new(&format!("key {i}"))).collect();
    {
        let (_directory, disk) = open(folder.path()).unwrap();
        let writes =
            keys.iter().map(|key| Write::Record(key.clone(), record(key.name().to_owned())));
        disk.write_durably(&writes.collect::<Vec<_>>()).unwrap();
        disk.write_durably(&[
            Write::Forget(keys[3].clone()),
            Write::Meta { name: "ring".into(), bytes: Some("one".into()) },
            Write::Meta { name: "old".into(), bytes: Some("x".into()) },
        ])
        .unwrap();
        disk.write_durably(&[Write::Meta { name: "old".into(), bytes: None }]).unwrap();
    }
    let (directory, disk) = open(folder.path()).unwrap();
    assert_eq!(directory.boot(), 2);
    assert_eq!(disk.meta().unwrap(), [("ring".to_owned(), Bytes::from("one"))]);
    for (i, key) in keys.iter().enumerate() {
        let expected = (i != 3).then(|| record(key.name().to_owned()));
        assert_eq!(disk.get(key).unwrap(), expected, "{key:?}");
    }
    assert_eq!(disk.get(&Key::new("never written")).unwrap(), None);
}

#[test]
fn bytes_stay_when_only_their_record_changes() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (Key::new("first"), Key::new("second"));
    let with = |forgotten| {
        let register = record("bytes").register.outlined(0);
        Record { register: Register { forgotten, ..register }, ..Record::EMPTY }
    };
    for key in [&first, &second] {
        let (_directory, disk) = open(folder.path()).unwrap();
        let bytes = Write::Bytes(key.clone(), "bytes".into());
        disk.write_durably(&[bytes, Write::Record(key.clone(), with(1))]).unwrap();
        disk.write_durably(&[Write::Record(key.clone(), with(2))]).unwrap();
    }
    let (_directory, disk) = open(folder.path()).unwrap();
    disk.write_durably(&[Write::ForgetBytes(first.clone())]).unwrap();
    assert_eq!(disk.get(&first).unwrap(), Some(with(2)));
    assert_eq!(disk.bytes(&first).unwrap(), None);
    assert_eq!(disk.bytes(&second).unwrap(), Some("bytes".into()));
}

#[test]
fn scans_follow_the_circle_between_their_bounds() {
    let folder = tempfile::tempdir().unwrap();
    let (_directory, disk) = open(folder.path()).unwrap();
    let mut keys: Vec<_> = (0..50).map(|i| Key::new(&format!("key {i}"))).collect();
    keys.sort();
    let writes = keys.iter().map(|key| Write::Record(key.clone(), record("v")));
    disk.write_durably(&writes.collect::<Vec<_>>()).unwrap();
    let scan = |after: Option<Cursor>, through, limit| -> Vec<Key> {
        let page = disk.scan(after.as_ref(), through, limit).unwrap();
        assert_eq!(page.end, page.entries.len() < limit);
        page.entries.into_iter().map(|(key, _)| key).collect()
    };
    let point = |i: usize| keys[i].hash();
    assert_eq!(scan(None, Id::MAX, 100), keys);
    assert_eq!(scan(None, Id::MAX, 7), keys[..7]);
    assert_eq!(scan(None, point(9), 100), keys[..=9]);
    assert_eq!(scan(Some(Cursor::AfterKey(keys[9].clone())), point(20), 100), keys[10..=20]);
    assert_eq!(scan(Some(Cursor::AfterPoint(point(9))), Id::MAX, 100), keys[10..]);
    assert_eq!(scan(Some(Cursor::AfterPoint(Id::MAX)), Id::MAX, 100), []);
    assert_eq!(scan(Some(Cursor::AfterPoint(point(20))), point(9), 100), []);
    assert_eq!(scan(Some(Cursor::AfterPoint(point(20))), point(20), 100), []);
}

#[test]
fn a_page_of_large_values_is_short_and_the_next_one_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (_directory, disk) = open(folder.path()).unwrap();
    let mut keys: Vec<_> = (0..12).map(|i| Key::new(&format!("key {i}"))).collect();
    keys.sort();
    let large = Bytes::from(vec![7; 1 << 20]);
    for key in &keys {
        disk.write_durably(&[Write::Record(key.clone(), record(large.clone()))]).unwrap();
    }
    let (mut seen, mut after, mut pages) = (Vec::new(), None, 0);
    loop {
        let page = disk.scan(after.as_ref(), Id::MAX, 100).unwrap();
        assert!(page.entries.len() <= 4, "{} MiB", page.entries.len());
        (after, pages) = (page.next(), pages + 1);
        seen.extend(page.entries.into_iter().map(|(key, _)| key));
        if after.is_none() {
            break;
        }
    }
    assert_eq!((seen, pages), (keys, 3));
}

#[test]
fn a_record_that_does_not_decode_is_an_error_and_not_absent() {
    let folder = tempfile::tempdir().unwrap();
    let key = Key::new("damaged");
    drop(open(folder.path()).unwrap());
    {
        let database = fjall::Database::builder(folder.path().join("store")).open().unwrap();
        let records = database.keyspace("records", Default::default).unwrap();
        let mut bytes = record("value").to_bytes();
        bytes.truncate(bytes.len() - 2);
        // Past the journal, where every batch is numbered.
        let mut ingestion = records.start_ingestion().unwrap();
        ingestion.write(key.to_bytes(), bytes).unwrap();
        ingestion.finish().unwrap();
    }
    let (_directory, disk) = open(folder.path()).unwrap();
    let error = disk.get(&key).unwrap_err();
    assert!(error.0.contains("damaged"), "{error}");
    assert!(disk.scan(None, Id::MAX, 10).is_err());
}

/// All files below a folder.
fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[test]
fn flipped_bits_on_disk_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let mark = [0xa5; 64];
    {
        let (_directory, disk) = open(folder.path()).unwrap();
        disk.write_durably(&[Write::Record(Key::new("k"), record(mark.to_vec()))]).unwrap();
        disk.mark().unwrap();
    }
    let mut flipped = 0;
    for file in files(&folder.path().join("store")) {
        let mut bytes = std::fs::read(&file).unwrap();
        if let Some(at) = bytes.windows(mark.len()).position(|window| window == mark) {
            bytes[at + 10] ^= 1;
            std::fs::write(&file, bytes).unwrap();
            flipped += 1;
        }
    }
    assert!(flipped > 0, "the value is found on disk");
    match open(folder.path()) {
        Err(DirectoryError::Store { .. }) => {}
        Err(error) => panic!("another error: {error}"),
        Ok((_, disk)) => assert!(disk.get(&Key::new("k")).is_err(), "damage is reported"),
    }
}

#[test]
fn a_directory_has_one_agent_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let first = open(folder.path()).unwrap();
    let error = refused(folder.path(), None);
    let process = std::process::id().to_string();
    assert!(matches!(&error, DirectoryError::InUse { process: p, .. } if *p == process), "{error}");
    drop(first);
    assert_eq!(open(folder.path()).unwrap().0.boot(), 2);
}

#[test]
fn a_directory_belongs_to_one_node() {
    let folder = tempfile::tempdir().unwrap();
    let node = open(folder.path()).unwrap().0.node();
    assert_eq!(node.position, Id::small(7));
    let error = refused(folder.path(), Some(Id::small(8)));
    assert!(matches!(error, DirectoryError::OtherNode { .. }), "{error}");
    // The position is kept even when the default, made from the address, would be another one now.
    let again = Directory::open(folder.path(), None, Id::small(9)).unwrap().0;
    assert_eq!((again.node(), again.boot()), (node, 2));
    let other = tempfile::tempdir().unwrap();
    let stranger = open(other.path()).unwrap().0.node();
    assert_ne!(node.incarnation, stranger.incarnation);
}

#[test]
fn what_another_version_or_chance_wrote_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path()).unwrap());
    let file = folder.path().join("identity");
    let identity = std::fs::read_to_string(&file).unwrap();
    for other in [1, 2, 5] {
        let format = format!("\"format\":{other},\"new\":[]");
        std::fs::write(&file, identity.replace("\"format\":4", &format)).unwrap();
        let error = refused(folder.path(), None);
        assert!(
            matches!(error, DirectoryError::OtherFormat { found, .. } if found == other),
            "{error}"
        );
    }
    // Fewer starts than there were would make ballots twice.
    for damaged in ["", "{}", &identity.replace("\"boots\":1", "\"boots\":0")] {
        std::fs::write(&file, damaged).unwrap();
        let error = refused(folder.path(), None);
        assert!(matches!(error, DirectoryError::DamagedIdentity { .. }), "{error}");
    }
    std::fs::write(&file, identity).unwrap();
    assert!(open(folder.path()).is_ok());
}

#[test]
fn a_directory_whose_values_are_all_in_records_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let key = Key::new("k");
    {
        let (_directory, disk) = open(folder.path()).unwrap();
        disk.write_durably(&[Write::Record(key.clone(), record("v".repeat(100_000)))]).unwrap();
    }
    {
        let database = fjall::Database::builder(folder.path().join("store")).open().unwrap();
        let values = database.keyspace("values", Default::default).unwrap();
        database.delete_keyspace(values).unwrap();
    }
    let error = refused(folder.path(), None);
    assert!(error.to_string().contains("its keyspace `values` is gone"), "{error}");
    let file = folder.path().join("identity");
    let mut identity: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let text = |name: &str| identity[name].as_str().unwrap().to_owned();
    let of_three = format!("3 {} {} {}", text("position"), text("incarnation"), identity["boots"]);
    let sum: String =
        Sha256::digest(of_three).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    (identity["format"], identity["sum"]) = (3.into(), sum.into());
    std::fs::write(&file, identity.to_string()).unwrap();
    for _ in 0..2 {
        let (_directory, disk) = open(folder.path()).unwrap();
        assert_eq!(disk.get(&key).unwrap(), Some(record("v".repeat(100_000))));
        assert_eq!(disk.bytes(&key).unwrap(), None);
    }
    let identity = std::fs::read_to_string(&file).unwrap();
    assert!(identity.contains("\"format\":4"), "{identity}");
}

#[test]
fn a_directory_of_something_else_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("thesis.tex"), "precious").unwrap();
    let error = refused(folder.path(), None);
    assert!(matches!(&error, DirectoryError::Foreign { found, .. } if found == "thesis.tex"));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing was added");
    // What a mounted file system brings is not foreign.
    let mounted = tempfile::tempdir().unwrap();
    std::fs::create_dir(mounted.path().join("lost+found")).unwrap();
    assert_eq!(open(mounted.path()).unwrap().0.boot(), 1);
}

fn copy(from: &Path, to: &Path) {
    for file in files(from) {
        let to = to.join(file.strip_prefix(from).unwrap());
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(file, to).unwrap();
    }
}

#[test]
fn a_copy_is_refused_while_its_original_is_there_and_a_moved_directory_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let [original, copied, moved] = ["a", "b", "c"].map(|name| folder.path().join(name));
    let running = open(&original).unwrap();
    copy(&original, &copied);
    let error = refused(&copied, None);
    assert!(
        matches!(&error, DirectoryError::Copy { original: o, .. } if o.ends_with("a")),
        "{error}"
    );
    drop(running);
    assert!(matches!(refused(&copied, None), DirectoryError::Copy { .. }));
    // By another name it is the same.
    std::os::unix::fs::symlink(&original, folder.path().join("link")).unwrap();
    assert_eq!(open(&folder.path().join("link")).unwrap().0.boot(), 2);
    std::fs::rename(&original, &moved).unwrap();
    assert_eq!(open(&moved).unwrap().0.boot(), 3);
    assert_eq!(open(&moved).unwrap().0.boot(), 4);
}

#[test]
fn half_a_directory_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (store, identity) = (folder.path().join("store"), folder.path().join("identity"));
    drop(open(folder.path()).unwrap());
    std::fs::rename(&store, folder.path().join("elsewhere")).unwrap();
    assert!(matches!(refused(folder.path(), None), DirectoryError::Incomplete { .. }));
    std::fs::rename(folder.path().join("elsewhere"), &store).unwrap();

    let kept = std::fs::read(&identity).unwrap();
    std::fs::remove_file(&identity).unwrap();
    assert!(matches!(refused(folder.path(), None), DirectoryError::Incomplete { .. }));

    let other = tempfile::tempdir().unwrap();
    drop(open(other.path()).unwrap());
    std::fs::copy(other.path().join("identity"), &identity).unwrap();
    assert!(matches!(refused(folder.path(), None), DirectoryError::Copy { .. }));
    other.close().unwrap();
    assert!(matches!(refused(folder.path(), None), DirectoryError::Incomplete { .. }));
    std::fs::write(&identity, kept).unwrap();
    assert_eq!(open(folder.path()).unwrap().0.boot(), 2);
}

#[test]
fn an_interrupted_first_start_is_begun_again() {
    let folder = tempfile::tempdir().unwrap();
    // Something in the way interrupts it behind the identity.
    std::fs::create_dir(folder.path().join("mark")).unwrap();
    assert!(matches!(refused(folder.path(), None), DirectoryError::Io { .. }));
    std::fs::remove_dir(folder.path().join("mark")).unwrap();
    std::fs::create_dir(folder.path().join("store")).unwrap();
    std::fs::write(folder.path().join("store").join("0.jnl"), "half").unwrap();
    assert_eq!(open(folder.path()).unwrap().0.boot(), 1);
}

#[test]
fn a_directory_without_its_mark_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path()).unwrap());
    std::fs::remove_file(folder.path().join("mark")).unwrap();
    assert!(matches!(refused(folder.path(), None), DirectoryError::Incomplete { .. }));
}

/// A store that waits for permission before each commit, and fails when it gets none.
struct Gate {
    opened: std::sync::Mutex<mpsc::Receiver<()>>,
    batches: mpsc::Sender<usize>,
}

impl Records for Gate {
    fn bytes(&self, _: &Key) -> Result<Option<Bytes>, StoreError> {
        Ok(None)
    }

    fn get(&self, _: &Key) -> Result<Option<Record>, StoreError> {
        Ok(None)
    }

    fn scan(&self, _: Option<&Cursor>, _: Id, _: usize) -> Result<Scan<Record>, StoreError> {
        Ok(Scan::EMPTY)
    }
}

impl Store for Gate {
    fn write_durably(&self, writes: &[Write]) -> Result<(), StoreError> {
        self.batches.send(writes.len()).unwrap();
        self.opened.lock().unwrap().recv().map_err(|_| StoreError("the disk is gone".to_owned()))
    }

    fn mark(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn meta(&self) -> Result<Vec<(String, Bytes)>, StoreError> {
        Ok(Vec::new())
    }

    fn disk_bytes(&self) -> u64 {
        0
    }
}

#[tokio::test]
async fn what_waits_shares_one_commit_and_a_failure_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let (open_gate, opened) = mpsc::channel();
    let (batches, committed) = mpsc::channel();
    let gate = Gate { opened: opened.into(), batches };
    let counters = Arc::new(Counters::default());
    let room = Room::new(folder.path(), Some(0));
    let committer = Committer::start(gate, room, Arc::clone(&counters)).unwrap();
    let write = || vec![Write::Forget(Key::new("k"))];
    let mut progress = committer.progress();
    let patience = Duration::from_secs(30);

    committer.submit(1, write());
    assert_eq!(committed.recv_timeout(patience), Ok(1));
    let one = committer.waiting();
    (2..=50).for_each(|seq| committer.submit(seq, write()));
    assert_eq!((one > 0, committer.waiting()), (true, 50 * one), "none is on disk");
    open_gate.send(()).unwrap();
    assert_eq!(committed.recv_timeout(patience), Ok(49), "what came meanwhile is joined");
    assert_eq!(progress.wait_for(|p| p.durable.is_some()).await.unwrap().durable, Some(1));
    open_gate.send(()).unwrap();
    progress.wait_for(|p| p.durable == Some(50)).await.unwrap();
    assert_eq!(committer.waiting(), 0);
    assert_eq!((counters.commits.load(Relaxed), counters.writes.load(Relaxed)), (2, 50));

    committer.submit(51, write());
    drop(open_gate);
    let failed = progress.wait_for(|p| p.failed.is_some()).await.unwrap().clone();
    assert_eq!(failed.durable, Some(50));
    assert_eq!(failed.failed, Some((51, "the disk is gone".to_owned())));
}

#[tokio::test]
async fn a_disk_counts_as_full_below_its_reserve() {
    let folder = tempfile::tempdir().unwrap();
    assert!(!Room::new(folder.path(), Some(0)).is_full());
    assert!(Room::new(folder.path(), Some(u64::MAX)).is_full());
    let disk = rustix::fs::statvfs(folder.path()).unwrap();
    let (free, quarter) = (disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize / 4);
    assert_eq!(Room::new(folder.path(), None).is_full(), free < quarter.min(512 << 20));
    let (directory, disk) = open(folder.path()).unwrap();
    let room = Room::new(directory.path(), Some(u64::MAX));
    let committer = Committer::start(disk, room, Arc::default()).unwrap();
    assert!(*committer.disk_full().borrow());
}
