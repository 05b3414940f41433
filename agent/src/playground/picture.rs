//! A drawing of a small ring: the circle cut into what each node owns, the nodes, and the fingers of
//! one of them.

use std::collections::BTreeMap;
use std::f64::consts::TAU;

use sky_chord::{Id, NodeId, Space, View};

use crate::svg::{Anchor, COLOURS, Drawing, FAINT, INK};

const WIDTH: f64 = 680.0;
const HEIGHT: f64 = 690.0;
const CENTRE: (f64, f64) = (340.0, 350.0);
const RADIUS: f64 = 230.0;
/// With more bits, only nodes have a number.
const TICKS_MAX: u8 = 6;
/// There is no room on shorter arrows to say which fingers they are.
const LABELLED_MIN: f64 = 90.0;
/// How many letters a line below the circle has.
const LEGEND_WIDTH: usize = 92;

/// The ring as SVG, with the fingers of `chosen`.
pub(super) fn draw(space: Space, views: &[View], chosen: NodeId) -> String {
    let count = views.len();
    let nodes = if count == 1 { "1 node".to_owned() } else { format!("{count} nodes") };
    let title = format!("A Chord ring of {nodes}, {} bits", space.bits());
    let mut drawing = Drawing::new(WIDTH, HEIGHT, &title);
    drawing.text((28.0, 38.0), (18.0, INK), Anchor::Start, "font-weight=\"600\"", &title);
    let key = "Colours show which node owns an identifier: the first node at or after it.";
    drawing.text((28.0, 60.0), (12.5, FAINT), Anchor::Start, "", key);
    let circle = Circle { space };
    circle.arcs(&mut drawing, views);
    if space.bits() <= TICKS_MAX {
        circle.ticks(&mut drawing, views);
    }
    let mut named = vec![chosen];
    if let Some(view) = views.iter().find(|view| view.me.node == chosen) {
        circle.fingers(&mut drawing, view, views);
        named.extend(view.fingers.iter().map(|finger| finger.peer.node));
    }
    circle.nodes(&mut drawing, views, chosen);
    circle.names(&mut drawing, views, &named);
    drawing.finish()
}

struct Circle {
    space: Space,
}

impl Circle {
    /// The angle of a point, clockwise from the top.
    fn angle(&self, point: Id) -> f64 {
        let mut low = [0; 8];
        low.copy_from_slice(&point.as_bytes()[12..]);
        u64::from_be_bytes(low) as f64 / f64::from(self.space.bits()).exp2() * TAU
    }

    fn at(&self, point: Id, radius: f64) -> (f64, f64) {
        polar(self.angle(point), radius)
    }

    /// What each node owns, in its colour.
    fn arcs(&self, drawing: &mut Drawing, views: &[View]) {
        for (i, view) in views.iter().enumerate() {
            let to = self.angle(view.me.node.position);
            let before = &views[(i + views.len() - 1) % views.len()];
            // In halves, so that no piece is more than half a circle.
            let from = self.angle(before.me.node.position);
            let width = if views.len() == 1 { TAU } else { (to - from).rem_euclid(TAU) };
            let (start, middle, end) = (to - width, to - width / 2.0, to);
            let point = |angle| {
                let (x, y) = polar(angle, RADIUS);
                format!("{x:.1} {y:.1}")
            };
            let path = format!(
                "M{}A{RADIUS} {RADIUS} 0 0 1 {}A{RADIUS} {RADIUS} 0 0 1 {}",
                point(start),
                point(middle),
                point(end)
            );
            drawing.path(&path, colour(i, views.len()), 9.0, "");
        }
    }

    /// The identifiers between the nodes.
    fn ticks(&self, drawing: &mut Drawing, views: &[View]) {
        for point in (0..1u64 << self.space.bits()).map(Id::small) {
            if views.iter().any(|view| view.me.node.position == point) {
                continue;
            }
            let (inner, outer) = (self.at(point, RADIUS - 4.5), self.at(point, RADIUS + 4.5));
            drawing.line(inner, outer, "#ffffff", 2.0);
            let (at, anchor) = self.beside(point, 22.0, 11.5);
            drawing.text(at, (11.5, FAINT), anchor, "", &format!("{point:?}"));
        }
    }

    /// Where the number of a point stands, and how it is held there.
    fn beside(&self, point: Id, away: f64, size: f64) -> ((f64, f64), Anchor) {
        let (x, y) = self.at(point, RADIUS + away);
        let anchor = match x - CENTRE.0 {
            aside if aside > 40.0 => Anchor::Start,
            aside if aside < -40.0 => Anchor::End,
            _ => Anchor::Middle,
        };
        ((x, y + size * 0.35), anchor)
    }

    fn nodes(&self, drawing: &mut Drawing, views: &[View], chosen: NodeId) {
        let (radius, _) = node_size(views.len());
        for (i, view) in views.iter().enumerate() {
            let at = self.at(view.me.node.position, RADIUS);
            if view.me.node == chosen {
                drawing.circle(at, radius + 4.5, "#ffffff", INK);
            }
            drawing.circle(at, radius, colour(i, views.len()), "#ffffff");
        }
    }

