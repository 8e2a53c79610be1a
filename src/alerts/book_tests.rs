use std::{collections::BTreeMap, time::Duration};

use proptest::prelude::*;

use super::{Alert, Book, Condition, Facts, Key, Kind, Life, News, Severity, Share, book::QUIET};
use crate::{
    desired::{Alerts, TenantId},
    observed::Moment,
};

fn id(name: &str) -> TenantId {
    TenantId::parse(name).unwrap()
}

fn held(hash: &str) -> Condition {
    Condition::warning(Key::host(Kind::RemovalsHeld), "removals are held", "sq-agent plan").about(hash)
}

fn crash(book: &mut Book, name: &str, at: u64) {
    book.crashed(&id(name), "exit 101", "tail sq.log", at);
}

/// A host, and whoever is told.
struct Host {
    book: Book,
    rules: Alerts,
    memory: Option<Share>,
    tenants: BTreeMap<TenantId, Option<Share>>,
    conditions: Vec<Condition>,
    unsure: Vec<Kind>,
    unix_now: u64,
    now: Moment,
}

impl Host {
    fn new(names: &[&str]) -> Self {
        Self {
            book: Book::default(),
            rules: Alerts::default(),
            memory: None,
            tenants: names.iter().map(|name| (id(name), None)).collect(),
            conditions: Vec::new(),
            unsure: Vec::new(),
            unix_now: 1_000_000,
            now: Moment::from_millis(1_000_000),
        }
    }

    fn after(&mut self, seconds: u64) -> Vec<Alert> {
        self.unix_now += seconds;
        self.now = self.now + Duration::from_secs(seconds);
        let facts = Facts {
            memory: self.memory,
            disk: None,
            tenants: self.tenants.iter().map(|(id, share)| (id, *share)).collect(),
            conditions: self.conditions.clone(),
            unsure: self.unsure.iter().copied().collect(),
            largest: (0..9).map(|n| (id(&format!("big{n}")), 100 - n)).collect(),
            state_dir: "/s".into(),
        };
        self.book.look(&facts, &self.rules, self.unix_now, self.now)
    }

    /// What is said after so many seconds, in words.
    fn says(&mut self, seconds: u64) -> Vec<String> {
        let word = |alert: &Alert| match alert.single() {
            Some(item) => {
                let of = item.key.tenant.as_ref().map_or_else(String::new, |id| format!(" {id}"));
                format!("{} {}{of} {}", item.news.word(), item.key.kind.word(), item.severity)
            }
            None => format!("summary of {}", alert.items.len() as u64 + alert.more),
        };
        self.after(seconds).iter().map(word).collect()
    }

    fn memory(&mut self, percent: u64) {
        self.memory = Some(Share { used: percent << 20, total: 100 << 20 });
    }

    fn restart(&mut self) {
        self.book = Book::new(self.book.kept().unwrap()).unwrap();
    }
}

#[test]
fn one_message_a_transition_and_one_when_it_is_over() {
    let mut host = Host::new(&[]);
    let walk = [(79, vec![]), (81, vec!["raised host_memory warning"]), (95, vec!["raised host_memory critical"]), (86, vec![])];
    let back = [(84, vec!["raised host_memory warning"]), (76, vec![]), (74, vec!["resolved host_memory warning"]), (74, vec![])];
    for (percent, said) in walk.into_iter().chain(back) {
        host.memory(percent);
        assert_eq!(host.says(5), said, "{percent} %");
    }
}

#[test]
fn a_message_has_the_five_largest_tenants_what_to_run_and_since_when() {
    let mut host = Host::new(&["a"]);
    host.tenants.insert(id("a"), Some(Share { used: 17 << 20, total: 20 << 20 }));
    let alerts = host.after(5);
    let item = alerts[0].single().unwrap();
    assert_eq!(item.text, "85 % (17 of 20 MB) of its memory_max is taken: raise memory_max, or lower body_max");
    assert_eq!((item.command.as_str(), item.since, alerts[0].largest.len()), ("sq-agent restart a", host.unix_now, 5));
    host.tenants.insert(id("a"), None);
    assert!(host.after(5).is_empty(), "its instance starts anew, and is not measured yet");
    host.tenants.insert(id("a"), Some(Share { used: 0, total: 0 }));
    let over = host.after(5);
    assert!(over[0].single().unwrap().news == News::Resolved && over[0].largest.is_empty(), "it has no limit any more");
}

