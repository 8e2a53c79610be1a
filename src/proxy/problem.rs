//! Every refusal the proxy can give, and its answer: `application/problem+json` (RFC 9457). Pure.

use std::time::{Duration, UNIX_EPOCH};

use http::{HeaderValue, Response, StatusCode, header};
use serde::Serialize;

use super::{auth::AuthError, head::BadHead, headers, quota, request_id::RequestId, webhook::NotTaken};
use crate::{guard::BadName, route::RouteState};

/// Why a request is not answered by sq. Texts go to the caller: none holds a token, a key or another tenant's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Problem {
    /// The head is not one that everybody reads alike.
    BadHead(BadHead),
    /// No valid credential.
    Unauthorized(AuthError),
    /// The credential is good, its `sub` has no row.
    NoSuchTenant,
    /// The operator suspended the tenant.
    Suspended,
    /// GCRA said no.
    RateLimited { retry_after_ns: u64 },
    /// The tenant's requests of the day are used. `at`: when the next day begins, seconds since 1970, which is in `resets_in` seconds.
    QuotaUsed { quota: u32, at: u64, resets_in: u64 },
    /// The tenant's phexts take more than its `storage_max`, bytes, and this may make more.
    StorageQuota { used: u64, limit: u64 },
    /// The disk is nearly full, and this may make more.
    DiskLow,
    /// The body is larger than the tenant's `body_max`.
    BodyTooLarge { limit: u64 },
    /// The body came too slowly.
    BodyTooSlow,
    /// The body ended before its announced end, or its framing is broken.
    BodyCut,
    /// HEAD, PUT and all others.
    MethodNotAllowed,
    /// `/favicon.ico`.
    NoFavicon,
    /// The tenant's queue is full.
    QueueFull,
    /// The turn did not come in time.
    QueueTimeout,
    /// The instance did not become ready in time.
    NotReady(RouteState),
    /// As many requests of the tenant as are allowed wait for its instance already.
    ParkFull(RouteState),
    /// As many requests of all tenants as are allowed wait already.
    HostFull,
    /// As much memory as is allowed is in use by bodies.
    OutOfBodyMemory,
    /// The route table changed under every try to read it.
    TableBusy,
    /// sq closed the connection without an answer, or answered something that is not HTTP.
    BadAnswer,
    /// sq did not answer in time.
    UpstreamTimeout,
    /// A write to a phext that sq would lose without a word.
    BadName(BadName),
    /// sq would need more memory for a write than its tenant has; bytes.
    NoMemory { needs: u64, limit: u64 },
    /// The disk has no room for a write.
    NoRoom,
    /// sq could not write, and what it left was put back.
    NotStored,
    /// sq died over a write, or did not answer: what it left is put back.
    NotApplied,
    /// The tenant's files cannot be guarded.
    Files,
    /// Nobody guards the tenants' files.
    NoGuard,
    /// What came as a webhook is not taken.
    Webhook(NotTaken),
}

/// What the answer says.
struct Text {
    status: StatusCode,
    /// Names the kind of problem for programs; never changes.
    slug: &'static str,
    title: &'static str,
    detail: String,
    retry_after: Option<u64>,
}

#[derive(Serialize)]
struct Body<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    detail: &'a str,
    request_id: &'a str,
}

