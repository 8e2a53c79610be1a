//! Which tenants a table shows, in which order, on which page. Pure: a glance comes in, rows go out.

use std::cmp::Reverse;

use serde::Deserialize;

use crate::admin::{page::StateWord, sight::Row};

/// Rows of a page: one of 50 is some 30 KB, and read as a whole on a screen or two.
pub(super) const ROWS: usize = 50;
/// Longest text that is searched for, bytes.
const LONGEST: usize = 128;
/// From this share of its limit on memory or storage is trouble, percent: as the alerts have it.
const NEAR: u64 = 80;

/// `text` as it stands in an address.
pub(super) fn encoded(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

/// What is wrong with a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Trouble {
    /// Anything.
    Any,
    /// It died and waits for its next try.
    Crashed,
    /// It does not answer probes.
    Silent,
    /// It takes nearly all the memory that it may.
    Memory,
    /// Its phexts take nearly all the room that they may.
    Storage,
    /// Its removal waits for a person.
    Held,
}

impl Trouble {
    /// All of them but [`Self::Any`].
    pub(super) const EACH: [Self; 5] = [Self::Crashed, Self::Silent, Self::Memory, Self::Storage, Self::Held];

    /// As an address has it.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::Crashed => "crashed",
            Self::Silent => "silent",
            Self::Memory => "memory",
            Self::Storage => "storage",
            Self::Held => "held",
        }
    }

    /// As people read it.
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Any => "any trouble",
            Self::Crashed => "crashed",
            Self::Silent => "does not answer",
            Self::Memory => "memory nearly full",
            Self::Storage => "storage nearly full",
            Self::Held => "removal held",
        }
    }

    /// Whether `row` has it.
    pub(super) fn is_of(self, row: &Row) -> bool {
        let near = |used: Option<u64>, limit: Option<u64>| {
            used.zip(limit).is_some_and(|(used, limit)| u128::from(used) * 100 >= u128::from(limit) * u128::from(NEAR))
        };
        match self {
            Self::Any => Self::EACH.into_iter().any(|each| each.is_of(row)),
            Self::Crashed => row.state == StateWord::Crashed,
            Self::Silent => row.is_silent,
            Self::Memory => near(row.memory, row.memory_max),
            Self::Storage => near(row.storage, row.storage_max),
            Self::Held => row.is_held,
        }
    }
}

/// By what the rows are sorted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum By {
    /// From A on.
    #[default]
    Id,
    /// Those that are not as they should be first.
    State,
    /// From A on.
    Tier,
    /// The most first, as all that follow.
    Memory,
    Storage,
    Requests,
    Restarts,
}

impl By {
    /// Each, with its word in an address and its heading.
    pub(super) const EACH: [(Self, &'static str, &'static str); 7] = [
        (Self::Id, "id", "Tenant"),
        (Self::State, "state", "State"),
        (Self::Tier, "tier", "Tier"),
        (Self::Memory, "memory", "Memory"),
        (Self::Storage, "storage", "Storage"),
        (Self::Requests, "requests", "Requests today"),
        (Self::Restarts, "restarts", "Restarts"),
    ];

    fn word(self) -> &'static str {
        Self::EACH.iter().find(|(by, ..)| *by == self).map_or("id", |(_, word, _)| word)
    }
}

/// What is asked for. What cannot be understood is left out: an address that somebody typed is no program.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Wish {
    pub(super) q: String,
    pub(super) state: Option<StateWord>,
    pub(super) tier: Option<String>,
    pub(super) trouble: Option<Trouble>,
    pub(super) by: By,
    /// The other way round.
    pub(super) turned: bool,
    /// From 1 on.
    pub(super) page: usize,
}

