//! Runs one seed: agent and host by a clock that only moves from one event to the next.

use std::{
    cell::RefCell,
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
    time::Duration,
};

use sq_agent::{
    admin::{
        question::{Question, Reply},
        status::{RestoreRequest, Status},
    },
    desired::TenantId,
    observed::{self, Moment},
    proxy::{NudgeReason, supervisor::ProxyEvent},
    reconcile::{
        core::{Core, Start},
        event::{Change, Event, Look, NotStarted},
        port_book::QUARANTINE,
    },
    route::RouteState,
    snapshot::{Name, Reason},
};

use crate::{
    check,
    coverage::Coverage,
    hands::{SimWorld, load_at_start},
    records::AgentDied,
    script::{Edit, Step, TENANTS, What},
    state::{FIRST_PORT, News, Next, Plant, Proc, STARTS, Shared, State, id, program, tenant, trace},
    tasks::{binary, proc},
};

/// By then all is as desired, once nothing goes wrong any more, ms. Each of nine hanging instances may have to wait a minute for
/// its turn, after back-offs of 75 s.
const CONVERGES_WITHIN: u64 = 900_000;
/// As desired, and nothing done for this long, counts.
const CALM: u64 = 30_000;
/// What is to be told of a storm is gathered for a minute.
const TOLD_WITHIN: u64 = 180_000;

/// What came of one run.
pub(crate) struct Outcome {
    /// Of the trace: the same for the same seed.
    pub(crate) hash: u64,
    pub(crate) violation: Option<String>,
    pub(crate) coverage: Coverage,
    pub(crate) trace: Vec<String>,
}

/// How to run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    pub(crate) plant: Option<Plant>,
    /// How long nothing may happen once all is as desired.
    pub(crate) calm: Calm,
    pub(crate) verbose: bool,
}

/// How long a run is watched once all is as desired.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Calm {
    /// An hour.
    Hour,
    /// An hour for one seed in 16, five minutes for the rest.
    MostlyShort,
}

impl Calm {
    /// In ms.
    fn of(self, seed: u64) -> u64 {
        const MINUTE: u64 = 60_000;
        match self {
            Self::MostlyShort if !seed.is_multiple_of(16) => 5 * MINUTE,
            _ => 60 * MINUTE,
        }
    }
}

/// Runs the script of a seed.
pub(crate) fn run(seed: u64, steps: &[Step], end: u64, options: Options) -> Outcome {
    let state = Rc::new(RefCell::new(State::new(seed, options.plant, options.verbose)));
    let mut engine = Engine { state, agent: None, stopping: false };
    engine.script(steps);
    engine.until(|engine| engine.now() >= engine.begin() + end);
    engine.quiet();
    engine.converge();
    engine.stay(options.calm.of(seed));
    engine.told(options.calm.of(seed));
    engine.outcome()
}

struct Engine {
    state: Shared,
    agent: Option<Core<SimWorld>>,
    /// The agent was told to stop.
    stopping: bool,
}

impl Engine {
    const BEGIN: u64 = 1_000_000;

    fn begin(&self) -> u64 {
        Self::BEGIN
    }

    fn now(&self) -> u64 {
        self.state.borrow().now
    }

    fn script(&mut self, steps: &[Step]) {
        let mut state = self.state.borrow_mut();
        state.at(Self::BEGIN, Next::AgentStarts);
        for step in steps {
            state.at(Self::BEGIN + step.at, Next::Step(step.what));
        }
    }

    fn is_broken(&self) -> bool {
        self.state.borrow().violation.is_some()
    }

    /// Goes on until `done`, which is asked before each event.
    fn until(&mut self, done: impl Fn(&Self) -> bool) {
        while !self.is_broken() && !done(self) {
            self.step();
        }
    }

    /// The next thing that happens.
    fn step(&mut self) {
        let next = self.state.borrow().next_at();
        let wake = self.agent.as_ref().map(|core| core.wake_at().as_millis());
        match (next, wake) {
            (next, Some(wake)) if next.is_none_or(|next| wake < next) => {
                let now = {
                    let mut state = self.state.borrow_mut();
                    state.now = state.now.max(wake);
                    state.now
                };
                self.turn(|core| core.wake(Moment::from_millis(now)));
            }
            (Some(at), _) => {
                let next = {
                    let mut state = self.state.borrow_mut();
                    state.now = state.now.max(at);
                    state.pop()
                };
                next.into_iter().for_each(|next| self.happens(next));
            }
            (None, None) | (None, Some(_)) => self.state.borrow_mut().broken("nothing is to happen any more"),
        }
    }

