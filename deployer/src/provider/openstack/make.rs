//! Making and removing one thing so that an interruption or a lost answer leaves neither two of it nor
//! one that nobody finds again.

use std::time::Duration;

use serde_json::{Value, json};

use super::api::{Api, Fault, Service};
use super::marks::Marks;
use super::owned;

/// How long what may have been made is looked for.
const LOOKS: u32 = 5;
/// How often it is looked for.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How often a deletion is tried that something else still stands in the way of.
const DELETE_TRIES: u32 = 12;

/// Makes something of Neutron or Cinder: `item` is its body, with one of our descriptions and what tells
/// it from its like, a name or a port.
pub(super) async fn make(
    api: &Api,
    service: Service,
    collection: &str,
    key: &str,
    item: Value,
) -> Result<Value, Fault> {
    let fault = match api.post(service, collection, json!({key: item})).await {
        Ok(mut made) => return Ok(made[key].take()),
        Err(fault) if fault.unsure() => fault,
        Err(fault) => return Err(fault),
    };
    tracing::warn!(%fault, "looking for what may have been made");
    let plural = format!("{}s", key);
    for _ in 0..LOOKS {
        tokio::time::sleep(LOOK_EVERY).await;
        let found = match service {
            Service::Network => owned::ours(api, collection, &plural).await?,
            _ => api.list(service, &format!("{collection}/detail"), &plural).await?,
        };
        let same = |other: &Value, key: &str| item[key].is_null() || other[key] == item[key];
        let is_it = |other: &Value| {
            other["description"] == item["description"]
                && same(other, "name")
                && same(other, "port_id")
        };
        if let Some(found) = found.into_iter().find(is_it) {
            return Ok(found);
        }
    }
    Err(fault)
}

/// Adds our tag to something of Neutron, for people and other tools.
pub(super) async fn tag(
    api: &Api,
    marks: &Marks,
    collection: &str,
    id: &str,
    tags: &[String],
) -> Result<(), Fault> {
    let tag = marks.tag();
    if tags.contains(&tag) {
        return Ok(());
    }
    let path = format!("{collection}/{id}/tags/{tag}");
    match api.put(Service::Network, &path, Value::Null).await {
        // A cloud without tags, or without them for this kind.
        Err(fault) if fault.is(404) => Ok(()),
        result => result.map(drop),
    }
}

/// Removes something. What still uses it may be on its way out, so a conflict is tried again.
pub(super) async fn remove(api: &Api, service: Service, path: &str) -> Result<(), Fault> {
    let mut tries = 0;
    loop {
        match api.delete(service, path).await {
            Err(fault) if fault.is(409) && tries < DELETE_TRIES => {
                tries += 1;
                tokio::time::sleep(Duration::from_millis(250) * tries).await;
            }
            result => return result,
        }
    }
}
