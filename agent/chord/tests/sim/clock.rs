//! Clocks: each process has one that only goes forward, at its own rate, and each machine a wall clock
//! that may be set back.

use std::time::Duration;

use sky_chord::Time;

/// A rate of one: virtual time as it is.
pub(crate) const TRUE_RATE: u64 = 1_000_000;

/// What a process reads as the time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    /// What it showed at which virtual moment.
    shown: u64,
    at: Time,
    /// The same at its start.
    start: (u64, Time),
    /// Microseconds it advances in a virtual second.
    rate: u64,
}

impl Clock {
    pub(super) const fn new(now: Time, shown: u64, rate: u64) -> Self {
        Self { shown, at: now, start: (shown, now), rate }
    }

    /// What it shows at a virtual moment.
    pub(super) fn read(&self, now: Time) -> Time {
        let passed = u128::from(now.as_micros() - self.at.as_micros());
        Time::from_micros(self.shown + (passed * u128::from(self.rate) / 1_000_000) as u64)
    }

    /// The first virtual moment at which it shows that much.
    pub(super) fn when(&self, shown: Time) -> Time {
        let ahead = u128::from(shown.as_micros().saturating_sub(self.shown)) * 1_000_000;
        Time::from_micros(self.at.as_micros() + ahead.div_ceil(u128::from(self.rate)) as u64)
    }

    /// How many microseconds it shows less than virtual time has gone on since its start.
    pub(super) fn behind(&self, now: Time) -> u64 {
        let (shown, at) = self.start;
        let passed = now.as_micros() - at.as_micros();
        passed.saturating_sub(self.read(now).as_micros() - shown)
    }

    /// It leaps ahead, as after a suspension of the machine that nobody else noticed.
    pub(super) fn leap(&mut self, now: Time, by: Duration) {
        *self = Self { shown: (self.read(now) + by).as_micros(), at: now, ..*self };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wake_up_comes_when_the_clock_shows_its_time_and_not_before() {
        let start = Time::from_micros(1000);
        for rate in [950_000, 999_999, TRUE_RATE, 1_050_000] {
            let mut clock = Clock::new(start, 77, rate);
            for wanted in [77, 78, 500, 123_456_789] {
                let wanted = Time::from_micros(wanted);
                let at = clock.when(wanted);
                assert!(clock.read(at) >= wanted);
                let before = Time::from_micros(at.as_micros() - 1);
                assert!(at == start || clock.read(before) < wanted);
            }
            let now = start + Duration::from_secs(2);
            let shown = clock.read(now);
            clock.leap(now, Duration::from_secs(9));
            assert_eq!(clock.read(now), shown + Duration::from_secs(9));
        }
    }
}
