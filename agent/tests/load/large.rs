//! Values as large as they may be: stored, read and replaced through any agent of a ring, without filling the
//! memory of one, and without keeping others waiting.

use std::time::Duration;

use crate::TURN;
use crate::support::Agent;
use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream;
use reqwest::header::{CONTENT_LENGTH, ETAG, IF_MATCH};
use reqwest::{Method, StatusCode};
use sky_chord::View;

const LARGEST: usize = sky_api::MAX_VALUE_BYTES;

/// Bytes that differ from value to value, and from place to place.
fn value(number: u64, length: usize) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// A ring of three that takes the largest values.
async fn ring() -> [Agent; 3] {
    let most = LARGEST.to_string();
    let first = Agent::start(&["--max-value-bytes", &most]).await;
    let join = first.address();
    let arguments = ["--max-value-bytes", &most, "--join", &join];
    let (second, third) = tokio::join!(Agent::start(&arguments), Agent::start(&arguments));
    let ring = [first, second, third];
    // From here on the owners of keys stay the same.
    for agent in &ring {
        let knows = async || {
            let view: View = agent.get("/ring").send().await.unwrap().json().await.unwrap();
            view.members.len()
        };
        while knows().await < 2 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    ring
}

#[tokio::test]
async fn the_largest_value_goes_through_any_agent() {
    let _turn = TURN.lock().await;
    let ring = ring().await;
    let (one, other) = (value(1, LARGEST), value(2, LARGEST));
    let stored = ring[0].put("/kv/large", one.clone()).send().await.unwrap();
    assert_eq!(stored.status(), StatusCode::CREATED);
    let etag = stored.headers()[ETAG].clone();
    for agent in &ring {
        let read = agent.get("/kv/large").send().await.unwrap();
        assert_eq!((read.status(), &read.headers()[ETAG]), (StatusCode::OK, &etag));
        assert!(read.bytes().await.unwrap() == one, "other bytes");
    }
    let head = ring[1].request(Method::HEAD, "/kv/large").send().await.unwrap();
    assert_eq!(head.headers()[CONTENT_LENGTH], LARGEST.to_string().as_str());
    let replace = |agent: &Agent| agent.put("/kv/large", other.clone()).header(IF_MATCH, &etag);
    assert_eq!(replace(&ring[2]).send().await.unwrap().status(), StatusCode::OK);
    assert_eq!(replace(&ring[1]).send().await.unwrap().status(), StatusCode::PRECONDITION_FAILED);
    let read = ring[0].get("/kv/large").send().await.unwrap();
    assert!(read.bytes().await.unwrap() == other, "other bytes");

    let too_large = ring[0].put("/kv/large", vec![0; LARGEST + 1]).send().await.unwrap();
    assert_eq!(too_large.status(), StatusCode::PAYLOAD_TOO_LARGE);
    let gone = ring[1].request(Method::DELETE, "/kv/large").send().await.unwrap();
    assert_eq!(gone.status(), StatusCode::NO_CONTENT);
    let read = ring[2].get("/kv/large").send().await.unwrap();
    assert_eq!(read.status(), StatusCode::NOT_FOUND);
}

/// Whoever joins gets all its values, and meanwhile everybody is answered.
#[tokio::test]
async fn the_largest_values_are_read_while_a_node_joins() {
    let _turn = TURN.lock().await;
    const VALUES: u64 = 4;
    let ring = ring().await;
    for number in 0..VALUES {
        let path = format!("/kv/large/{number}");
        let stored = ring[0].put(&path, value(number, LARGEST)).send().await.unwrap();
        assert_eq!(stored.status(), StatusCode::CREATED, "{path}");
    }
    let (most, join) = (LARGEST.to_string(), ring[0].address());
    let newcomer = Agent::start(&["--max-value-bytes", &most, "--join", &join]).await;
    let is_settled = async || {
        let view: View = newcomer.get("/ring").send().await.unwrap().json().await.unwrap();
        let has_part = view.ranges.len() == 3;
        has_part && view.ranges.iter().all(|range| !range.unswept && range.lagging.is_empty())
    };
    let mut read = 0;
    while read < 2 * VALUES || !is_settled().await {
        let (agent, number) = (&ring[read as usize % 3], read % VALUES);
        let answer = agent.get(&format!("/kv/large/{number}")).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{number}");
        assert!(answer.bytes().await.unwrap() == value(number, LARGEST), "{number}");
        let path = format!("/kv/small/{read}");
        let stored = agent.put(&path, "small").send().await.unwrap();
        assert_eq!(stored.status(), StatusCode::CREATED, "{path}");
        read += 1;
    }
    for number in 0..VALUES {
        let answer = newcomer.get(&format!("/kv/large/{number}")).send().await.unwrap();
        assert!(answer.bytes().await.unwrap() == value(number, LARGEST), "{number}");
    }
}

/// Sends a request until it is answered. How often it was refused for want of memory.
async fn insist(request: impl Fn() -> reqwest::RequestBuilder) -> (reqwest::Response, u32) {
    let mut refused = 0;
    loop {
        let answer = request().send().await.unwrap();
        let later = [StatusCode::SERVICE_UNAVAILABLE, StatusCode::GATEWAY_TIMEOUT];
        if !later.contains(&answer.status()) {
            return (answer, refused);
        }
        let problem: serde_json::Value = answer.json().await.unwrap();
        refused += u32::from(problem["code"] == "overloaded");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn many_at_once_fill_no_memory_and_stop_nobody() {
    let _turn = TURN.lock().await;
    /// How long values are, how many there are, and how many clients want one at a moment.
    const LENGTH: usize = 8 << 20;
    const VALUES: u64 = 72;
    const AT_ONCE: usize = 36;
    let ring = ring().await;
    let before = ring.each_ref().map(Agent::memory_peak);
    let large = async {
        let stored = stream::iter(0..VALUES).map(|number| {
            let agent = &ring[0];
            async move {
                let bytes = bytes::Bytes::from(value(number, LENGTH));
                let path = format!("/kv/large/{number}");
                let (stored, refused) = insist(|| agent.put(&path, bytes.clone())).await;
                assert!(stored.status().is_success(), "{number}: {}", stored.status());
                refused
            }
        });
        let refused: u32 = stored.buffer_unordered(AT_ONCE).collect::<Vec<_>>().await.iter().sum();
        let read = stream::iter(0..VALUES).map(|number| {
            let agent = &ring[1];
            async move {
                let (read, refused) = insist(|| agent.get(&format!("/kv/large/{number}"))).await;
                assert!(read.bytes().await.unwrap() == value(number, LENGTH), "{number}");
                refused
            }
        });
        let read: u32 = read.buffer_unordered(AT_ONCE).collect::<Vec<_>>().await.iter().sum();
        refused + read
    };
    let mut large = std::pin::pin!(large);
    let (mut small, mut sent) = (0, 0);
    let refused = loop {
        let work = ring.iter().enumerate().map(async |(at, agent)| {
            let path = format!("/kv/small/{}", sent + at);
            let stored = agent.put(&path, "small").send().await.unwrap();
            match stored.status() {
                StatusCode::CREATED => {}
                // No answer in time is promised while the disks are that busy.
                StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => return false,
                other => panic!("{path}: {other}"),
            }
            let read = agent.get(&path).send().await.unwrap();
            match read.status() {
                StatusCode::OK => assert_eq!(read.text().await.unwrap(), "small"),
                StatusCode::SERVICE_UNAVAILABLE => {}
                other => panic!("{path}: {other}"),
            }
            true
        });
        let work = join_all(work);
        tokio::select! {
            refused = &mut large => break refused,
            done = work => {
                small += done.iter().filter(|done| **done).count();
                sent += done.len();
            }
        }
    };
    assert!(small > 10, "only {small} of {sent} small values were stored meanwhile");
    assert!(refused > 0, "there was memory for all: the test is too easy");
    let peaks: Vec<_> =
        ring.iter().zip(before).map(|(agent, before)| agent.memory_peak() - before).collect();
    println!("{small} of {sent} small ones meanwhile, {refused} refusals, {peaks:?} MiB more");
    assert!(peaks.iter().all(|peak| *peak < 1536), "{peaks:?} MiB more than before");
}
