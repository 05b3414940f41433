//! The HTTP interface of a real agent, a ring of one: every call, and every refusal.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "http/batch.rs"]
mod batch;
#[path = "http/documented.rs"]
mod documented;
#[path = "http/events.rs"]
mod events;
#[allow(dead_code, reason = "each test program uses its own part")]
mod support;
#[path = "http/ttl.rs"]
mod ttl;
#[path = "http/watch.rs"]
mod watch;

use std::collections::BTreeSet;
use std::convert::Infallible;

use futures_util::{StreamExt, stream};
use hyper::body::Body as _;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use reqwest::header::{
    ALLOW, AUTHORIZATION, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE,
    ETAG, HOST, IF_MATCH, IF_NONE_MATCH, ORIGIN, RETRY_AFTER,
};
use reqwest::{Body, Method, RequestBuilder, Response, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::json;
use sky_api::{Code, KeyList, LocalKeys, LookupReport, Mark, Problem, Readiness, RingReport};
use sky_chord::{Phase, View};
use support::Agent;
use tokio::net::TcpStream;

/// Sends a request that must be refused with this code, as a problem.
async fn refused(request: RequestBuilder, code: Code) {
    let expected = StatusCode::from_u16(code.status()).unwrap();
    let response = done(request, expected).await;
    let (status, url) = (code.status(), response.url().clone());
    assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json", "{url}");
    let id = response.headers()[sky_api::header::REQUEST_ID].to_str().unwrap().to_owned();
    let problem: Problem = response.json().await.unwrap();
    assert_eq!((problem.code, problem.status), (code, status), "{url}: {problem:?}");
    assert!(problem.detail.ends_with('.'), "{problem:?}");
    assert_eq!(problem.request_id, Some(id), "{problem:?}");
}

/// Sends a request that must be answered with this status.
async fn done(request: RequestBuilder, status: StatusCode) -> Response {
    let (client, request) = request.build_split();
    let request = request.unwrap();
    let method = request.method().clone();
    let response = client.execute(request).await.unwrap();
    let (found, url) = (response.status(), response.url().clone());
    if found != status {
        panic!("{url}: {found} and not {status}: {}", response.text().await.unwrap());
    }
    documented::check(&method, response).await
}

/// The JSON at a path.
async fn read<T: DeserializeOwned>(agent: &Agent, path: &str) -> T {
    done(agent.get(path), StatusCode::OK).await.json().await.unwrap()
}

fn etag(response: &Response) -> String {
    response.headers()[ETAG].to_str().unwrap().to_owned()
}

/// A body of this size that is sent in chunks, without its length.
fn chunked(size: usize) -> Body {
    let parts = vec![Ok::<_, Infallible>(vec![7; 1000]); size / 1000];
    Body::wrap_stream(stream::iter(parts))
}

#[tokio::test]
async fn a_key_is_created_read_replaced_and_deleted() {
    let agent = Agent::start(&[]).await;
    let get = || agent.get("/kv/greeting");
    let delete = || agent.request(Method::DELETE, "/kv/greeting");
    refused(get(), Code::NotFound).await;
    refused(delete(), Code::NotFound).await;
    let put = || agent.put("/kv/greeting", vec![0, 159, 146, 150]);
    refused(put().header(IF_MATCH, "*"), Code::PreconditionFailed).await;

    let post = || agent.request(Method::POST, "/kv/greeting").body("hello");
    let plain = || post().header(CONTENT_TYPE, "text/plain");
    let first = etag(&done(plain(), StatusCode::CREATED).await);
    refused(plain(), Code::AlreadyExists).await;

    let found = done(get(), StatusCode::OK).await;
    assert_eq!(etag(&found), first);
    assert_eq!(found.headers()[CONTENT_TYPE], "text/plain");
    assert_eq!(found.headers()["x-content-type-options"], "nosniff");
    assert_eq!(found.bytes().await.unwrap(), "hello");
    let head = done(agent.request(Method::HEAD, "/kv/greeting"), StatusCode::OK).await;
    assert_eq!(
        (etag(&head), head.headers()[CONTENT_LENGTH].to_str().unwrap()),
        (first.clone(), "5")
    );
    done(get().header(IF_NONE_MATCH, &first), StatusCode::NOT_MODIFIED).await;
    let any = done(agent.get("/kv/greeting?consistency=any"), StatusCode::OK).await;
    assert_eq!(any.headers()[sky_api::header::CONSISTENCY], "any");

    let second = etag(&done(put().header(IF_MATCH, &first), StatusCode::OK).await);
    assert_ne!(first, second);
    refused(put().header(IF_MATCH, &first), Code::PreconditionFailed).await;
    refused(put().header(IF_NONE_MATCH, "*"), Code::PreconditionFailed).await;
    refused(get().header(IF_MATCH, &first), Code::PreconditionFailed).await;
    let found = done(get().header(IF_NONE_MATCH, &first), StatusCode::OK).await;
    assert_eq!(found.headers()[CONTENT_TYPE], "application/octet-stream");
    assert_eq!(found.bytes().await.unwrap(), [0, 159, 146, 150].as_slice());

    refused(delete().header(IF_MATCH, &first), Code::PreconditionFailed).await;
    let either = format!("{first}, {second}");
    done(delete().header(IF_MATCH, either), StatusCode::NO_CONTENT).await;
    refused(delete(), Code::NotFound).await;
    refused(delete().header(IF_MATCH, "*"), Code::PreconditionFailed).await;
    let third = etag(&done(agent.put("/kv/greeting", ""), StatusCode::CREATED).await);
    assert!(![first, second].contains(&third), "an ETag never comes back");
    assert_eq!(done(get(), StatusCode::OK).await.bytes().await.unwrap(), "");
}

#[tokio::test]
async fn a_retry_with_the_same_idempotency_key_is_answered_and_not_applied_again() {
    let agent = Agent::start(&[]).await;
    let send = |method, id: &str, body: &'static str| {
        let request = agent.request(method, "/kv/k").body(body);
        request.header(sky_api::header::IDEMPOTENCY_KEY, id)
    };
    let created = etag(&done(send(Method::POST, "a", "1"), StatusCode::CREATED).await);
    let again = etag(&done(send(Method::POST, "a", "1"), StatusCode::CREATED).await);
    assert_eq!(created, again);
    done(send(Method::PUT, "b", "2"), StatusCode::OK).await;
    done(send(Method::DELETE, "a", ""), StatusCode::NO_CONTENT).await;
    done(send(Method::DELETE, "a", ""), StatusCode::NO_CONTENT).await;
    done(send(Method::PUT, "c", "3"), StatusCode::CREATED).await;
    done(send(Method::PUT, "b", "2"), StatusCode::OK).await;
    let found = done(agent.get("/kv/k"), StatusCode::OK).await;
    assert_eq!(found.bytes().await.unwrap(), "3", "a late retry changes nothing");
    refused(send(Method::PUT, &"x".repeat(256), ""), Code::BadRequest).await;
}

