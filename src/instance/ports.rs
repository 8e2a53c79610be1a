//! Whether a port is free. Whose it is stands in [`crate::reconcile::port_book`].

use std::{
    io,
    net::{Ipv4Addr, TcpListener},
};

/// What a bind test found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortState {
    /// sq could bind it now.
    Free,
    /// Something has it.
    Taken {
        /// Who listens, as far as /proc tells: `pid 4711 (nginx)`.
        by: String,
    },
    /// The kernel refuses it to this user (below 1024 without root), or has no address: the text says why.
    Forbidden(String),
}

/// Binds and listens exactly as sq does (0.0.0.0, SO_REUSEADDR), and lets go again.
///
/// A free answer may be stale a moment later; then sq exits with 101 and the keyed probe never succeeds.
/// Some 30 µs where it is free; where it is taken, finding the holder walks all of /proc.
pub fn probe_free(port: u16) -> PortState {
    match TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)) {
        Ok(listener) => {
            // Closing alone frees the port only once a child that another thread starts just now has closed its copy at
            // its exec: sq could still find it taken. Fails only on a socket that does not listen.
            let _ = rustix::net::shutdown(&listener, rustix::net::Shutdown::Both);
            PortState::Free
        }
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            PortState::Taken { by: super::holder::of_port(port).unwrap_or_else(|| "a socket whose owner /proc does not show".into()) }
        }
        Err(error) => PortState::Forbidden(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bind_test_tells_free_from_taken_and_names_the_holder() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let PortState::Taken { by } = probe_free(port) else { panic!("a loopback listener keeps sq off 0.0.0.0") };
        assert!(by.contains(&format!("pid {}", std::process::id())), "{by}");
        rustix::net::shutdown(&listener, rustix::net::Shutdown::Both).unwrap();
        assert_eq!(probe_free(port), PortState::Free, "though the descriptor of the shut listener is still open");
    }
}
