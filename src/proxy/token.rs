//! Making tokens that the proxy accepts.

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::Serialize;

use super::settings::TokenKey;
use crate::{desired, desired::TenantId};

/// A token that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum MintError {
    /// All keys verify only.
    #[error("no [[proxy.jwt]] key of this host can sign: only HS256 keys can; use your identity provider's tokens")]
    NoSigningKey,
    /// Should not happen.
    #[error("cannot sign: {0}")]
    Sign(#[from] jsonwebtoken::errors::Error),
}

/// What a token says.
#[derive(Debug, Serialize)]
struct Claims<'a> {
    sub: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    tier: Option<&'a str>,
    iat: u64,
    exp: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    aud: Option<&'a str>,
}

/// Makes a token for `sub`, valid from `now` (seconds since 1970) for `ttl` seconds, with the first key that can sign.
///
/// # Errors
/// See [`MintError`].
pub(super) fn mint(keys: &[TokenKey], sub: &TenantId, tier: Option<&str>, now: u64, ttl: u64) -> Result<String, MintError> {
    let key = keys.iter().find(|key| key.alg == desired::Algorithm::HS256).ok_or(MintError::NoSigningKey)?;
    let header = Header { kid: key.kid.clone(), ..Header::new(Algorithm::HS256) };
    let claims =
        Claims { sub: sub.as_str(), tier, iat: now, exp: now.saturating_add(ttl), iss: key.iss.as_deref(), aud: key.aud.as_deref() };
    Ok(jsonwebtoken::encode(&header, &claims, &EncodingKey::from_secret(key.secret.expose()))?)
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue, header};

    use super::*;
    use crate::{
        proxy::{
            auth::{Authenticator, Keys, Proof},
            settings::KeyForm,
        },
        secret::Secret,
    };

    #[test]
    fn a_minted_token_is_let_in() {
        let key = |alg, kid: &str| TokenKey {
            kid: Some(kid.into()),
            alg,
            secret: Secret::new([b'k'; 32]),
            form: KeyForm::File,
            iss: Some("sq".into()),
            aud: Some("users".into()),
        };
        let keys = [key(desired::Algorithm::HS256, "a")];
        let id = TenantId::parse("user1@example.com").unwrap();
        let token = mint(&keys, &id, Some("free"), 1_000, 60).unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, HeaderValue::from_str(&format!("Bearer {token}")).unwrap());
        let auth = Authenticator::new(Keys::new(&keys).unwrap());
        assert!(matches!(auth.authenticate(&headers, 1_059), Ok(Proof::Token(identity)) if identity.id == id));
        assert!(auth.authenticate(&headers, 1_065).is_err());
        assert!(matches!(mint(&[key(desired::Algorithm::RS256, "r")], &id, None, 0, 1), Err(MintError::NoSigningKey)));
    }
}
