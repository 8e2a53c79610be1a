//! The simulated host: processes, files, records, the route table, and what is to happen next.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    sync::Arc,
};

use sq_agent::{
    alerts::{Channel, Key, Outcome},
    desired::{Alerts, Desired, IsolationMode, Limits, PortRange, Proxy, Snapshots, SqSource, Tenant, TenantId},
    instance::scan::Found,
    reconcile::{
        event::{Drain, Event, Unproved},
        world::{Handle, Start},
    },
    route::{RouteState, Row},
    store::TenantRecord,
};

use crate::{
    calls::Call,
    coverage::Coverage,
    rng::Rng,
    script::{Crash, CrashAt, PORTS, TENANTS, What},
};

pub(crate) const FIRST_PORT: u16 = 10_001;
/// How many starts of each kind may run at once.
pub(crate) const STARTS: usize = 2;

/// A bug that is put in to see whether it is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plant {
    /// TERM without waiting for what is in flight.
    SkipDrain,
    /// The end of an instance is not told, one time in four.
    DropExit,
    /// A port rests for no time.
    ReusePort,
}

/// A handle on a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SimProcess {
    pub(crate) pid: u32,
}

impl Handle for SimProcess {
    fn pid(&self) -> u32 {
        self.pid
    }
    fn start_time(&self) -> u64 {
        u64::from(self.pid)
    }
}

pub(crate) type News = Event<SimProcess>;

/// Whoever lives in a tenant's directory.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Proc {
    pub(crate) id: TenantId,
    /// 0: started by hand.
    pub(crate) epoch: u64,
    pub(crate) port: u16,
    pub(crate) program: String,
    pub(crate) listening: bool,
    pub(crate) hangs: bool,
    pub(crate) stubborn: bool,
    pub(crate) immortal_until: u64,
    /// A signal is on its way that ends it.
    pub(crate) dying: bool,
    /// Agents that wait for its end, and how they call it.
    pub(crate) watchers: Vec<Watcher>,
}

/// Who is told when a process ends.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Watcher {
    /// A start that is not proved yet.
    Start { agent: u64, id: TenantId, epoch: u64, gave_up: bool },
    /// An instance.
    Instance { agent: u64, id: TenantId, epoch: u64 },
    /// One of several that are ended in turn.
    Ending { agent: u64, ending: Ending },
}

/// Several processes that are ended in turn.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Ending {
    pub(crate) id: TenantId,
    pub(crate) left: Vec<SimProcess>,
    /// The loop hears of the last exit.
    pub(crate) told: bool,
    /// From here on requests in flight do not count, ms.
    pub(crate) deadline: u64,
}

/// What is to happen.
#[derive(Debug, Clone)]
pub(crate) enum Next {
    Step(What),
    /// A new agent begins.
    AgentStarts,
    /// The watch on tenants.toml fires.
    FileChanged(u64),
    News(u64, News),
    Nudge(u64, TenantId, sq_agent::proxy::NudgeReason),
    Spawn(u64, Start),
    Listen(u32),
    StartTimesOut(u64, TenantId, u64, u32),
    Dies(u32, sq_agent::instance::Exit),
    DrainLooks(u64, Drain<SimProcess>, u64),
    KillAfterTerm(u64, u32),
    GiveUp(u64, TenantId, u64, u32),
    UnprovedLooks(u64, Unproved<SimProcess>, u64),
    EndOne(u64, Ending),
    LookNow(u64, TenantId, (u64, u64), Option<Vec<Found>>),
    SurveyNow(u64, BTreeSet<u32>),
    Kept(u64, u64, TenantId),
    Restored(u64, u64, TenantId),
    ProgramFound(u64, SqSource),
    /// The agent learns what came of an alert.
    Alerted(u64, Channel, u64, Outcome),
    RequestEnds(u32, u32, u64),
}

/// A question that waits for its answer.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) id: TenantId,
    pub(crate) epoch: u64,
    pub(crate) port: u16,
    pub(crate) at: u64,
}

/// tenants.toml.
#[derive(Debug, Clone)]
pub(crate) struct File {
    pub(crate) version: u32,
    pub(crate) broken: bool,
    pub(crate) wanted: Rc<Desired>,
}

