//! The marks by which a ring finds what it made in a project again: names, descriptions, tags and
//! metadata.
//!
//! The description is set by the call that makes a resource, so it is the mark that counts for what
//! Neutron and Cinder keep: a program that is killed between two calls leaves nothing without it. Tags
//! and metadata repeat it for people and other tools. A name alone is never enough: names are not
//! unique, and another ring's may begin with ours.

use sky_chord::Id;

use crate::node::NodeSpec;

/// Begins every mark.
const RING: &str = "sky.ring";

/// The marks of one ring.
#[derive(Debug, Clone)]
pub(super) struct Marks {
    ring: String,
}

impl Marks {
    /// The marks of the ring of this name.
    pub(super) fn new(ring: &str) -> Self {
        Self { ring: ring.to_owned() }
    }

    /// The name of the ring.
    pub(super) fn ring(&self) -> &str {
        &self.ring
    }

    /// The one tag of everything the ring owns, also the comment of its key pair and the name of its
    /// server group, which have neither tags nor descriptions: `sky.ring=NAME`.
    pub(super) fn tag(&self) -> String {
        format!("{RING}={}", self.ring)
    }

    /// The name of something all nodes share: `sky-NAME`, or `NAME` where that begins with `sky`.
    pub(super) fn shared_name(&self) -> String {
        if self.ring == "sky" || self.ring.starts_with("sky-") {
            self.ring.clone()
        } else {
            format!("sky-{}", self.ring)
        }
    }

    /// The description of something all nodes share.
    pub(super) fn description(&self) -> String {
        self.tag()
    }

    /// The description of something that belongs to a node: everything to know the node again.
    pub(super) fn description_of(&self, node: &NodeSpec) -> String {
        let mut text = format!(
            "{} sky.node={} sky.id={} sky.port={}",
            self.tag(),
            node.name,
            node.id,
            node.port
        );
        if let Some(zone) = &node.zone {
            text.push_str(&format!(" sky.zone={zone}"));
        }
        text
    }

    /// Whether a description is one of ours.
    pub(super) fn owns(&self, description: &str) -> bool {
        description
            .strip_prefix(&self.tag())
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
    }

    /// Whether a description is ours and names this node.
    pub(super) fn is_node(&self, description: &str, name: &str) -> bool {
        self.node(description).is_some_and(|node| node.name == name)
    }

    /// The node that a description of ours names; its address is not part of it.
    pub(super) fn node(&self, description: &str) -> Option<NodeSpec> {
        if !self.owns(description) {
            return None;
        }
        Some(NodeSpec {
            name: value(description, "sky.node")?.to_owned(),
            id: value(description, "sky.id")?.parse::<Id>().ok()?,
            host: None,
            port: value(description, "sky.port")?.parse().ok()?,
            zone: zone(description),
        })
    }
}

/// The value of a key in a description of ours. No value but that of the zone holds a blank.
fn value<'a>(description: &'a str, key: &str) -> Option<&'a str> {
    let words = description.split(' ');
    words.filter_map(|word| word.split_once('=')).find(|(name, _)| *name == key).map(|(_, v)| v)
}

/// The zone comes last, because its name may hold blanks.
fn zone(description: &str) -> Option<String> {
    description.split_once(" sky.zone=").map(|(_, zone)| zone.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_known_again_by_its_mark_and_others_are_not() {
        let node = NodeSpec {
            name: "sky-1".into(),
            id: Id::small(5),
            host: None,
            port: 4321,
            zone: Some("left rack".into()),
        };
        let marks = Marks::new("sky");
        let text = marks.description_of(&node);
        assert_eq!(marks.node(&text), Some(node));
        assert!(marks.owns(&marks.description()));
        for foreign in [
            "",
            "my sky.ring",
            "sky.ring=sky-2",
            "sky.ring=sk",
            "x sky.ring=sky",
            "sky.ringo=sky",
            "sky",
        ] {
            assert!(!marks.owns(foreign), "{foreign}");
        }
        assert_eq!(Marks::new("my").node(&text), None);
        assert_eq!(marks.node("sky.ring=sky sky.node=a sky.id=xyz sky.port=1"), None);
    }

    #[test]
    fn shared_things_have_a_name_that_says_whose_they_are() {
        assert_eq!(Marks::new("sky").shared_name(), "sky");
        assert_eq!(Marks::new("blue").shared_name(), "sky-blue");
    }
}
