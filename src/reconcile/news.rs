//! Takes in what happened: to instances, to looks, to the host, to the proxy.

use super::{
    core::{Core, SURVEY},
    event::{Change, Event, Look, NotStarted, Survey, Unproved},
    health::{Health, Verdict},
    world::{Handle, Records, World},
};
use crate::{
    desired::TenantId,
    guard::Recovered,
    instance::usage::Memory,
    observed::{Known, Moment, Running, State, StopReason},
    proxy::{NudgeReason, supervisor::ProxyEvent},
    route::Happened,
    store::InstanceRecord,
};

/// After so many surveys (5 min) each instance's memory has been measured anew, also where its own pages are the same; and each tenant's files, also
/// where no request came: an operator may have copied some there.
pub(super) const MEASURED_ANEW: u64 = 15;

impl<W: World> Core<W> {
    /// News from the world's tasks.
    pub fn take_in(&mut self, event: Event<W::Process>, now: Moment) {
        match event {
            Event::Instance(id, epoch, change) if self.is_current(&id, epoch, &change) => self.changed(&id, epoch, change, now),
            Event::Instance(..) => {}
            Event::Looked(id, number, look) => self.looked(&id, number, look, now),
            Event::Surveyed(survey) => self.surveyed(survey),
            Event::Measured(memory) => self.measured(memory),
            Event::KeySets => self.renew_settings(),
            Event::BackedUp(report) => self.backed_up(&report, now),
            Event::Synced(report) => self.synced(&report, now),
            Event::Acme(news) => self.hear_of_certificates(news),
            Event::Alerted(channel, number, outcome) => self.alerted(channel, number, outcome, now),
            Event::Undone(id, recovered) => self.recovered(&id, &recovered),
            Event::Kept(number, id, taken) => self.kept(number, &id, taken),
            Event::Restored(number, id, restored) => self.restored(number, &id, restored),
            Event::Program(identity, found) => self.program_found(&identity, found),
        }
    }

    fn changed(&mut self, id: &TenantId, epoch: u64, change: Change<W::Process>, now: Moment) {
        match change {
            Change::Spawned(process) => self.spawned(id, epoch, process),
            Change::Ready => self.ready(id, epoch, now),
            Change::NotStarted(why) => self.not_started(id, epoch, why, now),
            Change::Exited(exit) => self.exited(id, epoch, exit.to_string(), now),
            Change::OutOfMemory => {
                let how = self.out_of_memory(id);
                self.note_memory_kill(id, &how);
                self.exited(id, epoch, how, now);
            }
            Change::Immortal => {
                tracing::error!(tenant = %id, epoch, "killed, and still there: the kernel holds it; looking again");
                self.processes.remove(id);
                if let Some(known) = self.observed.known.get_mut(id) {
                    known.state = State::Unknown;
                }
                self.touch(id);
            }
        }
    }

    fn spawned(&mut self, id: &TenantId, epoch: u64, process: W::Process) {
        let Some(known) = self.observed.known.get(id) else { return };
        let record = InstanceRecord {
            epoch,
            pid: process.pid(),
            start_time: process.start_time(),
            boot_id: self.boot_id.clone(),
            port: known.port.unwrap_or(0),
            program: known.launched.clone(),
            started_at: self.world.unix_now(),
        };
        if let Err(error) = self.world.records().record_instance(id, &record) {
            tracing::error!(tenant = %id, %error, "the instance cannot be noted; a restarted agent finds it in /proc");
        }
        self.processes.insert(id.clone(), process);
    }

    fn recovered(&mut self, id: &TenantId, recovered: &Recovered) {
        let (Recovered::PutBack(marker) | Recovered::LeftAsItIs(marker)) = recovered;
        let (file, request, write_epoch) = (&marker.file, &marker.request_id, marker.epoch);
        let kind = match recovered {
            Recovered::PutBack(_) => "write_undone",
            Recovered::LeftAsItIs(_) => "write_in_doubt",
        };
        tracing::warn!(tenant = %id, file, request, write_epoch, kind, "a write broke off, and nobody was told that it was done");
        let text = format!("{file}: request {request} of start {write_epoch}; {}", recovered.text());
        self.note_event(Some(id), kind, &text);
        if let Some(known) = self.observed.known.get_mut(id) {
            known.undone = Some((known.epoch, text));
        }
    }

    fn ready(&mut self, id: &TenantId, epoch: u64, now: Moment) {
        self.queue.done(id);
        let started_at = self.world.unix_now();
        let (Some(process), Some(known)) = (self.processes.get(id), self.observed.known.get_mut(id)) else { return };
        let running = Running { epoch, pid: process.pid(), program: known.launched.clone(), since: now, started_at };
        tracing::info!(tenant = %id, epoch, pid = running.pid, port = known.port, "instance is ready");
        let again = known.started_before;
        known.restarts += u64::from(again);
        known.started_before = true;
        known.state = State::Running(running);
        if again {
            self.count(id, Happened::Restart);
        }
        self.touch(id);
        self.stop_if_ending(id, now);
    }

