//! The folder of a ring, `$XDG_STATE_HOME/sky/RING/`: its secrets, its lock, and what must not be
//! decided twice. The nodes themselves are found again by their labels and records, not here.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{During, Error, Problem, Result};
use crate::inventory::{ProviderKind, Ring};
use crate::lock::{self, Holder, Lock};

/// The folder of one ring.
#[derive(Debug, Clone)]
pub struct RingFolder {
    ring: String,
    path: PathBuf,
}

/// What was decided when the ring was first applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RingRecord {
    /// Where the ring lives; kept for its whole life.
    pub provider: ProviderKind,
    /// The ring id, 32 hexadecimal digits. Written before any agent is told.
    pub ring_id: String,
    /// Whether an agent has confirmed to have founded the ring.
    pub founded: bool,
    /// How many nodes hold each key.
    #[serde(default = "three")]
    pub replicas: usize,
    /// The node that goes on alone when a ring of two has lost the other one.
    #[serde(default)]
    pub tie_breaker: Option<String>,
}

/// The replicas of rings whose record says nothing of them.
const fn three() -> usize {
    3
}

impl RingRecord {
    /// Whether the ring was made with what the inventory says now: its agents keep it.
    pub fn agrees_with(&self, ring: &Ring) -> Result<()> {
        let shown = |name: &Option<String>| name.clone().unwrap_or_else(|| "none".to_owned());
        let settings = [
            ("replicas", self.replicas.to_string(), ring.replicas.to_string()),
            ("tie_breaker", shown(&self.tie_breaker), shown(&ring.tie_breaker)),
        ];
        let changed = settings.into_iter().filter(|(_, made, wanted)| made != wanted);
        let problems = changed.map(|(name, made, wanted)| {
            let (ring, what) = (&ring.name, format!("`ring.{name}`"));
            let mut problem = Problem::new(format!(
                "{ring} was made with {what}: {made}, which cannot become {wanted}"
            ));
            problem.hint = Some(
                "set it back, or `backup` this ring and `restore` into a new one of another name"
                    .to_owned(),
            );
            problem
        });
        Error::of(problems.collect()).map_or(Ok(()), Err)
    }
}

/// What only the agents and this program know.
#[derive(Clone)]
pub struct Secrets {
    /// Shared by the agents; peers prove it to each other.
    pub secret: String,
    /// Needed for administrative calls.
    pub token: String,
}

/// The folder that holds the folders of all rings.
pub fn home() -> Result<PathBuf> {
    let from = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    from("XDG_STATE_HOME")
        .or_else(|| from("HOME").map(|home| home.join(".local/state")))
        .map(|state| state.join("sky"))
        .ok_or_else(|| {
            Error::new("there is no place for the state of rings")
                .hint("set HOME or XDG_STATE_HOME to an absolute path")
        })
}

impl RingFolder {
    /// The folder of `ring`; it need not exist yet.
    pub fn of(ring: &str) -> Result<Self> {
        Ok(Self::at(&home()?, ring))
    }

    /// The folder of `ring` in another folder than that of this user.
    pub fn at(home: &Path, ring: &str) -> Self {
        Self { ring: ring.to_owned(), path: home.join(ring) }
    }

    /// The rings that have a folder on this machine.
    pub fn all() -> Result<Vec<Self>> {
        let mut folders = Vec::new();
        for entry in std::fs::read_dir(home()?).into_iter().flatten().flatten() {
            if let Ok(ring) = entry.file_name().into_string()
                && entry.path().join("ring.json").exists()
            {
                folders.push(Self { ring, path: entry.path() });
            }
        }
        folders.sort_by(|a, b| a.ring.cmp(&b.ring));
        Ok(folders)
    }

    /// The name of the ring.
    pub fn ring(&self) -> &str {
        &self.ring
    }

    /// Where the folder is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the folder, readable only by its owner.
    pub fn create(&self) -> Result<()> {
        create_private(&self.path)
    }

    /// What was decided at the first apply, if there was one.
    pub fn record(&self) -> Result<Option<RingRecord>> {
        read_json(&self.path.join("ring.json"))
    }

    /// Replaces the record.
    pub fn write_record(&self, record: &RingRecord) -> Result<()> {
        write_json(&self.path.join("ring.json"), record)
    }

    /// The secrets made by the first apply, if there was one.
    pub fn secrets(&self) -> Result<Option<Secrets>> {
        let read = |name: &str| read_text(&self.path.join(name));
        Ok(match (read("secret")?, read("token")?) {
            (Some(secret), Some(token)) => Some(Secrets { secret, token }),
            _ => None,
        })
    }

    /// The secrets; what is missing is made. `given` is a secret of the inventory.
    pub fn make_secrets(&self, given: Option<&str>) -> Result<Secrets> {
        let keep = |name: &str, given: Option<&str>| {
            let path = self.path.join(name);
            if let Some(text) = read_text(&path)? {
                if given.is_some_and(|given| given != text) {
                    return Err(Error::new(format!("the ring {} has another secret", self.ring))
                        .hint(
                            "all agents of a ring share one secret: take `ring.secret` out of \
                               the inventory, or destroy the ring and apply again",
                        ));
                }
                return Ok(text);
            }
            let text = given.map_or_else(|| random_hex(32), |text| Ok(text.to_owned()))?;
            write_private(&path, text.as_bytes())?;
            Ok(text)
        };
        Ok(Secrets { secret: keep("secret", given)?, token: keep("token", None)? })
    }

