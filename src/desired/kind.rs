//! The kinds of value that a key may have, and how each is read from TOML.

use std::{
    net::{IpAddr, SocketAddr},
    time::UNIX_EPOCH,
};

use ipnet::IpNet;
use toml::{
    Spanned,
    de::DeValue,
    value::{Datetime, Offset},
};

use crate::{digest::unhex, guard::Durability};

use super::{
    Algorithm, IsolationMode, PortRange, Rate, TenantId,
    fields::{Fields, read_table},
    gitops,
    keys::{Key, Section},
    problem::{Finding, Show, Span},
};

/// What a key may hold.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    /// Text without control characters, 1–256 bytes.
    Text,
    /// `[a-z0-9-]{1,64}`.
    Name,
    /// A tenant's id.
    Id,
    /// A tier's name.
    TierName,
    /// A file system path, relative to the file.
    Path,
    /// Where restic keeps what it has: a path, or `sftp:…`, `s3:…` and the like.
    Repository,
    /// A repository as git takes it.
    GitUrl,
    /// The name of a branch.
    Branch,
    /// A file's path in a repository.
    RepositoryPath,
    /// `"6h"`, within these bounds in seconds.
    Duration { min: u64, max: u64 },
    /// As [`Kind::Duration`], or `"off"`.
    DurationOrOff { min: u64, max: u64 },
    /// `"10.0.0.0/8"` or `"10.0.0.1"`.
    Network,
    /// A DNS name, without a wildcard.
    Domain,
    /// `"admin@example.com"`.
    Email,
    /// `"tls-alpn-01"` or `"http-01"`.
    Challenge,
    /// `"20M"`, within these bounds in bytes.
    Size { min: u64, max: u64 },
    /// As [`Kind::Size`], or `"none"`.
    SizeOrNone { min: u64, max: u64 },
    /// `"80%"`, 1–100.
    Percent,
    /// Percent of one core, 1 and up, or `"none"`.
    CpuOrNone,
    /// `"100/m"` or `"none"`.
    RateOrNone,
    /// A whole number within these bounds.
    Integer { min: u64, max: u64 },
    /// As [`Kind::Integer`], or `"none"`.
    IntegerOrNone { min: u64, max: u64 },
    /// A whole number within these bounds, `"all"` or `"none"`.
    IntegerAllNone { min: u64, max: u64 },
    /// `true` or `false`.
    Flag,
    /// A TOML date and time with an offset.
    Moment,
    /// `"10001-19999"`.
    Ports,
    /// `"127.0.0.1:8443"`.
    Address,
    /// `"https://…"`.
    Url,
    /// `"0.6.0"`.
    Version,
    /// `"HS256"` and the like.
    Algorithm,
    /// `"auto"`, `"required"` or `"off"`.
    Isolation,
    /// `"off"`, `"process"` or `"power"`.
    Durability,
    /// `"sha256:…"`.
    Digest,
    /// A list of one kind.
    List(&'static Kind),
    /// `[section]`.
    Table(&'static Section),
    /// `[[section]]`.
    Tables(&'static Section),
    /// `[section.NAME]`.
    Named(&'static Section),
}

/// A value that was read and is good.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    Text(String),
    Id(TenantId),
    Number(u64),
    /// `"none"`, or `"off"`, or `"all"`: no limit.
    Unlimited,
    Rate(Rate),
    Flag(bool),
    Ports(PortRange),
    Address(SocketAddr),
    Network(IpNet),
    Algorithm(Algorithm),
    Isolation(IsolationMode),
    Durability(Durability),
    Digest([u8; 32]),
    List(Vec<(Value, Span)>),
    Table(Fields),
    Tables(Vec<Fields>),
    Named(Vec<(String, Fields)>),
}

/// Why a value is no good: the message without the key's name.
type Fault = String;

/// Most cores a `cpu_quota` may grant, in percent of one: 256 cores.
pub(crate) const MAX_CPU_PERCENT: u64 = 25_600;
/// Most requests a `rate` may name; keeps the interval of the fastest rate (a million a second) at 1 µs.
pub(crate) const MAX_RATE: u32 = 1_000_000;

/// Reads `value` as `key` wants it; what is wrong goes to `found`.
pub(crate) fn read(key: &'static Key, kind: Kind, value: &Spanned<DeValue<'_>>, found: &mut Vec<Finding>) -> Option<Value> {
    match (kind, value.get_ref()) {
        (Kind::Table(section), DeValue::Table(table)) => Some(Value::Table(read_table(section, table, value.span(), found))),
        (Kind::Tables(section), DeValue::Array(items)) if items.iter().all(|item| item.get_ref().is_table()) => {
            let tables = items.iter().filter_map(|item| Some((item.span(), item.get_ref().as_table()?)));
            Some(Value::Tables(tables.map(|(span, table)| read_table(section, table, span, found)).collect()))
        }
        (Kind::Named(section), DeValue::Table(tables)) => Some(Value::Named(read_named(section, tables, found))),
        (Kind::List(kind), DeValue::Array(items)) => {
            let before = found.len();
            let values = items.iter().filter_map(|item| Some((read(key, *kind, item, found)?, item.span()))).collect();
            (found.len() == before).then_some(Value::List(values))
        }
        (kind, scalar) => match read_scalar(kind, scalar) {
            Ok(value) => Some(value),
            Err(fault) => {
                // A key, or a password, may stand where none should.
                let hide = match kind {
                    Kind::Digest | Kind::Repository | Kind::GitUrl => true,
                    Kind::Url => scalar.as_str().is_some_and(|text| text.contains('@')),
                    _ => false,
                };
                let show = if hide { Show::NotSpan } else { Show::Line };
                found.push(Finding::new(value.span(), format!("`{}` {fault}", key.name), key.expected()).show(show));
                None
            }
        },
    }
}

fn read_named(section: &'static Section, tables: &toml::de::DeTable<'_>, found: &mut Vec<Finding>) -> Vec<(String, Fields)> {
    let mut named = Vec::new();
    for (name, value) in tables {
        if !is_tier_name(name.get_ref()) {
            let message = format!("{:?} is not a name for a tier", name.get_ref());
            found.push(Finding::new(name.span(), message, "a tier's name has 1 to 32 letters, digits, `_` or `-`"));
        }
        let fields = match value.get_ref().as_table() {
            Some(table) => read_table(section, table, value.span(), found),
            None => {
                let message = format!("`{}` must be a table, not {}", name.get_ref().escape_debug(), article(value.get_ref()));
                let help = format!("write its keys under a line `[tiers.{}]`", name.get_ref().escape_debug());
                found.push(Finding::new(value.span(), message, help));
                Fields::none(section)
            }
        };
        named.push((name.get_ref().to_string(), fields));
    }
    named
}

fn read_scalar(kind: Kind, value: &DeValue<'_>) -> Result<Value, Fault> {
    match kind {
        Kind::Flag => value.as_bool().map(Value::Flag).ok_or_else(|| wrong("true or false", value)),
        Kind::IntegerOrNone { .. } if value.as_str() == Some("none") => Ok(Value::Unlimited),
        Kind::IntegerAllNone { .. } if value.as_str() == Some("all") => Ok(Value::Unlimited),
        Kind::IntegerAllNone { .. } if value.as_str() == Some("none") => Ok(Value::Number(0)),
        Kind::IntegerAllNone { .. } if value.as_integer().is_none() => Err(wrong("a whole number, \"all\" or \"none\"", value)),
        Kind::Integer { min, max } | Kind::IntegerOrNone { min, max } | Kind::IntegerAllNone { min, max } => {
            let integer = value.as_integer().ok_or_else(|| wrong("a whole number", value))?;
            let number = u64::from_str_radix(integer.as_str(), integer.radix()).ok().filter(|n| (min..=max).contains(n));
            number.map(Value::Number).ok_or_else(|| format!("must lie between {min} and {max}, this is {integer}"))
        }
        Kind::Moment => moment(value.as_datetime().ok_or_else(|| wrong("a date and time, without quotes", value))?).map(Value::Number),
        Kind::List(_) => Err(wrong("a list", value)),
        Kind::Table(_) | Kind::Named(_) => Err(wrong("a table", value)),
        Kind::Tables(_) => Err(wrong("a list of tables", value)),
        _ => read_text(kind, value.as_str().ok_or_else(|| wrong("a string", value))?),
    }
}

fn read_text(kind: Kind, text: &str) -> Result<Value, Fault> {
    let own = || Value::Text(text.to_owned());
    match kind {
        Kind::SizeOrNone { .. } | Kind::CpuOrNone | Kind::RateOrNone if text == "none" => Ok(Value::Unlimited),
        Kind::DurationOrOff { .. } if text == "off" => Ok(Value::Unlimited),
        Kind::Size { min, max } | Kind::SizeOrNone { min, max } => size(text, min, max).map(Value::Number),
        Kind::Duration { min, max } | Kind::DurationOrOff { min, max } => duration(text, min, max).map(Value::Number),
        Kind::Percent => percent(text, 100).map(Value::Number),
        Kind::CpuOrNone => percent(text, MAX_CPU_PERCENT).map(Value::Number),
        Kind::RateOrNone => rate(text).map(Value::Rate),
        Kind::Ports => ports(text).map(Value::Ports),
        Kind::Address => text.parse().map(Value::Address).map_err(|_| format!("must be an IP address with a port, not {text:?}")),
        Kind::Network => network(text).map(Value::Network),
        Kind::Domain => {
            check(is_domain(text), Value::Text(text.to_ascii_lowercase()), "must be a DNS name such as sq.example.com, without a `*`")
        }
        Kind::Email => check(is_email(text), own(), "must be a mail address such as admin@example.com"),
        Kind::Challenge => check(matches!(text, "tls-alpn-01" | "http-01"), own(), "must be tls-alpn-01 or http-01"),
        Kind::Algorithm => algorithm(text).map(Value::Algorithm),
        Kind::Isolation => isolation(text).map(Value::Isolation),
        Kind::Durability => durability(text).map(Value::Durability),
        Kind::Digest => digest(text).map(Value::Digest),
        Kind::Id => TenantId::parse(text).map(Value::Id).map_err(|bad| format!("is not usable: {bad}")),
        Kind::Name => check(is_name(text), own(), "must have 1 to 64 lower-case letters, digits or `-`"),
        Kind::TierName => check(is_tier_name(text), own(), "must have 1 to 32 letters, digits, `_` or `-`"),
        Kind::Version => check(is_version(text), own(), "must be one exact version of three numbers, not a range"),
        // The text itself stays out of the message: a password may stand in it.
        Kind::Url if text.contains('@') => Err("holds a user name or password; no secret stands in this file".into()),
        Kind::Url => check(is_url(text), own(), "must be an https:// address with a host"),
        // The text itself stays out of the message: a password stands in it.
        Kind::Repository if has_password(text) => {
            Err("holds a password; put it into the file that `env_file` names (RESTIC_REST_USERNAME and RESTIC_REST_PASSWORD, say)".into())
        }
        Kind::GitUrl if has_password(text) => Err("holds a password; put it into the file that `token_file` names".into()),
        Kind::GitUrl if text.starts_with('-') || text.contains("::") => Err("is no repository that git may be asked for".into()),
        Kind::Branch => gitops::bad_branch(text).map_or_else(|| Ok(own()), |fault| Err(fault.into())),
        Kind::RepositoryPath => gitops::bad_path(text).map_or_else(|| Ok(own()), |fault| Err(fault.into())),
        Kind::Path | Kind::Repository | Kind::GitUrl if text.starts_with('~') => {
            Err("must be a whole path: `~` is not expanded in it".into())
        }
        Kind::Path => check(!text.is_empty() && !text.contains('\0'), own(), "must be a path, at least one character and no NUL"),
        _ => check(
            (1..=256).contains(&text.len()) && !text.chars().any(char::is_control),
            own(),
            "must have 1 to 256 bytes and no control characters",
        ),
    }
}

fn check(good: bool, value: Value, rule: &str) -> Result<Value, Fault> {
    if good { Ok(value) } else { Err(rule.into()) }
}

fn wrong(wanted: &str, value: &DeValue<'_>) -> Fault {
    format!("must be {wanted}, not {}", article(value))
}

fn article(value: &DeValue<'_>) -> String {
    match value.type_str() {
        kind @ ("integer" | "array") => format!("an {kind}"),
        kind => format!("a {kind}"),
    }
}

/// `"20M"` in bytes; K, M and G are powers of 1,024.
fn size(text: &str, min: u64, max: u64) -> Result<u64, Fault> {
    let bytes = text.char_indices().last().and_then(|(at, unit)| {
        let shift = "KMG".find(unit)? as u32 * 10 + 10;
        decimal(&text[..at])?.checked_mul(1 << shift)
    });
    match bytes {
        None => Err(format!("must be a number with K, M or G (KiB, MiB, GiB), not {text:?}")),
        Some(bytes) if bytes < min => Err(format!("must be at least {}, not {text:?}", size_text(min))),
        Some(bytes) if bytes > max => Err(format!("must be at most {}, not {text:?}", size_text(max))),
        Some(bytes) => Ok(bytes),
    }
}

/// `"sha256:…"`, as a tenant's `api_keys` has it.
pub(crate) fn parse_digest(text: &str) -> Option<[u8; 32]> {
    digest(text).ok()
}

/// A date and time as `tokens_valid_after` has it, seconds since 1970.
pub(crate) fn parse_moment(datetime: &Datetime) -> Option<u64> {
    moment(datetime).ok()
}

/// `"4G"` in bytes.
pub(crate) fn parse_size(text: &str) -> Option<u64> {
    size(text, 0, u64::MAX).ok()
}

/// A size as it would be written in the file.
pub(crate) fn size_text(bytes: u64) -> String {
    match bytes {
        b if b > 0 && b % (1 << 30) == 0 => format!("{}G", b >> 30),
        b if b > 0 && b % (1 << 20) == 0 => format!("{}M", b >> 20),
        b => format!("{}K", b >> 10),
    }
}

/// `"6h"` in seconds.
fn duration(text: &str, min: u64, max: u64) -> Result<u64, Fault> {
    let seconds = text.char_indices().last().and_then(|(at, unit)| {
        let seconds = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3_600,
            'd' => 86_400,
            _ => return None,
        };
        decimal(&text[..at])?.checked_mul(seconds)
    });
    match seconds {
        None => Err(format!("must be a number with s, m, h or d, not {text:?}")),
        Some(seconds) if !(min..=max).contains(&seconds) => {
            Err(format!("must lie between {} and {}, not {text:?}", duration_text(min), duration_text(max)))
        }
        Some(seconds) => Ok(seconds),
    }
}

/// A duration as it would be written in the file.
pub(crate) fn duration_text(seconds: u64) -> String {
    match seconds {
        s if s > 0 && s % 86_400 == 0 => format!("{}d", s / 86_400),
        s if s > 0 && s % 3_600 == 0 => format!("{}h", s / 3_600),
        s if s > 0 && s % 60 == 0 => format!("{}m", s / 60),
        s => format!("{s}s"),
    }
}

/// Whether a repository's address names a user with a password.
fn has_password(text: &str) -> bool {
    let authority = text.split_once("://").map(|(_, rest)| rest.split('/').next().unwrap_or_default());
    authority.and_then(|authority| authority.rsplit_once('@')).is_some_and(|(user, _)| user.contains(':'))
}

fn percent(text: &str, max: u64) -> Result<u64, Fault> {
    let number = text.strip_suffix('%').and_then(decimal).filter(|n| (1..=max).contains(n));
    number.ok_or_else(|| format!("must be a whole percentage from 1% to {max}%, not {text:?}"))
}

fn rate(text: &str) -> Result<Rate, Fault> {
    let parsed = text.split_once('/').and_then(|(count, unit)| {
        let per_seconds = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3_600,
            "d" => 86_400,
            _ => return None,
        };
        Some(Rate { count: u32::try_from(decimal(count)?).unwrap_or(u32::MAX), per_seconds })
    });
    match parsed {
        None => Err(format!("must be a number of requests a second, minute, hour or day (s, m, h, d), not {text:?}")),
        Some(Rate { count: 0, .. }) => Err("must be at least 1 (`suspended = true` shuts a tenant out)".into()),
        Some(Rate { count, .. }) if count > MAX_RATE => Err(format!("must name at most {MAX_RATE} requests")),
        Some(rate) => Ok(rate),
    }
}

