//! One JWT against the table of keys: each key has exactly one algorithm, and the token never chooses.

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ED25519, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, VerificationAlgorithm};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind, Validation, errors::ErrorKind, jwk::Jwk};
use serde::{Deserialize, Deserializer, de};

use super::{AuthError, Identity, members::Members};
use crate::{
    desired,
    desired::TenantId,
    proxy::settings::{KeyForm, TokenKey},
};

/// A key that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the token key {} is not a usable {alg:?} key: {why}", .kid.as_deref().unwrap_or("without kid"))]
pub(crate) struct BadKey {
    kid: Option<String>,
    alg: desired::Algorithm,
    /// In words, with what to do.
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
/// RSA moduli that are accepted, bytes: 2,048 bits (RFC 7518 section 3.3) to 8,192.
const RSA_MODULUS: std::ops::RangeInclusive<usize> = 256..=1_024;

impl Keys {
    /// Prepares `keys`; the error names the key that is unusable, never its content.
    pub(crate) fn new(keys: &[TokenKey]) -> Result<Self, BadKey> {
        keys.iter().map(Key::new).collect::<Result<_, _>>().map(Self)
    }

    /// Verifies form, signature, algorithm, `crit`, issuer and audience, and reads the claims. Times are the caller's to check.
    pub(super) fn verify(&self, token: &[u8]) -> Result<Identity, AuthError> {
        let header = Header::of(token)?;
        let unknown = header.kid.is_some() && !self.0.iter().any(|key| key.kid == header.kid);
        let mut refusal = if unknown { AuthError::UnknownKid } else { AuthError::NoKey };
        for key in self.0.iter().filter(|key| key.may_verify(&header)) {
            match key.verify(token) {
                Ok(identity) => return Ok(identity),
                // A key without a kid was tried in vain: whose it is stays unknown.
                Err(AuthError::Signature) if unknown => {}
                Err(why) => refusal = why,
            }
        }
        Err(refusal)
    }
}

impl Key {
    fn new(key: &TokenKey) -> Result<Self, BadKey> {
        let bad = |why: String| BadKey { kid: key.kid.clone(), alg: key.alg, why };
        let decoding = match key.form {
            KeyForm::File => from_file(key.alg, key.secret.expose()),
            KeyForm::Jwk => from_jwk(key.alg, key.secret.expose()),
        };
        let decoding = decoding.map_err(bad)?;
        let mut validation = Validation::new(algorithm(key.alg));
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = false;
        Ok(Self { kid: key.kid.clone(), key: decoding, validation, iss: key.iss.clone(), aud: key.aud.clone() })
    }

