//! A rehearsal of what would be made: the code that makes it runs as always, and calls that would change
//! something are written down and answered here. Nothing that is not a question leaves this machine.

use std::net::IpAddr;
use std::sync::Mutex;

use reqwest::Method;
use serde_json::{Value, json};

use super::api::Service;

/// Begins the ids of what was only rehearsed.
const MARK: char = '<';

/// The calls of a rehearsal so far.
#[derive(Debug, Default)]
pub(super) struct Rehearsal {
    calls: Mutex<Calls>,
}

#[derive(Debug, Default)]
struct Calls {
    made: Vec<Call>,
    /// How many addresses were given to ports.
    addresses: u16,
    /// The ports, as a cloud would tell of them.
    ports: Vec<Value>,
}

/// A call that was not made.
#[derive(Debug, Clone)]
pub(super) struct Call {
    /// `POST /ports of network`.
    pub(super) what: String,
    pub(super) body: Value,
}

impl Rehearsal {
    /// The answer to a call; none if it is a question that the cloud can be asked.
    pub(super) fn answer(
        &self,
        service: Service,
        method: &Method,
        path: &str,
        body: Option<&Value>,
    ) -> Option<Value> {
        if *method == Method::GET {
            return path.contains(MARK).then(|| about(path));
        }
        let Ok(mut calls) = self.calls.lock() else { return Some(Value::Null) };
        let what = format!("{method} /{path} of {}", service.kind());
        calls.made.push(Call { what, body: body.cloned().unwrap_or_default() });
        let mut answer = body.cloned().unwrap_or_default();
        for (kind, item) in answer.as_object_mut().into_iter().flatten() {
            let Some(fields) = item.as_object_mut() else { continue };
            let name = fields.get("name").and_then(Value::as_str).unwrap_or_default();
            let id = format!("{MARK}id of {kind} {name}").trim_end().to_owned() + ">";
            fields.insert("id".to_owned(), id.into());
            if kind == "port" && item["fixed_ips"][0]["ip_address"].is_null() {
                calls.addresses += 1;
                item["fixed_ips"][0]["ip_address"] = stand_in(calls.addresses).to_string().into();
            }
            if kind == "port" {
                // A port is tagged by a call of its own, with the mark its description begins with.
                let description = item["description"].as_str().unwrap_or_default();
                let tag = description.split(' ').next().unwrap_or_default().to_owned();
                let mut port = item.clone();
                port["tags"] = json!([tag]);
                calls.ports.push(port);
            }
        }
        Some(answer)
    }

    /// The ports that a cloud would tell of now.
    pub(super) fn ports(&self) -> Vec<Value> {
        self.calls.lock().map(|calls| calls.ports.clone()).unwrap_or_default()
    }

    /// The calls since the last time.
    pub(super) fn take(&self) -> Vec<Call> {
        self.calls.lock().map(|mut calls| std::mem::take(&mut calls.made)).unwrap_or_default()
    }
}

/// An address that stands for one the cloud would choose: of TEST-NET-1 and, in large rings, of the
/// network for benchmarks (RFC 5737, RFC 2544).
fn stand_in(number: u16) -> IpAddr {
    match number.to_be_bytes() {
        [0, low] => IpAddr::from([192, 0, 2, low]),
        [high, low] => IpAddr::from([198, 18, high, low]),
    }
}

/// What is known of something that was only rehearsed: it is as it was wanted.
fn about(path: &str) -> Value {
    match path.split_once('/') {
        Some(("volumes", id)) => json!({"volume": {"id": id, "status": "available"}}),
        _ => json!({}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_something_is_answered_here_and_written_down() {
        let rehearsal = Rehearsal::default();
        let post = |path: &str, body: Value| {
            rehearsal.answer(Service::Network, &Method::POST, path, Some(&body)).unwrap()
        };
        let network = post("networks", json!({"network": {"name": "sky"}}));
        assert_eq!(network["network"]["id"], "<id of network sky>");
        let port =
            json!({"port": {"name": "a", "fixed_ips": [{"subnet_id": "<id of subnet sky>"}]}});
        let made = post("ports", port.clone());
        assert_eq!(made["port"]["fixed_ips"][0]["ip_address"], "192.0.2.1");
        assert_eq!(made["port"]["id"], "<id of port a>");
        let given = json!({"port": {"fixed_ips": [{"ip_address": "10.64.0.9"}]}});
        assert_eq!(post("ports", given)["port"]["fixed_ips"][0]["ip_address"], "10.64.0.9");
        for method in [Method::PUT, Method::DELETE] {
            assert!(rehearsal.answer(Service::Compute, &method, "servers/7", None).is_some());
        }
        assert_eq!(rehearsal.ports()[0]["tags"], json!([""]));
        let ask = |path| rehearsal.answer(Service::Volume, &Method::GET, path, None);
        assert_eq!(ask("volumes/detail"), None);
        assert_eq!(ask("volumes/<id of volume a>").unwrap()["volume"]["status"], "available");
        let calls = rehearsal.take();
        assert_eq!(calls.len(), 5);
        assert_eq!((&*calls[1].what, &calls[1].body), ("POST /ports of network", &port));
        assert!(rehearsal.take().is_empty());
        assert_eq!(stand_in(300).to_string(), "198.18.1.44");
    }
}
