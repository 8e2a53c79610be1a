//! What `sq-agent status --json` prints. Scripts rely on it: fields are added, never renamed.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    alerts::{Kind, Severity},
    desired::TenantId,
    gitops::book::Commit,
    history::forecast::{Fit, Outlook},
    instance::isolation::Isolation,
    reconcile::guard::Held,
    snapshot::{Listed, Name, Restored, Taken},
};

/// The whole answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The agent itself.
    pub agent: AgentStatus,
    /// The proxy process.
    pub proxy: ProxyStatus,
    /// Removals that wait for `sq-agent confirm`, if any.
    pub held: Option<Held>,
    /// Where the roll-out of another sq stands, if one is under way or went back.
    #[serde(default)]
    pub rollout: Option<RolloutStatus>,
    /// How the backups off this host stand, where there are any.
    #[serde(default)]
    pub backup: Option<BackupStatus>,
    /// How the repository stands that tenants.toml comes from, where there is one.
    #[serde(default)]
    pub gitops: Option<GitOpsStatus>,
    /// The disk where the tenants' files lie.
    #[serde(default)]
    pub disk: Option<DiskStatus>,
    /// The admin API on TCP, where there is one.
    #[serde(default)]
    pub admin: Option<AdminStatus>,
    /// What needs somebody, and whether people can be told.
    #[serde(default)]
    pub alerts: AlertsStatus,
    /// When memory and disk are nearly full, and how many tenants still fit.
    #[serde(default)]
    pub forecast: Option<ForecastStatus>,
    /// Every tenant that has a place on this host, by id.
    pub tenants: Vec<TenantStatus>,
}

/// The admin API on TCP.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdminStatus {
    /// Where it is listened on.
    pub listen: Option<String>,
    /// Why it is not where tenants.toml says, and what to do.
    pub trouble: Option<String>,
}

/// Alerts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlertsStatus {
    /// Those that are open.
    pub open: Vec<AlertStatus>,
    /// Where they are told.
    pub channels: Vec<ChannelStatus>,
}

/// An alert that is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlertStatus {
    /// What it is about.
    pub kind: Kind,
    /// Whose instance, where it is about one.
    #[serde(default)]
    pub tenant: Option<TenantId>,
    /// How bad it is.
    pub severity: Severity,
    /// Since when, RFC 3339.
    pub since: String,
    /// In a sentence.
    pub text: String,
    /// What to run.
    pub command: String,
}

/// A channel on which alerts are told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelStatus {
    /// `discord`, `webhook` or `exec`.
    pub name: String,
    /// Messages that wait to be taken.
    pub waiting: usize,
    /// When one was last taken, RFC 3339.
    pub last_sent: Option<String>,
    /// Why they are not, if they are not.
    pub trouble: Option<String>,
    /// Since when, RFC 3339.
    pub trouble_since: Option<String>,
    /// Nothing is sent there any more, until its address is another one or the agent starts anew.
    pub stopped: bool,
    /// Messages that it did not take, and that are not sent again.
    pub given_up: u64,
}

/// The disk where the tenants' files lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStatus {
    /// Its size, bytes.
    pub total: u64,
    /// What is free, bytes.
    pub free: u64,
    /// That is too little: only what makes less is written, for all.
    pub writes_refused: bool,
}

/// What is to come, as far as it can be told by now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ForecastStatus {
    /// The host's memory.
    pub memory: ResourceForecast,
    /// The disk where the tenants' files lie.
    pub disk: ResourceForecast,
    /// How many tenants like those that are here still fit; none while nothing runs that could be measured.
    pub tenants_fit: Option<Fit>,
}

/// When something is nearly full.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ResourceForecast {
    /// All of it, bytes; 0 where that cannot be told.
    pub total: u64,
    /// What is used, bytes.
    pub used: u64,
    /// When it reaches 90 %.
    #[serde(flatten)]
    pub outlook: Outlook,
    /// All that in a sentence.
    pub detail: String,
}

impl ResourceForecast {
    pub(crate) fn new(what: &str, total: u64, used: u64, outlook: Outlook) -> Self {
        let when = match outlook {
            Outlook::Unmeasured => return Self { total, used, outlook, detail: format!("{what}: it cannot be told how much there is") },
            Outlook::NotYet { hours, needed } => {
                format!("when it is nearly full is not known yet: {hours} of {needed} hours are looked at")
            }
            Outlook::Reached => "it is nearly full".to_owned(),
            Outlook::Full { in_days } if in_days < 1.0 => "it is nearly full within a day".to_owned(),
            Outlook::Full { in_days } => format!("90 % in {in_days:.0} days, if it goes on as in the last two weeks"),
            Outlook::NoTrend => "nothing says that it fills up within a year".to_owned(),
        };
        let percent = used.saturating_mul(100).checked_div(total).unwrap_or(0);
        let detail = if total == 0 {
            format!("{what}: {when}")
        } else {
            format!("{what}: {} of {} MB are used ({percent} %); {when}", used >> 20, total >> 20)
        };
        Self { total, used, outlook, detail }
    }
}

