//! Who asks: from the headers of a request to a tenant's id, or the reason why not. Pure, save for a cache of what was proved before.

mod cache;
mod credential;
mod jwt;
mod members;

use http::HeaderMap;

pub(crate) use jwt::{BadKey, Keys};

use crate::{desired::TenantId, digest::sha256};
use cache::TokenCache;
use credential::Credential;

/// Longest token, bytes. Ours have about 200; a megabyte of claims would be hashed and parsed for nothing.
pub(crate) const MAX_TOKEN_BYTES: usize = 8 * 1024;

/// How far the clocks of the issuer and of this host may differ, seconds.
pub(crate) const LEEWAY_SECONDS: u64 = 5;

/// Why a request has no identity. The texts go to the caller, so none holds any part of the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AuthError {
    #[error("send a credential: Authorization: Bearer <JWT or API key>")]
    Missing,
    #[error("send exactly one credential: one Authorization header, or one X-SQ-API-Key header")]
    Several,
    #[error("the Authorization header must read: Bearer <JWT or API key>")]
    NotBearer,
    #[error("that is no API key: one has 8 to 256 letters, digits and - _ ~ + / =, without a space")]
    NotApiKey,
    #[error("no tenant of this server has this API key")]
    UnknownApiKey,
    #[error("the token is longer than 8 KiB")]
    TooLong,
    #[error("the token is not a JWT with the claims this server needs")]
    Malformed,
    #[error("no key of this server has the token's kid and algorithm")]
    NoKey,
    #[error("no key of this server has the token's kid")]
    UnknownKid,
    #[error("the token demands an extension (crit) that this server does not know")]
    Critical,
    #[error("the token's signature is wrong")]
    Signature,
    #[error("the token has no numeric exp claim")]
    NoExpiry,
    #[error("the token has expired")]
    Expired,
    #[error("the token is not valid yet (nbf)")]
    NotYet,
    #[error("the token comes from another issuer (iss)")]
    Issuer,
    #[error("the token is meant for another service (aud)")]
    Audience,
    #[error("the token's sub is not a tenant id")]
    Subject,
    #[error("the token was revoked: it was issued before the tenant's tokens_valid_after, or does not say when (iat)")]
    Revoked,
}

/// What a verified token says. Its times still have to be looked at, at each use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// The tenant: the claim `sub`.
    pub(crate) id: TenantId,
    exp: u64,
    nbf: u64,
    iat: Option<u64>,
}

impl Identity {
    /// Whether the token is in force at `now` (seconds since 1970).
    fn in_force(&self, now: u64) -> Result<(), AuthError> {
        if self.exp.saturating_add(LEEWAY_SECONDS) <= now {
            return Err(AuthError::Expired);
        }
        if self.nbf > now.saturating_add(LEEWAY_SECONDS) {
            return Err(AuthError::NotYet);
        }
        Ok(())
    }

    /// Whether the token is younger than the tenant's `tokens_valid_after` (seconds since 1970; 0 revokes nothing).
    pub(crate) fn not_revoked(&self, tokens_valid_after: u64) -> Result<(), AuthError> {
        match self.iat {
            _ if tokens_valid_after == 0 => Ok(()),
            Some(iat) if iat >= tokens_valid_after => Ok(()),
            _ => Err(AuthError::Revoked),
        }
    }
}

/// What a request proved of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Proof {
    /// It has a token that is in force.
    Token(Identity),
    /// The same, of a token that was verified before.
    Known(Identity),
    /// It has a key with this SHA-256; the route table says whose that is.
    ApiKey([u8; 32]),
}

/// Verifies tokens under one set of keys, and remembers what it verified. New keys, new `Authenticator`.
pub(crate) struct Authenticator {
    keys: Keys,
    proved: TokenCache,
}

impl Authenticator {
    /// Starts with an empty memory.
    pub(crate) fn new(keys: Keys) -> Self {
        Self { keys, proved: TokenCache::new() }
    }

    /// The proof in `headers` at `now` (seconds since 1970).
    pub(crate) fn authenticate(&self, headers: &HeaderMap, now: u64) -> Result<Proof, AuthError> {
        let token = match Credential::of(headers)? {
            Credential::Token(token) => token,
            Credential::ApiKey(key) => return Ok(Proof::ApiKey(sha256(key))),
        };
        let digest = sha256(token);
        if let Some(identity) = self.proved.get(&digest) {
            return identity.in_force(now).map(|()| Proof::Known(identity));
        }
        let identity = self.keys.verify(token)?;
        identity.in_force(now)?;
        self.proved.insert(digest, identity.clone());
        Ok(Proof::Token(identity))
    }
}

#[cfg(test)]
pub(crate) mod keys_for_tests;
#[cfg(test)]
mod tests;
