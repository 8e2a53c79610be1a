//! What came of the requests.

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::Path,
    sync::Mutex,
    time::{Duration, SystemTime},
};

use crate::support::host::Host;

/// What came of one.
pub(crate) enum Outcome {
    /// 200, after this time.
    Answered(Duration),
    /// 403 (the tenant is away) or 503 (it did not come up within 10 s).
    Refused(u16),
    /// Lost with the process that had it.
    InDeadHands,
    /// Lost without a reason.
    Failed(String),
}

#[derive(Default)]
struct Counts {
    sent: u64,
    times: Vec<Duration>,
    refused: BTreeMap<u16, u64>,
    in_dead_hands: u64,
    failed: Vec<String>,
    foreign: Vec<String>,
    lost: Vec<String>,
    done: BTreeMap<&'static str, u64>,
}

/// Counts of everything.
#[derive(Default)]
pub(crate) struct Tally(Mutex<Counts>);

impl Tally {
    pub(crate) fn count(&self, outcome: Outcome) {
        let mut counts = self.0.lock().unwrap();
        counts.sent += 1;
        match outcome {
            Outcome::Answered(time) => counts.times.push(time),
            Outcome::Refused(status) => *counts.refused.entry(status).or_default() += 1,
            Outcome::InDeadHands => counts.in_dead_hands += 1,
            Outcome::Failed(what) => counts.failed.push(format!("{} {what}", humantime::format_rfc3339_millis(SystemTime::now()))),
        }
    }

    pub(crate) fn foreign(&self, what: String) {
        self.0.lock().unwrap().foreign.push(what);
    }

    pub(crate) fn lost(&self, what: String) {
        self.0.lock().unwrap().lost.push(what);
    }

    pub(crate) fn did(&self, what: &'static str) {
        *self.0.lock().unwrap().done.entry(what).or_default() += 1;
    }

    pub(crate) fn assert_good(&self, host: &Host) {
        let counts = self.0.lock().unwrap();
        if !(counts.foreign.is_empty() && counts.lost.is_empty() && counts.failed.is_empty()) {
            let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("chaos-{}", std::process::id()));
            fs::create_dir_all(&kept).unwrap();
            for log in [host.agent_log(), host.state_dir().join("proxy.log")] {
                fs::copy(&log, kept.join(log.file_name().unwrap())).unwrap();
            }
            eprintln!("the logs are kept in {}", kept.display());
        }
        assert!(counts.foreign.is_empty(), "foreign answers: {:#?}", counts.foreign);
        assert!(counts.lost.is_empty(), "acknowledged writes lost: {:#?}", counts.lost);
        assert!(counts.failed.is_empty(), "failed without a reason: {:#?}\n{}", counts.failed, host.account());
        assert!(counts.times.len() > 1_000, "the host hardly served");
        // A tenant that is killed again and again waits longer than a request does; that is rare.
        let gave_up = counts.refused.get(&503).copied().unwrap_or(0);
        assert!(gave_up * 100 < counts.sent, "{gave_up} requests waited in vain\n{}", host.account());
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = self.0.lock().unwrap();
        let mut times = counts.times.clone();
        times.sort_unstable();
        let at = |share: f64| times.get((times.len() as f64 * share) as usize).copied().unwrap_or_default();
        for (what, count) in &counts.done {
            writeln!(f, "{count:>8}  {what}")?;
        }
        writeln!(f, "{:>8}  requests sent", counts.sent)?;
        writeln!(f, "{:>8}  answered 200 (p50 {:.1?}, p99 {:.1?}, longest {:.1?})", times.len(), at(0.5), at(0.99), at(0.999_999))?;
        writeln!(f, "{:>8}  of these after 0.5 s or more: parked", times.iter().filter(|time| time.as_millis() >= 500).count())?;
        for (status, count) in &counts.refused {
            writeln!(f, "{count:>8}  refused: {status}")?;
        }
        writeln!(f, "{:>8}  failed in the hands of a killed sq or proxy (allowed)", counts.in_dead_hands)?;
        writeln!(f, "{:>8}  failed otherwise", counts.failed.len())?;
        writeln!(f, "{:>8}  foreign answers", counts.foreign.len())?;
        write!(f, "{:>8}  acknowledged writes lost", counts.lost.len())
    }
}
