//! Ending an instance. Draining comes before and is the loop's part: sq has no signal handler, so SIGTERM kills it on
//! the spot, whatever it is writing.

use std::time::Duration;

use super::process::{Exit, Process, StopSignal};

/// How long an instance may take to die of SIGTERM before it gets SIGKILL.
pub const TERM_GRACE: Duration = Duration::from_secs(5);

/// Sends TERM, waits up to `term_grace`, sends KILL, and waits for the end. Returns how it ended.
///
/// Dropped half-way it leaves the process as it is; calling it again is harmless.
pub async fn stop(process: &Process, term_grace: Duration) -> Exit {
    if let Err(error) = process.signal(StopSignal::Term) {
        tracing::warn!(pid = process.pid(), %error, "SIGTERM could not be sent");
    }
    crate::crash_point::reached("stop.told");
    if let Ok(exit) = tokio::time::timeout(term_grace, process.exited()).await {
        return exit;
    }
    if let Err(error) = process.signal(StopSignal::Kill) {
        tracing::warn!(pid = process.pid(), %error, "SIGKILL could not be sent");
    }
    process.exited().await
}
