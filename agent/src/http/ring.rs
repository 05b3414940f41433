//! What an agent tells of the ring: its view, lookups, its own keys, its readiness.

use serde::Deserialize;
use sky_api::{
    Code, HopReport, LocalKeyEntry, LocalKeys, LookupReport, Mark, NodeReport, OwnReport,
    Readiness, RingReport,
};
use sky_chord::{Cursor, LocalKey, Peer, Phase, Reply, Request, Trace, Transfer, View};
use warp::http::StatusCode;
use warp::reply::Response;

use super::problem::Refused;
use super::{Api, dot, etag, json, key, kv, text};

/// The parameters of `/ring`.
#[derive(Debug, Deserialize)]
pub(super) struct RingQuery {
    scope: Option<String>,
}

/// `/ring`: this agent's view, or everyone's.
pub(super) async fn ring(api: &Api, query: RingQuery) -> Result<Response, Refused> {
    match query.scope.as_deref() {
        None => {
            let (view, transfers) = (*view(api).await?, transfers(api).await?);
            Ok(json(&OwnReport { view, transfers }))
        }
        Some("all") => {
            let nodes = views(api).await?;
            let node = |(peer, view)| NodeReport { peer, view };
            Ok(json(&RingReport { nodes: nodes.into_iter().map(node).collect() }))
        }
        Some(other) => {
            let detail = format!("The scope `{other}` is not `all`.");
            Err(Refused::new(Code::BadRequest, detail).hint("Leave it out for this agent's view."))
        }
    }
}

/// `/ring.dot`: the ring for Graphviz.
pub(super) async fn dot(api: &Api) -> Result<Response, Refused> {
    let nodes = views(api).await?;
    Ok(text("text/vnd.graphviz; charset=utf-8", dot::digraph(api.handle.me(), &nodes)))
}

/// The node's view of itself and the ring.
pub(super) async fn view(api: &Api) -> Result<Box<View>, Refused> {
    match api.ask(Request::View).await? {
        Reply::View(view) => Ok(view),
        other => Err(kv::unexpected(&other)),
    }
}

/// The data that the node is bringing to members of ranges.
pub(super) async fn transfers(api: &Api) -> Result<Vec<Transfer>, Refused> {
    match api.ask(Request::Transfers).await? {
        Reply::Transfers(transfers) => Ok(transfers),
        other => Err(kv::unexpected(&other)),
    }
}

async fn views(api: &Api) -> Result<Vec<(Peer, Option<View>)>, Refused> {
    match api.ask(Request::Views).await? {
        Reply::Views(views) => Ok(views),
        other => Err(kv::unexpected(&other)),
    }
}

/// `/lookup/{key}`: the way to the key's owner.
pub(super) async fn lookup(api: &Api, raw: &str) -> Result<Response, Refused> {
    let key = key::decode(raw)?;
    match api.ask(Request::Lookup { target: key.hash() }).await? {
        Reply::LookedUp(trace) => Ok(json(&lookup_report(key.name(), trace?))),
        other => Err(kv::unexpected(&other)),
    }
}

fn lookup_report(key: &str, trace: Trace) -> LookupReport {
    let hops = trace.hops.into_iter().map(|hop| HopReport {
        peer: hop.peer,
        micros: u64::try_from(hop.elapsed.as_micros()).unwrap_or(u64::MAX),
        answered: hop.answered,
    });
    let epoch = trace.config.as_ref().map(|config| config.epoch);
    let mut members = trace.config.map(|config| config.members).unwrap_or_default();
    members.sort_by_key(|peer| peer.node != trace.owner.node);
    LookupReport {
        key: key.to_owned(),
        hash: trace.target.to_string(),
        hops: hops.collect(),
        owner: trace.owner,
        members,
        epoch,
    }
}

/// The parameters of `/local`.
#[derive(Debug, Deserialize)]
pub(super) struct LocalQuery {
    limit: Option<String>,
    cursor: Option<String>,
}

/// `/local`: a page of the keys on this agent's own disk.
pub(super) async fn local(api: &Api, query: LocalQuery) -> Result<Response, Refused> {
    let limit = kv::page_size(query.limit.as_deref(), (100, 1000))?;
    let after = query.cursor.as_deref().map(key::read_cursor).transpose()?;
    let (keys, end) = match api.ask(Request::LocalKeys { after, limit }).await? {
        Reply::LocalKeys { keys, end } => (keys, end),
        other => return Err(kv::unexpected(&other)),
    };
    let last = keys.last().filter(|_| !end).map(|last| Cursor::AfterKey(last.key.clone()));
    let cursor = last.as_ref().map(sky_api::cursor::text);
    Ok(json(&LocalKeys { keys: keys.into_iter().map(local_entry).collect(), cursor }))
}

fn local_entry(local: LocalKey) -> LocalKeyEntry {
    LocalKeyEntry {
        key: local.key.name().to_owned(),
        hash: local.key.hash().to_string(),
        size: local.size,
        etag: etag::text(&local.version),
        digest: format!("{:016x}", local.digest),
        ttl: local.ttl.map(kv::seconds_left),
        mark: if local.owned { Mark::Owned } else { Mark::Replica },
    }
}

/// `/readyz`: 200 when clients can be served, else 503 and why not.
pub(super) async fn readiness(api: &Api) -> Result<Response, Refused> {
    let view = view(api).await?;
    let ready = view.phase == Phase::Up;
    let reason = match view.phase {
        Phase::Waiting | Phase::Joining => api.handle.trouble().unwrap_or_else(|| {
            match view.phase {
                Phase::Waiting => "It belongs to no ring yet.",
                _ => "It is on its way into the ring.",
            }
            .to_owned()
        }),
        Phase::Up if view.load.disk_full => {
            "It is a member of the ring. Its disk is full: it stores nothing new.".to_owned()
        }
        Phase::Up => "It is a member of the ring.".to_owned(),
        Phase::Leaving => "It is handing its data over, to leave the ring.".to_owned(),
        Phase::Drained => "It has left the ring and can be stopped.".to_owned(),
    };
    let mut response = json(&Readiness { ready, reason });
    if !ready {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use sky_chord::{Config, Hop, Id, NodeId};

    use super::*;

    fn peer(position: u64) -> Peer {
        let node = NodeId { position: Id::small(position), incarnation: 1 };
        Peer { node, address: format!("10.0.0.{position}:4321").into() }
    }

    #[test]
    fn a_lookup_names_the_owner_first() {
        let (lo, hi) = (Id::small(1), Id::small(2));
        let members = vec![peer(1), peer(2), peer(3)];
        let config = Config {
            lo,
            hi,
            epoch: 9,
            members,
            prev: Vec::new(),
            forced: false,
            tie_breaker: None,
        };
        let elapsed = Duration::from_micros(250);
        let hops = vec![Hop { peer: peer(3), elapsed, answered: true }];
        let owner = peer(2);
        let report = lookup_report("k", Trace { target: hi, hops, owner, config: Some(config) });
        assert_eq!(report.members, [peer(2), peer(1), peer(3)]);
        assert_eq!((report.epoch, report.hops[0].micros), (Some(9), 250));
    }
}
