//! How long to wait for a peer's answer, from the round-trip times measured so far.

use std::time::Duration;

/// Round-trip times of one peer, smoothed as in TCP (Jacobson, "Congestion avoidance and control",
/// SIGCOMM'88).
#[derive(Debug, Clone, Default)]
pub(super) struct Rtt {
    mean: Option<Duration>,
    deviation: Duration,
    /// Time-outs since the last answer: each doubles the time-out.
    timeouts: u32,
}

impl Rtt {
    /// Takes in a measured round trip. Answers carry the id of their question, so a late one is no
    /// less exact than a quick one.
    pub(super) fn measured(&mut self, rtt: Duration) {
        self.timeouts = 0;
        let Some(mean) = self.mean else {
            self.mean = Some(rtt);
            self.deviation = rtt / 2;
            return;
        };
        self.deviation = (self.deviation * 3 + mean.abs_diff(rtt)) / 4;
        self.mean = Some((mean * 7 + rtt) / 8);
    }

    /// A question was not answered in time.
    pub(super) const fn timed_out(&mut self) {
        self.timeouts = self.timeouts.saturating_add(1);
    }

    /// The smoothed round-trip time; none before the first answer.
    pub(super) const fn mean(&self) -> Option<Duration> {
        self.mean
    }

    /// How long to wait: mean + 4 deviations, doubled after each time-out, within the bounds. The
    /// upper bound before the first answer.
    pub(super) fn timeout(&self, (low, high): (Duration, Duration)) -> Duration {
        let Some(mean) = self.mean else { return high };
        let quiet = (mean + self.deviation * 4).max(low);
        quiet.saturating_mul(1 << self.timeouts.min(10)).min(high.max(low))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

    #[test]
    fn follows_the_measured_times_and_backs_off() {
        let mut rtt = Rtt::default();
        assert_eq!(rtt.timeout(BOUNDS), BOUNDS.1);
        for _ in 0..50 {
            rtt.measured(Duration::from_millis(60));
        }
        let quiet = rtt.timeout(BOUNDS);
        assert!(quiet >= Duration::from_millis(100) && quiet < Duration::from_millis(110));
        rtt.timed_out();
        assert_eq!(rtt.timeout(BOUNDS), quiet * 2);
        for _ in 0..40 {
            rtt.timed_out();
        }
        assert_eq!(rtt.timeout(BOUNDS), BOUNDS.1);
        rtt.measured(Duration::from_millis(60));
        assert!(rtt.timeout(BOUNDS) < Duration::from_millis(110));
        rtt.measured(Duration::from_millis(260));
        assert!(rtt.timeout(BOUNDS) > Duration::from_millis(200), "one outlier widens it");
    }
}
