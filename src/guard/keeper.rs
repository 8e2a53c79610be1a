//! The guard's work: what it does for each message of its proxy. Blocking; several threads at once.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rustix::fd::OwnedFd;

use super::{
    complaints::{self, Mark},
    directory::{Directory, Guarded},
    group_sync::GroupSync,
    lane::Lane,
    target::{Call, Target},
    turn::{Turn, Turns},
    wire::{Refusal, Sent, ToGuard, ToProxy, Verdict, Write},
    write::{self, Durability, Files, Marker},
};
use crate::{
    desired::TenantId,
    file::{FileError, Version},
};

/// How long a write waits for the lane. Its turn among its own proxy's has come; left are a copy, a snapshot, another proxy's write.
const PATIENCE: Duration = Duration::from_secs(30);
/// Beside what a rewrite adds: names, delimiters, the marker, the log.
const ROOM: u64 = 64 * 1024;
/// Tenants who are remembered, each with four open files.
const MOST_TENANTS: usize = 512;
/// Copies of one tenant of which it is remembered that they are true.
const REMEMBERED: usize = 8;

/// What is remembered of a tenant between two writes.
#[derive(Default)]
struct Memory {
    /// Files, and what each was when its copy was made; the latest last.
    copied: Vec<(String, Version)>,
    /// How far its log was read, and of which start of sq.
    log: Option<(u64, Mark)>,
    /// Its directories, opened for that start.
    directory: Option<(u64, Arc<Directory>)>,
    /// Whose turn it is.
    turns: Arc<Turns>,
}

impl Memory {
    /// The tenant's directories. They are opened once a start of sq: before one they may have been replaced.
    fn directory(&mut self, users: &OwnedFd, id: &TenantId, epoch: u64) -> Result<Arc<Directory>, FileError> {
        if let Some((opened, directory)) = &self.directory
            && *opened == epoch
            && !directory.is_stale()
        {
            return Ok(Arc::clone(directory));
        }
        let directory = Arc::new(Directory::open_at(users, id)?);
        (self.copied, self.log) = (Vec::new(), None);
        self.directory = Some((epoch, Arc::clone(&directory)));
        Ok(directory)
    }

    fn take(&mut self, file: &str) -> Option<Version> {
        let at = self.copied.iter().position(|(name, _)| name == file)?;
        Some(self.copied.remove(at).1)
    }

    fn put(&mut self, file: String, identity: Option<Version>) {
        let Some(identity) = identity else { return };
        if self.copied.len() == REMEMBERED {
            self.copied.remove(0);
        }
        self.copied.push((file, identity));
    }
}

/// A write between its begin and its end.
struct Open {
    _lane: Lane,
    /// Let go after the lane.
    _turn: Turn,
    directory: Arc<Directory>,
    id: TenantId,
    phext: String,
    call: Call,
    durability: Durability,
    may_grow: bool,
    marker: Marker,
    /// When the file was modified before.
    modified: Option<(i64, i64)>,
    log: Option<Mark>,
}

/// See the file's description.
pub(super) struct Keeper {
    users: OwnedFd,
    boot_id: String,
    sync: GroupSync<Directory>,
    tenants: Mutex<HashMap<TenantId, Arc<Mutex<Memory>>>>,
    open: Mutex<HashMap<u64, Open>>,
}

