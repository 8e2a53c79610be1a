//! What the commands of this program ask, on the agent's socket alone. Programs of one version speak it with one another; everybody else takes
//! the [`api`](super::api).

use axum::{
    Router,
    body::Bytes,
    extract::{Path, State},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use http::{StatusCode, header};
use serde::de::DeserializeOwned;

use super::{
    question::{Answer, Desk, GitOpsAsked, Question},
    status::{Failure, RestoreRequest, UpgradeRequest},
};
use crate::desired::TenantId;

/// The routes.
pub(super) fn router(desk: Desk) -> Router {
    let sync = |accept_rewrite| Question::GitOps(GitOpsAsked::Sync { accept_rewrite });
    let suspend = |suspended| Question::GitOps(GitOpsAsked::Suspend(suspended));
    let fixed = |question: Question| move |State(desk): State<Desk>| async move { Said(desk.ask(question).await) };
    Router::new()
        .route("/status", get(fixed(Question::Status)))
        .route("/observed", get(fixed(Question::Observed)))
        .route("/backup", post(fixed(Question::Backup { may_make: false })))
        .route("/backup/init", post(fixed(Question::Backup { may_make: true })))
        .route("/gitops/sync", post(fixed(sync(false))))
        .route("/gitops/sync/accept-rewrite", post(fixed(sync(true))))
        .route("/gitops/suspend", post(fixed(suspend(true))))
        .route("/gitops/resume", post(fixed(suspend(false))))
        .route("/confirm/{hash}", post(confirm))
        .route("/restart/{id}", post(restart))
        .route("/snapshot/{id}", post(snapshot))
        .route("/restore", post(restore))
        .route("/upgrade", post(upgrade))
        .with_state(desk)
}

/// An answer as the commands read it.
struct Said(Answer);

impl IntoResponse for Said {
    fn into_response(self) -> Response {
        let (status, body) = match self.0 {
            Ok(body) => (StatusCode::OK, body),
            Err((status, detail)) => (status, serde_json::to_vec(&Failure { detail }).unwrap_or_default()),
        };
        (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
    }
}

async fn confirm(State(desk): State<Desk>, Path(hash): Path<String>) -> Said {
    Said(desk.ask(Question::Confirm(hash)).await)
}

async fn restart(State(desk): State<Desk>, Path(id): Path<String>) -> Said {
    about(&desk, &id, Question::Restart).await
}

async fn snapshot(State(desk): State<Desk>, Path(id): Path<String>) -> Said {
    about(&desk, &id, Question::Snapshot).await
}

async fn about(desk: &Desk, id: &str, question: fn(TenantId) -> Question) -> Said {
    Said(match TenantId::parse(id) {
        Ok(id) => desk.ask(question(id)).await,
        Err(error) => Err((StatusCode::BAD_REQUEST, format!("{id:?}: {error}"))),
    })
}

async fn restore(State(desk): State<Desk>, body: Bytes) -> Said {
    Said(match read::<RestoreRequest>("/restore", &body, "a tenant and the name of a snapshot") {
        Ok(wish) => desk.ask(Question::Restore(wish)).await,
        Err(failure) => Err(failure),
    })
}

async fn upgrade(State(desk): State<Desk>, body: Bytes) -> Said {
    const WANTS: &str = "{\"exe\": \"/path/to/sq-agent\"}";
    Said(match read::<UpgradeRequest>("/upgrade", &body, WANTS) {
        Ok(UpgradeRequest { exe }) if exe.is_absolute() => desk.upgrade(exe).await,
        Ok(_) => Err((StatusCode::BAD_REQUEST, format!("POST /upgrade wants {WANTS}: the path must be absolute"))),
        Err(failure) => Err(failure),
    })
}

/// The JSON of a question; `wants` says what it should be.
fn read<T: DeserializeOwned>(path: &str, body: &[u8], wants: &str) -> Result<T, (StatusCode, String)> {
    serde_json::from_slice(body).map_err(|error| (StatusCode::BAD_REQUEST, format!("POST {path} wants {wants}: {error}")))
}
