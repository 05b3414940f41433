//! What this machine is like for what runs on it.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit};

use crate::amount;
use crate::error::{During, Error, Result};

/// How long a synchronised write may take before it is worth a word.
pub(crate) const SLOW_SYNC: Duration = Duration::from_millis(50);
/// How many are measured.
const SYNCS: usize = 9;
/// How many files an agent with many clients may need at once.
const FILES: u64 = 4096;
/// With less room than this, agents soon refuse writes.
const ROOM: u64 = 2 << 30;

/// How many files a process may open, as a sentence; or that it is few, and what to do.
pub(crate) fn open_files() -> Result<String, (String, String)> {
    // Agents take the hard limit themselves.
    let Some(limit) = getrlimit(Resource::Nofile).maximum else {
        return Ok("no limit".to_owned());
    };
    let detail = format!("{} for each process", amount::count(limit));
    if limit >= FILES {
        return Ok(detail);
    }
    Err((detail, format!("with many clients an agent needs more: `ulimit -Hn {FILES}`")))
}

/// How much room there is on the disk of a folder; with what to do if it is little.
pub(crate) fn disk_room(folder: &Path) -> Result<(String, Option<String>)> {
    let disk = rustix::fs::statvfs(folder);
    let disk = disk.during(|| format!("cannot ask for the disk of {}", folder.display()))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let detail = format!("{} free in {}", amount::bytes(free), folder.display());
    let hint = "agents refuse writes before a disk is full: make room";
    Ok((detail, (free < ROOM).then(|| hint.to_owned())))
}

/// How long a small synchronised write takes in a folder: the median of some.
pub(crate) fn sync_time(folder: &Path) -> Result<Duration> {
    let path = folder.join(format!(".sky-doctor-{}", std::process::id()));
    let measure = || {
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(0o600).open(&path)?;
        let mut times = Vec::new();
        for _ in 0..SYNCS {
            let begun = Instant::now();
            file.write_all(&[0; 4096])?;
            file.sync_data()?;
            times.push(begun.elapsed());
        }
        times.sort();
        Ok::<_, std::io::Error>(times[SYNCS / 2])
    };
    let measured = measure();
    let _ = std::fs::remove_file(&path);
    measured.map_err(|error| {
        Error::caused(format!("nothing can be written for good in {}", folder.display()), &error)
            .hint("mend the disk or its permissions, or set XDG_STATE_HOME to another folder")
    })
}

/// Which ssh client there is.
pub(crate) async fn ssh_client() -> Result<String> {
    let mut command = tokio::process::Command::new("ssh");
    let output = command.arg("-V").stdin(std::process::Stdio::null()).output().await;
    let output = output.map_err(|error| {
        Error::caused("cannot run ssh", &error).hint("install the OpenSSH client")
    })?;
    // It says so on stderr.
    Ok(String::from_utf8_lossy(&output.stderr).trim().to_owned())
}
