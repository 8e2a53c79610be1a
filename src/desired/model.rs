//! The desired state as values: what a valid tenants.toml means, with every default filled in.

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::GitOps;
use crate::guard::Durability;

/// The name of a tenant: 1–128 bytes of ASCII letters, digits and `. _ - + @`, no leading dot.
///
/// It is a directory name as it stands, so a value of this type can never leave `users/`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TenantId(Arc<str>);

/// Why a string is not a tenant id; the text says what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadId {
    /// Zero bytes long.
    #[error("an id has at least one character")]
    Empty,
    /// Longer than [`TenantId::MAX_BYTES`].
    #[error("an id has at most 128 bytes, this one has {0}")]
    TooLong(usize),
    /// Starts with a dot.
    #[error("an id does not start with a dot, since it is a directory name")]
    LeadingDot,
    /// Holds a character outside the allowed set.
    #[error("an id holds only letters, digits and . _ - + @, not {0:?}")]
    BadCharacter(char),
}

impl TenantId {
    /// Longest id, in bytes.
    pub const MAX_BYTES: usize = 128;

    /// Checks `text` against the rules above.
    pub fn parse(text: &str) -> Result<Self, BadId> {
        if text.is_empty() {
            return Err(BadId::Empty);
        }
        if text.len() > Self::MAX_BYTES {
            return Err(BadId::TooLong(text.len()));
        }
        if text.starts_with('.') {
            return Err(BadId::LeadingDot);
        }
        match text.chars().find(|c| !(c.is_ascii_alphanumeric() || "._-+@".contains(*c))) {
            Some(c) => Err(BadId::BadCharacter(c)),
            None => Ok(Self(text.into())),
        }
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl TryFrom<String> for TenantId {
    type Error = BadId;
    fn try_from(text: String) -> Result<Self, BadId> {
        Self::parse(&text)
    }
}

impl From<TenantId> for String {
    fn from(id: TenantId) -> Self {
        id.0.to_string()
    }
}

/// A request rate: `count` requests in each `per_seconds`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rate {
    /// Requests, at least 1.
    pub count: u32,
    /// Period in seconds: 1, 60, 3,600 or 86,400.
    pub per_seconds: u32,
}

impl Rate {
    /// Nanoseconds between two requests at exactly this rate (GCRA's emission interval).
    pub fn interval_ns(self) -> u64 {
        u64::from(self.per_seconds) * 1_000_000_000 / u64::from(self.count.max(1))
    }
}

/// As tenants.toml writes it: `100/m`.
impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.per_seconds {
            1 => write!(f, "{}/s", self.count),
            60 => write!(f, "{}/m", self.count),
            3_600 => write!(f, "{}/h", self.count),
            _ => write!(f, "{}/d", self.count),
        }
    }
}

/// Everything a tier limits; a tenant's own keys override its tier's one by one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Limits {
    /// `memory_max`, bytes; `None` is no limit.
    pub memory_max: Option<u64>,
    /// `cpu_quota`, percent of one core; `None` is no limit.
    pub cpu_quota: Option<u32>,
    /// `rate`; `None` is no rate limit.
    pub rate: Option<Rate>,
    /// `burst`: requests admitted at once on top of the rate.
    pub burst: u32,
    /// `requests_per_day`: admitted a UTC day; `None` is no limit.
    #[serde(default)]
    pub requests_per_day: Option<u32>,
    /// `concurrency`: reads in flight at once (mutations are always one at a time).
    pub concurrency: u16,
    /// `queue`: requests that may wait for their turn, per tenant.
    pub queue: u16,
    /// `body_max`: largest request body, bytes; at most sq's own 64 MiB.
    pub body_max: u64,
    /// `storage_max`: what its phexts may take on the disk, bytes; `None` is no limit.
    #[serde(default)]
    pub storage_max: Option<u64>,
    /// `durability`: what an acknowledged write survives.
    #[serde(default = "process")]
    pub durability: Durability,
}

/// What stood in force before there was a choice.
fn process() -> Durability {
    Durability::Process
}

impl Limits {
    /// Those of a tier that leaves everything out.
    pub const BASE: Self = Self {
        memory_max: None,
        cpu_quota: None,
        rate: None,
        burst: 20,
        requests_per_day: None,
        concurrency: 8,
        queue: 100,
        body_max: 2 << 20,
        storage_max: None,
        durability: Durability::Process,
    };

