//! A host in small: the agent's side of a real proxy process, with the pages in the test's hands.

use std::{
    net::SocketAddr,
    os::fd::OwnedFd,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::hmac;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as B64};
use sq_agent::{
    desired::{AccessLog, Algorithm, TenantId},
    instance_key,
    proxy::{
        JoinNetwork, credentials,
        front::{Addresses, Front},
        settings::{KeyForm, Settings, TokenKey},
        supervisor::{ProxyEvent, Supervisor, SupervisorConfig, SupervisorHandle},
    },
    route::{Activity, Meters, RouteLimits, RouteState, Row, TableWriter, Writes},
};
use tempfile::TempDir;
use tokio::{
    sync::{Mutex, mpsc, watch},
    time::timeout,
};

use super::{client::Client, support::DEADLINE};

/// Wide enough that no test meets a limit that it does not set.
pub const LIMITS: RouteLimits = RouteLimits {
    interval_ns: 0,
    burst: 0,
    requests_per_day: 0,
    concurrency: 8,
    queue: 64,
    body_max: 8 << 20,
    memory_max: 0,
    storage_max: 0,
    durability: sq_agent::guard::Durability::Off,
};

pub struct Host {
    pub dir: TempDir,
    pub address: SocketAddr,
    /// The plain port.
    pub plain: Option<SocketAddr>,
    pub activity: Arc<Activity>,
    pub meters: Arc<Meters>,
    pub settings: watch::Sender<Arc<Settings>>,
    pub access_log: watch::Sender<AccessLog>,
    /// Those that are served by.
    pub in_force: watch::Sender<Option<Arc<Settings>>>,
    pub events: Mutex<mpsc::Receiver<ProxyEvent>>,
    pub supervisor: Option<SupervisorHandle>,
    pub pid: u32,
    /// The network in which the instances are.
    pub network: Option<Box<dyn Fn() -> JoinNetwork + Send + Sync>>,
    table: Mutex<TableWriter>,
    token_secret: Vec<u8>,
}

impl Host {
    /// A proxy that serves, with these rows.
    pub async fn start(rows: &[Row]) -> Self {
        Self::start_behind(Front::default(), false, rows).await
    }

    /// The same with a front of its own, and a plain port if `plain`.
    pub async fn start_behind(front: Front, plain: bool, rows: &[Row]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (tls_cert_pem, tls_key_pem) = credentials::self_signed(dir.path()).unwrap();
        let secret = credentials::jwt_secret(dir.path()).unwrap();
        let token_secret = secret.expose().to_vec();
        let settings = Settings {
            tls_cert_pem,
            tls_key_pem,
            token_keys: vec![TokenKey { kid: None, alg: Algorithm::HS256, secret, form: KeyForm::File, iss: None, aud: None }],
            keys_renew: false,
            webhook_secret: None,
            instance_secret: credentials::instance_secret(dir.path()).unwrap(),
            side: 0,
            run_as: is_root().then_some((65_534, 65_534)),
            front,
        };
        let mut table = TableWriter::open(&dir.path().join("routes")).unwrap();
        table.publish(rows).unwrap();
        let activity = Arc::new(Activity::open(&dir.path().join("activity")).unwrap());
        let meters = Arc::new(Meters::open(&dir.path().join("metrics")).unwrap());
        rows.iter().for_each(|row| meters.reserve(row.slot).unwrap());
        let (settings, _) = watch::channel(Arc::new(settings));
        let (_, events) = mpsc::channel(1);
        let mut host = Self {
            dir,
            address: ([127, 0, 0, 1], 0).into(),
            plain: plain.then_some(([127, 0, 0, 1], 0).into()),
            activity,
            meters,
            settings,
            access_log: watch::Sender::new(AccessLog::default()),
            in_force: watch::Sender::new(None),
            events: Mutex::new(events),
            supervisor: None,
            pid: 0,
            network: None,
            table: Mutex::new(table),
            token_secret,
        };
        host.agent().await;
        host
    }

    /// An agent's side: takes the proxy that lives, or starts one.
    pub async fn agent(&mut self) {
        self.agent_that(false).await;
    }

    /// The next agent's side after this one has let go: with `replace` it puts a new proxy in the place of the one that lives.
    pub async fn agent_that(&mut self, replace: bool) {
        self.agent_of(Path::new(env!("CARGO_BIN_EXE_sq-agent")), replace).await;
    }

    /// An agent's side that starts `exe` as its proxy.
    pub async fn agent_of(&mut self, exe: &Path, replace: bool) {
        self.agent_begins(exe, replace).await;
        self.pid = self.until_up().await;
    }

