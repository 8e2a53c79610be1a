//! What the agent asks of servers that tenants.toml names. What answers there is not trusted: no redirect is followed, no long answer read.

use std::{error::Error, fmt::Write as _, time::Duration};

use reqwest::{Client, ClientBuilder, Response, StatusCode, redirect::Policy};

/// For all of one GET: name, connection, TLS, answer.
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
        let causes = error.source().map(whole);
        Self::Failed(causes.unwrap_or_else(|| error.without_url().to_string()))
    }
}

/// The body that `url` answers with, at most `max` bytes.
pub(crate) async fn get(url: &str, max: usize) -> Result<Vec<u8>, FetchError> {
    // A client a time: it reads the host's certificate authorities as they are now, and keeps no connection.
    let client = client(LIMIT).build()?;
    let mut response = client.get(url).header("accept", "application/jwk-set+json, application/json").send().await?;
    match response.status() {
        StatusCode::OK => {}
        status if status.is_redirection() => return Err(FetchError::Redirect(status)),
        status => return Err(FetchError::Status(status)),
    }
    if response.content_length().is_some_and(|length| length > max as u64) {
        return Err(FetchError::TooLong(max));
    }
    body(&mut response, max).await?.ok_or(FetchError::TooLong(max))
}

/// A client of this agent, with so long for each request.
pub(crate) fn client(limit: Duration) -> ClientBuilder {
    let builder = Client::builder().https_only(true).redirect(Policy::none()).timeout(limit);
    builder.user_agent(concat!("sq-agent/", env!("CARGO_PKG_VERSION")))
}

/// The body of `response`; `None` where it is longer than `max` bytes.
pub(crate) async fn body(response: &mut Response, max: usize) -> reqwest::Result<Option<Vec<u8>>> {
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await? {
        if body.len() + piece.len() > max {
            return Ok(None);
        }
        body.extend_from_slice(&piece);
    }
    Ok(Some(body))
}

/// An error with its causes: the outer one alone says little ("error sending request").
pub(crate) fn whole(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Writing into a String cannot fail.
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}