    fn not_started(&mut self, id: &TenantId, epoch: u64, why: NotStarted, now: Moment) {
        self.queue.done(id);
        self.processes.remove(id);
        self.clear_instance(id);
        match why {
            NotStarted::PortTaken => {
                let port = self.observed.known.get(id).and_then(|known| known.port);
                if let Some(port) = port {
                    self.skip_port(id, port, "taken while sq was starting", now);
                }
                if let Some(known) = self.observed.known.get_mut(id) {
                    known.state = State::Absent;
                }
                self.touch(id);
            }
            NotStarted::OutOfMemory => {
                let how = self.out_of_memory(id);
                self.note_memory_kill(id, &how);
                self.crashed(id, epoch, how, now);
            }
            NotStarted::Failed(how) => self.crashed(id, epoch, how, now),
        }
    }

    fn exited(&mut self, id: &TenantId, epoch: u64, exit: String, now: Moment) {
        self.processes.remove(id);
        self.memory.remove(id);
        self.health.forget(id);
        self.clear_instance(id);
        let Some(known) = self.observed.known.get_mut(id) else { return };
        match known.state {
            State::Stopping { why, .. } => {
                tracing::info!(tenant = %id, epoch, exit, why = why.text(), "instance stopped");
                known.state = State::Absent;
                known.last_exit = Some(format!("{exit} ({})", why.text()));
                if matches!(why, StopReason::Asked | StopReason::Restore | StopReason::ProgramChanged) {
                    super::backoff::reset(&mut known.back_off);
                }
                self.note_event(Some(id), "stopped", why.text());
                self.touch(id);
            }
            _ => self.crashed(id, epoch, exit, now),
        }
    }

    /// How it ended, with the limit that it met and the way out.
    fn out_of_memory(&self, id: &TenantId) -> String {
        let limit = self.observed.known.get(id).and_then(|known| known.spec.limits.memory_max);
        let limit = limit.map_or_else(|| "the host's".to_owned(), |limit| format!("{} MB", limit >> 20));
        format!("killed for memory: {limit} limit; raise memory_max or lower body_max")
    }

    fn clear_instance(&mut self, id: &TenantId) {
        if let Err(error) = self.world.records().clear_instance(id) {
            tracing::error!(tenant = %id, %error, "the end of an instance cannot be noted");
        }
    }

    fn probed(&mut self, id: &TenantId, epoch: u64, answered: bool) {
        let Some(known) = self.observed.known.get_mut(id) else { return };
        // What was asked of an instance that is on its way out, or is another one by now, says nothing.
        if !matches!(&known.state, State::Running(running) if running.epoch == epoch) {
            return;
        }
        if !answered {
            self.world.count(known.slot, Happened::FailedProbe);
        }
        let verdict = self.health.note(id, epoch, answered);
        match verdict {
            Verdict::Same => return,
            Verdict::Unhealthy => {
                tracing::warn!(tenant = %id, epoch, "three probes in a row failed: it is to be restarted");
                known.unhealthy = true;
                self.note_failed_probes(id);
            }
            Verdict::Recovered => known.unhealthy = false,
        }
        self.touch(id);
    }

    fn looked(&mut self, id: &TenantId, number: u64, look: Look<W::Process>, now: Moment) {
        let Some(known) = self.observed.known.get_mut(id).filter(|known| known.state == State::Looking) else { return };
        if self.looks.get(id) != Some(&number) {
            return;
        }
        match look {
            Look::Gone => known.state = State::Absent,
            Look::Failed(error) => {
                tracing::warn!(tenant = %id, error, "could not look; again at the next tick");
                known.state = State::Unknown;
                return;
            }
            Look::Ours { process, epoch, port, others } => {
                tracing::info!(tenant = %id, epoch, pid = process.pid(), port, "instance adopted");
                let record = self.instances.remove(id).filter(|record| record.epoch == epoch);
                known.port = Some(port);
                known.started_before = true;
                known.state = State::Running(Running {
                    epoch,
                    pid: process.pid(),
                    program: known.launched.clone(),
                    since: now,
                    started_at: record.map_or(0, |record| record.started_at),
                });
                self.ports.give(port, id);
                self.processes.insert(id.clone(), process.clone());
                self.hold_to_limits(id);
                self.world.watch(id, epoch, &process);
                if !others.is_empty() {
                    tracing::warn!(tenant = %id, count = others.len(), "processes beside its instance are stopped");
                    self.world.stop_strays(id, others);
                }
                self.stop_if_ending(id, now);
            }
            Look::Unproved(processes) => {
                tracing::warn!(tenant = %id, count = processes.len(), "nothing proves these processes to be ours: they are stopped before another start");
                known.state = State::Stopping { epoch: 0, why: StopReason::Unproved };
                self.unproved.push(Unproved { id: id.clone(), processes, slot: known.slot });
            }
        }
        self.touch(id);
    }

