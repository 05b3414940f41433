//! What `render` shows is what `apply` then does, call by call; and what `doctor` finds in a cloud.

use std::collections::BTreeMap;
use std::io::Read;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::read::GzDecoder;
use serde_json::{Value, json};

use super::deploy::Site;

/// The kinds of what has an id: as collections, and as `render` writes their ids.
const KINDS: [(&str, &str); 8] = [
    ("networks", "network"),
    ("subnets", "subnet"),
    ("routers", "router"),
    ("security-groups", "security_group"),
    ("os-server-groups", "server_group"),
    ("ports", "port"),
    ("volumes", "volume"),
    ("floatingips", "floatingip"),
];

/// What stands for what the cloud chose, by what it chose.
fn stand_ins(site: &Site, nodes: u8) -> BTreeMap<String, String> {
    let state = site.cloud.state();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut names = BTreeMap::new();
    for (kind, word) in KINDS {
        for item in state.all(kind).iter().filter(|item| item["name"] != "public") {
            let name = text(&item["name"]);
            names.insert(text(&item["id"]), format!("<id of {word} {name}>").replace(" >", ">"));
        }
    }
    for number in 1..=nodes {
        let is_it = |port: &&Value| port["name"] == format!("sky-{number}");
        let port = state.all("ports").iter().find(is_it).unwrap();
        let address = text(&port["fixed_ips"][0]["ip_address"]);
        names.insert(address, format!("192.0.2.{number}"));
    }
    names
}

fn replaced(text: &str, names: &BTreeMap<String, String>) -> String {
    // The longest first, because one address may begin with another.
    let mut names: Vec<_> = names.iter().collect();
    names.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
    names.iter().fold(text.to_owned(), |text, (name, word)| text.replace(*name, word))
}

fn unpacked(user_data: &Value) -> String {
    let bytes = STANDARD.decode(user_data.as_str().unwrap()).unwrap();
    let mut text = String::new();
    GzDecoder::new(&*bytes).read_to_string(&mut text).unwrap();
    text
}

#[test]
fn what_is_rendered_is_what_apply_does() {
    const NODES: u8 = 3;
    let site = Site::new(NODES.into()).with(json!({"floating_ips": "one"}));
    let rendered = site.json(&["render"]);
    assert_eq!(site.cloud.mutations(0), Vec::<String>::new(), "a rehearsal changes something");
    assert!(!site.path("state").exists());
    let parts = rendered["parts"].as_array().unwrap();

    let from = site.cloud.count();
    let made = site.apply();
    assert_eq!(made.code, Some(0), "{made:?}");
    let names = stand_ins(&site, NODES);
    let calls = site.cloud.state().calls[from..].to_vec();
    let secrets = ["secret", "token"].map(|name| {
        let text = std::fs::read_to_string(site.home().join(name)).unwrap();
        (text, format!("<{name}>"))
    });
    let mut texts = BTreeMap::new();
    let mut done: Vec<String> = Vec::new();
    for mut call in calls.into_iter().filter(|call| call.mutates()) {
        // The key pair is made by a library that has words of its own; a host key is told when it is known.
        if call.path.contains("os-keypairs") || call.path.ends_with("/metadata") {
            continue;
        }
        if let Some(server) = call.body.get_mut("server") {
            let name = server["name"].as_str().unwrap().to_owned();
            // The addresses of this cloud are the loopback's, where agents wait less.
            let text = unpacked(&server["user_data"])
                .replace(r"--repair-after\n10\n", r"--repair-after\n120\n");
            server["user_data"] = json!("<user-data, gzipped, in base64>");
            texts.insert(name, replaced(&replaced(&text, &names), &secrets.clone().into()));
        }
        let path = call.path.split_once("/v2").map_or(&*call.path, |(_, path)| path);
        let path = path.split_once('/').map_or(path, |(_, path)| path);
        done.push(replaced(&format!("{} {path} {}", call.method, call.body), &names));
    }
    let mut shown: Vec<String> = Vec::new();
    for part in parts {
        let what = part["what"].as_str().unwrap();
        if what == "user-data" {
            let done = &texts[part["node"].as_str().unwrap()];
            // Keys are not known before, or not shown.
            let is_key = |line: &str| line.contains('<') || line.contains("key");
            let lines = part["text"].as_str().unwrap().lines().filter(|line| !is_key(line));
            let missing: Vec<&str> = lines.filter(|line| !done.contains(line)).collect();
            assert!(missing.is_empty(), "{missing:?} is not in {done}");
        } else if !what.contains("os-keypairs") {
            let (call, _) = what.rsplit_once(" of ").unwrap();
            shown.push(format!("{} {}", call.replacen(" /", " ", 1), part["parameters"]));
        }
    }
    done.sort();
    shown.sort();
    assert_eq!(shown, done, "{rendered:#}");
    assert_eq!(texts.len(), usize::from(NODES));

    // A ring that is there: its nodes are shown, and nothing is done to them.
    let from = site.cloud.count();
    let one = site.json(&["render", "--node", "sky-2"]);
    assert_eq!(site.cloud.mutations(from), Vec::<String>::new());
    let of: Vec<_> = one["parts"].as_array().unwrap().iter().map(|part| &part["node"]).collect();
    assert!(!of.is_empty() && of.iter().all(|node| *node == "sky-2"), "{one:#}");
    let text = site.must(&["render"]);
    let (secret, token) = (&secrets[0].0, &secrets[1].0);
    assert!(!text.contains(secret) && !text.contains(token));
    site.must(&["render", "--with-secrets", "--output", "shown"]);
    let text = std::fs::read_to_string(site.path("shown")).unwrap();
    assert!(text.contains(secret) && text.contains(token), "{text}");
}

#[test]
fn doctor_looks_at_the_cloud() {
    let site = Site::new(3);
    let look = |site: &Site| {
        let report = site.json(&["doctor"]);
        assert_eq!(site.cloud.mutations(0), Vec::<String>::new(), "it changes something");
        let findings = report["findings"].as_array().unwrap().clone();
        move |check: &str, result: &str, words: &str| {
            let is_it = |finding: &Value| {
                finding["check"] == check
                    && finding["result"] == result
                    && finding["detail"].as_str().unwrap().contains(words)
            };
            assert!(findings.iter().any(is_it), "no {check} {result} {words} in {findings:#?}");
        }
    };
    let found = look(&site);
    found("cloud", "ok", "in project");
    found("catalog", "ok", "compute, network, image");
    found("names", "ok", "flavor m1.small, network made by apply");
    found("quota", "ok", "instances: 3 needed");

    // Several mistakes at once, and a quota that is too small.
    site.cloud.state().restrict("instances", 2);
    look(&site)("plan", "problem", "the quota of instances is too small");
    let site = Site::new(1).with(json!({"image": "windows", "flavor": "huge"}));
    let found = look(&site);
    found("names", "problem", "there is no image windows");
    found("names", "problem", "there is no flavor huge");
    let ran = site.command(&["doctor"]).env("OS_PASSWORD", "wrong").output().unwrap();
    let text = String::from_utf8(ran.stdout).unwrap();
    assert_eq!(ran.status.code(), Some(1));
    assert!(text.contains("problem  cloud        cannot log in to"), "{text}");
    assert!(text.contains("ok       fsync") && !text.contains("wrong"), "{text}");
}
