//! Who asks: from the headers of a request to a tenant's id, or the reason why not. Pure, save for a cache of what was proved before.

mod cache;
mod jwt;

use aws_lc_rs::digest;
use http::{HeaderMap, header};

pub(crate) use jwt::{BadKey, Keys};

use crate::desired::TenantId;
use cache::TokenCache;

/// Longest token, bytes. Ours have about 200; a megabyte of claims would be hashed and parsed for nothing.
pub(crate) const MAX_TOKEN_BYTES: usize = 8 * 1024;

/// How far the clocks of the issuer and of this host may differ, seconds.
pub(crate) const LEEWAY_SECONDS: u64 = 5;

/// Why a request has no identity. The texts go to the caller, so none holds any part of the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AuthError {
    #[error("send a token: Authorization: Bearer <JWT>")]
    Missing,
    #[error("send exactly one credential: one Authorization header and no X-SQ-API-Key")]
    Several,
    #[error("the Authorization header must read: Bearer <JWT>")]
    NotBearer,
    #[error("the token is longer than 8 KiB")]
    TooLong,
    #[error("the token is not a JWT with the claims this server needs")]
    Malformed,
    #[error("no key of this server has the token's kid and algorithm")]
    NoKey,
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

    /// The identity behind `headers` at `now` (seconds since 1970).
    pub(crate) fn authenticate(&self, headers: &HeaderMap, now: u64) -> Result<Identity, AuthError> {
        let token = bearer_token(headers)?;
        let digest = sha256(token);
        if let Some(identity) = self.proved.get(&digest) {
            return identity.in_force(now).map(|()| identity);
        }
        let identity = self.keys.verify(token)?;
        identity.in_force(now)?;
        self.proved.insert(digest, identity.clone());
        Ok(identity)
    }
}

/// The one token among `headers`.
fn bearer_token(headers: &HeaderMap) -> Result<&[u8], AuthError> {
    let mut credentials = headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = credentials.next() else {
        return Err(AuthError::Missing);
    };
    if credentials.next().is_some() || headers.contains_key("x-sq-api-key") {
        return Err(AuthError::Several);
    }
    let value = value.as_bytes();
    let (scheme, token) = value.split_at_checked(7).ok_or(AuthError::NotBearer)?;
    if !scheme.eq_ignore_ascii_case(b"bearer ") {
        return Err(AuthError::NotBearer);
    }
    let token = token.trim_ascii();
    if token.len() > MAX_TOKEN_BYTES {
        return Err(AuthError::TooLong);
    }
    // A comma or a space would be a second credential in the same header.
    if token.is_empty() || !token.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte)) {
        return Err(AuthError::Malformed);
    }
    Ok(token)
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}

#[cfg(test)]
mod tests;
