//! The proxy, and the requests of all tenants together.

use std::fmt;

use super::{
    Families, seconds as as_seconds,
    writer::{Writer, bytes, name, seconds},
};
use crate::route::{AUTHS, BUCKETS, Handshake, LATENCY, Meter, OTHER_REASONS, TENANT_REASONS};

pub(super) fn write(families: &Families, out: &mut Writer<'_>) -> fmt::Result {
    let (proxy, now) = (&families.proxy, families.proxy.now);
    out.gauge(name("proxy_up", "1: a proxy serves"), u32::from(families.snapshot.status.proxy.pid.is_some()))?;
    out.gauge(name("proxy_connections", "Clients that are connected"), now.connections)?;
    out.counter(name("proxy_connections_opened", "Connections taken"), proxy.connections)?;
    out.counter(name("proxy_connections_turned_away", "Connections not taken, since their address had its share"), proxy.turned_away)?;
    let handshakes = Handshake::ALL.iter().zip(proxy.handshakes).map(|((_, result), count)| ([*result], count));
    out.counters(name("proxy_handshakes", "TLS handshakes, by how they ended"), ["result"], handshakes)?;
    let auths = AUTHS.iter().zip(proxy.auths).map(|(result, count)| ([*result], count));
    let help = "Requests by what came of their credential; token_cached is a token that was verified before (a cache hit), token_verified one that was not";
    out.counters(name("proxy_auth", help), ["result"], auths)?;
    out.gauge(name("proxy_requests_in_flight", "Requests in flight to instances"), now.in_flight)?;
    out.gauge(name("proxy_requests_parked", "Requests that wait for an instance"), now.parked)?;
    out.gauge(name("proxy_requests_queued", "Requests that wait for their turn at an instance"), now.queued)?;
    out.gauge(bytes("proxy_body_memory", "Request bodies in memory"), now.body_bytes)?;
    out.counter(name("proxy_lost_log_lines", "Lines of the access log that could not be written"), families.lost_log_lines)?;
    let all = &families.all;
    let help = "From the head of a tenant's request to the last byte of its answer, of all tenants";
    out.histogram(seconds("request_duration", help), as_seconds(all.took_us), &buckets(all))?;
    out.counter(name("requests_failed", "Answers 5xx, whoever made them, but for a used storage quota"), all.failed)?;
    out.counters(name("requests_refused", "Requests that the proxy answered itself, by reason"), ["reason"], refused(families))?;
    out.counter(name("parks", "Requests that waited for an instance"), all.parked)?;
    out.counter(seconds("park", "How long they waited, all together"), as_seconds(all.parked_us))
}

/// Each reason once, whether it is known whose request it was or not.
fn refused(families: &Families) -> impl Iterator<Item = ([&'static str; 1], u64)> {
    let nobodys =
        |reason| OTHER_REASONS.iter().zip(families.proxy.refused).find(|(other, _)| **other == reason).map_or(0, |(_, count)| count);
    let of_tenants = TENANT_REASONS.iter().zip(families.all.refused).map(move |(reason, count)| ([*reason], count + nobodys(*reason)));
    let others = OTHER_REASONS.iter().zip(families.proxy.refused).filter(|(reason, _)| !TENANT_REASONS.contains(reason));
    of_tenants.chain(others.map(|(reason, count)| ([*reason], count)))
}

/// Each bucket's upper end and what is in it alone.
pub(super) fn buckets(meter: &Meter) -> [(f64, u64); BUCKETS] {
    std::array::from_fn(|at| (LATENCY.get(at).copied().unwrap_or(f64::INFINITY), meter.took[at]))
}
