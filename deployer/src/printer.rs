//! The only module that prints. Data goes to stdout, talk to stderr.

use std::fmt::Display;
use std::io::{BufRead, ErrorKind, IsTerminal, Write};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::error::Error;
use crate::node::NodeState;

/// Where output goes, and how it is dressed.
#[derive(Debug, Clone, Copy)]
pub struct Printer {
    /// Whether talk has colours.
    color: bool,
    /// Whether data has colours.
    data_color: bool,
    /// Whether data goes to a terminal.
    data_terminal: bool,
    terminal: bool,
}

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// Done.
    Done,
    /// Not done.
    Failed,
    /// Under way.
    Working,
}

impl Printer {
    /// A printer for the terminal or file this process talks to. Colours only on a terminal, and
    /// only without `NO_COLOR` (no-color.org).
    pub fn from_environment() -> Self {
        let terminal = std::io::stderr().is_terminal();
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let data_terminal = std::io::stdout().is_terminal();
        let data_color = data_terminal && wanted;
        Self { color: terminal && wanted, data_color, data_terminal, terminal }
    }

    /// Shows what modules that do not print warn of; `SKY_LOG=debug` shows more.
    pub fn warnings(self) {
        let level = std::env::var("SKY_LOG").unwrap_or_else(|_| "warn".to_owned());
        let filter = EnvFilter::new(format!("error,sky_deploy={level}"));
        let shown = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_ansi(self.color)
            .with_target(false)
            .without_time();
        // Fails only where something is installed already.
        let _ = shown.try_init();
    }

    /// Data, for people and pipes: one line on stdout.
    pub fn data(&self, line: impl Display) {
        self.bytes(format!("{line}\n").as_bytes());
    }

    /// Data as it is.
    pub fn bytes(&self, bytes: &[u8]) {
        if let Err(error) = self.try_bytes(bytes) {
            // Where the reader of the pipe has left (`| head`), nobody is there to be told.
            if error.kind() != ErrorKind::BrokenPipe {
                self.error(&Error::caused("cannot write to the standard output", &error));
            }
            std::process::exit(1);
        }
    }

    /// Data as it is, for those who go on until nobody reads it.
    pub fn try_bytes(&self, bytes: &[u8]) -> std::io::Result<()> {
        let mut out = std::io::stdout().lock();
        out.write_all(bytes).and_then(|()| out.flush())
    }

    /// Whether data goes to a pipe or a socket that nobody reads any more.
    pub fn nobody_reads(&self) -> bool {
        let out = std::io::stdout();
        let mut asked = [PollFd::new(&out, PollFlags::empty())];
        let gone = PollFlags::ERR | PollFlags::HUP;
        // Asked without waiting; what cannot be asked is read by somebody.
        poll(&mut asked, Some(&Timespec::default())).is_ok()
            && asked.iter().any(|out| out.revents().intersects(gone))
    }

    /// A name that stands before lines, this wide, in the color of this number.
    pub fn name(&self, name: &str, width: usize, number: usize) -> String {
        const COLORS: [&str; 6] = ["36", "33", "32", "35", "34", "31"];
        painted(self.data_color, &format!("{name:<width$} |"), COLORS[number % COLORS.len()])
    }

    /// The state of a node as a part of data, this wide.
    pub fn state(&self, state: NodeState, width: usize) -> String {
        let color = match state {
            NodeState::Up => "32",
            NodeState::Starting | NodeState::Draining => "36",
            NodeState::Paused => "33",
            NodeState::Down | NodeState::Missing => "31",
        };
        painted(self.data_color, &format!("{state:<width$}"), color)
    }

    /// What a look found, as a part of data, this wide.
    pub fn finding(&self, found: &str, width: usize) -> String {
        let color = match found {
            "ok" => "32",
            "warning" => "33",
            "problem" => "31",
            _ => "36",
        };
        painted(self.data_color, &format!("{found:<width$}"), color)
    }

    /// A value as it is; on a terminal with an end of line, so that the prompt stands on its own.
    pub fn value(&self, value: &[u8]) {
        self.bytes(value);
        if std::io::stdout().is_terminal() && !value.ends_with(b"\n") {
            self.bytes(b"\n");
        }
    }

