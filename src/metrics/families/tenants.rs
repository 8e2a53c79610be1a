//! One tenant each, for those that are shown.

use std::fmt;

use super::{
    Families,
    proxy::buckets,
    seconds as as_seconds,
    writer::{Writer, bytes, name, seconds},
};
use crate::{
    metrics::TenantFacts,
    route::{Meter, RouteState, SlotSnapshot, TENANT_REASONS},
};

pub(super) fn write(families: &Families, out: &mut Writer<'_>) -> fmt::Result {
    if families.shown.is_empty() {
        return Ok(());
    }
    about_instances(families, out)?;
    about_requests(families, out)
}

/// Whoever is shown.
fn each(families: &Families) -> impl Iterator<Item = (&TenantFacts, &SlotSnapshot, &Meter)> + Clone {
    families.shown.iter().filter_map(|(at, activity, meter)| Some((families.snapshot.tenants.get(*at)?, activity, meter)))
}

fn about_instances(families: &Families, out: &mut Writer<'_>) -> fmt::Result {
    let each = || each(families);
    let up = each().map(|(tenant, ..)| {
        let tier = families.snapshot.tiers.get(usize::from(tenant.tier)).map_or("", String::as_str);
        ([tenant.id.as_str(), tier], u32::from(tenant.state == RouteState::Ready))
    });
    out.gauges(name("tenant_up", "1: the tenant's instance serves"), ["tenant", "tier"], up)?;
    let facts = |fact: fn(&TenantFacts) -> Option<u64>| each().filter_map(move |(tenant, ..)| Some(([tenant.id.as_str()], fact(tenant)?)));
    let (one, ends) = (["tenant"], |what: fn(&Meter) -> u64| each().map(move |(tenant, _, meter)| ([tenant.id.as_str()], what(meter))));
    out.gauges(bytes("tenant_memory", "Memory of the tenant's instance (proportional set size)"), one, facts(|tenant| tenant.memory))?;
    out.gauges(bytes("tenant_memory_limit", "Its memory_max"), one, facts(|tenant| tenant.memory_max))?;
    out.gauges(bytes("tenant_storage", "What its phexts take on the disk"), one, facts(|tenant| tenant.storage))?;
    out.gauges(bytes("tenant_storage_limit", "Its storage_max"), one, facts(|tenant| tenant.storage_max))?;
    let cpu = each().map(|(tenant, _, meter)| ([tenant.id.as_str()], as_seconds(meter.cpu_us)));
    out.counters(seconds("tenant_cpu", "CPU time of its instances, looked at every 20 s"), one, cpu)?;
    out.counters(name("tenant_restarts", "Starts of its instance after the first"), one, ends(|meter| meter.restarts))?;
    out.counters(name("tenant_crashes", "Ends of its instance that nobody asked for"), one, ends(|meter| meter.crashes))?;
    out.counters(name("tenant_memory_kills", "Instances of it that were ended for their memory"), one, ends(|meter| meter.memory_kills))?;
    out.counters(name("tenant_failed_health_checks", "Probes that its instance did not answer"), one, ends(|meter| meter.failed_probes))
}

fn about_requests(families: &Families, out: &mut Writer<'_>) -> fmt::Result {
    let each = || each(families);
    let one = ["tenant"];
    let counted = |what: fn(&SlotSnapshot) -> u64| each().map(move |(tenant, activity, _)| ([tenant.id.as_str()], what(activity)));
    let metered = |what: fn(&Meter) -> u64| each().map(move |(tenant, _, meter)| ([tenant.id.as_str()], what(meter)));
    out.counters(name("tenant_requests", "Its requests, let in or not"), one, counted(|activity| activity.requests))?;
    out.counters(
        name("tenant_errors", "Answers 5xx to it, whoever made them, but for a used storage quota"),
        one,
        metered(|meter| meter.failed),
    )?;
    out.counters(name("tenant_writes", "Requests of it that may write and that sq took"), one, counted(|activity| activity.writes))?;
    out.counters(bytes("tenant_request", "Bodies of its requests"), one, counted(|activity| activity.bytes_in))?;
    out.counters(bytes("tenant_response", "Bodies of the answers to it"), one, counted(|activity| activity.bytes_out))?;
    out.counters(name("tenant_parks", "Requests of it that waited for its instance"), one, metered(|meter| meter.parked))?;
    let refused = each().filter(|(.., meter)| meter.refusals() > 0).flat_map(|(tenant, _, meter)| {
        let counts = TENANT_REASONS.iter().zip(meter.refused).filter(|(_, count)| *count > 0);
        counts.map(move |(reason, count)| ([tenant.id.as_str(), *reason], count))
    });
    let help = "Requests of it that the proxy answered itself, by reason, where there were any";
    out.counters(name("tenant_refused", help), ["tenant", "reason"], refused)?;
    let today = |activity: &SlotSnapshot| if activity.day >= families.today { activity.requests_that_day } else { 0 };
    let quotas = || each().filter_map(|(tenant, activity, _)| Some((tenant, activity, tenant.requests_per_day?)));
    let used = quotas().map(|(tenant, activity, _)| ([tenant.id.as_str()], today(activity)));
    out.gauges(name("tenant_quota_used", "Requests that were let in today (UTC), where requests_per_day is a limit"), one, used)?;
    let limits = quotas().map(|(tenant, _, quota)| ([tenant.id.as_str()], quota));
    out.gauges(name("tenant_quota", "Its requests_per_day"), one, limits)?;
    let took = each().filter(|(.., meter)| meter.answers() > 0);
    let took = took.map(|(tenant, _, meter)| (tenant.id.as_str(), as_seconds(meter.took_us), buckets(meter)));
    let help = "From the head of its requests to the last byte of their answers, where there were any";
    out.histograms(seconds("tenant_request_duration", help), "tenant", took)
}
