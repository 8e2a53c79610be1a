//! Tiers and tenants: who is served, and under which limits.

use std::collections::{BTreeMap, HashMap, HashSet, hash_map::Entry};

use super::{
    Limits, PortRange, Rate, Tenant, TenantId,
    fields::Fields,
    kind::Value,
    problem::{Finding, Span},
};

/// Most tenants of one host. The route table has 32,768 slots; beyond 20,000 rows its probes grow long.
pub const MAX_TENANTS: usize = 20_000;
/// Most API keys of one host: their index is as large as the route table.
pub const MAX_API_KEYS: usize = 20_000;
/// Most different sets of limits among the tenants: the route table stores each set once and has room for these.
pub const MAX_LIMIT_SETS: usize = 1_024;

/// The one tier of a file without `[tiers]`, and the tier of a tenant that names none.
pub(crate) const FREE: &str = "free";

/// The limits of the built-in tier `free`.
fn free() -> Limits {
    Limits { memory_max: Some(20 << 20), cpu_quota: Some(10), rate: Some(Rate { count: 100, per_seconds: 60 }), ..Limits::BASE }
}

/// Every tier by name.
pub(super) fn tiers(root: &Fields) -> BTreeMap<String, Limits> {
    let durability = root.table("agent").and_then(|agent| agent.durability("durability")).unwrap_or(Limits::BASE.durability);
    match root.named("tiers") {
        Some(named) => named.iter().map(|(name, fields)| (name.clone(), overlay(fields, &Limits { durability, ..Limits::BASE }))).collect(),
        None => BTreeMap::from([(FREE.to_owned(), Limits { durability, ..free() })]),
    }
}

/// `base` with the keys of `fields` laid over it.
fn overlay(fields: &Fields, base: &Limits) -> Limits {
    let small = |name, base: u16| fields.number(name).and_then(|n| u16::try_from(n).ok()).unwrap_or(base);
    Limits {
        memory_max: fields.number_or_none("memory_max").unwrap_or(base.memory_max),
        cpu_quota: fields.number_or_none("cpu_quota").map_or(base.cpu_quota, |quota| quota.and_then(|q| u32::try_from(q).ok())),
        rate: fields.rate_or_none("rate").unwrap_or(base.rate),
        burst: fields.number("burst").and_then(|n| u32::try_from(n).ok()).unwrap_or(base.burst),
        requests_per_day: fields
            .number_or_none("requests_per_day")
            .map_or(base.requests_per_day, |quota| quota.and_then(|count| u32::try_from(count).ok())),
        concurrency: small("concurrency", base.concurrency),
        queue: small("queue", base.queue),
        body_max: fields.number("body_max").unwrap_or(base.body_max),
        storage_max: fields.number_or_none("storage_max").unwrap_or(base.storage_max),
        durability: fields.durability("durability").unwrap_or(base.durability),
    }
}

/// Every tenant by id. `ports` is the range with the place where the file gives it.
pub(super) fn tenants(
    root: &Fields,
    tiers: &BTreeMap<String, Limits>,
    ports: (PortRange, Option<Span>),
    found: &mut Vec<Finding>,
) -> BTreeMap<TenantId, Tenant> {
    let all = root.tables("tenants");
    let mut ids: HashMap<TenantId, Span> = HashMap::with_capacity(all.len());
    let mut keys: HashMap<[u8; 32], Span> = HashMap::new();
    let mut given: HashMap<u16, Span> = HashMap::new();
    let mut sets: HashSet<Limits> = HashSet::new();
    let mut tenants = BTreeMap::new();
    for fields in all {
        let (tier, limits) = tier_of(fields, tiers, root.is_bad("tiers"), found);
        if sets.insert(limits.clone()) && sets.len() == MAX_LIMIT_SETS + 1 {
            let message = format!("more than {MAX_LIMIT_SETS} different sets of limits");
            found.push(Finding::new(place(fields), message, "give tenants with like needs the same tier and no keys of their own"));
        }
        let api_keys = api_keys(fields, &mut keys, found);
        let port = port(fields, ports.0, &mut given, found);
        let Some(id) = fields.id("id") else { continue };
        let span = place(fields);
        match ids.entry(id.clone()) {
            Entry::Occupied(first) => {
                let finding = Finding::new(span, format!("a second tenant with id {:?}", id.as_str()), "remove one, or give it another id");
                found.push(finding.related(first.get().clone(), "the first one"));
            }
            Entry::Vacant(free) => _ = free.insert(span),
        }
        let suspended = fields.flag("suspended").unwrap_or(false);
        let tokens_valid_after = fields.number("tokens_valid_after").unwrap_or(0);
        tenants.insert(id.clone(), Tenant { id, tier, limits, suspended, api_keys, tokens_valid_after, port });
    }
    count(all, ports, keys.len(), found);
    tenants
}

