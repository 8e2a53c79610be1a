//! An upgrade: a running agent hands its host over to a new program, and takes it back where that fails.
//!
//! The agent that runs, the **holder**, starts the new program as its child, the **heir**, and speaks with it over a socket:
//!
//! ```text
//! heir                                    holder
//!   own check (tenants.toml, state dir)
//!   Ready  ------------------------------->
//!                                           lets its tasks go, closes instances.db and the pages, keeps the lock
//!          <-------------------------------  Yours + the descriptors of the lock and of the admin API's listener
//!   starts as any agent does: adopts
//!   instances, replaces the proxy
//!   Done   ------------------------------->
//! ```
//!
//! A heir that dies, says `Failed` or is silent is ended, and the holder starts its loop anew: whatever the heir did meanwhile is
//! found by looking, as after any crash. So at each moment exactly one of them acts, and the lock on the state directory is never free.
//!
//! That is done twice. After `Done` the first holder executes the new program in its own place, and that one inherits in turn, over the
//! same socket with the roles exchanged. So the agent keeps its process id (what supervises it need not know of upgrades) and stays
//! the parent of its instances, and still the old program was given up only once the new one had proved itself on this very host.
#![forbid(unsafe_code)]

mod heir;
mod holder;
mod wire;

pub use heir::{Handed, Heir};
pub use holder::{HandoverError, Holder, hear_again};
