//! Nodes as plain processes of this machine, each in a session of its own. A node has a folder in
//! the ring's folder: its record, its data and its log. It is found again by process id, start time
//! and boot, or by the data folder in its arguments, so that no kill of this program loses it.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{self, BoxStream, StreamExt};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};
use serde::{Deserialize, Serialize};
use sky_chord::Id;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::lines::{Cutter, LogLine, wanted_of};
use super::{Doing, LogRequest, Provider, Rendered, Said, Site, not_running};
use crate::error::{During, Error, Result};
use crate::inventory::{Agent, ProviderKind};
use crate::machine::boot_id;
use crate::node::{Handle, Launch, Machine, MachineState, NodeSpec, Told};
use crate::outlook::Leftover;
use crate::state::{self, Secrets};

/// A log longer than this is put aside when its node is started.
const LOG_LIMIT_BYTES: u64 = 16 << 20;
/// How long a process may take to end by itself.
const STOP_WITHIN: Duration = Duration::from_secs(10);
/// How long a process counts as young, in clock ticks (100 a second on Linux).
const YOUNG_TICKS: u64 = 3000;
/// What the folder of a node that is being deleted is called before its name.
const GONE: &str = ".gone-";
/// How often a followed log is looked at.
const FOLLOW_EVERY: Duration = Duration::from_millis(200);

/// The process provider.
pub struct Processes {
    site: Site,
    program: OnceLock<PathBuf>,
}

/// What is written down of a node.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    node: NodeSpec,
    /// The copy of the program it runs: a rebuilt one does not disturb it.
    program: PathBuf,
    /// What it was told when it was started; not written down in earlier versions.
    #[serde(default)]
    told: Option<Told>,
    process: Option<Identity>,
}

/// One process in the life of a machine: process ids are used again, start times are not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Identity {
    pid: u32,
    /// Clock ticks from boot to the start of the process (`/proc/PID/stat`, field 22).
    start_ticks: u64,
    boot: String,
}

/// What `/proc/PID/stat` says.
struct Stat {
    /// `R`, `S`, `D`, `T` (stopped), `Z` (ended) and so on.
    state: char,
    start_ticks: u64,
}

impl Record {
    /// Whether it was told what a new one would be, as far as that is written down.
    fn is_told(&self, agent: &Agent) -> bool {
        self.told.as_ref().is_none_or(|told| *told == Told::wanted(agent, &self.node))
    }

    /// The copy of the program it goes on with, if that is there.
    fn kept_program(self) -> Option<PathBuf> {
        Some(self.program).filter(|program| program.exists())
    }
}

impl Processes {
    /// The processes of a ring.
    pub const fn new(site: Site) -> Self {
        Self { site, program: OnceLock::new() }
    }

    fn nodes(&self) -> PathBuf {
        self.site.folder.path().join("nodes")
    }

    fn node(&self, name: &str) -> PathBuf {
        self.nodes().join(name)
    }

