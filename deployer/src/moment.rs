//! Moments as text: RFC 3339, as agents, engines and clouds write them.

use std::time::SystemTime;

use chrono::{DateTime, SecondsFormat, Utc};

/// The moment that a text is: `2026-11-23T04:00:00Z`, also with parts of a second, another zone
/// (`+01:00`), without a zone (then it is UTC), without seconds, or only the day.
pub(crate) fn parse(text: &str) -> Option<SystemTime> {
    let (day, clock) = text.split_once(['T', ' ']).unwrap_or((text, "00:00"));
    let (clock, zone) = clock.split_at(clock.find(['Z', '+', '-']).unwrap_or(clock.len()));
    let seconds = if clock.len() == "00:00".len() { ":00" } else { "" };
    let zone = if zone.is_empty() { "Z" } else { zone };
    let moment = DateTime::parse_from_rfc3339(&format!("{day}T{clock}{seconds}{zone}"));
    moment.ok().map(Into::into)
}

/// The moment of a date as HTTP tells it: `Sat, 28 Nov 2026 15:17:56 GMT` (RFC 9110, section 5.6.7).
pub(crate) fn http(text: &str) -> Option<SystemTime> {
    DateTime::parse_from_rfc2822(text).ok().map(Into::into)
}

/// A moment in UTC to the second: `2026-11-23T04:00:00Z`.
pub(crate) fn seconds(moment: SystemTime) -> String {
    DateTime::<Utc>::from(moment).to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// A moment in UTC to the microsecond.
pub(crate) fn micros(moment: SystemTime) -> String {
    DateTime::<Utc>::from(moment).to_rfc3339_opts(SecondsFormat::Micros, true)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

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
            "2026-11-28T10:00é",
            "99999-01-01",
            "2026-02-30",
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
