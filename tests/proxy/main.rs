//! The proxy as a whole: a real process, real TLS, real sq; or a stand-in for sq where single bytes matter.
#![allow(unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)] // a test binary: what fails, fails the test

mod agent;
mod busy;
mod client;
mod errors;
mod fake;
mod front;
mod handshakes;
mod host;
mod load;
mod network;
mod plain;
mod real_sq;
mod replace;
mod sandbox;
#[path = "../support/mod.rs"]
mod support;
mod twins;
mod wire;