#[tokio::test]
async fn values_up_to_the_limit_are_stored_however_they_are_sent() {
    let agent = Agent::start(&["--max-value-bytes", "100000"]).await;
    done(agent.put("/kv/whole", vec![7; 100_000]), StatusCode::CREATED).await;
    done(agent.put("/kv/chunked", chunked(100_000)), StatusCode::CREATED).await;
    for path in ["/kv/whole", "/kv/chunked"] {
        let found = done(agent.get(path), StatusCode::OK).await;
        assert_eq!(found.bytes().await.unwrap(), vec![7; 100_000]);
    }
    for body in [vec![7; 100_001].into(), vec![7; 2 << 20].into(), chunked(2 << 20)] {
        refused(agent.put("/kv/big", body), Code::TooLarge).await;
    }
    refused(agent.get("/kv/big"), Code::NotFound).await;
    let packed = agent.put("/kv/packed", "x").header("content-encoding", "gzip");
    refused(packed, Code::UnsupportedMediaType).await;
}

#[tokio::test]
async fn any_utf8_is_a_key_and_what_is_not_is_refused() {
    let agent = Agent::start(&[]).await;
    let longest = "x".repeat(1024);
    for path in ["a/b/c", "/", "a%2Fb%2Fc%20d", "%E2%98%81", "%25", "...", &longest] {
        let put = format!("PUT /kv/{path} HTTP/1.1\r\ncontent-length: 1\r\n");
        assert_eq!(agent.raw(&put, "v").await.0, 201, "{path}");
        assert_eq!(agent.raw(&format!("GET /kv/{path} HTTP/1.1\r\n"), "").await.0, 200, "{path}");
    }
    let same = agent.raw("GET /kv/a%2fb%2fc HTTP/1.1\r\n", "").await;
    assert_eq!(same.0, 200, "a slash may be encoded or not: {}", same.1);
    let longer = "x".repeat(1025);
    for path in ["", ".", "..", "%2e", "%2E.", "%ff", "%", "%4", &longer] {
        let (status, body) = agent.raw(&format!("GET /kv/{path} HTTP/1.1\r\n"), "").await;
        assert_eq!(status, 400, "{path}: {body}");
        let problem: Problem = serde_json::from_str(&body).unwrap();
        assert_eq!(problem.code, Code::InvalidKey, "{path}");
    }
}

