//! One answer to one scrape: a snapshot of the loop, a look at the shared pages, and the text of both.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use prometheus_client::{encoding, registry::Registry};
use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    time::timeout,
};

use super::{Ask, Snapshot, busiest::Busiest, families::Families};
use crate::{
    desired::{Desired, MetricsOf},
    observed::{Moment, monotonic},
    route::{Activity, Meters, SlotActivity, day},
    store::unix_now,
};

/// A loop that takes longer stands still, and what it last said is shown, with its age.
const PATIENCE: Duration = Duration::from_secs(2);
/// Who asks more often than this is told of the same snapshot: nobody can keep the loop busy by asking.
const ANEW: Duration = Duration::from_secs(1);

/// In which form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus' own text, 0.0.4.
    Prometheus,
}

impl Format {
    /// What `accept` (a header's value) asks for: Prometheus' own text unless it names OpenMetrics.
    pub fn of(accept: &str) -> Self {
        let is_wanted = |part: &str| {
            let mut words = part.split(';').map(str::trim);
            words.next() == Some("application/openmetrics-text")
                && !words.any(|word| matches!(word, "q=0" | "q=0.0" | "q=0.00" | "q=0.000"))
        };
        if accept.split(',').any(|part| is_wanted(part.trim())) { Self::OpenMetrics } else { Self::Prometheus }
    }

    /// As Content-Type.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// The agent has nothing to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    /// The loop has not said anything yet.
    #[error("the agent's loop does not answer; see its log")]
    Silent,
    /// The text could not be made.
    #[error("the text could not be made")]
    Text,
}

/// What it is made from.
pub struct MetricsParts {
    /// To the loop.
    pub ask: mpsc::Sender<Ask>,
    /// The activity page.
    pub activity: Arc<Activity>,
    /// The page of metrics.
    pub meters: Arc<Meters>,
    /// What says which tenants are shown.
    pub in_force: watch::Receiver<Arc<Desired>>,
}

/// Answers scrapes.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    parts: MetricsParts,
    /// One at a time: each takes memory for all of the text.
    turn: Semaphore,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    latest: Option<Arc<Snapshot>>,
    busiest: Busiest,
    /// Bytes of the last text.
    length: usize,
}

impl Metrics {
    /// Over these.
    pub fn new(parts: MetricsParts) -> Self {
        Self(Arc::new(Inner { parts, turn: Semaphore::new(1), kept: Mutex::default() }))
    }

    /// The text.
    ///
    /// # Errors
    /// The loop has never answered.
    pub async fn scrape(&self, format: Format) -> Result<String, NoAnswer> {
        let Ok(_turn) = self.0.turn.acquire().await else { return Err(NoAnswer::Silent) };
        let snapshot = self.0.snapshot().await.ok_or(NoAnswer::Silent)?;
        let inner = Arc::clone(&self.0);
        // Some ten milliseconds of nothing but work.
        tokio::task::spawn_blocking(move || inner.text(snapshot, format)).await.map_err(|_| NoAnswer::Text)?
    }
}

impl Inner {
    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        // It holds nothing that a panic could leave half done.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn snapshot(&self) -> Option<Arc<Snapshot>> {
        let latest = self.kept().latest.clone();
        if let Some(latest) = latest.as_ref().filter(|latest| Moment::now().since(latest.taken) < ANEW) {
            return Some(Arc::clone(latest));
        }
        let (answer, answered) = oneshot::channel();
        let fresh = timeout(PATIENCE, async {
            self.parts.ask.send(answer).await.ok()?;
            answered.await.ok()
        });
        let snapshot = fresh.await.ok().flatten().or(latest);
        self.kept().latest.clone_from(&snapshot);
        snapshot
    }

    fn text(&self, snapshot: Arc<Snapshot>, format: Format) -> Result<String, NoAnswer> {
        let MetricsParts { activity, meters, in_force, .. } = &self.parts;
        let counted = |slot| activity.slot(slot).map(SlotActivity::snapshot).unwrap_or_default();
        let (all, each) = meters.all();
        let shown = match in_force.borrow().metrics.tenants {
            MetricsOf::All => (0..snapshot.tenants.len()).collect(),
            MetricsOf::None => Vec::new(),
            MetricsOf::Busiest(most) => {
                let requests = |tenant: &super::TenantFacts| counted(tenant.slot).requests;
                self.kept().busiest.look(&snapshot.tenants, requests, most as usize, monotonic())
            }
        };
        let shown = shown.into_iter().filter_map(|at| {
            let tenant = snapshot.tenants.get(at)?;
            Some((at, counted(tenant.slot), each.get(tenant.slot as usize).copied().unwrap_or_default()))
        });
        let families = Families {
            shown: shown.collect(),
            age: Moment::now().since(snapshot.taken),
            all,
            proxy: meters.proxy(),
            lost_log_lines: activity.lost_lines(),
            today: day(unix_now()),
            snapshot: Arc::clone(&snapshot),
        };
        let length = self.kept().length;
        let mut text = String::with_capacity(length + length / 16 + 4_096);
        let mut registry = Registry::with_prefix("sq_agent");
        registry.register_collector(Box::new(families));
        match format {
            Format::OpenMetrics => encoding::text::encode(&mut text, &registry),
            Format::Prometheus => encoding::prometheus_text::encode(&mut text, &registry),
        }
        .map_err(|_| NoAnswer::Text)?;
        self.kept().length = text.len();
        Ok(text)
    }
}

#[cfg(test)]
#[path = "scrape_tests.rs"]
mod tests;
