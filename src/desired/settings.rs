//! From checked keys to the desired state: defaults, and the rules that hold between keys.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use super::{
    AccessLog, Admin, Alerts, Algorithm, Backup, Desired, Discord, GitOps, IsolationMode, JwtKey, KeySource, Levels, MetricsOf,
    MetricsOptions, PortRange, Proxy, Snapshots, SqSource, TlsFiles,
    fields::Fields,
    files::{NamedFile, Use},
    keys,
    kind::Value,
    problem::{Finding, Span},
    tenants,
};
use crate::digest::{hex, sha256};

/// The sq that is run unless the file says otherwise.
const DEFAULT_SQ: &str = "0.6.0";
/// Loopback only: to face the network is a decision.
const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8443);

/// Bytes of the disk that stay free.
const DEFAULT_DISK_RESERVE: u64 = 256 << 20;

/// How a repository begins that is no directory (restic, "Preparing a new repository").
const BACKENDS: [&str; 8] = ["sftp", "rest", "s3", "swift", "b2", "azure", "gs", "rclone"];

/// The work in progress: where paths start, and what was found so far.
pub(super) struct Build<'a> {
    dir: &'a Path,
    pub(super) found: &'a mut Vec<Finding>,
    files: Vec<NamedFile>,
}

/// Builds the desired state of the file with this `text` in directory `dir`. Where `found` grew, the result is only a
/// stand-in and must not be used.
pub(super) fn build(root: &Fields, text: &str, dir: &Path, found: &mut Vec<Finding>) -> (Desired, Vec<NamedFile>) {
    let mut build = Build { dir, found, files: Vec::new() };
    let table = |name, section| root.table(name).cloned().unwrap_or_else(|| Fields::none(section));
    let agent = table("agent", &keys::AGENT);
    let state_dir = build.join(&agent.path("state_dir").unwrap_or_else(|| "state".into()));
    let ports = agent.ports("ports").unwrap_or(PortRange::DEFAULT);
    let proxy_fields = table("proxy", &keys::PROXY);
    let proxy = build.proxy(&proxy_fields);
    let admin_fields = root.table("admin");
    let admin = admin_fields.and_then(|fields| build.admin(fields));
    let backup = root.table("backup").and_then(|fields| build.backup(fields));
    let gitops = root.table("gitops").and_then(|fields| build.gitops(fields));
    build.addresses(&proxy_fields, admin_fields, (!agent.is_bad("ports")).then_some(ports));
    let tiers = tenants::tiers(root);
    // A range that is no good is reported already; nothing is measured against the default in its place.
    let given = if agent.is_bad("ports") { PortRange { first: 0, last: u16::MAX } } else { ports };
    let desired = Desired {
        name: agent.text("name").unwrap_or_else(|| name_of(&state_dir)),
        isolation: agent.isolation("isolation").unwrap_or(IsolationMode::Auto),
        require_reviewed_hash: agent.flag("require_reviewed_hash").unwrap_or(false),
        disk_reserve: agent.number_or_none("disk_reserve").unwrap_or(Some(DEFAULT_DISK_RESERVE)),
        sq: build.sq(&table("sq", &keys::SQ)),
        metrics: metrics(&table("metrics", &keys::METRICS)),
        alerts: build.alerts(&table("alerts", &keys::ALERTS)),
        snapshots: snapshots(&table("snapshots", &keys::SNAPSHOTS)),
        tenants: tenants::tenants(root, &tiers, (given, agent.span_of("ports")), build.found),
        hash: hash(text),
        state_dir,
        ports,
        proxy,
        backup,
        gitops,
        admin,
        tiers,
    };
    (desired, build.files)
}

/// The name of a host that was given none: the same for as long as the state directory stays where it is.
fn name_of(state_dir: &Path) -> String {
    let digest = sha256(state_dir.as_os_str().as_encoded_bytes());
    // 48 bits: two agents of one host meet once in 10^14.
    hex(&digest[..6])
}

/// Names the content of a tenants.toml: SHA-256, lower-case hex.
pub fn hash(text: &str) -> String {
    hex(&sha256(text.as_bytes()))
}