/// Faults that last until a moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Until {
    pub(crate) starts_fail: BTreeMap<TenantId, u64>,
    pub(crate) slow_starts: u64,
    pub(crate) strangers: BTreeMap<u16, u64>,
    pub(crate) records_fail: u64,
    pub(crate) looks_fail: u64,
    pub(crate) publish_fails: u64,
    pub(crate) no_program: u64,
    pub(crate) slow: u64,
    pub(crate) doubled: u64,
}

/// Everything outside the agent.
pub(crate) struct State {
    pub(crate) rng: Rng,
    /// Monotonic clock, ms.
    pub(crate) now: u64,
    /// What the wall clock is ahead of it, seconds.
    pub(crate) wall: i64,
    queue: BTreeMap<(u64, u64), Next>,
    numbered: u64,
    /// Number of the agent that lives or lived last: what is meant for another one goes nowhere.
    pub(crate) agent: u64,
    pub(crate) agent_since: u64,
    pub(crate) crash: Option<Crash>,
    pub(crate) procs: BTreeMap<u32, Proc>,
    next_pid: u32,
    /// Starts that were ever made.
    pub(crate) epochs: BTreeSet<(TenantId, u64)>,
    /// Ends (tenant and epoch) that the living agent was told.
    pub(crate) told: BTreeSet<(TenantId, u64)>,
    /// The looks of which the living agent was told.
    pub(crate) looks: BTreeSet<u64>,
    /// When an instance last had the port, and whose it was.
    pub(crate) port_used: BTreeMap<u16, (u64, TenantId)>,
    /// Starts that the living agent has begun and not heard the end of.
    pub(crate) starting: BTreeSet<(TenantId, u64)>,
    /// When the latest news of a tenant arrives: news of one tenant comes in order.
    last_news: BTreeMap<TenantId, u64>,
    /// Tenants whose files the living agent is at, while nothing of them may run.
    pub(crate) at_files: BTreeSet<TenantId>,
    pub(crate) file: File,
    pub(crate) versions: BTreeMap<String, Rc<Desired>>,
    pub(crate) last_good: Option<Rc<Desired>>,
    pub(crate) until: Until,
    /// Requests in flight: process and end, by slot.
    pub(crate) flights: BTreeMap<u32, Vec<(u32, u64)>>,
    pub(crate) last_answer: BTreeMap<u32, u32>,
    pub(crate) asked: Vec<Asked>,
    pub(crate) table: Vec<Row>,
    pub(crate) generation: u64,
    pub(crate) records: BTreeMap<TenantId, TenantRecord>,
    pub(crate) quarantine: BTreeMap<u16, u64>,
    pub(crate) next_slot: u32,
    /// Where the roll-out of programs stands.
    pub(crate) programs: Option<String>,
    /// Which alerts are open, and what is to be sent.
    pub(crate) alerts: Option<String>,
    /// Whom the alerts reach knows of each what was said last: that it holds.
    pub(crate) heard: BTreeMap<Key, bool>,
    /// What was said since the records last refused to keep it: what an agent that ends now leaves to nobody. None: they keep it.
    pub(crate) unkept: Option<BTreeSet<Key>>,
    /// What was said by an agent that ended so: whether it holds nobody knows any more.
    pub(crate) forgotten: BTreeSet<Key>,
    /// Calls that change something.
    pub(crate) changes: u64,
    /// From here on nothing goes wrong any more.
    pub(crate) quiet: bool,
    /// From here on nothing is to change any more.
    pub(crate) frozen: bool,
    /// The living agent has a program to start.
    pub(crate) has_program: bool,
    /// A write to them broke off, and what it left was not put back.
    pub(crate) doubts: BTreeSet<TenantId>,
    /// Instances are told to end without waiting: a second signal.
    pub(crate) hasty: bool,
    pub(crate) plant: Option<Plant>,
    pub(crate) coverage: Coverage,
    pub(crate) violation: Option<String>,
    pub(crate) trace: Trace,
}

/// What happened: always as a hash, as text where somebody wants to read it.
#[derive(Debug)]
pub(crate) struct Trace {
    pub(crate) hash: u64,
    pub(crate) lines: Option<Vec<String>>,
}

