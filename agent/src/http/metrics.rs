//! `/metrics`: what the agent counts, in the Prometheus text format (version 0.0.4).

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use sky_chord::{Transfer, View};
use warp::http::{Method, StatusCode};
use warp::reply::Response;

use super::problem::Refused;
use super::{Api, ring, text};
use crate::metrics::Counters;

const METHODS: [&str; 6] = ["GET", "HEAD", "PUT", "POST", "DELETE", "other"];

/// Every status that the interface gives; 0 stands for all others.
const STATUSES: [u16; 22] = [
    200, 201, 202, 204, 304, 400, 401, 403, 404, 405, 409, 411, 412, 413, 415, 422, 500, 502, 503,
    504, 507, 0,
];

/// Upper bounds of the latency buckets, in microseconds.
const BOUNDS: [u64; 14] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 5_000_000,
];

/// Requests by method and status, and how long they took by method.
#[derive(Debug, Default)]
pub(super) struct Requests {
    methods: [OneMethod; METHODS.len()],
}

#[derive(Debug, Default)]
struct OneMethod {
    statuses: [AtomicU64; STATUSES.len()],
    /// The last one is for those slower than every bound.
    latencies: [AtomicU64; BOUNDS.len() + 1],
    micros: AtomicU64,
}

/// Where a method is counted.
pub(super) fn method_index(method: &Method) -> usize {
    METHODS.iter().position(|name| method.as_str() == *name).unwrap_or(METHODS.len() - 1)
}

impl Requests {
    /// A request was answered.
    pub(super) fn count(&self, method: usize, status: StatusCode, took: Duration) {
        let Some(method) = self.methods.get(method) else { return };
        let status = STATUSES.iter().position(|known| *known == status.as_u16());
        method.statuses[status.unwrap_or(STATUSES.len() - 1)].fetch_add(1, Relaxed);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.iter().position(|bound| micros <= *bound).unwrap_or(BOUNDS.len());
        method.latencies[bucket].fetch_add(1, Relaxed);
        method.micros.fetch_add(micros, Relaxed);
    }

    fn write(&self, out: &mut String) {
        head(out, "sky_http_requests_total", "counter", "Requests answered.");
        for (name, method) in METHODS.iter().zip(&self.methods) {
            for (status, count) in STATUSES.iter().zip(&method.statuses) {
                let count = count.load(Relaxed);
                if count > 0 {
                    let status = if *status == 0 { "other".to_owned() } else { status.to_string() };
                    let labels = format!("{{method=\"{name}\",status=\"{status}\"}}");
                    sample(out, &format!("sky_http_requests_total{labels}"), count);
                }
            }
        }
        let family = "sky_http_request_duration_seconds";
        head(out, family, "histogram", "Time from the head of a request to its answer.");
        for (name, method) in METHODS.iter().zip(&self.methods) {
            let mut below = 0;
            let bounds = BOUNDS.iter().map(|micros| (*micros as f64 / 1e6).to_string());
            for (bound, count) in bounds.chain(["+Inf".to_owned()]).zip(&method.latencies) {
                below += count.load(Relaxed);
                sample(out, &format!("{family}_bucket{{method=\"{name}\",le=\"{bound}\"}}"), below);
            }
            let sum = method.micros.load(Relaxed) as f64 / 1e6;
            sample(out, &format!("{family}_sum{{method=\"{name}\"}}"), sum);
            sample(out, &format!("{family}_count{{method=\"{name}\"}}"), below);
        }
    }
}

/// `/metrics`.
pub(super) async fn report(api: &Api) -> Result<Response, Refused> {
    let view = ring::view(api).await?;
    let mut out = String::with_capacity(16 << 10);
    api.metrics.write(&mut out);
    write_counters(&mut out, api.handle.counters());
    write_view(&mut out, &view);
    write_transfers(&mut out, &ring::transfers(api).await?);
    Ok(text("text/plain; version=0.0.4; charset=utf-8", out))
}

