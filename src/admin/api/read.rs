//! What can be looked at.

use axum::{extract::State, response::IntoResponse};
use bytes::Bytes;
use http::header;
use serde::Serialize;

use super::{
    Api,
    extract::{Asked, Id},
    problem::Problem,
};
use crate::admin::{
    page::{EventsPage, EventsWish, HealthResults, LAST_EVENT, LONGEST_PAGE, TenantsPage, TenantsWish, Usage, UsagePage},
    question::{Answer, Question},
    status::TenantStatus,
};

/// JSON as the loop made it.
pub(super) struct Json(Bytes);

impl Json {
    pub(super) fn of_loop(answer: Answer) -> Result<Self, Problem> {
        answer.map(|body| Self(body.into())).map_err(Problem::of_loop)
    }

    pub(super) fn of(value: &impl Serialize) -> Result<Self, Problem> {
        serde_json::to_vec(value).map(|body| Self(body.into())).map_err(|error| Problem::internal(error.to_string()))
    }
}

impl IntoResponse for Json {
    fn into_response(self) -> axum::response::Response {
        ([(header::CONTENT_TYPE, "application/json")], self.0).into_response()
    }
}

async fn told(api: &Api, question: Question) -> Result<Json, Problem> {
    Json::of_loop(api.0.desk.ask(question).await)
}

/// Every tenant's health
///
/// The agent asks every instance each 10 s, unless the proxy saw it answer meanwhile, and restarts by itself what does not answer.
#[utoipa::path(get, path = "/api/admin/health-check-all", tag = "health", responses((status = 200, description = "One word a tenant", body = HealthResults)))]
pub(super) async fn health_check_all(State(api): State<Api>) -> Result<Json, Problem> {
    told(&api, Question::Health).await
}

/// How everything stands
///
/// As `sq-agent status --json` prints it.
#[utoipa::path(get, path = "/api/admin/status", tag = "health", responses((status = 200, description = "Agent, proxy, backups, tenants", body = Object)))]
pub(super) async fn status(State(api): State<Api>) -> Result<Json, Problem> {
    told(&api, Question::Status).await
}

/// The tenants
#[utoipa::path(get, path = "/api/admin/tenants", tag = "tenants", params(TenantsWish), responses((status = 200, description = "A page of them", body = TenantsPage)))]
pub(super) async fn tenants(State(api): State<Api>, Asked(wish): Asked<TenantsWish>) -> Result<Json, Problem> {
    check_limit(wish.limit)?;
    told(&api, Question::Tenants(wish)).await
}

/// One tenant
#[utoipa::path(get, path = "/api/admin/tenants/{id}", tag = "tenants", params(("id" = super::document::TenantIdText,)), responses((status = 200, description = "How it stands", body = TenantStatus)))]
pub(super) async fn tenant(State(api): State<Api>, Id(id): Id) -> Result<Json, Problem> {
    told(&api, Question::Tenant(id)).await
}

/// What the tenants use
#[utoipa::path(get, path = "/api/admin/usage", tag = "usage", params(TenantsWish), responses((status = 200, description = "A page of them", body = UsagePage)))]
pub(super) async fn usages(State(api): State<Api>, Asked(wish): Asked<TenantsWish>) -> Result<Json, Problem> {
    check_limit(wish.limit)?;
    told(&api, Question::Usages(wish)).await
}

/// What one tenant uses, and may
#[utoipa::path(get, path = "/api/admin/tenants/{id}/usage", tag = "usage", params(("id" = super::document::TenantIdText,)), responses((status = 200, description = "As of now", body = Usage)))]
pub(super) async fn usage(State(api): State<Api>, Id(id): Id) -> Result<Json, Problem> {
    told(&api, Question::Usage(id)).await
}

/// What happened
#[utoipa::path(get, path = "/api/admin/events", tag = "events", params(EventsWish), responses((status = 200, description = "A page, the newest first", body = EventsPage)))]
pub(super) async fn events(State(api): State<Api>, Asked(wish): Asked<EventsWish>) -> Result<Json, Problem> {
    check_limit(wish.limit)?;
    if wish.cursor.is_some_and(|cursor| cursor > LAST_EVENT) {
        return Err(Problem::bad_request(format!("cursor is at most {LAST_EVENT}")));
    }
    told(&api, Question::Events(wish)).await
}

pub(super) fn check_limit(limit: u16) -> Result<(), Problem> {
    if (1..=LONGEST_PAGE).contains(&limit) { Ok(()) } else { Err(Problem::bad_request(format!("limit lies between 1 and {LONGEST_PAGE}"))) }
}
