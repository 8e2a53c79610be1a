//! Texts of others in a message: ids, phext names and error texts say what they say, and do nothing.

/// What Discord takes for markup somewhere (its "Markdown Text 101"), and shows as it is behind a backslash.
const MARKUP: &str = "\\*_~`|>#[]()<";
/// Shows nothing, and parts what would be taken for one thing.
const ZERO_WIDTH: char = '\u{200b}';

/// `text` in one line of at most `max` UTF-16 units, as Discord's clients count, with nothing in it that Discord acts on: no markup, mention or
/// link. Where it is longer, it ends in `…`.
pub(super) fn neutral(text: &str, max: usize) -> String {
    fit(pieces(text), max)
}

/// The same for text between backticks, where only those end it.
pub(super) fn code(text: &str, max: usize) -> String {
    fit(plain(text).map(|c| if c == '`' { "'".to_owned() } else { c.to_string() }), max)
}

/// One line without what only steers a terminal or turns the direction of writing.
fn plain(text: &str) -> impl Iterator<Item = char> {
    let steers = |c: char| matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
    text.chars().filter(move |&c| !steers(c)).map(|c| if c.is_control() { ' ' } else { c })
}

/// Each character with what keeps it from being more than one.
fn pieces(text: &str) -> impl Iterator<Item = String> {
    let mut before = ' ';
    plain(text).map(move |c| {
        let piece = match c {
            c if MARKUP.contains(c) => format!("\\{c}"),
            '@' => format!("@{ZERO_WIDTH}"),
            // Of `https://`: clients make a link of it, in a text of whoever.
            '/' if before == ':' => format!("{ZERO_WIDTH}/"),
            c => c.to_string(),
        };
        before = c;
        piece
    })
}

fn fit(pieces: impl Iterator<Item = String>, max: usize) -> String {
    let (mut text, mut length) = (String::new(), 0);
    // What still fits where all of it does not.
    let mut short = None;
    for piece in pieces {
        let more = utf16(&piece);
        if length + more > max {
            text.truncate(short.unwrap_or(text.len()));
            text.push('…');
            return text;
        }
        if short.is_none() && length + more + 1 > max {
            short = Some(text.len());
        }
        text.push_str(&piece);
        length += more;
    }
    text
}

/// How long it is for Discord's clients.
pub(super) fn utf16(text: &str) -> usize {
    text.chars().map(char::len_utf16).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nothing_in_a_text_is_markup_a_mention_or_a_link() {
        let table = [
            ("**bold** __x__ ~~y~~", r"\*\*bold\*\* \_\_x\_\_ \~\~y\~\~"),
            ("`code` ||spoiler||", r"\`code\` \|\|spoiler\|\|"),
            ("@everyone <@123> <t:1:R>", "@\u{200b}everyone \\<@\u{200b}123\\> \\<t:1:R\\>"),
            ("[x](https://evil.example)", "\\[x\\]\\(https:\u{200b}//evil.example\\)"),
            ("# heading\n> quote\r\u{1b}[31m", "\\# heading \\> quote  \\[31m"),
            ("\u{202e}turned\u{2066}", "turned"),
            (r"a\*b", r"a\\\*b"),
        ];
        for (text, said) in table {
            assert_eq!(neutral(text, 500), said, "{text:?}");
        }
        assert_eq!(code("sq-agent restart `rm`\n@x", 50), "sq-agent restart 'rm' @x");
    }

    #[test]
    fn what_is_too_long_is_cut_between_characters_and_says_so() {
        assert_eq!((neutral("abcd", 4), neutral("abcde", 4)), ("abcd".into(), "abc…".into()));
        assert_eq!(neutral("ab*", 3), "ab…", "not between a backslash and what it stands before");
        assert_eq!(neutral("🐙🐙🐙", 5), "🐙🐙…");
        assert_eq!((neutral("abc", 0), neutral("", 0)), ("…".into(), String::new()));
    }

    proptest! {
        #[test]
        fn it_never_is_longer_than_it_may_be(text in "\\PC{0,80}", max in 1_usize..60) {
            let said = neutral(&text, max);
            prop_assert!(utf16(&said) <= max, "{said:?}");
            prop_assert!(!said.contains("://") && !said.contains("@e") && !said.contains('\n'));
            prop_assert!(utf16(&code(&text, max)) <= max && !code(&text, max).contains('`'));
        }
    }
}