    fn happens(&mut self, next: Next) {
        match next {
            Next::Step(what) => self.what(what),
            Next::AgentStarts => self.agent_starts(),
            Next::News(agent, news) => {
                if self.is_current(agent) {
                    self.news(news);
                }
            }
            Next::FileChanged(agent) if self.is_current(agent) => {
                let now = self.moment();
                self.turn(|core| core.reload(now));
            }
            Next::Nudge(agent, id, reason) if self.is_current(agent) => {
                let now = self.moment();
                self.turn(|core| core.hear_proxy(ProxyEvent::Nudge { id, reason }, now));
            }
            other => self.state.borrow_mut().go_on(other),
        }
    }

    fn moment(&self) -> Moment {
        Moment::from_millis(self.now())
    }

    fn is_current(&self, agent: u64) -> bool {
        self.agent.is_some() && self.state.borrow().agent == agent
    }

    fn news(&mut self, news: News) {
        {
            let mut state = self.state.borrow_mut();
            match &news {
                Event::Surveyed(survey) if survey.found.is_empty() => {}
                news => trace!(state, "news {news:?}"),
            }
            match &news {
                Event::Program(_, Ok(_)) => state.has_program = true,
                Event::Instance(id, epoch, Change::Exited(_)) => {
                    state.told.insert((id.clone(), *epoch));
                }
                Event::Instance(id, epoch, Change::Ready | Change::NotStarted(_)) => {
                    state.starting.remove(&(id.clone(), *epoch));
                    if matches!(&news, Event::Instance(_, _, Change::NotStarted(NotStarted::Failed(_) | NotStarted::PortTaken))) {
                        state.told.insert((id.clone(), *epoch));
                    }
                }
                // Told twice, it says nothing of what was started since.
                Event::Looked(id, number, Look::Gone | Look::Unproved(_)) if state.looks.insert(*number) => {
                    let gone: Vec<u64> = state.epochs.iter().filter(|(of, _)| of == id).map(|(_, epoch)| *epoch).collect();
                    let live: Vec<u64> = state.procs.values().filter(|proc| proc.id == *id).map(|proc| proc.epoch).collect();
                    state.told.extend(gone.into_iter().filter(|epoch| !live.contains(epoch)).map(|epoch| (id.clone(), epoch)));
                }
                _ => {}
            }
        }
        let now = self.moment();
        self.turn(|core| core.take_in(news, now));
    }

    /// The agent takes something in and does what follows from it, or dies on the way.
    fn turn(&mut self, act: impl FnOnce(&mut Core<SimWorld>)) {
        let now = self.moment();
        let Some(core) = &mut self.agent else { return };
        let done = catch_unwind(AssertUnwindSafe(|| {
            act(core);
            core.round(now);
        }));
        match done {
            Ok(()) => self.after_turn(),
            Err(why) => self.died(why),
        }
    }

    fn after_turn(&mut self) {
        let over = self.stopping && self.agent.as_ref().is_some_and(Core::is_over);
        if over {
            let mut state = self.state.borrow_mut();
            trace!(state, "the agent has stopped");
            let serves = |proc: &&Proc| proc.epoch > 0 && proc.listening && state.is_routed(proc) && !self.may_be_left(&state, &proc.id);
            if let Some(left) = state.procs.values().find(serves) {
                let rule = format!("{} epoch {} serves after the agent has stopped everything", left.id, left.epoch);
                state.broken(rule);
            }
            state.coverage.hit("agent_stopped");
            drop(state);
            self.gone(2_000);
        }
    }

    /// Told twice, the agent ends at once, and leaves to the next one whatever no look could tell anything of (a fault at each).
    fn may_be_left(&self, state: &State, id: &TenantId) -> bool {
        let known = self.agent.as_ref().and_then(|agent| agent.observed().known.get(id));
        state.hasty && known.is_some_and(|known| known.state == observed::State::Unknown)
    }

    fn died(&mut self, why: Box<dyn std::any::Any + Send>) {
        if !why.is::<AgentDied>() {
            self.state.borrow_mut().broken("the agent panicked");
            return;
        }
        self.killed();
    }

    /// The agent is gone in an instant. A process that is just being made may come to be all the same: the lock that keeps the next
    /// agent out is held until then.
    fn killed(&mut self) {
        let unborn = {
            let mut state = self.state.borrow_mut();
            trace!(state, "the agent is dead");
            state.coverage.hit("agent_killed");
            let agent = state.agent;
            state.take_out(|next| matches!(next, Next::Spawn(by, _) if *by == agent))
        };
        for next in unborn {
            let Next::Spawn(agent, start) = next else { continue };
            let mut state = self.state.borrow_mut();
            if state.rng.one_in(2) {
                state.coverage.hit("spawned_by_a_dead_agent");
                state.spawn(agent, start);
            }
        }
        let pause = self.state.borrow_mut().rng.between(10, 5_000);
        self.gone(pause);
    }

