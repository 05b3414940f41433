//! One client that asks for more than can be done does not keep others from being served.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use crate::TURN;
use crate::support::Agent;
use reqwest::StatusCode;
use serde_json::{Value, json};

/// Connections of the client that asks for too much; each works on 16 operations of a batch at once.
const CONNECTIONS: usize = 300;
const OPERATIONS: usize = 64;
/// Requests of the other client.
const OTHERS: usize = 15;
/// How many operations of one client may wait: half of all.
const SHARE: usize = 4096;

#[tokio::test]
async fn who_asks_too_much_keeps_nobody_else_waiting() {
    let _turn = TURN.lock().await;
    let agent = Arc::new(Agent::start(&[]).await);
    let (done, refused) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let is_over = Arc::new(AtomicBool::new(false));
    let flood: Vec<_> = (0..CONNECTIONS)
        .map(|connection| {
            let (agent, is_over) = (Arc::clone(&agent), Arc::clone(&is_over));
            let (done, refused) = (Arc::clone(&done), Arc::clone(&refused));
            tokio::spawn(async move {
                let put = |number| json!({"op": "put", "key": format!("{connection}/{number}"), "value": {"text": "v"}});
                let operations: Vec<Value> = (0..OPERATIONS).map(put).collect();
                let body = json!({ "operations": operations });
                while !is_over.load(Relaxed) {
                    let answer = agent.request(reqwest::Method::POST, "/kv:batch").json(&body);
                    let answer: Value = answer.send().await.unwrap().json().await.unwrap();
                    for result in answer["results"].as_array().unwrap() {
                        match result["status"].as_u64().unwrap() {
                            200 | 201 => done.fetch_add(1, Relaxed),
                            503 => refused.fetch_add(1, Relaxed),
                            other => panic!("{other}: {result}"),
                        };
                    }
                }
            })
        })
        .collect();
    while refused.load(Relaxed) == 0 {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        assert!(!flood.iter().any(tokio::task::JoinHandle::is_finished));
    }

    // Another machine, as far as the agent can tell.
    let http = reqwest::Client::builder()
        .no_proxy()
        .local_address(Some(Ipv4Addr::new(127, 0, 0, 2).into()));
    let http = http.build().unwrap();
    // How many operations were carried out so far, of both clients.
    let operations = async || {
        let metrics = http.get(agent.url("/metrics")).send().await.unwrap();
        assert_eq!(metrics.status(), StatusCode::OK);
        let metrics = metrics.text().await.unwrap();
        let count = |name| {
            let line = metrics.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap().trim().parse::<usize>().unwrap()
        };
        count("sky_operations_total ") - count("sky_overloaded_total ")
    };
    let mut overtaken = Vec::new();
    for number in 0..OTHERS {
        let before = operations().await;
        let put =
            http.put(agent.url(&format!("/kv/other/{number}"))).body("v").send().await.unwrap();
        assert_eq!(put.status(), StatusCode::CREATED, "{number}");
        overtaken.push(operations().await - before);
    }
    is_over.store(true, Relaxed);
    for connection in flood {
        connection.await.unwrap();
    }
    overtaken.sort_unstable();
    println!(
        "{} operations done and {} refused; {overtaken:?} while one of the other client",
        done.load(Relaxed),
        refused.load(Relaxed)
    );
    assert!(overtaken[OTHERS / 2] < SHARE, "it waited behind those of the first client");
}
