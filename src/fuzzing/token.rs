//! Who asks: the Authorization header and the token in it.

use std::sync::LazyLock;

use aws_lc_rs::hmac;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, HeaderValue, header};

use crate::{
    desired::Algorithm,
    digest::sha256,
    proxy::{
        auth::{Authenticator, Keys, Proof},
        settings::{KeyForm, TokenKey},
    },
    secret::Secret,
};

const SECRET: [u8; 32] = *b"0123456789abcdef0123456789abcdef";
const NOW: u64 = 1_800_000_000;

static DOOR: LazyLock<Authenticator> = LazyLock::new(|| {
    let key = TokenKey { kid: None, alg: Algorithm::HS256, secret: Secret::new(SECRET), form: KeyForm::File, iss: None, aud: None };
    let keys = Keys::new(&[key]).unwrap_or_else(|error| panic!("{error}"));
    Authenticator::new(keys)
});

/// A request with this value of its Authorization header; whoever gets in by a token had the secret. Of an API key only the digest goes on.
pub fn as_sent(value: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(value) else { return };
    let bytes = value.as_bytes().to_vec();
    let mut headers = HeaderMap::new();
    headers.insert(header::AUTHORIZATION, value);
    match DOOR.authenticate(&headers, NOW) {
        Ok(Proof::Token(_) | Proof::Known(_)) => {
            assert!(is_signed(bytes.get(7..).unwrap_or_default().trim_ascii()), "let in without the secret")
        }
        Ok(Proof::ApiKey(digest)) => {
            let sent = bytes.trim_ascii();
            let last = sent.rsplit(|&byte| byte == b' ').next().unwrap_or_default();
            assert!(digest == sha256(last) && last.len() >= 8, "a key that was not sent")
        }
        Err(_) => {}
    }
}

/// A token of this header and these claims, signed as it should be.
pub fn signed(header: &[u8], claims: &[u8]) {
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &SECRET), message.as_bytes());
    as_sent(format!("Bearer {message}.{}", URL_SAFE_NO_PAD.encode(tag.as_ref())).as_bytes());
}

fn is_signed(token: &[u8]) -> bool {
    let Some(end) = token.iter().rposition(|&byte| byte == b'.') else { return false };
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &SECRET), &token[..end]);
    URL_SAFE_NO_PAD.encode(tag.as_ref()).as_bytes() == &token[end + 1..]
}
