//! A request in flight, as the agent and the other proxy see it: the agent stops an instance only when none is left, and of two proxies side by
//! side only one writes to a tenant at a time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep};

use super::{classify::Kind, lane, live::Live, problem::Problem};

/// Pauses between two looks at whether the other proxy still writes: a write takes sq a few milliseconds. Only ever during an upgrade.
const PAUSE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(10));

/// Counted from before the row is looked at to after the answer's last byte; dropping it ends it.
pub(crate) struct InFlight {
    live: Arc<Live>,
    slot: u32,
    kind: Kind,
    here: Arc<AtomicU64>,
}

impl InFlight {
    /// Counts a request of the tenant in `slot`, on the activity page and in `here` (this process). Look at the row only after this: the agent
    /// writes `draining` first and then looks at the count, so one of the two sees the other ([`crate::route::SlotActivity::enter`] has the fence).
    ///
    /// A mutation, which must have its turn in this process already, waits until no other proxy has one.
    pub(crate) async fn enter(live: &Arc<Live>, slot: u32, kind: Kind, here: &Arc<AtomicU64>) -> Result<Self, Problem> {
        match (live.activity.slot(slot), kind) {
            (Some(activity), Kind::Mutation) => {
                let deadline = Instant::now() + lane::MAX_WAIT;
                let mut pause = PAUSE.0;
                while !activity.enter_writing(live.side) {
                    if Instant::now() >= deadline {
                        return Err(Problem::QueueTimeout);
                    }
                    sleep(pause).await;
                    pause = (pause * 2).min(PAUSE.1);
                }
            }
            (Some(activity), Kind::Read) => {
                activity.enter(live.side);
            }
            (None, _) => {}
        }
        here.fetch_add(1, Ordering::Relaxed);
        Ok(Self { live: Arc::clone(live), slot, kind, here: Arc::clone(here) })
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some(slot) = self.live.activity.slot(self.slot) {
            match self.kind {
                Kind::Read => slot.leave(self.live.side),
                Kind::Mutation => slot.leave_writing(self.live.side),
            }
        }
        self.here.fetch_sub(1, Ordering::Relaxed);
    }
}
