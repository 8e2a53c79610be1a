//! Has snapshots taken and put back: by the hour, before what a person may regret, and when one asks for it.

use std::collections::{BTreeSet, VecDeque};

use http::StatusCode;

use super::{
    backoff,
    core::Core,
    event::NotKept,
    report::{json, unknown},
    world::World,
};
use crate::{
    admin::{
        question::{Answer, Reply},
        status::{RestoreAnswer, RestoreRequest, SnapshotAnswer},
    },
    desired::TenantId,
    observed::{FileWork, Moment, Restore, State},
    snapshot::{Reason, Restored, Taken, schedule},
};

/// What is to be taken, what is being taken, and who waits for it.
#[derive(Debug)]
pub(super) struct Keeping {
    /// Of the latest piece of work.
    number: u64,
    /// Nobody waits for these.
    queue: VecDeque<Wish>,
    /// Of the queue, under way.
    running: BTreeSet<u64>,
    /// Until when tenants had their turn of the hour.
    turned: Moment,
    /// It is said that the disk is too full for hourly ones.
    is_full: bool,
    /// Work that a command waits for.
    asked: BTreeSet<u64>,
    pub(super) answers: Vec<(u64, Answer)>,
}

/// A snapshot that is to be taken.
#[derive(Debug)]
struct Wish {
    number: u64,
    id: TenantId,
    reason: Reason,
}

impl Keeping {
    pub(super) fn new(now: Moment) -> Self {
        Self {
            number: 0,
            queue: VecDeque::new(),
            running: BTreeSet::new(),
            turned: now,
            is_full: false,
            asked: BTreeSet::new(),
            answers: Vec::new(),
        }
    }

    pub(super) fn next(&mut self) -> u64 {
        self.number += 1;
        self.number
    }

    fn answer(&mut self, number: u64, answer: Answer) {
        if self.asked.remove(&number) {
            self.answers.push((number, answer));
        }
    }
}

impl<W: World> Core<W> {
    /// What is to be said to commands that waited.
    pub fn take_answers(&mut self) -> Vec<(u64, Answer)> {
        std::mem::take(&mut self.keeping.answers)
    }

    /// Whoever has its turn of the hour and runs is kept.
    pub(super) fn keep_by_the_hour(&mut self, now: Moment) {
        let turned = std::mem::replace(&mut self.keeping.turned, now);
        if self.desired.snapshots.hourly == 0 || self.is_stopping() {
            return;
        }
        for (id, known) in &self.observed.known {
            let waits = || self.keeping.queue.iter().any(|wish| wish.id == *id);
            if matches!(known.state, State::Running(_)) && schedule::is_due(known.slot, turned, now) && !waits() {
                let number = self.keeping.next();
                self.keeping.queue.push_back(Wish { number, id: id.clone(), reason: Reason::Hourly });
            }
        }
    }

    /// A tenant of whom nothing runs is kept before it goes on.
    pub(super) fn keep_before(&mut self, id: &TenantId, reason: Reason) {
        let Some(known) = self.observed.known.get_mut(id) else { return };
        let number = self.keeping.next();
        known.files = Some(FileWork::Keep { number, reason });
        if reason == Reason::BeforeProgramChange {
            // Its users wait, and a roll-out goes a few at a time.
            self.world.keep(number, id, reason, &self.desired.snapshots);
        } else {
            self.keeping.queue.push_back(Wish { number, id: id.clone(), reason });
        }
    }

    /// Begins as many of those that nobody waits for as may run at once.
    pub(super) fn begin_keeping(&mut self) {
        while self.keeping.running.len() < schedule::AT_ONCE {
            let Some(Wish { number, id, reason }) = self.keeping.queue.pop_front() else { return };
            let runs = self.observed.known.get(&id).is_some_and(|known| matches!(known.state, State::Running(_)));
            if reason == Reason::Hourly && !runs {
                continue;
            }
            self.keeping.running.insert(number);
            self.world.keep(number, &id, reason, &self.desired.snapshots);
        }
    }

    /// `sq-agent snapshot ID`.
    pub(super) fn ask_for_snapshot(&mut self, id: &TenantId) -> Reply {
        if !self.observed.known.contains_key(id) {
            return Reply::Now(Err(unknown(id)));
        }
        let number = self.keeping.next();
        self.keeping.asked.insert(number);
        self.world.keep(number, id, Reason::Asked, &self.desired.snapshots);
        Reply::Later(number)
    }

