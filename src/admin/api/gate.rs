//! Who gets in: the names that a browser may have been led here by, the key, and how often one address may ask. Decisions without I/O.
//!
//! On the agent's socket, which is its user's alone, no key is asked and nothing is counted.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use http::{HeaderMap, HeaderName, Uri, header};

use super::problem::Problem;
use crate::{
    admin::settings::Settings,
    route::gcra::{self, Admission},
    secret::Secret,
};

/// The one place where a key counts.
pub(super) const KEY: HeaderName = HeaderName::from_static("x-admin-api-key");

/// How a request came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::admin) enum Way {
    /// By the agent's socket, from a process of this user.
    Socket {
        /// The user.
        uid: Option<u32>,
    },
    /// By TCP.
    Tcp {
        /// From where.
        peer: SocketAddr,
        /// To which address of this host.
        local: SocketAddr,
    },
}

impl Way {
    /// For logs.
    pub(in crate::admin) fn text(self) -> String {
        match self {
            Self::Socket { uid: Some(uid) } => format!("the socket, user {uid}"),
            Self::Socket { uid: None } => "the socket".to_owned(),
            Self::Tcp { peer, .. } => peer.ip().to_string(),
        }
    }
}

/// What a request shows.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Shown {
    /// The key.
    Key,
    /// None.
    Nothing,
    /// One that is not the key, or several.
    Wrong,
}

/// What `headers` show, where `key` is the key. In constant time for a guess of its length.
pub(super) fn shown(headers: &HeaderMap, key: &Secret) -> Shown {
    let mut sent = headers.get_all(&KEY).iter();
    match (sent.next(), sent.next()) {
        (None, _) => Shown::Nothing,
        (Some(sent), None) if Secret::new(sent.as_bytes()) == *key => Shown::Key,
        _ => Shown::Wrong,
    }
}

/// The same of whoever reads metrics. A Prometheus can send a key only as `Authorization: Bearer`, so there it counts as well.
pub(super) fn shown_for_metrics(headers: &HeaderMap, key: &Secret) -> Shown {
    let mut bearer = headers.get_all(header::AUTHORIZATION).iter();
    let sent = match (shown(headers, key), bearer.next(), bearer.next()) {
        (shown, None, _) => return shown,
        (Shown::Nothing, Some(sent), None) => sent.as_bytes(),
        _ => return Shown::Wrong,
    };
    let (scheme, token) = sent.split_at_checked(BEARER.len()).unwrap_or_default();
    if scheme.eq_ignore_ascii_case(BEARER) && Secret::new(token.trim_ascii()) == *key { Shown::Key } else { Shown::Wrong }
}

const BEARER: &[u8] = b"Bearer ";
/// What a proxy says of whoever it speaks for.
const SPEAKS_FOR: [HeaderName; 3] = [header::FORWARDED, header::VIA, HeaderName::from_static("x-forwarded-for")];

/// Whether a request comes from this very host, as far as that can be told: by loopback, and not through a proxy that listens elsewhere. `names`
/// are those by which such a one asks.
pub(super) fn is_of_this_host(uri: &Uri, headers: &HeaderMap, local: SocketAddr, names: &[String]) -> bool {
    let spoken_for = SPEAKS_FOR.iter().any(|name| headers.contains_key(name));
    local.ip().is_loopback() && !spoken_for && (names.is_empty() || check_host(uri, headers, local, &[]).is_ok())
}

/// Whether a request that came to a loopback address was meant for it. A page of a stranger's can have its own name lead to 127.0.0.1 (DNS
/// rebinding), and then speaks with whatever listens there as with its own server; but the name in Host is still its own.
///
/// # Errors
/// It was not.
pub(super) fn check_host(uri: &Uri, headers: &HeaderMap, local: SocketAddr, names: &[String]) -> Result<(), Problem> {
    let mut sent = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (sent.next(), sent.next()) else { return Err(Problem::bad_request("exactly one Host is needed")) };
    if !local.ip().is_loopback() {
        return Ok(());
    }
    let host = uri.authority().map(|authority| authority.as_str().as_bytes()).unwrap_or(host.as_bytes());
    let host = std::str::from_utf8(host).unwrap_or_default();
    // A user before the name is nothing that a client sends in Host.
    let host = if host.contains('@') { "" } else { host };
    let name = host.parse::<http::uri::Authority>().map(|authority| authority.host().to_ascii_lowercase()).unwrap_or_default();
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    let is_ours = address.is_ok_and(|address| address.is_loopback())
        || name == "localhost"
        || name.ends_with(".localhost")
        || names.iter().any(|ours| ours.eq_ignore_ascii_case(&name));
    if is_ours { Ok(()) } else { Err(Problem::misdirected(host)) }
}

