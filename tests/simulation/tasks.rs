//! What the agent's tasks do in the course of time, and what processes do by themselves. The rules are those of `lifecycle`.

use std::collections::BTreeSet;

use sq_agent::{
    desired::{SqSource, TenantId},
    instance::{Exit, binary::SqBinary, scan::Found},
    reconcile::{
        event::{Change, Drain, Event, Look, NotKept, NotStarted, Survey, Unproved},
        world::Start,
    },
    snapshot::{Restored, Taken},
};

use crate::{
    check,
    hands::{found, key},
    state::{Ending, Next, Plant, Proc, SimProcess, State, Watcher, trace},
};

/// An sq that is not ready by then is given up.
const READY_WITHIN: u64 = 10_000;
const TERM_GRACE: u64 = 5_000;
const GONE_WITHIN: u64 = 10_000;
/// The real one looks each 5 ms; this is to spare the computer.
const POLL: u64 = 50;

impl State {
    /// One task of the agent `agent` goes on. What is meant for an agent that is gone is never done.
    pub(crate) fn go_on(&mut self, next: Next) {
        match next {
            Next::Spawn(agent, start) if agent == self.agent => self.spawn(agent, start),
            Next::Listen(pid) => self.listen(pid),
            Next::StartTimesOut(agent, id, epoch, pid) if agent == self.agent => self.give_up_start(agent, &id, epoch, pid),
            Next::Dies(pid, exit) => self.die(pid, exit),
            Next::DrainLooks(agent, drain, deadline) if agent == self.agent => self.drain_looks(agent, drain, deadline),
            Next::KillAfterTerm(agent, pid) if agent == self.agent => self.kill(pid),
            Next::GiveUp(agent, id, epoch, pid) if agent == self.agent && self.procs.contains_key(&pid) => {
                self.coverage.hit("immortal");
                trace!(self, "{id} epoch {epoch} does not die");
                self.send(agent, Some(&id), Event::Instance(id.clone(), epoch, Change::Immortal));
            }
            Next::UnprovedLooks(agent, unproved, deadline) if agent == self.agent => self.unproved_looks(agent, unproved, deadline),
            Next::EndOne(agent, ending) if agent == self.agent => self.end_one(agent, ending),
            Next::LookNow(agent, id, epoch, found) if agent == self.agent => self.look_now(agent, &id, epoch, found),
            Next::SurveyNow(agent, known) if agent == self.agent => self.survey_now(agent, &known),
            Next::Kept(agent, number, id) if agent == self.agent => self.kept(agent, number, &id),
            Next::Restored(agent, number, id) if agent == self.agent => self.restored(agent, number, &id),
            Next::ProgramFound(agent, source) if agent == self.agent => self.program_found(agent, &source),
            Next::Alerted(agent, channel, number, outcome) if agent == self.agent => {
                self.send(agent, None, Event::Alerted(channel, number, outcome));
            }
            Next::RequestEnds(slot, pid, end) => self.request_ends(slot, pid, end),
            _ => {}
        }
    }

    /// The process exists from here on; `agent` need not live any more.
    pub(crate) fn spawn(&mut self, agent: u64, start: Start) {
        check::spawn(self, &start);
        let Start { id, epoch, port, program, .. } = start;
        let slow = self.until.slow_starts > self.now;
        let listens_after = if slow { self.rng.between(500, 15_000) } else { self.rng.between(4, 300) };
        let fails = self.until.starts_fail.get(&id).is_some_and(|until| *until > self.now);
        let watchers = vec![Watcher::Start { agent, id: id.clone(), epoch, gave_up: false }];
        let pid = self.add(Proc { watchers, ..proc(&id, epoch, port, program.display().to_string()) });
        trace!(self, "{id} epoch {epoch} runs as pid {pid}");
        self.send(agent, Some(&id), Event::Instance(id.clone(), epoch, Change::Spawned(SimProcess { pid })));
        if fails {
            self.after(listens_after, Next::Dies(pid, Exit::Code(1)));
        } else {
            self.after(listens_after, Next::Listen(pid));
            self.after(READY_WITHIN, Next::StartTimesOut(agent, id, epoch, pid));
        }
    }

    fn listen(&mut self, pid: u32) {
        let Some(proc) = self.procs.get(&pid) else { return };
        if self.stranger_on(proc.port) || self.listener(proc.port).is_some() {
            // sq panics where its port is taken.
            return self.die(pid, Exit::Code(101));
        }
        let Some(proc) = self.procs.get_mut(&pid) else { return };
        proc.listening = true;
        let starts: Vec<Watcher> = std::mem::take(&mut proc.watchers);
        for watcher in starts {
            let watcher = match watcher {
                Watcher::Start { agent, id, epoch, gave_up: false } => {
                    let ready = Event::Instance(id.clone(), epoch, Change::Ready);
                    self.send(agent, Some(&id), ready);
                    Watcher::Instance { agent, id, epoch }
                }
                other => other,
            };
            if let Some(proc) = self.procs.get_mut(&pid) {
                proc.watchers.push(watcher);
            }
        }
    }