fn ports(text: &str) -> Result<PortRange, Fault> {
    let ends = text.split_once('-').and_then(|(first, last)| Some((decimal(first)?, decimal(last)?)));
    let (first, last) = ends.ok_or_else(|| format!("must be a range of ports, not {text:?}"))?;
    let (Ok(first), Ok(last)) = (u16::try_from(first), u16::try_from(last)) else { return Err("must end at 65535 or below".into()) };
    match () {
        () if first > last => Err(format!("is an empty range: {first} lies above {last}")),
        () if first < 1024 => Err("must start at 1024 or above: lower ports belong to the system".into()),
        () => Ok(PortRange { first, last }),
    }
}

/// A network, or one address.
fn network(text: &str) -> Result<IpNet, Fault> {
    let parsed = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    let network = parsed.map_err(|_| format!("must be a network or an IP address, not {text:?}"))?;
    if network.trunc() == network {
        Ok(network)
    } else {
        Err(format!("has bits behind its prefix: write {:?}", network.trunc().to_string()))
    }
}

fn algorithm(text: &str) -> Result<Algorithm, Fault> {
    match text {
        "HS256" => Ok(Algorithm::HS256),
        "ES256" => Ok(Algorithm::ES256),
        "EdDSA" => Ok(Algorithm::EdDSA),
        "RS256" => Ok(Algorithm::RS256),
        _ => Err(format!("must be HS256, ES256, EdDSA or RS256, not {text:?}")),
    }
}