impl std::fmt::Write for Trace {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        // FNV-1a.
        for byte in text.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        Ok(())
    }
}

macro_rules! trace {
    ($state:expr, $($arg:tt)*) => {
        $state.note(format_args!($($arg)*))
    };
}
pub(crate) use trace;

impl State {
    pub(crate) fn new(seed: u64, plant: Option<Plant>, verbose: bool) -> Self {
        let mut rng = Rng::new(seed);
        let count = rng.between(2, u64::from(TENANTS)) as u8;
        let wanted = Rc::new(desired((0..count).map(tenant), 0, 1));
        Self {
            rng,
            now: 1_000_000,
            wall: 1_800_000_000,
            queue: BTreeMap::new(),
            numbered: 0,
            agent: 0,
            agent_since: 0,
            crash: None,
            procs: BTreeMap::new(),
            next_pid: 100,
            epochs: BTreeSet::new(),
            told: BTreeSet::new(),
            looks: BTreeSet::new(),
            port_used: BTreeMap::new(),
            starting: BTreeSet::new(),
            last_news: BTreeMap::new(),
            at_files: BTreeSet::new(),
            versions: BTreeMap::from([(wanted.hash.clone(), wanted.clone())]),
            file: File { version: 1, broken: false, wanted },
            last_good: None,
            until: Until::default(),
            flights: BTreeMap::new(),
            last_answer: BTreeMap::new(),
            asked: Vec::new(),
            table: Vec::new(),
            generation: 0,
            records: BTreeMap::new(),
            quarantine: BTreeMap::new(),
            next_slot: 0,
            programs: None,
            alerts: None,
            heard: BTreeMap::new(),
            unkept: None,
            forgotten: BTreeSet::new(),
            changes: 0,
            quiet: false,
            frozen: false,
            has_program: false,
            doubts: BTreeSet::new(),
            hasty: false,
            plant,
            coverage: Coverage::default(),
            violation: None,
            trace: Trace { hash: 0xcbf2_9ce4_8422_2325, lines: verbose.then(Vec::new) },
        }
    }

    pub(crate) fn note(&mut self, what: std::fmt::Arguments<'_>) {
        use std::fmt::Write as _;
        let now = self.now;
        // Writing into a hash cannot fail.
        let _ = write!(self.trace, "{now} {what}");
        if let Some(lines) = &mut self.trace.lines {
            lines.push(format!("{:>9.3} s  {what}", (now - 1_000_000) as f64 / 1_000.0));
        }
    }

    /// A rule is broken; the first one is told.
    pub(crate) fn broken(&mut self, rule: impl Into<String>) {
        let rule = rule.into();
        trace!(self, "BROKEN: {rule}");
        self.violation.get_or_insert(rule);
    }

    pub(crate) fn at(&mut self, at: u64, next: Next) {
        self.numbered += 1;
        self.queue.insert((at, self.numbered), next);
    }

    pub(crate) fn after(&mut self, ms: u64, next: Next) {
        self.at(self.now + ms, next);
    }

    pub(crate) fn next_at(&self) -> Option<u64> {
        self.queue.keys().next().map(|(at, _)| *at)
    }

    pub(crate) fn pop(&mut self) -> Option<Next> {
        self.queue.pop_first().map(|(_, next)| next)
    }

    /// Takes out what `wanted` picks.
    pub(crate) fn take_out(&mut self, wanted: impl Fn(&Next) -> bool) -> Vec<Next> {
        let keys: Vec<_> = self.queue.iter().filter(|(_, next)| wanted(next)).map(|(key, _)| *key).collect();
        keys.iter().filter_map(|key| self.queue.remove(key)).collect()
    }

    /// News from a task of the agent `agent`: of one tenant in order, of several in any.
    pub(crate) fn send(&mut self, agent: u64, id: Option<&TenantId>, news: News) {
        let delay = if self.until.slow > self.now { self.rng.between(1, 3_000) } else { self.rng.between(0, 3) };
        let mut at = self.now + delay;
        if let Some(id) = id {
            at = at.max(self.last_news.get(id).copied().unwrap_or(0));
            self.last_news.insert(id.clone(), at);
        }
        if self.until.doubled > self.now && self.rng.one_in(3) {
            let later = at + self.rng.below(5_000);
            self.at(later, Next::News(agent, news.clone()));
            self.coverage.hit("doubled_news");
        }
        self.at(at, Next::News(agent, news));
    }