/// How often each address asked.
#[derive(Debug, Default)]
pub(super) struct Limiter {
    /// Theoretical arrival times: of requests with the key, and of all others.
    arrivals: HashMap<IpAddr, [u64; 2]>,
}

/// Addresses that are remembered.
const ADDRESSES: usize = 4_096;
/// Requests without the key have a tenth of the rate.
const WITHOUT_KEY: u32 = 10;

impl Limiter {
    /// One more request from `peer` at `now_ns` (CLOCK_MONOTONIC). Those with the key have a budget of their own, so that nobody who has none can
    /// use it up.
    ///
    /// # Errors
    /// It is one too many.
    pub(super) fn admit(&mut self, peer: IpAddr, has_key: bool, settings: &Settings, now_ns: u64) -> Result<(), Problem> {
        let (interval, burst) = match has_key {
            true => (settings.interval_ns, settings.burst),
            false => (settings.interval_ns.saturating_mul(u64::from(WITHOUT_KEY)), settings.burst / WITHOUT_KEY),
        };
        let peer = whole(peer);
        if self.arrivals.len() >= ADDRESSES && !self.arrivals.contains_key(&peer) {
            self.make_room(now_ns);
        }
        let arrival = &mut self.arrivals.entry(peer).or_default()[usize::from(has_key)];
        let (admission, next) = gcra::decide(*arrival, now_ns, interval, burst);
        *arrival = next;
        match admission {
            Admission::Admitted { .. } => Ok(()),
            Admission::Refused { retry_after_ns, .. } => Err(Problem::rate_limited(retry_after_ns.div_ceil(1_000_000_000))),
        }
    }

    /// Forgets who has its whole budget; where that is nobody, all: to let somebody ask too often is better than to let nobody ask.
    fn make_room(&mut self, now_ns: u64) {
        self.arrivals.retain(|_, arrivals| arrivals.iter().any(|&arrival| arrival > now_ns));
        if self.arrivals.len() >= ADDRESSES {
            self.arrivals.clear();
        }
    }
}

