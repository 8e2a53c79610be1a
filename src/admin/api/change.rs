//! A change of who is served, or how: made in tenants.toml, then waited for until it is so.

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use utoipa::ToSchema;

use super::{Api, Stage, arrive::Caller, problem::Problem};
use crate::{
    admin::{
        page::Outcome,
        question::{Awaited, Question},
        status::TenantStatus,
    },
    desired::TenantId,
    edit::{Author, Change, EditError, Refused},
};

/// What was asked for is to come, and is not so yet.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Accepted {
    /// The tenant.
    id: String,
    /// Its state now; none: it has no place.
    state: Option<String>,
    /// What is still to come, or what is in the way.
    pub(super) detail: String,
    /// The removal is held until somebody confirms it: `POST /api/admin/confirm/{hash}` with this.
    confirm: Option<String>,
}

/// How far a change came in time.
pub(super) enum Came {
    /// It is so; the tenant, where it has a place.
    Done(Option<TenantStatus>),
    /// It stands in tenants.toml, and the rest is to come.
    Later(Accepted),
}

impl IntoResponse for Accepted {
    fn into_response(self) -> Response {
        let location = HeaderValue::try_from(format!("/api/admin/tenants/{}", self.id)).ok();
        let mut response = (StatusCode::ACCEPTED, json(&self)).into_response();
        response.headers_mut().extend(location.map(|location| (header::LOCATION, location)));
        response
    }
}

/// A body.
pub(super) fn json(value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => ([(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => Problem::of_loop((StatusCode::INTERNAL_SERVER_ERROR, error.to_string())).into_response(),
    }
}

impl Came {
    /// The tenant as it is now, or what is to come.
    pub(super) fn tenant(self) -> Response {
        match self {
            Self::Done(tenant) => json(&tenant),
            Self::Later(accepted) => accepted.into_response(),
        }
    }
}

impl Api {
    /// Makes `change` for `caller`, and waits for it.
    pub(super) async fn change(&self, change: Change, caller: &Caller, reason: Option<String>) -> Result<Came, Problem> {
        let by = Author { name: caller.actor.clone(), email: None, reason };
        self.make(change.clone(), by).await?;
        self.wait(change.id().clone(), Question::Await(Awaited::Change(change))).await
    }

    /// Has tenants.toml changed. While that is under way the agent does not let go of it.
    async fn make(&self, change: Change, by: Author) -> Result<(), Problem> {
        let editor = self.0.editor.read().await;
        let editor = editor.as_ref().ok_or_else(Problem::stopping)?;
        let mut stage = self.0.stage.clone();
        tokio::select! {
            made = editor.make(change, by) => made.map(drop).map_err(of_edit),
            _ = stage.wait_for(|stage| *stage >= Stage::Gone) => Err(Problem::stopping()),
        }
    }

    /// Lets go of tenants.toml: from here on it is another agent's to change.
    pub(in crate::admin) async fn let_go(&self) {
        let editor = self.0.editor.write().await.take();
        // It ends what it is at, which takes a moment; a panic of it ends it as well.
        let _ = tokio::task::spawn_blocking(move || drop(editor)).await;
    }

    /// Asks what is answered once it is so.
    pub(super) async fn wait(&self, id: TenantId, question: Question) -> Result<Came, Problem> {
        let mut stage = self.0.stage.clone();
        let answer = tokio::select! {
            answer = self.0.desk.ask(question) => answer,
            _ = stage.wait_for(|stage| *stage >= Stage::Leaving) => Err((StatusCode::SERVICE_UNAVAILABLE, String::new())),
        };
        let later = |detail: String| Came::Later(Accepted { id: id.to_string(), state: None, detail, confirm: None });
        let outcome: Outcome = match answer {
            Ok(answer) => {
                serde_json::from_slice(&answer).map_err(|error| Problem::of_loop((StatusCode::INTERNAL_SERVER_ERROR, error.to_string())))?
            }
            // What stands in tenants.toml is carried out by whoever comes next.
            Err((StatusCode::SERVICE_UNAVAILABLE, _)) => {
                return Ok(later("the agent makes way for a new one, which goes on with it".to_owned()));
            }
            Err(refused) => return Err(Problem::of_loop(refused)),
        };
        Ok(match outcome {
            Outcome { done: true, tenant, .. } => Came::Done(tenant),
            Outcome { confirm, detail, tenant, .. } => {
                let state = tenant.map(|tenant| tenant.state);
                Came::Later(Accepted { id: id.to_string(), state, detail, confirm })
            }
        })
    }
}

/// Why tenants.toml was not changed.
fn of_edit(error: EditError) -> Problem {
    let detail = error.to_string();
    let conflict = |detail| Problem::of_loop((StatusCode::CONFLICT, detail));
    let again = |slug, title, seconds, detail| Problem {
        retry_after: Some(seconds),
        ..Problem::new(StatusCode::SERVICE_UNAVAILABLE, slug, title, detail)
    };
    match error {
        EditError::Refused(Refused::UnknownTenant(_)) => Problem::of_loop((StatusCode::NOT_FOUND, detail)),
        EditError::Refused(Refused::UnknownTier { .. }) => Problem::new(StatusCode::CONFLICT, "no-such-tier", "No such tier", detail),
        EditError::Refused(_) | EditError::Standing(_) | EditError::Unfit(_) => conflict(detail),
        EditError::Overtaken(_) => again("repository-busy", "Others push all the time", 5, detail),
        EditError::Busy(_) => again("file-busy", "tenants.toml is being edited", 2, detail),
        EditError::File(_) => again("file-trouble", "tenants.toml cannot be written", 30, detail),
        EditError::Repository(_) => again("repository-trouble", "The repository cannot be written", 30, detail),
        EditError::Ending => Problem::stopping(),
    }
}
