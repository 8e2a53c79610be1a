//! The loop: one task owns all state, takes in what happened, plans, carries out, publishes the routes.

use std::{
    collections::{BTreeSet, HashMap},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval_at, sleep_until},
};

use super::{
    event::Event,
    guard::Held,
    health::Health,
    intake::{Intake, Taken},
    lifecycle::{Drain, Reports},
    plan::{self, Action},
    port_book::PortBook,
    queue::StartQueue,
    route_book::RouteBook,
};
use crate::{
    admin::{server::Asked, status::ProxyStatus},
    desired::{Desired, TenantId},
    instance::{binary::SqBinary, process::Process, pulse::Pulse, scan::Found, usage::Memory},
    observed::{Known, Moment, Observed, State},
    proxy::{settings::Settings, supervisor::ProxyEvent},
    route::Activity,
    secret::Secret,
    store::{InstanceRecord, Store, unix_now},
};

/// tenants.toml is compared by content this often, in case a watch event was lost.
const TICK: Duration = Duration::from_secs(5);
/// Everything that really runs is looked at this often.
pub(super) const SURVEY: Duration = Duration::from_secs(20);
/// The first look, soon after the start so that status knows what the instances use; what ran before was found at the start itself.
const FIRST_SURVEY: Duration = Duration::from_secs(3);
/// How long a starting agent may leave an earlier one's rows in force.
const SETTLE: Duration = Duration::from_secs(2);
/// How many events are taken in before the next look at the rest; bounds the delay of a publish.
const BATCH: usize = 256;

/// Everything the loop owns.
pub struct Agent {
    pub(super) desired: Arc<Desired>,
    /// As it was when the agent started, for what cannot change while it runs.
    pub(super) started_with: Arc<Desired>,
    pub(super) started: Moment,
    pub(super) intake: Intake,
    pub(super) observed: Observed,
    /// The live process of each tenant that has one.
    pub(super) processes: HashMap<TenantId, Arc<Process>>,
    /// Memory of each tenant's instance at the last survey.
    pub(super) memory: HashMap<TenantId, Memory>,
    /// What the last scan found of tenants whose instance is to be looked at.
    pub(super) found: HashMap<TenantId, Vec<Found>>,
    /// What the records say of instances that are to be looked at.
    pub(super) records: HashMap<TenantId, InstanceRecord>,
    pub(super) boot_id: String,
    pub(super) held: Option<Held>,
    pub(super) store: Store,
    pub(super) routes: RouteBook,
    pub(super) ports: PortBook,
    pub(super) queue: StartQueue,
    pub(super) health: Health,
    /// Probes under way.
    pub(super) pulse: Pulse<(TenantId, u64)>,
    pub(super) activity: Arc<Activity>,
    pub(super) instance_secret: Secret,
    pub(super) program: Option<SqBinary>,
    pub(super) proxy: ProxyStatus,
    pub(super) settings: watch::Sender<Arc<Settings>>,
    pub(super) reports: Reports,
    /// Tenants that need a plan of their own before the next full one.
    pub(super) touched: BTreeSet<TenantId>,
    /// Instances whose row has to say `draining` before anybody looks at what is in flight.
    pub(super) draining: Vec<Drain>,
    /// The next round plans for everybody.
    pub(super) replan: bool,
    pub(super) surveying: bool,
    /// The rows in the table are this agent's.
    pub(super) settled: bool,
    /// The agent ends: nothing is started any more.
    pub(super) stopping: bool,
}

/// Where news comes from.
pub struct Inputs {
    /// From the tasks that carry out actions.
    pub events: mpsc::UnboundedReceiver<Event>,
    /// From the watch on tenants.toml.
    pub changed: mpsc::Receiver<()>,
    /// From the proxy.
    pub proxy: mpsc::Receiver<ProxyEvent>,
    /// From the agent's socket.
    pub questions: mpsc::Receiver<Asked>,
    /// SIGHUP, and the end.
    pub signals: mpsc::Receiver<Signal>,
}

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGHUP: read tenants.toml and everything it names again.
    Reload,
    /// SIGINT or SIGTERM: drain and stop everything.
    Stop,
}

