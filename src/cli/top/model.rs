//! What the screen shows and what a key does to it. Pure: status and time come in, rows go out.

use std::{
    cmp::Ordering,
    collections::{HashMap, VecDeque},
    time::Instant,
};

use crate::{
    admin::status::{Status, TenantStatus},
    desired::TenantId,
    store::Event,
};

/// Rows that a page key moves by.
const PAGE: usize = 20;
/// Lines of a log that are kept.
const LINES: usize = 1_000;

/// A key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    Letter(char),
    Up,
    Down,
    PageUp,
    PageDown,
    Enter,
    Escape,
    Backspace,
    Interrupt,
}

/// What comes of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    GoesOn,
    End,
}

/// By what the rows are sorted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sort {
    Id,
    State,
    Rate,
    Memory,
    Storage,
    Requests,
    Restarts,
}

impl Sort {
    const ALL: [Self; 7] = [Self::Id, Self::State, Self::Rate, Self::Memory, Self::Storage, Self::Requests, Self::Restarts];

    fn next(self) -> Self {
        let at = Self::ALL.iter().position(|sort| *sort == self).unwrap_or(0);
        Self::ALL[(at + 1) % Self::ALL.len()]
    }

    /// The heading of its column.
    pub(super) fn heading(self) -> &'static str {
        match self {
            Self::Id => "ID",
            Self::State => "STATE",
            Self::Rate => "REQ/S",
            Self::Memory => "MEMORY",
            Self::Storage => "STORAGE",
            Self::Requests => "REQUESTS",
            Self::Restarts => "RESTARTS",
        }
    }
}

/// What is said of the tenant that is opened.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// Lines of its log that came since.
    pub(super) lines: Vec<String>,
    /// Its events, the newest first.
    pub(super) events: Vec<Event>,
}

/// The tenant that is opened.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) id: TenantId,
    pub(super) lines: VecDeque<String>,
    pub(super) events: Vec<Event>,
}

/// All that is shown.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) status: Status,
    seen_at: Instant,
    /// Requests a second since the look before.
    rates: HashMap<String, f64>,
    /// Why the last look came to nothing.
    pub(super) lost: Option<String>,
    pub(super) sort: Sort,
    /// The largest first, but names from A on.
    pub(super) turned: bool,
    pub(super) filter: String,
    /// Letters go into the filter.
    pub(super) typing: bool,
    /// Whose row is marked, by its name: rows move.
    marked: Option<String>,
    pub(super) opened: Option<Opened>,
}

impl Model {
    pub(super) fn new(status: Status, now: Instant) -> Self {
        Self {
            status,
            seen_at: now,
            rates: HashMap::new(),
            lost: None,
            sort: Sort::Id,
            turned: false,
            filter: String::new(),
            typing: false,
            marked: None,
            opened: None,
        }
    }

    /// A look came to this.
    pub(super) fn see(&mut self, status: Status, now: Instant) {
        let seconds = now.duration_since(self.seen_at).as_secs_f64();
        let before: HashMap<&str, u64> = self.status.tenants.iter().map(|tenant| (tenant.id.as_str(), tenant.requests)).collect();
        let rate = |tenant: &TenantStatus| {
            // A count that is behind has begun anew.
            let more = tenant.requests.saturating_sub(*before.get(tenant.id.as_str())?);
            (seconds > 0.0).then(|| (tenant.id.clone(), more as f64 / seconds))
        };
        let rates = status.tenants.iter().filter_map(rate).collect();
        (self.rates, self.status, self.seen_at, self.lost) = (rates, status, now, None);
    }

    /// A look came to nothing: what was seen stays, and is said to be old.
    pub(super) fn lose(&mut self, why: String) {
        self.lost = Some(why);
    }

    /// News of the tenant that is opened.
    pub(super) fn tell(&mut self, told: Told) {
        if let Some(opened) = &mut self.opened {
            opened.lines.extend(told.lines);
            let beyond = opened.lines.len().saturating_sub(LINES);
            opened.lines.drain(..beyond);
            opened.events = told.events;
        }
    }

    pub(super) fn opened(&self) -> Option<&TenantId> {
        self.opened.as_ref().map(|opened| &opened.id)
    }

