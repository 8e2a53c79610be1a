//! Sockets towards the instances, used again: each request has a connection of its own, but not a socket.
//!
//! To dissolve a connection (connect(2), `AF_UNSPEC`) resets it, as to close a socket that does not linger does it, and leaves the socket as a new
//! one but for its options: what was received is gone, and the next connection gets a port of its own. A new socket for each request would take the
//! kernel a tenth of all that a small request takes in this process.

use std::{
    os::fd::OwnedFd,
    sync::{Mutex, MutexGuard, PoisonError},
};

use rustix::{
    io::Result,
    net::{AddressFamily, SocketFlags, SocketType, connect_unspec, socket_with},
};

/// So many are kept. Each takes some 3 KB of the kernel, and more of them are in use at once on a host that is busy.
const MOST: usize = 64;

/// Sockets without a connection. The last one that came is the next one to go.
pub(super) struct Spare(Mutex<Vec<OwnedFd>>);

/// Those of the process. No more descriptors are open by it than without: a new one is made only where all are in use.
pub(super) static SPARE: Spare = Spare::none();

impl Spare {
    const fn none() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// One that is not connected and does not block.
    pub(super) fn take(&self) -> Result<OwnedFd> {
        let spare = self.sockets().pop();
        let new = || socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None);
        spare.map_or_else(new, Ok)
    }

    /// Resets the connection of `socket`, which nobody watches any more, and keeps it where there are few.
    pub(super) fn give_back(&self, socket: OwnedFd) {
        // Where that cannot be, the connection ends in order.
        if connect_unspec(&socket).is_ok() {
            let mut sockets = self.sockets();
            if sockets.len() < MOST {
                sockets.push(socket);
            }
        }
    }

    fn sockets(&self) -> MutexGuard<'_, Vec<OwnedFd>> {
        // Nothing under the lock can panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{ErrorKind, Read, Write},
        net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream},
        os::fd::AsRawFd,
        time::Duration,
    };

    use rustix::{
        event::{PollFd, PollFlags, Timespec, poll},
        io::Errno,
        net::connect,
    };

    use super::*;

    /// A connection of `socket`, and its other end.
    fn connected(socket: OwnedFd) -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let begun = connect(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port));
        assert!(matches!(begun, Ok(()) | Err(Errno::INPROGRESS)), "{begun:?}");
        let peer = listener.accept().unwrap().0;
        peer.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        (TcpStream::from(socket), peer)
    }

    fn becomes_readable(stream: &TcpStream) -> bool {
        let patience = Timespec { tv_sec: 5, tv_nsec: 0 };
        poll(&mut [PollFd::new(stream, PollFlags::IN)], Some(&patience)).unwrap() == 1
    }

    #[test]
    fn a_socket_serves_again_and_nothing_of_its_last_connection_is_left() {
        let spare = Spare::none();
        let (stream, mut peer) = connected(spare.take().unwrap());
        let number = stream.as_raw_fd();
        peer.write_all(b"unread").unwrap();
        assert!(becomes_readable(&stream));
        spare.give_back(stream.into());
        assert_eq!(peer.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);

        let (mut stream, mut peer) = connected(spare.take().unwrap());
        assert_eq!(stream.as_raw_fd(), number, "the same socket");
        assert!(stream.take_error().unwrap().is_none());
        assert_eq!(stream.read(&mut [0; 10]).unwrap_err().kind(), ErrorKind::WouldBlock);
        peer.write_all(b"new").unwrap();
        drop(peer);
        assert!(becomes_readable(&stream));
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"new");
    }

    #[test]
    fn no_more_are_kept_than_are_needed() {
        let spare = Spare::none();
        let sockets: Vec<_> = (0..=MOST).map(|_| connected(spare.take().unwrap())).collect();
        let peers: Vec<_> = sockets.into_iter().map(|(stream, peer)| (spare.give_back(stream.into()), peer)).collect();
        assert_eq!(spare.sockets().len(), MOST);
        for ((), mut peer) in peers {
            assert_eq!(peer.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset, "also of one that is not kept");
        }
    }
}
