//! Charts of measurements beside those of the papers.

use crate::svg::{Anchor, COLOURS, Drawing, FAINT, HAIR, INK};

use super::experiment::Spread;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 480.0;
/// The edges of the plot: left, top, right, bottom.
const PLOT: (f64, f64, f64, f64) = (72.0, 76.0, 736.0, 412.0);

/// How a series is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// Points joined by a line, with bars from the 1st to the 99th percentile.
    Ours,
    /// Hollow diamonds with bars, beside ours.
    Paper,
    /// A dashed line.
    Theory,
}

/// Measurements of one kind.
#[derive(Debug)]
pub(super) struct Series {
    pub(super) name: String,
    pub(super) look: Look,
    /// x, and what was measured there.
    pub(super) points: Vec<(f64, Spread)>,
}

/// A chart with one x and one y axis.
#[derive(Debug)]
pub(super) struct Chart {
    pub(super) title: String,
    /// What was done, below the title.
    pub(super) subtitle: String,
    pub(super) x_name: String,
    pub(super) y_name: String,
    /// Where the x axis has its marks, and what they say.
    pub(super) x_marks: Vec<(f64, String)>,
    pub(super) series: Vec<Series>,
}

impl Chart {
    /// The chart as SVG.
    pub(super) fn draw(&self) -> String {
        let mut drawing =
            Drawing::new(WIDTH, HEIGHT, &format!("{}. {}", self.title, self.subtitle));
        let (left, top, right, bottom) = PLOT;
        let bold = "font-weight=\"600\"";
        drawing.text((24.0, 32.0), (17.0, INK), Anchor::Start, bold, &self.title);
        drawing.text((24.0, 53.0), (12.5, FAINT), Anchor::Start, "", &self.subtitle);
        let scale = Scale::new(self);
        for value in scale.y_marks() {
            let y = scale.y(value);
            drawing.line((left, y), (right, y), HAIR, 1.0);
            let at = (left - 9.0, y + 4.0);
            drawing.text(at, (12.0, FAINT), Anchor::End, "", &value.to_string());
        }
        for (value, label) in &self.x_marks {
            let x = scale.x(*value);
            drawing.line((x, bottom), (x, bottom + 5.0), FAINT, 1.0);
            drawing.text((x, bottom + 20.0), (12.0, FAINT), Anchor::Middle, "", label);
        }
        drawing.line((left, bottom), (right, bottom), FAINT, 1.2);
        drawing.line((left, top), (left, bottom), FAINT, 1.2);
        let middle = (left + right) / 2.0;
        drawing.text((middle, bottom + 45.0), (13.0, INK), Anchor::Middle, "", &self.x_name);
        let (x, y) = (26.0, (top + bottom) / 2.0);
        let turned = format!("transform=\"rotate(-90 {x} {y})\"");
        drawing.text((x, y), (13.0, INK), Anchor::Middle, &turned, &self.y_name);
        for series in &self.series {
            scale.series(&mut drawing, series);
        }
        self.legend(&mut drawing);
        drawing.finish()
    }

    fn legend(&self, drawing: &mut Drawing) {
        let (left, top, ..) = PLOT;
        for (row, series) in self.series.iter().enumerate() {
            let (x, y) = (left + 20.0, top + 16.0 + 21.0 * row as f64);
            if series.look != Look::Paper {
                let dashes = dashes(series.look);
                let path = format!("M{:.1} {y:.1}H{:.1}", x - 2.0, x + 22.0);
                drawing.path(&path, colour(series.look), 1.8, dashes);
            }
            mark(drawing, series.look, (x + 10.0, y));
            let at = (x + 32.0, y + 4.5);
            drawing.text(at, (12.5, INK), Anchor::Start, "", &series.name);
        }
    }
}

struct Scale {
    x: (f64, f64),
    /// The upper end of the y axis, which begins at 0.
    y: f64,
    step: u32,
}

impl Scale {
    fn new(chart: &Chart) -> Self {
        let points = || chart.series.iter().flat_map(|series| &series.points);
        let low = points().map(|(x, _)| *x).fold(f64::INFINITY, f64::min);
        let high = points().map(|(x, _)| *x).fold(f64::NEG_INFINITY, f64::max);
        let pad = (high - low).max(0.1) * 0.06;
        let most = |spread: &Spread| spread.mean.max(f64::from(spread.p99));
        let top = points().map(|(_, spread)| most(spread)).fold(1.0, f64::max);
        let step =
            [1, 2, 5, 10, 20, 50, 100].into_iter().find(|step| top / f64::from(*step) <= 9.0);
        let step = step.unwrap_or(1000);
        let y = f64::from(step) * (top * 1.04 / f64::from(step)).ceil();
        Self { x: (low - pad, high + pad), y, step }
    }

    fn x(&self, value: f64) -> f64 {
        let (left, _, right, _) = PLOT;
        left + (value - self.x.0) / (self.x.1 - self.x.0) * (right - left)
    }

    fn y(&self, value: impl Into<f64>) -> f64 {
        let (_, top, _, bottom) = PLOT;
        bottom - value.into() / self.y * (bottom - top)
    }

    fn y_marks(&self) -> impl Iterator<Item = u32> {
        (0..=self.y as u32).step_by(self.step as usize)
    }

    fn series(&self, drawing: &mut Drawing, series: &Series) {
        let look = series.look;
        // Bars of the two do not cover each other.
        let aside = match look {
            Look::Ours => -4.0,
            Look::Paper => 4.0,
            Look::Theory => 0.0,
        };
        let at = |x: f64, y: f64| (self.x(x) + aside, self.y(y));
        if look != Look::Paper {
            let mut path = String::new();
            for (x, spread) in &series.points {
                let (x, y) = at(*x, spread.mean);
                path += &format!("{}{x:.1} {y:.1}", if path.is_empty() { "M" } else { "L" });
            }
            drawing.path(&path, colour(look), 1.8, dashes(look));
        }
        if look == Look::Theory {
            return;
        }
        for (x, Spread { mean, p1, p99 }) in &series.points {
            let (low, high) = (at(*x, f64::from(*p1)), at(*x, f64::from(*p99)));
            drawing.line(low, high, colour(look), 1.4);
            for (x, y) in [low, high] {
                drawing.line((x - 4.0, y), (x + 4.0, y), colour(look), 1.4);
            }
            mark(drawing, look, at(*x, *mean));
        }
    }
}

const fn colour(look: Look) -> &'static str {
    match look {
        Look::Ours => COLOURS[0],
        Look::Paper => COLOURS[1],
        Look::Theory => FAINT,
    }
}

const fn dashes(look: Look) -> &'static str {
    match look {
        Look::Theory => "stroke-dasharray=\"6 5\"",
        Look::Ours | Look::Paper => "",
    }
}

fn mark(drawing: &mut Drawing, look: Look, (x, y): (f64, f64)) {
    match look {
        Look::Ours => drawing.circle((x, y), 4.5, colour(look), "#ffffff"),
        Look::Paper => {
            let corners = [(x, y - 6.0), (x + 6.0, y), (x, y + 6.0), (x - 6.0, y)];
            drawing.polygon(&corners, "#ffffff", colour(look));
        }
        Look::Theory => {}
    }
}
