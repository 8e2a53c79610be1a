//! Every change, in every form that a file may have; and that nothing but it happens to a file.

use std::{collections::BTreeSet, fmt::Write as _, path::Path};

use proptest::prelude::*;

use super::{super::change::leads, *};
use crate::desired::{Desired, parse};

fn id(text: &str) -> TenantId {
    TenantId::parse(text).unwrap()
}

fn meaning(text: &str) -> Desired {
    parse(text, Path::new("/etc/tenants.toml")).unwrap_or_else(|rejected| panic!("{text}\n{rejected}"))
}

fn provision(name: &str, tier: Option<&str>) -> Change {
    Change::Provision { id: id(name), tier: tier.map(str::to_owned) }
}

fn remove(name: &str) -> Change {
    Change::Remove { id: id(name) }
}

fn suspend(name: &str, suspended: bool) -> Change {
    Change::Suspend { id: id(name), suspended }
}

fn tier(name: &str, tier: &str) -> Change {
    Change::Tier { id: id(name), tier: tier.into() }
}

fn add_key(name: &str, digest: u8) -> Change {
    Change::AddApiKey { id: id(name), digest: [digest; 32] }
}

fn remove_key(name: &str, digest: u8) -> Change {
    Change::RemoveApiKey { id: id(name), digest: [digest; 32] }
}

fn revoke(name: &str, at: u64) -> Change {
    Change::RevokeTokens { id: id(name), at }
}

/// A key as the file has it.
fn key(digest: u8) -> String {
    format!("\"sha256:{}\"", hex(&[digest; 32]))
}

/// The new text, which means what it should.
fn edited(text: &str, change: &Change) -> String {
    match apply(text, change).unwrap_or_else(|refused| panic!("{change:?}: {refused}\n{text}")) {
        Edited::Changed(new) => {
            assert!(leads(&[change], &meaning(text), &meaning(&new)), "{change:?}\n{text}\n→\n{new}");
            new
        }
        Edited::Unchanged => text.to_owned(),
    }
}

const TIERS: &str = "# The host of the maths department.\n[tiers.free] # for all\nrate = \"none\"\n\n[tiers.paid]\n";

#[test]
fn a_tenant_is_added_below_the_others_and_removed_without_a_trace() {
    for before in [
        "",
        "\n",
        "# nothing yet\n",
        TIERS,
        "[[tenants]]\nid = 'ada' # first\n",
        "[[tenants]]\nid = 'ada'\n# tier = 'paid'\n",
        "[[tenants]]\nid = 'ada'\n\n# Bob pays\n[[tenants]]\nid = 'bob'\n\n# the end\n",
        "[[tenants]]\nid = 'ada'\n[[tenants]]\nid = 'bob'\n",
        "[[tenants]]\nid = 'ada'\n\n# the tiers\n[tiers.free]\n",
        "tenants = []\n",
        "tenants = [{ id = 'ada' }, { id = 'bob', }]\n",
        "tenants = [\n  # first\n  { id = 'ada' }, # Ada\n  { id = 'bob' },\n]\n",
        "tenants = [\r\n\t{ id = 'ada' }, # Ada\r\n\t{ id = 'bob' }\r\n]\r\n",
    ] {
        for before in [before.to_owned(), before.replace("\r\n", "\n").replace('\n', "\r\n"), format!("\u{feff}{before}")] {
            let with = edited(&before, &provision("eve", None));
            assert!(meaning(&with).tenants.contains_key(&id("eve")), "{with}");
            assert_eq!(edited(&with, &remove("eve")), before, "{before:?} with: {with:?}");
            assert_eq!(apply(&with, &provision("eve", None)), Ok(Edited::Unchanged), "a second time");
        }
    }
    let text = format!("{TIERS}\n  [[tenants]]\n    id = \"ada\"\n    # tier = \"gold\"\n\n# the end\n");
    let with = "\n  [[tenants]]\n    id = \"eve\"\n    tier = \"paid\"\n";
    assert_eq!(edited(&text, &provision("eve", Some("paid"))), text.replace("\n\n# the end", &format!("\n{with}\n# the end")));
    let inline = "tenants = [{ id = \"ada\" }]\n[tiers.free]\n[tiers.paid]\n";
    assert_eq!(
        edited(inline, &provision("eve", Some("paid"))),
        inline.replace(" }]", " }, { id = \"eve\", tier = \"paid\" }]"),
        "in the way in which the others are written"
    );
}

