//! 200 tenants under load while everything that can be killed is killed, edited, upgraded and restarted: what failed is counted, and each
//! failure has to be explained by the death of the very process that had the request.
//!
//! `CHAOS_SECONDS=1800 cargo test --release --test chaos -- --ignored --nocapture` is half an hour of it; two minutes without the variable.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)] // the lints only know #[test] functions

#[path = "../support/mod.rs"]
mod support;

mod kills;
mod messages;
mod people;
mod tally;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::process::Signal;
use support::{
    dice::{self, Dice},
    host::Host,
    ports::PortBlock,
    processes::signal,
    receiver::Receiver,
};

use crate::{
    kills::{Death, Kills},
    people::{Person, name},
    tally::Tally,
};

const TENANTS: usize = 200;
/// Each has tenants of its own, so that nobody else writes what it reads back.
const WORKERS: usize = 16;
/// A proxy that dies again within a minute is started after a pause.
const BETWEEN_PROXIES: Duration = Duration::from_secs(61);
/// The longest back-off of an instance is 60 s and a quarter.
const QUIET_WITHIN: Duration = Duration::from_secs(90);

fn seconds() -> u64 {
    std::env::var("CHAOS_SECONDS").map_or(120, |n| n.parse().expect("CHAOS_SECONDS is a number"))
}

struct Chaos {
    host: Host,
    dice: Dice,
    kills: Arc<Kills>,
    tally: Arc<Tally>,
    last_proxy: Instant,
    /// How often a tenant was taken out of the file.
    removals: usize,
}

impl Chaos {
    async fn strike(&mut self) {
        match self.dice.below(100) {
            0..=14 => self.kill_an_sq(),
            15..=18 => self.kill_the_agent(),
            19..=22 if self.last_proxy.elapsed() > BETWEEN_PROXIES => self.kill_the_proxy().await,
            23..=26 => self.upgrade().await,
            27..=36 => self.restart(),
            37..=39 => {
                signal(self.host.agent_pid(), Signal::HUP);
                self.tally.did("SIGHUP");
            }
            _ => self.edit(),
        }
    }

    fn kill_an_sq(&mut self) {
        let running = self.host.instances();
        if !running.is_empty() {
            let sq = &running[self.dice.below(running.len())];
            self.kills.note(Death::Sq(sq.id.clone()), || signal(sq.pid, Signal::KILL));
            self.tally.did("kill -9 of an sq");
        }
    }

    fn kill_the_agent(&mut self) {
        self.kills.note(Death::Agent, || _ = self.host.end_agent(Signal::KILL));
        self.host.spawn_agent();
        self.tally.did("kill -9 of the agent");
    }

    /// Returns when another one serves: with the agent dead as well nobody would hold the listening sockets (but systemd, where that runs
    /// the agent), and what waits in them would be reset.
    async fn kill_the_proxy(&mut self) {
        if let Some(pid) = self.host.status().and_then(|status| status.proxy.pid) {
            self.kills.note(Death::Proxy, || signal(pid, Signal::KILL));
            self.last_proxy = Instant::now();
            self.tally.did("kill -9 of the proxy");
            self.host.until("another proxy serves", |status| status.proxy.pid.is_some_and(|another| another != pid)).await;
        }
    }

    async fn upgrade(&mut self) {
        let ran = self.host.cli(&["upgrade"]);
        assert_eq!(ran.code, 0, "{}{}\n{}", ran.out, ran.err, self.host.account());
        let agent = self.host.agent_pid();
        self.host.until("the first process is the agent again", |status| status.agent.pid == agent).await;
        // Until then the heir stays the agent if the first process is killed, and keeps another one from starting.
        self.host.until_heirs_are_gone().await;
        self.tally.did("upgrade");
    }

    fn restart(&mut self) {
        let id = name(self.dice.below(TENANTS));
        // One that is suspended or away cannot be.
        self.host.cli(&["restart", &id]);
        self.tally.did("sq-agent restart");
    }

    /// Of a tenant that is in the file: removes it, suspends or resumes it, or changes its tier. Of one that is not: brings it back.
    fn edit(&mut self) {
        let id = name(self.dice.below(TENANTS));
        let kind = self.dice.below(6);
        self.removals += usize::from(kind == 0);
        self.host.edit(|wanted| match wanted.tenants.get_mut(&id) {
            None => _ = wanted.add(&id),
            Some(tenant) if tenant.suspended => tenant.suspended = false,
            Some(_) if kind == 0 => wanted.remove(&id),
            Some(tenant) if kind == 1 => tenant.suspended = true,
            Some(tenant) => tenant.tier = if tenant.tier == "free" { "paid" } else { "free" },
        });
        // Few are away at once, so that most requests are for somebody who is there.
        self.host.edit(|wanted| {
            let away: Vec<_> = (0..TENANTS).map(name).filter(|id| wanted.tenants.get(id).is_none_or(|tenant| tenant.suspended)).collect();
            for id in away.iter().skip(8) {
                wanted.add(id).suspended = false;
            }
        });
        self.tally.did("edit of tenants.toml");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes two minutes, or CHAOS_SECONDS"]
async fn whatever_dies_nobody_else_notices() {
    let seed = dice::seed();
    eprintln!("SEED={seed} (the choices, not their timing)");
    let receiver = Receiver::start().await;
    let mut host = Host::prepare_on(PortBlock::large(), |wanted| (0..TENANTS).for_each(|n| _ = wanted.add(&name(n))));
    receiver.put_url(&host.root().join("discord"));
    host.edit(|wanted| messages::CHANNEL.clone_into(&mut wanted.more));
    host.launch().await;
    let (kills, tally, done) = (Arc::new(Kills::default()), Arc::new(Tally::default()), Arc::new(AtomicBool::new(false)));
    let mut people: Vec<Vec<Person>> = (0..WORKERS).map(|_| Vec::new()).collect();
    (0..TENANTS).for_each(|n| people[n % WORKERS].push(Person::new(n, host.user(&name(n)))));
    let working: Vec<_> = people
        .into_iter()
        .enumerate()
        .map(|(n, mine)| {
            let dice = Dice(seed ^ u64::try_from(n + 1).unwrap());
            tokio::spawn(people::work(mine, dice, kills.clone(), tally.clone(), done.clone()))
        })
        .collect();

    let mut chaos =
        Chaos { host, dice: Dice(seed), kills, tally: tally.clone(), last_proxy: Instant::now() - BETWEEN_PROXIES, removals: 0 };
    let end = Instant::now() + Duration::from_secs(seconds());
    while Instant::now() < end {
        chaos.strike().await;
        let pause = chaos.dice.below(500);
        tokio::time::sleep(Duration::from_millis(pause.try_into().unwrap())).await; // when it strikes is part of the chance
    }
    done.store(true, Ordering::Relaxed);
    let mut people = Vec::new();
    for worker in working {
        people.extend(worker.await.unwrap());
    }
    let host = &chaos.host;
    let status = host.settled_within(QUIET_WITHIN).await;
    host.assert_matches_proc(&status);
    for person in &mut people {
        if host.wanted.tenants.get(&person.id).is_some_and(|tenant| !tenant.suspended) {
            person.read_back(&tally).await;
        }
    }
    eprintln!("{tally}");
    tally.assert_good(host);
    messages::assert_each_has_a_cause(&receiver, &chaos.kills, chaos.removals, host).await;
}
