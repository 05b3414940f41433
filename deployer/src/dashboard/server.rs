//! Serving connections. warp's own server would look for the route of a request that names no path, as
//! `GET name HTTP/1.1`, and that panics.

use std::convert::Infallible;
use std::pin::pin;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use warp::reply::Response;
use warp::{Filter, Rejection, Reply};

use super::routes;

/// Pause after a connection could not be accepted.
const RECOVERY: Duration = Duration::from_millis(100);

/// Serves until `stopping` holds true, then lets requests under way finish.
pub(super) async fn serve<R, T>(listener: TcpListener, routes: R, stopping: watch::Receiver<bool>)
where
    R: Filter<Extract = (T,), Error = Rejection> + Clone + Send + Sync + 'static,
    T: Reply + Send + 'static,
{
    let mut connections = JoinSet::new();
    let mut stopped = stopping.clone();
    loop {
        tokio::select! {
            () = until(&mut stopped) => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(serve_connection(stream, routes.clone(), stopping.clone()));
                }
                Err(_) => tokio::time::sleep(RECOVERY).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn serve_connection<R, T>(stream: TcpStream, routes: R, mut stopping: watch::Receiver<bool>)
where
    R: Filter<Extract = (T,), Error = Rejection> + Clone + Send + Sync + 'static,
    T: Reply + Send + 'static,
{
    let routes = TowerToHyperService::new(warp::service(routes));
    let service = service_fn(|request: hyper::Request<Incoming>| {
        let has_path = request.uri().path_and_query().is_some();
        let answer = has_path.then(|| routes.call(request));
        async move {
            match answer {
                Some(answer) => answer.await,
                None => Ok::<Response, Infallible>(routes::no_path()),
            }
        }
    });
    let builder = Builder::new(TokioExecutor::new());
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    // A connection that breaks is the browser's affair.
    tokio::select! {
        _ = connection.as_mut() => {}
        () = until(&mut stopping) => {
            connection.as_mut().graceful_shutdown();
            connection.await.ok();
        }
    }
}

/// Waits until it is time to stop.
async fn until(stopping: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone, which is a reason to stop as well.
    drop(stopping.wait_for(|stop| *stop).await);
}