/// Where a tenant stands: its id, or its header.
fn place(fields: &Fields) -> Span {
    fields.span_of("id").unwrap_or_else(|| fields.span.clone())
}

fn tier_of(fields: &Fields, tiers: &BTreeMap<String, Limits>, tiers_bad: bool, found: &mut Vec<Finding>) -> (String, Limits) {
    let tier = fields.text("tier").unwrap_or_else(|| FREE.into());
    if let Some(limits) = tiers.get(&tier) {
        let limits = overlay(fields, limits);
        return (tier, limits);
    }
    let near = tiers.keys().min_by_key(|name| strsim::damerau_levenshtein(name, &tier));
    let help = match near {
        Some(near) if strsim::damerau_levenshtein(near, &tier) <= 2 => format!("did you mean `tier = \"{near}\"`?"),
        Some(_) => format!("tiers of this file: {}", tiers.keys().map(String::as_str).collect::<Vec<_>>().join(", ")),
        None => format!("write its limits under a line `[tiers.{tier}]`"),
    };
    match fields.span_of("tier") {
        // Tiers that could not be read are reported already.
        _ if tiers_bad => {}
        Some(span) => found.push(Finding::new(span, format!("there is no tier {tier:?}"), help).echo()),
        // A tier that was written but is no good is reported already.
        None if fields.is_bad("tier") => {}
        None => {
            let message = format!("this tenant names no tier, and there is no tier \"{FREE}\" to fall back to");
            found.push(Finding::new(place(fields), message, help).echo());
        }
    }
    (tier, overlay(fields, &Limits::BASE))
}

fn api_keys(fields: &Fields, seen: &mut HashMap<[u8; 32], Span>, found: &mut Vec<Finding>) -> Vec<[u8; 32]> {
    let mut keys = Vec::new();
    for (value, span) in fields.list("api_keys").unwrap_or_default() {
        let Value::Digest(digest) = value else { continue };
        match seen.entry(*digest) {
            Entry::Occupied(first) => {
                let finding = Finding::new(span.clone(), "an API key that is listed twice", "one key names one tenant: make another key");
                found.push(finding.related(first.get().clone(), "the first one"));
            }
            Entry::Vacant(free) => {
                free.insert(span.clone());
                keys.push(*digest);
            }
        }
    }
    keys
}

fn port(fields: &Fields, ports: PortRange, given: &mut HashMap<u16, Span>, found: &mut Vec<Finding>) -> Option<u16> {
    let port = fields.number("port").and_then(|port| u16::try_from(port).ok())?;
    let span = fields.span_of("port").unwrap_or_default();
    if !ports.contains(port) {
        let message = format!("port {port} is none of the instances', {}-{}", ports.first, ports.last);
        found.push(Finding::new(span.clone(), message, "leave it out, or widen `ports` under [agent]"));
    }
    match given.entry(port) {
        Entry::Occupied(first) => {
            let finding = Finding::new(span, format!("a second tenant with port {port}"), "leave one of them out");
            found.push(finding.related(first.get().clone(), "the first one"));
        }
        Entry::Vacant(free) => _ = free.insert(span),
    }
    Some(port)
}

/// Whether host and port range can hold all tenants; suspended ones count, since each may come back at any time.
fn count(all: &[Fields], (ports, written): (PortRange, Option<Span>), keys: usize, found: &mut Vec<Finding>) {
    let first_over = |limit: usize| all.get(limit).map(place).unwrap_or_default();
    if all.len() > MAX_TENANTS {
        let message = format!("{} tenants: one host serves at most {MAX_TENANTS}", all.len());
        found.push(Finding::new(first_over(MAX_TENANTS), message, "move some to another host"));
    } else if all.len() > ports.count() {
        let (first, last) = (ports.first, ports.last);
        let message = format!("{} tenants, but only {} ports in {first}-{last}", all.len(), ports.count());
        let help = match usize::from(first) + all.len() - 1 {
            last @ ..=65_535 => format!("each tenant needs a port: write `ports = \"{first}-{last}\"` under [agent]"),
            _ => "each tenant needs a port: start `ports` under [agent] lower".into(),
        };
        found.push(Finding::new(written.unwrap_or_else(|| first_over(ports.count())), message, help));
    }
    if keys > MAX_API_KEYS {
        let span = all.iter().find_map(|fields| fields.span_of("api_keys")).unwrap_or_default();
        found.push(Finding::new(span, format!("{keys} API keys: one host holds at most {MAX_API_KEYS}"), "remove those not in use"));
    }
}
