//! The data directory: whose it is, how often its agent was started, and that only one uses it.
//!
//! ```text
//! DATA/lock       held while an agent runs, with its process number
//! DATA/identity   position, incarnation, number of starts, their sum, place; replaced whole at each start
//! DATA/mark       how many commits of the store were on disk some seconds ago at least
//! DATA/store/     the store, which names the same identity
//! ```
//!
//! An identity whose store is gone would forget its promises, and a store without its identity could
//! reuse ballots: either alone is refused.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use sky_chord::{Id, NodeId, StoreError};

use super::Disk;
use super::mark::Mark;

/// The format of data directories that this agent writes, and the oldest one that it reads: there all values
/// were in their records.
const FORMAT: u32 = 4;
const OLDEST: u32 = 3;

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// The system refused.
    #[error("the data directory {path} cannot be used: {error}")]
    Io {
        /// What was tried.
        path: PathBuf,
        /// Why it failed.
        error: io::Error,
    },
    /// Another agent runs on it.
    #[error("the data directory {path} is in use by process {process}")]
    InUse {
        /// The directory.
        path: PathBuf,
        /// The other's process number, as it wrote it.
        process: String,
    },
    /// It belongs to another node.
    #[error("the data directory {path} belongs to node {found}, not to {wanted}")]
    OtherNode {
        /// The directory.
        path: PathBuf,
        /// Its position.
        found: Id,
        /// The position asked for.
        wanted: Id,
    },
    /// It holds other things.
    #[error("{path} is no data directory of sky-agent, and not empty: it holds {found}")]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// One of the other things.
        found: String,
    },
    /// It was copied, and the original is still there.
    #[error("the data directory {path} is a copy of {original}, which is still there")]
    Copy {
        /// The directory.
        path: PathBuf,
        /// Where an agent was started with the same identity.
        original: PathBuf,
    },
    /// It was written by another version of the agent.
    #[error(
        "the data directory {path} has format {found}; this agent reads formats {OLDEST} to {FORMAT}"
    )]
    OtherFormat {
        /// The directory.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// The identity file cannot be read.
    #[error("the identity in {path} is damaged: {reason}")]
    DamagedIdentity {
        /// The directory.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Identity and store do not belong together.
    #[error("the data directory {path} is incomplete: {reason}")]
    Incomplete {
        /// The directory.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// The store cannot be opened.
    #[error("the store in {path} cannot be opened: {error}")]
    Store {
        /// The directory.
        path: PathBuf,
        /// What the store said.
        error: StoreError,
    },
}

impl DirectoryError {
    /// What to do about it.
    pub fn hint(&self) -> String {
        let fresh = "To start this node anew, empty, remove the directory: the ring brings the data back \
                     from the other members.";
        match self {
            Self::Io { error, .. } if error.kind() == io::ErrorKind::StorageFull => {
                "Make room on that disk, or give another directory with --data.".to_owned()
            }
            Self::Io { .. } => "Give a directory that can be written with --data.".to_owned(),
            Self::InUse { .. } => {
                "Stop that agent first, or give this one its own --data and --port.".to_owned()
            }
            Self::OtherNode { found, .. } => {
                format!("Leave --id out, say --id {found}, or give another --data.")
            }
            Self::Foreign { .. } => {
                "Give a directory of its own with --data; it is made if it does not exist."
                    .to_owned()
            }
            Self::Copy { original, .. } => format!(
                "Two agents with one identity would break the ring's promises. Start the agent in {original}, \
                 or remove that one if it is not needed any more.",
                original = original.display()
            ),
            Self::OtherFormat { .. } => {
                format!("Use the version of sky-agent that wrote it. {fresh}")
            }
            Self::DamagedIdentity { .. } | Self::Incomplete { .. } => fresh.to_owned(),
            Self::Store { .. } => format!("Check that disk. {fresh}"),
        }
    }
}

/// The content of the identity file.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Identity {
    /// See [`FORMAT`]; the only field that every format has.
    format: u32,
    position: Id,
    /// 16 hexadecimal digits: JSON numbers are not exact.
    incarnation: String,
    /// How often an agent was started here; 0 while the directory is being made.
    boots: u32,
    /// The sum of the fields above: a number of starts that is too low would reuse ballots.
    #[serde(default)]
    sum: String,
    /// Where the directory was at the last start, without links. Not summed: agents that do not know it
    /// use the directory, too.
    #[serde(default)]
    place: String,
}

impl Identity {
    fn sum(&self) -> String {
        let Self { format, position, incarnation, boots, .. } = self;
        let sum = Sha256::digest(format!("{format} {position} {incarnation} {boots}"));
        sum.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }
}

/// A data directory in use by this process, until it is dropped.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    node: NodeId,
    boot: u32,
    _lock: File,
}

