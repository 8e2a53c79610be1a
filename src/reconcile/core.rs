//! The loop's logic: owns all state, takes in what happened, plans, carries out, publishes the routes.
//!
//! It does nothing by itself: whoever drives it hands it news, calls [`Core::round`] after them and [`Core::wake`] at
//! [`Core::wake_at`], and tells it each time how late it is. What it does goes out by one [`World`].

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use super::{
    alerts::{self, Alerting},
    awaited::Waiting,
    backups::Backups,
    certificates::Certificates,
    event::{Drain, Unproved},
    gitops::Following,
    guard::Held,
    health::Health,
    history::History,
    intake::{self, Intake, Taken},
    keeping::Keeping,
    plan::{self, Action},
    port_book::PortBook,
    programs::{Kept, Programs},
    queue::StartQueue,
    rebuild,
    recover::{self, Recovered},
    room::Room,
    route_book::RouteBook,
    setup::SetupError,
    world::{Memo, Records, World},
};
use crate::{
    admin::status::{AdminStatus, ProxyStatus},
    desired::{Desired, TenantId},
    instance::{scan::Found, usage::Memory},
    observed::{Known, Moment, Observed, State},
    store::InstanceRecord,
};

/// tenants.toml is compared by content this often, in case a watch event was lost.
const TICK: Duration = Duration::from_secs(5);
/// Everything that really runs is looked at this often.
pub(super) const SURVEY: Duration = Duration::from_secs(20);
/// The first look, soon after the start so that status knows what the instances use; what ran before was found at the start itself.
const FIRST_SURVEY: Duration = Duration::from_secs(3);
/// How long a starting agent may leave an earlier one's rows in force.
const SETTLE: Duration = Duration::from_secs(2);
/// A starting agent lets every port rest anew that was released within this time, seconds: no clock is set by more unnoticed.
const CLOCK_DOUBT: u64 = 86_400;
/// A back-off that is over while its start waits in the queue must not spin the loop.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// The loop looks up at least this often.
const FAR: Duration = Duration::from_secs(3_600);

/// Everything the loop knows, and the world in which it acts.
pub struct Core<W: World> {
    pub(super) world: W,
    pub(super) desired: Arc<Desired>,
    /// As it was when the agent started, for what cannot change while it runs.
    pub(super) started_with: Arc<Desired>,
    pub(super) started: Moment,
    /// The same by the wall clock, seconds since 1970.
    pub(super) started_at: u64,
    pub(super) intake: Intake,
    pub(super) observed: Observed,
    /// The live process of each tenant that has one.
    pub(super) processes: BTreeMap<TenantId, W::Process>,
    /// Memory of each tenant's instance at the last survey.
    pub(super) memory: HashMap<TenantId, Memory>,
    /// What the last scan found of tenants whose instance is to be looked at.
    pub(super) found: BTreeMap<TenantId, Vec<Found>>,
    /// What the records say of instances that are to be looked at.
    pub(super) instances: HashMap<TenantId, InstanceRecord>,
    /// The look that is under way for each tenant that is being looked at.
    pub(super) looks: BTreeMap<TenantId, u64>,
    /// Number of the latest look.
    pub(super) looked: u64,
    pub(super) boot_id: String,
    pub(super) held: Option<Held>,
    pub(super) routes: RouteBook,
    pub(super) ports: PortBook,
    pub(super) queue: StartQueue,
    pub(super) health: Health,
    pub(super) programs: Programs,
    pub(super) proxy: ProxyStatus,
    /// The admin API on TCP.
    pub(super) admin: AdminStatus,
    /// Copies off this host.
    pub(super) backups: Backups,
    pub(super) following: Following,
    pub(super) keeping: Keeping,
    /// Who waits for a change.
    pub(super) waiting: Vec<Waiting>,
    /// Who takes how much of the disk.
    pub(super) room: Room,
    pub(super) certificates: Certificates,
    pub(super) alerting: Alerting,
    /// What tenants used, and what is to come.
    pub(super) history: History,
    /// Tenants that need a plan of their own before the next full one.
    pub(super) touched: BTreeSet<TenantId>,
    /// Instances whose row has to say `draining` before anybody looks at what is in flight.
    pub(super) draining: Vec<Drain<W::Process>>,
    /// The same of tenants none of whose processes is proved to be theirs.
    pub(super) unproved: Vec<Unproved<W::Process>>,
    /// The next round plans for everybody.
    pub(super) replan: bool,
    /// Actions in the last plan for everybody.
    pub(super) planned: usize,
    pub(super) surveying: bool,
    /// The rows in the table are this agent's.
    settled: bool,
    pub(super) phase: Phase,
    pub(super) timers: Timers,
}

