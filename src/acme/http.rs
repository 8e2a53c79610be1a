//! The way to an ACME server: `instant-acme` over this program's own HTTP client.

use std::{error::Error as StdError, fs, future::Future, path::Path, pin::Pin, time::Duration};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use reqwest::{Certificate, Client};

use crate::fetch::{self, whole};

/// For one request. Servers answer within a second, some after a few.
const PATIENCE: Duration = Duration::from_secs(30);

/// Longest answer, bytes: a chain of certificates takes some thousand.
const MAX_ANSWER: usize = 1 << 20;

/// See the file's description.
pub(super) struct Http(Client);

/// No way to any server.
#[derive(Debug, thiserror::Error)]
pub(super) enum HttpError {
    /// The authority that tenants.toml names.
    #[error("`ca_file` {0}: {1}")]
    Authority(String, String),
    /// The client itself.
    #[error("no HTTP client: {0}")]
    Client(String),
}

impl Http {
    /// `ca_file` is trusted beside what the host trusts.
    pub(super) fn new(ca_file: Option<&Path>) -> Result<Self, HttpError> {
        let mut builder = fetch::client(PATIENCE);
        if let Some(path) = ca_file {
            let bad = |error: &(dyn StdError + 'static)| HttpError::Authority(path.display().to_string(), whole(error));
            let pem = fs::read(path).map_err(|error| bad(&error))?;
            for authority in Certificate::from_pem_bundle(&pem).map_err(|error| bad(&error))? {
                builder = builder.add_root_certificate(authority);
            }
        }
        builder.build().map(Self).map_err(|error| HttpError::Client(whole(&error)))
    }
}

impl HttpClient for Http {
    fn request(&self, request: Request<BodyWrapper<Bytes>>) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let client = self.0.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let Ok(body) = body.collect().await;
            let request = Request::from_parts(parts, body.to_bytes()).try_into().map_err(other)?;
            let mut response = client.execute(request).await.map_err(other)?;
            let mut answer = http::Response::new(());
            *answer.status_mut() = response.status();
            *answer.headers_mut() = std::mem::take(response.headers_mut());
            let body = fetch::body(&mut response, MAX_ANSWER).await.map_err(other)?.ok_or(Error::Str("an answer of sane length"))?;
            Ok(BytesResponse::from(answer.map(|()| Full::new(Bytes::from(body)))))
        })
    }
}

fn other(error: reqwest::Error) -> Error {
    // The address may hold nothing secret: what is asked for stands in the body.
    Error::Other(whole(&error).into())
}
