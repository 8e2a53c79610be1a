//! One term of an agent: what it keeps open while it holds the state directory, and how that ends.

use std::{net::TcpListener, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use rustix::process::Pid;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};

use super::{run::Loaded, signals::Asked, systemd};
use crate::{
    admin::{
        self, Doors, DoorsParts,
        question::{Answer, Asked as Question, Desk, GitOpsAsked, Question as Words, UpgradeAsked},
        server::Socket,
        settings::KeyFile,
    },
    desired::{Desired, IsolationMode, Watch},
    edit::{Editor, EditorParts},
    handover::Holder,
    instance::{
        binary,
        cgroup::Cgroups,
        isolation::{Part, Wanted},
        launcher::{Launcher, LauncherConfig},
        limits, scan,
    },
    metrics::{Metrics, MetricsParts},
    proxy::{
        JoinNetwork,
        front::Addresses,
        ring::Ring,
        supervisor::{Supervisor, SupervisorConfig, SupervisorHandle},
    },
    reconcile::{
        agent::{Agent, Inputs, Signal},
        host::HostParts,
        setup::Parts,
    },
    route::{Activity, Meters, TableWriter},
    store::Store,
};

/// How long the proxy may finish what is in flight when the agent stops.
const PROXY_GRACE: Duration = Duration::from_secs(10);
/// tmpfs for the shared pages.
const SHARED_MEMORY: &str = "/dev/shm";
/// An agent that took over has so long to have adopted everything and to have its proxy up.
const SETTLE: Duration = Duration::from_secs(45);
/// This very program, also where its file was replaced since it started.
const THIS_PROGRAM: &str = "/proc/self/exe";

/// What a term begins with.
pub(super) struct TermParts {
    /// tenants.toml.
    pub(super) file: PathBuf,
    /// What it says.
    pub(super) loaded: Loaded,
    /// A living proxy is replaced by one of this program.
    pub(super) replace_proxy: bool,
    /// Sockets that listen already.
    pub(super) kept_listeners: Vec<TcpListener>,
    /// The same for the admin API.
    pub(super) admin_listener: Option<TcpListener>,
}

/// Everything that an agent keeps open.
pub(super) struct Term {
    file: PathBuf,
    to_loop: mpsc::Sender<Signal>,
    running: JoinHandle<Agent>,
    settled: watch::Receiver<bool>,
    supervisor: SupervisorHandle,
    doors: Doors,
    questions: mpsc::Sender<Question>,
    upgrades: mpsc::Receiver<UpgradeAsked>,
    launcher: Launcher,
    pages: [PathBuf; 3],
    /// Who inherits next, where the agent before is about to become this program.
    successor: Option<JoinHandle<Option<Holder>>>,
}

/// How a term ended.
pub(super) enum End {
    /// Everything that the agent started has ended.
    Stopped,
    /// Everything goes on, for an agent that is started next.
    Left,
    /// Everything goes on, for this heir.
    HandOver {
        /// The new program; `None` where the heir is the agent that comes before this one.
        exe: Option<PathBuf>,
        /// The conversation with it.
        holder: Holder,
        /// Who asked for it.
        reply: Option<Reply>,
        /// Where connections to the admin API wait.
        admin_listener: Option<TcpListener>,
    },
}

/// A command that waits for what comes of an upgrade.
pub(super) struct Reply {
    sender: oneshot::Sender<Answer>,
    socket: Socket,
}

impl Reply {
    /// Answers, and sees the answer out.
    pub(super) async fn give(self, answer: Answer) {
        // Nobody waits for it any more: then there is nothing to see out.
        let _ = self.sender.send(answer);
        self.socket.finish().await;
    }
}

