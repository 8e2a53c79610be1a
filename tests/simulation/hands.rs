//! The world that the loop is given: each call reaches the simulated host, or is the agent's last.

use std::{collections::HashMap, io, time::Duration};

use sq_agent::{
    alerts::{Alert, Channel, News, Outcome, Share},
    backup::Job,
    certificate::Facts,
    desired::{Acme, Alerts, Desired, Snapshots, SqSource, TenantId},
    gitops,
    history::sample::CpuTicks,
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
    reconcile::{
        event::{Change, Drain, Event, Unproved},
        world::{Refusal, Start, World},
    },
    route::{Happened, Route, Row, SlotSnapshot, TableError},
    snapshot::Reason,
};

use crate::{
    calls::Call,
    check,
    records::SimRecords,
    state::{Asked, Ending, Next, Shared, SimProcess, State, Watcher, owned, trace},
};

/// How long a stop waits for the requests in flight, ms.
const DRAIN: u64 = 10_000;

/// One agent's view of the host.
pub(crate) struct SimWorld {
    records: SimRecords,
}

impl SimWorld {
    pub(crate) fn new(state: Shared) -> Self {
        Self { records: SimRecords(state) }
    }

    /// A call that changes something outside the agent.
    fn act<R>(&self, call: Call, act: impl FnOnce(&mut State) -> R) -> R {
        self.records.call(call, true, act)
    }

    /// A call that only asks.
    fn ask_of<R>(&self, call: Call, ask: impl FnOnce(&mut State) -> R) -> R {
        self.records.call(call, false, ask)
    }
}

impl World for SimWorld {
    type Process = SimProcess;
    type Records = SimRecords;

    fn records(&mut self) -> &mut SimRecords {
        &mut self.records
    }

    fn unix_now(&self) -> u64 {
        self.records.0.borrow().unix_now()
    }

    fn jitter(&mut self) -> f64 {
        self.ask_of(Call::Jitter, |state| {
            state.coverage.hit("back_off");
            state.rng.below(1_001) as f64 / 1_000.0
        })
    }

    fn fingerprint(&mut self) -> Option<[u8; 32]> {
        self.ask_of(Call::Fingerprint, |state| {
            let mut print = [u8::from(state.file.broken); 32];
            print[..4].copy_from_slice(&state.file.version.to_le_bytes());
            Some(print)
        })
    }

    fn load(&mut self) -> Result<(Desired, String), Refusal> {
        self.ask_of(Call::LoadFile, |state| {
            if state.file.broken {
                state.coverage.hit("refused_file");
                let text = "broken".to_owned();
                return Err(Refusal { summary: text.clone(), text });
            }
            Ok((Desired::clone(&state.file.wanted), state.file.wanted.hash.clone()))
        })
    }

    fn save_last_good(&mut self, text: &str) -> Result<(), String> {
        self.act(Call::SaveLastGood, |state| {
            trace!(state, "version {text} is in force");
            state.last_good = state.versions.get(text).cloned();
            Ok(())
        })
    }

    fn renew_settings(&mut self, _desired: &Desired) -> Vec<String> {
        // Files are read at each look, and nothing is handed on where none has changed.
        self.ask_of(Call::RenewSettings, |_| Vec::new())
    }

    fn renew_key_sets(&mut self) {}
    fn certificate(&self) -> Option<(Facts, Source)> {
        None
    }

    fn ask_for_certificates(&mut self, acme: Option<&Acme>, _ends: bool) {
        assert!(acme.is_none(), "no simulated host has [proxy.acme]");
    }

    fn host_memory(&mut self) -> Option<Share> {
        None
    }

    fn host_cpu(&mut self) -> Option<CpuTicks> {
        None
    }

    fn alert_channels(&self, _alerts: &Alerts) -> Vec<Channel> {
        vec![Channel::Webhook]
    }

    fn alert_mark(&mut self, _channel: Channel, _alerts: &Alerts) -> Option<[u8; 32]> {
        None
    }

