//! What happened.

use maud::{Markup, html};

use super::{super::list::encoded, Part, event_rows};
use crate::{desired::TenantId, store::Event};

/// Which events.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(in crate::admin::site) struct Wish {
    pub(in crate::admin::site) tenant: Option<TenantId>,
    pub(in crate::admin::site) kind: Option<String>,
    /// Before the one of this number.
    pub(in crate::admin::site) before: Option<u64>,
}

impl Wish {
    /// Of the query of an address; what cannot be understood is left out.
    pub(in crate::admin::site) fn parse(query: &str) -> Self {
        let mut wish = Self::default();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "tenant" => wish.tenant = TenantId::parse(value.trim()).ok(),
                "kind" => wish.kind = Some(value.trim().to_owned()).filter(|kind| !kind.is_empty()),
                "before" => wish.before = value.parse().ok(),
                _ => {}
            }
        }
        wish
    }

    fn before(&self, number: u64) -> String {
        let tenant = self.tenant.as_ref().map_or(String::new(), |id| format!("&tenant={}", encoded(id.as_str())));
        let kind = self.kind.as_ref().map_or(String::new(), |kind| format!("&kind={}", encoded(kind)));
        format!("/events?before={number}{tenant}{kind}")
    }
}

/// All of it. `more`: there are older ones.
pub(in crate::admin::site) fn parts(events: &[Event], more: bool, wish: &Wish, now: u64) -> Vec<Part> {
    let rows = html! {
        (event_rows(events, true, now))
        @if let Some(last) = events.last().filter(|_| more) {
            nav .pages aria-label="Pages of events" {
                @if wish.before.is_some() { a .button href="/events" { "Newest" } }
                a .button rel="next" href=(wish.before(last.number)) { "Older" }
            }
        }
    };
    // A page of the past does not change.
    let rows = Part { name: "rows", is_live: wish.before.is_none(), html: rows };
    vec![Part::fixed("search", search(wish)), rows]
}

fn search(wish: &Wish) -> Markup {
    html! {
        form .search method="get" action="/events" role="search" data-searches="rows" {
            div {
                label for="tenant" { "Tenant" }
                input #tenant name="tenant" type="search" value=[wish.tenant.as_ref().map(TenantId::as_str)] maxlength="128" placeholder="a whole id" autocomplete="off" spellcheck="false" autocapitalize="off";
            }
            div {
                label for="kind" { "Kind" }
                input #kind name="kind" type="search" value=[wish.kind.as_deref()] maxlength="64" placeholder="such as crashed" autocomplete="off" spellcheck="false" autocapitalize="off";
            }
            div .buttons {
                button .primary type="submit" { "Show" }
                a .button href="/events" { "All" }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_page_is_asked_for_with_the_same_wish() {
        let wish = Wish::parse("tenant=a%40b.c&kind=x%26y&before=12&odd=1");
        assert_eq!((wish.tenant.as_ref().unwrap().as_str(), wish.kind.as_deref(), wish.before), ("a@b.c", Some("x&y"), Some(12)));
        assert_eq!(Wish::parse(wish.before(7).split_once('?').unwrap().1), Wish { before: Some(7), ..wish });
        assert_eq!(Wish::parse("tenant=../x&kind=&before=-1"), Wish::default());
    }
}
