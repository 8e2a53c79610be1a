//! Which port an instance gets.

use std::{collections::HashMap, io, net::Ipv4Addr, net::TcpListener};

use crate::desired::PortRange;

/// How long a port that another tenant gave up is left alone, seconds: a request that was routed to it by an
/// older table, or a client behind a slow proxy, must not meet the next tenant's instance.
pub const QUARANTINE_SECONDS: u64 = 60;

/// What a bind test found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortState {
    /// sq could bind it now.
    Free,
    /// Something has it.
    Taken {
        /// Who listens, as far as /proc tells: `pid 4711 (nginx)`.
        by: String,
    },
    /// The kernel refuses it to this user (below 1024 without root), or has no address: the text says why.
    Forbidden(String),
}

/// Binds and listens exactly as sq does (0.0.0.0, SO_REUSEADDR), and lets go again.
///
/// A free answer may be stale a moment later; then sq exits with 101 and the keyed probe never succeeds.
/// Some 30 µs where it is free; where it is taken, finding the holder walks all of /proc.
pub fn probe_free(port: u16) -> PortState {
    match TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)) {
        Ok(listener) => {
            // Closing alone frees the port only once a child that another thread starts just now has closed its copy at
            // its exec: sq could still find it taken. Fails only on a socket that does not listen.
            let _ = rustix::net::shutdown(&listener, rustix::net::Shutdown::Both);
            PortState::Free
        }
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            PortState::Taken { by: super::holder::of_port(port).unwrap_or_else(|| "a socket whose owner /proc does not show".into()) }
        }
        Err(error) => PortState::Forbidden(error.to_string()),
    }
}

/// A set of TCP ports; 8 KiB, so that 10,000 tenants choose among 10,000 ports in milliseconds.
#[derive(Clone)]
pub struct PortSet(Box<[u64; 1024]>);

impl Default for PortSet {
    fn default() -> Self {
        Self(Box::new([0; 1024]))
    }
}

impl PortSet {
    /// Adds a port.
    pub fn insert(&mut self, port: u16) {
        self.0[usize::from(port / 64)] |= 1 << (port % 64);
    }

    /// Takes a port out.
    pub fn remove(&mut self, port: u16) {
        self.0[usize::from(port / 64)] &= !(1 << (port % 64));
    }

    /// Whether it is in.
    pub fn contains(&self, port: u16) -> bool {
        self.0[usize::from(port / 64)] & (1 << (port % 64)) != 0
    }

    /// The ports of `range` that are not in, ascending; skips 64 taken ones at a step.
    fn absent(&self, range: PortRange) -> impl Iterator<Item = u16> {
        let words = (range.first / 64..=range.last / 64).map(|word| (word * 64, !self.0[usize::from(word)]));
        let ports = words.flat_map(|(first, mut free)| {
            std::iter::from_fn(move || {
                let bit = free.trailing_zeros();
                free &= free.checked_sub(1)?; // clears the lowest set bit
                Some(first + bit as u16)
            })
        });
        ports.filter(move |port| range.contains(*port))
    }
}

impl FromIterator<u16> for PortSet {
    fn from_iter<I: IntoIterator<Item = u16>>(ports: I) -> Self {
        let mut set = Self::default();
        ports.into_iter().for_each(|port| set.insert(port));
        set
    }
}

/// The ports a tenant may get, best first: its own last one (`sticky`, quarantined or not, since only others are kept
/// off it), then the free ones from low to high.
///
/// `taken` holds the ports of all *other* tenants; `quarantine` maps a port to the time it is free again; `now` and
/// those times are seconds since 1970. The caller tries each with [`probe_free`] and takes the first that is.
pub fn choose<'a>(
    range: PortRange,
    taken: &'a PortSet,
    quarantine: &'a HashMap<u16, u64>,
    sticky: Option<u16>,
    now: u64,
) -> impl Iterator<Item = u16> + 'a {
    let sticky = sticky.filter(|port| range.contains(*port) && !taken.contains(*port));
    let others = taken.absent(range).filter(move |port| Some(*port) != sticky && quarantine.get(port).is_none_or(|until| *until <= now));
    sticky.into_iter().chain(others)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANGE: PortRange = PortRange { first: 10_001, last: 10_005 };

    fn chosen(taken: &[u16], quarantine: &[(u16, u64)], sticky: Option<u16>) -> Vec<u16> {
        let taken = taken.iter().copied().collect();
        choose(RANGE, &taken, &quarantine.iter().copied().collect(), sticky, 1000).collect()
    }

    #[test]
    fn a_tenant_gets_its_own_port_back_first_even_from_quarantine() {
        assert_eq!(chosen(&[], &[(10_004, 1050)], Some(10_004)), [10_004, 10_001, 10_002, 10_003, 10_005]);
    }

    #[test]
    fn a_port_in_quarantine_is_left_alone_until_its_time() {
        assert_eq!(chosen(&[], &[(10_001, 1001), (10_002, 1000)], None), [10_002, 10_003, 10_004, 10_005]);
    }

    #[test]
    fn no_port_of_another_tenant_and_none_outside_the_range_is_offered() {
        assert_eq!(chosen(&[10_001, 10_003], &[], Some(10_003)), [10_002, 10_004, 10_005]);
        assert_eq!(chosen(&[10_001, 10_002, 10_003, 10_004, 10_005], &[], Some(9999)), []);
    }

    #[test]
    fn the_highest_port_of_all_does_not_overflow() {
        let range = PortRange { first: 65_534, last: 65_535 };
        assert_eq!(choose(range, &PortSet::default(), &HashMap::new(), None, 0).collect::<Vec<_>>(), [65_534, 65_535]);
    }

    #[test]
    fn a_set_holds_what_was_put_in_and_nothing_else() {
        let mut set: PortSet = [0, 63, 64, 65_535].into_iter().collect();
        set.remove(63);
        assert_eq!((0..=u16::MAX).filter(|port| set.contains(*port)).collect::<Vec<_>>(), [0, 64, 65_535]);
    }

    #[test]
    fn a_bind_test_tells_free_from_taken_and_names_the_holder() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let PortState::Taken { by } = probe_free(port) else { panic!("a loopback listener keeps sq off 0.0.0.0") };
        assert!(by.contains(&format!("pid {}", std::process::id())), "{by}");
        rustix::net::shutdown(&listener, rustix::net::Shutdown::Both).unwrap();
        assert_eq!(probe_free(port), PortState::Free, "though the descriptor of the shut listener is still open");
    }
}