fn write_counters(out: &mut String, counters: &Counters) {
    let mut total = |name: &str, help: &str, value: &AtomicU64| {
        head(out, name, "counter", help);
        sample(out, name, value.load(Relaxed));
    };
    total(
        "sky_operations_total",
        "Operations of clients that were finished.",
        &counters.operations,
    );
    total("sky_overloaded_total", "Requests turned away: too many waiting.", &counters.overloaded);
    total("sky_messages_received_total", "Messages from peers.", &counters.messages_received);
    total("sky_messages_sent_total", "Messages to peers.", &counters.messages_sent);
    total("sky_messages_dropped_total", "Messages not delivered.", &counters.messages_dropped);
    total("sky_peers_refused_total", "Hellos of peers refused.", &counters.peers_refused);
    total("sky_commits_total", "Commits to disk, one fsync each.", &counters.commits);
    total("sky_writes_total", "Writes in those commits.", &counters.writes);
}

fn write_view(out: &mut String, view: &View) {
    let version = view.load.version.replace(['"', '\\', '\n'], "_");
    head(out, "sky_info", "gauge", "The agent's version.");
    sample(out, &format!("sky_info{{version=\"{version}\"}}"), 1);
    head(out, "sky_keys", "gauge", "Keys held by this agent.");
    sample(out, "sky_keys{mark=\"owned\"}", view.keys.owned);
    sample(out, "sky_keys{mark=\"replica\"}", view.keys.replica);
    let suspected = view.members.iter().filter(|member| member.suspected_ms.is_some()).count();
    let unswept = view.ranges.iter().filter(|range| range.unswept).count();
    let mut gauge = |name: &str, help: &str, value: f64| {
        head(out, name, "gauge", help);
        sample(out, name, value);
    };
    let up = f64::from(u8::from(view.phase == sky_chord::Phase::Up));
    gauge("sky_up", "1 while the agent is a member of the ring.", up);
    gauge("sky_ranges", "Ranges this agent answers for.", view.ranges.len() as f64);
    gauge("sky_ranges_unswept", "Ranges whose data is being brought over.", unswept as f64);
    gauge("sky_members", "Other nodes known.", view.members.len() as f64);
    gauge("sky_members_suspected", "Nodes that do not answer this one.", suspected as f64);
    gauge("sky_disk_bytes", "Bytes of data on disk.", view.load.disk_bytes as f64);
    gauge("sky_disk_full", "1 while nothing new is stored.", u8::from(view.load.disk_full).into());
    gauge("sky_uptime_seconds", "Time since the start.", view.load.uptime_s as f64);
}

fn write_transfers(out: &mut String, transfers: &[Transfer]) {
    let under_way = || transfers.iter().filter(|transfer| transfer.ended_ms.is_none());
    head(out, "sky_transfers", "gauge", "Ranges whose data this agent is bringing to members.");
    sample(out, "sky_transfers", under_way().count());
    let name = "sky_transfer_still_seconds";
    head(out, name, "gauge", "The longest that one of them has got no further.");
    let longest = under_way().map(|transfer| transfer.still_ms).max().unwrap_or_default();
    sample(out, name, longest as f64 / 1000.0);
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn sample(out: &mut String, name: &str, value: impl std::fmt::Display) {
    let _ = writeln!(out, "{name} {value}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_method_and_status() {
        let requests = Requests::default();
        let put = method_index(&Method::PUT);
        requests.count(put, StatusCode::CREATED, Duration::from_micros(300));
        requests.count(put, StatusCode::CREATED, Duration::from_secs(60));
        requests.count(method_index(&Method::PATCH), StatusCode::IM_A_TEAPOT, Duration::ZERO);
        let mut out = String::new();
        requests.write(&mut out);
        for line in [
            "sky_http_requests_total{method=\"PUT\",status=\"201\"} 2",
            "sky_http_requests_total{method=\"other\",status=\"other\"} 1",
            "sky_http_request_duration_seconds_bucket{method=\"PUT\",le=\"0.00025\"} 0",
            "sky_http_request_duration_seconds_bucket{method=\"PUT\",le=\"0.0005\"} 1",
            "sky_http_request_duration_seconds_bucket{method=\"PUT\",le=\"5\"} 1",
            "sky_http_request_duration_seconds_bucket{method=\"PUT\",le=\"+Inf\"} 2",
            "sky_http_request_duration_seconds_sum{method=\"PUT\"} 60.0003",
            "sky_http_request_duration_seconds_count{method=\"PUT\"} 2",
        ] {
            assert!(out.lines().any(|found| found == line), "{line} in {out}");
        }
    }
}
