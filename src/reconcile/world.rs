//! Everything the loop does to the world and asks of it, as two traits.
//!
//! The loop's logic ([`super::core`]) has no other way out: no clock, file, process, socket or randomness of its own. So the same
//! logic runs against the real host ([`super::host::Host`]) and against a simulated one, where an agent dies between any two
//! calls. Nothing here waits: what takes time is begun, and reports by an [`Event`](super::event::Event).

use std::{collections::HashMap, fmt, io, path::PathBuf, time::Duration};

use super::event::{Drain, Unproved};
use crate::{
    admin::page::Begun,
    alerts::{Alert, Channel, Share},
    backup::Job,
    certificate::Facts,
    desired::{Acme, Alerts, Desired, Snapshots, SqSource, TenantId},
    gitops,
    history::{
        sample::{CpuTicks, Sample},
        usage::{Addition, Seen},
    },
    instance::{
        cgroup::{Applied, CgroupLimits},
        isolation::Isolation,
        ports::PortState,
        process::StopSignal,
        scan::Found,
        storage::DiskSpace,
        usage::Memory,
    },
    observed::{Moment, Restore},
    proxy::front::Source,
    route::{Happened, Route, Row, SlotSnapshot, TableError},
    snapshot::Reason,
    store::{self, InstanceRecord, StoreError, TenantRecord},
};

/// Names one live process and can never come to mean another.
pub trait Handle: Clone + fmt::Debug {
    /// Process id.
    fn pid(&self) -> u32;
    /// Start time, clock ticks since boot.
    fn start_time(&self) -> u64;
}

/// What a start needs that only the loop knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// Whose instance.
    pub id: TenantId,
    /// Its slot; gives the instance its user where each has one of its own.
    pub slot: u32,
    /// Number of this start; never used before. The instance's key is derived from it.
    pub epoch: u64,
    /// On which port.
    pub port: u16,
    /// The sq program.
    pub program: PathBuf,
    /// What its cgroup limits, where it has one.
    pub limits: CgroupLimits,
}

/// Why tenants.toml cannot be applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// In one line that names place and remedy.
    pub summary: String,
    /// In full.
    pub text: String,
}

/// The host as the loop meets it.
pub trait World {
    /// A process that runs.
    type Process: Handle;
    /// What survives the agent.
    type Records: Records;

    /// What survives the agent.
    fn records(&mut self) -> &mut Self::Records;
    /// The wall clock, seconds since 1970; it may jump. (The monotonic clock comes with each event.)
    fn unix_now(&self) -> u64;
    /// Random in 0..=1.
    fn jitter(&mut self) -> f64;

    /// Changes whenever the content of tenants.toml does; `None` where there is no such file.
    fn fingerprint(&mut self) -> Option<[u8; 32]>;
    /// tenants.toml as it stands: what it means, and its text.
    fn load(&mut self) -> Result<(Desired, String), Refusal>;
    /// Keeps `text`, the tenants.toml in force, for a start that finds a bad one.
    fn save_last_good(&mut self, text: &str) -> Result<(), String>;
    /// Reads keys and certificates anew and hands the proxy what changed. Returns what is no good, a sentence each; what was good before stays in force.
    fn renew_settings(&mut self, desired: &Desired) -> Vec<String>;
    /// A token names a kid that no key has: has the keys of identity providers fetched anew. [`Event::KeySets`](super::event::Event::KeySets) follows.
    fn renew_key_sets(&mut self);
    /// What the proxy serves with; while none has said so, what it is given to serve with.
    fn certificate(&self) -> Option<(Facts, Source)>;
    /// Has a certificate asked for as `acme` says, or none; what comes of it is told by [`Event::Acme`](super::event::Event::Acme). Called again
    /// and again, it changes something only where `acme` has changed. `ends`: the agent does.
    fn ask_for_certificates(&mut self, acme: Option<&Acme>, ends: bool);
    /// Takes a backup off this host; [`Event::BackedUp`](super::event::Event::BackedUp) says what came of it. None is under way.
    fn back_up(&mut self, job: Job);
    /// Looks at the repository that tenants.toml comes from; [`Event::Synced`](super::event::Event::Synced) says what came of it. No look is
    /// under way.
    fn sync(&mut self, job: gitops::Job);
    /// How much memory this host has left; `None` where that cannot be told.
    fn host_memory(&mut self) -> Option<Share>;
    /// What the processors did since the host booted; `None` where that cannot be told.
    fn host_cpu(&mut self) -> Option<CpuTicks>;
    /// The channels on which people are told of alerts.
    fn alert_channels(&self, alerts: &Alerts) -> Vec<Channel>;
    /// Changes whenever the address of `channel` does.
    fn alert_mark(&mut self, channel: Channel, alerts: &Alerts) -> Option<[u8; 32]>;
    /// Sends an alert; [`Event::Alerted`](super::event::Event::Alerted) says what came of it. None is under way on that channel.
    fn send_alert(&mut self, channel: Channel, alert: Alert, alerts: &Alerts);
    /// Finds or installs the program after a pause; [`Event::Program`](super::event::Event::Program) says what came of it.
    fn find_program(&mut self, source: &SqSource, pause: Duration);

