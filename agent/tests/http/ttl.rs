//! Values that are kept for a time only, in a real agent, a ring of one.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::json;
use sky_api::batch::BatchReport;
use sky_api::header::TTL;
use sky_api::{Code, KeyList};

use crate::support::Agent;
use crate::{done, read, refused};

#[tokio::test]
async fn a_value_goes_when_its_time_is_over() {
    let agent = Agent::start(&[]).await;
    let put = |key: &str, ttl: &str| {
        agent.request(Method::PUT, &format!("/kv/{key}")).header(TTL, ttl).body(key.to_owned())
    };
    done(put("short", "2"), StatusCode::CREATED).await;
    done(put("long", "3600"), StatusCode::CREATED).await;
    done(agent.request(Method::POST, "/kv/ever").body("ever"), StatusCode::CREATED).await;
    let long = done(agent.get("/kv/long"), StatusCode::OK).await;
    let left: u64 = long.headers()[TTL].to_str().unwrap().parse().unwrap();
    assert!((3590..=3600).contains(&left), "{left}");
    assert!(!done(agent.get("/kv/ever"), StatusCode::OK).await.headers().contains_key(TTL));

    // It is gone sooner or later; an agent on a busy machine may take its time.
    while agent.get("/kv/short").send().await.unwrap().status() != StatusCode::NOT_FOUND {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let listed: KeyList = read(&agent, "/kv?prefix=short").await;
    assert!(listed.keys.is_empty(), "{listed:?}");
    done(agent.get("/kv/long"), StatusCode::OK).await;

    // Written anew without a time, it stays for ever.
    done(agent.request(Method::PUT, "/kv/long").body("now for ever"), StatusCode::OK).await;
    assert!(!done(agent.get("/kv/long"), StatusCode::OK).await.headers().contains_key(TTL));
}

#[tokio::test]
async fn only_whole_seconds_are_a_time() {
    let agent = Agent::start(&[]).await;
    let too_long = (sky_api::MAX_TTL_S + 1).to_string();
    for ttl in ["0", "01", "-1", "+1", "1.5", "", "1h", "99999999999999999999", &too_long] {
        let put = agent.request(Method::PUT, "/kv/a").header(TTL, ttl).body("a");
        refused(put, Code::BadRequest).await;
    }
    refused(agent.get("/kv/a"), Code::NotFound).await;
}

#[tokio::test]
async fn a_batch_takes_and_tells_times() {
    let agent = Agent::start(&[]).await;
    let batch = json!({ "operations": [
        { "op": "put", "key": "a", "value": { "text": "1" }, "ttl": 60 },
        { "op": "get", "key": "a" },
        { "op": "put", "key": "b", "value": { "text": "1" }, "ttl": 0 },
        { "op": "put", "key": "c", "value": { "text": "1" } },
        { "op": "get", "key": "c" },
    ]});
    let report: BatchReport =
        done(agent.request(Method::POST, "/kv:batch").json(&batch), StatusCode::OK)
            .await
            .json()
            .await
            .unwrap();
    let statuses: Vec<_> = report.results.iter().map(|result| result.status).collect();
    assert_eq!(statuses, [201, 200, 400, 201, 200]);
    assert!(report.results[1].ttl.is_some_and(|left| (50..=60).contains(&left)));
    assert_eq!(report.results[4].ttl, None);
}
