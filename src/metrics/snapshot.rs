//! What the loop says of itself and of its tenants at one moment.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::Turns;
use crate::{admin::status::Status, alerts::Share, desired::TenantId, observed::Moment, route::RouteState};

/// A wish for a snapshot.
pub type Ask = oneshot::Sender<Arc<Snapshot>>;

/// See the file's description.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// When it was taken.
    pub taken: Moment,
    /// All but the tenants.
    pub status: Status,
    /// The host's memory.
    pub memory: Option<Share>,
    /// Actions in the last plan for everybody.
    pub planned: usize,
    /// Tenants in tenants.toml.
    pub desired: usize,
    /// Tenants whose instance is not as it should be.
    pub adrift: usize,
    /// How long the loop's turns took.
    pub turns: Turns,
    /// Names of the tiers that tenants have.
    pub tiers: Vec<String>,
    /// Every tenant that has a place on this host, by id.
    pub tenants: Vec<TenantFacts>,
}

/// One tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantFacts {
    /// Its name.
    pub id: TenantId,
    /// Its index in the shared pages.
    pub slot: u32,
    /// Its tier, by number in [`Snapshot::tiers`].
    pub tier: u16,
    /// As its row says.
    pub state: RouteState,
    /// Proportional set size of its instance, bytes.
    pub memory: Option<u64>,
    /// What it may take.
    pub memory_max: Option<u64>,
    /// What its phexts take, bytes.
    pub storage: Option<u64>,
    /// What they may take.
    pub storage_max: Option<u64>,
    /// Requests that are let in a day.
    pub requests_per_day: Option<u32>,
}