/// Whoever has a /64 of IPv6 has all of it.
fn whole(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use http::HeaderValue;

    use super::*;

    const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 3_000);

    fn settings() -> Settings {
        Settings { interval_ns: 100_000_000, burst: 19, ..Settings::for_tests() }
    }

    fn of(name: HeaderName, values: &[&str]) -> HeaderMap {
        values.iter().map(|value| (name.clone(), HeaderValue::from_str(value).unwrap())).collect()
    }

    #[test]
    fn one_right_key_opens_and_nothing_else_does() {
        let key = Secret::new("0123456789abcdef0123456789abcdef");
        let shown = |values: &[&str]| shown(&of(KEY, values), &key);
        let right = "0123456789abcdef0123456789abcdef";
        assert_eq!(shown(&[right]), Shown::Key);
        assert_eq!(shown(&[]), Shown::Nothing);
        for wrong in [&["0123456789abcdef0123456789abcdee"][..], &[""], &["0123456789abcdef"], &[right, right], &[right, "x"]] {
            assert_eq!(shown(wrong), Shown::Wrong, "{wrong:?}");
        }
    }

    #[test]
    fn metrics_are_shown_for_the_key_in_either_place_but_not_in_both() {
        let right = "0123456789abcdef0123456789abcdef";
        let key = Secret::new(right);
        let shown = |own: &[&str], bearer: &[&str]| {
            let mut headers = of(KEY, own);
            headers.extend(of(header::AUTHORIZATION, bearer));
            shown_for_metrics(&headers, &key)
        };
        let (good, lower) = (format!("Bearer {right}"), format!("bearer {right}"));
        for (own, bearer) in [(&[right][..], &[][..]), (&[], &[good.as_str()]), (&[], &[lower.as_str()])] {
            assert_eq!(shown(own, bearer), Shown::Key);
        }
        assert_eq!(shown(&[], &[]), Shown::Nothing);
        for (own, bearer) in [
            (&[right][..], &[good.as_str()][..]),
            (&[], &[good.as_str(), good.as_str()]),
            (&[], &[right]),
            (&[], &["Bearer"]),
            (&[], &["Bearer x"]),
            (&[], &["Basic 0123456789abcdef0123456789abcdef"]),
        ] {
            assert_eq!(shown(own, bearer), Shown::Wrong, "{bearer:?}");
        }
    }

    #[test]
    fn who_comes_through_a_proxy_is_not_of_this_host() {
        let names = ["admin.example.com".to_owned()];
        let is_of_this_host = |fields: &[(HeaderName, &str)], local, names: &[String]| {
            let headers = fields.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap())).collect();
            is_of_this_host(&Uri::from_static("/metrics"), &headers, local, names)
        };
        let host = |host| (header::HOST, host);
        assert!(is_of_this_host(&[host("localhost")], LOOPBACK, &[]) && is_of_this_host(&[host("127.0.0.1:3000")], LOOPBACK, &names));
        assert!(!is_of_this_host(&[host("admin.example.com")], LOOPBACK, &names));
        assert!(!is_of_this_host(&[host("localhost")], SocketAddr::from(([10, 0, 0, 1], 3_000)), &[]));
        for name in SPEAKS_FOR {
            assert!(!is_of_this_host(&[host("localhost"), (name, "10.0.0.9")], LOOPBACK, &[]));
        }
    }

    #[test]
    fn loopback_answers_to_its_own_names_alone() {
        let names = ["admin.example.com".to_owned()];
        let check = |host: &str, local| check_host(&Uri::from_static("/x"), &of(header::HOST, &[host]), local, &names).is_ok();
        for good in ["127.0.0.1:3000", "127.9.9.9", "localhost", "LocalHost:3000", "a.localhost", "[::1]:3000", "admin.example.com:3000"] {
            assert!(check(good, LOOPBACK), "{good}");
        }
        for bad in [
            "evil.example.com",
            "evil.example.com:3000",
            "127.0.0.1.evil.com",
            "localhost.evil.com",
            "10.0.0.1",
            "",
            "a@localhost:x",
            "[::2]",
        ] {
            assert!(!check(bad, LOOPBACK), "{bad}");
        }
        assert!(check("evil.example.com", SocketAddr::from(([10, 0, 0, 1], 3_000))), "elsewhere names are the operator's");
        let absolute = Uri::from_static("http://evil.example.com/x");
        assert!(check_host(&absolute, &of(header::HOST, &["localhost"]), LOOPBACK, &names).is_err());
        assert!(check_host(&Uri::from_static("/x"), &of(header::HOST, &["localhost", "localhost"]), LOOPBACK, &names).is_err());
    }

    #[test]
    fn who_has_no_key_asks_a_tenth_as_often_and_takes_nothing_from_who_has() {
        let (mut limiter, settings, now) = (Limiter::default(), settings(), 1_000_000_000_000);
        let peer: IpAddr = [10, 0, 0, 1].into();
        let mut admitted = |key, at| (0..100).filter(|_| limiter.admit(peer, key, &settings, at).is_ok()).count();
        assert_eq!((admitted(false, now), admitted(true, now)), (2, 20));
        assert_eq!((admitted(false, now + 1_000_000_000), admitted(true, now + 1_000_000_000)), (1, 10));
        let refused = limiter.admit(peer, false, &settings, now + 1_000_000_000).unwrap_err();
        assert_eq!(refused.retry_after, Some(1));
        assert!(limiter.admit([10, 0, 0, 2].into(), false, &settings, now).is_ok(), "another address");
    }

    #[test]
    fn a_whole_64_of_ipv6_is_one_address_and_memory_is_bounded() {
        assert_eq!(whole("2001:db8::1".parse().unwrap()), whole("2001:db8::ffff:1".parse().unwrap()));
        assert_ne!(whole("2001:db8::1".parse().unwrap()), whole("2001:db8:0:1::1".parse().unwrap()));
        let (mut limiter, settings) = (Limiter::default(), settings());
        for n in 0..3 * u32::try_from(ADDRESSES).unwrap() {
            limiter.admit(IpAddr::V4(n.into()), true, &settings, 1_000_000_000).unwrap();
        }
        assert!(limiter.arrivals.len() <= ADDRESSES);
    }
}