/// Work that is left when the proxy has been answered.
pub(super) type Rest = Box<dyn FnOnce() + Send>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Keeper {
    pub(super) fn new(users: OwnedFd, boot_id: String, sync: GroupSync<Directory>) -> Self {
        Self { users, boot_id, sync, tenants: Mutex::default(), open: Mutex::default() }
    }

    /// Does what a message asks for. What is left to do is done once the answer is on its way: it keeps the lane and nobody waiting.
    pub(super) fn answer(self: &Arc<Self>, message: ToGuard) -> (ToProxy, Option<Rest>) {
        match message {
            ToGuard::Begin { ticket, write } => match self.begin(ticket, write) {
                Ok(reload) => (ToProxy::Begun { ticket, reload }, None),
                Err(why) => (ToProxy::Refused { ticket, why }, None),
            },
            ToGuard::End { ticket, sent } => {
                let Some(open) = lock(&self.open).remove(&ticket) else {
                    return (ToProxy::Verdict { ticket, verdict: Verdict::InDoubt { why: Some("no such write was begun".into()) } }, None);
                };
                let (verdict, rest) = self.end(ticket, open, sent);
                (ToProxy::Verdict { ticket, verdict }, rest)
            }
            ToGuard::Reloaded { ticket, done } => {
                let undone = lock(&self.open).remove(&ticket).is_some_and(|open| done && self.settle(open));
                (ToProxy::Settled { ticket, undone }, None)
            }
        }
    }

    fn memory(&self, id: &TenantId) -> Arc<Mutex<Memory>> {
        let mut tenants = lock(&self.tenants);
        if let Some(memory) = tenants.get(id) {
            return Arc::clone(memory);
        }
        if tenants.len() >= MOST_TENANTS {
            // Whoever writes now is remembered again; the rest is forgotten, with its open directories.
            tenants.clear();
        }
        Arc::clone(tenants.entry(id.clone()).or_default())
    }

    /// Whether sq has to read the phext again before it writes.
    fn begin(&self, ticket: u64, write: Write) -> Result<bool, Refusal> {
        let files = |error: FileError| Refusal::Files(error.to_string());
        let io = |what: &'static str| move |error: io::Error| Refusal::Files(format!("{what}: {error}"));
        let memory = self.memory(&write.id);
        let turns = Arc::clone(&lock(&memory).turns);
        let deadline = Instant::now() + PATIENCE;
        let turn = turns.take(PATIENCE).ok_or(Refusal::Busy)?;
        let directory = lock(&memory).directory(&self.users, &write.id, write.epoch).map_err(files)?;
        let lane = Lane::take(&directory, deadline.saturating_duration_since(Instant::now()))
            .map_err(io("taking the lane"))?
            .ok_or(Refusal::Busy)?;
        if directory.is_marked().map_err(io("looking for a marker"))? {
            return Err(Refusal::InDoubt);
        }
        let target = Target { phext: write.phext, call: write.call };
        let file = target.file().into_owned();
        let mut memory = lock(&memory);
        let copied = memory.take(&file);
        let mut guarded = Guarded::new(&directory, &file, copied, Some(&self.sync));
        let stands = guarded.version().map_err(files)?;
        if !write.may_grow && stands.is_none_or(|found| write.body > found.size) {
            return Err(Refusal::Grows);
        }
        fits(&directory, stands, copied, write.call, write.body, write.memory_max)?;
        let mark = memory.log.filter(|(epoch, _)| *epoch == write.epoch).map(|(_, mark)| mark);
        let log = complaints::since(&directory, mark, &target.phext).map_err(io("reading sq.log"))?;
        let (boot_id, durable) = (self.boot_id.clone(), write.durability == Durability::Power);
        let size = stands.map_or(0, |found| found.size);
        let (epoch, request_id) = (write.epoch, write.request_id);
        let begun = write::begin(&mut guarded, write.durability, |existed| Marker {
            file: file.clone(),
            request_id,
            epoch,
            existed,
            size,
            durable,
            boot_id,
        });
        let (marker, modified) = match begun.and_then(|marker| Ok((marker, guarded.touch_not(stands)?))) {
            Ok(begun) => begun,
            Err(error) => {
                // Nothing was sent.
                let _ = guarded.unmark();
                return Err(no_room(&error).unwrap_or_else(|| files(error)));
            }
        };
        let (id, phext, call, durability, may_grow) = (write.id, target.phext, write.call, write.durability, write.may_grow);
        let open = Open { _lane: lane, _turn: turn, directory, id, phext, call, durability, may_grow, marker, modified, log: log.mark };
        lock(&self.open).insert(ticket, open);
        Ok(log.complains)
    }

    fn end(self: &Arc<Self>, ticket: u64, open: Open, sent: Sent) -> (Verdict, Option<Rest>) {
        match self.judge(&open, sent) {
            Ok(Judged::Whole) => match write::keep(&mut open.guarded(&self.sync), open.durability) {
                Ok(()) => {
                    let keeper = Arc::clone(self);
                    (Verdict::Kept, Some(Box::new(move || keeper.renew(open))))
                }
                Err(error) => (in_doubt(&open, &error), None),
            },
            Ok(Judged::Untouched) => match self.leave(&open) {
                Ok(()) => (Verdict::Untouched, None),
                Err(error) => (in_doubt(&open, &error), None),
            },
            Ok(Judged::Failed(why)) => {
                let (tenant, request_id) = (&open.id, &open.marker.request_id);
                tracing::warn!(%tenant, epoch = open.marker.epoch, file = open.marker.file, request_id, why, "a write failed: the file is put back");
                (self.undo(ticket, open, Verdict::PutBack { why }), None)
            }
            Ok(Judged::Outgrown) => (self.undo(ticket, open, Verdict::Outgrown), None),
            Ok(Judged::Unknown) => (Verdict::InDoubt { why: None }, None),
            Err(error) => (in_doubt(&open, &error), None),
        }
    }

    /// Puts the file back. What sq has in its memory is for the proxy to mend.
    fn undo(&self, ticket: u64, open: Open, undone: Verdict) -> Verdict {
        if let Err(error) = open.guarded(&self.sync).put_back(&open.marker) {
            return in_doubt(&open, &error);
        }
        // What sq said so far is known; what it says of reading the file again is to come.
        let log = complaints::since(&open.directory, open.log, &open.phext).ok().and_then(|log| log.mark);
        lock(&self.open).insert(ticket, Open { log, ..open });
        undone
    }

    fn judge(&self, open: &Open, sent: Sent) -> Result<Judged, FileError> {
        let (success, length) = match sent {
            Sent::Answered { success, length } => (success, length),
            Sent::Not => return Ok(Judged::Untouched),
            Sent::Unknown => return Ok(Judged::Unknown),
        };
        let guarded = open.guarded(&self.sync);
        let rewritten = guarded.is_rewritten()?;
        if !success {
            return Ok(if rewritten && open.marker.existed {
                Judged::Failed("sq refused it and wrote all the same".into())
            } else {
                Judged::Untouched
            });
        }
        let log = complaints::since(&open.directory, open.log, &open.phext);
        if !rewritten {
            return Ok(Judged::Failed("sq said 200 and did not write the file".into()));
        }
        if open.log.is_some() && log.map_or(true, |log| log.complains) {
            return Ok(Judged::Failed("sq could not read or write the file: see its sq.log".into()));
        }
        // Its errors are told nowhere, but what it writes is what it answers.
        if open.call == Call::Export && guarded.version()?.is_none_or(|found| found.size != length) {
            return Ok(Judged::Failed("the export is not whole".into()));
        }
        if !open.may_grow && guarded.version()?.is_some_and(|found| found.size > open.marker.size) {
            return Ok(Judged::Outgrown);
        }
        Ok(Judged::Whole)
    }

    /// Nothing was written: all stays as it is.
    fn leave(&self, open: &Open) -> Result<(), FileError> {
        let mut guarded = open.guarded(&self.sync);
        if !guarded.is_rewritten()? {
            guarded.untouched(open.modified)?;
        }
        guarded.unmark()?;
        self.remember(open, guarded.copied());
        Ok(())
    }

    /// sq has read the file again after it was put back. Whether all is as it was before the write.
    fn settle(&self, open: Open) -> bool {
        let read = open.log.is_none() || complaints::since(&open.directory, open.log, &open.phext).is_ok_and(|log| !log.complains);
        let settled = read && write::keep(&mut open.guarded(&self.sync), open.durability).is_ok();
        if settled {
            self.remember(&open, None);
        }
        settled
    }

    /// Makes the copy for the next write, still in the lane.
    fn renew(&self, open: Open) {
        let mut guarded = open.guarded(&self.sync);
        let renewed = guarded.copy();
        let synced = if open.durability == Durability::Power { guarded.sync() } else { Ok(()) };
        // Without room for it the next write makes it, or is refused.
        let copied = renewed.and(synced).ok().and_then(|()| guarded.copied());
        self.remember(&open, copied);
    }

    fn remember(&self, open: &Open, copied: Option<Version>) {
        let memory = self.memory(&open.id);
        let mut memory = lock(&memory);
        memory.put(open.marker.file.clone(), copied);
        memory.log = open.log.map(|mark| (open.marker.epoch, mark));
    }
}

