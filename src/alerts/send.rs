//! The way out: reads where to, sends one message, and says what came of it. Nothing of the address is ever shown: who has it may write there.

use std::{fs::File, io::Read as _, net::IpAddr, path::Path, process::Command, time::Duration};

use reqwest::Url;

use super::{Alert, Channel, Outcome, Sender, answer, message};
use crate::{
    child::{self, Cancel, NotRun},
    desired::Alerts,
    digest::sha256,
    fetch,
};

/// Names the address of the webhook instead of a file.
pub(crate) const DISCORD_VARIABLE: &str = "SQ_AGENT_DISCORD_WEBHOOK";
/// For all of one message: name, connection, TLS, answer.
const LIMIT: Duration = Duration::from_secs(10);
/// For a program.
const PATIENCE: Duration = Duration::from_secs(60);
/// An address is a line.
const MAX_ADDRESS: u64 = 4_096;
/// Discord's answer has the message, with what it makes of it.
const MAX_ANSWER: usize = 64 << 10;
/// The version of Discord's interface by whose documents the answers are read; an address as it is copied names none, and gets an older one's.
const DISCORD_API: &str = "/api/v10/webhooks/";

/// The channels on which this host tells people.
pub(crate) fn channels(alerts: &Alerts) -> Vec<Channel> {
    let has_variable = || std::env::var_os(DISCORD_VARIABLE).is_some_and(|value| !value.is_empty());
    let discord = (alerts.discord.is_some() || has_variable()).then_some(Channel::Discord);
    let webhook = alerts.webhook.as_ref().map(|_| Channel::Webhook);
    let exec = alerts.exec.as_ref().map(|_| Channel::Exec);
    discord.into_iter().chain(webhook).chain(exec).collect()
}

/// Changes whenever the address of `channel` does.
pub(crate) fn mark(channel: Channel, alerts: &Alerts) -> Option<[u8; 32]> {
    Some(sha256(address(channel, alerts).ok()?.as_str().as_bytes()))
}

/// Sends a message to a server. What is not there or no good is to be mended by a person, and tried again.
pub(crate) async fn post(channel: Channel, alert: &Alert, alerts: &Alerts, sender: &Sender) -> Outcome {
    let url = match address(channel, alerts) {
        Ok(url) => url,
        Err(why) => return Outcome::Failed(why),
    };
    let body = match channel {
        Channel::Discord => message::discord(alert, sender),
        Channel::Webhook | Channel::Exec => message::generic(alert, sender),
    };
    match posted(url, body.to_string()).await {
        Ok(outcome) => outcome,
        // The text of this error has the address in it where it is not taken out.
        Err(error) => Outcome::Failed(fetch::FetchError::from(error).to_string()),
    }
}

async fn posted(url: Url, body: String) -> reqwest::Result<Outcome> {
    let here = is_loopback(&url);
    let mut client = fetch::client(LIMIT).https_only(!here);
    if here {
        client = client.no_proxy();
    }
    // A client a time: it reads the host's certificate authorities as they are now, and keeps no connection.
    let request = client.build()?.post(url).header("content-type", "application/json").body(body);
    let mut response = request.send().await?;
    let (status, headers) = (response.status(), response.headers().clone());
    // It is there, or not, whatever the rest of the answer would say.
    let body = fetch::body(&mut response, MAX_ANSWER).await.ok().flatten().unwrap_or_default();
    Ok(answer::meaning(status, &headers, &body))
}

/// Runs the host's program over a message. Blocks.
pub(crate) fn run(alert: &Alert, program: &Path, sender: &Sender, cancel: &Cancel) -> Outcome {
    let mut command = Command::new(program);
    command.env_clear().envs(child::passed_on()).envs(message::environment(alert, sender));
    let shown = program.display();
    match child::run(&mut command, PATIENCE, cancel) {
        Ok(ran) if ran.status.success() => Outcome::Delivered(Duration::ZERO),
        Ok(ran) => {
            let said = ran.said.trim_end().lines().next_back().unwrap_or_default().chars().take(200).collect::<String>();
            Outcome::Failed(format!("{shown} failed ({}): {said}", ran.status))
        }
        Err(NotRun::TooLong) => Outcome::Failed(format!("{shown} did not end within {} s", PATIENCE.as_secs())),
        Err(NotRun::Cancelled) => Outcome::Failed("it was broken off".into()),
        Err(NotRun::Failed(error)) => Outcome::Failed(format!("{shown} cannot be run: {error}")),
    }
}

