//! The admin API: what can be asked, each route beside what its document says of it, so that neither is without the other.
//!
//! The way of a request: `arrive` (its id, who may ask, the body whole, the record of what was changed, the form of refusals) → a handler, which
//! asks the loop.

mod arrive;
mod bills;
mod change;
mod credentials;
mod deed;
mod document;
mod extract;
mod gate;
mod metrics;
mod once;
mod problem;
mod read;
mod snapshots;
mod visit;
mod write;

use std::sync::{Arc, Mutex};

use axum::{Router, middleware, routing::get};
use bytes::Bytes;
use tokio::sync::{RwLock, watch};
use utoipa_axum::{router::OpenApiRouter, routes};

pub(super) use deed::{Deed, Doer};
pub(super) use gate::Way;
pub(super) use problem::Problem;
pub(super) use visit::{body, is_key, key_mark, name, reason};

use super::{question::Desk, settings::Settings};
use crate::{desired::Desired, edit::Editor, metrics::Metrics, proxy::request_id::RequestIds, secret::Secret};

/// What an [`Api`] needs.
pub struct ApiParts {
    /// To the loop.
    pub desk: Desk,
    /// What `[admin]` says now; none where nobody comes by TCP.
    pub settings: watch::Receiver<Option<Arc<Settings>>>,
    /// Changes tenants.toml.
    pub editor: Editor,
    /// What of it is in force.
    pub in_force: watch::Receiver<Arc<Desired>>,
    /// Answers scrapes.
    pub metrics: Metrics,
    /// Of this host: what has to be kept of an answer is sealed by it.
    pub secret: Secret,
    /// Whether the agent makes way for another one.
    pub stage: watch::Receiver<Stage>,
}

/// How far an agent is that makes way for another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// It does not.
    Here,
    /// Nobody is kept waiting any more.
    Leaving,
    /// Nothing is begun or gone on with.
    Gone,
}

/// What all requests share.
#[derive(Clone)]
pub(super) struct Api(Arc<Shared>);

struct Shared {
    desk: Desk,
    /// What `[admin]` says now; none where nobody comes by TCP.
    settings: watch::Receiver<Option<Arc<Settings>>>,
    limiter: Mutex<gate::Limiter>,
    /// Changes tenants.toml, until it is another agent's.
    editor: RwLock<Option<Editor>>,
    /// What is in force.
    in_force: watch::Receiver<Arc<Desired>>,
    metrics: Metrics,
    /// Requests that are to be done once.
    once: once::Once,
    /// Whether the agent makes way for another one.
    stage: watch::Receiver<Stage>,
    ids: RequestIds,
    /// The OpenAPI document.
    document: Bytes,
}

impl Api {
    pub(super) fn new(parts: ApiParts) -> Self {
        let ApiParts { desk, settings, editor, in_force, metrics, secret, stage } = parts;
        let ids = RequestIds::new(getrandom::u64().unwrap_or_else(|_| u64::from(std::process::id())));
        let document = document::bytes(&routes().into_openapi());
        let once = once::Once::new(secret);
        Self(Arc::new(Shared {
            desk,
            settings,
            limiter: Mutex::default(),
            editor: RwLock::new(Some(editor)),
            in_force,
            metrics,
            once,
            stage,
            ids,
            document,
        }))
    }

    fn in_force(&self) -> Arc<Desired> {
        self.0.in_force.borrow().clone()
    }

    /// What users type.
    fn public_url(&self) -> String {
        let proxy = &self.in_force().proxy;
        proxy.public_url.clone().unwrap_or_else(|| proxy.listen.first().map(|address| format!("https://{address}")).unwrap_or_default())
    }

    /// The routes, to be merged with those that stand beside them at the same door. A route for programs that are no clients of the API (metrics,
    /// a page) is merged here, before the layer: so it has the same gate.
    pub(super) fn router(&self) -> Router {
        let (router, _) = routes().split_for_parts();
        router
            .route(metrics::PATH, get(metrics::scrape))
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
        .routes(routes!(read::tenant, write::remove))
        .routes(routes!(write::provision))
        .routes(routes!(write::suspend))
        .routes(routes!(write::resume))
        .routes(routes!(write::restart))
        .routes(routes!(write::tier))
        .routes(routes!(write::confirm))
        .routes(routes!(credentials::mint, credentials::revoke))
        .routes(routes!(credentials::api_keys, credentials::make_api_key))
        .routes(routes!(credentials::remove_api_key))
        .routes(routes!(snapshots::list, snapshots::take))
        .routes(routes!(snapshots::restore))
        .routes(routes!(read::usages))
        .routes(routes!(read::usage))
        .routes(routes!(bills::bills))
        .routes(routes!(bills::days))
        .routes(routes!(read::events))
}
