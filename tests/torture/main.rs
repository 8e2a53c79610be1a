//! Everything that can die is killed in the middle of writes, by the thousand, and whoever was told 200 finds the text there: once, and whole.
//! The same writers then write straight to sq, to see what the guard is for.
//!
//! `TORTURE_KILLS=10000 cargo test --release --test torture -- --ignored --nocapture` is the full one; 500 kills without the variable.
//! `TORTURE_SECONDS` ends the killing sooner. `SEED` repeats the choices, not their timing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, clippy::print_stdout)] // the lints only know #[test] functions

#[path = "../support/mod.rs"]
mod support;

mod bare;
mod house;
mod killers;
mod memory;
mod model;
mod power;
mod road;
mod tally;
mod writers;

use std::{
    env,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use support::{dice, host::Host, ports::PortBlock};

use crate::{
    house::{BURSTS, House},
    killers::Victim,
    model::Size,
    road::Road,
    tally::Tally,
    writers::{Kind, Writer},
};

/// Tenants by the size of their phexts.
const TENANTS: [(usize, Size); 3] = [(10, Size(4 << 10)), (7, Size(1 << 20)), (3, Size(16 << 20))];
/// The longest back-off of an instance is 60 s and a quarter.
const QUIET_WITHIN: Duration = Duration::from_secs(90);

/// The tenant of this number.
fn name(n: usize) -> String {
    format!("user{n:02}@example.com")
}

/// The size of each tenant's phexts.
fn sizes() -> Vec<Size> {
    TENANTS.iter().flat_map(|&(count, size)| std::iter::repeat_n(size, count)).collect()
}

fn number(variable: &str, default: u64) -> u64 {
    env::var(variable).map_or(default, |n| n.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: TORTURE_KILLS, TORTURE_SECONDS"]
async fn whoever_was_told_200_finds_the_text_whatever_died() {
    let seed = dice::seed();
    let (kills, seconds) = (number("TORTURE_KILLS", 500), number("TORTURE_SECONDS", 24 * 3_600));
    eprintln!("SEED={seed} (the choices, not their timing), {kills} kills, at most {seconds} s");
    let guarded = guarded(seed, kills, Duration::from_secs(seconds)).await;
    let bare = bare::run(seed, (kills / 10).clamp(60, 1_000), Duration::from_secs((seconds / 3).max(20))).await;
    eprintln!("--- through the proxy\n{guarded}--- straight to sq\n{bare}");
    guarded.assert_good();
}

async fn guarded(seed: u64, kills: u64, patience: Duration) -> Arc<Tally> {
    let sizes = sizes();
    let mut host = Host::prepare_on(PortBlock::large(), |wanted| {
        (0..sizes.len()).for_each(|n| wanted.add(&name(n)).more = BURSTS[0]);
    });
    host.launch().await;
    let tally = Arc::new(Tally::default());
    let victims: Vec<_> = sizes.iter().enumerate().map(|(n, &size)| Arc::new(Victim::new(&host, &name(n), size))).collect();
    let mut writers = Vec::new();
    for (n, victim) in victims.iter().enumerate() {
        for kind in Kind::of(victim.size) {
            let road = Road::through_the_proxy(host.user(&name(n)));
            let mut writer = Writer::new(n, kind, road, Arc::clone(victim), Arc::clone(&tally), seed);
            writer.prepare().await;
            writers.push(writer);
        }
    }
    eprintln!("{} writers on {} tenants", writers.len(), victims.len());
    let writing: Vec<_> = writers.into_iter().map(|writer| tokio::spawn(writer.write_on())).collect();
    let stalking: Vec<_> = victims.iter().enumerate().map(|(n, victim)| killers::stalk(victim, &tally, seed ^ (n as u64) << 32)).collect();

    let mut house = House::new(host, victims, Arc::clone(&tally), seed);
    let end = Instant::now() + patience;
    let mut said = Instant::now();
    while tally.kills() < kills && Instant::now() < end {
        house.strike().await;
        if said.elapsed() > Duration::from_secs(30) {
            said = Instant::now();
            eprintln!("{}", tally.line());
        }
        tally.assert_good();
    }
    tally.done.store(true, Ordering::Relaxed);
    for stalker in stalking {
        stalker.join().unwrap();
    }
    house.quiet(QUIET_WITHIN).await;
    let mut writers = Vec::new();
    for writer in writing {
        writers.push(writer.await.unwrap());
    }
    // What was written last is read from memory, and, after another start, from the disk.
    for _ in 0..2 {
        for writer in &mut writers {
            writer.check(true).await;
        }
        house.end_all_instances().await;
        house.quiet(QUIET_WITHIN).await;
    }
    house.count_what_was_put_back();
    tally
}