/// Where a message goes; or why that is not known, with what to do.
fn address(channel: Channel, alerts: &Alerts) -> Result<Url, String> {
    let (table, key) = match channel {
        Channel::Discord => ("[alerts.discord]", "webhook_file"),
        Channel::Webhook | Channel::Exec => ("[alerts.webhook]", "url_file"),
    };
    let variable = std::env::var(DISCORD_VARIABLE).ok().filter(|value| channel == Channel::Discord && !value.trim().is_empty());
    let file = match channel {
        Channel::Discord => alerts.discord.as_ref().and_then(|discord| discord.webhook_file.as_deref()),
        Channel::Webhook | Channel::Exec => alerts.webhook.as_deref(),
    };
    let (text, place) = match (variable, file) {
        (Some(text), _) => (text, DISCORD_VARIABLE.to_owned()),
        (None, Some(file)) => {
            (read(file).map_err(|error| format!("{} cannot be read: {error}", file.display()))?, file.display().to_string())
        }
        (None, None) => return Err(format!("nothing says where to: write `{key}` under {table}, or set {DISCORD_VARIABLE}")),
    };
    let url = parse(&text)
        .ok_or_else(|| format!("{place} does not hold an https:// address: write the webhook's URL into it, and nothing else"))?;
    Ok(if channel == Channel::Discord { discord(url) } else { url })
}

fn read(file: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    File::open(file)?.take(MAX_ADDRESS).read_to_string(&mut text)?;
    Ok(text)
}

/// Plain HTTP leaves this host for nobody.
fn parse(text: &str) -> Option<Url> {
    let url = Url::parse(text.trim()).ok()?;
    (url.has_host() && (url.scheme() == "https" || is_loopback(&url))).then_some(url)
}

fn is_loopback(url: &Url) -> bool {
    let address = url.host_str().map(|host| host.trim_matches(['[', ']']).parse::<IpAddr>());
    url.scheme() == "http" && matches!(address, Some(Ok(address)) if address.is_loopback())
}

/// Has Discord answer only once the message is there (without `wait`, one that is not saved is no error), by the version that is documented.
fn discord(mut url: Url) -> Url {
    let others: Vec<(String, String)> =
        url.query_pairs().filter(|(name, _)| name != "wait").map(|(name, value)| (name.into(), value.into())).collect();
    url.query_pairs_mut().clear().extend_pairs(others).append_pair("wait", "true");
    if let Some(rest) = url.path().strip_prefix("/api/webhooks/") {
        let path = format!("{DISCORD_API}{rest}");
        url.set_path(&path);
    }
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn discord_is_asked_to_wait_and_by_the_version_that_is_documented() {
        let table = [
            ("https://discord.com/api/webhooks/1/tok", "https://discord.com/api/v10/webhooks/1/tok?wait=true"),
            (
                "https://discord.com/api/v9/webhooks/1/tok?thread_id=5&wait=false",
                "https://discord.com/api/v9/webhooks/1/tok?thread_id=5&wait=true",
            ),
            (" https://ptb.discord.com/api/webhooks/1/tok\n", "https://ptb.discord.com/api/v10/webhooks/1/tok?wait=true"),
        ];
        for (text, asked) in table {
            assert_eq!(discord(parse(text).unwrap()).as_str(), asked);
        }
    }

    #[test]
    fn plain_http_goes_to_this_host_alone() {
        for good in ["https://example.com/x", "http://127.0.0.1:9/x", "http://[::1]:9/"] {
            assert!(parse(good).is_some(), "{good}");
        }
        for bad in ["http://example.com/x", "http://localhost/x", "ftp://127.0.0.1/", "discord", "", "https://"] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn what_is_wrong_with_an_address_is_said_without_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("hook");
        let alerts = Alerts { webhook: Some(file.clone()), ..Alerts::default() };
        let why = || address(Channel::Webhook, &alerts).unwrap_err();
        assert!(why().contains("cannot be read") && why().contains("hook"));
        std::fs::write(&file, "http://example.com/secret").unwrap();
        assert!(why().contains("does not hold an https:// address") && !why().contains("secret"), "{}", why());
        assert!(mark(Channel::Webhook, &alerts).is_none());
        std::fs::write(&file, "https://example.com/secret").unwrap();
        assert!(mark(Channel::Webhook, &alerts).is_some());
    }

    #[test]
    fn a_program_has_taken_the_message_where_it_ends_well() {
        let sender = Sender { host: "h".into(), agent: "a".into() };
        let run = |program: &str| super::run(&Alert::test(1), Path::new(program), &sender, &Cancel::default());
        assert_eq!(run("/bin/true"), Outcome::Delivered(Duration::ZERO));
        assert!(matches!(run("/bin/false"), Outcome::Failed(why) if why.contains("/bin/false failed") && why.contains('1')));
        assert!(matches!(run("/nowhere/hook"), Outcome::Failed(why) if why.contains("cannot be run")));
    }
}
