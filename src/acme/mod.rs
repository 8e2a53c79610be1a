//! Certificates that the agent asks for by itself, from Let's Encrypt or any other ACME server (RFC 8555).
//!
//! The agent does all of it: it has the network and the files, the proxy has neither. What the server comes to look for at our own ports goes
//! to the proxy with its settings, and the server is told to come once those are in force. `book` says when, `order` asks, `files` keeps,
//! `task` joins them.
#![forbid(unsafe_code)]

mod book;
mod files;
mod http;
mod order;
mod task;

pub use files::Files;
pub use task::{News, Running};
