//! Carries out what the plan says: changes the observed state, and starts the task that does the rest.

use std::path::PathBuf;

use super::{
    backoff,
    core::{Core, Phase},
    event::{Change, Drain},
    plan::{self, Action},
    world::{Handle, Records, Start, World},
};
use crate::{
    desired::TenantId,
    instance::{
        cgroup::{Applied, CgroupLimits},
        ports::PortState,
        process::StopSignal,
        scan::Found,
    },
    observed::{Known, Moment, State, StopReason},
    route::Happened,
    store::StoreError,
};

impl<W: World> Core<W> {
    pub(super) fn carry_out(&mut self, actions: Vec<Action>, now: Moment) {
        for action in actions {
            match action {
                Action::Apply(id) => self.apply(&id),
                Action::Start(id) => self.queue.push(&id),
                Action::Stop(id, why) => self.begin_stop(&id, why, now),
                Action::Keep(id, reason) => self.keep_before(&id, reason),
                Action::Restore(id) => self.begin_restore(&id),
                Action::Look(id) => self.begin_look(&id),
                Action::Leave(id) => self.leave(&id),
                Action::Forget(id) => self.forget(&id, now),
                Action::Hold(_) => {} // said once by the round; nothing is done
            }
        }
    }

    /// Gives a new tenant its place; brings a known one's limits up to date.
    fn apply(&mut self, id: &TenantId) {
        let Some(tenant) = self.desired.tenants.get(id).cloned() else { return };
        let spec = match serde_json::to_string(&tenant) {
            Ok(spec) => spec,
            Err(error) => return tracing::error!(tenant = %id, %error, "what is desired of this tenant cannot be written down"),
        };
        match self.observed.known.get_mut(id) {
            Some(known) => {
                known.spec = tenant;
                known.leaving = false;
                backoff::reset(&mut known.back_off);
                if let Err(error) = self.world.records().set_spec(id, &spec) {
                    tracing::error!(tenant = %id, %error, "what is in force cannot be noted; it is applied all the same");
                }
                self.hold_to_limits(id);
            }
            None => match self.world.records().take_in(id, &spec) {
                Ok(slot) => {
                    tracing::info!(tenant = %id, slot, tier = %tenant.tier, "tenant taken in");
                    // What was found in its directory before it had a place may still live.
                    let state = if self.found.contains_key(id) { State::Unknown } else { State::Absent };
                    let program = self.programs.proved().identity();
                    self.observed.known.insert(id.clone(), Known { state, program, ..Known::new(slot, tenant) });
                    self.touched.insert(id.clone());
                    self.meet(id, slot);
                }
                Err(error) => tracing::error!(tenant = %id, %error, "no place for this tenant; tried again at the next tick"),
            },
        }
        self.routes.touch(id);
    }

    /// Brings the limits of a running instance up to date: no restart is needed where it fits into them.
    pub(super) fn hold_to_limits(&mut self, id: &TenantId) {
        let Some(known) = self.observed.known.get_mut(id).filter(|known| matches!(known.state, State::Running(_))) else { return };
        match self.world.apply_limits(id, &CgroupLimits::of(&known.spec.limits)) {
            Ok(applied) => known.limits_pending = applied == Applied::NeedsRestart,
            Err(error) => tracing::error!(tenant = %id, error, "it cannot be held to its limits"),
        }
        let limit = known.spec.limits.memory_max;
        known.over_memory = known.over_memory.filter(|&used| limit.is_some_and(|limit| used > limit));
    }

    fn leave(&mut self, id: &TenantId) {
        if let Some(known) = self.observed.known.get_mut(id) {
            known.leaving = true;
            tracing::info!(tenant = %id, "tenant left tenants.toml: its instance is stopped, its data stays");
            self.touch(id);
        }
    }

    fn forget(&mut self, id: &TenantId, now: Moment) {
        let unix_now = self.world.unix_now();
        let rests_until = unix_now + self.ports.quarantine().as_secs();
        if let Err(error) = self.world.records().let_go(id, unix_now, rests_until) {
            return tracing::error!(tenant = %id, %error, "the removal cannot be noted; tried again at the next tick");
        }
        let Some(known) = self.observed.known.remove(id) else { return };
        known.port.iter().for_each(|&port| self.ports.release(port, id, now));
        self.close_usage(id, known.slot, known.storage);
        self.world.reset_slot(known.slot);
        self.world.let_go(id);
        self.memory.remove(id);
        self.health.forget(id);
        self.routes.touch(id);
        self.note_event(Some(id), "removed", "stopped; the data stays");
    }