    /// The numbers of the nodes, as many as there is room for, beginning with those in `first`.
    fn names(&self, drawing: &mut Drawing, views: &[View], first: &[NodeId]) {
        let (radius, size) = node_size(views.len());
        let nodes = || views.iter().map(|view| view.me.node);
        let (ahead, rest): (Vec<_>, Vec<_>) = nodes().partition(|node| first.contains(node));
        let mut taken: Vec<(f64, f64, f64)> = Vec::new();
        for node in ahead.into_iter().chain(rest) {
            let name = format!("{node:?}");
            let ((x, y), anchor) = self.beside(node.position, radius + 15.0, size);
            let width = name.len() as f64 * size * 0.68 + 3.0;
            let left = match anchor {
                Anchor::Start => x,
                Anchor::Middle => x - width / 2.0,
                Anchor::End => x - width,
            };
            let is_free = |(other, at, wide): &(f64, f64, f64)| {
                (y - at).abs() > size || left > other + wide || left + width < *other
            };
            if taken.iter().all(is_free) {
                taken.push((left, y, width));
                drawing.text((x, y), (size, INK), anchor, "font-weight=\"600\"", &name);
            }
        }
    }

    /// An arrow for each node that fingers of this one point to, and below what they are.
    fn fingers(&self, drawing: &mut Drawing, view: &View, views: &[View]) {
        let me = view.me.node;
        let mut targets: BTreeMap<NodeId, Vec<u8>> = BTreeMap::new();
        for finger in &view.fingers {
            targets.entry(finger.peer.node).or_default().push(finger.index);
        }
        let mut lines = vec![format!("Arrows: fingers of node {me:?}.")];
        let mut any_gone = false;
        for (target, numbers) in &targets {
            let (first, last) = (numbers[0], numbers[numbers.len() - 1]);
            let numbers = match last - first {
                0 => offset(first),
                1 => format!("{}, {}", offset(first), offset(last)),
                _ => format!("{} .. {}", offset(first), offset(last)),
            };
            let text = format!("{numbers}: {target:?}");
            match lines.last_mut().filter(|line| line.len() + text.len() < LEGEND_WIDTH) {
                Some(line) => *line += &format!("   {text}"),
                None => lines.push(text),
            }
            if target.position != me.position {
                let is_there = views.iter().any(|view| view.me.node == *target);
                any_gone |= !is_there;
                self.arrow(drawing, me.position, target.position, &numbers, is_there);
            }
        }
        if any_gone {
            lines.push("Dashed: to a node that is gone.".to_owned());
        }
        for (row, line) in lines.iter().rev().enumerate() {
            let at = (28.0, HEIGHT - 22.0 - 17.0 * row as f64);
            drawing.text(at, (12.5, FAINT), Anchor::Start, "xml:space=\"preserve\"", line);
        }
    }

    /// An arrow that bends towards the centre. Where nobody is any more, its end is hollow.
    fn arrow(&self, drawing: &mut Drawing, from: Id, to: Id, label: &str, is_there: bool) {
        let (start, end) = (self.at(from, RADIUS - 16.0), self.at(to, RADIUS - 14.0));
        let middle = ((start.0 + end.0) / 2.0, (start.1 + end.1) / 2.0);
        // Short arrows keep near the circle.
        let distance = (end.0 - start.0).hypot(end.1 - start.1);
        let pull = |at: f64, centre: f64| at + (centre - at) * 0.45 * (distance / RADIUS).min(1.0);
        let bend = (pull(middle.0, CENTRE.0), pull(middle.1, CENTRE.1));
        let path = format!(
            "M{:.1} {:.1}Q{:.1} {:.1} {:.1} {:.1}",
            start.0, start.1, bend.0, bend.1, end.0, end.1
        );
        let dashes = if is_there { "" } else { "stroke-dasharray=\"5 4\"" };
        drawing.path(&path, INK, 1.6, dashes);
        let (dx, dy) = (end.0 - bend.0, end.1 - bend.1);
        let length = dx.hypot(dy).max(0.001);
        let (ux, uy) = (dx / length, dy / length);
        let corner = |back: f64, aside: f64| {
            (end.0 - ux * back - uy * aside, end.1 - uy * back + ux * aside)
        };
        let fill = if is_there { INK } else { "#ffffff" };
        drawing.polygon(&[corner(-3.0, 0.0), corner(8.0, 4.5), corner(8.0, -4.5)], fill, INK);
        if !is_there {
            drawing.circle(self.at(to, RADIUS), 6.0, "#ffffff", FAINT);
        }
        if distance < LABELLED_MIN {
            return;
        }
        // On the curve, a little before its end, where arrows have parted.
        let t: f64 = 0.72;
        let on = |a: f64, b: f64, c: f64| {
            (1.0 - t).powi(2) * a + 2.0 * t * (1.0 - t) * b + t.powi(2) * c
        };
        let (x, y) = (on(start.0, bend.0, end.0), on(start.1, bend.1, end.1));
        let halo = "stroke=\"#ffffff\" stroke-width=\"7\" paint-order=\"stroke\"";
        drawing.text((x, y + 4.0), (11.5, INK), Anchor::Middle, halo, label);
    }
}

/// The radius of nodes, and the size of their numbers.
const fn node_size(count: usize) -> (f64, f64) {
    if count > 32 { (4.5, 10.0) } else { (9.0, 15.0) }
}

/// How far from the node a finger starts.
fn offset(index: u8) -> String {
    if index < TICKS_MAX { format!("+{}", 1u32 << index) } else { format!("+2^{index}") }
}

fn polar(angle: f64, radius: f64) -> (f64, f64) {
    (CENTRE.0 + radius * angle.sin(), CENTRE.1 - radius * angle.cos())
}

/// Neighbours on the circle never have the same colour.
fn colour(index: usize, count: usize) -> &'static str {
    let is_last_like_first = count > 1 && index == count - 1 && index.is_multiple_of(COLOURS.len());
    COLOURS[if is_last_like_first { 2 } else { index % COLOURS.len() }]
}
