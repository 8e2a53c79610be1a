//! A thousand random edits and kills. Whatever happened, after quiet the host is as tenants.toml says, and at no moment did a tenant have
//! two sq. `SEED=… cargo test --test system chaos` repeats a run's choices (not its timing).

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use http::Method;
use rustix::process::Signal;

use crate::support::{
    client::{Http, Upload},
    dice::{self, Dice},
    host::{Host, User},
    ports::PortBlock,
    processes::{SeenSq, lives, signal},
};

const STEPS: usize = 1_000;
const TENANTS: usize = 12;
/// A proxy that dies again within a minute is started after a longer and longer pause, up to a minute; so few die.
const PROXY_KILLS: usize = 4;
const AGENT_KILLS: usize = 3;
/// The longest back-off of an instance is 60 s and a quarter.
const QUIET_WITHIN: Duration = Duration::from_secs(80);
const READ: &str = "/api/v2/select?p=who&c=1.1.1/1.1.1/1.1.1";
const WRITE: &str = "/api/v2/update?p=who&c=1.1.1/1.1.1/1.1.1";

fn name(i: usize) -> String {
    format!("user{i:02}@example.com")
}

/// The host, and what has been done to it.
struct Chaos {
    host: Host,
    dice: Dice,
    sq_kills: usize,
    proxy_kills: usize,
    agent_kills: usize,
}

impl Chaos {
    /// One edit or kill.
    fn step(&mut self) {
        match self.dice.below(1_000) {
            0..=59 => self.kill_an_sq(),
            60..=69 if self.proxy_kills < PROXY_KILLS => self.kill_the_proxy(),
            70..=75 if self.agent_kills < AGENT_KILLS => self.kill_the_agent(),
            _ => self.edit(),
        }
    }

    fn kill_an_sq(&mut self) {
        let running = self.host.instances();
        if !running.is_empty() {
            signal(running[self.dice.below(running.len())].pid, Signal::KILL);
            self.sq_kills += 1;
        }
    }

    fn kill_the_proxy(&mut self) {
        if let Some(pid) = self.host.status().and_then(|status| status.proxy.pid) {
            signal(pid, Signal::KILL);
            self.proxy_kills += 1;
        }
    }

    fn kill_the_agent(&mut self) {
        self.host.end_agent(Signal::KILL);
        self.host.spawn_agent();
        self.agent_kills += 1;
    }

    /// Of a tenant that is in the file: removes it, suspends or resumes it, or changes its tier. Of one that is not: adds it.
    fn edit(&mut self) {
        let id = name(self.dice.below(TENANTS));
        let kind = self.dice.below(3);
        self.host.edit(|wanted| match wanted.tenants.get_mut(&id) {
            None => _ = wanted.add(&id),
            Some(_) if kind == 0 => wanted.remove(&id),
            Some(tenant) if kind == 1 => tenant.suspended = !tenant.suspended,
            Some(tenant) => tenant.tier = if tenant.tier == "free" { "paid" } else { "free" },
        });
    }

    /// Lets go through what the removal guard holds, as an operator would.
    fn confirm(&self) {
        if let Some(held) = self.host.status().and_then(|status| status.held) {
            // It may be another plan by now; then the next look finds that one.
            self.host.cli(&["confirm", &held.hash]);
        }
    }

    /// Fails if a tenant has two sq, or two sq have one port, at this very moment.
    fn look(&self) {
        let running = self.host.instances();
        let mut by_id: BTreeMap<&str, &SeenSq> = BTreeMap::new();
        let mut by_port: BTreeMap<u16, &SeenSq> = BTreeMap::new();
        for sq in &running {
            for other in [by_id.insert(&sq.id, sq), by_port.insert(sq.port, sq)].into_iter().flatten() {
                // /proc is not read at one moment: the first may have ended before the second began.
                assert!(!(lives(other.pid) && lives(sq.pid)), "{sq:?} beside {other:?}\n{}", self.host.account());
            }
        }
    }
}

