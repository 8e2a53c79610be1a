//! What lets a tenant's user in: tokens and API keys. A key or a token stands in one answer and nowhere else.

use axum::{
    Extension,
    extract::{Path, State},
    response::{IntoResponse as _, Response},
};
use http::StatusCode;
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use utoipa::ToSchema;

use super::{
    Api,
    arrive::Caller,
    change::{Accepted, Came, json},
    document::{DigestText, TenantIdText},
    extract::{self, Id, Reason, Reasoned, Wish, unprocessable},
    problem::Problem,
};
use crate::{
    admin::status::TenantStatus,
    desired::{Tenant, TenantId, parse_digest},
    edit::Change,
    proxy::{
        api_key::{ApiKey, digest_text},
        credentials::{self, CredentialsError},
    },
    store::{rfc3339, unix_now},
};

/// How long a token holds where nothing is said, seconds.
const TTL: u64 = 3_600;
/// The longest: thirty days.
const LONGEST_TTL: u64 = 30 * 86_400;

fn ttl() -> u64 {
    TTL
}

/// JSON has one kind of number: 3600.0 is 3600.
fn whole<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let number = serde_json::Number::deserialize(deserializer)?;
    let is_whole = |number: &f64| number.fract() == 0.0 && (0.0..=LONGEST_TTL as f64).contains(number);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it was looked at just now")]
    let of_float = || number.as_f64().filter(is_whole).map(|number| number as u64);
    number.as_u64().or_else(of_float).ok_or_else(|| D::Error::custom("a whole number is needed"))
}

/// What token.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TokenWish {
    /// How long it is to hold, seconds.
    #[serde(default = "ttl", deserialize_with = "whole")]
    #[schema(minimum = 1, maximum = 2_592_000, default = 3_600)]
    ttl_seconds: u64,
    /// Why, for the record.
    #[serde(default)]
    #[schema(max_length = 256)]
    reason: Option<String>,
}

impl Reasoned for TokenWish {
    fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }
}

/// A token that was just made.
#[derive(Serialize, ToSchema)]
pub(super) struct Token {
    /// For `Authorization: Bearer`.
    token: String,
    /// The tenant.
    sub: String,
    /// Until when it holds, RFC 3339.
    expires_at: String,
}

/// Make a token
///
/// Signed with this host's own secret, or with the first HS256 key of `[[proxy.jwt]]`.
#[utoipa::path(
    post, path = "/api/admin/tenants/{id}/tokens", tag = "credentials", params(("id" = TenantIdText,)), request_body = Option<TokenWish>,
    responses(
        (status = 201, description = "The token, which is shown this once", body = Token),
        (status = 409, description = "This host has no key that signs")
    )
)]
pub(super) async fn mint(
    State(api): State<Api>,
    Id(id): Id,
    Wish(TokenWish { ttl_seconds, .. }): Wish<TokenWish>,
) -> Result<Response, Problem> {
    if !(1..=LONGEST_TTL).contains(&ttl_seconds) {
        return Err(unprocessable(format!("ttl_seconds lies between 1 and {LONGEST_TTL}")));
    }
    // A token that is made in the second in which all others are revoked is not one of them.
    let issued = unix_now().max(tenant(&api, &id)?.tokens_valid_after);
    let (desired, sub) = (api.in_force(), id.clone());
    let minted = tokio::task::spawn_blocking(move || credentials::mint(&desired, &sub, issued, ttl_seconds)).await;
    let token = match minted.map_err(|error| Problem::internal(error.to_string()))? {
        Ok(token) => token,
        Err(error @ CredentialsError::Token(_)) => return Err(Problem::conflict(error.to_string())),
        Err(error) => return Err(Problem::internal(error.to_string())),
    };
    let expires_at = rfc3339(issued + ttl_seconds);
    Ok((StatusCode::CREATED, json(&Token { token, sub: id.to_string(), expires_at })).into_response())
}

/// Revoke all tokens that were issued until now
#[utoipa::path(
    delete, path = "/api/admin/tenants/{id}/tokens", tag = "credentials", params(("id" = TenantIdText,)), request_body = Option<Reason>,
    responses(
        (status = 200, description = "They are refused", body = TenantStatus),
        (status = 202, description = "It stands in tenants.toml, and the rest is to come", body = Accepted),
        (status = 409, description = "tenants.toml cannot be changed as it stands")
    )
)]
pub(super) async fn revoke(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Id(id): Id,
    Wish(Reason { reason }): Wish<Reason>,
) -> Result<Response, Problem> {
    // Times in tokens are whole seconds: of this one, all.
    let at = unix_now() + 1;
    Ok(api.change(Change::RevokeTokens { id, at }, &caller, reason).await?.tenant())
}

