//! Idempotency-Key (draft-ietf-httpapi-idempotency-key-header): a change that is sent again under the same key is made once, and answered as it was, for
//! a day, also by the next agent.
//!
//! Answers hold keys and tokens, so what instances.db has of one is sealed: by this host's secret and by the Idempotency-Key, of which only a MAC is
//! kept. Who reads the disk has the one and not the other.

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey},
    hmac,
};
use axum::{
    body::{Body, Bytes},
    extract::Request,
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, request::Parts};
use serde::{Deserialize, Serialize};

use super::{Api, arrive::Caller, problem::Problem};
use crate::{
    admin::{
        page::Begun,
        question::{Question, RequestName},
    },
    digest::{hex, sha256},
    secret::Secret,
};

/// Names a request.
pub(super) const KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Says that an answer was given before.
pub(super) const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
/// Longest key, bytes.
const LONGEST: usize = 255;
/// Longest answer that is kept, bytes.
const LONGEST_ANSWER: usize = 64 << 10;

/// Requests that are to be done once.
pub(super) struct Once {
    secret: hmac::Key,
    /// Those under way, by what they are looked up by.
    running: Mutex<HashSet<String>>,
}

/// An answer, as it is kept.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    status: u16,
    content_type: Option<String>,
    location: Option<String>,
    body: String,
}

impl Once {
    pub(super) fn new(secret: Secret) -> Self {
        Self { secret: hmac::Key::new(hmac::HMAC_SHA256, secret.expose()), running: Mutex::default() }
    }

    fn mac(&self, purpose: &str, key: &str) -> hmac::Tag {
        hmac::sign(&self.secret, format!("idempotency {purpose}\0{key}").as_bytes())
    }

    fn cipher(&self, key: &str) -> Option<RandomizedNonceKey> {
        RandomizedNonceKey::new(&AES_256_GCM, self.mac("seal", key).as_ref()).ok()
    }

    /// The answer, for nobody who does not know the key. Nothing where it is no text.
    fn seal(&self, key: &str, kept: &Kept) -> Option<Vec<u8>> {
        let mut bytes = serde_json::to_vec(kept).ok()?;
        let nonce = self.cipher(key)?.seal_in_place_append_tag(Aad::empty(), &mut bytes).ok()?;
        Some([nonce.as_ref().as_slice(), &bytes].concat())
    }

    fn open(&self, key: &str, sealed: &[u8]) -> Option<Kept> {
        let (nonce, rest) = sealed.split_at_checked(aws_lc_rs::aead::NONCE_LEN)?;
        let (nonce, mut rest) = (Nonce::try_assume_unique_for_key(nonce).ok()?, rest.to_vec());
        serde_json::from_slice(self.cipher(key)?.open_in_place(nonce, Aad::empty(), &mut rest).ok()?).ok()
    }

    /// The request is under way until that is dropped; nothing where it is already.
    fn enter(&self, lookup: &str) -> Option<UnderWay<'_>> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.insert(lookup.to_owned()).then(|| UnderWay { once: self, lookup: lookup.to_owned() })
    }
}

/// See [`Once::enter`].
struct UnderWay<'a> {
    once: &'a Once,
    lookup: String,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.once.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.lookup);
    }
}

/// The key that a request names, if any. The draft writes it as a quoted string; without quotes it is taken as well.
fn key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut sent = headers.get_all(&KEY).iter();
    let (Some(value), None) = (sent.next(), sent.next()) else {
        return match headers.contains_key(&KEY) {
            true => Err(Problem::bad_request("several Idempotency-Keys")),
            false => Ok(None),
        };
    };
    let text = value.to_str().unwrap_or_default().trim();
    let bare = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    let is_good = (1..=LONGEST).contains(&bare.len()) && bare.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte));
    let wrong = || Problem::bad_request(format!("an Idempotency-Key is 1 to {LONGEST} letters, digits and . _ : -, such as a UUID"));
    is_good.then(|| Some(bare.to_owned())).ok_or_else(wrong)
}

