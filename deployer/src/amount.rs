//! Amounts as people read them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// 1234567 as `1,234,567`.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 key`, `1,234 keys`.
pub(crate) fn of(number: u64, thing: &str) -> String {
    format!("{} {thing}{}", count(number), if number == 1 { "" } else { "s" })
}

/// 1500 as `1.5 kB`.
pub(crate) fn bytes(number: u64) -> String {
    let mut amount = number as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if amount < 1000.0 {
            let digits = usize::from(unit != "B");
            return format!("{amount:.digits$} {unit}");
        }
        amount /= 1000.0;
    }
    format!("{amount:.1} TB")
}

/// So many in this time, for each second.
pub(crate) fn rate(number: u64, time: Duration) -> String {
    let per_second = number as f64 / time.as_secs_f64().max(0.001);
    format!("{}/s", count(per_second as u64))
}

/// A time that something took: `0.4 s`, `75 s`, `3 min 12 s`.
pub(crate) fn time(time: Duration) -> String {
    match time.as_secs() {
        0..10 => format!("{:.1} s", time.as_secs_f64()),
        seconds @ 10..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min {} s", seconds / 60, seconds % 60),
        seconds => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

/// This moment, in seconds since 1 January 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// A moment, in seconds since 1 January 1970, as `3 hours ago`.
pub(crate) fn since(moment: u64) -> String {
    let age = now().saturating_sub(moment);
    let (number, unit) = match age {
        0..120 => (age, "second"),
        120..7200 => (age / 60, "minute"),
        7200..172_800 => (age / 3600, "hour"),
        _ => (age / 86_400, "day"),
    };
    format!("{} ago", of(number, unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_readable() {
        assert_eq!([0, 999, 1000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([0, 1, 1000].map(|number| of(number, "key")), ["0 keys", "1 key", "1,000 keys"]);
        assert_eq!([0, 999, 1500, 148_000_000].map(bytes), ["0 B", "999 B", "1.5 kB", "148.0 MB"]);
        assert_eq!(bytes(5_000_000_000_000_000), "5000.0 TB");
        assert_eq!(rate(30_000, Duration::from_secs(2)), "15,000/s");
        let times = [0.04, 1.26, 75.9, 192.0, 7320.0].map(Duration::from_secs_f64).map(time);
        assert_eq!(times, ["0.0 s", "1.3 s", "75 s", "3 min 12 s", "2 h 2 min"]);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        assert_eq!(since(now - 3 * 3600 - 5), "3 hours ago");
        assert_eq!(since(now + 50), "0 seconds ago");
    }
}
