//! A whole host: tenants.toml in a directory of its own, the real program, real sq, the proxy on a port of its own.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Mutex,
    time::{Duration, Instant},
};

use http::{Method, Request};
use rustix::process::Signal;
use sq_agent::{
    admin::status::{Status, TenantStatus},
    desired,
};
use tempfile::TempDir;

use super::{
    DEADLINE,
    client::{Answer, Client, Http, Lost, Upload},
    ports::PortBlock,
    processes::{self, SeenSq},
    sq_binary, tokens,
    wanted::{self, Wanted},
};

/// The program under test.
pub const SQ_AGENT: &str = env!("CARGO_BIN_EXE_sq-agent");

/// How long an agent may take to end: 10 s for what is in flight at the proxy, 10 s of drain, 5 s between TERM and KILL.
const ENDS_WITHIN: Duration = Duration::from_secs(25);

/// A host of its own; everything of it ends with the test.
pub struct Host {
    /// What tenants.toml says. Change it by [`Host::edit`].
    pub wanted: Wanted,
    dir: TempDir,
    /// `dir` without links, as the product shows it.
    root: PathBuf,
    /// What stands in the environment of the agent and of commands, beside the test's own.
    pub environment: Vec<(&'static str, PathBuf)>,
    agent: Option<Child>,
    /// Every proxy that the status named.
    proxies: Mutex<BTreeSet<u32>>,
    shared_pages: String,
    _ports: PortBlock,
}

/// What a command did.
#[derive(Debug)]
pub struct Ran {
    /// Exit code.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

/// Somebody with a token.
#[derive(Clone)]
pub struct User {
    /// Its client.
    pub client: Client,
    /// Its token.
    pub token: String,
}

impl Host {
    /// A host that serves `ids`, up and settled.
    pub async fn start(ids: &[&str]) -> Self {
        let mut host = Self::prepare(|wanted| ids.iter().for_each(|id| _ = wanted.add(id)));
        host.launch().await;
        host
    }

    /// A host that is not running yet.
    pub fn prepare(edit: impl FnOnce(&mut Wanted)) -> Self {
        Self::prepare_on(PortBlock::small(), edit)
    }

    /// The same, with ports of your choice.
    pub fn prepare_on(ports: PortBlock, edit: impl FnOnce(&mut Wanted)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let mut wanted = Wanted {
            ports: (ports.first, ports.last),
            https: ports.https,
            sq: sq_binary(),
            isolation: "auto",
            disk_reserve: "none",
            proxy: String::new(),
            more: String::new(),
            tenants: Default::default(),
        };
        edit(&mut wanted);
        let shared_pages = desired::parse(&wanted.text(), &root.join("tenants.toml")).unwrap().name;
        let host = Self { wanted, dir, root, environment: Vec::new(), agent: None, proxies: Mutex::default(), shared_pages, _ports: ports };
        host.write(&host.wanted.text());
        host
    }

    /// Starts the agent and waits until all is as desired.
    pub async fn launch(&mut self) -> Status {
        self.spawn_agent();
        self.settled().await
    }

    /// Starts the agent without waiting for anything.
    pub fn spawn_agent(&mut self) {
        self.spawn_agent_with(&[]);
    }

    /// Starts an agent that kills itself where it comes to `point`; see `sq_agent::crash_point`.
    pub fn spawn_agent_that_dies_at(&mut self, point: &str) {
        self.spawn_agent_with(&[(sq_agent::crash_point::VARIABLE, point)]);
    }

    /// Starts the agent with more in its environment.
    pub fn spawn_agent_with(&mut self, environment: &[(&str, &str)]) {
        let mut run = self.command(&["run"]);
        run.envs(environment.iter().copied());
        self.spawn(run);
    }

