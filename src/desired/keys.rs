//! The one table of all keys: what validation accepts, what the JSON Schema says and what the README lists.

use super::kind::Kind;

/// Whether a key may be left out, and what that means.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Need {
    /// It may not.
    Required,
    /// The same as writing this, in TOML.
    Default(&'static str),
    /// Something that is not a value of the key.
    Optional(&'static str),
}

/// One key.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) need: Need,
    /// A good value, in TOML; empty for tables.
    pub(crate) example: &'static str,
    /// One line on what it does.
    pub(crate) doc: &'static str,
}

/// The keys of one table.
#[derive(Debug)]
pub(crate) struct Section {
    /// The name in the schema.
    pub(crate) name: &'static str,
    /// As the file writes it.
    pub(crate) header: &'static str,
    pub(crate) keys: &'static [Key],
    /// More keys: a tenant may write each key of a tier.
    pub(crate) also: &'static [Key],
}

impl Section {
    pub(crate) fn keys(&self) -> impl Iterator<Item = &'static Key> + use<> {
        self.keys.iter().chain(self.also)
    }

    pub(crate) fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys().find(|key| key.name == name)
    }
}

impl Key {
    /// What to write, as a sentence.
    pub(crate) fn expected(&self) -> String {
        match self.kind {
            Kind::Table(section) | Kind::Tables(section) | Kind::Named(section) => {
                format!("write its keys under a line `{}`", section.header)
            }
            Kind::SizeOrNone { .. } | Kind::IntegerOrNone { .. } | Kind::CpuOrNone | Kind::RateOrNone => {
                format!("write `{} = {}`, or \"none\" for no limit", self.name, self.example)
            }
            Kind::IntegerAllNone { .. } => format!("write `{} = {}`, \"all\" or \"none\"", self.name, self.example),
            Kind::DurationOrOff { .. } => format!("write `{} = {}`, or \"off\"", self.name, self.example),
            _ => format!("write `{} = {}`", self.name, self.example),
        }
    }
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

const fn key(name: &'static str, kind: Kind, need: Need, example: &'static str, doc: &'static str) -> Key {
    Key { name, kind, need, example, doc }
}

const fn section(name: &'static str, header: &'static str, keys: &'static [Key]) -> Section {
    Section { name, header, keys, also: &[] }
}

/// Every table of the file, the file itself first.
#[rustfmt::skip]
pub(crate) static SECTIONS: [&Section; 19] = [
    &ROOT, &AGENT, &SQ, &PROXY, &TLS, &ACME, &ACCESS_LOG, &JWT, &TIER, &TENANT, &SNAPSHOTS, &BACKUP, &GITOPS, &ADMIN, &METRICS, &ALERTS, &DISCORD,
    &WEBHOOK, &EXEC,
];

use Need::{Default, Optional, Required};

#[rustfmt::skip]
pub(crate) static ROOT: Section = section("file", "the file", &[
    key("agent", Kind::Table(&AGENT), Optional("the defaults below"), "", "where this host keeps its state"),
    key("sq", Kind::Table(&SQ), Optional("the defaults below"), "", "which sq is run"),
    key("proxy", Kind::Table(&PROXY), Optional("the defaults below"), "", "the HTTPS front"),
    key("tiers", Kind::Named(&TIER), Optional("one tier, `free`: 20M, 10%, 100/m, burst 20"), "", "named sets of limits"),
    key("tenants", Kind::Tables(&TENANT), Optional("nobody is served"), "", "who is served"),
    key("snapshots", Kind::Table(&SNAPSHOTS), Optional("the defaults below"), "", "how many snapshots of each tenant are kept"),
    key("backup", Kind::Table(&BACKUP), Optional("nothing leaves this host"), "", "copies off this host, by restic"),
    key("gitops", Kind::Table(&GITOPS), Optional("this file is edited where it stands"), "", "the repository that this file comes from"),
    key("admin", Kind::Table(&ADMIN), Optional("no TCP listener, only the agent's socket"), "", "the admin API"),
    key("metrics", Kind::Table(&METRICS), Optional("the defaults below"), "", "what /metrics shows"),
    key("alerts", Kind::Table(&ALERTS), Optional("the defaults below"), "", "when and where to raise an alarm"),
]);

#[rustfmt::skip]
pub(crate) static AGENT: Section = section("agent", "[agent]", &[
    key("state_dir", Kind::Path, Default("\"state\""), "\"/var/lib/sq\"", "directory of all state: users' data, logs, instances.db"),
    key("name", Kind::Name, Optional("derived from the path of `state_dir`"), "\"host-1\"", "names this host's shared pages"),
    key("ports", Kind::Ports, Default("\"10001-19999\""), "\"10001-19999\"", "ports for instances, one a tenant"),
    key("isolation", Kind::Isolation, Default("\"auto\""), "\"required\"", "auto: instances are separated as far as the host permits, see `sq-agent doctor`; required: no start without all of it; off"),
    key("require_reviewed_hash", Kind::Flag, Default("false"), "true", "hold every removal, be it one, until `sq-agent confirm` has the hash that the plan of the pull request shows"),
    key("disk_reserve", Kind::SizeOrNone { min: MIB, max: 1024 * GIB }, Default("\"256M\""), "\"1G\"", "with less of the disk free than this or 5 %, whichever is more, only what makes less is written, for all; \"none\" lets writes go on to the end"),
    key("durability", Kind::Durability, Default("\"process\""), "\"power\"", "what an acknowledged write survives, where a tier says nothing else: see there"),
]);

#[rustfmt::skip]
pub(crate) static SQ: Section = section("sq", "[sq]", &[
    key("version", Kind::Version, Default("\"0.6.0\""), "\"0.6.0\"", "version of sq, installed into the state directory where missing"),
    key("binary", Kind::Path, Optional("`version` is installed"), "\"/usr/local/bin/sq\"", "an sq that is there already, instead of `version`"),
]);

#[rustfmt::skip]
pub(crate) static PROXY: Section = section("proxy", "[proxy]", &[
    key("listen", Kind::List(&Kind::Address), Default("[\"127.0.0.1:8443\"]"), "[\"0.0.0.0:443\", \"[::]:443\"]", "addresses to listen on"),
    key("public_url", Kind::Url, Optional("the first listen address"), "\"https://sq.example.com\"", "what users type"),
    key("http_listen", Kind::List(&Kind::Address), Default("[]"), "[\"0.0.0.0:80\", \"[::]:80\"]", "addresses for plain HTTP: sends browsers to HTTPS, answers /healthz and ACME (HTTP-01), and nothing else"),
    key("trusted_proxies", Kind::List(&Kind::Network), Default("[]"), "[\"10.0.0.0/8\", \"::1\"]", "the load balancers before this host, as networks or addresses: whom they name in X-Forwarded-For is taken for the client"),
    key("proxy_protocol", Kind::Flag, Default("false"), "true", "each connection from `trusted_proxies` begins with a header of the PROXY protocol, version 2; one that does not is closed"),
    key("hsts", Kind::DurationOrOff { min: 1, max: 10 * 365 * DAY }, Default("\"730d\""), "\"365d\"", "how long browsers are to come by HTTPS alone (Strict-Transport-Security); said only where the certificate is not the self-signed one"),
    key("tls", Kind::Table(&TLS), Optional("a self-signed certificate for loopback, made once"), "", "certificate and key"),
    key("access_log", Kind::Table(&ACCESS_LOG), Optional("the defaults below"), "", "when the access log is rotated"),
    key("acme", Kind::Table(&ACME), Optional("no certificate is asked for"), "", "a certificate from Let's Encrypt or the like, asked for and renewed by the agent"),
    key("jwt", Kind::Tables(&JWT), Optional("an HS256 secret, made once, kept in the state directory"), "", "keys that verify tokens"),
]);

#[rustfmt::skip]
pub(crate) static TLS: Section = section("tls", "[proxy.tls]", &[
    key("cert", Kind::Path, Required, "\"/etc/letsencrypt/live/sq.example.com/fullchain.pem\"", "certificate chain, PEM, leaf first"),
    key("key", Kind::Path, Required, "\"/etc/letsencrypt/live/sq.example.com/privkey.pem\"", "its private key, PEM, mode 0600"),
]);

/// More old logs than these are for a place of their own.
const MAX_LOGS: u64 = 1_000;

#[rustfmt::skip]
pub(crate) static ACCESS_LOG: Section = section("access_log", "[proxy.access_log]", &[
    key("max_size", Kind::Size { min: MIB, max: 1024 * GIB }, Default("\"64M\""), "\"64M\"", "the log is rotated when it is so large"),
    key("max_age", Kind::Duration { min: HOUR, max: 365 * DAY }, Default("\"7d\""), "\"1d\"", "or its first line so old (h, d)"),
    key("keep", Kind::Integer { min: 0, max: MAX_LOGS }, Default("8"), "14", "so many old ones stay, compressed by zstd"),
]);

#[rustfmt::skip]
pub(crate) static ACME: Section = section("acme", "[proxy.acme]", &[
    key("domains", Kind::List(&Kind::Domain), Required, "[\"sq.example.com\"]", "names of the certificate; each must lead to this host"),
    key("contact", Kind::Email, Optional("the server knows nobody to write to"), "\"admin@example.com\"", "whom the server may write to"),
    key("directory", Kind::Url, Default("\"https://acme-v02.api.letsencrypt.org/directory\""), "\"https://acme-staging-v02.api.letsencrypt.org/directory\"", "where the ACME server begins; by naming it you agree to its terms"),
    key("challenge", Kind::Challenge, Default("\"tls-alpn-01\""), "\"http-01\"", "how the server sees that a name is yours: tls-alpn-01, on port 443 of `listen`; http-01, on port 80 of `http_listen`"),
    key("ca_file", Kind::Path, Optional("those that this host trusts"), "\"/etc/sq-agent/private-ca.pem\"", "certificate authority of the server itself, PEM, where it is a private one"),
    key("eab_kid", Kind::Text, Optional("the server asks for no account elsewhere"), "\"kid-1\"", "key id of an external account (EAB)"),
    key("eab_key_file", Kind::Path, Optional("as `eab_kid`"), "\"/etc/sq-agent/eab.key\"", "file with its HMAC key as the server gave it (base64url), mode 0600"),
]);

#[rustfmt::skip]
pub(crate) static JWT: Section = section("jwt", "[[proxy.jwt]]", &[
    key("kid", Kind::Text, Optional("the key of tokens that name none"), "\"2026-02\"", "id of the key in `secret_file`; no two share one"),
    key("alg", Kind::Algorithm, Optional("each key of a JWKS has its own"), "\"HS256\"", "the one algorithm of the key in `secret_file`: HS256, ES256, EdDSA, RS256"),
    key("secret_file", Kind::Path, Optional("`jwks_file` or `jwks_url`"), "\"/etc/sq-agent/jwt.key\"", "HS256: the secret, at least 32 bytes, mode 0600; else the PEM public key"),
    key("jwks_file", Kind::Path, Optional("`secret_file` or `jwks_url`"), "\"/etc/sq-agent/jwks.json\"", "an identity provider's public keys, a JWKS of at most 64 KiB"),
    key("jwks_url", Kind::Url, Optional("`secret_file` or `jwks_file`"), "\"https://login.example.com/.well-known/jwks.json\"", "where an identity provider publishes them; fetched every 5 min, and when a token names a new kid"),
    key("iss", Kind::Text, Optional("any issuer"), "\"https://login.example.com\"", "the issuer that tokens must name"),
    key("aud", Kind::Text, Optional("any audience"), "\"sq\"", "the audience that tokens must name"),
]);

/// The lowest `memory_max`: sq alone takes 2.4 MB (measured).
const MIN_MEMORY: u64 = 4 * MIB;
/// The highest `burst`: with the slowest rate (one a day) the bucket is 8.6e17 ns deep, well inside 63 bits.
const MAX_BURST: u64 = 10_000;
/// A quota that nobody meets is none.
const MAX_REQUESTS_PER_DAY: u64 = 1_000_000_000;
/// sq itself serves at most 512 connections.
const MAX_CONCURRENCY: u64 = 512;
/// sq refuses a body above 64 MiB.
const MAX_BODY: u64 = 64 * MIB;

#[rustfmt::skip]
static LIMITS: [Key; 10] = [
    key("memory_max", Kind::SizeOrNone { min: MIN_MEMORY, max: 1024 * GIB }, Optional("no limit"), "\"20M\"", "memory of the instance"),
    key("cpu_quota", Kind::CpuOrNone, Optional("no limit"), "\"10%\"", "share of one core"),
    key("rate", Kind::RateOrNone, Optional("no limit"), "\"100/m\"", "requests a second, minute, hour or day (s, m, h, d)"),
    key("burst", Kind::Integer { min: 0, max: MAX_BURST }, Default("20"), "20", "requests admitted at once on top of the rate; 0 spaces them evenly"),
    key("requests_per_day", Kind::IntegerOrNone { min: 1, max: MAX_REQUESTS_PER_DAY }, Optional("no limit"), "10000", "requests admitted a day (UTC)"),
    key("concurrency", Kind::Integer { min: 1, max: MAX_CONCURRENCY }, Default("8"), "8", "reads in flight at once, fewer where `memory_max` has not 8M for each (writes go one at a time)"),
    key("queue", Kind::Integer { min: 0, max: 10_000 }, Default("100"), "100", "requests that may wait for their turn"),
    // A request costs sq 3 to 5 times its body: with 2 MiB it fits into `free`'s 20 MiB beside the phext itself.
    key("body_max", Kind::Size { min: KIB, max: MAX_BODY }, Default("\"2M\""), "\"2M\"", "largest request body; one costs sq 3 to 5 times its size in memory"),
    key("storage_max", Kind::SizeOrNone { min: MIB, max: 1024 * GIB }, Optional("no limit"), "\"1G\"", "what its phexts may take on the disk, each file in steps of 4K, without copies and snapshots; above it only what makes less is written"),
    key("durability", Kind::Durability, Optional("what `[agent]` says"), "\"power\"", "what an acknowledged write survives: process, the death of any process; power, also the end of the host's power, at the cost of waiting for the disk; off, nothing"),
];

pub(crate) static TIER: Section = section("tier", "[tiers.NAME]", &LIMITS);

#[rustfmt::skip]
pub(crate) static TENANT: Section = Section { name: "tenant", header: "[[tenants]]", also: &LIMITS, keys: &[
    key("id", Kind::Id, Required, "\"user1@example.com\"", "unique name, the `sub` of its tokens: 1 to 128 letters, digits and . _ - + @, no leading dot"),
    key("tier", Kind::TierName, Default("\"free\""), "\"free\"", "name of its tier; each key of a tier may be overridden beside it"),
    key("suspended", Kind::Flag, Default("false"), "true", "answer 403, stop the instance, keep the data"),
    key("api_keys", Kind::List(&Kind::Digest), Default("[]"), "[\"sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\"]", "SHA-256 digests of its API keys; `sq-agent token --api-key` makes one"),
    key("port", Kind::Integer { min: 1, max: 65_535 }, Optional("any free one of `[agent] ports`"), "10001", "the port of its instance, from its next start on, while nothing else holds it; nobody but the proxy can see it, so few need this"),
    key("tokens_valid_after", Kind::Moment, Optional("tokens of any age"), "2026-02-09T22:32:00Z", "revokes all tokens issued before"),
] };

/// More snapshots of a tenant than this are no help to a person who looks for one.
const MAX_SNAPSHOTS: u64 = 1_000;

#[rustfmt::skip]
pub(crate) static SNAPSHOTS: Section = section("snapshots", "[snapshots]", &[
    key("hourly", Kind::Integer { min: 0, max: MAX_SNAPSHOTS }, Default("24"), "24", "snapshots kept of each tenant, one an hour in which something changed; 0 makes none by the hour"),
    key("daily", Kind::Integer { min: 0, max: MAX_SNAPSHOTS }, Default("7"), "14", "the last one of so many days; those taken for a reason of their own (asked for, before a restore) stay as long"),
    key("weekly", Kind::Integer { min: 0, max: MAX_SNAPSHOTS }, Default("4"), "8", "the last one of so many weeks"),
    key("max_size", Kind::Size { min: MIB, max: 1024 * GIB }, Default("\"256M\""), "\"1G\"", "of each tenant's together; the oldest go first, the newest stays"),
]);

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
/// A snapshot that is to be kept for longer than this is copied elsewhere.
const MAX_KEPT: u64 = 1_000;

#[rustfmt::skip]
pub(crate) static BACKUP: Section = section("backup", "[backup]", &[
    key("repository", Kind::Repository, Required, "\"sftp:backup@vault.example.com:/srv/sq\"", "a repository of restic: a directory, sftp:, s3:, rest: and so on; made where missing"),
    key("password_file", Kind::Path, Required, "\"/etc/sq-agent/backup.password\"", "file with the repository's password, mode 0600; keep it also somewhere else: without it there is no way back"),
    key("env_file", Kind::Path, Optional("restic needs none"), "\"/etc/sq-agent/backup.env\"", "file with `KEY=VALUE` lines that restic alone gets, such as AWS_SECRET_ACCESS_KEY, mode 0600"),
    key("every", Kind::Duration { min: 1, max: 30 * DAY }, Default("\"6h\""), "\"6h\"", "how often (s, m, h, d)"),
    key("restic", Kind::Path, Default("\"restic\""), "\"/usr/local/bin/restic\"", "the program: a name on the agent's PATH, or a path"),
    key("keep_daily", Kind::Integer { min: 0, max: MAX_KEPT }, Default("7"), "14", "days of which the last backup is kept, beside all of the last 24 hours"),
    key("keep_weekly", Kind::Integer { min: 0, max: MAX_KEPT }, Default("5"), "8", "the same for weeks"),
    key("keep_monthly", Kind::Integer { min: 0, max: MAX_KEPT }, Default("12"), "24", "the same for months"),
    key("check_every", Kind::Duration { min: 1, max: 365 * DAY }, Default("\"7d\""), "\"7d\"", "how often the repository itself is checked"),
    key("test_restore_every", Kind::Duration { min: 1, max: 365 * DAY }, Default("\"30d\""), "\"30d\"", "how often one tenant, drawn by lot, is restored and compared byte by byte"),
]);

#[rustfmt::skip]
pub(crate) static GITOPS: Section = section("gitops", "[gitops]", &[
    key("url", Kind::GitUrl, Required, "\"git@github.com:example/host.git\"", "the repository, as git takes it: https://, ssh://, git@host:path, or a directory"),
    key("branch", Kind::Branch, Default("\"main\""), "\"main\"", "the branch that is followed, fast-forward only"),
    key("path", Kind::RepositoryPath, Default("\"tenants.toml\""), "\"hosts/one/tenants.toml\"", "this file's path in the repository"),
    key("interval", Kind::Duration { min: 1, max: DAY }, Default("\"60s\""), "\"60s\"", "how often the repository is looked at, give or take a tenth (s, m, h, d)"),
    key("ssh_key_file", Kind::Path, Optional("no key but those of the agent's user"), "\"/etc/sq-agent/deploy-key\"", "private key for ssh, mode 0600: a deploy key that may only read, or also write, where the admin API is to change tenants"),
    key("known_hosts_file", Kind::Path, Optional("the first key that the server shows is kept"), "\"/etc/sq-agent/known_hosts\"", "keys of the ssh server, as ssh-keyscan prints them"),
    key("token_file", Kind::Path, Optional("no token"), "\"/etc/sq-agent/git-token\"", "access token for https, mode 0600; as for `ssh_key_file`"),
    key("verify", Kind::Path, Optional("any commit of the branch is applied"), "\"/etc/sq-agent/allowed_signers\"", "only commits signed by a key in this file are applied: ssh's allowed_signers (ssh-keygen(1)), or a GnuPG home directory"),
    key("webhook_secret_file", Kind::Path, Optional("no webhook is taken"), "\"/etc/sq-agent/webhook.key\"", "the secret of webhooks to `/.sq-agent/gitops`, at least 32 bytes, mode 0600: a push is looked at within a second"),
    key("signing_key_file", Kind::Path, Optional("the agent's commits are not signed, and beside `verify` it makes none"), "\"/etc/sq-agent/signing_key\"", "private key of ssh, without a passphrase, mode 0600: by it the agent signs the commits that the admin API makes; its public half belongs into `verify`"),
    key("git", Kind::Path, Default("\"git\""), "\"/usr/bin/git\"", "the program: a name on the agent's PATH, or a path"),
]);

#[rustfmt::skip]
pub(crate) static ADMIN: Section = section("admin", "[admin]", &[
    key("listen", Kind::Address, Required, "\"127.0.0.1:3000\"", "TCP address of the admin API, plain HTTP: beyond loopback, put TLS before it"),
    key("key_file", Kind::Path, Required, "\"/etc/sq-agent/admin.key\"", "file with the admin key, one line of at least 32 bytes, mode 0600"),
    key("hosts", Kind::List(&Kind::Domain), Default("[]"), "[\"admin.example.com\"]", "names by which a loopback address may be asked beside its own, where a proxy before it passes Host on"),
    key("rate", Kind::RateOrNone, Default("\"600/m\""), "\"600/m\"", "requests of one address (s, m, h, d); without the key a tenth, counted apart"),
    key("burst", Kind::Integer { min: 0, max: MAX_BURST }, Default("100"), "100", "requests at once on top of that"),
]);

/// More tenants than a host has ports for.
const MAX_SHOWN: u64 = 20_000;

#[rustfmt::skip]
pub(crate) static METRICS: Section = section("metrics", "[metrics]", &[
    key("tenants", Kind::IntegerAllNone { min: 1, max: MAX_SHOWN }, Default("\"all\""), "200", "which tenants have metrics of their own, about 30 series each: \"all\", \"none\", or so many: those with the most requests of late"),
]);

#[rustfmt::skip]
pub(crate) static ALERTS: Section = section("alerts", "[alerts]", &[
    key("memory_warning", Kind::Percent, Default("\"80%\""), "\"80%\"", "warn at this share of the host's memory, or of the cgroup's in which the agent lives; clear 5 points below"),
    key("memory_critical", Kind::Percent, Default("\"90%\""), "\"90%\"", "critical from this share on"),
    key("tenant_memory_warning", Kind::Percent, Default("\"80%\""), "\"80%\"", "the same for a tenant's share of its own `memory_max`"),
    key("tenant_memory_critical", Kind::Percent, Default("\"90%\""), "\"90%\"", "critical from this share on"),
    key("disk_warning", Kind::Percent, Default("\"80%\""), "\"80%\"", "the same for the disk where the state directory lies"),
    key("disk_critical", Kind::Percent, Default("\"90%\""), "\"90%\"", "critical from this share on"),
    key("reminder", Kind::DurationOrOff { min: MINUTE, max: 30 * DAY }, Default("\"6h\""), "\"6h\"", "how often what is still open is said again (m, h, d)"),
    key("discord", Kind::Table(&DISCORD), Optional("no Discord messages, unless SQ_AGENT_DISCORD_WEBHOOK is set"), "", "a webhook of Discord's"),
    key("webhook", Kind::Table(&WEBHOOK), Optional("none"), "", "any server that takes JSON"),
    key("exec", Kind::Table(&EXEC), Optional("none"), "", "a program on this host"),
]);

#[rustfmt::skip]
pub(crate) static DISCORD: Section = section("discord", "[alerts.discord]", &[
    key("webhook_file", Kind::Path, Optional("SQ_AGENT_DISCORD_WEBHOOK has the URL"), "\"/etc/sq-agent/discord\"", "file with the webhook's URL, mode 0600; SQ_AGENT_DISCORD_WEBHOOK goes before it"),
]);

#[rustfmt::skip]
pub(crate) static WEBHOOK: Section = section("webhook", "[alerts.webhook]", &[
    key("url_file", Kind::Path, Required, "\"/etc/sq-agent/webhook\"", "file with the URL to which each alert is posted as JSON, mode 0600: https://, or http:// to a loopback address"),
]);

#[rustfmt::skip]
pub(crate) static EXEC: Section = section("exec", "[alerts.exec]", &[
    key("program", Kind::Path, Required, "\"/usr/local/libexec/sq-agent-alert\"", "run over each alert, without arguments, as the agent's user, for 60 s at most; the alert stands in its environment (SQ_AGENT_ALERT_*)"),
]);
