//! Who the client is.

use std::net::IpAddr;

use http::{HeaderMap, HeaderValue};

use crate::proxy::{client_address, front::Trusted, proxy_header};

/// A connection that begins with `bytes`. What is read byte for byte and what is parsed whole must agree, and nothing behind it is touched.
///
/// # Panics
/// They do not.
pub fn passed_on(bytes: &[u8]) {
    let mut rest = bytes;
    let read = proxy_header::read_now(&mut rest);
    let taken = bytes.len() - rest.len();
    if let Ok(client) = read {
        assert_eq!(proxy_header::parse(&bytes[..taken]).ok(), Some(client));
        assert!((16..=16 + 4_096).contains(&taken) && bytes.starts_with(b"\r\n\r\n\0\r\nQUIT\n"));
    }
    assert!(taken <= 16 + 4_096);
}

/// Lines of X-Forwarded-For from a trusted address, and from one that is not.
///
/// # Panics
/// Somebody who is not trusted was believed.
pub fn forwarded(lines: &[u8]) {
    let trusted = Trusted::new(["10.0.0.0/8", "fd00::/8"].into_iter().filter_map(|network| network.parse().ok()).collect());
    let mut headers = HeaderMap::new();
    for line in lines.split(|&byte| byte == b'\n') {
        if let Ok(value) = HeaderValue::from_bytes(line) {
            headers.append("x-forwarded-for", value);
        }
    }
    let stranger = IpAddr::from([192, 0, 2, 1]);
    assert_eq!(client_address::of(stranger, &trusted, &headers), stranger);
    let client = client_address::of(IpAddr::from([10, 0, 0, 1]), &trusted, &headers);
    assert_eq!(client, client.to_canonical());
}