impl Wish {
    /// Of the query of an address.
    pub(super) fn parse(query: &str) -> Self {
        let mut wish = Self { page: 1, ..Self::default() };
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "q" => wish.q = value.trim().chars().take(LONGEST).collect(),
                "state" => wish.state = word(&value),
                "tier" => wish.tier = Some(value.into_owned()).filter(|tier| !tier.is_empty()),
                "trouble" => wish.trouble = word(&value),
                "sort" => {
                    let by = value.strip_prefix('-');
                    (wish.turned, wish.by) = (by.is_some(), word(by.unwrap_or(&value)).unwrap_or_default());
                }
                "page" => wish.page = value.parse().unwrap_or(1).max(1),
                _ => {}
            }
        }
        wish
    }

    /// Its address.
    pub(super) fn address(&self) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        let mut add = |name: &str, value: &str| _ = query.append_pair(name, value);
        if !self.q.is_empty() {
            add("q", &self.q);
        }
        for (name, value) in
            [("state", self.state.map(StateWord::text)), ("tier", self.tier.as_deref()), ("trouble", self.trouble.map(Trouble::word))]
        {
            value.into_iter().for_each(|value| add(name, value));
        }
        if self.by != By::Id || self.turned {
            add("sort", &self.sort());
        }
        if self.page > 1 {
            add("page", &self.page.to_string());
        }
        match query.finish() {
            query if query.is_empty() => "/tenants".to_owned(),
            query => format!("/tenants?{query}"),
        }
    }

    /// As an address has it.
    pub(super) fn sort(&self) -> String {
        format!("{}{}", if self.turned { "-" } else { "" }, self.by.word())
    }

    /// The same, sorted by `by`; twice turns it round.
    pub(super) fn sorted(&self, by: By) -> Self {
        Self { by, turned: self.by == by && !self.turned, page: 1, ..self.clone() }
    }

    /// The same, on another page.
    pub(super) fn on_page(&self, page: usize) -> Self {
        Self { page, ..self.clone() }
    }
}

fn word<T: for<'a> Deserialize<'a>>(text: &str) -> Option<T> {
    T::deserialize(serde::de::value::StrDeserializer::<serde::de::value::Error>::new(text)).ok()
}

/// What is shown.
#[derive(Debug)]
pub(super) struct Shown<'a> {
    pub(super) rows: Vec<&'a Row>,
    /// How many there are on all pages.
    pub(super) total: usize,
    /// The page, from 1 on, and how many there are.
    pub(super) page: usize,
    pub(super) pages: usize,
}

/// The page that is wished for, or the last one.
pub(super) fn shown<'a>(rows: &'a [Row], wish: &Wish) -> Shown<'a> {
    let q = wish.q.to_ascii_lowercase();
    let matches = |row: &&Row| {
        wish.state.is_none_or(|state| row.state == state)
            && wish.tier.as_ref().is_none_or(|tier| row.tier == *tier)
            && wish.trouble.is_none_or(|trouble| trouble.is_of(row))
            && (q.is_empty() || holds(row.id.as_str(), &q))
    };
    let mut found: Vec<&Row> = rows.iter().filter(matches).collect();
    // They come by id, and sorts are stable: those that are equal stay so.
    match wish.by {
        By::Id => {}
        By::State => found.sort_by_key(|row| settled(row)),
        By::Tier => found.sort_by(|one, other| one.tier.cmp(&other.tier)),
        By::Memory => found.sort_by_key(|row| Reverse(row.memory)),
        By::Storage => found.sort_by_key(|row| Reverse(row.storage)),
        By::Requests => found.sort_by_key(|row| Reverse(row.requests_today)),
        By::Restarts => found.sort_by_key(|row| Reverse(row.restarts)),
    }
    if wish.turned {
        found.reverse();
    }
    let (total, pages) = (found.len(), found.len().div_ceil(ROWS).max(1));
    let page = wish.page.clamp(1, pages);
    let rows = found.into_iter().skip((page - 1) * ROWS).take(ROWS).collect();
    Shown { rows, total, page, pages }
}

/// Whether `text` holds `part`, which is in lower case.
fn holds(text: &str, part: &str) -> bool {
    text.len() >= part.len() && text.as_bytes().windows(part.len()).any(|window| window.eq_ignore_ascii_case(part.as_bytes()))
}

