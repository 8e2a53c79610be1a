//! A push is told here: a forge's webhook makes the agent look at its repository at once, instead of within `[gitops] interval`.
//!
//! Nothing of what a forge says is believed but that it knows the secret. What was pushed, the agent finds out by itself, so that any event, a ping
//! among them, does no more than a look. The body is only digested as it comes, never kept. Who does not know the secret may try a few times a
//! minute; a forge that shares its address with such a one is answered 429 meanwhile, and its push is found by the interval.

use std::{net::IpAddr, sync::Arc, time::Duration};

use aws_lc_rs::{constant_time::verify_slices_are_equal, hmac};
use http::{HeaderMap, Method, Response, StatusCode, request::Parts};
use hyper::body::{Body, Incoming};
use quick_cache::sync::Cache;
use tokio::{
    sync::{Notify, Semaphore},
    time::timeout,
};

use super::{clock, headers, neighbours::household, problem::Problem, request_id::RequestId, upload};
use crate::{
    digest::{sha256, unhex},
    route::{Admission, decide},
    secret::Secret,
};

/// Where webhooks come, while tenants.toml names a secret for them. sq knows `/api/v2/…` and no path that begins with a dot.
pub(crate) const PATH: &str = "/.sq-agent/gitops";

/// Longest body, bytes: GitHub sends none above 25 MB.
const MAX_BODY: u64 = 25 << 20;
/// For all of a body. GitHub gives up after 10 s.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many are taken at once.
const AT_ONCE: usize = 32;
/// An address has so many tries with a wrong signature at once, and then one each interval.
const TRIES: u32 = 9;
const INTERVAL_NS: u64 = 6_000_000_000;
/// Addresses that are remembered.
const ADDRESSES: usize = 4_096;

/// Who knows the secret.
pub(crate) struct Seal {
    key: hmac::Key,
    /// SHA-256 of the secret: what is compared is always of one length.
    digest: [u8; 32],
}

/// By what a sender claims to know the secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Claim {
    /// HMAC-SHA256 of the body: GitHub, Gitea, Forgejo.
    Signature([u8; 32]),
    /// SHA-256 of what was sent as the secret itself: GitLab.
    Token([u8; 32]),
}

impl Seal {
    pub(crate) fn new(secret: &Secret) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, secret.expose()), digest: sha256(secret.expose()) }
    }

    fn body(&self) -> hmac::Context {
        hmac::Context::with_key(&self.key)
    }

    /// Whether the sender of the body that went through `body` knows the secret. In constant time.
    fn holds(&self, claim: &Claim, body: hmac::Context) -> bool {
        match claim {
            Claim::Signature(signature) => verify_slices_are_equal(body.sign().as_ref(), signature).is_ok(),
            Claim::Token(digest) => verify_slices_are_equal(&self.digest, digest).is_ok(),
        }
    }
}

/// The first claim that the headers make. Each of these forges may send a second one, by the same secret, for receivers that know another forge.
fn claim(headers: &HeaderMap) -> Option<Claim> {
    const HEX: [&str; 2] = ["x-forgejo-signature", "x-gitea-signature"];
    let only = |name: &str| {
        let mut values = headers.get_all(name).into_iter();
        values.next().filter(|_| values.next().is_none()).map(http::HeaderValue::as_bytes)
    };
    if headers.contains_key("x-hub-signature-256") {
        return unhex(only("x-hub-signature-256")?.strip_prefix(b"sha256=")?).map(Claim::Signature);
    }
    if let Some(name) = HEX.iter().find(|name| headers.contains_key(**name)) {
        return unhex(only(name)?).map(Claim::Signature);
    }
    only("x-gitlab-token").map(|token| Claim::Token(sha256(token)))
}

/// Why a webhook is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotTaken {
    /// A webhook is a POST.
    Method,
    /// No signature, or none that could be one.
    Unsigned,
    /// Made with another secret, or for another body.
    WrongSignature,
    /// This address tried too often.
    TooOften { retry_after_ns: u64 },
    /// As many as are taken at once are under way.
    Busy,
    /// The body is longer than any forge's.
    TooLarge,
}

impl NotTaken {
    /// Whether the sender has to be taken for a stranger, of whom not many tries are heard.
    fn is_a_try(self) -> bool {
        matches!(self, Self::Unsigned | Self::WrongSignature | Self::TooLarge)
    }