    /// Starts the agent where its file lies, by a command line that does not name that.
    pub fn spawn_agent_beside_its_file(&mut self, args: &[&str]) {
        let mut run = Command::new(SQ_AGENT);
        run.args(args).current_dir(&self.root).env_remove("SQ_AGENT_TENANTS").env_remove("SQ_AGENT_LOG");
        self.spawn(run);
    }

    fn spawn(&mut self, mut run: Command) {
        let log = File::options().append(true).create(true).open(self.agent_log()).unwrap();
        run.stdout(log.try_clone().unwrap()).stderr(log).stdin(Stdio::null());
        self.agent = Some(run.spawn().unwrap());
    }

    /// The exit code of an agent that has ended, none where a signal ended it.
    pub fn reap_agent(&mut self) -> Option<i32> {
        self.agent.take().unwrap().wait().unwrap().code()
    }

    /// Directory of the host.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// tenants.toml.
    pub fn file(&self) -> PathBuf {
        self.root.join("tenants.toml")
    }

    /// The state directory.
    pub fn state_dir(&self) -> PathBuf {
        self.root.join("state")
    }

    /// Where a tenant's texts lie.
    pub fn data_dir(&self, id: &str) -> PathBuf {
        self.state_dir().join("users").join(id).join("phext-data")
    }

    /// All that the agent logged.
    pub fn agent_log(&self) -> PathBuf {
        self.root.join("agent.log")
    }

    /// All that the agent logged, as text.
    pub fn logged(&self) -> String {
        fs::read_to_string(self.agent_log()).unwrap()
    }

    /// Pid of the agent that runs.
    pub fn agent_pid(&self) -> u32 {
        self.agent.as_ref().unwrap().id()
    }

    /// Changes tenants.toml as an editor does.
    pub fn edit(&mut self, edit: impl FnOnce(&mut Wanted)) {
        edit(&mut self.wanted);
        self.write(&self.wanted.text());
    }

    /// Replaces tenants.toml by any text.
    pub fn write(&self, text: &str) {
        wanted::replace(&self.file(), text);
    }

    /// A command of the program, about this host.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(SQ_AGENT);
        command.args(args).arg("--tenants").arg(self.file()).env_remove("SQ_AGENT_TENANTS").env_remove("SQ_AGENT_LOG");
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs a command of the program to its end.
    pub fn cli(&self, args: &[&str]) -> Ran {
        ran(&mut self.command(args))
    }

    /// The status, unless no agent answers.
    pub fn status(&self) -> Option<Status> {
        let ran = self.cli(&["status", "--json"]);
        let status: Option<Status> = (ran.code != 1).then(|| serde_json::from_str(&ran.out).unwrap());
        self.proxies.lock().unwrap().extend(status.as_ref().and_then(|status| status.proxy.pid));
        status
    }

    /// Waits until the status is as `condition` says.
    pub async fn until(&self, what: &str, condition: impl Fn(&Status) -> bool) -> Status {
        self.within(DEADLINE, what, condition).await
    }

    /// The same with a deadline of its own.
    pub async fn within(&self, patience: Duration, what: &str, condition: impl Fn(&Status) -> bool) -> Status {
        let started = Instant::now();
        loop {
            let status = self.status();
            match status {
                Some(status) if condition(&status) => return status,
                _ if started.elapsed() < patience => tokio::time::sleep(Duration::from_millis(20)).await,
                _ => panic!("not within {patience:?}: {what}\n{}", self.account()),
            }
        }
    }

    /// Waits until tenants.toml is in force and everything is as it says.
    pub async fn settled(&self) -> Status {
        self.settled_within(DEADLINE).await
    }

    /// The same with a deadline of its own.
    pub async fn settled_within(&self, patience: Duration) -> Status {
        let hash = desired::hash(&self.wanted.text());
        self.within(patience, "all is as tenants.toml says", |status| status.agent.desired_hash == hash && self.as_wanted(status)).await
    }

