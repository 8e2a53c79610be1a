//! What forms do: log in and out, and the deeds of the page, each after a question on a page of its own. What came of it is told on the page that follows.

use axum::{
    Extension,
    body::Bytes,
    extract::{Path, State},
    response::{IntoResponse as _, Response},
};
use http::{HeaderMap, HeaderValue, StatusCode, Uri, header};

use super::{
    Site,
    enter::{Visit, cookie_name, field, see},
    look::Painted,
    origin,
    pages::{entry::Entry, shell::Tab, sure::Sure},
    session::{Said, Ticket, Visitor},
};
use crate::{
    admin::api::{self, Deed, Doer, Problem, Way},
    desired::TenantId,
    observed::monotonic,
};

/// How long a browser keeps the cookie, seconds; the session may end before.
const KEPT: u32 = 12 * 3_600;

impl Visit {
    /// Whose it is; `enter` lets nobody else come to the pages that ask.
    pub(super) fn visitor(&self) -> Result<&Visitor, Problem> {
        self.visitor.as_ref().ok_or_else(|| Problem::of_status(StatusCode::FORBIDDEN))
    }

    fn doer(&self, form: &[u8]) -> Result<Doer, Problem> {
        let reason = api::reason(&field(form, "reason").unwrap_or_default());
        Ok(Doer { name: self.visitor()?.name.clone(), way: self.way, request_id: self.request_id.clone(), reason })
    }

    fn port(&self) -> u16 {
        match self.way {
            Way::Tcp { local, .. } => local.port(),
            Way::Socket { .. } => 0,
        }
    }
}

/// The way in.
pub(super) async fn login(Extension(visit): Extension<Visit>, headers: HeaderMap, uri: Uri) -> Response {
    let wanted = field(uri.query().unwrap_or_default().as_bytes(), "to").unwrap_or_default();
    let to = origin::local(&wanted);
    if visit.visitor.is_some() {
        return see(to);
    }
    let is_led = headers.get("sec-fetch-site").is_some_and(|site| site == "cross-site" || site == "same-site");
    Entry { to, name: "", wrong: None, is_led }.html().into_response()
}

/// Somebody shows the key.
pub(super) async fn log_in(
    State(site): State<Site>,
    Extension(visit): Extension<Visit>,
    headers: HeaderMap,
    form: Bytes,
) -> Result<Response, Problem> {
    let [to, name, sent] = ["to", "name", "key"].map(|name| field(&form, name).unwrap_or_default());
    let settings = site.api().settings()?;
    let again = |wrong: &str| {
        (StatusCode::FORBIDDEN, Entry { to: origin::local(&to), name: &name, wrong: Some(wrong), is_led: false }.html()).into_response()
    };
    if !api::is_key(sent.trim(), &settings) {
        tracing::warn!(peer = visit.way.text(), "the page was opened with a wrong key");
        return Ok(again("That is not the key."));
    }
    let who = match api::name(&name) {
        Ok(who) => who,
        Err(problem) => return Ok(again(&problem.detail)),
    };
    let mut random = [0; 32];
    getrandom::fill(&mut random).map_err(|error| Problem::internal(error.to_string()))?;
    let ticket = Ticket::of(random);
    // Who was logged in is so anew, and the ticket of before is worth nothing.
    visit.visitor.iter().for_each(|before| site.sessions().end(&before.ticket));
    tracing::info!(peer = visit.way.text(), name = who.as_deref().unwrap_or_default(), "somebody logged in to the page");
    site.sessions().begin(&ticket, who, api::key_mark(&settings), monotonic());
    Ok(with_cookie(see(origin::local(&to)), &headers, visit.port(), ticket.cookie(), KEPT))
}

/// Somebody leaves.
pub(super) async fn log_out(State(site): State<Site>, Extension(visit): Extension<Visit>, headers: HeaderMap) -> Result<Response, Problem> {
    site.sessions().end(&visit.visitor()?.ticket);
    Ok(with_cookie(see("/login"), &headers, visit.port(), "", 0))
}

fn with_cookie(mut response: Response, headers: &HeaderMap, port: u16, value: &str, seconds: u32) -> Response {
    let is_tls = origin::is_tls(headers);
    let secure = if is_tls { "; Secure" } else { "" };
    let cookie = format!("{}={value}; Path=/; HttpOnly; SameSite=Strict; Max-Age={seconds}{secure}", cookie_name(port, is_tls));
    response.headers_mut().extend(HeaderValue::try_from(cookie).ok().map(|cookie| (header::SET_COOKIE, cookie)));
    response
}

/// What may be done to a tenant by a form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Restart,
    Suspend,
    Resume,
}

impl Kind {
    fn parse(word: &str) -> Result<Self, Problem> {
        match word {
            "restart" => Ok(Self::Restart),
            "suspend" => Ok(Self::Suspend),
            "resume" => Ok(Self::Resume),
            _ => Err(Problem::new(StatusCode::NOT_FOUND, "not-found", "Not found", "there is no such page")),
        }
    }

    fn of(self, id: TenantId) -> Deed {
        match self {
            Self::Restart => Deed::Restart(id),
            Self::Suspend => Deed::Suspend(id),
            Self::Resume => Deed::Resume(id),
        }
    }

