//! Which file a request makes sq write, told by its path and query, byte for byte as sq 0.6.0 reads them. Pure.
//!
//! sq splits the request line at its first `?`, the rest at `&` and each pair at its first `=`, turns `+` into a space, decodes percent
//! signs, replaces what is not UTF-8 by U+FFFD, and lets the last of several pairs win (`parse_query_string` and `url_decode` in its main.rs).

use std::borrow::Cow;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// What sq appends to a phext's name.
const PHEXT: &str = ".phext";
/// What `json-export` appends to that.
const EXPORT: &str = ".json";
/// Longest file name of Linux file systems, bytes.
const MAX_NAME: usize = 255;

/// A file that a request makes sq write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The phext, as its file is called: `NAME.phext`.
    pub phext: String,
    /// What sq does with it.
    pub call: Call,
}

/// The calls of sq that write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Call {
    /// Appends to a scroll: sq holds its text twice meanwhile.
    Insert,
    /// Replaces a scroll.
    Update,
    /// Empties one.
    Delete,
    /// Writes the phext as JSON beside it, and leaves the phext alone.
    Export,
}

/// A name under which sq would lose what it is given, without a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error, serde::Serialize, serde::Deserialize)]
pub enum BadName {
    /// The file system refuses it: sq would answer 200 and store nothing.
    #[error("the phext's name makes a file name of {0} bytes, and a file system takes 255: choose a shorter one")]
    TooLong(usize),
    /// A control character, a path, or bytes that are not UTF-8.
    #[error("the phext's name holds a control character, a slash, `..` or bytes that are not UTF-8: choose plain text")]
    NotPlain,
}

impl Call {
    /// What a request with this path makes sq write; `None` where that is no file.
    pub fn of(path: &str) -> Option<Self> {
        let call = path.strip_prefix("/api/v2/")?;
        let is = |name| call.starts_with(name);
        match () {
            () if is("insert") => Some(Self::Insert),
            () if is("update") => Some(Self::Update),
            () if is("delete") => Some(Self::Delete),
            () if is("json-export") => Some(Self::Export),
            () => None,
        }
    }
}

impl Target {
    /// What a request with this path and query writes; `None` where it writes no phext.
    pub fn of(path: &str, query: Option<&str>) -> Option<Result<Self, BadName>> {
        let call = Call::of(path)?;
        let name = query.and_then(phext_name).unwrap_or_default();
        Some(check(name, call))
    }

    /// The file that is written, below the tenant's data.
    pub fn file(&self) -> Cow<'_, str> {
        match self.call {
            Call::Insert | Call::Update | Call::Delete => Cow::Borrowed(&self.phext),
            Call::Export => Cow::Owned(format!("{}{EXPORT}", self.phext)),
        }
    }

    /// A path and query that make sq read the phext from disk again.
    pub fn reload(&self) -> String {
        /// Left as they are by everybody who decodes.
        const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
        let name = self.phext.strip_suffix(PHEXT).unwrap_or(&self.phext);
        format!("/api/v2/load?p={}", utf8_percent_encode(name, PLAIN))
    }
}

/// The value of `p`; the last one, where there are several.
fn phext_name(query: &str) -> Option<String> {
    query.split('&').rev().filter_map(|pair| pair.split_once('=')).find(|(key, _)| decode(key) == "p").map(|(_, value)| decode(value))
}

fn decode(text: &str) -> String {
    percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned()
}

fn check(name: String, call: Call) -> Result<Target, BadName> {
    let plain = !name.contains("..") && !name.chars().any(|c| c.is_control() || matches!(c, '/' | '\\' | '\u{fffd}'));
    if !plain {
        return Err(BadName::NotPlain);
    }
    let target = Target { phext: format!("{name}{PHEXT}"), call };
    match target.file().len() {
        length if length > MAX_NAME => Err(BadName::TooLong(length)),
        _ => Ok(target),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phext(query: &str) -> String {
        Target::of("/api/v2/update", Some(query)).unwrap().unwrap().phext
    }

    #[test]
    fn the_name_is_read_as_sq_reads_it() {
        for (query, expected) in [
            ("p=a&c=1.1.1/1.1.1/1.1.1&s=x", "a.phext"),
            ("c=1&p=a", "a.phext"),
            ("p=a&p=b", "b.phext"),
            ("p=a+b%20c", "a b c.phext"),
            ("%70=a", "a.phext"),
            ("p=a%26b=c", "a&b=c.phext"),
            ("p=a=b", "a=b.phext"),
            ("p", ".phext"),
            ("p=", ".phext"),
            ("P=a", ".phext"),
            ("p=%C3%A9", "é.phext"),
            ("p=a?p=b", "a?p=b.phext"),
        ] {
            assert_eq!(phext(query), expected, "{query}");
        }
        assert_eq!(Target::of("/api/v2/update", None).unwrap().unwrap().phext, ".phext");
    }

    #[test]
    fn what_writes_is_told_from_what_does_not() {
        let call = |path| Target::of(path, Some("p=a")).map(|target| target.unwrap().call);
        assert_eq!(call("/api/v2/insert"), Some(Call::Insert));
        assert_eq!(call("/api/v2/updateXYZ"), Some(Call::Update));
        assert_eq!(call("/api/v2/delete"), Some(Call::Delete));
        assert_eq!(call("/api/v2/json-export"), Some(Call::Export));
        for path in ["/api/v2/select", "/api/v2/", "/", "//api/v2/insert", "/api/v1/insert"] {
            assert_eq!(call(path), None, "{path}");
        }
        let export = Target::of("/api/v2/json-export", Some("p=a")).unwrap().unwrap();
        assert_eq!(export.file(), "a.phext.json");
    }

    #[test]
    fn names_that_sq_would_lose_are_refused() {
        let check = |query: &str| Target::of("/api/v2/update", Some(query)).unwrap().map(drop);
        for name in ["a%00", "a%0A", "..%2Fa", "a/b", "a%5Cb", "a..b", "%FF", "a%7F"] {
            assert_eq!(check(&format!("p={name}")), Err(BadName::NotPlain), "{name}");
        }
        assert_eq!(check(&format!("p={}", "a".repeat(249))), Ok(()));
        assert_eq!(check(&format!("p={}", "a".repeat(250))), Err(BadName::TooLong(256)));
        assert_eq!(
            Target::of("/api/v2/json-export", Some(&format!("p={}", "a".repeat(245)))).unwrap().map(drop),
            Err(BadName::TooLong(256))
        );
    }

    #[test]
    fn a_reload_names_the_same_phext() {
        for name in ["a", "", "a b", "é", "a&b=c", "a+b%", "~x-y_z.w", "100%25"] {
            let target = Target { phext: format!("{name}.phext"), call: Call::Update };
            let reload = target.reload();
            let (path, query) = reload.split_once('?').unwrap();
            assert_eq!(path, "/api/v2/load");
            assert_eq!(phext(query), target.phext, "{name}");
        }
    }
}
