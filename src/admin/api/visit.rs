//! What the page asks of the API's gate: the same names, the same key, the same rates.

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, request::Parts};
use tokio::sync::watch;

use super::{
    Api, Stage,
    arrive::{LONGEST_WORDS, is_name, whole},
    gate,
    problem::Problem,
};
use crate::{
    admin::{question::Desk, settings::Settings},
    desired::Desired,
    digest::sha256,
    observed::monotonic,
    proxy::request_id::RequestId,
    secret::Secret,
};

impl Api {
    /// What `[admin]` says now; an agent that has no key lets nobody in.
    pub(in crate::admin) fn settings(&self) -> Result<Arc<Settings>, Problem> {
        self.0.settings.borrow().clone().ok_or_else(Problem::stopping)
    }

    /// Whether that was meant for this host; see [`gate::check_host`].
    pub(in crate::admin) fn check_host(&self, parts: &Parts, local: SocketAddr, settings: &Settings) -> Result<(), Problem> {
        gate::check_host(&parts.uri, &parts.headers, local, &settings.hosts)
    }

    /// One more request of this address; who has shown the key has a budget of its own.
    pub(in crate::admin) fn admit(&self, peer: SocketAddr, has_key: bool, settings: &Settings) -> Result<(), Problem> {
        let now_ns = u64::try_from(monotonic().as_nanos()).unwrap_or(u64::MAX);
        // It holds no invariant that a panic could break.
        let mut limiter = self.0.limiter.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        limiter.admit(peer.ip(), has_key, settings, now_ns)
    }

    /// The name of a request.
    pub(in crate::admin) fn request_id(&self, headers: &HeaderMap) -> RequestId {
        self.0.ids.of(headers)
    }

    /// To the loop.
    pub(in crate::admin) fn desk(&self) -> &Desk {
        &self.0.desk
    }

    /// What of tenants.toml is in force.
    pub(in crate::admin) fn desired(&self) -> Arc<Desired> {
        self.in_force()
    }

    /// Whether the agent makes way for another one.
    pub(in crate::admin) fn stage(&self) -> watch::Receiver<Stage> {
        self.0.stage.clone()
    }
}

/// By what a session knows its key again.
pub(in crate::admin) fn key_mark(settings: &Settings) -> [u8; 32] {
    sha256(settings.key.expose())
}

/// Whether that is the key, in constant time.
pub(in crate::admin) fn is_key(sent: &str, settings: &Settings) -> bool {
    Secret::new(sent) == settings.key
}

/// A name as X-Admin-Actor may have it; none where there is none.
///
/// # Errors
/// It cannot be one.
pub(in crate::admin) fn name(sent: &str) -> Result<Option<String>, Problem> {
    match sent.trim() {
        "" => Ok(None),
        name if is_name(name) => Ok(Some(name.to_owned())),
        _ => Err(Problem::bad_request("a name has at most 64 letters, digits, spaces and . _ @ + -")),
    }
}

/// Why something is done, in the words of whoever asks.
pub(in crate::admin) fn reason(sent: &str) -> String {
    sent.trim().chars().filter(|c| !c.is_control()).take(LONGEST_WORDS).collect()
}

/// A request's body, whole.
pub(in crate::admin) async fn body(body: axum::body::Body) -> Result<Bytes, Problem> {
    whole(body).await
}
