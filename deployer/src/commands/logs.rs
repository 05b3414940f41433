//! `logs`: what do the nodes say?

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::pin::pin;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use futures_util::future::{AbortHandle, Either, pending};
use futures_util::stream::{self, BoxStream, FuturesUnordered, StreamExt, StreamFuture};
use serde::Serialize;

use super::Context;
use crate::cli::{ALL, LogsArgs};
use crate::deployment::Deployment;
use crate::error::{During, Error, Result};
use crate::moment;
use crate::node::{Machine, MachineState};
use crate::printer::{Mark, Printer};
use crate::provider::{LogLine, LogRequest, Said};
use crate::weave::Weave;

/// How often nodes that came or went are looked for.
const LOOK_EVERY: Duration = Duration::from_secs(2);

pub(super) async fn run(context: &Context<'_>, args: &LogsArgs) -> Result<ExitCode> {
    let (node, inventory) = args.what();
    let deployment = Deployment::open(inventory).await?;
    let all = node == ALL;
    let names = if all {
        let ring = &deployment.inventory.ring.name;
        let names = names(&deployment.provider.observe().await?);
        if names.is_empty() {
            return Err(Error::new(format!("the ring {ring} has no nodes, and so no logs"))
                .hint("`sky-deploy apply` makes them"));
        }
        names
    } else {
        BTreeSet::from([deployment.find(node).await?.node.name])
    };
    let wanted = LogRequest { lines: args.tail, since: args.since, follow: args.follow };
    let mut logs = Logs::new(context, &deployment, all);
    for name in names {
        logs.open(name, wanted);
    }
    if args.follow { logs.follow(wanted).await } else { logs.read().await }
}

/// The nodes that may have said something.
fn names(machines: &[Machine]) -> BTreeSet<String> {
    let made = machines.iter().filter(|machine| machine.state != MachineState::Absent);
    made.map(|machine| machine.node.name.clone()).collect()
}

/// A line, for `logs --json`.
#[derive(Serialize)]
struct LineReport<'a> {
    node: &'a str,
    /// None if nobody knows.
    at: Option<String>,
    line: &'a str,
}

/// What a log says: none at its end.
type Saying<'a> = BoxStream<'a, (usize, Option<Result<Said>>)>;

/// One thing it said, and what comes after it.
type Read<'a> = (Option<(usize, Option<Result<Said>>)>, Saying<'a>);

/// The logs that are read.
struct Logs<'a> {
    context: &'a Context<'a>,
    deployment: &'a Deployment,
    /// Whether the names of nodes stand before their lines, and nodes that come are added.
    all: bool,
    width: usize,
    weave: Weave,
    opened: Vec<Opened>,
    /// What is read of each log next.
    reads: FuturesUnordered<StreamFuture<Saying<'a>>>,
    /// Logs that wait until their lines are taken.
    full: BTreeMap<usize, Saying<'a>>,
    /// Whether nobody reads what is printed any more.
    unread: bool,
}

struct Opened {
    name: String,
    abort: AbortHandle,
    /// The last error, which is not told twice.
    told: Option<Error>,
    gone: bool,
}

impl<'a> Logs<'a> {
    fn new(context: &'a Context<'a>, deployment: &'a Deployment, all: bool) -> Self {
        let (weave, reads) = (Weave::default(), FuturesUnordered::new());
        let (opened, full) = (Vec::new(), BTreeMap::new());
        Self { context, deployment, all, width: 0, weave, opened, reads, full, unread: false }
    }

