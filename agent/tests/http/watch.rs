//! `GET /watch` of a real agent, a ring of one.

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use sky_api::Code;
use sky_api::batch::MAX_OPERATIONS;
use sky_api::watch::MAX_VALUE_BYTES;
use sky_chord::{WATCHED_KEYS_MAX, WATCHES_MAX};

use crate::support::Agent;
use crate::{done, etag, refused};

/// Events as they come.
struct Events {
    chunks: BoxStream<'static, reqwest::Result<bytes::Bytes>>,
    text: String,
    /// The id of the last event.
    id: String,
}

impl Events {
    async fn of(request: RequestBuilder) -> Self {
        let response = done(request, StatusCode::OK).await;
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let chunks = response.bytes_stream().boxed();
        Self { chunks, text: String::new(), id: String::new() }
    }

    async fn begin(agent: &Agent, path: &str) -> Self {
        Self::of(agent.get(path)).await
    }

    /// Goes on where another one ended.
    async fn resume(agent: &Agent, path: &str, id: &str) -> Self {
        Self::of(agent.get(path).header("last-event-id", id)).await
    }

    /// The data of the next event; none at the end.
    async fn next(&mut self) -> Option<Value> {
        loop {
            while let Some((event, rest)) = self.text.split_once("\n\n") {
                let field = |name: &str| {
                    let line = event.lines().find_map(|line| line.strip_prefix(name));
                    line.map(|text| text.trim().to_owned())
                };
                let (id, data) = (field("id:"), field("data:"));
                self.text = rest.to_owned();
                self.id = id.unwrap_or_else(|| self.id.clone());
                if let Some(data) = data {
                    return Some(serde_json::from_str(&data).unwrap());
                }
            }
            let chunk = self.chunks.next().await?.unwrap();
            self.text.push_str(str::from_utf8(&chunk).unwrap());
        }
    }

    /// Those up to `synced`, by their keys, without it.
    async fn until_synced(&mut self) -> Vec<Value> {
        let mut all = Vec::new();
        loop {
            match self.next().await.unwrap() {
                synced if synced == json!({ "event": "synced" }) => break,
                event => all.push(event),
            }
        }
        all.sort_by_key(|event| event["key"].to_string());
        all
    }
}

/// Stores a value and returns its version.
async fn put(agent: &Agent, path: &str, value: impl Into<reqwest::Body>) -> String {
    let request = agent.put(path, value).header("content-type", "text/plain");
    let response = request.send().await.unwrap();
    assert!(response.status().is_success(), "{path}");
    etag(&response)
}

async fn delete(agent: &Agent, path: &str) {
    done(agent.request(Method::DELETE, path), StatusCode::NO_CONTENT).await;
}

fn value(key: &str, etag: &str, size: usize) -> Value {
    json!({
        "event": "value", "key": key, "etag": etag, "size": size, "content_type": "text/plain",
    })
}

#[tokio::test]
async fn what_is_there_is_told_and_then_what_changes() {
    let agent = Agent::start(&[]).await;
    let one = put(&agent, "/kv/a%2F1", "one").await;
    let two = put(&agent, "/kv/a%2F2", "two!").await;
    put(&agent, "/kv/b", "other").await;
    let mut all = Events::begin(&agent, "/watch?prefix=a/").await;
    assert_eq!(all.until_synced().await, [value("a/1", &one, 3), value("a/2", &two, 4)]);
    let mut key = Events::begin(&agent, "/watch/a%2F1?values=true").await;
    let mut told = value("a/1", &one, 3);
    told["value"] = json!({ "text": "one" });
    assert_eq!(key.until_synced().await, [told]);
    let mut nothing = Events::begin(&agent, "/watch/none").await;
    assert_eq!(nothing.until_synced().await, [] as [Value; 0]);

    put(&agent, "/kv/b", "other still").await;
    let three = put(&agent, "/kv/a%2F1", vec![0, 159]).await;
    assert_eq!(all.next().await, Some(value("a/1", &three, 2)));
    let mut told = value("a/1", &three, 2);
    told["value"] = json!({ "base64": "AJ8=" });
    assert_eq!(key.next().await, Some(told));
    let long = put(&agent, "/kv/a%2F1", vec![b'x'; MAX_VALUE_BYTES + 1]).await;
    assert_eq!(key.next().await, Some(value("a/1", &long, MAX_VALUE_BYTES + 1)));
    assert_eq!(all.next().await, Some(value("a/1", &long, MAX_VALUE_BYTES + 1)));
    delete(&agent, "/kv/a%2F2").await;
    let deleted = json!({ "event": "deleted", "key": "a/2", "etag": two });
    assert_eq!(all.next().await, Some(deleted));
    let created = put(&agent, "/kv/none", "now").await;
    assert_eq!(nothing.next().await, Some(value("none", &created, 3)));

    let mut once = Events::begin(&agent, "/watch?follow=false").await;
    let keys = once.until_synced().await;
    assert_eq!(keys.iter().map(|told| &told["key"]).collect::<Vec<_>>(), ["a/1", "b", "none"]);
    assert_eq!(once.next().await, None);

    agent.terminate();
    assert_eq!((all.next().await, key.next().await), (None, None));
    assert!(agent.exited().await.success());
}

