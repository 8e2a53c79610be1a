//! The pages that are looked at: from an address to its pieces, and from those to a whole page.

use axum::{
    Extension,
    extract::{Path, State},
    response::{IntoResponse as _, Response},
};
use http::{StatusCode, Uri};
use maud::Markup;

use super::{
    Site,
    enter::Visit,
    list,
    pages::{
        Part, alerts, events, overview, plan,
        shell::{Page, Tab},
        tenant, tenants,
    },
    session::Visitor,
    window::{self, Sight},
};
use crate::{
    admin::{api::Problem, status::Status},
    desired::TenantId,
    doctor::{self, Why},
    instance::log,
};

/// Events on the overview and on a tenant's page.
const LATEST: u32 = 12;
/// Events of a page of theirs.
const EVENTS: u32 = 100;
/// Events that say what was tried; as `sq-agent why` has it.
const TRIED: u32 = 500;
/// Lines of a log.
const LINES: usize = 60;
/// How long ago things were is told anew so often, seconds.
const PACE: u64 = 30;
/// Days of use.
const DAYS: u32 = 14;

/// What is looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Screen {
    Overview,
    Tenants(list::Wish),
    Tenant(TenantId),
    Events(events::Wish),
    Alerts,
    Plan,
}

/// A page in pieces.
pub(super) struct Painted {
    title: String,
    pub(super) tab: Tab,
    pub(super) parts: Vec<Part>,
    pub(super) sight: std::sync::Arc<Sight>,
}

impl Screen {
    /// What stands at this address.
    pub(super) fn parse(address: &str) -> Option<Self> {
        let (path, query) = address.split_once('?').unwrap_or((address, ""));
        Some(match path {
            "/" => Self::Overview,
            "/tenants" => Self::Tenants(list::Wish::parse(query)),
            "/events" => Self::Events(events::Wish::parse(query)),
            "/alerts" => Self::Alerts,
            "/plan" => Self::Plan,
            _ => {
                let id = percent_encoding::percent_decode_str(path.strip_prefix("/tenants/")?).decode_utf8().ok()?;
                Self::Tenant(TenantId::parse(&id).ok()?)
            }
        })
    }

    /// As it stands now. `whole`: also what is not brought up to date while the page is open.
    pub(super) async fn paint(&self, site: &Site, whole: bool) -> Result<Painted, Problem> {
        let sight = site.window().sight().await?;
        let (glance, state_dir) = (&sight.glance, site.api().desired().state_dir.clone());
        let (title, tab, parts) = match self {
            Self::Overview => {
                let samples = site.window().samples(state_dir.clone()).await;
                let latest = window::events(state_dir, None, None, None, LATEST).await;
                ("Overview".to_owned(), Tab::Overview, overview::parts(&sight, &samples, &latest))
            }
            Self::Tenants(wish) => {
                let desired = site.api().desired();
                let shown = list::shown(&glance.rows, wish);
                ("Tenants".to_owned(), Tab::Tenants, tenants::parts(&shown, wish, desired.tiers.keys().map(String::as_str)))
            }
            Self::Tenant(id) => (id.to_string(), Tab::Tenants, self::one(site, id, &sight, whole).await?),
            Self::Events(wish) => {
                let events::Wish { tenant, kind, before } = wish.clone();
                let mut found = window::events(state_dir, tenant, kind, before, EVENTS + 1).await;
                let more = found.len() > EVENTS as usize;
                found.truncate(EVENTS as usize);
                ("Events".to_owned(), Tab::Events, events::parts(&found, more, wish, glance.at))
            }
            Self::Alerts => ("Alerts".to_owned(), Tab::Alerts, alerts::parts(&glance.status.alerts, glance.at)),
            Self::Plan => ("Plan".to_owned(), Tab::Plan, plan::parts(&*site.window().plan().await?, &glance.status)),
        };
        Ok(Painted { title, tab, parts, sight })
    }
}

