//! A connection to an instance: one request goes out on it, one answer comes back.
//!
//! An instance listens on loopback, where a connection stands by the time `connect` returns, although a socket that does not block cannot say so.
//! So the first bytes are written at once, and only what did not go out waits for the event loop. That spares each request a turn of the loop, the
//! question how `connect` ended, and, as nothing more is to be written, every event but those of the answer.

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::OwnedFd,
    task::{Context, Poll, ready},
    time::Duration,
};

use rustix::{
    buffer::spare_capacity,
    io::Errno,
    net::{RecvFlags, SendFlags, recv, send, sockopt},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::timeout,
};

use super::spare::SPARE;
use crate::sys;

/// Until a loopback connection must stand. A full backlog of sq (128) costs a SYN retry after 1 s, then after 2 s more.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Nobody listens there, or nobody took the connection in time: nothing went out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refused;

/// A connection that stands.
pub(crate) struct Upstream(AsyncFd<OwnedFd>);

impl Upstream {
    /// A connection to whoever listens on `port`.
    pub(crate) async fn connect(port: u16) -> Result<Self, Refused> {
        standing(begin(socket()?, port)?).await
    }

    /// The same with `first` on its way; returns how much of it is. Where that is all and there is no `more`, nothing else can be written.
    pub(crate) async fn connect_with(port: u16, first: &[u8], more: bool) -> Result<(Self, usize), Refused> {
        let socket = socket()?;
        // The kernel holds the last packet of the handshake back until there is something to send, and lets it go with that: one packet less, and the
        // instance is woken once in place of twice (tcp(7), TCP_QUICKACK). Without it, no more than that is lost.
        let _ = sockopt::set_tcp_quickack(&socket, false);
        let stream = begin(socket, port)?;
        match send(&stream, first, SendFlags::NOSIGNAL) {
            Ok(sent) if sent == first.len() && !more => Ok((Self::watched(stream, Interest::READABLE)?, sent)),
            Ok(sent) => Ok((Self::watched(stream, Interest::READABLE | Interest::WRITABLE)?, sent)),
            Err(Errno::AGAIN) => Ok((standing(stream).await?, 0)),
            // It stood, and has ended already: there may be an answer to read all the same.
            Err(Errno::PIPE | Errno::CONNRESET) => Ok((Self::watched(stream, Interest::READABLE | Interest::WRITABLE)?, 0)),
            Err(_) => Err(Refused),
        }
    }

    fn watched(stream: OwnedFd, interest: Interest) -> Result<Self, Refused> {
        sys::watch(stream, interest).map(Self).map_err(|_| Refused)
    }

    /// Several writes shall not wait for each other's acknowledgement; a single one never does.
    pub(crate) fn set_nodelay(&self) -> io::Result<()> {
        Ok(sockopt::set_tcp_nodelay(self.0.get_ref(), true)?)
    }

    /// Ends a connection of which the whole answer is there. By a reset: to close it in order costs both sides more, and where sq has not closed its
    /// end by then, a port of ours would be taken for a minute. sq has written its last byte, and looks at nothing after that.
    pub(crate) fn end(self) {
        SPARE.give_back(self.0.into_inner());
    }

    /// Writes all of it. Not on one of which that was said to be over.
    pub(crate) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.0.writable().await?;
            match ready.try_io(|stream| Ok(send(stream.get_ref(), bytes, SendFlags::NOSIGNAL)?)) {
                Ok(Ok(sent)) => bytes = bytes.get(sent..).unwrap_or_default(),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
        Ok(())
    }

    /// Reads at most as much as `buffer` has spare capacity for, which must be some; none is the end.
    pub(crate) fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut Vec<u8>) -> Poll<io::Result<usize>> {
        debug_assert!(buffer.capacity() > buffer.len());
        loop {
            let mut ready = ready!(self.0.poll_read_ready(cx))?;
            match ready.try_io(|stream| Ok(recv(stream.get_ref(), spare_capacity(buffer), RecvFlags::empty())?.0)) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => {
                    // Not all of the room was needed, so nothing is left: the next read would only find that out.
                    if matches!(result, Ok(1..)) && buffer.capacity() > buffer.len() {
                        ready.clear_ready();
                    }
                    return Poll::Ready(result);
                }
                Err(_would_block) => {}
            }
        }
    }
}

fn socket() -> Result<OwnedFd, Refused> {
    SPARE.take().map_err(|_| Refused)
}

/// Begins to connect. On loopback, and unless the backlog is full, that is all there is to it.
fn begin(socket: OwnedFd, port: u16) -> Result<OwnedFd, Refused> {
    match rustix::net::connect(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(_) => Err(Refused),
    }
}

