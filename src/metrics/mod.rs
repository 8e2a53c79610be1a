//! `/metrics`: what a Prometheus reads of this host.
//!
//! Two sources: the shared pages, which are read as they stand, and a snapshot of what the loop knows, which costs the loop a walk over its tenants and
//! nothing else. The text is made off the loop. `snapshot` is what the loop gives, `busiest` (pure) says who is shown where not everybody is, `families`
//! (pure) has every name with its meaning, `scrape` puts them together.
#![forbid(unsafe_code)]

mod busiest;
mod families;
mod scrape;
mod snapshot;
mod turns;

pub use scrape::{Format, Metrics, MetricsParts, NoAnswer};
pub use snapshot::{Ask, Snapshot, TenantFacts};
pub use turns::Turns;
