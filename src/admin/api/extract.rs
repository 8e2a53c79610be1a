//! What handlers take from a request, and how each refuses what it cannot be: axum's own refusals are plain text.

use axum::extract::{FromRequestParts, Path, Query, rejection::QueryRejection};
use http::request::Parts;
use serde::de::DeserializeOwned;

use super::problem::Problem;
use crate::desired::TenantId;

/// A tenant's id in the path.
pub(super) struct Id(pub(super) TenantId);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path(text) = Path::<String>::from_request_parts(parts, state).await.map_err(|error| Problem::bad_request(error.body_text()))?;
        TenantId::parse(&text).map(Self).map_err(|error| bad_id(&text, &error))
    }
}

pub(super) fn bad_id(text: &str, error: &crate::desired::BadId) -> Problem {
    Problem::bad_request(format!("{text:?} is no tenant's id: {error}"))
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