fn isolation(text: &str) -> Result<IsolationMode, Fault> {
    match text {
        "auto" => Ok(IsolationMode::Auto),
        "required" => Ok(IsolationMode::Required),
        "off" => Ok(IsolationMode::Off),
        _ => Err(format!("must be auto, required or off, not {text:?}")),
    }
}

fn durability(text: &str) -> Result<Durability, Fault> {
    match text {
        "off" => Ok(Durability::Off),
        "process" => Ok(Durability::Process),
        "power" => Ok(Durability::Power),
        _ => Err(format!("must be off, process or power, not {text:?}")),
    }
}

fn digest(text: &str) -> Result<[u8; 32], Fault> {
    // The text itself stays out of the message: it may be the key where its digest should stand.
    let fault = || "must be the SHA-256 of a key (`sha256:` and 64 hex digits), never the key itself".to_owned();
    text.strip_prefix("sha256:").and_then(|hex| unhex(hex.as_bytes())).ok_or_else(fault)
}

/// Seconds since 1970, rounded up: a token of the second before a fraction was issued before it.
fn moment(datetime: &Datetime) -> Result<u64, Fault> {
    let Some(offset) = datetime.offset.filter(|_| datetime.date.is_some() && datetime.time.is_some()) else {
        return Err("needs a date, a time and an offset (Z for UTC)".into());
    };
    let minutes = match offset {
        Offset::Z => 0,
        Offset::Custom { minutes } => i64::from(minutes),
    };
    let nanos = datetime.time.and_then(|time| time.nanosecond).unwrap_or(0);
    let time = datetime.time.map(|time| toml::value::Time { second: Some(time.second.unwrap_or(0)), nanosecond: None, ..time });
    let utc = Datetime { offset: Some(Offset::Z), time, ..*datetime }.to_string();
    let seconds = humantime::parse_rfc3339(&utc).ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let seconds = seconds.and_then(|since| i64::try_from(since.as_secs()).ok()).map(|s| s + i64::from(nanos > 0) - minutes * 60);
    seconds.and_then(|s| u64::try_from(s).ok()).ok_or_else(|| "must not lie before 1970".into())
}

