//! What was done, and what came of it.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use crate::model::Fate;

/// What must never be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// It was acknowledged and is not there.
    Lost,
    /// It is there twice.
    Doubled,
    /// It is there in part.
    Half,
    /// The answer said that nothing of it was applied, and it is there.
    ThereAfterAll,
}

/// Counts of everything.
pub(crate) struct Tally {
    pub(crate) done: AtomicBool,
    began: Instant,
    kills: Mutex<BTreeMap<&'static str, u64>>,
    fates: [AtomicU64; 3],
    refusals: Mutex<BTreeMap<String, u64>>,
    faults: Mutex<Vec<(Fault, String)>>,
    checks: AtomicU64,
    /// Kills that came between request and answer of a write.
    pub(crate) in_flight: AtomicU64,
    /// Kills after which the file lay empty.
    pub(crate) empty: AtomicU64,
    /// Kills after which the file lay cut.
    pub(crate) cut: AtomicU64,
    /// Writes that the agent put back before a start, and the guard after a failure.
    pub(crate) put_back: AtomicU64,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            done: AtomicBool::default(),
            began: Instant::now(),
            kills: Mutex::default(),
            fates: Default::default(),
            refusals: Mutex::default(),
            faults: Mutex::default(),
            checks: AtomicU64::default(),
            in_flight: AtomicU64::default(),
            empty: AtomicU64::default(),
            cut: AtomicU64::default(),
            put_back: AtomicU64::default(),
        }
    }
}

impl Tally {
    pub(crate) fn is_done(&self) -> bool {
        self.done.load(Ordering::Relaxed)
    }

    pub(crate) fn killed(&self, whom: &'static str) {
        *self.kills.lock().unwrap().entry(whom).or_default() += 1;
    }

    pub(crate) fn kills(&self) -> u64 {
        self.kills.lock().unwrap().values().sum()
    }

    pub(crate) fn wrote(&self, fate: Fate) {
        self.fates[fate as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Why a write was not answered with 200.
    pub(crate) fn refused(&self, why: &str) {
        *self.refusals.lock().unwrap().entry(why.to_owned()).or_default() += 1;
    }

    pub(crate) fn checked(&self) {
        self.checks.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn fault(&self, fault: Fault, what: String) {
        self.faults.lock().unwrap().push((fault, what));
    }

    pub(crate) fn all_faults(&self) -> usize {
        self.faults.lock().unwrap().len()
    }

    fn faults(&self, fault: Fault) -> usize {
        self.faults.lock().unwrap().iter().filter(|(of, _)| *of == fault).count()
    }

    /// One a line.
    pub(crate) fn print_faults(&self) {
        for (fault, what) in &*self.faults.lock().unwrap() {
            println!("FAULT {fault:?} {what}");
        }
    }

    pub(crate) fn assert_good(&self) {
        let faults = self.faults.lock().unwrap();
        assert!(faults.is_empty(), "{faults:#?}");
    }

    fn fate(&self, fate: Fate) -> u64 {
        self.fates[fate as usize].load(Ordering::Relaxed)
    }

    /// How far it is.
    pub(crate) fn line(&self) -> String {
        format!(
            "{:.0?}: {} kills, {} acknowledged, {} not applied, {} unknown, {} checks",
            self.began.elapsed(),
            self.kills(),
            self.fate(Fate::Acknowledged),
            self.fate(Fate::NotApplied),
            self.fate(Fate::Unknown),
            self.checks.load(Ordering::Relaxed),
        )
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        writeln!(f, "{}", self.line())?;
        for (whom, kills) in &*self.kills.lock().unwrap() {
            writeln!(f, "  {kills:>7} x {whom}")?;
        }
        writeln!(f, "  {:>7} kills hit a write in flight", count(&self.in_flight))?;
        writeln!(f, "  {:>7} left the file empty, {} cut", count(&self.empty), count(&self.cut))?;
        writeln!(f, "  {:>7} writes put back before a start", count(&self.put_back))?;
        for (why, writes) in &*self.refusals.lock().unwrap() {
            writeln!(f, "  {writes:>7} writes answered with {why}")?;
        }
        for fault in [Fault::Lost, Fault::Doubled, Fault::Half, Fault::ThereAfterAll] {
            writeln!(f, "  {:>7} {fault:?}", self.faults(fault))?;
        }
        Ok(())
    }
}
