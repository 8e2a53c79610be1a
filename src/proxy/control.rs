//! What agent and proxy say to each other over the private socket: settings and descriptors down, nudges up.

use serde::{Deserialize, Serialize};

use crate::{desired::TenantId, proxy::settings::Settings};

/// Raised when either end would no longer understand the other's words. Two are for ever, so that a proxy of any version can be replaced:
/// [`ToProxy::Shutdown`], and of [`Hello`] `pid`, `side`, `listeners`, `protocol` and `retiring`. More fields may join them; those of a version
/// that lacks them count as 0, no, or unknown.
pub(crate) const PROTOCOL: u32 = 5;

/// Agent to proxy.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToProxy {
    /// To a new proxy, before anything else: work in this network. Descriptors: the user namespace, if `user`; the network namespace.
    Join { user: bool },
    /// Its guard, which may touch the tenants' files: before the first settings, and again after [`ToAgent::GuardLost`]. Descriptor: the socket.
    Guard,
    /// Write the access log there from now on, and answer [`ToAgent::AccessLog`]. Descriptor: the file, for append.
    AccessLog,
    /// Serve by these from now on. Descriptors: `listeners` listeners, the last `plain` of them for plain HTTP; the route table, the activity page, the page of metrics.
    Settings {
        settings: Box<Settings>,
        listeners: usize,
        plain: usize,
        /// Comes back in the answer.
        serial: u64,
    },
    /// Accept nothing more, finish what is in flight for at most so long, exit. Said again, the earlier end holds.
    Shutdown {
        grace_ms: u64,
        /// Another proxy serves on: no client must notice. Otherwise idle connections are closed at once.
        #[serde(default)]
        retire: bool,
    },
}

/// Who a proxy is. Descriptors: `listeners` listeners, so that a new agent gets them back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Hello {
    pub(crate) pid: u32,
    pub(crate) version: String,
    /// Its half of the in-flight words; none before its first settings.
    pub(crate) side: Option<u8>,
    pub(crate) listeners: usize,
    /// See [`PROTOCOL`].
    pub(crate) protocol: u32,
    /// Which program file it runs: see `build::of`.
    pub(crate) build: Option<String>,
    /// When it started: CLOCK_MONOTONIC, nanoseconds.
    pub(crate) born_ns: u64,
    /// It was told to end.
    pub(crate) retiring: bool,
    /// The inode of its network namespace.
    pub(crate) network: Option<u64>,
}

/// Proxy to agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ToAgent {
    /// The first message on each connection.
    Hello(Hello),
    /// The settings with this serial are in force.
    Applied { serial: u64 },
    /// They are not, and the last good ones go on.
    Refused { serial: u64, why: String },
    /// A request waits for this tenant's instance.
    Nudge { id: TenantId, reason: NudgeReason },
    /// The access log goes to the file that came last.
    AccessLog,
    /// A token names a kid that no key has: the keys of identity providers are to be fetched anew. Said at most every 30 s.
    UnknownKid,
    /// A webhook says that somebody pushed to the repository that tenants.toml comes from. Many at once are said once.
    Pushed,
    /// The guard is gone: writes are refused until there is another.
    GuardLost,
    /// It was told to end and does so now. Requests that did not finish in time: `cut`.
    Ended { cut: u64 },
}

/// Why the proxy nudges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NudgeReason {
    /// A request waits for an instance that is not ready.
    Parked,
    /// The row says ready, but nobody listens on its port.
    Refused,
    /// The row says ready, but another instance (or program) answers on its port.
    WrongInstance,
    /// A write broke off: what it left is to be put back, which takes a restart.
    InDoubt,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framed::{Decoder, encode};

    #[test]
    fn the_words_that_replace_a_proxy_are_understood_by_every_version() {
        let mut decoder = Decoder::default();
        let mut hear = |text: &str| {
            let bytes = [&u32::try_from(text.len()).unwrap().to_le_bytes()[..], text.as_bytes()].concat();
            decoder.feed(&bytes, Vec::new()).unwrap();
        };
        hear(r#"{"Hello":{"pid":7,"version":"0.1.0","side":1,"listeners":2}}"#);
        hear(r#"{"Hello":{"pid":7,"side":1,"listeners":0,"protocol":9,"retiring":true,"mood":"good"}}"#);
        let old = Hello { pid: 7, version: "0.1.0".into(), side: Some(1), listeners: 2, ..Hello::default() };
        let new = Hello { pid: 7, side: Some(1), protocol: 9, retiring: true, ..Hello::default() };
        for expected in [old, new] {
            assert_eq!(decoder.next::<ToAgent>().unwrap(), Some(ToAgent::Hello(expected)));
        }
        let words = encode(&ToProxy::Shutdown { grace_ms: 30_000, retire: true }).unwrap();
        assert_eq!(&words[4..], br#"{"Shutdown":{"grace_ms":30000,"retire":true}}"#);
    }
}
