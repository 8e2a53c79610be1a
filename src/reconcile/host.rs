//! The real world of the loop: instances.db, the two shared pages, real processes, and the tasks that carry out its actions.

use std::{collections::HashMap, io, path::PathBuf, sync::Arc, time::Duration};

use tokio::sync::{mpsc, watch};

use super::{
    event::{Drain, Event, Unproved},
    health::Health,
    lifecycle::{self, Reports},
    tasks::Tasks,
    world::{Handle, Refusal, Start, World},
};
use crate::{
    acme,
    admin::{self, settings::KeyFile},
    alerts::{self, Alert, Channel, Sender, Share},
    backup::{self, Job, Report},
    certificate::Facts,
    child::Running,
    crash_point,
    desired::{self, AccessLog, Acme, Alerts, Desired, Snapshots, SqSource, TenantId, Watch},
    gitops, guard,
    history::sample::CpuTicks,
    instance::{
        Process, binary,
        cgroup::{Applied, CgroupLimits},
        isolation::Isolation,
        launcher::Launcher,
        ports::{self, PortState},
        process::StopSignal,
        pulse::Pulse,
        scan::{self, Found},
        spawn::SpawnSpec,
        storage::{self, DiskSpace},
        usage::{self, Memory},
    },
    instance_key,
    observed::{Moment, Restore, monotonic},
    proxy::{
        front::Source,
        key_sets::KeySets,
        ring::{self, Look, Ring},
        settings::Settings,
    },
    route::{Activity, Happened, Meters, Route, Row, SlotActivity, SlotSnapshot, TableError, TableWriter},
    secret::Secret,
    snapshot::{Reason, RestoreOrder, SnapshotOrder},
    store::{Store, unix_now},
};

/// What the real world is made of.
pub struct HostParts {
    /// tenants.toml.
    pub file: PathBuf,
    /// Cannot change while the agent runs.
    pub state_dir: PathBuf,
    /// `[agent] name`, which cannot either.
    pub name: String,
    /// instances.db.
    pub store: Store,
    /// The route table.
    pub table: TableWriter,
    /// The activity page.
    pub activity: Arc<Activity>,
    /// The page of metrics.
    pub meters: Arc<Meters>,
    /// From which each instance's key is derived.
    pub instance_secret: Secret,
    /// Where the proxy's settings go.
    pub settings: watch::Sender<Arc<Settings>>,
    /// Where goes what tenants.toml says of the access log.
    pub access_log: watch::Sender<AccessLog>,
    /// Where goes what it says of the admin API.
    pub admin: watch::Sender<Option<Arc<admin::settings::Settings>>>,
    /// The key that is a part of that.
    pub admin_key: KeyFile,
    /// What they are made of.
    pub ring: Ring,
    /// On tenants.toml, and to be on the files that it names.
    pub watch: Option<Watch>,
    /// Those that it serves by.
    pub in_force: watch::Receiver<Option<Arc<Settings>>>,
    /// Starts instances, and gives sockets in their network.
    pub launcher: Launcher,
    /// Told at each tick that the loop turns, for whoever watches over the agent.
    pub alive: fn(),
}

/// This host. Every task that it began is its own and ends with it.
pub struct Host {
    parts: HostParts,
    /// Probes under way.
    pulse: Pulse<(TenantId, u64)>,
    /// How many.
    asking: usize,
    reports: Reports,
    tasks: Tasks,
    /// Keys that are fetched.
    key_sets: KeySets,
    /// The files on which the watch is.
    watched: Vec<PathBuf>,
    /// The backup off this host that is under way, or was last.
    backup: Option<Running>,
    /// The same of looks at the repository that tenants.toml comes from.
    sync: Option<Running>,
    /// The certificate that is asked for.
    acme: Option<acme::Running>,
    /// The program that is run over an alert, or was last.
    alert: Option<Running>,
    /// Who sends alerts.
    sender: Sender,
    /// It was said that some are not counted.
    uncounted: bool,
}