    const fn printer(&self) -> &'a Printer {
        self.context.printer
    }

    fn open(&mut self, name: String, wanted: LogRequest) {
        let number = self.opened.len();
        self.width = self.width.max(name.len());
        self.weave.open(number, Instant::now());
        let (said, abort) = stream::abortable(self.deployment.provider.logs(&name, wanted));
        self.opened.push(Opened { name, abort, told: None, gone: false });
        let said = said.map(Some).chain(stream::iter([None]));
        self.reads.push(said.map(move |said| (number, said)).boxed().into_future());
    }

    /// Reads all logs to their ends.
    async fn read(mut self) -> Result<ExitCode> {
        let mut problems = Vec::new();
        while let Some(read) = self.reads.next().await {
            problems.extend(self.take(read).into_iter().flat_map(|(_, error)| error.problems));
            self.print()?;
            if self.unread {
                return Ok(ExitCode::SUCCESS);
            }
        }
        Error::of(problems).map_or(Ok(ExitCode::SUCCESS), Err)
    }

    /// Follows all logs until Ctrl-C, or until nobody reads any more.
    async fn follow(mut self, wanted: LogRequest) -> Result<ExitCode> {
        let deployment = self.deployment;
        let looks = stream::unfold((), |()| async move {
            tokio::time::sleep(LOOK_EVERY).await;
            Some((deployment.provider.observe().await, ()))
        });
        let mut looks = pin!(looks);
        let mut ended = pin!(tokio::signal::ctrl_c());
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        let mut blind = None;
        while !self.unread {
            let wakes = match self.weave.wakes() {
                Some(wakes) => Either::Left(tokio::time::sleep_until(wakes.into())),
                None => Either::Right(pending()),
            };
            tokio::select! {
                Some(read) = self.reads.next() => {
                    if let Some((number, error)) = self.take(read) {
                        self.tell(number, error);
                    }
                }
                () = wakes => {}
                Some(seen) = looks.next(), if self.all => self.compare(seen, wanted, &mut blind),
                _ = ticks.tick() => self.unread = self.printer().nobody_reads(),
                _ = &mut ended => break,
            }
            self.print()?;
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Takes what was read of a log, and reads on. Returns what went wrong.
    fn take(&mut self, read: Read<'a>) -> Option<(usize, Error)> {
        let (Some((number, said)), rest) = read else { return None };
        let error = match said {
            None => {
                self.weave.end(number);
                return None;
            }
            Some(Ok(Said::Line(line))) => {
                let shown = self.shown(number, &line);
                self.weave.line(number, line.at, shown, Instant::now());
                self.opened[number].told = None;
                None
            }
            Some(Ok(Said::CaughtUp)) => {
                self.weave.live(number);
                None
            }
            Some(Err(error)) => Some((number, error)),
        };
        if self.weave.is_full(number) {
            self.full.insert(number, rest);
        } else {
            self.reads.push(rest.into_future());
        }
        error
    }

    /// A line as it is printed.
    fn shown(&self, number: usize, line: &LogLine) -> String {
        let node = &self.opened[number].name;
        let text = String::from_utf8_lossy(&line.text);
        if self.context.json {
            let report = LineReport { node, at: line.at.map(moment::micros), line: &text };
            // Texts and nothing else always become JSON.
            return serde_json::to_string(&report).unwrap_or_default();
        }
        match self.all {
            true => format!("{} {text}", self.printer().name(node, self.width, number)),
            false => text.into_owned(),
        }
    }

    /// Prints the lines that need not wait, and lets logs be read that waited for it.
    fn print(&mut self) -> Result<()> {
        let now = Instant::now();
        let mut text = String::new();
        while let Some((number, line)) = self.weave.next(now) {
            text.push_str(&line);
            text.push('\n');
            if let Some(rest) = self.full.remove(&number) {
                self.reads.push(rest.into_future());
            }
        }
        if text.is_empty() {
            return Ok(());
        }
        match self.printer().try_bytes(text.as_bytes()) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => self.unread = true,
            written => written.during(|| "cannot write what the nodes say")?,
        }
        Ok(())
    }

    /// Tells what went wrong with a log that is followed, once.
    fn tell(&mut self, number: usize, error: Error) {
        let opened = &mut self.opened[number];
        if opened.told.as_ref() != Some(&error) {
            self.context.printer.warn(format_args!("{}: {}", opened.name, error.brief()));
            opened.told = Some(error);
        }
    }

    /// Begins with nodes that have come, and ends with those that have gone.
    fn compare(
        &mut self,
        seen: Result<Vec<Machine>>,
        wanted: LogRequest,
        blind: &mut Option<Error>,
    ) {
        let now = match seen {
            Ok(machines) => names(&machines),
            Err(error) => {
                if blind.as_ref() != Some(&error) {
                    self.printer().warn(error.brief());
                    *blind = Some(error);
                }
                return;
            }
        };
        *blind = None;
        let printer = self.printer();
        for (number, opened) in self.opened.iter_mut().enumerate() {
            if !opened.gone && !now.contains(&opened.name) {
                opened.gone = true;
                opened.abort.abort();
                self.weave.end(number);
                self.full.remove(&number);
                printer.step(Mark::Working, format_args!("{} is gone", opened.name));
            }
        }
        for name in now {
            if !self.opened.iter().any(|opened| !opened.gone && opened.name == name) {
                printer.step(Mark::Working, format_args!("{name} has come"));
                self.open(name, LogRequest { lines: None, ..wanted });
            }
        }
    }
}
