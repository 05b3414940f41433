//! The commands, a file for each kind: they open a ring, do one thing, and say so.

mod adopt;
mod apply;
mod audit;
mod backup;
mod check;
mod destroy;
mod doctor;
mod init;
mod kv;
mod list;
mod logs;
mod node;
mod plan;
mod render;
mod repair;
mod restore;
mod ring;
mod scale;
mod schema;
mod shell;
mod status;
mod upgrade;
mod validate;
mod watch;

use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;

pub(crate) use node::{Verb, carry_out};
pub(crate) use scale::add_node;

use crate::cli::{Cli, Command};
use crate::error::{During, Error, Result};
use crate::live;
use crate::printer::Printer;
use crate::timing::{Progress, Times};

/// What every command gets.
pub(crate) struct Context<'a> {
    printer: &'a Printer,
    yes: bool,
    json: bool,
}

impl Context<'_> {
    /// Data as JSON on stdout.
    fn json(&self, value: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string_pretty(value).during(|| "cannot encode the answer")?;
        self.printer.data(text);
        Ok(())
    }

    /// Data as JSON on one line of stdout.
    fn json_line(&self, value: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string(value).during(|| "cannot encode the answer")?;
        self.printer.data(text);
        Ok(())
    }

    /// Says how long a command of several steps took; as JSON with what it has to report.
    fn timed(&self, progress: &Progress, command: &str, report: &impl Serialize) -> Result<()> {
        progress.end(command);
        self.report(progress, report)
    }

    /// What a command has to report and how long it took, if JSON is wanted.
    fn report(&self, progress: &Progress, report: &impl Serialize) -> Result<()> {
        if !self.json {
            return Ok(());
        }
        #[derive(Serialize)]
        struct Timed<'a, T> {
            #[serde(flatten)]
            report: &'a T,
            took: Times,
        }
        self.json(&Timed { report, took: progress.times() })
    }

    /// Goes on only with a yes.
    async fn confirm(&self, question: &str) -> Result<()> {
        if self.yes {
            return Ok(());
        }
        let answer = self.printer.ask(format_args!("{question} [y/N]")).await;
        match answer.as_deref() {
            Some("y" | "Y" | "yes") => Ok(()),
            Some(_) => Err(Error::new("nothing was done")),
            None => Err(Error::new(format!(
                "nothing was done, because nobody is there to ask: {question}"
            ))
            .hint("say yes beforehand with --yes")),
        }
    }
}

/// Runs a command and reports its errors.
pub async fn run(cli: Cli, printer: &Printer) -> ExitCode {
    let context = Context { printer, yes: cli.yes, json: cli.json };
    match dispatch(&context, cli.command).await {
        Ok(code) => code,
        Err(error) => {
            printer.error(&error);
            ExitCode::FAILURE
        }
    }
}

/// How often what is under way is shown.
const SHOW_EVERY: Duration = Duration::from_millis(500);

/// Work that Ctrl-C ends: nothing new is begun, and what is done stays.
async fn interruptible<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let hint = "what is done is done; the same command again goes on from there";
    interruptible_with(hint.to_owned(), work).await
}

/// Work that Ctrl-C ends, and what to do then.
async fn interruptible_with<T>(hint: String, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        biased;
        result = work => result,
        _ = tokio::signal::ctrl_c() => Err(Error::new("interrupted").hint(hint)),
    }
}

async fn dispatch(context: &Context<'_>, command: Command) -> Result<ExitCode> {
    match command {
        Command::Init(args) => init::run(context, &args),
        Command::Completions { shell } => Ok(shell::completions(context, shell)),
        Command::Man { dir } => shell::man(context, dir.as_deref()),
        Command::Schema => schema::run(context),
        Command::Validate(target) => validate::run(context, &target.inventory),
        Command::Plan { target, preflight } => {
            plan::run(context, &target.inventory, preflight).await
        }
        Command::Render(args) => render::run(context, &args).await,
        Command::Apply { target, detach, preflight, dashboard } => {
            interruptible(apply::run(context, &target.inventory, preflight)).await?;
            if detach {
                return Ok(ExitCode::SUCCESS);
            }
            live::serve(target.inventory, dashboard, context.printer).await?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Doctor(target) => doctor::run(context, &target.inventory).await,
        Command::Status(args) => status::run(context, &args).await,
        Command::Ring(target) => ring::run(context, &target.inventory).await,
        Command::Logs(args) => logs::run(context, &args).await,
        Command::Dashboard { target, dashboard } => {
            live::serve(target.inventory, dashboard, context.printer).await?;
            Ok(ExitCode::SUCCESS)
        }
        Command::List => list::run(context).await,
        Command::Add(target) => {
            let hint = scale::GO_ON.to_owned();
            interruptible_with(hint, scale::add(context, &target.inventory)).await
        }
        Command::Remove(target) => interruptible(scale::remove(context, &target)).await,
        Command::Drain(target) => interruptible(node::run(context, Verb::Drain, &target)).await,
        Command::Pause(target) => node::run(context, Verb::Pause, &target).await,
        Command::Unpause(target) => node::run(context, Verb::Unpause, &target).await,
        Command::Stop(target) => node::run(context, Verb::Stop, &target).await,
        Command::Start(target) => node::run(context, Verb::Start, &target).await,
        Command::Restart(target) => interruptible(node::run(context, Verb::Restart, &target)).await,
        Command::Upgrade(target) => interruptible(upgrade::run(context, &target.inventory)).await,
        Command::Adopt(target) => interruptible(adopt::run(context, &target.inventory)).await,
        Command::Audit(target) => audit::run(context, &target.inventory).await,
        Command::Destroy { target, keep_data } => {
            interruptible(destroy::run(context, &target.inventory, keep_data)).await
        }
        Command::Backup(args) => backup::run(context, &args).await,
        Command::Check(args) => check::run(context, &args).await,
        Command::Repair(args) => interruptible(repair::run(context, &args)).await,
        Command::Restore(args) => restore::run(context, &args).await,
        Command::Kv { command } => kv::run(context, command).await,
    }
}