    /// Whether every tenant, and no other, is as wanted.
    pub fn as_wanted(&self, status: &Status) -> bool {
        status.proxy.pid.is_some()
            && status.tenants.len() == self.wanted.tenants.len()
            && status.tenants.iter().all(|tenant| self.is_as_wanted(tenant))
    }

    fn is_as_wanted(&self, is: &TenantStatus) -> bool {
        self.wanted.tenants.get(&is.id).is_some_and(|wanted| {
            let state = if wanted.suspended { "suspended" } else { "ready" };
            is.tier == wanted.tier && is.state == state && is.pid.is_some() != wanted.suspended
        })
    }

    /// What is not as wanted, first of all that there is to know.
    fn amiss(&self) -> String {
        let Some(status) = self.status() else { return "no agent answers\n".into() };
        let tenants = status.tenants.iter().filter(|tenant| !self.is_as_wanted(tenant));
        let tenants: Vec<_> = tenants.map(|tenant| format!("{tenant:?}\n{}", self.cli(&["events", &tenant.id]).out)).collect();
        let hash = desired::hash(&self.wanted.text());
        let file = format!("in force {}, wanted {hash}", status.agent.desired_hash);
        format!("{file}, proxy {:?}, {} tenants, not as wanted:\n{}\n", status.proxy.pid, status.tenants.len(), tenants.join("\n"))
    }

    /// What there is to know when something went wrong.
    pub fn account(&self) -> String {
        let tail = |path: PathBuf| {
            let text = fs::read_to_string(&path).unwrap_or_else(|error| error.to_string());
            let lines: Vec<_> = text.lines().rev().take(60).collect();
            let lines: Vec<_> = lines.into_iter().rev().collect();
            format!("--- {}\n{}\n", path.display(), lines.join("\n"))
        };
        let status = self.cli(&["status"]);
        let logs = [self.agent_log(), self.state_dir().join("proxy.log"), self.state_dir().join("access.log")].map(tail);
        let wants = &self.wanted.tenants;
        format!("{}--- tenants.toml wants {wants:?}\n--- status\n{}{}{}", self.amiss(), status.err, status.out, logs.concat())
    }

    /// What really runs for tenants.
    pub fn instances(&self) -> Vec<SeenSq> {
        processes::instances(&self.state_dir())
    }