/// Whether the agent is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// It is not.
    Serving,
    /// It drains and stops everything; nothing is started any more.
    Stopping,
    /// The same without draining, and without waiting for what cannot be seen.
    StoppingAtOnce,
}

/// What the loop does by the clock.
#[derive(Debug)]
pub(super) struct Timers {
    tick: Moment,
    pub(super) survey: Moment,
    /// The next turn of the wheel of probes.
    wheel: Moment,
    /// The next look for answers to probes, where any are open.
    answers: Moment,
    /// The end of the nearest back-off.
    retry: Moment,
}

/// What a [`Core`] starts from, beside its world.
pub struct Start {
    /// The state to bring about.
    pub desired: Arc<Desired>,
    /// Why tenants.toml itself is not in force, where `desired` is the last good copy.
    pub refused: Option<String>,
    /// Random id of this boot of the host.
    pub boot_id: String,
    /// How many starts of each kind may run at once.
    pub starts: usize,
    /// How long a port is left alone after use; see [`super::port_book::QUARANTINE`].
    pub quarantine: Duration,
    /// Where the records were moved that were found corrupt.
    pub corrupt_records: Option<String>,
}

impl<W: World> Core<W> {
    /// Takes in what an earlier agent left behind.
    pub fn new(mut world: W, start: Start, now: Moment) -> Result<Self, SetupError> {
        let found = world.scan().map_err(SetupError::Proc)?;
        let mut records = world.records().load()?;
        let back = rebuild::take_back(&mut world, &start.desired, &records, &found)?;
        if back > 0 {
            records = world.records().load()?;
        }
        let Recovered { mut known, found, instances, strays } = recover::recover(records, found);
        let mut ports = PortBook::new(start.desired.ports, start.quarantine);
        ports.mean(start.desired.meant_ports());
        let unix_now = world.unix_now();
        // The wall clock may have been set since: what it says of the end of a quarantine is not relied on, in either direction.
        for port in world.records().quarantined(unix_now.saturating_sub(CLOCK_DOUBT))?.into_keys() {
            ports.rest_until(port, now + start.quarantine);
        }
        let mut routes = RouteBook::default();
        for (id, known) in &known {
            known.port.iter().for_each(|&port| ports.give(port, id));
            routes.touch(id);
        }
        let kept =
            world.records().kept(Memo::Programs)?.map(|kept| serde_json::from_str::<Kept>(&kept)).transpose().unwrap_or_else(|error| {
                tracing::warn!(%error, "where a roll-out stood cannot be read");
                None
            });
        let mut programs = Programs::new(start.desired.sq.clone(), kept.unwrap_or_default());
        programs.want(start.desired.sq.clone());
        let proved = programs.proved().identity();
        known.values_mut().filter(|known| known.program.is_empty()).for_each(|known| known.program.clone_from(&proved));
        let backups = Backups::new(world.records().kept(Memo::Backups)?, now);
        let following = Following::new(world.records().kept(Memo::GitOps)?, now);
        let alerting = Alerting::new(world.records().kept(Memo::Alerts)?, alerts::life(&start.boot_id), unix_now, now);
        let mut seen = world.records().usage_seen()?;
        seen.retain(|id, _| known.contains_key(id));
        let history = History::new(seen);
        let fingerprint = world.fingerprint();
        let mut core = Self {
            world,
            intake: Intake::new(fingerprint, start.refused, now),
            started_with: start.desired.clone(),
            started: now,
            started_at: unix_now,
            observed: Observed { known, ..Observed::default() },
            desired: start.desired,
            processes: BTreeMap::new(),
            memory: HashMap::new(),
            found,
            instances,
            looks: BTreeMap::new(),
            looked: 0,
            boot_id: start.boot_id,
            held: None,
            routes,
            ports,
            queue: StartQueue::new(start.starts),
            health: Health::new(),
            programs,
            proxy: ProxyStatus::default(),
            admin: AdminStatus::default(),
            backups,
            following,
            keeping: Keeping::new(now),
            waiting: Vec::new(),
            room: Room::default(),
            certificates: Certificates::default(),
            alerting,
            history,
            touched: BTreeSet::new(),
            draining: Vec::new(),
            unproved: Vec::new(),
            replan: true,
            planned: 0,
            surveying: false,
            settled: false,
            phase: Phase::Serving,
            // The first tick at once, for an edit since the file was loaded: an install of sq may lie in between.
            timers: Timers { tick: now, survey: now + FIRST_SURVEY, wheel: now + Health::STEP, answers: now + FAR, retry: now + FAR },
        };
        core.tell_of_rebuild(start.corrupt_records.as_deref(), back);
        let slots: Vec<(TenantId, u32)> = core.observed.known.iter().map(|(id, known)| (id.clone(), known.slot)).collect();
        for (id, slot) in slots {
            core.meet(&id, slot);
        }
        for stray in strays {
            // It may serve until its tenant has a place again: then it is looked at, drained and stopped.
            if core.desired.tenants.contains_key(&stray.id) {
                core.found.entry(stray.id.clone()).or_default().push(stray);
            } else {
                core.end_stray(&stray);
            }
        }
        Ok(core)
    }