/// A tenant's API keys.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ApiKeys {
    /// The SHA-256 of each, as `api_keys` in tenants.toml has it.
    digests: Vec<String>,
}

/// The digests of a tenant's API keys
#[utoipa::path(
    get, path = "/api/admin/tenants/{id}/api-keys", tag = "credentials", params(("id" = TenantIdText,)),
    responses((status = 200, description = "As they are in force", body = ApiKeys))
)]
pub(super) async fn api_keys(State(api): State<Api>, Id(id): Id) -> Result<Response, Problem> {
    Ok(json(&ApiKeys { digests: tenant(&api, &id)?.api_keys.iter().map(digest_text).collect() }))
}

/// An API key that was just made.
#[derive(Serialize, ToSchema)]
pub(super) struct NewApiKey {
    /// For `X-SQ-API-Key`, or `Authorization`.
    api_key: String,
    /// Its SHA-256, which tenants.toml has.
    digest: String,
    /// What is still to come before it is taken; none: it is.
    pending: Option<Accepted>,
}

/// Make an API key
///
/// It holds until it is taken back. Tenants.toml has its SHA-256 alone.
#[utoipa::path(
    post, path = "/api/admin/tenants/{id}/api-keys", tag = "credentials", params(("id" = TenantIdText,)), request_body = Option<Reason>,
    responses(
        (status = 201, description = "The key, which is shown this once, and lets in", body = NewApiKey),
        (status = 202, description = "The key, which is shown this once; that it lets in is to come", body = NewApiKey),
        (status = 409, description = "It has as many keys as it may, or tenants.toml cannot be changed as it stands")
    )
)]
pub(super) async fn make_api_key(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Id(id): Id,
    Wish(Reason { reason }): Wish<Reason>,
) -> Result<Response, Problem> {
    let key = ApiKey::make().map_err(|error| Problem::internal(format!("no random numbers: {error}")))?;
    let digest = parse_digest(&key.digest()).ok_or_else(|| Problem::internal("a digest of ours is none"))?;
    let (status, pending) = match api.change(Change::AddApiKey { id, digest }, &caller, reason).await? {
        Came::Done(_) => (StatusCode::CREATED, None),
        Came::Later(accepted) => (StatusCode::ACCEPTED, Some(accepted)),
    };
    Ok((status, json(&NewApiKey { api_key: key.text().to_owned(), digest: key.digest(), pending })).into_response())
}

/// Take an API key back
#[utoipa::path(
    delete, path = "/api/admin/tenants/{id}/api-keys/{digest}", tag = "credentials", params(("id" = TenantIdText,), ("digest" = DigestText,)),
    request_body = Option<Reason>,
    responses(
        (status = 200, description = "It lets in no more", body = TenantStatus),
        (status = 202, description = "It stands in tenants.toml, and the rest is to come", body = Accepted),
        (status = 409, description = "tenants.toml cannot be changed as it stands")
    )
)]
pub(super) async fn remove_api_key(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Path((id, digest)): Path<(String, String)>,
    Wish(Reason { reason }): Wish<Reason>,
) -> Result<Response, Problem> {
    let id = extract::id(&id)?;
    let digest = parse_digest(&digest).ok_or_else(|| Problem::bad_request("a digest is sha256: and 64 lower-case hex digits"))?;
    if !caller.was_interrupted && !tenant(&api, &id)?.api_keys.contains(&digest) {
        return Err(Problem::new(StatusCode::NOT_FOUND, "no-such-key", "No such API key", format!("{id} has no API key of that digest")));
    }
    Ok(api.change(Change::RemoveApiKey { id, digest }, &caller, reason).await?.tenant())
}

/// What is in force for the tenant.
fn tenant(api: &Api, id: &TenantId) -> Result<Tenant, Problem> {
    let missing = || Problem::of_loop((StatusCode::NOT_FOUND, format!("no tenant {id} on this host")));
    api.in_force().tenants.get(id).cloned().ok_or_else(missing)
}
