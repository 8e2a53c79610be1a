//! Parking: a request whose instance is not ready waits for it, for a while, in bounded number.
//!
//! Wake-ups come from one ticker for all, which looks at the table's generation every 2 ms, and only while anybody waits: an idle proxy
//! costs no CPU, and the agent needs no word to us.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::{Instant, interval, timeout_at},
};

use super::{problem::Problem, tenant::Tenant};
use crate::route::{Route, RouteState};

/// Longest wait of one request for its instance.
pub(crate) const MAX_WAIT: Duration = Duration::from_secs(10);
/// Most waiting requests of one tenant.
const MAX_A_TENANT: u32 = 100;
/// Most waiting requests of all tenants.
const MAX_IN_ALL: u32 = 10_000;
/// How often the ticker looks.
const TICK: Duration = Duration::from_millis(2);
/// A refused connection is tried again so late if the table says nothing new.
const RETRY_REFUSED: Duration = Duration::from_millis(250);

/// An instance that failed a request: not tried again, until `retry_at` if there is one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avoid {
    port: u16,
    epoch: u64,
    retry_at: Option<Instant>,
}

impl Avoid {
    /// Nobody listened there. Perhaps the accept queue was in trouble: try again in a moment.
    pub(crate) fn refused(route: &Route) -> Self {
        Self { port: route.port, epoch: route.epoch, retry_at: Some(Instant::now() + RETRY_REFUSED) }
    }

    /// Another instance answered there. Only a new row helps.
    pub(crate) fn wrong(route: &Route) -> Self {
        Self { port: route.port, epoch: route.epoch, retry_at: None }
    }

    fn forbids(&self, route: &Route, now: Instant) -> bool {
        (self.port, self.epoch) == (route.port, route.epoch) && self.retry_at.is_none_or(|at| now < at)
    }
}

/// Whether a request may go to where `route` points. An error is final.
pub(crate) fn may_go(route: &Route, avoid: Option<&Avoid>, now: Instant) -> Result<bool, Problem> {
    match route.state {
        RouteState::Suspended => Err(Problem::Suspended),
        RouteState::Ready => Ok(!avoid.is_some_and(|avoid| avoid.forbids(route, now))),
        RouteState::Starting | RouteState::Draining | RouteState::Stopped | RouteState::Crashed => Ok(false),
    }
}

/// Everybody who waits.
pub(crate) struct Parking {
    waiting: AtomicU32,
    somebody: Notify,
    changed: watch::Sender<()>,
}

