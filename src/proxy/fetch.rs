//! One GET of the agent at an address that tenants.toml names. What answers there is not trusted: no redirect is followed, no long answer read.

use std::{error::Error, time::Duration};

use reqwest::{Client, StatusCode, redirect::Policy};

/// For all of it: name, connection, TLS, answer.
const LIMIT: Duration = Duration::from_secs(5);

/// Why nothing came.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("no answer within {} s", LIMIT.as_secs())]
    Late,
    #[error("it sends elsewhere ({0}), which is not followed: write the address where the keys are")]
    Redirect(StatusCode),
    #[error("it answered {0}")]
    Status(StatusCode),
    #[error("its answer is longer than {} KiB", .0 >> 10)]
    TooLong(usize),
    #[error("it cannot be fetched: {0}")]
    Failed(String),
}

impl From<reqwest::Error> for FetchError {
    fn from(error: reqwest::Error) -> Self {
        if error.is_timeout() {
            return Self::Late;
        }
        // The outermost only says that it failed.
        let mut causes = Vec::new();
        let mut cause = error.source();
        while let Some(error) = cause {
            causes.push(error.to_string());
            cause = error.source();
        }
        Self::Failed(if causes.is_empty() { error.without_url().to_string() } else { causes.join(": ") })
    }
}

/// The body that `url` answers with, at most `max` bytes.
pub(crate) async fn get(url: &str, max: usize) -> Result<Vec<u8>, FetchError> {
    // A client a time: it reads the host's certificate authorities as they are now, and keeps no connection.
    let client = Client::builder()
        .https_only(true)
        .redirect(Policy::none())
        .timeout(LIMIT)
        .user_agent(concat!("sq-agent/", env!("CARGO_PKG_VERSION")))
        .build()?;
    let mut response = client.get(url).header("accept", "application/jwk-set+json, application/json").send().await?;
    match response.status() {
        StatusCode::OK => {}
        status if status.is_redirection() => return Err(FetchError::Redirect(status)),
        status => return Err(FetchError::Status(status)),
    }
    if response.content_length().is_some_and(|length| length > max as u64) {
        return Err(FetchError::TooLong(max));
    }
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await? {
        if body.len() + piece.len() > max {
            return Err(FetchError::TooLong(max));
        }
        body.extend_from_slice(&piece);
    }
    Ok(body)
}
