//! A backup that is being written to a file, and goes on where an interrupted one was.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, BufWriter, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use super::format::ARCS;
use super::{Damage, Frame, Header, Reader, Trailer, Writer};
use crate::error::{During, Error, Result};

/// A file that is not a complete backup yet. Locked while it is written.
pub(crate) struct Draft {
    path: PathBuf,
    file: File,
}

/// How far a backup has come.
pub(crate) struct Begun {
    /// Which it is.
    pub(crate) header: Header,
    /// How far each arc is: not begun, to be gone on with at a cursor, or done.
    pub(crate) arcs: [Arc; ARCS],
    /// What is there already.
    pub(crate) so_far: Trailer,
    /// Whether nothing is missing.
    pub(crate) complete: bool,
    /// What was thrown away because it was damaged.
    pub(crate) damage: Option<Damage>,
}

/// How far an arc is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Arc {
    /// Nothing of it is there.
    #[default]
    New,
    /// It goes on at this cursor.
    At(String),
    /// All of it is there.
    Done,
}

/// What is in a draft, and the reader that has read it.
type Found<'a> = (Begun, Reader<BufReader<&'a File>>);

impl Begun {
    fn new(header: Header) -> Self {
        let so_far = super::format::Tally::default().trailer();
        Self { header, arcs: Default::default(), so_far, complete: false, damage: None }
    }
}

impl Draft {
    /// Opens the file, which need not exist, and reads how far it is. `fresh` is the header of a backup
    /// that begins now.
    pub(crate) fn open(
        path: &Path,
        fresh: Header,
    ) -> Result<(Self, Begun, Writer<BufWriter<File>>)> {
        let opening = || format!("cannot write {}", path.display());
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(path).during(opening)?;
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(Error::new(format!(
                "{} is being written by another process",
                path.display()
            ))
            .hint("wait for it, or give this backup another name"));
        }
        let draft = Self { path: path.to_owned(), file };
        let out = || draft.file.try_clone().map(BufWriter::new);
        match draft.look()? {
            Some((begun, reader)) => {
                if begun.header.ring_id != fresh.ring_id {
                    let what = format!(
                        "{} holds the beginning of a backup of another ring, {}",
                        path.display(),
                        begun.header.ring
                    );
                    return Err(Error::new(what)
                        .hint("remove it if nobody wants to go on with that backup"));
                }
                let (offset, number, chain, tally) = reader.into_end();
                draft.cut(offset).during(opening)?;
                let writer = Writer::resume(out().during(opening)?, number, chain, tally);
                Ok((draft, begun, writer))
            }
            None => {
                draft.cut(0).during(opening)?;
                let writer = Writer::begin(out().during(opening)?, &fresh).during(opening)?;
                Ok((draft, Begun::new(fresh), writer))
            }
        }
    }

    /// What is there; none if not even the header is.
    fn look(&self) -> Result<Option<Found<'_>>> {
        let failed = |damage: Damage| {
            Error::caused(format!("cannot go on with {}", self.path.display()), &damage)
                .hint("remove it to begin the backup anew, or give another name")
        };
        let mut reader = match Reader::open(BufReader::with_capacity(1 << 18, &self.file)) {
            Ok(reader) => reader,
            Err(damage) if damage.is_cut() => return Ok(None),
            Err(damage) => return Err(failed(damage)),
        };
        let mut begun = Begun::new(reader.header().clone());
        loop {
            match reader.next() {
                Ok(Some(Frame::Block(block))) => {
                    if let Some(arc) = begun.arcs.get_mut(block.arc) {
                        *arc = block.next.map_or(Arc::Done, Arc::At);
                    }
                }
                Ok(Some(Frame::Trailer(trailer))) => {
                    begun.complete = true;
                    begun.so_far = trailer;
                }
                Ok(None) => break,
                Err(damage) if damage.is_cut() => break,
                Err(damage @ Damage::Changed { .. }) if !begun.complete => {
                    begun.damage = Some(damage);
                    break;
                }
                Err(damage) => return Err(failed(damage)),
            }
        }
        if !begun.complete {
            begun.so_far = reader.so_far();
        }
        Ok(Some((begun, reader)))
    }

    fn cut(&self, length: u64) -> std::io::Result<()> {
        self.file.set_len(length)?;
        (&self.file).seek(SeekFrom::Start(length)).map(drop)
    }

    /// Makes the complete backup durable, under its own name.
    pub(crate) fn publish(self, name: &Path) -> Result<()> {
        let publish = || {
            self.file.sync_all()?;
            std::fs::rename(&self.path, name)?;
            let folder = name.parent().filter(|folder| !folder.as_os_str().is_empty());
            File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
        };
        publish().during(|| format!("cannot finish {}", name.display()))
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::{Block, Entry};
    use super::*;

    fn header(ring_id: &str) -> Header {
        let (ring, id) = ("r".to_owned(), "7".to_owned());
        Header { format: 1, ring, ring_id: ring_id.to_owned(), id, begun: 9 }
    }

    fn block(arc: usize, key: &str, next: Option<&str>) -> Block {
        let value = Bytes::from_static(b"v");
        let entry =
            Entry { key: key.to_owned(), content_type: "t".to_owned(), value, expires: None };
        Block { arc, next: next.map(str::to_owned), entries: vec![entry] }
    }

    #[test]
    fn an_interrupted_backup_goes_on_at_its_last_whole_block() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("b.partial");
        let (draft, begun, mut writer) = Draft::open(&path, header("01")).unwrap();
        assert!(begun.arcs.iter().all(|arc| *arc == Arc::New));
        writer.block(&block(2, "a", Some("k61"))).unwrap();
        writer.block(&block(5, "b", None)).unwrap();
        assert!(Draft::open(&path, header("01")).is_err(), "two write one file");
        writer.block(&block(2, "c", None)).unwrap();
        drop((draft, writer));
        let length = std::fs::metadata(&path).unwrap().len();
        let torn = OpenOptions::new().write(true).open(&path).unwrap();
        torn.set_len(length - 1).unwrap();

        assert!(Draft::open(&path, header("02")).is_err(), "of another ring");
        let (draft, begun, mut writer) = Draft::open(&path, header("01")).unwrap();
        assert_eq!((begun.so_far.keys, begun.complete), (2, false));
        assert_eq!(begun.arcs[2], Arc::At("k61".to_owned()));
        assert_eq!((&begun.arcs[5], &begun.arcs[0]), (&Arc::Done, &Arc::New));
        writer.block(&block(2, "c", None)).unwrap();
        let (_, trailer) = writer.finish(Vec::new()).unwrap();
        draft.publish(&folder.path().join("b")).unwrap();
        assert!(!path.exists());

        let whole = std::fs::read(folder.path().join("b")).unwrap();
        let mut reader = Reader::open(&*whole).unwrap();
        while reader.next().unwrap().is_some() {}
        assert_eq!(trailer.keys, 3);
        assert_eq!(reader.so_far(), trailer);
    }

    #[test]
    fn what_is_not_a_backup_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("b.partial");
        std::fs::write(&path, "somebody's letter").unwrap();
        assert!(Draft::open(&path, header("01")).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"somebody's letter");
    }
}
