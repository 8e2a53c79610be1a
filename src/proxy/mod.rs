//! The proxy process: tls -> auth -> route -> admit -> forward.
#![forbid(unsafe_code)]

mod auth;
mod classify;
pub mod settings;