    /// Memory that a read beside others is given room for, bytes: a select of 1 MB costs sq some 3 MB, and 8 at once under a limit of
    /// 20 MB get it killed (measured: `contrib/vm/limits`). sq does one after the other anyway.
    const MEMORY_A_READ: u64 = 8 << 20;

    /// How many reads may be in flight at once: `concurrency`, or fewer where `memory_max` has no room for them.
    pub fn reads_at_once(&self) -> u16 {
        let room = self.memory_max.map_or(u64::MAX, |memory| (memory / Self::MEMORY_A_READ).max(1));
        self.concurrency.min(u16::try_from(room).unwrap_or(u16::MAX))
    }
}

/// One user of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tenant {
    /// Unique name.
    pub id: TenantId,
    /// Name of the tier.
    pub tier: String,
    /// The tier's limits with the tenant's own keys laid over them.
    pub limits: Limits,
    /// 403 for every request, instance stopped, data kept.
    pub suspended: bool,
    /// SHA-256 digests of the tenant's API keys.
    pub api_keys: Vec<[u8; 32]>,
    /// Tokens issued before this moment are refused; seconds since 1970, 0 accepts all.
    pub tokens_valid_after: u64,
    /// The port of its instance, where it is to be a certain one.
    #[serde(default)]
    pub port: Option<u16>,
}

/// Where the `sq` program comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SqSource {
    /// `version`: installed by the agent into the state directory where missing.
    Version(String),
    /// `binary`: an existing program.
    Binary(PathBuf),
}

impl SqSource {
    /// Names the program: an instance that was started from another one is restarted.
    pub fn identity(&self) -> String {
        match self {
            Self::Version(version) => format!("sq {version}"),
            Self::Binary(path) => path.display().to_string(),
        }
    }
}

/// `isolation`: how much of what can separate instances from each other and from the host is insisted on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IsolationMode {
    /// Whatever the host permits; `sq-agent doctor` tells what it does not.
    Auto,
    /// All of it, or the agent does not start.
    Required,
    /// None: instances run like any program of the agent's user.
    Off,
}

/// A signature algorithm; each key has exactly one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Algorithm {
    /// HMAC with SHA-256.
    HS256,
    /// ECDSA on P-256 with SHA-256.
    ES256,
    /// Ed25519.
    EdDSA,
    /// RSA PKCS#1 v1.5 with SHA-256.
    RS256,
}

/// Where keys that verify tokens come from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum KeySource {
    /// `secret_file`: one key.
    File {
        /// Key id; a token that names a `kid` must name this one.
        kid: Option<String>,
        /// The one algorithm of this key.
        alg: Algorithm,
        /// File with the secret (HS256) or the PEM public key.
        path: PathBuf,
    },
    /// `jwks_file`: all of a JWKS.
    JwksFile(PathBuf),
    /// `jwks_url`: the same, fetched.
    JwksUrl(String),
}

/// `[[proxy.jwt]]`: keys that verify tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JwtKey {
    /// Where they come from.
    pub source: KeySource,
    /// Required `iss`, where given.
    pub iss: Option<String>,
    /// Required `aud`, where given.
    pub aud: Option<String>,
}

/// `[proxy.tls]`: certificate chain and private key, PEM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsFiles {
    /// Certificate chain, leaf first.
    pub cert: PathBuf,
    /// Private key.
    pub key: PathBuf,
}

/// `[proxy.access_log]`: when it is rotated, and what is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessLog {
    /// `max_size`, bytes.
    pub max_size: u64,
    /// `max_age`, seconds.
    pub max_age: u64,
    /// `keep`: files of before.
    pub keep: u32,
}

impl Default for AccessLog {
    fn default() -> Self {
        Self { max_size: 64 << 20, max_age: 7 * 86_400, keep: 8 }
    }
}

/// How an ACME server sees that a name is ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Challenge {
    /// By a certificate made for it, on the HTTPS port (RFC 8737).
    TlsAlpn01,
    /// By a text, on the plain port (RFC 8555, section 8.3).
    Http01,
}