#[test]
fn what_stands_directly_above_a_tenant_goes_with_it_and_nothing_else() {
    let text = "#:schema ./tenants.schema.json\n# Ada was the first.\n[[tenants]]\nid = \"ada\" # at home\n# a note\ntier = \"free\"\n\n\
        # --- the others ---\n\n# Bob pays.\n# Or so he says.\n[[tenants]]\nid = \"bob\"\n\n[[tenants]]\nid = \"cleo\"\n# of the tiers\n[tiers.free]\n";
    assert_eq!(
        edited(text, &remove("ada")),
        text.replace("# Ada was the first.\n[[tenants]]\nid = \"ada\" # at home\n# a note\ntier = \"free\"\n", "")
    );
    assert_eq!(edited(text, &remove("bob")), text.replace("# Bob pays.\n# Or so he says.\n[[tenants]]\nid = \"bob\"\n\n", ""));
    assert_eq!(edited(text, &remove("cleo")), text.replace("[[tenants]]\nid = \"cleo\"\n", ""));
}

#[test]
fn each_key_is_written_where_it_stands_or_below_the_others() {
    let text = "[tiers.free]\n[tiers.paid]\n[[tenants]]\nid=\"ada\" # 1\nburst = 3\n[[tenants]]\nid = 'bob'\ntier = 'paid' # for now\nsuspended = true# why\n";
    for (change, from, to) in [
        (suspend("ada", true), "burst = 3\n", "burst = 3\nsuspended = true\n"),
        (suspend("bob", false), "= true# why", "= false# why"),
        (tier("ada", "paid"), "# 1\n", "# 1\ntier = \"paid\"\n"),
        (tier("bob", "free"), "'paid' # for now", "'free' # for now"),
        (revoke("ada", 1_770_676_320), "burst = 3\n", "burst = 3\ntokens_valid_after = 2026-02-09T22:32:00Z\n"),
        (add_key("bob", 7), "true# why\n", &format!("true# why\napi_keys = [{}]\n", key(7))),
    ] {
        let new = edited(text, &change);
        assert_eq!(new, text.replacen(from, to, 1), "{change:?}");
        assert_eq!(apply(&new, &change), Ok(Edited::Unchanged), "{change:?} a second time");
    }
    let inline = "tenants = [\n  { id = \"ada\", burst = 3 }, # 1\n  { id = 'bob', tier = 'paid', },\n]\n[tiers.free]\n[tiers.paid]\n";
    for (change, from, to) in [
        (suspend("ada", true), "3 }", "3, suspended = true }"),
        (tier("ada", "paid"), "\"ada\",", "\"ada\", tier = \"paid\","),
        (tier("bob", "free"), "'paid'", "'free'"),
        (add_key("bob", 7), "'paid',", &format!("'paid', api_keys = [{}],", key(7))),
    ] {
        assert_eq!(edited(inline, &change), inline.replacen(from, to, 1), "{change:?}");
    }
    assert_eq!(
        edited("[[tenants]]\nid = 'ada'", &suspend("ada", true)),
        "[[tenants]]\nid = 'ada'\nsuspended = true\n",
        "no end of the line"
    );
}

