//! Messages between two processes of this program over a Unix stream socket: how they are framed, and what carries them, blocking or not.
//! What is said stands with whoever says it: the proxy's `control`, and `handover`.
#![forbid(unsafe_code)]

mod frame;
mod socket;

#[cfg(test)]
pub(crate) use frame::encode;
pub(crate) use frame::{Decoder, WireError};
pub(crate) use socket::{ControlError, receive, receive_blocking, send, send_blocking};
