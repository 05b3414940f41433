//! The program is killed at every call it makes to the cloud, before or after the call is carried out.
//! Run again, it must come to the same end as without: nothing twice, nothing left behind.
//!
//! What was left of a killed run is all that the next one can know. So of several runs that left the
//! same, one is carried on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use super::cloud::State;
use super::deploy::{Ran, Site};
use super::faults::{Effect, Rule, When};

/// How many rings are worked on at once.
const AT_ONCE: usize = 4;
/// How many crashes are enough where nobody waits for all of them.
const FEW: usize = 12;
const NODES: usize = 3;

/// Everything a ring can have.
fn site() -> Site {
    Site::new(NODES).with(json!({
        "floating_ips": "all", "allow_from": ["127.0.0.0/8"], "data_volume_gb": 1,
        // One for each: of equally good ways to share fewer, an interruption may choose another.
        "availability_zones": ["left", "right", "nova"],
    }))
}

/// What there is in the cloud without what differs between equal clouds: ids become names.
pub(crate) fn portrait(state: &State) -> Vec<String> {
    const CHANGING: &[&str] = &[
        "id",
        "created",
        "created_at",
        "ip_address",
        "fixed_ip_address",
        "floating_ip_address",
        "hostId",
        "mac_address",
        "cidr",
        "gateway_ip",
        "_user_data",
        "_looks",
        "_request",
    ];
    fn paint(value: &Value, names: &BTreeMap<String, String>) -> Value {
        match value {
            Value::Object(map) => {
                let kept = map.iter().filter(|(key, _)| !CHANGING.contains(&key.as_str()));
                kept.map(|(key, value)| match key.as_str() {
                    // The key is new each time, its comment says whose it is.
                    "sky.host-key" => (key.clone(), json!("a key")),
                    "public_key" => {
                        (key.clone(), json!(value.as_str().unwrap().rsplit(' ').next()))
                    }
                    _ => (key.clone(), paint(value, names)),
                })
                .collect::<serde_json::Map<_, _>>()
                .into()
            }
            Value::Array(list) => {
                let mut list: Vec<Value> = list.iter().map(|value| paint(value, names)).collect();
                list.sort_by_key(Value::to_string);
                list.into()
            }
            Value::String(text) => json!(names.get(text).unwrap_or(text)),
            other => other.clone(),
        }
    }
    let dump = state.dump();
    let named = dump.iter().flat_map(|(kind, items)| items.iter().map(move |item| (kind, item)));
    let names = named.map(|(kind, item)| {
        let name = format!("<{kind} {} {}>", item["name"], item["description"]);
        (item["id"].as_str().unwrap().to_owned(), name)
    });
    let names: BTreeMap<String, String> = names.collect();
    let items = dump.iter().flat_map(|(kind, items)| {
        items.iter().map(|item| format!("{kind} {}", paint(item, &names))).collect::<Vec<_>>()
    });
    let mut lines: Vec<String> = items.collect();
    lines.sort();
    lines
}

/// What a killed run leaves: in the cloud and on this machine.
fn remains(site: &Site) -> Vec<String> {
    fn files(folder: &std::path::Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries
            .flat_map(|entry| {
                if entry.path().is_dir() {
                    files(&entry.path())
                } else {
                    vec![entry.file_name().into_string().unwrap()]
                }
            })
            .collect()
    }
    let mut all = portrait(&site.cloud.state());
    let mut files = files(&site.home());
    files.sort();
    all.extend(files);
    all
}

/// A run that is killed at its `k`-th call; it may end before.
fn killed(site: &Site, arguments: &[&str], when: When, k: usize) -> Ran {
    site.cloud.rule(Rule::new(when, |_| true, Effect::Kill).after(k));
    let ran = site.run(arguments);
    site.cloud.state().rules.clear();
    assert!(matches!(ran.code, None | Some(0)), "{when:?} call {k}: {ran:?}");
    ran
}

/// At which calls to kill: all of them, after those that change something as well; a spread where it
/// shall be quick.
fn crashes(mutates: &[bool]) -> Vec<(usize, When)> {
    let all = mutates.iter().enumerate().flat_map(|(k, mutates)| {
        let after = mutates.then_some((k, When::After));
        [Some((k, When::Before)), after].into_iter().flatten()
    });
    let all: Vec<_> = all.collect();
    if std::env::var("CI").as_deref() == Ok("true") {
        return all;
    }
    let step = all.len().div_ceil(FEW);
    all.into_iter().step_by(step).collect()
}

