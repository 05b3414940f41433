//! Whether one order of all requests for a key explains everything that clients were told of it
//! (linearizability), by the search of Wing and Gong with the memory of Lowe.
//!
//! `porcupine-rs` does the same, but brings a benchmark suite and an unmaintained crate as ordinary
//! dependencies and starts one thread a key; the tester of `stateright` has no memory, so that histories
//! of real length are beyond it. It serves below as the second opinion on short ones.

use std::collections::{BTreeMap, HashMap};

use crate::history::{Ask, Entry, Number, Outcome, Told};

/// States looked at before a history is called too hard to judge.
const STATES_MAX: usize = 3_000_000;

/// Of a history that cannot be explained, this much is shown.
const LINES_SHOWN: usize = 40;

/// The verdict on one key.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Explained,
    /// Why not, with the end of the shortest history that cannot be explained.
    Impossible(String),
    /// The search was given up.
    TooHard,
}

/// Judges what was told of one key.
pub(crate) fn judge(key: &str, entries: &[Entry]) -> Verdict {
    if let Err(problem) = versions(entries) {
        return Verdict::Impossible(format!("{key}: {problem}"));
    }
    let until = |moment: u64| -> Vec<Entry> {
        let begun = entries.iter().filter(|entry| entry.begun <= moment);
        begun.map(|entry| as_known_at(entry, moment)).collect()
    };
    match explains(entries) {
        None => Verdict::TooHard,
        Some(true) => Verdict::Explained,
        Some(false) => {
            let mut moments: Vec<u64> = entries.iter().filter_map(Entry::end).collect();
            moments.sort_unstable();
            let first = moments.partition_point(|moment| explains(&until(*moment)) != Some(false));
            let shown = until(moments.get(first).copied().unwrap_or(u64::MAX));
            let lines = lines(&shown);
            let lines = lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n");
            Verdict::Impossible(format!("no order explains what was told of {key}:\n{lines}"))
        }
    }
}

/// The request as it was known at this moment.
fn as_known_at(entry: &Entry, moment: u64) -> Entry {
    let mut entry = entry.clone();
    if entry.end().is_some_and(|end| end > moment) {
        entry.outcome = Outcome::Unknown;
    }
    entry
}

/// Every value has one ETag, the same for everybody who saw it, and no two values have the same.
fn versions(entries: &[Entry]) -> Result<(), String> {
    let mut of_value: BTreeMap<Number, &str> = BTreeMap::new();
    let mut of_version: BTreeMap<&str, Number> = BTreeMap::new();
    for entry in entries {
        let Outcome::Told(_, told) = entry.outcome else { continue };
        let value = match told {
            Told::Found(value) => value,
            Told::Created | Told::Replaced => entry.ask.stores().unwrap_or_default(),
            Told::Absent | Told::Deleted | Told::Exists | Told::Failed => continue,
        };
        let Some(etag) = entry.etag.as_deref() else {
            return Err(format!("value {value} came without an ETag"));
        };
        let before = of_value.insert(value, etag).filter(|before| *before != etag);
        if let Some(before) = before {
            return Err(format!("value {value} had the ETag {before} and then {etag}"));
        }
        let other = of_version.insert(etag, value).filter(|other| *other != value);
        if let Some(other) = other {
            return Err(format!("values {other} and {value} have the same ETag {etag}"));
        }
    }
    Ok(())
}

/// The value of a key; none if it does not exist.
type State = Option<Number>;

/// The state after the request; none if it cannot have gone so in this state.
fn apply(state: State, entry: &Entry) -> Option<State> {
    let Outcome::Told(_, told) = entry.outcome else { return changes(state, entry.ask) };
    let possible = match (entry.ask, told) {
        (Ask::Get, Told::Found(value)) => state == Some(value),
        (Ask::Get | Ask::Delete, Told::Absent) => state.is_none(),
        (Ask::Create(_) | Ask::Set(_), Told::Created) => {
            return state.is_none().then(|| entry.ask.stores());
        }
        (Ask::Set(_) | Ask::Update(_), Told::Replaced) => {
            return state.is_some().then(|| entry.ask.stores());
        }
        (Ask::Swap(new, old), Told::Replaced) => return (state == Some(old)).then_some(Some(new)),
        (Ask::Delete, Told::Deleted) => return state.is_some().then_some(None),
        (Ask::DeleteIf(old), Told::Deleted) => return (state == Some(old)).then_some(None),
        (Ask::Create(_), Told::Exists) => state.is_some(),
        (Ask::Update(_), Told::Failed) => state.is_none(),
        (Ask::Swap(_, old) | Ask::DeleteIf(old), Told::Failed) => state != Some(old),
        _ => false,
    };
    possible.then_some(state)
}