/// Waits until the connection stands.
async fn standing(stream: OwnedFd) -> Result<Upstream, Refused> {
    let upstream = Upstream::watched(stream, Interest::READABLE | Interest::WRITABLE)?;
    match timeout(CONNECT_TIMEOUT, upstream.0.writable()).await {
        Ok(Ok(_ready)) => {}
        Ok(Err(_)) | Err(_) => return Err(Refused),
    }
    match sockopt::socket_error(upstream.0.get_ref()) {
        Ok(Ok(())) => Ok(upstream),
        Ok(Err(_)) | Err(_) => Err(Refused),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::poll_fn,
        io::{Read, Write},
        net::TcpListener,
    };

    use rustix::{
        event::{PollFd, PollFlags, Timespec, poll},
        net::{AddressFamily, SocketFlags, SocketType, socket_with},
    };

    use super::*;

    fn listener() -> (TcpListener, u16) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        (listener, port)
    }

    async fn read_to_end(upstream: &Upstream, room: usize) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            let mut piece = Vec::with_capacity(room);
            match poll_fn(|cx| upstream.poll_read(cx, &mut piece)).await.unwrap() {
                0 => return all,
                _ => all.extend_from_slice(&piece),
            }
        }
    }

    #[tokio::test]
    async fn the_first_bytes_are_out_before_anybody_waits() {
        let (listener, port) = listener();
        let (upstream, sent) = Upstream::connect_with(port, b"hello", false).await.unwrap();
        assert_eq!(sent, 5);
        let mut stream = listener.accept().unwrap().0;
        let mut seen = [0; 5];
        stream.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"hello");
        stream.write_all(&[b'a'; 10_000]).unwrap();
        drop(stream);
        assert_eq!(read_to_end(&upstream, 20_000).await.len(), 10_000);
    }

    #[tokio::test]
    async fn an_answer_and_its_end_are_read_whatever_room_there_is() {
        for room in [1, 999, 1_000, 5_000, 100_000] {
            let (listener, port) = listener();
            let (upstream, _) = Upstream::connect_with(port, b"x", false).await.unwrap();
            let writer = std::thread::spawn(move || {
                let mut stream = listener.accept().unwrap().0;
                for _ in 0..10 {
                    stream.write_all(&[b'a'; 500]).unwrap();
                    std::thread::yield_now();
                }
                stream.read_exact(&mut [0]).unwrap();
            });
            assert_eq!(read_to_end(&upstream, room).await.len(), 5_000, "{room}");
            writer.join().unwrap();
        }
    }

    #[tokio::test]
    async fn more_than_the_kernel_takes_at_once_goes_out_in_turns() {
        let (listener, port) = listener();
        let first = vec![b'a'; 20 << 20];
        let (upstream, sent) = Upstream::connect_with(port, &first, true).await.unwrap();
        assert!(sent < first.len(), "nobody reads yet");
        let reader = std::thread::spawn(move || std::io::copy(&mut listener.accept().unwrap().0, &mut std::io::sink()).unwrap());
        upstream.write_all(&first[sent..]).await.unwrap();
        drop(upstream);
        assert_eq!(reader.join().unwrap(), first.len() as u64);
    }

    #[tokio::test]
    async fn where_nobody_listens_nothing_went_out() {
        let (listener, port) = listener();
        drop(listener);
        assert!(Upstream::connect_with(port, b"x", false).await.is_err_and(|Refused| true));
        assert!(Upstream::connect(port).await.is_err_and(|Refused| true));
    }

    /// As sq's when too many come at once: the kernel drops what does not fit, and the client tries again after a second.
    #[tokio::test]
    async fn a_full_backlog_is_waited_for() {
        let listening = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        rustix::net::bind(&listening, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
        rustix::net::listen(&listening, 0).unwrap();
        let listener = TcpListener::from(listening);
        let port = listener.local_addr().unwrap().port();
        let stands = |stream: &OwnedFd| {
            let patience = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
            poll(&mut [PollFd::new(stream, PollFlags::OUT)], Some(&patience)).unwrap() == 1
        };
        let mut taken = vec![begin(socket().unwrap(), port).unwrap()];
        // One more than it takes; how many that is, is the kernel's.
        while stands(taken.last().unwrap()) {
            taken.push(begin(socket().unwrap(), port).unwrap());
        }
        let waiting = tokio::spawn(async move { Upstream::connect_with(port, b"late", false).await });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let accepting = tokio::spawn(async move {
            let mut accepted = Vec::new();
            while let Ok(connection) = listener.accept().await {
                accepted.push(connection);
            }
        });
        let (upstream, sent) = waiting.await.unwrap().unwrap();
        assert_eq!(sent, 0, "it was not known to stand");
        upstream.write_all(b"late").await.unwrap();
        accepting.abort();
    }

    #[tokio::test]
    async fn a_connection_ends_by_a_reset_where_all_is_read_and_in_order_elsewhere() {
        let (listener, port) = listener();
        let (ended, _) = Upstream::connect_with(port, b"x", false).await.unwrap();
        let (dropped, _) = Upstream::connect_with(port, b"x", false).await.unwrap();
        let (mut first, _) = listener.accept().unwrap();
        let (mut second, _) = listener.accept().unwrap();
        for stream in [&mut first, &mut second] {
            stream.read_exact(&mut [0]).unwrap();
        }
        ended.end();
        assert_eq!(first.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        drop(dropped);
        assert_eq!(second.read(&mut [0]).unwrap(), 0);
    }
}
