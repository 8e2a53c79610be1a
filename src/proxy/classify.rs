//! What a request is to sq, told by its method and the raw bytes of its path. Pure.
//!
//! sq compares the request line's start (`GET /api/v2/insert…`) and decodes nothing, so these prefixes must be compared
//! in the same way: the path goes on to sq byte for byte as it is judged here.

use http::Method;

/// How a request uses its tenant's lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Changes nothing: several at once.
    Read,
    /// May change a phext or write a file: one at a time.
    Mutation,
}

/// What becomes of a request before anything else is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It may go to sq.
    Forward(Kind),
    /// A CORS preflight; answered here as sq would, without a token.
    Preflight,
    /// sq answers HEAD, PUT, DELETE and PATCH with 400 *and a body*, which breaks HEAD: 405 here.
    MethodNotAllowed,
    /// sq closes the connection without an answer: 404 here.
    Favicon,
}

/// The calls of sq 0.6.0 that write nothing. Everything else counts as a mutation, unknown paths too: the cost of
/// a wrong guess that way is waiting, the cost of the other is two writers at once.
const READS: [&str; 10] = ["load", "select", "where", "status", "checksum", "toc", "get", "delta", "version", "query"];

/// Judges a request by its method and path (without the query).
pub(crate) fn classify(method: &Method, path: &str) -> Verdict {
    if *method == Method::OPTIONS {
        return Verdict::Preflight;
    }
    if *method != Method::GET && *method != Method::POST {
        return Verdict::MethodNotAllowed;
    }
    if path.contains("favicon.ico") {
        return Verdict::Favicon;
    }
    let read = path.strip_prefix("/api/v2/").is_some_and(|call| READS.iter().any(|read| call.starts_with(read)));
    Verdict::Forward(if read { Kind::Read } else { Kind::Mutation })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(path: &str) -> Kind {
        match classify(&Method::GET, path) {
            Verdict::Forward(kind) => kind,
            other => panic!("{path}: {other:?}"),
        }
    }

    #[test]
    fn a_get_that_writes_is_a_mutation() {
        for path in ["/api/v2/insert", "/api/v2/update", "/api/v2/delete", "/api/v2/json-export", "/api/v2/insertXYZ"] {
            assert_eq!(kind(path), Kind::Mutation, "{path}");
        }
    }

    #[test]
    fn the_calls_that_only_read_run_side_by_side() {
        for path in READS {
            assert_eq!(kind(&format!("/api/v2/{path}")), Kind::Read, "{path}");
            assert_eq!(kind(&format!("/api/v2/{path}XYZ")), Kind::Read, "sq matches {path} by prefix");
        }
    }

    #[test]
    fn whatever_is_not_known_to_read_waits_its_turn_alone() {
        for path in [
            "/",
            "/api/v2/",
            "/api/v2//select",
            "//api/v2/select",
            "/api/v2/%73elect",
            "/API/v2/select",
            "/api/v1/select",
            "/api/v2/SELECT",
        ] {
            assert_eq!(kind(path), Kind::Mutation, "{path}");
        }
    }

    #[test]
    fn no_reading_call_is_the_start_of_a_writing_one() {
        for write in ["insert", "update", "delete", "json-export", "push", "slurp"] {
            assert!(!READS.iter().any(|read| write.starts_with(read)), "{write}");
        }
    }

    #[test]
    fn methods_that_sq_answers_badly_never_reach_it() {
        assert_eq!(classify(&Method::OPTIONS, "/anything"), Verdict::Preflight);
        for method in ["HEAD", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "get", "PROPFIND"] {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            assert_eq!(classify(&method, "/api/v2/select"), Verdict::MethodNotAllowed, "{method}");
        }
        for path in ["/favicon.ico", "/a/favicon.icons", "/api/v2/select/favicon.ico"] {
            assert_eq!(classify(&Method::GET, path), Verdict::Favicon, "{path}");
        }
    }
}