impl ForecastStatus {
    /// What is to be said against adding so many tenants.
    pub(crate) fn crowded(&self, added: u64) -> Option<String> {
        let fit = self.tenants_fit.as_ref().filter(|fit| added > fit.tenants)?;
        let (bound, room) = (fit.bound_by.text(), fit.tenants);
        Some(format!(
            "{added} tenants are added where {room} more fit, measured by those that are here at their peak: {bound} would be more than 90 % used"
        ))
    }

    /// How many tenants fit, in a sentence.
    pub(crate) fn fit_text(&self) -> String {
        match &self.tenants_fit {
            None => "how many more tenants fit is not known yet: none runs that was measured".to_owned(),
            Some(Fit { tenants, bound_by, at_present_use, peak_each, memory_each, .. }) => {
                let kb = |bytes: &u64| bytes.div_ceil(1 << 10);
                let (peak, now, bound) = (kb(peak_each), kb(memory_each), bound_by.text());
                format!(
                    "{tenants} more tenants fit even if all are at their peak ({peak} KB each), then {bound} is 90 % used; {at_present_use} by what they use now ({now} KB each)"
                )
            }
        }
    }
}

/// How another sq reaches the tenants: one first, then 1 %, 10 %, all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutStatus {
    /// The new program.
    pub to: String,
    /// The one before.
    pub from: String,
    /// Tenants that are to have it.
    pub total: usize,
    /// Tenants that were given it.
    pub moved: usize,
    /// Of these, running well on it.
    pub healthy: usize,
    /// Of these, crashed on it.
    pub crashed: usize,
    /// It went back; `sq-agent confirm` with this tries it once more.
    pub try_again: Option<String>,
}

/// The backups off this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupStatus {
    /// Where they go.
    pub repository: String,
    /// Seconds from one to the next.
    pub every_seconds: u64,
    /// When the last good one began, RFC 3339: it has everything that was written before.
    pub last_good: Option<String>,
    /// Its age.
    pub last_good_age_seconds: Option<u64>,
    /// Its snapshot.
    pub snapshot: Option<String>,
    /// When the repository was last checked and found whole, RFC 3339.
    pub last_check: Option<String>,
    /// When a tenant was last restored and found the same byte for byte, RFC 3339.
    pub last_test_restore: Option<String>,
    /// What last went wrong and has not gone well since: cause and remedy.
    pub last_error: Option<String>,
    /// When, RFC 3339.
    pub last_error_at: Option<String>,
    /// How many in a row were due and are missing.
    pub misses: u64,
    /// The last good one is older than two intervals, or two in a row are missing.
    pub overdue: bool,
    /// Number of the run under way.
    pub running: Option<u64>,
    /// Number of the run that somebody waits for.
    pub asked: Option<u64>,
    /// Number of the last run that ended, in the life of this agent.
    pub finished: u64,
    /// What it did, a sentence each.
    pub last_run: Vec<String>,
    /// Whether all of that was good.
    pub last_run_good: bool,
}

/// The git repository that tenants.toml comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GitOpsStatus {
    /// Where it is.
    pub url: String,
    /// The branch that is followed.
    pub branch: String,
    /// The file in it.
    pub path: String,
    /// It is looked at only when somebody asks.
    pub suspended: bool,
    /// The commit in force.
    pub applied: Option<Commit>,
    /// Since when, RFC 3339.
    pub applied_at: Option<String>,
    /// The head of the branch, where it cannot be applied.
    pub refused: Option<Commit>,
    /// Why not, and what to do.
    pub refused_because: Option<String>,
    /// Webhooks are taken.
    #[serde(default)]
    pub webhook: bool,
    /// When the last one came, RFC 3339.
    #[serde(default)]
    pub last_webhook: Option<String>,
    /// When the repository was last looked at with success, RFC 3339.
    pub last_good: Option<String>,
    /// Since when it cannot be looked at, RFC 3339.
    pub failing_since: Option<String>,
    /// Why not, and what to do.
    pub last_error: Option<String>,
    /// Number of the look under way.
    pub running: Option<u64>,
    /// Number of the look that somebody waits for.
    pub asked: Option<u64>,
    /// Number of the last look that ended, in the life of this agent.
    pub finished: u64,
    /// What it came to, in a sentence.
    pub last: String,
    /// Whether that was good.
    pub last_good_look: bool,
}

