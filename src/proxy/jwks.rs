//! A JWKS (RFC 7517): an identity provider's public keys, each for one of our algorithms. Pure.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    auth::Keys,
    settings::{KeyForm, TokenKey},
};
use crate::{desired::Algorithm, secret::Secret};

/// Longest JWKS, bytes. Those of large identity providers have a few thousand.
pub(crate) const MAX_BYTES: usize = 64 << 10;

/// Most keys that are taken from one. A token without a kid is tried with each of its algorithm, before anybody knows who sent it.
const MAX_KEYS: usize = 32;

/// A JWKS that is not taken, whole; the texts say what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadSet {
    #[error("it is longer than 64 KiB; a JWKS of public keys is not")]
    TooLong,
    #[error("it is no JWKS: {0}; it must read {{\"keys\": […]}}")]
    Form(String),
    #[error(
        "it publishes a secret (kty oct{}): whoever can read it can sign; take that key out of use, and name a file of your own as `secret_file`",
        named(.0)
    )]
    Secret(Option<String>),
    #[error("its key{} has alg {alg}, which is not for a key of type {kty}", named(.kid))]
    Mismatch { kid: Option<String>, alg: String, kty: String },
    #[error("{0}")]
    Key(String),
    #[error("it has {0} keys for signatures; at most {MAX_KEYS} are taken")]
    TooMany(usize),
    #[error("none of its {0} keys is for signatures by ES256 (P-256), EdDSA (Ed25519) or RS256")]
    Nothing(usize),
}

fn named(kid: &Option<String>) -> String {
    kid.as_ref().map_or_else(String::new, |kid| format!(", kid {kid:?}"))
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<Value>,
}

/// What is read of a key; what else stands in it is ignored (RFC 7517 section 4).
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    #[serde(rename = "use")]
    purpose: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    kid: Option<String>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
    n: Option<String>,
    e: Option<String>,
}

impl Jwk {
    /// For signatures, as far as it says.
    fn verifies(&self) -> bool {
        let operation = self.key_ops.as_ref().is_none_or(|operations| operations.iter().any(|operation| operation == "verify"));
        operation && self.purpose.as_ref().is_none_or(|purpose| purpose == "sig")
    }

    /// The one of our algorithms that its type implies.
    fn implied(&self) -> Option<Algorithm> {
        match (self.kty.as_str(), self.crv.as_deref()) {
            ("RSA", _) => Some(Algorithm::RS256),
            ("EC", Some("P-256")) => Some(Algorithm::ES256),
            ("OKP", Some("Ed25519")) => Some(Algorithm::EdDSA),
            _ => None,
        }
    }

    /// Its algorithm: what it says, or what its type implies. None where that is not ours: nothing that it signs is accepted.
    fn algorithm(&self) -> Result<Option<Algorithm>, BadSet> {
        let said = match self.alg.as_deref() {
            None => return Ok(self.implied()),
            Some("RS256") => Algorithm::RS256,
            Some("ES256") => Algorithm::ES256,
            // RFC 9864 names the curve too.
            Some("EdDSA" | "Ed25519") => Algorithm::EdDSA,
            Some("HS256") => Algorithm::HS256,
            Some(_) => return Ok(None),
        };
        if self.implied() == Some(said) {
            return Ok(Some(said));
        }
        Err(BadSet::Mismatch { kid: self.kid.clone(), alg: self.alg.clone().unwrap_or_default(), kty: self.kty.clone() })
    }

    /// Its public part alone.
    fn public(&self) -> Value {
        match self.kty.as_str() {
            "RSA" => json!({ "kty": "RSA", "n": self.n, "e": self.e }),
            "EC" => json!({ "kty": "EC", "crv": self.crv, "x": self.x, "y": self.y }),
            _ => json!({ "kty": self.kty, "crv": self.crv, "x": self.x }),
        }
    }
}