    fn give_up_start(&mut self, agent: u64, id: &TenantId, epoch: u64, pid: u32) {
        let Some(proc) = self.procs.get_mut(&pid) else { return };
        let waits = |watcher: &&mut Watcher| matches!(watcher, Watcher::Start { agent: by, .. } if *by == agent);
        let Some(Watcher::Start { gave_up, .. }) = proc.watchers.iter_mut().find(waits) else { return };
        *gave_up = true;
        trace!(self, "{id} epoch {epoch} is not ready in time");
        self.coverage.hit("slow_start_given_up");
        self.terminate(pid, true);
        self.kill(pid);
    }

    /// TERM. `hasty`: without a look at what is in flight.
    pub(crate) fn terminate(&mut self, pid: u32, hasty: bool) {
        check::term(self, pid, hasty);
        let Some(proc) = self.procs.get_mut(&pid) else { return };
        if proc.stubborn || proc.immortal_until > self.now {
            self.coverage.hit("term_ignored");
            return;
        }
        proc.dying = true;
        let delay = self.rng.below(20);
        self.after(delay, Next::Dies(pid, Exit::Signal(15)));
    }

    fn kill(&mut self, pid: u32) {
        let Some(proc) = self.procs.get_mut(&pid) else { return };
        proc.dying = true;
        let at = proc.immortal_until.max(self.now) + 1;
        self.at(at, Next::Dies(pid, Exit::Signal(9)));
    }

    pub(crate) fn die(&mut self, pid: u32, exit: Exit) {
        let Some(proc) = self.procs.remove(&pid) else { return };
        trace!(self, "{} epoch {} pid {pid} ends: {exit}", proc.id, proc.epoch);
        if proc.epoch > 0 {
            self.port_used.insert(proc.port, (self.now, proc.id.clone()));
        }
        for flights in self.flights.values_mut() {
            flights.retain(|(of, _)| *of != pid);
        }
        let stranger = self.stranger_on(proc.port) || self.listener(proc.port).is_some();
        for watcher in proc.watchers {
            self.tell(watcher, exit, stranger);
        }
    }

    fn tell(&mut self, watcher: Watcher, exit: Exit, stranger: bool) {
        match watcher {
            Watcher::Start { agent, id, epoch, gave_up } => {
                let why = match (gave_up, stranger) {
                    (false, true) => NotStarted::PortTaken,
                    (true, _) => NotStarted::Failed("no answer in time".into()),
                    (false, false) => NotStarted::Failed(exit.to_string()),
                };
                if why == NotStarted::PortTaken {
                    self.coverage.hit("port_taken_at_start");
                }
                self.send(agent, Some(&id), Event::Instance(id.clone(), epoch, Change::NotStarted(why)));
            }
            Watcher::Instance { agent, id, epoch } => {
                if self.plant == Some(Plant::DropExit) && self.rng.one_in(4) {
                    return;
                }
                self.send(agent, Some(&id), Event::Instance(id.clone(), epoch, Change::Exited(exit)));
            }
            Watcher::Ending { agent, ending } if !ending.left.is_empty() => self.after(0, Next::EndOne(agent, ending)),
            Watcher::Ending { agent, ending: Ending { id, told: true, .. } } => {
                self.send(agent, Some(&id), Event::Instance(id.clone(), 0, Change::Exited(exit)));
            }
            Watcher::Ending { .. } => {}
        }
    }

    fn drain_looks(&mut self, agent: u64, drain: Drain<SimProcess>, deadline: u64) {
        let busy = self.in_flight(drain.slot) > 0 && self.plant != Some(Plant::SkipDrain);
        if busy && self.now < deadline {
            self.coverage.hit("drain_waited");
            return self.after(POLL, Next::DrainLooks(agent, drain, deadline));
        }
        if busy {
            self.coverage.hit("drain_gave_up");
        }
        let pid = drain.process.pid;
        self.terminate(pid, self.now >= deadline);
        self.after(TERM_GRACE, Next::KillAfterTerm(agent, pid));
        self.after(TERM_GRACE + GONE_WITHIN, Next::GiveUp(agent, drain.id, drain.epoch, pid));
    }