/// The state after a request whose fate is unknown took effect; none if it has none in this state.
fn changes(state: State, ask: Ask) -> Option<State> {
    match ask {
        Ask::Get => None,
        Ask::Create(new) => state.is_none().then_some(Some(new)),
        Ask::Set(new) => Some(Some(new)),
        Ask::Update(new) => state.is_some().then_some(Some(new)),
        Ask::Swap(new, old) => (state == Some(old)).then_some(Some(new)),
        Ask::Delete => state.is_some().then_some(None),
        Ask::DeleteIf(old) => (state == Some(old)).then_some(None),
    }
}

/// How far an order has got.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Place {
    /// All answered requests before this one have their place in the order.
    base: usize,
    /// So have these after it, in ascending order.
    ahead: Vec<usize>,
    state: State,
    /// The state before the open requests that come next in the order, if there are such.
    owed: Option<State>,
}

/// Whether some order explains the history; none if it is too hard to say.
///
/// An open request may take effect at any time from its beginning on, or never. So wherever one does in an
/// order, it can do so later, up to just before an answered request that could not be answered so without
/// it: no other place has to be tried. In a row of them only those are needed that depend on the one before.
fn explains(entries: &[Entry]) -> Option<bool> {
    let sorted = |wanted: &dyn Fn(&&Entry) -> bool| {
        let mut some: Vec<&Entry> = entries.iter().filter(wanted).collect();
        some.sort_by_key(|entry| entry.begun);
        some
    };
    let known = sorted(&|entry| entry.end().is_some());
    let open = sorted(&|entry| entry.outcome == Outcome::Unknown && entry.ask != Ask::Get);
    let mut todo =
        vec![(Place { base: 0, ahead: Vec::new(), state: None, owed: None }, Vec::new())];
    // Where the search has been: the place, and which of the open requests had taken effect. Fewer of
    // them can do whatever more of them can, as none has to take effect.
    let mut seen: HashMap<Place, Vec<Vec<usize>>> = HashMap::new();
    let mut states = 0;
    while let Some((place, effective)) = todo.pop() {
        let mut first_end = u64::MAX;
        let mut next = Vec::new();
        for (at, entry) in known.iter().enumerate().skip(place.base) {
            if entry.begun > first_end {
                break;
            }
            if place.ahead.binary_search(&at).is_err() {
                first_end = first_end.min(entry.end().unwrap_or(u64::MAX));
                next.push(at);
            }
        }
        if next.is_empty() {
            return Some(true);
        }
        next.retain(|at| known[*at].begun <= first_end);
        next.sort_by_key(|at| std::cmp::Reverse(known[*at].end()));
        let before = place.owed.unwrap_or(place.state);
        let is_stuck = |at: &usize| apply(before, known[*at]).is_none();
        let mut branches = Vec::new();
        let may_help = next.iter().any(is_stuck);
        for (at, entry) in open.iter().enumerate().take_while(|(_, e)| e.begun <= first_end) {
            let depends = !matches!(entry.ask, Ask::Set(_) | Ask::Delete);
            if may_help
                && (depends || place.owed.is_none())
                && let Err(gap) = effective.binary_search(&at)
                && let Some(state) = apply(place.state, entry)
            {
                let mut effective = effective.clone();
                effective.insert(gap, at);
                branches.push((Place { state, owed: Some(before), ..place.clone() }, effective));
            }
        }
        // The last one is tried first: an answered request, and of those the one that ended first.
        for at in next.into_iter().filter(|at| place.owed.is_none() || is_stuck(at)) {
            if let Some(state) = apply(place.state, known[at]) {
                branches.push((after(&place, at, state), effective.clone()));
            }
        }
        for (place, effective) in branches {
            let before = seen.entry(place.clone()).or_default();
            let is_in = |fewer: &Vec<usize>| fewer.iter().all(|at| effective.contains(at));
            if !before.iter().any(is_in) {
                before.push(effective.clone());
                todo.push((place, effective));
                states += 1;
            }
        }
        if states > STATES_MAX {
            return None;
        }
    }
    Some(false)
}

