//! The shared pages between agent and proxy: the route table (agent -> proxy), the activity page (proxy -> agent), and the page of metrics, by which
//! nothing is decided.
//!
//! All are fixed-size files on tmpfs whose every word is an `AtomicU64`:
//!
//! - `page`: a mapped file as words, the only `unsafe`; `layout`: which word is what.
//! - `protocol`: how one writer and many readers share two buffers without a lock.
//! - `image`: the writer's private image, pure; [`TableWriter`] and [`TableReader`]: the two ends.
//! - [`gcra`]: the rate limit, pure; `flight`: who is under way and who writes; [`SlotActivity`] and [`Activity`]: one tenant's line, and all of them; [`SlotMeters`]
//!   and [`Meters`]: the same of what is only counted.

mod activity;
mod error;
mod flight;
pub mod gcra;
mod image;
mod layout;
mod meter;
mod meters;
mod page;
mod protocol;
mod reader;
mod slot;
#[cfg(test)]
mod table_tests;
mod writer;

pub use activity::{Activity, SLOTS};
pub use error::{Busy, TableError};
pub use flight::Side;
pub use gcra::{Admission, decide};
pub use meter::{BUCKETS, Happened, LATENCY, Meter, SlotMeters, TENANT_REASONS};
pub use meters::{AUTHS, Handshake, Meters, OTHER_REASONS, ProxyMeter, ProxyNow};
pub use reader::{TableReader, TenantIdText};
pub use slot::{SlotActivity, SlotSnapshot, day};
pub use writer::TableWriter;

pub use crate::guard::Durability;

/// The atomics of this room, in one place so that the protocol can be compiled with loom's instead.
mod atomics {
    pub(super) use std::hint::spin_loop;
    pub(super) use std::sync::atomic::{AtomicU64, Ordering, fence};
}

/// What a row says about its tenant's instance. The numbers are the words in the table: never reuse one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RouteState {
    /// An instance is being started; requests park.
    Starting = 1,
    /// Forward at once.
    Ready = 2,
    /// Requests in flight finish; new ones park.
    Draining = 3,
    /// No instance; requests park and ask for one.
    Stopped = 4,
    /// The operator said no: 403.
    Suspended = 5,
    /// The instance died and waits for its next try; requests park.
    Crashed = 6,
}

impl RouteState {
    /// The state with this number in the table.
    pub fn from_word(word: u8) -> Option<Self> {
        [Self::Starting, Self::Ready, Self::Draining, Self::Stopped, Self::Suspended, Self::Crashed]
            .into_iter()
            .find(|state| *state as u8 == word)
    }
}

/// Which of a tenant's writes are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Writes {
    /// All of them.
    #[default]
    All,
    /// Those that make less, since its phexts take more than its `storage_max`.
    OverStorage {
        /// What they took when it was measured, bytes.
        used: u64,
    },
    /// Those that make less, since the disk is nearly full; so it is for everybody.
    DiskLow,
}

/// What the proxy enforces for one tenant. Distinct values are stored once per table and shared by rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RouteLimits {
    /// GCRA emission interval in nanoseconds; 0 is no rate limit.
    pub interval_ns: u64,
    /// Requests admitted at once on top of the rate.
    pub burst: u32,
    /// Requests admitted a UTC day; 0 is no limit.
    pub requests_per_day: u32,
    /// Reads in flight at once; mutations are one at a time.
    pub concurrency: u16,
    /// Requests that may wait for their turn.
    pub queue: u16,
    /// Largest request body, bytes.
    pub body_max: u64,
    /// Memory of the instance, bytes; 0 is no limit.
    pub memory_max: u64,
    /// What the phexts may take on the disk, bytes; 0 is no limit.
    pub storage_max: u64,
    /// What writes have to survive.
    pub durability: Durability,
}

/// One tenant's row, as the agent writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Tenant id; only its keyed hash enters the table.
    pub id: String,
    /// Port of the instance on loopback; 0 where there is none.
    pub port: u16,
    /// See [`RouteState`].
    pub state: RouteState,
    /// Number of this start of the instance.
    pub epoch: u64,
    /// The tenant's fixed index in the activity page.
    pub slot: u32,
    /// Tokens issued before are refused; seconds since 1970.
    pub tokens_valid_after: u64,
    /// Limits the proxy enforces.
    pub limits: RouteLimits,
    /// See [`Writes`].
    pub writes: Writes,
    /// SHA-256 of each API key.
    pub api_keys: Vec<[u8; 32]>,
}

/// One tenant's row, as the proxy reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Port of the instance on loopback.
    pub port: u16,
    /// See [`RouteState`].
    pub state: RouteState,
    /// Number of this start of the instance.
    pub epoch: u64,
    /// Index in the activity page.
    pub slot: u32,
    /// Tokens issued before are refused; seconds since 1970.
    pub tokens_valid_after: u64,
    /// Limits to enforce.
    pub limits: RouteLimits,
    /// See [`Writes`].
    pub writes: Writes,
}