#[tokio::test]
async fn a_list_has_every_key_once() {
    let agent = Agent::start(&[]).await;
    let names = (0..250).map(|i| format!("list/{i}")).chain((0..30).map(|i| format!("other/{i}")));
    let puts =
        names.map(|name| done(agent.put(&format!("/kv/{name}"), "value"), StatusCode::CREATED));
    stream::iter(puts).buffer_unordered(16).collect::<Vec<_>>().await;
    done(agent.request(Method::DELETE, "/kv/list/7"), StatusCode::NO_CONTENT).await;

    let mut listed = Vec::new();
    let mut cursor = String::new();
    loop {
        let path = format!("/kv?prefix=list/&limit=100{cursor}");
        let page: KeyList = read(&agent, &path).await;
        assert!(page.keys.len() <= 100);
        listed.extend(page.keys);
        let Some(next) = page.cursor else { break };
        cursor = format!("&cursor={next}");
    }
    let names: BTreeSet<_> = listed.iter().map(|entry| entry.key.clone()).collect();
    assert_eq!((names.len(), listed.len()), (249, 249));
    assert!(listed.iter().all(|entry| entry.size == 5 && entry.key.starts_with("list/")));

    let mut held = BTreeSet::new();
    let mut cursor = String::new();
    loop {
        let page: LocalKeys = read(&agent, &format!("/local?limit=100{cursor}")).await;
        for entry in page.keys {
            assert_eq!((entry.mark, entry.size, entry.digest.len()), (Mark::Owned, 5, 16));
            assert!(held.insert(entry.key), "a key is shown twice");
        }
        let Some(next) = page.cursor else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(held.len(), 279);
    for query in ["limit=0", "limit=1001", "limit=x", "cursor=nonsense", "prefix=a&prefix=b"] {
        refused(agent.get(&format!("/kv?{query}")), Code::BadRequest).await;
    }
}

#[tokio::test]
async fn every_misuse_is_a_problem_with_a_code() {
    let agent = Agent::start(&[]).await;
    for path in ["/nothing", "/kvx", "/kv:batches", "/ring/x", "/page/old/style.css"] {
        refused(agent.get(path), Code::NoSuchPath).await;
    }
    for (method, path, allow) in [
        (Method::PATCH, "/kv/a", "GET, HEAD, PUT, POST, DELETE"),
        (Method::PUT, "/kv", "GET, HEAD"),
        (Method::POST, "/ring", "GET, HEAD"),
        (Method::POST, "/", "GET, HEAD"),
        (Method::DELETE, "/lookup/a", "GET, HEAD"),
        (Method::GET, "/admin/leave", "POST"),
        (Method::GET, "/kv:batch", "POST"),
    ] {
        let response = done(agent.request(method, path), StatusCode::METHOD_NOT_ALLOWED).await;
        assert_eq!(response.headers()[ALLOW], allow, "{path}");
        assert_eq!(response.json::<Problem>().await.unwrap().code, Code::MethodNotAllowed);
    }
    for path in ["/kv/a?consistency=some", "/ring?scope=half", "/ring?scope=all&scope=all"] {
        refused(agent.get(path), Code::BadRequest).await;
    }
    let init = || agent.request(Method::POST, "/admin/init");
    refused(init().body(chunked(1000)), Code::LengthRequired).await;
    let plain = init().header(CONTENT_TYPE, "text/plain").body("{}");
    refused(plain, Code::UnsupportedMediaType).await;
    let broken = init().header(CONTENT_TYPE, "application/json").body("{");
    refused(broken, Code::BadRequest).await;
    refused(init().body(vec![b' '; 5000]), Code::TooLarge).await;
    refused(init().json(&json!({ "ring": "7" })), Code::BadRequest).await;
    let other = json!({ "ring": "0123456789abcdef0123456789abcdef" });
    refused(init().json(&other), Code::OtherRing).await;
    refused(agent.put("/kv/a", "").header(IF_MATCH, "unquoted"), Code::BadRequest).await;
    let post = agent.request(Method::POST, "/kv/a").header(IF_MATCH, "*");
    refused(post, Code::BadRequest).await;
}

#[tokio::test]
async fn other_sites_are_kept_out() {
    let agent = Agent::start(&[]).await;
    let put = |origin: &str| agent.put("/kv/a", "x").header(ORIGIN, origin);
    refused(put("http://evil.example"), Code::ForbiddenOrigin).await;
    refused(put("null"), Code::ForbiddenOrigin).await;
    done(put(&agent.url("")), StatusCode::CREATED).await;
    let rebound = agent.get("/ring").header(HOST, "evil.example");
    refused(rebound, Code::ForbiddenOrigin).await;
    done(agent.get("/ring").header(HOST, "localhost:9"), StatusCode::OK).await;
}

#[tokio::test]
async fn the_agent_tells_about_itself_and_the_ring() {
    let agent = Agent::start(&[]).await;
    done(agent.put("/kv/a", "x"), StatusCode::CREATED).await;
    done(agent.get("/healthz"), StatusCode::OK).await;
    done(agent.request(Method::HEAD, "/healthz"), StatusCode::OK).await;
    let ready: Readiness = read(&agent, "/readyz").await;
    assert!(ready.ready, "{}", ready.reason);
    let view: View = read(&agent, "/ring").await;
    assert_eq!((view.phase, view.keys.owned), (Phase::Up, 1));
    let all: RingReport = read(&agent, "/ring?scope=all").await;
    assert_eq!(all.nodes.len(), 1);
    assert_eq!(all.nodes[0].peer, view.me);
    let lookup: LookupReport = read(&agent, "/lookup/a").await;
    assert_eq!((lookup.owner, lookup.members), (view.me.clone(), vec![view.me.clone()]));
    assert_eq!(lookup.hash, "86f7e437faa5a7fce15d1ddcb9eaeaea377667b8", "SHA-1 of `a`");
    let dot = done(agent.get("/ring.dot"), StatusCode::OK).await.text().await.unwrap();
    assert!(dot.starts_with("digraph ") && dot.contains(&view.me.node.to_string()), "{dot}");
    let metrics = done(agent.get("/metrics"), StatusCode::OK).await.text().await.unwrap();
    for line in [
        "sky_http_requests_total{method=\"PUT\",status=\"201\"} 1",
        "sky_http_request_duration_seconds_count{method=\"PUT\"} 1",
        "sky_operations_total 1",
        "sky_keys{mark=\"owned\"} 1",
        "sky_up 1",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} in {metrics}");
    }
}