/// `[proxy.acme]`: whom to ask for a certificate, and for which names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acme {
    /// Names of the certificate, lower case; at least one, none twice.
    pub domains: Vec<String>,
    /// Mail address of the account.
    pub contact: Option<String>,
    /// URL of the server's directory.
    pub directory: String,
    /// How it is proved that the names are ours.
    pub challenge: Challenge,
    /// PEM file with the authority of the server's own certificate, where this host does not trust that anyway.
    pub ca_file: Option<PathBuf>,
    /// External account: key id, and the file with its HMAC key.
    pub eab: Option<(String, PathBuf)>,
}

/// `[proxy]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proxy {
    /// Addresses to listen on, HTTPS.
    pub listen: Vec<SocketAddr>,
    /// What users type; used in messages.
    pub public_url: Option<String>,
    /// `None`: a self-signed certificate for loopback, made once.
    pub tls: Option<TlsFiles>,
    /// Empty: an HS256 secret, made once.
    pub jwt: Vec<JwtKey>,
    /// `[proxy.access_log]`.
    pub access_log: AccessLog,
    /// Addresses to listen on, plain HTTP.
    #[serde(default)]
    pub http_listen: Vec<SocketAddr>,
    /// Load balancers, whose word on who the client is is believed.
    #[serde(default)]
    pub trusted_proxies: Vec<IpNet>,
    /// Connections from them begin with a header of the PROXY protocol.
    #[serde(default)]
    pub proxy_protocol: bool,
    /// Seconds of Strict-Transport-Security; `None`: it is not said.
    #[serde(default)]
    pub hsts: Option<u64>,
    /// Never beside `tls`.
    #[serde(default)]
    pub acme: Option<Acme>,
}

/// `[backup]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backup {
    /// As restic takes it; a directory is absolute.
    pub repository: String,
    /// File with the repository's password.
    pub password_file: PathBuf,
    /// File with `KEY=VALUE` lines for restic alone.
    pub env_file: Option<PathBuf>,
    /// Seconds from one backup to the next.
    pub every: u64,
    /// The program: a path, or a name that is looked for on the agent's PATH.
    pub restic: PathBuf,
    /// Days of which the last backup is kept.
    pub keep_daily: u32,
    /// The same for weeks.
    pub keep_weekly: u32,
    /// The same for months.
    pub keep_monthly: u32,
    /// Seconds from one check of the repository to the next.
    pub check_every: u64,
    /// Seconds from one test restore to the next.
    pub test_restore_every: u64,
}

/// `[admin]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admin {
    /// TCP address of the admin API.
    pub listen: SocketAddr,
    /// File with the admin key.
    pub key_file: PathBuf,
    /// Names by which a loopback address may be asked beside its own.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// Requests of one address that has the key; `None`: no limit.
    #[serde(default)]
    pub rate: Option<Rate>,
    /// Requests at once on top of that.
    #[serde(default)]
    pub burst: u32,
}

impl Admin {
    /// Where the file says nothing.
    pub const RATE: Rate = Rate { count: 600, per_seconds: 60 };
    /// Where the file says nothing.
    pub const BURST: u32 = 100;
}

/// `[alerts]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alerts {
    /// `memory_warning` and `memory_critical`, of the host's memory.
    pub memory: Levels,
    /// `tenant_memory_warning` and `tenant_memory_critical`, of a tenant's `memory_max`.
    pub tenant_memory: Levels,
    /// `disk_warning` and `disk_critical`, of the disk where the tenants' files lie.
    pub disk: Levels,
    /// `reminder`, seconds; `None`: no reminders.
    pub reminder: Option<u64>,
    /// `[alerts.discord]`.
    pub discord: Option<Discord>,
    /// `[alerts.webhook] url_file`.
    pub webhook: Option<PathBuf>,
    /// `[alerts.exec] program`.
    pub exec: Option<PathBuf>,
}

impl Alerts {
    /// `reminder` where the file says nothing, seconds.
    pub const REMINDER: u64 = 6 * 3_600;
}

impl Default for Alerts {
    fn default() -> Self {
        let levels = Levels::default();
        let (memory, tenant_memory, disk) = (levels, levels, levels);
        Self { memory, tenant_memory, disk, reminder: Some(Self::REMINDER), discord: None, webhook: None, exec: None }
    }
}

/// From where on something is told, percent; clear it is 5 points below.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Levels {
    /// As a warning.
    pub warning: u8,
    /// As critical; above `warning`.
    pub critical: u8,
}