    /// Waits until no process lives any more that was started to take over, but the agent itself, which executes the new program as one.
    pub async fn until_heirs_are_gone(&self) {
        let agent = self.agent.as_ref().map(Child::id);
        let is_heir = |seen: &processes::Seen| Some(seen.pid) != agent && seen.args.iter().any(|arg| arg == "--take-over");
        let started = Instant::now();
        while processes::naming(&self.root).iter().any(is_heir) {
            assert!(started.elapsed() < DEADLINE, "an heir still lives\n{}", self.account());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The proxies of this host that live.
    pub fn proxies(&self) -> Vec<u32> {
        processes::proxies(&self.state_dir(), &self.proxies.lock().unwrap())
    }

    /// Fails unless what runs is exactly what `status` says: no orphan, no tenant twice, no port twice.
    pub fn assert_matches_proc(&self, status: &Status) {
        let running = self.instances();
        let said: BTreeSet<_> = status.tenants.iter().filter_map(|t| Some((t.id.clone(), t.pid?, t.port?))).collect();
        let seen: BTreeSet<_> = running.iter().map(|sq| (sq.id.clone(), sq.pid, sq.port)).collect();
        assert_eq!(seen, said, "what runs and what the status says\n{}", self.account());
        let distinct = |count: usize, what| assert_eq!(count, running.len(), "{what}: {running:#?}");
        distinct(running.iter().map(|sq| &sq.id).collect::<BTreeSet<_>>().len(), "two sq for one tenant");
        distinct(running.iter().map(|sq| sq.port).collect::<BTreeSet<_>>().len(), "a port used twice");
    }

    /// A client that trusts this host.
    pub fn client(&self) -> Client {
        Client::new(self.wanted.https, &self.state_dir().join("tls/cert.pem"))
    }

    /// The tenant `id`, with a good token.
    pub fn user(&self, id: &str) -> User {
        let token = tokens::sign(&tokens::secret(&self.state_dir()), &tokens::claims(id));
        User { client: self.client(), token }
    }

    /// Ends the agent by a signal and returns its exit code, none if the signal itself ended it.
    pub fn end_agent(&mut self, signal: Signal) -> Option<i32> {
        let mut agent = self.agent.take().unwrap();
        processes::signal(agent.id(), signal);
        if !processes::ended_within(agent.id(), ENDS_WITHIN) {
            let account = self.account();
            self.agent = Some(agent);
            panic!("the agent did not end within {ENDS_WITHIN:?} of {signal:?}\n{account}");
        }
        agent.wait().unwrap().code()
    }

    /// Everything of this host that lives: agent, proxies, instances. A guard ends with its proxy, which takes it a moment.
    pub fn alive(&self) -> Vec<processes::Seen> {
        let is_guard = |seen: &processes::Seen| seen.args.get(1).is_some_and(|arg| arg == "guard");
        let began = Instant::now();
        loop {
            let alive = self.all_alive();
            if alive.is_empty() || !alive.iter().all(is_guard) || began.elapsed() > Duration::from_secs(5) {
                return alive;
            }
            std::thread::yield_now();
        }
    }

    fn all_alive(&self) -> Vec<processes::Seen> {
        let proxies = self.proxies().into_iter().map(|pid| processes::Seen { pid, args: vec!["the proxy".into()] });
        processes::naming(&self.root).into_iter().chain(proxies).collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let mut left = Vec::new();
        if let Some(mut agent) = self.agent.take() {
            processes::signal(agent.id(), Signal::TERM);
            let ended = processes::ended_within(agent.id(), ENDS_WITHIN);
            left = self.alive();
            if !ended {
                processes::signal(agent.id(), Signal::KILL);
            }
            let _ = agent.wait();
        }
        for seen in self.alive() {
            processes::signal(seen.pid, Signal::KILL);
        }
        for kind in ["routes", "activity", "metrics"] {
            let _ = fs::remove_file(format!("/dev/shm/sq-agent-{}-{kind}", self.shared_pages));
        }
        if !std::thread::panicking() {
            assert!(left.is_empty(), "these outlived the agent's end: {left:#?}\n{}", self.account());
        }
    }
}

/// Runs a command to its end.
pub fn ran(command: &mut Command) -> Ran {
    let output = command.stdin(Stdio::null()).output().unwrap();
    Ran {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

impl User {
    /// A request with this user's token.
    pub fn request(&self, method: Method, target: &str, body: Upload) -> Request<Upload> {
        let builder = Request::builder().method(method).uri(target).header("authorization", format!("Bearer {}", self.token));
        builder.body(body).unwrap()
    }

    /// Sends a request over HTTP/1.1.
    pub async fn send(&self, method: Method, target: &str, body: Upload) -> Result<Answer, Lost> {
        self.client.send(Http::One, self.request(method, target, body)).await
    }

    /// GET, whose answer must come.
    pub async fn get(&self, target: &str) -> Answer {
        self.send(Method::GET, target, Upload::default()).await.unwrap_or_else(|error| panic!("GET {target}: {error}"))
    }

    /// POST, whose answer must come.
    pub async fn post(&self, target: &str, body: &[u8]) -> Answer {
        let body = Upload::whole(body.to_vec());
        self.send(Method::POST, target, body).await.unwrap_or_else(|error| panic!("POST {target}: {error}"))
    }
}

/// The one tenant `id` of a status.
pub fn tenant<'a>(status: &'a Status, id: &str) -> &'a TenantStatus {
    status.tenants.iter().find(|tenant| tenant.id == id).unwrap_or_else(|| panic!("no {id} in {status:#?}"))
}
