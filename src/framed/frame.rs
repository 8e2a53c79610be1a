//! JSON behind a 4-byte little-endian length, descriptors beside it (SCM_RIGHTS). Pure.

use std::{collections::VecDeque, os::fd::OwnedFd};

use serde::{Serialize, de::DeserializeOwned};

/// Longest message, bytes. Settings with ten certificates have about 200 KB as JSON.
const MAX_MESSAGE: usize = 4 << 20;

/// Most descriptors that may lie about unclaimed: listeners and two pages.
pub(crate) const MAX_DESCRIPTORS: usize = 64;

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

    /// The next one.
    pub(crate) fn descriptor(&mut self) -> Result<OwnedFd, WireError> {
        self.descriptors.pop_front().ok_or(WireError::MissingDescriptors(1))
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
    struct Word {
        number: u32,
        text: String,
    }

    #[test]
    fn messages_survive_any_cutting_into_reads() {
        let (first, second) = (Word { number: 7, text: "ä\n".into() }, Word::default());
        let stream = [encode(&first).unwrap(), encode(&second).unwrap()].concat();
        for size in 1..stream.len() {
            let (mut decoder, mut seen) = (Decoder::default(), Vec::new());
            for piece in stream.chunks(size) {
                decoder.feed(piece, Vec::new()).unwrap();
                while let Some(message) = decoder.next::<Word>().unwrap() {
                    seen.push(message);
                }
            }
            assert_eq!(seen, [first.clone(), second.clone()], "cut every {size} bytes");
        }
    }

    #[test]
    fn rubbish_and_giants_are_errors_not_waits() {
        let mut decoder = Decoder::default();
        decoder.feed(&[0xff; 4], Vec::new()).unwrap();
        assert!(matches!(decoder.next::<Word>(), Err(WireError::TooLong(_))));
        let mut decoder = Decoder::default();
        decoder.feed(&[2, 0, 0, 0, b'{', b'}'], Vec::new()).unwrap();
        assert!(matches!(decoder.next::<Word>(), Err(WireError::Json(_))));
        assert!(matches!(Decoder::default().descriptors(2), Err(WireError::MissingDescriptors(2))));
    }
}
