//! What an instance gives up between fork and exec, once and for good.
//!
//! sq needs little: its own data, its libraries, one listening port, threads. Each part stands on its own, so that a host
//! which lacks one still has the others, and what one of them lets slip another stops.

mod interpreter;
pub(crate) mod landlock;
pub(crate) mod privileges;
pub(crate) mod seccomp;

use serde::{Deserialize, Serialize};

/// Which parts a start is to have. A part that is asked for and fails ends the start: better down than open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Parts {
    /// No new privileges, no capabilities.
    pub privileges: bool,
    /// Landlock, as much of it as the kernel can.
    pub landlock: bool,
    /// The system call filter.
    pub seccomp: bool,
}
