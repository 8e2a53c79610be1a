//! A request in flight, as the agent sees it: it stops an instance only when none is left.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use super::live::Live;

/// Counted from before the row is looked at to after the answer's last byte; dropping it ends it.
pub(crate) struct InFlight {
    live: Arc<Live>,
    slot: u32,
    here: Arc<AtomicU64>,
}

impl InFlight {
    /// Counts a request of the tenant in `slot`, on the activity page and in `here` (this process). Look at the row only after this: the agent
    /// writes `draining` first and then looks at the count, so one of the two sees the other ([`crate::route::SlotActivity::enter`] has the fence).
    pub(crate) fn enter(live: &Arc<Live>, slot: u32, here: &Arc<AtomicU64>) -> Self {
        here.fetch_add(1, Ordering::Relaxed);
        if let Some(slot) = live.activity.slot(slot) {
            slot.enter(live.side);
        }
        Self { live: Arc::clone(live), slot, here: Arc::clone(here) }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some(slot) = self.live.activity.slot(self.slot) {
            slot.leave(self.live.side);
        }
        self.here.fetch_sub(1, Ordering::Relaxed);
    }
}
