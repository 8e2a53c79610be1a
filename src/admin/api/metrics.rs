//! `/metrics`, for a Prometheus.

use axum::{
    body::Body,
    extract::State,
    response::{IntoResponse as _, Response},
};
use http::{HeaderMap, StatusCode, header};

use super::{Api, problem::Problem};
use crate::metrics::Format;

/// Where it stands.
pub(super) const PATH: &str = "/metrics";

/// The whole text.
pub(super) async fn scrape(State(api): State<Api>, headers: HeaderMap) -> Result<Response, Problem> {
    let accept = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let format = Format::of(&accept.collect::<Vec<_>>().join(","));
    let text = api.0.metrics.scrape(format).await;
    let text = text.map_err(|error| Problem::new(StatusCode::SERVICE_UNAVAILABLE, "no-metrics", "No metrics", error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, format.content_type())], Body::from(text)).into_response())
}
