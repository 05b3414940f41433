//! Entity tags (RFC 9110, section 8.8.3): the version of a value as an opaque quoted text, and the
//! conditions that name them.

use std::fmt::Write;

use sky_api::Code;
use sky_chord::{Ballot, Condition, NodeId};
use warp::http::header::{self, HeaderMap, HeaderName};

use super::key::push_hex;
use super::problem::Refused;

/// The quoted tag of a version. Clients must not look inside.
pub(super) fn text(version: &Ballot) -> String {
    let mut text = String::with_capacity(100);
    text.push('"');
    // Writing to a String cannot fail.
    let _ = write!(text, "{:x}.{:x}.{:x}.", version.epoch, version.round, version.boot);
    let _ = write!(text, "{:x}.", version.node.incarnation);
    push_hex(&mut text, version.node.position.as_bytes());
    text.push('"');
    text
}

/// Reads what is between the quotes of a tag; `None` if it is none of ours.
fn read(opaque: &str) -> Option<Ballot> {
    let mut parts = opaque.split('.');
    let mut number = || u64::from_str_radix(parts.next()?, 16).ok();
    let (epoch, round) = (number()?, number()?);
    let boot = u32::try_from(number()?).ok()?;
    let incarnation = number()?;
    let position = parts.next()?.parse().ok()?;
    let version = Ballot { epoch, round, boot, node: NodeId { position, incarnation } };
    parts.next().is_none().then_some(version)
}

/// What an `If-Match` or `If-None-Match` header names.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Named {
    /// `*`: any version at all.
    Any,
    /// These versions. Tags that no agent ever gave out are left out: they match nothing.
    Versions(Vec<Ballot>),
}

impl Named {
    /// Whether this version is among them.
    pub(super) fn contains(&self, version: &Ballot) -> bool {
        match self {
            Self::Any => true,
            Self::Versions(versions) => versions.contains(version),
        }
    }
}

/// The versions in a header, if it is there. Weak tags never match when `strong` (RFC 9110, 8.8.3.2).
pub(super) fn named(
    headers: &HeaderMap,
    name: &HeaderName,
    strong: bool,
) -> Result<Option<Named>, Refused> {
    // Text that is not ASCII is no list of tags, and refused as such.
    let values = headers.get_all(name).iter().map(|value| value.to_str().unwrap_or("?"));
    listed(values, name.as_str(), strong)
}

/// The versions in these lists of tags, if there is one.
pub(super) fn listed<'a>(
    values: impl IntoIterator<Item = &'a str>,
    name: &str,
    strong: bool,
) -> Result<Option<Named>, Refused> {
    let mut versions = None;
    let mut tags = 0;
    for text in values {
        let refused = || {
            let detail = format!("What {name} names is neither `*` nor a list of quoted tags.");
            Refused::new(Code::BadRequest, detail)
                .hint("Send the ETag of an earlier answer as it was, with its quotes.")
        };
        let text = text.trim();
        if text == "*" {
            return Ok(Some(Named::Any));
        }
        let versions = versions.get_or_insert_with(Vec::new);
        for tag in text.split(',').map(str::trim).filter(|tag| !tag.is_empty()) {
            let (weak, tag) = tag.strip_prefix("W/").map_or((false, tag), |tag| (true, tag));
            let opaque = tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"'));
            let version = read(opaque.ok_or_else(refused)?);
            versions.extend(version.filter(|_| !(weak && strong)));
            tags += 1;
        }
        if tags == 0 {
            return Err(refused());
        }
    }
    Ok(versions.map(Named::Versions))
}

/// What must be true of the key before a change: from `If-Match`, and for a `PUT` also from
/// `If-None-Match: *`.
pub(super) fn condition(headers: &HeaderMap) -> Result<Condition, Refused> {
    let matching = named(headers, &header::IF_MATCH, true)?;
    let other = named(headers, &header::IF_NONE_MATCH, false)?;
    condition_of(matching, other)
}

/// What must be true of the key before a change, from what both conditions name.
pub(super) fn condition_of(
    matching: Option<Named>,
    other: Option<Named>,
) -> Result<Condition, Refused> {
    match (matching, other) {
        (None, None) => Ok(Condition::Always),
        (Some(Named::Any), None) => Ok(Condition::Exists),
        (Some(Named::Versions(versions)), None) => Ok(Condition::Version(versions)),
        (None, Some(Named::Any)) => Ok(Condition::Absent),
        // A key that exists and does not: this is never true (RFC 9110, 13.2.2).
        (Some(_), Some(Named::Any)) => Ok(Condition::Version(Vec::new())),
        _ => Err(Refused::new(
            Code::BadRequest,
            "A change takes If-Match with `*` or tags, and If-None-Match only with `*`.",
        )),
    }
}

#[cfg(test)]
mod tests {
    use sky_chord::Id;
    use warp::http::HeaderValue;

    use super::*;

    fn version(round: u64) -> Ballot {
        let node = NodeId { position: Id::hash(b"node"), incarnation: u64::MAX };
        Ballot { epoch: 3, round, node, boot: u32::MAX }
    }

    fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        let value = |text: &str| HeaderValue::from_str(text).unwrap();
        pairs.iter().map(|(name, text)| (name.clone(), value(text))).collect()
    }

    #[test]
    fn tags_are_read_back_exactly() {
        for version in [version(0), version(u64::MAX), Ballot::ZERO] {
            assert_eq!(read(text(&version).trim_matches('"')), Some(version));
        }
        let good = text(&version(7));
        let good = good.trim_matches('"');
        for bad in ["", "x", "1.2.3.4", &good[..good.len() - 41], &format!("{good}.1")] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn if_match_names_versions() {
        let (a, b) = (text(&version(1)), text(&version(2)));
        let condition = |text: &str| condition(&headers(&[(header::IF_MATCH, text)]));
        assert_eq!(condition("*").unwrap(), Condition::Exists);
        assert_eq!(condition(&a).unwrap(), Condition::Version(vec![version(1)]));
        let both = Condition::Version(vec![version(1), version(2)]);
        assert_eq!(condition(&format!("{a} ,{b}")).unwrap(), both);
        assert_eq!(condition(&format!("W/{a}, \"foreign\"")).unwrap(), Condition::Version(vec![]));
        for nothing in ["", ",", " , "] {
            assert_eq!(condition(nothing).unwrap_err().code(), Code::BadRequest, "{nothing}");
        }
        assert_eq!(condition("unquoted").unwrap_err().code(), Code::BadRequest);
        assert_eq!(super::condition(&HeaderMap::new()).unwrap(), Condition::Always);
    }

    #[test]
    fn if_none_match_is_weak_and_a_star_means_absent() {
        let tag = text(&version(1));
        let weak = headers(&[(header::IF_NONE_MATCH, &format!("W/{tag}"))]);
        let named = named(&weak, &header::IF_NONE_MATCH, false).unwrap().unwrap();
        assert!(named.contains(&version(1)) && !named.contains(&version(2)));
        assert!(condition(&weak).is_err());
        let star = headers(&[(header::IF_NONE_MATCH, "*")]);
        assert_eq!(condition(&star).unwrap(), Condition::Absent);
        let both = headers(&[(header::IF_NONE_MATCH, "*"), (header::IF_MATCH, "*")]);
        assert_eq!(condition(&both).unwrap(), Condition::Version(vec![]), "this never holds");
    }
}
