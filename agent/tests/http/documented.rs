//! Every answer in these tests is one that `/openapi.json` tells of, and every call it tells of is there.

use std::sync::OnceLock;

use reqwest::header::{ALLOW, CONTENT_TYPE};
use reqwest::{Method, Response, ResponseBuilderExt, Url};
use serde_json::Value;
use sky_api::Problem;

use crate::support::Agent;

/// The document of an agent whose clients need the token: it tells of every refusal.
async fn document() -> &'static Value {
    static DOCUMENT: OnceLock<Value> = OnceLock::new();
    if let Some(document) = DOCUMENT.get() {
        return document;
    }
    let agent = Agent::spawn(&["--require-token", "--wait-for-init"], Some("sesame")).await;
    let document = agent.get("/openapi.json").send().await.unwrap().json().await.unwrap();
    DOCUMENT.get_or_init(|| document)
}

/// The calls of a path.
fn calls<'a>(document: &'a Value, path: &str) -> Option<&'a Value> {
    let is_at = |template: &str| match template.split_once('{') {
        Some((start, _)) => path.starts_with(start),
        None => path == template,
    };
    let paths = document["paths"].as_object().unwrap();
    paths.iter().find(|(template, _)| is_at(template)).map(|(_, calls)| calls)
}

/// Gives the answer back if it is documented.
pub(crate) async fn check(method: &Method, response: Response) -> Response {
    let (status, headers, url) =
        (response.status(), response.headers().clone(), response.url().clone());
    let is_problem = headers.get(CONTENT_TYPE).is_some_and(|it| it == "application/problem+json");
    if !is_problem || method == Method::HEAD {
        told(method, &url, status.as_u16(), None).await;
        return response;
    }
    let body = response.bytes().await.unwrap();
    let problem = serde_json::from_slice(&body).unwrap();
    told(method, &url, status.as_u16(), Some(problem)).await;
    let mut whole = warp::http::Response::builder().status(status).url(url).body(body).unwrap();
    *whole.headers_mut() = headers;
    whole.into()
}

async fn told(method: &Method, url: &Url, status: u16, problem: Option<Problem>) {
    let document = document().await;
    let Some(calls) = calls(document, url.path()) else {
        assert_eq!(status, 404, "{url} is not documented");
        return;
    };
    let call = &calls[method.as_str().to_lowercase()];
    if call.is_null() {
        assert_eq!(status, 405, "{method} {url} is not documented");
        return;
    }
    let answer = &call["responses"][status.to_string()];
    assert!(answer.is_object(), "{method} {url} is not documented to answer {status}");
    if let Some(problem) = problem {
        let schema = &answer["content"]["application/problem+json"]["schema"];
        let codes = schema["properties"]["code"]["enum"].as_array().unwrap();
        let code = serde_json::to_value(problem.code).unwrap();
        assert!(codes.contains(&code), "{method} {url} is not documented to answer {code}");
    }
}

#[tokio::test]
async fn every_documented_call_is_there_and_no_other() {
    let agent = Agent::spawn(&["--wait-for-init"], Some("sesame")).await;
    let document: Value = agent.get("/openapi.json").send().await.unwrap().json().await.unwrap();
    let methods = ["GET", "HEAD", "PUT", "POST", "DELETE", "PATCH", "OPTIONS", "TRACE"];
    for (template, calls) in document["paths"].as_object().unwrap() {
        let path = template.replace("{key}", "a").replace(['{', '}'], "");
        let documented = |method: &str| calls.get(method.to_lowercase()).is_some();
        for method in methods {
            let request = agent.request(method.parse().unwrap(), &path);
            let response = request.send().await.unwrap();
            let status = response.status().as_u16();
            assert_eq!(documented(method), status != 405, "{method} {path}: {status}");
            if status == 405 {
                let allow = response.headers()[ALLOW].to_str().unwrap();
                let mut allowed: Vec<_> = allow.split(", ").collect();
                allowed.sort_unstable();
                let mut known: Vec<_> =
                    methods.into_iter().filter(|method| documented(method)).collect();
                known.sort_unstable();
                assert_eq!(allowed, known, "{path}");
            }
            // A part of the page has another name each time it changes.
            let is_there = status != 404 || template.starts_with("/page/");
            assert!(is_there, "{method} {path} is documented, and not there");
        }
    }
}