impl Term {
    /// Opens everything and starts the loop. The caller holds the lock.
    pub(super) async fn begin(parts: TermParts) -> anyhow::Result<Self> {
        let TermParts { file, loaded: Loaded { desired, text, rejected }, replace_proxy, kept_listeners, admin_listener } = parts;
        limits::prepare_agent_limits()?;
        let opened = Store::open(&desired.state_dir)?;
        let (ring, first_look) = Ring::new(&desired)?;
        let instance_secret = first_look.settings.instance_secret.clone();
        let secret = instance_secret.clone();
        let (settings_sender, settings) = watch::channel(Arc::new(first_look.settings));
        let in_force = watch::Sender::new(None);
        let (access_log_sender, access_log) = watch::channel(desired.proxy.access_log.clone());
        let mut admin_key = KeyFile::default();
        // What is wrong with it the loop tells.
        let (admin_sender, admin_settings) = watch::channel(admin_key.look(desired.admin.as_ref()).0);
        let (changes, changed) = mpsc::channel(1);
        let watch = Watch::start(&file, changes)
            .inspect_err(|error| tracing::warn!(%error, "tenants.toml is not watched; it is still read every 5 s"))
            .ok();
        let pages =
            ["routes", "activity", "metrics"].map(|kind| PathBuf::from(SHARED_MEMORY).join(format!("sq-agent-{}-{kind}", desired.name)));
        let table = TableWriter::open(&pages[0])?;
        let activity = Arc::new(Activity::open(&pages[1])?);
        let meters = Arc::new(Meters::open(&pages[2])?);
        let routes = table.share()?;
        let launcher = launcher(&desired).await?;
        let (mut agent, events) = Agent::new(Parts {
            desired: desired.clone(),
            rejected,
            corrupt_records: opened.corrupt_moved_to.map(|moved| moved.display().to_string()),
            host: HostParts {
                file: file.clone(),
                state_dir: desired.state_dir.clone(),
                name: desired.name.clone(),
                store: opened.store,
                table,
                activity: activity.clone(),
                meters: meters.clone(),
                instance_secret,
                settings: settings_sender,
                access_log: access_log_sender,
                admin: admin_sender,
                admin_key,
                ring,
                watch,
                in_force: in_force.subscribe(),
                launcher: launcher.clone(),
                alive: systemd::alive,
            },
        })?;
        // Where an earlier agent's instances run, they and their routes come first; else nothing can be served without sq,
        // and whoever started this wants to know now.
        if agent.found_instances() {
            agent.find_program();
        } else {
            agent.set_program(binary::ensure(&desired.sq, &desired.state_dir, &|line| tracing::info!("{line}")).await?);
        }
        agent.save_last_good(&text);
        let (proxy_events, proxy) = mpsc::channel(64);
        let supervisor = Supervisor::start(SupervisorConfig {
            state_dir: desired.state_dir.clone(),
            exe: THIS_PROGRAM.into(),
            listen: Addresses::of(&desired.proxy),
            keep: systemd::store,
            kept: kept_listeners,
            routes,
            activity: activity.clone(),
            meters: meters.clone(),
            settings,
            access_log,
            in_force,
            events: proxy_events,
            replace: replace_proxy,
            network: join_network(&launcher)?,
        })
        .await?;
        agent.listens_on(&supervisor.addresses());
        let (questions, asked) = mpsc::channel(16);
        let (look, looks) = mpsc::channel(4);
        let (ask_upgrade, upgrades) = mpsc::channel(1);
        let listener = admin::server::bind(&admin::socket(&desired.state_dir)).context("binding the agent's socket")?;
        let desk = Desk { questions: questions.clone(), looks: look, upgrades: ask_upgrade };
        let (admin_news, admin) = mpsc::channel(4);
        let editor = Editor::start(EditorParts {
            file: file.clone(),
            state_dir: desired.state_dir.clone(),
            in_force: agent.in_force(),
            look: Box::new(look_by(questions.clone())),
        })
        .context("a thread for edits of tenants.toml")?;
        let (ask_metrics, metrics) = mpsc::channel(4);
        let doors = Doors::open(DoorsParts {
            socket: listener,
            desk,
            settings: admin_settings,
            kept: admin_listener,
            news: admin_news,
            editor,
            metrics: Metrics::new(MetricsParts { ask: ask_metrics, activity, meters, in_force: agent.in_force() }),
            in_force: agent.in_force(),
            secret,
        });
        let (to_loop, loop_signals) = mpsc::channel(4);
        let settled = agent.settled();
        let running =
            tokio::spawn(agent.run(Inputs { events, changed, proxy, admin, questions: asked, looks, metrics, signals: loop_signals }));
        Ok(Self { file, to_loop, running, settled, supervisor, doors, questions, upgrades, launcher, pages, successor: None })
    }