/// Does the same for every crash, some at once.
fn for_each(crashes: &[(usize, When)], work: impl Fn(usize, When) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some((k, when)) = crashes.get(next.fetch_add(1, Ordering::Relaxed)) {
                    work(*k, *when);
                }
            });
        }
    });
}

const APPLY: &[&str] = &["apply", "--detach", "--yes"];
const DESTROY: &[&str] = &["destroy", "--yes"];

#[test]
fn an_apply_that_is_killed_anywhere_comes_to_the_same_end() {
    let undisturbed = site();
    let empty = portrait(&undisturbed.cloud.state());
    undisturbed.must(APPLY);
    let (wanted, mutates) = {
        let state = undisturbed.cloud.state();
        let mutates: Vec<bool> = state.calls.iter().map(|call| call.mutates()).collect();
        (portrait(&state), mutates)
    };
    let seen = Mutex::new(BTreeSet::new());
    let (crashes, recovered) = (crashes(&mutates), AtomicUsize::new(0));
    for_each(&crashes, |k, when| {
        let site = site();
        killed(&site, APPLY, when, k);
        let whole = site.cloud.state().all("servers").len() == NODES;
        // Once there are servers, there is more to know than the cloud tells, as time goes on.
        let later = if whole { k / 8 } else { 0 };
        if !seen.lock().unwrap().insert((remains(&site), later)) {
            return;
        }
        recovered.fetch_add(1, Ordering::Relaxed);
        let again = site.run(APPLY);
        let here = format!("killed {when:?} call {k}, {}", site.cloud.state().calls[k].line());
        assert_eq!(again.code, Some(0), "{here}: {again:?}");
        same(&portrait(&site.cloud.state()), &wanted, &here);
        assert_eq!(site.json(&["status"])["right"], true, "{here}");
        assert_eq!(site.run(&["audit"]).code, Some(0), "{here}");
        site.must(DESTROY);
        same(&portrait(&site.cloud.state()), &empty, &here);
        assert!(!site.home().exists(), "{here}");
    });
    assert!(recovered.into_inner() >= crashes.len().min(FEW) / 2);
}

#[test]
fn a_destroy_that_is_killed_anywhere_leaves_nothing_when_it_is_run_again() {
    let make = || {
        let site = site();
        let empty = portrait(&site.cloud.state());
        // The ring is whole now, and nobody needs to wait for its agents.
        let last = Rule::on(When::After, "POST", "/servers", Effect::Kill).after(NODES - 1);
        site.cloud.rule(last);
        site.run(APPLY);
        site.cloud.state().rules.clear();
        assert_eq!(site.cloud.state().all("servers").len(), NODES);
        (site, empty)
    };
    let (undisturbed, _) = make();
    let from = undisturbed.cloud.count();
    undisturbed.must(DESTROY);
    let mutates: Vec<bool> =
        undisturbed.cloud.state().calls[from..].iter().map(|call| call.mutates()).collect();
    let seen = Mutex::new(BTreeSet::new());
    for_each(&crashes(&mutates), |k, when| {
        let (site, empty) = make();
        let from = site.cloud.count();
        killed(&site, DESTROY, when, k);
        if !seen.lock().unwrap().insert(remains(&site)) {
            return;
        }
        let again = site.run(DESTROY);
        let here = site.cloud.state().calls.get(from + k).map(|call| call.line());
        let here = format!("killed {when:?} call {k}, {here:?}");
        assert_eq!(again.code, Some(0), "{here}: {again:?}");
        same(&portrait(&site.cloud.state()), &empty, &here);
        assert!(!site.home().exists(), "{here}");
    });
}

/// Two portraits are the same, or what only one of them has is shown.
pub(crate) fn same(actual: &[String], wanted: &[String], here: &str) {
    let only = |these: &[String], others: &[String]| -> Vec<String> {
        let mut others = others.to_vec();
        let mut only = Vec::new();
        for line in these {
            match others.iter().position(|other| other == line) {
                Some(at) => drop(others.remove(at)),
                None => only.push(line.clone()),
            }
        }
        only
    };
    let (more, missing) = (only(actual, wanted), only(wanted, actual));
    assert!(
        more.is_empty() && missing.is_empty(),
        "{here}\n--- more:\n{}\n--- missing:\n{}",
        more.join("\n"),
        missing.join("\n")
    );
}