/// What is in trouble comes first, what is as it should be last.
fn settled(row: &Row) -> u8 {
    match row.state {
        StateWord::Crashed => 0,
        _ if Trouble::Any.is_of(row) => 1,
        StateWord::Stopped => 2,
        StateWord::Draining => 3,
        StateWord::Starting => 4,
        StateWord::Suspended => 5,
        StateWord::Ready => 6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::TenantId;

    pub(in crate::admin::site) fn row(id: &str) -> Row {
        Row {
            id: TenantId::parse(id).unwrap(),
            tier: "free".to_owned(),
            state: StateWord::Ready,
            memory: None,
            memory_max: Some(100),
            storage: None,
            storage_max: None,
            requests_today: 0,
            restarts: 0,
            is_silent: false,
            is_held: false,
            note: None,
        }
    }

    fn rows() -> Vec<Row> {
        vec![
            Row { memory: Some(10), ..row("ada") },
            Row { state: StateWord::Crashed, restarts: 3, ..row("Bob@example.com") },
            Row { memory: Some(80), tier: "paid".to_owned(), ..row("cleo") },
            Row { state: StateWord::Suspended, storage: Some(5), ..row("dan") },
        ]
    }

    fn ids(query: &str) -> Vec<String> {
        shown(&rows(), &Wish::parse(query)).rows.into_iter().map(|row| row.id.to_string()).collect()
    }

    #[test]
    fn rows_are_found_by_id_state_tier_and_trouble() {
        assert_eq!(ids(""), ["ada", "Bob@example.com", "cleo", "dan"]);
        assert_eq!(ids("q=BOB%40"), ["Bob@example.com"]);
        assert_eq!(ids("state=suspended"), ["dan"]);
        assert_eq!(ids("tier=paid&q="), ["cleo"]);
        assert_eq!(ids("trouble=any"), ["Bob@example.com", "cleo"]);
        assert_eq!(ids("trouble=memory"), ["cleo"]);
        assert_eq!(ids("trouble=crashed&tier=paid"), [""; 0]);
        assert_eq!(ids("state=odd&trouble=&sort=odd&page=x&more=1").len(), 4, "what is not understood is left out");
    }

    #[test]
    fn rows_are_sorted_and_turned_round() {
        assert_eq!(ids("sort=-id"), ["dan", "cleo", "Bob@example.com", "ada"]);
        assert_eq!(ids("sort=memory")[..2], ["cleo", "ada"]);
        assert_eq!(ids("sort=state"), ["Bob@example.com", "cleo", "dan", "ada"], "trouble first");
        assert_eq!(ids("sort=restarts")[0], "Bob@example.com");
        assert_eq!(ids("sort=-memory").last().unwrap(), "cleo");
        assert_eq!(ids("sort=tier").last().unwrap(), "cleo");
    }

    #[test]
    fn a_page_beyond_the_last_is_the_last() {
        let many: Vec<Row> = (0..120).map(|n| row(&format!("t{n:03}"))).collect();
        let page = |page| {
            let shown = shown(&many, &Wish { page, ..Wish::default() });
            (shown.page, shown.pages, shown.total, shown.rows.len(), shown.rows[0].id.to_string())
        };
        assert_eq!(page(1), (1, 3, 120, 50, "t000".to_owned()));
        assert_eq!(page(3), (3, 3, 120, 20, "t100".to_owned()));
        assert_eq!((page(99).0, page(0).0), (3, 1));
        assert_eq!(shown(&[], &Wish::parse("page=7")).pages, 1);
    }

    #[test]
    fn an_address_says_what_was_wished_for() {
        for address in ["/tenants", "/tenants?q=a%2Bb%26%22&state=ready&tier=x+y&trouble=any&sort=-memory&page=2", "/tenants?sort=-id"] {
            let wish = Wish::parse(address.split_once('?').map_or("", |(_, query)| query));
            assert_eq!(wish.address(), address);
        }
        let wish = Wish::parse("sort=memory&page=3");
        assert_eq!(wish.sorted(By::Memory).address(), "/tenants?sort=-memory");
        assert_eq!(wish.sorted(By::Id).address(), "/tenants");
        assert_eq!(wish.on_page(2).address(), "/tenants?sort=memory&page=2");
    }
}
