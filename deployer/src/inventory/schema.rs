//! The JSON Schema (draft 2020-12) of an inventory, for editors: from the checker's table of keys, the
//! defaults of the types, and the explanations of the shipped inventory.
//!
//! It takes everything that the checker takes. The checker knows more, such as names given twice.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::Inventory;
use super::edit::SHIPPED;
use super::keys::{Form, Key, Kind, MOST_NODES, SERVERS_NEED, TOP};
use crate::error::Result;

/// The schema of an inventory.
pub fn schema() -> Result<Value> {
    let shipped = Inventory::parse(SHIPPED, "inventory.yaml")?;
    let known = Known {
        explained: explanations(SHIPPED),
        defaults: serde_json::to_value(shipped).unwrap_or_default(),
    };
    let mut schema = known.map("", TOP);
    let needed = SERVERS_NEED.map(|(key, _)| key);
    let rest = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "The inventory of a ring",
        "required": ["nodes"],
        "if": { "properties": { "provider": { "const": "openstack" } }, "required": ["provider"] },
        "then": {
            "properties": { "openstack": { "required": needed } },
            "required": ["openstack"]
        }
    });
    if let (Value::Object(schema), Value::Object(rest)) = (&mut schema, rest) {
        schema.extend(rest);
    }
    Ok(schema)
}

/// What the schema says beyond the table.
struct Known {
    /// By the path of the key.
    explained: BTreeMap<String, String>,
    /// An inventory of defaults.
    defaults: Value,
}

impl Known {
    fn map(&self, path: &str, keys: &[Key]) -> Value {
        let properties = keys.iter().map(|key| {
            let path = joined(path, key.name);
            let mut value = self.value(&path, &key.kind);
            if let (Value::Object(value), Some(text)) = (&mut value, self.explained.get(&path)) {
                value.insert("description".to_owned(), json!(text));
            }
            (key.name.to_owned(), value)
        });
        let properties: Map<String, Value> = properties.collect();
        json!({ "type": "object", "additionalProperties": false, "properties": properties })
    }

    fn value(&self, path: &str, kind: &Kind) -> Value {
        let text = |form: &Form| json!({ "type": "string", "pattern": form.pattern });
        let mut schema = match kind {
            Kind::Map(keys) => return self.map(path, keys),
            Kind::Nodes(keys) => {
                let node = self.map(path, keys);
                return json!({ "oneOf": [
                    { "type": "integer", "minimum": 1, "maximum": MOST_NODES },
                    { "type": "array", "minItems": 1, "items": node }
                ] });
            }
            Kind::Text(form) => text(form),
            Kind::Choice(words) => json!({ "enum": words }),
            Kind::Texts(form) => json!({ "type": "array", "items": text(form) }),
            Kind::Flag => json!({ "type": "boolean" }),
            Kind::Number(least, most) => {
                json!({ "type": "integer", "minimum": least, "maximum": most })
            }
            // Written without quotes, so that YAML decides what it is.
            Kind::Word(words) => {
                let words =
                    words.iter().map(|word| serde_yaml::from_str(word).unwrap_or(json!(word)));
                json!({ "enum": words.collect::<Vec<Value>>() })
            }
        };
        let default = self.defaults.pointer(&format!("/{}", path.replace('.', "/")));
        if let (Value::Object(schema), Some(default)) = (&mut schema, default)
            && !default.is_null()
        {
            schema.insert("default".to_owned(), default.clone());
        }
        schema
    }
}

