//! What lives when an agent starts: on each side nobody, a proxy, or something that does not answer; and which of them is to serve.

use std::{
    fmt, io,
    net::TcpListener,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    net::UnixStream,
    time::{sleep, timeout},
};

use super::{
    attached::{GREETING, Proxy},
    control::{Hello, PROTOCOL, ToAgent, ToProxy},
};
use crate::framed::{Decoder, receive, send};
use crate::route::Side;

/// How often a socket behind which nobody answers is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// `<state_dir>/run/proxy-a.sock` or `proxy-b.sock`.
pub(crate) fn control_path(state_dir: &Path, side: Side) -> PathBuf {
    state_dir.join("run").join(match side {
        Side::A => "proxy-a.sock",
        Side::B => "proxy-b.sock",
    })
}

/// Who has a side.
pub(super) enum Standing {
    /// Nobody: what the side counts is nobody's.
    Nobody,
    /// A proxy that has greeted.
    Living(Box<Proxy>),
    /// Somebody holds the socket but does not say who.
    Silent,
}

/// Both sides, and what the proxies there listen on.
pub(super) struct Found {
    pub(super) sides: [Standing; 2],
    pub(super) listeners: Vec<TcpListener>,
}

/// Looks at both sides.
pub(super) async fn look(state_dir: &Path) -> Found {
    let (a, b) = tokio::join!(look_at(state_dir, Side::A), look_at(state_dir, Side::B));
    let listeners = a.1.into_iter().chain(b.1).collect();
    Found { sides: [a.0, b.0], listeners }
}

async fn look_at(state_dir: &Path, side: Side) -> (Standing, Vec<TcpListener>) {
    let greeted = match UnixStream::connect(control_path(state_dir, side)).await {
        Ok(stream) => Proxy::greeted(stream, side).await.map_err(|error| error.to_string()),
        Err(error) if is_nobody(&error) => return (Standing::Nobody, Vec::new()),
        Err(error) => Err(error.to_string()),
    };
    match greeted {
        Ok((proxy, listeners)) => (Standing::Living(Box::new(proxy)), listeners.into_iter().map(TcpListener::from).collect()),
        Err(error) => {
            tracing::warn!(?side, error, "somebody holds a proxy's socket but does not greet; it is sent away");
            (Standing::Silent, Vec::new())
        }
    }
}

/// A proxy listens on its socket to its last moment.
fn is_nobody(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// Tells whoever holds a socket without a greeting to end, and returns when it has.
pub(super) async fn until_silence_ends(path: &Path, grace: Duration) {
    let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
    loop {
        match UnixStream::connect(path).await {
            Err(error) if is_nobody(&error) => return,
            Err(_) => {}
            Ok(stream) => {
                let _ = timeout(GREETING, send(&stream, &ToProxy::Shutdown { grace_ms, retire: true }, &[])).await;
                // The conversation ends when the process does; what it says meanwhile is not understood anyway.
                let mut decoder = Decoder::default();
                while let Ok(Some(_)) = receive::<ToAgent>(&stream, &mut decoder).await {}
            }
        }
        sleep(LOOK_AGAIN).await;
    }
}

/// What an agent wants its proxy to be.
#[derive(Debug)]
pub(super) struct Wanted {
    /// Another proxy than the one that lives, whatever that is.
    pub(super) replace: bool,
    /// Of the program that starts proxies.
    pub(super) build: Option<String>,
    /// The inode of the network namespace in which it is to work.
    pub(super) network: Option<u64>,
}

/// Why a living proxy is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    Asked,
    OtherProtocol,
    OtherBuild,
    OtherNetwork,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Asked => "an upgrade",
            Self::OtherProtocol => "it speaks another protocol",
            Self::OtherBuild => "it runs another build of the program",
            Self::OtherNetwork => "it works in another network than the instances",
        })
    }
}

impl Wanted {
    /// Why this proxy cannot be kept, if so. What is not known is no reason.
    pub(super) fn reason_against(&self, hello: &Hello) -> Option<Reason> {
        fn differs<T: PartialEq>(wanted: Option<&T>, is: Option<&T>) -> bool {
            wanted.zip(is).is_some_and(|(wanted, is)| wanted != is)
        }
        if hello.protocol != PROTOCOL {
            Some(Reason::OtherProtocol)
        } else if differs(self.network.as_ref(), hello.network.as_ref()) {
            Some(Reason::OtherNetwork)
        } else if differs(self.build.as_ref(), hello.build.as_ref()) {
            Some(Reason::OtherBuild)
        } else {
            self.replace.then_some(Reason::Asked)
        }
    }
}

/// Which of the living proxies serves on. Not one that was told to end, nor one that never served (its agent died before it was told anything);
/// of two, which an upgrade that was cut short leaves, the newer.
pub(super) fn serving(hellos: [Option<&Hello>; 2]) -> Option<Side> {
    let serves = |side: &Side| hellos[*side as usize].is_some_and(|hello| hello.side.is_some() && !hello.retiring);
    Side::BOTH.into_iter().filter(serves).max_by_key(|side| hellos[*side as usize].map(|hello| hello.born_ns))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(born_ns: u64) -> Hello {
        let build = Some("1".to_owned());
        Hello { pid: 7, side: Some(0), protocol: PROTOCOL, build, network: Some(4), born_ns, ..Hello::default() }
    }

    #[test]
    fn the_newer_of_two_serves_and_neither_one_that_ends_nor_one_that_has_not_begun() {
        let (old, new) = (hello(1), hello(2));
        assert_eq!(serving([None, None]), None);
        assert_eq!(serving([Some(&old), None]), Some(Side::A));
        assert_eq!(serving([Some(&old), Some(&new)]), Some(Side::B));
        assert_eq!(serving([Some(&new), Some(&old)]), Some(Side::A));
        let ending = Hello { retiring: true, ..hello(3) };
        assert_eq!(serving([Some(&ending), Some(&old)]), Some(Side::B));
        assert_eq!(serving([Some(&ending), None]), None);
        let unborn = Hello { side: None, ..hello(3) };
        assert_eq!(serving([Some(&old), Some(&unborn)]), Some(Side::A));
    }

    #[test]
    fn a_proxy_is_kept_unless_it_is_known_to_differ_or_an_upgrade_asks() {
        let wanted = |replace| Wanted { replace, build: Some("1".to_owned()), network: Some(4) };
        assert_eq!(wanted(false).reason_against(&hello(1)), None);
        assert_eq!(wanted(true).reason_against(&hello(1)), Some(Reason::Asked));
        let other = Hello { build: Some("2".to_owned()), ..hello(1) };
        assert_eq!(wanted(true).reason_against(&other), Some(Reason::OtherBuild));
        let other = Hello { network: Some(5), ..hello(1) };
        assert_eq!(wanted(false).reason_against(&other), Some(Reason::OtherNetwork));
        let unknown = Hello { network: None, build: None, ..hello(1) };
        assert_eq!(wanted(false).reason_against(&unknown), None);
        assert_eq!(wanted(false).reason_against(&Hello { protocol: 0, ..hello(1) }), Some(Reason::OtherProtocol));
    }
}
