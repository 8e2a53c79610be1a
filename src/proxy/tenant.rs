//! What the proxy keeps in memory for each tenant, found by the tenant's slot.

use std::sync::{
    Arc, Mutex, OnceLock, PoisonError,
    atomic::{AtomicU32, AtomicU64, Ordering},
};

use crate::{desired::TenantId, instance_key, route::SLOTS, secret::Secret};

use super::lane::Lane;

/// At most one nudge a tenant in this time, nanoseconds.
const NUDGE_EVERY_NS: u64 = 200_000_000;

/// One tenant's lane, parked requests, and the key of its instance.
#[derive(Default)]
pub(crate) struct Tenant {
    /// See [`Lane`].
    pub(crate) lane: Arc<Lane>,
    /// Requests that wait for the instance.
    pub(crate) parked: AtomicU32,
    /// Bytes of its request bodies in memory.
    pub(crate) body_memory: AtomicU64,
    nudged_at: AtomicU64,
    /// The key that was derived last, for whom, and for which start. A slot may be given to another tenant, so the id is part of it.
    key: Mutex<Option<(TenantId, u64, Arc<str>)>>,
}

impl Tenant {
    /// The key of `id`'s instance with this epoch; derived once a start.
    pub(crate) fn instance_key(&self, secret: &Secret, id: &TenantId, epoch: u64) -> Arc<str> {
        let mut cached = self.key.lock().unwrap_or_else(PoisonError::into_inner);
        match &*cached {
            Some((of, at, key)) if at == &epoch && of == id => Arc::clone(key),
            _ => {
                let key: Arc<str> = instance_key::derive(secret, id, epoch).into();
                *cached = Some((id.clone(), epoch, Arc::clone(&key)));
                key
            }
        }
    }

    /// New instance secret: what was derived from the old one is void.
    fn forget_key(&self) {
        *self.key.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Whether a nudge may go out at `now_ns` (CLOCK_MONOTONIC); if so it counts as sent.
    pub(crate) fn may_nudge(&self, now_ns: u64) -> bool {
        let last = self.nudged_at.load(Ordering::Relaxed);
        (last == 0 || now_ns.saturating_sub(last) >= NUDGE_EVERY_NS)
            && self.nudged_at.compare_exchange(last, now_ns.max(1), Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

/// All tenants that were seen, by slot.
pub(crate) struct Tenants(Box<[OnceLock<Arc<Tenant>>]>);

impl Tenants {
    pub(crate) fn new() -> Self {
        Self((0..SLOTS).map(|_| OnceLock::new()).collect())
    }

    /// The tenant in `slot`; `None` beyond the last slot.
    pub(crate) fn at(&self, slot: u32) -> Option<&Arc<Tenant>> {
        self.0.get(slot as usize).map(|tenant| tenant.get_or_init(Arc::default))
    }

    pub(crate) fn forget_keys(&self) {
        self.0.iter().filter_map(OnceLock::get).for_each(|tenant| tenant.forget_key());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cached_key_is_only_for_its_tenant_and_its_start() {
        let (tenant, secret) = (Tenant::default(), Secret::new([7; 32]));
        let (a, b) = (TenantId::parse("a").unwrap(), TenantId::parse("b").unwrap());
        for (id, epoch) in [(&a, 1), (&a, 1), (&a, 2), (&b, 2), (&a, 1)] {
            assert_eq!(*tenant.instance_key(&secret, id, epoch), *instance_key::derive(&secret, id, epoch), "{id} {epoch}");
        }
    }

    #[test]
    fn nudges_of_a_tenant_are_at_least_200_ms_apart() {
        let tenant = Tenant::default();
        assert!(tenant.may_nudge(5));
        assert!(!tenant.may_nudge(5 + NUDGE_EVERY_NS - 1));
        assert!(tenant.may_nudge(5 + NUDGE_EVERY_NS));
    }
}