fn joined(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// The comment above each key, by path. Keys that follow each other without a comment of their own share
/// one; a key that is commented out counts like one that is not.
fn explanations(text: &str) -> BTreeMap<String, String> {
    let mut found: BTreeMap<String, String> = BTreeMap::new();
    let mut section: Option<&Key> = None;
    let mut comment = String::new();
    let mut used = false;
    for line in text.lines() {
        if line.is_empty() {
            comment.clear();
            continue;
        }
        let (indented, content, remark) = uncommented(line);
        let name = content.split_once(':').map(|(name, _)| name);
        let within = section.map_or(&[][..], |key| match key.kind {
            Kind::Map(keys) | Kind::Nodes(keys) => keys,
            _ => &[],
        });
        let key = name.and_then(|name| {
            let keys = if indented { within } else { TOP };
            keys.iter().find(|key| key.name == name)
        });
        match key {
            Some(key) => {
                let path = match section.filter(|_| indented) {
                    Some(section) => joined(section.name, key.name),
                    None => {
                        section = Some(key);
                        key.name.to_owned()
                    }
                };
                let text = found.entry(path).or_default();
                let sentence = comment.trim_end_matches(':').trim_end_matches('.');
                if !sentence.is_empty() {
                    let blank = if text.is_empty() { "" } else { " " };
                    text.push_str(&format!("{blank}{sentence}."));
                }
                used = true;
            }
            None if remark => {
                if std::mem::take(&mut used) {
                    comment.clear();
                }
                let blank = if comment.is_empty() { "" } else { " " };
                comment.push_str(&format!("{blank}{content}"));
            }
            None => {}
        }
    }
    found.retain(|_, text| !text.is_empty());
    found
}

/// Whether a line stands further in, its content without the signs of comments and lists, and whether it
/// is a comment.
fn uncommented(line: &str) -> (bool, &str, bool) {
    let inner = line.trim_start();
    let Some(inside) = inner.strip_prefix('#') else {
        return (inner.len() < line.len(), inner, false);
    };
    let inside = inside.strip_prefix(' ').unwrap_or(inside);
    let content = inside.trim_start_matches([' ', '#', '-']);
    let indented = inner.len() < line.len() || content.len() < inside.len();
    (indented, content, true)
}

#[cfg(test)]
mod tests {
    use super::super::keys::known_keys;
    use super::*;

    #[test]
    fn the_schema_and_the_checker_agree() {
        let mut schemas = boon::Schemas::new();
        let mut compiler = boon::Compiler::new();
        compiler.add_resource("inventory.json", schema().unwrap()).unwrap();
        let index = compiler.compile("inventory.json", &mut schemas).unwrap();
        let fits = |text| {
            let value: Value = serde_yaml::from_str(text).unwrap();
            schemas.validate(&value, index).is_ok()
        };
        for right in [
            SHIPPED,
            "nodes: 1",
            "nodes: [{}]",
            "nodes: [{name: a, id: '1', port: 5000, zone: left}, {name: b}]",
            "{nodes: 3, ring: {name: a-1, replicas: 7, tie_breaker: a, secret: aaaabbbbccccdddd}}",
            "{nodes: 3, agent: {port: 1, max_value_bytes: 67108864, repair_after: 010m, log: json}}",
            "{nodes: 3, provider: openstack, openstack: {image: a b, flavor: ä}}",
            "{nodes: 3, openstack: {cidr: 10.0.0.0/8, dns: ['::1', 1.1.1.1], config_drive: false}}",
            "{nodes: 3, openstack: {allow_from: ['::/0', 10.0.0.0/8], floating_ips: none}}",
            "{nodes: 3, openstack: {agent_image: 'r.example:5000/a@sha256:0', ssh_user: _a}}",
        ] {
            assert!(Inventory::parse(right, "i.yaml").is_ok(), "{right}");
            assert!(fits(right), "the schema refuses {right}");
        }
        for wrong in [
            "{}",
            "5",
            "nodes: 0",
            "nodes: 1001",
            "nodes: '3'",
            "nodes: []",
            "nodes: [5]",
            "nodes: [{nam: a}]",
            "nodes: [{id: xyz}]",
            "nodes: [{id: '00000000000000000000000000000000000000000'}]",
            "nodes: [{port: 0}]",
            "nodes: [{zone: 5}]",
            "{nodes: 3, rign: {}}",
            "{nodes: 3, ring: }",
            "{nodes: 3, ring: {nam: blue}}",
            "{nodes: 3, ring: {name: B}}",
            "{nodes: 3, ring: {name: a-}}",
            "{nodes: 3, ring: {replicas: 4}}",
            "{nodes: 3, ring: {replicas: '3'}}",
            "{nodes: 3, ring: {secret: short}}",
            "{nodes: 3, provider: dokker}",
            "{nodes: 3, provider: openstack}",
            "{nodes: 3, provider: openstack, openstack: {image: a}}",
            "{nodes: 3, agent: {port: many}}",
            "{nodes: 3, agent: {max_value_bytes: 67108865}}",
            "{nodes: 3, agent: {repair_after: 10}}",
            "{nodes: 3, agent: {repair_after: 0s}}",
            "{nodes: 3, agent: {log: [json]}}",
            "{nodes: 3, docker: {image: a}}",
            "{nodes: 3, openstack: 5}",
            "{nodes: 3, openstack: {cloud: ' '}}",
            "{nodes: 3, openstack: {cidr: 10.0.0.0/29}}",
            "{nodes: 3, openstack: {dns: 1.1.1.1}}",
            "{nodes: 3, openstack: {dns: [example.org]}}",
            "{nodes: 3, openstack: {ssh_from: [10.0.0.0]}}",
            "{nodes: 3, openstack: {ssh_user: Root}}",
            "{nodes: 3, openstack: {config_drive: 'true'}}",
            "{nodes: 3, openstack: {root_volume_gb: 0}}",
            "{nodes: 3, openstack: {agent_image: -a}}",
        ] {
            assert!(Inventory::parse(wrong, "i.yaml").is_err(), "{wrong}");
            assert!(!fits(wrong), "the schema takes {wrong}");
        }
    }

    #[test]
    fn every_key_is_in_the_schema_with_its_explanation_and_its_default() {
        fn collect(schema: &Value, found: &mut Vec<(String, Value)>) {
            for (name, value) in schema["properties"].as_object().into_iter().flatten() {
                found.push((name.clone(), value.clone()));
                collect(value, found);
                collect(&value["oneOf"][1]["items"], found);
            }
        }
        let mut found = Vec::new();
        collect(&schema().unwrap(), &mut found);
        let mut names: Vec<String> = found.iter().map(|(name, _)| name.clone()).collect();
        let mut known = known_keys();
        names.sort_unstable();
        known.sort_unstable();
        assert_eq!(names, known);
        for (name, value) in &found {
            let text = value["description"].as_str().unwrap_or_default();
            assert!(text.ends_with('.') && text.len() > 10, "{name}: {text:?}");
        }
        let schema = schema().unwrap();
        let at = |path: &str| schema.pointer(path).unwrap();
        assert_eq!(at("/properties/agent/properties/port/default"), &json!(4321));
        assert_eq!(at("/properties/provider/default"), &json!("auto"));
        assert_eq!(
            at("/properties/nodes/oneOf/1/items/properties/zone/description"),
            "What nodes share when something fails, such as a rack."
        );
        let image = at("/properties/openstack/properties/image/description");
        assert_eq!(image, at("/properties/openstack/properties/flavor/description"));
        assert!(image.as_str().unwrap().starts_with("What the servers are made of."), "{image}");
    }
}
