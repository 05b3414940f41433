//! Moments as text: RFC 3339, as agents, engines and clouds write them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

const DAY_S: i64 = 86_400;

/// The moment that a text is: `2026-11-23T04:00:00Z`, also with parts of a second, another zone
/// (`+01:00`), without a zone (then it is UTC), without seconds, or only the day.
pub(crate) fn parse(text: &str) -> Option<SystemTime> {
    let (day, clock) = match text.split_once(['T', ' ']) {
        Some((day, clock)) => (day, clock),
        None => (text, "00:00"),
    };
    let mut fields = day.split('-').map(number);
    let (year, month, day) = (fields.next()??, fields.next()??, fields.next()??);
    let in_calendar = (1970..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && fields.next().is_none();
    if !in_calendar {
        return None;
    }
    let (clock, zone_s) = zone(clock)?;
    let (clock, part) = clock.split_once('.').unwrap_or((clock, ""));
    let mut fields = clock.split(':').map(number);
    let (hour, minute) = (fields.next()??, fields.next()??);
    let second = fields.next().unwrap_or(Some(0))?;
    if hour > 23 || minute > 59 || second > 60 || fields.next().is_some() {
        return None;
    }
    let seconds = days(year, month, day) * DAY_S + hour * 3600 + minute * 60 + second - zone_s;
    let moment = UNIX_EPOCH.checked_add(Duration::from_secs(u64::try_from(seconds).ok()?))?;
    moment.checked_add(Duration::from_nanos(nanos(part)?))
}

/// The moment of a date as HTTP tells it: `Sat, 28 Nov 2026 15:17:56 GMT` (RFC 9110, section 5.6.7).
pub(crate) fn http(text: &str) -> Option<SystemTime> {
    const MONTHS: &str = "JanFebMarAprMayJunJulAugSepOctNovDec";
    let mut words = text.split_once(", ")?.1.strip_suffix(" GMT")?.split(' ');
    let (day, month, year) = (words.next()?, words.next()?, words.next()?);
    let month = MONTHS.find(month).filter(|at| at % 3 == 0 && month.len() == 3)? / 3 + 1;
    parse(&format!("{year}-{month:02}-{day}T{}", words.next()?))
}

/// A clock time without its zone, and how far that zone is ahead of UTC in seconds.
fn zone(clock: &str) -> Option<(&str, i64)> {
    if let Some(clock) = clock.strip_suffix('Z') {
        return Some((clock, 0));
    }
    let Some(at) = clock.rfind(['+', '-']) else { return Some((clock, 0)) };
    let (hours, minutes) = clock.get(at + 1..)?.split_once(':')?;
    let ahead = number(hours)? * 3600 + number(minutes)? * 60;
    let sign = if clock[at..].starts_with('+') { 1 } else { -1 };
    Some((&clock[..at], sign * ahead))
}

fn number(digits: &str) -> Option<i64> {
    let plain = (1..=4).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
    digits.parse().ok().filter(|_| plain)
}

/// The digits after the point of a second.
fn nanos(digits: &str) -> Option<u64> {
    if digits.len() > 9 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    format!("{digits:0<9}").parse().ok()
}

/// Days since 1970 of a date, with March as the first month (H. Hinnant, "chrono-compatible low-level
/// date algorithms").
const fn days(year: i64, month: i64, day: i64) -> i64 {
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719_468
}

/// A moment in UTC to the second: `2026-11-23T04:00:00Z`.
pub(crate) fn seconds(moment: SystemTime) -> String {
    let (day, clock, _) = parts(moment);
    format!("{day}T{clock}Z")
}

/// A moment in UTC to the microsecond.
pub(crate) fn micros(moment: SystemTime) -> String {
    let (day, clock, micros) = parts(moment);
    format!("{day}T{clock}.{micros:06}Z")
}

/// The date and the time of a moment in UTC, and what is left of it in microseconds.
fn parts(moment: SystemTime) -> (String, String, u32) {
    let since = moment.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    let (days, second) = (seconds / DAY_S, seconds % DAY_S);
    // The inverse of [`days`], by the same author.
    let z = days + 719_468;
    let era = z / 146_097;
    let of_era = z - era * 146_097;
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let mp = (5 * of_year + 2) / 153;
    let (day, month) = (of_year - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let year = year + era * 400 + i64::from(month <= 2);
    let clock = format!("{:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60);
    (format!("{year:04}-{month:02}-{day:02}"), clock, since.subsec_micros())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read_as_everybody_writes_them() {
        let seconds = |text| parse(text).unwrap().duration_since(UNIX_EPOCH).unwrap();
        // 2100-01-01T00:00:00Z is 4102444800.
        let far = Duration::from_secs(4_102_444_800);
        for same in [
            "2100-01-01T00:00:00Z",
            "2100-01-01 00:00:00.000000",
            "2100-01-01T01:30:00+01:30",
            "2099-12-31T22:00-02:00",
            "2100-01-01",
        ] {
            assert_eq!(seconds(same), far, "{same}");
        }
        assert_eq!(seconds("2100-01-01T00:00:00.25Z"), far + Duration::from_millis(250));
        for wrong in [
            "",
            "T",
            "yesterday",
            "2026-13-01",
            "2026-00-01",
            "2026-1-1-1",
            "2026-11-28T",
            "2026-11-28T1",
            "2026-11-28T25:00",
            "2026-11-28T1:2:3:4",
            "2026-11-28T10:00+1",
            "2026-11-28T10:00:00.x",
            "1969-01-01",
            "2026-11-28T10:00é",
            "99999-01-01",
            "2026-+1-01",
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn dates_of_http() {
        let moment = http("Sat, 28 Nov 2026 15:17:56 GMT").unwrap();
        assert_eq!(seconds(moment), "2026-11-28T15:17:56Z");
        for wrong in
            ["", "Sat, 28 Nov 2026", "Sat, 28 anF 2026 15:17:56 GMT", "Sat,  GMT", "x, a b c d GMT"]
        {
            assert_eq!(http(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_was_written_is_read_again() {
        for text in ["1970-01-01T00:00:00Z", "2024-02-29T23:59:59Z", "2026-12-31T12:00:01Z"] {
            assert_eq!(seconds(parse(text).unwrap()), text);
        }
        let precise = "2026-03-01T05:06:07.000890Z";
        assert_eq!(micros(parse(precise).unwrap()), precise);
    }
}