#[tokio::test]
async fn every_request_has_an_id() {
    let agent = Agent::start(&[]).await;
    let id = |response: &Response| {
        response.headers()[sky_api::header::REQUEST_ID].to_str().unwrap().to_owned()
    };
    let get = |path: &str, given: &str| agent.get(path).header(sky_api::header::REQUEST_ID, given);
    let missing = done(get("/kv/none", "mine-1"), StatusCode::NOT_FOUND).await;
    assert_eq!(id(&missing), "mine-1");
    assert_eq!(missing.json::<Problem>().await.unwrap().request_id.as_deref(), Some("mine-1"));
    let foreign = get("/ring", "mine-2").header(HOST, "evil.example");
    assert_eq!(id(&done(foreign, StatusCode::FORBIDDEN).await), "mine-2");
    let one = id(&done(get("/healthz", "not fit"), StatusCode::OK).await);
    let other = id(&done(agent.get("/healthz"), StatusCode::OK).await);
    assert!(one != other && one.len() == 16 && other.len() == 16, "{one} {other}");
    let head = agent.request(Method::HEAD, "/kv/none");
    let head = done(head, StatusCode::NOT_FOUND).await;
    assert!(head.headers()[CONTENT_LENGTH].to_str().unwrap().parse::<u32>().unwrap() > 100);
}