    fn unproved_looks(&mut self, agent: u64, unproved: Unproved<SimProcess>, deadline: u64) {
        if self.in_flight(unproved.slot) > 0 && self.now < deadline {
            return self.after(POLL, Next::UnprovedLooks(agent, unproved, deadline));
        }
        let Unproved { id, processes, .. } = unproved;
        self.end_one(agent, Ending { id, left: processes, told: true, deadline });
    }

    fn end_one(&mut self, agent: u64, mut ending: Ending) {
        if ending.left.is_empty() {
            return;
        }
        let first = ending.left.remove(0);
        let hasty = self.now >= ending.deadline;
        let Some(proc) = self.procs.get_mut(&first.pid) else {
            return self.tell(Watcher::Ending { agent, ending }, Exit::Unknown, false);
        };
        // Who never served has nothing to drain: for a stray, the deadline is in the past, and it must not be routed.
        let hasty = hasty && ending.told;
        if proc.epoch == 0 {
            self.coverage.hit("foreign_sq_stopped");
        }
        if let Some(proc) = self.procs.get_mut(&first.pid) {
            proc.watchers.push(Watcher::Ending { agent, ending });
        }
        self.terminate(first.pid, hasty);
        self.after(TERM_GRACE, Next::KillAfterTerm(agent, first.pid));
    }

    fn look_now(&mut self, agent: u64, id: &TenantId, (number, epoch): (u64, u64), found_before: Option<Vec<Found>>) {
        let look = if self.until.looks_fail > self.now && self.rng.one_in(2) {
            self.coverage.hit("look_failed");
            Look::Failed("a fault".into())
        } else {
            let all = found_before.unwrap_or_else(|| found(self));
            self.look_at(id, epoch, all.into_iter().filter(|found| found.id == *id).collect())
        };
        trace!(self, "looked for {id}: {look:?}");
        self.send(agent, Some(id), Event::Looked(id.clone(), number, look));
    }

    fn look_at(&mut self, id: &TenantId, epoch: u64, found: Vec<Found>) -> Look<SimProcess> {
        let look = |found: Found| {
            let proc = self.procs.get(&found.pid)?;
            Some((SimProcess { pid: found.pid }, found.port, found.key == key(id, epoch) && proc.listening))
        };
        let look = Look::of(epoch, found.into_iter().filter_map(look).collect());
        if matches!(look, Look::Gone) {
            self.coverage.hit("gone_at_look");
        }
        look
    }

    fn survey_now(&mut self, agent: u64, known: &BTreeSet<u32>) {
        let found = found(self).into_iter().filter(|found| !known.contains(&found.pid)).collect();
        self.send(
            agent,
            None,
            Event::Surveyed(Survey {
                found,
                memory: Vec::new(),
                cpu: Vec::new(),
                in_doubt: self.doubts.iter().cloned().collect(),
                storage: Vec::new(),
            }),
        );
    }

    fn kept(&mut self, agent: u64, number: u64, id: &TenantId) {
        self.at_files.remove(id);
        let fails = !self.quiet && self.rng.one_in(8);
        let taken = if fails { Err(NotKept { why: "a fault".into(), no_room: self.rng.one_in(2) }) } else { Ok(Taken::Nothing) };
        self.send(agent, Some(id), Event::Kept(number, id.clone(), taken));
    }

    fn restored(&mut self, agent: u64, number: u64, id: &TenantId) {
        self.at_files.remove(id);
        self.coverage.hit("restored");
        let restored = Restored { files: 1, bytes: 1, removed: 0, kept: Taken::Nothing };
        let restored = if self.rng.one_in(4) { Err("a fault".into()) } else { Ok(restored) };
        self.send(agent, Some(id), Event::Restored(number, id.clone(), restored));
    }

    fn program_found(&mut self, agent: u64, source: &SqSource) {
        let identity = source.identity();
        let found = if self.until.no_program > self.now { Err("a fault".into()) } else { Ok(binary(source)) };
        self.send(agent, None, Event::Program(identity, found));
    }

    fn request_ends(&mut self, slot: u32, pid: u32, end: u64) {
        let Some(flights) = self.flights.get_mut(&slot) else { return };
        let Some(at) = flights.iter().position(|flight| *flight == (pid, end)) else { return };
        flights.remove(at);
        self.last_answer.insert(slot, u32::try_from(self.now / 1_000).unwrap_or(u32::MAX));
    }
}

pub(crate) fn binary(source: &SqSource) -> SqBinary {
    SqBinary { path: source.identity().into(), version: "0".into() }
}

/// A process that was just started.
pub(crate) fn proc(id: &TenantId, epoch: u64, port: u16, program: String) -> Proc {
    Proc {
        id: id.clone(),
        epoch,
        port,
        program,
        listening: false,
        hangs: false,
        stubborn: false,
        immortal_until: 0,
        dying: false,
        watchers: Vec::new(),
    }
}
