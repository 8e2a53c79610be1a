//! One certificate, from the account to the chain.

use std::{future::Future, time::Duration};

use instant_acme::{
    Account, AuthorizationStatus, ChallengeHandle, ChallengeType, Error, ExternalAccountKey, Identifier, NewAccount, NewOrder, Order,
    OrderStatus, RetryPolicy,
};
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};

use super::{
    files::Files,
    http::{Http, HttpError},
};
use crate::{
    desired::{self, Acme},
    fetch::whole,
    proxy::{
        credentials::{CredentialsError, read_secret},
        fits,
        front::Challenge,
    },
    secret::Secret,
};

/// For the server to look at our ports, and then to sign. Let's Encrypt takes seconds for either.
const PATIENCE: RetryPolicy = RetryPolicy::new().initial_delay(Duration::from_millis(250)).timeout(Duration::from_secs(120));

/// So often something is asked for in all, where the server takes none of its own nonces.
pub(super) const TRIES: usize = 5;

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub(super) enum AcmeError {
    /// No way to any server.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// What the server said, or that it could not be reached.
    #[error("{0}")]
    Server(String),
    /// The server knows none of the nonces it gave, as one does that was just restarted: asking anew helps.
    #[error("the ACME server does not know its own nonces: {0}")]
    Nonces(String),
    /// The server could not see that the name is ours.
    #[error("{name} is not proved to lead to this host: {why}; its address must be this host's, and {port} must be open to the world")]
    NotProved {
        /// The name.
        name: String,
        /// What the server saw.
        why: String,
        /// By which way it came.
        port: &'static str,
    },
    /// It does not offer the kind of proof that tenants.toml asks for.
    #[error("the server does not offer {0} for {1}; another `challenge` under [proxy.acme] may do")]
    NotOffered(&'static str, String),
    /// The proxy did not take over what the server is to look for.
    #[error("the proxy did not show the challenge in time; see proxy.log")]
    NotShown,
    /// The external account's key.
    #[error("`eab_key_file`: {0}")]
    External(String),
    /// What the server gave is no certificate for the key it was asked for.
    #[error("the server's certificate cannot be served with: {0}")]
    Unusable(String),
    /// A file of ours.
    #[error(transparent)]
    File(#[from] CredentialsError),
    /// A key or a challenge that could not be made.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
}

impl From<Error> for AcmeError {
    fn from(error: Error) -> Self {
        if is(&error, "badNonce") { Self::Nonces(whole(&error)) } else { Self::Server(format!("the ACME server: {}", whole(&error))) }
    }
}

/// Whether the server says this (RFC 8555, 6.7).
fn is(error: &Error, kind: &str) -> bool {
    let said = if let Error::Api(problem) = error { problem.r#type.as_deref() } else { None };
    said.and_then(|said| said.strip_prefix("urn:ietf:params:acme:error:")) == Some(kind)
}

/// Asks for a certificate and keeps it. `offer` shows what it is given to whoever comes to look, and returns once it does.
pub(super) async fn obtain<F>(acme: &Acme, files: &Files, offer: impl FnMut(Challenge) -> F) -> Result<(), AcmeError>
where
    F: Future<Output = Result<(), AcmeError>>,
{
    let names: Vec<_> = acme.domains.iter().cloned().map(Identifier::Dns).collect();
    let mut order = begin(acme, files, &names).await?;
    let (kind, word, port) = match acme.challenge {
        desired::Challenge::TlsAlpn01 => (ChallengeType::TlsAlpn01, "tls-alpn-01", "port 443"),
        desired::Challenge::Http01 => (ChallengeType::Http01, "http-01", "port 80"),
    };
    match prove(&mut order, &kind, word, offer).await {
        Err(error @ AcmeError::Server(_)) => return Err(why_not(&mut order, &kind, port).await.unwrap_or(error)),
        outcome => outcome?,
    }
    let key_pem = order.finalize().await?;
    let chain_pem = order.poll_certificate(&PATIENCE).await?;
    fits(chain_pem.as_bytes(), &Secret::new(key_pem.as_bytes())).map_err(AcmeError::Unusable)?;
    Ok(files.keep_certificate(&chain_pem, &key_pem)?)
}

/// Shows for each name what the server is to look for, and waits until it has seen it.
async fn prove<F>(
    order: &mut Order,
    kind: &ChallengeType,
    word: &'static str,
    mut offer: impl FnMut(Challenge) -> F,
) -> Result<(), AcmeError>
where
    F: Future<Output = Result<(), AcmeError>>,
{
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        if authorization.status == AuthorizationStatus::Valid {
            continue;
        }
        let name = authorization.identifier().to_string();
        let Some(mut challenge) = authorization.challenge(kind.clone()) else {
            return Err(AcmeError::NotOffered(word, name));
        };
        offer(proof(&challenge, &name)?).await?;
        // A quick server's answer says already what it did not see.
        challenge.set_ready().await?;
    }
    match order.poll_ready(&PATIENCE).await? {
        OrderStatus::Ready => Ok(()),
        status => Err(AcmeError::Server(format!("the ACME server: the order is {status:?}"))),
    }
}

/// A new order. An account that the server knows no more (it is another one by now, or began anew) is replaced.
async fn begin(acme: &Acme, files: &Files, names: &[Identifier]) -> Result<Order, AcmeError> {
    let order = NewOrder::new(names);
    if let Some(credentials) = files.account() {
        let account = Account::builder_with_http(Box::new(Http::new(acme.ca_file.as_deref())?)).from_credentials(credentials).await?;
        match account.new_order(&order).await {
            Err(error) if is(&error, "accountDoesNotExist") => {
                tracing::warn!("the ACME server does not know the account; another one is made");
                files.forget_account();
            }
            begun => return Ok(begun?),
        }
    }
    let contact: Vec<_> = acme.contact.iter().map(|address| format!("mailto:{address}")).collect();
    let contact: Vec<&str> = contact.iter().map(String::as_str).collect();
    let new = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
    let external = external(acme)?;
    let builder = Account::builder_with_http(Box::new(Http::new(acme.ca_file.as_deref())?));
    let (account, credentials) = builder.create(&new, acme.directory.clone(), external.as_ref()).await?;
    files.keep_account(&credentials)?;
    Ok(account.new_order(&order).await?)
}

fn external(acme: &Acme) -> Result<Option<ExternalAccountKey>, AcmeError> {
    let Some((kid, path)) = &acme.eab else { return Ok(None) };
    let text = read_secret(path).map_err(|error| AcmeError::External(error.to_string()))?;
    let key = base64url(String::from_utf8_lossy(text.expose()).trim())
        .ok_or_else(|| AcmeError::External(format!("{} holds no base64url", path.display())))?;
    Ok(Some(ExternalAccountKey::new(kid.clone(), &key)))
}

/// As servers give such keys, with padding or without.
fn base64url(text: &str) -> Option<Vec<u8>> {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok().filter(|key| !key.is_empty())
}

/// What the server will look for.
fn proof(challenge: &ChallengeHandle<'_>, name: &str) -> Result<Challenge, AcmeError> {
    let authorization = challenge.key_authorization();
    if challenge.r#type == ChallengeType::Http01 {
        return Ok(Challenge::Text { token: challenge.token.clone(), answer: authorization.as_str().to_owned() });
    }
    let mut params = CertificateParams::new([name.to_owned()])?;
    params.distinguished_name = DistinguishedName::new();
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(authorization.digest().as_ref())];
    let key = KeyPair::generate()?;
    let cert_pem = params.self_signed(&key)?.pem().into_bytes();
    Ok(Challenge::Certificate { name: name.to_ascii_lowercase(), cert_pem, key_pem: Secret::new(key.serialize_pem()) })
}

/// Which name the server could not see, and why: an order only says that it failed.
async fn why_not(order: &mut Order, kind: &ChallengeType, port: &'static str) -> Option<AcmeError> {
    for _ in 0..TRIES {
        match failed_challenge(order, kind, port).await {
            Ok(why) => return why,
            Err(error) if is(&error, "badNonce") => {}
            Err(_) => return None,
        }
    }
    None
}

async fn failed_challenge(order: &mut Order, kind: &ChallengeType, port: &'static str) -> Result<Option<AcmeError>, Error> {
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        let state = authorization.refresh().await?;
        let challenge = state.challenges.iter().find(|challenge| challenge.r#type == *kind);
        if let Some(problem) = challenge.and_then(|challenge| challenge.error.as_ref()) {
            return Ok(Some(AcmeError::NotProved { name: state.identifier().to_string(), why: problem.to_string(), port }));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_an_external_account_is_read_as_servers_write_it() {
        assert_eq!(base64url("_-8="), Some(vec![0xff, 0xef]));
        assert_eq!(base64url("_-8"), Some(vec![0xff, 0xef]));
        assert_eq!(base64url(""), None);
        assert_eq!(base64url("not base64!"), None);
    }
}