/// What `sq-agent gitops sync` is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncBegun {
    /// In a sentence.
    pub detail: String,
    /// Number of the look that sees what stands in the repository now.
    pub number: u64,
}

/// What `sq-agent backup` is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupBegun {
    /// In a sentence.
    pub detail: String,
    /// The run that has what stands now.
    pub run: u64,
}

/// The agent itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// Process id.
    pub pid: u32,
    /// Version of this program.
    pub version: String,
    /// Seconds since it started.
    pub uptime_seconds: u64,
    /// SHA-256 of the tenants.toml in force, lower-case hex.
    pub desired_hash: String,
    /// Generation of the route table.
    pub generation: u64,
    /// Seconds for which tenants.toml has been something that could not be applied; 0 when it is in force.
    pub config_stale_seconds: u64,
    /// Why it could not be applied: place and remedy.
    pub config_error: Option<String>,
    /// What keeps instances apart.
    #[serde(default)]
    pub isolation: Option<Isolation>,
    /// Who holds instances to `memory_max`: `kernel` (cgroup v2), or the agent, which has it `polled` and restarts.
    #[serde(default)]
    pub memory_enforced: String,
    /// What of the file takes effect only when the agent starts anew.
    pub pending_restart: Vec<String>,
}

/// The proxy process.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ProxyStatus {
    /// Process id; `None` while it is down.
    pub pid: Option<u32>,
    /// Where it listens.
    pub listen: Vec<String>,
    /// What is wrong with it.
    pub detail: Option<String>,
    /// Lines of the access log that could not be written: the disk was full, or too slow.
    #[serde(default)]
    pub lost_log_lines: u64,
    /// Keys and certificates that are no good, a sentence each; what was good before stays in force.
    #[serde(default)]
    pub troubles: Vec<String>,
    /// The certificate in force.
    #[serde(default)]
    pub certificate: Option<CertificateStatus>,
    /// How asking for one goes, where `[proxy.acme]` is written.
    #[serde(default)]
    pub acme: Option<AcmeStatus>,
}

/// A certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateStatus {
    /// `self-signed`, `files` or `acme`.
    pub source: String,
    /// Names and addresses for which it holds.
    pub names: Vec<String>,
    /// When it ends, RFC 3339.
    pub not_after: String,
    /// Whole days until then; negative once it has ended.
    pub days_left: i64,
    /// Somebody should see to it: fewer than 14 days are left (of one made for a few weeks: less than a quarter).
    pub ends_soon: bool,
}

/// How asking for a certificate goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcmeStatus {
    /// The server.
    pub directory: String,
    /// The names.
    pub domains: Vec<String>,
    /// It is under way.
    pub asking: bool,
    /// When the next one is asked for, RFC 3339.
    pub next_try: Option<String>,
    /// What last went wrong and has not gone well since: cause and remedy.
    pub last_error: Option<String>,
    /// When, RFC 3339.
    pub last_error_at: Option<String>,
}

/// One tenant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TenantStatus {
    /// Its name.
    pub id: String,
    /// Its tier.
    pub tier: String,
    /// `starting`, `ready`, `draining`, `stopped`, `suspended` or `crashed`.
    pub state: String,
    /// Port of its instance.
    pub port: Option<u16>,
    /// Process id of its instance.
    pub pid: Option<u32>,
    /// Number of this start.
    pub epoch: u64,
    /// Starts after the first.
    pub restarts: u64,
    /// How the last instance ended.
    pub last_exit: Option<String>,
    /// The last write that broke off, and what became of it.
    #[serde(default)]
    pub last_undone: Option<String>,
    /// When this instance started, RFC 3339.
    pub started_at: Option<String>,
    /// Proportional set size of the instance at the last look, bytes.
    pub memory_bytes: Option<u64>,
    /// What its phexts took at the last look, bytes.
    #[serde(default)]
    pub storage_bytes: Option<u64>,
    /// Requests that the proxy took for this tenant, since the host booted.
    pub requests: u64,
    /// Those that it let in today (UTC).
    #[serde(default)]
    pub requests_today: u32,
    /// Why it is as it is, in a sentence.
    pub detail: String,
}

/// What `sq-agent upgrade` asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpgradeRequest {
    /// The new program, absolute.
    pub exe: PathBuf,
}