/// One tenant; 404 where nothing is known of it.
async fn one(site: &Site, id: &TenantId, sight: &Sight, whole: bool) -> Result<Vec<Part>, Problem> {
    let desired = site.api().desired();
    let portrait = site.window().tenant(id).await?;
    let tried = window::events(desired.state_dir.clone(), Some(id.clone()), None, None, TRIED).await;
    let days = if whole { window::days(desired.state_dir.clone(), id.clone(), DAYS).await } else { Vec::new() };
    let dir = desired.user_dir(id);
    let looked = tokio::task::spawn_blocking(move || (dir.exists(), log::tail(&dir.join("sq.log"), LINES)));
    let (has_data, log) = looked.await.unwrap_or_default();
    if portrait.is_none() && tried.is_empty() && !has_data && !desired.tenants.contains_key(id) {
        return Err(Problem::new(
            StatusCode::NOT_FOUND,
            "no-such-tenant",
            "No such tenant",
            format!("there is no tenant {id}, now or before"),
        ));
    }
    let glance = &sight.glance;
    let status = Status { tenants: portrait.iter().map(|portrait| portrait.tenant.clone()).collect(), ..glance.status.clone() };
    // What is so many seconds ago would be news with every look.
    let now = glance.at / PACE * PACE;
    let why: Why = doctor::why(&doctor::Known { id, desired: &desired, status: Some(&status), events: &tried, has_data, now });
    let open: Vec<_> = glance.status.alerts.open.iter().filter(|alert| alert.tenant.as_ref() == Some(id)).cloned().collect();
    let known = tenant::Known {
        id,
        portrait: portrait.as_deref(),
        why: &why,
        log: &log,
        events: tried.get(..tried.len().min(LATEST as usize)).unwrap_or_default(),
        days: &days,
        alerts: &open,
        now: glance.at,
    };
    Ok(known.parts())
}

/// The whole page at `address`.
async fn page(site: &Site, visit: &Visit, address: &str) -> Result<Response, Problem> {
    let not_there = || Problem::of_status(StatusCode::NOT_FOUND);
    let (visitor, screen) = (visit.visitor()?, Screen::parse(address).ok_or_else(not_there)?);
    let painted = screen.paint(site, true).await?;
    Ok(painted.html(site, visitor, Some(address)).into_response())
}

impl Painted {
    /// Another page in the same place, on which nothing changes by itself.
    pub(super) fn fixed(title: String, tab: Tab, parts: Vec<Part>, sight: std::sync::Arc<Sight>) -> Self {
        Self { title, tab, parts, sight }
    }

    pub(super) fn html(&self, site: &Site, visitor: &Visitor, address: Option<&str>) -> Markup {
        let Self { title, tab, parts, sight } = self;
        let said = site.sessions().said(&visitor.ticket);
        let address = address.filter(|_| parts.iter().any(|part| part.is_live));
        Page { title, tab: *tab, parts, address, visitor, said, sight }.html()
    }
}

fn address(uri: &Uri) -> &str {
    uri.path_and_query().map_or("/", |address| address.as_str())
}

type Asked = (State<Site>, Extension<Visit>, Uri);

pub(super) async fn overview((State(site), Extension(visit), _): Asked) -> Result<Response, Problem> {
    page(&site, &visit, "/").await
}

pub(super) async fn tenants((State(site), Extension(visit), uri): Asked) -> Result<Response, Problem> {
    page(&site, &visit, address(&uri)).await
}

pub(super) async fn tenant(
    State(site): State<Site>,
    Extension(visit): Extension<Visit>,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    page(&site, &visit, &format!("/tenants/{}", list::encoded(&id))).await
}

pub(super) async fn events((State(site), Extension(visit), uri): Asked) -> Result<Response, Problem> {
    page(&site, &visit, address(&uri)).await
}

pub(super) async fn alerts((State(site), Extension(visit), _): Asked) -> Result<Response, Problem> {
    page(&site, &visit, "/alerts").await
}

pub(super) async fn plan((State(site), Extension(visit), _): Asked) -> Result<Response, Problem> {
    page(&site, &visit, "/plan").await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_names_what_is_looked_at() {
        assert_eq!(Screen::parse("/"), Some(Screen::Overview));
        assert_eq!(Screen::parse("/tenants/a%40b.c"), Some(Screen::Tenant(TenantId::parse("a@b.c").unwrap())));
        assert_eq!(Screen::parse("/tenants?q=x"), Some(Screen::Tenants(list::Wish::parse("q=x"))));
        for odd in ["", "/tenants/..%2fx", "/tenants/a/restart", "/tenants/%ff", "/api/x", "//"] {
            assert_eq!(Screen::parse(odd), None, "{odd}");
        }
    }
}
