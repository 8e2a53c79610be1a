//! Who is served: provision, suspend, resume, restart, another tier, remove; and the word that lets a held plan through.

use axum::{
    Extension,
    extract::{Path, State},
    response::{IntoResponse as _, Response},
};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Api,
    arrive::Caller,
    change::{Accepted, Came, json},
    document::TenantIdText,
    extract::{Id, Reason, Reasoned, Wish},
    problem::Problem,
    read::Json,
};
use crate::{
    admin::{
        question::{Awaited, Question},
        status::{Failure, TenantStatus},
    },
    edit::Change,
};

/// Who is to be served, and how.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Provision {
    /// Its tier; left out: `free`.
    #[serde(default)]
    tier: Option<String>,
    /// Why, for the record and for the message of a commit.
    #[serde(default)]
    #[schema(max_length = 256)]
    reason: Option<String>,
}

impl Reasoned for Provision {
    fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }
}

/// A tenant that is served.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Provisioned {
    /// Always.
    success: bool,
    /// The tenant.
    user_id: String,
    /// Port of its instance, which the proxy alone can reach.
    port: Option<u16>,
    /// Process id of its instance.
    pid: Option<u32>,
    /// Where its user finds it, with a token or an API key.
    #[serde(rename = "sqURL")]
    sq_url: String,
    /// `running`.
    status: &'static str,
}

/// Serve somebody
///
/// Who is served already, in this tier or where none is named, is so: asking twice is asking once. Who was removed finds its data again.
#[utoipa::path(
    post, path = "/api/admin/provision/{userId}", tag = "tenants", params(("userId" = TenantIdText,)), request_body = Option<Provision>,
    responses(
        (status = 200, description = "Its instance answers", body = Provisioned),
        (status = 202, description = "It stands in tenants.toml, and the rest is to come", body = Accepted),
        (status = 409, description = "It is there in another tier, or suspended; or tenants.toml cannot be changed as it stands")
    )
)]
pub(super) async fn provision(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Id(id): Id,
    Wish(Provision { tier, reason }): Wish<Provision>,
) -> Result<Response, Problem> {
    let suspended = |id| api.in_force().tenants.get(id).is_some_and(|tenant| tenant.suspended);
    if suspended(&id) {
        return Err(Problem::conflict(format!("{id} is suspended: resume it instead")));
    }
    Ok(match api.change(Change::Provision { id: id.clone(), tier }, &caller, reason).await? {
        Came::Done(tenant) => {
            let (port, pid) = tenant.map_or((None, None), |tenant| (tenant.port, tenant.pid));
            json(&Provisioned { success: true, user_id: id.to_string(), port, pid, sq_url: api.public_url(), status: "running" })
        }
        Came::Later(accepted) => accepted.into_response(),
    })
}

/// Serve somebody no more
///
/// Its instance is stopped, a snapshot of its phexts is taken, and its data stays. Where so many are removed that a person has to look at it, the answer
/// is 202 with the hash to confirm.
#[utoipa::path(
    delete, path = "/api/admin/tenants/{id}", tag = "tenants", params(("id" = TenantIdText,)), request_body = Option<Reason>,
    responses(
        (status = 200, description = "It has no place on this host any more", body = Removed),
        (status = 202, description = "It stands in tenants.toml, and the rest is to come", body = Accepted),
        (status = 409, description = "tenants.toml cannot be changed as it stands")
    )
)]
pub(super) async fn remove(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Id(id): Id,
    Wish(Reason { reason }): Wish<Reason>,
) -> Result<Response, Problem> {
    if !caller.was_interrupted && !api.in_force().tenants.contains_key(&id) {
        api.0.desk.ask(Question::Tenant(id.clone())).await.map_err(Problem::of_loop)?;
    }
    let change = Change::Remove { id: id.clone() };
    let came = match api.change(change.clone(), &caller, reason).await {
        // That was done when the agent died over it.
        Err(problem) if caller.was_interrupted && problem.status == StatusCode::NOT_FOUND => {
            api.wait(id.clone(), Question::Await(Awaited::Change(change))).await?
        }
        came => came?,
    };
    Ok(match came {
        Came::Done(_) => json(&Removed { id: id.to_string(), detail: "stopped; its data stays".to_owned() }),
        Came::Later(accepted) => accepted.into_response(),
    })
}