    /// `sq-agent restore ID`.
    pub(super) fn ask_for_restore(&mut self, wish: RestoreRequest) -> Reply {
        let RestoreRequest { from, name, file, to } = wish;
        let number = self.keeping.next();
        let Some(known) = self.observed.known.get_mut(&to) else { return Reply::Now(Err(unknown(&to))) };
        if known.restore.is_some() {
            return Reply::Now(Err((StatusCode::CONFLICT, format!("a restore of {to} is under way: wait until it has ended"))));
        }
        tracing::info!(tenant = %to, %from, snapshot = %name, file, "a restore is asked for");
        known.restore = Some(Restore { number, from, name, file });
        self.keeping.asked.insert(number);
        self.touch(&to);
        Reply::Later(number)
    }

    /// Nothing of the tenant runs any more.
    pub(super) fn begin_restore(&mut self, id: &TenantId) {
        let Some(known) = self.observed.known.get_mut(id) else { return };
        let Some(restore) = &known.restore else { return };
        known.files = Some(FileWork::Restore);
        self.world.restore(id, restore, &self.desired.snapshots);
    }

    /// A snapshot ended.
    pub(super) fn kept(&mut self, number: u64, id: &TenantId, taken: Result<Taken, NotKept>) {
        let queued = self.keeping.running.remove(&number);
        let mut reason = if self.keeping.asked.contains(&number) { Reason::Asked } else { Reason::Hourly };
        // News of an earlier piece of work may come twice.
        let current = |work: &mut FileWork| matches!(work, FileWork::Keep { number: at, .. } if *at == number);
        if let Some(known) = self.observed.known.get_mut(id)
            && let Some(FileWork::Keep { reason: before, .. }) = known.files.take_if(current)
        {
            reason = before;
            // Where that failed, it is said, and what is desired is done all the same: no data is removed by it.
            known.kept = Some(before);
            self.touch(id);
        } else if !queued && reason == Reason::Hourly {
            return;
        }
        match &taken {
            Ok(Taken::Made(made, in_lane)) => {
                let in_lane_us = in_lane.as_micros();
                tracing::info!(tenant = %id, %reason, bytes = made.bytes, files = made.files, in_lane_us, "a snapshot is taken");
                self.keeping.is_full &= reason != Reason::Hourly;
            }
            Ok(Taken::Unchanged(_) | Taken::Nothing) => tracing::debug!(tenant = %id, %reason, "nothing to take a snapshot of"),
            Err(NotKept { why, no_room: true }) if reason == Reason::Hourly => self.note_full(why),
            Err(NotKept { why, .. }) => {
                tracing::warn!(tenant = %id, %reason, error = why, "no snapshot could be taken");
                self.note_event(Some(id), "snapshot_failed", &format!("{reason}: {why}"));
            }
        }
        self.keeping.answer(number, said_of_snapshot(id, taken));
    }

    /// The disk is too full for hourly snapshots: said once, until one could be taken again.
    fn note_full(&mut self, why: &str) {
        if !std::mem::replace(&mut self.keeping.is_full, true) {
            tracing::warn!(error = why, "no hourly snapshots are taken until there is room on the disk");
            self.note_event(None, "snapshots_paused", why);
        }
    }

    /// A restore ended; the tenant starts again.
    pub(super) fn restored(&mut self, number: u64, id: &TenantId, restored: Result<Restored, String>) {
        if let Some(known) = self.observed.known.get_mut(id)
            && known.restore.take_if(|restore| restore.number == number).is_some()
        {
            known.files = None;
            self.room.forget(id);
            backoff::reset(&mut known.back_off);
            self.touch(id);
        }
        match &restored {
            Ok(restored) => {
                let detail = RestoreAnswer::of(id, restored).detail;
                tracing::info!(tenant = %id, files = restored.files, bytes = restored.bytes, removed = restored.removed, "a snapshot is put back");
                self.note_event(Some(id), "restored", &detail);
            }
            Err(error) => {
                tracing::error!(tenant = %id, error, "a snapshot could not be put back");
                self.note_event(Some(id), "restore_failed", error);
            }
        }
        self.keeping.answer(number, said_of_restore(id, restored));
    }
}

fn said_of_snapshot(id: &TenantId, taken: Result<Taken, NotKept>) -> Answer {
    taken
        .map_err(|NotKept { why, .. }| (StatusCode::CONFLICT, format!("{id}: {why}")))
        .and_then(|taken| json(&SnapshotAnswer::of(id, &taken)))
}

fn said_of_restore(id: &TenantId, restored: Result<Restored, String>) -> Answer {
    restored.map_err(|why| (StatusCode::CONFLICT, format!("{id}: {why}"))).and_then(|restored| json(&RestoreAnswer::of(id, &restored)))
}