#[test]
fn keys_are_added_and_removed_as_the_list_is_written() {
    let text = format!("[[tenants]]\nid = 'ada'\napi_keys = [\n  # laptop\n  {},\n  {}, # phone\n]\n", key(1), key(2));
    let with = edited(&text, &add_key("ada", 3));
    assert_eq!(with, text.replace("# phone\n", &format!("# phone\n  {},\n", key(3))));
    assert_eq!(edited(&with, &remove_key("ada", 3)), text);
    assert_eq!(edited(&text, &remove_key("ada", 1)), text.replace(&format!("  # laptop\n  {},\n", key(1)), ""));
    assert_eq!(apply(&text, &add_key("ada", 1)), Ok(Edited::Unchanged));
    assert_eq!(apply(&text, &remove_key("ada", 9)), Ok(Edited::Unchanged));
    let upper = text.replace(&hex(&[1; 32]), &hex(&[1; 32]).to_uppercase());
    assert_eq!(apply(&upper, &add_key("ada", 1)), Ok(Edited::Unchanged));
}

#[test]
fn what_cannot_be_is_refused() {
    let text =
        format!("[tiers.free]\n[tiers.paid]\n[[tenants]]\nid = 'ada'\ntier = 'paid'\napi_keys = [{}]\n[[tenants]]\nid = 'bob'\n", key(1));
    let unknown = |tier: &str| Refused::UnknownTier { tier: tier.into(), known: vec!["free".into(), "paid".into()] };
    assert_eq!(apply(&text, &provision("eve", Some("gold"))), Err(unknown("gold")));
    assert_eq!(apply(&text, &provision("ada", Some("gold"))), Err(unknown("gold")));
    assert_eq!(apply(&text, &tier("ada", "gold")), Err(unknown("gold")));
    assert_eq!(apply(&text, &provision("ada", Some("free"))), Err(Refused::OtherTier { id: id("ada"), has: "paid".into() }));
    assert_eq!(apply(&text, &provision("ada", Some("paid"))), Ok(Edited::Unchanged));
    assert_eq!(apply(&text, &provision("ada", None)), Ok(Edited::Unchanged));
    assert_eq!(apply(&text, &add_key("bob", 1)), Err(Refused::KeyTaken { owner: "ada".into() }));
    for change in [remove("eve"), suspend("eve", true), tier("eve", "free"), add_key("eve", 2), remove_key("eve", 1), revoke("eve", 1)] {
        assert_eq!(apply(&text, &change), Err(Refused::UnknownTenant(id("eve"))));
    }
    assert_eq!(
        apply("[tiers.paid]\n", &provision("eve", None)),
        Err(Refused::UnknownTier { tier: "free".into(), known: vec!["paid".into()] })
    );
    for broken in ["[[tenants", "tenants = 1", "tenants = ['ada']", "[[tenants]]\nid = 1", "[tenants.a]\nid = 'a'"] {
        assert!(matches!(apply(broken, &suspend("ada", true)), Err(Refused::Unreadable(_))), "{broken}");
    }
}

#[test]
fn what_was_revoked_stays_revoked() {
    let text = "[[tenants]]\nid = 'ada'\ntokens_valid_after = 2026-02-09T22:32:00+01:00\n";
    let at = meaning(text).tenants[&id("ada")].tokens_valid_after;
    assert_eq!(apply(text, &revoke("ada", at)), Ok(Edited::Unchanged));
    assert_eq!(apply(text, &revoke("ada", at - 1)), Ok(Edited::Unchanged));
    assert!(edited(text, &revoke("ada", at + 1)).contains("2026-02-09T21:32:01Z"));
    assert!(edited(text, &revoke("ada", u64::MAX)).contains("9999-12-31T23:59:59Z"));
}

#[test]
fn tenants_between_other_tables_and_with_odd_strings_are_found() {
    let text = "[[tenants]]\n\"id\" = \"\\u0061da\"\n\n[tiers.free]\n\n[[ 'tenants' ]]\nid = \"\"\"bob\"\"\"\n\n[tiers.paid]\n";
    assert_eq!(edited(text, &remove("ada")), text.replace("[[tenants]]\n\"id\" = \"\\u0061da\"\n\n", ""));
    assert_eq!(edited(text, &tier("bob", "paid")), text.replace("\"\"\"bob\"\"\"\n", "\"\"\"bob\"\"\"\ntier = \"paid\"\n"));
    assert_eq!(edited(text, &provision("eve", None)), text.replace("\"\"\"bob\"\"\"\n", "\"\"\"bob\"\"\"\n\n[[tenants]]\nid = \"eve\"\n"));
}