    /// For questions to the loop.
    pub(super) fn questions(&self) -> mpsc::Sender<Question> {
        self.questions.clone()
    }

    /// Waits until everything that ran is adopted, and the proxy serves.
    ///
    /// # Errors
    /// It did not come to that, in words.
    pub(super) async fn settled(&mut self) -> Result<(), String> {
        let all = async {
            self.settled.wait_for(|&settled| settled).await.map_err(|_| "the loop ended".to_owned())?;
            self.supervisor.up().await.map(drop).map_err(|error| error.to_string())
        };
        tokio::time::timeout(SETTLE, all).await.unwrap_or_else(|_| Err(format!("it had not taken over after {} s", SETTLE.as_secs())))
    }

    /// The agent before this one is about to become this program, and to inherit.
    pub(super) fn succeeded_by(&mut self, mut holder: Holder) {
        self.successor = Some(tokio::spawn(async move {
            let ready = holder.wait_for_heir().await;
            ready.inspect_err(|error| tracing::warn!(%error, "this process stays the agent")).ok().map(|()| holder)
        }));
    }

    /// Serves until something ends the term. `watched` is the process that systemd watches, where this one was started by it to take over.
    pub(super) async fn attend(mut self, signals: &mut mpsc::Receiver<Asked>, watched: Option<Pid>) -> anyhow::Result<End> {
        loop {
            tokio::select! {
                () = systemd::orphaned(watched) => {
                    tracing::error!("the process that systemd watches is gone: this one makes way for the next");
                    self.leave().await;
                    return Ok(End::Left);
                }
                ended = &mut self.running => return Err(ended.map_or_else(anyhow::Error::from, |_| anyhow::anyhow!("no signal came")).context("the loop ended before its time")),
                Some(asked) = signals.recv() => match asked {
                    Asked::Reload => self.signal(Signal::Reload).await,
                    Asked::Terminate if systemd::starts_again().await => {
                        tracing::info!("another agent is to follow: instances and proxy go on");
                        self.leave().await;
                        return Ok(End::Left);
                    }
                    Asked::Stop | Asked::Terminate => return self.stop(signals).await,
                },
                // While this process itself is about to be succeeded, the next one is asked again.
                Some((exe, sender)) = self.upgrades.recv(), if self.successor.is_none() => {
                    tracing::info!(exe = %exe.display(), "an upgrade is asked for");
                    match Holder::start(&exe, &self.file).await {
                        Ok(holder) => {
                            let (socket, admin_listener) = self.leave().await;
                            return Ok(End::HandOver { exe: Some(exe), holder, reply: Some(Reply { sender, socket }), admin_listener });
                        }
                        Err(error) => {
                            tracing::error!(%error, exe = %exe.display(), "the new program is not fit to take over");
                            // A command that did not wait for its answer is no error.
                            let _ = sender.send(Err((http::StatusCode::CONFLICT, format!("{} is not fit to take over: {error}", exe.display()))));
                        }
                    }
                }
                Some(Ok(ready)) = async { Some(self.successor.as_mut()?.await) } => {
                    self.successor = None;
                    if let Some(holder) = ready {
                        let (_, admin_listener) = self.leave().await;
                        return Ok(End::HandOver { exe: None, holder, reply: None, admin_listener });
                    }
                }
            }
        }
    }

    async fn signal(&self, signal: Signal) {
        // The loop is gone only when it has ended, which the caller sees.
        let _ = self.to_loop.send(signal).await;
    }

