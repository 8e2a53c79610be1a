//! Where instances listen: in the host's network, or in one of their own into which only sockets made there lead.

use std::{
    fmt, io,
    net::{Ipv4Addr, SocketAddr, TcpStream as StdTcpStream},
    os::fd::OwnedFd,
    path::PathBuf,
};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use tokio::net::{TcpSocket, TcpStream};

use super::launcher::Launcher;

/// The network of the instances. Cheap to clone.
#[derive(Clone, Default)]
pub struct Network(Kind);

#[derive(Clone, Default)]
enum Kind {
    #[default]
    Host,
    Apart(Launcher),
}

impl Network {
    /// The host's: every user and every program on it can reach an instance's port.
    pub fn host() -> Self {
        Self(Kind::Host)
    }

    /// The one that `launcher` lives in.
    pub(super) fn apart(launcher: Launcher) -> Self {
        Self(Kind::Apart(launcher))
    }

    /// Whether it is the instances' own.
    pub fn is_apart(&self) -> bool {
        matches!(self.0, Kind::Apart(_))
    }

    /// A TCP socket in it: IPv4, non-blocking, close-on-exec. Blocks for some 100 µs now and then, while the launcher makes
    /// new ones.
    pub fn socket(&self) -> io::Result<OwnedFd> {
        match &self.0 {
            Kind::Host => {
                let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
                Ok(socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?)
            }
            Kind::Apart(launcher) => launcher.socket(),
        }
    }

    /// Connects to 127.0.0.1:`port` in it.
    pub async fn connect(&self, port: u16) -> io::Result<TcpStream> {
        let socket = TcpSocket::from_std_stream(StdTcpStream::from(self.socket()?));
        socket.connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await
    }

    /// Its tables in /proc, such as `tcp` (proc_pid_net(5)).
    pub(super) fn tables(&self) -> PathBuf {
        match &self.0 {
            Kind::Host => "/proc/net".into(),
            Kind::Apart(launcher) => format!("/proc/{}/net", launcher.pid()).into(),
        }
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_apart() { "Network::apart" } else { "Network::host" })
    }
}
