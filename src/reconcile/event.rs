//! What the loop and the tasks that carry out its actions tell each other.

use crate::{
    acme::News,
    alerts::{Channel, Outcome},
    backup::Report,
    desired::TenantId,
    gitops,
    guard::Recovered,
    instance::{binary::SqBinary, process::Exit, scan::Found, storage::Stored, usage::Memory},
    snapshot::{Restored, Taken},
};

/// News for the loop. `P` is a handle on a process.
#[derive(Debug, Clone)]
pub enum Event<P> {
    /// About the start `epoch` of one tenant's instance; news of an earlier start is stale and dropped.
    Instance(TenantId, u64, Change<P>),
    /// The look of this number, at one tenant's processes, ended; what an earlier look saw is stale and dropped.
    Looked(TenantId, u64, Look<P>),
    /// A full look at the host.
    Surveyed(Survey),
    /// Keys of an identity provider were fetched, or could not be.
    KeySets,
    /// A backup off this host ended.
    BackedUp(Report),
    /// A look at the repository that tenants.toml comes from ended.
    Synced(gitops::Report),
    /// About the certificate that is asked for.
    Acme(News),
    /// What the instances of these processes take.
    Measured(Vec<(u32, Memory)>),
    /// What came of sending the alert of this number.
    Alerted(Channel, u64, Outcome),
    /// A write to a tenant of whom nothing runs had broken off, and the text is as it was.
    Undone(TenantId, Recovered),
    /// The snapshot of this number ended.
    Kept(u64, TenantId, Result<Taken, NotKept>),
    /// The restore of this number ended; or why not, in words.
    Restored(u64, TenantId, Result<Restored, String>),
    /// The search for the program of this identity ended.
    Program(String, Result<SqBinary, String>),
}

/// Why no snapshot was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotKept {
    /// In words.
    pub why: String,
    /// The disk is too full.
    pub no_room: bool,
}

/// How an instance changed.
#[derive(Debug, Clone)]
pub enum Change<P> {
    /// The process exists; nothing is proved yet.
    Spawned(P),
    /// The keyed probe proved that this process answers on the port.
    Ready,
    /// It did not come up, and nothing of it runs.
    NotStarted(NotStarted),
    /// The process ended.
    Exited(Exit),
    /// The kernel ended it since it met its memory limit.
    OutOfMemory,
    /// It was told to end and killed, and is still there.
    Immortal,
}

/// Why a start came to nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotStarted {
    /// Something else holds the port: take another one, it is nobody's fault.
    PortTaken,
    /// It met its memory limit.
    OutOfMemory,
    /// It could not be spawned, died or did not answer; in words.
    Failed(String),
}

/// What a look at one tenant found.
#[derive(Debug, Clone)]
pub enum Look<P> {
    /// Nothing of it runs.
    Gone,
    /// The instance that the record names lives and proved itself.
    Ours {
        /// The process.
        process: P,
        /// Its start.
        epoch: u64,
        /// Its port.
        port: u16,
        /// Further processes of this tenant, which have no business there.
        others: Vec<P>,
    },
    /// Processes of this tenant that nothing proves to be ours.
    Unproved(Vec<P>),
    /// Could not tell; ask again.
    Failed(String),
}

impl<P> Look<P> {
    /// What the processes of one tenant amount to, each with its port and whether it proved to be the start `epoch`.
    ///
    /// The order in which they were found says nothing: one that somebody started by hand must not cost the tenant its instance.
    pub fn of(epoch: u64, mut processes: Vec<(P, u16, bool)>) -> Self {
        match processes.iter().position(|(_, _, proved)| *proved) {
            Some(at) => {
                let (process, port, _) = processes.swap_remove(at);
                Self::Ours { process, epoch, port, others: processes.into_iter().map(|(process, ..)| process).collect() }
            }
            None if processes.is_empty() => Self::Gone,
            None => Self::Unproved(processes.into_iter().map(|(process, ..)| process).collect()),
        }
    }
}

/// A full look at the host.
#[derive(Debug, Clone)]
pub struct Survey {
    /// Every sq of this state directory that was no tenant's instance when the look began.
    pub found: Vec<Found>,
    /// Memory of each, by process id.
    pub memory: Vec<(u32, Memory)>,
    /// CPU time that each has used since it began, by process id, microseconds.
    pub cpu: Vec<(u32, u64)>,
    /// Tenants to whom a write broke off.
    pub in_doubt: Vec<TenantId>,
    /// What the phexts take of those who were to be measured, as far as time allowed.
    pub storage: Vec<(TenantId, Stored)>,
}

/// An instance that is to be stopped.
#[derive(Debug, Clone)]
pub struct Drain<P> {
    /// Whose.
    pub id: TenantId,
    /// Its start.
    pub epoch: u64,
    /// Its process.
    pub process: P,
    /// The tenant's slot in the activity page.
    pub slot: u32,
}

/// Processes of a tenant of which none is proved to be its instance, though one may have served until now.
#[derive(Debug, Clone)]
pub struct Unproved<P> {
    /// Whose.
    pub id: TenantId,
    /// At least one.
    pub processes: Vec<P>,
    /// The tenant's slot in the activity page.
    pub slot: u32,
}