    /// The same, without waiting for a proxy.
    pub async fn agent_begins(&mut self, exe: &Path, replace: bool) {
        if let Some(before) = self.supervisor.take() {
            before.detach().await;
        }

        let (sender, events) = mpsc::channel(256);
        let supervisor = Supervisor::start(SupervisorConfig {
            state_dir: self.dir.path().to_owned(),
            exe: exe.to_owned(),
            listen: Addresses { https: vec![self.address], plain: self.plain.into_iter().collect() },
            keep: |_| {},
            kept: Vec::new(),
            routes: self.routes().await,
            activity: self.activity.clone(),
            meters: self.meters.clone(),
            access_log: self.access_log.subscribe(),
            settings: self.settings.subscribe(),
            in_force: self.in_force.clone(),
            events: sender,
            replace,
            network: self.network.as_ref().map(|network| network()),
        })
        .await
        .unwrap();
        self.address = supervisor.addresses()[0];
        self.plain = self.plain.map(|_| supervisor.addresses()[1]);
        self.supervisor = Some(supervisor);
        self.events = Mutex::new(events);
    }

    /// Waits for the proxy to serve; its pid.
    pub async fn until_up(&self) -> u32 {
        match self.event(|event| matches!(event, ProxyEvent::Up { .. })).await {
            ProxyEvent::Up { pid, .. } => pid,
            other => panic!("{other:?}"),
        }
    }

    /// The next event that `wanted` likes.
    pub async fn event(&self, wanted: impl Fn(&ProxyEvent) -> bool) -> ProxyEvent {
        let mut events = self.events.lock().await;
        let next = async {
            loop {
                let event = events.recv().await.expect("the supervisor has ended");
                if wanted(&event) {
                    return event;
                }
            }
        };
        match timeout(DEADLINE, next).await {
            Ok(event) => event,
            Err(_) => panic!("no such event; proxy.log:\n{}", self.log("proxy.log")),
        }
    }

    pub async fn publish(&self, rows: &[Row]) {
        self.table.lock().await.publish(rows).unwrap();
    }

    /// The route table, as it is handed over.
    pub async fn routes(&self) -> OwnedFd {
        self.table.lock().await.share().unwrap()
    }

    /// Changes what is served by, and waits until it is.
    pub async fn change(&self, change: impl FnOnce(&mut Settings)) {
        let mut settings = Settings::clone(&self.settings.borrow());
        change(&mut settings);
        let settings = Arc::new(settings);
        let mut in_force = self.in_force.subscribe();
        self.settings.send_replace(Arc::clone(&settings));
        let there = in_force.wait_for(|now| now.as_ref().is_some_and(|now| Arc::ptr_eq(now, &settings)));
        timeout(DEADLINE, there).await.expect("the settings came into force").unwrap();
    }

    /// What the proxy shows to `id`'s instance with this epoch.
    pub fn instance_key(&self, id: &str, epoch: u64) -> String {
        let secret = credentials::instance_secret(self.dir.path()).unwrap();
        instance_key::derive(&secret, &TenantId::parse(id).unwrap(), epoch)
    }

    /// A client that trusts the host's certificate.
    pub fn client(&self) -> Client {
        Client::new(self.address, &std::fs::read(credentials::certificate_path(self.dir.path())).unwrap())
    }

    /// A good token.
    pub fn token(&self, sub: &str) -> String {
        self.sign(r#"{"alg":"HS256"}"#, &format!(r#"{{"sub":"{sub}","exp":{}}}"#, now() + 3_600))
    }

    /// Any header and claims, signed with the host's secret.
    pub fn sign(&self, header: &str, claims: &str) -> String {
        sign(header, claims, &self.token_secret)
    }

    pub fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(name)).unwrap_or_default()
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Ends the proxy in good order.
    pub async fn stop(mut self) {
        if let Some(supervisor) = self.supervisor.take() {
            supervisor.shutdown(Duration::from_secs(5)).await;
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // A failed test must not leave a process behind: its number is known, and it is a proxy of this program.
        if self.supervisor.is_some() {
            let mine = std::fs::read(format!("/proc/{}/cmdline", self.pid))
                .is_ok_and(|line| line.starts_with(env!("CARGO_BIN_EXE_sq-agent").as_bytes()));
            if let Some(pid) = i32::try_from(self.pid).ok().and_then(rustix::process::Pid::from_raw).filter(|_| mine) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
}

/// A row of a tenant whose instance is (or is not) on `port`.
pub fn row(id: &str, slot: u32, state: RouteState, port: u16, epoch: u64) -> Row {
    Row { id: id.into(), port, state, epoch, slot, tokens_valid_after: 0, limits: LIMITS, writes: Writes::All, api_keys: vec![] }
}

pub fn ready(id: &str, slot: u32, port: u16) -> Row {
    row(id, slot, RouteState::Ready, port, 1)
}

pub fn sign(header: &str, claims: &str, secret: &[u8]) -> String {
    let message = format!("{}.{}", B64.encode(header), B64.encode(claims));
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message.as_bytes());
    format!("{message}.{}", B64.encode(tag.as_ref()))
}

pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
