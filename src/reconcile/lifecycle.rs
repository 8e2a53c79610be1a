//! The tasks that carry out one action each: start, drain and stop, look. They hold no decision; they report to the loop.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::mpsc::UnboundedSender, time::Instant};

use super::{
    event::{Change, Drain, Event, Look, NotKept, NotStarted, Survey, Unproved},
    tasks::Gate,
};
use crate::{
    crash_point,
    desired::{self, TenantId},
    guard::{self, Directory, Lane},
    instance::{
        launcher::Launcher,
        log,
        network::Network,
        ports::{self, PortState},
        probe::{self, KeyedAnswer, NotReady, ProbeError},
        process::{Exit, Process},
        scan::{self, Found},
        spawn::SpawnSpec,
        stop,
        storage::{self, Stored},
        usage::{self, Memory},
    },
    instance_key,
    route::Activity,
    secret::Secret,
    snapshot::{self, RestoreOrder, SnapshotOrder},
};

/// An sq that is not ready by then is broken: the p99 of a start is about 20 ms alone and 300 ms in a crowd (sq-facts).
const READY_WITHIN: Duration = Duration::from_secs(10);
/// How long a stop waits for the requests in flight.
const DRAIN: Duration = Duration::from_secs(10);
/// Between TERM and KILL.
const TERM_GRACE: Duration = Duration::from_secs(5);
/// A killed process that is still there after this is stuck in the kernel.
const GONE_WITHIN: Duration = Duration::from_secs(10);
/// A log is rotated beyond this size, bytes.
const LOG_MAX: u64 = 10 << 20;
/// How often a drain looks at the requests in flight.
const DRAIN_POLL: Duration = Duration::from_millis(5);
/// For measuring what phexts take, at one look: no longer than a handover may wait.
const MEASURING: Duration = Duration::from_millis(250);
/// For one probe of an instance that should be up.
const PROBE: Duration = Duration::from_secs(3);

/// Where a task reports to.
pub(super) type Reports = UnboundedSender<Event<Arc<Process>>>;

/// Starts an instance, proves it, then waits for its end. One task an instance, for its whole life.
pub(super) async fn start(launcher: Launcher, epoch: u64, spec: SpawnSpec, gate: Gate, reports: Reports) {
    let id = spec.id.clone();
    let report = |change| {
        // The loop is gone only when the agent ends.
        let _ = reports.send(Event::Instance(id.clone(), epoch, change));
    };
    let (port, key) = (spec.port, spec.key.clone());
    let (network, born_by) = (launcher.network(), launcher.clone());
    let undone = reports.clone();
    let birth = move || -> Result<_, String> {
        undo(&spec.user_dir, &spec.id, &undone)?;
        let process = born_by.launch(&spec).map_err(|error| error.to_string())?;
        Ok((process, memory_kills(&born_by, &spec.id)))
    };
    let (process, kills) = match tokio::task::spawn_blocking(move || gate.pass(birth)).await {
        Ok(Some(Ok((process, kills)))) => (Arc::new(process), kills),
        Ok(None) => return, // halted before it began
        Ok(Some(Err(error))) => return report(Change::NotStarted(NotStarted::Failed(error))),
        Err(error) => return report(Change::NotStarted(NotStarted::Failed(error.to_string()))),
    };
    crash_point::reached("start.launched");
    report(Change::Spawned(process.clone()));
    match probe::until_ready(&network, &process, port, &key, Instant::now() + READY_WITHIN).await {
        Ok(()) => {
            crash_point::reached("start.proved");
            report(Change::Ready);
        }
        Err(not_ready) => {
            stop::stop(&process, Duration::ZERO).await;
            let for_memory = memory_kills(&launcher, &id) > kills;
            return report(Change::NotStarted(if for_memory { NotStarted::OutOfMemory } else { why(not_ready, &network, port) }));
        }
    }
    report(end_of(&launcher, &id, kills, process.exited().await));
}

/// How often the kernel has killed in the tenant's cgroup for its memory limit; 0 where that is not counted.
fn memory_kills(launcher: &Launcher, id: &TenantId) -> u64 {
    let figures = launcher.cgroups().and_then(|cgroups| cgroups.memory(id).ok().flatten());
    figures.map_or(0, |figures| figures.events.oom_kill)
}

fn end_of(launcher: &Launcher, id: &TenantId, kills_before: u64, exit: Exit) -> Change<Arc<Process>> {
    // An exit that nobody could see may have been such a kill as well.
    let killed = matches!(exit, Exit::Signal(libc::SIGKILL) | Exit::Unknown);
    if killed && memory_kills(launcher, id) > kills_before { Change::OutOfMemory } else { Change::Exited(exit) }
}