/// What stands around one line or element.
#[derive(Debug, Clone)]
struct Around {
    blank: usize,
    above: bool,
    apart: bool,
    behind: bool,
}

fn around() -> impl Strategy<Value = Around> {
    (0..3_usize, any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(blank, above, apart, behind)| Around {
        blank,
        above,
        apart,
        behind,
    })
}

/// One tenant of a file.
#[derive(Debug, Clone)]
struct Someone {
    around: Around,
    tier: Option<usize>,
    suspended: Option<bool>,
    keys: Vec<Around>,
    keys_apart: bool,
    revoked: Option<u64>,
    tier_first: bool,
    literal: bool,
}

fn someone() -> impl Strategy<Value = Someone> {
    let keys = prop::collection::vec(around(), 0..4);
    let revoked = prop::option::of(0..4_000_000_000_u64);
    (around(), prop::option::of(0..2_usize), prop::option::of(any::<bool>()), keys, any::<bool>(), revoked, any::<bool>(), any::<bool>())
        .prop_map(|(around, tier, suspended, keys, keys_apart, revoked, tier_first, literal)| Someone {
            around,
            tier,
            suspended,
            keys,
            keys_apart,
            revoked,
            tier_first,
            literal,
        })
}

/// A tenant, or one of its keys.
type Owner = (usize, Option<usize>);

/// A file, and of each comment in it whether it is of a tenant, or of a key of one.
struct Written {
    text: String,
    comments: Vec<(String, Option<Owner>)>,
}

impl Written {
    fn comment(&mut self, of: Option<Owner>) -> String {
        let comment = format!("# comment {:03}", self.comments.len());
        self.comments.push((comment.clone(), of));
        comment
    }

    fn above(&mut self, around: &Around, indent: &str, of: Owner) {
        if around.apart {
            // Between the keys of a tenant it is the tenant's all the same.
            let comment = self.comment(of.1.map(|_| (of.0, None)));
            write!(self.text, "{indent}{comment}\n\n").unwrap();
        }
        if around.above {
            let comment = self.comment(Some(of));
            writeln!(self.text, "{indent}{comment}").unwrap();
        }
    }

    fn behind(&mut self, around: &Around, of: Owner) -> String {
        if around.behind { format!(" {}", self.comment(Some(of))) } else { String::new() }
    }

    /// The value of `api_keys`.
    fn keys(&mut self, number: usize, one: &Someone) {
        let keys = || one.keys.iter().enumerate().map(|(at, around)| (at, key(digest(number, at)), around));
        if !one.keys_apart {
            write!(self.text, "[{}]", keys().map(|(_, key, _)| key).collect::<Vec<_>>().join(", ")).unwrap();
            return;
        }
        self.text.push_str("[\n");
        for (at, key, around) in keys() {
            self.above(around, "    ", (number, Some(at)));
            let comma = if at + 1 == one.keys.len() && around.blank == 0 { "" } else { "," };
            let behind = self.behind(around, (number, Some(at)));
            writeln!(self.text, "    {key}{comma}{behind}").unwrap();
        }
        self.text.push_str("  ]");
    }

    /// Every pair of the tenant, each behind `before` and followed by `after`.
    fn pairs(&mut self, number: usize, one: &Someone, before: &str, after: &str) {
        let quoted = |text: &str| if one.literal { format!("'{text}'") } else { format!("{text:?}") };
        let named = format!("id = {}", quoted(NAMES[number]));
        let tier = one.tier.map(|tier| format!("tier = {}", quoted(["free", "paid"][tier])));
        let mut pairs: Vec<String> =
            if one.tier_first { tier.into_iter().chain([named]).collect() } else { [named].into_iter().chain(tier).collect() };
        pairs.extend(one.suspended.map(|suspended| format!("suspended = {suspended}")));
        pairs.extend(one.revoked.map(|at| format!("tokens_valid_after = {}", rfc3339(at))));
        let count = pairs.len();
        for (at, pair) in pairs.into_iter().enumerate() {
            let after = if at + 1 == count && one.keys.is_empty() { after.trim_start_matches(", ") } else { after };
            write!(self.text, "{before}{pair}{after}").unwrap();
        }
        if !one.keys.is_empty() {
            write!(self.text, "{before}api_keys = ").unwrap();
            self.keys(number, one);
            self.text.push_str(after.trim_start_matches(", "));
        }
    }
}

