//! What the page asks of the loop. Typed, since both live in one process: a host of 10,000 tenants as JSON would be megabytes, and the loop would
//! stand still for as long as writing them takes.

use tokio::sync::oneshot;

use super::{
    page::{StateWord, Usage},
    status::{Status, TenantStatus},
};
use crate::{desired::TenantId, history::ring::Point, reconcile::review::Review};

/// What is asked.
#[derive(Debug)]
pub enum Look {
    /// How everything stands.
    Glance(oneshot::Sender<Glance>),
    /// One tenant, in full; none where it has no place.
    Tenant(TenantId, oneshot::Sender<Option<Box<Portrait>>>),
    /// What the loop would do, and what it holds.
    Plan(oneshot::Sender<Review>),
}

/// How everything stands, as far as a table shows it.
#[derive(Debug, Clone)]
pub struct Glance {
    /// When, seconds since 1970.
    pub at: u64,
    /// When this agent began, the same.
    pub since: u64,
    /// All but the tenants.
    pub status: Status,
    /// The tenants, by id.
    pub rows: Vec<Row>,
}

/// A tenant in a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Its name.
    pub id: TenantId,
    /// Its tier.
    pub tier: String,
    /// The state of its instance.
    pub state: StateWord,
    /// Proportional set size of the instance at the last look, bytes.
    pub memory: Option<u64>,
    /// What it may take, bytes; none: any number.
    pub memory_max: Option<u64>,
    /// What its phexts took at the last look, bytes.
    pub storage: Option<u64>,
    /// What they may take, bytes; none: any number.
    pub storage_max: Option<u64>,
    /// Requests that were let in today (UTC).
    pub requests_today: u32,
    /// Starts after the first.
    pub restarts: u64,
    /// Its instance does not answer probes.
    pub is_silent: bool,
    /// Its removal waits for a person.
    pub is_held: bool,
    /// Why it is as it is, in a sentence; only where there is more to say than its state does.
    pub note: Option<String>,
}

/// One tenant, in full.
#[derive(Debug, Clone)]
pub struct Portrait {
    /// How it stands.
    pub tenant: TenantStatus,
    /// What it uses, and may.
    pub usage: Usage,
    /// The last day by the quarter of an hour, as far back as this agent runs.
    pub points: Vec<Point>,
}
