//! The observed state as values: what the agent knows of every tenant it has met and not yet let go.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use super::Moment;
use crate::{
    desired::{Tenant, TenantId},
    snapshot::{Name, Reason},
};

/// Everything the plan may know of the world.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Observed {
    /// Every tenant that has a place on this host: met once, and not let go since.
    pub known: BTreeMap<TenantId, Known>,
    /// Programs that can be started: nothing is stopped for want of one that is not there yet.
    #[serde(default)]
    pub programs: BTreeSet<String>,
    /// Hash of the held removals that an operator let through.
    pub confirmed: Option<String>,
    /// The disk has too little room for anybody to write more.
    #[serde(default)]
    pub disk_low: bool,
    /// When instances were restarted for failed probes, newest last, for the limit a minute.
    pub probe_restarts: VecDeque<Moment>,
}

/// One tenant as it stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Known {
    /// Fixed index in both shared pages.
    pub slot: u32,
    /// Number of the latest start; 0 before the first.
    pub epoch: u64,
    /// Port of the instance, kept from start to start.
    pub port: Option<u16>,
    /// What of the desired state is in force for it. Outlives the tenant's place in the file while its removal is held.
    pub spec: Tenant,
    /// The program that it is given; see [`crate::reconcile::rollout`].
    pub program: String,
    /// The program of its latest start.
    pub launched: String,
    /// An instance of it ended unasked, or did not come up, on that program.
    pub crashed_on_program: bool,
    /// Where its instance stands.
    pub state: State,
    /// Its removal was let through: it stops, then it is let go.
    pub leaving: bool,
    /// Somebody asked for a restart.
    pub restart_wanted: bool,
    /// Consecutive failed probes reached the limit.
    pub unhealthy: bool,
    /// A write to it broke off, and what that left is put back before the next start.
    pub in_doubt: bool,
    /// A snapshot of it is to be put back.
    #[serde(default)]
    pub restore: Option<Restore>,
    /// What is done with its files now: nothing of it runs, and nothing is started meanwhile.
    #[serde(default)]
    pub files: Option<FileWork>,
    /// What its phexts were kept for since its latest start, or were tried to.
    #[serde(default)]
    pub kept: Option<Reason>,
    /// The latest write that broke off and was put back: before which start, and in words.
    pub undone: Option<(u64, String)>,
    /// Its limits changed to what the running instance cannot be held to: it uses too much.
    pub limits_pending: bool,
    /// It used more memory than its limit at the last look, bytes, where the kernel does not hold it to that.
    pub over_memory: Option<u64>,
    /// What its phexts took at the last look, bytes.
    #[serde(default)]
    pub storage: Option<u64>,
    /// When the next start may be tried, and how it came to that.
    pub back_off: BackOff,
    /// Some start of it has succeeded since the agent met it.
    pub started_before: bool,
    /// Starts after the first one since the agent met the tenant.
    pub restarts: u64,
    /// How the last instance ended.
    pub last_exit: Option<String>,
}

impl Known {
    /// A tenant that was just given its place.
    pub fn new(slot: u32, spec: Tenant) -> Self {
        Self {
            slot,
            epoch: 0,
            port: None,
            spec,
            program: String::new(),
            launched: String::new(),
            crashed_on_program: false,
            state: State::Absent,
            leaving: false,
            restart_wanted: false,
            unhealthy: false,
            in_doubt: false,
            restore: None,
            files: None,
            kept: None,
            undone: None,
            limits_pending: false,
            over_memory: None,
            storage: None,
            back_off: BackOff::default(),
            started_before: false,
            restarts: 0,
            last_exit: None,
        }
    }

    /// What its phexts take and may take, bytes, where that is too much.
    pub fn over_storage(&self) -> Option<(u64, u64)> {
        self.storage.zip(self.spec.limits.storage_max).filter(|(used, limit)| used > limit)
    }
}

/// A snapshot that is to be put back. A wish does not outlive its agent: cut off, a person asks again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restore {
    /// Names this wish to whoever waits for it.
    pub number: u64,
    /// Whose snapshot.
    pub from: TenantId,
    /// Which one.
    pub name: Name,
    /// Only this file of it.
    pub file: Option<String>,
}

/// What is done with a tenant's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileWork {
    /// A snapshot is taken.
    Keep {
        /// Names this piece of work.
        number: u64,
        /// Why.
        reason: Reason,
    },
    /// One is put back.
    Restore,
}

/// Where a tenant's instance stands. `Starting` and `Stopping` are the one action that may be in flight.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Nothing runs.
    Absent,
    /// Spawned or about to be, not yet proved ready.
    Starting {
        /// Number of this start.
        epoch: u64,
    },
    /// Proved by its key.
    Running(Running),
    /// Draining, then being ended.
    Stopping {
        /// Number of the start that is being ended; 0 for a process found without a record.
        epoch: u64,
        /// Why.
        why: StopReason,
    },
    /// The look that `Unknown` asked for is under way.
    Looking,
    /// An action's outcome is not known, or an instance of an earlier agent may live: look before doing anything.
    Unknown,
}

/// An instance that answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// Number of this start.
    pub epoch: u64,
    /// Process id.
    pub pid: u32,
    /// What it was started from; see [`Known::program`].
    pub program: String,
    /// When it was started.
    pub since: Moment,
    /// The same on the wall clock, seconds since 1970, for people.
    pub started_at: u64,
}

/// Why an instance is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// The tenant left tenants.toml.
    Removed,
    /// `suspended = true`.
    Suspended,
    /// `sq-agent restart`.
    Asked,
    /// It runs another program than it should.
    ProgramChanged,
    /// It uses more memory than a limit that was lowered.
    LimitsChanged,
    /// It used more memory than its limit, on a host whose kernel does not see to that.
    OverMemory,
    /// A write broke off, and what it left has to be put back.
    InDoubt,
    /// A snapshot is to be put back.
    Restore,
    /// Three probes in a row failed.
    FailedProbes,
    /// A process of this tenant that no record proves to be ours.
    Unproved,
    /// The agent ends and takes everything with it.
    Shutdown,
}

impl StopReason {
    /// Whether a few at a time are stopped for it.
    pub fn is_rolling(self) -> bool {
        matches!(self, Self::ProgramChanged | Self::LimitsChanged | Self::OverMemory)
    }

    /// As a person reads it.
    pub fn text(self) -> &'static str {
        match self {
            Self::Removed => "removed from tenants.toml",
            Self::Suspended => "suspended",
            Self::Asked => "restart asked for",
            Self::ProgramChanged => "another sq program is desired",
            Self::LimitsChanged => "its memory limit was lowered below what it uses",
            Self::OverMemory => "it used more memory than its limit: raise memory_max or lower body_max",
            Self::InDoubt => "a write broke off: the text is put back as it was",
            Self::Restore => "a snapshot is put back",
            Self::FailedProbes => "three probes in a row failed",
            Self::Unproved => "no record proves this process to be ours",
            Self::Shutdown => "the agent stops",
        }
    }
}

/// Crash history and the moment of the next try. See [`crate::reconcile::backoff`] for the rules.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackOff {
    /// Crashes in a row, since it was last stable.
    pub streak: u32,
    /// No start before this moment.
    pub not_before: Option<Moment>,
    /// Moments of the latest crashes, oldest first; bounded.
    pub recent: VecDeque<Moment>,
}