    /// Every process that runs as an instance of this host's tenants, whoever started it.
    fn scan(&mut self) -> io::Result<Vec<Found>>;
    /// A handle on a process that was found; `None` where it is gone.
    fn adopt(&mut self, found: &Found) -> io::Result<Option<Self::Process>>;
    /// Starts and proves an instance, then waits for its end.
    fn start(&mut self, start: Start);
    /// Waits until nothing is in flight, or for long enough, then ends the process. Its row says `draining` by now.
    fn drain_and_stop(&mut self, drain: Drain<Self::Process>);
    /// The same for all of `unproved`, one after the other; the last exit is reported as that of epoch 0.
    fn drain_unproved(&mut self, unproved: Unproved<Self::Process>);
    /// Ends processes in the directory of `id` that never served as its instance. Nothing is reported.
    fn stop_strays(&mut self, id: &TenantId, processes: Vec<Self::Process>);
    /// Finds out whether one of `found` (where left out: of all that runs) is the start `epoch` of `id`, and which are not; `number`
    /// names this look.
    fn look(&mut self, id: &TenantId, number: u64, epoch: u64, found: Option<Vec<Found>>);
    /// Waits for the end of an instance that an earlier agent started.
    fn watch(&mut self, id: &TenantId, epoch: u64, process: &Self::Process);
    /// Looks at all that runs beside `instances` (by process id, with what was last measured and may still hold), and measures those; and what
    /// the phexts of `storage` take, in that order, as far as time allows.
    fn survey(&mut self, desired: &Desired, instances: HashMap<u32, Option<Memory>>, storage: Vec<TenantId>);
    /// Measures these instances alone, by process id, with what was last measured and may still hold;
    /// [`Event::Measured`](super::event::Event::Measured) follows.
    fn measure(&mut self, instances: HashMap<u32, Option<Memory>>);
    /// Room on the disk where the tenants' files lie; `None` where that cannot be told.
    fn disk(&mut self) -> Option<DiskSpace>;
    /// Takes a snapshot of `id` and removes what is beyond `keep`; [`Event::Kept`](super::event::Event::Kept) says what came of it.
    fn keep(&mut self, number: u64, id: &TenantId, reason: Reason, keep: &Snapshots);
    /// Puts a snapshot back; [`Event::Restored`](super::event::Event::Restored) says what came of it. Nothing of `id` runs.
    fn restore(&mut self, id: &TenantId, restore: &Restore, keep: &Snapshots);
    /// Sends a signal; a process that has ended already is no error.
    fn signal(&mut self, process: &Self::Process, signal: StopSignal) -> io::Result<()>;
    /// Whether sq could bind `port` now.
    fn probe_port(&mut self, port: u16) -> PortState;

    /// Asks whoever listens on `port` whether it answers, in the name of the start `epoch` of `id`.
    fn ask(&mut self, id: &TenantId, epoch: u64, port: u16, now: Moment);
    /// Whether a question is open.
    fn is_asking(&self) -> bool;
    /// Who answered since the last call, and who did not in time.
    fn answers(&mut self, now: Moment) -> Vec<((TenantId, u64), bool)>;

    /// Makes `rows` the route table; on an error it stays as it was.
    fn publish(&mut self, rows: &[Row]) -> Result<(), TableError>;
    /// What stands in the route table of a tenant, also an earlier agent's.
    fn published(&self, id: &TenantId) -> Option<Route>;
    /// Shows the readers of the route table that the agent lives.
    fn heartbeat(&mut self);
    /// Generation of the route table.
    fn generation(&self) -> u64;
    /// When the instance of the tenant in `slot` last answered the proxy, seconds on the monotonic clock.
    fn last_answer(&self, slot: u32) -> Option<u32>;
    /// Requests that the proxy took for the tenant in `slot`.
    fn requests(&self, slot: u32) -> u64;
    /// What the proxies counted for the tenant in `slot`.
    fn activity(&self, slot: u32) -> Option<SlotSnapshot>;
    /// Number of the page in which they count: another one began at nothing.
    fn activity_born(&self) -> u64;
    /// Those of them that were let in on `day` (days since 1970, UTC).
    fn requests_on(&self, slot: u32, day: u32) -> u32;
    /// The tenant in `slot` is about to be told of to the proxies, which may count from then on.
    fn reserve_slot(&mut self, slot: u32);
    /// Counts what happened to the instance of the tenant in `slot`.
    fn count(&mut self, slot: u32, what: Happened);
    /// Counts what its start `epoch` has used of CPU time since it began, microseconds.
    fn count_cpu(&mut self, slot: u32, epoch: u64, used_us: u64);
    /// Lines of the access log that the proxies could not write.
    fn lost_log_lines(&self) -> u64;
    /// What keeps instances apart on this host; `None` where nothing does.
    fn isolation(&self) -> Option<Isolation>;
    /// Whether the kernel holds instances to their `memory_max`; else that is for the loop.
    fn limits_memory(&self) -> bool;
    /// Holds the running instance of `id` to these limits from now on.
    fn apply_limits(&mut self, id: &TenantId, limits: &CgroupLimits) -> Result<Applied, String>;
    /// Whether a write to `id` broke off, and nobody is about to finish it.
    fn is_in_doubt(&mut self, id: &TenantId) -> bool;
    /// Nothing of `id` runs any more, and nothing will: its cgroup goes.
    fn let_go(&mut self, id: &TenantId);
    /// The proxy lives: it is moved to where the host's administrator expects it.
    fn place_proxy(&mut self, pid: u32);
    /// Forgets what `slot` counted: its tenant is gone.
    fn reset_slot(&mut self, slot: u32);
}