/// The place after the answered request `at` got its own.
fn after(place: &Place, at: usize, state: State) -> Place {
    let mut ahead = place.ahead.clone();
    let gap = ahead.partition_point(|other| *other < at);
    ahead.insert(gap, at);
    let mut base = place.base;
    let done = ahead.iter().take_while(|other| {
        let is_next = **other == base;
        base += usize::from(is_next);
        is_next
    });
    let done = done.count();
    ahead.drain(..done);
    Place { base, ahead, state, owed: None }
}

/// A history as people read it.
pub(crate) fn lines(entries: &[Entry]) -> Vec<String> {
    let mut sorted: Vec<&Entry> = entries.iter().collect();
    sorted.sort_by_key(|entry| entry.begun);
    sorted.into_iter().map(line).collect()
}

fn line(entry: &Entry) -> String {
    let ms = |ns: u64| format!("{:.3}", ns as f64 / 1e6);
    let (end, told) = match entry.outcome {
        Outcome::Told(end, told) => (ms(end), format!("{told:?}")),
        Outcome::Unknown => ("-".to_owned(), "unknown".to_owned()),
        Outcome::Nothing => ("-".to_owned(), "nothing was changed".to_owned()),
    };
    let asked = format!("{:?}", entry.ask);
    let etag = entry.etag.as_deref().unwrap_or_default();
    format!("{:>12} {end:>12} ms  {asked:<20} {told:<20} {} {etag}", ms(entry.begun), entry.via)
}

#[cfg(test)]
mod tests {
    use stateright::semantics::{ConsistencyTester, LinearizabilityTester, SequentialSpec};

    use super::*;
    use crate::random::Random;

    /// One request: (begun, ask, outcome).
    fn judge_these(history: &[(u64, Ask, Outcome)]) -> Verdict {
        let entry = |(begun, ask, outcome): &(u64, Ask, Outcome)| {
            let value = match outcome {
                Outcome::Told(_, Told::Found(value)) => Some(*value),
                Outcome::Told(_, Told::Created | Told::Replaced) => ask.stores(),
                _ => None,
            };
            let etag = value.map(|value| format!("\"{value}\"").into());
            Entry { ask: *ask, begun: *begun, outcome: *outcome, etag, via: "".into() }
        };
        judge("k", &history.iter().map(entry).collect::<Vec<_>>())
    }

    fn is_impossible(history: &[(u64, Ask, Outcome)]) -> bool {
        matches!(judge_these(history), Verdict::Impossible(why) if why.contains("no order"))
    }

    use Ask::{Create, Delete, DeleteIf, Get, Set, Swap, Update};
    use Outcome::{Nothing, Unknown};

    fn told(end: u64, told: Told) -> Outcome {
        Outcome::Told(end, told)
    }

    #[test]
    fn an_ordinary_history_is_explained() {
        let history = [
            (0, Create(1), told(1, Told::Created)),
            (2, Create(2), told(3, Told::Exists)),
            (4, Swap(3, 1), told(5, Told::Replaced)),
            (6, Swap(4, 1), told(7, Told::Failed)),
            (8, Get, told(9, Told::Found(3))),
            (10, DeleteIf(1), told(11, Told::Failed)),
            (12, Delete, told(13, Told::Deleted)),
            (14, Delete, told(15, Told::Absent)),
            (16, Update(5), told(17, Told::Failed)),
            (18, Set(6), told(19, Told::Created)),
            (20, Set(7), told(21, Told::Replaced)),
            (22, Get, told(23, Told::Found(7))),
        ];
        assert_eq!(judge_these(&history), Verdict::Explained);
    }

    #[test]
    fn a_stale_read_is_found() {
        assert!(is_impossible(&[
            (0, Set(1), told(1, Told::Created)),
            (2, Set(2), told(3, Told::Replaced)),
            (4, Get, told(5, Told::Found(1))),
        ]));
    }