impl Agent {
    /// Converges until it is told to stop; then everything it started has ended, except where a second signal cut that short.
    pub async fn run(mut self, mut inputs: Inputs) -> Self {
        // At once, for an edit since the file was loaded: an install of sq may lie in between.
        let mut tick = every(TICK, Duration::ZERO);
        let mut survey = every(SURVEY, FIRST_SURVEY);
        let mut probes = every(Health::STEP, Health::STEP);
        self.replan = true;
        loop {
            self.round();
            if self.stopping && self.nothing_runs() {
                return self;
            }
            let next_try = self.next_try();
            tokio::select! {
                Some(event) = inputs.events.recv() => {
                    self.take_in(event);
                    for _ in 1..BATCH {
                        let Ok(event) = inputs.events.try_recv() else { break };
                        self.take_in(event);
                    }
                }
                Some(()) = inputs.changed.recv() => self.reload(),
                Some(event) = inputs.proxy.recv() => self.hear_proxy(event),
                Some((question, answer)) = inputs.questions.recv() => {
                    // A command that did not wait for its answer is no error.
                    let _ = answer.send(self.answer(question));
                }
                Some(signal) = inputs.signals.recv() => match signal {
                    Signal::Reload => {
                        self.reload();
                        self.renew_settings();
                    }
                    Signal::Stop if self.stopping => self.end_now(),
                    Signal::Stop => self.stop_all(),
                },
                _ = tick.tick() => {
                    self.reload();
                    self.replan = true;
                    self.routes.heartbeat();
                }
                _ = survey.tick() => self.survey(),
                _ = probes.tick() => self.probe(),
                () = sleep_until(next_try) => self.replan = true,
            }
        }
    }

    /// Plans for whoever needs it, carries the plan out, begins starts, and publishes.
    fn round(&mut self) {
        let now = Moment::now();
        if self.stopping {
            self.touched.clear();
        } else if std::mem::take(&mut self.replan) {
            self.touched.clear();
            let actions = plan::plan(&self.desired, &self.observed, now);
            self.note_held(actions.iter().find_map(|action| if let Action::Hold(held) = action { Some(held.clone()) } else { None }));
            self.carry_out(actions, now);
        } else {
            for id in std::mem::take(&mut self.touched) {
                let actions = plan::plan_tenant(&self.desired, &self.observed, &id, now);
                self.carry_out(actions, now);
            }
        }
        self.begin_starts(now);
        if self.settled(now) || !self.draining.is_empty() {
            self.routes.publish(&self.observed, now);
        }
        self.drain();
    }

    /// At the start the table keeps the rows of an earlier agent until it is clear which instances live, so that no request
    /// waits for what was ready all along.
    fn settled(&mut self, now: Moment) -> bool {
        let open = |known: &Known| matches!(known.state, State::Unknown | State::Looking);
        self.settled = self.settled || now.since(self.started) >= SETTLE || !self.observed.known.values().any(open);
        self.settled
    }

    /// Whether nothing that this agent started, or found, is left.
    fn nothing_runs(&self) -> bool {
        self.observed.known.values().all(|known| matches!(known.state, State::Absent | State::Unknown))
    }

    fn next_try(&self) -> Instant {
        let far = Duration::from_secs(3_600);
        let wait = plan::next_try(&self.observed).filter(|_| !self.stopping).map_or(far, |at| Moment::now().until(at));
        // A back-off that is over while its start waits in the queue must not spin the loop.
        Instant::now() + wait.max(Duration::from_millis(50))
    }

    /// Looks at tenants.toml; what is new and valid is in force from here on.
    pub(super) fn reload(&mut self) {
        if self.stopping {
            return;
        }
        match self.intake.look(&self.desired, Moment::now()) {
            Taken::Same => {}
            Taken::Refused(text) => {
                tracing::error!(error = %text, "tenants.toml is refused; the last good one stays in force");
                self.note_event(None, "config_refused", &text);
            }
            Taken::New(new, text) => self.put_in_force(*new, &text),
        }
    }

    fn put_in_force(&mut self, new: Desired, text: &str) {
        let new = Arc::new(new);
        if new.hash != self.desired.hash {
            tracing::info!(hash = %new.hash, tenants = new.tenants.len(), "tenants.toml is in force");
        }
        let program_changed = new.sq != self.desired.sq;
        let settings_changed = new.proxy != self.desired.proxy;
        self.desired = new;
        self.save_last_good(text);
        self.ports.range(self.desired.ports);
        if settings_changed {
            self.renew_settings();
        }
        if program_changed {
            self.find_program();
        }
        let pending = super::intake::pending_restart(&self.started_with, &self.desired);
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
        self.held = held;
    }

    /// Notes an event for people; the loop goes on without it where the database cannot take it.
    pub(super) fn note_event(&mut self, id: Option<&TenantId>, kind: &str, detail: &str) {
        if let Err(error) = self.store.event(unix_now(), id, kind, detail) {
            tracing::error!(%error, kind, "an event cannot be noted");
        }
    }

    /// Where a tenant's directory is.
    pub(super) fn user_dir(&self, id: &TenantId) -> PathBuf {
        self.desired.user_dir(id)
    }
}

fn every(period: Duration, first: Duration) -> tokio::time::Interval {
    let mut interval = interval_at(Instant::now() + first, period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}