    /// A token that names a `kid` is for the key of that name, or for a key that has no name.
    fn may_verify(&self, header: &Header) -> bool {
        let named = header.kid.is_none() || self.kid.is_none() || self.kid == header.kid;
        self.validation.algorithms.contains(&header.alg) && named
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

fn algorithm(alg: desired::Algorithm) -> Algorithm {
    match alg {
        desired::Algorithm::HS256 => Algorithm::HS256,
        desired::Algorithm::ES256 => Algorithm::ES256,
        desired::Algorithm::EdDSA => Algorithm::EdDSA,
        desired::Algorithm::RS256 => Algorithm::RS256,
    }
}

/// A key as a file of its own holds it: an HMAC secret, or a public key as PEM.
fn from_file(alg: desired::Algorithm, text: &[u8]) -> Result<DecodingKey, String> {
    let pem = match alg {
        // A public key is known to everybody; whoever takes one for a secret lets everybody in.
        desired::Algorithm::HS256 if text.trim_ascii_start().starts_with(b"-----BEGIN") => {
            return Err(
                "it is a PEM file, not a secret; write the algorithm of that key, or make a secret by `openssl rand -base64 48`".into()
            );
        }
        desired::Algorithm::HS256 if text.len() < MIN_HMAC_SECRET => {
            return Err(format!("it has {} bytes, at least {MIN_HMAC_SECRET} are needed", text.len()));
        }
        desired::Algorithm::HS256 => return Ok(DecodingKey::from_secret(text)),
        desired::Algorithm::ES256 => DecodingKey::from_ec_pem(text),
        desired::Algorithm::EdDSA => DecodingKey::from_ed_pem(text),
        desired::Algorithm::RS256 => DecodingKey::from_rsa_pem(text),
    };
    usable(alg, pem.map_err(|error| format!("{error}; write the public key as PEM"))?)
}

/// A key of a JWKS, which holds public keys only.
fn from_jwk(alg: desired::Algorithm, json: &[u8]) -> Result<DecodingKey, String> {
    let jwk: Jwk = serde_json::from_slice(json).map_err(|error| format!("it is no JWK: {error}"))?;
    usable(alg, DecodingKey::from_jwk(&jwk).map_err(|error| format!("it is no JWK: {error}"))?)
}

/// Refuses now what could never verify anything: a point that is not on the curve, a short modulus, a secret.
fn usable(alg: desired::Algorithm, key: DecodingKey) -> Result<DecodingKey, String> {
    let scheme: &'static dyn VerificationAlgorithm = match alg {
        desired::Algorithm::HS256 => return Err("a secret cannot be published".into()),
        desired::Algorithm::ES256 => &ECDSA_P256_SHA256_FIXED,
        desired::Algorithm::EdDSA => &ED25519,
        desired::Algorithm::RS256 => &RSA_PKCS1_2048_8192_SHA256,
    };
    match key.kind() {
        DecodingKeyKind::RsaModulusExponent { n, e } => {
            let n = n.iter().skip_while(|&&byte| byte == 0).count();
            let odd = e.last().is_some_and(|last| last % 2 == 1) && e != &[1] && e.len() <= 8;
            if alg != desired::Algorithm::RS256 || !RSA_MODULUS.contains(&n) || !odd {
                return Err(format!("an RSA key of {} bits with such an exponent; 2048 to 8192 bits are needed", n * 8));
            }
        }
        DecodingKeyKind::SecretOrDer(bytes) if ParsedPublicKey::new(scheme, bytes).is_err() => {
            return Err("it is the key of another algorithm, or damaged (an RSA key needs 2048 to 8192 bits)".into());
        }
        DecodingKeyKind::SecretOrDer(_) => {}
    }
    Ok(key)
}

/// The JOSE header, as far as it means something here. `jwk`, `jku`, `x5c` and the like, by which a token would bring its own key, are read by nobody.
struct Header {
    alg: Algorithm,
    kid: Option<String>,
}

impl Header {
    fn of(token: &[u8]) -> Result<Self, AuthError> {
        let encoded = token.split(|&byte| byte == b'.').next().unwrap_or_default();
        let json = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| AuthError::Malformed)?;
        let mut members = Members::parse(&json).ok_or(AuthError::Malformed)?;
        if members.has("crit") {
            return Err(AuthError::Critical);
        }
        // RFC 7797 wants `crit` beside it; without, a reader that knows it would verify another text than one that does not.
        if members.take::<bool>("b64").map_err(|_| AuthError::Malformed)? == Some(false) {
            return Err(AuthError::Critical);
        }
        let alg = members.take::<String>("alg").ok().flatten().ok_or(AuthError::Malformed)?;
        Ok(Self { alg: alg.parse().map_err(|_| AuthError::NoKey)?, kid: members.take("kid").map_err(|_| AuthError::Malformed)? })
    }
}

fn refusal(kind: &ErrorKind) -> AuthError {
    match kind {
        ErrorKind::InvalidSignature => AuthError::Signature,
        ErrorKind::InvalidAlgorithm | ErrorKind::MissingAlgorithm => AuthError::NoKey,
        _ => AuthError::Malformed,
    }
}

/// The claims that mean something here. `tier` and `port` are read by nobody: the route table knows better.
struct Claims {
    sub: Option<String>,
    exp: Option<Seconds>,
    nbf: Option<Seconds>,
    iat: Option<Seconds>,
    iss: Option<String>,
    aud: Option<Audience>,
}

impl<'de> Deserialize<'de> for Claims {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut members = Members::deserialize(deserializer)?;
        let read = |members: &mut Members| {
            Ok(Self {
                sub: members.take("sub")?,
                exp: members.take("exp")?,
                nbf: members.take("nbf")?,
                iat: members.take("iat")?,
                iss: members.take("iss")?,
                aud: members.take("aud")?,
            })
        };
        read(&mut members).map_err(|error: serde_json::Error| de::Error::custom(error))
    }
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