#[test]
fn what_is_still_open_is_said_again_every_six_hours_or_never() {
    let mut host = Host::new(&[]);
    host.conditions = vec![held("h")];
    assert_eq!(host.says(0), ["raised removals_held warning"]);
    assert!(host.says(6 * 3_600 - 1).is_empty());
    assert_eq!(host.says(1), ["reminder removals_held warning"]);
    assert!(host.says(3_600).is_empty());
    host.unix_now -= 100_000;
    assert!(host.says(1).is_empty(), "a clock that was set back");
    assert_eq!(host.says(6 * 3_600), ["reminder removals_held warning"]);
    host.rules.reminder = None;
    assert!(host.says(90_000).is_empty());
}

#[test]
fn another_plan_is_another_alert_and_another_text_is_not() {
    let mut host = Host::new(&[]);
    host.conditions = vec![held("h")];
    host.after(0);
    host.conditions = vec![Condition { text: "more removals".into(), ..held("h") }];
    assert!(host.says(5).is_empty());
    host.conditions = vec![held("i")];
    assert_eq!(host.says(5), ["raised removals_held warning"]);
}

#[test]
fn the_fifth_crash_in_ten_minutes_is_a_loop_until_ten_minutes_without_one() {
    let mut host = Host::new(&["a"]);
    for _ in 0..4 {
        crash(&mut host.book, "a", host.unix_now);
        assert!(host.says(60).is_empty());
    }
    host.restart();
    crash(&mut host.book, "a", host.unix_now);
    assert_eq!(host.says(0), ["raised crash_loop a critical"], "an agent's restart forgets no crash");
    host.after(QUIET - 1);
    crash(&mut host.book, "a", host.unix_now);
    assert!(host.says(QUIET - 1).is_empty(), "one more");
    assert_eq!(host.says(1), ["resolved crash_loop a critical"]);
    for _ in 0..8 {
        crash(&mut host.book, "a", host.unix_now);
        assert!(host.says(150).is_empty(), "four in ten minutes are none");
    }
}

#[test]
fn who_is_not_served_any_more_has_no_alerts() {
    let mut host = Host::new(&["a"]);
    (0..5).for_each(|_| crash(&mut host.book, "a", host.unix_now));
    host.after(0);
    host.tenants.clear();
    assert_eq!(host.says(5), ["resolved crash_loop a critical"]);
}

#[test]
fn an_agents_restart_neither_repeats_nor_forgets_anything() {
    let mut host = Host::new(&[]);
    host.memory(95);
    host.conditions = vec![held("h")];
    assert_eq!(host.after(0).len(), 2);
    host.restart();
    host.memory = None;
    host.conditions.clear();
    host.unsure = vec![Kind::RemovalsHeld];
    assert!(host.says(1).is_empty(), "nothing is known yet");
    host.memory(95);
    host.conditions = vec![held("h")];
    host.unsure.clear();
    assert!(host.says(1).is_empty(), "told already");
    host.restart();
    host.conditions.clear();
    assert_eq!(host.says(1), ["resolved removals_held warning"]);
}

#[test]
fn an_agent_that_ended_without_being_told_to_is_said_once() {
    let life = |pid| Life { pid, boot_id: "b".into() };
    let mut host = Host::new(&[]);
    host.book.begun(life(1), host.unix_now);
    assert!(host.says(1).is_empty(), "the first one");
    host.restart();
    host.book.begun(life(2), host.unix_now);
    assert_eq!(host.says(1), ["raised agent_restarted warning"]);
    host.restart();
    host.book.begun(life(3), host.unix_now);
    assert!(host.says(QUIET - 1).is_empty(), "again, within ten minutes");
    assert_eq!(host.says(1), ["resolved agent_restarted warning"]);
    host.book.ended();
    host.restart();
    host.book.begun(life(4), host.unix_now);
    assert!(host.says(1).is_empty(), "told to");
    host.book.begun(Life { boot_id: "c".into(), ..life(5) }, host.unix_now);
    assert!(host.after(1)[0].single().unwrap().text.starts_with("the host went down"));
}

