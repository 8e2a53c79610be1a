//! Plots as SVG: a line over 24 hours, with axes, the lines from which alerts begin, and the same in words. Pure.
//!
//! Colours come from the style sheet by class, so that they follow the scheme of whoever looks; attributes alone place things, since the page allows no
//! style of its own.

use std::fmt::Write as _;

use maud::{Markup, html};

use crate::store::rfc3339;

/// Seconds that are shown.
pub(super) const SPAN: u64 = 86_400;
/// Points are the most of five minutes: a day is 288 of them, some 3 KB.
const STEP: u64 = 300;
/// Of the drawing, in its own units.
const WIDTH: f64 = 600.0;
const HEIGHT: f64 = 150.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 594.0;
const TOP: f64 = 8.0;
const BOTTOM: f64 = 126.0;

/// One plot.
pub(super) struct Plot<'a> {
    /// Names it within its page.
    pub(super) id: &'a str,
    /// What it shows.
    pub(super) title: &'a str,
    /// When and how much, the oldest first.
    pub(super) points: &'a [(u64, f64)],
    /// Seconds for which a point stands.
    pub(super) step: u64,
    /// What the whole height is; none: a little more than the most.
    pub(super) full: Option<f64>,
    /// Lines across at these shares of the whole height, each with a word: from there on somebody is told.
    pub(super) marks: &'a [(f64, &'a str)],
    /// A value in words.
    pub(super) text: &'a dyn Fn(f64) -> String,
    /// Until when, seconds since 1970.
    pub(super) now: u64,
}

impl Plot<'_> {
    /// The figure.
    pub(super) fn draw(&self) -> Markup {
        let most = self.points.iter().map(|(_, value)| *value).fold(0.0, f64::max);
        let full = self.full.unwrap_or_else(|| round_up(most));
        let lines = self.lines(full);
        let label = format!("{}-words", self.id);
        let x_of = |hours: u64| RIGHT - (RIGHT - LEFT) * (hours * 3_600) as f64 / SPAN as f64;
        let y_of = |share: f64| BOTTOM - (BOTTOM - TOP) * share;
        html! {
            figure .plot {
                figcaption {
                    span .title { (self.title) }
                    " "
                    span .words id=(label) { (self.words()) }
                }
                svg viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } role="img" aria-label={ (self.title) ", the last 24 hours" } aria-describedby=(label) {
                    g .grid aria-hidden="true" {
                        @for share in [0.0, 0.5, 1.0] {
                            line x1=(LEFT) x2=(RIGHT) y1=(one(y_of(share))) y2=(one(y_of(share))) {}
                            text x=(LEFT - 6.0) y=(one(y_of(share) + 4.0)) text-anchor="end" { ((self.text)(full * share)) }
                        }
                        @for hours in [24, 18, 12, 6, 0] {
                            @let anchor = match hours { 24 => "start", 0 => "end", _ => "middle" };
                            line x1=(one(x_of(hours))) x2=(one(x_of(hours))) y1=(BOTTOM) y2=(BOTTOM + 4.0) {}
                            text x=(one(x_of(hours))) y=(BOTTOM + 18.0) text-anchor=(anchor) { (clock(self.now.saturating_sub(hours * 3_600))) }
                        }
                    }
                    g .marks aria-hidden="true" {
                        @for (share, word) in self.marks {
                            // The upper one is named above its line, the lower one below.
                            @let beside = if *share > 0.85 { -3.0 } else { 11.0 };
                            line .{ "mark " (word) } x1=(LEFT) x2=(RIGHT) y1=(one(y_of(*share))) y2=(one(y_of(*share))) {}
                            text .name x=(RIGHT) y=(one(y_of(*share) + beside)) text-anchor="end" { (one(share * 100.0)) " %" }
                        }
                    }
                    @for line in &lines {
                        path .area d={ (line.path) "L" (one(line.to)) " " (BOTTOM) "L" (one(line.from)) " " (BOTTOM) "Z" } {}
                        path .line d=(line.path) {}
                    }
                }
            }
        }
    }

    /// The same for whoever does not see it.
    fn words(&self) -> String {
        let Some((_, latest)) = self.points.last() else { return "nothing is known yet".to_owned() };
        let least = self.points.iter().min_by(|one, other| one.1.total_cmp(&other.1)).unwrap_or(&(0, 0.0));
        let most = self.points.iter().max_by(|one, other| one.1.total_cmp(&other.1)).unwrap_or(&(0, 0.0));
        let (text, at) = (self.text, |(at, value): &(u64, f64)| format!("{} at {}", (self.text)(*value), clock(*at)));
        format!("now {}, least {}, most {}", text(*latest), at(least), at(most))
    }

    /// One a stretch of which something is known.
    fn lines(&self, full: f64) -> Vec<Line> {
        let step = self.step.max(STEP);
        let begin = self.now.saturating_sub(SPAN);
        let recent: Vec<_> = self.points.iter().filter(|(at, _)| (begin..=self.now).contains(at)).collect();
        let most = |group: &[&(u64, f64)]| (group[0].0, group.iter().map(|(_, value)| *value).fold(0.0, f64::max));
        let thin: Vec<(u64, f64)> = recent.chunk_by(|one, next| one.0 / step == next.0 / step).map(most).collect();
        let x_of = |at: u64| LEFT + (RIGHT - LEFT) * (at - begin) as f64 / SPAN as f64;
        let y_of = |value: f64| BOTTOM - (BOTTOM - TOP) * if full > 0.0 { (value / full).clamp(0.0, 1.0) } else { 0.0 };
        thin.chunk_by(|one, next| next.0 - one.0 <= 2 * step).map(|stretch| Line::through(stretch, x_of, y_of)).collect()
    }
}

