use aws_lc_rs::hmac;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as B64};
use http::HeaderValue;

use super::*;
use crate::{desired::Algorithm, proxy::settings::TokenKey, secret::Secret};

const NOW: u64 = 1_800_000_000;
const SECRET: [u8; 32] = *b"0123456789abcdef0123456789abcdef";

fn key(kid: Option<&str>, secret: &[u8]) -> TokenKey {
    TokenKey { kid: kid.map(str::to_owned), alg: Algorithm::HS256, secret: Secret::new(secret), iss: None, aud: None }
}

fn authenticator(keys: &[TokenKey]) -> Authenticator {
    Authenticator::new(Keys::new(keys).unwrap())
}

fn sign(header: &str, claims: &str, secret: &[u8]) -> String {
    let message = format!("{}.{}", B64.encode(header), B64.encode(claims));
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message.as_bytes());
    format!("{message}.{}", B64.encode(tag.as_ref()))
}

fn headers(token: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::AUTHORIZATION, HeaderValue::from_str(&format!("Bearer {token}")).unwrap());
    headers
}

fn ask(token: &str) -> Result<String, AuthError> {
    authenticator(&[key(None, &SECRET)]).authenticate(&headers(token), NOW).map(|identity| identity.id.to_string())
}

fn claims(claims: &str) -> Result<String, AuthError> {
    ask(&sign(r#"{"alg":"HS256","typ":"JWT"}"#, claims, &SECRET))
}

fn header_is(header: &str) -> Result<String, AuthError> {
    ask(&sign(header, &format!(r#"{{"sub":"alice","exp":{}}}"#, NOW + 60), &SECRET))
}

#[test]
fn a_good_token_names_its_tenant() {
    assert_eq!(claims(&format!(r#"{{"sub":"user1@example.com","exp":{},"tier":"free"}}"#, NOW + 60)), Ok("user1@example.com".into()));
}

#[test]
fn a_port_claim_is_accepted_and_ignored() {
    assert_eq!(claims(&format!(r#"{{"sub":"alice","port":10002,"exp":{}}}"#, NOW + 60)), Ok("alice".into()));
}

#[test]
fn a_token_without_its_signature_or_by_another_algorithm_is_refused() {
    let good = sign(r#"{"alg":"HS256"}"#, &format!(r#"{{"sub":"alice","exp":{}}}"#, NOW + 60), &SECRET);
    let (message, _) = good.rsplit_once('.').unwrap();
    assert_eq!(ask(&format!("{message}.")), Err(AuthError::Signature));
    assert_eq!(ask(message), Err(AuthError::Malformed));
    for header in [r#"{"alg":"none"}"#, r#"{"alg":"None"}"#, r#"{"alg":""}"#, r#"{}"#, r#"{"alg":["HS256"]}"#] {
        assert_eq!(header_is(header), Err(AuthError::Malformed), "{header}");
    }
    for header in [r#"{"alg":"HS384"}"#, r#"{"alg":"RS256"}"#, r#"{"alg":"ES256"}"#, r#"{"alg":"EdDSA"}"#] {
        assert_eq!(header_is(header), Err(AuthError::NoKey), "{header}");
    }
}

#[test]
fn a_token_signed_with_another_secret_is_refused() {
    let token = sign(r#"{"alg":"HS256"}"#, &format!(r#"{{"sub":"alice","exp":{}}}"#, NOW + 60), b"another secret of thirty-two byte");
    assert_eq!(ask(&token), Err(AuthError::Signature));
}

#[test]
fn a_changed_claim_breaks_the_signature() {
    let token = sign(r#"{"alg":"HS256"}"#, &format!(r#"{{"sub":"alice","exp":{}}}"#, NOW + 60), &SECRET);
    let parts: Vec<&str> = token.split('.').collect();
    let forged = B64.encode(format!(r#"{{"sub":"bob","exp":{}}}"#, NOW + 60));
    assert_eq!(ask(&format!("{}.{forged}.{}", parts[0], parts[2])), Err(AuthError::Signature));
}

#[test]
fn an_unknown_extension_that_must_be_understood_is_refused() {
    assert_eq!(header_is(r#"{"alg":"HS256","crit":["b64"],"b64":false}"#), Err(AuthError::Critical));
    assert_eq!(header_is(r#"{"alg":"HS256","crit":[]}"#), Err(AuthError::Critical));
}

#[test]
fn a_token_must_expire_and_say_when_in_numbers() {
    assert_eq!(claims(r#"{"sub":"alice"}"#), Err(AuthError::NoExpiry));
    assert_eq!(claims(r#"{"sub":"alice","exp":null}"#), Err(AuthError::NoExpiry));
    for exp in [r#""1900000000""#, "true", "-1", "1e300", "[1900000000]"] {
        assert_eq!(claims(&format!(r#"{{"sub":"alice","exp":{exp}}}"#)), Err(AuthError::Malformed), "{exp}");
    }
    assert_eq!(claims(&format!(r#"{{"sub":"alice","exp":{}.5}}"#, NOW + 60)), Ok("alice".into()));
}

#[test]
fn the_clocks_may_differ_by_five_seconds_and_no_more() {
    assert_eq!(claims(&format!(r#"{{"sub":"alice","exp":{}}}"#, NOW - 4)), Ok("alice".into()));
    assert_eq!(claims(&format!(r#"{{"sub":"alice","exp":{}}}"#, NOW - 5)), Err(AuthError::Expired));
    assert_eq!(claims(&format!(r#"{{"sub":"alice","exp":{},"nbf":{}}}"#, NOW + 60, NOW + 5)), Ok("alice".into()));
    assert_eq!(claims(&format!(r#"{{"sub":"alice","exp":{},"nbf":{}}}"#, NOW + 60, NOW + 6)), Err(AuthError::NotYet));
}

#[test]
fn a_claim_that_stands_twice_is_refused() {
    assert_eq!(claims(&format!(r#"{{"sub":"alice","sub":"bob","exp":{}}}"#, NOW + 60)), Err(AuthError::Malformed));
    assert_eq!(claims(&format!(r#"{{"sub":"alice","exp":1,"exp":{}}}"#, NOW + 60)), Err(AuthError::Malformed));
}

#[test]
fn a_sub_that_is_no_tenant_id_is_refused() {
    for sub in [r#""""#, r#""../bob""#, r#""a/b""#, r#"".hidden""#, r#""a\u0000""#] {
        assert_eq!(claims(&format!(r#"{{"sub":{sub},"exp":{}}}"#, NOW + 60)), Err(AuthError::Subject), "{sub}");
    }
    assert_eq!(claims(&format!(r#"{{"sub":7,"exp":{}}}"#, NOW + 60)), Err(AuthError::Malformed));
    assert_eq!(claims(&format!(r#"{{"exp":{}}}"#, NOW + 60)), Err(AuthError::Subject));
}

#[test]
fn issuer_and_audience_are_checked_where_configured() {
    let keys = [TokenKey { iss: Some("sso".into()), aud: Some("sq".into()), ..key(None, &SECRET) }];
    let ask = |extra: &str| {
        let token = sign(r#"{"alg":"HS256"}"#, &format!(r#"{{"sub":"alice","exp":{}{extra}}}"#, NOW + 60), &SECRET);
        authenticator(&keys).authenticate(&headers(&token), NOW).map(|_| ())
    };
    assert_eq!(ask(r#","iss":"sso","aud":"sq""#), Ok(()));
    assert_eq!(ask(r#","iss":"sso","aud":["mail","sq"]"#), Ok(()));
    assert_eq!(ask(r#","aud":"sq""#), Err(AuthError::Issuer));
    assert_eq!(ask(r#","iss":"other","aud":"sq""#), Err(AuthError::Issuer));
    assert_eq!(ask(r#","iss":"sso""#), Err(AuthError::Audience));
    assert_eq!(ask(r#","iss":"sso","aud":["mail"]"#), Err(AuthError::Audience));
}

#[test]
fn a_kid_chooses_its_key_and_no_other() {
    let other = *b"abcdef0123456789abcdef0123456789";
    let keys = [key(Some("old"), &SECRET), key(Some("new"), &other)];
    let ask = |kid: &str, secret: &[u8]| {
        let token = sign(&format!(r#"{{"alg":"HS256"{kid}}}"#), &format!(r#"{{"sub":"alice","exp":{}}}"#, NOW + 60), secret);
        authenticator(&keys).authenticate(&headers(&token), NOW).map(|_| ())
    };
    assert_eq!(ask(r#","kid":"new""#, &other), Ok(()));
    assert_eq!(ask("", &SECRET), Ok(()), "without a kid each key is tried");
    assert_eq!(ask(r#","kid":"old""#, &other), Err(AuthError::Signature));
    assert_eq!(ask(r#","kid":"gone""#, &other), Err(AuthError::NoKey));
}

#[test]
fn exactly_one_credential_is_accepted() {
    let token = sign(r#"{"alg":"HS256"}"#, &format!(r#"{{"sub":"alice","exp":{}}}"#, NOW + 60), &SECRET);
    let auth = authenticator(&[key(None, &SECRET)]);
    let ask = |headers: &HeaderMap| auth.authenticate(headers, NOW).map(|_| ());
    assert_eq!(ask(&HeaderMap::new()), Err(AuthError::Missing));
    let mut twice = headers(&token);
    twice.append(header::AUTHORIZATION, HeaderValue::from_str(&format!("Bearer {token}")).unwrap());
    assert_eq!(ask(&twice), Err(AuthError::Several));
    let mut both = headers(&token);
    both.insert("x-sq-api-key", HeaderValue::from_static("k"));
    assert_eq!(ask(&both), Err(AuthError::Several));
    for (value, why) in [
        (format!("Basic {token}"), AuthError::NotBearer),
        (token.clone(), AuthError::NotBearer),
        ("Bearer".to_owned(), AuthError::NotBearer),
        ("Bearer ".to_owned(), AuthError::Malformed),
        (format!("Bearer {token},{token}"), AuthError::Malformed),
        (format!("Bearer {}", "a".repeat(MAX_TOKEN_BYTES + 1)), AuthError::TooLong),
    ] {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, HeaderValue::from_str(&value).unwrap());
        assert_eq!(ask(&headers), Err(why), "{}", &value[..value.len().min(20)]);
    }
    let mut lower = HeaderMap::new();
    lower.insert(header::AUTHORIZATION, HeaderValue::from_str(&format!("bearer {token}")).unwrap());
    assert_eq!(ask(&lower), Ok(()), "the scheme has no case (RFC 9110 section 11.1)");
}

#[test]
fn a_remembered_token_still_expires_and_can_be_revoked() {
    let auth = authenticator(&[key(None, &SECRET)]);
    let token = sign(r#"{"alg":"HS256"}"#, &format!(r#"{{"sub":"alice","iat":{},"exp":{}}}"#, NOW - 10, NOW + 60), &SECRET);
    let identity = auth.authenticate(&headers(&token), NOW).unwrap();
    assert_eq!(auth.authenticate(&headers(&token), NOW + 64), Ok(identity.clone()));
    assert_eq!(auth.authenticate(&headers(&token), NOW + 65), Err(AuthError::Expired));
    assert_eq!(identity.not_revoked(0), Ok(()));
    assert_eq!(identity.not_revoked(NOW - 10), Ok(()));
    assert_eq!(identity.not_revoked(NOW - 9), Err(AuthError::Revoked));
    let dateless = Identity { iat: None, ..identity };
    assert_eq!(dateless.not_revoked(0), Ok(()));
    assert_eq!(dateless.not_revoked(1), Err(AuthError::Revoked));
}

#[test]
fn a_key_that_is_too_short_or_no_key_at_all_is_refused_by_name() {
    let short = Keys::new(&[key(Some("2026-02"), b"hunter2")]).err().unwrap().to_string();
    assert!(short.contains("2026-02") && !short.contains("hunter2"), "{short}");
    let pem = Keys::new(&[TokenKey { alg: Algorithm::RS256, ..key(None, b"not a PEM") }]);
    assert!(pem.is_err());
}