    pub(super) fn rate(&self, tenant: &TenantStatus) -> Option<f64> {
        self.rates.get(&tenant.id).copied()
    }

    /// The rows as they are shown.
    pub(super) fn rows(&self) -> Vec<&TenantStatus> {
        let matches =
            |tenant: &&TenantStatus| [&tenant.id, &tenant.tier, &tenant.state].into_iter().any(|text| text.contains(self.filter.as_str()));
        let mut rows: Vec<&TenantStatus> = self.status.tenants.iter().filter(matches).collect();
        rows.sort_by(|one, other| self.compare(one, other));
        rows
    }

    fn compare(&self, one: &TenantStatus, other: &TenantStatus) -> Ordering {
        let by_id = one.id.cmp(&other.id);
        let order = match self.sort {
            Sort::Id => by_id,
            Sort::State => settled(one).cmp(&settled(other)).then_with(|| one.state.cmp(&other.state)),
            Sort::Rate => self.rate(other).unwrap_or(0.0).total_cmp(&self.rate(one).unwrap_or(0.0)),
            Sort::Memory => other.memory_bytes.cmp(&one.memory_bytes),
            Sort::Storage => other.storage_bytes.cmp(&one.storage_bytes),
            Sort::Requests => other.requests.cmp(&one.requests),
            Sort::Restarts => other.restarts.cmp(&one.restarts),
        };
        if self.turned { order.reverse() } else { order }.then(by_id)
    }

    /// Where in the rows the mark is.
    pub(super) fn mark(&self) -> usize {
        let rows = self.rows();
        self.marked.as_ref().and_then(|id| rows.iter().position(|tenant| tenant.id == *id)).unwrap_or(0)
    }

    pub(super) fn press(&mut self, key: Key) -> Outcome {
        match key {
            Key::Interrupt => return Outcome::End,
            _ if self.typing => self.typed(key),
            Key::Letter('q') | Key::Escape if self.opened.is_some() => self.opened = None,
            Key::Letter('q') => return Outcome::End,
            Key::Escape => self.filter.clear(),
            Key::Enter => self.open(),
            Key::Letter('/') => (self.typing, self.opened) = (true, None),
            Key::Letter('s') => self.sort = self.sort.next(),
            Key::Letter('r') => self.turned = !self.turned,
            Key::Up | Key::Letter('k') => self.move_to(|at| at.saturating_sub(1)),
            Key::Down | Key::Letter('j') => self.move_to(|at| at + 1),
            Key::PageUp => self.move_to(|at| at.saturating_sub(PAGE)),
            Key::PageDown => self.move_to(|at| at + PAGE),
            Key::Letter(_) | Key::Backspace => {}
        }
        Outcome::GoesOn
    }

    fn typed(&mut self, key: Key) {
        match key {
            Key::Letter(letter) => self.filter.push(letter),
            Key::Backspace => _ = self.filter.pop(),
            Key::Enter => self.typing = false,
            Key::Escape => (self.typing, self.filter) = (false, String::new()),
            _ => {}
        }
    }

    fn move_to(&mut self, to: impl Fn(usize) -> usize) {
        let rows = self.rows();
        let at = to(self.mark()).min(rows.len().saturating_sub(1));
        self.marked = rows.get(at).map(|tenant| tenant.id.clone());
        // With one tenant open, the keys go to the next one.
        if self.opened.is_some() {
            self.open();
        }
    }

    fn open(&mut self) {
        let marked = self.rows().get(self.mark()).and_then(|tenant| TenantId::parse(&tenant.id).ok());
        if let Some(id) = marked
            && self.opened() != Some(&id)
        {
            self.marked = Some(id.to_string());
            self.opened = Some(Opened { id, lines: VecDeque::new(), events: Vec::new() });
        }
    }
}

