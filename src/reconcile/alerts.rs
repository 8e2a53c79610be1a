//! The loop's part in alerts: gathers the facts, keeps what the book says before anything is sent, and has it sent.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    core::Core,
    world::{Memo, Records, World},
};
use crate::{
    admin::status::{AlertStatus, AlertsStatus},
    alerts::{Book, Channel, Condition, Facts, Key, Kind, Life, Outbox, Outcome, Share, Tried},
    certificate::Urgency,
    child::quoted,
    desired::TenantId,
    gitops,
    instance::storage::DiskSpace,
    observed::{Known, Moment},
    proxy::front::Source,
    route::Happened,
    store::rfc3339,
};

/// What happens together is told together, and still within a second.
const GATHER: Duration = Duration::from_millis(200);
/// Everything is looked at so often, in any case: a threshold of memory is seen within 10 s, and told.
const LOOK: Duration = Duration::from_secs(5);
/// Between two full surveys, what takes memory is measured so often, for the same reason.
const MEASURE: Duration = Duration::from_secs(8);
/// A proxy that dies is replaced within a second.
const PROXY_PATIENCE: Duration = Duration::from_secs(10);
/// An identity provider may be away for a moment; what a file held before is in force meanwhile.
const KEYS_PATIENCE: Duration = Duration::from_secs(120);

/// What the loop knows of them.
#[derive(Debug)]
pub(super) struct Alerting {
    book: Book,
    outbox: Outbox,
    /// What the records have.
    kept: String,
    /// The next look, the next send, the next measure.
    look: Moment,
    measure: Moment,
    /// Something happened that may be an alert.
    stirred: bool,
    /// What is known by now of a world that was new to this agent.
    known: Seen,
    /// Which sq was looked for in vain last, and why.
    sq_missing: Option<(String, String)>,
}

/// What was looked at since the agent started.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    plan: bool,
    proxy: bool,
    keys: bool,
}

/// What survives the agent.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Kept {
    book: serde_json::Value,
    outbox: Outbox,
}

impl Alerting {
    pub(super) fn new(kept: Option<String>, life: Life, unix_now: u64, now: Moment) -> Self {
        let read = kept.as_deref().map(|kept| {
            let Kept { book, outbox } = serde_json::from_str(kept)?;
            Ok::<_, serde_json::Error>((Book::new(book)?, outbox))
        });
        let (mut book, outbox) = read
            .transpose()
            .unwrap_or_else(|error| {
                tracing::warn!(%error, "which alerts are open cannot be read");
                None
            })
            .unwrap_or_default();
        book.begun(life, unix_now);
        Self {
            book,
            outbox,
            kept: kept.unwrap_or_default(),
            look: now + GATHER,
            measure: now + MEASURE,
            stirred: false,
            known: Seen::default(),
            sq_missing: None,
        }
    }

    /// When the loop has something to do for it.
    pub(super) fn wake_at(&self) -> Moment {
        self.outbox.next().into_iter().fold(self.look.min(self.measure), Moment::min)
    }

    /// Something happened that may be an alert: it is looked at soon.
    pub(super) fn stir(&mut self) {
        self.stirred = true;
    }

    pub(super) fn planned(&mut self) {
        self.known.plan = true;
    }

    pub(super) fn heard_of_proxy(&mut self) {
        self.known.proxy = true;
        self.stirred = true;
    }

    pub(super) fn looked_at_keys(&mut self) {
        self.known.keys = true;
    }

    /// The desired sq is there, or is not: which, and why.
    pub(super) fn heard_of_sq(&mut self, missing: Option<(String, String)>) {
        self.stirred |= self.sq_missing != missing;
        self.sq_missing = missing;
    }
}

impl<W: World> Core<W> {
    /// After each piece of news.
    pub(super) fn gather_alerts(&mut self, now: Moment) {
        if std::mem::take(&mut self.alerting.stirred) {
            self.alerting.look = self.alerting.look.min(now + GATHER);
        }
    }

    /// By the clock: looks at everything that may be an alert, and sends what is due.
    pub(super) fn tend_alerts(&mut self, now: Moment) {
        let due = |timer: &mut Moment, period| (now >= *timer).then(|| *timer = now + period).is_some();
        let (measures, looks) = (due(&mut self.alerting.measure, MEASURE), due(&mut self.alerting.look, LOOK));
        // What ends while the agent stops ends on purpose.
        if measures && !self.is_stopping() {
            self.measure_memory();
        }
        if looks && !self.is_stopping() {
            self.look_at_alerts(now);
        }
        self.send_alerts(now);
    }