const NAMES: [&str; 5] = ["ada", "bob@example.com", "c", "d-4", "e_5"];

fn digest(tenant: usize, key: usize) -> u8 {
    (tenant * 10 + key) as u8
}

/// The file of these tenants: tables, or a list; between two others, or at the end.
fn written(people: &[Someone], as_list: bool, at_the_end: bool, crlf: bool) -> Written {
    let mut file = Written { text: String::new(), comments: Vec::new() };
    let top = file.comment(None);
    writeln!(file.text, "{top}\n").unwrap();
    if as_list {
        file.text.push_str("tenants = [");
        let lines = people.iter().any(|one| one.around.blank > 0);
        for (number, one) in people.iter().enumerate() {
            if lines {
                file.text.push('\n');
                file.above(&one.around, "  ", (number, None));
            }
            file.text.push_str("  { ");
            file.pairs(number, one, "", ", ");
            file.text.push_str(if number + 1 == people.len() && one.around.apart { " }" } else { " }," });
            if lines {
                let behind = file.behind(&one.around, (number, None));
                file.text.push_str(&behind);
            }
        }
        file.text.push_str(if lines { "\n]\n" } else { "]\n" });
    }
    let tiers = file.comment(None);
    writeln!(file.text, "\n{tiers}\n[tiers.free]\nrate = \"none\" # a rate\n").unwrap();
    if !as_list {
        for (number, one) in people.iter().enumerate() {
            file.text.push_str(&"\n".repeat(one.around.blank));
            file.above(&one.around, "", (number, None));
            let behind = file.behind(&one.around, (number, None));
            writeln!(file.text, "[[tenants]]{behind}").unwrap();
            file.pairs(number, one, "  ", "\n");
        }
    }
    if at_the_end {
        file.text.push_str("\n[tiers.paid]\n");
    } else {
        let paid = file.comment(None);
        writeln!(file.text, "\n[tiers.paid]\nburst = 5 {paid}").unwrap();
    }
    if crlf {
        file.text = file.text.replace('\n', "\r\n");
    }
    file
}

