//! Messages and descriptors over a Unix stream socket: blocking for the proxy's start, before its runtime exists, and asynchronous for all else.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream as StdUnixStream,
    },
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{io::Interest, net::UnixStream};

use super::frame::{Decoder, MAX_DESCRIPTORS, WireError, encode};

/// Why the conversation is over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    #[error("the control socket: {0}")]
    Io(#[from] io::Error),
    #[error("the control socket brought {0}")]
    Wire(#[from] WireError),
}

/// A blocking end: sends one message.
pub(crate) fn send_blocking<M: Serialize>(stream: &StdUnixStream, message: &M) -> Result<(), ControlError> {
    let bytes = encode(message)?;
    let mut sent = 0;
    while sent < bytes.len() {
        sent += send_some(stream.as_fd(), &bytes[sent..], &[])?;
    }
    Ok(())
}

/// A blocking end: the next message, or `None` at the end of the conversation.
pub(crate) fn receive_blocking<M: DeserializeOwned>(stream: &StdUnixStream, decoder: &mut Decoder) -> Result<Option<M>, ControlError> {
    loop {
        if let Some(message) = decoder.next()? {
            return Ok(Some(message));
        }
        let (bytes, descriptors) = receive_some(stream.as_fd())?;
        if bytes.is_empty() {
            return Ok(None);
        }
        decoder.feed(&bytes, descriptors)?;
    }
}

/// Sends one message and its descriptors.
pub(crate) async fn send<M: Serialize>(stream: &UnixStream, message: &M, descriptors: &[BorrowedFd<'_>]) -> Result<(), ControlError> {
    let bytes = encode(message)?;
    let mut sent = 0;
    while sent < bytes.len() {
        // The descriptors travel with the first byte.
        let descriptors = if sent == 0 { descriptors } else { &[] };
        sent += stream.async_io(Interest::WRITABLE, || send_some(stream.as_fd(), &bytes[sent..], descriptors)).await?;
    }
    Ok(())
}

/// The next message, or `None` at the end of the conversation. Nothing is lost when this is cancelled.
pub(crate) async fn receive<M: DeserializeOwned>(stream: &UnixStream, decoder: &mut Decoder) -> Result<Option<M>, ControlError> {
    loop {
        if let Some(message) = decoder.next()? {
            return Ok(Some(message));
        }
        let (bytes, descriptors) = stream.async_io(Interest::READABLE, || receive_some(stream.as_fd())).await?;
        if bytes.is_empty() {
            return Ok(None);
        }
        decoder.feed(&bytes, descriptors)?;
    }
}

fn send_some(socket: BorrowedFd<'_>, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("more than {MAX_DESCRIPTORS} descriptors in one message")));
    }
    Ok(sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?)
}

fn receive_some(socket: BorrowedFd<'_>) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = vec![0; 16 * 1024];
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    bytes.truncate(received.bytes);
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    Ok((bytes, descriptors))
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{Read, Seek, Write},
    };

    use super::*;

    #[tokio::test]
    async fn a_descriptor_arrives_with_its_message() {
        let (left, right) = UnixStream::pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"hello").unwrap();
        // Longer than one read.
        let message = "x".repeat(500_000);
        let sent = message.clone();
        let sender = tokio::spawn(async move { send(&left, &sent, &[file.as_fd()]).await });
        let mut decoder = Decoder::default();
        assert_eq!(receive::<String>(&right, &mut decoder).await.unwrap(), Some(message));
        sender.await.unwrap().unwrap();
        let mut copy = File::from(decoder.descriptor().unwrap());
        let mut text = String::new();
        copy.rewind().unwrap();
        copy.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        assert_eq!(receive::<String>(&right, &mut decoder).await.unwrap(), None, "the end is an end, not an error");
    }

    #[test]
    fn the_blocking_end_speaks_the_same_language() {
        let (left, right) = StdUnixStream::pair().unwrap();
        let word = "hello".to_owned();
        send_blocking(&left, &word).unwrap();
        drop(left);
        let mut decoder = Decoder::default();
        assert_eq!(receive_blocking::<String>(&right, &mut decoder).unwrap(), Some(word));
        assert_eq!(receive_blocking::<String>(&right, &mut decoder).unwrap(), None);
    }
}