/// What a part of the loop has to know again after the agent, as one value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memo {
    /// Where the roll-out of programs stands.
    Programs,
    /// How the backups off this host went.
    Backups,
    /// What is known of the repository that tenants.toml comes from.
    GitOps,
    /// Which alerts are open, and what is still to be sent.
    Alerts,
}

impl Memo {
    /// As instances.db has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Programs => "programs",
            Self::Backups => "backups",
            Self::GitOps => "gitops",
            Self::Alerts => "alerts",
        }
    }
}

/// What survives the agent. Each call is kept whole or not at all, whenever the agent dies; times are seconds since 1970.
pub trait Records {
    /// Everything known of every tenant, ordered by id.
    fn load(&mut self) -> Result<Vec<TenantRecord>, StoreError>;
    /// Writes down tenants that were known once, with slot, port and epoch as they are. Later epochs are far above any that was used.
    fn put_back(&mut self, tenants: &[TenantRecord]) -> Result<(), StoreError>;
    /// Whether SQLite has found that they cannot be relied on.
    fn is_corrupt(&self) -> bool;
    /// Moves them aside and begins anew with these. Returns where they are.
    fn start_anew(&mut self, tenants: &[TenantRecord]) -> Result<String, StoreError>;
    /// Ports in quarantine at `now`, each with its end.
    fn quarantined(&mut self, now: u64) -> Result<HashMap<u16, u64>, StoreError>;
    /// Gives a tenant its slot, and notes what is in force for it: with the one and without the other it could not be recovered.
    fn take_in(&mut self, id: &TenantId, spec: &str) -> Result<u32, StoreError>;
    /// Notes what is in force for a tenant.
    fn set_spec(&mut self, id: &TenantId, spec: &str) -> Result<(), StoreError>;
    /// The number of the tenant's next start, never given twice, its port from now on, and the program that it is to run; another port
    /// that it had is in quarantine until `until`.
    fn begin_start(&mut self, id: &TenantId, port: u16, program: &str, until: u64) -> Result<u64, StoreError>;
    /// What now runs for the tenant.
    fn record_instance(&mut self, id: &TenantId, instance: &InstanceRecord) -> Result<(), StoreError>;
    /// Nothing runs for the tenant any more.
    fn clear_instance(&mut self, id: &TenantId) -> Result<(), StoreError>;
    /// The tenant was removed at `at`; its port is in quarantine until `until`.
    fn let_go(&mut self, id: &TenantId, at: u64, until: u64) -> Result<(), StoreError>;
    /// What was kept last under `memo`.
    fn kept(&mut self, memo: Memo) -> Result<Option<String>, StoreError>;
    /// Keeps `value` for the next agent.
    fn keep(&mut self, memo: Memo, value: &str) -> Result<(), StoreError>;
    /// The last `limit` events before the number `before`, of this tenant and kind where these are given; the newest first.
    fn events(
        &mut self,
        id: Option<&TenantId>,
        kind: Option<&str>,
        before: Option<u64>,
        limit: u32,
    ) -> Result<Vec<store::Event>, StoreError>;
    /// Whether a request that is looked up so was made before; it begins now where it was not.
    fn begin_request(&mut self, lookup: &str, fingerprint: &str, now: u64) -> Result<Begun, StoreError>;
    /// It ended, with an answer that is to be kept, or so that it may be made anew.
    fn end_request(&mut self, lookup: &str, answer: Option<&[u8]>) -> Result<(), StoreError>;
    /// What was seen of everybody's counters when [`Self::add_usage`] was last called.
    fn usage_seen(&mut self) -> Result<HashMap<TenantId, Seen>, StoreError>;
    /// The most memory that each tenant's instance took since `day` (days since 1970).
    fn peaks_since(&mut self, day: u32) -> Result<HashMap<TenantId, u64>, StoreError>;
    /// Adds to what tenants used on a day.
    fn add_usage(&mut self, additions: &[Addition]) -> Result<(), StoreError>;
    /// Keeps how the host stood, and lets go of what is too old of samples, usage and events: a little at a call.
    fn keep_sample(&mut self, sample: &Sample) -> Result<(), StoreError>;
    /// Samples of this step since `since`, oldest first.
    fn samples(&mut self, step: u32, since: u64) -> Result<Vec<Sample>, StoreError>;
    /// Notes an event for people.
    fn event(&mut self, at: u64, id: Option<&TenantId>, kind: &str, detail: &str) -> Result<(), StoreError>;
}