    /// Begins as many starts as may run now.
    pub(super) fn begin_starts(&mut self, now: Moment) {
        // Without a program nothing can start; the queue keeps its order until one is there.
        if self.is_stopping() || self.programs.is_empty() {
            return;
        }
        while let Some(id) = self.queue.pop() {
            // What was wished for when it was queued may not be any more.
            let wanted = plan::plan_tenant(&self.desired, &self.observed, &id, now).contains(&Action::Start(id.clone()));
            let program =
                self.observed.known.get(&id).and_then(|known| self.programs.get(&known.program)).map(|program| program.path.clone());
            // One whose own program is not there yet is queued anew when it is.
            if !program.is_some_and(|program| wanted && self.begin_start(&id, program, now)) {
                self.queue.done(&id);
            }
        }
    }

    /// Whether a start is under way.
    fn begin_start(&mut self, id: &TenantId, program: PathBuf, now: Moment) -> bool {
        let port = match self.find_port(id, now) {
            Some(port) => port,
            None => {
                self.crashed(id, 0, "no free port in [agent] ports: widen the range, or free the ports that others hold".into(), now);
                return false;
            }
        };
        // Persisted before the spawn, so that no two starts ever share an epoch, and with it a key.
        let rests_until = self.world.unix_now() + self.ports.quarantine().as_secs();
        let given = self.observed.known.get(id).map(|known| known.program.clone()).unwrap_or_default();
        let epoch = match self.world.records().begin_start(id, port, &given, rests_until) {
            Ok(epoch) => epoch,
            Err(StoreError::PortOwned { owner, .. }) => {
                // Of a tenant that cannot use it now and has found no other one.
                self.skip_port(id, port, &format!("it belongs to {owner}"), now);
                self.touch(id);
                return false;
            }
            Err(error) => {
                self.crashed(id, 0, format!("instances.db: {error}"), now);
                return false;
            }
        };
        let Some(known) = self.observed.known.get_mut(id) else { return false };
        if let Some(old) = known.port.replace(port).filter(|&old| old != port) {
            self.ports.release(old, id, now);
        }
        known.epoch = epoch;
        known.launched.clone_from(&known.program);
        known.state = State::Starting { epoch };
        known.restart_wanted = false;
        known.unhealthy = false;
        known.in_doubt = false;
        known.kept = None;
        known.limits_pending = false;
        known.over_memory = None;
        let (slot, limits) = (known.slot, CgroupLimits::of(&known.spec.limits));
        self.ports.give(port, id);
        self.routes.touch(id);
        self.world.start(Start { id: id.clone(), slot, epoch, port, program, limits });
        true
    }

    /// The tenant's own port, or another one that nothing holds; what is skipped is said.
    fn find_port(&mut self, id: &TenantId, now: Moment) -> Option<u16> {
        let meant = self.desired.tenants.get(id).and_then(|tenant| tenant.port);
        let mut sticky = meant.or_else(|| self.observed.known.get(id).and_then(|known| known.port));
        loop {
            let port = self.ports.candidate(id, sticky.take(), now)?;
            match self.world.probe_port(port) {
                PortState::Free => return Some(port),
                PortState::Taken { by } => self.skip_port(id, port, &by, now),
                PortState::Forbidden(why) => self.skip_port(id, port, &why, now),
            }
        }
    }

    pub(super) fn skip_port(&mut self, id: &TenantId, port: u16, why: &str, now: Moment) {
        tracing::warn!(tenant = %id, port, why, "port skipped: something else holds it");
        self.note_event(Some(id), "port_skipped", &format!("port {port}: {why}"));
        self.ports.taken(port, id, now);
        // It is not the tenant's any more, so that it never gives up what has become another's meanwhile.
        if let Some(known) = self.observed.known.get_mut(id).filter(|known| known.port == Some(port)) {
            known.port = None;
            self.routes.touch(id);
        }
    }

    pub(super) fn begin_stop(&mut self, id: &TenantId, why: StopReason, now: Moment) {
        let (Some(known), Some(process)) = (self.observed.known.get_mut(id), self.processes.get(id)) else { return };
        let State::Running(running) = &known.state else { return };
        let epoch = running.epoch;
        if why == StopReason::FailedProbes {
            known.crashed_on_program |= running.program == known.program;
            self.observed.probe_restarts.push_back(now);
            self.observed.probe_restarts.retain(|&at| now.since(at) < plan::PROBE_RESTARTS_PERIOD);
        }
        known.state = State::Stopping { epoch, why };
        self.routes.touch(id);
        tracing::info!(tenant = %id, epoch, why = why.text(), "instance drains and stops");
        self.draining.push(Drain { id: id.clone(), epoch, process: process.clone(), slot: known.slot });
    }

    /// Waits for what is in flight, then stops: only once the rows that say `draining` are published.
    pub(super) fn drain(&mut self) {
        for drain in self.draining.drain(..) {
            self.world.drain_and_stop(drain);
        }
        for unproved in self.unproved.drain(..) {
            self.world.drain_unproved(unproved);
        }
    }

