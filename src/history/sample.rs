//! How the host stood at a moment, and how long that is kept: a minute each for a day, a quarter of an hour each for 30 days.

use serde::{Deserialize, Serialize};

/// Seconds from one sample to the next.
pub const FINE: u32 = 60;
/// Of those that were thinned out.
pub const COARSE: u32 = 900;
/// How long the fine ones are kept, seconds.
pub const FINE_KEPT: u64 = 86_400;
/// How long the thinned ones are kept, seconds.
pub const COARSE_KEPT: u64 = 30 * 86_400;

/// How the host stood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Sample {
    /// When, seconds since 1970: the begin of the minute or quarter.
    pub at: u64,
    /// The host's memory, bytes; 0 where it cannot be told.
    pub memory_total: u64,
    /// What of it is not available to new processes, bytes.
    pub memory_used: u64,
    /// The disk where the tenants' files lie, bytes; 0 where it cannot be told.
    pub disk_total: u64,
    /// What of it is taken, or kept for root, bytes.
    pub disk_used: u64,
    /// Instances that ran.
    pub instances: u64,
    /// What they took together (PSS), bytes.
    pub instances_memory: u64,
    /// Requests that came meanwhile.
    pub requests: u64,
    /// Of these, answered by 5xx of the proxy.
    pub errors: u64,
}
