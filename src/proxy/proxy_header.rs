//! The header of the PROXY protocol, version 2, with which a load balancer says whose connection it passes on.
//!
//! It stands before everything else, TLS included, and is read byte for byte: nothing behind it is touched. The text form (version 1) is
//! refused: nobody needs both, and a parser that guesses is one that can be fooled.

use std::{io, net::IpAddr};

use proxy_header::{ParseConfig, Protocol, ProxyHeader};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Signature, version and command, family, length (the protocol's description, section 2.2).
const FIXED: usize = 16;

/// Most bytes behind the fixed part. Addresses take up to 216, and what balancers in use add (TLVs: ids, checksums, names) some hundred; a
/// client's whole certificate is not for us.
const MAX_REST: usize = 4_096;

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// Why a connection is closed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadHeader {
    /// It breaks off, or cannot be read.
    #[error("the connection broke off in its PROXY header: {0}")]
    Read(#[from] io::Error),
    /// Something else, the text form for example.
    #[error("it does not begin with a PROXY header of version 2")]
    Missing,
    /// Longer than any that is in use.
    #[error("its PROXY header is {0} bytes long, at most {MAX_REST} are read")]
    TooLong(usize),
    /// It contradicts itself.
    #[error("its PROXY header is malformed")]
    Malformed,
}

/// Reads the header and nothing behind it. Who the client is; `None` where the balancer speaks for itself (it looks whether we live).
pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<IpAddr>, BadHeader> {
    // On the heap, since it would take its place in the connection for as long as that lives.
    let mut bytes = vec![0; FIXED];
    stream.read_exact(&mut bytes).await?;
    bytes.resize(FIXED + rest(&bytes)?, 0);
    stream.read_exact(&mut bytes[FIXED..]).await?;
    parse(&bytes)
}

/// As [`read`], from what is there already.
#[cfg(fuzzing)]
pub(crate) fn read_now(bytes: &mut &[u8]) -> Result<Option<IpAddr>, BadHeader> {
    use std::{future::Future, pin::pin, task};
    match pin!(read(bytes)).poll(&mut task::Context::from_waker(task::Waker::noop())) {
        task::Poll::Ready(read) => read,
        // A slice is never waited for.
        task::Poll::Pending => Err(BadHeader::Missing),
    }
}

/// How many bytes follow the fixed part.
fn rest(bytes: &[u8]) -> Result<usize, BadHeader> {
    let length = bytes.strip_prefix(SIGNATURE).and_then(|after| after.get(2..4)).ok_or(BadHeader::Missing)?;
    let rest = length.iter().fold(0, |length, &byte| length << 8 | usize::from(byte));
    if rest > MAX_REST { Err(BadHeader::TooLong(rest)) } else { Ok(rest) }
}

/// What a header says, which must be all of `bytes`.
///
/// # Errors
/// It is none of version 2, contradicts itself, or is not about TCP.
pub(crate) fn parse(bytes: &[u8]) -> Result<Option<IpAddr>, BadHeader> {
    if bytes.len() < FIXED || FIXED + rest(bytes)? != bytes.len() {
        return Err(BadHeader::Missing);
    }
    let config = ParseConfig { include_tlvs: false, allow_v1: false, allow_v2: true };
    let (header, _) = ProxyHeader::parse(bytes, config).map_err(|_| BadHeader::Malformed)?;
    match header.proxied_address() {
        Some(address) if address.protocol == Protocol::Stream => Ok(Some(address.source.ip().to_canonical())),
        Some(_) => Err(BadHeader::Malformed),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header by the protocol's description, not by the crate that reads it.
    fn header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [SIGNATURE.as_slice(), &[command, family], &length, rest].concat()
    }

    const V4: [u8; 12] = [198, 51, 100, 1, 10, 0, 0, 1, 0x12, 0x34, 0x01, 0xbb];

    fn v6() -> Vec<u8> {
        let mut rest = [0; 36];
        rest[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
        rest[15] = 1;
        rest.to_vec()
    }

    #[test]
    fn the_source_of_a_passed_on_connection_is_the_client() {
        assert_eq!(parse(&header(0x21, 0x11, &V4)).unwrap().unwrap().to_string(), "198.51.100.1");
        assert_eq!(parse(&header(0x21, 0x21, &v6())).unwrap().unwrap().to_string(), "2001:db8::1");
    }

    #[test]
    fn a_balancer_that_speaks_for_itself_is_its_own_client() {
        assert_eq!(parse(&header(0x20, 0x00, &[])).unwrap(), None);
        assert_eq!(parse(&header(0x20, 0x11, &V4)).unwrap(), None, "the addresses of LOCAL mean nothing");
        assert_eq!(parse(&header(0x21, 0x00, b"whatever")).unwrap(), None, "as does a family that is not told");
    }

    #[test]
    fn what_else_a_header_carries_is_skipped() {
        let with_tlvs = [V4.as_slice(), &[0x04, 0, 3, 1, 2, 3], &[0xea, 0, 1, 1]].concat();
        assert_eq!(parse(&header(0x21, 0x11, &with_tlvs)).unwrap().unwrap().to_string(), "198.51.100.1");
        let broken = [V4.as_slice(), &[0x04, 0xff, 0xff]].concat();
        assert!(parse(&header(0x21, 0x11, &broken)).unwrap().is_some(), "nor looked at");
    }

    #[test]
    fn everything_else_is_refused() {
        let bad: [Vec<u8>; 9] = [
            b"PROXY TCP4 198.51.100.1 10.0.0.1 4660 443\r\n".to_vec(),
            header(0x11, 0x11, &V4),
            header(0x22, 0x11, &V4),
            header(0x21, 0x11, &V4[..11]),
            header(0x21, 0x21, &V4),
            header(0x21, 0x12, &V4),
            header(0x21, 0x41, &V4),
            header(0x21, 0x11, &V4)[..20].to_vec(),
            [header(0x21, 0x11, &V4), vec![0x16]].concat(),
        ];
        for bytes in bad {
            assert!(parse(&bytes).is_err(), "{bytes:?}");
        }
    }

    #[tokio::test]
    async fn nothing_behind_the_header_is_touched_and_one_that_is_too_long_is_not_read() {
        let bytes = [header(0x21, 0x11, &V4), b"hello".to_vec()].concat();
        let mut stream = bytes.as_slice();
        assert_eq!(read(&mut stream).await.unwrap().unwrap().to_string(), "198.51.100.1");
        assert_eq!(stream, b"hello");
        let long = header(0x21, 0x11, &[0; MAX_REST + 1]);
        let mut stream = long.as_slice();
        assert!(matches!(read(&mut stream).await, Err(BadHeader::TooLong(4_097))));
        assert_eq!(stream.len(), MAX_REST + 1);
        assert!(matches!(read(&mut &long[..10]).await, Err(BadHeader::Read(_))));
    }

    proptest::proptest! {
        #[test]
        fn whatever_follows_the_signature_is_read_whole_or_refused(rest in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..64)) {
            let bytes = [SIGNATURE.as_slice(), &rest].concat();
            if parse(&bytes).is_ok() {
                proptest::prop_assert!(matches!(bytes[12], 0x20 | 0x21) && bytes.len() == FIXED + usize::from(bytes[15]));
            }
        }
    }
}