    /// Status, name, title and detail of the answer.
    pub(crate) fn names(self) -> (StatusCode, &'static str, &'static str, &'static str) {
        match self {
            Self::Method => (StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "Method not allowed", "a webhook comes by POST"),
            Self::Unsigned => (
                StatusCode::UNAUTHORIZED,
                "webhook-unsigned",
                "Not signed",
                "the webhook has no signature (X-Hub-Signature-256, X-Gitea-Signature, X-Forgejo-Signature or X-Gitlab-Token): give the forge the secret in `webhook_secret_file`",
            ),
            Self::WrongSignature => (
                StatusCode::UNAUTHORIZED,
                "webhook-signature",
                "Wrong signature",
                "the webhook was signed with another secret: give the forge the one in `webhook_secret_file`",
            ),
            Self::TooOften { .. } => (
                StatusCode::TOO_MANY_REQUESTS,
                "webhook-rate-limited",
                "Too many tries",
                "too many webhooks with a wrong signature came from this address; the repository is looked at by its interval meanwhile",
            ),
            Self::Busy => (
                StatusCode::SERVICE_UNAVAILABLE,
                "webhook-busy",
                "Too many webhooks at once",
                "as many webhooks as are taken at once are under way",
            ),
            Self::TooLarge => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "webhook-too-large",
                "Body too large",
                "the webhook is longer than 25 MiB: let the forge send pushes only",
            ),
        }
    }

    /// Nanoseconds until a next try.
    pub(crate) fn retry_after_ns(self) -> Option<u64> {
        match self {
            Self::TooOften { retry_after_ns } => Some(retry_after_ns),
            Self::Busy => Some(1_000_000_000),
            _ => None,
        }
    }
}

/// See the file's description.
pub(crate) struct Webhooks {
    /// To the agent: a push was told. Many at once are one.
    pushes: Arc<Notify>,
    places: Semaphore,
    strangers: Strangers,
}

impl Webhooks {
    pub(crate) fn new(pushes: Arc<Notify>) -> Self {
        Self { pushes, places: Semaphore::new(AT_ONCE), strangers: Strangers::new() }
    }

    /// Takes what may be a webhook; returns how many bytes it had. The agent is told, and nobody waits for it.
    pub(crate) async fn take(&self, seal: &Seal, peer: IpAddr, parts: &Parts, body: &mut Incoming) -> Result<u64, Problem> {
        let now = clock::monotonic_ns();
        let taken = match self.strangers.may_try(peer, now) {
            Ok(()) => self.verify(seal, parts, body).await,
            Err(retry_after_ns) => Err(Problem::Webhook(NotTaken::TooOften { retry_after_ns })),
        };
        match taken {
            Ok(_) => self.pushes.notify_one(),
            // A body that does not end is one way to take the places of others.
            Err(problem) if problem.breaks_body() => self.strangers.tried(peer, now),
            Err(Problem::Webhook(why)) if why.is_a_try() => self.strangers.tried(peer, now),
            Err(_) => {}
        }
        taken
    }

    async fn verify(&self, seal: &Seal, parts: &Parts, body: &mut Incoming) -> Result<u64, Problem> {
        let not = |why| Err(Problem::Webhook(why));
        if parts.method != Method::POST {
            return not(NotTaken::Method);
        }
        let Some(claim) = claim(&parts.headers) else { return not(NotTaken::Unsigned) };
        let Ok(_place) = self.places.try_acquire() else { return not(NotTaken::Busy) };
        if body.size_hint().lower() > MAX_BODY {
            return not(NotTaken::TooLarge);
        }
        let mut digested = seal.body();
        let mut length = 0;
        let all = upload::each(body, MAX_BODY, |piece| {
            length += piece.len() as u64;
            digested.update(&piece);
            Ok(())
        });
        match timeout(PATIENCE, all).await {
            Err(_) => return Err(Problem::BodyTooSlow),
            Ok(Err(Problem::BodyTooLarge { .. })) => return not(NotTaken::TooLarge),
            Ok(all) => all?,
        }
        if seal.holds(&claim, digested) { Ok(length) } else { not(NotTaken::WrongSignature) }
    }
}

/// What a forge is told whose webhook was taken.
pub(crate) fn taken(id: &RequestId) -> Response<Vec<u8>> {
    let mut response = Response::new(b"the repository is looked at\n".to_vec());
    *response.status_mut() = StatusCode::ACCEPTED;
    headers::every_answer(response.headers_mut(), id);
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("text/plain"));
    response
}

/// Addresses from which wrong signatures came: for each, the word of its rate (see [`decide`]).
struct Strangers(Cache<IpAddr, u64>);

impl Strangers {
    fn new() -> Self {
        Self(Cache::new(ADDRESSES))
    }

