//! Drawings as SVG: shapes and text on a light ground of their own, so that they can be read anywhere.

use std::fmt::Write;

/// Text and lines that carry it all.
pub(crate) const INK: &str = "#1f2933";
/// What stands back: axes, ticks, labels.
pub(crate) const FAINT: &str = "#7b8794";
/// What is hardly there: grids.
pub(crate) const HAIR: &str = "#dde2e8";
/// Colours that the colour-blind can tell apart (Okabe, Ito), also on paper.
pub(crate) const COLOURS: [&str; 6] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9"];

/// Where a text is held.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Anchor {
    /// At its beginning.
    Start,
    /// In the middle.
    Middle,
    /// At its end.
    End,
}

/// A drawing; lengths are pixels, y goes down.
#[derive(Debug)]
pub(crate) struct Drawing {
    text: String,
}

impl Drawing {
    /// An empty drawing. The title is for those who cannot see it.
    pub(crate) fn new(width: f64, height: f64, title: &str) -> Self {
        let mut drawing = Self { text: String::new() };
        drawing.put(format_args!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
             width=\"{width}\" height=\"{height}\" role=\"img\" \
             font-family=\"system-ui, 'DejaVu Sans', sans-serif\">"
        ));
        drawing.put(format_args!("<title>{}</title>", escaped(title)));
        drawing.put(format_args!(
            "<rect x=\"0.5\" y=\"0.5\" width=\"{}\" height=\"{}\" rx=\"8\" fill=\"#ffffff\" stroke=\"{HAIR}\"/>",
            width - 1.0,
            height - 1.0
        ));
        drawing
    }

    /// A straight line.
    pub(crate) fn line(&mut self, from: (f64, f64), to: (f64, f64), colour: &str, width: f64) {
        self.put(format_args!(
            "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{colour}\" stroke-width=\"{width}\"/>",
            from.0, from.1, to.0, to.1
        ));
    }

    /// A path in the language of SVG, not filled. `more` are further attributes.
    pub(crate) fn path(&mut self, path: &str, colour: &str, width: f64, more: &str) {
        self.put(format_args!(
            "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\" {more}/>"
        ));
    }

    /// A filled polygon.
    pub(crate) fn polygon(&mut self, corners: &[(f64, f64)], fill: &str, stroke: &str) {
        let corners: Vec<_> = corners.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        self.put(format_args!(
            "<polygon points=\"{}\" fill=\"{fill}\" stroke=\"{stroke}\" stroke-width=\"1.8\"/>",
            corners.join(" ")
        ));
    }

    /// A filled circle.
    pub(crate) fn circle(&mut self, at: (f64, f64), radius: f64, fill: &str, stroke: &str) {
        self.put(format_args!(
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"{radius:.1}\" fill=\"{fill}\" stroke=\"{stroke}\" stroke-width=\"1.8\"/>",
            at.0, at.1
        ));
    }

    /// A text. `more` are further attributes.
    pub(crate) fn text(
        &mut self,
        at: (f64, f64),
        (size, colour): (f64, &str),
        anchor: Anchor,
        more: &str,
        text: &str,
    ) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        self.put(format_args!(
            "<text x=\"{:.1}\" y=\"{:.1}\" font-size=\"{size}\" fill=\"{colour}\" text-anchor=\"{anchor}\" {more}>{}</text>",
            at.0,
            at.1,
            escaped(text)
        ));
    }

    /// The finished drawing.
    pub(crate) fn finish(mut self) -> String {
        self.text.push_str("</svg>\n");
        self.text
    }

    fn put(&mut self, element: std::fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "{element}");
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