    /// Data that takes the place of the data before on a terminal, and follows it with its time elsewhere.
    /// What does not fit on the terminal is left out.
    pub fn frame(&self, first: bool, at: &str, lines: &[String]) {
        let lines = std::iter::once(at).chain(lines.iter().map(String::as_str));
        let Some(rows) = self.rows() else {
            return self.bytes((lines.collect::<Vec<_>>().join("\n") + "\n").as_bytes());
        };
        let mut text = String::new();
        if first {
            // What stood on the screen goes up into what can be scrolled back to.
            text.push_str(&"\n".repeat(rows));
        }
        // Long lines are cut instead of folded. What is left of the longer lines before is wiped out line
        // by line: a screen that is cleared first flickers.
        text.push_str("\x1b[?7l\x1b[H");
        let all: Vec<&str> = lines.collect();
        let room = rows.saturating_sub(1).max(2);
        let shown = if all.len() > room { room - 1 } else { all.len() };
        for line in &all[..shown] {
            text.push_str(line);
            text.push_str("\x1b[K\n");
        }
        if shown < all.len() {
            let more = all.len() - shown;
            text.push_str(&format!("... {more} more lines: make the window higher\x1b[K\n"));
        }
        text.push_str("\x1b[J\x1b[?7h");
        self.bytes(text.as_bytes());
    }

    /// How many rows data may have; none if it does not go to a terminal.
    pub fn rows(&self) -> Option<usize> {
        if !self.data_terminal {
            return None;
        }
        let size = rustix::termios::tcgetwinsize(std::io::stdout());
        // Some terminals do not know.
        let rows = size.ok().map(|size| usize::from(size.ws_row)).filter(|rows| *rows > 0);
        Some(rows.unwrap_or(24))
    }

    /// Talk: one line on stderr.
    pub fn say(&self, line: impl Display) {
        // A closed stderr cannot be reported anywhere.
        let _ = writeln!(std::io::stderr().lock(), "{line}");
    }

    /// The state of a step.
    pub fn step(&self, mark: Mark, line: impl Display) {
        let (sign, color) = match mark {
            Mark::Done => ("✓", "32"),
            Mark::Failed => ("✗", "31"),
            Mark::Working => ("•", "36"),
        };
        self.clear();
        self.say(format_args!("{} {line}", self.paint(sign, color)));
    }

    /// The state of something that takes a while: rewritten in place on a terminal, not shown
    /// elsewhere.
    pub fn passing(&self, line: impl Display) {
        if self.terminal {
            let _ = write!(std::io::stderr().lock(), "\r\x1b[2K{} {line}", self.paint("•", "36"));
        }
    }

    /// Takes back a [`Self::passing`] line.
    pub fn clear(&self) {
        if self.terminal {
            let _ = write!(std::io::stderr().lock(), "\r\x1b[2K");
        }
    }

    /// What stands beside a line of talk, in parentheses.
    pub fn aside(&self, text: &str) -> String {
        self.paint(&format!("({text})"), "2")
    }

    /// What to do next.
    pub fn hint(&self, line: impl Display) {
        self.say(format_args!("{} {line}", self.paint("hint:", "36")));
    }

    /// Something that needs attention but does not stop the work.
    pub fn warn(&self, line: impl Display) {
        self.say(format_args!("{} {line}", self.paint("warning:", "33")));
    }

    /// Why the program ends without having done what was asked.
    pub fn error(&self, error: &Error) {
        self.clear();
        for problem in &error.problems {
            self.say(format_args!("{} {}", self.paint("error:", "31"), problem.what));
            for cause in &problem.causes {
                self.say(format_args!("  caused by: {cause}"));
            }
            if let Some(hint) = &problem.hint {
                self.say(format_args!("  {} {hint}", self.paint("hint:", "36")));
            }
        }
    }

    /// Asks for a text on the terminal; none if there is nobody to ask. Ctrl-C is an empty answer.
    pub async fn ask(&self, question: impl Display) -> Option<String> {
        if !self.terminal || !std::io::stdin().is_terminal() {
            return None;
        }
        // Heard from before anybody can see the question.
        let mut interrupt = signal(SignalKind::interrupt()).ok()?;
        let _ = write!(std::io::stderr().lock(), "{question} ");
        let (send, answer) = tokio::sync::oneshot::channel();
        // In a thread of its own, which is not waited for: reading from a terminal cannot be given up.
        std::thread::spawn(move || {
            let mut answer = String::new();
            let read = std::io::stdin().lock().read_line(&mut answer);
            let _ = send.send(read.ok().map(|_| answer.trim().to_owned()));
        });
        tokio::select! {
            answer = answer => answer.ok().flatten(),
            _ = interrupt.recv() => {
                self.say("");
                Some(String::new())
            }
        }
    }

    fn paint(&self, text: &str, color: &str) -> String {
        painted(self.color, text, color)
    }
}

fn painted(wanted: bool, text: &str, color: &str) -> String {
    if wanted { format!("\x1b[{color}m{text}\x1b[0m") } else { text.to_owned() }
}
