//! A tenant's phexts as they were: listed, taken, put back.

use axum::{
    extract::State,
    response::{IntoResponse as _, Response},
};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Api,
    change::json,
    document::TenantIdText,
    extract::{Id, Reason, Reasoned, Wish, unprocessable},
    problem::Problem,
};
use crate::{
    admin::{
        question::Question,
        status::{RestoreAnswer, RestoreRequest, SnapshotAnswer},
    },
    desired::TenantId,
    snapshot::{self, Listed, Name, phext_file},
};

/// A snapshot.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Snapshot {
    /// When it was taken, RFC 3339.
    time: String,
    /// `hourly`, `asked`, `before-removal`, `before-suspension`, `before-program-change` or `before-restore`.
    reason: String,
    /// What its files take, bytes.
    bytes: u64,
    /// How many there are.
    files: usize,
}

impl Snapshot {
    fn of(listed: &Listed) -> Self {
        Self { time: listed.time.clone(), reason: listed.reason.word().to_owned(), bytes: listed.bytes, files: listed.files }
    }
}

/// A tenant's snapshots.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Snapshots {
    /// The oldest first.
    snapshots: Vec<Snapshot>,
}

/// What came of a snapshot.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Taken {
    /// In a sentence.
    detail: String,
    /// The new one; none: nothing has changed since the last.
    snapshot: Option<Snapshot>,
}

/// What is to be put back.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Restore {
    /// A time as the list has it, or its beginning: the newest at or before it. Left out: the newest that no restore made.
    #[serde(default)]
    at: Option<String>,
    /// Only this phext, named as in `?p=`.
    #[serde(default)]
    phext: Option<String>,
    /// Whose snapshot; left out: the tenant's own.
    #[serde(default)]
    #[schema(value_type = Option<TenantIdText>)]
    from: Option<String>,
    /// Why, for the record.
    #[serde(default)]
    #[schema(max_length = 256)]
    reason: Option<String>,
}

impl Reasoned for Restore {
    fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }
}

/// What came of a restore.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Restored {
    /// In a sentence.
    detail: String,
    /// Files that were put back.
    files: usize,
    /// Their length together, bytes.
    bytes: u64,
    /// Files that were removed, since the snapshot has none of that name.
    removed: usize,
    /// Time of the snapshot that holds what was there before; none where that was nothing.
    before: Option<String>,
}

/// A tenant's snapshots
///
/// Those of one that was removed stay; they are listed again when it is back, and may be put back into another tenant before.
#[utoipa::path(
    get, path = "/api/admin/tenants/{id}/snapshots", tag = "snapshots", params(("id" = TenantIdText,)),
    responses((status = 200, description = "The oldest first", body = Snapshots))
)]
pub(super) async fn list(State(api): State<Api>, Id(id): Id) -> Result<Response, Problem> {
    is_served(&api, &id)?;
    Ok(json(&Snapshots { snapshots: listed(&api, &id).await?.iter().map(Snapshot::of).collect() }))
}

/// Take a snapshot
///
/// While the tenant is served; where nothing has changed since the last one, none is taken.
#[utoipa::path(
    post, path = "/api/admin/tenants/{id}/snapshots", tag = "snapshots", params(("id" = TenantIdText,)), request_body = Option<Reason>,
    responses(
        (status = 200, description = "Nothing has changed since the last one", body = Taken),
        (status = 201, description = "It is taken", body = Taken),
        (status = 409, description = "It cannot be taken now, for want of room on the disk, say")
    )
)]
pub(super) async fn take(State(api): State<Api>, Id(id): Id, _wish: Wish<Reason>) -> Result<Response, Problem> {
    let answer: SnapshotAnswer = ask(&api, Question::Snapshot(id)).await?;
    let status = if answer.made.is_some() { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, json(&Taken { snapshot: answer.made.as_ref().map(Snapshot::of), detail: answer.detail })).into_response())
}

/// Put a snapshot back
///
/// Requests wait meanwhile. What is replaced is kept as a snapshot, so a restore can be undone.
#[utoipa::path(
    post, path = "/api/admin/tenants/{id}/restore", tag = "snapshots", params(("id" = TenantIdText,)), request_body = Option<Restore>,
    responses(
        (status = 200, description = "It is put back", body = Restored),
        (status = 409, description = "There is no such snapshot, or it cannot be put back now")
    )
)]
pub(super) async fn restore(State(api): State<Api>, Id(to): Id, Wish(wish): Wish<Restore>) -> Result<Response, Problem> {
    let Restore { at, phext, from, reason: _ } = wish;
    let from = match from {
        Some(from) => TenantId::parse(&from).map_err(|error| unprocessable(format!("from: {error}")))?,
        None => to.clone(),
    };
    is_served(&api, &to)?;
    let names: Vec<Name> = listed(&api, &from).await?.into_iter().map(|listed| listed.name).collect();
    let name = snapshot::choose(&names, at.as_deref()).map_err(|error| Problem::conflict(format!("{from}: {error}")))?;
    let question = Question::Restore(RestoreRequest { from, name, file: phext.as_deref().map(phext_file), to });
    let RestoreAnswer { detail, files, bytes, removed, before } = ask(&api, question).await?;
    Ok(json(&Restored { detail, files, bytes, removed, before }))
}

fn is_served(api: &Api, id: &TenantId) -> Result<(), Problem> {
    let missing = || Problem::of_loop((StatusCode::NOT_FOUND, format!("no tenant {id} on this host")));
    api.in_force().tenants.contains_key(id).then_some(()).ok_or_else(missing)
}

async fn listed(api: &Api, id: &TenantId) -> Result<Vec<Listed>, Problem> {
    let desired = api.in_force();
    let (user_dir, is_served) = (desired.user_dir(id), desired.tenants.contains_key(id));
    let list = tokio::task::spawn_blocking(move || {
        if !is_served && !user_dir.try_exists()? {
            return Ok(None);
        }
        snapshot::list(&user_dir).map(Some).map_err(std::io::Error::other)
    });
    let found = list.await.map_err(|error| Problem::internal(error.to_string()))?.map_err(|error| Problem::internal(error.to_string()))?;
    found.ok_or_else(|| Problem::of_loop((StatusCode::NOT_FOUND, format!("no tenant {id} on this host, now or before"))))
}

async fn ask<T: serde::de::DeserializeOwned>(api: &Api, question: Question) -> Result<T, Problem> {
    let answer = api.0.desk.ask(question).await.map_err(Problem::of_loop)?;
    serde_json::from_slice(&answer).map_err(|error| Problem::internal(error.to_string()))
}
