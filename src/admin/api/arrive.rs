//! What happens to every request before and after its handler.

use std::time::Duration;

use axum::{
    body::Body,
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde::Deserialize;

use super::{
    Api, document,
    gate::{self, Shown, Way},
    metrics, once,
    problem::Problem,
};
use crate::{admin::question::Question, desired::TenantId, observed::monotonic, proxy::request_id::RequestId};

/// Longest body, bytes.
pub(super) const LONGEST_BODY: usize = 64 << 10;
/// A body that is not complete by then does not come.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Who a program asks for, in its own words.
pub(super) const ACTOR: HeaderName = HeaderName::from_static("x-admin-actor");
/// Longest name, bytes.
const LONGEST_ACTOR: usize = 64;
/// Longest reason, characters.
pub(super) const LONGEST_WORDS: usize = 256;

/// Who asks, as far as that is known.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    /// As it names itself, else how it came.
    pub(super) actor: String,
    /// How it came.
    pub(super) way: Way,
    pub(super) request_id: RequestId,
    /// The same request was made before and broke off, so that it may have done what it was to do.
    pub(super) was_interrupted: bool,
}

/// See the file's description.
pub(super) async fn arrive(State(api): State<Api>, request: Request, next: Next) -> Response {
    let id = api.0.ids.of(request.headers());
    let mut response = match serve(api, request, next, &id).await {
        Ok(response) => response,
        Err(problem) => problem.respond(id.as_str()),
    };
    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        let allow = response.headers_mut().remove(header::ALLOW);
        response = problem.respond(id.as_str());
        response.headers_mut().extend(allow.map(|allow| (header::ALLOW, allow)));
    } else if !response.status().is_success()
        && response.headers().get(header::CONTENT_TYPE).is_none_or(|kind| kind != "application/problem+json")
    {
        response = Problem::of_status(response.status()).respond(id.as_str());
    }
    let fields = response.headers_mut();
    fields.insert("x-request-id", id.header());
    fields.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    fields.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

async fn serve(api: Api, request: Request, next: Next, id: &RequestId) -> Result<Response, Problem> {
    let way = *request.extensions().get::<Way>().ok_or_else(|| Problem::unauthorized("nobody knows how this came"))?;
    let (mut parts, body) = request.into_parts();
    let admitted = admit(&api, way, &parts);
    if admitted.is_err() {
        // A client that still sends when its connection is closed would not see the answer.
        let _ = tokio::time::timeout(BODY_TIMEOUT, drain(body)).await;
        return Err(admitted.err().unwrap_or_else(Problem::stopping));
    }
    let body = whole(body).await?;
    let is_change = !matches!(parts.method, Method::GET | Method::HEAD | Method::OPTIONS);
    if is_change && !body.is_empty() && !is_json(&parts.headers) {
        return Err(Problem::not_json());
    }
    let caller = Caller { actor: actor(&parts.headers, way)?, way, request_id: id.clone(), was_interrupted: false };
    if !is_change {
        parts.extensions.insert(caller);
        return Ok(next.run(Request::from_parts(parts, Body::from(body))).await);
    }
    let (method, path, reason) = (parts.method.clone(), parts.uri.path().to_owned(), reason(&body));
    // To its end, also where the client goes away in the middle.
    let done = tokio::spawn(async move {
        let response = once::once(&api, caller.clone(), parts, body, next).await;
        record(&api, &caller, &method, &path, &reason, response.status()).await;
        response
    });
    done.await.map_err(|_| Problem::of_status(StatusCode::INTERNAL_SERVER_ERROR))
}

fn admit(api: &Api, way: Way, parts: &http::request::Parts) -> Result<(), Problem> {
    let Way::Tcp { peer, local } = way else { return Ok(()) };
    let settings = api.0.settings.borrow().clone().ok_or_else(Problem::stopping)?;
    gate::check_host(&parts.uri, &parts.headers, local, &settings.hosts)?;
    let is_for_metrics = parts.uri.path() == metrics::PATH;
    let shown = if is_for_metrics { gate::shown_for_metrics } else { gate::shown };
    let shown = shown(&parts.headers, &settings.key);
    let now_ns = u64::try_from(monotonic().as_nanos()).unwrap_or(u64::MAX);
    // It holds no invariant that a panic could break.
    let mut limiter = api.0.limiter.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    limiter.admit(peer.ip(), shown == Shown::Key, &settings, now_ns)?;
    drop(limiter);
    match shown {
        Shown::Key => Ok(()),
        Shown::Nothing if parts.uri.path() == document::PATH => Ok(()),
        Shown::Nothing if is_for_metrics && gate::is_of_this_host(&parts.uri, &parts.headers, local, &settings.hosts) => Ok(()),
        Shown::Nothing => Err(Problem::unauthorized("send the key in the header X-Admin-API-Key, and nowhere else")),
        Shown::Wrong => {
            tracing::warn!(peer = %peer.ip(), path = parts.uri.path(), "the admin API was asked with a wrong key");
            Err(Problem::unauthorized("that is not the key"))
        }
    }
}