    fn send_alert(&mut self, channel: Channel, alert: Alert, _alerts: &Alerts) {
        self.ask_of(Call::SendAlert, |state| {
            let chance = if state.quiet { 9 } else { state.rng.below(10) };
            let arrives = chance > 0;
            for item in alert.items.iter().filter(|_| arrives) {
                trace!(state, "alert {}: {} {:?}", alert.number, item.news.word(), item.key);
                state.coverage.hit(if item.news == News::Resolved { "alert_resolved" } else { "alert_raised" });
                state.heard.insert(item.key.clone(), item.news != News::Resolved);
                state.forgotten.remove(&item.key);
                if let Some(unkept) = &mut state.unkept {
                    unkept.insert(item.key.clone());
                }
            }
            let outcome = match chance {
                0 | 1 => Outcome::Failed("no answer".into()),
                2 => Outcome::Wait(Duration::from_secs(2), "too much".into()),
                _ => Outcome::Delivered(Duration::from_millis(400)),
            };
            if chance < 2 {
                state.coverage.hit(if arrives { "alert_answer_lost" } else { "alert_lost" });
            }
            let takes = state.rng.between(1, 5_000);
            state.after(takes, Next::Alerted(state.agent, channel, alert.number, outcome));
        });
    }

    fn measure(&mut self, _instances: HashMap<u32, Option<Memory>>) {}

    fn find_program(&mut self, source: &SqSource, pause: Duration) {
        self.act(Call::FindProgram, |state| {
            let takes = state.rng.between(1, 500);
            let pause = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
            state.after(pause + takes, Next::ProgramFound(state.agent, source.clone()));
        });
    }

    fn scan(&mut self) -> io::Result<Vec<Found>> {
        self.ask_of(Call::Scan, |state| Ok(found(state)))
    }

    fn adopt(&mut self, found: &Found) -> io::Result<Option<SimProcess>> {
        self.act(Call::Adopt, |state| Ok(state.procs.contains_key(&found.pid).then_some(SimProcess { pid: found.pid })))
    }

    fn start(&mut self, start: Start) {
        self.act(Call::Start, |state| {
            trace!(state, "start {} epoch {} port {}", start.id, start.epoch, start.port);
            state.starting.insert((start.id.clone(), start.epoch));
            if state.doubts.remove(&start.id) {
                trace!(state, "what a write of {} left is put back", start.id);
                state.coverage.hit("write_undone");
            }
            check::start(state, &start);
            let delay = state.rng.below(30);
            state.after(delay, Next::Spawn(state.agent, start));
        });
    }

    fn drain_and_stop(&mut self, drain: Drain<SimProcess>) {
        self.act(Call::Drain, |state| {
            trace!(state, "drain {} epoch {}", drain.id, drain.epoch);
            let deadline = state.now + DRAIN;
            state.after(0, Next::DrainLooks(state.agent, drain, deadline));
        });
    }

    fn drain_unproved(&mut self, unproved: Unproved<SimProcess>) {
        self.act(Call::DrainUnproved, |state| {
            trace!(state, "drain unproved of {}: {:?}", unproved.id, unproved.processes);
            state.coverage.hit("unproved");
            let deadline = state.now + DRAIN;
            state.after(0, Next::UnprovedLooks(state.agent, unproved, deadline));
        });
    }

    fn stop_strays(&mut self, id: &TenantId, processes: Vec<SimProcess>) {
        self.act(Call::StopStrays, |state| {
            trace!(state, "stop strays of {id}: {processes:?}");
            state.after(0, Next::EndOne(state.agent, Ending { id: id.clone(), left: processes, told: false, deadline: 0 }));
        });
    }

    fn look(&mut self, id: &TenantId, number: u64, epoch: u64, found: Option<Vec<Found>>) {
        self.act(Call::Look, |state| {
            trace!(state, "look for {id} epoch {epoch}");
            let takes = state.rng.between(0, 20);
            state.after(takes, Next::LookNow(state.agent, id.clone(), (number, epoch), found));
        });
    }

