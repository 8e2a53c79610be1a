//! `sq-agent token --sub ID [--ttl 1h | --api-key] [--json]`: makes a token, for trying things out and for scripts, or an API key, for programs that
//! cannot fetch tokens.

use std::{
    io::Write,
    process::ExitCode,
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use serde::Serialize;

use crate::{
    desired::{Desired, TenantId},
    proxy::{
        api_key::{self, ApiKey},
        credentials,
    },
};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  curl -H \"Authorization: Bearer $(sq-agent token --sub user1@example.com)\" https://sq.example.com/api/v2/version\n  sq-agent token --api-key --sub user1@example.com     a key, and the line for tenants.toml"
)]
pub(super) struct Args {
    /// The tenant's id
    #[arg(long, value_name = "ID", value_parser = parse_id)]
    sub: TenantId,
    /// How long the token is valid, as 30s, 15m, 1h or 7d
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse_ttl)]
    ttl: Duration,
    /// Make an API key instead: it holds until it is taken out of tenants.toml, which has its SHA-256 only
    #[arg(long, conflicts_with = "ttl")]
    api_key: bool,
    /// Print {"token", "sub", "expires_at"}, or {"api_key", "sub", "digest", "line"}, instead of text
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

#[derive(Serialize)]
struct PrintedKey<'a> {
    api_key: &'a str,
    sub: &'a TenantId,
    digest: &'a str,
    line: &'a str,
}

/// Says on standard error if `desired` has no such tenant: the proxy would answer 403.
pub(super) fn run(args: &Args, desired: &Desired) -> anyhow::Result<ExitCode> {
    if !desired.tenants.contains_key(&args.sub) {
        let answer = if args.api_key { "write the line below its id" } else { "the proxy will answer 403" };
        anstream::eprintln!("warning: tenants.toml has no tenant {}; {answer}", args.sub);
    }
    if args.api_key {
        return make_key(args, desired);
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

fn make_key(args: &Args, desired: &Desired) -> anyhow::Result<ExitCode> {
    let key = ApiKey::make().context("no random numbers")?;
    let digest = key.digest();
    let line = line(desired, &args.sub, &digest);
    let mut out = anstream::stdout().lock();
    if args.json {
        serde_json::to_writer(&mut out, &PrintedKey { api_key: key.text(), sub: &args.sub, digest: &digest, line: &line })?;
        writeln!(out)?;
    } else {
        writeln!(out, "{}\n{line}", key.text())?;
        anstream::eprintln!(
            "The first line is the key, for {} alone: it is shown this once and kept nowhere. The second line is for tenants.toml, below `id = \"{}\"`.",
            args.sub,
            args.sub
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// What tenants.toml is to say of `sub`: the keys that it has, and the new one.
fn line(desired: &Desired, sub: &TenantId, digest: &str) -> String {
    let had = desired.tenants.get(sub).map(|tenant| tenant.api_keys.as_slice()).unwrap_or_default();
    let all: Vec<String> = had.iter().map(api_key::digest_text).chain([digest.to_owned()]).map(|digest| format!("{digest:?}")).collect();
    format!("api_keys = [{}]", all.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_for_tenants_toml_keeps_the_keys_that_the_tenant_has() {
        let desired =
            |keys: &str| crate::desired::parse(&format!("[[tenants]]\nid = 'a'\n{keys}\n"), std::path::Path::new("t.toml")).unwrap();
        let (a, digest) = (TenantId::parse("a").unwrap(), ApiKey::make().unwrap().digest());
        let first = line(&desired(""), &a, &digest);
        assert_eq!(first, format!("api_keys = [\"{digest}\"]"));
        let second = line(&desired(&first), &a, &ApiKey::make().unwrap().digest());
        let keys = &desired(&second).tenants[&a].api_keys;
        assert!(keys.len() == 2 && api_key::digest_text(&keys[0]) == digest, "{second}");
    }

    #[test]
    fn a_ttl_is_a_time_people_write() {
        assert_eq!(parse_ttl("1h"), Ok(Duration::from_secs(3_600)));
        assert!(parse_ttl("0s").is_err());
        assert!(parse_ttl("soon").unwrap_err().contains("15m"));
    }
}
