//! Calls to the system that no crate offers safely: beside `route/` the only place with `unsafe`.
//!
//! Nearly empty on purpose: rustix gives pidfds, limits and waiting as safe functions. A new entry belongs here only
//! after looking there first.

#![allow(unsafe_code)]

use std::{io, os::fd::OwnedFd};

use tokio::io::{Interest, unix::AsyncFd};

/// Marks every descriptor from 3 upwards close-on-exec, so that no child inherits what the agent was started with.
///
/// Everything the standard library and rustix open is close-on-exec already; this is for descriptors that a shell or
/// supervisor left open. Call it once at start. A descriptor that is meant for one child (a listening socket for the
/// proxy) is made inheritable again for that child alone. Needs Linux 5.11.
pub fn close_inherited_on_exec() -> io::Result<()> {
    const FIRST: libc::c_uint = 3;
    // SAFETY: close_range takes three integers and touches no memory of ours. With CLOSE_RANGE_CLOEXEC it closes
    // nothing, it only sets a flag, so no descriptor owned elsewhere in the process becomes invalid.
    let done = unsafe { libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Lets a task wait until `fd` becomes readable. Must run inside a tokio runtime.
pub fn watch_readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the type owns an open descriptor, gives the same number at each call, and closes it only when dropped; the
    // AsyncFd owns it and hands out shared references alone, through which it can be neither closed nor replaced.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(io::Error::from)
}