    pub(crate) fn add(&mut self, proc: Proc) -> u32 {
        self.next_pid += 1;
        self.procs.insert(self.next_pid, proc);
        self.next_pid
    }

    pub(crate) fn unix_now(&self) -> u64 {
        self.wall.saturating_add_unsigned(self.now / 1_000).unsigned_abs()
    }

    /// Whether the call is the agent's last, and if so, whether it is still carried out.
    pub(crate) fn fate(&mut self, call: Call) -> Option<bool> {
        let Some(Crash { at, done }) = &mut self.crash else { return None };
        let now = match at {
            CrashAt::Nth(left) if *left > 0 => {
                *left -= 1;
                false
            }
            CrashAt::Nth(_) => true,
            CrashAt::Kind(kind) => *kind == call,
        };
        now.then_some(*done)
    }

    /// The row of a tenant, as the proxy sees it.
    pub(crate) fn row(&self, id: &TenantId) -> Option<&Row> {
        self.table.iter().find(|row| row.id == id.as_str())
    }

    /// Whether requests are forwarded to this process.
    pub(crate) fn is_routed(&self, proc: &Proc) -> bool {
        self.row(&proc.id).is_some_and(|row| row.state == RouteState::Ready && (row.epoch, row.port) == (proc.epoch, proc.port))
    }

    pub(crate) fn in_flight(&self, slot: u32) -> usize {
        self.flights.get(&slot).map_or(0, Vec::len)
    }

    /// Who listens on `port`.
    pub(crate) fn listener(&self, port: u16) -> Option<&Proc> {
        self.procs.values().find(|proc| proc.port == port && proc.listening)
    }

    pub(crate) fn stranger_on(&self, port: u16) -> bool {
        self.until.strangers.get(&port).is_some_and(|until| *until > self.now)
    }

    /// Saves another version of tenants.toml.
    pub(crate) fn save(&mut self, edit: impl FnOnce(&mut Desired)) {
        let mut wanted = Desired::clone(&self.file.wanted);
        edit(&mut wanted);
        self.file.version += 1;
        self.file.broken = false;
        wanted.hash = self.file.version.to_string();
        let wanted = Rc::new(wanted);
        self.versions.insert(wanted.hash.clone(), wanted.clone());
        self.file.wanted = wanted;
    }
}

pub(crate) type Shared = Rc<RefCell<State>>;

pub(crate) fn id(number: u8) -> TenantId {
    // Digits are always an id.
    TenantId::parse(&format!("t{number}")).unwrap_or_else(|error| unreachable!("{error}"))
}

pub(crate) fn tenant(number: u8) -> Tenant {
    Tenant {
        id: id(number),
        tier: "free".into(),
        limits: Limits::BASE,
        suspended: false,
        api_keys: vec![],
        tokens_valid_after: 0,
        port: None,
    }
}

pub(crate) fn program(number: u32) -> SqSource {
    SqSource::Version(format!("0.{number}.0"))
}

fn desired(tenants: impl Iterator<Item = Tenant>, number: u32, version: u32) -> Desired {
    Desired {
        state_dir: "/s".into(),
        name: "simulated".into(),
        ports: PortRange { first: FIRST_PORT, last: FIRST_PORT + PORTS - 1 },
        isolation: IsolationMode::Auto,
        disk_reserve: None,
        sq: program(number),
        proxy: Proxy::default(),
        backup: None,
        gitops: None,
        require_reviewed_hash: false,
        admin: None,
        metrics: Default::default(),
        alerts: Alerts::default(),
        snapshots: Snapshots { hourly: 24, daily: 7, weekly: 4, max_size: 1 << 20 },
        tiers: BTreeMap::new(),
        tenants: tenants.map(|tenant| (tenant.id.clone(), tenant)).collect(),
        hash: version.to_string(),
    }
}

/// What the world gives out is its own copy.
pub(crate) fn owned(desired: &Rc<Desired>) -> Arc<Desired> {
    Arc::new(Desired::clone(desired))
}