    fn look_at_alerts(&mut self, now: Moment) {
        let channels = self.world.alert_channels(&self.desired.alerts);
        self.alerting.outbox.follow(&channels);
        for channel in self.alerting.outbox.stopped() {
            let mark = self.world.alert_mark(channel, &self.desired.alerts);
            self.alerting.outbox.look_again(channel, mark, now);
        }
        let (memory, unix_now) = (self.world.host_memory(), self.world.unix_now());
        let mut book = std::mem::take(&mut self.alerting.book);
        let alerts = book.look(&self.facts(memory, unix_now, now), &self.desired.alerts, unix_now, now);
        self.alerting.book = book;
        for alert in alerts {
            for item in &alert.items {
                let (kind, tenant, text) = (item.key.kind.word(), item.key.tenant.as_ref().map(TenantId::as_str), &item.text);
                tracing::warn!(kind, tenant, text, severity = %item.severity, news = item.news.word(), "alert");
            }
            self.alerting.outbox.push(&alert);
        }
        self.keep_alerts();
    }

    /// What is kept goes out; where it cannot be kept it goes out all the same, and perhaps once more.
    fn send_alerts(&mut self, now: Moment) {
        for (channel, alert) in self.alerting.outbox.due(now) {
            self.world.send_alert(channel, alert, &self.desired.alerts);
        }
    }

    pub(super) fn alerted(&mut self, channel: Channel, number: u64, outcome: Outcome, now: Moment) {
        match &outcome {
            Outcome::Delivered(_) => tracing::info!(%channel, number, "an alert was taken"),
            Outcome::Wait(_, why) | Outcome::Failed(why) => {
                tracing::warn!(%channel, number, why, "an alert is not taken yet: it is sent again")
            }
            Outcome::Refused(why) | Outcome::Stopped(why) => tracing::error!(%channel, number, why, "an alert is not taken"),
        }
        let mark = self.world.alert_mark(channel, &self.desired.alerts);
        let unix_now = self.world.unix_now();
        let chance = if matches!(outcome, Outcome::Failed(_)) { self.world.jitter() } else { 0.0 };
        self.alerting.outbox.done(Tried { channel, number, outcome, mark }, unix_now, now, chance);
        self.keep_alerts();
        self.send_alerts(now);
    }

    fn keep_alerts(&mut self) {
        let Alerting { book, outbox, .. } = &self.alerting;
        let kept = book.kept().and_then(|book| serde_json::to_string(&serde_json::json!({ "book": book, "outbox": outbox })));
        let kept = match kept {
            Ok(kept) if kept == self.alerting.kept => return,
            Ok(kept) => kept,
            Err(error) => return tracing::error!(%error, "which alerts are open cannot be written down"),
        };
        match self.world.records().keep(Memo::Alerts, &kept) {
            Ok(()) => self.alerting.kept = kept,
            Err(error) => tracing::error!(%error, "which alerts are open cannot be noted"),
        }
    }

    /// The agent ends, and was told to: the next one has nothing to say about that.
    pub(super) fn say_goodbye(&mut self) {
        self.alerting.book.ended();
        self.keep_alerts();
    }

    /// An instance of `id` ended unasked, or did not come up.
    pub(super) fn note_crash_for_alerts(&mut self, id: &TenantId, how: &str) {
        let (unix_now, command) = (self.world.unix_now(), self.tail_of(id));
        self.alerting.book.crashed(id, how, &command, unix_now);
    }

    /// `id` met its memory limit, and was ended for it.
    pub(super) fn note_memory_kill(&mut self, id: &TenantId, how: &str) {
        self.count(id, Happened::MemoryKill);
        let command = self.tail_of(id);
        self.note_for_alerts(Condition::warning(Key::tenant(Kind::OomKill, id), how, command));
    }

    /// The instance of `id` failed its probes, and is restarted.
    pub(super) fn note_failed_probes(&mut self, id: &TenantId) {
        let command = self.tail_of(id);
        let text = "three probes in a row failed: it is restarted, drained first";
        self.note_for_alerts(Condition::warning(Key::tenant(Kind::HealthChecks, id), text, command));
    }

    fn note_for_alerts(&mut self, what: Condition) {
        let unix_now = self.world.unix_now();
        self.alerting.book.happened(what, unix_now);
        self.alerting.stir();
    }

    /// What shows the end of its log.
    fn tail_of(&self, id: &TenantId) -> String {
        tail(&self.desired.user_dir(id).join("sq.log").display().to_string())
    }

