//! What an agent counts: operations of clients with their latencies, messages, commits.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Seconds over which rates and latencies are reported.
const WINDOW: u64 = 5;

/// Buckets of the latency histogram: 8 for each power of two of microseconds, 12.5 % wide.
const BUCKETS: usize = 8 * 40;

/// Running totals since the agent was started. Shared by all its tasks.
#[derive(Debug)]
pub struct Counters {
    /// Operations of clients that were finished.
    pub operations: AtomicU64,
    /// Requests turned away because too many were waiting.
    pub overloaded: AtomicU64,
    /// Messages that came from peers.
    pub messages_received: AtomicU64,
    /// Messages handed to peer connections.
    pub messages_sent: AtomicU64,
    /// Messages dropped because their receiver could not be reached or was too slow.
    pub messages_dropped: AtomicU64,
    /// Hellos of peers that were refused.
    pub peers_refused: AtomicU64,
    /// Commits to disk, one fsync each.
    pub commits: AtomicU64,
    /// Writes in those commits.
    pub writes: AtomicU64,
    latencies: Vec<AtomicU64>,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            operations: AtomicU64::new(0),
            overloaded: AtomicU64::new(0),
            messages_received: AtomicU64::new(0),
            messages_sent: AtomicU64::new(0),
            messages_dropped: AtomicU64::new(0),
            peers_refused: AtomicU64::new(0),
            commits: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            latencies: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect(),
        }
    }
}

impl Counters {
    /// One operation of a client is finished.
    pub fn record(&self, latency: Duration) {
        self.operations.fetch_add(1, Relaxed);
        self.latencies[bucket(latency)].fetch_add(1, Relaxed);
    }

    fn latencies(&self) -> Vec<u64> {
        self.latencies.iter().map(|count| count.load(Relaxed)).collect()
    }
}

/// The bucket of a latency: 3 bits below the leading one.
fn bucket(latency: Duration) -> usize {
    let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX).max(8);
    let power = micros.ilog2() as usize;
    ((power - 3) * 8 + (micros >> (power - 3)) as usize - 8).min(BUCKETS - 1)
}

/// The upper end of a bucket, in milliseconds.
fn bucket_end_ms(bucket: usize) -> f64 {
    ((bucket % 8 + 9) as f64) * (bucket as f64 / 8.0).floor().exp2() / 1000.0
}

/// Rates and latencies of the last seconds.
#[derive(Debug, Default)]
pub struct Window {
    seconds: std::collections::VecDeque<Vec<u64>>,
}

impl Window {
    /// Called once a second: operations per second and their 99th percentile in milliseconds.
    pub fn measure(&mut self, counters: &Counters) -> (f64, f64) {
        let now = counters.latencies();
        let before = self.seconds.front().cloned().unwrap_or_else(|| vec![0; BUCKETS]);
        let seconds = self.seconds.len().max(1) as f64;
        let counts: Vec<u64> = now.iter().zip(before).map(|(now, before)| now - before).collect();
        self.seconds.push_back(now);
        if self.seconds.len() as u64 > WINDOW {
            self.seconds.pop_front();
        }
        let total: u64 = counts.iter().sum();
        let mut below = 0;
        let p99 = counts.iter().position(|count| {
            below += count;
            total > 0 && below * 100 >= total * 99
        });
        (total as f64 / seconds, p99.map_or(0.0, bucket_end_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_hold_what_they_say() {
        for micros in [0, 7, 8, 9, 100, 1000, 1023, 1024, 12345, 5_000_000] {
            let end = bucket_end_ms(bucket(Duration::from_micros(micros))) * 1000.0;
            assert!(micros as f64 <= end, "{micros} <= {end}");
            assert!(end <= (micros.max(8) as f64) * 1.13 + 1.0, "{micros} ~ {end}");
        }
        assert_eq!(bucket(Duration::MAX), BUCKETS - 1);
    }

    #[test]
    fn the_slowest_hundredth_is_reported_and_then_forgotten() {
        let (counters, mut window) = (Counters::default(), Window::default());
        (0..98).for_each(|_| counters.record(Duration::from_micros(100)));
        (0..2).for_each(|_| counters.record(Duration::from_millis(50)));
        let (rate, p99) = window.measure(&counters);
        assert_eq!(rate, 100.0);
        assert!((50.0..57.0).contains(&p99), "{p99}");
        let idle = (0..=WINDOW).map(|_| window.measure(&counters)).last();
        assert_eq!(idle, Some((0.0, 0.0)));
    }
}
