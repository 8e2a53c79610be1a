//! Whether a request's head is one that every server on its way reads alike. Pure.
//!
//! hyper is lenient where RFC 9112 lets it be: two equal lengths count as one, a bare LF ends a line, `gzip, chunked` is chunked, what stands
//! behind a `#` is dropped. Each of these is read otherwise by some proxy that may stand before us and carry the requests of several people on
//! one connection. So the bytes of a head are looked at before hyper has them (see `gate`), and hyper gets none that it would refuse by
//! itself, since its own refusals have neither a body nor a line in the access log.
//!
//! This is not a second parser: lines and fields are split by httparse, the very code that hyper uses, with the same settings, and a target that
//! is not plain is given to the `Uri` that hyper makes of it. What is added can only refuse. `gate` and `fuzz/` hold hyper against it.
//!
//! It takes 0.2 µs for a small head and 0.7 µs for a browser's (`benches/head.rs`), of some 75 µs that a request takes.

use std::mem::MaybeUninit;

use http::{StatusCode, Uri, Version, header, request::Parts};

/// Longest head, bytes; sq takes 64 KiB.
pub(crate) const MAX_HEAD: usize = 32 * 1024;

/// Most fields of a head: as many as hyper has room for.
pub(crate) const MAX_FIELDS: usize = 100;

/// Longest length that is believed, digits: an exabyte, and no overflow whatever they are.
const MAX_DIGITS: usize = 18;

/// What is wrong with a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadHead {
    /// A request line or a field that is none: a space before the colon, a folded line, NUL, a bare CR.
    #[error("the request line or a header field is malformed (RFC 9112)")]
    Malformed,
    /// RFC 9112 section 2.2 lets a server take it for a line's end, and not all do.
    #[error("a line of the head ends in LF without CR")]
    BareLf,
    /// Even if they say the same.
    #[error("more than one Content-Length")]
    SeveralLengths,
    /// `+3`, `0x3`, `3, 3`, nothing.
    #[error("Content-Length is not a plain decimal number")]
    BadLength,
    /// Where `chunked` is not the last coding, nobody knows where the body ends.
    #[error("Transfer-Encoding must be chunked")]
    BadCoding,
    /// RFC 9112 section 6.1.
    #[error("HTTP/1.0 has no Transfer-Encoding")]
    CodingInOldVersion,
    /// A coding under `chunked` that is not undone here.
    #[error("no transfer coding but chunked is understood")]
    UnknownCoding,
    /// RFC 9112 section 3.2.
    #[error("the request names no host: send exactly one Host (or :authority)")]
    NoHost,
    /// Two of them, or `Host` and `:authority` that differ.
    #[error("the request names more than one host")]
    SeveralHosts,
    /// Neither a name nor an address.
    #[error("Host is not a host's name or address, with or without a port")]
    BadHost,
    /// Neither a path nor an absolute URI.
    #[error("the request target is neither a path nor an absolute URI")]
    BadTarget,
    /// A client that does not encode `#` would lose what stands behind it.
    #[error("the request target holds a '#': write %23")]
    Fragment,
    /// What came next would not be HTTP/1.1 to everybody.
    #[error("a request to upgrade the protocol has no body")]
    UpgradeWithBody,
    /// More than [`MAX_FIELDS`].
    #[error("more than {MAX_FIELDS} header fields")]
    TooManyFields,
    /// More than [`MAX_HEAD`].
    #[error("the head is longer than {MAX_HEAD} bytes")]
    TooLong,
}

impl BadHead {
    /// The answer's status, slug and title.
    pub(crate) fn names(self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::TooManyFields | Self::TooLong => {
                (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "head-too-large", "Head of the request too large")
            }
            Self::UnknownCoding => (StatusCode::NOT_IMPLEMENTED, "unknown-coding", "Unknown transfer coding"),
            _ => (StatusCode::BAD_REQUEST, "bad-request", "Not a valid request"),
        }
    }
}

/// How the body behind a head is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// So many bytes.
    Length(u64),
    /// In chunks; the last request of its connection if a length stood beside it (RFC 9112 section 6.1).
    Chunked {
        /// A length stood beside it.
        last: bool,
    },
}

