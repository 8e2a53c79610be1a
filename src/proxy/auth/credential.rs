//! The one credential of a request, told by its form: a token or an API key.

use http::{HeaderMap, header};

use super::{AuthError, MAX_TOKEN_BYTES};
use crate::proxy::api_key;

/// What existing sq clients send their key in.
const API_KEY_HEADER: &str = "x-sq-api-key";

/// What a request shows.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Credential<'a> {
    /// Something of the letters of a JWT.
    Token(&'a [u8]),
    /// Something of the form of an API key.
    ApiKey(&'a [u8]),
}

impl<'a> Credential<'a> {
    /// The one among `headers`: `Authorization: Bearer TOKEN`, `Authorization: Bearer KEY`, `Authorization: KEY` or `X-SQ-API-Key: KEY`.
    pub(super) fn of(headers: &'a HeaderMap) -> Result<Self, AuthError> {
        let mut authorization = headers.get_all(header::AUTHORIZATION).iter();
        let mut own = headers.get_all(API_KEY_HEADER).iter();
        let (first, own_first) = (authorization.next(), own.next());
        if authorization.next().is_some() || own.next().is_some() {
            return Err(AuthError::Several);
        }
        match (first, own_first) {
            (None, None) => Err(AuthError::Missing),
            (Some(_), Some(_)) => Err(AuthError::Several),
            (None, Some(value)) => Self::api_key(value.as_bytes().trim_ascii()),
            (Some(value), None) => Self::in_authorization(value.as_bytes()),
        }
    }

    fn in_authorization(value: &'a [u8]) -> Result<Self, AuthError> {
        let (is_bearer, rest) = match value.split_at_checked(7) {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case(b"bearer ") => (true, rest),
            // As existing sq clients send a key.
            _ => (false, value),
        };
        let rest = rest.trim_ascii();
        if api_key::may_be_one(rest) {
            return Ok(Self::ApiKey(rest));
        }
        if rest.starts_with(api_key::PREFIX) {
            return Err(AuthError::NotApiKey);
        }
        if !is_bearer {
            return Err(AuthError::NotBearer);
        }
        if rest.len() > MAX_TOKEN_BYTES {
            return Err(AuthError::TooLong);
        }
        // A comma or a space would be a second credential in the same header.
        if rest.is_empty() || !rest.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte)) {
            return Err(AuthError::Malformed);
        }
        Ok(Self::Token(rest))
    }

    fn api_key(text: &'a [u8]) -> Result<Self, AuthError> {
        if api_key::may_be_one(text) { Ok(Self::ApiKey(text)) } else { Err(AuthError::NotApiKey) }
    }
}