    fn data(&self, name: &str) -> PathBuf {
        self.node(name).join("data")
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.nodes())
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| !name.starts_with(GONE))
            .collect();
        names.sort();
        names
    }

    /// Removes what is left of nodes that were deleted.
    fn remove_gone(&self) -> Result<()> {
        for entry in std::fs::read_dir(self.nodes()).into_iter().flatten().flatten() {
            let path = entry.path();
            if entry.file_name().as_encoded_bytes().starts_with(GONE.as_bytes()) {
                state::remove_all(&path).during(|| format!("cannot remove {}", path.display()))?;
            }
        }
        Ok(())
    }

    /// The nodes that live and of whose record this is true.
    fn living_where(&self, is_it: impl Fn(&Record) -> bool) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for name in self.names() {
            let record = self.record(&name)?.filter(|record| self.living(record).is_some());
            found.extend(record.filter(&is_it).map(|_| name));
        }
        Ok(found)
    }

    fn record(&self, name: &str) -> Result<Option<Record>> {
        state::read_json(&self.node(name).join("record.json"))
    }

    fn write_record(&self, record: &Record) -> Result<()> {
        state::write_json(&self.node(&record.node.name).join("record.json"), record)
    }

    /// The living process of a node.
    fn living(&self, record: &Record) -> Option<(Identity, Stat)> {
        let recorded = record.process.as_ref().filter(|process| process.boot == boot_id());
        let found = recorded.and_then(|process| {
            let stat = stat(process.pid).filter(|stat| stat.start_ticks == process.start_ticks)?;
            Some((process.clone(), stat))
        });
        // A program killed between starting a node and writing it down leaves only the node itself.
        let found = found.or_else(|| find_by_argument(&self.data(&record.node.name)));
        found.filter(|(_, stat)| !matches!(stat.state, 'Z' | 'X'))
    }

    /// Where the copy of the program is that nodes are started from.
    fn copy_of(&self, program: &[u8]) -> PathBuf {
        let version = Id::hash(program).to_string();
        self.site.folder.path().join("bin").join(&version[..16]).join("sky-agent")
    }

    /// The copy of the program that nodes are started from.
    fn program(&self) -> Result<PathBuf> {
        if let Some(program) = self.program.get() {
            return Ok(program.clone());
        }
        let bytes = self.site.program_bytes()?;
        let copy = self.copy_of(&bytes);
        if !copy.exists() {
            copy.parent().map_or(Ok(()), state::create_private)?;
            state::write_program(&copy, &bytes)?;
        }
        Ok(self.program.get_or_init(|| copy).clone())
    }

    fn launch(&self, launch: &Launch) -> Result<()> {
        let node = &launch.node;
        let record = self.record(&node.name)?;
        if record.as_ref().is_some_and(|record| self.living(record).is_some()) {
            return Ok(());
        }
        self.remove_gone()?;
        state::create_private(&self.data(&node.name))?;
        let program = match record.and_then(Record::kept_program) {
            Some(program) => program,
            None => self.program()?,
        };
        let told = Some(Told::wanted(&self.site.agent, node));
        let mut record = Record { node: node.clone(), program, told, process: None };
        self.write_record(&record)?;
        record.process = Some(self.spawn(launch, &record.program)?);
        self.write_record(&record)
    }

    /// The process of a node, not yet started.
    fn command(&self, launch: &Launch, secrets: &Secrets, program: &Path) -> Command {
        let name = &launch.node.name;
        let data = self.data(name);
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            // Settings for another agent must not leak into this one.
            if name.as_encoded_bytes().starts_with(b"SKY_") {
                command.env_remove(name);
            }
        }
        command
            .args(launch.arguments(&self.site.agent, &data.to_string_lossy()))
            .env("SKY_SECRET", &secrets.secret)
            .env("SKY_TOKEN", &secrets.token)
            .env(crate::agent_exe::OWN_SESSION, "1")
            .current_dir(self.node(name));
        command
    }

    fn spawn(&self, launch: &Launch, program: &Path) -> Result<Identity> {
        let name = &launch.node.name;
        let mut command = self.command(launch, &self.site.secrets()?, program);
        let log = self.node(name).join("agent.log");
        if std::fs::metadata(&log).is_ok_and(|log| log.len() > LOG_LIMIT_BYTES) {
            std::fs::rename(&log, log.with_extension("log.1"))
                .during(|| format!("cannot put {} aside", log.display()))?;
        }
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&log)
            .during(|| format!("cannot open {}", log.display()))?;
        let errors = log.try_clone().during(|| "cannot share a log file")?;
        let mut child =
            command.stdin(Stdio::null()).stdout(log).stderr(errors).spawn().during(|| {
                format!("cannot start the process of {name} from {}", program.display())
            })?;
        let pid = child.id();
        let start_ticks = stat(pid).map_or(0, |stat| stat.start_ticks);
        // Whoever starts a process must take note of its end, or it stays in the process table.
        std::thread::spawn(move || child.wait());
        Ok(Identity { pid, start_ticks, boot: boot_id() })
    }

    /// Sends a signal to the living process of a node. Returns a handle that tells of its end.
    fn signal(&self, name: &str, signal: Signal) -> Result<Option<OwnedFd>> {
        let Some(record) = self.record(name)? else { return Ok(None) };
        let Some((process, _)) = self.living(&record) else { return Ok(None) };
        let pid = i32::try_from(process.pid).ok().and_then(Pid::from_raw);
        // The handle stays with this very process, whoever gets the number later.
        let handle = match pid.map(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty())) {
            Some(Ok(handle)) => handle,
            None | Some(Err(Errno::SRCH)) => return Ok(None),
            // It may well live: nobody may go on as if it had ended.
            Some(Err(error)) => {
                let what = format!("cannot get hold of {name} (process {})", process.pid);
                return Err(Error::caused(what, &error).hint(
                    "this needs `pidfd_open`, which is there since Linux 5.3 unless a sandbox \
                     forbids it, and room for one more open file (`ulimit -n`)",
                ));
            }
        };
        if stat(process.pid).is_none_or(|stat| stat.start_ticks != process.start_ticks) {
            return Ok(None);
        }
        match rustix::process::pidfd_send_signal(&handle, signal) {
            Ok(()) => Ok(Some(handle)),
            Err(Errno::SRCH) => Ok(None),
            Err(error) => Err(Error::caused(
                format!("cannot signal {name} (process {})", process.pid),
                &error,
            )),
        }
    }

    async fn end(&self, name: &str) -> Result<()> {
        let Some(handle) = self.signal(name, Signal::TERM)? else { return Ok(()) };
        // A frozen process would not notice.
        self.signal(name, Signal::CONT)?;
        #[expect(
            deprecated,
            reason = "its replacement is unsafe; an owned descriptor stays as it is"
        )]
        let ended = AsyncFd::with_interest(handle, Interest::READABLE)
            .during(|| format!("cannot wait for the end of {name}"))?;
        for force in [false, true] {
            if tokio::time::timeout(STOP_WITHIN, ended.readable()).await.is_ok() {
                return Ok(());
            }
            if !force {
                self.signal(name, Signal::KILL)?;
            }
        }
        Err(Error::new(format!("the process of {name} does not end, even when killed"))
            .hint("it waits for a disk, probably: see `ps`"))
    }

    fn must_live(&self, name: &str, signal: Signal) -> Result<()> {
        self.signal(name, signal)?.map(drop).ok_or_else(|| not_running(name))
    }
}