    fn gone(&mut self, pause: u64) {
        self.agent = None;
        self.stopping = false;
        let mut state = self.state.borrow_mut();
        state.crash = None;
        state.hasty = false;
        state.has_program = false;
        state.agent += 1;
        state.asked.clear();
        state.told.clear();
        state.looks.clear();
        state.starting.clear();
        state.at_files.clear();
        let unkept = state.unkept.take().unwrap_or_default();
        state.forgotten.extend(unkept);
        state.after(pause, Next::AgentStarts);
    }

    fn agent_starts(&mut self) {
        if self.agent.is_some() {
            return;
        }
        let now = self.moment();
        let (start, found) = {
            let mut state = self.state.borrow_mut();
            let Some((desired, refused)) = load_at_start(&mut state) else {
                state.after(1_000, Next::AgentStarts);
                return;
            };
            let agent = state.agent;
            trace!(state, "agent {agent} starts with version {}", desired.hash);
            state.agent_since = state.now;
            let quarantine = if state.plant == Some(Plant::ReusePort) { Duration::ZERO } else { QUARANTINE };
            let program = (state.until.no_program <= state.now).then(|| binary(&desired.sq));
            (Start { desired, refused, boot_id: "boot".into(), starts: STARTS, quarantine, corrupt_records: None }, program)
        };
        let (state, has_program) = (self.state.clone(), self.state.clone());
        let text = start.desired.hash.clone();
        let made = catch_unwind(AssertUnwindSafe(|| {
            let mut core = Core::new(SimWorld::new(state), start, now).map_err(|error| error.to_string())?;
            match found {
                _ if core.found_instances() => core.find_program(),
                Some(program) => {
                    has_program.borrow_mut().has_program = true;
                    core.set_program(program);
                }
                None => return Err("no program".to_owned()),
            }
            core.save_last_good(&text);
            core.round(now);
            Ok(core)
        }));
        match made {
            Ok(Ok(core)) => self.agent = Some(core),
            Ok(Err(error)) => {
                trace!(self.state.borrow_mut(), "the agent does not start: {error}");
                self.gone(1_000);
            }
            Err(why) => self.died(why),
        }
    }

    fn what(&mut self, what: What) {
        trace!(self.state.borrow_mut(), "step {what:?}");
        match what {
            What::Confirm => self.confirm(),
            What::Restart(of) => {
                let now = self.moment();
                self.turn(|core| drop(core.answer(Question::Restart(id(of)), now)));
            }
            What::Snapshot(of) => {
                let now = self.moment();
                self.turn(|core| drop(core.answer(Question::Snapshot(id(of)), now)));
            }
            What::Restore(of) => {
                let now = self.moment();
                let name = Name { at: 0, reason: Reason::Asked };
                let wish = RestoreRequest { from: id(0), name, file: None, to: id(of) };
                self.turn(|core| drop(core.answer(Question::Restore(wish), now)));
            }
            What::Kill if self.agent.is_some() => self.killed(),
            What::HandOver if self.agent.is_some() => {
                self.state.borrow_mut().coverage.hit("agent_handed_over");
                let pause = self.state.borrow_mut().rng.between(5, 300);
                self.gone(pause);
            }
            What::Stop { twice } if self.agent.is_some() => self.stop(twice),
            What::Crash(crash) => self.state.borrow_mut().crash = Some(crash),
            other => self.state.borrow_mut().fault(other),
        }
    }

    fn confirm(&mut self) {
        let now = self.moment();
        let Some(hash) = self.agent.as_ref().and_then(Core::held).map(|held| held.hash.clone()) else { return };
        self.turn(|core| drop(core.answer(Question::Confirm(hash), now)));
    }

    fn stop(&mut self, twice: bool) {
        let again = std::mem::replace(&mut self.stopping, true);
        self.state.borrow_mut().hasty |= again;
        let now = self.moment();
        self.turn(|core| core.stop(now));
        if twice {
            self.state.borrow_mut().hasty = true;
            self.turn(|core| core.stop(now));
        }
    }

