//! The second, spanned pass over an inventory: every mistake at once, each with its line and column.
//! (serde_yaml stops at its first error, takes duplicate keys silently, and forgets positions.)

use std::collections::BTreeMap;
use std::net::IpAddr;

use marked_yaml::types::{MarkedMappingNode, MarkedScalarNode};
use marked_yaml::{LoadError, LoaderOptions, Marker, Node, Span};
use sky_chord::Id;

use super::{node_name, parse_duration};
use crate::error::{Error, Problem, Result};

/// What may stand at a key.
enum Kind {
    /// A map with these keys.
    Map(&'static [Key]),
    /// Text for which the function finds no fault.
    Text(fn(&str) -> Option<String>),
    /// A list of texts for which the function finds no fault.
    Texts(fn(&str) -> Option<String>),
    /// Yes or no.
    Flag,
    /// A whole number from the first to the second.
    Number(u64, u64),
    /// One of these words or numbers, written without quotes.
    Word(&'static [&'static str]),
    /// A number of nodes, or a list of maps with these keys.
    Nodes(&'static [Key]),
}

struct Key {
    name: &'static str,
    kind: Kind,
}

const fn key(name: &'static str, kind: Kind) -> Key {
    Key { name, kind }
}

const TOP: &[Key] = &[
    key("ring", Kind::Map(RING)),
    key("provider", Kind::Text(provider)),
    key("nodes", Kind::Nodes(NODE)),
    key("agent", Kind::Map(AGENT)),
    key("docker", Kind::Map(&[])),
    key("openstack", Kind::Map(OPENSTACK)),
];

const RING: &[Key] = &[
    key("name", Kind::Text(name)),
    key("replicas", Kind::Word(&["1", "3", "5", "7"])),
    key("tie_breaker", Kind::Text(name)),
    key("secret", Kind::Text(secret)),
];

const NODE: &[Key] = &[
    key("name", Kind::Text(name)),
    key("id", Kind::Text(id)),
    key("port", Kind::Number(1, 65_535)),
    key("zone", Kind::Text(given)),
];

const AGENT: &[Key] = &[
    key("port", Kind::Number(1, 65_535)),
    key("max_value_bytes", Kind::Number(1, 8 << 20)),
    key("repair_after", Kind::Text(repair_after)),
    key("log", Kind::Text(|text| one_of(text, &["text", "json"]))),
];

const OPENSTACK: &[Key] = &[
    key("cloud", Kind::Text(given)),
    key("image", Kind::Text(given)),
    key("flavor", Kind::Text(given)),
    key("network", Kind::Text(given)),
    key("subnet", Kind::Text(given)),
    key("cidr", Kind::Text(roomy_network)),
    key("dns", Kind::Texts(address)),
    key("router", Kind::Text(given)),
    key("external_network", Kind::Text(given)),
    key("floating_ips", Kind::Text(|text| one_of(text, &["none", "one", "all"]))),
    key("security_group", Kind::Text(given)),
    key("allow_from", Kind::Texts(network)),
    key("ssh_from", Kind::Texts(network)),
    key("keypair", Kind::Text(given)),
    key("ssh_key", Kind::Text(given)),
    key("ssh_user", Kind::Text(user)),
    key("anti_affinity", Kind::Text(|text| one_of(text, &["soft", "hard", "none"]))),
    key("availability_zones", Kind::Texts(given)),
    key("root_volume_gb", Kind::Number(1, 16_384)),
    key("data_volume_gb", Kind::Number(1, 16_384)),
    key("volume_type", Kind::Text(given)),
    key("config_drive", Kind::Flag),
    key("agent_image", Kind::Text(image_reference)),
];

/// What a ring of servers cannot do without, in the section `openstack`, and examples.
pub(super) const SERVERS_NEED: [(&str, &str); 2] = [("image", "debian-12"), ("flavor", "m1.small")];

/// The most nodes of a ring.
pub(super) const MOST_NODES: u64 = 1000;

fn one_of(text: &str, choices: &[&str]) -> Option<String> {
    (!choices.contains(&text)).then(|| format!("must be one of {}", choices.join(", ")))
}

fn provider(text: &str) -> Option<String> {
    one_of(text, &["auto", "process", "docker", "openstack"])
}

pub(super) fn name(text: &str) -> Option<String> {
    let good = (1..=40).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && !text.ends_with('-');
    (!good).then(|| {
        "must be at most 40 lower-case letters, digits and hyphens, beginning with a letter"
            .to_owned()
    })
}

fn secret(text: &str) -> Option<String> {
    let good = text.len() >= 16 && text.bytes().all(|b| b.is_ascii_graphic());
    (!good).then(|| "must be at least 16 printable ASCII characters without blanks".to_owned())
}

fn id(text: &str) -> Option<String> {
    let invalid = text.parse::<Id>().err()?;
    Some(format!("must be a position on the circle: {invalid}"))
}

fn repair_after(text: &str) -> Option<String> {
    let good = text == "auto" || parse_duration(text).is_some_and(|time| !time.is_zero());
    (!good).then(|| "must be auto or a duration with its unit, such as 10s, 2m or 1h".to_owned())
}

fn given(text: &str) -> Option<String> {
    let bad = text.trim().is_empty() || text.chars().any(char::is_control);
    bad.then(|| "must be text, and on one line".to_owned())
}

fn address(text: &str) -> Option<String> {
    text.parse::<IpAddr>().is_err().then(|| "must be an IP address".to_owned())
}

/// A network in CIDR notation (RFC 4632): its first address and the length of its prefix.
fn parse_network(text: &str) -> Option<(IpAddr, u8)> {
    let (first, length) = text.split_once('/')?;
    let (first, length) = (first.parse::<IpAddr>().ok()?, length.parse::<u8>().ok()?);
    let (bits, width) = match first {
        IpAddr::V4(first) => (u128::from(first.to_bits()), 32_u8),
        IpAddr::V6(first) => (first.to_bits(), 128),
    };
    let inside = u32::from(width.checked_sub(length)?);
    let is_first = inside == 0 || bits << (128 - inside) == 0;
    is_first.then_some((first, length))
}

fn network(text: &str) -> Option<String> {
    let what = "must be a network such as 192.0.2.0/24, or 192.0.2.7/32 for one address";
    parse_network(text).is_none().then(|| what.to_owned())
}

fn roomy_network(text: &str) -> Option<String> {
    let good = matches!(parse_network(text), Some((IpAddr::V4(_), 8..=28)));
    (!good).then(|| "must be an IPv4 network from /8 to /28, such as 10.64.0.0/24".to_owned())
}

fn user(text: &str) -> Option<String> {
    let good = text.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && text.len() <= 32
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(&b));
    (!good).then(|| "must be the name of a user, such as debian or ubuntu".to_owned())
}

