//! What every provider that reaches into its machines must do with a node that runs.

use std::time::{Duration, Instant, SystemTime};

use futures_util::StreamExt;
use sky_deploy::node::Launch;
use sky_deploy::provider::{LogLine, LogRequest, Provider, Said};

/// How long a line that was written may take to arrive.
const ARRIVES_WITHIN: Duration = Duration::from_secs(20);

async fn log(provider: &dyn Provider, wanted: LogRequest) -> Vec<LogLine> {
    let said: Vec<_> = provider.logs("a", wanted).map(|said| said.unwrap()).collect().await;
    let line = |said| match said {
        Said::Line(line) => line,
        Said::CaughtUp => panic!("only what is followed catches up"),
    };
    said.into_iter().map(line).collect()
}

/// What a node that runs says from inside.
pub(crate) async fn inside(provider: &dyn Provider, launch: &Launch) {
    let all = LogRequest { lines: None, since: None, follow: false };
    let whole = log(provider, all).await;
    let (last, before) = whole.split_last().unwrap();
    assert!(!before.is_empty(), "the log says too little: {whole:?}");
    assert!(whole.iter().all(|line| line.at.is_some()), "{whole:?}");
    assert!(whole.is_sorted_by_key(|line| line.at), "{whole:?}");
    assert_eq!(
        log(provider, LogRequest { lines: Some(1), ..all }).await,
        std::slice::from_ref(last)
    );
    let late = log(provider, LogRequest { since: last.at, ..all }).await;
    assert_eq!(late.last(), Some(last));
    assert!(late.len() < whole.len() && late.iter().all(|line| line.at >= last.at), "{late:?}");
    let tomorrow = SystemTime::now() + Duration::from_hours(24);
    assert!(log(provider, LogRequest { since: Some(tomorrow), ..all }).await.is_empty());

    // What is followed goes on through a restart, and tells nothing twice.
    let mut followed = provider.logs("a", LogRequest { follow: true, ..all });
    for line in &whole {
        assert_eq!(followed.next().await.unwrap().unwrap(), Said::Line(line.clone()));
    }
    assert_eq!(followed.next().await.unwrap().unwrap(), Said::CaughtUp);
    provider.stop("a").await.unwrap();
    provider.start(launch).await.unwrap();
    let begun = Instant::now();
    while log(provider, all).await.len() < whole.len() + 2 {
        assert!(begun.elapsed() < ARRIVES_WITHIN, "the log does not grow");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for line in &log(provider, all).await[whole.len()..] {
        let said = tokio::time::timeout(ARRIVES_WITHIN, followed.next()).await.unwrap();
        assert_eq!(said.unwrap().unwrap(), Said::Line(line.clone()));
    }

    assert!(!provider.renew(launch).await.unwrap(), "it runs this program already");
    assert!(provider.recall().await.unwrap().is_some());
}