impl Host {
    /// The host, and the channel on which its tasks report.
    pub(super) fn new(parts: HostParts) -> (Self, mpsc::UnboundedReceiver<Event<Arc<Process>>>) {
        let (reports, events) = mpsc::unbounded_channel();
        let pulse = Pulse::new(parts.launcher.network(), Health::LIMIT);
        let news = reports.clone();
        // The loop is gone only when the agent ends.
        let key_sets = KeySets::new(&parts.state_dir, move || _ = news.send(Event::KeySets));
        let tasks = Tasks::new();
        let sender = Sender::of_host(&parts.name);
        let host = Self {
            parts,
            pulse,
            asking: 0,
            reports,
            tasks,
            key_sets,
            watched: Vec::new(),
            backup: None,
            sync: None,
            acme: None,
            alert: None,
            sender,
            uncounted: false,
        };
        (host, events)
    }

    /// Ends every task, so that nothing of this agent acts any more; the instances and their rows stay as they are.
    pub(super) async fn halt(&mut self) {
        for mut running in self.sync.take().into_iter().chain(self.backup.take()).chain(self.alert.take()) {
            // It ends within seconds; a panic of it ends it as well.
            let _ = tokio::task::spawn_blocking(move || running.halt()).await;
        }
        self.key_sets.halt();
        self.acme = None;
        self.tasks.halt().await;
    }

    fn user_dir(&self, id: &TenantId) -> PathBuf {
        desired::user_dir(&self.parts.state_dir, id)
    }
}

impl Handle for Arc<Process> {
    fn pid(&self) -> u32 {
        Process::pid(self)
    }

    fn start_time(&self) -> u64 {
        Process::start_time(self)
    }
}

impl World for Host {
    type Process = Arc<Process>;
    type Records = Store;

    fn records(&mut self) -> &mut Store {
        &mut self.parts.store
    }

    fn unix_now(&self) -> u64 {
        unix_now()
    }

    fn jitter(&mut self) -> f64 {
        getrandom::u32().map_or(0.5, |random| f64::from(random) / f64::from(u32::MAX))
    }

    fn fingerprint(&mut self) -> Option<[u8; 32]> {
        desired::fingerprint(&self.parts.file)
    }

    fn load(&mut self) -> Result<(Desired, String), Refusal> {
        desired::load_with_text(&self.parts.file).map_err(|rejected| Refusal { summary: rejected.summary(), text: rejected.to_string() })
    }

    fn save_last_good(&mut self, text: &str) -> Result<(), String> {
        desired::save_last_good(&self.parts.file, text, &self.parts.state_dir).map_err(|error| error.to_string())?;
        crash_point::reached("file.kept");
        Ok(())
    }

    fn renew_settings(&mut self, desired: &Desired) -> Vec<String> {
        let mut files = ring::files(desired);
        files.extend(desired.admin.as_ref().map(|admin| admin.key_file.clone()));
        if let Some(watch) = self.parts.watch.as_ref().filter(|_| files != self.watched) {
            watch.follow(files.clone());
            self.watched = files;
        }
        self.key_sets.follow(ring::urls(desired));
        let Look { mut settings, mut troubles } = self.parts.ring.look(desired);
        settings.front.challenges = self.acme.as_ref().map(acme::Running::offers).unwrap_or_default();
        send_changed(&self.parts.settings, Arc::new(settings));
        send_changed(&self.parts.access_log, desired.proxy.access_log.clone());
        troubles.extend(self.key_sets.troubles());
        let (admin, trouble) = self.parts.admin_key.look(desired.admin.as_ref());
        send_changed(&self.parts.admin, admin);
        troubles.extend(trouble);
        troubles
    }

    fn renew_key_sets(&mut self) {
        self.key_sets.ask();
    }

    fn certificate(&self) -> Option<(Facts, Source)> {
        let in_force = self.parts.in_force.borrow().clone();
        let settings = in_force.unwrap_or_else(|| self.parts.settings.borrow().clone());
        Some((Facts::of(&settings.tls_cert_pem)?, settings.front.source))
    }

    fn ask_for_certificates(&mut self, acme: Option<&Acme>, ends: bool) {
        let wanted = acme.filter(|_| !ends);
        if wanted == self.acme.as_ref().map(acme::Running::acme) {
            return;
        }
        let reports = self.reports.clone();
        let report = move |news| {
            // The loop is gone only when the agent ends.
            let _ = reports.send(Event::Acme(news));
        };
        let (state_dir, in_force) = (self.parts.state_dir.clone(), self.parts.in_force.clone());
        self.acme = wanted.map(|acme| acme::Running::start(acme.clone(), state_dir, in_force, report));
    }

