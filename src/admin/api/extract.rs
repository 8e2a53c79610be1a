//! What handlers take from a request, and how each refuses what it cannot be: axum's own refusals are plain text.

use axum::{
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Path, Query, Request, rejection::QueryRejection},
};
use http::{StatusCode, request::Parts};
use serde::{Deserialize, de::DeserializeOwned};
use utoipa::ToSchema;

use super::{arrive::LONGEST_WORDS, problem::Problem};
use crate::desired::{BadId, TenantId};

/// A tenant's id in the path.
pub(super) struct Id(pub(super) TenantId);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path(text) = Path::<String>::from_request_parts(parts, state).await.map_err(|error| Problem::bad_request(error.body_text()))?;
        id(&text).map(Self)
    }
}

/// The tenant of this name.
pub(super) fn id(text: &str) -> Result<TenantId, Problem> {
    TenantId::parse(text).map_err(|error: BadId| Problem::bad_request(format!("{text:?} is no tenant's id: {error}")))
}

/// The query.
pub(super) struct Asked<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Asked<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Query(wish) =
            Query::from_request_parts(parts, state).await.map_err(|error: QueryRejection| Problem::bad_request(error.body_text()))?;
        Ok(Self(wish))
    }
}

/// What a body may always say.
pub(super) trait Reasoned {
    /// Why, in the words of whoever asks.
    fn reason(&self) -> Option<&str>;
}

/// Why something is done. All bodies have this member.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Reason {
    /// Why, for the record and for the message of a commit.
    #[serde(default)]
    #[schema(max_length = 256)]
    pub(super) reason: Option<String>,
}

impl Reasoned for Reason {
    fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }
}

/// The body: JSON, or nothing where everything in it may be left out.
pub(super) struct Wish<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Reasoned> FromRequest<S> for Wish<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        // It is here already, see `arrive`.
        let body = Bytes::from_request(request, state).await.map_err(|error| Problem::bad_request(error.body_text()))?;
        let text = if body.is_empty() || *body.trim_ascii() == *b"null" { &b"{}"[..] } else { &body };
        // A list of its members would do for serde.
        if text.trim_ascii_start().starts_with(b"[") {
            return Err(unprocessable("the body is to be an object"));
        }
        let wish: T = serde_json::from_slice(text).map_err(|error| match error.classify() {
            serde_json::error::Category::Data => unprocessable(error.to_string()),
            _ => Problem::bad_request(format!("the body is not JSON: {error}")),
        })?;
        match wish.reason() {
            Some(reason) if reason.chars().count() > LONGEST_WORDS => {
                Err(unprocessable(format!("reason has at most {LONGEST_WORDS} characters")))
            }
            _ => Ok(Self(wish)),
        }
    }
}

/// JSON that does not say what it should.
pub(super) fn unprocessable(detail: impl Into<String>) -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "unprocessable", "Not what is asked for here", detail)
}