    fn watch(&mut self, id: &TenantId, epoch: u64, process: &SimProcess) {
        self.act(Call::Watch, |state| {
            let agent = state.agent;
            trace!(state, "adopted {id} epoch {epoch} pid {}", process.pid);
            state.coverage.hit("adopted");
            match state.procs.get_mut(&process.pid) {
                Some(proc) => proc.watchers.push(Watcher::Instance { agent, id: id.clone(), epoch }),
                None => state.send(agent, Some(id), Event::Instance(id.clone(), epoch, Change::Exited(sq_agent::instance::Exit::Unknown))),
            }
        });
    }

    fn survey(&mut self, _desired: &Desired, instances: HashMap<u32, Option<Memory>>, _storage: Vec<TenantId>) {
        self.ask_of(Call::Survey, |state| {
            let takes = state.rng.between(0, 200);
            state.after(takes, Next::SurveyNow(state.agent, instances.into_keys().collect()));
        });
    }

    fn keep(&mut self, number: u64, id: &TenantId, reason: Reason, _keep: &Snapshots) {
        // By the hour also where everything is as desired.
        self.ask_of(Call::Keep, |state| {
            trace!(state, "keep {id}: {reason}");
            let hit = match reason {
                Reason::Hourly => "kept_by_the_hour",
                Reason::BeforeRemoval => "kept_before_removal",
                Reason::BeforeSuspension => "kept_before_suspension",
                Reason::BeforeProgramChange => "kept_before_program_change",
                Reason::BeforeRestore | Reason::Asked => "kept_otherwise",
            };
            state.coverage.hit(hit);
            if matches!(reason, Reason::BeforeRemoval | Reason::BeforeSuspension | Reason::BeforeProgramChange) {
                check::untouched(state, id, "kept");
                state.at_files.insert(id.clone());
            }
            let takes = state.rng.between(1, 800);
            state.after(takes, Next::Kept(state.agent, number, id.clone()));
        });
    }

    fn restore(&mut self, id: &TenantId, restore: &Restore, _keep: &Snapshots) {
        self.act(Call::Restore, |state| {
            trace!(state, "restore {id} as {} had it", restore.from);
            check::untouched(state, id, "restored");
            state.at_files.insert(id.clone());
            let takes = state.rng.between(1, 3_000);
            state.after(takes, Next::Restored(state.agent, restore.number, id.clone()));
        });
    }

    fn signal(&mut self, process: &SimProcess, _signal: StopSignal) -> io::Result<()> {
        self.act(Call::Signal, |state| {
            state.terminate(process.pid, true);
            Ok(())
        })
    }

    fn probe_port(&mut self, port: u16) -> PortState {
        self.ask_of(Call::ProbePort, |state| {
            let taken = state.stranger_on(port) || state.listener(port).is_some();
            if taken {
                trace!(state, "port {port} is taken");
                PortState::Taken { by: "somebody".into() }
            } else {
                PortState::Free
            }
        })
    }

    fn ask(&mut self, id: &TenantId, epoch: u64, port: u16, now: Moment) {
        self.ask_of(Call::Ask, |state| state.asked.push(Asked { id: id.clone(), epoch, port, at: now.as_millis() }));
    }

    fn is_asking(&self) -> bool {
        !self.records.0.borrow().asked.is_empty()
    }

    fn answers(&mut self, now: Moment) -> Vec<((TenantId, u64), bool)> {
        self.ask_of(Call::Answers, |state| {
            const LIMIT: u64 = 3_000;
            let mut known = Vec::new();
            for asked in std::mem::take(&mut state.asked) {
                let answer = match state.listener(asked.port) {
                    Some(proc) if proc.hangs => (now.as_millis() >= asked.at + LIMIT).then_some(false),
                    Some(_) => Some(true),
                    None => Some(state.stranger_on(asked.port)),
                };
                match answer {
                    Some(answer) => known.push(((asked.id, asked.epoch), answer)),
                    None => state.asked.push(asked),
                }
            }
            known
        })
    }