    /// How everything stands.
    fn facts(&self, memory: Option<Share>, unix_now: u64, now: Moment) -> Facts<'_> {
        let mut facts = Facts {
            memory,
            disk: self.room.disk.map(|DiskSpace { total, free }| Share { used: total.saturating_sub(free), total }),
            tenants: self.tenants_for_alerts(),
            largest: self.largest(),
            state_dir: quoted(&self.desired.state_dir.display().to_string()),
            ..Facts::default()
        };
        let conditions = [
            self.refused_config(unix_now, now),
            self.held_removals(),
            self.went_back(),
            self.down_proxy(),
            self.refused_keys(),
            self.missing_sq(),
            self.ending_certificate(unix_now),
        ];
        facts.conditions =
            conditions.into_iter().flatten().chain(self.gitops_troubles(unix_now)).chain(self.backup_troubles(unix_now)).collect();
        let Seen { plan, proxy, keys } = self.alerting.known;
        let sq = self.programs.get(&self.program()).is_some() || self.why_no_sq().is_some();
        let certificate = self.world.certificate().is_some();
        let known = [
            (Kind::RemovalsHeld, plan),
            (Kind::ProxyDown, proxy),
            (Kind::KeysRefused, keys),
            (Kind::SqMissing, sq),
            (Kind::CertificateEnds, certificate),
        ];
        facts.unsure.extend(known.into_iter().filter(|(_, known)| !known).map(|(kind, _)| kind));
        facts
    }

    fn tenants_for_alerts(&self) -> BTreeMap<&TenantId, Option<Share>> {
        let served = |(_, known): &(&TenantId, &Known)| !known.leaving && !known.spec.suspended;
        let share = |id: &TenantId, known: &Known| match known.spec.limits.memory_max {
            None => Some(Share { used: 0, total: 0 }),
            Some(total) => self.memory.get(id).map(|memory| Share { used: memory.bytes, total }),
        };
        self.observed.known.iter().filter(served).map(|(id, known)| (id, share(id, known))).collect()
    }

    /// The five whose instances take most memory.
    fn largest(&self) -> Vec<(TenantId, u64)> {
        const LARGEST: usize = 5;
        let mut all: Vec<(u64, &TenantId)> = self.memory.iter().map(|(id, memory)| (memory.bytes, id)).collect();
        let order = |a: &(u64, &TenantId), b: &(u64, &TenantId)| b.0.cmp(&a.0).then(a.1.cmp(b.1));
        if all.len() > LARGEST {
            all.select_nth_unstable_by(LARGEST, order);
            all.truncate(LARGEST);
        }
        all.sort_unstable_by(order);
        all.into_iter().map(|(bytes, id)| (id.clone(), bytes)).collect()
    }

    fn refused_config(&self, unix_now: u64, now: Moment) -> Option<Condition> {
        let (seconds, text) = self.intake.stale(now)?;
        let text = format!("tenants.toml is refused, and the last good one stays in force: {text}");
        let condition = Condition::warning(Key::host(Kind::ConfigRefused), text, "sq-agent check");
        Some(condition.since(Some(unix_now.saturating_sub(seconds))))
    }

    fn held_removals(&self) -> Option<Condition> {
        let held = self.held.as_ref()?;
        let text = format!(
            "the removal of {} of {} tenants waits for you; all else is applied. `sq-agent confirm {}` lets them through",
            held.removals.len(),
            held.of,
            held.hash
        );
        Some(Condition::warning(Key::host(Kind::RemovalsHeld), text, "sq-agent plan").about(&held.hash))
    }

    fn went_back(&self) -> Option<Condition> {
        let given_up = self.programs.given_up()?;
        let text = format!(
            "{} of {} instances crashed on {}, so everybody has what ran before; name another version in tenants.toml, or `sq-agent confirm {}` tries it once more",
            given_up.crashed,
            given_up.of,
            given_up.program,
            given_up.hash()
        );
        Some(Condition::critical(Key::host(Kind::RolloutWentBack), text, "sq-agent status").about(given_up.hash()))
    }

    fn down_proxy(&self) -> Option<Condition> {
        if self.proxy.pid.is_some() || !self.alerting.known.proxy {
            return None;
        }
        let text = format!("nobody is served: the proxy is {}", self.proxy.detail.as_deref().unwrap_or("down"));
        let command = tail(&self.desired.state_dir.join("proxy.log").display().to_string());
        Some(Condition::critical(Key::host(Kind::ProxyDown), text, command).patience(PROXY_PATIENCE))
    }

    fn refused_keys(&self) -> Option<Condition> {
        let first = self.proxy.troubles.first()?;
        let more = self.proxy.troubles.len() - 1;
        let more = if more > 0 { format!(" (and {more} more)") } else { String::new() };
        let condition = Condition::warning(Key::host(Kind::KeysRefused), format!("{first}{more}"), "sq-agent doctor");
        Some(condition.patience(KEYS_PATIENCE))
    }

    /// Why the desired sq is not there. Another one may be desired by now than the one that was looked for, and may have been there all along.
    fn why_no_sq(&self) -> Option<&str> {
        let (program, why) = self.alerting.sq_missing.as_ref()?;
        (*program == self.program() && self.programs.get(program).is_none()).then_some(why)
    }

    fn missing_sq(&self) -> Option<Condition> {
        let why = self.why_no_sq()?;
        let text = format!("what runs goes on, and nothing is started: {why}");
        Some(Condition::critical(Key::host(Kind::SqMissing), text, "sq-agent doctor"))
    }

    fn ending_certificate(&self, unix_now: u64) -> Option<Condition> {
        let (facts, source) = self.world.certificate().filter(|(_, source)| *source != Source::SelfSigned)?;
        let urgency = facts.urgency(unix_now);
        if urgency == Urgency::None {
            return None;
        }
        let (_, text) = super::certificates::end(&facts, urgency, source);
        let condition = Condition::warning(Key::host(Kind::CertificateEnds), text, "sq-agent doctor");
        let severity = if urgency == Urgency::Expired { crate::alerts::Severity::Critical } else { condition.severity };
        Some(Condition { severity, ..condition })
    }

    fn gitops_troubles(&self, unix_now: u64) -> Vec<Condition> {
        if self.desired.gitops.is_none() {
            return Vec::new();
        }
        let troubles = self.gitops_book().troubles(unix_now).into_iter();
        troubles
            .map(|trouble| match trouble {
                gitops::Trouble::Failing { since, why } => {
                    let text = format!("the repository cannot be looked at: {why}");
                    Condition::warning(Key::host(Kind::GitopsFailing), text, "sq-agent gitops sync").since(Some(since))
                }
                gitops::Trouble::Refused { commit, text } => {
                    Condition::warning(Key::host(Kind::GitopsRefused), text, "sq-agent gitops sync").about(commit)
                }
                gitops::Trouble::Rewritten { commit, text } => {
                    Condition::critical(Key::host(Kind::GitopsRewritten), text, "sq-agent gitops status").about(commit)
                }
            })
            .collect()
    }

    fn backup_troubles(&self, unix_now: u64) -> Vec<Condition> {
        let Some(backup) = &self.desired.backup else { return Vec::new() };
        let troubles = self.backup_book().troubles(backup, unix_now);
        let missed = troubles.missed.map(|text| Condition::critical(Key::host(Kind::BackupMissed), text, "sq-agent backup"));
        let untrue = troubles.untrue.map(|text| Condition::critical(Key::host(Kind::BackupUntrue), text, "sq-agent backup"));
        missed.into_iter().chain(untrue).collect()
    }

    /// Measures whoever has a limit, off the loop, unless a survey does.
    fn measure_memory(&mut self) {
        let last = |id| self.memory.get(id).copied();
        let limited = |id: &TenantId| self.observed.known.get(id).is_some_and(|known| known.spec.limits.memory_max.is_some());
        let instances: Vec<_> = self.processes.iter().filter(|(id, _)| limited(id)).map(|(id, process)| (process, last(id))).collect();
        if !self.surveying && !instances.is_empty() {
            use super::world::Handle as _;
            let instances = instances.into_iter().map(|(process, last)| (process.pid(), last)).collect();
            self.world.measure(instances);
        }
    }

    pub(super) fn alerts_status(&self) -> AlertsStatus {
        let one = |item: crate::alerts::Item| AlertStatus {
            kind: item.key.kind,
            tenant: item.key.tenant,
            severity: item.severity,
            since: rfc3339(item.since),
            text: item.text,
            command: item.command,
        };
        AlertsStatus { open: self.alerting.book.open().map(one).collect(), channels: self.alerting.outbox.status() }
    }

    /// Which alerts are open.
    pub fn open_alerts(&self) -> Vec<Key> {
        self.alerting.book.open().map(|item| item.key).collect()
    }

    /// Whether all that is to be said was said, and taken.
    pub fn has_told_all(&self) -> bool {
        self.alerting.book.is_told() && self.alerting.outbox.is_empty()
    }
}

fn tail(log: &str) -> String {
    format!("tail -n 50 {}", quoted(log))
}

/// Used by [`Core::new`].
pub(super) fn life(boot_id: &str) -> Life {
    Life { pid: std::process::id(), boot_id: boot_id.to_owned() }
}