    fn back_up(&mut self, job: Job) {
        let reports = self.reports.clone();
        let report = move |report| {
            // The loop is gone only when the agent ends.
            let _ = reports.send(Event::BackedUp(report));
        };
        let number = job.number;
        // The one before has reported, so waiting for its thread is no waiting.
        self.backup = None;
        match backup::start(job, self.parts.state_dir.clone(), report) {
            Ok(running) => self.backup = Some(running),
            Err(error) => {
                let report = Report {
                    number,
                    seen: false,
                    backup: Err(format!("no thread for it: {error}")),
                    prune: None,
                    check: None,
                    test_restore: None,
                };
                let _ = self.reports.send(Event::BackedUp(report));
            }
        }
    }

    fn sync(&mut self, job: gitops::Job) {
        let reports = self.reports.clone();
        let number = job.number;
        // The loop is gone only when the agent ends.
        let report = move |report| drop(reports.send(Event::Synced(report)));
        // The one before has reported, so waiting for its thread is no waiting.
        self.sync = None;
        match gitops::start(job, self.parts.file.clone(), self.parts.state_dir.clone(), report) {
            Ok(running) => self.sync = Some(running),
            Err(error) => {
                let outcome = gitops::Outcome::Failed(format!("no thread for it: {error}"));
                let _ = self.reports.send(Event::Synced(gitops::Report { number, outcome }));
            }
        }
    }

    fn host_memory(&mut self) -> Option<Share> {
        alerts::host_memory()
    }

    fn host_cpu(&mut self) -> Option<CpuTicks> {
        CpuTicks::parse(&std::fs::read_to_string("/proc/stat").ok()?)
    }

    fn alert_channels(&self, alerts: &Alerts) -> Vec<Channel> {
        alerts::send::channels(alerts)
    }

    fn alert_mark(&mut self, channel: Channel, alerts: &Alerts) -> Option<[u8; 32]> {
        alerts::send::mark(channel, alerts)
    }

    fn send_alert(&mut self, channel: Channel, alert: Alert, alerts: &Alerts) {
        let (reports, sender, number) = (self.reports.clone(), self.sender.clone(), alert.number);
        // The loop is gone only when the agent ends.
        let report = move |outcome| drop(reports.send(Event::Alerted(channel, number, outcome)));
        match (channel, &alerts.exec) {
            (Channel::Exec, Some(program)) => {
                // The one before has reported, so waiting for its thread is no waiting.
                self.alert = None;
                let (program, failed) = (program.clone(), report.clone());
                match Running::start("alert", move |cancel| report(alerts::send::run(&alert, &program, &sender, cancel))) {
                    Ok(running) => self.alert = Some(running),
                    Err(error) => failed(alerts::Outcome::Failed(format!("no thread for it: {error}"))),
                }
            }
            _ => {
                let alerts = alerts.clone();
                self.tasks.spawn(async move { report(alerts::send::post(channel, &alert, &alerts, &sender).await) });
            }
        }
    }

    fn find_program(&mut self, source: &SqSource, pause: Duration) {
        let (source, state_dir, reports) = (source.clone(), self.parts.state_dir.clone(), self.reports.clone());
        self.tasks.spawn(async move {
            tokio::time::sleep(pause).await;
            let found = binary::ensure(&source, &state_dir, &|line| tracing::info!("{line}")).await;
            // The loop is gone only when the agent ends.
            let _ = reports.send(Event::Program(source.identity(), found.map_err(|error| error.to_string())));
        });
    }

    fn scan(&mut self) -> io::Result<Vec<Found>> {
        scan::scan(&self.parts.state_dir)
    }

    fn adopt(&mut self, found: &Found) -> io::Result<Option<Arc<Process>>> {
        Ok(Process::adopt(found.pid, found.start_time)?.map(Arc::new))
    }

    fn start(&mut self, start: Start) {
        let Start { id, slot, epoch, port, program, limits } = start;
        let key = instance_key::derive(&self.parts.instance_secret, &id, epoch);
        let spec = SpawnSpec { user_dir: self.user_dir(&id), id, slot, limits, binary: program, port, key };
        self.tasks.spawn(lifecycle::start(self.parts.launcher.clone(), epoch, spec, self.tasks.gate(), self.reports.clone()));
    }

