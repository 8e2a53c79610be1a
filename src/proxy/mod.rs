//! The proxy: its own process between the network and the instances, and the agent's side of it.
//!
//! In the proxy process ([`process`]), a request goes tls -> auth -> route -> admit -> forward (`service` has the order and its reasons). In the
//! agent, `credentials` reads what the proxy must know, `listen` binds, and `supervisor` starts the process, keeps it, and replaces it by a new
//! one: `standing` says who lives, `birth` starts, `retirement` sees off, `supervise` joins them.
#![forbid(unsafe_code)]

mod access_log;
mod answer;
mod attached;
pub(crate) mod auth;
mod birth;
mod build;
pub mod chunks;
mod classify;
mod clock;
pub(crate) mod connection;
mod control;
mod conversation;
pub mod credentials;
mod first_words;
mod forward;
mod frames;
pub(crate) mod gate;
mod guarded;
mod guardian;
pub mod head;
mod headers;
mod in_flight;
mod lane;
mod listen;
mod live;
mod neighbours;
mod network;
mod park;
mod problem;
pub mod process;
mod quota;
mod request_id;
mod retirement;
mod sandbox;
mod seccomp;
mod serve;
mod service;
pub mod settings;
mod standing;
mod supervise;
pub mod supervisor;
mod tenant;
mod tls;
mod token;
mod track;
mod upload;

pub use control::NudgeReason;
pub use listen::ListenError;
pub use network::JoinNetwork;
pub use token::MintError;