impl Default for Levels {
    fn default() -> Self {
        Self { warning: 80, critical: 90 }
    }
}

/// `[alerts.discord]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Discord {
    /// `webhook_file`; without it, the environment has the address.
    pub webhook_file: Option<PathBuf>,
}

/// `[metrics]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MetricsOptions {
    /// `tenants`.
    pub tenants: MetricsOf,
}

/// Which tenants have metrics of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MetricsOf {
    /// All.
    #[default]
    All,
    /// None.
    None,
    /// So many: those with the most requests of late.
    Busiest(u32),
}

/// `[snapshots]`: how many of each tenant's are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshots {
    /// `hourly`: of the last so many hours that have one; at 0 none are made by the hour.
    pub hourly: u32,
    /// `daily`.
    pub daily: u32,
    /// `weekly`.
    pub weekly: u32,
    /// `max_size`, bytes a tenant.
    pub max_size: u64,
}

/// Inclusive range of TCP ports for instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortRange {
    /// First port.
    pub first: u16,
    /// Last port, not below `first`.
    pub last: u16,
}

impl PortRange {
    /// Where the file says nothing.
    pub const DEFAULT: Self = Self { first: 10_001, last: 19_999 };

    /// How many ports there are.
    pub fn count(self) -> usize {
        usize::from(self.last - self.first) + 1
    }

    /// Whether `port` lies inside.
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

/// A whole, valid desired state. Paths are absolute (or relative to the working directory, joined with the file's
/// directory); every default is filled in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Desired {
    /// `[agent] state_dir`.
    pub state_dir: PathBuf,
    /// `[agent] name`: names this host's shared pages; by default derived from the state directory.
    pub name: String,
    /// `[agent] ports`.
    pub ports: PortRange,
    /// `[agent] isolation`.
    pub isolation: IsolationMode,
    /// `[agent] require_reviewed_hash`: no removal goes through unless its hash was confirmed.
    #[serde(default)]
    pub require_reviewed_hash: bool,
    /// `[agent] disk_reserve`, bytes; `None`: writes go on until the disk is full.
    pub disk_reserve: Option<u64>,
    /// `[sq]`.
    pub sq: SqSource,
    /// `[proxy]`.
    pub proxy: Proxy,
    /// `[backup]`, if there is one.
    #[serde(default)]
    pub backup: Option<Backup>,
    /// `[gitops]`, if there is one.
    #[serde(default)]
    pub gitops: Option<GitOps>,
    /// `[admin]`, if there is one.
    pub admin: Option<Admin>,
    /// `[metrics]`.
    #[serde(default)]
    pub metrics: MetricsOptions,
    /// `[alerts]`.
    pub alerts: Alerts,
    /// `[snapshots]`.
    pub snapshots: Snapshots,
    /// `[tiers.NAME]`.
    pub tiers: BTreeMap<String, Limits>,
    /// `[[tenants]]` by id.
    pub tenants: BTreeMap<TenantId, Tenant>,
    /// SHA-256 of the file's bytes, lower-case hex.
    pub hash: String,
}

impl Desired {
    /// `<state_dir>/users/<id>`.
    pub fn user_dir(&self, id: &TenantId) -> PathBuf {
        user_dir(&self.state_dir, id)
    }

    /// Whether an agent that serves this may go on with `new`: it can move neither to another state directory, nor its shared pages from
    /// under the proxy. Else what is to be done.
    pub fn may_become(&self, new: &Self) -> Result<(), String> {
        let (old_dir, new_dir) = (self.state_dir.display().to_string(), new.state_dir.display().to_string());
        for (key, old, new) in [("state_dir", &old_dir, &new_dir), ("name", &self.name, &new.name)] {
            if old != new {
                return Err(format!(
                    "[agent] {key} cannot change while the agent runs (it is {old:?}, the file says {new:?}): put it back, or stop the agent first"
                ));
            }
        }
        Ok(())
    }

    /// The ports that are to be certain tenants'.
    pub fn meant_ports(&self) -> impl Iterator<Item = (u16, TenantId)> {
        self.tenants.values().filter_map(|tenant| Some((tenant.port?, tenant.id.clone())))
    }
}

/// `<state_dir>/users/<id>`.
pub fn user_dir(state_dir: &Path, id: &TenantId) -> PathBuf {
    state_dir.join("users").join(id.as_str())
}