    /// Looks at everything that really runs, off the loop.
    pub(super) fn survey(&mut self, now: Moment) {
        if std::mem::replace(&mut self.surveying, true) {
            return;
        }
        // In turn, one part at each survey is measured anew: what it shares with others may have changed.
        let part = now.as_millis() / u64::try_from(SURVEY.as_millis()).unwrap_or(u64::MAX) % MEASURED_ANEW;
        let last = |id, pid: u32| self.memory.get(id).copied().filter(|_| u64::from(pid) % MEASURED_ANEW != part);
        let instances = self.processes.iter().map(|(id, process)| (process.pid(), last(id, process.pid()))).collect();
        let storage = self.begin_measuring();
        self.world.survey(&self.desired, instances, storage);
    }

    fn surveyed(&mut self, survey: Survey) {
        self.surveying = false;
        let owner: std::collections::HashMap<u32, &TenantId> = self.processes.iter().map(|(id, process)| (process.pid(), id)).collect();
        let memory = survey.memory.into_iter().filter_map(|(pid, bytes)| Some(((*owner.get(&pid)?).clone(), bytes))).collect();
        let strays: Vec<_> = survey.found.into_iter().filter(|found| !owner.contains_key(&found.pid) && self.is_stray(&found.id)).collect();
        self.memory = memory;
        self.note_peaks();
        self.count_cpu(&survey.cpu);
        survey.in_doubt.iter().for_each(|id| self.doubt(id));
        self.note_storage(survey.storage);
        if !self.world.limits_memory() {
            self.note_memory();
        }
        for found in strays {
            self.end_stray(&found);
        }
    }

    /// As [`Self::surveyed`], of memory alone.
    fn measured(&mut self, memory: Vec<(u32, Memory)>) {
        let owner: std::collections::HashMap<u32, &TenantId> = self.processes.iter().map(|(id, process)| (process.pid(), id)).collect();
        let memory = memory.into_iter().filter_map(|(pid, memory)| Some(((*owner.get(&pid)?).clone(), memory)));
        let memory: Vec<_> = memory.collect();
        self.memory.extend(memory);
    }

    /// Marks whoever uses more memory than its limit: the loop does what the kernel does not.
    fn note_memory(&mut self) {
        let mut over = Vec::new();
        for (id, known) in &mut self.observed.known {
            let used = self.memory.get(id).map(|memory| memory.bytes);
            known.over_memory = used.zip(known.spec.limits.memory_max).and_then(|(used, limit)| (used > limit).then_some(used));
            if let Some(used) = known.over_memory {
                tracing::warn!(tenant = %id, used, limit = known.spec.limits.memory_max, "over its memory limit: it is to be restarted");
                self.touched.insert(id.clone());
                over.push((
                    id.clone(),
                    format!("it used {} MB, more than its limit: it is restarted; raise memory_max or lower body_max", used >> 20),
                ));
            }
        }
        for (id, how) in over {
            self.note_memory_kill(&id, &how);
        }
    }

    /// A process of `id` that is not its instance: one of a tenant in the middle of a start or stop may be just that.
    fn is_stray(&self, id: &TenantId) -> bool {
        self.observed.known.get(id).is_none_or(|known| matches!(known.state, State::Running(_) | State::Absent))
    }

    pub(super) fn take_in_answers(&mut self, now: Moment) {
        for ((id, epoch), answered) in self.world.answers(now) {
            self.probed(&id, epoch, answered);
        }
    }

    /// Asks whoever is due and was not seen to answer by the proxy. Returns how many steps of the wheel are idle from here on.
    pub(super) fn turn_wheel(&mut self, now: Moment) -> u32 {
        let running = |known: &Known| matches!(known.state, State::Running(_));
        let all = self.observed.known.iter().filter(|(_, known)| running(known)).map(|(id, known)| (id, known.slot));
        let seconds = |moment: Moment| moment.as_millis() / 1_000;
        let since = seconds(now).saturating_sub(Health::PERIOD.as_secs());
        for id in self.health.step(all) {
            let Some(known) = self.observed.known.get(&id) else { continue };
            let State::Running(running) = &known.state else { continue };
            let seen = self.world.last_answer(known.slot).is_some_and(|at| u64::from(at) >= since);
            // An unhealthy one is asked itself: what the proxy saw may be the answer before it hung.
            if let Some(port) = known.port.filter(|_| !seen || known.unhealthy) {
                self.world.ask(&id, running.epoch, port, now);
            }
        }
        self.health.skip_idle()
    }

