//! An alert in the form of each channel. Pure.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{
    Alert, Item, News, Severity,
    neutral::{code, neutral, utf16},
};
use crate::store::rfc3339;

/// Discord's limits (Message, Embed Limits), characters.
const CONTENT: usize = 2_000;
const TITLE: usize = 256;
const FIELD: usize = 1_024;
/// A description may have 4,096, and all of an embed together 6,000: this leaves room for the rest.
const DESCRIPTION: usize = 3_000;

/// A summary shows so many in Discord; all that it names go to the other channels.
const SHOWN: usize = 12;

/// Red, amber, green, blue.
const CRITICAL: u32 = 0x00ED_4245;
const WARNING: u32 = 0x00F5_A623;
const GOOD: u32 = 0x0057_F287;
const TEST: u32 = 0x0058_65F2;

/// Who sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sender {
    /// The host's name.
    pub host: String,
    /// `[agent] name`.
    pub agent: String,
}

impl Sender {
    /// This host, with the agent of this name.
    pub fn of_host(agent: &str) -> Self {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").map(|name| name.trim().to_owned());
        Self { host: host.ok().filter(|name| !name.is_empty()).unwrap_or_else(|| "this host".to_owned()), agent: agent.to_owned() }
    }
}

/// As Discord's webhooks take it (Execute Webhook). Nobody is ever mentioned.
pub(super) fn discord(alert: &Alert, sender: &Sender) -> Value {
    let host = neutral(&sender.host, 100);
    let head = neutral(&headline(alert), TITLE - 10);
    let content = format!("{} **{host}**: {head}", sign(alert));
    let mut fields = Vec::new();
    let mut field = |name: &str, value: String, inline: bool| {
        if !value.is_empty() {
            fields.push(json!({ "name": name, "value": value, "inline": inline }));
        }
    };
    let description = match alert.single() {
        Some(item) => {
            let tenant = item.key.tenant.as_ref().map(|id| format!(", tenant {}", neutral(id.as_str(), 300)));
            field("Where", format!("{host}{}", tenant.unwrap_or_default()), true);
            field("Since", moment(item.since), true);
            if item.news == News::Resolved {
                field("Until", moment(alert.at), true);
            }
            field("Largest tenants", largest(alert), false);
            if item.news != News::Resolved {
                field("Run", format!("```sh\n{}\n```", code(&item.command, FIELD - 20)), false);
            }
            neutral(&item.text, DESCRIPTION)
        }
        None if alert.is_test() => "This is a test. Alerts of this host arrive here.".to_owned(),
        None => {
            field("Where", host.clone(), true);
            field("Largest tenants", largest(alert), false);
            field("Run", "```sh\nsq-agent status\n```".to_owned(), false);
            list(alert)
        }
    };
    debug_assert!(utf16(&content) <= CONTENT);
    json!({
        "content": content,
        "embeds": [{
            "title": head,
            "description": description,
            "color": colour(alert),
            "fields": fields,
            "footer": { "text": format!("sq-agent {} on {}, message {}", env!("CARGO_PKG_VERSION"), plain_name(&sender.agent), alert.number) },
            "timestamp": rfc3339(alert.at),
        }],
        "allowed_mentions": { "parse": [] },
    })
}

/// As any other program takes it: one object, the same fields for all that is told. Fields are added, never renamed.
pub(super) fn generic(alert: &Alert, sender: &Sender) -> Value {
    let items: Vec<Value> = alert.items.iter().map(item).collect();
    let largest: Vec<Value> = alert.largest.iter().map(|(id, bytes)| json!({ "tenant": id, "memory_bytes": bytes })).collect();
    let mut value = json!({
        "version": 1,
        "id": alert.number,
        "at": rfc3339(alert.at),
        "host": sender.host,
        "agent": sender.agent,
        "news": news(alert),
        "summary": headline(alert),
        "items": items,
        "more": alert.more,
        "largest": largest,
    });
    if let (Some(Value::Object(one)), Some(all)) = (alert.single().map(item), value.as_object_mut()) {
        all.extend(one);
    }
    value
}