/// In HTTP/1 the library leaves it out, in HTTP/2 nobody would.
#[tokio::test]
async fn an_answer_to_head_has_no_body_in_http_2() {
    let agent = Agent::start(&[]).await;
    done(agent.put("/kv/greeting", "hello"), StatusCode::CREATED).await;
    let stream = TcpStream::connect(agent.address()).await.unwrap();
    let shaken = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (mut sender, connection) = shaken.unwrap();
    let connection = tokio::spawn(connection);
    for (path, status, digits) in
        [("/kv/greeting", 200, 1), ("/kv/none", 404, 3), ("/events", 200, 0)]
    {
        let request = hyper::Request::head(agent.url(path));
        let answer = sender.send_request(request.body(String::new()).unwrap()).await.unwrap();
        assert_eq!(answer.status(), status, "{path}");
        let told = answer.headers().get(CONTENT_LENGTH).map(|length| length.to_str().unwrap());
        assert_eq!(told.map_or(0, str::len), digits, "{path}: {told:?}");
        assert!(answer.body().is_end_stream(), "{path}");
    }
    drop(sender);
    connection.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_media_type_is_as_long_as_a_header_may_well_be() {
    let agent = Agent::start(&[]).await;
    let put = |length| agent.put("/kv/a", "x").header(CONTENT_TYPE, "a".repeat(length));
    refused(put(513), Code::BadRequest).await;
    done(put(512), StatusCode::CREATED).await;
}

#[tokio::test]
async fn the_page_is_served_with_a_strict_policy() {
    let agent = Agent::start(&[]).await;
    let page = done(agent.get("/"), StatusCode::OK).await;
    let policy = page.headers()[CONTENT_SECURITY_POLICY].to_str().unwrap().to_owned();
    assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    assert_eq!(page.headers()[CACHE_CONTROL], "no-cache");
    let html = page.text().await.unwrap();
    for path in html.split('"').filter(|text| text.starts_with("/page/")) {
        let file = done(agent.get(path), StatusCode::OK).await;
        assert!(file.headers()[CACHE_CONTROL].to_str().unwrap().contains("immutable"), "{path}");
    }
}

#[tokio::test]
async fn an_agent_without_a_ring_says_so_and_events_tell_of_its_founding() {
    let agent = Agent::spawn(&["--wait-for-init"], Some("sesame")).await;
    let ready = done(agent.get("/readyz"), StatusCode::SERVICE_UNAVAILABLE).await;
    let ready: Readiness = ready.json().await.unwrap();
    assert!(!ready.ready && !ready.reason.is_empty());
    let put = done(agent.put("/kv/a", "x"), StatusCode::SERVICE_UNAVAILABLE).await;
    assert_eq!(put.headers()[RETRY_AFTER], "1");
    assert_eq!(put.json::<Problem>().await.unwrap().code, Code::Unavailable);

    let events = done(agent.get("/events"), StatusCode::OK).await;
    assert_eq!(events.headers()[CONTENT_TYPE], "text/event-stream");
    let ring = "0123456789abcdef0123456789abcdef";
    let init = || agent.request(Method::POST, "/admin/init").json(&json!({ "ring": ring }));
    refused(init(), Code::Unauthorized).await;
    refused(init().header(AUTHORIZATION, "Bearer wrong"), Code::Unauthorized).await;
    let right = || init().header(AUTHORIZATION, "Bearer sesame");
    done(right(), StatusCode::NO_CONTENT).await;
    done(right(), StatusCode::NO_CONTENT).await;

    let mut stream = events.bytes_stream();
    let mut text = String::new();
    while !text.contains("\"event\":\"joined\"") {
        text.push_str(str::from_utf8(&stream.next().await.unwrap().unwrap()).unwrap());
    }
    assert!(text.contains(ring) && text.contains("id:"), "{text}");
    agent.ready().await;
    done(agent.put("/kv/a", "x"), StatusCode::CREATED).await;

    // A stopping agent ends the stream instead of waiting for its reader.
    agent.terminate();
    while stream.next().await.is_some_and(|part| part.is_ok()) {}
    assert!(agent.exited().await.success());
}

#[tokio::test]
async fn an_agent_may_want_the_token_of_every_client() {
    let agent = Agent::spawn(&["--require-token"], Some("open sesame")).await;
    agent.ready().await;
    refused(agent.put("/kv/a", "1"), Code::Unauthorized).await;
    refused(agent.put("/kv/a", "1").bearer_auth("guessed"), Code::Unauthorized).await;
    for path in ["/kv/a", "/kv", "/ring", "/ring?scope=all", "/metrics", "/events", "/lookup/a"] {
        refused(agent.get(path), Code::Unauthorized).await;
    }
    done(agent.put("/kv/a", "1").bearer_auth("open sesame"), StatusCode::CREATED).await;
    let answer = done(agent.get("/kv/a").bearer_auth("open sesame"), StatusCode::OK).await;
    assert_eq!(answer.text().await.unwrap(), "1");
    for path in ["/", "/healthz", "/readyz"] {
        done(agent.get(path), StatusCode::OK).await;
    }
}
