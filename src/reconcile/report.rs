//! What the loop tells people: the status, with a sentence a tenant that says why it is as it is.

use http::StatusCode;

use super::{
    core::Core,
    intake, rows,
    world::{Handle, World},
};
use crate::{
    admin::{
        page::StateWord,
        question::{Answer, Question, Reply},
        status::{AgentStatus, DiskStatus, ProxyStatus, Status, TenantStatus},
    },
    desired::{TenantId, size_text},
    instance::storage::DiskSpace,
    observed::{FileWork, Known, Moment, State},
    route,
    store::rfc3339,
};

impl<W: World> Core<W> {
    /// Answers a command.
    pub fn answer(&mut self, question: Question, now: Moment) -> Reply {
        Reply::Now(match question {
            Question::Snapshot(id) => return self.ask_for_snapshot(&id),
            Question::Restore(wish) => return self.ask_for_restore(wish),
            Question::Status => json(&self.status(now)),
            Question::Observed => json(&self.observed),
            Question::Confirm(hash) => self.confirm(&hash),
            Question::Restart(id) => self.restart(&id),
            Question::GitOps(asked) => self.ask_gitops(asked, now),
            Question::Backup { may_make } => self.ask_for_backup(may_make, now),
            Question::Await(what) => return self.await_change(what, now),
            Question::RestartAndAwait(id) => return self.restart_and_await(&id, now),
            Question::Begin(request) => self.begin_request(&request),
            Question::End(lookup, answer) => self.end_request(&lookup, answer.as_deref()),
            Question::Tenant(id) => self.tell_of_tenant(&id, now),
            Question::Tenants(wish) => self.tell_of_tenants(&wish, now),
            Question::Usage(id) => self.tell_usage(&id, now),
            Question::Usages(wish) => self.tell_usages(&wish, now),
            Question::Health => self.tell_health(now),
            Question::Events(wish) => self.tell_events(&wish),
            Question::Note(id, kind, detail) => {
                self.note_event(id.as_ref(), kind, &detail);
                json(&())
            }
        })
    }

    fn confirm(&mut self, hash: &str) -> Answer {
        match &self.held {
            Some(held) if held.hash == hash => {
                let text = format!("{} removals confirmed", held.removals.len());
                tracing::warn!(hash, removals = held.removals.len(), "held removals confirmed by an operator");
                self.note_event(None, "removals_confirmed", hash);
                self.observed.confirmed = Some(hash.to_owned());
                self.replan = true;
                json(&serde_json::json!({ "detail": text }))
            }
            Some(held) => Err((
                StatusCode::CONFLICT,
                format!("the held plan is {}, not {hash}: look at it with `sq-agent plan`, then confirm that hash", held.hash),
            )),
            None if self.programs.given_up().is_some_and(|given_up| given_up.hash() == hash) => {
                self.try_program_again();
                json(&serde_json::json!({ "detail": format!("{} is rolled out once more", self.desired.sq.identity()) }))
            }
            None => Err((StatusCode::CONFLICT, format!("nothing is held, so there is no plan {hash} to confirm"))),
        }
    }

    pub(super) fn restart(&mut self, id: &TenantId) -> Answer {
        let Some(known) = self.observed.known.get_mut(id) else { return Err(unknown(id)) };
        if known.spec.suspended {
            return Err((StatusCode::CONFLICT, format!("{id} is suspended: remove `suspended = true` from tenants.toml to start it")));
        }
        known.restart_wanted = true;
        super::backoff::reset(&mut known.back_off);
        self.note_event(Some(id), "restart_asked", "sq-agent restart");
        self.touch(id);
        json(&serde_json::json!({ "detail": format!("{id} drains and restarts") }))
    }

    /// How everything stands.
    fn status(&self, now: Moment) -> Status {
        let tenants = self.observed.known.iter().map(|(id, known)| self.tenant_status(id, known, now)).collect();
        Status { tenants, ..self.status_of_all_but_tenants(now) }
    }

    /// The same without a list that may be long.
    pub(super) fn status_of_all_but_tenants(&self, now: Moment) -> Status {
        let stale = self.intake.stale(now);
        Status {
            agent: AgentStatus {
                pid: std::process::id(),
                version: env!("CARGO_PKG_VERSION").into(),
                uptime_seconds: now.since(self.started).as_secs(),
                desired_hash: self.desired.hash.clone(),
                generation: self.world.generation(),
                config_stale_seconds: stale.map_or(0, |(seconds, _)| seconds),
                config_error: stale.map(|(_, text)| text.to_owned()),
                isolation: self.world.isolation(),
                memory_enforced: if self.world.limits_memory() { "kernel" } else { "polled" }.to_owned(),
                pending_restart: intake::pending_restart(&self.started_with, &self.desired),
            },
            proxy: ProxyStatus {
                lost_log_lines: self.world.lost_log_lines(),
                certificate: self.certificate_status(),
                acme: self.acme_status(),
                ..self.proxy.clone()
            },
            held: self.held.clone(),
            rollout: self.rollout_status(now),
            backup: self.backup_status(),
            gitops: self.gitops_status(),
            alerts: self.alerts_status(),
            forecast: Some(self.forecast_status()),
            disk: self.room.disk.map(|DiskSpace { total, free }| DiskStatus { total, free, writes_refused: self.observed.disk_low }),
            admin: self.desired.admin.as_ref().map(|_| self.admin.clone()),
            tenants: Vec::new(),
        }
    }