/// A tenant that has no place any more.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Removed {
    /// The tenant.
    id: String,
    /// What became of it.
    detail: String,
}

/// Stop somebody's instance, and answer 403 for it
///
/// The data stays, and a snapshot of it is taken.
#[utoipa::path(
    post, path = "/api/admin/tenants/{id}/suspend", tag = "tenants", params(("id" = TenantIdText,)), request_body = Option<Reason>,
    responses(
        (status = 200, description = "Its instance has ended", body = TenantStatus),
        (status = 202, description = "It stands in tenants.toml, and the rest is to come", body = Accepted),
        (status = 409, description = "tenants.toml cannot be changed as it stands")
    )
)]
pub(super) async fn suspend(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Id(id): Id,
    Wish(Reason { reason }): Wish<Reason>,
) -> Result<Response, Problem> {
    Ok(api.change(Change::Suspend { id, suspended: true }, &caller, reason).await?.tenant())
}

/// Serve somebody again who was suspended
#[utoipa::path(
    post, path = "/api/admin/tenants/{id}/resume", tag = "tenants", params(("id" = TenantIdText,)), request_body = Option<Reason>,
    responses(
        (status = 200, description = "Its instance answers", body = TenantStatus),
        (status = 202, description = "It stands in tenants.toml, and the rest is to come", body = Accepted),
        (status = 409, description = "tenants.toml cannot be changed as it stands")
    )
)]
pub(super) async fn resume(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Id(id): Id,
    Wish(Reason { reason }): Wish<Reason>,
) -> Result<Response, Problem> {
    Ok(api.change(Change::Suspend { id, suspended: false }, &caller, reason).await?.tenant())
}

/// Restart somebody's instance
///
/// It drains first; requests wait meanwhile, and none fails.
#[utoipa::path(
    post, path = "/api/admin/tenants/{id}/restart", tag = "tenants", params(("id" = TenantIdText,)), request_body = Option<Reason>,
    responses(
        (status = 200, description = "Another instance answers", body = TenantStatus),
        (status = 202, description = "It is under way", body = Accepted),
        (status = 409, description = "It is suspended")
    )
)]
pub(super) async fn restart(State(api): State<Api>, Id(id): Id, _wish: Wish<Reason>) -> Result<Response, Problem> {
    Ok(api.wait(id.clone(), Question::RestartAndAwait(id)).await?.tenant())
}

/// Which tier.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Tier {
    /// Its name, as in `[tiers.NAME]`.
    tier: String,
    /// Why, for the record and for the message of a commit.
    #[serde(default)]
    #[schema(max_length = 256)]
    reason: Option<String>,
}

impl Reasoned for Tier {
    fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }
}

/// Give somebody another tier
///
/// What it limits counts for the next request; the instance is restarted only where it uses more memory than the new limit.
#[utoipa::path(
    put, path = "/api/admin/tenants/{id}/tier", tag = "tenants", params(("id" = TenantIdText,)), request_body = Tier,
    responses(
        (status = 200, description = "It is in force", body = TenantStatus),
        (status = 202, description = "It stands in tenants.toml, and the rest is to come", body = Accepted),
        (status = 409, description = "tenants.toml cannot be changed as it stands")
    )
)]
pub(super) async fn tier(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Id(id): Id,
    Wish(Tier { tier, reason }): Wish<Tier>,
) -> Result<Response, Problem> {
    Ok(api.change(Change::Tier { id, tier }, &caller, reason).await?.tenant())
}

/// Let a held plan through
///
/// Removals of many at once wait for this, and so does a roll-out that went back. The hash stands in a 202 and in the status.
#[utoipa::path(
    post, path = "/api/admin/confirm/{hash}", tag = "tenants",
    params(("hash" = String, Path, description = "Of the plan", max_length = 64, pattern = "^[0-9a-z]{1,64}$")), request_body = Option<Reason>,
    responses(
        (status = 200, description = "It goes through", body = Failure),
        (status = 409, description = "That is not the plan that is held")
    )
)]
pub(super) async fn confirm(State(api): State<Api>, Path(hash): Path<String>, _wish: Wish<Reason>) -> Result<Json, Problem> {
    Json::of_loop(api.0.desk.ask(Question::Confirm(hash)).await)
}
