//! Which headers pass, in both directions. Pure.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};

use super::{request_id::RequestId, trace::Trace};

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longest `Content-Type` that is passed on, bytes.
const MAX_CONTENT_TYPE: usize = 256;

/// Everything of a request that sq sees, beside its body.
pub(crate) struct UpstreamHead<'a> {
    pub(crate) method: &'a Method,
    /// Path and query, byte for byte as the client sent them: origin-form, since sq knows no other.
    pub(crate) target: &'a str,
    pub(crate) port: u16,
    pub(crate) content_type: Option<&'a HeaderValue>,
    pub(crate) content_length: usize,
    pub(crate) instance_key: &'a str,
    pub(crate) tenant: &'a str,
    pub(crate) peer: IpAddr,
    pub(crate) request_id: &'a RequestId,
    pub(crate) trace: Option<&'a Trace>,
}

impl UpstreamHead<'_> {
    /// Writes the head as sq must read it. By allow-list: sq matches header names by prefix, so `Authorization-Extra`
    /// from a client would win over ours; and whatever it does not know it does not need.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        use std::io::Write;
        // Writing to a Vec cannot fail.
        let _ = write!(
            out,
            "{} {} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nAuthorization: Bearer {}\r\nX-User-ID: {}\r\nX-Real-IP: {}\r\nX-Request-ID: {}\r\n",
            self.method,
            self.target,
            self.port,
            self.instance_key,
            self.tenant,
            self.peer,
            self.request_id.as_str()
        );
        if let Some(trace) = self.trace {
            trace.write(out);
        }
        if let Some(value) = self.content_type.filter(|value| is_plain(value)) {
            out.extend_from_slice(b"Content-Type: ");
            out.extend_from_slice(value.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
        // Always on POST, also 0: sq takes whatever follows the head as content.
        if self.content_length > 0 || *self.method == Method::POST {
            let _ = write!(out, "Content-Length: {}\r\n", self.content_length);
        }
        out.extend_from_slice(b"Connection: close\r\n\r\n");
    }
}

fn is_plain(value: &HeaderValue) -> bool {
    value.len() <= MAX_CONTENT_TYPE && value.as_bytes().iter().all(|byte| (0x20..0x7f).contains(byte))
}

/// What every answer carries, whoever gives it.
pub(crate) fn every_answer(headers: &mut HeaderMap, id: &RequestId) {
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(X_REQUEST_ID, id.header());
}

/// The answer to a CORS preflight, as sq 0.6.0 gives it, with the header that sq reads without allowing it.
pub(crate) fn preflight(id: &RequestId) -> Response<Vec<u8>> {
    let mut response = Response::new(Vec::new());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    every_answer(headers, id);
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, OPTIONS"));
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("Authorization, Content-Type, X-SQ-API-Key"));
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("86400"));
    response
}

/// Whether a header of sq's answer goes on to the client. Not those of one hop (RFC 9110 section 7.6.1), not those that
/// [`every_answer`] sets, and no length: that of the body decides.
pub(crate) fn passes_back(name: &str) -> bool {
    const STAYS: [&str; 12] = [
        "connection",
        "keep-alive",
        "proxy-connection",
        "proxy-authenticate",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "content-length",
        "date",
        "access-control-allow-origin",
        "x-request-id",
    ];
    !STAYS.iter().any(|stays| name.eq_ignore_ascii_case(stays))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(method: &Method, content_length: usize, content_type: Option<&HeaderValue>) -> String {
        let mut out = Vec::new();
        let mut sent = HeaderMap::new();
        sent.insert("traceparent", HeaderValue::from_static("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"));
        sent.insert("tracestate", HeaderValue::from_static("a=1"));
        UpstreamHead {
            method,
            target: "/api/v2/select?p=a%20b&s=<\u{e9}>",
            port: 10_001,
            content_type,
            content_length,
            instance_key: "k3y",
            tenant: "user1@example.com",
            peer: IpAddr::from([192, 0, 2, 7]),
            request_id: &RequestId::of_client(b"r-1").unwrap(),
            trace: Trace::of(&sent).as_ref(),
        }
        .write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn sq_sees_exactly_the_allowed_headers_in_origin_form() {
        assert_eq!(
            head(&Method::POST, 3, Some(&HeaderValue::from_static("text/plain"))),
            "POST /api/v2/select?p=a%20b&s=<\u{e9}> HTTP/1.1\r\nHost: 127.0.0.1:10001\r\nAuthorization: Bearer k3y\r\n\
             X-User-ID: user1@example.com\r\nX-Real-IP: 192.0.2.7\r\nX-Request-ID: r-1\r\n\
             traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\ntracestate: a=1\r\nContent-Type: text/plain\r\n\
             Content-Length: 3\r\nConnection: close\r\n\r\n"
        );
    }

    #[test]
    fn no_header_that_sq_looks_for_is_the_start_of_another_one_that_it_sees() {
        let head = head(&Method::POST, 3, None).to_ascii_lowercase();
        for known in ["authorization", "x-sq-api-key", "content-length"] {
            let times = head.lines().filter(|line| line.starts_with(known)).count();
            assert_eq!(times, usize::from(known != "x-sq-api-key"), "{known}");
        }
    }

    #[test]
    fn a_post_says_its_length_even_if_it_is_nothing() {
        assert!(head(&Method::POST, 0, None).contains("\r\nContent-Length: 0\r\n"));
        assert!(!head(&Method::GET, 0, None).contains("Content-Length"));
        assert!(head(&Method::GET, 5, None).contains("\r\nContent-Length: 5\r\n"), "a body on GET is content to sq");
    }

    #[test]
    fn a_strange_content_type_is_left_out() {
        let long = HeaderValue::from_str(&"a".repeat(257)).unwrap();
        for value in [&HeaderValue::from_bytes(b"text/\xe9").unwrap(), &HeaderValue::from_bytes(b"a\tb").unwrap(), &long] {
            assert!(!head(&Method::POST, 0, Some(value)).contains("Content-Type"));
        }
    }

    #[test]
    fn headers_of_one_hop_end_at_the_proxy() {
        for name in ["Connection", "transfer-encoding", "Keep-Alive", "Upgrade", "Content-Length"] {
            assert!(!passes_back(name), "{name}");
        }
        assert!(passes_back("Content-Type") && passes_back("ETag"));
    }

    #[test]
    fn a_preflight_is_answered_as_sq_does_it() {
        let response = preflight(&RequestId::of_client(b"r").unwrap());
        assert_eq!(response.status(), 204);
        assert_eq!(response.headers()["access-control-allow-origin"], "*");
        assert_eq!(response.headers()["access-control-allow-methods"], "GET, POST, OPTIONS");
        assert_eq!(response.headers()["access-control-allow-headers"], "Authorization, Content-Type, X-SQ-API-Key");
        assert_eq!(response.headers()["access-control-max-age"], "86400");
    }
}