impl Problem {
    /// A short fixed name, also for the access log.
    pub(crate) fn slug(&self) -> &'static str {
        self.text().slug
    }

    /// Whether the rest of the request's body is not worth waiting for.
    pub(crate) fn breaks_body(&self) -> bool {
        matches!(self, Self::BodyTooSlow | Self::BodyCut)
    }

    fn text(&self) -> Text {
        let text = |status, slug, title, detail: &str, retry_after| Text { status, slug, title, detail: detail.to_owned(), retry_after };
        match *self {
            Self::BadHead(why) => {
                let (status, slug, title) = why.names();
                text(status, slug, title, &why.to_string(), None)
            }
            Self::Unauthorized(why) => text(StatusCode::UNAUTHORIZED, "unauthorized", "No valid credential", &why.to_string(), None),
            Self::NoSuchTenant => {
                let detail = "the token is valid, but its sub is not a tenant of this server";
                text(StatusCode::FORBIDDEN, "no-such-tenant", "No such tenant", detail, None)
            }
            Self::Suspended => {
                let detail = "this tenant is suspended; its data is kept; ask the operator";
                text(StatusCode::FORBIDDEN, "suspended", "Tenant suspended", detail, None)
            }
            Self::RateLimited { retry_after_ns } => {
                let detail = "more requests than the tenant's rate and burst allow; see RateLimit-Policy";
                let wait = quota::whole_seconds(retry_after_ns);
                text(StatusCode::TOO_MANY_REQUESTS, "rate-limited", "Too many requests", detail, Some(wait))
            }
            Self::QuotaUsed { quota, at, resets_in } => {
                let next = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(at));
                let detail = format!("the tenant's {quota} requests of today are used; the next day begins at {next}");
                text(StatusCode::TOO_MANY_REQUESTS, "quota-used", "Quota of the day is used", &detail, Some(resets_in))
            }
            Self::StorageQuota { used, limit } => {
                let detail = format!(
                    "the tenant's phexts take {used} bytes and may take {limit}; nothing was stored: reading, deleting and writing less over more go on, and the rest does soon after there is room"
                );
                text(StatusCode::INSUFFICIENT_STORAGE, "storage-quota", "Storage quota is used", &detail, None)
            }
            Self::DiskLow => {
                let detail = "the host's disk is nearly full; nothing was stored: reading, deleting and writing less over more go on";
                text(StatusCode::INSUFFICIENT_STORAGE, "disk-low", "The disk is nearly full", detail, None)
            }
            Self::BodyTooLarge { limit } => {
                let detail = format!("the request body is larger than the tenant's limit of {limit} bytes");
                text(StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", "Body too large", &detail, None)
            }
            Self::BodyTooSlow => {
                let detail = "the request body came too slowly; nothing of it was stored";
                text(StatusCode::REQUEST_TIMEOUT, "body-too-slow", "Body too slow", detail, None)
            }
            Self::BodyCut => {
                let detail = "the request body ended before its end; nothing of it was stored";
                text(StatusCode::BAD_REQUEST, "body-cut", "Body cut short", detail, None)
            }
            Self::MethodNotAllowed => {
                let detail = "only GET, POST and OPTIONS are served";
                text(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "Method not allowed", detail, None)
            }
            Self::BadName(why) => text(StatusCode::BAD_REQUEST, "bad-phext-name", "No name for a phext", &why.to_string(), None),
            Self::NoMemory { needs, limit } => {
                let (needs, limit) = (needs.div_ceil(1 << 20), limit >> 20);
                let detail = format!(
                    "with a phext of this size the request would take {needs} MB of memory, and the tenant has {limit} MB; nothing was stored: send a smaller body, or spread the text over several phexts"
                );
                text(StatusCode::PAYLOAD_TOO_LARGE, "too-much-memory", "Too large for the tenant's memory", &detail, None)
            }
            Self::NoRoom => {
                let detail = "the disk has no room for this write; nothing was stored, and the text is as it was";
                text(StatusCode::INSUFFICIENT_STORAGE, "no-room", "No room on the disk", detail, None)
            }
            Self::NotStored => {
                let detail = "the disk did not take this write; nothing of it was applied, and the text is as it was";
                text(StatusCode::INSUFFICIENT_STORAGE, "not-stored", "Not stored", detail, None)
            }
            Self::Webhook(why) => {
                let (status, slug, title, detail) = why.names();
                text(status, slug, title, detail, why.retry_after_ns().map(quota::whole_seconds))
            }
            Self::NoFavicon => text(StatusCode::NOT_FOUND, "not-found", "Not found", "there is no icon here", None),
            other => other.unavailable(),
        }
    }

    /// The answers that ask to come again, and those that blame sq.
    fn unavailable(self) -> Text {
        let busy = |slug, title, detail: String, retry_after| Text {
            status: StatusCode::SERVICE_UNAVAILABLE,
            slug,
            title,
            detail,
            retry_after: Some(retry_after),
        };
        match self {
            Self::QueueTimeout => busy("queue-timeout", "Waited too long", "the tenant's earlier requests took too long".into(), 1),
            Self::NotReady(state) => busy(
                "not-ready",
                "Instance not ready",
                format!("the tenant's instance is {} and did not become ready in time", name(state)),
                5,
            ),
            Self::ParkFull(state) => {
                let detail = format!("the tenant's instance is {} and too many requests wait for it", name(state));
                busy("not-ready", "Instance not ready", detail, 5)
            }
            Self::HostFull => {
                busy("host-full", "Too many requests wait", "too many requests wait for their instances on this host".into(), 5)
            }
            Self::OutOfBodyMemory => busy(
                "out-of-memory",
                "Too many uploads",
                "as many uploads are under way as this tenant, or this host, has memory for".into(),
                2,
            ),
            Self::TableBusy => busy("table-busy", "Routes are changing", "the route table kept changing while it was read".into(), 1),
            Self::NotApplied => {
                let detail = "the tenant's instance died over this write, or did not answer it; nothing of it was applied, so it is safe to send it again";
                busy("not-applied", "Not applied", detail.into(), 1)
            }
            Self::Files => {
                busy("storage-trouble", "The tenant's files are in trouble", "nothing was stored; the operator's log says why".into(), 30)
            }
            Self::NoGuard => busy("no-guard", "No writes at the moment", "nothing was stored; reading goes on".into(), 1),
            Self::BadAnswer => Text {
                status: StatusCode::BAD_GATEWAY,
                slug: "bad-answer",
                title: "No answer from the instance",
                detail: "the tenant's instance broke off; whether a write took effect is not known, so look before you repeat it".into(),
                retry_after: None,
            },
            Self::UpstreamTimeout => Text {
                status: StatusCode::GATEWAY_TIMEOUT,
                slug: "upstream-timeout",
                title: "The instance did not answer in time",
                detail: "the tenant's instance did not answer in time; whether a write took effect is not known".into(),
                retry_after: None,
            },
            _ => busy("queue-full", "Too many requests at once", "the tenant's queue is full; send fewer requests at once".into(), 1),
        }
    }

    /// The answer, its body as bytes.
    pub(crate) fn response(&self, id: &RequestId) -> Response<Vec<u8>> {
        let text = self.text();
        let body = Body {
            r#type: format!("urn:sq-agent:problem:{}", text.slug),
            title: text.title,
            status: text.status.as_u16(),
            detail: &text.detail,
            request_id: id.as_str(),
        };
        // A struct of strings and a number always serializes.
        let mut response = Response::new(serde_json::to_vec(&body).unwrap_or_default());
        *response.status_mut() = text.status;
        let fields = response.headers_mut();
        headers::every_answer(fields, id);
        fields.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        fields.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(seconds) = text.retry_after {
            quota::retry_after(fields, seconds);
        }
        match self {
            Self::Unauthorized(why) => {
                fields.insert(header::WWW_AUTHENTICATE, challenge(*why));
            }
            Self::MethodNotAllowed => {
                fields.insert(header::ALLOW, HeaderValue::from_static("GET, POST, OPTIONS"));
            }
            Self::Webhook(NotTaken::Method) => {
                fields.insert(header::ALLOW, HeaderValue::from_static("POST"));
            }
            _ => {}
        }
        response
    }
}