/// Looks for the end of a head in bytes that grow, each of them looked at once.
#[derive(Debug, Default)]
pub struct Search {
    looked: usize,
    line: usize,
    begun: bool,
}

impl Search {
    /// At the start of a head.
    #[must_use]
    pub const fn new() -> Self {
        Self { looked: 0, line: 0, begun: false }
    }

    /// The length of the head at the start of `bytes`, once it is whole. `bytes` is what was given before and more.
    ///
    /// # Errors
    /// A line that does not end as it must, or more than fits.
    pub fn end(&mut self, bytes: &[u8]) -> Result<Option<usize>, BadHead> {
        while let Some(at) = bytes.get(self.looked..).and_then(|rest| memchr::memchr(b'\n', rest)).map(|at| self.looked + at) {
            if at == self.line || bytes[at - 1] != b'\r' {
                return Err(BadHead::BareLf);
            }
            let empty = at == self.line + 1;
            (self.looked, self.line) = (at + 1, at + 1);
            if at >= MAX_HEAD {
                return Err(BadHead::TooLong);
            }
            if empty && self.begun {
                return Ok(Some(at + 1));
            }
            // Empty lines before a request are let pass (RFC 9112 section 2.2).
            self.begun |= !empty;
        }
        self.looked = bytes.len();
        if bytes.len() >= MAX_HEAD { Err(BadHead::TooLong) } else { Ok(None) }
    }
}

/// Judges a whole head, and says what follows it.
///
/// # Errors
/// The first thing that is wrong.
pub fn check(head: &[u8]) -> Result<Framing, BadHead> {
    let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(head, &mut fields) {
        Ok(httparse::Status::Complete(length)) if length == head.len() => {}
        Ok(_) => return Err(BadHead::Malformed),
        Err(httparse::Error::TooManyHeaders) => return Err(BadHead::TooManyFields),
        Err(_) => return Err(BadHead::Malformed),
    }
    let is_1_1 = request.version == Some(1);
    check_target(request.method.unwrap_or_default(), request.path.unwrap_or_default())?;
    let seen = Seen::of(request.headers)?;
    match seen.hosts {
        0 if is_1_1 => return Err(BadHead::NoHost),
        0 | 1 => {}
        _ => return Err(BadHead::SeveralHosts),
    }
    let framing = match seen.coding.framing(seen.length.is_some())? {
        Some(_) if !is_1_1 => return Err(BadHead::CodingInOldVersion),
        Some(chunked) => chunked,
        None => Framing::Length(seen.length.unwrap_or(0)),
    };
    if seen.upgrade && framing != Framing::Length(0) {
        return Err(BadHead::UpgradeWithBody);
    }
    Ok(framing)
}

/// Judges what can still be wrong with a head of HTTP/2, which is framed and split already.
pub(crate) fn check_framed(parts: &Parts) -> Result<(), BadHead> {
    debug_assert_eq!(parts.version, Version::HTTP_2);
    if parts.headers.len() > MAX_FIELDS {
        return Err(BadHead::TooManyFields);
    }
    let path = parts.uri.path_and_query().map_or("", |path| path.as_str());
    if !path.starts_with('/') && !has_target_of_its_own(parts.method.as_str(), path) {
        return Err(BadHead::BadTarget);
    }
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    match (parts.uri.authority(), hosts.next()) {
        (None, None) => return Err(BadHead::NoHost),
        // Not by `Uri`, which takes a user before the host, and more.
        (Some(authority), _) if !is_host(authority.as_str().as_bytes()) => return Err(BadHead::BadHost),
        (None, Some(host)) if !is_host(host.as_bytes()) => return Err(BadHead::BadHost),
        // RFC 9113 section 8.3.1.
        (Some(authority), Some(host)) if !host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes()) => {
            return Err(BadHead::SeveralHosts);
        }
        _ => {}
    }
    if hosts.next().is_some() {
        return Err(BadHead::SeveralHosts);
    }
    let mut lengths = parts.headers.get_all(header::CONTENT_LENGTH).iter();
    if lengths.next().is_some_and(|length| decimal(length.as_bytes()).is_none()) {
        return Err(BadHead::BadLength);
    }
    if lengths.next().is_some() { Err(BadHead::SeveralLengths) } else { Ok(()) }
}

