//! Every metric: its name, its meaning, and where its value comes from. Pure: from values to text, by the encoder of prometheus-client.
//!
//! Names are contracts: dashboards and rules of others have them. They follow the field's conventions: base units, `_total` for what only grows. A
//! tenant's own have the label `tenant` and nothing else, but for `sq_agent_tenant_up`, which says the tier, so that the others stay short.

mod agent;
mod proxy;
mod tenants;
mod writer;

use std::{fmt, sync::Arc, time::Duration};

use prometheus_client::{collector::Collector, encoding::DescriptorEncoder};

use self::writer::Writer;
use super::Snapshot;
use crate::route::{Meter, ProxyMeter, SlotSnapshot};

/// All that a scrape says.
#[derive(Debug)]
pub(super) struct Families {
    pub(super) snapshot: Arc<Snapshot>,
    /// Of the snapshot.
    pub(super) age: Duration,
    /// What was counted for all tenants that there are and were.
    pub(super) all: Meter,
    pub(super) proxy: ProxyMeter,
    pub(super) lost_log_lines: u64,
    /// Days since 1970, UTC.
    pub(super) today: u32,
    /// Tenants that have metrics of their own: by index in the snapshot, with what was counted for each.
    pub(super) shown: Vec<(usize, SlotSnapshot, Meter)>,
}

impl Collector for Families {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Writer(encoder);
        agent::write(self, &mut out)?;
        proxy::write(self, &mut out)?;
        tenants::write(self, &mut out)
    }
}

/// Microseconds as seconds.
fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

#[cfg(test)]
mod tests;