    /// News from the proxy.
    pub fn hear_proxy(&mut self, event: ProxyEvent, now: Moment) {
        match event {
            ProxyEvent::Up { pid, .. } => {
                tracing::info!(pid, "proxy is up");
                self.world.place_proxy(pid);
                self.proxy.pid = Some(pid);
                self.proxy.detail = None;
                self.alerting.heard_of_proxy();
            }
            ProxyEvent::Guarded { pid } => self.world.place_proxy(pid),
            ProxyEvent::Down { exit, next_try } => {
                tracing::error!(exit, next_try_ms = next_try.as_millis(), "proxy is down");
                self.note_event(None, "proxy_down", &exit);
                self.proxy.pid = None;
                self.proxy.detail = Some(format!("down: {exit}"));
                self.alerting.heard_of_proxy();
                // It may have died over a write.
                self.timers.survey = now;
            }
            ProxyEvent::Retired { pid, cut } => {
                tracing::info!(pid, cut, "a replaced proxy is gone");
                if cut != Some(0) {
                    let cut = cut.map_or("an unknown number of".to_owned(), |cut| cut.to_string());
                    self.note_event(None, "proxy_cut", &format!("the replaced proxy (pid {pid}) cut {cut} requests"));
                }
            }
            ProxyEvent::Listens { addresses } => {
                tracing::info!(?addresses, "the proxy listens elsewhere");
                self.listens_on(&addresses);
                self.proxy.detail = None;
            }
            ProxyEvent::Refused { why } => {
                tracing::error!(why, "the proxy refuses the new settings; the old ones stay in force");
                self.note_event(None, "settings_refused", &why);
                self.proxy.detail = Some(format!("refused the new settings: {why}"));
            }
            ProxyEvent::ListensInVain { why } => {
                tracing::error!(why, "the proxy listens where it did");
                self.note_event(None, "settings_refused", &why);
                self.proxy.detail = Some(why);
            }
            ProxyEvent::UnknownKid => self.world.renew_key_sets(),
            ProxyEvent::Pushed => self.pushed(now),
            ProxyEvent::Nudge { id, reason } => self.nudged(&id, reason, now),
        }
    }

    /// A user waits for this tenant's instance, or met something else in its place.
    fn nudged(&mut self, id: &TenantId, reason: NudgeReason, now: Moment) {
        let Some(known) = self.observed.known.get_mut(id) else { return };
        match (&known.state, reason) {
            // Its process lives, or its exit would be known: ask it at once instead of at its turn.
            (State::Running(running), NudgeReason::Refused) => {
                if let Some(port) = known.port {
                    self.world.ask(id, running.epoch, port, now);
                }
            }
            (State::Running(running), NudgeReason::WrongInstance) => {
                tracing::error!(tenant = %id, epoch = running.epoch, port = known.port, "something else answers on its port: it is to be restarted");
                known.unhealthy = true;
                self.touch(id);
            }
            (State::Running(_), NudgeReason::InDoubt) => self.doubt(id),
            (State::Running(_), NudgeReason::Parked) => {}
            _ => {
                self.queue.request(id);
                self.touched.insert(id.clone());
            }
        }
    }

    /// A write of `id` may have broken off: its instance is restarted, with the text as it was, unless somebody finished or ended that by now.
    fn doubt(&mut self, id: &TenantId) {
        let Some(known) = self.observed.known.get_mut(id).filter(|known| matches!(known.state, State::Running(_))) else { return };
        if !known.in_doubt && self.world.is_in_doubt(id) {
            tracing::warn!(tenant = %id, "a write broke off: its instance is restarted, with the text as it was");
            known.in_doubt = true;
            self.touch(id);
        }
    }

    /// Reads keys and certificates anew and hands them to the proxy; what is no good leaves what was good before in force, and is said once.
    pub(super) fn renew_settings(&mut self) {
        let troubles = self.world.renew_settings(&self.desired);
        self.alerting.looked_at_keys();
        let before = std::mem::replace(&mut self.proxy.troubles, troubles.clone());
        for trouble in troubles.iter().filter(|trouble| !before.contains(trouble)) {
            tracing::error!(trouble, "a key or certificate is no good");
            self.note_event(None, "credentials_refused", trouble);
        }
        if troubles.is_empty() && !before.is_empty() {
            tracing::info!("keys and certificates are good again");
            self.note_event(None, "credentials_mended", "");
        }
    }
}
