//! What went wrong, why, and what to do about it: the one error of this program.

use std::fmt;

/// A result with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// One or more things that went wrong, as a person should read them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// At least one.
    pub problems: Vec<Problem>,
}

/// One thing that went wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What happened, to what. A sentence without a full stop.
    pub what: String,
    /// Why, outermost cause first.
    pub causes: Vec<String>,
    /// What to do next.
    pub hint: Option<String>,
}

impl Problem {
    /// A problem without cause and hint.
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), causes: Vec::new(), hint: None }
    }
}

impl Error {
    /// An error of one problem.
    pub fn new(what: impl Into<String>) -> Self {
        Self { problems: vec![Problem::new(what)] }
    }

    /// An error with the error that caused it, and its causes.
    pub fn caused(what: impl Into<String>, cause: &dyn std::error::Error) -> Self {
        let mut problem = Problem::new(what);
        let mut next = Some(cause);
        while let Some(error) = next {
            let text = error.to_string();
            // Some libraries repeat the text of the cause in their own.
            if problem.causes.last().is_none_or(|last| !last.contains(&text)) {
                problem.causes.push(text);
            }
            next = error.source();
        }
        Self { problems: vec![problem] }
    }

    /// Adds a cause to the last problem.
    #[must_use]
    pub fn because(mut self, cause: impl Into<String>) -> Self {
        if let Some(last) = self.problems.last_mut() {
            last.causes.push(cause.into());
        }
        self
    }

    /// Adds what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        if let Some(last) = self.problems.last_mut() {
            last.hint = Some(hint.into());
        }
        self
    }

    /// What happened and the innermost reason, in a clause.
    pub fn brief(&self) -> String {
        let Some(problem) = self.problems.first() else { return String::new() };
        match problem.causes.last() {
            Some(cause) => format!("{}: {cause}", problem.what),
            None => problem.what.clone(),
        }
    }

    /// The error of several problems; none if there are none.
    pub fn of(problems: Vec<Problem>) -> Option<Self> {
        (!problems.is_empty()).then_some(Self { problems })
    }
}

impl fmt::Display for Error {
    /// On one line, for logs and for the page.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            if i > 0 {
                f.write_str("; ")?;
            }
            f.write_str(&problem.what)?;
            for cause in &problem.causes {
                write!(f, ": {cause}")?;
            }
            if let Some(hint) = &problem.hint {
                write!(f, " ({hint})")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// Turns an error of a library into an [`Error`] that says what was being done.
pub trait During<T> {
    /// `what` names the failed action: "cannot read sky.yaml".
    fn during<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: std::error::Error> During<T> for std::result::Result<T, E> {
    fn during<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|error| Error::caused(what(), &error))
    }
}
