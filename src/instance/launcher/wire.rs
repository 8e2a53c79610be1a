//! What agent and launcher say to each other: one JSON message a packet, with its descriptors.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recvmsg,
    sendmsg,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::instance::{isolation::Part, sandbox::Parts};

/// Largest message, bytes: a launch is two paths of at most 4,096 and a key.
const MAX_MESSAGE: usize = 32 * 1024;
/// Descriptors in one message; the kernel's own limit is 253 (SCM_MAX_FD).
pub(super) const MAX_DESCRIPTORS: usize = 64;

/// Which network the launcher and so its instances live in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Enter {
    /// That of the host.
    Host,
    /// A new one.
    New,
    /// An existing one: the descriptors of its network namespace and, where there is one, of its user namespace before it.
    Join,
}

/// What the agent asks. No `Debug`: a launch holds the key.
#[derive(Serialize, Deserialize)]
pub(super) enum Request {
    /// The first message: where to live, and what to try. Answered by [`Reply::Ready`].
    Begin { network: Enter, parts: Parts, own_user: Option<u32> },
    /// Start a program; descriptors as in [`LaunchFds`]. Answered by [`Reply::Launched`].
    Launch(Launch),
    /// Make so many TCP sockets in this network. Answered by [`Reply::Sockets`].
    Sockets { count: usize },
}

/// A start. No `Debug`: the arguments hold the key.
#[derive(Serialize, Deserialize)]
pub(super) struct Launch {
    /// Absolute.
    pub(super) program: PathBuf,
    /// With the program's name in front.
    pub(super) args: Vec<String>,
    /// uid and gid to become.
    pub(super) user: Option<u32>,
    /// What to give up.
    pub(super) parts: Parts,
    /// The one it may bind.
    pub(super) port: u16,
    /// How many of the descriptors are directories it may write below.
    pub(super) data: usize,
    /// The last descriptor is a cgroup.
    pub(super) cgroup: bool,
}

/// The descriptors of a launch, in their order: working directory, log, write end of the error pipe, data directories, cgroup.
pub(super) struct LaunchFds {
    pub(super) directory: OwnedFd,
    pub(super) log: OwnedFd,
    pub(super) errors: OwnedFd,
    pub(super) data: Vec<OwnedFd>,
    pub(super) cgroup: Option<OwnedFd>,
}

impl LaunchFds {
    /// Sorts what came with `launch`; `None` if it is not what it should be.
    pub(super) fn sort(launch: &Launch, fds: Vec<OwnedFd>) -> Option<Self> {
        let mut fds = fds.into_iter();
        let (directory, log, errors) = (fds.next()?, fds.next()?, fds.next()?);
        let data: Vec<OwnedFd> = fds.by_ref().take(launch.data).collect();
        let cgroup = if launch.cgroup { Some(fds.next()?) } else { None };
        (data.len() == launch.data && fds.next().is_none()).then_some(Self { directory, log, errors, data, cgroup })
    }
}

/// What the launcher answers.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Reply {
    /// It lives where it should, and this is what it can do. With the descriptors of its user namespace, if it has one of its
    /// own, and its network namespace, if it has one of its own.
    Ready(Box<Ready>),
    /// The process was forked; its pidfd comes along. Whether the exec succeeds stands in the error pipe.
    Launched { pid: u32 },
    /// The sockets come along.
    Sockets,
    /// It could not be done.
    Failed { what: String, errno: Option<i32> },
}

/// What the launcher found.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Ready {
    pub(super) network: Part,
    pub(super) privileges: Part,
    pub(super) landlock: Part,
    pub(super) seccomp: Part,
    pub(super) user: Part,
}

/// Sends one message with its descriptors.
pub(super) fn send<M: Serialize>(socket: impl AsFd, message: &M, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > MAX_MESSAGE {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("a message of {} bytes; {MAX_MESSAGE} fit", bytes.len())));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    // The space is rounded up, so it alone would take one too many.
    let fits =
        descriptors.len() <= MAX_DESCRIPTORS && (descriptors.is_empty() || ancillary.push(SendAncillaryMessage::ScmRights(descriptors)));
    if !fits {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("more than {MAX_DESCRIPTORS} descriptors in one message")));
    }
    sendmsg(socket, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The next message with its descriptors, or `None` at the end of the conversation. Blocks.
pub(super) fn receive<M: DeserializeOwned>(socket: impl AsFd) -> io::Result<Option<(M, Vec<OwnedFd>)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = vec![0; MAX_MESSAGE];
    let received = loop {
        match recvmsg(&socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            received => break received?,
        }
    };
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            descriptors.extend(fds);
        }
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message was cut: too long, or no descriptor left in this process"));
    }
    Ok(Some((serde_json::from_slice(&bytes[..received.bytes])?, descriptors)))
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Read};

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
    }

    #[test]
    fn a_message_arrives_with_its_descriptors_and_the_end_is_an_end() {
        let (left, right) = pair();
        let (mut reader, writer) = std::io::pipe().unwrap();
        send(&left, &Request::Sockets { count: 3 }, &[writer.as_fd()]).unwrap();
        drop((left, writer));
        let (message, fds) = receive::<Request>(&right).unwrap().unwrap();
        assert!(matches!(message, Request::Sockets { count: 3 }));
        std::io::Write::write_all(&mut File::from(fds.into_iter().next().unwrap()), b"hello").unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        assert!(receive::<Request>(&right).unwrap().is_none());
    }

    #[test]
    fn more_than_fits_is_refused_before_it_is_sent() {
        let (left, right) = pair();
        send(&left, &"x".repeat(MAX_MESSAGE), &[]).unwrap_err();
        send(&left, &"x", &vec![left.as_fd(); MAX_DESCRIPTORS + 1]).unwrap_err();
        send(&left, &"y", &vec![left.as_fd(); MAX_DESCRIPTORS]).unwrap();
        let (message, fds) = receive::<String>(&right).unwrap().unwrap();
        assert_eq!((message.as_str(), fds.len()), ("y", MAX_DESCRIPTORS));
    }
}