    #[test]
    fn a_lost_update_is_found() {
        // Both swaps saw the same value, and both were told that they replaced it.
        assert!(is_impossible(&[
            (0, Set(1), told(1, Told::Created)),
            (2, Swap(2, 1), told(9, Told::Replaced)),
            (3, Swap(3, 1), told(8, Told::Replaced)),
        ]));
        // An acknowledged write is simply gone.
        assert!(is_impossible(&[
            (0, Set(1), told(1, Told::Created)),
            (2, Get, told(3, Told::Absent)),
        ]));
    }

    #[test]
    fn two_winners_of_one_create_are_found() {
        assert!(is_impossible(&[
            (0, Create(1), told(9, Told::Created)),
            (1, Create(2), told(8, Told::Created)),
        ]));
    }

    #[test]
    fn a_resurrected_delete_is_found() {
        let first = [
            (0, Set(1), told(1, Told::Created)),
            (2, Delete, told(3, Told::Deleted)),
            (4, Get, told(5, Told::Absent)),
        ];
        assert_eq!(judge_these(&first), Verdict::Explained);
        assert!(is_impossible(&[&first[..], &[(6, Get, told(7, Told::Found(1)))]].concat()));
    }

    #[test]
    fn a_refused_change_must_not_be_seen() {
        let seen = |outcome| [(0, Set(1), outcome), (2, Get, told(3, Told::Found(1)))];
        assert_eq!(judge_these(&seen(Unknown)), Verdict::Explained);
        assert!(is_impossible(&seen(Nothing)));
    }

    #[test]
    fn an_unknown_change_takes_effect_once() {
        let history = [
            (0, Set(1), Unknown),
            (1, Get, told(2, Told::Absent)),
            (3, Get, told(4, Told::Found(1))),
            (5, Set(2), told(6, Told::Replaced)),
        ];
        assert_eq!(judge_these(&history), Verdict::Explained);
        assert!(is_impossible(&[&history[..], &[(7, Get, told(8, Told::Found(1)))]].concat()));
    }

    /// Of many changes whose fate is unknown one was seen, and in the end one that nobody can have made.
    #[test]
    fn many_unknown_changes_are_not_too_many() {
        let asks = |at: u64| [Set(at), Update(at), Create(at), Delete, Swap(at, at / 2)];
        let open = (1..30).map(|at| (at, asks(at)[at as usize % 5], Unknown));
        let mut history: Vec<_> = open.collect();
        for round in 1..=100 {
            let (at, value) = (round * 100, 1000 + round);
            let told = if round == 1 { Told::Created } else { Told::Replaced };
            history.push((at, Set(value), Outcome::Told(at + 30, told)));
            history.push((at + 20, Get, Outcome::Told(at + 60, Told::Found(value))));
            history.push((at + 70, Create(1), Outcome::Told(at + 80, Told::Exists)));
        }
        let end = |told| (11_000, Get, Outcome::Told(11_001, told));
        let explained = [history.clone(), vec![end(Told::Found(15))]].concat();
        assert_eq!(judge_these(&explained), Verdict::Explained);
        assert!(is_impossible(&[history, vec![end(Told::Found(77))]].concat()));
    }

    /// An hour of one client, which hears nothing of some changes: each of them may still come.
    #[test]
    fn a_long_history_with_unknown_changes_is_judged() {
        let mut history = vec![(0, Set(1), Outcome::Told(1, Told::Created))];
        for round in 1..=20_000 {
            let (at, value) = (round * 10, 1 + round);
            let told = Outcome::Told(at + 1, Told::Replaced);
            history.push((at, Set(value), if round % 40 == 0 { Unknown } else { told }));
            let seen = if round % 80 == 40 { round } else { value };
            history.push((at + 2, Get, Outcome::Told(at + 3, Told::Found(seen))));
        }
        assert_eq!(judge_these(&history), Verdict::Explained);
    }

