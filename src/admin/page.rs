//! What the admin API asks of the loop in pages, and what it gives back. Clients rely on the answers: fields are added, never renamed.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::status::TenantStatus;
use crate::{desired::TenantId, route::RouteState};

/// The state of a tenant's instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum StateWord {
    /// It is being started, or is about to be; requests wait.
    Starting,
    /// It serves.
    Ready,
    /// It finishes what is in flight; requests wait.
    Draining,
    /// It is on its way out.
    Stopped,
    /// The operator said no: 403.
    Suspended,
    /// It died and waits for its next try; requests wait.
    Crashed,
}

impl From<RouteState> for StateWord {
    fn from(state: RouteState) -> Self {
        match state {
            RouteState::Starting => Self::Starting,
            RouteState::Ready => Self::Ready,
            RouteState::Draining => Self::Draining,
            RouteState::Stopped => Self::Stopped,
            RouteState::Suspended => Self::Suspended,
            RouteState::Crashed => Self::Crashed,
        }
    }
}

impl StateWord {
    /// As it stands in a status.
    pub fn text(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Stopped => "stopped",
            Self::Suspended => "suspended",
            Self::Crashed => "crashed",
        }
    }
}

/// Most entries of a page.
pub const LONGEST_PAGE: u16 = 1_000;
/// Highest number of an event: every JSON reader takes it as it is (RFC 8259, 6).
pub const LAST_EVENT: u64 = (1 << 53) - 1;
/// Entries of a page where nothing is said.
const PAGE: u16 = 100;

pub(super) fn page() -> u16 {
    PAGE
}

/// Which tenants, in the order of their ids.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct TenantsWish {
    /// Only those in this state
    #[serde(default)]
    pub state: Option<StateWord>,
    /// Only those of this tier
    #[serde(default)]
    pub tier: Option<String>,
    /// Only those whose id holds this
    #[serde(default)]
    pub q: Option<String>,
    /// Most of them at once
    #[serde(default = "page")]
    #[param(minimum = 1, maximum = 1000, default = 100)]
    pub limit: u16,
    /// `next` of the page before
    #[serde(default)]
    #[param(value_type = Option<String>, pattern = "^[A-Za-z0-9_+@-][A-Za-z0-9._+@-]{0,127}$", max_length = 128)]
    pub cursor: Option<TenantId>,
}

/// A page of tenants.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TenantsPage {
    /// The tenants, by id.
    pub tenants: Vec<TenantStatus>,
    /// `cursor` of the next page, where there is one.
    pub next: Option<String>,
    /// How many there are in all pages.
    pub total: usize,
}

/// What one tenant uses, and may.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Usage {
    /// The tenant.
    pub id: String,
    /// Its tier.
    pub tier: String,
    /// Requests that were let in today (UTC).
    pub requests_today: u32,
    /// How many may be; none: any number.
    pub requests_per_day: Option<u32>,
    /// Requests since the host booted.
    pub requests: u64,
    /// Those of them that the proxy had to answer with 5xx.
    pub errors: u64,
    /// Bytes of request bodies since the host booted.
    pub bytes_in: u64,
    /// Bytes of answers since the host booted.
    pub bytes_out: u64,
    /// When the last request came, RFC 3339; none: not since the host booted.
    pub last_request: Option<String>,
    /// Proportional set size of the instance at the last look, bytes.
    pub memory_bytes: Option<u64>,
    /// What it may take; none: any number.
    pub memory_max: Option<u64>,
    /// What its phexts took at the last look, bytes.
    pub storage_bytes: Option<u64>,
    /// What they may take; none: any number.
    pub storage_max: Option<u64>,
}

/// A page of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UsagePage {
    /// What each uses, by id.
    pub usage: Vec<Usage>,
    /// `cursor` of the next page, where there is one.
    pub next: Option<String>,
}

/// Which events, the newest first.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct EventsWish {
    /// Only those about this tenant
    #[serde(default)]
    #[param(value_type = Option<String>, pattern = "^[A-Za-z0-9_+@-][A-Za-z0-9._+@-]{0,127}$", max_length = 128)]
    pub tenant: Option<TenantId>,
    /// Only those of this kind, such as `crashed`
    #[serde(default)]
    pub kind: Option<String>,
    /// Most of them at once
    #[serde(default = "page")]
    #[param(minimum = 1, maximum = 1000, default = 100)]
    pub limit: u16,
    /// `next` of the page before
    #[serde(default)]
    #[param(minimum = 0, maximum = 9_007_199_254_740_991_i64)]
    pub cursor: Option<u64>,
}

/// A page of events. The last 10,000 are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EventsPage {
    /// The events, the newest first.
    pub events: Vec<EventOut>,
    /// `cursor` of the next page, where there is one.
    pub next: Option<u64>,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EventOut {
    /// Its number; later ones are higher.
    pub number: u64,
    /// When, RFC 3339.
    pub at: String,
    /// About whom, where it is about one.
    pub tenant: Option<String>,
    /// A word for programs, such as `crashed`.
    pub kind: String,
    /// A sentence for people.
    pub detail: String,
}

/// What came of a change, as the loop tells it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// It is so.
    pub done: bool,
    /// A held plan is to be confirmed by this hash.
    pub confirm: Option<String>,
    /// What is still to come, or what is wrong, in a sentence.
    pub detail: String,
    /// How the tenant stands, where it has a place.
    pub tenant: Option<TenantStatus>,
}

/// Whether a request of a certain name was made before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Begun {
    /// It was not.
    First,
    /// It was, and broke off, so that it is not known what it did.
    Interrupted,
    /// It was, and this was the answer.
    Answered(Vec<u8>),
    /// Another request had that name.
    Other,
}

/// Every tenant's health.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HealthResults {
    /// One a tenant, by id.
    pub results: Vec<HealthResult>,
}

/// One tenant's health. The agent asks every instance each 10 s, unless the proxy saw it answer meanwhile, and restarts by itself what does not answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct HealthResult {
    /// The tenant.
    pub user_id: String,
    /// `ok`: it answers. `restarted`: it answers, and was started again within the last five minutes. `unhealthy`: it does not answer, and is
    /// about to be restarted. Else the state in which it is.
    pub status: HealthWord,
}

/// See [`HealthResult::status`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum HealthWord {
    /// It answers.
    Ok,
    /// It answers, and was started again lately.
    Restarted,
    /// It does not answer.
    Unhealthy,
    /// It comes up.
    Starting,
    /// It finishes what is in flight.
    Draining,
    /// It is on its way out.
    Stopped,
    /// The operator said no.
    Suspended,
    /// It died and waits for its next try.
    Crashed,
}