impl Build<'_> {
    /// A path of the file, relative to its directory, without `.` in it.
    fn join(&self, path: &Path) -> PathBuf {
        self.dir.join(path).components().collect()
    }

    /// As [`Build::join`] for a key of `fields`; the file is looked at once the whole text is known to be good.
    pub(super) fn file(&mut self, fields: &Fields, name: &'static str, purpose: Use) -> Option<PathBuf> {
        let path = self.join(&fields.path(name)?);
        self.files.push(NamedFile { path: path.clone(), key: name, purpose, span: fields.span_of(name)? });
        Some(path)
    }

    fn sq(&mut self, fields: &Fields) -> SqSource {
        if let (Some(_), Some(binary)) = (fields.span_of("version"), fields.span_of("binary")) {
            let help = "keep `version` to have it installed, or `binary` to use the one that is there";
            self.found.push(Finding::new(binary, "[sq] has both `version` and `binary`", help));
        }
        match self.file(fields, "binary", Use::Program) {
            Some(binary) => SqSource::Binary(binary),
            None => SqSource::Version(fields.text("version").unwrap_or_else(|| DEFAULT_SQ.into())),
        }
    }

    fn proxy(&mut self, fields: &Fields) -> Proxy {
        let listen = match fields.list("listen") {
            Some([]) => {
                let span = fields.span_of("listen").unwrap_or_default();
                self.found.push(Finding::new(span, "`listen` is an empty list", "name an address, such as \"127.0.0.1:8443\""));
                vec![]
            }
            Some(list) => list.iter().filter_map(|(value, _)| address(value)).collect(),
            None => vec![DEFAULT_LISTEN],
        };
        let tls = fields.table("tls").and_then(|tls| {
            let (cert, key) = (self.file(tls, "cert", Use::Public), self.file(tls, "key", Use::Secret));
            Some(TlsFiles { cert: cert?, key: key? })
        });
        let access_log = access_log(fields.table("access_log"));
        Proxy { listen, public_url: fields.text("public_url"), tls, jwt: self.jwt(fields), access_log, ..self.front(fields) }
    }

    fn jwt(&mut self, proxy: &Fields) -> Vec<JwtKey> {
        let mut kids: BTreeMap<Option<String>, Span> = BTreeMap::new();
        let tables = proxy.tables("jwt").iter();
        tables
            .filter_map(|fields| {
                let source = self.key_source(fields, &mut kids)?;
                Some(JwtKey { source, iss: fields.text("iss"), aud: fields.text("aud") })
            })
            .collect()
    }

    /// Exactly one of the three ways to name keys.
    fn key_source(&mut self, fields: &Fields, kids: &mut BTreeMap<Option<String>, Span>) -> Option<KeySource> {
        const WAYS: [&str; 3] = ["secret_file", "jwks_file", "jwks_url"];
        let mut written = WAYS.iter().filter(|way| fields.span_of(way).is_some() || fields.is_bad(way));
        let Some(&way) = written.next() else {
            let help = "write `secret_file` (and `alg`) for one key, or `jwks_file` or `jwks_url` for those of an identity provider";
            self.found.push(Finding::new(fields.span.clone(), "[[proxy.jwt]] names no key", help).echo());
            return None;
        };
        if let Some(other) = written.next() {
            let span = fields.span_of(other).unwrap_or_else(|| fields.span.clone());
            let help = "keep one of them; give each further source of keys a [[proxy.jwt]] of its own";
            self.found.push(Finding::new(span, format!("[[proxy.jwt]] has both `{way}` and `{other}`"), help));
        }
        if way == "secret_file" {
            return self.key_file(fields, kids);
        }
        for alone in ["kid", "alg"] {
            if let Some(span) = fields.span_of(alone) {
                let message = format!("`{alone}` beside `{way}`: each key of a JWKS has its own");
                self.found.push(Finding::new(span, message, format!("remove `{alone}`")));
            }
        }
        match way {
            "jwks_file" => self.file(fields, way, Use::Public).map(KeySource::JwksFile),
            _ => fields.text(way).map(KeySource::JwksUrl),
        }
    }

    fn key_file(&mut self, fields: &Fields, kids: &mut BTreeMap<Option<String>, Span>) -> Option<KeySource> {
        let kid = fields.text("kid");
        let span = fields.span_of("kid").unwrap_or_else(|| fields.span.clone());
        match kids.get(&kid) {
            Some(first) => {
                let message = kid.as_ref().map_or("two token keys without `kid`".into(), |kid| format!("two token keys with kid {kid:?}"));
                let finding = Finding::new(span, message, "give each [[proxy.jwt]] a `kid` of its own");
                self.found.push(finding.related(first.clone(), "the first one"));
            }
            None => _ = kids.insert(kid.clone(), span),
        }
        let alg = fields.algorithm("alg");
        if alg.is_none() && !fields.is_bad("alg") {
            let help = "write the one algorithm of the key, such as `alg = \"HS256\"`";
            self.found.push(Finding::new(fields.span.clone(), "[[proxy.jwt]] needs `alg` beside `secret_file`", help).echo());
        }
        let purpose = if alg == Some(Algorithm::HS256) { Use::Random } else { Use::Public };
        let path = self.file(fields, "secret_file", purpose);
        Some(KeySource::File { kid, alg: alg?, path: path? })
    }

    fn backup(&mut self, fields: &Fields) -> Option<Backup> {
        let password_file = self.file(fields, "password_file", Use::Secret);
        let env_file = self.file(fields, "env_file", Use::Secret);
        let number = |name, default| fields.number(name).unwrap_or(default);
        let kept = |name, default| fields.number(name).and_then(|n| u32::try_from(n).ok()).unwrap_or(default);
        Some(Backup {
            repository: self.repository(&fields.text("repository")?),
            password_file: password_file?,
            env_file,
            every: number("every", 6 * 3_600),
            restic: self.program(fields.path("restic").unwrap_or_else(|| "restic".into())),
            keep_daily: kept("keep_daily", 7),
            keep_weekly: kept("keep_weekly", 5),
            keep_monthly: kept("keep_monthly", 12),
            check_every: number("check_every", 7 * 86_400),
            test_restore_every: number("test_restore_every", 30 * 86_400),
        })
    }

    fn gitops(&mut self, fields: &Fields) -> Option<GitOps> {
        let ssh_key_file = self.file(fields, "ssh_key_file", Use::Secret);
        let known_hosts_file = self.file(fields, "known_hosts_file", Use::Public);
        let token_file = self.file(fields, "token_file", Use::Secret);
        let verify = self.file(fields, "verify", Use::Keys);
        let webhook_secret_file = self.file(fields, "webhook_secret_file", Use::Random);
        let signing_key_file = self.file(fields, "signing_key_file", Use::Secret);
        Some(GitOps {
            url: fields.text("url")?,
            branch: fields.text("branch").unwrap_or_else(|| GitOps::BRANCH.into()),
            path: fields.text("path").unwrap_or_else(|| GitOps::PATH.into()),
            interval: fields.number("interval").unwrap_or(GitOps::INTERVAL),
            ssh_key_file,
            known_hosts_file,
            token_file,
            verify,
            webhook_secret_file,
            signing_key_file,
            git: self.program(fields.path("git").unwrap_or_else(|| GitOps::GIT.into())),
        })
    }

    /// A bare name is looked for when it is run, so that a host without it still serves.
    fn program(&self, path: PathBuf) -> PathBuf {
        if path.components().count() > 1 { self.join(&path) } else { path }
    }

    /// A directory starts at the file's; what restic reaches by another way stays as it is written.
    fn repository(&self, text: &str) -> String {
        let path = text.strip_prefix("local:").unwrap_or(text);
        let elsewhere = path.split_once(':').is_some_and(|(backend, _)| BACKENDS.contains(&backend));
        if elsewhere { text.to_owned() } else { self.join(Path::new(path)).display().to_string() }
    }

    fn admin(&mut self, fields: &Fields) -> Option<Admin> {
        let key_file = self.file(fields, "key_file", Use::Random);
        let burst = fields.number("burst").and_then(|burst| u32::try_from(burst).ok()).unwrap_or(Admin::BURST);
        Some(Admin {
            listen: fields.address("listen")?,
            key_file: key_file?,
            hosts: fields.texts("hosts").into_iter().map(|(name, _)| name).collect(),
            rate: fields.rate_or_none("rate").unwrap_or(Some(Admin::RATE)),
            burst,
        })
    }

    fn alerts(&mut self, fields: &Fields) -> Alerts {
        let memory = self.levels(fields, "memory_warning", "memory_critical");
        let tenant_memory = self.levels(fields, "tenant_memory_warning", "tenant_memory_critical");
        let disk = self.levels(fields, "disk_warning", "disk_critical");
        let reminder = fields.number_or_none("reminder").unwrap_or(Some(Alerts::REMINDER));
        let discord = fields.table("discord").map(|discord| Discord { webhook_file: self.file(discord, "webhook_file", Use::Secret) });
        let webhook = fields.table("webhook").and_then(|webhook| self.file(webhook, "url_file", Use::Secret));
        let exec = fields.table("exec").and_then(|exec| self.file(exec, "program", Use::Program));
        Alerts { memory, tenant_memory, disk, reminder, discord, webhook, exec }
    }

    fn levels(&mut self, fields: &Fields, low: &str, high: &str) -> Levels {
        let percent = |name, default| fields.number(name).and_then(|n| u8::try_from(n).ok()).unwrap_or(default);
        let (warning, critical) = (percent(low, Levels::default().warning), percent(high, Levels::default().critical));
        let both_good = !fields.is_bad(low) && !fields.is_bad(high);
        if both_good && warning >= critical {
            let span = fields.span_of(low).or_else(|| fields.span_of(high)).unwrap_or_default();
            let message = format!("`{low}` ({warning}%) is not below `{high}` ({critical}%)");
            self.found.push(Finding::new(span, message, "write a warning below the critical share, such as \"80%\" and \"90%\""));
        }
        Levels { warning, critical }
    }

    /// Every address can be bound: none twice, none on a port that an instance may get. Port 0 is any free one.
    fn addresses(&mut self, proxy: &Fields, admin: Option<&Fields>, ports: Option<PortRange>) {
        let lists = ["listen", "http_listen"].into_iter().flat_map(|name| proxy.list(name).unwrap_or_default());
        let listed = lists.filter_map(|(value, span)| Some((address(value)?, span.clone())));
        let admin = admin.and_then(|admin| Some((admin.address("listen")?, admin.span_of("listen")?)));
        let mut seen: Vec<(SocketAddr, Span)> = Vec::new();
        for (address, span) in listed.chain(admin).filter(|(address, _)| address.port() != 0) {
            if let Some((first, at)) = seen.iter().find(|(first, _)| clash(*first, address)) {
                let message = format!("{address} cannot be listened on beside {first}");
                self.found.push(Finding::new(span.clone(), message, "give it another port, or remove one").related(at.clone(), "this one"));
            }
            if let Some(ports) = ports.filter(|ports| ports.contains(address.port())) {
                let message = format!("port {} lies in the range of the instances, {}-{}", address.port(), ports.first, ports.last);
                self.found.push(Finding::new(span.clone(), message, "listen on another port, or move `ports` under [agent]"));
            }
            seen.push((address, span));
        }
    }
}

