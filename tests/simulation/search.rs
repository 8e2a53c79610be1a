//! Many seeds at once, and the shortest story of one that fails.

use std::{
    fmt::Write,
    ops::Range,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{
    coverage::Coverage,
    engine::{Options, run},
    script::{Step, script},
};

/// Runs every seed; the lowest one that fails is the error.
pub(crate) fn search(seeds: Range<u64>, options: Options) -> Result<Coverage, u64> {
    let next = AtomicU64::new(seeds.start);
    let failed = AtomicU64::new(u64::MAX);
    let coverage = Mutex::new(Coverage::default());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut reached = Coverage::default();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end || seed > failed.load(Ordering::Relaxed) {
                        break;
                    }
                    let (steps, end) = script(seed);
                    let outcome = run(seed, &steps, end, options);
                    if outcome.violation.is_some() {
                        failed.fetch_min(seed, Ordering::Relaxed);
                    }
                    reached.merge(outcome.coverage);
                }
                coverage.lock().unwrap().merge(reached);
            });
        }
    });
    match failed.into_inner() {
        u64::MAX => Ok(coverage.into_inner().unwrap()),
        seed => Err(seed),
    }
}

/// The story of a seed: its rule, its shortest script, and what happened.
pub(crate) fn failure(seed: u64, options: Options) -> String {
    let (steps, end) = script(seed);
    let (steps, end) = match run(seed, &steps, end, options).violation {
        Some(_) => shrink(seed, steps, end, options),
        None => (steps, end),
    };
    let outcome = run(seed, &steps, end, Options { verbose: true, ..options });
    let mut story = format!("seed {seed}: {}\n", outcome.violation.as_deref().unwrap_or("no rule is broken"));
    // Writing into a string cannot fail.
    let _ = writeln!(story, "script, {} s:", end / 1_000);
    for Step { at, what } in &steps {
        let _ = writeln!(story, "{:>9.3} s  {what:?}", *at as f64 / 1_000.0);
    }
    let _ = writeln!(story, "what happened:");
    for line in &outcome.trace {
        let _ = writeln!(story, "{line}");
    }
    let _ = writeln!(story, "seed {seed}: {}", outcome.violation.as_deref().unwrap_or("no rule is broken"));
    story
}

/// Leaves out whatever step is not needed for a rule to break.
fn shrink(seed: u64, mut steps: Vec<Step>, end: u64, options: Options) -> (Vec<Step>, u64) {
    loop {
        let before = steps.len();
        for at in (0..steps.len()).rev() {
            let mut fewer = steps.clone();
            fewer.remove(at);
            if run(seed, &fewer, end, options).violation.is_some() {
                steps = fewer;
            }
        }
        if steps.len() == before {
            break;
        }
    }
    let shorter = steps.last().map_or(0, |step| step.at + 1);
    let end = if run(seed, &steps, shorter, options).violation.is_some() { shorter } else { end };
    (steps, end)
}
