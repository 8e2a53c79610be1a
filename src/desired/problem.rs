//! What is wrong with a tenants.toml: every problem at once, each with its place and its remedy.

use std::{
    fmt,
    ops::Range,
    path::{Path, PathBuf},
};

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};
use serde::Serialize;

/// A stretch of the file, in bytes.
pub(crate) type Span = Range<usize>;

/// A place in the file as a person finds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Place {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// The line as it stands, with anything that could be a secret replaced by `…`.
    pub text: String,
    /// The offending bytes within `text`.
    #[serde(skip)]
    within: Span,
}

/// One thing that is wrong, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Where; `None` where the file as a whole is meant (missing, a directory, not UTF-8).
    pub place: Option<Place>,
    /// What is wrong, in a sentence without a full stop.
    pub message: String,
    /// The offending text; empty where something is missing.
    pub offending: String,
    /// What to write or to do instead.
    pub help: String,
    /// The other half of a conflict, such as the first of two equal ids.
    pub related: Option<Related>,
}

/// A second place that a problem has to do with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Related {
    /// Where.
    pub place: Place,
    /// What stands there, in a few words.
    pub label: String,
}

/// A file that is refused, with all its problems in the order in which they stand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rejected {
    /// The file as it was named.
    pub file: PathBuf,
    /// At least one.
    pub problems: Vec<Problem>,
}

impl Rejected {
    /// A refusal of the file as a whole.
    pub(crate) fn whole(file: &Path, message: impl Into<String>, help: impl Into<String>) -> Self {
        let problem = Problem { place: None, message: message.into(), offending: String::new(), help: help.into(), related: None };
        Self { file: file.into(), problems: vec![problem] }
    }

    /// One line for a log or an alert: the first problem, and how many there are beside it.
    pub fn summary(&self) -> String {
        let Some(first) = self.problems.first() else { return self.file.display().to_string() };
        let more = match self.problems.len() - 1 {
            0 => String::new(),
            1 => " (and 1 more problem)".into(),
            n => format!(" (and {n} more problems)"),
        };
        format!("{}: {}; {}{more}", self.origin(first), first.message, first.help)
    }

    /// All problems as rustc would show them, with ANSI colours or without.
    pub fn render(&self, color: bool) -> String {
        let renderer = if color { Renderer::styled() } else { Renderer::plain() };
        let parts: Vec<String> = self.problems.iter().map(|problem| self.render_one(problem, &renderer)).collect();
        parts.join("\n\n")
    }

    fn origin(&self, problem: &Problem) -> String {
        match &problem.place {
            Some(place) => format!("{}:{}:{}", self.file.display(), place.line, place.column),
            None => self.file.display().to_string(),
        }
    }

    fn render_one(&self, problem: &Problem, renderer: &Renderer) -> String {
        let path = self.file.display().to_string();
        let title = Level::ERROR.primary_title(problem.message.as_str());
        let snippet = |place: &Place, kind: AnnotationKind, label: Option<&str>| {
            // Only the line itself is handed over, so that thousands of problems do not each scan the whole file.
            let mark = kind.span(place.within.clone());
            let mark = if let Some(label) = label { mark.label(label.to_owned()) } else { mark };
            Snippet::source(place.text.clone()).path(path.clone()).line_start(place.line).annotation(mark)
        };
        let mut group = match &problem.place {
            Some(place) => title.element(snippet(place, AnnotationKind::Primary, None)),
            None => title.element(Origin::path(path.clone())),
        };
        if let Some(Related { place, label }) = &problem.related {
            group = group.element(snippet(place, AnnotationKind::Context, Some(label)));
        }
        let groups: [Group<'_>; 1] = [group.element(Level::HELP.message(problem.help.as_str()))];
        renderer.render(&groups)
    }
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for Rejected {}

/// A problem while it is still tied to bytes of the file.
#[derive(Debug)]
pub(crate) struct Finding {
    pub(crate) span: Span,
    pub(crate) message: String,
    pub(crate) help: String,
    pub(crate) related: Option<(Span, &'static str)>,
    pub(crate) show: Show,
    /// May be nothing but the echo of a syntax error elsewhere (a key or tier that the parser had to skip).
    pub(crate) echo: bool,
}

/// How much of the offending line may be shown: what is pasted into the wrong place may be a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Show {
    /// All of it.
    Line,
    /// The line up to the end of the span: what follows an unknown key may be a password.
    UpToSpan,
    /// The line without the span: the value itself may be a key.
    NotSpan,
}

impl Finding {
    pub(crate) fn new(span: Span, message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { span, message: message.into(), help: help.into(), related: None, show: Show::Line, echo: false }
    }

    pub(crate) fn related(mut self, span: Span, label: &'static str) -> Self {
        self.related = Some((span, label));
        self
    }

    pub(crate) fn show(mut self, show: Show) -> Self {
        self.show = show;
        self
    }

    pub(crate) fn echo(mut self) -> Self {
        self.echo = true;
        self
    }
}

/// The file's text with an index of its lines.
pub(crate) struct Source<'a> {
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Source<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { text, starts }
    }