/// What the agent answers when it cannot do as asked, and where a sentence is all that there is to say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Detail)]
pub struct Failure {
    /// What is wrong and what to do.
    pub detail: String,
}

/// What `sq-agent restore` asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreRequest {
    /// Whose snapshot.
    pub from: TenantId,
    /// Which one.
    pub name: Name,
    /// Only this file of it.
    pub file: Option<String>,
    /// Whose phexts are replaced.
    pub to: TenantId,
}

/// What came of `sq-agent snapshot`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotAnswer {
    /// In a sentence.
    pub detail: String,
    /// The new snapshot; none where nothing has changed.
    pub made: Option<Listed>,
    /// How long a write may have waited for it, microseconds.
    pub in_lane_us: Option<u64>,
}

impl SnapshotAnswer {
    pub(crate) fn of(id: &TenantId, taken: &Taken) -> Self {
        match taken {
            Taken::Made(listed, in_lane) => Self {
                detail: format!("{id}: snapshot {} of {} files", listed.time, listed.files),
                made: Some(listed.clone()),
                in_lane_us: u64::try_from(in_lane.as_micros()).ok(),
            },
            Taken::Unchanged(name) => Self::nothing(format!("{id}: unchanged since the snapshot of {}", name.time())),
            Taken::Nothing => Self::nothing(format!("{id}: there is no phext yet")),
        }
    }

    fn nothing(detail: String) -> Self {
        Self { detail, made: None, in_lane_us: None }
    }
}

/// What came of `sq-agent restore`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreAnswer {
    /// In a sentence.
    pub detail: String,
    /// Files that were put back.
    pub files: usize,
    /// Their length together, bytes.
    pub bytes: u64,
    /// Files that were removed, since the snapshot has none of that name.
    pub removed: usize,
    /// Time of the snapshot that holds what was there before; none where that was nothing.
    pub before: Option<String>,
}

impl RestoreAnswer {
    pub(crate) fn of(id: &TenantId, restored: &Restored) -> Self {
        let Restored { files, bytes, removed, kept } = restored;
        let before = match kept {
            Taken::Made(listed, _) => Some(listed.time.clone()),
            Taken::Unchanged(name) => Some(name.time()),
            Taken::Nothing => None,
        };
        let back = before.as_ref().map_or(String::new(), |time| format!("; what was there before is the snapshot of {time}"));
        let gone = if *removed > 0 { format!(", {removed} removed") } else { String::new() };
        Self { detail: format!("{id}: {files} files put back{gone}{back}"), files: *files, bytes: *bytes, removed: *removed, before }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::forecast::Bound;

    fn forecast(tenants: u64) -> ForecastStatus {
        let resource = ResourceForecast::new("memory", 1 << 30, 1 << 29, Outlook::NotYet { hours: 3, needed: 24 });
        let fit =
            Fit { tenants, bound_by: Bound::Memory, at_present_use: 900, peak_each: 3 << 20, memory_each: 200 << 10, storage_each: 0 };
        ForecastStatus { memory: resource.clone(), disk: resource, tenants_fit: Some(fit) }
    }

    #[test]
    fn more_tenants_than_fit_are_said_to_be_too_many() {
        assert_eq!(forecast(10).crowded(10), None);
        let text = forecast(10).crowded(11).unwrap();
        assert!(text.contains("11 tenants are added where 10 more fit") && text.contains("memory would be"), "{text}");
        assert_eq!(ForecastStatus { tenants_fit: None, ..forecast(0) }.crowded(5), None, "nobody knows");
    }

    #[test]
    fn what_is_not_known_yet_is_said_to_be_so() {
        let forecast = forecast(10);
        assert_eq!(
            forecast.memory.detail,
            "memory: 512 of 1024 MB are used (50 %); when it is nearly full is not known yet: 3 of 24 hours are looked at"
        );
        assert_eq!(
            forecast.fit_text(),
            "10 more tenants fit even if all are at their peak (3072 KB each), then memory is 90 % used; 900 by what they use now (200 KB each)"
        );
    }

    #[test]
    fn scripts_find_the_outlook_beside_the_figures() {
        let json = serde_json::to_value(forecast(1)).unwrap();
        assert_eq!((json["memory"]["outlook"].as_str(), json["memory"]["hours"].as_u64()), (Some("not_yet"), Some(3)));
        assert_eq!(json["tenants_fit"]["bound_by"], "memory");
        assert_eq!(serde_json::from_value::<ForecastStatus>(json).unwrap(), forecast(1));
    }
}
