//! The table of tenants.

use maud::{Markup, html};

use super::{
    super::{
        list::{By, Shown, Trouble, Wish},
        words,
    },
    Part, state, tenant_link, used,
};
use crate::admin::{page::StateWord, sight::Row};

const STATES: [StateWord; 6] =
    [StateWord::Ready, StateWord::Starting, StateWord::Draining, StateWord::Stopped, StateWord::Suspended, StateWord::Crashed];

/// All of it. `tiers` can be chosen from.
pub(in crate::admin::site) fn parts<'a>(shown: &Shown<'_>, wish: &Wish, tiers: impl Iterator<Item = &'a str>) -> Vec<Part> {
    vec![Part::fixed("search", search(wish, tiers)), Part::live("rows", table(shown, wish))]
}

fn search<'a>(wish: &Wish, tiers: impl Iterator<Item = &'a str>) -> Markup {
    html! {
        form .search method="get" action="/tenants" role="search" data-searches="rows" {
            div {
                label for="q" { "Search" }
                input #q name="q" type="search" value=(wish.q) maxlength="128" placeholder="a part of an id" autocomplete="off" spellcheck="false" autocapitalize="off";
            }
            div {
                label for="state" { "State" }
                select #state name="state" {
                    option value="" { "any" }
                    @for each in STATES { option value=(each.text()) selected[wish.state == Some(each)] { (each.text()) } }
                }
            }
            div {
                label for="tier" { "Tier" }
                select #tier name="tier" {
                    option value="" { "any" }
                    @for tier in tiers { option value=(tier) selected[wish.tier.as_deref() == Some(tier)] { (tier) } }
                }
            }
            div {
                label for="trouble" { "Trouble" }
                select #trouble name="trouble" {
                    option value="" { "with and without" }
                    @for each in [Trouble::Any].into_iter().chain(Trouble::EACH) {
                        option value=(each.word()) selected[wish.trouble == Some(each)] { (each.text()) }
                    }
                }
            }
            div {
                label for="sort" { "Sorted by" }
                select #sort name="sort" {
                    @for (by, word, heading) in By::EACH {
                        option value=(word) selected[wish.by == by && !wish.turned] { (heading) }
                    }
                    @if wish.turned { option value=(wish.sort()) selected { (heading(wish.by)) ", turned round" } }
                }
            }
            div .buttons {
                button .primary type="submit" { "Show" }
                a .button href="/tenants" { "All" }
            }
        }
    }
}

fn heading(by: By) -> &'static str {
    By::EACH.iter().find(|(each, ..)| *each == by).map_or("", |(.., heading)| heading)
}

fn table(shown: &Shown<'_>, wish: &Wish) -> Markup {
    let Shown { rows, total, page, pages } = shown;
    html! {
        p .summary data-news { (words::counted(*total, "tenant", "tenants")) @if *pages > 1 { ", page " (page) " of " (words::count(*pages as u64)) } }
        @if rows.is_empty() { p .quiet { "None is like that." } }
        @else {
            table .cards .tenants {
                caption .visually-hidden { "Tenants" }
                thead {
                    tr {
                        @for (by, _, heading) in By::EACH {
                            @let sorted = (wish.by == by).then_some(if sorts_up(by) == wish.turned { "descending" } else { "ascending" });
                            th scope="col" .number[!matches!(by, By::Id | By::State | By::Tier)] aria-sort=[sorted] {
                                a href=(wish.sorted(by).address()) { (heading) @if let Some(sorted) = sorted { span .arrow aria-hidden="true" { (if sorted == "ascending" { " ▲" } else { " ▼" }) } } }
                            }
                        }
                    }
                }
                tbody { @for row in rows { (line(row)) } }
            }
            (page_links(wish, *page, *pages))
        }
    }
}

/// Whether the first click sorts from the least on.
fn sorts_up(by: By) -> bool {
    matches!(by, By::Id | By::State | By::Tier)
}