    fn drain_and_stop(&mut self, drain: Drain<Arc<Process>>) {
        self.tasks.spawn(lifecycle::drain_and_stop(drain, self.parts.activity.clone(), self.reports.clone()));
    }

    fn drain_unproved(&mut self, unproved: Unproved<Arc<Process>>) {
        self.tasks.spawn(lifecycle::drain_unproved(unproved, self.parts.activity.clone(), self.reports.clone()));
    }

    fn stop_strays(&mut self, _id: &TenantId, processes: Vec<Arc<Process>>) {
        self.tasks.spawn(async move {
            lifecycle::stop_all(&processes).await;
        });
    }

    fn look(&mut self, id: &TenantId, number: u64, epoch: u64, found: Option<Vec<Found>>) {
        let (id, secret, reports) = (id.clone(), self.parts.instance_secret.clone(), self.reports.clone());
        let network = self.parts.launcher.network();
        match found {
            Some(found) => self.tasks.spawn(lifecycle::look(network, id, number, epoch, secret, found, reports)),
            None => self.tasks.spawn(lifecycle::scan_and_look(network, id, number, epoch, secret, self.parts.state_dir.clone(), reports)),
        }
    }

    fn watch(&mut self, id: &TenantId, epoch: u64, process: &Arc<Process>) {
        self.tasks.spawn(lifecycle::watch(self.parts.launcher.clone(), id.clone(), epoch, process.clone(), self.reports.clone()));
        crash_point::reached("adopt.watched");
    }

    fn survey(&mut self, desired: &Desired, instances: HashMap<u32, Option<Memory>>, storage: Vec<TenantId>) {
        let user_dirs = desired.tenants.keys().map(|id| (id.clone(), self.user_dir(id))).collect();
        let survey = lifecycle::survey(self.parts.state_dir.clone(), user_dirs, instances, storage, self.reports.clone());
        let gate = self.tasks.gate();
        self.tasks.spawn(async move {
            // Cancelled only when nobody waits for the news any more.
            let _ = tokio::task::spawn_blocking(move || gate.pass(survey)).await;
        });
    }

    fn measure(&mut self, instances: HashMap<u32, Option<Memory>>) {
        let (reports, gate) = (self.reports.clone(), self.tasks.gate());
        let measure = move || {
            let measured = instances.into_iter().filter_map(|(pid, last)| Some((pid, usage::memory(pid, last).ok()?))).collect();
            // The loop is gone only when the agent ends.
            let _ = reports.send(Event::Measured(measured));
        };
        self.tasks.spawn(async move {
            // Cancelled only when nobody waits for the news any more.
            let _ = tokio::task::spawn_blocking(move || gate.pass(measure)).await;
        });
    }

    fn disk(&mut self) -> Option<DiskSpace> {
        storage::space(&self.parts.state_dir).inspect_err(|error| tracing::warn!(%error, "the room on the disk cannot be told")).ok()
    }

    fn keep(&mut self, number: u64, id: &TenantId, reason: Reason, keep: &Snapshots) {
        let order = SnapshotOrder { user_dir: self.user_dir(id), reason, keep: keep.clone(), now: unix_now() };
        self.tasks.spawn(lifecycle::keep(number, id.clone(), order, self.tasks.gate(), self.reports.clone()));
    }

    fn restore(&mut self, id: &TenantId, restore: &Restore, keep: &Snapshots) {
        let Restore { number, from, name, file } = restore.clone();
        let (from, to) = (self.user_dir(&from), self.user_dir(id));
        let order = RestoreOrder { from, name, file, to, keep: keep.clone(), now: unix_now() };
        self.tasks.spawn(lifecycle::restore(number, id.clone(), order, self.tasks.gate(), self.reports.clone()));
    }

    fn signal(&mut self, process: &Arc<Process>, signal: StopSignal) -> io::Result<()> {
        process.signal(signal)
    }

    fn probe_port(&mut self, port: u16) -> PortState {
        ports::probe_free(&self.parts.launcher.network(), port)
    }

    fn ask(&mut self, id: &TenantId, epoch: u64, port: u16, now: Moment) {
        self.asking += 1;
        self.pulse.ask((id.clone(), epoch), port, now);
    }

    fn is_asking(&self) -> bool {
        self.asking > 0
    }