    #[test]
    fn an_etag_names_one_value() {
        let set = |number, etag: &str| Entry {
            ask: Set(number),
            begun: number,
            outcome: told(number, if number == 1 { Told::Created } else { Told::Replaced }),
            etag: Some(etag.into()),
            via: "".into(),
        };
        let verdict = judge("k", &[set(1, "a"), set(2, "a")]);
        assert!(matches!(verdict, Verdict::Impossible(why) if why.contains("same ETag")));
        assert_eq!(judge("k", &[set(1, "a"), set(2, "b")]), Verdict::Explained);
    }

    #[test]
    fn only_the_end_of_a_long_history_is_shown() {
        let sets = (0..500).map(|i| {
            (10 * i, Set(i), told(10 * i + 5, if i == 0 { Told::Created } else { Told::Replaced }))
        });
        let mut history: Vec<_> = sets.collect();
        assert_eq!(judge_these(&history), Verdict::Explained);
        history.insert(250, (2496, Get, told(2497, Told::Found(3))));
        let Verdict::Impossible(why) = judge_these(&history) else { panic!("it is explained") };
        assert!(why.lines().count() <= LINES_SHOWN + 1 && why.contains("Found(3)"), "{why}");
        assert!(!why.contains("Set(251)"), "{why}");
    }

    /// The register as stateright's tester wants it.
    #[derive(Clone)]
    struct Register(State);

    impl SequentialSpec for Register {
        type Op = Ask;
        type Ret = Told;

        fn invoke(&mut self, ask: &Ask) -> Told {
            let told = match (*ask, self.0) {
                (Get, Some(value)) => Told::Found(value),
                (Get | Delete, None) => Told::Absent,
                (Create(_) | Set(_), None) => Told::Created,
                (Create(_), Some(_)) => Told::Exists,
                (Set(_) | Update(_), Some(_)) => Told::Replaced,
                (Update(_), None) => Told::Failed,
                (Swap(_, old), state) if state != Some(old) => Told::Failed,
                (Swap(..), _) => Told::Replaced,
                (DeleteIf(old), state) if state != Some(old) => Told::Failed,
                (Delete | DeleteIf(_), _) => Told::Deleted,
            };
            self.0 = match told {
                Told::Created | Told::Replaced => ask.stores(),
                Told::Deleted => None,
                _ => self.0,
            };
            told
        }
    }

    /// Random short histories, of a register that errs now and then, are judged as by stateright.
    #[test]
    fn another_checker_agrees() {
        let mut random = Random::new(1);
        let mut verdicts = [0, 0];
        for round in 0..4000 {
            let mut tester = LinearizabilityTester::new(Register(None));
            let mut register = Register(None);
            let mut history: Vec<(u64, Ask, Outcome)> = Vec::new();
            let mut busy: BTreeMap<usize, (usize, Told)> = BTreeMap::new();
            let mut clients = [0, 1, 2];
            for now in 0..16 {
                let slot = random.below(3);
                if busy.contains_key(&clients[slot]) && random.chance(0.2) {
                    // It hears of its request no more, and another client comes in its place.
                    clients[slot] = 3 + now as usize;
                    continue;
                }
                let client = clients[slot];
                if let Some((at, told)) = busy.remove(&client) {
                    tester.on_return(client, told).unwrap();
                    history[at].2 = Outcome::Told(now, told);
                } else {
                    let old = random.below(now as usize + 1) as Number;
                    let ask = match random.below(8) {
                        0 => Create(now),
                        1 => Set(now),
                        2 => Update(now),
                        3 => Swap(now, old),
                        4 => Delete,
                        5 => DeleteIf(old),
                        _ => Get,
                    };
                    let told = match (ask, random.chance(0.05)) {
                        (Set(_), true) => Told::Replaced,
                        (Get, true) => Told::Found(old),
                        (Create(_), true) => Told::Created,
                        _ => register.invoke(&ask),
                    };
                    tester.on_invoke(client, ask).unwrap();
                    history.push((now, ask, Unknown));
                    busy.insert(client, (history.len() - 1, told));
                }
            }
            let expected = tester.is_consistent();
            verdicts[usize::from(expected)] += 1;
            let found = judge_these(&history) == Verdict::Explained;
            assert_eq!(found, expected, "round {round}: {history:?}");
        }
        assert!(verdicts.iter().all(|count| *count > 300), "{verdicts:?}");
    }
}
