//! Snapshots of a tenant's phexts: taken whole, kept beside the data in `users/<id>/snapshots/`, put back when a person asks for it.
//!
//! [`copy`] makes a consistent copy while sq runs, and holds the tenant's lane only for what changed meanwhile; [`take`] makes a snapshot of it;
//! [`restore`] puts one back. All of it blocks, and none of it decides when: that is the loop's. Pure: [`name`], [`retention`], [`schedule`].
#![forbid(unsafe_code)]

pub(crate) mod copy;
mod name;
mod restore;
mod retention;
pub mod schedule;
mod shelf;
mod take;

pub use copy::CopyError;
pub use name::{BadTime, Name, Reason, choose};
pub use restore::{RestoreError, RestoreOrder, Restored, phext_file, restore};
pub use shelf::{Listed, SNAPSHOTS_DIR, ShelfError, list};
pub use take::{SnapshotError, SnapshotOrder, Taken, take};
