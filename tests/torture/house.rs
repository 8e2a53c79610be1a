//! The host as a whole: kills agent, proxy and guard, and asks for the next start of whatever lies dead.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use rustix::process::Signal;

use crate::{
    killers::Victim,
    name,
    support::{
        dice::Dice,
        host::Host,
        processes::{self, signal},
    },
    tally::Tally,
};

/// A tenant's further keys: nothing that changes what runs. A changed desired state ends its back-off.
pub(crate) const BURSTS: [&str; 2] = ["body_max = \"20M\"\nburst = 21\n", "body_max = \"20M\"\nburst = 22\n"];
/// Between two edits that end the back-off of whoever lies dead.
const BETWEEN_EDITS: Duration = Duration::from_millis(250);
/// A proxy that dies again within a minute is started after a pause, unless the agent is another one.
const PROXY_BACK_WITHIN: Duration = Duration::from_secs(1);

pub(crate) struct House {
    host: Host,
    victims: Vec<Arc<Victim>>,
    tally: Arc<Tally>,
    dice: Dice,
    edited: Instant,
    next: Instant,
}

impl House {
    pub(crate) fn new(host: Host, victims: Vec<Arc<Victim>>, tally: Arc<Tally>, seed: u64) -> Self {
        Self { host, victims, tally, dice: Dice(seed), edited: Instant::now(), next: Instant::now() }
    }

    /// A step, of some 50 ms.
    pub(crate) async fn strike(&mut self) {
        self.end_back_off();
        if Instant::now() > self.next {
            match self.dice.below(100) {
                0..=49 => self.kill_the_guard(),
                50..=64 => self.kill_the_proxy().await,
                65..=79 => self.kill_the_agent(),
                _ => {
                    // In either order; with both dead nobody holds the listening sockets.
                    let proxy_first = self.dice.below(2) == 0;
                    if proxy_first {
                        self.signal_proxies();
                    }
                    self.host.end_agent(Signal::KILL);
                    self.tally.killed("SIGKILL of the agent");
                    if !proxy_first {
                        self.signal_proxies();
                    }
                    self.host.spawn_agent();
                }
            }
            self.next = Instant::now() + Duration::from_millis(100 + self.dice.below(1_000) as u64);
        }
        tokio::time::sleep(Duration::from_millis(50)).await; // the others need the processor
    }

    fn end_back_off(&mut self) {
        if self.edited.elapsed() < BETWEEN_EDITS {
            return;
        }
        let down: Vec<_> =
            self.victims.iter().filter(|victim| victim.down.load(Ordering::Relaxed)).map(|victim| victim.id.clone()).collect();
        if !down.is_empty() {
            self.change(down);
        }
    }

    fn change(&mut self, tenants: Vec<String>) {
        self.edited = Instant::now();
        self.host.edit(|wanted| {
            for id in tenants {
                let more = &mut wanted.tenant(&id).more;
                *more = if *more == BURSTS[0] { BURSTS[1] } else { BURSTS[0] };
            }
        });
    }

    fn kill_the_guard(&self) {
        let serves = |seen: &processes::Seen| seen.args.get(1..3).is_some_and(|args| args == ["guard", "--serve"]);
        for guard in processes::naming(&self.host.state_dir()).into_iter().filter(serves) {
            signal(guard.pid, Signal::KILL);
            self.tally.killed("SIGKILL of the guard");
        }
    }

    fn signal_proxies(&self) {
        for pid in self.host.proxies() {
            signal(pid, Signal::KILL);
            self.tally.killed("SIGKILL of the proxy");
        }
    }

    async fn kill_the_proxy(&mut self) {
        self.signal_proxies();
        let began = Instant::now();
        while self.host.status().is_none_or(|status| status.proxy.pid.is_none()) {
            if began.elapsed() > PROXY_BACK_WITHIN {
                return self.kill_the_agent();
            }
            self.end_back_off();
            tokio::time::sleep(Duration::from_millis(50)).await; // a start takes a while
        }
    }

    fn kill_the_agent(&mut self) {
        self.host.end_agent(Signal::KILL);
        self.host.spawn_agent();
        self.tally.killed("SIGKILL of the agent");
    }

    /// Ends every instance, with nothing in flight.
    pub(crate) async fn end_all_instances(&mut self) {
        for sq in self.host.instances() {
            signal(sq.pid, Signal::KILL);
            processes::ended_within(sq.pid, Duration::from_secs(10));
        }
        self.victims.iter().for_each(|victim| victim.down.store(true, Ordering::Relaxed));
        self.end_back_off();
    }

    /// Waits until all is as wanted. Nobody waits for the end of a back-off; one that begins then is a crash that nobody asked for.
    pub(crate) async fn quiet(&mut self, patience: Duration) {
        self.change(self.victims.iter().map(|victim| victim.id.clone()).collect());
        self.host.settled_within(patience).await;
    }

    pub(crate) fn count_what_was_put_back(&self) {
        let logged = self.host.logged();
        let undone = |id: &str| logged.lines().filter(|line| line.contains("write_undone") && line.contains(id)).count() as u64;
        let put_back = (0..self.victims.len()).map(|n| undone(&name(n))).sum();
        self.tally.put_back.store(put_back, Ordering::Relaxed);
        self.tally.in_flight.store(put_back, Ordering::Relaxed);
    }
}
