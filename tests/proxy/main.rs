//! The proxy as a whole: a real process, real TLS, real sq; or a stand-in for sq where single bytes matter.
#![allow(unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)] // a test binary: what fails, fails the test

mod agent;
mod busy;
mod client;
mod errors;
mod fake;
mod floods;
mod frames;
mod front;
mod handshakes;
mod host;
mod load;
mod logs;
mod network;
mod plain;
mod real_sq;
mod replace;
mod sandbox;
mod slow;
mod strict;
mod strict_h2;
#[path = "../support/mod.rs"]
mod support;
mod twins;
mod who;
mod wire;