    fn answers(&mut self, now: Moment) -> Vec<((TenantId, u64), bool)> {
        let answers = self.pulse.collect(now);
        self.asking -= answers.len();
        answers
    }

    fn publish(&mut self, rows: &[Row]) -> Result<(), TableError> {
        crash_point::reached("publish.before");
        self.parts.table.publish(rows).map(drop).inspect(|()| crash_point::reached("publish.after"))
    }

    fn published(&self, id: &TenantId) -> Option<Route> {
        self.parts.table.lookup(id.as_str())
    }

    fn heartbeat(&mut self) {
        (self.parts.alive)();
        self.parts.table.heartbeat(u64::try_from(monotonic().as_nanos()).unwrap_or(u64::MAX));
    }

    fn generation(&self) -> u64 {
        self.parts.table.generation()
    }

    fn last_answer(&self, slot: u32) -> Option<u32> {
        self.parts.activity.slot(slot).and_then(|slot| slot.snapshot().last_answer)
    }

    fn requests(&self, slot: u32) -> u64 {
        self.parts.activity.slot(slot).map_or(0, |slot| slot.snapshot().requests)
    }

    fn activity(&self, slot: u32) -> Option<SlotSnapshot> {
        self.parts.activity.slot(slot).map(SlotActivity::snapshot)
    }

    fn activity_born(&self) -> u64 {
        self.parts.activity.born()
    }

    fn requests_on(&self, slot: u32, day: u32) -> u32 {
        self.parts.activity.slot(slot).map_or(0, |slot| slot.admitted_on(day))
    }

    fn lost_log_lines(&self) -> u64 {
        self.parts.activity.lost_lines()
    }

    fn isolation(&self) -> Option<Isolation> {
        Some(self.parts.launcher.isolation())
    }

    fn limits_memory(&self) -> bool {
        self.parts.launcher.cgroups().is_some_and(|cgroups| cgroups.controllers().memory.is_on())
    }

    fn apply_limits(&mut self, id: &TenantId, limits: &CgroupLimits) -> Result<Applied, String> {
        match self.parts.launcher.cgroups() {
            Some(cgroups) => cgroups.apply(id, limits).map_err(|error| error.to_string()),
            None => Ok(Applied::Now),
        }
    }

    fn is_in_doubt(&mut self, id: &TenantId) -> bool {
        guard::is_in_doubt(&self.user_dir(id)).unwrap_or_else(|error| {
            tracing::warn!(tenant = %id, %error, "whether a write is in doubt cannot be told");
            false
        })
    }

    fn let_go(&mut self, id: &TenantId) {
        if let Some(Err(error)) = self.parts.launcher.cgroups().map(|cgroups| cgroups.remove(id)) {
            tracing::warn!(tenant = %id, %error, "its cgroup stays");
        }
        crash_point::reached("remove.cgroup");
    }

    fn place_proxy(&mut self, pid: u32) {
        if let Some(Err(error)) = self.parts.launcher.cgroups().map(|cgroups| cgroups.place_proxy(pid)) {
            tracing::warn!(pid, %error, "the proxy stays in the agent's cgroup");
        }
    }

    fn reset_slot(&mut self, slot: u32) {
        if let Some(slot) = self.parts.activity.slot(slot) {
            slot.reset();
        }
        self.parts.meters.reset(slot);
    }

    fn reserve_slot(&mut self, slot: u32) {
        if let Err(error) = self.parts.meters.reserve(slot)
            && !std::mem::replace(&mut self.uncounted, true)
        {
            tracing::warn!(%error, "what the latest tenants do is missing in /metrics until the agent starts anew: make /dev/shm larger");
        }
    }

    fn count(&mut self, slot: u32, what: Happened) {
        self.parts.meters.slot(slot).into_iter().for_each(|slot| slot.note(what));
    }

    fn count_cpu(&mut self, slot: u32, epoch: u64, used_us: u64) {
        self.parts.meters.slot(slot).into_iter().for_each(|slot| slot.note_cpu(epoch, used_us));
    }
}

/// Sends `new` where it says something new.
fn send_changed<T: PartialEq>(to: &watch::Sender<T>, new: T) {
    to.send_if_modified(|sent| {
        let changed = *sent != new;
        if changed {
            *sent = new;
        }
        changed
    });
}
