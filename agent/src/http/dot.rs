//! The ring as a Graphviz digraph: nodes, their successors and predecessors, one node's fingers.

use std::collections::BTreeMap;
use std::fmt::Write;

use sky_chord::{Id, Peer, View};

/// The digraph of these nodes; fingers only of `me`. A node that did not answer is dashed.
pub(crate) fn digraph(me: &Peer, nodes: &[(Peer, Option<View>)]) -> String {
    let mut dot = String::from(
        "digraph ring {\n  layout=circo;\n  node [shape=box, style=rounded, fontname=sans];\n  \
         edge [fontname=sans, fontsize=9];\n",
    );
    for (peer, view) in nodes {
        let style = match view {
            None => ", style=\"rounded,dashed\", color=gray, fontcolor=gray",
            Some(_) if peer.node == me.node => ", style=\"rounded,bold\"",
            Some(_) => "",
        };
        let label = format!("{:?}\n{}", peer.node.position, peer.address);
        line(&mut dot, format_args!("  {} [label={}{style}];", name(peer), quoted(&label)));
    }
    for (peer, view) in nodes {
        let Some(view) = view else { continue };
        if let Some(successor) = view.successors.first() {
            line(&mut dot, format_args!("  {} -> {};", name(peer), name(successor)));
        }
        if let Some(predecessor) = &view.predecessor {
            let style = "[style=dashed, color=gray, constraint=false]";
            line(&mut dot, format_args!("  {} -> {} {style};", name(peer), name(predecessor)));
        }
        if peer.node == me.node {
            fingers(&mut dot, view);
        }
    }
    dot.push_str("}\n");
    dot
}

/// One edge for each node that fingers point to, labelled with their indices.
fn fingers(dot: &mut String, view: &View) {
    let mut indices: BTreeMap<Id, (&Peer, Vec<u8>)> = BTreeMap::new();
    for finger in view.fingers.iter().filter(|finger| finger.peer.node != view.me.node) {
        let position = finger.peer.node.position;
        indices.entry(position).or_insert_with(|| (&finger.peer, Vec::new())).1.push(finger.index);
    }
    for (peer, indices) in indices.values() {
        let (first, last) = (indices.iter().min(), indices.iter().max());
        let label = match (first, last) {
            (Some(first), Some(last)) if first < last => format!("fingers {first} to {last}"),
            (Some(first), _) => format!("finger {first}"),
            (None, _) => continue,
        };
        let style = format!("[label=\"{label}\", color=blue, fontcolor=blue, constraint=false]");
        line(dot, format_args!("  {} -> {} {style};", name(&view.me), name(peer)));
    }
}

fn line(dot: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = writeln!(dot, "{text}");
}

fn name(peer: &Peer) -> String {
    format!("\"{}\"", peer.node)
}

/// A quoted string of the DOT language; addresses come from peers and may hold anything.
fn quoted(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("\"{escaped}\"")
}

#[cfg(test)]
mod tests {
    use sky_chord::{Finger, KeyCount, Load, NodeId, Phase};

    use super::*;

    fn peer(position: u64) -> Peer {
        let node = NodeId { position: Id::small(position), incarnation: 1 };
        Peer { node, address: format!("host\"{position}").into() }
    }

    fn view(me: u64, before: u64, after: u64) -> View {
        let finger = |index| Finger { index, start: Id::small(0), peer: peer(after) };
        View {
            me: peer(me),
            ring: None,
            phase: Phase::Up,
            predecessor: Some(peer(before)),
            successors: vec![peer(after)],
            fingers: vec![finger(0), finger(1)],
            ranges: Vec::new(),
            members: Vec::new(),
            keys: KeyCount::default(),
            load: Load::default(),
        }
    }

    #[test]
    fn every_node_and_neighbour_is_drawn_and_only_own_fingers() {
        let nodes =
            [(peer(1), Some(view(1, 3, 2))), (peer(2), Some(view(2, 1, 3))), (peer(3), None)];
        let dot = digraph(&peer(1), &nodes);
        let edge = |from, to| format!("{} -> {}", name(&peer(from)), name(&peer(to)));
        for edge in [edge(1, 2), edge(2, 3), edge(1, 3), edge(2, 1)] {
            assert!(dot.contains(&edge), "{edge} in {dot}");
        }
        assert_eq!(dot.matches("fingers 0 to 1").count(), 1);
        assert_eq!(dot.matches("dashed\", color=gray").count(), 1);
        assert!(dot.contains("label=\"1\\nhost\\\"1\""), "{dot}");
    }
}