/// Reads everybody's text in turn until `done`. An answer that is somebody else's ends the test; a refusal or a lost connection is
/// what happens to a tenant that is away or a proxy that was killed.
async fn read_on(users: Vec<(String, User)>, good: Arc<AtomicUsize>, done: Arc<AtomicBool>) {
    for (id, user) in users.iter().cycle() {
        if done.load(Ordering::Relaxed) {
            return;
        }
        let asked = user.client.send(Http::One, user.request(Method::GET, READ, Upload::default()));
        match tokio::time::timeout(Duration::from_secs(15), asked).await {
            Ok(Ok(answer)) if answer.status == 200 => {
                assert_eq!(answer.text(), id);
                good.fetch_add(1, Ordering::Relaxed);
            }
            Ok(Ok(answer)) => assert!([403, 502, 503].contains(&answer.status), "{id}: {answer:?}"),
            Ok(Err(_)) | Err(_) => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_random_edits_and_kills_end_in_what_tenants_toml_says() {
    let seed = dice::seed();
    eprintln!("SEED={seed}");
    let mut host = Host::prepare_on(PortBlock::large(), |wanted| (0..TENANTS).for_each(|i| _ = wanted.add(&name(i))));
    host.launch().await;
    let users: Vec<_> = (0..TENANTS).map(|i| (name(i), host.user(&name(i)))).collect();
    for (id, user) in &users {
        assert_eq!(user.post(WRITE, id.as_bytes()).await.status, 200);
    }
    let (good, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let reader = tokio::spawn(read_on(users.clone(), good.clone(), done.clone()));

    let mut chaos = Chaos { host, dice: Dice(seed), sq_kills: 0, proxy_kills: 0, agent_kills: 0 };
    let began = Instant::now();
    let mut steps = 0;
    while steps < STEPS {
        let burst = 1 + chaos.dice.below(16);
        for _ in 0..burst.min(STEPS - steps) {
            chaos.step();
            let gap = chaos.dice.below(8);
            tokio::time::sleep(Duration::from_millis(gap.try_into().unwrap())).await; // when it strikes is part of the chance
        }
        steps += burst;
        chaos.look();
        let pause = chaos.dice.below(400);
        tokio::time::sleep(Duration::from_millis(pause.try_into().unwrap())).await; // now before, now after it is in force
        chaos.look();
        chaos.confirm();
    }
    let stormed = began.elapsed();
    done.store(true, Ordering::Relaxed);
    reader.await.unwrap();
    assert!(good.load(Ordering::Relaxed) > 100, "{good:?} good answers: the host hardly served");
    quiet(&chaos).await;
    eprintln!(
        "{} sq, {} proxies, {} agents killed in {stormed:.1?}, quiet after {:.1?}, {good:?} good answers",
        chaos.sq_kills,
        chaos.proxy_kills,
        chaos.agent_kills,
        began.elapsed() - stormed
    );
    for (id, user) in &users {
        let answer = user.get(READ).await;
        match chaos.host.wanted.tenants.get(id) {
            Some(tenant) if !tenant.suspended => assert_eq!((answer.status, answer.text()), (200, id.as_str())),
            _ => assert_eq!(answer.status, 403, "{id}"),
        }
    }
}

/// Waits until observed equals desired, and holds that against /proc.
async fn quiet(chaos: &Chaos) {
    let hash = sq_agent::desired::hash(&chaos.host.wanted.text());
    let status = chaos
        .host
        .within(QUIET_WITHIN, "observed equals desired", |status| {
            if status.held.is_some() {
                chaos.confirm();
            }
            status.agent.desired_hash == hash && chaos.host.as_wanted(status)
        })
        .await;
    chaos.host.assert_matches_proc(&status);
    assert_eq!(chaos.host.proxies(), Vec::from_iter(status.proxy.pid));
}