    /// Title, button, and what follows.
    fn words(self, id: &TenantId) -> (String, &'static str, Vec<String>) {
        match self {
            Self::Restart => (
                format!("Restart {id}?"),
                "Restart",
                vec![format!(
                    "The instance of {id} finishes what is in flight and gives way to another one. Requests wait meanwhile, and none fails."
                )],
            ),
            Self::Suspend => (
                format!("Suspend {id}?"),
                "Suspend",
                vec![
                    format!(
                        "Every request of {id} is answered by 403 from then on. Its instance is stopped, a snapshot of its phexts is taken, and its data stay."
                    ),
                    "It is written into tenants.toml, and can be taken back.".to_owned(),
                ],
            ),
            Self::Resume => (
                format!("Resume {id}?"),
                "Resume",
                vec![format!("{id} is served again, with the data that it had. It is written into tenants.toml.")],
            ),
        }
    }
}

fn tenant_id(text: &str) -> Result<TenantId, Problem> {
    TenantId::parse(text).map_err(|error| Problem::bad_request(format!("{text:?} is no tenant's id: {error}")))
}

/// Asks whether that is to be done to a tenant.
pub(super) async fn ask(
    State(site): State<Site>,
    Extension(visit): Extension<Visit>,
    Path((id, word)): Path<(String, String)>,
) -> Result<Response, Problem> {
    let (id, kind) = (tenant_id(&id)?, Kind::parse(&word)?);
    let visitor = visit.visitor()?;
    if site.window().tenant(&id).await?.is_none() {
        return Err(Problem::new(
            StatusCode::NOT_FOUND,
            "no-such-tenant",
            "No such tenant",
            format!("there is no tenant {id} on this host"),
        ));
    }
    let (title, button, follows) = kind.words(&id);
    let back = super::pages::tenant_address(id.as_str());
    let action = format!("{back}/{word}");
    let sure = Sure { follows: &follows, button, is_grave: kind == Kind::Suspend, action: &action, hash: None, back: &back, visitor };
    let painted = Painted::fixed(title, Tab::Tenants, vec![sure.part()], site.window().sight().await?);
    Ok(painted.html(&site, visitor, None).into_response())
}

/// Does it.
pub(super) async fn tenant(
    State(site): State<Site>,
    Extension(visit): Extension<Visit>,
    Path((id, word)): Path<(String, String)>,
    form: Bytes,
) -> Result<Response, Problem> {
    let (id, kind) = (tenant_id(&id)?, Kind::parse(&word)?);
    let back = super::pages::tenant_address(id.as_str());
    done(&site, &visit, kind.of(id), &form, &back).await
}

/// Does `deed` and leads back to where it is seen.
async fn done(site: &Site, visit: &Visit, deed: Deed, form: &[u8], back: &str) -> Result<Response, Problem> {
    let doer = visit.doer(form)?;
    let said = match site.api().act(deed, doer).await {
        Ok(text) => Said { is_good: true, text },
        Err(problem) => Said { is_good: false, text: format!("{}: {}.", problem.title, problem.detail.trim_end_matches('.')) },
    };
    site.window().forget().await;
    site.sessions().say(&visit.visitor()?.ticket, said);
    Ok(see(back))
}

/// Asks whether the held plan is to go through.
pub(super) async fn ask_plan(State(site): State<Site>, Extension(visit): Extension<Visit>, uri: Uri) -> Result<Response, Problem> {
    let visitor = visit.visitor()?;
    let hash = field(uri.query().unwrap_or_default().as_bytes(), "hash").unwrap_or_default();
    let sight = site.window().sight().await?;
    let status = &sight.glance.status;
    let (button, follows) = match (&status.held, status.rollout.as_ref().and_then(|rollout| rollout.try_again.as_ref())) {
        (Some(held), _) if held.hash == hash => (
            "Confirm the plan",
            vec![format!(
                "{} of {} tenants are removed: their instances are stopped, and their users get 403 from then on. Their data stay on the host.",
                held.removals.len(),
                held.of
            )],
        ),
        (_, Some(again)) if *again == hash => {
            ("Try it once more", vec!["The roll-out that went back begins anew, with one tenant.".to_owned()])
        }
        _ => {
            return Err(Problem::new(
                StatusCode::CONFLICT,
                "conflict",
                "Not the plan that is held",
                "the plan is another one by now: look at it again",
            ));
        }
    };
    let sure = Sure { follows: &follows, button, is_grave: true, action: "/plan/confirm", hash: Some(&hash), back: "/plan", visitor };
    let painted = Painted::fixed(format!("Confirm plan {hash}?"), Tab::Plan, vec![sure.part()], sight.clone());
    Ok(painted.html(&site, visitor, None).into_response())
}

/// Lets it through.
pub(super) async fn plan(State(site): State<Site>, Extension(visit): Extension<Visit>, form: Bytes) -> Result<Response, Problem> {
    let hash = field(&form, "hash").filter(|hash| (1..=64).contains(&hash.len()) && hash.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    let hash = hash.ok_or_else(|| Problem::bad_request("the form names no plan"))?;
    done(&site, &visit, Deed::Confirm(hash), &form, "/plan").await
}
