//! Snapshots of a tenant's phexts: taken whole, kept beside the data, put back by a person.
//!
//! [`copy`] makes a consistent copy while sq runs, and holds the tenant's lane only for what changed meanwhile.
#![forbid(unsafe_code)]

pub(crate) mod copy;