fn item(item: &Item) -> Value {
    json!({
        "news": item.news.word(),
        "kind": item.key.kind.word(),
        "severity": item.severity,
        "tenant": item.key.tenant,
        "since": rfc3339(item.since),
        "text": item.text,
        "command": item.command,
    })
}

/// What a program of the host's finds in its environment.
pub(super) fn environment(alert: &Alert, sender: &Sender) -> Vec<(&'static str, String)> {
    let one = alert.single();
    let of = |value: Option<String>| value.unwrap_or_default();
    let variables = vec![
        ("SQ_AGENT_ALERT_ID", alert.number.to_string()),
        ("SQ_AGENT_ALERT_NEWS", news(alert).to_owned()),
        ("SQ_AGENT_ALERT_KIND", of(one.map(|one| one.key.kind.word().to_owned()))),
        ("SQ_AGENT_ALERT_SEVERITY", of(worst(alert).map(|severity| severity.to_string()))),
        ("SQ_AGENT_ALERT_TENANT", of(one.and_then(|one| Some(one.key.tenant.as_ref()?.to_string())))),
        ("SQ_AGENT_ALERT_SINCE", of(one.map(|one| rfc3339(one.since)))),
        ("SQ_AGENT_ALERT_TEXT", one.map_or_else(|| headline(alert), |one| one.text.clone())),
        ("SQ_AGENT_ALERT_COMMAND", of(one.map(|one| one.command.clone()))),
        ("SQ_AGENT_ALERT_HOST", sender.host.clone()),
        ("SQ_AGENT_ALERT_JSON", generic(alert, sender).to_string()),
    ];
    // The end of a variable, for the system.
    variables.into_iter().map(|(name, value)| (name, value.replace('\0', " "))).collect()
}

/// A word for all of it.
fn news(alert: &Alert) -> &'static str {
    match alert.single() {
        Some(item) => item.news.word(),
        None if alert.is_test() => "test",
        None => "summary",
    }
}

/// The worst of what is not resolved.
fn worst(alert: &Alert) -> Option<Severity> {
    alert.items.iter().filter(|item| item.news != News::Resolved).map(|item| item.severity).max()
}

fn sign(alert: &Alert) -> &'static str {
    match worst(alert) {
        Some(Severity::Critical) => "🔴",
        Some(Severity::Warning) => "🟠",
        None if alert.is_test() => "🔵",
        None => "🟢",
    }
}

fn colour(alert: &Alert) -> u32 {
    match worst(alert) {
        Some(Severity::Critical) => CRITICAL,
        Some(Severity::Warning) => WARNING,
        None if alert.is_test() => TEST,
        None => GOOD,
    }
}

/// In a line, without markup of ours.
fn headline(alert: &Alert) -> String {
    let Some(item) = alert.single() else {
        if alert.is_test() {
            return "test message".to_owned();
        }
        let count = |news: News| alert.items.iter().filter(|item| item.news == news).count();
        let parts = [(News::Raised, "raised"), (News::Reminder, "still open"), (News::Resolved, "resolved")];
        let mut parts: Vec<String> = parts
            .iter()
            .map(|&(news, word)| (count(news), word))
            .filter(|(count, _)| *count > 0)
            .map(|(count, word)| format!("{count} {word}"))
            .collect();
        if alert.more > 0 {
            parts.push(format!("{} before these", alert.more));
        }
        return format!("{} alerts at once: {}", alert.items.len() as u64 + alert.more, parts.join(", "));
    };
    let title = item.key.kind.title();
    let of = item.key.tenant.as_ref().map_or_else(String::new, |id| format!(" of {id}"));
    match item.news {
        News::Raised => format!("{title}{of}: {}", item.severity),
        News::Resolved => format!("{title}{of}: resolved"),
        News::Reminder => format!("{title}{of}: still {}", item.severity),
    }
}

