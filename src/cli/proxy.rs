//! `sq-agent proxy` (hidden): the process that faces the network. `sq-agent run` starts it.

/// Runs until the agent says otherwise.
///
/// # Errors
/// The process cannot serve; see [`ProxyError`](crate::proxy::process::ProxyError).
pub fn run() -> anyhow::Result<()> {
    Ok(crate::proxy::process::run()?)
}