fn why(not_ready: NotReady, network: &Network, port: u16) -> NotStarted {
    match not_ready {
        NotReady::PortTaken { .. } => NotStarted::PortTaken,
        // sq panics when somebody else holds its port (sq-facts): then this is not its fault.
        NotReady::Exited(_) if matches!(ports::probe_free(network, port), PortState::Taken { .. }) => NotStarted::PortTaken,
        // As of any other exit: "crash-looping: exit 101, next try in 8 s" is what people and scripts know.
        NotReady::Exited(exit) => NotStarted::Failed(exit.to_string()),
        other => NotStarted::Failed(other.to_string()),
    }
}

/// Waits for the end of an instance that an earlier agent started.
pub(super) async fn watch(launcher: Launcher, id: TenantId, epoch: u64, process: Arc<Process>, reports: Reports) {
    let kills = memory_kills(&launcher, &id);
    let end = end_of(&launcher, &id, kills, process.exited().await);
    let _ = reports.send(Event::Instance(id, epoch, end));
}

/// Waits until nothing is in flight for `slot` (the row says `draining` already), then ends the process.
///
/// The exit itself is reported by the task that waits for it.
pub(super) async fn drain_and_stop(drain: Drain<Arc<Process>>, activity: Arc<Activity>, reports: Reports) {
    let Drain { id, epoch, process, slot } = drain;
    if !drained(&activity, slot, DRAIN).await {
        tracing::warn!(tenant = %id, epoch, "requests are still in flight after {} s: the instance is stopped all the same", DRAIN.as_secs());
    }
    crash_point::reached("stop.drained");
    let ended = tokio::time::timeout(TERM_GRACE + GONE_WITHIN, stop::stop(&process, TERM_GRACE)).await;
    crash_point::reached("stop.ended");
    if ended.is_err() {
        let _ = reports.send(Event::Instance(id, epoch, Change::Immortal));
    }
}

/// Whether nothing was in flight for `slot` at some moment within `patience`.
async fn drained(activity: &Activity, slot: u32, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        if activity.in_flight(slot) == 0 {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        tokio::time::sleep(DRAIN_POLL).await;
    }
}

/// Finds out whether one of `found` is the instance that the record `(epoch, key)` names, and which are not.
#[allow(clippy::too_many_arguments)] // what a look is made of; a struct for it would be named after nothing
pub(super) async fn look(network: Network, id: TenantId, number: u64, epoch: u64, secret: Secret, found: Vec<Found>, reports: Reports) {
    let look = look_at(&network, &id, epoch, &secret, found).await;
    crash_point::reached("adopt.looked");
    let _ = reports.send(Event::Looked(id, number, look));
}

async fn look_at(network: &Network, id: &TenantId, epoch: u64, secret: &Secret, found: Vec<Found>) -> Look<Arc<Process>> {
    let key = instance_key::derive(secret, id, epoch);
    let mut processes = Vec::new();
    for found in found {
        let process = match Process::adopt(found.pid, found.start_time) {
            Ok(Some(process)) => Arc::new(process),
            Ok(None) => continue,
            Err(error) => return Look::Failed(format!("pid {}: {error}", found.pid)),
        };
        let proved = found.key == key && answers(network, found.port, &key).await;
        processes.push((process, found.port, proved));
    }
    Look::of(epoch, processes)
}

/// Whether what listens on `port` takes `key`. One that is too busy to answer in time is left to the liveness probes.
async fn answers(network: &Network, port: u16, key: &str) -> bool {
    matches!(probe::keyed(network, port, key, PROBE).await, Ok(KeyedAnswer::Mine) | Err(ProbeError::Timeout(_)))
}

/// Waits until nothing is in flight, then ends every process of a tenant that nothing proves to be ours, and reports the last
/// exit as that of epoch 0.
pub(super) async fn drain_unproved(unproved: Unproved<Arc<Process>>, activity: Arc<Activity>, reports: Reports) {
    let Unproved { id, processes, slot } = unproved;
    drained(&activity, slot, DRAIN).await;
    if let Some(exit) = stop_all(&processes).await {
        let _ = reports.send(Event::Instance(id, 0, Change::Exited(exit)));
    }
}

/// Ends them one after the other; returns how the last one ended.
pub(super) async fn stop_all(processes: &[Arc<Process>]) -> Option<Exit> {
    let mut exit = None;
    for process in processes {
        exit = Some(stop::stop(process, TERM_GRACE).await);
    }
    exit
}

/// Nothing of the tenant runs: what a broken write left is put back before anything else is done with its files.
fn undo(user_dir: &Path, id: &TenantId, reports: &Reports) -> Result<(), String> {
    if let Some(recovered) = guard::recover(user_dir).map_err(|error| error.to_string())? {
        let _ = reports.send(Event::Undone(id.clone(), recovered));
    }
    Ok(())
}