/// A task that is done at once.
fn done<'a, T: Send + 'a>(result: Result<T>) -> BoxFuture<'a, Result<T>> {
    futures_util::future::ready(result).boxed()
}

impl Provider for Processes {
    fn kind(&self) -> ProviderKind {
        ProviderKind::Process
    }

    fn prepare<'a>(&'a self, new: &'a [NodeSpec]) -> Doing<'a, Vec<NodeSpec>> {
        done(self.program().map(|_| new.to_vec()))
    }

    fn render<'a>(&'a self, launch: &'a Launch, secrets: &'a Secrets) -> Doing<'a, Vec<Rendered>> {
        let render = || {
            let name = &launch.node.name;
            let program = match self.record(name)?.and_then(Record::kept_program) {
                Some(program) => program,
                None => self.copy_of(&self.site.program_bytes()?),
            };
            let command = self.command(launch, secrets, &program);
            let text = |text: &std::ffi::OsStr| text.to_string_lossy().into_owned();
            let environment = command.get_envs().filter_map(|(name, value)| {
                Some((text(name), serde_json::Value::from(text(value?))))
            });
            let parameters = serde_json::json!({
                "program": program,
                "arguments": command.get_args().map(text).collect::<Vec<_>>(),
                "environment": environment.collect::<serde_json::Map<_, _>>(),
                "folder": command.get_current_dir(),
                "output": self.node(name).join("agent.log"),
            });
            Ok(vec![Rendered::call(name, "process", parameters)])
        };
        done(render())
    }

    fn renew<'a>(&'a self, launch: &'a Launch) -> Doing<'a, bool> {
        async move {
            let name = &launch.node.name;
            let program = self.program()?;
            let is_as_new =
                |record: &Record| record.program == program && record.is_told(&self.site.agent);
            if self.record(name)?.as_ref().is_some_and(is_as_new) {
                return Ok(false);
            }
            self.end(name).await?;
            let node = launch.node.clone();
            self.write_record(&Record { node, program, told: None, process: None })?;
            self.launch(launch)?;
            Ok(true)
        }
        .boxed()
    }

    fn leftovers(&self) -> Doing<'_, Vec<Leftover>> {
        done(Ok(Vec::new())) // A process is found by its node's folder, which is all there is.
    }

    fn outdated(&self) -> Doing<'_, Vec<String>> {
        let others = || {
            let program = self.copy_of(&self.site.program_bytes()?);
            self.living_where(|record| record.program != program)
        };
        done(others())
    }

    fn told_otherwise(&self) -> Doing<'_, Vec<String>> {
        done(self.living_where(|record| !record.is_told(&self.site.agent)))
    }

    fn recall(&self) -> Doing<'_, Option<Secrets>> {
        done(self.site.folder.secrets())
    }

    fn observe(&self) -> Doing<'_, Vec<Machine>> {
        let now = uptime_ticks();
        let machine = |name: &str| -> Result<Option<Machine>> {
            let Some(record) = self.record(name)? else { return Ok(None) };
            let living = self.living(&record);
            let state = match living.as_ref().map(|(_, stat)| stat) {
                Some(Stat { state: 'T' | 't', .. }) => MachineState::Paused,
                Some(stat) => MachineState::Running { young: now < stat.start_ticks + YOUNG_TICKS },
                None if self.data(name).exists() => MachineState::Stopped,
                None => MachineState::Absent,
            };
            let ended = living.is_none();
            let handle = living.map(|(process, _)| Handle::Pid(process.pid));
            let before = record.process.filter(|process| ended && process.boot != boot_id());
            let note = before.map(|_| "this machine was started again since".to_owned());
            Ok(Some(Machine { note, ..Machine::near(record.node, state, handle) }))
        };
        let names = self.names();
        done(names.iter().filter_map(|name| machine(name).transpose()).collect())
    }

    fn start<'a>(&'a self, launch: &'a Launch) -> Doing<'a, ()> {
        done(self.launch(launch))
    }

    fn stop<'a>(&'a self, name: &'a str) -> Doing<'a, ()> {
        self.end(name).boxed()
    }

    fn pause<'a>(&'a self, name: &'a str) -> Doing<'a, ()> {
        done(self.must_live(name, Signal::STOP))
    }

    fn unpause<'a>(&'a self, name: &'a str) -> Doing<'a, ()> {
        done(self.must_live(name, Signal::CONT))
    }

    fn delete<'a>(&'a self, name: &'a str, keep_data: bool) -> Doing<'a, ()> {
        async move {
            self.end(name).await?;
            let folder = self.node(name);
            if keep_data {
                return Ok(());
            }
            // What an interrupted command left has this name perhaps.
            self.remove_gone()?;
            if folder.exists() {
                // At once: a node of this name must never start on half of the data.
                let gone = self.nodes().join(format!("{GONE}{name}"));
                std::fs::rename(&folder, gone)
                    .during(|| format!("cannot remove {}", folder.display()))?;
            }
            self.remove_gone()
        }
        .boxed()
    }

    fn clear(&self) -> Doing<'_, ()> {
        let shared = self.site.folder.path().join("bin");
        let removed = state::remove_all(&shared);
        done(removed.during(|| format!("cannot remove {}", shared.display())))
    }

    fn logs(&self, name: &str, wanted: LogRequest) -> BoxStream<'_, Result<Said>> {
        let mut reader = LogReader::new(self.node(name).join("agent.log"));
        let said = match reader.first(wanted) {
            Ok(lines) => lines.into_iter().map(|line| Ok(Said::Line(line))).collect(),
            Err(error) => vec![Err(error)],
        };
        let first = stream::iter(said);
        if !wanted.follow {
            return first.boxed();
        }
        let later = stream::unfold(reader, |mut reader| async {
            tokio::time::sleep(FOLLOW_EVERY).await;
            let said = match reader.read() {
                Ok(lines) => lines.into_iter().map(|line| Ok(Said::Line(line))).collect(),
                Err(error) => vec![Err(error)],
            };
            Some((stream::iter(said), reader))
        });
        first.chain(stream::iter([Ok(Said::CaughtUp)])).chain(later.flatten()).boxed()
    }
}

