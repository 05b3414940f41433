//! The table at the end.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::clients::{Probe, probe_key};
use crate::faults::Measured;
use crate::history::{Entry, Outcome, Told};
use crate::judge;

/// How long before a fault is shown what was asked.
const NEAR_NS: u64 = 1_000_000_000;

/// Requests by kind and outcome.
pub(crate) fn requests<'a>(entries: impl Iterator<Item = &'a Entry>) -> String {
    const COLUMNS: [&str; 4] = ["done", "refused by state", "nothing (503)", "unknown (504)"];
    let mut counts: BTreeMap<&str, [usize; 4]> = BTreeMap::new();
    let mut all = [0; 4];
    for entry in entries {
        let column = match entry.outcome {
            Outcome::Told(_, Told::Exists | Told::Failed | Told::Absent) => 1,
            Outcome::Told(..) => 0,
            Outcome::Nothing => 2,
            Outcome::Unknown => 3,
        };
        counts.entry(entry.ask.kind()).or_default()[column] += 1;
        all[column] += 1;
    }
    let mut table = format!("  {:<18}", "requests");
    // Writing to a String cannot fail.
    for column in COLUMNS {
        let _ = write!(table, "{column:>18}");
    }
    for (kind, counts) in counts.iter().map(|(kind, c)| (*kind, c)).chain([("all", &all)]) {
        let _ = write!(table, "\n  {kind:<18}");
        for count in counts {
            let _ = write!(table, "{count:>18}");
        }
    }
    table
}

/// How long keys were silent after single crashes and pauses.
pub(crate) struct Silence {
    pub(crate) table: String,
    pub(crate) longest_ns: u64,
    /// Where and when that was.
    pub(crate) where_longest: String,
    /// What was asked for that key meanwhile.
    pub(crate) details: String,
}

/// The longest time without a success of a key from the fault on, and the longest time from the fault to the
/// end of the first request that began after it and succeeded.
pub(crate) fn silence(
    measured: &[Measured],
    probes: &[Probe],
    keys: &BTreeMap<String, Vec<Entry>>,
) -> Silence {
    let mut rows: BTreeMap<&str, (usize, [u64; 4])> = BTreeMap::new();
    let (mut longest_ns, mut where_longest, mut details) = (0, String::new(), String::new());
    let mut streams: BTreeMap<(usize, bool), Vec<&Probe>> = BTreeMap::new();
    for probe in probes {
        streams.entry((probe.key, probe.is_get)).or_default().push(probe);
    }
    for Measured { what, whom, from, until } in measured {
        let (count, row) = rows.entry(what).or_default();
        *count += 1;
        for ((key, is_get), stream) in &streams {
            let succeeded = || stream.iter().filter(|probe| probe.succeeded);
            // What was silent before is no matter of this fault.
            let mut last = *from;
            // The longest gap, and where it is.
            let mut gap = (0, last, last);
            let ends = succeeded().filter(|probe| probe.end > *from && probe.begun < *until);
            for end in ends.map(|probe| probe.end).chain([last.max(*until)]) {
                gap = gap.max((end - last.min(end), last, end));
                last = end;
            }
            let first =
                succeeded().filter(|probe| probe.begun >= *from).map(|probe| probe.end).min();
            let first = first.unwrap_or(*until) - from;
            let column = if *is_get { 0 } else { 2 };
            row[column] = row[column].max(first);
            row[column + 1] = row[column + 1].max(gap.0);
            if gap.0 > longest_ns {
                let (begun, end) = (gap.1, gap.2);
                longest_ns = gap.0;
                let verb = if *is_get { "get" } else { "set" };
                let at = *from as f64 / 1e6;
                let name = probe_key(*key);
                let (begins, ends) = (begun as f64 / 1e6, end as f64 / 1e6);
                where_longest = format!(
                    "{verb} {name} after {whom} at {at:.0} ms, from {begins:.0} to {ends:.0} ms"
                );
                let near = begun.saturating_sub(NEAR_NS)..end + NEAR_NS;
                let entries = keys.get(&name).into_iter().flatten();
                let meanwhile = entries.filter(|entry| near.contains(&entry.begun)).cloned();
                details = judge::lines(&meanwhile.collect::<Vec<_>>()).join("\n");
            }
        }
    }
    let mut table = format!(
        "  {:<18}{:>7}{:>18}{:>18}{:>18}{:>18}",
        "silence of keys",
        "count",
        "first get after",
        "longest gap",
        "first set after",
        "longest gap"
    );
    for (what, (count, row)) in rows {
        let _ = write!(table, "\n  {what:<18}{count:>7}");
        for ns in row {
            let _ = write!(table, "{:>16.2} s", ns as f64 / 1e9);
        }
    }
    Silence { table, longest_ns, where_longest, details }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silence_ends_with_the_first_success() {
        let probe = |begun, end, succeeded| Probe { key: 0, is_get: true, begun, end, succeeded };
        let probes = [
            probe(0, 10, true),
            probe(90, 95, true),
            probe(96, 300, false),
            probe(310, 340, true),
            probe(350, 360, true),
        ];
        let measured = [Measured { what: "crash", whom: String::new(), from: 100, until: 400 }];
        assert_eq!(silence(&measured, &probes, &BTreeMap::new()).longest_ns, 340 - 100);
        // A stream that never comes back is silent to the end.
        assert_eq!(silence(&measured, &probes[..3], &BTreeMap::new()).longest_ns, 400 - 100);
    }
}