/// A number of plain digits: no sign, no space, no underscore.
fn decimal(text: &str) -> Option<u64> {
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if plain { text.parse().ok() } else { None }
}

fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

fn is_tier_name(text: &str) -> bool {
    (1..=32).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// It becomes an argument of `cargo install`, so nothing but an exact version may stand here.
fn is_version(text: &str) -> bool {
    let (numbers, pre) = text.split_once('-').map_or((text, None), |(numbers, pre)| (numbers, Some(pre)));
    let pre_good = pre.is_none_or(|pre| !pre.is_empty() && pre.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'-'));
    numbers.split('.').count() == 3 && numbers.split('.').all(|n| decimal(n).is_some()) && pre_good && text.len() <= 64
}

/// A name for which a certificate can be asked (RFC 1123, section 2.1), with a dot in it unless it is of a network of one's own.
fn is_domain(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(label) && text.parse::<IpAddr>().is_err()
}

fn is_email(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_graphic() && !b"<>,;:?&#%\"".contains(&byte);
    text.len() <= 254 && text.bytes().all(plain) && text.rsplit_once('@').is_some_and(|(who, at)| !who.is_empty() && is_domain(at))
}

fn is_url(text: &str) -> bool {
    let uri = text.parse::<http::Uri>();
    uri.is_ok_and(|uri| uri.scheme_str() == Some("https") && uri.host().is_some_and(|host| !host.is_empty()) && uri.query().is_none())
}
