//! How long a command and its steps took: beside each step for people, and as data.

use std::fmt::Display;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::amount;
use crate::printer::{Mark, Printer};

/// A step that takes no longer is not worth a line of its own.
const NOTEWORTHY: Duration = Duration::from_secs(1);

/// The steps of a command that is under way.
#[derive(Debug)]
pub struct Progress {
    printer: Printer,
    begun: Instant,
    steps: Mutex<Vec<StepTime>>,
}

/// How long a command took, for `--json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Times {
    /// All of it, with the waiting for answers to questions.
    pub seconds: f64,
    /// Its steps in the order of their ends. Some overlap.
    pub steps: Vec<StepTime>,
}

/// How long a step took, for `--json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepTime {
    /// `plan`, `prepare`, `create`, `start`, `pause`, `unpause`, `stop`, `restart`, `found`, `right`,
    /// `drain`, `remove`, `renew` or `clear`.
    pub step: &'static str,
    /// The node it was about; none if about all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// From its beginning to its end.
    pub seconds: f64,
}

impl Progress {
    /// A command that begins now.
    pub fn new(printer: &Printer) -> Self {
        Self { printer: *printer, begun: Instant::now(), steps: Mutex::default() }
    }

    /// Where else to say things.
    pub const fn printer(&self) -> &Printer {
        &self.printer
    }

    /// A step that began then is done: says so, and how long it took.
    pub fn done(&self, begun: Instant, step: &'static str, node: Option<&str>, line: impl Display) {
        let took = self.note(begun, step, node);
        self.printer
            .step(Mark::Done, format_args!("{line} {}", self.printer.aside(&amount::time(took))));
    }

    /// A step that people hear of only if it took long.
    pub fn quiet(&self, begun: Instant, step: &'static str, line: impl Display) {
        let took = self.note(begun, step, None);
        if took >= NOTEWORTHY {
            let took = self.printer.aside(&amount::time(took));
            self.printer.step(Mark::Done, format_args!("{line} {took}"));
        }
    }

    fn note(&self, begun: Instant, step: &'static str, node: Option<&str>) -> Duration {
        let took = begun.elapsed();
        let time = StepTime { step, node: node.map(str::to_owned), seconds: rounded(took) };
        if let Ok(mut steps) = self.steps.lock() {
            steps.push(time);
        }
        took
    }

    /// Says how long all of it took.
    pub fn end(&self, command: &str) {
        self.printer.say(format_args!("{command} took {}", amount::time(self.begun.elapsed())));
    }

    /// How long everything took until now.
    pub fn times(&self) -> Times {
        let steps = self.steps.lock().map(|steps| steps.clone()).unwrap_or_default();
        Times { seconds: rounded(self.begun.elapsed()), steps }
    }
}

/// To the millisecond.
fn rounded(time: Duration) -> f64 {
    time.as_millis() as f64 / 1000.0
}
