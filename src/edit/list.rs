//! A list `[a, b]` in a text: one element more, or one less, in the way in which it is written.

use toml_edit::{Array, Value};

use super::lines::{Splice, comma, comments_above, ends_its_line, indent, line_break, line_end, line_start};

/// How far an element stands in where the list gives no example.
const STEP: &str = "  ";

/// `list` with `element` behind all others.
pub(super) fn append(text: &str, list: &Array, element: &str) -> Vec<Splice> {
    let Some(close) = list.span().map(|span| span.end - 1) else { return Vec::new() };
    let nl = line_break(text);
    let Some(last) = list.iter().last().and_then(Value::span) else {
        let open = list.span().map_or(close, |span| span.start + 1);
        return match indent(text, close).filter(|_| text[open..close].contains('\n')) {
            // Comments alone stand in it.
            Some(outer) => vec![Splice::insert(line_start(text, close), format!("{outer}{STEP}{element},{nl}"))],
            None => vec![Splice { range: open..close, with: element.to_owned() }],
        };
    };
    let comma = comma(text, last.end);
    match indent(text, last.start) {
        // A line for each.
        Some(inner) => {
            let end = comma.map_or(last.end, |comma| comma + 1);
            let (at, line) = if ends_its_line(text, end) {
                (line_end(text, end), format!("{inner}{element}"))
            } else {
                (end, format!("{nl}{inner}{element}"))
            };
            match (comma, at == end) {
                (Some(_), true) => vec![Splice::insert(at, line + ",")],
                (Some(_), false) => vec![Splice::insert(at, line + "," + nl)],
                (None, true) => vec![Splice::insert(at, format!(",{line}"))],
                (None, false) => vec![Splice::insert(last.end, ","), Splice::insert(at, line + nl)],
            }
        }
        None => match comma {
            Some(comma) => vec![Splice::insert(comma + 1, format!(" {element},"))],
            None => vec![Splice::insert(last.end, format!(", {element}"))],
        },
    }
}

/// `list` without its element `at`. The comments directly above it and on its line go with it, where the line is its alone.
pub(super) fn remove(text: &str, list: &Array, at: usize) -> Vec<Splice> {
    let (Some(whole), Some(element)) = (list.span(), list.get(at).and_then(Value::span)) else { return Vec::new() };
    let before = at.checked_sub(1).and_then(|before| list.get(before)).and_then(Value::span);
    let comma_before = before.and_then(|before| comma(text, before.end));
    let comma_after = comma(text, element.end);
    let end = comma_after.map_or(element.end, |comma| comma + 1);
    // The one before is the last one now, and ends as this one did.
    let loose = comma_before.filter(|_| comma_after.is_none()).map(|comma| Splice::remove(comma..comma + 1));
    let alone = indent(text, element.start).is_some() && ends_its_line(text, end) && line_start(text, element.start) > whole.start;
    let range = if alone {
        // Not above the line on which the one before ends.
        let top = line_end(text, comma_before.unwrap_or(whole.start));
        comments_above(text, top, line_start(text, element.start))..line_end(text, end)
    } else if at == 0 && comma_after.is_some() {
        // What follows takes its place.
        element.start..end + white(&text[end..])
    } else {
        let start = text[..element.start].trim_end_matches([' ', '\t']).len();
        start..end
    };
    loose.into_iter().chain([Splice::remove(range)]).collect()
}

/// How many bytes of white `text` begins with.
fn white(text: &str) -> usize {
    text.len() - text.trim_start_matches([' ', '\t']).len()
}

#[cfg(test)]
mod tests {
    use toml_edit::{Document, Item};

    use super::{super::lines::spliced, *};

    fn with(text: &str, edit: impl Fn(&str, &Array) -> Vec<Splice>) -> String {
        let document = Document::parse(text).unwrap();
        let new = spliced(text, edit(text, document.get("l").and_then(Item::as_array).unwrap()));
        let read = Document::parse(new.as_str()).unwrap_or_else(|error| panic!("{text}\n{new}\n{error}"));
        assert!(read.get("l").and_then(Item::as_array).is_some(), "{new}");
        new
    }

    fn appended(text: &str) -> String {
        with(text, |text, list| append(text, list, "9"))
    }

    fn without(text: &str, at: usize) -> String {
        with(text, |text, list| remove(text, list, at))
    }

    #[test]
    fn an_element_is_added_as_the_others_stand() {
        for (before, after) in [
            ("l = []\n", "l = [9]\n"),
            ("l = [ ] # c\n", "l = [9] # c\n"),
            ("l = [\n]", "l = [\n  9,\n]"),
            ("l = [\n  # c\n  ]", "l = [\n  # c\n    9,\n  ]"),
            ("l = [1]", "l = [1, 9]"),
            ("l = [ 1, 2 ]", "l = [ 1, 2, 9 ]"),
            ("l = [1,]", "l = [1, 9,]"),
            ("l = [1 # c\n]", "l = [1, 9 # c\n]"),
            ("l = [\n    1,\n    2,\n]", "l = [\n    1,\n    2,\n    9,\n]"),
            ("l = [\n  1,\n  2 # two\n  # end\n]", "l = [\n  1,\n  2, # two\n  9\n  # end\n]"),
            ("l = [\r\n  1, # one\r\n]", "l = [\r\n  1, # one\r\n  9,\r\n]"),
            ("l = [\n  1]", "l = [\n  1,\n  9]"),
            ("l = [\n  1, ]", "l = [\n  1,\n  9, ]"),
        ] {
            assert_eq!(appended(before), after, "{before:?}");
        }
    }

    #[test]
    fn an_element_is_removed_with_what_belongs_to_it_alone() {
        for (before, at, after) in [
            ("l = [1]", 0, "l = []"),
            ("l = [1, 2, 3]", 0, "l = [2, 3]"),
            ("l = [1, 2, 3]", 1, "l = [1, 3]"),
            ("l = [1, 2, 3]", 2, "l = [1, 2]"),
            ("l = [1, 2,]", 1, "l = [1,]"),
            ("l = [ 1, 2 ]", 1, "l = [ 1 ]"),
            ("l = [\n  # one\n  1,\n  # two\n  2, # too\n\n  # three\n  3\n]", 1, "l = [\n  # one\n  1,\n\n  # three\n  3\n]"),
            ("l = [\n  1, # one\n  2\n]", 1, "l = [\n  1 # one\n]"),
            ("l = [\n  1, # one\n  2 ]", 1, "l = [\n  1 # one\n ]"),
            ("l = [ # all\n  1,\n]", 0, "l = [ # all\n]"),
            ("l = [\n  1\n  , 2\n  , 3\n]", 1, "l = [\n  1\n  , 3\n]"),
        ] {
            assert_eq!(without(before, at), after, "{before:?} without {at}");
        }
    }
}
