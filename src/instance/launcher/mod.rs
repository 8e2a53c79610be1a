//! The launcher: a small process of one thread that starts every instance, and owns the network they live in.
//!
//! The agent itself cannot do either. It has threads, so it must not run code between fork and exec, and the sandbox is such
//! code; and a process with threads cannot enter a user namespace. The launcher forks with the agent as the parent
//! (CLONE_PARENT), straight into the tenant's cgroup, and hands over a pidfd: to the agent an instance is a child as any other.
//!
//! [`serve`] is the process, [`child`] what happens between fork and exec, [`trial`] finds out what this host permits,
//! [`network`] makes or enters the network, [`wire`] is the language, [`line`] and [`handle`] are the agent's end.

mod child;
mod handle;
mod line;
mod network;
mod serve;
mod trial;
mod wire;

pub use handle::{LaunchError, Launcher, LauncherConfig};
pub use line::LauncherError;
pub use serve::run;