#[tokio::test]
async fn a_client_that_comes_back_misses_nothing() {
    let agent = Agent::start(&[]).await;
    put(&agent, "/kv/a1", "one").await;
    put(&agent, "/kv/a2", "two").await;
    let path = "/watch?prefix=a";
    let mut first = Events::begin(&agent, path).await;
    first.until_synced().await;
    let synced = first.id.clone();
    let new = put(&agent, "/kv/a1", "new").await;
    assert_eq!(first.next().await, Some(value("a1", &new, 3)));
    let last = first.id.clone();
    drop(first);

    // Nobody listens meanwhile.
    delete(&agent, "/kv/a2").await;
    let mut again = Events::resume(&agent, path, &last).await;
    assert_eq!(again.next().await.unwrap()["event"], "deleted");
    let mut earlier = Events::resume(&agent, &format!("{path}&follow=false"), &synced).await;
    assert_eq!(earlier.next().await, Some(value("a1", &new, 3)));
    assert_eq!(earlier.next().await.unwrap()["key"], "a2");
    assert_eq!(earlier.next().await, None);
    assert_eq!(again.next().await, None, "a later reader has taken its place");
    let asked = format!("{path}&follow=false&after={last}");
    assert_eq!(Events::begin(&agent, &asked).await.next().await.unwrap()["event"], "deleted");

    // What it names is of another watch, another start, or nothing.
    let missed = json!({ "event": "missed", "why": "other_start" });
    let (_, number) = last.rsplit_once('.').unwrap();
    for (path, id) in [
        ("/watch?prefix=a&follow=false", format!("1.1.1.{number}")),
        ("/watch?prefix=a&follow=false", "what?".to_owned()),
        ("/watch?prefix=a&follow=false&values=true", last.clone()),
        ("/watch/a1?follow=false", last.clone()),
    ] {
        let mut anew = Events::resume(&agent, path, &id).await;
        assert_eq!(anew.next().await.as_ref(), Some(&missed), "{path} {id}");
        let mut told = anew.until_synced().await;
        told[0].as_object_mut().unwrap().remove("value");
        assert_eq!(told, [value("a1", &new, 3)], "{path} {id}");
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_is_told_the_last_value() {
    let agent = Agent::start(&[]).await;
    let mut slow = Events::begin(&agent, "/watch?prefix=k&values=true").await;
    slow.until_synced().await;
    let mut last = String::new();
    // More than the watch may tell before somebody takes it, and than sockets hold.
    for round in 0..20 {
        for key in 0..16 {
            let text = format!("{round} {}", "x".repeat(MAX_VALUE_BYTES - 10));
            last = put(&agent, &format!("/kv/k{key}"), text).await;
        }
    }
    let mut told = 0;
    loop {
        told += 1;
        let event = slow.next().await.unwrap();
        if event["etag"] == *last {
            break;
        }
    }
    assert!(told <= 320, "{told}");
}

#[tokio::test]
async fn what_cannot_be_watched_is_refused() {
    let agent = Agent::start(&[]).await;
    for query in ["follow=1", "values=", "after=5", "after=a.1.1", "prefix=a&prefix=b"] {
        refused(agent.get(&format!("/watch?{query}")), Code::BadRequest).await;
    }
    let long = "x".repeat(1025);
    refused(agent.get(&format!("/watch?prefix={long}")), Code::BadRequest).await;
    refused(agent.get(&format!("/watch/{long}")), Code::InvalidKey).await;
    refused(agent.get("/watch/"), Code::InvalidKey).await;

    let mut watches = Vec::new();
    for _ in 0..WATCHES_MAX {
        watches.push(Events::begin(&agent, "/watch/a").await);
    }
    refused(agent.get("/watch/b"), Code::Overloaded).await;
    // One whose client is gone makes way, as soon as the agent knows.
    watches.pop();
    let mut status = StatusCode::SERVICE_UNAVAILABLE;
    while status == StatusCode::SERVICE_UNAVAILABLE {
        status = agent.get("/watch/b?follow=false").send().await.unwrap().status();
    }
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test]
async fn more_keys_than_a_watch_tells_of_are_refused() {
    let agent = Agent::start(&[]).await;
    let keys: Vec<_> = (0..=WATCHED_KEYS_MAX).collect();
    for keys in keys.chunks(MAX_OPERATIONS) {
        let put = |i| json!({ "op": "put", "key": format!("k{i}"), "value": { "text": "" } });
        let operations: Vec<_> = keys.iter().map(put).collect();
        let batch = json!({ "operations": operations });
        done(agent.request(Method::POST, "/kv:batch").json(&batch), StatusCode::OK).await;
    }
    refused(agent.get("/watch"), Code::TooManyKeys).await;
    let mut some = Events::begin(&agent, "/watch?prefix=k1").await;
    assert_eq!(some.until_synced().await.len(), 1112);
    delete(&agent, "/kv/k2").await;
    let mut all = Events::begin(&agent, "/watch").await;
    assert_eq!(all.until_synced().await.len(), WATCHED_KEYS_MAX);
    put(&agent, "/kv/one-more", "").await;
    let created = all.next().await.unwrap();
    assert_eq!(created["key"], "one-more");
    let ended = all.next().await.unwrap();
    assert_eq!(
        (&ended["event"], &ended["problem"]["code"]),
        (&"ended".into(), &"too_many_keys".into())
    );
    assert_eq!(all.next().await, None);
}