    fn publish(&mut self, rows: &[Row]) -> Result<(), TableError> {
        self.act(Call::Publish, |state| {
            if state.until.publish_fails > state.now {
                state.coverage.hit("publish_failed");
                return Err(TableError::Layout { what: "a fault" });
            }
            for row in rows {
                if !state.table.contains(row) {
                    trace!(state, "row {} {:?} epoch {} port {}", row.id, row.state, row.epoch, row.port);
                }
            }
            rows.clone_into(&mut state.table);
            state.generation += 1;
            check::ready_rows(state);
            Ok(())
        })
    }

    fn heartbeat(&mut self) {
        self.ask_of(Call::Heartbeat, |_| ());
    }

    fn generation(&self) -> u64 {
        self.records.0.borrow().generation
    }

    fn last_answer(&self, slot: u32) -> Option<u32> {
        self.records.0.borrow().last_answer.get(&slot).copied()
    }

    fn requests(&self, _slot: u32) -> u64 {
        0
    }

    fn published(&self, _id: &TenantId) -> Option<Route> {
        // No simulated host loses its records.
        None
    }

    fn activity(&self, _slot: u32) -> Option<SlotSnapshot> {
        None
    }

    fn activity_born(&self) -> u64 {
        0
    }

    fn requests_on(&self, _slot: u32, _day: u32) -> u32 {
        0
    }

    fn lost_log_lines(&self) -> u64 {
        0
    }

    fn disk(&mut self) -> Option<DiskSpace> {
        None
    }

    fn isolation(&self) -> Option<Isolation> {
        None
    }

    fn limits_memory(&self) -> bool {
        true
    }

    fn apply_limits(&mut self, _id: &TenantId, _limits: &CgroupLimits) -> Result<Applied, String> {
        // How much it uses is chance.
        self.act(Call::ApplyLimits, |state| Ok(if state.rng.one_in(8) { Applied::NeedsRestart } else { Applied::Now }))
    }

    fn is_in_doubt(&mut self, id: &TenantId) -> bool {
        self.ask_of(Call::IsInDoubt, |state| state.doubts.contains(id))
    }

    fn let_go(&mut self, id: &TenantId) {
        self.act(Call::LetGoTenant, |state| {
            if state.procs.values().any(|proc| proc.id == *id && proc.epoch > 0) {
                state.broken(format!("{id} is let go while it runs"));
            }
        });
    }

    fn back_up(&mut self, _job: Job) {
        unreachable!("no simulated host has [backup]");
    }

    fn sync(&mut self, _job: gitops::Job) {
        unreachable!("no simulated host has [gitops]");
    }

    fn place_proxy(&mut self, _pid: u32) {}

    // Nothing follows from what is only counted.
    fn reserve_slot(&mut self, _slot: u32) {}

    fn count(&mut self, _slot: u32, _what: Happened) {}

    fn count_cpu(&mut self, _slot: u32, _epoch: u64, _used_us: u64) {}

    fn reset_slot(&mut self, slot: u32) {
        self.act(Call::ResetSlot, |state| {
            state.last_answer.remove(&slot);
        });
    }
}

/// The key that a start is given, and that a look compares.
pub(crate) fn key(id: &TenantId, epoch: u64) -> String {
    format!("{id}#{epoch}")
}

/// What /proc shows.
pub(crate) fn found(state: &State) -> Vec<Found> {
    let found = |(pid, proc): (&u32, &crate::state::Proc)| Found {
        id: proc.id.clone(),
        pid: *pid,
        start_time: u64::from(*pid),
        port: proc.port,
        // Who starts one by hand has no key of ours, not even that of a tenant that never had a start.
        key: if proc.epoch == 0 { "by hand".into() } else { key(&proc.id, proc.epoch) },
    };
    state.procs.iter().map(found).collect()
}

/// What tells an agent's start apart: the last good copy, where the file is broken.
pub(crate) fn load_at_start(state: &mut State) -> Option<(std::sync::Arc<Desired>, Option<String>)> {
    if !state.file.broken {
        return Some((owned(&state.file.wanted), None));
    }
    state.coverage.hit("started_with_broken_file");
    let last_good = state.last_good.clone()?;
    state.coverage.hit("last_good_start");
    Some((owned(&last_good), Some("broken".into())))
}
