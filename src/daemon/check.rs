//! What a new program looks at before it asks for the host: whether it could run here at all. Changes nothing.

use std::path::Path;

use anyhow::Context as _;

use crate::{desired::Desired, instance::limits, proxy::ring::Ring, store::Store};

/// Whether an agent of this program could begin on this host, with the state that another one holds.
///
/// # Errors
/// Each says what stands against it.
pub(super) fn check(desired: &Desired) -> anyhow::Result<()> {
    limits::prepare_agent_limits()?;
    Ring::new(desired).context("keys and certificates")?;
    Store::check(&desired.state_dir).context("instances.db")?;
    readable(Path::new("/proc/self/stat"))
}

fn readable(path: &Path) -> anyhow::Result<()> {
    std::fs::read(path).map(drop).with_context(|| path.display().to_string())
}