    /// Lets go of everything, which goes on; nothing of this term acts any more. The agent's socket takes no more questions; what comes to the admin
    /// API waits in its listener.
    pub(super) async fn leave(self) -> (Socket, Option<TcpListener>) {
        let (socket, admin_listener) = self.doors.leave().await;
        // The loop is gone only when it has ended.
        let _ = self.to_loop.send(Signal::HandOver).await;
        let _ = self.running.await;
        self.supervisor.detach().await;
        self.launcher.end();
        (socket, admin_listener)
    }

    /// The proxy first takes no more and finishes what is in flight, then the instances are stopped. A second signal skips the
    /// proxy's part, a third one the draining of instances.
    async fn stop(mut self, signals: &mut mpsc::Receiver<Asked>) -> anyhow::Result<End> {
        tracing::info!("stopping: the proxy finishes what is in flight; a second signal skips that");
        systemd::stopping();
        let mut proxy = Some(tokio::spawn(self.supervisor.shutdown(PROXY_GRACE)));
        loop {
            tokio::select! {
                ended = &mut self.running => {
                    ended.context("the loop ended before its time")?;
                    self.launcher.end();
                    if let Some(cgroups) = self.launcher.cgroups() {
                        cgroups.clear();
                    }
                    // Nothing runs any more: the pages are memory that nobody would free before the next boot.
                    for page in self.pages {
                        let _ = std::fs::remove_file(page);
                    }
                    return Ok(End::Stopped);
                }
                Some(asked) = signals.recv() => if asked != Asked::Reload {
                    proxy = None;
                    let _ = self.to_loop.send(Signal::Stop).await;
                },
                Some(_) = async { Some(proxy.as_mut()?.await) } => {
                    proxy = None;
                    let _ = self.to_loop.send(Signal::Stop).await;
                }
            }
        }
    }
}

/// Has the repository looked at, by the loop.
fn look_by(questions: mpsc::Sender<Question>) -> impl Fn() + Send {
    move || {
        let (answer, _) = oneshot::channel();
        // Where so much is asked that there is no room for it, it is looked at when its time comes.
        let _ = questions.try_send((Words::GitOps(GitOpsAsked::Sync { accept_rewrite: false }), answer));
    }
}

/// Starts the launcher: in the network of the instances that live, else in a new one.
async fn launcher(desired: &Desired) -> anyhow::Result<Launcher> {
    let (state_dir, name, mode) = (desired.state_dir.clone(), desired.name.clone(), desired.isolation);
    let started = tokio::task::spawn_blocking(move || {
        let begin = |like| {
            Launcher::start(LauncherConfig {
                exe: THIS_PROGRAM.into(),
                state_dir: state_dir.clone(),
                wanted: if mode == IsolationMode::Off { Wanted::NOTHING } else { Wanted::EVERYTHING },
                like,
                cgroups: Cgroups::open(&name).map_err(Into::into),
            })
        };
        let living = scan::any(&state_dir).ok().flatten().map(|found| found.pid);
        begin(living).or_else(|error| match living {
            // They cannot be proved then, and are started anew.
            Some(_) => {
                tracing::error!(%error, "instances of an earlier agent are out of reach");
                begin(None)
            }
            None => Err(error),
        })
    })
    .await??;
    let isolation = started.isolation();
    for (name, part) in isolation.parts() {
        if let Part::Off { reason, remedy } = part {
            tracing::info!(part = name, reason, remedy, "a part of the isolation of instances is off");
        }
    }
    let missing = isolation.missing_of_required(rustix::process::geteuid().is_root());
    if mode == IsolationMode::Required && !missing.is_empty() {
        started.end();
        anyhow::bail!(
            "isolation = \"required\", and this host does not give all of it: {}. Mend that (`sq-agent doctor` shows each part), or write isolation = \"auto\"",
            missing.join("; ")
        );
    }
    Ok(started)
}

/// What the proxy needs to reach the instances.
fn join_network(launcher: &Launcher) -> anyhow::Result<Option<JoinNetwork>> {
    let mut namespaces = launcher.namespaces().context("the network of the instances")?;
    let Some(net) = namespaces.pop() else { return Ok(None) };
    Ok(Some(JoinNetwork { user: namespaces.pop(), net }))
}
