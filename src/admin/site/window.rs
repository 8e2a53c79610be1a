//! What all pages look at: one glance of the loop for everybody, at most one a second and only while somebody looks; and what instances.db has.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::Mutex as Queue;

use crate::{
    admin::{
        api::Problem,
        question::Desk,
        records,
        sight::{Glance, Look, Portrait},
    },
    alerts::{self, Share},
    desired::TenantId,
    history::sample::{CpuTicks, FINE, Sample},
    reconcile::review::Review,
    route,
    store::{Event, Reader, StoreError, Usage, unix_now},
};

/// So old a glance may be. Ten thousand tenants cost the loop some milliseconds.
const GLANCE: Duration = Duration::from_secs(1);
/// The same of what the loop would do, which takes it as long as to plan for everybody: some 20 ms.
const PLAN: Duration = Duration::from_secs(2);
/// The same of the samples of a day, of which there is one more each minute.
const SAMPLES: Duration = Duration::from_secs(15);
/// How busy the processors are is told of a time between these.
const BUSY: std::ops::Range<Duration> = Duration::from_millis(900)..Duration::from_secs(60);

/// How everything stands now.
#[derive(Debug)]
pub(super) struct Sight {
    /// By the loop.
    pub(super) glance: Glance,
    /// The host's memory.
    pub(super) memory: Option<Share>,
    /// How busy the processors were since the glance before, of a thousand; none: there was none lately.
    pub(super) cpu: Option<u32>,
}

/// See the file's description.
pub(super) struct Window {
    desk: Desk,
    /// Whoever comes while it is looked waits for what the other one sees.
    sight: Queue<Option<(Instant, Arc<Sight>)>>,
    plan: Queue<Option<(Instant, Arc<Review>)>>,
    samples: Queue<Option<(Instant, Arc<Vec<Sample>>)>>,
    ticks: Mutex<Option<(Instant, CpuTicks)>>,
}

impl Window {
    pub(super) fn new(desk: Desk) -> Self {
        Self { desk, sight: Queue::default(), plan: Queue::default(), samples: Queue::default(), ticks: Mutex::default() }
    }

    /// How everything stands, as of the last second.
    pub(super) async fn sight(&self) -> Result<Arc<Sight>, Problem> {
        let mut latest = self.sight.lock().await;
        if let Some((at, sight)) = &*latest
            && at.elapsed() < GLANCE
        {
            return Ok(sight.clone());
        }
        let glance = self.desk.look(Look::Glance).await.ok_or_else(Problem::stopping)?;
        let sight = Arc::new(Sight { glance, memory: alerts::host_memory(), cpu: self.cpu() });
        *latest = Some((Instant::now(), sight.clone()));
        Ok(sight)
    }

    /// Something was changed: who looks next is to see it.
    pub(super) async fn forget(&self) {
        *self.sight.lock().await = None;
        *self.plan.lock().await = None;
    }

    fn cpu(&self) -> Option<u32> {
        let ticks = CpuTicks::parse(&std::fs::read_to_string("/proc/stat").ok()?)?;
        let mut before = self.ticks.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, earlier) = before.replace((Instant::now(), ticks))?;
        ticks.since(earlier).filter(|_| BUSY.contains(&at.elapsed()))
    }

    /// One tenant; none where it has no place.
    pub(super) async fn tenant(&self, id: &TenantId) -> Result<Option<Box<Portrait>>, Problem> {
        self.desk.look(|answer| Look::Tenant(id.clone(), answer)).await.ok_or_else(Problem::stopping)
    }

    /// What the loop would do, as of the last two seconds.
    pub(super) async fn plan(&self) -> Result<Arc<Review>, Problem> {
        let mut latest = self.plan.lock().await;
        if let Some((at, plan)) = &*latest
            && at.elapsed() < PLAN
        {
            return Ok(plan.clone());
        }
        let plan = Arc::new(self.desk.look(Look::Plan).await.ok_or_else(Problem::stopping)?);
        *latest = Some((Instant::now(), plan.clone()));
        Ok(plan)
    }

    /// The samples of the last day, a minute each.
    pub(super) async fn samples(&self, state_dir: PathBuf) -> Arc<Vec<Sample>> {
        let mut latest = self.samples.lock().await;
        if let Some((at, samples)) = &*latest
            && at.elapsed() < SAMPLES
        {
            return samples.clone();
        }
        let since = unix_now().saturating_sub(super::plot::SPAN);
        let samples = Arc::new(read(state_dir, move |reader| reader.samples(FINE, since)).await);
        *latest = Some((Instant::now(), samples.clone()));
        samples
    }
}

/// The last `limit` events before the number `before`: of this tenant and kind, where these are given.
pub(super) async fn events(state_dir: PathBuf, id: Option<TenantId>, kind: Option<String>, before: Option<u64>, limit: u32) -> Vec<Event> {
    read(state_dir, move |reader| reader.events_of(id.as_ref(), kind.as_deref(), before, limit)).await
}

/// What a tenant used on each of the last `days`, the latest first.
pub(super) async fn days(state_dir: PathBuf, id: TenantId, days: u32) -> Vec<Usage> {
    let today = route::day(unix_now());
    read(state_dir, move |reader| reader.usage_of_days(&id, (today + 1).saturating_sub(days), today)).await
}

/// What instances.db says; nothing where it cannot be read: the loop says so itself.
async fn read<T: Default + Send + 'static>(state_dir: PathBuf, what: impl FnOnce(&Reader) -> Result<T, StoreError> + Send + 'static) -> T {
    records::read(state_dir, what).await.unwrap_or_else(|error| {
        tracing::warn!(error, "the page cannot read the records");
        T::default()
    })
}