/// Reads a log file from where it was left.
struct LogReader {
    path: PathBuf,
    file: Option<File>,
    cutter: Cutter,
}

impl LogReader {
    fn new(path: PathBuf) -> Self {
        Self { path, file: None, cutter: Cutter::default() }
    }

    /// What there is and is wanted.
    fn first(&mut self, wanted: LogRequest) -> Result<Vec<LogLine>> {
        let mut lines = self.read()?;
        // What is being written ends later.
        lines.extend(if wanted.follow { None } else { self.cutter.finish() });
        let (all, lines) = (lines.len(), wanted_of(lines, wanted));
        let aside = self.path.with_extension("log.1");
        if lines.len() < all || wanted.lines == Some(all) || !aside.exists() {
            return Ok(lines);
        }
        let mut before = Self::new(aside).read()?;
        before.extend(lines);
        Ok(wanted_of(before, wanted))
    }

    /// The lines that were written since the last time.
    fn read(&mut self) -> Result<Vec<LogLine>> {
        let failed = || format!("cannot read {}", self.path.display());
        let mut file = match self.file.take() {
            Some(file) => file,
            None if !self.path.exists() => return Ok(Vec::new()),
            None => File::open(&self.path).during(failed)?,
        };
        // Asked first, so that what is written until then is read from the file it was written to.
        let there = std::fs::metadata(&self.path);
        let mut text = Vec::new();
        file.read_to_end(&mut text).during(failed)?;
        // The file is put aside when a node with a long log starts again, and is another one when the
        // node was removed and made again.
        let own = file.metadata().during(failed)?;
        let same = there.is_ok_and(|there| (there.dev(), there.ino()) == (own.dev(), own.ino()));
        self.file = same.then_some(file);
        Ok(self.cutter.cut(&text, None))
    }
}

/// Clock ticks since the machine was started.
fn uptime_ticks() -> u64 {
    let text = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds: f64 = text.split(' ').next().and_then(|text| text.parse().ok()).unwrap_or(0.0);
    (seconds * 100.0) as u64
}

fn stat(pid: u32) -> Option<Stat> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name in parentheses, which may hold anything.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    Some(Stat {
        state: fields.first()?.chars().next()?,
        start_ticks: fields.get(19)?.parse().ok()?,
    })
}

/// The process of this user that was started with this path as an argument.
fn find_by_argument(path: &Path) -> Option<(Identity, Stat)> {
    let wanted = path.as_os_str().as_encoded_bytes();
    let pids = std::fs::read_dir("/proc")
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    for pid in pids {
        let Ok(arguments) = std::fs::read(format!("/proc/{pid}/cmdline")) else { continue };
        let mut arguments = arguments.split(|byte| *byte == 0);
        let is_agent = arguments.next().is_some_and(|program| program.ends_with(b"sky-agent"));
        if is_agent && arguments.any(|argument| argument == wanted) {
            let stat = stat(pid)?;
            let process = Identity { pid, start_ticks: stat.start_ticks, boot: boot_id() };
            return Some((process, stat));
        }
    }
    None
}
