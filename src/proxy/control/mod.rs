//! The private socket between agent and proxy: settings and descriptors down, nudges up.
//!
//! `wire` says what is said and how it is framed; `socket` carries it, blocking or not.

pub(crate) mod socket;
pub(crate) mod wire;
