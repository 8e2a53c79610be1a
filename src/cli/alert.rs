//! `sq-agent alert test`.

use std::process::ExitCode;

use anyhow::Context as _;
use serde::Serialize;

use crate::{
    alerts::{Alert, Channel, Outcome, Sender, send},
    child::Cancel,
    desired::{Alerts, Desired},
    store::unix_now,
};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sq-agent alert test         # by the channels that tenants.toml names, and SQ_AGENT_DISCORD_WEBHOOK\n\nExit: 0 every channel took it, 1 one did not, 2 there is none."
)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Send a test message and say what came back; needs no agent
    Test {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// What came back from one channel.
#[derive(Debug, Serialize)]
struct Tried {
    channel: Channel,
    taken: bool,
    detail: String,
}

pub(super) fn run(args: &Args, desired: &Desired) -> anyhow::Result<ExitCode> {
    let What::Test { json } = args.what;
    let channels = send::channels(&desired.alerts);
    let sender = Sender::of_host(&desired.name);
    let tried: Vec<Tried> = channels.into_iter().map(|channel| test(channel, &desired.alerts, &sender)).collect::<anyhow::Result<_>>()?;
    if json {
        anstream::println!("{}", serde_json::to_string(&tried)?);
    } else if tried.is_empty() {
        let variable = send::DISCORD_VARIABLE;
        anstream::eprintln!(
            "nobody would be told: write [alerts.discord], [alerts.webhook] or [alerts.exec] into tenants.toml ({variable} is not set here)"
        );
    } else {
        tried.iter().for_each(|tried| anstream::println!("{}: {}", tried.channel, tried.detail));
    }
    Ok(match tried.as_slice() {
        [] => ExitCode::from(2),
        all if all.iter().all(|tried| tried.taken) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

fn test(channel: Channel, alerts: &Alerts, sender: &Sender) -> anyhow::Result<Tried> {
    let alert = Alert::test(unix_now());
    let outcome = match (channel, &alerts.exec) {
        (Channel::Exec, Some(program)) => send::run(&alert, program, sender, &Cancel::default()),
        _ => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
            runtime.block_on(send::post(channel, &alert, alerts, sender))
        }
    };
    let (taken, detail) = match outcome {
        Outcome::Delivered(_) => (true, "took the test message".to_owned()),
        Outcome::Wait(pause, why) => (false, format!("not now: {why}; try again in {} s", pause.as_secs() + 1)),
        Outcome::Failed(why) | Outcome::Refused(why) => (false, format!("did not take it: {why}")),
        Outcome::Stopped(why) => (false, format!("will take none: {why}")),
    };
    Ok(Tried { channel, taken, detail })
}
