//! Two kinds of plots, as SVG text: bars in groups, and lines on logarithmic axes.

use std::fmt::Write;

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 230.0;
const TOP: f64 = 48.0;
const BOTTOM: f64 = 44.0;
const COLOURS: [&str; 11] = [
    "#d1495b", "#f28482", "#30638e", "#5fa8d3", "#2a9d8f", "#8ab17d", "#b5838d", "#e9c46a", "#6d6875", "#adb5bd",
    "#333333",
];

#[derive(Debug)]
pub struct Plot<'a> {
    pub title: &'a str,
    pub unit: &'a str,
    pub groups: Vec<String>,
    pub series: Vec<Series<'a>>,
}

#[derive(Debug)]
pub struct Series<'a> {
    pub name: &'a str,
    /// The same for the same peer in every plot.
    pub colour: usize,
    /// One for each group; `None` where there is none.
    pub values: Vec<Option<f64>>,
}

impl Series<'_> {
    fn colour(&self) -> &'static str {
        COLOURS[self.colour % COLOURS.len()]
    }
}

impl Plot<'_> {
    pub fn bars(&self) -> String {
        let values = || self.series.iter().flat_map(|series| &series.values).flatten();
        let top = values().copied().fold(0.0, f64::max) * 1.05;
        let step = nice(top / 5.0);
        let y = |value: f64| HEIGHT - BOTTOM - value / top * (HEIGHT - TOP - BOTTOM);
        let mut svg = self.frame();
        for n in 0..=(top / step) as usize {
            grid(&mut svg, y(n as f64 * step), n as f64 * step);
        }
        let group = (WIDTH - LEFT - RIGHT) / self.groups.len() as f64;
        let bar = group * 0.86 / self.series.len() as f64;
        for (g, name) in self.groups.iter().enumerate() {
            label(&mut svg, LEFT + (g as f64 + 0.5) * group, name);
            for (n, series) in self.series.iter().enumerate() {
                let Some(value) = series.values[g] else { continue };
                let x = LEFT + g as f64 * group + group * 0.07 + n as f64 * bar;
                let (height, colour) = (HEIGHT - BOTTOM - y(value), series.colour());
                let _ = writeln!(
                    svg,
                    r#"<rect x="{x:.1}" y="{:.1}" width="{:.1}" height="{height:.1}" fill="{colour}"/>"#,
                    y(value),
                    bar * 0.92
                );
            }
        }
        svg + "</svg>\n"
    }

    pub fn lines(&self) -> String {
        let values = || self.series.iter().flat_map(|series| &series.values).flatten().map(|value| value.log10());
        let low = values().fold(f64::INFINITY, f64::min).floor();
        let high = values().fold(f64::NEG_INFINITY, f64::max).ceil();
        let y = |log: f64| HEIGHT - BOTTOM - (log - low) / (high - low) * (HEIGHT - TOP - BOTTOM);
        let step = (WIDTH - LEFT - RIGHT) / self.groups.len() as f64;
        let x = |g: usize| LEFT + (g as f64 + 0.5) * step;
        let mut svg = self.frame();
        for power in low as i32..=high as i32 {
            grid(&mut svg, y(f64::from(power)), 10f64.powi(power));
        }
        for (g, name) in self.groups.iter().enumerate() {
            label(&mut svg, x(g), name);
        }
        for series in &self.series {
            let points: Vec<(f64, f64)> = series
                .values
                .iter()
                .enumerate()
                .filter_map(|(g, value)| Some((x(g), y(value.as_ref()?.log10()))))
                .collect();
            let path: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
            let colour = series.colour();
            let _ = writeln!(
                svg,
                r#"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="2.5"/>"#,
                path.join(" ")
            );
            for (x, y) in points {
                let _ = writeln!(svg, r#"<circle cx="{x:.1}" cy="{y:.1}" r="3.5" fill="{colour}"/>"#);
            }
        }
        svg + "</svg>\n"
    }

    fn frame(&self) -> String {
        let mut svg = format!(
            r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13">
<rect width="100%" height="100%" fill="white"/>
<text x="{LEFT}" y="20" font-size="16" font-weight="bold">{}</text>
<text x="{LEFT}" y="38" fill="#555">{}</text>
"##,
            self.title, self.unit
        );
        for (n, series) in self.series.iter().enumerate() {
            let (x, y) = (WIDTH - RIGHT + 20.0, TOP + n as f64 * 22.0);
            let (name, colour) = (series.name, series.colour());
            let _ = writeln!(
                svg,
                r#"<rect x="{x}" y="{y}" width="12" height="12" fill="{colour}"/><text x="{}" y="{}">{name}</text>"#,
                x + 18.0,
                y + 11.0
            );
        }
        svg
    }
}

fn grid(svg: &mut String, y: f64, value: f64) {
    let (x, right) = (LEFT - 8.0, WIDTH - RIGHT);
    let value = (value * 1e6).round() / 1e6;
    let _ = writeln!(
        svg,
        r##"<line x1="{LEFT}" y1="{y:.1}" x2="{right}" y2="{y:.1}" stroke="#ddd"/><text x="{x}" y="{:.1}" text-anchor="end">{value}</text>"##,
        y + 4.0
    );
}

fn label(svg: &mut String, x: f64, text: &str) {
    let _ = writeln!(svg, r#"<text x="{x:.1}" y="{}" text-anchor="middle">{text}</text>"#, HEIGHT - BOTTOM + 22.0);
}

/// A round number not below `rough`.
fn nice(rough: f64) -> f64 {
    let power = 10f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|factor| factor * power).find(|step| *step >= rough).unwrap_or(rough)
}