    /// Nothing goes wrong from here on.
    fn quiet(&mut self) {
        let mut state = self.state.borrow_mut();
        trace!(state, "quiet");
        state.quiet = true;
        let now = state.now;
        state.crash = None;
        state.take_out(|next| matches!(next, Next::Step(_)));
        let strangers = state
            .until
            .strangers
            .iter()
            .filter(|(_, until)| **until > now + 1_000_000)
            .take(2)
            .map(|(port, until)| (*port, *until))
            .collect();
        state.until = crate::state::Until { strangers, ..Default::default() };
        if state.file.broken {
            state.file.broken = false;
            let agent = state.agent;
            state.after(1, Next::FileChanged(agent));
        }
    }

    fn converge(&mut self) {
        let limit = self.now() + CONVERGES_WITHIN;
        let mut calm_since = None;
        let mut changes = 0;
        while !self.is_broken() {
            self.step();
            let state = self.state.borrow();
            let why = match &self.agent {
                Some(_) if self.stopping => Some("the agent stops".to_owned()),
                Some(core) => check::not_as_desired(&state, core),
                None => Some("no agent runs".to_owned()),
            };
            if let Some(why) = why {
                calm_since = None;
                if state.now > limit {
                    drop(state);
                    return self.state.borrow_mut().broken(format!("not as desired in time: {why}"));
                }
            } else if changes != state.changes || calm_since.is_none() {
                calm_since = Some(state.now);
            }
            changes = state.changes;
            if calm_since.is_some_and(|since| state.now >= since + CALM) {
                return;
            }
            if state.now > limit + CALM {
                drop(state);
                return self.state.borrow_mut().broken("as desired, and not at rest".to_owned());
            }
        }
    }

    /// As desired, it stays so, and nothing is done.
    fn stay(&mut self, calm: u64) {
        if self.is_broken() {
            return;
        }
        self.state.borrow_mut().frozen = true;
        let end = self.now() + calm;
        self.until(|engine| engine.now() >= end);
        let why = self.agent.as_ref().and_then(|core| check::not_as_desired(&self.state.borrow(), core));
        if let Some(why) = why {
            self.state.borrow_mut().broken(format!("did not stay as desired: {why}"));
        }
    }

    /// What whoever is told believes is so, and all that holds was told.
    fn told(&mut self, calm: u64) {
        let end = self.now() + TOLD_WITHIN;
        self.until(|engine| engine.now() >= end || engine.agent.as_ref().is_some_and(Core::has_told_all));
        let now = self.moment();
        if self.is_broken() {
            return;
        }
        let Some(core) = &mut self.agent else { return };
        let Reply::Now(Ok(status)) = core.answer(Question::Status, now) else { return };
        let status: Status = serde_json::from_slice(&status).unwrap_or_else(|error| unreachable!("{error}"));
        let rule = check::alerts(&self.state.borrow(), &status, core, calm);
        if let Some(rule) = rule {
            self.state.borrow_mut().broken(rule);
        }
    }

    fn outcome(self) -> Outcome {
        let mut state = self.state.borrow_mut();
        Outcome {
            hash: state.trace.hash,
            violation: state.violation.take(),
            coverage: std::mem::take(&mut state.coverage),
            trace: state.trace.lines.take().unwrap_or_default(),
        }
    }
}

impl State {
    fn fault(&mut self, what: What) {
        let now = self.now;
        match what {
            What::Die(of) => {
                if let Some(pid) = self.pid(of) {
                    self.die(pid, sq_agent::instance::Exit::Signal(9));
                }
            }
            What::Hang(of) => self.change(of, |proc| proc.hangs = true),
            What::Stubborn(of) => self.change(of, |proc| proc.stubborn = true),
            What::Immortal { tenant, for_ms } => self.change(tenant, |proc| proc.immortal_until = now + for_ms),
            What::StartsFail { tenant, for_ms } => {
                self.until.starts_fail.insert(id(tenant), now + for_ms);
            }
            What::SlowStarts { for_ms } => self.until.slow_starts = now + for_ms,
            What::Stranger { port, for_ms } => {
                if self.listener(FIRST_PORT + port).is_none() {
                    self.until.strangers.insert(FIRST_PORT + port, now + for_ms);
                }
            }
            What::Foreign(of) => {
                // Outside the range: a person who starts one by hand takes some port.
                let pid = self.add(proc(&id(of), 0, 9_000 + u16::from(of), "by hand".into()));
                self.change_pid(pid, |proc| proc.listening = true);
            }
            What::Request { tenant, for_ms } => self.request(tenant, for_ms),
            What::Nudge(of, reason) => {
                if reason == NudgeReason::InDoubt {
                    self.doubts.insert(id(of));
                }
                self.nudge(of, reason);
            }
            What::Edit(edit) => self.edit(edit),
            What::WallJump { seconds } => {
                self.wall += seconds;
                self.coverage.hit("wall_clock_jumped");
            }
            What::RecordsFail { for_ms } => self.until.records_fail = now + for_ms,
            What::LooksFail { for_ms } => self.until.looks_fail = now + for_ms,
            What::PublishFails { for_ms } => self.until.publish_fails = now + for_ms,
            What::NoProgram { for_ms } => self.until.no_program = now + for_ms,
            What::Slow { for_ms } => self.until.slow = now + for_ms,
            What::Doubled { for_ms } => self.until.doubled = now + for_ms,
            What::Confirm
            | What::Restart(_)
            | What::Snapshot(_)
            | What::Restore(_)
            | What::Kill
            | What::HandOver
            | What::Stop { .. }
            | What::Crash(_) => {}
        }
    }

