//! How many connections each client address has, so that one address cannot take the places of all others.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Connections by address. One on this host may have any number: a load balancer or a tunnel that carries everybody.
pub(crate) struct Neighbours {
    most: usize,
    counts: Mutex<HashMap<IpAddr, usize>>,
}

/// One connection; dropping it makes room for another.
pub(crate) struct Seat {
    all: Arc<Neighbours>,
    address: IpAddr,
}

impl Neighbours {
    /// At most `most` connections an address.
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most: most.max(1), counts: Mutex::new(HashMap::new()) })
    }

    /// A place for a connection from `address`, unless it has as many as it may.
    pub(crate) fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Seat> {
        let address = household(address);
        let mut counts = self.lock();
        let count = counts.entry(address).or_default();
        if *count >= self.most && !address.is_loopback() {
            return None;
        }
        *count += 1;
        Some(Seat { all: Arc::clone(self), address })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        // Nothing under the lock can panic.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut counts = self.all.lock();
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

/// Whoever has one address of IPv6 has at least 2^64 of them (RFC 6177).
pub(super) fn household(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) if !address.is_loopback() => IpAddr::V6((u128::from(address) >> 64 << 64).into()),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_has_so_many_places_and_gets_them_back() {
        let all = Neighbours::new(2);
        let first = all.enter(address("192.0.2.1"));
        let second = all.enter(address("::ffff:192.0.2.1"));
        assert!(first.is_some() && second.is_some());
        assert!(all.enter(address("192.0.2.1")).is_none());
        assert!(all.enter(address("192.0.2.2")).is_some());
        drop(first);
        let third = all.enter(address("192.0.2.1"));
        assert!(third.is_some() && all.enter(address("192.0.2.1")).is_none());
        drop((second, third));
        assert!(all.lock().is_empty(), "nothing is kept of who is gone");
    }

    #[test]
    fn all_addresses_of_a_household_are_one_and_this_host_has_no_limit() {
        let all = Neighbours::new(1);
        let _here = all.enter(address("2001:db8::1"));
        assert!(all.enter(address("2001:db8::ffff:1")).is_none());
        assert!(all.enter(address("2001:db8:0:1::1")).is_some());
        let many: Vec<_> = (0..10).filter_map(|_| all.enter(address("127.0.0.1"))).collect();
        let more: Vec<_> = (0..10).filter_map(|_| all.enter(address("::1"))).collect();
        assert_eq!((many.len(), more.len()), (10, 10));
    }
}