/// Takes a snapshot.
pub(super) async fn keep(number: u64, id: TenantId, order: SnapshotOrder, gate: Gate, reports: Reports) {
    let (undone, whose) = (reports.clone(), id.clone());
    let work = move || {
        if order.reason.is_at_rest() {
            undo(&order.user_dir, &whose, &undone).map_err(|why| NotKept { no_room: false, why })?;
        }
        snapshot::take(&order).map_err(|error| NotKept { no_room: error.is_no_room(), why: error.to_string() })
    };
    let taken = match tokio::task::spawn_blocking(move || gate.pass(work)).await {
        Ok(Some(taken)) => taken,
        Ok(None) => return, // halted before it began
        Err(error) => Err(NotKept { no_room: false, why: error.to_string() }),
    };
    let _ = reports.send(Event::Kept(number, id, taken));
}

/// Puts a snapshot back.
pub(super) async fn restore(number: u64, id: TenantId, order: RestoreOrder, gate: Gate, reports: Reports) {
    let (undone, whose) = (reports.clone(), id.clone());
    let work = move || {
        undo(&order.to, &whose, &undone)?;
        snapshot::restore(&order).map_err(|error| error.to_string())
    };
    let restored = match tokio::task::spawn_blocking(move || gate.pass(work)).await {
        Ok(Some(restored)) => restored,
        Ok(None) => return, // halted before it began
        Err(error) => Err(error.to_string()),
    };
    crash_point::reached("restore.told");
    let _ = reports.send(Event::Restored(number, id, restored));
}

/// Scans for the processes of `id`, then looks at them.
pub(super) async fn scan_and_look(
    network: Network,
    id: TenantId,
    number: u64,
    epoch: u64,
    secret: Secret,
    state_dir: PathBuf,
    reports: Reports,
) {
    let found = tokio::task::spawn_blocking(move || scan::scan(&state_dir)).await;
    let look = match found {
        Ok(Ok(found)) => look_at(&network, &id, epoch, &secret, found.into_iter().filter(|found| found.id == id).collect()).await,
        Ok(Err(error)) => Look::Failed(error.to_string()),
        Err(error) => Look::Failed(error.to_string()),
    };
    let _ = reports.send(Event::Looked(id, number, look));
}

/// A look at all that runs beside the `instances` (by process id, with what was last measured and may still hold), blocking;
/// measures those, and what the phexts of `storage` take, and rotates the logs on the way.
pub(super) fn survey(
    state_dir: PathBuf,
    user_dirs: Vec<(TenantId, PathBuf)>,
    instances: HashMap<u32, Option<Memory>>,
    storage: Vec<TenantId>,
    reports: Reports,
) -> impl FnOnce() {
    move || {
        let rotate = |log: PathBuf| {
            if let Err(error) = log::rotate_if_needed(&log, LOG_MAX) {
                tracing::warn!(log = %log.display(), %error, "a log cannot be rotated");
            }
        };
        rotate(state_dir.join("proxy.log"));
        let mut in_doubt = Vec::new();
        for (id, dir) in user_dirs {
            // Its guard reads what sq says between the begin and the end of a write. One that writes all the time is rotated some other time.
            if log::is_due(&dir.join("sq.log"), LOG_MAX).unwrap_or(true)
                && let Some(_lane) = Directory::open(&dir).ok().and_then(|dir| Lane::try_take(&dir).ok()?)
            {
                rotate(dir.join("sq.log"));
            }
            if guard::is_in_doubt(&dir).unwrap_or(false) {
                in_doubt.push(id);
            }
        }
        let memory = instances.iter().filter_map(|(&pid, &last)| Some((pid, usage::memory(pid, last).ok()?))).collect();
        let cpu = instances.keys().filter_map(|&pid| Some((pid, usage::cpu_us(pid).ok()?))).collect();
        let found = scan::scan_strangers(&state_dir, |pid| instances.contains_key(&pid)).unwrap_or_else(|error| {
            tracing::warn!(%error, "/proc cannot be read");
            Vec::new()
        });
        let storage = measure_storage(&state_dir, storage);
        let _ = reports.send(Event::Surveyed(Survey { found, memory, cpu, in_doubt, storage }));
    }
}

/// What the phexts of these take. At a first look at a disk that has just begun to turn this may take long; what is not done in time is done at the next.
fn measure_storage(state_dir: &Path, tenants: Vec<TenantId>) -> Vec<(TenantId, Stored)> {
    let began = Instant::now();
    let mut measured = Vec::with_capacity(tenants.len());
    for id in tenants {
        if began.elapsed() > MEASURING {
            break;
        }
        match storage::measure(&desired::user_dir(state_dir, &id)) {
            Ok(stored) => measured.push((id, stored)),
            Err(error) => tracing::warn!(tenant = %id, %error, "what its phexts take cannot be told"),
        }
    }
    measured
}