    /// An agent that stops everything has to know first whether there is something.
    pub(super) fn look_at_unknown(&mut self) {
        let unknown = |(id, known): (&TenantId, &Known)| (known.state == State::Unknown).then(|| id.clone());
        let unknown: Vec<TenantId> = self.observed.known.iter().filter_map(unknown).collect();
        for id in unknown {
            self.begin_look(&id);
        }
    }

    fn begin_look(&mut self, id: &TenantId) {
        let Some(known) = self.observed.known.get_mut(id) else { return };
        known.state = State::Looking;
        let epoch = known.epoch;
        self.looked += 1;
        self.looks.insert(id.clone(), self.looked);
        let found = self.found.remove(id);
        self.world.look(id, self.looked, epoch, found);
    }

    /// Notes that a start or an instance of `id` came to nothing, and when the next try is.
    pub(super) fn crashed(&mut self, id: &TenantId, epoch: u64, how: String, now: Moment) {
        let jitter = self.world.jitter();
        let Some(known) = self.observed.known.get_mut(id) else { return };
        let ran = match &known.state {
            State::Running(running) => now.since(running.since),
            _ => std::time::Duration::ZERO,
        };
        // Epoch 0: nothing was started.
        known.crashed_on_program |= epoch > 0 && known.launched == known.program;
        let looping = backoff::note_crash(&mut known.back_off, now, ran, jitter);
        known.state = State::Absent;
        let wait = known.back_off.not_before.map_or(0, |at| now.until(at).as_millis());
        tracing::warn!(tenant = %id, epoch, how, retry_in_ms = wait, "instance ended unasked");
        known.last_exit = Some(how.clone());
        self.count(id, Happened::Crash);
        self.note_event(Some(id), "crashed", &how);
        self.note_crash_for_alerts(id, &how);
        if looping {
            tracing::error!(tenant = %id, "crash loop: five crashes in ten minutes; see its sq.log");
            self.note_event(Some(id), "crash_loop", &how);
        }
        self.touch(id);
    }

    /// `id` needs a plan of its own and perhaps a new row.
    pub(super) fn touch(&mut self, id: &TenantId) {
        self.routes.touch(id);
        self.touched.insert(id.clone());
    }

    /// Ends a process that belongs to no tenant's instance.
    pub(super) fn end_stray(&mut self, found: &Found) {
        let Ok(Some(process)) = self.world.adopt(found) else { return };
        tracing::warn!(tenant = %found.id, pid = found.pid, "an sq that is no tenant's instance is stopped");
        self.note_event(Some(&found.id), "stray_stopped", &format!("pid {}", found.pid));
        if !self.observed.known.contains_key(&found.id) {
            self.found.entry(found.id.clone()).or_default().push(found.clone());
        }
        self.world.stop_strays(&found.id, vec![process]);
    }

    /// Drains and stops everything; the loop ends when nothing is left.
    pub(super) fn stop_all(&mut self, now: Moment) {
        self.phase = Phase::Stopping;
        self.replan = true;
        let running: Vec<TenantId> = self.processes.keys().cloned().collect();
        tracing::info!(instances = running.len(), "stopping: instances drain and end; a second signal ends the agent at once");
        for id in running {
            self.begin_stop(&id, StopReason::Shutdown, now);
        }
    }

    /// No more draining: every instance is told to end now.
    pub(super) fn end_now(&mut self) {
        self.phase = Phase::StoppingAtOnce;
        for process in self.processes.values() {
            if let Err(error) = self.world.signal(process, StopSignal::Term) {
                tracing::warn!(pid = process.pid(), %error, "an instance could not be told to end");
            }
        }
    }

    /// A start that completed while the agent is stopping is stopped at once.
    pub(super) fn stop_if_ending(&mut self, id: &TenantId, now: Moment) {
        if self.is_stopping() {
            self.begin_stop(id, StopReason::Shutdown, now);
        }
    }

    pub(super) fn is_current(&self, id: &TenantId, epoch: u64, change: &Change<W::Process>) -> bool {
        let Some(known) = self.observed.known.get(id) else { return false };
        let (current, fits) = match &known.state {
            State::Starting { epoch, .. } => (*epoch, matches!(change, Change::Spawned(_) | Change::Ready | Change::NotStarted(_))),
            State::Running(running) => (running.epoch, matches!(change, Change::Exited(_) | Change::OutOfMemory)),
            State::Stopping { epoch, .. } => (*epoch, matches!(change, Change::Exited(_) | Change::OutOfMemory | Change::Immortal)),
            State::Absent | State::Unknown | State::Looking => (0, false),
        };
        let is_current = fits && current == epoch;
        if !is_current {
            tracing::debug!(tenant = %id, epoch, ?change, "news that is stale, or that came twice");
        }
        is_current
    }
}
