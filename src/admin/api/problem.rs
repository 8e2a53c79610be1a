//! Every refusal of the admin API: `application/problem+json` (RFC 9457), with the names that the proxy gives to the same things.

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use utoipa::ToSchema;

/// Why something was not done. Texts go to the caller: none holds a key or a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::admin) struct Problem {
    pub(in crate::admin) status: StatusCode,
    /// Names the kind of problem for programs; never changes.
    pub(super) slug: &'static str,
    pub(in crate::admin) title: &'static str,
    pub(in crate::admin) detail: String,
    /// Seconds.
    pub(in crate::admin) retry_after: Option<u64>,
}

/// The body.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub(super) struct Document<'a> {
    /// Names the kind of problem for programs: `urn:sq-agent:problem:` and a word.
    r#type: String,
    /// The same for people.
    title: &'a str,
    /// As the answer's.
    #[schema(minimum = 400, maximum = 599)]
    status: u16,
    /// What is wrong with this request, and what to do.
    detail: &'a str,
    /// As in the header `X-Request-ID`, and in the agent's log.
    request_id: &'a str,
}

impl Problem {
    pub(in crate::admin) fn new(status: StatusCode, slug: &'static str, title: &'static str, detail: impl Into<String>) -> Self {
        Self { status, slug, title, detail: detail.into(), retry_after: None }
    }

    pub(in crate::admin) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad-request", "Malformed request", detail)
    }

    pub(super) fn unauthorized(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", "No valid credential", detail)
    }

    pub(super) fn misdirected(host: &str) -> Self {
        let detail = format!("this address answers to its own names alone, not to {host:?}: write it into `hosts` under [admin]");
        Self::new(StatusCode::MISDIRECTED_REQUEST, "misdirected", "Not a name of this host", detail)
    }

    pub(super) fn rate_limited(retry_after: u64) -> Self {
        let detail = "more requests than `rate` and `burst` under [admin] allow";
        Self { retry_after: Some(retry_after), ..Self::new(StatusCode::TOO_MANY_REQUESTS, "rate-limited", "Too many requests", detail) }
    }

    pub(super) fn body_too_large(limit: usize) -> Self {
        let detail = format!("the request body is larger than {limit} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", "Body too large", detail)
    }

    pub(super) fn not_json() -> Self {
        let detail = "a body is taken as JSON alone: say Content-Type: application/json";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "not-json", "Not JSON", detail)
    }

    pub(super) fn conflict(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict", "Not as things stand", detail)
    }

    pub(in crate::admin) fn internal(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "The agent could not do it", detail)
    }

    /// The agent makes way for another one, or ends.
    pub(in crate::admin) fn stopping() -> Self {
        let detail = "the agent is stopping, or makes way for a new one: try again";
        Self { retry_after: Some(1), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", "The agent is stopping", detail) }
    }

    /// What nobody said anything better about: a route or method that is not there.
    pub(in crate::admin) fn of_status(status: StatusCode) -> Self {
        match status {
            StatusCode::NOT_FOUND => Self::new(status, "not-found", "Not found", "there is nothing here: see /api/openapi.json"),
            StatusCode::METHOD_NOT_ALLOWED => {
                Self::new(status, "method-not-allowed", "Method not allowed", "see the header Allow, and /api/openapi.json")
            }
            _ => Self::new(status, "refused", status.canonical_reason().unwrap_or("Refused"), "the request was refused"),
        }
    }

    /// What the loop said no to.
    pub(super) fn of_loop((status, detail): (StatusCode, String)) -> Self {
        match status {
            StatusCode::NOT_FOUND => Self::new(status, "no-such-tenant", "No such tenant", detail),
            StatusCode::CONFLICT => Self::conflict(detail),
            StatusCode::SERVICE_UNAVAILABLE => Self::stopping(),
            StatusCode::BAD_REQUEST => Self::bad_request(detail),
            _ => Self::new(status, "internal", "The agent could not do it", detail),
        }
    }

    /// The whole answer to the request of this id.
    pub(super) fn respond(&self, request_id: &str) -> Response {
        let document = Document {
            r#type: format!("urn:sq-agent:problem:{}", self.slug),
            title: self.title,
            status: self.status.as_u16(),
            detail: &self.detail,
            request_id,
        };
        // A struct of strings and a number always serializes.
        let mut response = Response::new(Body::from(serde_json::to_vec(&document).unwrap_or_default()));
        *response.status_mut() = self.status;
        let fields = response.headers_mut();
        fields.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = self.retry_after {
            fields.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            fields.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("ApiKey realm=\"sq-agent\", header=\"X-Admin-API-Key\""));
        }
        response
    }
}

impl IntoResponse for Problem {
    /// Without a body: the request's id is added where it is known.
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_problem_is_a_whole_document() {
        let problem = Problem::rate_limited(7);
        let response = problem.respond("r-1");
        assert_eq!((response.status(), response.headers()[header::RETRY_AFTER].as_bytes()), (StatusCode::TOO_MANY_REQUESTS, &b"7"[..]));
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
        let body = axum::body::to_bytes(response.into_body(), 4_096).await.unwrap();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!((&body["type"], &body["status"]), (&"urn:sq-agent:problem:rate-limited".into(), &429.into()));
        assert_eq!(body["request_id"], "r-1");
        assert!(body["title"].is_string() && body["detail"].is_string());
    }
}
