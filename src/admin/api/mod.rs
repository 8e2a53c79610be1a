//! The admin API: what can be asked, each route beside what its document says of it, so that neither is without the other.
//!
//! The way of a request: `arrive` (its id, who may ask, the body whole, the record of what was changed, the form of refusals) → a handler, which
//! asks the loop.

mod arrive;
mod document;
mod extract;
mod gate;
mod problem;
mod read;

use std::sync::{Arc, Mutex};

use axum::{Router, middleware};
use bytes::Bytes;
use tokio::sync::watch;
use utoipa_axum::{router::OpenApiRouter, routes};

pub(super) use gate::Way;
pub(super) use problem::Problem;

use super::{question::Desk, settings::Settings};
use crate::proxy::request_id::RequestIds;

/// What all requests share.
#[derive(Clone)]
pub(super) struct Api(Arc<Shared>);

struct Shared {
    desk: Desk,
    /// What `[admin]` says now; none where nobody comes by TCP.
    settings: watch::Receiver<Option<Arc<Settings>>>,
    limiter: Mutex<gate::Limiter>,
    ids: RequestIds,
    /// The OpenAPI document.
    document: Bytes,
}

impl Api {
    /// Asks through `desk`, and lets in by `settings`.
    pub(super) fn new(desk: Desk, settings: watch::Receiver<Option<Arc<Settings>>>) -> Self {
        let ids = RequestIds::new(getrandom::u64().unwrap_or_else(|_| u64::from(std::process::id())));
        let document = document::bytes(&routes().into_openapi());
        Self(Arc::new(Shared { desk, settings, limiter: Mutex::default(), ids, document }))
    }

    /// The routes, to be merged with those that stand beside them at the same door. A route for programs that are no clients of the API (metrics,
    /// a page) is merged here, before the layer: so it has the same gate.
    pub(super) fn router(&self) -> Router {
        let (router, _) = routes().split_for_parts();
        router
            .fallback(|| async { Problem::of_status(http::StatusCode::NOT_FOUND) })
            .method_not_allowed_fallback(|| async { Problem::of_status(http::StatusCode::METHOD_NOT_ALLOWED) })
            .with_state(self.clone())
            .layer(middleware::from_fn_with_state(self.clone(), arrive::arrive))
    }
}

/// Every route, and its document.
fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::with_openapi(document::head())
        .routes(routes!(document::openapi))
        .routes(routes!(read::health_check_all))
        .routes(routes!(read::status))
        .routes(routes!(read::tenants))
        .routes(routes!(read::tenant))
        .routes(routes!(read::usages))
        .routes(routes!(read::usage))
        .routes(routes!(read::events))
}