    /// Whether one more try is heard, or how many nanoseconds later.
    fn may_try(&self, address: IpAddr, now_ns: u64) -> Result<(), u64> {
        let arrival = self.0.get(&household(address)).unwrap_or(0);
        match decide(arrival, now_ns, INTERVAL_NS, TRIES).0 {
            Admission::Admitted { .. } => Ok(()),
            Admission::Refused { retry_after_ns, .. } => Err(retry_after_ns),
        }
    }

    /// It failed. (Two at the very same time may count as one: a few tries more help nobody against 256 bits.)
    fn tried(&self, address: IpAddr, now_ns: u64) {
        let address = household(address);
        let arrival = self.0.get(&address).unwrap_or(0);
        self.0.insert(address, decide(arrival, now_ns, INTERVAL_NS, TRIES).1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::hex;

    // GitHub's own example: docs.github.com, "Validating webhook deliveries".
    const SECRET: &str = "It's a Secret to Everybody";
    const BODY: &[u8] = b"Hello, World!";
    const SIGNATURE: &str = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    fn holds(fields: &[(&'static str, &str)], body: &[u8]) -> Option<bool> {
        let seal = Seal::new(&Secret::new(SECRET));
        let mut context = seal.body();
        // Byte by byte, as it may come.
        body.chunks(1).for_each(|piece| context.update(piece));
        claim(&headers(fields)).map(|claim| seal.holds(&claim, context))
    }

    #[test]
    fn each_forge_proves_that_it_knows_the_secret_in_its_own_way() {
        let of_github = format!("sha256={SIGNATURE}");
        for good in [
            &[("x-hub-signature-256", of_github.as_str())][..],
            &[("x-gitea-signature", SIGNATURE)],
            &[("x-forgejo-signature", SIGNATURE)],
            &[("x-gitea-signature", SIGNATURE), ("x-hub-signature-256", of_github.as_str())],
            &[("x-hub-signature-256", &of_github.to_uppercase().replace("SHA", "sha"))],
            &[("x-gitlab-token", SECRET)],
        ] {
            assert_eq!(holds(good, BODY), Some(true), "{good:?}");
        }
    }

    #[test]
    fn another_body_another_secret_and_half_a_signature_prove_nothing() {
        let of_github = format!("sha256={SIGNATURE}");
        assert_eq!(holds(&[("x-hub-signature-256", &of_github)], b"Hello, World?"), Some(false));
        assert_eq!(holds(&[("x-hub-signature-256", &of_github)], b""), Some(false));
        assert_eq!(holds(&[("x-gitlab-token", "It's a Secret to Everybod")], BODY), Some(false));
        assert_eq!(holds(&[("x-gitlab-token", "")], BODY), Some(false));
        // The digest of the secret is not the secret.
        assert_eq!(holds(&[("x-gitlab-token", &hex(&sha256(SECRET.as_bytes())))], BODY), Some(false));
        for unsigned in [
            &[][..],
            &[("x-hub-signature-256", SIGNATURE)],
            &[("x-hub-signature-256", "sha256=")],
            &[("x-hub-signature-256", &of_github[..70])],
            &[("x-hub-signature-256", &format!("{of_github}00"))],
            &[("x-hub-signature-256", &of_github.replace('7', "g"))],
            &[("x-hub-signature-256", &of_github), ("x-hub-signature-256", &of_github)],
            &[("x-gitea-signature", &of_github)],
            // GitHub's old one, by SHA-1.
            &[("x-hub-signature", "sha1=01dc10d0c83e72ed246219cdd91669667fe2ca59")],
        ] {
            assert_eq!(holds(unsigned, BODY), None, "{unsigned:?}");
        }
    }

    #[test]
    fn an_address_has_ten_tries_and_then_one_each_six_seconds_while_others_have_theirs() {
        let strangers = Strangers::new();
        let [one, other] = ["192.0.2.1", "192.0.2.2"].map(|address| address.parse::<IpAddr>().unwrap());
        let start = 1_000_000_000_000;
        for n in 0..10 {
            assert_eq!(strangers.may_try(one, start), Ok(()), "{n}");
            strangers.tried(one, start);
        }
        assert_eq!(strangers.may_try(one, start), Err(INTERVAL_NS));
        assert_eq!(strangers.may_try(other, start), Ok(()));
        assert_eq!(strangers.may_try(one, start + INTERVAL_NS), Ok(()));
        strangers.tried(one, start + INTERVAL_NS);
        assert_eq!(strangers.may_try(one, start + INTERVAL_NS + 1), Err(INTERVAL_NS - 1));
    }
}