/// The keys of the JWKS in `bytes` that verify signatures by one of our algorithms. Keys for anything else are skipped; a secret, or a key that is
/// damaged, makes all of it suspect.
pub(crate) fn parse(bytes: &[u8]) -> Result<Vec<TokenKey>, BadSet> {
    if bytes.len() > MAX_BYTES {
        return Err(BadSet::TooLong);
    }
    let form = |error: serde_json::Error| BadSet::Form(error.to_string());
    let set: Set = serde_json::from_slice(bytes).map_err(form)?;
    let all = set.keys.len();
    let mut keys = Vec::new();
    for value in set.keys {
        let jwk: Jwk = serde_json::from_value(value).map_err(form)?;
        if jwk.kty == "oct" {
            return Err(BadSet::Secret(jwk.kid));
        }
        if !jwk.verifies() {
            continue;
        }
        let Some(alg) = jwk.algorithm()? else { continue };
        let secret = Secret::new(jwk.public().to_string());
        keys.push(TokenKey { kid: jwk.kid, alg, secret, form: KeyForm::Jwk, iss: None, aud: None });
    }
    match keys.len() {
        0 => return Err(BadSet::Nothing(all)),
        count if count > MAX_KEYS => return Err(BadSet::TooMany(count)),
        _ => {}
    }
    Keys::new(&keys).map_err(|bad| BadSet::Key(bad.to_string()))?;
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::auth::keys_for_tests::{ec_jwk, ed_jwk, rsa_jwk};

    fn set(keys: &[Value]) -> Result<Vec<(Option<String>, Algorithm)>, BadSet> {
        let text = json!({ "keys": keys }).to_string();
        parse(text.as_bytes()).map(|keys| keys.into_iter().map(|key| (key.kid, key.alg)).collect())
    }

    fn with(mut jwk: Value, members: Value) -> Value {
        jwk.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
        jwk
    }

    #[test]
    fn each_key_has_the_algorithm_that_it_says_or_that_its_type_implies() {
        let name = |kid: &str| Some(kid.to_owned());
        let all = [
            with(rsa_jwk(), json!({ "kid": "r" })),
            with(ec_jwk(), json!({ "kid": "e", "use": "sig" })),
            with(ed_jwk(), json!({ "kid": "d", "alg": "EdDSA" })),
            with(rsa_jwk(), json!({ "alg": "RS256", "key_ops": ["verify"], "x5c": ["MII"], "unknown": 1 })),
        ];
        let expected =
            [(name("r"), Algorithm::RS256), (name("e"), Algorithm::ES256), (name("d"), Algorithm::EdDSA), (None, Algorithm::RS256)];
        assert_eq!(set(&all), Ok(expected.to_vec()));
    }

    #[test]
    fn keys_for_anything_else_are_skipped() {
        let others = [
            with(rsa_jwk(), json!({ "use": "enc" })),
            with(rsa_jwk(), json!({ "alg": "RSA-OAEP" })),
            with(rsa_jwk(), json!({ "alg": "PS256" })),
            with(rsa_jwk(), json!({ "key_ops": ["encrypt"] })),
            json!({ "kty": "EC", "crv": "P-384", "x": "AA", "y": "AA" }),
            json!({ "kty": "OKP", "crv": "X25519", "x": "AA" }),
            json!({ "kty": "AKP", "alg": "ML-DSA-44", "pub": "AA" }),
        ];
        assert_eq!(set(&others), Err(BadSet::Nothing(7)));
        assert_eq!(set(&[&others[..], &[ec_jwk()]].concat()), Ok(vec![(None, Algorithm::ES256)]));
    }

    #[test]
    fn a_secret_in_it_makes_all_of_it_suspect() {
        let secret = json!({ "kty": "oct", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA", "kid": "s" });
        let bad = set(&[ec_jwk(), secret]).unwrap_err();
        assert_eq!(bad, BadSet::Secret(Some("s".into())));
        assert!(
            bad.to_string().contains("kid \"s\"") && bad.to_string().contains("secret_file") && !bad.to_string().contains("c2Vj"),
            "{bad}"
        );
    }

    #[test]
    fn a_key_of_the_wrong_type_or_a_damaged_one_is_refused() {
        for (key, alg) in [(rsa_jwk(), "ES256"), (ec_jwk(), "RS256"), (ed_jwk(), "ES256"), (rsa_jwk(), "HS256")] {
            assert!(matches!(set(&[with(key, json!({ "alg": alg }))]), Err(BadSet::Mismatch { .. })), "{alg}");
        }
        let y = ec_jwk()["x"].clone();
        for damaged in [
            with(ec_jwk(), json!({ "y": y })),
            with(ec_jwk(), json!({ "x": "AA" })),
            with(ec_jwk(), json!({ "y": null })),
            with(ed_jwk(), json!({ "x": "AA" })),
            with(ed_jwk(), json!({ "x": "not base64!" })),
            with(rsa_jwk(), json!({ "n": "AQAB" })),
            with(rsa_jwk(), json!({ "e": "AQ" })),
            with(rsa_jwk(), json!({ "e": "AA" })),
        ] {
            assert!(matches!(set(std::slice::from_ref(&damaged)), Err(BadSet::Key(_))), "{damaged}");
        }
    }

    #[test]
    fn a_text_that_is_no_jwks_or_too_large_is_refused() {
        for text in ["", "[]", "{}", r#"{"keys":{}}"#, r#"{"keys":[1]}"#, "<html>", r#"{"keys":[{"kid":"a"}]}"#] {
            assert!(matches!(parse(text.as_bytes()), Err(BadSet::Form(_))), "{text}");
        }
        assert_eq!(parse(&vec![b' '; MAX_BYTES + 1]), Err(BadSet::TooLong));
        assert_eq!(set(&vec![ec_jwk(); MAX_KEYS]).unwrap().len(), MAX_KEYS);
        assert_eq!(set(&vec![ec_jwk(); MAX_KEYS + 1]), Err(BadSet::TooMany(MAX_KEYS + 1)));
    }
}