/// One who waits; dropping it makes room.
struct Place<'a> {
    parking: &'a Parking,
    tenant: &'a Tenant,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.parking.waiting.fetch_sub(1, Ordering::Relaxed);
        self.tenant.parked.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Parking {
    pub(crate) fn new() -> Self {
        Self { waiting: AtomicU32::new(0), somebody: Notify::new(), changed: watch::Sender::new(()) }
    }

    /// Waits until `look` gives a route that may be taken, at most until `deadline`. `state` is why the request waits.
    pub(crate) async fn wait(
        &self,
        tenant: &Tenant,
        state: RouteState,
        avoid: Option<Avoid>,
        deadline: Instant,
        look: impl Fn() -> Result<Route, Problem>,
    ) -> Result<Route, Problem> {
        let _place = self.place(tenant, state)?;
        let mut changed = self.changed.subscribe();
        let mut state = state;
        loop {
            // Busy is no reason to give up here: the table is changing, which is what we wait for.
            match look() {
                Ok(route) if may_go(&route, avoid.as_ref(), Instant::now())? => return Ok(route),
                Ok(route) => state = route.state,
                Err(Problem::TableBusy) => {}
                Err(final_answer) => return Err(final_answer),
            }
            let now = Instant::now();
            if now >= deadline {
                return Err(Problem::NotReady(state));
            }
            let retry_at = avoid.and_then(|avoid| avoid.retry_at).filter(|at| *at > now);
            // Neither a time-out nor a change decides anything: the next look does.
            let _ = timeout_at(retry_at.map_or(deadline, |at| at.min(deadline)), changed.changed()).await;
        }
    }

    /// Requests that wait now.
    pub(crate) fn waiting(&self) -> u32 {
        self.waiting.load(Ordering::Relaxed)
    }

    fn place<'a>(&'a self, tenant: &'a Tenant, state: RouteState) -> Result<Place<'a>, Problem> {
        let in_all = self.waiting.fetch_add(1, Ordering::Relaxed);
        let of_tenant = tenant.parked.fetch_add(1, Ordering::Relaxed);
        let place = Place { parking: self, tenant };
        if of_tenant >= MAX_A_TENANT {
            return Err(Problem::ParkFull(state));
        }
        if in_all >= MAX_IN_ALL {
            return Err(Problem::HostFull);
        }
        self.somebody.notify_one();
        Ok(place)
    }

    /// The ticker: runs as long as the process. `generation` reads the table's.
    pub(crate) async fn tick(self: Arc<Self>, generation: impl Fn() -> u64) {
        let mut seen = generation();
        loop {
            self.somebody.notified().await;
            let mut ticks = interval(TICK);
            while self.waiting.load(Ordering::Relaxed) > 0 {
                ticks.tick().await;
                let now = generation();
                if now != seen {
                    seen = now;
                    self.changed.send_replace(());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::route::RouteLimits;

    fn route(state: RouteState, epoch: u64) -> Route {
        let limits = RouteLimits {
            interval_ns: 0,
            burst: 0,
            requests_per_day: 0,
            concurrency: 1,
            queue: 1,
            body_max: 1,
            memory_max: 0,
            storage_max: 0,
            durability: crate::guard::Durability::Process,
        };
        Route { port: 10_001, state, epoch, slot: 0, tokens_valid_after: 0, limits, writes: crate::route::Writes::All }
    }

    #[test]
    fn only_ready_goes_and_only_suspended_is_final() {
        let now = Instant::now();
        assert_eq!(may_go(&route(RouteState::Ready, 1), None, now), Ok(true));
        assert_eq!(may_go(&route(RouteState::Suspended, 1), None, now), Err(Problem::Suspended));
        for state in [RouteState::Starting, RouteState::Draining, RouteState::Stopped, RouteState::Crashed] {
            assert_eq!(may_go(&route(state, 1), None, now), Ok(false), "{state:?}");
        }
    }

    #[test]
    fn an_instance_that_failed_is_avoided_until_it_is_another() {
        let (now, failed) = (Instant::now(), route(RouteState::Ready, 1));
        for avoid in [Avoid::refused(&failed), Avoid::wrong(&failed)] {
            assert_eq!(may_go(&failed, Some(&avoid), now), Ok(false));
            assert_eq!(may_go(&route(RouteState::Ready, 2), Some(&avoid), now), Ok(true));
        }
        let later = now + RETRY_REFUSED * 2;
        assert_eq!(may_go(&failed, Some(&Avoid::refused(&failed)), later), Ok(true));
        assert_eq!(may_go(&failed, Some(&Avoid::wrong(&failed)), later), Ok(false));
    }

    #[tokio::test]
    async fn a_parked_request_goes_on_when_the_table_says_ready() {
        let parking = Arc::new(Parking::new());
        let row = Arc::new(Mutex::new((0, route(RouteState::Starting, 1))));
        let (read, generation) = (Arc::clone(&row), Arc::clone(&row));
        let ticker = tokio::spawn(Arc::clone(&parking).tick(move || generation.lock().unwrap().0));
        let waiting = Arc::clone(&parking);
        let waiter = tokio::spawn(async move {
            let deadline = Instant::now() + MAX_WAIT;
            waiting.wait(&Tenant::default(), RouteState::Starting, None, deadline, || Ok(read.lock().unwrap().1)).await
        });
        while parking.waiting.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        *row.lock().unwrap() = (1, route(RouteState::Ready, 1));
        assert_eq!(waiter.await.unwrap(), Ok(route(RouteState::Ready, 1)));
        assert_eq!(parking.waiting.load(Ordering::Relaxed), 0);
        ticker.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_in_time_and_says_why_it_was_in_vain() {
        let parking = Parking::new();
        let deadline = Instant::now() + MAX_WAIT;
        let end = parking.wait(&Tenant::default(), RouteState::Starting, None, deadline, || Ok(route(RouteState::Crashed, 1))).await;
        assert_eq!(end, Err(Problem::NotReady(RouteState::Crashed)));
        assert_eq!(Instant::now(), deadline);
    }

    #[tokio::test]
    async fn no_more_than_a_hundred_requests_of_a_tenant_wait() {
        let (parking, tenant) = (Parking::new(), Tenant::default());
        let places: Vec<_> = (0..MAX_A_TENANT).map(|_| parking.place(&tenant, RouteState::Starting).unwrap()).collect();
        assert_eq!(parking.place(&tenant, RouteState::Starting).err(), Some(Problem::ParkFull(RouteState::Starting)));
        assert!(parking.place(&Tenant::default(), RouteState::Starting).is_ok(), "another tenant still may");
        drop(places);
        assert!(parking.place(&tenant, RouteState::Starting).is_ok());
    }
}
