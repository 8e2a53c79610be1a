//! What the proxy serves by right now. New settings make a new `Live`, swapped in whole; requests under way keep the one they began with.

use std::{collections::HashMap, os::fd::OwnedFd, sync::Arc};

use http::HeaderValue;
use rustls::ServerConfig;
use tokio::sync::watch;

use super::{
    auth::{Authenticator, BadKey, Keys},
    front::{Challenge, Front},
    settings::Settings,
    tls::{self, TlsError},
    webhook::Seal,
};
use crate::{
    route::{Activity, Meters, Side, TableError, TableReader},
    secret::Secret,
};

/// Settings that cannot be served by.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadSettings {
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Key(#[from] BadKey),
    #[error("the shared pages: {0}")]
    Pages(#[from] TableError),
    #[error("side {0}: it is 0 or 1")]
    Side(u8),
}

/// One set of settings in force.
pub(crate) struct Live {
    pub(crate) tls: Arc<ServerConfig>,
    pub(crate) auth: Authenticator,
    /// See [`Settings::keys_renew`].
    pub(crate) keys_renew: bool,
    pub(crate) routes: TableReader,
    pub(crate) activity: Activity,
    pub(crate) meters: Meters,
    pub(crate) instance_secret: Secret,
    pub(crate) side: Side,
    /// By which a webhook is known.
    pub(crate) webhook: Option<Seal>,
    pub(crate) front: Front,
    /// Answers to the tokens of an ACME server.
    pub(crate) texts: HashMap<String, String>,
    /// What Strict-Transport-Security says, if anything.
    pub(crate) hsts: Option<HeaderValue>,
}

impl Live {
    /// Checks everything before anything changes.
    pub(crate) fn new(settings: &Settings, routes: OwnedFd, activity: OwnedFd, meters: OwnedFd) -> Result<Self, BadSettings> {
        Ok(Self {
            tls: tls::server_config(&settings.tls_cert_pem, settings.tls_key_pem.expose(), &settings.front.challenges)?,
            auth: Authenticator::new(Keys::new(&settings.token_keys)?),
            keys_renew: settings.keys_renew,
            routes: TableReader::map(routes)?,
            activity: Activity::map(activity)?,
            meters: Meters::map(meters)?,
            instance_secret: settings.instance_secret.clone(),
            side: Side::from_number(settings.side).ok_or(BadSettings::Side(settings.side))?,
            webhook: settings.webhook_secret.as_ref().map(Seal::new),
            texts: texts(&settings.front),
            hsts: settings.front.hsts.and_then(|seconds| HeaderValue::try_from(format!("max-age={seconds}")).ok()),
            front: settings.front.clone(),
        })
    }
}

fn texts(front: &Front) -> HashMap<String, String> {
    let text = |challenge: &Challenge| match challenge {
        Challenge::Text { token, answer } => Some((token.clone(), answer.clone())),
        Challenge::Certificate { .. } => None,
    };
    front.challenges.iter().filter_map(text).collect()
}

/// The place where the one in force is found.
pub(crate) struct Current(watch::Sender<Arc<Live>>);

impl Current {
    pub(crate) fn new(live: Live) -> Self {
        Self(watch::Sender::new(Arc::new(live)))
    }

    /// The one in force.
    pub(crate) fn get(&self) -> Arc<Live> {
        Arc::clone(&self.0.borrow())
    }

    /// Swaps in another.
    pub(crate) fn set(&self, live: Live) {
        self.0.send_replace(Arc::new(live));
    }

    /// Sees each change from now on.
    pub(crate) fn changes(&self) -> watch::Receiver<Arc<Live>> {
        self.0.subscribe()
    }
}
