//! What the agent tells the proxy: everything it needs of the settings, and nothing else.

use serde::{Deserialize, Serialize};

use super::front::Front;
use crate::{desired::Algorithm, secret::Secret};

/// How the text of a key is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyForm {
    /// As a file of its own holds it: an HMAC secret, or a PEM public key.
    #[default]
    File,
    /// As a JWKS holds it: one JWK.
    Jwk,
}

/// One token key, with its secret read by the agent (the proxy cannot open files).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenKey {
    /// Key id.
    pub kid: Option<String>,
    /// The one algorithm.
    pub alg: Algorithm,
    /// HMAC secret, or public key.
    pub secret: Secret,
    /// How `secret` is written.
    #[serde(default)]
    pub form: KeyForm,
    /// Required issuer.
    pub iss: Option<String>,
    /// Required audience.
    pub aud: Option<String>,
}

/// Everything the proxy needs to serve; sent whole at its start and at each change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// PEM certificate chain, leaf first.
    pub tls_cert_pem: Vec<u8>,
    /// PEM private key.
    pub tls_key_pem: Secret,
    /// Token keys. Without any, API keys alone let people in.
    pub token_keys: Vec<TokenKey>,
    /// Some of them come from an identity provider, and an unknown kid is worth a message to the agent.
    #[serde(default)]
    pub keys_renew: bool,
    /// 32 bytes from which each instance's key is derived (see [`crate::instance_key`]).
    pub instance_secret: Secret,
    /// Which half of each in-flight word in the activity page is this process's: 0 or 1. Two proxies side by side differ.
    pub side: u8,
    /// Whose the process becomes after set-up, where it starts as root: (uid, gid).
    pub run_as: Option<(u32, u32)>,
    /// What the forge of the followed repository signs its webhooks with; without one none is taken.
    #[serde(default)]
    pub webhook_secret: Option<Secret>,
    /// The way of a client up to its request.
    #[serde(default)]
    pub front: Front,
}
