//! Everything that a project owns, so that before and after can be compared.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::lab::Cloud;

/// (service, path, key): every kind of thing that a ring is made of.
const KINDS: &[(&str, &str, &str)] = &[
    ("compute", "servers/detail", "servers"),
    ("compute", "os-server-groups", "server_groups"),
    ("compute", "os-keypairs", "keypairs"),
    ("network", "networks", "networks"),
    ("network", "subnets", "subnets"),
    ("network", "routers", "routers"),
    ("network", "ports", "ports"),
    ("network", "security-groups", "security_groups"),
    ("network", "security-group-rules", "security_group_rules"),
    ("network", "floatingips", "floatingips"),
    ("image", "images", "images"),
];
/// What changes although nobody changed anything.
const VOLATILE: &[&str] = &["updated_at", "updated", "revision_number", "links", "progress"];

/// What there is, by kind and name.
pub(crate) type Listing = BTreeMap<String, BTreeSet<String>>;

/// Everything of the project but rings of others, who may use the same lab: their names do not begin
/// with `prefix`.
pub(crate) async fn listing(cloud: &Cloud, prefix: &str) -> Listing {
    let mut all = Vec::new();
    for (service, path, key) in KINDS {
        let path = match *service {
            "network" => format!("{path}?project_id={}", cloud.project),
            "image" => format!("{path}?owner={}", cloud.project),
            _ => (*path).to_owned(),
        };
        for mut item in cloud.list(service, &path, key).await {
            for name in VOLATILE {
                item.as_object_mut().unwrap().remove(*name);
            }
            all.push((*key, item));
        }
    }
    let foreign: Vec<String> = all
        .iter()
        .filter(|(_, item)| is_of_another_ring(item, prefix))
        .filter_map(|(_, item)| item["id"].as_str().map(str::to_owned))
        .collect();
    let mut listing = Listing::new();
    for (kind, item) in all {
        let text = item.to_string();
        let belongs = foreign.iter().any(|id| text.contains(id));
        if !belongs && !is_of_another_ring(&item, prefix) {
            listing.entry(kind.to_owned()).or_default().insert(text);
        }
    }
    listing
}

fn is_of_another_ring(item: &Value, prefix: &str) -> bool {
    let text = item.to_string();
    text.contains("sky.ring=") && !text.contains(prefix)
}

/// What differs, for people.
pub(crate) fn difference(before: &Listing, after: &Listing) -> Vec<String> {
    let kinds: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let none = BTreeSet::new();
    let mut differences = Vec::new();
    for kind in kinds {
        let (old, new) = (before.get(kind).unwrap_or(&none), after.get(kind).unwrap_or(&none));
        differences.extend(old.difference(new).map(|item| format!("{kind}: gone: {item}")));
        differences.extend(new.difference(old).map(|item| format!("{kind}: new: {item}")));
    }
    differences
}