impl Directory {
    /// Takes the directory in use, or makes it, and opens its store. A new one gets the position
    /// `wanted`, or else `default`, and a random incarnation; an old one must have the position
    /// `wanted`, if there is one.
    ///
    /// # Errors
    /// If it is in use, of another node, of another format, damaged, or cannot be written.
    pub fn open(
        path: &Path,
        wanted: Option<Id>,
        default: Id,
    ) -> Result<(Self, Disk), DirectoryError> {
        let io = |error| DirectoryError::Io { path: path.to_owned(), error };
        make(path).map_err(io)?;
        let place = path.canonicalize().map_err(io)?.to_string_lossy().into_owned();
        if let Some(found) = foreign(path).map_err(io)? {
            return Err(DirectoryError::Foreign { path: path.into(), found });
        }
        let lock = lock(path)?;
        let store = path.join("store");
        let has_store = store.try_exists().map_err(io)?;
        let incomplete =
            |reason: &str| DirectoryError::Incomplete { path: path.into(), reason: reason.into() };

        let mut identity = match read_identity(path)? {
            Some(identity) => identity,
            None if has_store => return Err(incomplete("it has a store, but no identity")),
            None => {
                let identity = Identity {
                    format: FORMAT,
                    position: wanted.unwrap_or(default),
                    incarnation: format!("{:016x}", getrandom::u64().map_err(|e| io(e.into()))?),
                    boots: 0,
                    sum: String::new(),
                    place: place.clone(),
                };
                write_identity(path, &identity).map_err(io)?;
                identity
            }
        };
        if let Some(wanted) = wanted.filter(|wanted| *wanted != identity.position) {
            let found = identity.position;
            return Err(DirectoryError::OtherNode { path: path.into(), found, wanted });
        }
        if is_copy(&identity, path, &place) {
            let original = identity.place.into();
            return Err(DirectoryError::Copy { path: path.into(), original });
        }
        let damaged = |reason| DirectoryError::DamagedIdentity { path: path.into(), reason };
        let incarnation =
            u64::from_str_radix(&identity.incarnation, 16).map_err(|e| damaged(e.to_string()))?;
        let node = NodeId { position: identity.position, incarnation };
        let owner = node.to_string();
        let failed = |error| DirectoryError::Store { path: path.to_owned(), error };

        let is_new = identity.boots == 0;
        if is_new && has_store {
            // The first start was interrupted: nothing was promised yet.
            std::fs::remove_dir_all(&store).map_err(io)?;
        }
        if !is_new && !has_store {
            return Err(incomplete("its identity is there, but its store is not"));
        }
        let mark = path.join("mark");
        let disk = if is_new {
            let mark = Mark::create(&mark, &owner).map_err(io)?;
            Disk::create(&store, mark, &owner).map_err(failed)?
        } else {
            if !mark.try_exists().map_err(io)? {
                return Err(incomplete("the mark of what was on disk is gone"));
            }
            let mark = Mark::open(&mark, &owner).map_err(io)?.ok_or_else(|| {
                incomplete("the mark of what was on disk is damaged, or of another identity")
            })?;
            Disk::open(&store, mark, identity.format > OLDEST).map_err(failed)?
        };
        if disk.owner().map_err(failed)?.as_deref() != Some(owner.as_bytes()) {
            return Err(incomplete("its store was made for another identity"));
        }
        identity.format = FORMAT;
        identity.place = place;
        identity.boots =
            identity.boots.checked_add(1).ok_or_else(|| damaged("too many starts".to_owned()))?;
        write_identity(path, &identity).map_err(io)?;
        Ok((Self { path: path.to_owned(), node, boot: identity.boots, _lock: lock }, disk))
    }

