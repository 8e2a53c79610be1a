//! The proxy process: tls -> auth -> route -> admit -> forward.
#![forbid(unsafe_code)]

pub mod settings;
