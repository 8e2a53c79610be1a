//! What agent and proxy say to each other: JSON behind a 4-byte little-endian length, descriptors beside it (SCM_RIGHTS). Pure.

use std::{collections::VecDeque, os::fd::OwnedFd};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{desired::TenantId, proxy::settings::Settings};

/// Longest message, bytes. Settings with ten certificates have about 200 KB as JSON.
const MAX_MESSAGE: usize = 4 << 20;

/// Most descriptors that may lie about unclaimed: listeners and two pages.
pub(crate) const MAX_DESCRIPTORS: usize = 64;

/// Raised when either end would no longer understand the other's words. Two are for ever, so that a proxy of any version can be replaced:
/// [`ToProxy::Shutdown`], and of [`Hello`] `pid`, `side`, `listeners`, `protocol` and `retiring`. More fields may join them; those of a version
/// that lacks them count as 0, no, or unknown.
pub(crate) const PROTOCOL: u32 = 1;

/// Agent to proxy.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToProxy {
    /// To a new proxy, before anything else: work in this network. Descriptors: the user namespace, if `user`; the network namespace.
    Join { user: bool },
    /// Serve by these from now on. Descriptors: `listeners` listeners, the route table, the activity page.
    Settings {
        settings: Box<Settings>,
        listeners: usize,
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
}

/// A message that cannot be understood.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    #[error("a message of {0} bytes, more than {MAX_MESSAGE}")]
    TooLong(usize),
    #[error("a message that is not understood: {0}")]
    Json(#[from] serde_json::Error),
    #[error("{0} descriptors are missing")]
    MissingDescriptors(usize),
    #[error("more than {MAX_DESCRIPTORS} descriptors that belong to no message")]
    TooManyDescriptors,
    #[error("words that only a new proxy can follow")]
    TooLate,
}

/// One message as bytes.
pub(crate) fn encode<M: Serialize>(message: &M) -> Result<Vec<u8>, WireError> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message)?;
    let length = bytes.len() - 4;
    let prefix = u32::try_from(length).ok().filter(|_| length <= MAX_MESSAGE).ok_or(WireError::TooLong(length))?;
    bytes[..4].copy_from_slice(&prefix.to_le_bytes());
    Ok(bytes)
}

/// Puts messages together from what arrives.
#[derive(Default)]
pub(crate) struct Decoder {
    bytes: Vec<u8>,
    descriptors: VecDeque<OwnedFd>,
}

impl Decoder {
    /// Takes what one read brought.
    pub(crate) fn feed(&mut self, bytes: &[u8], descriptors: Vec<OwnedFd>) -> Result<(), WireError> {
        self.bytes.extend_from_slice(bytes);
        self.descriptors.extend(descriptors);
        if self.descriptors.len() > MAX_DESCRIPTORS { Err(WireError::TooManyDescriptors) } else { Ok(()) }
    }

    /// The next whole message, if it is here.
    pub(crate) fn next<M: DeserializeOwned>(&mut self) -> Result<Option<M>, WireError> {
        let Some((prefix, rest)) = self.bytes.split_first_chunk::<4>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*prefix) as usize;
        if length > MAX_MESSAGE {
            return Err(WireError::TooLong(length));
        }
        let Some(message) = rest.get(..length) else {
            return Ok(None);
        };
        let message = serde_json::from_slice(message)?;
        self.bytes.drain(..4 + length);
        Ok(Some(message))
    }

    /// The next `count` descriptors, which came with or before the message that names them.
    pub(crate) fn descriptors(&mut self, count: usize) -> Result<Vec<OwnedFd>, WireError> {
        if self.descriptors.len() < count {
            return Err(WireError::MissingDescriptors(count - self.descriptors.len()));
        }
        Ok(self.descriptors.drain(..count).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nudge() -> ToAgent {
        ToAgent::Nudge { id: TenantId::parse("alice").unwrap(), reason: NudgeReason::Parked }
    }

    #[test]
    fn messages_survive_any_cutting_into_reads() {
        let hello = ToAgent::Hello(Hello { pid: 7, version: "0.1.0".into(), side: Some(1), listeners: 2, ..Hello::default() });
        let stream = [encode(&hello).unwrap(), encode(&nudge()).unwrap()].concat();
        for size in 1..stream.len() {
            let (mut decoder, mut seen) = (Decoder::default(), Vec::new());
            for piece in stream.chunks(size) {
                decoder.feed(piece, Vec::new()).unwrap();
                while let Some(message) = decoder.next::<ToAgent>().unwrap() {
                    seen.push(message);
                }
            }
            assert_eq!(seen, [hello.clone(), nudge()], "cut every {size} bytes");
        }
    }

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

    #[test]
    fn rubbish_and_giants_are_errors_not_waits() {
        let mut decoder = Decoder::default();
        decoder.feed(&[0xff; 4], Vec::new()).unwrap();
        assert!(matches!(decoder.next::<ToAgent>(), Err(WireError::TooLong(_))));
        let mut decoder = Decoder::default();
        decoder.feed(&[2, 0, 0, 0, b'{', b'}'], Vec::new()).unwrap();
        assert!(matches!(decoder.next::<ToAgent>(), Err(WireError::Json(_))));
        assert!(matches!(Decoder::default().descriptors(2), Err(WireError::MissingDescriptors(2))));
    }
}