#[test]
fn a_storm_is_one_summary_and_what_follows_is_gathered() {
    let names: Vec<String> = (0..200).map(|n| format!("t{n}")).collect();
    let mut host = Host::new(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let full = |percent: u64| Some(Share { used: percent, total: 100 });
    (0..180).for_each(|n| _ = host.tenants.insert(id(&format!("t{n}")), full(85)));
    assert_eq!(host.says(0), ["summary of 180"]);
    (180..200).for_each(|n| _ = host.tenants.insert(id(&format!("t{n}")), full(95)));
    host.memory(95);
    assert_eq!(host.says(5), ["raised host_memory critical"], "what is about the host waits for no storm");
    host.tenants.insert(id("t0"), full(10));
    host.tenants.insert(id("t199"), full(10));
    host.restart();
    assert_eq!(host.says(54), ["summary of 20"], "19 more and one that is over; of what came and went nobody was told");
    assert!(host.says(60).is_empty());
    host.tenants.insert(id("t1"), full(10));
    assert_eq!(host.says(1), ["resolved tenant_memory t1 warning"]);
}

#[test]
fn what_may_pass_by_itself_has_to_hold_for_a_while() {
    let down = Condition::critical(Key::host(Kind::ProxyDown), "down", "tail").patience(Duration::from_secs(10));
    let mut host = Host::new(&[]);
    host.conditions = vec![down.clone()];
    assert!(host.says(0).is_empty() && host.says(9).is_empty());
    host.conditions.clear();
    assert!(host.says(1).is_empty());
    host.conditions = vec![down];
    assert!(host.says(1).is_empty() && host.says(9).is_empty());
    assert_eq!(host.says(1), ["raised proxy_down critical"]);
}

proptest! {
    /// Whatever happens, and however often the agent starts anew: who adds up what was told knows what is open, once a storm is over.
    #[test]
    fn who_is_told_knows_what_is_open(steps in proptest::collection::vec((0_u8..6, 0_u8..12, 0_u64..70), 1..60)) {
        let names: Vec<String> = (0..12).map(|n| format!("t{n}")).collect();
        let mut host = Host::new(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let mut believed: BTreeMap<Key, Severity> = BTreeMap::new();
        let mut hear = |alerts: Vec<Alert>| {
            for item in alerts.into_iter().flat_map(|alert| alert.items) {
                match item.news {
                    News::Resolved => prop_assert!(believed.remove(&item.key).is_some(), "{:?} was never told", item.key),
                    News::Raised => prop_assert!(believed.insert(item.key, item.severity) != Some(item.severity), "told twice"),
                    News::Reminder => prop_assert_eq!(believed.get(&item.key), Some(&item.severity)),
                }
            }
            Ok(())
        };
        for (what, of, seconds) in steps {
            let name = format!("t{of}");
            match what {
                0 => crash(&mut host.book, &name, host.unix_now),
                1 => _ = host.tenants.insert(id(&name), Some(Share { used: u64::from(of) * 9, total: 100 })),
                2 => _ = host.tenants.insert(id(&name), Some(Share { used: seconds * 3 / 2, total: 100 })),
                3 => _ = host.tenants.remove(&id(&name)),
                4 => host.memory(seconds * 3 / 2),
                _ => host.restart(),
            }
            hear(host.after(seconds))?;
        }
        hear(host.after(61))?;
        hear(host.after(61))?;
        let open: BTreeMap<Key, Severity> = host.book.open().map(|item| (item.key, item.severity)).collect();
        prop_assert!(host.book.is_told());
        prop_assert_eq!(believed, open);
    }
}
