//! `sq-agent token --sub ID [--ttl 1h] [--json]`: makes a token, for trying things out and for scripts.

use std::{
    io::Write,
    process::ExitCode,
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use serde::Serialize;

use crate::{
    desired::{Desired, TenantId},
    proxy::credentials,
};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  curl -H \"Authorization: Bearer $(sq-agent token --sub user1@example.com)\" https://sq.example.com/api/v2/version"
)]
pub(super) struct Args {
    /// The tenant's id
    #[arg(long, value_name = "ID", value_parser = parse_id)]
    sub: TenantId,
    /// How long the token is valid, as 30s, 15m, 1h or 7d
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse_ttl)]
    ttl: Duration,
    /// Print {"token", "sub", "expires_at"} instead of the token alone
    #[arg(long)]
    json: bool,
}

fn parse_id(text: &str) -> Result<TenantId, String> {
    TenantId::parse(text).map_err(|error| error.to_string())
}

fn parse_ttl(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(ttl) if ttl.as_secs() > 0 => Ok(ttl),
        Ok(_) => Err("at least one second".to_owned()),
        Err(error) => Err(format!("{error}; write for example 15m or 1h")),
    }
}

#[derive(Serialize)]
struct Printed<'a> {
    token: &'a str,
    sub: &'a TenantId,
    expires_at: String,
}

/// Says on standard error if `desired` has no such tenant: the proxy would answer 403.
pub(super) fn run(args: &Args, desired: &Desired) -> anyhow::Result<ExitCode> {
    if !desired.tenants.contains_key(&args.sub) {
        anstream::eprintln!("warning: tenants.toml has no tenant {}; the proxy will answer 403", args.sub);
    }
    let now = SystemTime::now();
    let seconds = now.duration_since(SystemTime::UNIX_EPOCH).context("this host's clock is before 1970")?.as_secs();
    let token = credentials::mint(desired, &args.sub, seconds, args.ttl.as_secs())?;
    let mut out = anstream::stdout().lock();
    if args.json {
        let expires_at = humantime::format_rfc3339_seconds(now + args.ttl).to_string();
        serde_json::to_writer(&mut out, &Printed { token: &token, sub: &args.sub, expires_at })?;
        writeln!(out)?;
    } else {
        writeln!(out, "{token}")?;
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ttl_is_a_time_people_write() {
        assert_eq!(parse_ttl("1h"), Ok(Duration::from_secs(3_600)));
        assert!(parse_ttl("0s").is_err());
        assert!(parse_ttl("soon").unwrap_err().contains("15m"));
    }
}