    fn pid(&self, of: u8) -> Option<u32> {
        let id = id(of);
        self.procs.iter().find(|(_, proc)| proc.id == id && proc.epoch > 0).map(|(pid, _)| *pid)
    }

    fn change(&mut self, of: u8, change: impl FnOnce(&mut crate::state::Proc)) {
        if let Some(pid) = self.pid(of) {
            self.change_pid(pid, change);
        }
    }

    fn change_pid(&mut self, pid: u32, change: impl FnOnce(&mut crate::state::Proc)) {
        if let Some(proc) = self.procs.get_mut(&pid) {
            change(proc);
        }
    }

    /// A user's request: forwarded where the row is ready, else parked, which wakes the agent.
    fn request(&mut self, of: u8, for_ms: u64) {
        let id = id(of);
        let Some(row) = self.row(&id).cloned() else { return };
        if row.state != RouteState::Ready {
            return self.nudge(of, NudgeReason::Parked);
        }
        let met = self.procs.iter().find(|(_, proc)| proc.port == row.port && proc.listening).map(|(pid, proc)| (*pid, proc.clone()));
        match met {
            None if self.stranger_on(row.port) => self.nudge(of, NudgeReason::WrongInstance),
            None => self.nudge(of, NudgeReason::Refused),
            Some((_, proc)) if proc.id != id || proc.epoch != row.epoch => self.nudge(of, NudgeReason::WrongInstance),
            Some((pid, _)) => {
                let end = self.now + for_ms;
                self.flights.entry(row.slot).or_default().push((pid, end));
                self.at(end, Next::RequestEnds(row.slot, pid, end));
            }
        }
    }

    fn nudge(&mut self, of: u8, reason: NudgeReason) {
        let delay = self.rng.between(1, 10);
        let agent = self.agent;
        self.after(delay, Next::Nudge(agent, id(of), reason));
    }

    fn edit(&mut self, edit: Edit) {
        match edit {
            Edit::Add(of) => self.save(|wanted| {
                wanted.tenants.entry(id(of)).or_insert_with(|| tenant(of));
            }),
            Edit::Remove(of) => self.save(|wanted| {
                wanted.tenants.remove(&id(of));
            }),
            Edit::Suspend(of) | Edit::Resume(of) => self.save(|wanted| {
                if let Some(tenant) = wanted.tenants.get_mut(&id(of)) {
                    tenant.suspended = matches!(edit, Edit::Suspend(_));
                }
            }),
            Edit::Tier(of) => self.save(|wanted| {
                if let Some(tenant) = wanted.tenants.get_mut(&id(of)) {
                    tenant.limits.burst += 1;
                }
            }),
            Edit::Program => {
                let number = self.rng.below(3) as u32 + 1;
                self.save(|wanted| wanted.sq = program(number));
            }
            Edit::PublicUrl => {
                let version = self.file.version;
                self.save(|wanted| wanted.proxy.public_url = Some(format!("https://{version}.example")));
            }
            Edit::RemoveMost => self.save(|wanted| wanted.tenants.retain(|of, _| of.as_str() >= "t6")),
            Edit::Empty => self.save(|wanted| wanted.tenants.clear()),
            Edit::All => self.save(|wanted| {
                (0..TENANTS).for_each(|of| {
                    wanted.tenants.entry(id(of)).or_insert_with(|| tenant(of));
                })
            }),
            Edit::Break => self.file.broken = true,
        }
        // The watch waits for 100 ms of quiet; one time in four its event is lost, and the tick sees the file.
        if !self.rng.one_in(4) {
            let agent = self.agent;
            self.after(100, Next::FileChanged(agent));
        }
    }
}
