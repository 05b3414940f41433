//! The latest notices of this agent, kept for readers that come again.

use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

use sky_chord::Notice;
use tokio::sync::watch;

use crate::kept::{Kept, Next};

/// How many are kept.
pub const KEPT: usize = 1024;

/// A place in the notices: after the one with this number, counted from 1 at each start of an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The number that the agent's data directory was given when it was made.
    pub incarnation: u64,
    /// Which start on that directory, from 1.
    pub boot: u32,
    /// The number of the last notice seen; 0 before the first.
    pub number: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}.{}.{}", self.incarnation, self.boot, self.number)
    }
}

impl FromStr for Place {
    type Err = NotAPlace;

    fn from_str(text: &str) -> Result<Self, NotAPlace> {
        let mut parts = text.split('.');
        let mut next = || parts.next().filter(|part| !part.starts_with('+')).ok_or(NotAPlace);
        let incarnation = u64::from_str_radix(next()?, 16).map_err(|_| NotAPlace)?;
        let boot = next()?.parse().map_err(|_| NotAPlace)?;
        let number = next()?.parse().map_err(|_| NotAPlace)?;
        if parts.next().is_some() {
            return Err(NotAPlace);
        }
        Ok(Self { incarnation, boot, number })
    }
}

/// A text that no agent gave out as a [`Place`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a place in the events of an agent")]
pub struct NotAPlace;

/// The notices of one start of an agent, written by its driver and read by its clients.
#[derive(Debug)]
pub struct Notices {
    start: Place,
    kept: Kept<(SystemTime, Notice)>,
}

impl Notices {
    /// None yet, of this start.
    pub fn new(incarnation: u64, boot: u32) -> Self {
        let kept = Kept::new(KEPT, usize::MAX);
        Self { start: Place { incarnation, boot, number: 0 }, kept }
    }

    /// Adds one, and forgets the oldest one if there are too many.
    pub fn push(&self, notice: Notice) {
        self.kept.push((SystemTime::now(), notice), 0);
    }

    /// The place after the notice of this number.
    pub const fn place(&self, number: u64) -> Place {
        Place { number, ..self.start }
    }

    /// The number in a place of this start; none if it is a place of another one.
    pub fn number(&self, place: Place) -> Option<u64> {
        let known = self.place(place.number) == place && place.number <= *self.last().borrow();
        known.then_some(place.number)
    }

    /// Changes with each notice to its number.
    pub fn last(&self) -> watch::Receiver<u64> {
        self.kept.last()
    }

    /// What follows the notice of this number, with when it was given.
    pub fn after(&self, number: u64) -> Next<(SystemTime, Notice)> {
        self.kept.after(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_of_one_start() {
        let notices = Notices::new(0xab, 3);
        notices.push(Notice::Drained);
        let place = notices.place(1);
        assert_eq!((place.to_string().as_str(), place.to_string().parse()), ("ab.3.1", Ok(place)));
        assert_eq!(notices.number(place), Some(1));
        for other in ["ab.3.2", "ab.2.1", "ac.3.1"] {
            assert_eq!(notices.number(other.parse().unwrap()), None, "{other}");
        }
        for text in ["", "5", "ab.3", "ab.3.1.0", "ab.3.-1", "+a.3.1", "ab.3.1 ", "x.3.1"] {
            assert_eq!(text.parse::<Place>(), Err(NotAPlace), "{text}");
        }
    }
}
