//! What a certificate says of itself: for whom it is, and how long it holds. Pure.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use rustls::pki_types::{CertificateDer, pem::PemObject};
use x509_parser::{extensions::GeneralName, parse_x509_certificate};

/// So long before its end a certificate is to be somebody's concern.
const SOON: u64 = 14 * DAY;
const DAY: u64 = 86_400;

/// Of the first certificate of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// From when on it holds, seconds since 1970.
    pub not_before: u64,
    /// Until when.
    pub not_after: u64,
    /// For whom: names and addresses, sorted, lower case.
    pub names: Vec<String>,
}

/// How urgent a certificate's end is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// There is time.
    None,
    /// It ends soon.
    Soon,
    /// It has ended: no client takes it any more.
    Expired,
}

impl Facts {
    /// Reads the leaf of a chain; `None` where that is none.
    pub fn of(chain_pem: &[u8]) -> Option<Self> {
        let leaf = CertificateDer::pem_slice_iter(chain_pem).next()?.ok()?;
        let (_, leaf) = parse_x509_certificate(&leaf).ok()?;
        let second = |at: i64| u64::try_from(at).unwrap_or(0);
        let alternatives = leaf.subject_alternative_name().ok().flatten();
        let mut names: Vec<_> = alternatives.into_iter().flat_map(|all| &all.value.general_names).filter_map(name).collect();
        if names.is_empty() {
            let common = leaf.subject().iter_common_name().filter_map(|name| name.as_str().ok());
            names = common.map(str::to_ascii_lowercase).collect();
        }
        names.sort_unstable();
        names.dedup();
        let validity = leaf.validity();
        Some(Self { not_before: second(validity.not_before.timestamp()), not_after: second(validity.not_after.timestamp()), names })
    }

    /// Seconds from its beginning to its end.
    pub fn lifetime(&self) -> u64 {
        self.not_after.saturating_sub(self.not_before)
    }

    /// Whole days left at `now`, seconds since 1970; negative once it has ended.
    pub fn days_left(&self, now: u64) -> i64 {
        let seconds = i128::from(self.not_after) - i128::from(now);
        i64::try_from(seconds.div_euclid(i128::from(DAY))).unwrap_or(i64::MAX)
    }

    /// How urgent its end is. One that holds for a few weeks altogether is none's concern until a quarter of that is left.
    pub fn urgency(&self, now: u64) -> Urgency {
        match self.not_after.saturating_sub(now) {
            0 => Urgency::Expired,
            left if left < SOON.min(self.lifetime() / 4) => Urgency::Soon,
            _ => Urgency::None,
        }
    }
}

fn name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        GeneralName::IPAddress(bytes) => match <[u8; 4]>::try_from(*bytes) {
            Ok(four) => Some(IpAddr::from(four).to_string()),
            Err(_) => <[u8; 16]>::try_from(*bytes).ok().map(|sixteen| IpAddr::from(sixteen).to_string()),
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(names: &[&str]) -> Facts {
        let mut params = rcgen::CertificateParams::new(names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>()).unwrap();
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = rcgen::date_time_ymd(2026, 4, 1);
        let cert = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        Facts::of(cert.pem().as_bytes()).unwrap()
    }

    #[test]
    fn names_and_times_are_those_of_the_leaf() {
        let facts = facts(&["b.example.com", "A.example.com", "127.0.0.1", "::1"]);
        assert_eq!(facts.names, ["127.0.0.1", "::1", "a.example.com", "b.example.com"]);
        assert_eq!((facts.not_before, facts.lifetime()), (1_767_225_600, 90 * DAY));
        assert_eq!(Facts::of(b"no certificate"), None);
    }

    #[test]
    fn the_end_is_said_two_weeks_before() {
        let facts = facts(&["a"]);
        let at = |days: u64| facts.not_after - days * DAY;
        assert_eq!(facts.urgency(at(14)), Urgency::None);
        assert_eq!(facts.urgency(at(14) + 1), Urgency::Soon);
        assert_eq!((facts.days_left(at(13)), facts.days_left(at(13) + 1)), (13, 12));
        assert_eq!(facts.urgency(facts.not_after), Urgency::Expired);
        assert_eq!(facts.days_left(facts.not_after + 1), -1);
    }

    #[test]
    fn one_that_is_made_for_a_week_is_no_concern_from_the_beginning() {
        let week = Facts { not_before: 0, not_after: 7 * DAY, names: vec![] };
        assert_eq!(week.urgency(4 * DAY), Urgency::None);
        assert_eq!(week.urgency(6 * DAY), Urgency::Soon);
    }
}