impl Open {
    fn guarded<'a>(&'a self, sync: &'a GroupSync<Directory>) -> Guarded<'a> {
        // What the copy was made of says nothing once the file may have been written: a rewrite within one tick of the clock looks the same.
        Guarded::new(&self.directory, &self.marker.file, None, Some(sync))
    }
}

/// What a look at the file after the answer says.
enum Judged {
    Whole,
    Untouched,
    Failed(String),
    /// Written, and larger than it may be.
    Outgrown,
    Unknown,
}

fn in_doubt(open: &Open, error: &FileError) -> Verdict {
    tracing::error!(tenant = %open.id, epoch = open.marker.epoch, file = open.marker.file, %error, "a write is in doubt");
    Verdict::InDoubt { why: Some(error.to_string()) }
}

fn no_room(error: &FileError) -> Option<Refusal> {
    matches!(error.source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        .then_some(Refusal::NoRoom { needs: ROOM, free: 0 })
}

/// Whether disk and memory have room for the write. sq truncates the file and writes it anew; where blocks are shared with the copy, that
/// frees none.
fn fits(
    directory: &Directory,
    stands: Option<Version>,
    copied: Option<Version>,
    call: Call,
    body: u64,
    memory_max: Option<u64>,
) -> Result<(), Refusal> {
    let size = stands.map_or(0, |found| found.size);
    let needs = memory_needed(call, size, body);
    if let Some(limit) = memory_max.filter(|&limit| needs > limit) {
        return Err(Refusal::NoMemory { needs, limit });
    }
    let copy = if copied == stands { 0 } else { size };
    let needs = copy + size + body + ROOM;
    let free = directory.free().map_err(|error| Refusal::Files(format!("asking for free room: {error}")))?;
    if free < needs { Err(Refusal::NoRoom { needs, free }) } else { Ok(()) }
}

/// What sq takes at its peak, bytes, for a phext of `size` and a body: measured (VmHWM) at 2.7 MB, and 2.2 times the phext, 3 times
/// where text is appended to one long scroll, and 6 times the body.
fn memory_needed(call: Call, size: u64, body: u64) -> u64 {
    const SQ: u64 = 3 << 20;
    let phext = match call {
        Call::Insert => size.saturating_mul(3),
        Call::Update | Call::Delete | Call::Export => size.saturating_mul(9) / 4,
    };
    SQ.saturating_add(phext).saturating_add(body.saturating_mul(6))
}