/// What the fields say of framing and host.
#[derive(Default)]
struct Seen {
    length: Option<u64>,
    coding: Coding,
    hosts: u32,
    upgrade: bool,
}

impl Seen {
    fn of(fields: &[httparse::Header<'_>]) -> Result<Self, BadHead> {
        let mut seen = Self::default();
        for field in fields {
            let is = |name: &str| field.name.eq_ignore_ascii_case(name);
            // By length first: most fields are none of these.
            match field.name.len() {
                4 if is("host") => {
                    seen.hosts += 1;
                    if !is_host(field.value) {
                        return Err(BadHead::BadHost);
                    }
                }
                7 if is("upgrade") => seen.upgrade = true,
                14 if is("content-length") => {
                    let length = decimal(field.value).ok_or(BadHead::BadLength)?;
                    if seen.length.replace(length).is_some() {
                        return Err(BadHead::SeveralLengths);
                    }
                }
                17 if is("transfer-encoding") => seen.coding.add(field.value),
                _ => {}
            }
        }
        Ok(seen)
    }
}

/// All transfer codings of a head, in their order.
#[derive(Default)]
struct Coding {
    chunked: u32,
    others: u32,
    /// Chunked, and nothing after it.
    ends_chunked: bool,
    malformed: bool,
}

impl Coding {
    fn add(&mut self, value: &[u8]) {
        for token in value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
            self.ends_chunked = token.eq_ignore_ascii_case(b"chunked");
            self.malformed |= token.is_empty();
            if self.ends_chunked {
                self.chunked += 1;
            } else {
                self.others += 1;
            }
        }
    }

    fn framing(&self, beside_length: bool) -> Result<Option<Framing>, BadHead> {
        match (self.chunked, self.others) {
            (0, 0) => Ok(None),
            (1, 0) => Ok(Some(Framing::Chunked { last: beside_length })),
            (1, _) if self.ends_chunked && !self.malformed => Err(BadHead::UnknownCoding),
            _ => Err(BadHead::BadCoding),
        }
    }
}

/// RFC 9110 section 8.6: digits and nothing else.
fn decimal(value: &[u8]) -> Option<u64> {
    let plain = (1..=MAX_DIGITS).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
    if plain { std::str::from_utf8(value).ok()?.parse().ok() } else { None }
}

/// A name or an address with or without a port, by its bytes (RFC 3986 section 3.2, without a user).
fn is_host(value: &[u8]) -> bool {
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~:[]%!$&'()*+,;=".contains(byte);
    !value.is_empty() && value.iter().all(allowed)
}

/// Bytes of a path or query that nobody reads in two ways (RFC 3986, without `#` and brackets).
const PLAIN: [bool; 256] = {
    let mut plain = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        plain[byte] = matches!(byte as u8, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'!' | b'$' | b'&' | b'\''
            | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' | b':' | b'@' | b'/' | b'?' | b'%');
        byte += 1;
    }
    plain
};

fn check_target(method: &str, target: &str) -> Result<(), BadHead> {
    if target.starts_with('/') && target.bytes().all(|byte| PLAIN[usize::from(byte)]) {
        return Ok(());
    }
    if target.contains('#') {
        return Err(BadHead::Fragment);
    }
    let uri = Uri::try_from(target).map_err(|_| BadHead::BadTarget)?;
    let is_path = target.starts_with('/') || uri.scheme().is_some();
    if is_path || has_target_of_its_own(method, target) { Ok(()) } else { Err(BadHead::BadTarget) }
}