    /// The proxy's addresses as they came to be, for status: port 0 is some port by now.
    pub fn listens_on(&mut self, addresses: &[SocketAddr]) {
        self.proxy.listen = addresses.iter().map(ToString::to_string).collect();
    }

    /// Whether something that an earlier agent started may still run.
    pub fn found_instances(&self) -> bool {
        !self.found.is_empty()
    }

    /// What the loop knows of the world.
    pub fn observed(&self) -> &Observed {
        &self.observed
    }

    /// Removals that wait for a person.
    pub fn held(&self) -> Option<&Held> {
        self.held.as_ref()
    }

    /// Plans for whoever needs it, carries the plan out, begins starts, and publishes. To be called after each piece of news.
    pub fn round(&mut self, now: Moment) {
        if self.is_stopping() {
            self.touched.clear();
            if std::mem::take(&mut self.replan) {
                self.look_at_unknown();
            }
        } else {
            self.roll_out(now);
            self.converge(now);
        }
        self.begin_starts(now);
        self.begin_keeping();
        if self.settled(now) || !self.draining.is_empty() || !self.unproved.is_empty() {
            self.publish(now);
        }
        self.answer_waiting(now);
        let next_try = plan::next_try(&self.observed).into_iter().chain(self.next_roll_out(now)).min().filter(|_| !self.is_stopping());
        self.timers.answers = if self.world.is_asking() { self.timers.answers.min(now + Health::STEP) } else { now + FAR };
        self.timers.retry = next_try.unwrap_or(now + FAR).max(now + RETRY_PAUSE);
        self.gather_alerts(now);
    }

    /// Plans for everybody where that is due, else for whoever needs it, and carries it out.
    fn converge(&mut self, now: Moment) {
        let touched = std::mem::take(&mut self.touched);
        if std::mem::take(&mut self.replan) {
            let actions = plan::plan(&self.desired, &self.observed, now);
            self.planned = actions.len();
            self.note_held(actions.iter().find_map(|action| if let Action::Hold(held) = action { Some(held.clone()) } else { None }));
            self.alerting.planned();
            self.carry_out(actions, now);
        } else {
            for id in touched {
                let actions = plan::plan_tenant(&self.desired, &self.observed, &id, now);
                self.carry_out(actions, now);
            }
        }
    }

    /// When [`Self::wake`] is to be called, if no news comes before.
    pub fn wake_at(&self) -> Moment {
        let Timers { tick, survey, wheel, answers, retry } = self.timers;
        let soonest = tick.min(survey).min(wheel).min(answers).min(retry).min(self.alerting.wake_at());
        [self.next_look_at_repository(), self.next_answer()].into_iter().flatten().fold(soonest, Moment::min)
    }

    /// Does what is due by the clock.
    pub fn wake(&mut self, now: Moment) {
        let due = |timer: &mut Moment, period: Duration| {
            let due = now >= *timer;
            if due {
                *timer = now + period;
            }
            due
        };
        if due(&mut self.timers.tick, TICK) {
            self.reload(now);
            self.replan = true;
            self.keep_by_the_hour(now);
            self.world.heartbeat();
            self.look_at_disk();
            self.mend_records();
            self.keep_history();
            self.back_up(now);
            self.look_at_certificates();
        }
        if self.next_look_at_repository().is_some_and(|due| now >= due) {
            self.follow_repository(now);
        }
        if due(&mut self.timers.survey, SURVEY) {
            self.survey(now);
        }
        let turns = due(&mut self.timers.wheel, Health::STEP);
        if due(&mut self.timers.answers, FAR) || turns {
            self.take_in_answers(now);
        }
        if turns && !self.is_stopping() {
            let idle = self.turn_wheel(now);
            self.timers.wheel = now + Health::STEP * (1 + idle);
        }
        if due(&mut self.timers.retry, FAR) {
            self.replan = true;
        }
        self.tend_alerts(now);
    }