    pub(super) fn tenant_status(&self, id: &TenantId, known: &Known, now: Moment) -> TenantStatus {
        let running = match &known.state {
            State::Running(running) => Some(running),
            _ => None,
        };
        let held = self.held.as_ref().is_some_and(|held| held.removals.binary_search(id).is_ok());
        let waits_for_program = self.programs.get(&known.program).is_none();
        TenantStatus {
            id: id.to_string(),
            tier: known.spec.tier.clone(),
            state: StateWord::from(rows::route_state(known, now)).text().into(),
            port: known.port,
            pid: self.processes.get(id).map(Handle::pid),
            epoch: known.epoch,
            restarts: known.restarts,
            last_exit: known.last_exit.clone(),
            last_undone: known.undone.as_ref().map(|(_, text)| text.clone()),
            started_at: running.filter(|running| running.started_at > 0).map(|running| rfc3339(running.started_at)),
            memory_bytes: self.memory.get(id).map(|memory| memory.bytes),
            storage_bytes: known.storage,
            requests: self.world.requests(known.slot),
            requests_today: self.world.requests_on(known.slot, route::day(self.world.unix_now())),
            detail: detail(known, held, waits_for_program, &self.desired.user_dir(id).join("sq.log").display().to_string(), now),
        }
    }
}

pub(super) fn unknown(id: &TenantId) -> (StatusCode, String) {
    (StatusCode::NOT_FOUND, format!("no tenant {id} on this host: `sq-agent status` lists them"))
}

pub(super) fn json(value: &impl serde::Serialize) -> Answer {
    serde_json::to_vec(value).map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

/// Why the tenant is as it is, in a sentence. `log` is where its sq writes.
fn detail(known: &Known, held: bool, waits_for_program: bool, log: &str, now: Moment) -> String {
    let base = match &known.state {
        State::Running(_) if known.unhealthy => "does not answer probes; waits for its restart".to_owned(),
        State::Running(running) => match &known.undone {
            Some((epoch, text)) if *epoch == running.epoch => format!("answers; a write broke off before this start: {text}"),
            _ if let Some((used, limit)) = known.over_storage() => {
                format!("answers; its phexts take {} of {}: only what makes less is written", size_text(used), size_text(limit))
            }
            _ => "answers".to_owned(),
        },
        State::Starting { .. } => "starting; requests wait".to_owned(),
        State::Stopping { why, .. } => format!("draining: {}", why.text()),
        State::Unknown | State::Looking => "looking whether an instance of it lives".to_owned(),
        State::Absent if known.files == Some(FileWork::Restore) => "a snapshot is put back; requests wait".to_owned(),
        State::Absent if known.leaving => "removed from tenants.toml; its data stays".to_owned(),
        State::Absent if known.spec.suspended => "suspended in tenants.toml: every request gets 403, the data stays".to_owned(),
        State::Absent => absent(known, waits_for_program, log, now),
    };
    if held { format!("{base}; its removal is held, see `sq-agent plan`") } else { base }
}

fn absent(known: &Known, waits_for_program: bool, log: &str, now: Moment) -> String {
    let how = known.last_exit.as_deref().unwrap_or("unknown");
    match known.back_off.not_before.filter(|&at| at > now) {
        Some(at) => {
            let word = if known.back_off.streak > 1 { "crash-looping" } else { "crashed" };
            format!("{word}: {how}, next try in {} s, see {log}", now.until(at).as_millis().div_ceil(1_000))
        }
        None if waits_for_program => "waits for the sq program; see the agent's log".to_owned(),
        None => "waits for its turn to start".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        desired::testing::tenant,
        observed::{BackOff, StopReason},
    };

    const NOW: Moment = Moment::from_millis(10_000);

    fn known() -> Known {
        Known::new(0, tenant(TenantId::parse("a").unwrap()))
    }

    #[test]
    fn a_crash_loop_says_how_when_and_where_to_look() {
        let back_off = BackOff { streak: 4, not_before: Some(NOW + Duration::from_millis(7_200)), ..BackOff::default() };
        let known = Known { back_off, last_exit: Some("exit 101".into()), ..known() };
        assert_eq!(detail(&known, false, false, "/s/sq.log", NOW), "crash-looping: exit 101, next try in 8 s, see /s/sq.log");
    }

    #[test]
    fn a_held_removal_is_said_beside_what_the_tenant_does() {
        let known = Known { state: State::Stopping { epoch: 1, why: StopReason::Asked }, ..known() };
        assert_eq!(detail(&known, true, false, "", NOW), "draining: restart asked for; its removal is held, see `sq-agent plan`");
    }

    #[test]
    fn a_tenant_without_a_program_says_what_it_waits_for() {
        assert_eq!(detail(&known(), false, true, "", NOW), "waits for the sq program; see the agent's log");
    }
}
