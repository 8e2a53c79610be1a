//! The proxy as a whole: a real process, real TLS, real sq; or a stand-in for sq where single bytes matter.

mod agent;
mod client;
mod errors;
mod fake;
mod host;
mod real_sq;
mod sandbox;
#[path = "../support/mod.rs"]
mod support;
mod wire;