fn line(row: &Row) -> Markup {
    html! {
        tr {
            th scope="row" { (tenant_link(row.id.as_str())) }
            td data-label="State" {
                (state(row.state))
                @for trouble in Trouble::EACH.into_iter().filter(|trouble| *trouble != Trouble::Crashed && trouble.is_of(row)) {
                    " " span .badge.warning { (trouble.text()) }
                }
                @if let Some(note) = &row.note { span .note { (note) } }
            }
            td data-label="Tier" { (row.tier) }
            td data-label="Memory" .number { (used(row.memory, row.memory_max)) }
            td data-label="Storage" .number { (used(row.storage, row.storage_max)) }
            td data-label="Requests today" .number { (words::count(row.requests_today.into())) }
            td data-label="Restarts" .number { (words::count(row.restarts)) }
        }
    }
}

fn page_links(wish: &Wish, page: usize, pages: usize) -> Markup {
    let near = (1..=pages).filter(|other| *other == 1 || *other == pages || other.abs_diff(page) <= 2).collect::<Vec<_>>();
    html! {
        @if pages > 1 {
            nav .pages aria-label="Pages of the table" {
                @if page > 1 { a .button rel="prev" href=(wish.on_page(page - 1).address()) { "Previous" } }
                ul {
                    @for (n, other) in near.iter().enumerate() {
                        @if n > 0 && near[n - 1] + 1 < *other { li aria-hidden="true" { "…" } }
                        li { a href=(wish.on_page(*other).address()) aria-current=[(*other == page).then_some("page")] aria-label={ "Page " (other) } { (other) } }
                    }
                }
                @if page < pages { a .button rel="next" href=(wish.on_page(page + 1).address()) { "Next" } }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{admin::site::list, desired::TenantId};

    #[test]
    fn whatever_comes_from_outside_is_text() {
        let odd = "\"><script>alert('x')</script>";
        let row = Row {
            id: TenantId::parse("a@b.c").unwrap(),
            tier: odd.to_owned(),
            state: StateWord::Crashed,
            memory: Some(90 << 10),
            memory_max: Some(100 << 10),
            storage: None,
            storage_max: None,
            requests_today: 12_345,
            restarts: 1,
            is_silent: false,
            is_held: true,
            note: Some(odd.to_owned()),
        };
        let wish = Wish { q: odd.to_owned(), ..Wish::default() };
        let rows = [row];
        let shown = list::shown(&rows, &Wish::default());
        let html: String = parts(&shown, &wish, [odd].into_iter()).into_iter().map(|part| part.html.into_string()).collect();
        assert!(!html.contains("<script") && !html.contains("\">alert") && html.matches("&quot;&gt;&lt;script&gt;").count() >= 5, "{html}");
        for part in
            ["href=\"/tenants/a%40b.c\"", "state crashed", "memory nearly full", "removal held", "90 %", "12,345", "q=%22%3E%3Cscript%3E"]
        {
            assert!(html.contains(part), "{part}: {html}");
        }
    }

    #[test]
    fn headings_say_how_a_table_is_sorted_and_links_lead_through_its_pages() {
        let html = |query: &str, pages| {
            let wish = Wish::parse(query);
            let shown = Shown { rows: Vec::new(), total: pages * list::ROWS, page: wish.page, pages };
            (table(&Shown { rows: Vec::new(), ..shown }, &wish).into_string(), page_links(&wish, wish.page, pages).into_string())
        };
        let (none, links) = html("page=5", 200);
        assert!(none.contains("None is like that.") && none.contains("10,000 tenants, page 5 of 200"), "{none}");
        assert_eq!(links.matches("<li><a").count(), 7, "the first, the last, and five near: {links}");
        assert!(links.contains("aria-current=\"page\"") && links.contains("page=4\"") && links.contains("page=6\""), "{links}");
        assert_eq!(html("", 1).1, "");
    }
}
