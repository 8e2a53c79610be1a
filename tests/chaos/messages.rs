//! The alerts of the run: everything that was done was meant, so each of them has to have a cause among that, and the cause has to be enough.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::{
    kills::{Death, Kills},
    support::{
        host::Host,
        receiver::{Got, Receiver},
    },
};

/// The memory and the disk of whoever runs the tests are none of our business.
pub(crate) const CHANNEL: &str = r#"
[alerts]
memory_warning  = "98%"
memory_critical = "99%"
disk_warning    = "98%"
disk_critical   = "99%"

[alerts.webhook]
url_file = "discord"
"#;

/// More removals at once than this are held (design: max(5, 2 %)).
const REMOVALS: usize = 5;
/// So many crashes are a loop.
const CRASH_LOOP: usize = 5;
/// What waits is sent within this.
const SENT_WITHIN: Duration = Duration::from_secs(90);

/// Why there is no alert of this kind without what was done; none: it was caused.
fn without_cause(kind: &str, tenant: Option<&str>, kills: &Kills, removals: usize) -> Option<String> {
    let cause = match (kind, tenant) {
        ("agent_restarted", None) => kills.count(&Death::Agent) > 0,
        ("proxy_down", None) => kills.count(&Death::Proxy) > 0,
        ("removals_held", None) => removals > REMOVALS,
        ("crash_loop", Some(id)) => kills.count(&Death::Sq(id.to_owned())) >= CRASH_LOOP,
        _ => false,
    };
    (!cause).then(|| format!("{kind} of {}", tenant.unwrap_or("the host")))
}

/// Fails where one of the messages, or of what a summary names, has no cause; and where the agent was killed and nobody was told.
pub(crate) async fn assert_each_has_a_cause(receiver: &Receiver, kills: &Kills, removals: usize, host: &Host) {
    let started = Instant::now();
    while host.status().is_none_or(|status| status.alerts.channels.iter().any(|channel| channel.waiting > 0)) {
        assert!(started.elapsed() < SENT_WITHIN, "alerts wait\n{}", host.account());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let taken: Vec<Got> = receiver.taken();
    let (mut counts, mut uncaused): (BTreeMap<String, usize>, Vec<String>) = Default::default();
    for item in taken.iter().flat_map(|got| got.body["items"].as_array().cloned().unwrap_or_default()) {
        let (kind, news) = (item["kind"].as_str().unwrap(), item["news"].as_str().unwrap());
        *counts.entry(format!("{news} {kind}")).or_default() += 1;
        uncaused.extend(without_cause(kind, item["tenant"].as_str(), kills, removals));
    }
    eprintln!("{:>8}  messages about alerts", taken.len());
    counts.iter().for_each(|(what, count)| eprintln!("{count:>8}  of them: {what}"));
    assert!(uncaused.is_empty(), "alerts without a cause: {uncaused:#?}\n{:#?}\n{}", taken, host.account());
    assert!(
        kills.count(&Death::Agent) == 0 || counts.contains_key("raised agent_restarted"),
        "nobody was told that the agent was killed: {counts:?}"
    );
}
