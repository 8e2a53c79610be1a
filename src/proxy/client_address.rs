//! Who the client is, where load balancers stand before this host: X-Forwarded-For, read from the right.
//!
//! Each balancer appends whom it saw, so only the entries that trusted ones appended can be relied on: those from the right end, up to and
//! with the first address that is not a trusted one's. Whatever stands left of it the client itself may have written.

use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;

use super::front::Trusted;

/// The header. Also what `Forwarded` (RFC 7239) would say is said here by every balancer in use.
const X_FORWARDED_FOR: &str = "x-forwarded-for";

/// The address of the client behind a connection from `peer`.
pub(crate) fn of(peer: IpAddr, trusted: &Trusted, headers: &HeaderMap) -> IpAddr {
    let mut client = peer.to_canonical();
    // Several lines are one list, in their order (RFC 9110, section 5.3).
    for line in headers.get_all(X_FORWARDED_FOR).iter().rev() {
        for entry in line.as_bytes().rsplit(|&byte| byte == b',') {
            if !trusted.has(client) {
                return client;
            }
            match address(entry.trim_ascii()) {
                Some(address) => client = address,
                // Empty entries are allowed in a list; anything else here is nothing to go on from.
                None if entry.trim_ascii().is_empty() => {}
                None => return client,
            }
        }
    }
    client
}

/// An entry: an address, in brackets or not, with a port or not.
fn address(entry: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(entry).ok()?;
    let bare = || text.strip_prefix('[')?.strip_suffix(']')?.parse::<std::net::Ipv6Addr>().ok().map(IpAddr::from);
    let address = text.parse::<IpAddr>().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip())).or_else(bare)?;
    Some(address.to_canonical())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    /// Who is the client where `lines` came from `peer` and 10/8 and fd00::/8 are trusted.
    fn client(peer: &str, lines: &[&[u8]]) -> String {
        let trusted = Trusted::new(vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()]);
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(X_FORWARDED_FOR, HeaderValue::from_bytes(line).unwrap());
        }
        of(peer.parse().unwrap(), &trusted, &headers).to_string()
    }

    #[test]
    fn what_somebody_untrusted_says_is_ignored() {
        assert_eq!(client("192.0.2.7", &[b"198.51.100.1"]), "192.0.2.7");
        assert_eq!(client("::ffff:192.0.2.7", &[b"198.51.100.1"]), "192.0.2.7");
    }

    #[test]
    fn the_first_address_from_the_right_that_is_not_trusted_is_the_client() {
        assert_eq!(client("10.0.0.1", &[b"198.51.100.1"]), "198.51.100.1");
        assert_eq!(client("10.0.0.1", &[b"6.6.6.6, 198.51.100.1, 10.0.0.2"]), "198.51.100.1", "what stands left of it may be forged");
        assert_eq!(client("::ffff:10.0.0.1", &[b"198.51.100.1"]), "198.51.100.1");
    }

    #[test]
    fn several_lines_are_one_list() {
        assert_eq!(client("10.0.0.1", &[b"6.6.6.6", b"198.51.100.1", b"10.0.0.3,10.0.0.2"]), "198.51.100.1");
        assert_eq!(client("10.0.0.1", &[b"198.51.100.1", b""]), "198.51.100.1");
    }

    #[test]
    fn ports_brackets_spaces_and_mapped_addresses_are_understood() {
        for (entry, expected) in [
            ("198.51.100.1:4711", "198.51.100.1"),
            ("2001:db8::1", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[2001:db8::1]:443", "2001:db8::1"),
            ("\t198.51.100.1  ", "198.51.100.1"),
            ("::ffff:198.51.100.1", "198.51.100.1"),
            ("198.51.100.1, ,", "198.51.100.1"),
        ] {
            assert_eq!(client("10.0.0.1", &[entry.as_bytes()]), expected, "{entry}");
        }
    }

    #[test]
    fn junk_ends_the_walk_at_the_last_address_that_is_known() {
        for junk in ["unknown", "_hidden", "1.2.3", "1.2.3.4.5", "010.0.0.1", "\"198.51.100.1\"", "::1%eth0", "a\tb"] {
            let line = format!("198.51.100.1, {junk}, 10.0.0.2");
            assert_eq!(client("10.0.0.1", &[line.as_bytes()]), "10.0.0.2", "{junk}");
        }
        assert_eq!(client("10.0.0.1", &[b"198.51.100.1, \xff\xfe"]), "10.0.0.1");
    }

    #[test]
    fn where_all_are_trusted_the_farthest_one_is_the_client() {
        assert_eq!(client("10.0.0.1", &[b"fd00::7, 10.0.0.9"]), "fd00::7");
        assert_eq!(client("10.0.0.1", &[]), "10.0.0.1");
    }
}
