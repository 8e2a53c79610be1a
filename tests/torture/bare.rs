//! The same writers straight at sq, which is killed in mid-write and started again: what the guard is for.

use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex, atomic::Ordering},
    time::{Duration, Instant},
};

use rustix::process::Signal;

use crate::{
    killers::{Victim, pause},
    model::Size,
    name,
    road::Road,
    sizes,
    support::{Running, dice::Dice, launch, processes::signal},
    tally::Tally,
    writers::{Kind, Writer},
};

/// Kills until there are so many.
pub(crate) async fn run(seed: u64, kills: u64, patience: Duration) -> Arc<Tally> {
    let dir = launch::state_dir();
    let (tally, end) = (Arc::new(Tally::default()), Instant::now() + patience);
    let tenants: Vec<_> = sizes()
        .into_iter()
        .enumerate()
        .map(|(n, size)| tokio::spawn(tenant(n, size, dir.path().to_owned(), Arc::clone(&tally), seed, kills, end)))
        .collect();
    for tenant in tenants {
        tenant.await.unwrap();
    }
    tally
}

#[allow(clippy::too_many_arguments)] // what a tenant's task is made of
async fn tenant(n: usize, size: Size, state_dir: std::path::PathBuf, tally: Arc<Tally>, seed: u64, kills: u64, end: Instant) {
    let id = name(n);
    let mut sq = start(&state_dir, &id).await;
    let victim = Arc::new(Victim::at(&id, size, sq.user_dir.clone()));
    let place = Arc::new(Mutex::new((sq.port, sq.key.clone())));
    let kind = if n.is_multiple_of(2) { Kind::Replaces } else { Kind::Appends };
    let mut writer = Writer::new(n, kind, Road::Straight(place.clone()), Arc::clone(&victim), Arc::clone(&tally), seed);
    let mut dice = Dice(seed ^ (n as u64) << 32);
    writer.prepare().await;
    while tally.kills() < kills && Instant::now() < end {
        for _ in 0..dice.below(4) {
            writer.write().await;
        }
        let (pid, after) = (sq.pid(), victim.some_time(&mut dice));
        let killing = tokio::task::spawn_blocking(move || {
            pause(after);
            signal(pid, Signal::KILL);
            Instant::now()
        });
        writer.write().await;
        let answered = Instant::now();
        if killing.await.unwrap() < answered {
            tally.in_flight.fetch_add(1, Ordering::Relaxed);
        }
        sq.exited().await;
        tally.killed("SIGKILL of an sq");
        victim.note_what_is_left(&tally);
        drop(sq);
        sq = start(&state_dir, &id).await;
        *place.lock().unwrap() = (sq.port, sq.key.clone());
        let before = tally.all_faults();
        writer.check(true).await;
        if tally.all_faults() > before {
            // The next trial begins with a whole file.
            signal(sq.pid(), Signal::KILL);
            sq.exited().await;
            drop(sq);
            fs::remove_file(state_dir.join("users").join(&id).join("phext-data/torture.phext")).unwrap();
            sq = start(&state_dir, &id).await;
            *place.lock().unwrap() = (sq.port, sq.key.clone());
            writer.forget();
            writer.prepare().await;
        }
    }
}

async fn start(state_dir: &Path, id: &str) -> Running {
    Running::start(state_dir, id, "key").await
}
