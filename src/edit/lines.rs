//! The lines of a TOML text, and edits of it that leave every other byte alone.

use std::ops::Range;

/// Some bytes of a text, and what is to stand in their place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Splice {
    pub(super) range: Range<usize>,
    pub(super) with: String,
}

impl Splice {
    pub(super) fn insert(at: usize, with: impl Into<String>) -> Self {
        Self { range: at..at, with: with.into() }
    }

    /// Whether what one puts in would stand next to, or in, what the other does.
    pub(super) fn touches(&self, other: &Self) -> bool {
        self.range.start <= other.range.end && other.range.start <= self.range.end
    }

    pub(super) fn remove(range: Range<usize>) -> Self {
        Self { range, with: String::new() }
    }
}

/// `text` with all of `splices`, which do not overlap, made.
pub(super) fn spliced(text: &str, mut splices: Vec<Splice>) -> String {
    splices.sort_by_key(|splice| splice.range.start);
    let added: usize = splices.iter().map(|splice| splice.with.len()).sum();
    let mut new = String::with_capacity(text.len() + added);
    let mut at = 0;
    for Splice { range, with } in splices {
        new.push_str(&text[at..range.start]);
        new.push_str(&with);
        at = range.end;
    }
    new.push_str(&text[at..]);
    new
}

/// How the lines of `text` end.
pub(super) fn line_break(text: &str) -> &'static str {
    match text.find('\n') {
        Some(at) if text[..at].ends_with('\r') => "\r\n",
        _ => "\n",
    }
}

/// Where the line of the byte `at` begins.
pub(super) fn line_start(text: &str, at: usize) -> usize {
    text[..at].rfind('\n').map_or(0, |before| before + 1)
}

/// Where the line begins that ends at the byte `end`, its own end included.
fn line_before(text: &str, end: usize) -> usize {
    let line = &text[..end];
    line.strip_suffix('\n').unwrap_or(line).rfind('\n').map_or(0, |before| before + 1)
}

/// Behind the line of the byte `at`, its end included.
pub(super) fn line_end(text: &str, at: usize) -> usize {
    text[at..].find('\n').map_or(text.len(), |end| at + end + 1)
}

/// What stands before the byte `at` on its line, where that is white.
pub(super) fn indent(text: &str, at: usize) -> Option<&str> {
    let before = &text[line_start(text, at)..at];
    before.chars().all(|c| c == ' ' || c == '\t').then_some(before)
}

/// Whether nothing but white and a comment stands behind the byte `at` on its line.
pub(super) fn ends_its_line(text: &str, at: usize) -> bool {
    let rest = text[at..line_end(text, at)].trim_start();
    rest.is_empty() || rest.starts_with('#')
}

/// Where the comment lines directly above the line that begins at `start` begin, not above `top`. What is for editors (`#:schema …`) is of the
/// whole file.
pub(super) fn comments_above(text: &str, top: usize, start: usize) -> usize {
    let mut at = start;
    while at > top {
        let line = line_before(text, at).max(top);
        let content = text[line..at].trim();
        if !content.starts_with('#') || content.starts_with("#:") {
            break;
        }
        at = line;
    }
    at
}

/// Where the blank lines directly above the line that begins at `start` begin, not above `top`; and how many they are.
pub(super) fn blank_above(text: &str, top: usize, start: usize) -> (usize, usize) {
    let (mut at, mut count) = (start, 0);
    while at > top {
        let line = line_before(text, at).max(top);
        if !text[line..at].trim().is_empty() {
            break;
        }
        (at, count) = (line, count + 1);
    }
    (at, count)
}

/// Behind the lines from `start` on of which each, trimmed, is such a line; and how many they are.
fn run_below(text: &str, start: usize, is_one: impl Fn(&str) -> bool) -> (usize, usize) {
    let (mut at, mut count) = (start, 0);
    while at < text.len() {
        let end = line_end(text, at);
        if !is_one(text[at..end].trim()) {
            break;
        }
        (at, count) = (end, count + 1);
    }
    (at, count)
}

/// Behind the blank lines from `start` on; and how many they are.
pub(super) fn blank_below(text: &str, start: usize) -> (usize, usize) {
    run_below(text, start, str::is_empty)
}

/// Behind the comment lines from `start` on, if a blank line or the end follows on them: what stands directly above something belongs to that.
pub(super) fn comments_below(text: &str, start: usize) -> usize {
    let (end, _) = run_below(text, start, |line| line.starts_with('#'));
    if end == text.len() || blank_below(text, end).1 > 0 { end } else { start }
}

/// The comma behind the byte `at` of a list, if only white and comments stand between.
pub(super) fn comma(text: &str, at: usize) -> Option<usize> {
    let mut at = at;
    loop {
        match *text.as_bytes().get(at)? {
            b',' => return Some(at),
            b' ' | b'\t' | b'\r' | b'\n' => at += 1,
            b'#' => at = line_end(text, at),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splices_are_made_where_they_stood_in_the_old_text() {
        let splices = vec![Splice::insert(6, "!"), Splice::remove(0..1), Splice { range: 2..4, with: "XYZ".into() }];
        assert_eq!(spliced("abcdef", splices), "bXYZef!");
        assert_eq!(spliced("abc", vec![]), "abc");
    }

    #[test]
    fn comments_and_blank_lines_are_told_from_each_other() {
        let text = "a = 1\n\n#: for editors\n# one\n  # two\n[x]\n# below\n\n# apart\n";
        let header = text.find("[x]").unwrap();
        let above = comments_above(text, 0, header);
        assert_eq!(&text[above..header], "# one\n  # two\n");
        assert_eq!(comments_above(text, header, header), header, "not above the top");
        assert_eq!(blank_above(text, 0, text.find("#:").unwrap()), (6, 1));
        let below = line_end(text, header);
        assert_eq!(&text[below..comments_below(text, below)], "# below\n");
        assert_eq!(comments_below("[x]\n# of y\n[y]\n", 4), 4, "it stands directly above something else");
        assert_eq!(comma("1 # a, b\n\t, 2", 1), Some(10));
        assert_eq!(comma("1 ]", 1), None);
    }
}