fn access_log(fields: Option<&Fields>) -> AccessLog {
    let number = |name| fields.and_then(|fields| fields.number(name));
    let AccessLog { max_size, max_age, keep } = AccessLog::default();
    AccessLog {
        max_size: number("max_size").unwrap_or(max_size),
        max_age: number("max_age").unwrap_or(max_age),
        keep: number("keep").and_then(|count| u32::try_from(count).ok()).unwrap_or(keep),
    }
}

fn metrics(fields: &Fields) -> MetricsOptions {
    let tenants = match fields.number_or_none("tenants") {
        None | Some(None) => MetricsOf::All,
        Some(Some(0)) => MetricsOf::None,
        Some(Some(most)) => MetricsOf::Busiest(u32::try_from(most).unwrap_or(u32::MAX)),
    };
    MetricsOptions { tenants }
}

fn snapshots(fields: &Fields) -> Snapshots {
    let count = |name, default| fields.number(name).and_then(|count| u32::try_from(count).ok()).unwrap_or(default);
    Snapshots {
        hourly: count("hourly", 24),
        daily: count("daily", 7),
        weekly: count("weekly", 4),
        max_size: fields.number("max_size").unwrap_or(256 << 20),
    }
}

pub(super) fn address(value: &Value) -> Option<SocketAddr> {
    if let Value::Address(address) = value { Some(*address) } else { None }
}

/// Whether the second address cannot be bound while the first is.
fn clash(first: SocketAddr, second: SocketAddr) -> bool {
    let wildcard = first.ip().is_unspecified() || second.ip().is_unspecified();
    first.port() == second.port() && first.is_ipv4() == second.is_ipv4() && (wildcard || first.ip() == second.ip())
}