/// The body, or why there is none.
pub(super) async fn whole(body: Body) -> Result<Bytes, Problem> {
    let mut body = body;
    let read = tokio::time::timeout(BODY_TIMEOUT, Limited::new(&mut body, LONGEST_BODY).collect()).await;
    match read {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let _ = tokio::time::timeout(BODY_TIMEOUT, drain(body)).await;
            Err(Problem::body_too_large(LONGEST_BODY))
        }
        Ok(Err(_)) => Err(Problem::new(StatusCode::BAD_REQUEST, "body-cut", "Body cut short", "the request body ended before its end")),
        Err(_) => Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "body-too-slow", "Body too slow", "the request body came too slowly")),
    }
}

/// Takes what a client still sends, up to a point.
async fn drain(body: Body) {
    const MOST: usize = 1 << 20;
    // What cannot be read any more need not be.
    let _ = Limited::new(body, MOST).collect().await;
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

/// As it names itself: what may also be the author of a commit.
fn actor(headers: &HeaderMap, way: Way) -> Result<String, Problem> {
    let Some(actor) = headers.get(&ACTOR) else { return Ok(way.text()) };
    let words = actor.to_str().unwrap_or_default();
    let wrong =
        || Problem::bad_request(format!("X-Admin-Actor is a name of at most {LONGEST_ACTOR} letters, digits, spaces and . _ @ + -"));
    is_name(words).then(|| words.trim_end().to_owned()).ok_or_else(wrong)
}

/// Whether somebody may call itself so.
pub(super) fn is_name(words: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b" ._@+-".contains(&byte);
    words.len() <= LONGEST_ACTOR && words.bytes().all(plain) && words.starts_with(|first: char| first.is_ascii_alphanumeric())
}

/// Why, in the words of whoever asks.
fn reason(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Reason {
        reason: Option<String>,
    }
    let reason = serde_json::from_slice::<Reason>(body).ok().and_then(|body| body.reason).unwrap_or_default();
    reason.chars().filter(|c| !c.is_control()).take(LONGEST_WORDS).collect()
}

/// The record of a change that was asked for, whatever came of it: a line in the log, and an event.
pub(super) async fn record(api: &Api, caller: &Caller, method: &Method, path: &str, reason: &str, status: StatusCode) {
    let (id, request_id) = (tenant_of(path), caller.request_id.as_str());
    let (actor, way, status) = (caller.actor.as_str(), caller.way.text(), status.as_u16());
    tracing::info!(actor, %way, %method, path, status, request_id, reason, "a change was asked for");
    let why = if reason.is_empty() { String::new() } else { format!("; reason: {reason}") };
    let detail = format!("{method} {path}: {status}; by {actor} ({way}), request {request_id}{why}");
    // An agent that ends has said it in its log.
    let _ = api.0.desk.ask(Question::Note(id, "admin_change", detail)).await;
}

/// Whom `/api/admin/tenants/ID/…` or `/api/admin/provision/ID` is about.
fn tenant_of(path: &str) -> Option<TenantId> {
    let mut parts = path.strip_prefix("/api/admin/")?.split('/');
    let ("tenants" | "provision", Some(id)) = (parts.next()?, parts.next()) else { return None };
    TenantId::parse(&percent_encoding::percent_decode_str(id).decode_utf8().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_names_its_tenant_and_its_reason() {
        let id = |path| tenant_of(path).map(|id| id.to_string());
        assert_eq!(id("/api/admin/tenants/a%40b.c/suspend").as_deref(), Some("a@b.c"));
        assert_eq!(id("/api/admin/provision/a").as_deref(), Some("a"));
        assert_eq!((id("/api/admin/events/a"), id("/api/admin/tenants/..%2Fx"), id("/x")), (None, None, None));
        assert_eq!(reason(br#"{"reason": "does\nnot pay", "x": 1}"#), "doesnot pay");
        assert_eq!(reason(b"{"), "");
    }
}
