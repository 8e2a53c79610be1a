//! What was used and what is to come. Pure: what a tenant used on a day, how the host stood minute by minute, and what follows from that.
//!
//! Where it is kept is [`crate::store`]'s, when it is looked at is the loop's.
#![forbid(unsafe_code)]

pub mod forecast;
pub mod month;
pub mod ring;
pub mod sample;
pub mod usage;