/// What a summary names, a line each, the worst first.
fn list(alert: &Alert) -> String {
    let mut items: Vec<&Item> = alert.items.iter().collect();
    items.sort_by_key(|item| (item.news == News::Resolved, std::cmp::Reverse(item.severity)));
    let mut text = String::new();
    for item in items.iter().take(SHOWN) {
        let word = if item.news == News::Resolved { "resolved".to_owned() } else { item.severity.to_string() };
        let of = item.key.tenant.as_ref().map_or_else(String::new, |id| format!(" of {}", neutral(id.as_str(), 80)));
        // Writing into a String cannot fail.
        let _ = writeln!(text, "• {}{of}: {word}; {}", item.key.kind.title(), neutral(&item.text, 120));
    }
    let rest = items.len().saturating_sub(SHOWN) as u64 + alert.more;
    if rest > 0 {
        let _ = write!(text, "and {rest} more");
    }
    text
}

fn largest(alert: &Alert) -> String {
    let line = |(id, bytes): &(crate::desired::TenantId, u64)| {
        format!("{}: {:.1} MB", neutral(id.as_str(), 150), *bytes as f64 / f64::from(1 << 20))
    };
    alert.largest.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// A moment as each reader's clock shows it, and how long ago (Message Formatting, Timestamp Styles).
fn moment(at: u64) -> String {
    format!("<t:{at}:f> (<t:{at}:R>)")
}

/// `[agent] name` is lower-case letters, digits and `-`.
fn plain_name(name: &str) -> &str {
    name.get(..64).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        alerts::{Key, Kind},
        desired::TenantId,
    };

    const AT: u64 = 1_770_676_320;

    fn sender() -> Sender {
        Sender { host: "host-1.example".into(), agent: "host-1".into() }
    }

    fn id(text: &str) -> TenantId {
        TenantId::parse(text).unwrap()
    }

    fn of(news: News, severity: Severity) -> Item {
        Item {
            news,
            key: Key::tenant(Kind::CrashLoop, &id("a_b@example.com")),
            severity,
            since: AT - 60,
            text: "5 crashes; *panic* @everyone https://evil.example".into(),
            command: "tail -n 50 /s/users/a/sq.log".into(),
        }
    }

    fn alert(items: Vec<Item>) -> Alert {
        Alert { number: 7, at: AT, items, more: 0, largest: vec![(id("big"), 18 << 20), (id("a_b@example.com"), 1 << 20)] }
    }

    #[test]
    fn discord_is_told_what_where_since_when_the_largest_and_what_to_run_and_mentions_nobody() {
        let said = discord(&alert(vec![of(News::Raised, Severity::Critical)]), &sender());
        let embed = &said["embeds"][0];
        assert_eq!(said["allowed_mentions"], json!({ "parse": [] }));
        assert_eq!(said["content"], "🔴 **host-1.example**: Crash loop of a\\_b@\u{200b}example.com: critical");
        assert_eq!((embed["color"].as_u64(), embed["timestamp"].as_str()), (Some(0x00ED_4245), Some("2026-02-09T22:32:00Z")));
        assert_eq!(embed["description"], "5 crashes; \\*panic\\* @\u{200b}everyone https:\u{200b}//evil.example");
        let fields = embed["fields"].as_array().unwrap();
        let names: Vec<_> = fields.iter().map(|field| field["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["Where", "Since", "Largest tenants", "Run"]);
        assert_eq!(fields[1]["value"], "<t:1770676260:f> (<t:1770676260:R>)");
        assert_eq!(fields[2]["value"], "big: 18.0 MB\na\\_b@\u{200b}example.com: 1.0 MB");
        assert_eq!(fields[3]["value"], "```sh\ntail -n 50 /s/users/a/sq.log\n```");
    }

    #[test]
    fn what_is_resolved_is_green_and_what_is_a_summary_says_how_many() {
        let resolved = discord(&alert(vec![of(News::Resolved, Severity::Critical)]), &sender());
        assert_eq!(resolved["embeds"][0]["color"], GOOD);
        assert!(resolved["content"].as_str().unwrap().starts_with("🟢") && !resolved.to_string().contains("\"Run\""), "{resolved}");
        let mut many = vec![of(News::Raised, Severity::Warning); 20];
        many.push(of(News::Resolved, Severity::Critical));
        let summary = discord(&Alert { more: 3, ..alert(many) }, &sender());
        assert!(summary["content"].as_str().unwrap().contains("24 alerts at once: 20 raised, 1 resolved, 3 before these"), "{summary}");
        assert_eq!(summary["embeds"][0]["color"], WARNING, "what is resolved counts for nothing");
        assert!(summary["embeds"][0]["description"].as_str().unwrap().ends_with("and 12 more"), "{summary}");
        assert!(discord(&Alert::test(AT), &sender())["content"].as_str().unwrap().contains("test message"));
    }

    #[test]
    fn other_programs_get_the_same_as_fields() {
        let one = generic(&alert(vec![of(News::Raised, Severity::Critical)]), &sender());
        assert_eq!(
            (one["news"].as_str(), one["kind"].as_str(), one["severity"].as_str()),
            (Some("raised"), Some("crash_loop"), Some("critical"))
        );
        assert_eq!((one["tenant"].as_str(), one["since"].as_str()), (Some("a_b@example.com"), Some("2026-02-09T22:31:00Z")));
        assert_eq!(one["largest"][0], json!({ "tenant": "big", "memory_bytes": 18 << 20 }));
        let two = generic(&alert(vec![of(News::Raised, Severity::Critical), of(News::Resolved, Severity::Warning)]), &sender());
        assert_eq!((two["news"].as_str(), two["items"].as_array().unwrap().len(), two.get("kind")), (Some("summary"), 2, None));
        assert_eq!(generic(&Alert::test(AT), &sender())["news"], "test");
    }

    #[test]
    fn a_program_of_the_host_finds_it_in_its_environment() {
        let mut item = of(News::Raised, Severity::Critical);
        item.text.push('\0');
        let variables = environment(&alert(vec![item]), &sender());
        let of = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str()).unwrap();
        assert_eq!(
            (of("SQ_AGENT_ALERT_KIND"), of("SQ_AGENT_ALERT_SEVERITY"), of("SQ_AGENT_ALERT_NEWS")),
            ("crash_loop", "critical", "raised")
        );
        assert_eq!(of("SQ_AGENT_ALERT_TENANT"), "a_b@example.com");
        assert!(of("SQ_AGENT_ALERT_TEXT").ends_with("evil.example "), "no NUL");
        assert_eq!(serde_json::from_str::<Value>(of("SQ_AGENT_ALERT_JSON")).unwrap()["id"], 7);
    }

    proptest! {
        #[test]
        fn discords_limits_are_kept_whatever_the_texts(text in "\\PC{0,6000}", command in "\\PC{0,3000}", host in "\\PC{0,400}", count in 1_usize..60) {
            let item = Item { text, command, ..of(News::Raised, Severity::Warning) };
            let long = id(&"_".repeat(128));
            let all = Alert { largest: vec![(long.clone(), 1); 5], ..alert(vec![Item { key: Key::tenant(Kind::OomKill, &long), ..item }; count]) };
            let said = discord(&all, &Sender { host, agent: "a".into() });
            let length = |value: &Value| utf16(value.as_str().unwrap());
            let embed = &said["embeds"][0];
            prop_assert!(length(&said["content"]) <= CONTENT);
            prop_assert!(length(&embed["title"]) <= TITLE && length(&embed["description"]) <= DESCRIPTION);
            let mut total = length(&embed["title"]) + length(&embed["description"]) + length(&embed["footer"]["text"]);
            for field in embed["fields"].as_array().unwrap() {
                prop_assert!((1..=FIELD).contains(&length(&field["value"])), "{}", field["value"]);
                total += length(&field["name"]) + length(&field["value"]);
            }
            prop_assert!(total <= 6_000, "{total}");
        }
    }
}