/// As somebody wanted it; the others come first, since they need somebody.
fn settled(tenant: &TenantStatus) -> bool {
    matches!(tenant.state.as_str(), "ready" | "suspended")
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::doctor::fixture;

    pub(in crate::cli::top) fn model() -> Model {
        let tenant = |id: &str, state: &str, memory: u64, requests: u64| TenantStatus {
            memory_bytes: Some(memory),
            requests,
            ..fixture::tenant(id, state, "answers")
        };
        let tenants = vec![tenant("ada", "ready", 3 << 20, 10), tenant("bob", "crashed", 1 << 20, 20), tenant("cid", "ready", 2 << 20, 0)];
        Model::new(Status { tenants, ..fixture::status() }, Instant::now())
    }

    fn ids(model: &Model) -> Vec<&str> {
        model.rows().iter().map(|tenant| tenant.id.as_str()).collect()
    }

    fn press(model: &mut Model, keys: &str) {
        keys.chars().for_each(|letter| assert_eq!(model.press(Key::Letter(letter)), Outcome::GoesOn));
    }

    fn sort_by(model: &mut Model, sort: Sort) {
        while model.sort != sort {
            press(model, "s");
        }
    }

    #[test]
    fn rows_are_sorted_by_what_was_chosen_and_turned() {
        let mut model = model();
        assert_eq!(ids(&model), ["ada", "bob", "cid"]);
        sort_by(&mut model, Sort::State);
        assert_eq!(ids(&model), ["bob", "ada", "cid"], "who needs somebody comes first");
        sort_by(&mut model, Sort::Memory);
        assert_eq!(ids(&model), ["ada", "cid", "bob"]);
        press(&mut model, "r");
        assert_eq!(ids(&model), ["bob", "cid", "ada"]);
    }

    #[test]
    fn the_rate_is_what_came_since_the_look_before() {
        let mut model = model();
        let mut next = model.status.clone();
        next.tenants[0].requests += 30;
        next.tenants[1].requests = 5; // begun anew
        let later = model.seen_at + Duration::from_secs(2);
        model.see(next, later);
        let rate = |n: usize| model.rate(&model.status.tenants[n]);
        assert_eq!((rate(0), rate(1), rate(2)), (Some(15.0), Some(0.0), Some(0.0)));
        sort_by(&mut model, Sort::Rate);
        assert_eq!(ids(&model)[0], "ada");
    }

    #[test]
    fn a_filter_is_typed_and_taken_back() {
        let mut model = model();
        press(&mut model, "/cr");
        assert_eq!((ids(&model), model.typing), (vec!["bob"], true), "by its state");
        model.press(Key::Backspace);
        press(&mut model, "id");
        assert_eq!(ids(&model), ["cid"]);
        model.press(Key::Escape);
        assert_eq!((ids(&model).len(), model.typing), (3, false));
        press(&mut model, "/q");
        assert_eq!(model.filter, "q", "a letter like any other");
        assert_eq!(model.press(Key::Interrupt), Outcome::End);
    }

    #[test]
    fn the_mark_stays_with_its_tenant_while_rows_move() {
        let mut model = model();
        press(&mut model, "j");
        assert_eq!(model.mark(), 1);
        sort_by(&mut model, Sort::State);
        assert_eq!((model.mark(), ids(&model)[0]), (0, "bob"));
        model.press(Key::PageDown);
        assert_eq!(model.mark(), 2, "no further than the last row");
        model.press(Key::Up);
        assert_eq!(model.mark(), 1);
    }

    #[test]
    fn a_tenant_is_opened_and_closed_and_the_next_one_by_an_arrow() {
        let mut model = model();
        model.press(Key::Enter);
        assert_eq!(model.opened().unwrap().as_str(), "ada");
        model.tell(Told { lines: (0..LINES + 5).map(|n| n.to_string()).collect(), events: vec![] });
        let lines = &model.opened.as_ref().unwrap().lines;
        assert_eq!((lines.len(), lines[0].as_str()), (LINES, "5"));
        model.press(Key::Down);
        assert_eq!((model.opened().unwrap().as_str(), model.opened.as_ref().unwrap().lines.len()), ("bob", 0));
        assert_eq!(model.press(Key::Letter('q')), Outcome::GoesOn, "back to the table");
        assert_eq!(model.press(Key::Letter('q')), Outcome::End);
    }

    #[test]
    fn without_an_agent_what_was_seen_stays_and_is_said_to_be_old() {
        let mut model = model();
        model.lose("no agent runs".into());
        assert_eq!((ids(&model).len(), model.lost.as_deref()), (3, Some("no agent runs")));
        let status = model.status.clone();
        model.see(status, Instant::now());
        assert_eq!(model.lost, None);
    }
}