fn image_reference(text: &str) -> Option<String> {
    let good = !text.is_empty()
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/:@".contains(&b))
        && text.starts_with(|c: char| c.is_ascii_alphanumeric());
    (!good).then(|| "must be the name of an image, such as registry.example/sky-agent:1".to_owned())
}

/// All problems of the inventory `text`, which messages call `file`.
pub(super) fn check(text: &str, file: &str) -> Result<()> {
    let mut checker = Checker { file, problems: Vec::new() };
    let root = checker.load(text).map_err(|problem| Error { problems: vec![problem] })?;
    let top = root.as_mapping();
    if let Some(map) = top {
        checker.map(map, "", TOP);
        if map.get_node("nodes").is_none() {
            checker.at(
                &Span::new_blank(),
                "`nodes` is missing",
                Some("how many? `nodes: 3`".into()),
            );
        }
        checker.nodes_are_distinct(map);
        checker.servers_are_described(map);
    }
    checker.problems.sort_by_key(|(place, _)| *place);
    let problems = checker.problems.into_iter().map(|(_, problem)| problem).collect();
    Error::of(problems).map_or(Ok(()), Err)
}

/// Every key there is, for the test that holds types and checker together.
#[cfg(test)]
pub(super) fn known_keys() -> Vec<String> {
    fn collect(keys: &[Key], found: &mut Vec<String>) {
        for key in keys {
            found.push(key.name.to_owned());
            if let Kind::Map(inner) | Kind::Nodes(inner) = key.kind {
                collect(inner, found);
            }
        }
    }
    let mut found = Vec::new();
    collect(TOP, &mut found);
    found
}

struct Checker<'a> {
    file: &'a str,
    /// With line and column, because they are found in another order than they stand in the file.
    problems: Vec<((usize, usize), Problem)>,
}

