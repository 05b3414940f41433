//! What can be typed, and how it is understood.

use std::path::PathBuf;

use sky_chord::{Id, Space};

use crate::Failure;

/// What `help` says.
pub(super) const HELP: &str = "\
join N ...         start nodes at these identifiers; they ask a member the way
leave N ...        tell nodes to hand over and leave
fail N ...         let nodes fall silent
step [ROUNDS]      let each node stabilize and look up one finger, once or so many times (also: stabilize)
run                let rounds pass until the ring is right
show               all nodes with their pointers
fingers [N]        the finger table of one node, or of all
lookup N K         let node N look up the owner of identifier K, hop by hop
check              whether the ring is right, and if not, why
dot [N]            the ring for Graphviz, with the fingers of node N
svg FILE [N]       a drawing of the ring in a file, with the fingers of node N
help, quit         this text; the end (also: Ctrl-D)";

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Command {
    Join(Vec<Id>),
    Leave(Vec<Id>),
    Fail(Vec<Id>),
    Step(u32),
    Run,
    Show,
    Fingers(Option<Id>),
    Lookup { from: Id, target: Id },
    Check,
    Dot(Option<Id>),
    Svg(PathBuf, Option<Id>),
    Help,
    Quit,
}

/// More rounds than this in one command are a slip.
const ROUNDS_MAX: u32 = 1000;

impl Command {
    /// The command of a line; none if it is empty or a comment.
    ///
    /// # Errors
    /// If it is not understood.
    pub(super) fn read(line: &str, space: Space) -> Result<Option<Self>, Failure> {
        let line = line.split('#').next().unwrap_or_default();
        let words: Vec<&str> = line.split_whitespace().collect();
        let Some((name, arguments)) = words.split_first() else { return Ok(None) };
        let point = |text: &&str| point(text, space);
        let points = || arguments.iter().map(point).collect::<Result<Vec<_>, _>>();
        let command = match (name.to_ascii_lowercase().as_str(), arguments) {
            ("join", [_, ..]) => Self::Join(points()?),
            ("leave", [_, ..]) => Self::Leave(points()?),
            ("fail", [_, ..]) => Self::Fail(points()?),
            ("step" | "stabilize", []) => Self::Step(1),
            ("step" | "stabilize", [rounds]) => Self::Step(number_of_rounds(rounds)?),
            ("run", []) => Self::Run,
            ("show", []) => Self::Show,
            ("fingers", []) => Self::Fingers(None),
            ("fingers", [node]) => Self::Fingers(Some(point(node)?)),
            ("lookup", [from, target]) => {
                Self::Lookup { from: point(from)?, target: point(target)? }
            }
            ("check", []) => Self::Check,
            ("dot", []) => Self::Dot(None),
            ("dot", [node]) => Self::Dot(Some(point(node)?)),
            ("svg", [file]) => Self::Svg(file.into(), None),
            ("svg", [file, node]) => Self::Svg(file.into(), Some(point(node)?)),
            ("help" | "?", _) => Self::Help,
            ("quit" | "exit", []) => Self::Quit,
            (name, _) => return Err(not_understood(name)),
        };
        Ok(Some(command))
    }
}

/// Either the command is unknown, or what follows it does not fit.
fn not_understood(name: &str) -> Failure {
    let is_meant = |line: &&str| line.split([' ', ',']).next() == Some(name);
    let alias = match name {
        "stabilize" => "step",
        "exit" => "quit",
        name => name,
    };
    let usage = HELP
        .lines()
        .find(is_meant)
        .or_else(|| HELP.lines().find(|line| line.split([' ', ',']).any(|word| word == alias)));
    match usage.and_then(|line| line.split("  ").next()) {
        Some(usage) => Failure {
            what: format!("what follows `{name}` does not fit"),
            hint: format!("It is used like this: {usage}"),
        },
        None => Failure {
            what: format!("there is no command `{name}`"),
            hint: "`help` lists the commands.".to_owned(),
        },
    }
}

fn number_of_rounds(text: &str) -> Result<u32, Failure> {
    text.parse().ok().filter(|rounds| (1..=ROUNDS_MAX).contains(rounds)).ok_or_else(|| Failure {
        what: format!("`{text}` is not a number of rounds"),
        hint: format!("Say how many rounds are to pass, from 1 to {ROUNDS_MAX}."),
    })
}

/// A point on the circle of the playground.
///
/// # Errors
/// If it is not a number, or too large.
pub(super) fn point(text: &str, space: Space) -> Result<Id, Failure> {
    let last = (1u64 << space.bits().min(63)) - 1;
    let number = text.parse::<u64>().ok().filter(|number| *number <= last);
    number.map(Id::small).ok_or_else(|| Failure {
        what: format!("`{text}` is not an identifier of this circle"),
        hint: format!("With {} bits, identifiers are the numbers from 0 to {last}.", space.bits()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Option<Command>, Failure> {
        Command::read(line, Space::new(3).unwrap())
    }

    #[test]
    fn commands_are_understood() {
        let id = Id::small;
        let is = |line: &str, command| assert_eq!(read(line).unwrap(), Some(command), "{line}");
        is("join 6", Command::Join(vec![id(6)]));
        is("  FAIL 3 1  # two of them", Command::Fail(vec![id(3), id(1)]));
        is("step", Command::Step(1));
        is("stabilize 12", Command::Step(12));
        is("lookup 0 7", Command::Lookup { from: id(0), target: id(7) });
        is("svg ring.svg 1", Command::Svg("ring.svg".into(), Some(id(1))));
        is("exit", Command::Quit);
        for line in ["", "   ", "# nothing"] {
            assert_eq!(read(line).unwrap(), None);
        }
    }

    #[test]
    fn nonsense_is_refused_with_a_hint() {
        let hints = |line: &str, hint: &str| {
            let failure = read(line).expect_err(line);
            assert!(failure.hint.contains(hint), "{line}: {failure:?}");
        };
        hints("jion 6", "`help`");
        hints("join", "join N ...");
        hints("join 8", "0 to 7");
        hints("join -1", "0 to 7");
        hints("join 99999999999999999999999", "0 to 7");
        hints("lookup 0", "lookup N K");
        hints("lookup 0 1 2", "lookup N K");
        hints("step 0", "1 to 1000");
        hints("step many", "1 to 1000");
        hints("stabilize 1 2", "step [ROUNDS]");
        hints("exit now", "quit");
        hints("svg", "svg FILE [N]");
        hints("\u{0}\u{1b}[31m", "`help`");
    }
}
