//! Whether a port is free. Whose it is stands in [`crate::reconcile::port_book`].

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4},
};

use rustix::{
    io::Errno,
    net::{bind, listen, sockopt::set_socket_reuseaddr},
};

use super::{holder, network::Network};

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

/// Binds and listens in `network` exactly as sq does (0.0.0.0, SO_REUSEADDR), and lets go again.
///
/// A free answer may be stale a moment later; then sq exits with 101 and the keyed probe never succeeds.
/// Some 30 µs where it is free; where it is taken, finding the holder walks all of /proc.
pub fn probe_free(network: &Network, port: u16) -> PortState {
    match listen_on(network, port) {
        Ok(()) => PortState::Free,
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let by = holder::of_port(&network.tables(), port);
            PortState::Taken { by: by.unwrap_or_else(|| "a socket whose owner /proc does not show".into()) }
        }
        Err(error) => PortState::Forbidden(error.to_string()),
    }
}

fn listen_on(network: &Network, port: u16) -> io::Result<()> {
    /// As the standard library asks for, and so sq.
    const BACKLOG: i32 = 128;
    let socket = network.socket()?;
    set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port))?;
    listen(&socket, BACKLOG)?;
    // Closing alone frees the port only once a child that another thread starts just now has closed its copy at its exec: sq
    // could still find it taken.
    match rustix::net::shutdown(&socket, rustix::net::Shutdown::Both) {
        Ok(()) | Err(Errno::NOTCONN) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_bind_test_tells_free_from_taken_and_names_the_holder() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let PortState::Taken { by } = probe_free(&Network::host(), port) else { panic!("a loopback listener keeps sq off 0.0.0.0") };
        assert!(by.contains(&format!("pid {}", std::process::id())), "{by}");
        rustix::net::shutdown(&listener, rustix::net::Shutdown::Both).unwrap();
        assert_eq!(probe_free(&Network::host(), port), PortState::Free, "though the descriptor of the shut listener is still open");
    }
}