impl Checker<'_> {
    fn problem(&self, place: Option<&Marker>, what: &str, hint: Option<String>) -> Problem {
        let (line, column) = place.map_or((1, 1), |at| (at.line(), at.column()));
        let what = format!("{}:{line}:{column}: {what}", self.file);
        Problem { what, causes: Vec::new(), hint }
    }

    fn at(&mut self, span: &Span, what: &str, hint: Option<String>) {
        let place = span.start().map_or((1, 1), |at| (at.line(), at.column()));
        let problem = self.problem(span.start(), what, hint);
        self.problems.push((place, problem));
    }

    /// Reads the text into a tree with positions. Duplicate keys are noted, and renamed so that the
    /// reading can go on: the loader stops at the first one.
    fn load(&mut self, text: &str) -> std::result::Result<Node, Problem> {
        let mut text: Vec<char> = text.chars().collect();
        loop {
            let options =
                LoaderOptions::default().error_on_duplicate_keys(true).prevent_coercion(true);
            let source: String = text.iter().collect();
            let error = match marked_yaml::parse_yaml_with_options(0, source, options) {
                Ok(root) => return Ok(root),
                Err(error) => error,
            };
            let (place, what) = match &error {
                LoadError::DuplicateKey(inner) => {
                    let first = inner.prev_key.span().start().map_or(1, Marker::line);
                    let name = inner.key.as_str();
                    let what = format!("`{name}` is given twice, first in line {first}");
                    self.at(inner.key.span(), &what, Some("keep one of them".to_owned()));
                    let renamed = inner.key.span().start().and_then(|at| {
                        // A quoted key begins after its quote.
                        let quoted =
                            usize::from(matches!(text.get(at.character()), Some('"' | '\'')));
                        text.get_mut(at.character() + quoted)
                    });
                    let mark = char::from_u32(RENAMED + self.problems.len() as u32);
                    if let (Some(letter), Some(mark)) = (renamed, mark) {
                        *letter = mark;
                        continue;
                    }
                    return Err(self.problems.remove(0).1);
                }
                LoadError::TopLevelMustBeMapping(at) | LoadError::TopLevelMustBeSequence(at) => {
                    (at, "an inventory is a map of keys: `nodes: 3`".to_owned())
                }
                LoadError::UnexpectedAnchor(at) => (at, "anchors are not supported".to_owned()),
                LoadError::MappingKeyMustBeScalar(at) => (at, "a key must be text".to_owned()),
                LoadError::UnexpectedTag(at) => (at, "tags are not supported".to_owned()),
                LoadError::ScanError(at, error) => (at, format!("not YAML: {error}")),
            };
            return Err(self.problem(Some(place), &what, None));
        }
    }

    fn map(&mut self, map: &MarkedMappingNode, path: &str, keys: &'static [Key]) {
        for (name, value) in map.iter() {
            let text = name.as_str();
            if text.starts_with(|c| ('\u{e000}'..='\u{f8ff}').contains(&c)) {
                continue; // A duplicate, reported already.
            }
            match keys.iter().find(|key| key.name == text) {
                Some(key) => {
                    let path = if path.is_empty() { text.into() } else { format!("{path}.{text}") };
                    self.value(value, &path, &key.kind);
                }
                None => {
                    let place =
                        if path.is_empty() { String::new() } else { format!(" in `{path}`") };
                    self.at(
                        name.span(),
                        &format!("unknown key `{text}`{place}"),
                        advice(text, keys),
                    );
                }
            }
        }
    }

    fn value(&mut self, value: &Node, path: &str, kind: &Kind) {
        let fault = match (kind, value) {
            (Kind::Map(keys), Node::Mapping(map)) => {
                self.map(map, path, keys);
                None
            }
            (Kind::Map(_), _) => Some("must be a map, such as {}".to_owned()),
            (Kind::Text(check), Node::Scalar(scalar)) => text_fault(scalar, *check),
            (Kind::Text(_), _) => Some("must be text".to_owned()),
            (Kind::Texts(check), Node::Sequence(list)) => {
                for (i, entry) in list.iter().enumerate() {
                    self.value(entry, &format!("{path}[{i}]"), &Kind::Text(*check));
                }
                None
            }
            (Kind::Texts(_), _) => Some("must be a list, such as [a, b]".to_owned()),
            (Kind::Flag, value) => {
                let flag = value.as_scalar().filter(|scalar| scalar.may_coerce());
                let good = flag.is_some_and(|flag| matches!(flag.as_str(), "true" | "false"));
                (!good).then(|| "must be true or false".to_owned())
            }
            (Kind::Number(least, most), value) => number_fault(value.as_scalar(), *least, *most),
            (Kind::Word(choices), value) => {
                let word = value.as_scalar().filter(|scalar| scalar.may_coerce());
                one_of(word.map_or("", |word| word.as_str()), choices)
            }
            (Kind::Nodes(keys), Node::Sequence(list)) => {
                for (i, entry) in list.iter().enumerate() {
                    self.value(entry, &format!("{path}[{i}]"), &Kind::Map(keys));
                }
                list.is_empty().then(|| "must name at least one node".to_owned())
            }
            (Kind::Nodes(_), value) => number_fault(value.as_scalar(), 1, MOST_NODES)
                .map(|fault| format!("{fault}, or a list of nodes")),
        };
        if let Some(fault) = fault {
            self.at(value.span(), &format!("`{path}` {fault}"), None);
        }
    }

    /// A ring of servers needs to know what they are made of.
    fn servers_are_described(&mut self, top: &MarkedMappingNode) {
        let provider = top.get_scalar("provider");
        let Some(provider) = provider.filter(|kind| kind.as_str() == "openstack") else { return };
        let section = top.get_mapping("openstack");
        for (key, example) in SERVERS_NEED {
            if section.is_none_or(|section| section.get_node(key).is_none()) {
                let what = format!("`openstack.{key}` is missing");
                let hint = format!("which one? `openstack: {{{key}: {example}}}`");
                self.at(provider.span(), &what, Some(hint));
            }
        }
    }

    /// No two nodes of a list share a name, a position or a port.
    fn nodes_are_distinct(&mut self, top: &MarkedMappingNode) {
        let ring = top.get_mapping("ring").and_then(|ring| ring.get_scalar("name"));
        let ring = ring.map_or("sky", MarkedScalarNode::as_str);
        let mut seen = BTreeMap::new();
        let entries = top.get_sequence("nodes").into_iter().flat_map(|list| list.iter());
        for (i, entry) in entries.enumerate() {
            let Some(map) = entry.as_mapping() else { continue };
            let mut given: Vec<_> = ["name", "id", "port"]
                .into_iter()
                .filter_map(|key| Some((key, map.get_scalar(key)?)))
                .map(|(key, scalar)| (key, scalar.as_str().to_owned(), scalar.span()))
                .collect();
            if map.get_scalar("name").is_none() {
                given.push(("name", node_name(ring, i + 1), map.span()));
            }
            for (key, text, span) in given {
                // 1 and 01 are the same position.
                let value = text.parse::<Id>().ok().filter(|_| key == "id");
                let value = value.map_or_else(|| text.clone(), |id| id.to_string());
                let line = span.start().map_or(1, Marker::line);
                if let Some(first) = seen.insert((key, value), line) {
                    let what = format!("the {key} {text} is given twice, first in line {first}");
                    self.at(span, &what, None);
                }
            }
        }
    }
}

