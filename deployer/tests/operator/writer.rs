//! Clients that write all the time, and know what was answered.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use reqwest::StatusCode;

/// Clients at work in a thread of their own, each on a key of its own.
pub(crate) struct Writers {
    ended: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    thread: JoinHandle<Written>,
}

/// A write of the values 0, 1, 2, ... to a key: the number is its place in the list.
pub(crate) struct Write {
    /// When it was sent.
    pub(crate) sent: Instant,
    /// When it was answered.
    pub(crate) answered: Instant,
}

/// What was written to each key.
pub(crate) type Written = BTreeMap<String, Vec<Write>>;

/// Runs this until it is done.
pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

impl Writers {
    /// Starts a client for each key `hot/0`, `hot/1`, ...
    pub(crate) fn start(urls: &[String], keys: usize) -> Self {
        let (ended, answered) = <(Arc<AtomicBool>, Arc<AtomicUsize>)>::default();
        let (urls, until, count) = (urls.to_vec(), Arc::clone(&ended), Arc::clone(&answered));
        let thread = std::thread::spawn(move || {
            let clients = (0..keys).map(|key| {
                let url = format!("{}/kv/hot%2F{key}", urls[key % urls.len()]);
                let (until, count) = (Arc::clone(&until), Arc::clone(&count));
                async move { (format!("hot/{key}"), write(&url, &until, &count).await) }
            });
            block_on(join_all(clients)).into_iter().collect()
        });
        Self { ended, answered, thread }
    }

    /// How many writes were answered so far.
    pub(crate) fn answered(&self) -> usize {
        self.answered.load(Ordering::Relaxed)
    }

    /// Ends them.
    pub(crate) fn end(self) -> Written {
        self.ended.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

async fn write(url: &str, ended: &AtomicBool, count: &AtomicUsize) -> Vec<Write> {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut written = Vec::new();
    while !ended.load(Ordering::Relaxed) {
        let sent = Instant::now();
        loop {
            let answer = http.put(url).body(written.len().to_string()).send().await.unwrap();
            match answer.status() {
                // The documented answers while a key's members cannot agree: the same again.
                StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                status => break assert!(status.is_success(), "{answer:?}"),
            }
        }
        count.fetch_add(1, Ordering::Relaxed);
        written.push(Write { sent, answered: Instant::now() });
    }
    written
}