struct Line {
    path: String,
    from: f64,
    to: f64,
}

impl Line {
    fn through(stretch: &[(u64, f64)], x_of: impl Fn(u64) -> f64, y_of: impl Fn(f64) -> f64) -> Self {
        let mut path = String::with_capacity(stretch.len() * 11);
        for (n, (at, value)) in stretch.iter().enumerate() {
            // Writing to a String cannot fail.
            let _ = write!(path, "{}{} {}", if n == 0 { "M" } else { "L" }, one(x_of(*at)), one(y_of(*value)));
        }
        let (from, to) = (stretch.first().map_or(LEFT, |(at, _)| x_of(*at)), stretch.last().map_or(LEFT, |(at, _)| x_of(*at)));
        if stretch.len() == 1 {
            // A point alone would not be seen.
            path.push_str("h1.5");
        }
        Self { path, from, to }
    }
}

/// With one digit: a tenth of a unit is not to be seen, and ten digits a point are 5 KB a line.
fn one(value: f64) -> String {
    format!("{value:.1}").trim_end_matches(".0").to_owned()
}

/// The time of the day, `14:20`.
fn clock(at: u64) -> String {
    rfc3339(at).get(11..16).unwrap_or_default().to_owned()
}

/// The next of 1, 2, 5, 10, 20, …
fn round_up(most: f64) -> f64 {
    let mut full = 1.0;
    for factor in [2.0, 2.5, 2.0].into_iter().cycle().take(60) {
        if full >= most {
            break;
        }
        full *= factor;
    }
    full
}

/// A bar: how much of something is used.
pub(super) fn bar(percent: u64) -> Markup {
    let level = match percent {
        0..80 => "calm",
        80..90 => "warning",
        _ => "critical",
    };
    html! {
        svg .{ "bar " (level) } viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true" {
            rect .track width="100" height="6" {}
            rect .fill width=(percent.min(100)) height="6" {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn drawn(points: &[(u64, f64)]) -> String {
        let text = |value: f64| format!("{value:.0} %");
        let marks = [(0.8, "warning"), (0.9, "critical")];
        let plot = Plot { id: "m", title: "Memory", points, step: 60, full: Some(100.0), marks: &marks, text: &text, now: NOW };
        plot.draw().into_string()
    }

    #[test]
    fn a_day_of_minutes_is_one_line_of_a_few_kilobytes() {
        let points: Vec<(u64, f64)> = (0..1_440).map(|n| (NOW - 86_400 + n * 60, (n % 50) as f64)).collect();
        let svg = drawn(&points);
        assert_eq!((svg.matches("class=\"line\"").count(), svg.matches("class=\"area\"").count()), (1, 1));
        assert!(svg.len() < 9_000, "{}", svg.len());
        assert!(svg.contains("now 39 %, least 0 % at 08:00, most 49 % at"), "{svg}");
        assert!(svg.contains(">80 %<") && svg.contains(">90 %<"), "from where on somebody is told: {svg}");
        assert!(svg.contains("aria-describedby=\"m-words\"") && !svg.contains("style="));
    }

    #[test]
    fn a_gap_is_a_gap_and_what_is_older_is_left_out() {
        let points = [(NOW - 90_000, 99.0), (NOW - 7_200, 10.0), (NOW - 6_900, 50.0), (NOW - 60, 100.0)];
        let svg = drawn(&points);
        assert_eq!(svg.matches("class=\"line\"").count(), 2);
        assert!(svg.contains("class=\"line\" d=\"M549.8 114.2L551.7 67\""), "{svg}");
        assert!(svg.contains(" 8h1.5"), "all of it is at the top: {svg}");
        assert!(drawn(&[]).contains("nothing is known yet"));
    }

    #[test]
    fn the_scale_is_a_round_number_that_holds_the_most() {
        assert_eq!([0.0, 1.0, 1.5, 4.0, 6.0, 11.0, 1_001.0].map(round_up), [1.0, 1.0, 2.0, 5.0, 10.0, 20.0, 2_000.0]);
    }

    #[test]
    fn a_bar_tells_more_than_its_length_by_its_class() {
        let bar = |percent| bar(percent).into_string();
        assert!(bar(79).contains("bar calm") && bar(80).contains("bar warning") && bar(250).contains("width=\"100\" height=\"6\""));
    }
}
