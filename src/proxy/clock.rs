//! The two clocks of the proxy, as plain numbers.

use std::time::{SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

/// CLOCK_MONOTONIC, nanoseconds: the clock of the activity page, one for all processes of the host.
pub(crate) fn monotonic_ns() -> u64 {
    // The call cannot fail for this clock, and the value fits for 584 years of uptime.
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map(|time| u64::try_from(time.tv_sec()).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec()).unwrap_or(0))
        .unwrap_or(0)
}

/// Seconds since 1970, the clock of tokens. A clock before 1970 counts as 1970.
pub(crate) fn unix_seconds(now: SystemTime) -> u64 {
    now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
