//! What runs: the observed state that the loop plans from, and what it makes of `/proc` after a restart.
#![forbid(unsafe_code)]

mod model;
mod moment;

pub use model::*;
pub use moment::{Moment, monotonic};
