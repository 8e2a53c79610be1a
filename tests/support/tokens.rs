//! Tokens as an attacker or a login service makes them: by hand, so that the product's own minting proves nothing to itself.

use std::{
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::{
    hmac,
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};

/// The secret of a host whose tenants.toml names none: the file's bytes without one newline at their end.
pub fn secret(state_dir: &Path) -> Vec<u8> {
    let mut bytes = std::fs::read(state_dir.join("jwt.key")).unwrap();
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    bytes
}

/// Now, in seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// What a good token for `id` says; it holds for an hour.
pub fn claims(id: &str) -> Value {
    json!({ "sub": id, "iat": now(), "exp": now() + 3_600 })
}

/// An HS256 token that says `claims`.
pub fn sign(secret: &[u8], claims: &Value) -> String {
    sign_as(&json!({ "alg": "HS256", "typ": "JWT" }), secret, claims)
}

/// A token with any header, signed by HMAC-SHA-256 whatever that says.
pub fn sign_as(header: &Value, secret: &[u8], claims: &Value) -> String {
    let signed = unsigned(header, claims);
    let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// Header and claims without any signature.
pub fn unsigned(header: &Value, claims: &Value) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}", part(header), part(claims))
}

/// An identity provider's ES256 key.
pub struct Issuer(EcdsaKeyPair);

impl Issuer {
    /// A new one.
    pub fn new() -> Self {
        Self(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap())
    }

    /// Its public part, without a kid.
    pub fn jwk(&self) -> Value {
        let (x, y) = self.0.public_key().as_ref()[1..].split_at(32);
        json!({ "kty": "EC", "crv": "P-256", "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y) })
    }

    /// The same in a JWKS, as `kid`.
    pub fn jwks(&self, kid: &str) -> String {
        let mut jwk = self.jwk();
        jwk["kid"] = kid.into();
        json!({ "keys": [jwk] }).to_string()
    }

    /// A token with this header and these claims.
    pub fn token(&self, header: &str, claims: &str) -> String {
        let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let signature = self.0.sign(&SystemRandom::new(), message.as_bytes()).unwrap();
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
    }
}