    /// Writes down secrets that were found again.
    pub fn keep_secrets(&self, secrets: &Secrets) -> Result<()> {
        write_private(&self.path.join("secret"), secrets.secret.as_bytes())?;
        write_private(&self.path.join("token"), secrets.token.as_bytes())
    }

    /// Takes the lock of the ring for `command`, or says who has it.
    pub fn lock(&self, command: &str) -> Result<Lock> {
        self.lock_for("lock", command)
    }

    /// [`Self::lock`] for what does not keep others from changing the nodes of the ring.
    pub(crate) fn lock_for(&self, file: &str, command: &str) -> Result<Lock> {
        self.create()?;
        lock::take(&self.path, &self.ring, file, command)
    }

    /// Who changes the nodes of the ring at this moment, as far as is known.
    pub(crate) fn holder(&self) -> Result<Option<Holder>> {
        lock::holder(&self.path, "lock")
    }

    /// Removes the folder and everything in it, the lock of the ring last.
    pub fn remove(&self, lock: Lock) -> Result<()> {
        let failed = |path: &Path| format!("cannot remove {}", path.display());
        for entry in std::fs::read_dir(&self.path).during(|| failed(&self.path))? {
            let path = entry.during(|| failed(&self.path))?.path();
            if !lock.owns(&path) {
                remove_all(&path).during(|| failed(&path))?;
            }
        }
        // On NFS and the like a file that is removed while it is open keeps a place in its folder, so
        // that the folder goes after the lock.
        lock.remove()?;
        match std::fs::remove_dir(&self.path) {
            // Not empty: somebody makes the ring anew, now that the lock is free.
            Err(error)
                if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty) =>
            {
                Err(Error::caused(failed(&self.path), &error))
            }
            _ => {
                // The folder of all rings goes with the last one; it is not empty before.
                let _ = self.path.parent().map(std::fs::remove_dir);
                Ok(())
            }
        }
    }
}

/// Makes a directory and those above it, readable only by its owner.
pub(crate) fn create_private(path: &Path) -> Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| unwritable(format!("cannot make {}", path.display()), &error))
}

/// The error for what cannot be written in the folder of a ring, with what to do.
fn unwritable(what: String, error: &io::Error) -> Error {
    let hint = match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "make room on that disk",
        ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied => {
            "mend its permissions, or set XDG_STATE_HOME to a folder that can be written"
        }
        _ => return Error::caused(what, error),
    };
    Error::caused(what, error).hint(hint)
}

/// Removes a file, or a folder with everything in it; it may be gone already.
pub(crate) fn remove_all(path: &Path) -> io::Result<()> {
    let removed = match std::fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    removed.or_else(|error| if error.kind() == ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

/// Replaces a file at once, readable only by its owner.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> Result<()> {
    replace(path, bytes, 0o600)
}

/// [`write_private`] for a program, which can be run as soon as it is there.
pub(crate) fn write_program(path: &Path, bytes: &[u8]) -> Result<()> {
    replace(path, bytes, 0o700)
}

fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let mut draft = path.as_os_str().to_owned();
    draft.push(".new");
    let draft = PathBuf::from(draft);
    let write = || {
        // What an interrupted command left of it would keep the mode it was made with.
        let _ = std::fs::remove_file(&draft);
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&draft)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&draft, path)?;
        path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    };
    write().map_err(|error| {
        // What is there of it takes room, and nobody would use it.
        let _ = std::fs::remove_file(&draft);
        unwritable(format!("cannot write {}", path.display()), &error)
    })
}

/// The text of a file; none if there is no such file.
fn read_text(path: &Path) -> Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::caused(format!("cannot read {}", path.display()), &error)),
    }
}

/// The value in a JSON file; none if there is no such file.
pub(crate) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let Some(text) = read_text(path)? else { return Ok(None) };
    serde_json::from_str(&text).map(Some).map_err(|error| {
        Error::caused(format!("{} cannot be understood", path.display()), &error)
            .hint("it was written by another version of sky-deploy, or changed by hand")
    })
}

/// Writes a value as a JSON file.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let text =
        serde_json::to_vec_pretty(value).during(|| format!("cannot encode {}", path.display()))?;
    write_private(path, &text)
}

/// Random bytes of the operating system, as hexadecimal digits.
pub(crate) fn random_hex(bytes: usize) -> Result<String> {
    let mut random = vec![0; bytes];
    File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut random))
        .during(|| "cannot read random numbers from /dev/urandom")?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_program_can_be_run_whatever_an_interrupted_command_left() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("agent");
        write_private(&folder.path().join("agent.new"), b"half of it").unwrap();
        write_program(&program, b"all of it").unwrap();
        let mode = std::fs::metadata(&program).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        assert_eq!(std::fs::read(&program).unwrap(), b"all of it");
    }

    #[test]
    fn a_folder_goes_together_with_its_lock() {
        let home = tempfile::tempdir().unwrap();
        let folder = RingFolder::at(&home.path().join("sky"), "one");
        let lock = folder.lock("destroy").unwrap();
        folder.make_secrets(None).unwrap();
        create_private(&folder.path().join("nodes/one-1/data")).unwrap();
        folder.remove(lock).unwrap();
        assert!(!home.path().join("sky").exists());
    }
}