    /// Line number, from 0, of a byte.
    pub(crate) fn line_of(&self, at: usize) -> usize {
        self.starts.partition_point(|start| *start <= at).saturating_sub(1)
    }

    fn place(&self, span: &Span, show: Show) -> Place {
        let at = self.floor(span.start);
        let line = self.line_of(at);
        let start = self.starts[line];
        let rest = &self.text[start..];
        let text = rest.split('\n').next().unwrap_or(rest).trim_end_matches('\r');
        // A span of many lines is shown by its first one.
        let from = (at - start).min(text.len());
        let to = (self.floor(span.end) - start).clamp(from, text.len());
        let column = text[..from].chars().count() + 1;
        let (text, to) = match show {
            Show::Line => (text.to_owned(), to),
            Show::UpToSpan if to < text.len() => (format!("{} …", &text[..to]), to),
            Show::UpToSpan => (text.to_owned(), to),
            Show::NotSpan => (format!("{}…{}", &text[..from], &text[to..]), from + '…'.len_utf8()),
        };
        Place { line: line + 1, column, text, within: from..to }
    }

    /// The character boundary at or before `at`.
    fn floor(&self, at: usize) -> usize {
        let at = at.min(self.text.len());
        (0..=at).rev().find(|at| self.text.is_char_boundary(*at)).unwrap_or(0)
    }

    /// Turns a finding into what a person sees.
    pub(crate) fn problem(&self, finding: Finding) -> Problem {
        let place = self.place(&finding.span, finding.show);
        let offending = place.text[place.within.clone()].to_owned();
        let related = finding.related.map(|(span, label)| Related { place: self.place(&span, finding.show), label: label.to_owned() });
        Problem { place: Some(place), message: finding.message, offending, help: finding.help, related }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rejected(text: &str, finding: Finding) -> Rejected {
        Rejected { file: "t.toml".into(), problems: vec![Source::new(text).problem(finding)] }
    }

    #[test]
    fn a_problem_shows_file_line_column_text_and_help() {
        let text = "a = 1\nñame = \"bad\"\n";
        let shown = rejected(text, Finding::new(14..19, "no", "write yes")).to_string();
        assert!(shown.contains("t.toml:2:8"), "{shown}");
        assert!(shown.contains("\"bad\"") && shown.contains("^^^^^") && shown.contains("help: write yes"), "{shown}");
        assert!(!shown.contains('\x1b'), "plain text holds no colour");
    }

    #[test]
    fn what_may_be_a_secret_is_not_shown() {
        let text = "password = \"hunter2\" # hm\n";
        let up_to = rejected(text, Finding::new(0..8, "unknown", "remove").show(Show::UpToSpan));
        let not = rejected(text, Finding::new(11..20, "bad", "replace").show(Show::NotSpan));
        for shown in [up_to.to_string(), not.to_string(), serde_json::to_string(&up_to).unwrap(), serde_json::to_string(&not).unwrap()] {
            assert!(!shown.contains("hunter2"), "{shown}");
        }
    }

    #[test]
    fn a_place_outside_the_text_or_inside_a_character_is_pulled_in() {
        for span in [0..99, 98..99, 1..2, 2..2] {
            let problem = Source::new("é\n").problem(Finding::new(span, "m", "h"));
            assert!(problem.place.is_some());
        }
    }
}