    /// Whether the agent was told to stop and nothing that it started, or found, is left.
    pub fn is_over(&self) -> bool {
        let at_once = self.phase == Phase::StoppingAtOnce;
        let gone = |known: &Known| known.state == State::Absent || (at_once && known.state == State::Unknown);
        // Whoever comes next may start what its files are being replaced for.
        let at_work = |known: &Known| known.files.is_some();
        self.is_stopping() && self.observed.known.values().all(|known| gone(known) && !at_work(known))
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.phase != Phase::Serving
    }

    /// Whether the rows in the table are this agent's.
    pub(super) fn is_settled(&self) -> bool {
        self.settled
    }

    /// At the start the table keeps the rows of an earlier agent until it is clear which instances live, so that no request
    /// waits for what was ready all along.
    fn settled(&mut self, now: Moment) -> bool {
        let open = |known: &Known| matches!(known.state, State::Unknown | State::Looking);
        self.settled = self.settled || now.since(self.started) >= SETTLE || !self.observed.known.values().any(open);
        self.settled
    }

    /// Instances drain only once the rows that say so stand in the table; where it cannot be written, the next round tries again.
    fn publish(&mut self, now: Moment) {
        if let Some(rows) = self.routes.unpublished(&self.observed, now) {
            match self.world.publish(rows) {
                Ok(()) => self.routes.published(),
                Err(error) => {
                    if self.routes.failed() {
                        tracing::error!(%error, "the route table cannot be written: tried again until it can, and no instance is stopped before");
                    }
                    return;
                }
            }
        }
        self.drain();
    }

    /// SIGINT or SIGTERM: drains and stops everything; the second time at once.
    pub fn stop(&mut self, now: Moment) {
        if self.is_stopping() { self.end_now() } else { self.stop_all(now) }
    }

    /// Looks at tenants.toml and at the keys and certificates that it names; what is new and valid is in force from here on.
    pub fn reload(&mut self, now: Moment) {
        if self.is_stopping() {
            return;
        }
        match self.intake.look(&mut self.world, &self.desired, now) {
            Taken::Same => {}
            Taken::Refused(text) => {
                tracing::error!(error = %text, "tenants.toml is refused; the last good one stays in force");
                self.note_event(None, "config_refused", &text);
            }
            Taken::New(new, text) => self.put_in_force(*new, &text),
        }
        self.renew_settings();
    }

    fn put_in_force(&mut self, new: Desired, text: &str) {
        let new = Arc::new(new);
        if new.hash != self.desired.hash {
            tracing::info!(hash = %new.hash, tenants = new.tenants.len(), "tenants.toml is in force");
        }
        let program_changed = new.sq != self.desired.sq;
        if program_changed {
            self.programs.want(new.sq.clone());
            self.keep_programs();
        }
        self.desired = new;
        self.alerting.stir();
        self.save_last_good(text);
        self.ports.range(self.desired.ports);
        self.ports.mean(self.desired.meant_ports());
        if program_changed {
            self.find_program();
        }
        let pending = intake::pending_restart(&self.started_with, &self.desired);
        if !pending.is_empty() {
            tracing::warn!(keys = ?pending, "these keys take effect when the agent starts anew");
        }
        self.replan = true;
    }

    fn note_held(&mut self, held: Option<Held>) {
        if let Some(held) = &held
            && self.held.as_ref() != Some(held)
        {
            tracing::warn!(removals = held.removals.len(), of = held.of, hash = %held.hash, "removals are held: `sq-agent confirm {}` lets them through", held.hash);
            self.note_event(None, "removals_held", &format!("{} of {} tenants, {}", held.removals.len(), held.of, held.hash));
        }
        if held.is_none() {
            self.observed.confirmed = None;
        }
        if held.is_some() != self.held.is_some() {
            self.alerting.stir();
        }
        self.held = held;
    }

    /// Notes an event for people; the loop goes on without it where the database cannot take it.
    pub(super) fn note_event(&mut self, id: Option<&TenantId>, kind: &str, detail: &str) {
        let unix_now = self.world.unix_now();
        if let Err(error) = self.world.records().event(unix_now, id, kind, detail) {
            tracing::error!(%error, kind, "an event cannot be noted");
        }
        self.alerting.stir();
    }
}
