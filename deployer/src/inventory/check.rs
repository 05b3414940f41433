//! The second, spanned pass over an inventory: every mistake at once, each with its line and column.
//! (serde_yaml stops at its first error, takes duplicate keys silently, and forgets positions.)

use std::collections::BTreeMap;

use marked_yaml::types::{MarkedMappingNode, MarkedScalarNode};
use marked_yaml::{LoadError, LoaderOptions, Marker, Node, Span};
use sky_chord::Id;

use super::keys::{Key, Kind, MOST_NODES, SERVERS_NEED, TOP, one_of};
use super::node_name;
use crate::error::{Error, Problem, Result};

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
            (Kind::Text(form), Node::Scalar(scalar)) => text_fault(scalar, form.fault),
            (Kind::Choice(words), Node::Scalar(scalar)) => {
                text_fault(scalar, |text| one_of(text, words))
            }
            (Kind::Text(_) | Kind::Choice(_), _) => Some("must be text".to_owned()),
            (Kind::Texts(form), Node::Sequence(list)) => {
                for (i, entry) in list.iter().enumerate() {
                    self.value(entry, &format!("{path}[{i}]"), &Kind::Text(form));
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

fn text_fault(scalar: &MarkedScalarNode, check: impl Fn(&str) -> Option<String>) -> Option<String> {
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
