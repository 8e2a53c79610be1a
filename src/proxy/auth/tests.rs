use aws_lc_rs::hmac;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as B64};
use http::{HeaderValue, header};

use super::{keys_for_tests::Signer, *};
use crate::{
    desired::Algorithm,
    proxy::settings::{KeyForm, TokenKey},
    secret::Secret,
};

const NOW: u64 = 1_800_000_000;
const SECRET: [u8; 32] = *b"0123456789abcdef0123456789abcdef";

fn key(kid: Option<&str>, secret: &[u8]) -> TokenKey {
    TokenKey { kid: kid.map(str::to_owned), alg: Algorithm::HS256, secret: Secret::new(secret), form: KeyForm::File, iss: None, aud: None }
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

/// Whose token this is, under these keys.
fn who(auth: &Authenticator, headers: &HeaderMap, now: u64) -> Result<Identity, AuthError> {
    auth.authenticate(headers, now).map(|proof| match proof {
        Proof::Token(identity) | Proof::Known(identity) => identity,
        Proof::ApiKey(_) => panic!("an API key"),
    })
}

fn ask(token: &str) -> Result<String, AuthError> {
    who(&authenticator(&[key(None, &SECRET)]), &headers(token), NOW).map(|identity| identity.id.to_string())
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
    for header in [r#"{}"#, r#"{"alg":["HS256"]}"#, r#"{"alg":null}"#, r#"["HS256"]"#] {
        assert_eq!(header_is(header), Err(AuthError::Malformed), "{header}");
    }
    for alg in ["none", "None", "NONE", "", "hs256", "HS384", "RS256", "ES256", "EdDSA"] {
        assert_eq!(header_is(&format!(r#"{{"alg":"{alg}"}}"#)), Err(AuthError::NoKey), "{alg}");
    }
    let unsigned = format!("{}.{}.", B64.encode(r#"{"alg":"none"}"#), B64.encode(format!(r#"{{"sub":"alice","exp":{}}}"#, NOW + 60)));
    assert_eq!(ask(&unsigned), Err(AuthError::NoKey));
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
    assert_eq!(header_is(r#"{"alg":"HS256","crit":["exp"]}"#), Err(AuthError::Critical));
    assert_eq!(header_is(r#"{"alg":"HS256","crit":null}"#), Err(AuthError::Critical));
}

#[test]
fn a_payload_that_is_not_base64_is_refused_also_where_crit_does_not_say_so() {
    assert_eq!(header_is(r#"{"alg":"HS256","b64":false}"#), Err(AuthError::Critical));
    assert_eq!(header_is(r#"{"alg":"HS256","b64":"false"}"#), Err(AuthError::Malformed));
    assert_eq!(header_is(r#"{"alg":"HS256","b64":true}"#), Ok("alice".into()));
}

#[test]
fn a_key_that_the_token_brings_along_is_not_looked_at() {
    let own = B64.encode(SECRET);
    let header =
        format!(r#"{{"alg":"HS256","jwk":{{"kty":"oct","k":"{own}"}},"jku":"https://evil.example","x5u":"https://evil.example"}}"#);
    let claims = format!(r#"{{"sub":"alice","exp":{}}}"#, NOW + 60);
    let auth = authenticator(&[key(None, b"another secret of thirty-two byte")]);
    assert_eq!(who(&auth, &headers(&sign(&header, &claims, &SECRET)), NOW), Err(AuthError::Signature));
}

#[test]
fn a_token_must_expire_and_say_when_in_numbers() {
    assert_eq!(claims(r#"{"sub":"alice"}"#), Err(AuthError::NoExpiry));
    assert_eq!(claims(r#"{"sub":"alice","exp":null}"#), Err(AuthError::NoExpiry));
    for exp in [r#""1900000000""#, "true", "-1", "-1900000000", "1e300", "1e999", "-0.5", "[1900000000]", "{}", "0x70000000", "NaN"] {
        assert_eq!(claims(&format!(r#"{{"sub":"alice","exp":{exp}}}"#)), Err(AuthError::Malformed), "{exp}");
    }
    for past in ["0", "0.5", "1", "1e9"] {
        assert_eq!(claims(&format!(r#"{{"sub":"alice","exp":{past}}}"#)), Err(AuthError::Expired), "{past}");
    }
    for far in ["1.8e10", "18446744073709551615", "9007199254740991.0"] {
        assert_eq!(claims(&format!(r#"{{"sub":"alice","exp":{far}}}"#)), Ok("alice".into()), "{far}");
    }
    assert_eq!(claims(&format!(r#"{{"sub":"alice","exp":{}.5}}"#, NOW + 60)), Ok("alice".into()));
}

#[test]
fn the_other_times_are_numbers_too() {
    for claim in ["nbf", "iat"] {
        for value in [r#""1""#, "-1", "1e300", "true", "[]"] {
            assert_eq!(
                claims(&format!(r#"{{"sub":"alice","exp":{},"{claim}":{value}}}"#, NOW + 60)),
                Err(AuthError::Malformed),
                "{claim} {value}"
            );
        }
        assert_eq!(claims(&format!(r#"{{"sub":"alice","exp":{},"{claim}":{}.25}}"#, NOW + 60, NOW - 1)), Ok("alice".into()));
    }
    assert_eq!(claims(&format!(r#"{{"sub":"alice","exp":{},"nbf":18446744073709551615}}"#, NOW + 60)), Err(AuthError::NotYet));
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
    assert_eq!(claims(&format!(r#"{{"sub":"alice","exp":{},"role":1,"role":2}}"#, NOW + 60)), Err(AuthError::Malformed), "whatever claim");
    assert_eq!(
        claims(&format!(r#"{{"sub":"alice","exp":{},"s\u0075b":"bob"}}"#, NOW + 60)),
        Err(AuthError::Malformed),
        "spelled otherwise"
    );
}

#[test]
fn a_header_member_that_stands_twice_is_refused() {
    for header in [
        r#"{"alg":"HS256","alg":"HS256"}"#,
        r#"{"alg":"none","alg":"HS256"}"#,
        r#"{"alg":"HS256","kid":"a","kid":"b"}"#,
        r#"{"alg":"HS256","x":1,"x":1}"#,
        r#"{"alg":"HS256","b64":false,"b64":true}"#,
    ] {
        assert_eq!(header_is(header), Err(AuthError::Malformed), "{header}");
    }
}

#[test]
fn base64_has_no_padding_and_one_way_to_write_each_byte() {
    // 32 bytes leave 4 bits of the last of 43 letters unused: they must be 0.
    let good = sign(r#"{"alg":"HS256"}"#, &format!(r#"{{"sub":"alice","exp":{}}}"#, NOW + 60), &SECRET);
    assert_eq!(ask(&good), Ok("alice".into()));
    let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let last = letters.iter().position(|letter| Some(letter) == good.as_bytes().last()).unwrap();
    let other = |flip: usize| format!("{}{}", &good[..good.len() - 1], char::from(letters[last ^ flip]));
    assert_eq!((last % 4, ask(&other(1)), ask(&other(2))), (0, Err(AuthError::Malformed), Err(AuthError::Malformed)));
    assert_eq!(ask(&format!("{good}=")), Err(AuthError::Malformed));
    let parts: Vec<&str> = good.split('.').collect();
    for (at, padding) in [(0, "="), (1, "=="), (0, "A"), (2, "A")] {
        let mut parts: Vec<String> = parts.iter().map(|part| (*part).to_owned()).collect();
        parts[at] += padding;
        assert!(ask(&parts.join(".")).is_err(), "{at} {padding}");
    }
    for alphabet in ["+", "/"] {
        assert_eq!(ask(&format!("{alphabet}{}", &good[1..])), Err(AuthError::Malformed));
    }
    // The header's unused bits are signed, and refused all the same.
    let (header, claims) = ("eyJhbGciOiJIUzI1NiJ9", B64.encode(format!(r#"{{"sub":"alice","exp":{}}}"#, NOW + 60)));
    assert_eq!(B64.encode(r#"{"alg":"HS256"}"#), header);
    for (header, claims) in [(r#"{"alg":"HS256" }"#, claims.as_str())].map(|(header, claims)| (B64.encode(header), claims)) {
        let bent = format!(
            "{}{}",
            &header[..header.len() - 1],
            char::from(letters[1 + letters.iter().position(|letter| header.as_bytes().last() == Some(letter)).unwrap()])
        );
        let message = format!("{bent}.{claims}");
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &SECRET), message.as_bytes());
        assert_eq!(ask(&format!("{message}.{}", B64.encode(tag.as_ref()))), Err(AuthError::Malformed));
    }
}

#[test]
fn a_token_has_three_parts() {
    let good = sign(r#"{"alg":"HS256"}"#, &format!(r#"{{"sub":"alice","exp":{}}}"#, NOW + 60), &SECRET);
    for bad in [format!("{good}."), format!(".{good}"), format!("{good}.{good}"), "..".into(), ".".into(), "a".into()] {
        assert_eq!(ask(&bad), Err(AuthError::Malformed), "{bad}");
    }
}

#[test]
fn a_sub_that_is_no_tenant_id_is_refused() {
    for sub in [
        r#""""#,
        r#""../bob""#,
        r#""a/b""#,
        r#"".hidden""#,
        r#""a\u0000""#,
        r#""alice\r\nX-User-ID: bob""#,
        r#""alice\n""#,
        r#""alice\r""#,
        r#""al ice""#,
        r#""älice""#,
    ] {
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
        who(&authenticator(&keys), &headers(&token), NOW).map(|_| ())
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
        who(&authenticator(&keys), &headers(&token), NOW).map(|_| ())
    };
    assert_eq!(ask(r#","kid":"new""#, &other), Ok(()));
    assert_eq!(ask("", &SECRET), Ok(()), "without a kid each key is tried");
    assert_eq!(ask(r#","kid":"old""#, &other), Err(AuthError::Signature));
    for gone in [r#","kid":"gone""#, r#","kid":"""#, r#","kid":"Old""#, r#","kid":"old ""#] {
        assert_eq!(ask(gone, &other), Err(AuthError::UnknownKid), "{gone}");
    }
    assert_eq!(ask(r#","kid":7"#, &other), Err(AuthError::Malformed));
    assert_eq!(ask(r#","kid":null"#, &other), Ok(()), "as if it were left out");
}

#[test]
fn a_kid_that_is_nobodys_is_told_as_such_beside_keys_without_one() {
    let es256 = TokenKey { alg: Algorithm::ES256, secret: Secret::new(Signer::es256().pem()), ..key(None, &SECRET) };
    let nameless = [key(None, &SECRET), key(Some("old"), &SECRET), es256];
    let ask = |header: &str, token: &dyn Fn(&str, &str) -> String| {
        let token = token(header, &format!(r#"{{"sub":"alice","exp":{}}}"#, NOW + 60));
        who(&authenticator(&nameless), &headers(&token), NOW).map(|_| ())
    };
    let stranger = Signer::es256();
    let (by_stranger, by_secret) =
        (|header: &str, claims: &str| stranger.token(header, claims), |header: &str, claims: &str| sign(header, claims, &SECRET));
    assert_eq!(ask(r#"{"alg":"ES256","kid":"new"}"#, &by_stranger), Err(AuthError::UnknownKid), "tried by a key without a kid, in vain");
    assert_eq!(ask(r#"{"alg":"RS256","kid":"new"}"#, &by_stranger), Err(AuthError::UnknownKid), "tried by none");
    assert_eq!(ask(r#"{"alg":"HS256","kid":"new"}"#, &by_secret), Ok(()), "a key without a kid is tried for each");
    assert_eq!(ask(r#"{"alg":"ES256","kid":"old"}"#, &by_stranger), Err(AuthError::Signature));
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
    both.insert("x-sq-api-key", HeaderValue::from_static(API_KEY));
    assert_eq!(ask(&both), Err(AuthError::Several));
    let mut keys = HeaderMap::new();
    keys.append("x-sq-api-key", HeaderValue::from_static(API_KEY));
    assert_eq!(ask(&keys), Ok(()));
    keys.append("x-sq-api-key", HeaderValue::from_static(API_KEY));
    assert_eq!(ask(&keys), Err(AuthError::Several));
    for (value, why) in [
        (format!("Basic {token}"), AuthError::NotBearer),
        (token.clone(), AuthError::NotBearer),
        ("Bearer".to_owned(), AuthError::NotBearer),
        ("Bearer ".to_owned(), AuthError::Malformed),
        (format!("Bearer {token},{token}"), AuthError::Malformed),
        (format!("Bearer {token}, Bearer {token}"), AuthError::Malformed),
        (format!("Bearer Bearer {token}"), AuthError::Malformed),
        (format!("Bearer {}", "a".repeat(MAX_TOKEN_BYTES + 1)), AuthError::TooLong),
        (format!("Bearer {API_KEY},{token}"), AuthError::NotApiKey),
        (format!("{API_KEY} {API_KEY}"), AuthError::NotApiKey),
    ] {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, HeaderValue::from_str(&value).unwrap());
        assert_eq!(ask(&headers), Err(why), "{}", &value[..value.len().min(20)]);
    }
    let mut lower = HeaderMap::new();
    lower.insert(header::AUTHORIZATION, HeaderValue::from_str(&format!("bearer {token}")).unwrap());
    assert_eq!(ask(&lower), Ok(()), "the scheme has no case (RFC 9110 section 11.1)");
}

const API_KEY: &str = "pmb-v1-00112233445566778899aabbccddeeff";

#[test]
fn an_api_key_comes_in_each_of_three_forms_and_is_known_by_its_digest() {
    let auth = authenticator(&[]);
    for (name, value) in [
        ("authorization", format!("Bearer {API_KEY}")),
        ("authorization", format!("bearer   {API_KEY}")),
        ("authorization", API_KEY.to_owned()),
        ("x-sq-api-key", API_KEY.to_owned()),
        ("X-SQ-API-Key", format!(" {API_KEY} ")),
    ] {
        // One that an sq gateway gave out is as good.
        let (other, other_key) = (value.replace(API_KEY, "user-api-key-1"), "user-api-key-1");
        let mut headers = HeaderMap::new();
        headers.insert(header::HeaderName::try_from(name).unwrap(), HeaderValue::from_str(&other).unwrap());
        assert_eq!(auth.authenticate(&headers, NOW), Ok(Proof::ApiKey(sha256(other_key.as_bytes()))), "{name}: {other}");
        let mut headers = HeaderMap::new();
        headers.insert(header::HeaderName::try_from(name).unwrap(), HeaderValue::from_str(&value).unwrap());
        assert_eq!(auth.authenticate(&headers, NOW), Ok(Proof::ApiKey(sha256(API_KEY.as_bytes()))), "{name}: {value}");
    }
}

#[test]
fn what_is_no_api_key_is_refused_wherever_it_stands() {
    let auth = authenticator(&[key(None, &SECRET)]);
    let token = sign(r#"{"alg":"HS256"}"#, &format!(r#"{{"sub":"alice","exp":{}}}"#, NOW + 60), &SECRET);
    for (name, value) in [
        ("x-sq-api-key", token.as_str()),
        ("x-sq-api-key", ""),
        ("x-sq-api-key", "Bearer pmb-v1-00112233445566778899aabbccddeeff"),
        ("authorization", "pmb-v1-00112233445566778899aabbccddeeff, x"),
        ("authorization", "Bearer pmb-v1-"),
    ] {
        let mut headers = HeaderMap::new();
        headers.insert(header::HeaderName::try_from(name).unwrap(), HeaderValue::from_str(value).unwrap());
        assert_eq!(auth.authenticate(&headers, NOW), Err(AuthError::NotApiKey), "{name}: {value}");
    }
}

/// A key as its PEM file, or as a JWKS, gives it.
fn public(signer: &Signer, form: KeyForm) -> TokenKey {
    let secret = match form {
        KeyForm::File => signer.pem(),
        KeyForm::Jwk => signer.jwk().to_string(),
    };
    let alg = match signer.alg() {
        "ES256" => Algorithm::ES256,
        "EdDSA" => Algorithm::EdDSA,
        _ => Algorithm::RS256,
    };
    TokenKey { kid: None, alg, secret: Secret::new(secret), form, iss: None, aud: None }
}

#[test]
fn each_algorithm_verifies_by_its_own_key_and_by_no_other() {
    let signers = [Signer::es256(), Signer::eddsa(), Signer::rs256()];
    let claims = format!(r#"{{"sub":"alice","exp":{}}}"#, NOW + 60);
    let strangers = [Signer::es256(), Signer::eddsa(), Signer::rs256()];
    for (signer, stranger) in signers.iter().zip(&strangers) {
        let header = format!(r#"{{"alg":"{}"}}"#, signer.alg());
        for form in [KeyForm::File, KeyForm::Jwk] {
            let auth = authenticator(&[public(signer, form)]);
            assert_eq!(who(&auth, &headers(&signer.token(&header, &claims)), NOW).unwrap().id.as_str(), "alice", "{header} {form:?}");
            assert_eq!(who(&auth, &headers(&stranger.token(&header, &claims)), NOW), Err(AuthError::Signature), "{header} {form:?}");
            for other in signers.iter().filter(|other| other.alg() != signer.alg()) {
                let lie = other.token(&header, &claims);
                assert_eq!(who(&auth, &headers(&lie), NOW), Err(AuthError::Signature), "{header}, signed by {}", other.alg());
                let truth = other.token(&format!(r#"{{"alg":"{}"}}"#, other.alg()), &claims);
                assert_eq!(who(&auth, &headers(&truth), NOW), Err(AuthError::NoKey), "{header} against {}", other.alg());
            }
        }
    }
}

#[test]
fn a_public_key_is_no_hmac_secret() {
    let claims = format!(r#"{{"sub":"alice","exp":{}}}"#, NOW + 60);
    for signer in [Signer::es256(), Signer::eddsa(), Signer::rs256()] {
        for form in [KeyForm::File, KeyForm::Jwk] {
            let key = public(&signer, form);
            let auth = authenticator(std::slice::from_ref(&key));
            let pem = signer.pem();
            for secret in [key.secret.expose(), pem.as_bytes(), pem.trim_end().as_bytes()] {
                let forged = sign(r#"{"alg":"HS256"}"#, &claims, secret);
                assert_eq!(who(&auth, &headers(&forged), NOW), Err(AuthError::NoKey));
            }
            // Nor can it be configured as one.
            assert!(Keys::new(&[TokenKey { alg: Algorithm::HS256, ..key.clone() }]).is_err());
            let other = if key.alg == Algorithm::RS256 { Algorithm::ES256 } else { Algorithm::RS256 };
            assert!(Keys::new(&[TokenKey { alg: other, ..key }]).is_err(), "nor for another algorithm");
        }
    }
}

#[test]
fn new_keys_know_nothing_of_tokens_that_others_proved() {
    let token = sign(r#"{"alg":"HS256"}"#, &format!(r#"{{"sub":"alice","exp":{}}}"#, NOW + 60), &SECRET);
    let before = authenticator(&[key(None, &SECRET)]);
    assert!(who(&before, &headers(&token), NOW).is_ok() && who(&before, &headers(&token), NOW).is_ok());
    let after = authenticator(&[key(None, b"another secret of thirty-two byte")]);
    assert_eq!(who(&after, &headers(&token), NOW), Err(AuthError::Signature));
}

#[test]
fn a_refused_token_is_not_remembered_and_nothing_but_the_very_token_is() {
    let auth = authenticator(&[key(None, &SECRET)]);
    let early = sign(r#"{"alg":"HS256"}"#, &format!(r#"{{"sub":"alice","nbf":{},"exp":{}}}"#, NOW + 30, NOW + 60), &SECRET);
    assert_eq!(who(&auth, &headers(&early), NOW), Err(AuthError::NotYet));
    assert!(who(&auth, &headers(&early), NOW + 30).is_ok());
    assert_eq!(who(&auth, &headers(&early), NOW), Err(AuthError::NotYet), "remembered, and looked at all the same: the clock was set back");
    let (message, _) = early.rsplit_once('.').unwrap();
    assert_eq!(who(&auth, &headers(&format!("{message}.AAAA")), NOW + 30), Err(AuthError::Signature));
}

#[test]
fn a_remembered_token_still_expires_and_can_be_revoked() {
    let auth = authenticator(&[key(None, &SECRET)]);
    let token = sign(r#"{"alg":"HS256"}"#, &format!(r#"{{"sub":"alice","iat":{},"exp":{}}}"#, NOW - 10, NOW + 60), &SECRET);
    let identity = who(&auth, &headers(&token), NOW).unwrap();
    assert_eq!(who(&auth, &headers(&token), NOW + 64), Ok(identity.clone()));
    assert_eq!(who(&auth, &headers(&token), NOW + 65), Err(AuthError::Expired));
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