/// Those are answered by the proxy, whatever they name.
fn has_target_of_its_own(method: &str, target: &str) -> bool {
    (method == "OPTIONS" && target == "*") || method == "CONNECT"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(head: &str) -> Result<Framing, BadHead> {
        let bytes = head.as_bytes();
        let end = Search::default().end(bytes)?.expect("a whole head");
        assert_eq!(end, bytes.len());
        check(bytes)
    }

    fn with(fields: &str) -> Result<Framing, BadHead> {
        judge(&format!("POST /api/v2/update?p=a HTTP/1.1\r\nHost: localhost:8443\r\n{fields}\r\n"))
    }

    #[test]
    fn a_plain_head_says_how_long_its_body_is() {
        assert_eq!(with(""), Ok(Framing::Length(0)));
        assert_eq!(with("Content-Length: 3\r\n"), Ok(Framing::Length(3)));
        assert_eq!(with("content-length:\t007 \r\n"), Ok(Framing::Length(7)));
        assert_eq!(with("Transfer-Encoding: Chunked\r\n"), Ok(Framing::Chunked { last: false }));
        assert_eq!(judge("GET / HTTP/1.0\r\n\r\n"), Ok(Framing::Length(0)));
        assert_eq!(judge("\r\n\r\nGET / HTTP/1.0\r\n\r\n"), Ok(Framing::Length(0)));
    }

    #[test]
    fn a_length_is_digits_once() {
        for value in ["+3", "-3", "0x3", "3, 3", "3,3", "", " ", "3.0", "1e3", "3 3", "\u{663}", "99999999999999999999"] {
            assert_eq!(with(&format!("Content-Length: {value}\r\n")), Err(BadHead::BadLength), "{value}");
        }
        for value in ["3", "4"] {
            assert_eq!(with(&format!("Content-Length: 3\r\nContent-length: {value}\r\n")), Err(BadHead::SeveralLengths));
        }
    }

    #[test]
    fn chunked_alone_is_understood() {
        for value in [
            "gzip",
            "identity",
            "chunked, gzip",
            "chunked, chunked",
            "chunked;q=1",
            "xchunked",
            "",
            ", chunked, gzip",
            "chunked,",
            "x,,chunked",
        ] {
            assert_eq!(with(&format!("Transfer-Encoding: {value}\r\n")), Err(BadHead::BadCoding), "{value}");
        }
        for fields in ["gzip, chunked\r\n", "gzip\r\nTransfer-Encoding: chunked\r\n", "identity ,\tchunked\r\n"] {
            assert_eq!(with(&format!("Transfer-Encoding: {fields}")), Err(BadHead::UnknownCoding), "{fields}");
        }
        assert_eq!(with("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"), Err(BadHead::BadCoding));
        assert_eq!(judge("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"), Err(BadHead::CodingInOldVersion));
    }

    #[test]
    fn a_length_beside_chunks_makes_the_request_the_last_one() {
        for fields in ["Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n"] {
            assert_eq!(with(fields), Ok(Framing::Chunked { last: true }));
        }
        assert_eq!(with("Transfer-Encoding: chunked\r\nContent-Length: x\r\n"), Err(BadHead::BadLength));
    }

    #[test]
    fn lines_end_in_cr_lf_and_hold_neither() {
        for (head, why) in [
            ("GET / HTTP/1.1\nHost: x\r\n\r\n", BadHead::BareLf),
            ("GET / HTTP/1.1\r\nHost: x\n\r\n", BadHead::BareLf),
            ("GET / HTTP/1.1\r\nHost: x\r\n\n", BadHead::BareLf),
            ("\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", BadHead::BareLf),
            ("GET / HTTP/1.1\r\nHost: x\r\nA: b\rc\r\n\r\n", BadHead::Malformed),
            ("GET / HTTP/1.1\r\nHost: x\r\nA: b\0c\r\n\r\n", BadHead::Malformed),
            ("GET /\0 HTTP/1.1\r\nHost: x\r\n\r\n", BadHead::Malformed),
            ("GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n", BadHead::Malformed),
            ("GET / HTTP/1.1\r\n A: b\r\nHost: x\r\n\r\n", BadHead::Malformed),
            ("GET / HTTP/1.1\r\nHost: x\r\nA : b\r\n\r\n", BadHead::Malformed),
            ("GET / HTTP/1.1\r\nHost: x\r\n: b\r\n\r\n", BadHead::Malformed),
            ("GET / HTTP/1.1\r\nHost: x\r\nA\r\n\r\n", BadHead::Malformed),
            ("GET  / HTTP/1.1\r\nHost: x\r\n\r\n", BadHead::Malformed),
            ("GET / HTTP/1.1 \r\nHost: x\r\n\r\n", BadHead::Malformed),
            ("GET / HTTP/2.0\r\nHost: x\r\n\r\n", BadHead::Malformed),
            ("GET /\r\n\r\n", BadHead::Malformed),
        ] {
            let whole = Search::default().end(head.as_bytes()).and_then(|_| check(head.as_bytes()));
            assert_eq!(whole, Err(why), "{head:?}");
        }
    }

    #[test]
    fn one_host_is_named_by_name_or_address() {
        for host in ["x", "sq.example.com:8443", "127.0.0.1", "[::1]:443", "xn--bcher-kva.example"] {
            assert_eq!(judge(&format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n")), Ok(Framing::Length(0)), "{host}");
        }
        for host in ["", "a b", "a@b", "a/b", "http://a", "\u{fc}.example", "a\"b"] {
            assert_eq!(judge(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")), Err(BadHead::BadHost), "{host}");
        }
        assert_eq!(judge("GET / HTTP/1.1\r\n\r\n"), Err(BadHead::NoHost));
        assert_eq!(judge("GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n"), Err(BadHead::SeveralHosts));
    }

    #[test]
    fn a_target_is_a_path_or_an_absolute_uri() {
        let judge = |line: &str| judge(&format!("{line} HTTP/1.1\r\nHost: x\r\n\r\n")).map(|_| ());
        for line in ["GET /", "GET /a?b={c}", "GET /\u{fc}?{x}", "GET http://x/a", "GET HTTPS://x", "OPTIONS *", "CONNECT x:443", "PUT /a"]
        {
            assert_eq!(judge(line), Ok(()), "{line}");
        }
        for line in ["GET *", "GET x", "GET x:443", "GET ?a", "GET /a<b", "GET http://", "OPTIONS x", "GET a://b:c:d/"] {
            assert_eq!(judge(line), Err(BadHead::BadTarget), "{line}");
        }
        for line in ["GET /a#b", "GET #", "GET /a?b#", "GET http://x#y"] {
            assert_eq!(judge(line), Err(BadHead::Fragment), "{line}");
        }
    }

    #[test]
    fn an_upgrade_has_no_body() {
        assert_eq!(with("Connection: upgrade\r\nUpgrade: h2c\r\n"), Ok(Framing::Length(0)));
        assert_eq!(with("Upgrade: h2c\r\nContent-Length: 1\r\n"), Err(BadHead::UpgradeWithBody));
        assert_eq!(with("Upgrade: websocket\r\nTransfer-Encoding: chunked\r\n"), Err(BadHead::UpgradeWithBody));
    }

    #[test]
    fn a_head_has_at_most_100_fields_and_32_kib() {
        assert_eq!(with(&"a: b\r\n".repeat(MAX_FIELDS - 1)), Ok(Framing::Length(0)));
        assert_eq!(with(&"a: b\r\n".repeat(MAX_FIELDS)), Err(BadHead::TooManyFields));
        let of = |length: usize| {
            let rest = "GET / HTTP/1.1\r\nHost: x\r\nA: \r\n\r\n".len();
            format!("GET / HTTP/1.1\r\nHost: x\r\nA: {}\r\n\r\n", "a".repeat(length - rest))
        };
        assert_eq!(judge(&of(MAX_HEAD)), Ok(Framing::Length(0)));
        assert_eq!(judge(&of(MAX_HEAD + 1)), Err(BadHead::TooLong));
        let endless = vec![b'a'; MAX_HEAD];
        assert_eq!(Search::default().end(&endless), Err(BadHead::TooLong));
        assert_eq!(Search::default().end(&endless[1..]), Ok(None));
    }

    #[test]
    fn a_head_is_found_whatever_its_pieces() {
        let head = b"\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n";
        let bytes = [&head[..], b"GET "].concat();
        for step in 1..bytes.len() {
            let mut search = Search::default();
            let found = (0..=bytes.len()).step_by(step).chain([bytes.len()]).find_map(|end| search.end(&bytes[..end]).unwrap());
            assert_eq!(found, Some(head.len()), "in steps of {step}");
        }
    }
}
