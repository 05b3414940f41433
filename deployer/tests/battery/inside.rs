//! What every provider that reaches into its machines must do with a node that runs.

use futures_util::StreamExt;
use sky_deploy::node::Launch;
use sky_deploy::provider::{LogRequest, Provider};

async fn log(provider: &dyn Provider, lines: Option<usize>) -> String {
    let wanted = LogRequest { lines, follow: false };
    let pieces: Vec<_> = provider.logs("a", wanted).map(|piece| piece.unwrap()).collect().await;
    String::from_utf8(pieces.concat()).unwrap()
}

/// What a node that runs says from inside.
pub(crate) async fn inside(provider: &dyn Provider, launch: &Launch) {
    let whole = log(provider, None).await;
    assert!(whole.lines().count() >= 2, "the log says too little: {whole}");
    assert_eq!(log(provider, Some(1)).await, whole.lines().last().unwrap().to_owned() + "\n");
    let following = LogRequest { lines: Some(1), follow: true };
    let first = provider.logs("a", following).next().await.unwrap().unwrap();
    assert!(whole.contains(std::str::from_utf8(&first).unwrap()));
    assert!(!provider.renew(launch).await.unwrap(), "it runs this program already");
    assert!(provider.recall().await.unwrap().is_some());
}
