//! What a person does by a button of the page: by the same way as whoever asks the API for it, and with the same record.

use http::{Method, StatusCode};

use super::{
    Api,
    arrive::{Caller, record},
    change::Came,
    gate::Way,
    problem::Problem,
};
use crate::{admin::question::Question, desired::TenantId, edit::Change, proxy::request_id::RequestId};

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::admin) enum Deed {
    /// This tenant's instance gives way to another one.
    Restart(TenantId),
    /// This tenant is served no more, and keeps its data.
    Suspend(TenantId),
    /// It is served again.
    Resume(TenantId),
    /// The held plan of this hash goes through.
    Confirm(String),
}

impl Deed {
    /// As the API has it.
    fn path(&self) -> String {
        match self {
            Self::Restart(id) => format!("/api/admin/tenants/{id}/restart"),
            Self::Suspend(id) => format!("/api/admin/tenants/{id}/suspend"),
            Self::Resume(id) => format!("/api/admin/tenants/{id}/resume"),
            Self::Confirm(hash) => format!("/api/admin/confirm/{hash}"),
        }
    }
}

/// Who does it, and why.
#[derive(Debug, Clone)]
pub(in crate::admin) struct Doer {
    /// As it named itself, if it did.
    pub(in crate::admin) name: Option<String>,
    /// How it came.
    pub(in crate::admin) way: Way,
    /// Of the request by which it came.
    pub(in crate::admin) request_id: RequestId,
    /// In its words; may be empty.
    pub(in crate::admin) reason: String,
}

impl Api {
    /// Does it, to its end, also where whoever asked goes away; says what came of it.
    pub(in crate::admin) async fn act(&self, deed: Deed, doer: Doer) -> Result<String, Problem> {
        let Doer { name, way, request_id, reason } = doer;
        let caller = Caller { actor: name.unwrap_or_else(|| way.text()), way, request_id, was_interrupted: false };
        let api = self.clone();
        let done = tokio::spawn(async move {
            let done = api.carry_out(&deed, &caller, &reason).await;
            let status = done.as_ref().map_or_else(|problem| problem.status, |(status, _)| *status);
            record(&api, &caller, &Method::POST, &deed.path(), &reason, status).await;
            done.map(|(_, text)| text)
        });
        done.await.unwrap_or_else(|_| Err(Problem::of_status(StatusCode::INTERNAL_SERVER_ERROR)))
    }

    async fn carry_out(&self, deed: &Deed, caller: &Caller, reason: &str) -> Result<(StatusCode, String), Problem> {
        let reason = Some(reason.to_owned()).filter(|reason| !reason.is_empty());
        let (came, done) = match deed {
            Deed::Restart(id) => (
                self.wait(id.clone(), Question::RestartAndAwait(id.clone())).await?,
                format!("{id} was restarted: another instance answers."),
            ),
            Deed::Suspend(id) => {
                let change = Change::Suspend { id: id.clone(), suspended: true };
                (
                    self.change(change, caller, reason).await?,
                    format!("{id} is suspended: every request is answered by 403, and its data stay."),
                )
            }
            Deed::Resume(id) => {
                let change = Change::Suspend { id: id.clone(), suspended: false };
                (self.change(change, caller, reason).await?, format!("{id} is served again: its instance answers."))
            }
            Deed::Confirm(hash) => {
                self.0.desk.ask(Question::Confirm(hash.clone())).await.map_err(Problem::of_loop)?;
                return Ok((StatusCode::OK, format!("The plan {hash} is confirmed, and is carried out now.")));
            }
        };
        Ok(match came {
            Came::Done(_) => (StatusCode::OK, done),
            Came::Later(accepted) => (StatusCode::ACCEPTED, format!("It is under way: {}.", accepted.detail.trim_end_matches('.'))),
        })
    }
}
