//! The house rules that a machine can hold: layering, a module doc in every file, a size limit, and
//! words that have no place in the product.

#![expect(clippy::unwrap_used, reason = "this is test code")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const LINES_MAX: usize = 600;

/// Which workspace packages each package may depend on.
const PACKAGES: &[(&str, &[&str])] = &[
    ("agent/chord", &[]),
    ("agent/api", &["sky-chord"]),
    ("agent", &["sky-api", "sky-chord"]),
    ("deployer", &["sky-agent", "sky-api", "sky-chord"]),
];

/// Everything the protocol may depend on: nothing that does I/O, reads a clock or starts a thread
/// (schemars only with the feature `schema`).
const CHORD_DEPENDENCIES: &[&str] =
    &["bytes", "postcard", "schemars", "serde", "sha1", "thiserror", "xxhash-rust"];

/// Modules of a package from the bottom up: a module may use those of its own line and below.
const CHORD_LAYERS: &[&[&str]] = &[
    &["id", "time", "value"],
    &["config", "record", "message", "request", "view", "event", "settings"],
    &["call", "check"],
    &["context", "timer"],
    &["ring", "fingers", "lookup", "membership", "ranges", "watch"],
    &["node"],
];

/// (files, modules they must not use)
const FORBIDDEN: &[(&str, &[&str])] = &[
    ("agent/src/http", &["rpc", "store"]),
    ("agent/src/rpc", &["http", "store", "driver"]),
    ("agent/src/store", &["http", "rpc", "driver"]),
    ("deployer/src/plan", &["provider", "apply", "commands", "dashboard", "client"]),
    ("deployer/src/inventory", &["provider", "apply", "commands", "dashboard", "client", "plan"]),
    ("deployer/src/converge", &["provider"]),
    ("deployer/src/dashboard", &["provider", "apply", "commands", "plan"]),
    ("deployer/src/provider/process", &["provider::docker"]),
    ("deployer/src/provider/docker", &["provider::process"]),
];

#[test]
fn packages_depend_only_downwards() {
    for (package, allowed) in PACKAGES {
        let manifest = read(&root().join(package).join("Cargo.toml"));
        for name in dependencies(&manifest).iter().filter(|name| name.starts_with("sky-")) {
            assert!(
                allowed.contains(&name.as_str()),
                "{package}/Cargo.toml must not depend on {name}"
            );
        }
    }
    let chord = dependencies(&read(&root().join("agent/chord/Cargo.toml")));
    assert_eq!(chord, CHORD_DEPENDENCIES, "what sky-chord depends on is decided here");
}

#[test]
fn modules_use_only_what_is_below_them() {
    let rank: BTreeMap<&str, usize> = CHORD_LAYERS
        .iter()
        .enumerate()
        .flat_map(|(rank, modules)| modules.iter().map(move |module| (*module, rank)))
        .collect();
    let chord = root().join("agent/chord/src");
    for (path, text) in sources(&chord, &["rs"]) {
        let inside = path.strip_prefix(&chord).unwrap();
        let name = inside.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs");
        if name == "lib" {
            continue;
        }
        let own = *rank.get(name).unwrap_or_else(|| panic!("{name} has no place in CHORD_LAYERS"));
        for used in product_code(&text).split("crate::").skip(1) {
            let used: String =
                used.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
            if let Some(other) = rank.get(used.as_str()) {
                assert!(*other <= own, "{} uses crate::{used}, which is above it", path.display());
            }
        }
    }
    for (files, modules) in FORBIDDEN {
        for (path, text) in sources(&root(), &["rs"]) {
            let relative = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
            if !relative.starts_with(files) {
                continue;
            }
            for module in *modules {
                let used = product_code(&text).contains(&format!("crate::{module}"));
                assert!(!used, "{relative} must not use crate::{module}");
            }
        }
    }
}

#[test]
fn only_one_file_of_the_deployer_knows_the_agent() {
    for (path, text) in sources(&root().join("deployer/src"), &["rs"]) {
        let knows = product_code(&text).contains("sky_agent");
        assert!(!knows || path.ends_with("agent_exe.rs"), "{} uses sky_agent", path.display());
    }
}

#[test]
fn every_file_says_what_it_is_and_is_not_too_long() {
    for (path, text) in sources(&root(), &["rs", "js", "css", "html", "sh"]) {
        let lines = text.lines().count();
        assert!(lines <= LINES_MAX, "{} has {lines} lines, more than {LINES_MAX}", path.display());
        if path.extension().is_some_and(|ending| ending == "rs") {
            assert!(text.starts_with("//!"), "{} has no module doc", path.display());
        }
    }
}

#[test]
fn nothing_unfinished_is_left() {
    // Put together here, or this file would find itself.
    let words =
        ["TO", "FIX", "XX"].into_iter().zip(["DO", "ME", "X"]).map(|(a, b)| format!("{a}{b}"));
    let words: Vec<_> = words.chain([format!("{}!(", "todo"), format!("#[{}", "ignore")]).collect();
    for (path, text) in sources(&root(), &["rs", "js", "css", "html", "sh", "yaml", "md"]) {
        for word in &words {
            assert!(!text.contains(word.as_str()), "{} contains {word}", path.display());
        }
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A file without its comments and its unit tests.
fn product_code(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(text);
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

fn dependencies(manifest: &str) -> Vec<String> {
    let start = manifest.find("[dependencies]").unwrap() + "[dependencies]".len();
    let section = manifest[start..].split("\n[").next().unwrap();
    let name = |line: &str| line.split(['.', '=', ' ']).next().unwrap_or_default().to_owned();
    section.lines().map(name).filter(|name| !name.is_empty() && !name.starts_with('#')).collect()
}

fn sources(folder: &Path, endings: &[&str]) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            found.extend(sources(&path, endings));
        } else if path.extension().and_then(|e| e.to_str()).is_some_and(|e| endings.contains(&e)) {
            let text = read(&path);
            found.push((path, text));
        }
    }
    found.sort();
    found
}
