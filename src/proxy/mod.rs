//! The proxy: its own process between the network and the instances, and the agent's side of it.
//!
//! In the proxy process ([`process`]), a request goes tls -> auth -> route -> admit -> forward (`service` has the order and its reasons). In the
//! agent, `ring` has what the proxy must know (`credentials` reads files, `key_sets` fetches), `listen` binds, and `supervisor` starts the process,
//! keeps it, and replaces it by a new one: `standing` says who lives, `birth` starts, `retirement` sees off, `supervise` joins them.
#![forbid(unsafe_code)]

mod access_log;
mod answer;
pub(crate) mod api_key;
mod arrival;
mod attached;
pub(crate) mod auth;
mod birth;
mod build;
pub mod chunks;
mod classify;
pub(crate) mod client_address;
mod clock;
pub(crate) mod connection;
mod control;
mod conversation;
pub mod credentials;
mod doze;
mod first_words;
mod forward;
mod frames;
pub mod front;
pub(crate) mod gate;
mod guarded;
mod guardian;
mod handshakes;
pub mod head;
mod headers;
mod in_flight;
mod jwks;
pub(crate) mod key_sets;
mod lane;
mod listen;
mod live;
mod log_shelf;
mod measure;
mod neighbours;
mod network;
mod park;
mod plain;
mod problem;
pub mod process;
pub(crate) mod proxy_header;
mod quota;
pub(crate) mod request_id;
mod retirement;
pub mod ring;
mod room;
mod sandbox;
mod seccomp;
mod serve;
mod service;
pub mod settings;
mod spare;
mod standing;
mod supervise;
pub mod supervisor;
mod tenant;
mod tls;
mod token;
mod trace;
mod track;
mod unknown_kid;
mod upload;
mod upstream;
mod webhook;

pub use control::NudgeReason;
pub use listen::ListenError;
pub use network::JoinNetwork;
pub use token::MintError;

use crate::secret::Secret;

/// Whether chain and key can be served with, or why not; nothing of the key is in that.
pub(crate) fn fits(chain_pem: &[u8], key_pem: &Secret) -> Result<(), String> {
    tls::server_config(chain_pem, key_pem.expose(), &[]).map(drop).map_err(|error| error.to_string())
}
