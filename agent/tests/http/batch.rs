//! `POST /kv:batch` of a real agent, a ring of one.

use reqwest::Method;
use reqwest::header::{CONTENT_TYPE, IF_MATCH, ORIGIN};
use serde_json::{Value, json};
use sky_api::batch::{BatchReport, BatchResult, Content, MAX_OPERATIONS};
use sky_api::{Code, Problem};

use crate::support::Agent;

/// The results of these operations.
async fn results(agent: &Agent, operations: Value) -> Vec<BatchResult> {
    let batch = json!({ "operations": operations });
    let answer = agent.request(Method::POST, "/kv:batch").json(&batch).send().await.unwrap();
    let (status, body) = (answer.status(), answer.text().await.unwrap());
    assert_eq!(status, 200, "{body}");
    serde_json::from_str::<BatchReport>(&body).unwrap().results
}

fn codes(results: &[BatchResult]) -> Vec<(u16, Option<Code>)> {
    let code = |result: &BatchResult| (result.status, result.problem.as_ref().map(|p| p.code));
    results.iter().map(code).collect()
}

/// The refusal of a batch as a whole.
async fn refused(agent: &Agent, body: impl Into<reqwest::Body>) -> (u16, Problem) {
    let post = agent.request(Method::POST, "/kv:batch").header(CONTENT_TYPE, "application/json");
    let answer = post.body(body).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

#[tokio::test]
async fn every_operation_is_answered_as_the_single_call_would_be() {
    let agent = Agent::start(&[]).await;
    let made = results(
        &agent,
        json!([
            { "op": "put", "key": "text", "value": { "text": "grüße" }, "content_type": "text/plain" },
            { "op": "put", "key": "bytes/ä", "value": { "base64": "AJ+Slg==" } },
            { "op": "get", "key": "none" },
            { "op": "delete", "key": "none" },
            { "op": "put", "key": "none", "value": { "text": "" }, "if_match": "*" },
            { "op": "put", "key": "text", "value": { "text": "" }, "if_none_match": "*" },
            { "op": "get", "key": ".." },
            { "op": "put", "key": "bad", "value": { "base64": "AA" } },
            { "op": "put", "key": "bad", "value": { "text": "" }, "idempotency_key": "" },
            { "op": "put", "key": "bad", "value": { "text": "" }, "content_type": "a\nb" },
            { "op": "get", "key": "text", "if_match": "unquoted" },
            { "op": "get", "key": "text", "consistency": "some" },
        ]),
    )
    .await;
    let bad = (400, Some(Code::BadRequest));
    let failed = (412, Some(Code::PreconditionFailed));
    let absent = (404, Some(Code::NotFound));
    let expected = [
        (201, None),
        (201, None),
        absent,
        absent,
        failed,
        failed,
        (400, Some(Code::InvalidKey)),
        bad,
        bad,
        bad,
        bad,
        bad,
    ];
    assert_eq!(codes(&made), expected);
    let tag = made[0].etag.clone().unwrap();

    let single = agent.get("/kv/bytes/%C3%A4").send().await.unwrap();
    assert_eq!(single.bytes().await.unwrap(), [0, 159, 146, 150].as_slice());
    let read = results(
        &agent,
        json!([
            { "op": "get", "key": "text", "if_match": tag, "consistency": "any" },
            { "op": "get", "key": "bytes/ä" },
            { "op": "get", "key": "text", "if_none_match": tag },
        ]),
    )
    .await;
    assert_eq!(codes(&read), [(200, None), (200, None), (304, None)]);
    assert_eq!(read[0].value, Some(Content::Text("grüße".to_owned())));
    assert_eq!(read[0].content_type.as_deref(), Some("text/plain"));
    assert_eq!(read[1].value, Some(Content::Base64("AJ+Slg==".to_owned())));
    assert_eq!((&read[2].etag, &read[2].value), (&Some(tag.clone()), &None));

    let put = agent.put("/kv/text", "x").header(IF_MATCH, &tag).send().await.unwrap();
    assert_eq!(put.status(), 200, "tags of a batch are good for single calls");
    let late = results(&agent, json!([{ "op": "delete", "key": "text", "if_match": tag }])).await;
    assert_eq!(codes(&late), [failed]);
    assert!(results(&agent, json!([])).await.is_empty());
}

#[tokio::test]
async fn operations_on_one_key_are_carried_out_in_their_order() {
    let agent = Agent::start(&[]).await;
    let mut operations = Vec::new();
    for round in 0..MAX_OPERATIONS / 4 {
        let key = format!("k{}", round % 20);
        operations.push(json!({ "op": "put", "key": key, "value": { "text": round.to_string() } }));
        operations.push(json!({ "op": "get", "key": key }));
        operations.push(json!({ "op": "delete", "key": key }));
        operations.push(json!({ "op": "get", "key": key }));
    }
    let results = results(&agent, json!(operations)).await;
    assert_eq!(results.len(), MAX_OPERATIONS);
    for (round, four) in results.chunks(4).enumerate() {
        let statuses: Vec<_> = four.iter().map(|result| result.status).collect();
        assert_eq!(statuses, [201, 200, 204, 404], "round {round}");
        assert_eq!(four[1].value, Some(Content::Text(round.to_string())));
    }
}

#[tokio::test]
async fn a_batch_that_is_sent_again_is_applied_once() {
    let agent = Agent::start(&[]).await;
    let operations = json!([
        { "op": "put", "key": "a", "value": { "text": "1" }, "idempotency_key": "once" },
        { "op": "put", "key": "b", "value": { "text": "1" }, "idempotency_key": "once" },
        { "op": "delete", "key": "c", "idempotency_key": "once" },
    ]);
    agent.put("/kv/c", "1").send().await.unwrap();
    let first = results(&agent, operations.clone()).await;
    assert_eq!(codes(&first), [(201, None), (201, None), (204, None)]);
    agent.put("/kv/a", "2").send().await.unwrap();
    assert_eq!(results(&agent, operations).await, first);
    assert_eq!(agent.get("/kv/a").send().await.unwrap().text().await.unwrap(), "2");
    let single = agent.put("/kv/b", "1").header(sky_api::header::IDEMPOTENCY_KEY, "once");
    let tag = single.send().await.unwrap().headers()["etag"].to_str().unwrap().to_owned();
    assert_eq!(Some(tag), first[1].etag, "a single call may be the retry");
}

/// They are not taken for one that is sent again.
#[tokio::test]
async fn changes_of_one_key_under_one_idempotency_key_are_each_applied() {
    let agent = Agent::start(&[]).await;
    let put = |text: &str| json!({ "op": "put", "key": "a", "value": { "text": text }, "idempotency_key": "once" });
    let delete = json!({ "op": "delete", "key": "a", "idempotency_key": "once" });
    let operations = json!([put("1"), put("2"), delete, put("3")]);
    let first = results(&agent, operations.clone()).await;
    assert_eq!(codes(&first), [(201, None), (200, None), (204, None), (201, None)]);
    let read = async || agent.get("/kv/a").send().await.unwrap().text().await.unwrap();
    assert_eq!(read().await, "3");
    agent.put("/kv/a", "4").send().await.unwrap();
    assert_eq!(results(&agent, operations).await, first);
    assert_eq!(read().await, "4", "the batch was applied before");
}

#[tokio::test]
async fn batches_are_bounded() {
    let agent = Agent::start(&["--max-value-bytes", "1000000"]).await;
    let get = json!({ "op": "get", "key": "a" });
    let many = json!({ "operations": vec![get; MAX_OPERATIONS + 1] }).to_string();
    let (status, problem) = refused(&agent, many).await;
    assert_eq!((status, problem.code), (413, Code::TooLarge), "{problem:?}");
    let (status, problem) = refused(&agent, vec![b' '; (4 << 20) + 1]).await;
    assert_eq!((status, problem.code), (413, Code::TooLarge), "{problem:?}");

    let put =
        |key: &str, size| json!({ "op": "put", "key": key, "value": { "text": "x".repeat(size) } });
    let sizes = [put("a", 1_000_000), put("b", 1_000_001)];
    let made = results(&agent, json!(sizes)).await;
    assert_eq!(codes(&made), [(201, None), (413, Some(Code::TooLarge))]);
    // Four values of a million bytes are below the bound, five are not.
    let gets = vec![json!({ "op": "get", "key": "a" }); 5];
    let read = codes(&results(&agent, json!(gets)).await);
    assert_eq!(read.iter().filter(|one| **one == (200, None)).count(), 4);
    assert_eq!(read.iter().filter(|one| **one == (413, Some(Code::TooLarge))).count(), 1);
}

#[tokio::test]
async fn a_batch_that_is_not_understood_is_refused_as_a_whole() {
    let agent = Agent::start(&[]).await;
    let put = r#"{"op":"put","key":"a","value":{"text":"1"}}"#;
    for wrong in [
        String::new(),
        "[]".to_owned(),
        "null".to_owned(),
        "[".repeat(10_000),
        format!(r#"{{"operations":[{put},{{"op":"move","key":"a"}}]}}"#),
        format!(r#"{{"operations":[{put}],"atomic":true}}"#),
    ] {
        let (status, problem) = refused(&agent, wrong.clone()).await;
        assert_eq!((status, problem.code), (400, Code::BadRequest), "{problem:?}");
    }
    assert_eq!(agent.get("/kv/a").send().await.unwrap().status(), 404, "nothing was done");
    let post = || agent.request(Method::POST, "/kv:batch").body(r#"{"operations":[]}"#);
    assert_eq!(post().send().await.unwrap().status(), 200);
    assert_eq!(post().header(CONTENT_TYPE, "text/plain").send().await.unwrap().status(), 415);
    assert_eq!(post().header("content-encoding", "gzip").send().await.unwrap().status(), 415);
    let foreign = post().header(ORIGIN, "http://evil.example").send().await.unwrap();
    assert_eq!(foreign.status(), 403);
}

#[tokio::test]
async fn a_batch_needs_the_token_and_a_ring_as_single_calls_do() {
    let agent = Agent::spawn(&["--require-token", "--wait-for-init"], Some("sesame")).await;
    let batch = json!({ "operations": [{ "op": "put", "key": "a", "value": { "text": "1" } }] });
    let post = || agent.request(Method::POST, "/kv:batch").json(&batch);
    assert_eq!(post().send().await.unwrap().status(), 401);
    let answer = post().bearer_auth("sesame").send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let results = answer.json::<BatchReport>().await.unwrap().results;
    assert_eq!(codes(&results), [(503, Some(Code::Unavailable))]);
}