/// Characters of the private use area stand for the first letter of a duplicate key.
const RENAMED: u32 = 0xe000;

fn text_fault(scalar: &MarkedScalarNode, check: fn(&str) -> Option<String>) -> Option<String> {
    let text = scalar.as_str();
    check(text).or_else(|| {
        // The typed parser would read a bare number or a bare `true` as such.
        let other = matches!(serde_yaml::from_str(text), Ok(value) if !is_text(&value));
        (scalar.may_coerce() && other).then(|| format!("must be text: write it as \"{text}\""))
    })
}

const fn is_text(value: &serde_yaml::Value) -> bool {
    matches!(value, serde_yaml::Value::String(_))
}

fn number_fault(scalar: Option<&MarkedScalarNode>, least: u64, most: u64) -> Option<String> {
    let number = scalar.filter(|scalar| scalar.may_coerce());
    let number = number.and_then(|scalar| scalar.as_str().parse::<u64>().ok());
    let good = number.is_some_and(|number| (least..=most).contains(&number));
    (!good).then(|| format!("must be a whole number from {least} to {most}"))
}

/// The known key that was probably meant, or all of them.
fn advice(text: &str, keys: &[Key]) -> Option<String> {
    let nearest = keys.iter().min_by_key(|key| edits(text, key.name))?;
    if edits(text, nearest.name) <= 2 {
        return Some(format!("did you mean `{}`?", nearest.name));
    }
    let names: Vec<_> = keys.iter().map(|key| key.name).collect();
    Some(format!("known keys: {}", names.join(", ")))
}

/// How many letters must be changed to turn one word into the other (Levenshtein).
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}
