//! The name of a request, in its answer, in the access log and towards sq.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};

/// Longest id taken from a client, bytes.
const MAX_BYTES: usize = 128;

/// 1–128 visible ASCII characters, so it can stand in a header, a log line and JSON as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RequestId(Bytes);

impl RequestId {
    /// The client's own id, if it is sane.
    pub(crate) fn of_client(value: &[u8]) -> Option<Self> {
        let sane = (1..=MAX_BYTES).contains(&value.len()) && value.iter().all(u8::is_ascii_graphic);
        sane.then(|| Self(Bytes::copy_from_slice(value)))
    }

    /// The id as text.
    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// The id as a header's value, without a copy.
    pub(crate) fn header(&self) -> HeaderValue {
        HeaderValue::from_maybe_shared(self.0.clone()).unwrap_or_else(|_| HeaderValue::from_static("-"))
    }
}

/// Makes ids: a random prefix for the process and a counter.
pub(crate) struct RequestIds {
    prefix: u64,
    next: AtomicU64,
}

impl RequestIds {
    /// `prefix` is random, so that the ids of two processes differ.
    pub(crate) fn new(prefix: u64) -> Self {
        Self { prefix, next: AtomicU64::new(0) }
    }

    /// The client's id where it sent one sane one, else a new one.
    pub(crate) fn of(&self, headers: &HeaderMap) -> RequestId {
        let mut sent = headers.get_all("x-request-id").iter();
        let client = sent.next().filter(|_| sent.next().is_none());
        client.and_then(|value| RequestId::of_client(value.as_bytes())).unwrap_or_else(|| self.make())
    }

    fn make(&self) -> RequestId {
        let count = self.next.fetch_add(1, Ordering::Relaxed);
        RequestId(format!("{:016x}{count:08x}", self.prefix).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[&[u8]]) -> String {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append("x-request-id", HeaderValue::from_bytes(value).unwrap());
        }
        RequestIds::new(0xabc).of(&headers).as_str().to_owned()
    }

    #[test]
    fn a_sane_id_of_the_client_is_kept() {
        assert_eq!(of(&[b"7f3a-42"]), "7f3a-42");
        assert_eq!(of(&[&[b'a'; 128]]), "a".repeat(128));
    }

    #[test]
    fn anything_else_gets_a_new_id() {
        let cases: [&[&[u8]]; 6] = [&[], &[b""], &[b"two words"], &[&[b'a'; 129]], &["h\u{e9}".as_bytes()], &[b"a", b"b"]];
        for values in cases {
            assert_eq!(of(values), "0000000000000abc00000000", "{values:?}");
        }
    }

    #[test]
    fn no_two_ids_of_a_process_are_the_same() {
        let ids = RequestIds::new(1);
        assert_ne!(ids.make(), ids.make());
    }
}