    /// Whose directory it is.
    pub const fn node(&self) -> NodeId {
        self.node
    }

    /// How often an agent was started on it, from 1.
    pub const fn boot(&self) -> u32 {
        self.boot
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Makes the directory if it is not there. A power cut after the first start must not take it away as a
/// whole: this would look like a new node's, and nobody would miss what was acknowledged in it.
fn make(path: &Path) -> io::Result<()> {
    let path = std::path::absolute(path)?;
    if path.join("identity").try_exists()? {
        return Ok(());
    }
    // The directory may have been made by a start that was interrupted before it came to sync that.
    let made = path.ancestors().take_while(|folder| *folder == path || !folder.exists());
    let above: Vec<_> = made.filter_map(Path::parent).collect();
    std::fs::create_dir_all(&path)?;
    above.into_iter().try_for_each(|folder| File::open(folder)?.sync_all())
}

/// Something in a directory that no agent was started on, and that an interrupted first start does not
/// leave there.
fn foreign(path: &Path) -> io::Result<Option<String>> {
    if path.join("identity").try_exists()? {
        return Ok(None);
    }
    for entry in std::fs::read_dir(path)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        // A file system that was mounted here brings `lost+found`.
        if !["lock", "identity.new", "mark", "store", "lost+found"].contains(&&*name) {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// Whether the directory that this identity was last used in is still there, and is another one. On
/// other machines, and in other containers, that cannot be seen: there the two find out when they meet.
fn is_copy(identity: &Identity, path: &Path, place: &str) -> bool {
    let original = Path::new(&identity.place);
    if identity.place == place || identity.place.is_empty() {
        return false;
    }
    let inode = |folder: &Path| std::fs::metadata(folder).ok().map(|data| (data.dev(), data.ino()));
    let is_same = inode(original) == inode(path);
    let other = read_identity(original).ok().flatten();
    !is_same
        && other.is_some_and(|other| {
            (other.position, other.incarnation) == (identity.position, identity.incarnation.clone())
        })
}

fn lock(path: &Path) -> Result<File, DirectoryError> {
    let io = |error| DirectoryError::Io { path: path.to_owned(), error };
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let mut file = options.open(path.join("lock")).map_err(io)?;
    match file.try_lock() {
        Ok(()) => {
            file.set_len(0).and_then(|()| file.rewind()).map_err(io)?;
            write!(file, "{}", std::process::id()).map_err(io)?;
            Ok(file)
        }
        Err(TryLockError::WouldBlock) => {
            let mut process = String::new();
            file.read_to_string(&mut process).map_err(io)?;
            Err(DirectoryError::InUse { path: path.to_owned(), process })
        }
        Err(TryLockError::Error(error)) => Err(io(error)),
    }
}

fn read_identity(path: &Path) -> Result<Option<Identity>, DirectoryError> {
    #[derive(Deserialize)]
    struct AnyFormat {
        format: u32,
    }
    let bytes = match std::fs::read(path.join("identity")) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(DirectoryError::Io { path: path.to_owned(), error }),
    };
    let damaged = |error: serde_json::Error| DirectoryError::DamagedIdentity {
        path: path.to_owned(),
        reason: error.to_string(),
    };
    let AnyFormat { format } = serde_json::from_slice(&bytes).map_err(damaged)?;
    if !(OLDEST..=FORMAT).contains(&format) {
        return Err(DirectoryError::OtherFormat { path: path.to_owned(), found: format });
    }
    let identity: Identity = serde_json::from_slice(&bytes).map_err(damaged)?;
    if identity.sum != identity.sum() {
        let reason = "its sum is wrong".to_owned();
        return Err(DirectoryError::DamagedIdentity { path: path.to_owned(), reason });
    }
    Ok(Some(identity))
}

/// Replaces the identity file: after a crash at any moment the old or the new one is there, whole.
fn write_identity(path: &Path, identity: &Identity) -> io::Result<()> {
    let (new, old) = (path.join("identity.new"), path.join("identity"));
    let identity = Identity { sum: identity.sum(), ..identity.clone() };
    let mut file = File::create(&new)?;
    file.write_all(&serde_json::to_vec(&identity)?)?;
    file.sync_all()?;
    std::fs::rename(new, old)?;
    File::open(path)?.sync_all()
}
