//! The whole system: the real program, real sq, real sockets, real signals. One binary, so that tests that wait run beside each other.

#[path = "../support/mod.rs"]
mod support;

mod api;
mod edits;
mod isolation;
mod limits;
mod uploads;
