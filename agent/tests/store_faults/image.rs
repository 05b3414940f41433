//! A data directory held in memory, to be written down again with one thing changed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// Zeros kept behind the content of a file that was preallocated. Enough to be seen, and quick to read.
const ZEROS_KEPT: usize = 8 << 10;

/// All files of a directory.
#[derive(Clone, Default)]
pub(crate) struct Image(pub(crate) BTreeMap<PathBuf, Vec<u8>>);

impl Image {
    /// Copies a directory, which may be in use.
    pub(crate) fn of(folder: &Path) -> Self {
        let mut image = Self::default();
        image.take(folder, Path::new(""));
        image
    }

    fn take(&mut self, folder: &Path, inside: &Path) {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let (path, name) = (entry.path(), inside.join(entry.file_name()));
            if path.is_dir() {
                self.take(&path, &name);
            } else {
                self.insert(name, std::fs::read(path).unwrap());
            }
        }
    }

    /// Adds a file.
    pub(crate) fn insert(&mut self, name: PathBuf, mut bytes: Vec<u8>) {
        bytes.truncate(content(&bytes) + ZEROS_KEPT);
        self.0.insert(name, bytes);
    }

    /// Writes the directory down.
    pub(crate) fn write(&self) -> TempDir {
        let folder = memory();
        for (name, bytes) in &self.0 {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            File::create(path).unwrap().write_all(bytes).unwrap();
        }
        folder
    }

    /// The same with one file changed.
    pub(crate) fn with(&self, name: &Path, change: impl FnOnce(&mut Vec<u8>)) -> Self {
        let mut image = self.clone();
        change(image.0.get_mut(name).unwrap());
        image
    }

    /// The length of a file without the zeros at its end.
    pub(crate) fn content(&self, name: &Path) -> usize {
        content(&self.0[name])
    }

    /// The names of all journals, oldest first.
    pub(crate) fn journals(&self) -> Vec<PathBuf> {
        let is_journal = |name: &&PathBuf| name.extension().is_some_and(|end| end == "jnl");
        let mut names: Vec<_> = self.0.keys().filter(is_journal).cloned().collect();
        names.sort_by_key(|name| {
            name.file_stem().unwrap().to_str().unwrap().parse::<u64>().unwrap()
        });
        names
    }
}

/// Where the zeros at the end begin: of a preallocated file, there are many.
fn content(mut bytes: &[u8]) -> usize {
    while let Some(rest) = bytes.strip_suffix(&[0; 4096]) {
        bytes = rest;
    }
    bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)
}

/// A folder in memory where there is such: thousands of stores are opened, each with many syncs.
pub(crate) fn memory() -> TempDir {
    let shm = Path::new("/dev/shm");
    if shm.is_dir() { tempfile::tempdir_in(shm).unwrap() } else { tempfile::tempdir().unwrap() }
}
