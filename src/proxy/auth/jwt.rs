//! One JWT against the table of keys: each key has exactly one algorithm, and the token never chooses.

use jsonwebtoken::{Algorithm, DecodingKey, Validation, errors::ErrorKind};
use serde::{Deserialize, Deserializer, de};

use super::{AuthError, Identity};
use crate::{desired, desired::TenantId, proxy::settings::TokenKey};

/// A key that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the token key {} is not a usable {alg:?} key: {why}", .kid.as_deref().unwrap_or("without kid"))]
pub(crate) struct BadKey {
    kid: Option<String>,
    alg: desired::Algorithm,
    why: String,
}

/// The keys that verify tokens.
pub(crate) struct Keys(Vec<Key>);

struct Key {
    kid: Option<String>,
    key: DecodingKey,
    /// Holds the one algorithm; claims are checked here, not by the library.
    validation: Validation,
    iss: Option<String>,
    aud: Option<String>,
}

/// Shortest HMAC secret, bytes: RFC 7518 section 3.2 wants as many bits as the hash has.
const MIN_HMAC_SECRET: usize = 32;

impl Keys {
    /// Prepares `keys`; the error names the key that is unusable, never its content.
    pub(crate) fn new(keys: &[TokenKey]) -> Result<Self, BadKey> {
        keys.iter().map(Key::new).collect::<Result<_, _>>().map(Self)
    }

    /// Verifies signature, algorithm, `crit`, issuer and audience, and reads the claims. Times are the caller's to check.
    pub(super) fn verify(&self, token: &[u8]) -> Result<Identity, AuthError> {
        let header = jsonwebtoken::decode_header(token).map_err(|_| AuthError::Malformed)?;
        if header.crit.is_some() {
            return Err(AuthError::Critical);
        }
        let mut refusal = AuthError::NoKey;
        for key in self.0.iter().filter(|key| key.may_verify(header.kid.as_deref(), header.alg)) {
            match key.verify(token) {
                Ok(identity) => return Ok(identity),
                Err(why) => refusal = why,
            }
        }
        Err(refusal)
    }
}

impl Key {
    fn new(key: &TokenKey) -> Result<Self, BadKey> {
        let bad = |why: String| BadKey { kid: key.kid.clone(), alg: key.alg, why };
        let secret = key.secret.expose();
        let (algorithm, decoding) = match key.alg {
            desired::Algorithm::HS256 if secret.len() < MIN_HMAC_SECRET => {
                return Err(bad(format!("it has {} bytes, at least {MIN_HMAC_SECRET} are needed", secret.len())));
            }
            desired::Algorithm::HS256 => (Algorithm::HS256, Ok(DecodingKey::from_secret(secret))),
            desired::Algorithm::ES256 => (Algorithm::ES256, DecodingKey::from_ec_pem(secret)),
            desired::Algorithm::EdDSA => (Algorithm::EdDSA, DecodingKey::from_ed_pem(secret)),
            desired::Algorithm::RS256 => (Algorithm::RS256, DecodingKey::from_rsa_pem(secret)),
        };
        let decoding = decoding.map_err(|error| bad(format!("{error}; write the public key as PEM")))?;
        let mut validation = Validation::new(algorithm);
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = false;
        Ok(Self { kid: key.kid.clone(), key: decoding, validation, iss: key.iss.clone(), aud: key.aud.clone() })
    }

    /// A token that names a `kid` is for the key of that name, or for a key that has no name.
    fn may_verify(&self, kid: Option<&str>, alg: Algorithm) -> bool {
        self.validation.algorithms.contains(&alg) && (kid.is_none() || self.kid.is_none() || self.kid.as_deref() == kid)
    }

    fn verify(&self, token: &[u8]) -> Result<Identity, AuthError> {
        let claims = jsonwebtoken::decode::<Claims>(token, &self.key, &self.validation).map_err(|error| refusal(error.kind()))?.claims;
        if self.iss.is_some() && self.iss != claims.iss {
            return Err(AuthError::Issuer);
        }
        if self.aud.as_ref().is_some_and(|aud| !claims.aud.iter().any(|named| named.names(aud))) {
            return Err(AuthError::Audience);
        }
        Ok(Identity {
            id: claims.sub.and_then(|sub| TenantId::parse(&sub).ok()).ok_or(AuthError::Subject)?,
            exp: claims.exp.ok_or(AuthError::NoExpiry)?.0,
            nbf: claims.nbf.map_or(0, |nbf| nbf.0),
            iat: claims.iat.map(|iat| iat.0),
        })
    }
}

fn refusal(kind: &ErrorKind) -> AuthError {
    match kind {
        ErrorKind::InvalidSignature => AuthError::Signature,
        ErrorKind::InvalidAlgorithm | ErrorKind::MissingAlgorithm => AuthError::NoKey,
        _ => AuthError::Malformed,
    }
}

/// The claims that mean something here. A claim that stands twice is an error (serde's derive sees to it), since two
/// readers may believe two different ones. `tier` and `port` are read by nobody: the route table knows better.
#[derive(Deserialize)]
struct Claims {
    sub: Option<String>,
    exp: Option<Seconds>,
    nbf: Option<Seconds>,
    iat: Option<Seconds>,
    iss: Option<String>,
    aud: Option<Audience>,
}

/// `aud`: one name or several (RFC 7519 section 4.1.3).
#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
}

impl Audience {
    fn names(&self, audience: &str) -> bool {
        match self {
            Self::One(name) => name == audience,
            Self::Several(names) => names.iter().any(|name| name == audience),
        }
    }
}

/// A NumericDate (RFC 7519 section 2): a JSON number, fractions cut off; a string is refused.
struct Seconds(u64);

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = serde_json::Number::deserialize(deserializer)?;
        if let Some(whole) = number.as_u64() {
            return Ok(Self(whole));
        }
        match number.as_f64() {
            // 2^53: beyond it a fraction is no longer exact, and no clock shows it.
            Some(seconds) if (0.0..=9_007_199_254_740_992.0).contains(&seconds) => Ok(Self(seconds as u64)),
            _ => Err(de::Error::custom("a time must be a number of seconds since 1970")),
        }
    }
}