/// Passes the request on; where it names a key, only if it was not made before.
pub(super) async fn once(api: &Api, mut caller: Caller, mut parts: Parts, body: Bytes, next: Next) -> Response {
    let is_made = matches!(parts.method, Method::POST | Method::PUT | Method::DELETE);
    let key = match if is_made { key(&parts.headers) } else { Ok(None) } {
        Ok(Some(key)) => key,
        Ok(None) => {
            parts.extensions.insert(caller);
            return next.run(Request::from_parts(parts, Body::from(body))).await;
        }
        Err(problem) => return problem.into_response(),
    };
    let asked = [parts.method.as_str().as_bytes(), parts.uri.to_string().as_bytes(), &body].join(&0);
    let name = RequestName { lookup: hex(api.0.once.mac("name", &key).as_ref()), fingerprint: hex(&sha256(&asked)) };
    let lookup = name.lookup.clone();
    let Some(_under_way) = api.0.once.enter(&lookup) else {
        let detail = "a request of this Idempotency-Key is under way: wait for its answer, or ask again later";
        return Problem { retry_after: Some(1), ..Problem::new(StatusCode::CONFLICT, "under-way", "Under way", detail) }.into_response();
    };
    match begin(api, name).await {
        Ok(begun @ (Begun::First | Begun::Interrupted)) => {
            caller.was_interrupted = begun == Begun::Interrupted;
            parts.extensions.insert(caller);
            let response = next.run(Request::from_parts(parts, Body::from(body))).await;
            keep(api, &key, &lookup, response).await
        }
        Ok(Begun::Answered(sealed)) => match api.0.once.open(&key, &sealed) {
            Some(kept) => again(kept),
            None => Problem::internal("the answer of then cannot be read any more: choose another Idempotency-Key").into_response(),
        },
        Ok(Begun::Other) => {
            let detail = "another request had this Idempotency-Key: choose a new one for each";
            Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "idempotency-key-reused", "Key of another request", detail).into_response()
        }
        Err(problem) => problem.into_response(),
    }
}

async fn begin(api: &Api, name: RequestName) -> Result<Begun, Problem> {
    let answer = api.0.desk.ask(Question::Begin(name)).await.map_err(Problem::of_loop)?;
    serde_json::from_slice(&answer).map_err(|error| Problem::internal(error.to_string()))
}

/// Keeps the answer where the request did something; else it may be made anew.
async fn keep(api: &Api, key: &str, lookup: &str, response: Response) -> Response {
    let (head, body) = response.into_parts();
    // An answer of ours is whole already.
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap_or_default();
    let text = |name| head.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let kept = head.status.is_success() && body.len() <= LONGEST_ANSWER;
    let sealed = kept.then(|| {
        let body = String::from_utf8_lossy(&body).into_owned();
        let kept = Kept { status: head.status.as_u16(), content_type: text(header::CONTENT_TYPE), location: text(header::LOCATION), body };
        api.0.once.seal(key, &kept)
    });
    if let Err((_, error)) = api.0.desk.ask(Question::End(lookup.to_owned(), sealed.flatten())).await {
        tracing::warn!(error, "the answer to a request of the admin API is not kept");
    }
    Response::from_parts(head, Body::from(body))
}

/// The answer of then.
fn again(kept: Kept) -> Response {
    let mut response = Response::new(Body::from(kept.body));
    *response.status_mut() = StatusCode::from_u16(kept.status).unwrap_or(StatusCode::OK);
    let fields = response.headers_mut();
    for (name, value) in [(header::CONTENT_TYPE, kept.content_type), (header::LOCATION, kept.location)] {
        fields.extend(value.and_then(|value| HeaderValue::try_from(value).ok()).map(|value| (name, value)));
    }
    fields.insert(REPLAYED, HeaderValue::from_static("true"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_opens_by_its_key_on_its_host_alone() {
        let once = Once::new(Secret::new(*b"secret of a host"));
        let kept = Kept { status: 201, content_type: None, location: None, body: "pmb-v1-0123".into() };
        let sealed = once.seal("k1", &kept).unwrap();
        assert_eq!(once.open("k1", &sealed), Some(kept));
        assert!(!sealed.windows(6).any(|window| window == b"pmb-v1"));
        assert_eq!(once.open("k2", &sealed), None);
        assert_eq!(Once::new(Secret::new(*b"another host")).open("k1", &sealed), None);
        assert_eq!((once.open("k1", &sealed[1..]), once.open("k1", b"")), (None, None));
    }

    #[test]
    fn a_key_stands_in_quotes_or_without() {
        let of = |values: &[&str]| {
            let headers = values.iter().map(|value| (KEY, HeaderValue::from_str(value).unwrap())).collect();
            key(&headers).map_err(|problem| problem.status.as_u16())
        };
        assert_eq!(of(&[]), Ok(None));
        assert_eq!(of(&["\"8e03978e-40d5\""]), Ok(Some("8e03978e-40d5".into())));
        assert_eq!(of(&["8e03978e-40d5"]), Ok(Some("8e03978e-40d5".into())));
        for bad in [&[""][..], &["\"\""], &["a\"b"], &["a", "b"], &[&"a".repeat(256)]] {
            assert_eq!(of(bad), Err(400), "{bad:?}");
        }
    }
}
