//! TOML's own errors, as a person should see them: one a slip, although a parser that goes on often trips over it again.

use toml::de::Error;

use super::problem::{Finding, Source};

/// The syntax errors worth showing, in their order.
pub(super) fn findings(source: &Source<'_>, errors: &[Error]) -> Vec<Finding> {
    let mut lines: Vec<(usize, &Error)> =
        errors.iter().map(|error| (source.line_of(error.span().unwrap_or_default().start), error)).collect();
    lines.sort_by_key(|(line, error)| (*line, error.span().unwrap_or_default().start));
    // The first complaint about a line is the one to act on.
    lines.dedup_by_key(|(line, _)| *line);
    // After a broken header the parser puts what follows into the wrong table, and finds it there twice.
    if lines.iter().any(|(_, error)| !is_duplicate(error)) {
        lines.retain(|(_, error)| !is_duplicate(error));
    }
    let runs = lines.chunk_by(|(line, _), (next, _)| next - line == 1);
    runs.flat_map(|run| match run {
        // A list without its end swallows the lines below it, each of which is then no element.
        [(_, first), ..] if run.iter().any(|(_, error)| error.message().contains("array elements")) => vec![unclosed_list(first)],
        run => run.iter().map(|(_, error)| finding(error)).collect(),
    })
    .collect()
}

fn is_duplicate(error: &Error) -> bool {
    error.message().contains("duplicate key")
}

fn unclosed_list(error: &Error) -> Finding {
    let message = "not valid TOML: a list that does not end, or lacks a comma, here or on a line above";
    Finding::new(error.span().unwrap_or_default(), message, "write lists as key = [\"a\", \"b\"]")
}

fn finding(error: &Error) -> Finding {
    let help = match error.message() {
        message if message.contains("duplicate key") => "keep one of the two",
        message if message.contains("expected `]`") => "close the bracket: [table] or [[list of tables]]",
        message if message.contains("string") || message.contains("boolean") || message.contains("float") => {
            "put text between double quotes: key = \"text\""
        }
        _ => "each line is `key = value`, a `[table]` or a comment; see https://toml.io",
    };
    Finding::new(error.span().unwrap_or_default(), format!("not valid TOML: {}", error.message()), help)
}

#[cfg(test)]
mod tests {
    use toml::de::DeTable;

    use super::*;

    fn lines(text: &str) -> Vec<usize> {
        let source = Source::new(text);
        let (_, errors) = DeTable::parse_recoverable(text);
        findings(&source, &errors).iter().map(|finding| source.line_of(finding.span.start) + 1).collect()
    }

    #[test]
    fn each_slip_is_told_once() {
        assert!(lines("a = 1\n").is_empty());
        assert_eq!(lines("a = 1 b = 2\nfoo bar\nc = 3\n[d\n"), [1, 2, 4]);
        assert_eq!(lines("[t\nx = 1\n[[l]]\ni = 1\n[[l]]\ni = 1\n"), [1]);
        assert_eq!(lines("l = ['a',\n[[t]]\ni = 'a'\n[[t]]\ni = 'b'\n"), [2]);
        assert_eq!(lines("a = 1\na = 2\n"), [2]);
    }
}
