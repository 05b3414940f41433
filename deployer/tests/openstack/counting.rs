//! Stands between sky-deploy and the services, passes every call on, and remembers it.

use std::fmt;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use reqwest::Url;
use tokio::sync::oneshot;
use warp::Filter;
use warp::http::{HeaderMap, Method, StatusCode};
use warp::path::FullPath;
use warp::reply::Response;

use crate::lab::Cloud;

/// The services that are counted, by their names in clouds.yaml.
pub(crate) const SERVICES: [&str; 3] = ["compute", "network", "image"];

/// One call that was made.
pub(crate) struct Call {
    method: Method,
    path: String,
    status: StatusCode,
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.method, self.path, self.status)
    }
}

impl Call {
    /// Whether it may have changed something.
    pub(crate) fn changes(&self) -> bool {
        self.method != Method::GET
    }
}

/// A door to every service; closed when this is dropped.
pub(crate) struct Doors {
    calls: Arc<Mutex<Vec<Call>>>,
    /// The URLs to use instead of the catalog's.
    pub(crate) urls: Vec<(&'static str, String)>,
    _close: Vec<oneshot::Sender<()>>,
}

impl Doors {
    /// Opens them. They are served by a thread of their own.
    pub(crate) fn open(cloud: &Cloud) -> Self {
        let calls: Arc<Mutex<Vec<Call>>> = Arc::default();
        let (mut urls, mut closers) = (Vec::new(), Vec::new());
        for service in SERVICES {
            let target: Url = cloud.endpoint(service).parse().unwrap();
            let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
            listener.set_nonblocking(true).unwrap();
            let mut url = target.clone();
            url.set_port(Some(listener.local_addr().unwrap().port())).unwrap();
            urls.push((service, url.to_string()));
            let (close, closed) = oneshot::channel();
            closers.push(close);
            let calls = Arc::clone(&calls);
            std::thread::spawn(move || {
                crate::run(async {
                    tokio::select! {
                        () = serve(listener, target, calls) => {}
                        _ = closed => {}
                    }
                });
            });
        }
        Self { calls, urls, _close: closers }
    }

    /// The calls since the last time this was asked.
    pub(crate) fn take(&self) -> Vec<Call> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }
}

async fn serve(listener: std::net::TcpListener, target: Url, calls: Arc<Mutex<Vec<Call>>>) {
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let query = warp::query::raw().map(Some).or(warp::any().map(|| None)).unify();
    let door = warp::method()
        .and(warp::path::full())
        .and(query)
        .and(warp::header::headers_cloned())
        .and(warp::body::bytes())
        .then(move |method, path: FullPath, query: Option<String>, headers, body| {
            let (http, calls, mut url) = (http.clone(), Arc::clone(&calls), target.clone());
            url.set_path(path.as_str());
            url.set_query(query.as_deref());
            async move { pass_on(&http, &calls, method, url, headers, body).await }
        });
    warp::serve(door).incoming(listener).run().await;
}

async fn pass_on(
    http: &reqwest::Client,
    calls: &Mutex<Vec<Call>>,
    method: Method,
    url: Url,
    mut headers: HeaderMap,
    body: Bytes,
) -> Response {
    let path = url.path().to_owned();
    for name in ["host", "connection", "content-length", "transfer-encoding"] {
        headers.remove(name);
    }
    let request = http.request(method.clone(), url).headers(headers).body(body);
    let mut answer = match request.send().await {
        Ok(answer) => {
            let (status, headers) = (answer.status(), answer.headers().clone());
            let mut passed = Response::new(answer.bytes().await.unwrap_or_default().into());
            *passed.status_mut() = status;
            *passed.headers_mut() = headers;
            passed
        }
        Err(error) => {
            let mut failed = Response::new(error.to_string().into());
            *failed.status_mut() = StatusCode::BAD_GATEWAY;
            failed
        }
    };
    for name in ["connection", "content-length", "transfer-encoding"] {
        answer.headers_mut().remove(name);
    }
    calls.lock().unwrap().push(Call { method, path, status: answer.status() });
    answer
}
