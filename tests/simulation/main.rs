//! The loop against a simulated host: a virtual clock, seeded faults, and an agent that may die in the middle of any call.
//!
//! A million seeds: `cargo test --release --test simulation -- --ignored million --nocapture`, which says how far it is; `SQ_AGENT_FROM=N` goes on from
//! there. The story of one: `SQ_AGENT_SEED=N cargo test --test simulation -- --ignored one_seed --nocapture`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, clippy::print_stdout)]
#![allow(clippy::cast_possible_truncation)]

mod calls;
mod check;
mod coverage;
mod engine;
mod hands;
mod records;
mod rng;
mod script;
mod search;
mod state;
mod tasks;

use std::ops::Range;

use engine::{Calm, Options};
use search::{failure, search};
use state::Plant;

/// How many seeds a planted bug may survive.
const FOUND_WITHIN: u64 = 500;

fn options(calm: Calm) -> Options {
    Options { plant: None, calm, verbose: false }
}

fn run_all(seeds: Range<u64>, options: Options) -> coverage::Coverage {
    search(seeds, options).unwrap_or_else(|seed| panic!("{}", failure(seed, options)))
}

#[test]
fn ten_thousand_seeds_break_no_rule_end_as_desired_and_reach_every_interesting_state() {
    let coverage = run_all(0..10_000, options(Calm::MostlyShort));
    assert_eq!(coverage.missing(), Vec::<String>::new(), "never reached; all that was:\n{coverage}");
}

#[test]
#[ignore = "takes most of an hour on 2 cores, with --release"]
fn a_million_seeds_break_no_rule_and_end_as_desired() {
    for from in (number("SQ_AGENT_FROM")..1_000_000).step_by(10_000) {
        let seeds = from..(from + 10_000).min(1_000_000);
        println!("{seeds:?}\n{}", run_all(seeds.clone(), options(Calm::Hour)));
    }
}

/// Each needed more than ten thousand others before it.
#[test]
fn seeds_that_found_a_fault_once_find_it_no_more() {
    for seed in [10_087, 199_537, 258_927] {
        run_all(seed..seed + 1, options(Calm::Hour));
    }
}

fn number(variable: &str) -> u64 {
    std::env::var(variable).map_or(0, |number| number.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}

#[test]
#[ignore = "tells the story of the seed in SQ_AGENT_SEED"]
fn one_seed() {
    println!("{}", failure(number("SQ_AGENT_SEED"), options(Calm::Hour)));
}

#[test]
fn the_same_seed_gives_the_same_trace_and_another_seed_another() {
    let hash = |seed| {
        let (steps, end) = script::script(seed);
        engine::run(seed, &steps, end, options(Calm::MostlyShort)).hash
    };
    for seed in 0..100 {
        assert_eq!(hash(seed), hash(seed), "seed {seed}");
        assert_ne!(hash(seed), hash(seed + 1));
    }
}

fn is_found(plant: Plant, rule: &str) {
    let options = Options { plant: Some(plant), ..options(Calm::MostlyShort) };
    let seed = search(0..FOUND_WITHIN, options).expect_err("the planted bug was not found");
    let story = failure(seed, options);
    assert!(story.contains(rule), "{story}");
}

#[test]
fn a_stop_that_skips_the_drain_is_found() {
    is_found(Plant::SkipDrain, "TERM while a request is in flight");
}

#[test]
fn an_exit_that_is_not_told_is_found() {
    is_found(Plant::DropExit, "not as desired in time");
}

#[test]
fn a_port_that_is_used_again_at_once_is_found() {
    is_found(Plant::ReusePort, "is given to another tenant");
}