/// RFC 6750 section 3.1: a request without any credential gets no error code.
fn challenge(why: AuthError) -> HeaderValue {
    HeaderValue::from_static(match why {
        AuthError::Missing => "Bearer realm=\"sq\"",
        AuthError::Several | AuthError::NotBearer | AuthError::NotApiKey => "Bearer realm=\"sq\", error=\"invalid_request\"",
        _ => "Bearer realm=\"sq\", error=\"invalid_token\"",
    })
}

fn name(state: RouteState) -> &'static str {
    match state {
        RouteState::Starting => "starting",
        RouteState::Ready => "not answering",
        RouteState::Draining => "draining",
        RouteState::Stopped => "stopped",
        RouteState::Suspended => "suspended",
        RouteState::Crashed => "crashed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Problem> {
        vec![
            Problem::BadHead(BadHead::Malformed),
            Problem::BadHead(BadHead::UnknownCoding),
            Problem::BadHead(BadHead::TooLong),
            Problem::Unauthorized(AuthError::Missing),
            Problem::NoSuchTenant,
            Problem::Suspended,
            Problem::RateLimited { retry_after_ns: 600_000_000 },
            Problem::QuotaUsed { quota: 7, at: 1_795_651_200, resets_in: 30 },
            Problem::StorageQuota { used: 3, limit: 2 },
            Problem::DiskLow,
            Problem::BodyTooLarge { limit: 1 << 20 },
            Problem::BodyTooSlow,
            Problem::BodyCut,
            Problem::MethodNotAllowed,
            Problem::NoFavicon,
            Problem::QueueFull,
            Problem::QueueTimeout,
            Problem::NotReady(RouteState::Starting),
            Problem::ParkFull(RouteState::Crashed),
            Problem::HostFull,
            Problem::OutOfBodyMemory,
            Problem::TableBusy,
            Problem::BadAnswer,
            Problem::UpstreamTimeout,
            Problem::NoMemory { needs: 2 << 20, limit: 1 << 20 },
            Problem::NoRoom,
            Problem::NotStored,
            Problem::NotApplied,
            Problem::Files,
            Problem::NoGuard,
            Problem::Webhook(NotTaken::Method),
            Problem::Webhook(NotTaken::Unsigned),
            Problem::Webhook(NotTaken::WrongSignature),
            Problem::Webhook(NotTaken::TooOften { retry_after_ns: 1 }),
            Problem::Webhook(NotTaken::Busy),
            Problem::Webhook(NotTaken::TooLarge),
        ]
    }

    #[test]
    fn every_refusal_is_a_whole_problem_document() {
        for problem in all() {
            let response = problem.response(&RequestId::of_client(b"r-1").unwrap());
            let body: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
            assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
            assert_eq!(response.headers()["access-control-allow-origin"], "*");
            assert_eq!(response.headers()["x-request-id"], "r-1");
            assert_eq!(body["request_id"], "r-1");
            assert_eq!(body["status"], response.status().as_u16());
            assert_eq!(body["type"], format!("urn:sq-agent:problem:{}", problem.slug()));
            assert!(body["title"].as_str().is_some_and(|text| !text.is_empty()), "{problem:?}");
            assert!(body["detail"].as_str().is_some_and(|text| !text.is_empty()), "{problem:?}");
        }
    }

    #[test]
    fn every_refusal_has_a_place_on_the_page_of_metrics() {
        use crate::route::{OTHER_REASONS, TENANT_REASONS};
        for problem in all() {
            assert!(TENANT_REASONS.contains(&problem.slug()) || OTHER_REASONS.contains(&problem.slug()), "{problem:?}");
        }
    }

    #[test]
    fn a_refusal_that_passes_says_when_to_come_again() {
        for problem in all() {
            let response = problem.response(&RequestId::of_client(b"r").unwrap());
            let again = matches!(response.status().as_u16(), 429 | 503);
            assert_eq!(response.headers().contains_key(header::RETRY_AFTER), again, "{problem:?}");
        }
        let early = Problem::RateLimited { retry_after_ns: 600_000_000 }.response(&RequestId::of_client(b"r").unwrap());
        assert_eq!(early.headers()[header::RETRY_AFTER], "1");
        let tomorrow = Problem::QuotaUsed { quota: 7, at: 1_795_651_200, resets_in: 30 }.response(&RequestId::of_client(b"r").unwrap());
        assert_eq!(tomorrow.headers()[header::RETRY_AFTER], "30");
        assert!(String::from_utf8_lossy(tomorrow.body()).contains("2026-11-26T00:00:00Z"), "{tomorrow:?}");
    }

    #[test]
    fn an_unauthorized_request_is_told_how_to_authenticate() {
        let challenge =
            |why| Problem::Unauthorized(why).response(&RequestId::of_client(b"r").unwrap()).headers()[header::WWW_AUTHENTICATE].clone();
        assert_eq!(challenge(AuthError::Missing), "Bearer realm=\"sq\"");
        assert_eq!(challenge(AuthError::Expired), "Bearer realm=\"sq\", error=\"invalid_token\"");
    }
}
