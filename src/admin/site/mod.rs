//! The page: what the API tells and does, for people with a browser. On TCP alone; logged in by the admin key.
//!
//! The way of a request: `enter` (host, session, rate, forms of this host's own pages alone; what a browser may do with the answer) → a handler, which looks
//! through the `window` at what the loop has, and answers with a page; or which does a deed, by the way of the API, and sends the browser on. Every page is
//! whole without a script; the script only brings in what `live` tells.
#![forbid(unsafe_code)]

mod act;
mod assets;
mod enter;
mod list;
mod live;
mod look;
mod origin;
mod pages;
mod plot;
mod session;
mod window;
mod words;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::{
    Router,
    extract::Request,
    middleware,
    routing::{get, post},
};
use http::header;
use tokio::sync::Semaphore;
use tower::ServiceExt as _;

use self::{session::Sessions, window::Window};
use super::api::Api;

/// Streams of news at once, one a page that is open.
const STREAMS: usize = 32;

/// What all pages share.
#[derive(Clone)]
pub(super) struct Site(Arc<Shared>);

struct Shared {
    api: Api,
    window: Window,
    sessions: Mutex<Sessions>,
    streams: Arc<Semaphore>,
}

impl Site {
    pub(super) fn new(api: Api) -> Self {
        let window = Window::new(api.desk().clone());
        Self(Arc::new(Shared { api, window, sessions: Mutex::default(), streams: Arc::new(Semaphore::new(STREAMS)) }))
    }

    fn api(&self) -> &Api {
        &self.0.api
    }

    fn window(&self) -> &Window {
        &self.0.window
    }

    /// No call of it leaves it half done.
    fn sessions(&self) -> MutexGuard<'_, Sessions> {
        self.0.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The API with the page beside it. What is neither is the page's to answer for a browser, and the API's for a program.
    pub(super) fn beside(&self, api: Router) -> Router {
        let pages = self.routes();
        Router::new().fallback(move |request: Request| {
            let router = if is_for_page(&request) { pages.clone() } else { api.clone() };
            async move { router.oneshot(request).await }
        })
    }

    fn routes(&self) -> Router {
        Router::new()
            .route("/", get(look::overview))
            .route("/tenants", get(look::tenants))
            .route("/tenants/{id}", get(look::tenant))
            .route("/tenants/{id}/{deed}", get(act::ask).post(act::tenant))
            .route("/events", get(look::events))
            .route("/alerts", get(look::alerts))
            .route("/plan", get(look::plan))
            .route("/plan/confirm", get(act::ask_plan).post(act::plan))
            .route("/live", get(live::live))
            .route("/login", get(act::login).post(act::log_in))
            .route("/logout", post(act::log_out))
            .route("/assets/{name}", get(assets::asset))
            .fallback(|| async { http::StatusCode::NOT_FOUND })
            .with_state(self.clone())
            .layer(middleware::from_fn_with_state(self.clone(), enter::enter))
    }
}

/// Whether the page answers it.
fn is_for_page(request: &Request) -> bool {
    const PAGES: [&str; 8] = ["tenants", "events", "alerts", "plan", "live", "login", "logout", "assets"];
    let first = request.uri().path().split('/').nth(1).unwrap_or_default();
    let reads_pages = || {
        let accepted = request.headers().get_all(header::ACCEPT).iter();
        accepted.filter_map(|accept| accept.to_str().ok()).any(|accept| accept.contains("text/html"))
    };
    match first {
        "api" | "metrics" | ".sq-agent" => false,
        "" => true,
        first => PAGES.contains(&first) || reads_pages(),
    }
}