fn change() -> impl Strategy<Value = Change> {
    let who = || prop::sample::select(&NAMES[..]).prop_map(id);
    let which = || prop::sample::select(&["free", "paid"][..]).prop_map(str::to_owned);
    let digest = || (0..5_usize, 0..4_usize).prop_map(|(tenant, key)| [digest(tenant, key); 32]);
    prop_oneof![
        (who(), prop::option::of(which())).prop_map(|(id, tier)| Change::Provision { id, tier }),
        who().prop_map(|id| Change::Remove { id }),
        (who(), any::<bool>()).prop_map(|(id, suspended)| Change::Suspend { id, suspended }),
        (who(), which()).prop_map(|(id, tier)| Change::Tier { id, tier }),
        (who(), digest()).prop_map(|(id, digest)| Change::AddApiKey { id, digest }),
        (who(), digest()).prop_map(|(id, digest)| Change::RemoveApiKey { id, digest }),
        (who(), 0..4_000_000_000_u64).prop_map(|(id, at)| Change::RevokeTokens { id, at }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn a_change_is_made_and_nothing_else(
        people in prop::collection::vec(someone(), 0..4),
        (as_list, at_the_end, crlf) in any::<(bool, bool, bool)>(),
        changes in prop::collection::vec(change(), 1..4),
    ) {
        let file = written(&people, as_list, at_the_end, crlf);
        let mut gone = BTreeSet::new();
        let mut text = file.text.clone();
        for change in &changes {
            let old = meaning(&text);
            let new = match apply(&text, change) {
                Ok(Edited::Changed(new)) => new,
                Ok(Edited::Unchanged) => {
                    prop_assert!(leads(&[change], &old, &old), "it was not so: {:?}\n{}", change, text);
                    continue;
                }
                Err(_) => continue,
            };
            prop_assert!(change.holds(&meaning(&new)));
            prop_assert!(leads(&[change], &old, &meaning(&new)), "{:?}\n{}\n→\n{}", change, text, new);
            let again = apply(&new, change);
            let settled = matches!((&again, change), (Ok(Edited::Unchanged), _) | (Err(Refused::UnknownTenant(_)), Change::Remove { .. }));
            prop_assert!(settled, "{:?}\n{:?}", change, again);
            prop_assert!(!crlf || !new.replace("\r\n", "").contains('\n'), "{:?}", new);
            prop_assert!(crlf || !new.contains('\r'));
            match change {
                Change::Remove { id } => gone.extend(NAMES.iter().position(|name| *name == id.as_str()).map(|at| (at, None))),
                Change::RemoveApiKey { digest, .. } => {
                    gone.insert((usize::from(digest[0] / 10), Some(usize::from(digest[0] % 10))));
                }
                // All that stood there stands there, in its order.
                _ => prop_assert!(is_subsequence(&text, &new, change), "{:?}\n{}\n→\n{}", change, text, new),
            }
            text = new;
        }
        for (comment, of) in &file.comments {
            let may_go = of.is_some_and(|(tenant, key)| gone.contains(&(tenant, None)) || gone.contains(&(tenant, key)));
            prop_assert!(may_go || text.contains(comment.as_str()), "{} is lost: {:?}\n{}\n→\n{}", comment, changes, file.text, text);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn many_changes_at_once_are_as_good_as_one_after_the_other(
        people in prop::collection::vec(someone(), 0..4),
        (as_list, at_the_end, crlf) in any::<(bool, bool, bool)>(),
        mut changes in prop::collection::vec(change(), 2..8),
    ) {
        let mut seen = BTreeSet::new();
        changes.retain(|change| seen.insert(change.id().clone()));
        let file = written(&people, as_list, at_the_end, crlf);
        let (text, outcomes) = apply_all(&file.text, &changes.iter().collect::<Vec<_>>());
        let made: Vec<&Change> = changes.iter().zip(&outcomes).filter(|(_, outcome)| outcome.is_ok()).map(|(change, _)| change).collect();
        // One key for two tenants is for the parser to find.
        if let Ok(new) = parse(&text, Path::new("/etc/tenants.toml")) {
            prop_assert!(leads(&made, &meaning(&file.text), &new), "{:?}\n{}\n→\n{}", changes, file.text, text);
        } else {
            prop_assert!(changes.iter().filter(|change| matches!(change, Change::AddApiKey { .. })).count() > 1, "{}", text);
        }
        prop_assert!(changes.iter().all(|change| matches!(change, Change::Provision { .. })).then(|| {
            let mut one_by_one = file.text.clone();
            for change in &changes {
                if let Ok(Edited::Changed(new)) = apply(&one_by_one, change) {
                    one_by_one = new;
                }
            }
            one_by_one == text
        }) != Some(false), "{}", text);
    }
}

/// Whether `new` is `old` with something put in, or one value replaced.
fn is_subsequence(old: &str, new: &str, change: &Change) -> bool {
    let same = |pair: &(u8, u8)| pair.0 == pair.1;
    let front = old.bytes().zip(new.bytes()).take_while(same).count();
    let back = old.bytes().rev().zip(new.bytes().rev()).take_while(same).count().min(old.len() - front);
    let replaced = &old[front..old.len() - back];
    match change {
        Change::Suspend { .. } | Change::Tier { .. } | Change::RevokeTokens { .. } => replaced.len() <= "2026-02-09T22:32:00Z".len(),
        // A comma may come in before a comment, and the element behind it.
        _ => replaced.trim().is_empty() || replaced.trim_start().starts_with('#') || old[..front].ends_with(['"', '}']),
    }
}
