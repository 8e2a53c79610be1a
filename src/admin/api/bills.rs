//! What was used, from the records: nothing of it goes through the loop.

use axum::extract::{Path, State};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    Api,
    extract::{Asked, id},
    problem::Problem,
    read::{Json, check_limit},
};
use crate::{
    admin::{page::page, records},
    desired::TenantId,
    history::month::Month,
    store::{Reader, StoreError, Usage},
};

/// Which of them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct BillsWish {
    /// Most of them at once
    #[serde(default = "page")]
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: u16,
    /// `next` of the page before
    #[serde(default)]
    #[param(value_type = Option<String>, pattern = "^[A-Za-z0-9_+@-][A-Za-z0-9._+@-]{0,127}$", max_length = 128)]
    cursor: Option<TenantId>,
}

/// What tenants used.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Bills {
    /// A month or a day of a tenant each.
    usage: Vec<Usage>,
    /// `cursor` of the next page, where there is one.
    next: Option<String>,
}

impl Bills {
    /// The first `limit` behind `cursor`, of `all` by id.
    fn page(all: Vec<Usage>, cursor: Option<&TenantId>, limit: u16) -> Self {
        let behind = |usage: &Usage| cursor.is_none_or(|cursor| usage.id.as_str() > cursor.as_str());
        let mut usage: Vec<_> = all.into_iter().filter(behind).take(usize::from(limit) + 1).collect();
        let more = usage.len() > usize::from(limit);
        usage.truncate(limit.into());
        let next = usage.last().filter(|_| more).map(|last| last.id.clone());
        Self { usage, next }
    }
}

/// What the tenants used in a month
///
/// As `sq-agent usage --month 2026-02` prints it. Days and months are UTC; months are kept for two years.
#[utoipa::path(get, path = "/api/admin/usage/{month}", tag = "usage", params(("month" = super::document::MonthText,), BillsWish), responses((status = 200, description = "A page of them, by id", body = Bills)))]
pub(super) async fn bills(State(api): State<Api>, Path(text): Path<String>, Asked(wish): Asked<BillsWish>) -> Result<Json, Problem> {
    check_limit(wish.limit)?;
    let month = month(&text)?;
    let all = read(&api, move |reader| reader.usage_of_month(month, None)).await?;
    Json::of(&Bills::page(all, wish.cursor.as_ref(), wish.limit))
}

/// What a tenant used on each day of a month
///
/// Also one that was removed. Days are UTC, and kept for 70 days.
#[utoipa::path(get, path = "/api/admin/tenants/{id}/usage/{month}", tag = "usage", params(("id" = super::document::TenantIdText,), ("month" = super::document::MonthText,)), responses((status = 200, description = "A day each", body = Bills)))]
pub(super) async fn days(State(api): State<Api>, Path((tenant, text)): Path<(String, String)>) -> Result<Json, Problem> {
    let (tenant, month) = (id(&tenant)?, month(&text)?);
    let usage = read(&api, move |reader| reader.usage_by_day(month, Some(&tenant))).await?;
    Json::of(&Bills { usage, next: None })
}

fn month(text: &str) -> Result<Month, Problem> {
    text.parse().map_err(|error| Problem::bad_request(format!("{text:?}: {error}")))
}

async fn read(api: &Api, what: impl FnOnce(&Reader) -> Result<Vec<Usage>, StoreError> + Send + 'static) -> Result<Vec<Usage>, Problem> {
    records::read(api.in_force().state_dir.clone(), what).await.map_err(Problem::internal)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(id: &str) -> Usage {
        Usage { id: id.into(), ..Usage::default() }
    }

    #[test]
    fn pages_follow_each_other_and_the_last_one_says_so() {
        let all = || ["a", "b", "c"].map(usage).to_vec();
        let ids = |bills: &Bills| bills.usage.iter().map(|usage| usage.id.clone()).collect::<Vec<_>>();
        let first = Bills::page(all(), None, 2);
        assert_eq!((ids(&first), first.next.as_deref()), (vec!["a".into(), "b".into()], Some("b")));
        let cursor = TenantId::parse(&first.next.unwrap()).unwrap();
        let last = Bills::page(all(), Some(&cursor), 2);
        assert_eq!((ids(&last), last.next), (vec!["c".into()], None));
        assert_eq!(Bills::page(all(), None, 3).next, None);
    }
}
