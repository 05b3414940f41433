//! Proof that the judge catches a server that lies. A read with `?consistency=any` is answered from one
//! copy; taken for an ordinary read, it is stale as soon as that copy was cut off from the others.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use sky_api::LookupReport;

use crate::agents::{Agents, BASE};
use crate::clients::{Clients, PROBES, probe_key};
use crate::faults::Nemesis;
use crate::history::{Ask, History, Outcome, Told};
use crate::judge::{Verdict, judge};
use crate::rig::Kind;
use crate::runner::{on_a_runtime, program};
use crate::say;
use crate::schedule::Fault;

/// The node that is cut off.
const ALONE: usize = 2;
/// How long a ring of five may take to become right.
const RIGHT_WITHIN: Duration = Duration::from_secs(60);

pub(crate) fn run() {
    let agents = Agents::start(Kind::Processes, program()).unwrap_or_else(|why| panic!("{why}"));
    let urls = std::array::from_fn(|slot| agents.url(slot));
    let url = agents.url(ALONE);
    let history = Arc::new(History::new());
    let clients = |urls| {
        let (history, board) = (Arc::clone(&history), Arc::clone(&agents.board));
        Clients::new(history, board, urls, Arc::default()).unwrap()
    };
    let honest = clients(urls);
    let lying = clients(std::array::from_fn(|slot| agents.url(slot))).with_reads_of_one_copy();
    let mut nemesis = Nemesis::new(agents, &history);
    assert_eq!(nemesis.wait_until_right(RIGHT_WITHIN).unwrap(), None);

    let held: Vec<String> = (0..PROBES)
        .map(probe_key)
        .filter(|key| {
            let address = url.strip_prefix("http://").unwrap();
            on_a_runtime(members(&url, key)).iter().any(|member| member == address)
        })
        .collect();
    assert!(held.len() > PROBES / BASE, "n{ALONE} holds {held:?}");
    let set = async |key: &String, agent: usize| {
        let ask = Ask::Set(honest.number());
        let (outcome, _) = honest.ask(key, ask, None, &[agent]).await;
        assert!(matches!(outcome, Outcome::Told(..)), "{key} is not stored: {outcome:?}");
    };
    on_a_runtime(async {
        for key in &held {
            set(key, 0).await;
        }
    });
    nemesis.begin(&Fault::Partition(BTreeSet::from([ALONE]))).unwrap();
    on_a_runtime(async {
        for key in &held {
            set(key, 0).await;
        }
    });
    // Asked properly, the one that is cut off refuses.
    on_a_runtime(async {
        let (outcome, _) = honest.ask(&held[0], Ask::Get, None, &[ALONE]).await;
        assert_eq!(outcome, Outcome::Nothing);
    });
    for key in &held {
        let entries = history.keys()[key].clone();
        assert_eq!(judge(key, &entries), Verdict::Explained);
    }
    let mut caught = 0;
    for key in &held {
        let read = lying.ask(key, Ask::Get, None, &[ALONE]);
        let (outcome, _) = on_a_runtime(read);
        let entries = history.keys()[key].clone();
        let is_old = matches!(outcome, Outcome::Told(_, Told::Found(value))
            if entries.iter().rev().find_map(|entry| entry.ask.stores()) != Some(value));
        match judge(key, &entries) {
            Verdict::Impossible(why) => {
                assert!(is_old && why.contains("no order"), "{why}");
                caught += 1;
            }
            other => assert!(!is_old, "{other:?}: {entries:?}"),
        }
    }
    say(&format!("{caught} of {} reads of the copy that was cut off are caught", held.len()));
    assert!(caught > 0, "no read was stale: the test proves nothing");
}

/// The addresses of those who hold a key.
async fn members(agent: &str, key: &str) -> Vec<String> {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let answer = http.get(format!("{agent}/lookup/{key}")).send().await.unwrap();
    let report: LookupReport = answer.json().await.unwrap();
    report.members.iter().map(|member| member.address.to_string()).collect()
}
